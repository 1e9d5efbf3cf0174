//! The life of a mount: from a bucket to a running volume, and back to a bucket that is complete.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::{AbortHandle, JoinHandle};
use uuid::Uuid;

use super::{CacheConfig, OpenOptions, recovery, spilled};
use crate::bucket::BucketRef;
use crate::budget::Budget;
use crate::cache::RamCache;
use crate::cache::disk::DiskCache;
use crate::clock::Timestamp;
use crate::commit::{self, CommitContext, CommitHandle, CommitLimits, DirtyState};
use crate::error::FsError;
use crate::fetch::{Fetcher, Tiers};
use crate::gc::Collector;
use crate::head::{Claim, HeadFile};
use crate::ids::InodeNo;
use crate::limits::{CollectLimits, Limits};
use crate::lineage::Lineage;
use crate::mount::{Follow, Mount, State};
use crate::neighbours::Neighbours;
use crate::open::{OpenError, OpenedWriter, TreeConfig, open_reader, open_writer};
use crate::outage::Watch;
use crate::readahead::Readahead;
use crate::row::Counters;
use crate::table::Tables;
use crate::tail::{TailError, TailLog};
use crate::tree::latest::LatestTree;
use crate::{ops, purge};

/// A mount and what runs beside it.
#[derive(Debug)]
pub(super) struct Inner {
    pub mount: Arc<Mount>,
    /// The head to give back; `None` for a mount that only reads.
    head: Option<HeadFile>,
    /// Purge and garbage collection.
    tasks: Vec<AbortHandle>,
    /// Tells the collector to stop.
    stop: Arc<Notify>,
    /// Until `close` waits for it.
    collector: Mutex<Option<JoinHandle<()>>>,
}

/// 10 s for the collector to end the request that it has under way: what it has put and not named would be garbage that
/// only a search after a crash finds.
const COLLECTOR_ENDS_WITHIN: Duration = Duration::from_secs(10);

impl Drop for Inner {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
        // Tasks that are just ending hold the mount for a moment longer; its folder is free at once.
        if let Some(tail) = &self.mount.tail {
            tail.abandon();
        }
        if let Some(spill) = self.mount.state.spill.get() {
            spill.abandon();
        }
    }
}

/// See `Volume::open`.
pub(super) async fn open(bucket: BucketRef, options: OpenOptions) -> Result<Inner, OpenError> {
    if options.read_only {
        read(bucket, options).await
    } else {
        write(bucket, options).await
    }
}

async fn read(bucket: BucketRef, options: OpenOptions) -> Result<Inner, OpenError> {
    let watch = Watch::default();
    let bucket = watch.over(bucket);
    let family = bucket.above().map(|(family, _)| family);
    let budget = options.limits.budget.clone();
    let config = TreeConfig {
        blocks: budget.blocks().clone(),
        ..TreeConfig::default()
    };
    let opened = open_reader(bucket.clone(), config).await?;
    let head = &opened.head;
    let settings = head.parameters.settings;
    watch.obey(settings.on_outage);
    let tables = tables_of(
        opened.counters,
        (options.limits, true),
        head.capacity_bytes,
        options.clock.now(),
    );
    let tree = Arc::new(LatestTree::new(Arc::clone(&opened.tree)));
    let fetcher = fetcher(&opened.bucket, head.lineage(), (&options.cache, &budget));
    let mount = Mount {
        state: Arc::new(State::new(tables)),
        tree: tree.clone(),
        follow: Some(Follow::new(bucket, tree, &opened, budget.blocks().clone())),
        commit: None,
        readahead: Readahead::of(settings.readahead_bytes, fetcher.ahead_bytes()),
        fetcher,
        bucket: Arc::clone(&opened.bucket),
        watch,
        umask: settings.umask.unwrap_or(0),
        neighbours: Neighbours::default(),
        clock: options.clock,
        uuid: head.uuid,
        lineage: head.lineage(),
        family,
        epoch: head.epoch,
        writer: Uuid::nil(),
        compression: head.parameters.compression,
        read_only: true,
        tail: None,
        durability: head.parameters.durability,
        collect: CollectLimits::default(),
        purge: Notify::new(),
    };
    Ok(Inner {
        mount: Arc::new(mount),
        head: None,
        tasks: Vec::new(),
        stop: Arc::default(),
        collector: Mutex::default(),
    })
}

