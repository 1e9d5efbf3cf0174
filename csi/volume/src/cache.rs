//! Frames that were read, kept as they are stored: with their checksum and identity, which every reader checks again.
//!
//! Invariant: a cache may forget anything at any time, and may hold damaged bytes; both only cost a GET.
//! Caller: `fetch.rs`. Absent: what is not in the bucket yet (that is in `table/extents.rs`).

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::budget::Share;
use crate::ids::ObjectId;

pub(crate) mod disk;
pub(crate) mod known;
mod second_chance;

use known::KnownFrame;
use second_chance::{ENTRY_BYTES, SecondChance};

/// Which frame: the object, and where in it the frame's header starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct FrameKey {
    /// The object.
    pub object: ObjectId,
    /// Offset of the header in bytes.
    pub offset: u64,
}

/// A quarter of the cache is for what is known of frames on disk: a 400th of those.
const KNOWN_SHARE: u64 = 4;

#[derive(Debug, Default)]
struct Held {
    stored: SecondChance<Bytes>,
    known: SecondChance<Arc<KnownFrame>>,
}

/// Frames in RAM, and what is known of those on disk, bounded by bytes. Those read again outlive those read once.
#[derive(Debug)]
pub(crate) struct RamCache {
    bytes_max: u64,
    /// What is here, of what all volumes have.
    share: Share,
    /// Held for one call, never across an await.
    held: Mutex<Held>,
}

impl RamCache {
    /// An empty cache of at most `bytes_max`, and of what `share` allows.
    pub fn new(bytes_max: u64, share: Share) -> Self {
        Self {
            bytes_max,
            share,
            held: Mutex::default(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Held> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame as stored, if it is here.
    pub fn get(&self, key: FrameKey) -> Option<Bytes> {
        self.lock().stored.get(key)
    }

    /// True if the frame is here.
    pub fn contains(&self, key: FrameKey) -> bool {
        self.lock().stored.contains(key)
    }

    /// Keeps a frame, and drops others if there are too many.
    pub fn put(&self, key: FrameKey, stored: Bytes) {
        let bytes = stored.len() as u64;
        if bytes + ENTRY_BYTES > self.bytes_max {
            return;
        }
        let mut held = self.lock();
        held.stored.put(key, stored, bytes);
        self.bound(&mut held);
    }

    /// What is known of a frame on disk.
    pub fn known(&self, key: FrameKey) -> Option<Arc<KnownFrame>> {
        self.lock().known.get(key)
    }

    /// True if something is.
    pub fn knows(&self, key: FrameKey) -> bool {
        self.lock().known.contains(key)
    }

    /// Keeps what is known of a frame on disk.
    pub fn put_known(&self, key: FrameKey, known: KnownFrame) {
        let bytes = known.sums().memory_bytes();
        let mut held = self.lock();
        held.known.put(key, Arc::new(known), bytes);
        self.bound(&mut held);
    }

    /// Drops a frame that turned out to be damaged, and what is known of it.
    pub fn remove(&self, key: FrameKey) {
        let mut held = self.lock();
        held.stored.remove(key);
        held.known.remove(key);
    }

    fn bound(&self, held: &mut Held) {
        let bytes = held.stored.bytes() + held.known.bytes();
        let bytes_max = self.bytes_max.min(self.share.allowed(bytes));
        held.known.shrink_to(bytes_max / KNOWN_SHARE);
        held.stored.shrink_to(bytes_max.saturating_sub(held.known.bytes()));
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
            assert!(cache.lock().stored.bytes() <= cache.bytes_max);
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

    #[test]
    fn what_is_known_of_frames_on_disk_takes_a_quarter_at_most() {
        let sums = known::tests::sums();
        let bytes_max = 100 * (sums.memory_bytes() + ENTRY_BYTES);
        let cache = RamCache::new(bytes_max, Budget::default().frames());
        for n in 0..1_000 {
            cache.put(key(n), Bytes::from(vec![0; 1_000]));
            cache.put_known(key(n), KnownFrame::new(sums.clone()));
            let held = cache.lock();
            assert!(held.known.bytes() <= bytes_max / 4);
            assert!(held.known.bytes() + held.stored.bytes() <= bytes_max);
        }
        assert!(cache.knows(key(999)) && !cache.knows(key(974)), "25 of them");
        assert!(cache.contains(key(999)));
        cache.remove(key(999));
        assert!(!cache.knows(key(999)));
    }
}
