//! Reading ahead: who reads in sequence finds the next bytes fetched already, by several GETs at a time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::fetch::{Pace, WantedPart};
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::table::Part;

/// 512 KiB: the first window, when a second read follows the first.
const WINDOW_BYTES_MIN: u64 = 512 * 1024;

/// Eight times as much with each step: two steps, each of which waits for the store, to the largest window.
const WINDOW_GROWTH: u64 = 8;

/// 32 MiB: four of the longest GETs under way, and all the room that a budget of 256 MiB has. Half of it where there is no cache on
/// disk: more would push itself out of RAM before it is read.
pub(crate) const WINDOW_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// A quarter of the window is fetched at a time, by one GET where it lies in one piece.
const STEPS: u64 = 4;

/// 2 MiB and 8 MiB: a GET costs a store as much as some MiB of content, so long ones are cheap; a short window is that of a reader
/// that waits for the end of each.
const GET_BYTES: std::ops::RangeInclusive<u64> = 2 * 1024 * 1024..=8 * 1024 * 1024;

/// 256 files are watched; with more, those forgotten begin again with small windows.
const STREAMS_MAX: usize = 256;

#[derive(Debug, Clone, Copy)]
struct Stream {
    /// Where the next read of the sequence begins.
    next: u64,
    /// Up to where was read ahead.
    ahead: u64,
    window: u64,
}

/// What to fetch ahead of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ahead {
    start: u64,
    end: u64,
    /// See `Pace`.
    get_bytes: u64,
}

/// Who reads what in sequence.
#[derive(Debug)]
pub(crate) struct Readahead {
    /// Bytes ahead at most; 0 for none.
    window_max: u64,
    /// Held for one decision, never across an await.
    streams: Mutex<HashMap<InodeNo, Stream>>,
}

impl Default for Readahead {
    fn default() -> Self {
        Self::new(WINDOW_BYTES_MAX)
    }
}

impl Readahead {
    /// Reads as much ahead as is wanted, but no more than there is room for.
    pub fn of(wanted: Option<u64>, room: u64) -> Self {
        Self::new(wanted.unwrap_or(WINDOW_BYTES_MAX).min(room))
    }

    /// Reads at most `window_max` bytes ahead.
    fn new(window_max: u64) -> Self {
        Self {
            window_max,
            streams: Mutex::default(),
        }
    }

    /// Notes a read and returns what to fetch ahead, if anything.
    pub fn next(&self, ino: InodeNo, offset: u64, len: u64) -> Option<Ahead> {
        if self.window_max == 0 {
            return None;
        }
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if streams.len() >= STREAMS_MAX && !streams.contains_key(&ino) {
            streams.clear();
        }
        let end = offset + len;
        let stream = streams.entry(ino).or_insert(Stream {
            next: u64::MAX,
            ahead: 0,
            window: 0,
        });
        // The kernel reads ahead on its own with several requests at a time, which may overtake each other.
        let slack = len.max(WINDOW_BYTES_MIN);
        let sequential =
            offset == 0 || (stream.next <= offset.saturating_add(slack) && offset <= stream.next.saturating_add(slack));
        if !sequential {
            *stream = Stream {
                next: end,
                ahead: 0,
                window: 0,
            };
            return None;
        }
        if offset == 0 || stream.window == 0 {
            stream.ahead = end;
        }
        stream.next = end.max(if stream.next == u64::MAX { 0 } else { stream.next });
        if stream.window == 0 {
            stream.window = WINDOW_BYTES_MIN.min(self.window_max);
            // The first read of a file may be the only one.
            return None;
        }
        let start = stream.ahead.max(end);
        let step = (stream.window / STEPS).max(WINDOW_BYTES_MIN).min(self.window_max);
        if start + step > end + stream.window {
            return None;
        }
        stream.window = (stream.window * WINDOW_GROWTH).min(self.window_max);
        stream.ahead = end + stream.window;
        Some(Ahead {
            start,
            end: stream.ahead,
            get_bytes: (stream.window / STEPS).clamp(*GET_BYTES.start(), *GET_BYTES.end()),
        })
    }

    /// Notes that a file was read ahead up to another place than was said.
    fn reached(&self, ino: InodeNo, end: u64) {
        let mut streams = self.streams.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(stream) = streams.get_mut(&ino) {
            stream.ahead = end;
        }
    }

    /// A file is gone or closed.
    pub fn forget(&self, ino: InodeNo) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
    }
}

impl Mount {
    /// Notes a read of content in the bucket, and fetches ahead of it.
    pub fn read_ahead(&self, ino: InodeNo, offset: u64, len: u64) {
        let Some(Ahead { start, end, get_bytes }) = self.readahead.next(ino, offset, len) else {
            return;
        };
        let parts = {
            let mut tables = self.lock();
            let Ok(row) = tables.inode(ino) else { return };
            let end = end.min(row.size);
            tables.parts_known(ino, start, end)
        };
        let mut wanted: Vec<WantedPart> = parts
            .into_iter()
            .filter_map(|part| match part {
                Part::Stored { offset, row, skip, len } => Some(WantedPart { offset, row, skip, len }),
                Part::Bytes(_) | Part::Zeros(_) => None,
            })
            .collect();
        if let Some(end) = end_with_a_run(&mut wanted, get_bytes) {
            self.readahead.reached(ino, end);
        }
        if let (false, Ok(runtime)) = (wanted.is_empty(), tokio::runtime::Handle::try_current()) {
            let fetcher = self.fetcher.clone();
            let pace = Pace {
                read_bytes: len,
                get_bytes,
            };
            runtime.spawn(async move { fetcher.warm(wanted, pace).await });
        }
    }
}