async fn write(bucket: BucketRef, options: OpenOptions) -> Result<Inner, OpenError> {
    let watch = Watch::default();
    let bucket = watch.over(bucket);
    let session = Uuid::new_v4();
    let claim = Claim {
        node_id: options.node_id,
        session,
        lease: options.claim,
        now: options.clock.now(),
    };
    let budget = options.limits.budget.clone();
    let config = TreeConfig {
        now: claim.now,
        blocks: budget.blocks().clone(),
        in_haste: options.spill.is_some_and(|spill| spill.adopts),
    };
    let family = bucket.above().map(|(family, _)| family);
    let opened = open_writer(bucket, claim, config, options.state_dir.as_deref()).await?;
    let (head, after_crash) = (opened.taken.head.clone(), !opened.taken.clean);
    let settings = head.parameters.settings;
    watch.obey(settings.on_outage);
    let collect = options.limits.collect.clone();
    let mut tables = tables_of(
        opened.counters,
        (options.limits, false),
        head.capacity_bytes,
        options.clock.now(),
    );
    if options.spill.is_some_and(|spill| spill.adopts) {
        tables.inherit();
    }
    let state = Arc::new(State::new(tables));
    let left = spilled::recover(&opened, (options.spill, options.state_dir.as_deref()), &state).await?;
    let dir = recovery::recover(&opened, (options.state_dir.as_deref(), left.as_ref()), &state).await?;
    let fetcher = fetcher(&opened.bucket, head.lineage(), (&options.cache, &budget));
    let commit = commits(&opened, &state, &fetcher, (options.commits, &budget));
    let tail = recovery::begin(&opened, dir, (&state, &commit)).await?;
    if let Some(log) = spilled::begin(&opened, left, (&state, &commit)).await? {
        state.spill.set(log).expect("a mount begins one spill");
    }
    let mount = Arc::new(Mount {
        state,
        tree: opened.tree,
        follow: None,
        commit: Some(commit),
        readahead: Readahead::of(settings.readahead_bytes, fetcher.ahead_bytes()),
        fetcher,
        bucket: opened.bucket,
        watch,
        umask: settings.umask.unwrap_or(0),
        neighbours: Neighbours::default(),
        clock: options.clock,
        uuid: head.uuid,
        lineage: head.lineage(),
        family,
        epoch: opened.epoch,
        writer: session,
        compression: head.parameters.compression,
        read_only: false,
        tail,
        durability: head.parameters.durability,
        collect,
        purge: Notify::new(),
    });
    Ok(begin(mount, opened.head, after_crash))
}

/// Begins the work beside a mount that writes.
fn begin(mount: Arc<Mount>, head: HeadFile, after_crash: bool) -> Inner {
    // The root directory of a new volume.
    let unsealed = mount.lock().unsealed_bytes();
    mount.dirtied(unsealed);
    let purging = tokio::spawn(purge::run(Arc::clone(&mount)));
    let stop = Arc::new(Notify::new());
    let collecting = tokio::spawn(Collector::new(Arc::clone(&mount), after_crash).run(Arc::clone(&stop)));
    let tasks = vec![purging.abort_handle(), collecting.abort_handle()];
    Inner {
        mount,
        head: Some(head),
        tasks,
        stop,
        collector: Mutex::new(Some(collecting)),
    }
}

