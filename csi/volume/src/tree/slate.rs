//! The tree on SlateDB, with its own log off: our journal is the log (see `commit.rs`).
//!
//! Invariants: one `apply` is one batch, so a crash leaves a prefix of the commits; the batch carries the `Applied` row
//! that says which. A writer claims exactly the epoch after the one that it saw *before* it confirmed its reign in the
//! head, so a superseded writer can never fence its successor's tree.
//! Callers: `open.rs`. Absent: retries of requests, which SlateDB makes without end: an outage makes calls wait.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use slatedb::admin::AdminBuilder;
use slatedb::config::{DbReaderOptions, FlushOptions, FlushType, ScanOptions, Settings, SstBlockSize};
use slatedb::manifest::VersionedManifest;
use slatedb::{Db, DbIterator, DbReader, DbReaderMode, DbStatus, MergeOperator, MergeOperatorError, WriteBatch};
use tokio::sync::{OnceCell, watch};
use uuid::Uuid;

pub(super) use error::outward;

use super::blocks::BlockCache;
use super::clock::{Stamp, TreeClock, newest_compaction, newest_stamp};
use super::object_store::BucketStore;
use super::object_store::look::Look;
use super::unlogged::Unlogged;
use super::upkeep::{Kept, Upkeep, catch_up_at_opening};
use super::{Tree, TreeError, merged_stats, reach};
use crate::bucket::BucketRef;
use crate::clock::Timestamp;
use crate::ids::{Epoch, JournalSeq};
use crate::open::TreeConfig;
use crate::row::codec::{decode_key, decode_pair, decode_row, encode_key, encode_row};
use crate::row::{Applied, Key, Row};

mod bring;
mod error;

/// Folder of the tree below the volume's data prefix.
pub(crate) const FOLDER: &str = "m";

/// 16 MiB: rows gathered in RAM before they become an SST; also the largest SST, which is held in RAM while it is put.
pub(super) const SST_BYTES_MAX: usize = 16 * 1024 * 1024;

/// 32 MiB: rows in RAM not yet in an SST. Above it `apply` waits, then commits, then writers.
const UNFLUSHED_BYTES_MAX: usize = 2 * SST_BYTES_MAX;

/// 256 SSTs that no compaction has taken yet: with a compactor that looks every twelve minutes, 4 GiB of rows before
/// `apply` waits for it; and a flush a second, of engines that are killed as soon as they serve, for four minutes.
pub(super) const L0_SSTS_MAX: usize = 256;

/// 15 minutes: a writer learns by it what the compactor did; being fenced it learns from its journal, much sooner.
const MANIFEST_POLL: Duration = Duration::from_secs(900);

/// Longer than any mount lives: a reader stays at the state that it opened.
const NEVER: Duration = Duration::from_secs(10 * 365 * 86_400);

/// 64 KiB to 1 MiB read ahead in scans: without it, a cold scan is one request for each block.
const READ_AHEAD_BYTES: (usize, usize) = (64 * 1024, 1024 * 1024);

/// About what a row takes, to turn rows asked for into bytes to read ahead.
const ROW_BYTES_TYPICAL: usize = 256;

/// 1 row: the file of a short mount tells what it has too, in the request that brings its index.
pub(super) const FILTER_KEYS_MIN: u32 = 1;

const _: () = assert!(UNFLUSHED_BYTES_MAX > SST_BYTES_MAX);

/// A tree opened for writing.
pub struct SlateTree {
    db: Db,
    upkeep: Upkeep,
    state: Mutex<State>,
    /// What the tree looks like to its writer.
    status: watch::Receiver<DbStatus>,
    /// Operations have begun to miss rows.
    reads_expected: AtomicBool,
    /// Filters and indexes were brought.
    ends: OnceCell<()>,
}

/// Held for a moment, never across an await.
#[derive(Debug)]
struct State {
    applied: Applied,
    closed: bool,
}

/// A tree opened for reading, as it was at that moment.
pub struct SlateReader {
    db: DbReader,
    applied: Applied,
}

impl std::fmt::Debug for SlateTree {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlateTree")
            .field("state", &self.state)
            .finish_non_exhaustive()
    }
}

impl std::fmt::Debug for SlateReader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SlateReader")
            .field("applied", &self.applied)
            .finish_non_exhaustive()
    }
}

/// Where a tree is before its first commit.
pub(crate) const NOTHING: Applied = Applied {
    epoch: Epoch(0),
    seq: JournalSeq(0),
};

