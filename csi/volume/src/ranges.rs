//! A set of half-open ranges of numbers: which part of a listing or of a file's extents is known to the RAM tables, and
//! which part of a file has its space reserved.

use std::collections::BTreeMap;

/// Disjoint, never touching, half-open ranges.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct RangeSet {
    /// First number to the first number after.
    ranges: BTreeMap<u64, u64>,
}

impl RangeSet {
    /// The set of all numbers from `start` on.
    pub fn all() -> Self {
        Self {
            ranges: BTreeMap::from([(0, u64::MAX)]),
        }
    }

    /// The ranges, in order.
    pub fn iter(&self) -> impl Iterator<Item = (u64, u64)> + '_ {
        self.ranges.iter().map(|(&start, &end)| (start, end))
    }

    /// How many numbers of `start..end` are in the set.
    pub fn count_within(&self, start: u64, end: u64) -> u64 {
        let before = self
            .covering(start)
            .map_or(0, |(_, until)| until.min(end).saturating_sub(start));
        let rest = self.ranges.range(start.saturating_add(1)..);
        let within = rest.take_while(|(next, _)| **next < end);
        before + within.map(|(&next, &until)| until.min(end) - next).sum::<u64>()
    }

    /// The parts of `start..end` that are not in the set.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        while let Some(gap) = self.first_gap(at, end) {
            let until = self.next_from(gap).map_or(end, |next| next.min(end));
            gaps.push((gap, until));
            at = until;
        }
        gaps
    }

    /// True if it holds nothing.
    pub fn is_empty(&self) -> bool {
        self.ranges.is_empty()
    }

    /// Number of separate ranges.
    pub fn len(&self) -> usize {
        self.ranges.len()
    }

    /// Adds `start..end`.
    pub fn insert(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        let (mut start, mut end) = (start, end);
        if let Some((&before, &until)) = self.ranges.range(..=start).next_back()
            && until >= start
        {
            start = before;
            end = end.max(until);
        }
        while let Some((&next, &until)) = self.ranges.range(start..=end).next() {
            end = end.max(until);
            self.ranges.remove(&next);
        }
        self.ranges.insert(start, end);
    }

    /// Takes `start..end` away.
    pub fn remove(&mut self, start: u64, end: u64) {
        if start >= end {
            return;
        }
        if let Some((&before, &until)) = self.ranges.range(..start).next_back()
            && until > start
        {
            self.ranges.insert(before, start);
            if until > end {
                self.ranges.insert(end, until);
                return;
            }
        }
        while let Some((&next, &until)) = self.ranges.range(start..end).next() {
            self.ranges.remove(&next);
            if until > end {
                self.ranges.insert(end, until);
            }
        }
    }

    /// The range that holds `at`.
    pub fn covering(&self, at: u64) -> Option<(u64, u64)> {
        let (&start, &end) = self.ranges.range(..=at).next_back()?;
        (at < end).then_some((start, end))
    }

    /// The first number from `start` on, below `end`, that is not in the set.
    pub fn first_gap(&self, start: u64, end: u64) -> Option<u64> {
        let gap = self.covering(start).map_or(start, |(_, until)| until);
        (gap < end).then_some(gap)
    }

    /// The first number of the set at or after `at`.
    pub fn next_from(&self, at: u64) -> Option<u64> {
        if self.covering(at).is_some() {
            return Some(at);
        }
        self.ranges.range(at..).next().map(|(&start, _)| start)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_holds_exactly_what_was_put_in_and_not_taken_out() {
        let mut set = RangeSet::default();
        let mut naive = [false; 64];
        let mut x: u64 = 0x9e37_79b9_7f4a_7c15;
        for _ in 0..20_000 {
            x = x
                .wrapping_mul(6_364_136_223_846_793_005)
                .wrapping_add(1_442_695_040_888_963_407);
            let (a, b) = ((x >> 33) % 64, (x >> 43) % 64);
            if x >> 63 == 0 {
                set.insert(a, b);
                (a..b.max(a)).for_each(|i| naive[i as usize] = true);
            } else {
                set.remove(a, b);
                (a..b.max(a)).for_each(|i| naive[i as usize] = false);
            }
            for i in 0..64u64 {
                assert_eq!(set.covering(i).is_some(), naive[i as usize], "{i} in {set:?}");
                let gap = (i..64).find(|j| !naive[*j as usize]);
                assert_eq!(set.first_gap(i, 64), gap);
                assert_eq!(set.next_from(i), (i..64).find(|j| naive[*j as usize]));
                let end = (i + (x >> 50) % 20).min(64);
                let within = (i..end).filter(|j| naive[*j as usize]).count() as u64;
                assert_eq!(set.count_within(i, end), within, "{i}..{end} of {set:?}");
                let without: u64 = set.gaps(i, end).iter().map(|(start, end)| end - start).sum();
                assert_eq!(without, end - i - within, "{i}..{end} of {set:?}");
            }
            let runs = (0..64).filter(|&i| naive[i] && (i == 0 || !naive[i - 1])).count();
            assert_eq!(set.len(), runs, "ranges never touch: {set:?}");
        }
    }
}