fn commits(
    opened: &OpenedWriter,
    state: &Arc<State>,
    kept: &Fetcher,
    (limits, budget): (CommitLimits, &Budget),
) -> CommitHandle {
    let head = &opened.taken.head;
    commit::start(
        CommitContext {
            bucket: opened.bucket.clone(),
            tree: Arc::clone(&opened.tree),
            volume: head.uuid,
            writer: opened.writer,
            epoch: opened.epoch,
            next_seq: opened.next_seq,
            durable: opened.durable,
            flush_soon: opened.flush_soon,
            compression: head.parameters.compression,
            limits,
            budget: budget.clone(),
            kept: Some(Arc::new(kept.clone())),
        },
        Arc::clone(state) as Arc<dyn DirtyState>,
    )
}

/// See `Volume::close`.
pub(super) async fn close(inner: &Inner) -> Result<(), FsError> {
    let mount = &inner.mount;
    if !mount.lock().set_closed() {
        return Ok(());
    }
    end_collector(inner).await;
    inner.tasks.iter().for_each(AbortHandle::abort);
    let ended = match &mount.commit {
        Some(commit) => commit.shutdown().await.map_err(FsError::Lost),
        None => Ok(()),
    };
    if let (Some(commit), Ok(())) = (&mount.commit, &ended)
        && let Err(error) = Collector::finish(mount, commit.durable_applied()).await
    {
        tracing::warn!(%error, volume = %mount.uuid, "the journal could not be trimmed at the end; what stays is small");
    }
    // The tree ends its own background work also where the volume was lost.
    let closed = mount.tree.close().await;
    ended?;
    closed?;
    // First without a record, then without a name in the head, then without files: at no point is one missing that the
    // head names, or one left that looks as if something had been lost with it.
    let finished = Arc::clone(mount);
    let finish = move || finished.tail.as_ref().map_or(Ok(()), TailLog::finish);
    tell(
        tokio::task::spawn_blocking(finish)
            .await
            .expect("ending a log does not panic"),
    );
    if let Some(head) = &inner.head {
        // Of a tree that could be flushed only now nobody has seen how far it came.
        let flushed = mount.commit.as_ref().map(CommitHandle::durable_applied);
        let end = flushed.filter(|flushed| *flushed == mount.tree.applied());
        let released = head.release(mount.epoch, end).await;
        released.map_err(|error| FsError::Head(Arc::new(error)))?;
    }
    tell(mount.tail.as_ref().map_or(Ok(()), |tail| tail.remove(tail.name())));
    tell(
        mount
            .state
            .spill
            .get()
            .map_or(Ok(()), |spill| spill.remove(spill.name())),
    );
    Ok(())
}

fn tell(done: Result<(), TailError>) {
    if let Err(error) = done {
        tracing::warn!(%error, "the log of a tail that the bucket has all of was not removed");
    }
}

async fn end_collector(inner: &Inner) {
    inner.stop.notify_one();
    let collector = inner.collector.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some(collector) = collector
        && tokio::time::timeout(COLLECTOR_ENDS_WITHIN, collector).await.is_err()
    {
        tracing::warn!(volume = %inner.mount.uuid, "the collector of garbage does not end: it is stopped");
    }
}

/// The tables of a volume as it was found; a new one gets its root directory.
fn tables_of(
    counters: Option<Counters>,
    (limits, read_only): (Limits, bool),
    capacity_bytes: u64,
    now: Timestamp,
) -> Tables {
    let fresh = Counters {
        next_ino: InodeNo::ROOT.0,
        ..Counters::default()
    };
    let mut tables = Tables::new(counters.unwrap_or(fresh), limits, read_only);
    tables.set_capacity_bytes((capacity_bytes > 0).then_some(capacity_bytes));
    if counters.is_none() {
        let root = tables.add_inode(ops::make::root_row(now));
        assert_eq!(root, InodeNo::ROOT, "the first inode of a volume is its root");
        tables.know_empty_directory(root);
    }
    tables
}

fn fetcher(bucket: &BucketRef, lineage: Lineage, (cache, budget): (&CacheConfig, &Budget)) -> Fetcher {
    let ram = RamCache::new(cache.ram_bytes, budget.frames());
    let disk = open_disk(cache, budget, lineage.own());
    let ahead = Arc::clone(budget.ahead());
    Fetcher::new(bucket.clone(), lineage, Tiers { ram, disk, ahead })
}