/// Makes the last part end where its run does, if that is within half a GET: what is left of a run would be a GET of its own. Returns
/// the new end in the file, where there is one.
fn end_with_a_run(wanted: &mut Vec<WantedPart>, get_bytes: u64) -> Option<u64> {
    let alone = wanted.len() == 1;
    let last = wanted.last_mut()?;
    let left = last.row.len.saturating_sub(last.skip + last.len);
    if left == 0 {
        return None;
    }
    if left <= get_bytes / 2 {
        last.len += left;
        return Some(last.offset + last.len);
    }
    let begun = last.skip == 0 && last.len <= get_bytes / 2 && !alone;
    begun.then(|| wanted.pop()).flatten().map(|dropped| dropped.offset)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::ids::{Epoch, ObjectId};
    use crate::row::ExtentRow;

    const INO: InodeNo = InodeNo(7);
    const KIB: u64 = 1024;

    #[test]
    fn reading_in_sequence_opens_the_window_and_never_fetches_twice() {
        let readahead = Readahead::default();
        let (mut covered, mut asked) = (0, 0);
        for step in 0..1_000 {
            let offset = step * 128 * KIB;
            if let Some(Ahead { start, end, get_bytes }) = readahead.next(INO, offset, 128 * KIB) {
                assert!(GET_BYTES.contains(&get_bytes));
                assert!(start >= covered, "{start} was fetched already, up to {covered}");
                assert!(end - (offset + 128 * KIB) <= WINDOW_BYTES_MAX);
                covered = end;
                asked += 1;
            }
            assert!(step < 2 || covered > offset + 128 * KIB, "behind at step {step}");
        }
        assert!(asked < 60, "{asked} fetches for 1,000 reads");
    }

    #[test]
    fn no_more_is_read_ahead_than_has_room() {
        let window = |wanted, room| Readahead::of(wanted, room).window_max;
        assert_eq!(window(None, 1 << 40), WINDOW_BYTES_MAX);
        assert_eq!(window(None, 8 << 20), 8 << 20);
        assert_eq!(window(Some(4 << 20), 8 << 20), 4 << 20);
        assert_eq!(window(Some(0), 8 << 20), 0);
    }

    /// Goal: no short GET is left over at the end of a run. Method: a run of 16 MiB, and what comes before it.
    #[test]
    fn what_is_read_ahead_ends_where_a_run_does_if_that_is_near() {
        const MIB: u64 = 1 << 20;
        let row = Arc::new(ExtentRow {
            len: 16 * MIB,
            object: ObjectId::Segment(Epoch(1), 1),
            object_offset: 0,
            skip: 0,
            frame_stored_lens: Vec::new(),
            origin_ino: INO,
            origin_offset: 0,
        });
        let part = |skip, len| WantedPart {
            offset: 100 * MIB + skip,
            row: Arc::clone(&row),
            skip,
            len,
        };
        let ends = |mut parts: Vec<WantedPart>| {
            let end = end_with_a_run(&mut parts, 8 * MIB);
            (
                end.map(|end| end / MIB),
                parts.len(),
                parts.last().map_or(0, |last| last.len / MIB),
            )
        };
        assert_eq!(ends(vec![part(0, 8 * MIB)]), (None, 1, 8), "half of it is left");
        assert_eq!(ends(vec![part(8 * MIB, 8 * MIB)]), (None, 1, 8), "it ends there");
        assert_eq!(
            ends(vec![part(6 * MIB, 7 * MIB)]),
            (Some(116), 1, 10),
            "the rest comes along"
        );
        assert_eq!(
            ends(vec![part(8 * MIB, 8 * MIB), part(0, 3 * MIB)]),
            (Some(100), 1, 8),
            "later"
        );
        assert_eq!(
            ends(vec![part(0, 3 * MIB)]),
            (None, 1, 3),
            "there is nothing else to fetch"
        );
        assert_eq!(ends(Vec::new()), (None, 0, 0));
    }

    #[test]
    fn a_volume_may_read_less_ahead_or_nothing() {
        let (less, nothing) = (Readahead::new(WINDOW_BYTES_MIN * 2), Readahead::new(0));
        for step in 0..200 {
            let offset = step * 128 * KIB;
            if let Some(Ahead { end, .. }) = less.next(INO, offset, 128 * KIB) {
                assert!(end - (offset + 128 * KIB) <= WINDOW_BYTES_MIN * 2);
            }
            assert_eq!(nothing.next(INO, offset, 128 * KIB), None);
        }
    }

    #[test]
    fn random_reads_fetch_nothing_ahead() {
        let readahead = Readahead::default();
        for step in 1..1_000u64 {
            assert_eq!(
                readahead.next(INO, (step * 7_919 % 1_000) * 10_240 * KIB + 4 * KIB, 4 * KIB),
                None
            );
        }
    }
}