/// The writer that a tree shows.
#[derive(Debug)]
pub struct SeenWriter {
    epoch: u64,
    newest: Stamp,
    /// Files that no compaction has taken yet.
    waiting: usize,
    look: Look,
}

/// The writer that the tree shows now: what `SlateTree::open` is to be given after the head was confirmed.
///
/// # Errors
/// `TreeError` if the manifest cannot be read.
pub async fn seen_writer(bucket: BucketRef) -> Result<SeenWriter, TreeError> {
    let (store, look) = BucketStore::looking(bucket.clone());
    let ours = AdminBuilder::new(FOLDER, Arc::new(store)).build();
    let others = AdminBuilder::new(FOLDER, Arc::new(BucketStore::new(bucket))).build();
    let (manifest, compactions) = tokio::join!(ours.read_manifest(None), others.read_compactions(None));
    let (manifest, compactions) = (manifest.map_err(outward)?, compactions.map_err(outward)?);
    let committed = manifest.as_ref().map(newest_stamp).unwrap_or_default();
    let begun = compactions.as_ref().map(newest_compaction).unwrap_or_default();
    Ok(SeenWriter {
        epoch: manifest.as_ref().map_or(0, VersionedManifest::writer_epoch),
        newest: committed.max(begun),
        waiting: manifest.as_ref().map_or(0, |manifest| manifest.l0().len()),
        look,
    })
}

/// The number of the newest manifest of the tree; `None` if there is no tree.
///
/// # Errors
/// `TreeError` if it cannot be read.
pub(crate) async fn newest_manifest(bucket: BucketRef) -> Result<Option<u64>, TreeError> {
    Ok(read_manifest(bucket).await?.map(|manifest| manifest.id()))
}

pub(super) async fn read_manifest(bucket: BucketRef) -> Result<Option<VersionedManifest>, TreeError> {
    let admin = AdminBuilder::new(FOLDER, Arc::new(BucketStore::new(bucket))).build();
    admin.read_manifest(None).await.map_err(outward)
}

impl SlateTree {
    /// Opens the tree below `bucket`, or makes it, as the only writer after the one that was seen.
    ///
    /// # Errors
    /// `Fenced` if another writer opened it since; other `TreeError`s.
    pub async fn open(bucket: BucketRef, seen: SeenWriter, config: &TreeConfig) -> Result<Self, TreeError> {
        let clock = Arc::new(TreeClock::new(config.now, seen.newest));
        let mut kept = Kept {
            bucket: Arc::clone(&bucket),
            clock: Arc::clone(&clock),
            writer: seen.epoch,
        };
        let store = match catch_up_at_opening(&kept, seen.waiting, config.in_haste).await {
            true => BucketStore::new(bucket),
            false => BucketStore::after(bucket, seen.look),
        };
        let db = Db::builder(FOLDER, Arc::new(store))
            .with_expected_epoch(seen.epoch)
            .with_system_clock(clock.clone())
            .with_settings(settings())
            .with_sst_block_size(SstBlockSize::Block16Kib)
            .with_db_cache(config.blocks.cache(), config.blocks.number())
            .with_filter_policies(reach::filters())
            .with_merge_operator(Arc::new(SumStats))
            .with_wal_writer(Box::new(Unlogged))
            .build()
            .await
            .map_err(outward)?;
        // The writer before may have flushed between our look and our claim.
        let manifest = db.manifest();
        clock.reach(newest_stamp(&manifest));
        kept.writer = manifest.writer_epoch();
        let upkeep = Upkeep::begin(kept, manifest.l0().len(), db.subscribe());
        let status = db.subscribe();
        let key = encode_key(&Key::Applied);
        let row = db.get(&key).await.map_err(outward)?;
        let state = State {
            applied: applied_of(row)?,
            closed: false,
        };
        Ok(Self {
            db,
            upkeep,
            state: Mutex::new(state),
            status,
            reads_expected: AtomicBool::new(false),
            ends: OnceCell::new(),
        })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nothing panics while it holds the state")
    }

    fn check_open(&self) -> Result<(), TreeError> {
        match self.state().closed {
            true => Err(TreeError::Closed),
            false => Ok(()),
        }
    }
}

