//! Which numbers a file of the tree has rows of, so that a scan passes by the files that have nothing for it.
//!
//! A file that no compaction has taken has rows of every kind, so its first and last key say nothing; but it holds what changed in a
//! short time, mostly some ranges of neighbouring inodes. Each file tells them beside SlateDB's own filter, which only knows
//! whole keys: of thirteen files a listing then reads the one or two that have the folder, and not a block of each.
//!
//! Invariant: a key that was added is never denied. What cannot be told, or does not decode, claims everything.
//! Callers: `slate.rs` and `upkeep.rs`, for every reader and writer of a tree. A file without such a part is read as before.

use std::ops::Bound;
use std::sync::Arc;

use bytes::{BufMut, Bytes};
use slatedb::{BloomFilterPolicy, Filter, FilterBuilder, FilterPolicy, FilterQuery, FilterTarget, RowEntry};

use crate::wire::{Reader, WireError, put_varint};

/// Ten bits for each key: one look-up in a hundred reads a file in vain.
const BLOOM_BITS_PER_KEY: u32 = 10;

/// The name in the file. Another layout would be another name.
const NAME: &str = "pannier.reach.1";

/// 512 ranges, at most 10 KiB: a sixth of the filter of a full file. With more, those that lie nearest to each other are joined.
const RANGES_MAX: usize = 512;

/// 16 numbers between two ranges are not worth a range.
const GAP_MIN: u64 = 16;

/// The kind of a key, and the number behind it.
const PLACE_BYTES: usize = 9;

/// Two bytes for the kind and the number of numbers, eight for the first, and some.
const RANGE_BYTES_TYPICAL: usize = 12;

/// What every file of a tree has: whole keys, and ranges of numbers.
pub(super) fn filters() -> Vec<Arc<dyn FilterPolicy>> {
    vec![
        Arc::new(BloomFilterPolicy::new(BLOOM_BITS_PER_KEY)),
        Arc::new(ReachPolicy),
    ]
}

/// A kind of keys and a number, which compare as keys do.
type Place = (u8, u64);

fn place_of(key: &[u8]) -> Place {
    let mut bytes = [0; PLACE_BYTES];
    let len = key.len().min(PLACE_BYTES);
    bytes[..len].copy_from_slice(&key[..len]);
    let [kind, number @ ..] = bytes;
    (kind, u64::from_be_bytes(number))
}

/// True for a key that has nothing but zeros behind its number: none of the same number comes before it, but shorter ones.
fn is_first_of_its_number(key: &[u8]) -> bool {
    key.iter().skip(PLACE_BYTES).all(|byte| *byte == 0)
}

/// Numbers of one kind, both ends inclusive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    kind: u8,
    first: u64,
    last: u64,
}

struct ReachPolicy;

impl FilterPolicy for ReachPolicy {
    fn name(&self) -> &str {
        NAME
    }

    fn builder(&self) -> Box<dyn FilterBuilder> {
        Box::new(Builder::default())
    }

    fn decode(&self, data: &[u8]) -> Arc<dyn Filter> {
        Arc::new(Reach::decode(data).unwrap_or(Reach { ranges: None }))
    }

    fn estimate_size(&self, num_keys: usize) -> usize {
        num_keys.min(RANGES_MAX) * RANGE_BYTES_TYPICAL
    }

    fn supports_range_queries(&self) -> bool {
        true
    }

    fn supports_prefix_queries(&self) -> bool {
        false
    }
}

/// Gathers the ranges of a file, whose keys come in their order.
#[derive(Debug)]
struct Builder {
    ranges: Vec<Range>,
    gap: u64,
    /// Keys came out of order: their file claims everything.
    unordered: bool,
}

impl Default for Builder {
    fn default() -> Self {
        Self {
            ranges: Vec::new(),
            gap: GAP_MIN,
            unordered: false,
        }
    }
}

impl Builder {
    fn add(&mut self, key: &[u8]) {
        let (kind, number) = place_of(key);
        // A bound may exclude what begins with its number, and must not exclude this key where that is longer.
        let first = match is_first_of_its_number(key) {
            true => number.saturating_sub(1),
            false => number,
        };
        let range = Range {
            kind,
            first,
            last: number,
        };
        match self.ranges.last_mut() {
            Some(last) if (kind, number) < (last.kind, last.last) => self.unordered = true,
            Some(last) if joins(last, &range, self.gap) => last.last = number,
            _ => self.ranges.push(range),
        }
        while self.ranges.len() > RANGES_MAX {
            self.gap = self.gap.saturating_mul(4);
            let gap = self.gap;
            self.ranges.dedup_by(|next, before| {
                let joined = joins(before, next, gap);
                if joined {
                    before.last = next.last;
                }
                joined
            });
            // No gap is left between two ranges of one kind, and there are fewer kinds than that.
            if gap == u64::MAX {
                break;
            }
        }
    }
}