/// The cache on disk, or none where it cannot be had: a mount works without.
fn open_disk(cache: &CacheConfig, budget: &Budget, uuid: Uuid) -> Option<DiskCache> {
    let dir = cache.dir.as_ref()?.join(uuid.simple().to_string());
    match budget.caches_on_disk().open(&dir, cache.disk_bytes) {
        Ok(Some(disk)) => Some(disk),
        Ok(None) => {
            tracing::warn!(dir = %dir.display(), "another program uses this cache folder: frames are kept in RAM only");
            None
        }
        Err(error) => {
            tracing::warn!(%error, dir = %dir.display(), "the cache folder cannot be used: frames are kept in RAM only");
            None
        }
    }
}

#[cfg(test)]
mod by_hand {
    //! Volumes whose commits a test makes by hand, and the background work done when a test wants it.

    use super::*;
    use crate::format::codec::Compression;
    use crate::head::Durability;
    use crate::ids::Epoch;
    use crate::limits::FRAME_CACHE_BYTES_MAX;
    use crate::ops::tests::Steps;
    use crate::tree::Tree;
    use crate::volume::Volume;

    impl Volume {
        /// A new volume whose commits the test makes.
        pub(crate) fn without_commits(tree: Arc<dyn Tree>, bucket: BucketRef, limits: Limits, uuid: Uuid) -> Self {
            Self::of_tables(
                tables_of(None, (limits, false), 0, Timestamp::default()),
                tree,
                bucket,
                uuid,
            )
        }

        /// The same, with what an earlier mount has left.
        pub(crate) fn reopened(tree: Arc<dyn Tree>, bucket: BucketRef, counters: Counters, uuid: Uuid) -> Self {
            let tables = tables_of(Some(counters), (Limits::default(), false), 0, Timestamp::default());
            Self::of_tables(tables, tree, bucket, uuid)
        }

        fn of_tables(tables: Tables, tree: Arc<dyn Tree>, bucket: BucketRef, uuid: Uuid) -> Self {
            let mount = Mount {
                state: Arc::new(State::new(tables)),
                tree,
                follow: None,
                commit: None,
                fetcher: Fetcher::new(
                    bucket.clone(),
                    uuid,
                    Tiers {
                        ram: RamCache::new(FRAME_CACHE_BYTES_MAX, Budget::default().frames()),
                        disk: None,
                        ahead: Arc::clone(Budget::default().ahead()),
                    },
                ),
                bucket,
                readahead: Readahead::default(),
                watch: crate::outage::Watch::default(),
                umask: 0,
                neighbours: Neighbours::default(),
                clock: Arc::new(Steps::default()),
                uuid,
                lineage: uuid.into(),
                family: None,
                epoch: Epoch(1),
                writer: Uuid::nil(),
                compression: Compression::default(),
                read_only: false,
                tail: None,
                durability: Durability::Remote,
                collect: CollectLimits::default(),
                purge: Notify::new(),
            };
            let inner = Inner {
                mount: Arc::new(mount),
                head: None,
                tasks: Vec::new(),
                stop: Arc::default(),
                collector: Mutex::default(),
            };
            Self { inner: Arc::new(inner) }
        }

        pub(crate) fn state(&self) -> Arc<State> {
            Arc::clone(&self.inner.mount.state)
        }

        pub(crate) fn mount(&self) -> Arc<Mount> {
            Arc::clone(&self.inner.mount)
        }

        /// Drops all rows that may be dropped.
        pub(crate) fn drop_clean_rows(&self) {
            self.inner.mount.lock().shrink_to(0);
        }

        pub(crate) fn table_bytes(&self) -> u64 {
            self.inner.mount.lock().bytes()
        }

        /// Does what the purge task does, once.
        pub(crate) async fn purge_all(&self) {
            purge::run_once(&self.inner.mount).await.expect("purging works");
        }
    }
}