impl SlateReader {
    /// Opens the tree below `bucket` for reading; `None` if there is none yet. Writes nothing.
    ///
    /// # Errors
    /// `TreeError`.
    pub async fn open(bucket: BucketRef, blocks: &BlockCache) -> Result<Option<Self>, TreeError> {
        let Some(manifest) = read_manifest(bucket.clone()).await? else {
            return Ok(None);
        };
        if !manifest.initialized() {
            return Ok(None);
        }
        // A reader decides nothing by time.
        let clock = TreeClock::new(Timestamp::default(), newest_stamp(&manifest));
        let place = (FOLDER.to_owned(), DbReaderMode::FollowLatest);
        Self::open_in(bucket, place, clock, blocks).await.map(Some)
    }

    /// Opens a state of a tree that is kept, as seen from `bucket`: its own, or an ancestor's. Writes nothing.
    ///
    /// # Errors
    /// `TreeError`, also if the state is not kept any more.
    pub(crate) async fn open_at(
        bucket: BucketRef,
        path: String,
        checkpoint: Uuid,
        blocks: &BlockCache,
    ) -> Result<Self, TreeError> {
        let clock = TreeClock::new(Timestamp::default(), Stamp::default());
        Self::open_in(bucket, (path, DbReaderMode::Checkpoint(checkpoint)), clock, blocks).await
    }

    async fn open_in(
        bucket: BucketRef,
        (path, mode): (String, DbReaderMode),
        clock: TreeClock,
        blocks: &BlockCache,
    ) -> Result<Self, TreeError> {
        let store = Arc::new(BucketStore::new(bucket));
        let options = DbReaderOptions {
            manifest_poll_interval: NEVER,
            skip_wal_replay: true,
            ..DbReaderOptions::default()
        };
        let db = DbReader::builder(path, store)
            .with_reader_mode(mode)
            .with_system_clock(Arc::new(clock))
            .with_options(options)
            .with_db_cache(blocks.cache(), blocks.number())
            .with_filter_policies(reach::filters())
            .with_merge_operator(Arc::new(SumStats))
            .build()
            .await
            .map_err(outward)?;
        let row = db.get(&encode_key(&Key::Applied)).await.map_err(outward)?;
        let applied = applied_of(row)?;
        Ok(Self { db, applied })
    }
}

impl SlateReader {
    /// The number of the manifest that it reads.
    pub(crate) fn manifest(&self) -> u64 {
        self.db.manifest().id()
    }
}

fn applied_of(row: Option<Bytes>) -> Result<Applied, TreeError> {
    match row.as_deref().map(decode_row) {
        None => Ok(NOTHING),
        Some(Ok(Row::Applied(applied))) => Ok(applied),
        Some(other) => Err(TreeError::Corrupt {
            place: "the applied row".to_owned(),
            detail: format!("{other:?}"),
        }),
    }
}

/// Compaction and collection are not the tree's own: they begin later (`upkeep.rs`).
fn settings() -> Settings {
    Settings {
        flush_interval: None,
        wal_enabled: false,
        manifest_poll_interval: MANIFEST_POLL,
        l0_sst_size_bytes: SST_BYTES_MAX,
        l0_max_ssts: L0_SSTS_MAX,
        l0_max_ssts_per_key: L0_SSTS_MAX,
        l0_flush_parallelism: 2,
        max_unflushed_bytes: UNFLUSHED_BYTES_MAX,
        min_filter_keys: FILTER_KEYS_MIN,
        compactor_options: None,
        garbage_collector_options: None,
        ..Settings::default()
    }
}

/// Adds differences of `ObjectStats`.
pub(in crate::tree) struct SumStats;

impl MergeOperator for SumStats {
    fn merge(&self, key: &Bytes, existing: Option<Bytes>, value: Bytes) -> Result<Bytes, MergeOperatorError> {
        let row = |bytes: &Bytes| {
            decode_row(bytes).map_err(|error| MergeOperatorError::Callback {
                message: format!("the row under {key:02x?} does not decode: {error}"),
            })
        };
        let existing = existing.as_ref().map(row).transpose()?;
        match row(&value)? {
            Row::ObjectStats(delta) => Ok(encode_row(&Row::ObjectStats(merged_stats(existing, delta))).into()),
            other => Err(MergeOperatorError::Callback {
                message: format!("the row under {key:02x?} cannot be added: {other:?}"),
            }),
        }
    }
}