fn joins(before: &Range, next: &Range, gap: u64) -> bool {
    before.kind == next.kind && next.first <= before.last.saturating_add(gap)
}

impl FilterBuilder for Builder {
    fn add_entry(&mut self, entry: &RowEntry) {
        // Whatever it is: a deletion hides the rows of older files, so it must be found.
        self.add(&entry.key);
    }

    fn build(&mut self) -> Arc<dyn Filter> {
        let ranges = std::mem::take(&mut self.ranges);
        Arc::new(Reach {
            ranges: (!self.unordered).then_some(ranges),
        })
    }
}

/// The ranges of one file, in order; `None` claims everything.
#[derive(Debug, Clone)]
struct Reach {
    ranges: Option<Vec<Range>>,
}

impl Reach {
    fn decode(data: &[u8]) -> Result<Self, WireError> {
        let mut reader = Reader::new(data);
        if reader.byte("claims everything")? != 0 {
            return Ok(Self { ranges: None });
        }
        let mut ranges: Vec<Range> = Vec::new();
        while reader.left() > 0 {
            let (kind, first) = (reader.byte("kind")?, reader.u64_be("first number")?);
            let more = reader.varint("numbers")?;
            let range = Range {
                kind,
                first,
                last: first.saturating_add(more),
            };
            let ordered = |last: &Range| (last.kind, last.last) < (kind, first);
            if ranges.last().is_some_and(|last| !ordered(last)) {
                return Ok(Self { ranges: None });
            }
            ranges.push(range);
        }
        Ok(Self { ranges: Some(ranges) })
    }

    /// True unless nothing lies between these, both inclusive.
    fn reaches(&self, low: Place, high: Place) -> bool {
        let Some(ranges) = &self.ranges else { return true };
        let first = ranges.partition_point(|range| (range.kind, range.last) < low);
        ranges.get(first).is_some_and(|range| (range.kind, range.first) <= high)
    }
}

fn low_of(bound: &Bound<Bytes>) -> Place {
    match bound {
        Bound::Included(key) | Bound::Excluded(key) => place_of(key),
        Bound::Unbounded => (0, 0),
    }
}

fn high_of(bound: &Bound<Bytes>) -> Place {
    match bound {
        Bound::Included(key) => place_of(key),
        Bound::Excluded(key) => match place_of(key) {
            // What comes before it has a smaller number, or was added with the number before as well.
            (kind, number) if number > 0 && is_first_of_its_number(key) => (kind, number - 1),
            place => place,
        },
        Bound::Unbounded => (u8::MAX, u64::MAX),
    }
}

impl Filter for Reach {
    fn might_match(&self, query: &FilterQuery) -> bool {
        match &query.target {
            FilterTarget::Point(key) => self.reaches(place_of(key), place_of(key)),
            FilterTarget::Range { lower, upper } => self.reaches(low_of(lower), high_of(upper)),
            FilterTarget::Prefix(_) => true,
        }
    }

    fn encode(&self, writer: &mut dyn BufMut) {
        writer.put_u8(u8::from(self.ranges.is_none()));
        for Range { kind, first, last } in self.ranges.iter().flatten() {
            let mut out = vec![*kind];
            out.extend_from_slice(&first.to_be_bytes());
            put_varint(&mut out, last - first);
            writer.put_slice(&out);
        }
    }

    fn size(&self) -> usize {
        let ranges = self.ranges.as_ref().map_or(0, Vec::len);
        ranges * std::mem::size_of::<Range>()
    }

