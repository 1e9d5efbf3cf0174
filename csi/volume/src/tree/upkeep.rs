//! What keeps a tree in shape: compaction, and the collector of files that compaction has replaced. Beside the tree, so that
//! opening one does not wait for what may as well come later.
//!
//! Invariants: it begins soon where many files wait for a compaction, and within a minute otherwise; when it ends
//! with the tree it leaves nothing half done that the next one does not finish. One that fails is begun anew. What many
//! mounts left that were too short for a compaction is compacted before the next one opens the tree; what a mount writes itself
//! is compacted as soon as it is many files, for each of them makes a first look-up longer.
//! Caller: `slate.rs`. Absent: what a compaction is (SlateDB).

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use slatedb::admin::AdminBuilder;
use slatedb::compactor::Compactor;
use slatedb::config::{
    CompactionWorkerOptions, CompactorOptions, GarbageCollectorDirectoryOptions, GarbageCollectorOptions, SstBlockSize,
};
use slatedb::{CompactorBuilder, DbStatus, GarbageCollectorBuilder};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::clock::TreeClock;
use super::object_store::BucketStore;
use super::reach;
use super::slate::{FILTER_KEYS_MIN, FOLDER, L0_SSTS_MAX, SST_BYTES_MAX, SumStats, read_manifest};
use crate::bucket::BucketRef;

/// 60 s after an opening: a mount that ends earlier has hardly anything to compact.
const BEGIN_AFTER: Duration = Duration::from_secs(60);

/// 1 s where many files wait, as after many short mounts.
const BEGIN_SOON: Duration = Duration::from_secs(1);

/// 500 ms between the looks of a compaction in the background: one takes a second or two then. With `COMPACTOR_POLL` it
/// takes that long from one step to the next, which mounts of minutes never reach.
const CATCH_UP_POLL: Duration = Duration::from_millis(500);

/// 50 ms where an opening waits for it: some dozen requests more, once in dozens of mounts.
const CATCH_UP_POLL_AT_OPENING: Duration = Duration::from_millis(50);

/// 2 minutes for what waits to be compacted in the background.
const CATCH_UP_MAX: Duration = Duration::from_secs(120);

/// 20 s of an opening: a store that is slow must not hinder it for longer.
const CATCH_UP_AT_OPENING_MAX: Duration = Duration::from_secs(20);

/// 1.5 s in haste: a compaction takes 8 files and some 150 ms, so this much brings the files far below the limit.
const CATCH_UP_IN_HASTE_MAX: Duration = Duration::from_millis(1_500);

/// 8 files that no compaction has taken yet: each of them makes a look-up longer. While a volume is written they are 128 MiB of
/// rows.
const WAITING_MANY: usize = 8;

/// 32 files: an opening may as well wait for their compaction, which makes every look-up after it shorter.
const WAITING_AT_OPENING: usize = 32;

/// Three quarters of the files that the tree may have waiting: a writer that meets the limit waits for a compaction that nobody
/// makes, so this one comes first also in haste.
const WAITING_IN_HASTE: usize = L0_SSTS_MAX / 4 * 3;

/// 1 minute before what has failed begins anew.
const BEGIN_AGAIN: Duration = Duration::from_secs(60);

/// 12 minutes: each look is eight requests, and an idle volume asks the store less than once a minute, all pollers together.
const COMPACTOR_POLL: Duration = Duration::from_secs(720);

