//! Decoded blocks of trees in RAM. Invariant: no two trees that share a cache have the same number. Caller: `slate.rs`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use slatedb::db_cache::foyer::FoyerCache;
use slatedb::db_cache::{CachedEntry, CachedKey, DbCache, SplitCache};

/// 512 bytes that an entry takes besides what it says of itself: key, record and lists of the cache, and the allocations of
/// what it holds. Of a tree with few rows that is most of it, and filters that are not there say nothing at all: a cache that did
/// not count them grew to five times its bound with each mount that left some behind.
const ENTRY_BYTES: usize = 512;

/// Each half is guarded by a lock of its own.
const SHARDS: usize = 2;

/// Decoded blocks of trees in RAM, for all trees that it is given to. Cheap to clone: all clones are the same cache.
#[derive(Clone)]
pub struct BlockCache {
    cache: Arc<dyn DbCache>,
    /// What the next tree's blocks are told apart by.
    next: Arc<AtomicU64>,
}

impl std::fmt::Debug for BlockCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("BlockCache").finish_non_exhaustive()
    }
}

impl BlockCache {
    /// A cache of this many bytes: a half for indexes and filters, without which each block costs two reads more. A file of 16 MiB
    /// has some 300 KiB of them, so that of 12.8 MiB those of twenty files stay.
    pub fn new(bytes: u64) -> Self {
        let part = |bytes: u64| -> Option<Arc<dyn DbCache>> {
            let max_capacity = usize::try_from(bytes).unwrap_or(usize::MAX);
            let cache = foyer::CacheBuilder::new(max_capacity)
                .with_weighter(|_: &CachedKey, entry: &CachedEntry| entry.size() + ENTRY_BYTES)
                .with_shards(SHARDS)
                .build();
            Some(Arc::new(FoyerCache::new_with_cache(cache)))
        };
        let split = SplitCache::new()
            .with_block_cache(part(bytes - bytes / 2))
            .with_meta_cache(part(bytes / 2));
        Self {
            cache: Arc::new(split.build()),
            next: Arc::default(),
        }
    }

    /// The cache, for a tree.
    pub(super) fn cache(&self) -> Arc<dyn DbCache> {
        Arc::clone(&self.cache)
    }

    /// What tells the blocks of one more tree from all others'.
    pub(super) fn number(&self) -> u64 {
        self.next.fetch_add(1, Ordering::Relaxed)
    }
}
