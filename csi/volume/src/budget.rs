//! One budget of memory for all volumes of a process: what may be dirty, rows and frames that are kept, blocks of the trees.
//! It knows the caches on disk too, which two mounts of one volume share.
//!
//! Each pool is shared by the volumes as they need it. Invariants:
//! - A volume may always have its fair part, so none ever waits for another: what it waits for is its own.
//! - Beyond its fair part a volume may have what nobody uses; when that is gone, it gives back until it is down to its part.
//!
//! So a pool is exceeded by no more than what grew into the parts of others while they did not need them, for as long as it
//! takes to give it back. What is fetched ahead of readers waits for its room instead. Callers: `table.rs` (dirty, rows), `cache.rs`
//! (frames), `fetch.rs` (ahead), `commit/apply.rs` (rows that the tree holds
//! until they are in the bucket), `tree/slate.rs` (blocks).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::{Semaphore, SemaphorePermit};

use crate::cache::disk::OpenCaches;
use crate::tree::blocks::BlockCache;

/// 256 MiB for all volumes of an engine.
pub const MEMORY_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// 64 MiB: less does not hold one run of the largest size in each pool that needs one.
pub const MEMORY_BYTES_MIN: u64 = 64 * 1024 * 1024;

/// Parts of the pools together, by 20 of which a budget is counted: 40 % stays for the program itself, for requests under way,
/// and for what its allocator keeps. Of 256 MiB that is 102, and it has 28 with one idle volume, 53 with ten.
const PARTS: Parts = Parts {
    dirty: 5,
    rows: 2,
    frames: 2,
    unflushed: 2,
    blocks: 1,
};

struct Parts {
    dirty: u64,
    rows: u64,
    frames: u64,
    unflushed: u64,
    blocks: u64,
}

const _: () = assert!(
    PARTS.dirty + PARTS.rows + PARTS.frames + PARTS.unflushed + PARTS.blocks <= 12,
    "the rest is the program's own"
);

/// An eighth is room for what is on its way from the bucket though nobody has asked for it yet: 32 MiB of 256, the window of
/// one reader in sequence. It is a part of what stays for the program.
const AHEAD_SHARE: u64 = 8;

/// Memory that the volumes of a process share. Cheap to clone: all clones are the same budget.
#[derive(Debug, Clone)]
pub struct Budget {
    dirty: Arc<Pool>,
    rows: Arc<Pool>,
    frames: Arc<Pool>,
    unflushed: Arc<Pool>,
    blocks: BlockCache,
    ahead: Arc<AheadRoom>,
    caches_on_disk: OpenCaches,
}

impl Default for Budget {
    fn default() -> Self {
        Self::new(MEMORY_BYTES_MAX)
    }
}

impl Budget {
    /// A budget of this many bytes, but never less than `MEMORY_BYTES_MIN`.
    pub fn new(bytes: u64) -> Self {
        // The smallest budget has no more than each pool needs.
        let part = (bytes / 20).max(MEMORY_BYTES_MIN / 16);
        let pool = |parts| Arc::new(Pool::new(part * parts));
        Self {
            dirty: pool(PARTS.dirty),
            rows: pool(PARTS.rows),
            frames: pool(PARTS.frames),
            unflushed: pool(PARTS.unflushed),
            blocks: BlockCache::new(part * PARTS.blocks),
            ahead: Arc::new(AheadRoom::new(bytes.max(MEMORY_BYTES_MIN) / AHEAD_SHARE)),
            caches_on_disk: OpenCaches::default(),
        }
    }

    /// A volume's share of what may be dirty.
    pub(crate) fn dirty(&self) -> Share {
        Share::of(&self.dirty)
    }

    /// A volume's share of the rows that are kept.
    pub(crate) fn rows(&self) -> Share {
        Share::of(&self.rows)
    }

    /// A volume's share of the frames that are kept.
    pub(crate) fn frames(&self) -> Share {
        Share::of(&self.frames)
    }

    /// A volume's share of what its tree holds until it is flushed.
    pub(crate) fn unflushed(&self) -> Share {
        Share::of(&self.unflushed)
    }

