//! Frames that were read, kept as they are stored: with their checksum and identity, which every reader checks again.
//!
//! Invariant: a cache may forget anything at any time, and may hold damaged bytes; both only cost a GET.
//! Caller: `fetch.rs`. Absent: what is not in the bucket yet (that is in `table/extents.rs`).

use std::collections::{HashMap, VecDeque};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::budget::Share;
use crate::ids::ObjectId;

pub(crate) mod disk;

/// Which frame: the object, and where in it the frame's header starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FrameKey {
    /// The object.
    pub object: ObjectId,
    /// Offset of the header in bytes.
    pub offset: u64,
}

/// 128 bytes: what a frame costs in RAM besides its bytes, about.
const ENTRY_BYTES: u64 = 128;

#[derive(Debug)]
struct Entry {
    stored: Bytes,
    used: bool,
}

#[derive(Debug, Default)]
struct Frames {
    by_key: HashMap<FrameKey, Entry>,
    /// In the order of arrival; the clock hand is at the front.
    order: VecDeque<FrameKey>,
    bytes: u64,
}

/// Frames in RAM, bounded by bytes. Those read again outlive those read once.
#[derive(Debug)]
pub(crate) struct RamCache {
    bytes_max: u64,
    /// What is here, of what all volumes have.
    share: Share,
    /// Held for one call, never across an await.
    frames: Mutex<Frames>,
}

impl RamCache {
    /// An empty cache of at most `bytes_max`, and of what `share` allows.
    pub fn new(bytes_max: u64, share: Share) -> Self {
        Self {
            bytes_max,
            share,
            frames: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Frames> {
        self.frames.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame as stored, if it is here.
    pub fn get(&self, key: FrameKey) -> Option<Bytes> {
        let mut frames = self.lock();
        let entry = frames.by_key.get_mut(&key)?;
        entry.used = true;
        Some(entry.stored.clone())
    }

    /// True if the frame is here.
    pub fn contains(&self, key: FrameKey) -> bool {
        self.lock().by_key.contains_key(&key)
    }

    /// Keeps a frame, and drops others if there are too many.
    pub fn put(&self, key: FrameKey, stored: Bytes) {
        let cost = stored.len() as u64 + ENTRY_BYTES;
        if cost > self.bytes_max {
            return;
        }
        let mut frames = self.lock();
        let frames = &mut *frames;
        match frames.by_key.insert(key, Entry { stored, used: false }) {
            Some(before) => frames.bytes -= before.stored.len() as u64 + ENTRY_BYTES,
            None => frames.order.push_back(key),
        }
        frames.bytes += cost;
        let bytes_max = self.bytes_max.min(self.share.allowed(frames.bytes));
        while frames.bytes > bytes_max {
            let Some(oldest) = frames.order.pop_front() else { return };
            match frames.by_key.get_mut(&oldest) {
                Some(entry) if entry.used => {
                    entry.used = false;
                    frames.order.push_back(oldest);
                }
                Some(entry) => {
                    frames.bytes -= entry.stored.len() as u64 + ENTRY_BYTES;
                    frames.by_key.remove(&oldest);
                }
                None => {}
            }
        }
    }

    /// Drops a frame that turned out to be damaged.
    pub fn remove(&self, key: FrameKey) {
        let mut frames = self.lock();
        if let Some(entry) = frames.by_key.remove(&key) {
            frames.bytes -= entry.stored.len() as u64 + ENTRY_BYTES;
        }
        frames.order.retain(|other| *other != key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::budget::Budget;
    use crate::ids::{Epoch, JournalSeq};

    fn key(n: u64) -> FrameKey {
        FrameKey {
            object: ObjectId::Journal(Epoch(1), JournalSeq(1)),
            offset: n,
        }
    }

    #[test]
    fn a_full_cache_keeps_what_is_read_again_and_stays_within_its_bytes() {
        let cache = RamCache::new(10 * (1_000 + ENTRY_BYTES), Budget::default().frames());
        for n in 0..1_000 {
            cache.put(key(n), Bytes::from(vec![n as u8; 1_000]));
            assert_eq!(cache.get(key(0)).unwrap()[0], 0, "read each time, so it stays: {n}");
            assert!(cache.lock().bytes <= cache.bytes_max);
        }
        assert!(!cache.contains(key(500)));
        cache.remove(key(0));
        assert!(cache.get(key(0)).is_none());
    }

    #[test]
    fn a_frame_larger_than_the_cache_is_not_kept() {
        let cache = RamCache::new(100, Budget::default().frames());
        cache.put(key(1), Bytes::from(vec![0; 101]));
        assert!(cache.get(key(1)).is_none());
    }
}
