//! What keeps a tree in shape: compaction, and the collector of files that compaction has replaced. Beside the tree, so that
//! opening one does not wait for what may as well come later.
//!
//! Invariants: it begins soon where many small files wait for a compaction, and within a minute otherwise; when it ends
//! with the tree it leaves nothing half done that the next one does not finish. One that fails is begun anew.
//! Caller: `slate.rs`. Absent: what a compaction is (SlateDB).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, GarbageCollectorDirectoryOptions, GarbageCollectorOptions, SstBlockSize,
};
use slatedb::{CompactorBuilder, GarbageCollectorBuilder};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::clock::TreeClock;
use super::object_store::BucketStore;
use super::slate::{FOLDER, SST_BYTES_MAX, SumStats, read_manifest};
use crate::bucket::BucketRef;

/// 60 s after an opening: a mount that ends earlier has hardly anything to compact.
const BEGIN_AFTER: Duration = Duration::from_secs(60);

/// 1 s where many files wait, as after many short mounts.
const BEGIN_SOON: Duration = Duration::from_secs(1);

/// 8 files that no compaction has taken yet: each of them makes a look-up longer.
const WAITING_MANY: usize = 8;

/// 1 minute before what has failed begins anew.
const BEGIN_AGAIN: Duration = Duration::from_secs(60);

/// 12 minutes: each look is eight requests, and an idle volume asks the store less than once a minute, all pollers together.
const COMPACTOR_POLL: Duration = Duration::from_secs(720);

/// 1 hour between lists of what might be deleted.
const COLLECT_EVERY: Duration = Duration::from_secs(3_600);

/// 2 hours: what compaction has replaced stays that long for readers that opened before.
const COLLECT_AGE: Duration = Duration::from_secs(7_200);

/// 10 s for a compaction to end the request that it has under way. What it has not finished the next one does.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// Which tree, and as whose writer.
#[derive(Debug, Clone)]
pub(super) struct Kept {
    pub bucket: BucketRef,
    pub clock: Arc<TreeClock>,
    /// The writer's epoch, as the tree counts them. Upkeep of a tree that another writer has taken since would disturb his.
    pub writer: u64,
}

/// Upkeep of one tree. It ends with this value.
#[derive(Debug)]
pub(super) struct Upkeep {
    ended: watch::Sender<bool>,
    keeping: Mutex<Option<JoinHandle<()>>>,
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.ended.send_replace(true);
    }
}

impl Upkeep {
    /// Begins some time from now. `waiting` is the number of files that no compaction has taken yet.
    pub fn begin(kept: Kept, waiting: usize) -> Self {
        let (ended, end) = watch::channel(false);
        let after = match waiting >= WAITING_MANY {
            true => BEGIN_SOON,
            false => BEGIN_AFTER,
        };
        let keeping = tokio::spawn(async move {
            if !ends_within(end.clone(), after).await {
                tokio::join!(compact(&kept, end.clone()), collect(&kept, end.clone()));
            }
        });
        Self {
            ended,
            keeping: Mutex::new(Some(keeping)),
        }
    }

    /// Ends it, and waits until it has ended, within bounds.
    pub async fn end(&self) {
        self.ended.send_replace(true);
        let keeping = self.keeping.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(mut keeping) = keeping
            && tokio::time::timeout(2 * ENDS_WITHIN, &mut keeping).await.is_err()
        {
            keeping.abort();
        }
    }
}

/// Waits for the end. A sender that is gone is one as well.
async fn end_of(mut end: watch::Receiver<bool>) {
    drop(end.wait_for(|ended| *ended).await);
}

/// True if the end comes within this time.
async fn ends_within(end: watch::Receiver<bool>, time: Duration) -> bool {
    tokio::time::timeout(time, end_of(end)).await.is_ok()
}

/// True while the tree is its writer's, and it has not ended. A store that fails says nothing else.
async fn is_ours(kept: &Kept, end: &watch::Receiver<bool>) -> bool {
    let manifest = tokio::select! {
        manifest = read_manifest(Arc::clone(&kept.bucket)) => manifest,
        () = end_of(end.clone()) => return false,
    };
    match manifest {
        Ok(Some(manifest)) => manifest.writer_epoch() == kept.writer,
        Ok(None) => false,
        Err(_) => true,
    }
}

async fn compact(kept: &Kept, end: watch::Receiver<bool>) {
    while is_ours(kept, &end).await {
        let compactor = CompactorBuilder::new(FOLDER, store(kept))
            .with_options(compaction())
            .with_system_clock(kept.clock.clone())
            .with_sst_block_size(SstBlockSize::Block16Kib)
            .with_merge_operator(Arc::new(SumStats))
            .build();
        tokio::select! {
            failed = compactor.run() => tracing::warn!(?failed, "compaction of the tree has ended, and begins again"),
            () = end_of(end.clone()) => {
                drop(tokio::time::timeout(ENDS_WITHIN, compactor.stop()).await);
                return;
            }
        }
        if ends_within(end.clone(), BEGIN_AGAIN).await {
            return;
        }
    }
}

async fn collect(kept: &Kept, end: watch::Receiver<bool>) {
    while is_ours(kept, &end).await {
        let collector = GarbageCollectorBuilder::new(FOLDER, store(kept))
            .with_options(collection())
            .with_system_clock(kept.clock.clone())
            .build();
        tokio::select! {
            failed = collector.run() => tracing::warn!(?failed, "collection of the tree's files has ended, and begins again"),
            () = end_of(end.clone()) => {
                drop(tokio::time::timeout(ENDS_WITHIN, collector.stop()).await);
                return;
            }
        }
        if ends_within(end.clone(), BEGIN_AGAIN).await {
            return;
        }
    }
}

fn store(kept: &Kept) -> Arc<BucketStore> {
    Arc::new(BucketStore::new(Arc::clone(&kept.bucket)))
}

fn compaction() -> CompactorOptions {
    let worker = CompactionWorkerOptions {
        max_concurrent_compactions: 1,
        compactions_poll_interval: COMPACTOR_POLL,
        max_sst_size: SST_BYTES_MAX,
        max_fetch_tasks: 2,
        max_subcompactions: 1,
        ..CompactionWorkerOptions::default()
    };
    CompactorOptions {
        poll_interval: COMPACTOR_POLL,
        max_concurrent_compactions: 1,
        worker: Some(worker),
        ..CompactorOptions::default()
    }
}

fn collection() -> GarbageCollectorOptions {
    let collect = Some(GarbageCollectorDirectoryOptions {
        interval: Some(COLLECT_EVERY),
        min_age: COLLECT_AGE,
        dry_run: false,
    });
    GarbageCollectorOptions {
        manifest_options: collect,
        compacted_options: collect,
        compactions_options: collect,
        wal_options: None,
        wal_fence_options: None,
        detach_options: None,
        ..GarbageCollectorOptions::default()
    }
}