    /// Blocks of all trees.
    pub(crate) fn blocks(&self) -> &BlockCache {
        &self.blocks
    }

    /// Room for what is fetched ahead of readers.
    pub(crate) fn ahead(&self) -> &Arc<AheadRoom> {
        &self.ahead
    }

    /// The caches on disk of all volumes.
    pub(crate) fn caches_on_disk(&self) -> &OpenCaches {
        &self.caches_on_disk
    }
}

/// Room for what is fetched ahead of readers, which wait for it in turn.
#[derive(Debug)]
pub(crate) struct AheadRoom {
    kib: Semaphore,
    kib_max: u32,
}

impl AheadRoom {
    fn new(bytes: u64) -> Self {
        let kib_max = u32::try_from(bytes / 1024).unwrap_or(u32::MAX);
        Self {
            kib: Semaphore::new(kib_max as usize),
            kib_max,
        }
    }

    /// All there is, in bytes.
    pub fn bytes(&self) -> u64 {
        u64::from(self.kib_max) * 1024
    }

    /// Waits for room for so many bytes, or for all there is where that is less; it is free again when the value is dropped.
    pub async fn take(&self, bytes: u64) -> SemaphorePermit<'_> {
        let kib = u32::try_from(bytes.div_ceil(1024)).unwrap_or(u32::MAX);
        let taken = self.kib.acquire_many(kib.min(self.kib_max)).await;
        taken.expect("the room is never closed")
    }
}

/// Bytes that several volumes share.
#[derive(Debug)]
struct Pool {
    bytes_max: u64,
    used: AtomicU64,
    members: AtomicU64,
}

impl Pool {
    fn new(bytes_max: u64) -> Self {
        Self {
            bytes_max,
            used: AtomicU64::new(0),
            members: AtomicU64::new(0),
        }
    }
}

/// What one volume has of a pool.
#[derive(Debug)]
pub(crate) struct Share {
    pool: Arc<Pool>,
    used: AtomicU64,
}

impl Share {
    fn of(pool: &Arc<Pool>) -> Self {
        pool.members.fetch_add(1, Ordering::Relaxed);
        Self {
            pool: Arc::clone(pool),
            used: AtomicU64::new(0),
        }
    }

    /// Tells what the volume uses now, and returns how much it may: more than that is to be given back, or waited with.
    pub fn allowed(&self, used: u64) -> u64 {
        let before = self.used.swap(used, Ordering::Relaxed);
        // Wraps where it shrank, and back again: the sum is what all use.
        let change = used.wrapping_sub(before);
        let all = self.pool.used.fetch_add(change, Ordering::Relaxed).wrapping_add(change);
        let fair = self.pool.bytes_max / self.pool.members.load(Ordering::Relaxed).max(1);
        let (free, over) = (
            self.pool.bytes_max.saturating_sub(all),
            all.saturating_sub(self.pool.bytes_max),
        );
        fair.max(used.saturating_add(free).saturating_sub(over))
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.pool.used.fetch_sub(*self.used.get_mut(), Ordering::Relaxed);
        self.pool.members.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// One volume may have all; as others come it keeps what it has only until they need their part.
    #[test]
    fn a_volume_has_what_is_free_and_never_less_than_its_part() {
        let pool = Arc::new(Pool::new(100));
        let one = Share::of(&pool);
        assert_eq!(one.allowed(0), 100);
        assert_eq!(one.allowed(70), 100);
        let two = Share::of(&pool);
        assert_eq!(two.allowed(0), 50, "its part, though only 30 are free");
        assert_eq!(two.allowed(30), 50);
        assert_eq!(one.allowed(70), 70, "nothing is free: it may keep what it has");
        assert_eq!(two.allowed(50), 50);
        assert_eq!(one.allowed(80), 50, "20 must come back, and 30 are not its own");
        assert_eq!(one.allowed(20), 50);
        assert_eq!(two.allowed(50), 80, "what the other gave back");
        drop(one);
        assert_eq!(two.allowed(10), 100);
    }
}