fn batch_of(applied: Applied, changes: Vec<(Key, Option<Row>)>) -> WriteBatch {
    let mut batch = WriteBatch::new();
    for (key, row) in changes {
        let key = Bytes::from(encode_key(&key));
        match row {
            Some(row @ Row::ObjectStats(_)) => batch.merge(key, encode_row(&row)),
            Some(row) => batch.put_bytes(key, encode_row(&row).into()),
            None => batch.delete(key),
        }
    }
    let row = encode_row(&Row::Applied(applied));
    batch.put_bytes(encode_key(&Key::Applied).into(), row.into());
    batch
}

async fn rows_of(mut rows: DbIterator, rows_max: usize) -> Result<Vec<(Key, Row)>, TreeError> {
    let mut found = Vec::new();
    while found.len() < rows_max {
        let Some(row) = rows.next().await.map_err(outward)? else {
            break;
        };
        found.push(decoded(&row.key, &row.value)?);
    }
    Ok(found)
}

fn decoded(key: &[u8], row: &[u8]) -> Result<(Key, Row), TreeError> {
    decode_pair(key, row).map_err(|error| TreeError::Corrupt {
        place: match decode_key(key) {
            Ok(key) => format!("{key:?}"),
            Err(_) => format!("{key:02x?}"),
        },
        detail: error.to_string(),
    })
}

fn scan_options(rows_max: usize) -> ScanOptions {
    let (least, most) = READ_AHEAD_BYTES;
    ScanOptions::default()
        .with_read_ahead_bytes(rows_max.saturating_mul(ROW_BYTES_TYPICAL).clamp(least, most))
        .with_max_fetch_tasks(2)
        .with_cache_blocks(true)
}

#[async_trait]
impl Tree for SlateTree {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TreeError> {
        self.check_open()?;
        self.wait_for_ends().await;
        let key = encode_key(key);
        let row = self.db.get(&key).await.map_err(outward)?;
        row.map(|row| decoded(&key, &row).map(|(_, row)| row)).transpose()
    }

    async fn scan(&self, from: &Key, until: &Key, rows_max: usize) -> Result<Vec<(Key, Row)>, TreeError> {
        self.check_open()?;
        let range = encode_key(from)..encode_key(until);
        if range.is_empty() || rows_max == 0 {
            return Ok(Vec::new());
        }
        self.wait_for_ends().await;
        let rows = self.db.scan_with_options(range, &scan_options(rows_max)).await;
        rows_of(rows.map_err(outward)?, rows_max).await
    }

    fn expect_reads(&self) {
        self.reads_expected.store(true, Ordering::Relaxed);
    }

    async fn apply(&self, applied: Applied, changes: Vec<(Key, Option<Row>)>) -> Result<(), TreeError> {
        self.check_open()?;
        self.db.write(batch_of(applied, changes)).await.map_err(outward)?;
        self.state().applied = applied;
        Ok(())
    }

    async fn flush(&self) -> Result<Applied, TreeError> {
        self.check_open()?;
        // Before the flush: what is applied while it runs may or may not be in it.
        let applied = self.applied();
        let options = FlushOptions {
            flush_type: FlushType::MemTable,
        };
        self.db.flush_with_options(options).await.map_err(outward)?;
        Ok(applied)
    }

    fn applied(&self) -> Applied {
        self.state().applied
    }

    async fn close(&self) -> Result<(), TreeError> {
        let was_closed = std::mem::replace(&mut self.state().closed, true);
        match was_closed {
            true => Ok(()),
            false => {
                self.upkeep.end().await;
                self.db.close().await.map_err(outward)
            }
        }
    }
}

#[async_trait]
impl Tree for SlateReader {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TreeError> {
        let key = encode_key(key);
        let row = self.db.get(&key).await.map_err(outward)?;
        row.map(|row| decoded(&key, &row).map(|(_, row)| row)).transpose()
    }

    async fn scan(&self, from: &Key, until: &Key, rows_max: usize) -> Result<Vec<(Key, Row)>, TreeError> {
        let range = encode_key(from)..encode_key(until);
        if range.is_empty() || rows_max == 0 {
            return Ok(Vec::new());
        }
        let rows = self.db.scan_with_options(range, &scan_options(rows_max)).await;
        rows_of(rows.map_err(outward)?, rows_max).await
    }

    async fn apply(&self, _: Applied, _: Vec<(Key, Option<Row>)>) -> Result<(), TreeError> {
        Err(TreeError::ReadOnly)
    }

    async fn flush(&self) -> Result<Applied, TreeError> {
        Err(TreeError::ReadOnly)
    }