/// 1 s between looks whether a compaction under way is done: two requests each. One that is looked at seldom takes from one
/// step to the next as long as `COMPACTOR_POLL`, and asked twice a second for nothing meanwhile.
const COMMIT_POLL_MIN: Duration = Duration::from_secs(1);

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
    /// Begins some time from now. `waiting` is the number of files that no compaction has taken yet, `tree` tells what the tree
    /// looks like to its writer.
    pub fn begin(kept: Kept, waiting: usize, tree: watch::Receiver<DbStatus>) -> Self {
        let mut files = Files::of(tree);
        let (ended, end) = watch::channel(false);
        let after = match waiting >= WAITING_MANY {
            true => BEGIN_SOON,
            false => BEGIN_AFTER,
        };
        let keeping = tokio::spawn(async move {
            let soon = tokio::time::timeout(after, files.many());
            let ended = tokio::select! {
                _ = soon => false,
                () = end_of(end.clone()) => true,
            };
            if !ended {
                if waiting >= WAITING_MANY {
                    catch_up_behind(&kept, &end, &mut files).await;
                }
                tokio::join!(compact(&kept, end.clone(), files), collect(&kept, end.clone()));
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

/// The files that the tree's writer has made and no compaction has been asked to take.
struct Files {
    tree: watch::Receiver<DbStatus>,
    /// The newest that one was asked to take. The writer learns what became of them with its next file only.
    taken: Option<u128>,
}

impl Files {
    /// Those that come from now on.
    fn of(tree: watch::Receiver<DbStatus>) -> Self {
        let mut files = Self { tree, taken: None };
        files.take();
        files
    }

    /// All that are there now are left to a compaction.
    fn take(&mut self) {
        let status = self.tree.borrow();
        let newest = status.current_manifest.l0().iter().map(|file| file.id.0).max();
        self.taken = self.taken.max(newest);
    }

    /// Returns when there are many; never where the tree has ended.
    async fn many(&mut self) {
        let taken = self.taken;
        let many = |status: &DbStatus| {
            let files = status.current_manifest.l0().iter();
            files.filter(|file| Some(file.id.0) > taken).count() >= WAITING_MANY
        };
        if self.tree.wait_for(many).await.is_err() {
            std::future::pending().await
        }
    }
}

/// Compacts what waits, beside the tree's writer.
async fn catch_up_behind(kept: &Kept, end: &watch::Receiver<bool>, files: &mut Files) {
    files.take();
    if is_ours(kept, end).await {
        let limit = ends_within(end.clone(), CATCH_UP_MAX);
        catch_up(kept, CATCH_UP_POLL, async { _ = limit.await }).await;
    }
}

/// Compacts what many short mounts have left. `waiting` is the number of files that no compaction has taken yet. To be called
/// before the tree is opened: its writer would not learn of it for long, and may have no room for another file. In haste only
/// where that room is short. False if there was nothing to do, and so the tree is as it was.
pub(super) async fn catch_up_at_opening(kept: &Kept, waiting: usize, in_haste: bool) -> bool {
    let (many, limit) = match in_haste {
        true => (WAITING_IN_HASTE, CATCH_UP_IN_HASTE_MAX),
        false => (WAITING_AT_OPENING, CATCH_UP_AT_OPENING_MAX),
    };
    if waiting < many {
        return false;
    }
    tracing::info!(
        waiting,
        "many files of the tree wait for a compaction, which comes first"
    );
    let limit = tokio::time::sleep(limit);
    if !catch_up(kept, CATCH_UP_POLL_AT_OPENING, limit).await {
        tracing::warn!(waiting, "the compaction of the tree takes long, and goes on later");
    }
    true
}

/// Runs a quick compactor until nothing waits for it, or until this; false then.
async fn catch_up(kept: &Kept, poll: Duration, until: impl Future<Output = ()>) -> bool {
    let compactor = compactor(kept, poll);
    let caught_up = async {
        while waits(kept).await {
            tokio::time::sleep(poll).await;
        }
    };
    let done = tokio::select! {
        failed = compactor.run() => {
            tracing::warn!(?failed, "compaction of the tree has ended early");
            false
        }
        () = caught_up => true,
        () = until => false,
    };
    drop(tokio::time::timeout(ENDS_WITHIN, compactor.stop()).await);
    done
}

/// Whether many files wait for a compaction, or one is under way. A store that fails says nothing else.
async fn waits(kept: &Kept) -> bool {
    let admin = AdminBuilder::new(FOLDER, store(kept)).build();
    let (manifest, compactions) = tokio::join!(admin.read_manifest(None), admin.read_compactions(None));
    let many = !matches!(manifest, Ok(Some(manifest)) if manifest.l0().len() < WAITING_MANY);
    let active = !matches!(compactions, Ok(Some(known)) if known.recent_compactions().all(|one| !one.active()));
    many || active
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

async fn compact(kept: &Kept, end: watch::Receiver<bool>, mut files: Files) {
    while is_ours(kept, &end).await {
        let compactor = compactor(kept, COMPACTOR_POLL);
        tokio::select! {
            () = files.many() => {
                drop(tokio::time::timeout(ENDS_WITHIN, compactor.stop()).await);
                catch_up_behind(kept, &end, &mut files).await;
                continue;
            }
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

fn compactor(kept: &Kept, poll: Duration) -> Compactor {
    CompactorBuilder::new(FOLDER, store(kept))
        .with_options(compaction(poll))
        .with_system_clock(kept.clock.clone())
        .with_sst_block_size(SstBlockSize::Block16Kib)
        .with_filter_policies(reach::filters())
        .with_merge_operator(Arc::new(SumStats))
        .build()
}

fn compaction(poll: Duration) -> CompactorOptions {
    let worker = CompactionWorkerOptions {
        max_concurrent_compactions: 1,
        compactions_poll_interval: poll,
        max_sst_size: SST_BYTES_MAX,
        max_fetch_tasks: 2,
        max_subcompactions: 1,
        min_filter_keys: FILTER_KEYS_MIN,
        ..CompactionWorkerOptions::default()
    };
    CompactorOptions {
        poll_interval: poll,
        max_concurrent_compactions: 1,
        commit_compacted_interval: poll.max(COMMIT_POLL_MIN),
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::memory::MemoryBucket;
    use crate::ids::{Epoch, JournalSeq};
    use crate::open::TreeConfig;
    use crate::row::{Applied, Key};
    use crate::tree::Tree;
    use crate::tree::slate::{SlateTree, seen_writer};

    /// Goal: who writes much does not leave a tree of many files to who reads next. Method: a dozen files in no time, and a look
    /// at the manifest, which must show few of them before a mount's first regular compaction.
    #[tokio::test(start_paused = true)]
    async fn what_a_mount_writes_is_compacted_as_soon_as_it_is_many_files() {
        let bucket: BucketRef = Arc::new(MemoryBucket::new());
        let seen = seen_writer(bucket.clone()).await.unwrap();
        let tree = SlateTree::open(bucket.clone(), seen, &TreeConfig::default())
            .await
            .unwrap();
        for seq in 1..=12 {
            let applied = Applied {
                epoch: Epoch(1),
                seq: JournalSeq(seq),
            };
            tree.apply(applied, vec![(Key::Counters, None)]).await.unwrap();
            tree.flush().await.unwrap();
        }
        let few = async {
            while read_manifest(bucket.clone()).await.unwrap().unwrap().l0().len() >= WAITING_MANY {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        };
        tokio::time::timeout(BEGIN_AFTER / 2, few)
            .await
            .expect("they are compacted soon");
        assert_eq!(tree.applied().seq, JournalSeq(12));
        tree.close().await.unwrap();
    }
}