    fn clamp_allocated_size(&self) -> Arc<dyn Filter> {
        let mut clamped = self.clone();
        if let Some(ranges) = &mut clamped.ranges {
            ranges.shrink_to_fit();
        }
        Arc::new(clamped)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::{DirCookie, InodeNo};
    use crate::row::Key;
    use crate::row::codec::encode_key;

    fn of(keys: &[Vec<u8>]) -> Reach {
        let mut builder = Builder::default();
        keys.iter().for_each(|key| builder.add(key));
        let mut encoded = Vec::new();
        builder.build().encode(&mut encoded);
        Reach::decode(&encoded).unwrap()
    }

    fn between(reach: &Reach, from: &[u8], until: &[u8]) -> bool {
        let bound = Bytes::copy_from_slice;
        reach.might_match(&FilterQuery::range(
            Bound::Included(bound(from)),
            Bound::Excluded(bound(until)),
        ))
    }

    fn inode(ino: u64) -> Vec<u8> {
        encode_key(&Key::Inode(InodeNo(ino)))
    }

    fn entry(dir: u64, cookie: u64) -> Vec<u8> {
        encode_key(&Key::Dirent {
            dir: InodeNo(dir),
            cookie: DirCookie(cookie),
            name: Bytes::from_static(b"name"),
        })
    }

    fn listing(dir: u64) -> (Vec<u8>, Vec<u8>) {
        let bound = |dir| Key::Dirent {
            dir: InodeNo(dir),
            cookie: DirCookie(0),
            name: Bytes::new(),
        };
        (encode_key(&bound(dir)), encode_key(&bound(dir + 1)))
    }

    #[test]
    fn a_file_of_some_folders_is_passed_by_for_others() {
        let mut keys: Vec<_> = (1_000..3_000).map(inode).collect();
        keys.extend([inode(9_000), entry(1, 77), entry(2_000, 5), entry(2_001, 5)]);
        let reach = of(&keys);
        let lists = |dir| {
            let (from, until) = listing(dir);
            between(&reach, &from, &until)
        };
        assert!(lists(1) && lists(2_000) && lists(2_001));
        assert!(!lists(1_900) && !lists(2_002), "the bound itself is not listed");
        assert!(between(&reach, &inode(2_900), &inode(3_500)) && between(&reach, &inode(0), &inode(1_001)));
        assert!(!between(&reach, &inode(3_100), &inode(8_999)));
        assert!(!between(&reach, &inode(10_000), &inode(11_000)));
        assert!(
            between(&reach, &inode(10_000), &entry(1, 78)),
            "over the border of kinds"
        );
    }

    #[test]
    fn a_file_of_a_million_ranges_tells_a_few_hundred() {
        let keys: Vec<_> = (0..1_000_000).map(|n| inode(n * 1_000)).collect();
        let reach = of(&keys);
        assert!(reach.ranges.as_ref().is_some_and(|ranges| ranges.len() <= RANGES_MAX));
        assert!(
            keys.iter()
                .all(|key| reach.might_match(&FilterQuery::point(key.clone().into())))
        );
        let far = inode(u64::MAX - 1_000_000);
        assert!(!between(&reach, &far, &inode(u64::MAX)));
    }

    #[test]
    fn what_came_out_of_order_or_does_not_decode_claims_everything() {
        let unordered = of(&[inode(5_000), inode(7)]);
        assert!(between(&unordered, &inode(100), &inode(200)));
        for foreign in [&b"\x00\x10"[..], b"", b"\x01", &[0x00; 40]] {
            let filter = ReachPolicy.decode(foreign);
            let query = FilterQuery::point(inode(3).into());
            assert!(filter.might_match(&query), "{foreign:?}");
        }
    }

    /// Keys of few different bytes, so that they meet in their beginnings, and some with real numbers.
    fn keys() -> impl Strategy<Value = Vec<u8>> {
        let tight = prop::collection::vec(prop::sample::select(vec![0u8, 1, 255]), 0..14);
        let real = (0..40u64, 0..3u64).prop_map(|(dir, cookie)| entry(dir * 20, cookie));
        prop_oneof![tight, real]
    }

    proptest! {
        /// Goal: no scan misses a row. Method: any keys, and any bounds around them, beside a plain look.
        #[test]
        fn no_key_within_the_bounds_is_denied(
            keys in prop::collection::btree_set(keys(), 0..60),
            bounds in prop::collection::vec((keys(), keys()), 20),
        ) {
            let keys: Vec<_> = keys.into_iter().collect();
            let reach = of(&keys);
            for (from, until) in bounds {
                for lower in [Bound::Included(from.clone()), Bound::Excluded(from.clone()), Bound::Unbounded] {
                    for upper in [Bound::Included(until.clone()), Bound::Excluded(until.clone()), Bound::Unbounded] {
                        let inside = |key: &Vec<u8>| std::ops::RangeBounds::contains(&(lower.clone(), upper.clone()), key);
                        let query = FilterQuery::range(lower.clone().map(Bytes::from), upper.clone().map(Bytes::from));
                        prop_assert!(reach.might_match(&query) || !keys.iter().any(inside), "{lower:?} {upper:?}");
                    }
                }
            }
            for key in keys {
                prop_assert!(reach.might_match(&FilterQuery::point(key.into())));
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..60)) {
            let filter = ReachPolicy.decode(&bytes);
            let _ = filter.might_match(&FilterQuery::range(Bound::Unbounded, Bound::Unbounded));
        }
    }
}
