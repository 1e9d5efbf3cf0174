//! Reading ahead: who reads in sequence finds the next bytes fetched already, by several GETs at a time.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};

use crate::fetch::WantedPart;
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::table::Part;

/// 512 KiB: the first window, when a second read follows the first.
const WINDOW_BYTES_MIN: u64 = 512 * 1024;

/// Four times as much with each step: three steps, each of which waits for the store, to the largest window.
const WINDOW_GROWTH: u64 = 4;

/// 16 MiB: eight GETs under way. With 12 ms each that is above 1 GiB/s; more would only push other frames out of RAM.
pub(crate) const WINDOW_BYTES_MAX: u64 = 16 * 1024 * 1024;

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
    /// Reads at most `window_max` bytes ahead.
    pub fn new(window_max: u64) -> Self {
        Self {
            window_max,
            streams: Mutex::default(),
        }
    }

    /// Notes a read and returns what to fetch ahead, if anything.
    pub fn next(&self, ino: InodeNo, offset: u64, len: u64) -> Option<(u64, u64)> {
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
        if start >= end + stream.window / 2 {
            return None;
        }
        stream.window = (stream.window * WINDOW_GROWTH).min(self.window_max);
        stream.ahead = end + stream.window;
        Some((start, stream.ahead))
    }

    /// A file is gone or closed.
    pub fn forget(&self, ino: InodeNo) {
        self.streams.lock().unwrap_or_else(PoisonError::into_inner).remove(&ino);
    }
}

impl Mount {
    /// Notes a read of content in the bucket, and fetches ahead of it.
    pub fn read_ahead(&self, ino: InodeNo, offset: u64, len: u64) {
        let Some((start, end)) = self.readahead.next(ino, offset, len) else {
            return;
        };
        let parts = {
            let mut tables = self.lock();
            let Ok(row) = tables.inode(ino) else { return };
            let end = end.min(row.size);
            tables.parts_known(ino, start, end)
        };
        let wanted: Vec<WantedPart> = parts
            .into_iter()
            .filter_map(|part| match part {
                Part::Stored { offset, row, skip, len } => Some(WantedPart { offset, row, skip, len }),
                Part::Bytes(_) | Part::Zeros(_) => None,
            })
            .collect();
        if let (false, Ok(runtime)) = (wanted.is_empty(), tokio::runtime::Handle::try_current()) {
            let fetcher = self.fetcher.clone();
            runtime.spawn(async move { fetcher.warm(wanted).await });
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INO: InodeNo = InodeNo(7);
    const KIB: u64 = 1024;

    #[test]
    fn reading_in_sequence_opens_the_window_and_never_fetches_twice() {
        let readahead = Readahead::default();
        let (mut covered, mut asked) = (0, 0);
        for step in 0..1_000 {
            let offset = step * 128 * KIB;
            if let Some((start, end)) = readahead.next(INO, offset, 128 * KIB) {
                assert!(start >= covered, "{start} was fetched already, up to {covered}");
                assert!(end - (offset + 128 * KIB) <= WINDOW_BYTES_MAX);
                covered = end;
                asked += 1;
            }
            assert!(step < 2 || covered > offset + 128 * KIB, "behind at step {step}");
        }
        assert!(asked < 100, "{asked} fetches for 1,000 reads");
    }

    #[test]
    fn a_volume_may_read_less_ahead_or_nothing() {
        let (less, nothing) = (Readahead::new(WINDOW_BYTES_MIN * 2), Readahead::new(0));
        for step in 0..200 {
            let offset = step * 128 * KIB;
            if let Some((_, end)) = less.next(INO, offset, 128 * KIB) {
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
