//! What a scan of all counters shows: how much of what is stored still lives, and which objects are worth moving.
//!
//! Plain functions: no requests, no time. Caller: `gc.rs`. Absent: the moving (`repack.rs`).

use std::collections::{BTreeMap, BTreeSet};

use crate::ids::ObjectId;
use crate::limits::CollectLimits;
use crate::row::ObjectStats;

/// 128 KiB of content: below it the rows and headers of an object weigh, and so does the number of objects.
const SMALL_BYTES: u64 = 128 * 1024;

/// 1 GiB: no object is larger; a sum that says so is not believed.
const OBJECT_BYTES_MAX: u64 = 1024 * 1024 * 1024;

/// 1 KiB: what an object takes besides its content, at least: header, rows, footer.
const OVERHEAD_BYTES: u64 = 1_024;

/// Garbage is left alone up to 20 % of what lives; then it is brought down to 10 %.
const GARBAGE_PERCENT: (u64, u64) = (20, 10);

/// An object of which more than 85 % lives is not moved: it would give back less than a sixth of what moving it writes.
const LIVE_PERCENT_MAX: u64 = 85;

/// 16,384 candidates, and as many small objects, are kept in mind: some MiB of RAM. The next pass finds the others.
const CANDIDATES_MAX: usize = 16_384;

/// Sums over all objects, and those that may be worth moving.
#[derive(Debug, Default)]
pub(super) struct Census {
    live_bytes: u64,
    stored_bytes: u64,
    /// By the permille of them that lives, the least first.
    candidates: BTreeMap<(u64, ObjectId), u64>,
    small: BTreeSet<ObjectId>,
}

impl Census {
    /// Counts an object.
    pub fn add(&mut self, object: ObjectId, stats: ObjectStats) {
        let believed = |bytes: i64| u64::try_from(bytes).unwrap_or(0).min(OBJECT_BYTES_MAX);
        let live = believed(stats.live_bytes);
        let total = believed(stats.total_bytes).max(live);
        if live == 0 {
            // It goes as it is.
            return;
        }
        let stored = total + OVERHEAD_BYTES;
        self.live_bytes += live;
        self.stored_bytes += stored;
        if total < SMALL_BYTES && self.small.len() < CANDIDATES_MAX {
            self.small.insert(object);
        }
        if live * 100 <= total * LIVE_PERCENT_MAX {
            self.candidates.insert((live * 1_000 / total, object), stored - live);
            if self.candidates.len() > CANDIDATES_MAX {
                self.candidates.pop_last();
            }
        }
    }

    /// The objects to move now: none while there is little to gain.
    pub fn victims(&self, limits: &CollectLimits) -> BTreeSet<ObjectId> {
        let mut victims = BTreeSet::new();
        if self.small.len() > limits.small_objects_max {
            victims.extend(&self.small);
        }
        let mut garbage = self.stored_bytes - self.live_bytes;
        let (start, goal) = GARBAGE_PERCENT;
        if garbage <= self.live_bytes * start / 100 + limits.slack_bytes {
            return victims;
        }
        for ((_, object), freed) in &self.candidates {
            if garbage <= self.live_bytes * goal / 100 {
                break;
            }
            victims.insert(*object);
            garbage = garbage.saturating_sub(*freed);
        }
        victims
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::Epoch;

    const MIB: i64 = 1024 * 1024;

    fn segment(number: u64) -> ObjectId {
        ObjectId::Segment(Epoch(1), number)
    }

    fn census(of: &[(i64, i64)]) -> Census {
        let mut census = Census::default();
        for (number, (live_bytes, total_bytes)) in of.iter().enumerate() {
            let stats = ObjectStats {
                live_bytes: *live_bytes,
                total_bytes: *total_bytes,
            };
            census.add(segment(number as u64), stats);
        }
        census
    }

    #[test]
    fn the_deadest_objects_go_first_and_only_as_many_as_needed() {
        let limits = CollectLimits::default();
        let full = (16 * MIB, 16 * MIB);
        assert!(census(&[full; 20]).victims(&limits).is_empty());
        assert!(
            census(&[full, (8 * MIB, 16 * MIB)]).victims(&limits).is_empty(),
            "within the slack"
        );
        let churned = [
            full,
            (MIB, 16 * MIB),
            full,
            (12 * MIB, 16 * MIB),
            (2 * MIB, 16 * MIB),
            (15 * MIB, 16 * MIB),
        ];
        assert_eq!(
            census(&churned).victims(&limits),
            BTreeSet::from([segment(1), segment(4)]),
            "after these two, 5 MiB of garbage are left for 62 that live"
        );
        assert!(
            census(&[(0, 160 * MIB), full]).victims(&limits).is_empty(),
            "the dead are deleted, not moved"
        );
    }

    #[test]
    fn many_small_objects_are_gathered_and_few_are_not() {
        let limits = CollectLimits {
            small_objects_max: 10,
            ..CollectLimits::default()
        };
        assert!(census(&[(4_096, 4_096); 10]).victims(&limits).is_empty());
        assert_eq!(census(&[(4_096, 4_096); 11]).victims(&limits).len(), 11);
    }

    #[test]
    fn sums_that_make_no_sense_move_nothing_and_break_nothing() {
        assert!(
            census(&[(-5, -9), (i64::MAX / 4, 0), (0, 0)])
                .victims(&CollectLimits::default())
                .is_empty()
        );
    }
}