    fn applied(&self) -> Applied {
        self.applied
    }

    async fn close(&self) -> Result<(), TreeError> {
        self.db.close().await.map_err(outward)
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;
    use crate::bucket::memory::MemoryBucket;

    async fn open(bucket: &BucketRef) -> SlateTree {
        let seen = seen_writer(bucket.clone()).await.unwrap();
        SlateTree::open(bucket.clone(), seen, &TreeConfig::default())
            .await
            .unwrap()
    }

    #[tokio::test]
    async fn the_tree_on_slatedb_keeps_the_contract() {
        let bucket: BucketRef = Arc::new(MemoryBucket::new());
        contract::check(&open(&bucket).await).await;
    }

    /// A volume that is mounted for seconds, as by a job every hour, leaves a file in the tree each time. Found by a soak: no
    /// mount was long enough for a compaction, and the sixty-fifth had no room for its file and waited for half an hour.
    #[tokio::test(start_paused = true)]
    async fn regression_many_short_mounts_leave_room_for_the_next() {
        let bucket: BucketRef = Arc::new(MemoryBucket::new());
        for seq in 1..=100 {
            let life = async {
                let tree = open(&bucket).await;
                let applied = Applied {
                    epoch: Epoch(1),
                    seq: JournalSeq(seq),
                };
                tree.apply(applied, vec![(Key::Counters, None)]).await.unwrap();
                tree.flush().await.unwrap();
                tree.close().await.unwrap();
            };
            let ended = tokio::time::timeout(Duration::from_secs(60), life).await;
            assert!(ended.is_ok(), "life {seq} does not end");
        }
        let manifest = read_manifest(bucket).await.unwrap().unwrap();
        assert!(manifest.l0().len() < L0_SSTS_MAX, "{} files wait", manifest.l0().len());
    }

    #[tokio::test]
    async fn what_was_flushed_is_found_again_and_what_was_not_is_gone() {
        let bucket: BucketRef = Arc::new(MemoryBucket::new());
        let tree = open(&bucket).await;
        contract::fill(&tree).await;
        tree.flush().await.unwrap();
        let lost = vec![(Key::Counters, None)];
        let later = Applied {
            epoch: Epoch(1),
            seq: JournalSeq(3),
        };
        tree.apply(later, lost).await.unwrap();
        drop(tree);

        let reader = SlateReader::open(bucket.clone(), &BlockCache::new(1 << 20))
            .await
            .unwrap()
            .unwrap();
        contract::check_filled(&reader).await;
        assert!(matches!(reader.flush().await, Err(TreeError::ReadOnly)));
        contract::check_filled(&open(&bucket).await).await;
        contract::check_filled(&reader).await;
    }

    #[tokio::test]
    async fn a_reader_writes_nothing_and_finds_no_tree_where_none_is() {
        let memory = Arc::new(MemoryBucket::new());
        let bucket: BucketRef = memory.clone();
        assert!(
            SlateReader::open(bucket.clone(), &BlockCache::new(1 << 20))
                .await
                .unwrap()
                .is_none()
        );
        assert_eq!(memory.keys(), Vec::<String>::new());
        let tree = open(&bucket).await;
        contract::fill(&tree).await;
        tree.close().await.unwrap();
        let before = memory.keys();
        let reader = SlateReader::open(bucket.clone(), &BlockCache::new(1 << 20))
            .await
            .unwrap()
            .unwrap();
        contract::check_filled(&reader).await;
        reader.close().await.unwrap();
        assert_eq!(memory.keys(), before);
    }

    #[tokio::test]
    async fn a_second_writer_fences_the_first_and_a_stale_one_cannot_open() {
        let bucket: BucketRef = Arc::new(MemoryBucket::new());
        let first = open(&bucket).await;
        contract::fill(&first).await;
        let stale = seen_writer(bucket.clone()).await.unwrap();
        let second = open(&bucket).await;
        assert_eq!(first.flush().await, Err(TreeError::Fenced));
        assert_eq!(second.applied(), NOTHING, "what the first had not flushed is gone");
        let third = SlateTree::open(bucket.clone(), stale, &TreeConfig::default()).await;
        assert_eq!(
            third.map(|_| ()),
            Err(TreeError::Fenced),
            "it saw the tree before the second took it"
        );
        contract::fill(&second).await;
        second.flush().await.unwrap();
    }
}
