//! A small file system with a history: what it looked like after each operation, so that any later state can be judged.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;
use volume::bucket::{BucketRef, memory::MemoryBucket};
use volume::budget::Budget;
use volume::clock::Timestamp;
use volume::commit::{
    self, CommitContext, CommitHandle, CommitLimits, DirtyRun, DirtyState, ExtentChange, Lost, RunSource,
    SealedGeneration,
};
use volume::format::codec::Compression;
use volume::format::frame::{FrameIdentity, open_frame};
use volume::head::{Claim, Head, HeadFile, HeadWriter, NewHead, Parameters};
use volume::ids::{Epoch, Generation, InodeNo, ObjectId};
use volume::open::{OpenError, OpenedWriter, TreeConfig, open_reader, open_writer};
use volume::row::{Counters, ExtentRow, Key, ObjectStats, Row};
use volume::tree::Tree;
use volume::tree::blocks::BlockCache;
use volume::volume_id::{NodeId, VolumeId};

/// Inodes that operations rewrite in turn.
const FILES: u64 = 3;

/// Attributes that operations set and remove in turn.
const ATTRIBUTES: u64 = 5;

/// What was done and what was acknowledged, over all mounts of one test.
#[derive(Debug, Default)]
pub struct Issued {
    last: AtomicU64,
    acknowledged: AtomicU64,
}

impl Issued {
    /// A crash has taken what was not acknowledged: history goes on from what `mount` found.
    pub fn go_on_from(&self, mount: &Mount) {
        self.last.store(mount.found, Ordering::SeqCst);
    }
}

/// The state after the first `ops` operations, from their meaning alone.
fn expected(ops: u64) -> (BTreeMap<u64, u64>, BTreeMap<u64, u64>) {
    let (mut files, mut attributes) = (BTreeMap::new(), BTreeMap::new());
    for op in 1..=ops {
        files.insert(1 + op % FILES, op);
        attributes.insert(100 + op % ATTRIBUTES, op);
        attributes.remove(&(100 + (op + 2) % ATTRIBUTES));
    }
    (files, attributes)
}

/// Content of a file that `op` has written: its length depends on the operation too.
fn content(op: u64) -> Bytes {
    let len = 40 + (op % 4) as usize * 8;
    op.to_le_bytes().iter().copied().cycle().take(len).collect()
}

fn attribute(ino: u64) -> Key {
    Key::Xattr {
        ino: InodeNo(ino),
        name: Bytes::from_static(b"user.op"),
    }
}

fn op_row(op: u64) -> Row {
    Row::Xattr(Bytes::copy_from_slice(&op.to_le_bytes()))
}

fn op_of(row: &Row) -> u64 {
    let Row::Xattr(value) = row else {
        panic!("{row:?}");
    };
    u64::from_le_bytes(value[..].try_into().unwrap())
}

/// RAM tables of that file system.
#[derive(Debug, Default)]
struct State(Mutex<Tables>);

#[derive(Debug, Default)]
struct Tables {
    generation: u64,
    op: u64,
    rows: BTreeMap<Key, Option<Row>>,
    files: BTreeMap<u64, u64>,
    /// What the last sealed state refers to, by (inode, end).
    referred: BTreeMap<(u64, u64), RunSource>,
    /// The last operation of each generation not yet durable.
    ops: BTreeMap<u64, u64>,
    durable: u64,
    applied: u64,
    lost: Option<Lost>,
}

impl DirtyState for State {
    fn seal(&self) -> Option<SealedGeneration> {
        let mut tables = self.0.lock().unwrap();
        if tables.rows.is_empty() {
            return None;
        }
        tables.generation += 1;
        let (generation, op) = (tables.generation, tables.op);
        tables.ops.insert(generation, op);
        let (mut runs, mut extents) = (Vec::new(), Vec::new());
        for (ino, op) in std::mem::take(&mut tables.files) {
            let data = content(op);
            let (len, placed) = (data.len() as u64, Arc::new(OnceLock::new()));
            let new = RunSource::Dirty {
                placed: placed.clone(),
                skip: 0,
                len,
            };
            let (head, tail) = (data.slice(..5), data.slice(5..));
            runs.push(DirtyRun {
                ino: InodeNo(ino),
                offset: 0,
                data: vec![head, tail],
                placed,
                held: Arc::default(),
            });
            let ends: Vec<u64> = tables
                .referred
                .keys()
                .filter(|key| key.0 == ino)
                .map(|key| key.1)
                .collect();
            for end in ends {
                let old = tables.referred.remove(&(ino, end));
                if end != len {
                    let ino = InodeNo(ino);
                    extents.push(ExtentChange {
                        ino,
                        end,
                        old,
                        new: None,
                    });
                } else {
                    tables.referred.insert((ino, end), old.unwrap());
                }
            }
            let old = tables.referred.insert((ino, len), new.clone());
            extents.push(ExtentChange {
                ino: InodeNo(ino),
                end: len,
                old,
                new: Some(new),
            });
        }
        Some(SealedGeneration {
            generation: Generation(generation),
            runs,
            extents,
            rows: std::mem::take(&mut tables.rows).into_iter().collect(),
            counters: Counters {
                next_ino: op,
                ..Counters::default()
            },
        })
    }

    fn unsealed_bytes(&self) -> u64 {
        self.0.lock().unwrap().rows.len() as u64
    }

    fn durable(&self, generation: Generation) {
        let mut tables = self.0.lock().unwrap();
        assert_eq!(tables.lost, None, "an acknowledgement after the loss");
        assert_eq!(generation.0, tables.durable + 1, "acknowledgements come in order");
        tables.durable = generation.0;
    }

    fn applied(&self, generation: Generation) {
        let mut tables = self.0.lock().unwrap();
        assert!(generation.0 <= tables.durable, "the tree is never ahead of the journal");
        assert_eq!(generation.0, tables.applied + 1, "commits reach the tree in order");
        tables.applied = generation.0;
    }

    fn lost(&self, why: &Lost) {
        let mut tables = self.0.lock().unwrap();
        assert_eq!(tables.lost, None, "a loss is told once");
        tables.lost = Some(why.clone());
    }
}

/// A mounted volume of that file system.
pub struct Mount {
    pub commit: CommitHandle,
    pub opened: OpenedWriter,
    /// The last operation that it found.
    pub found: u64,
    state: Arc<State>,
}

pub fn limits() -> CommitLimits {
    CommitLimits {
        inline_bytes_max: 100,
        segment_bytes_max: 64,
        cut_after: Duration::from_millis(20),
        ..CommitLimits::default()
    }
}

impl Mount {
    pub async fn open(bucket: BucketRef, node: &str, limits: CommitLimits) -> Result<Self, OpenError> {
        let claim = Claim {
            node_id: NodeId::new(node).unwrap(),
            session: Uuid::new_v4(),
            lease: None,
            now: Timestamp::default(),
        };
        let config = TreeConfig {
            blocks: BlockCache::new(1 << 20),
            // Who follows somebody.
            in_haste: node != "first",
            ..TreeConfig::default()
        };
        let opened = open_writer(bucket, claim, config, None).await?;
        let found = found(&*opened.tree).await;
        let mut tables = Tables {
            op: found,
            ..Tables::default()
        };
        for (ino, end, row) in extents(&*opened.tree).await {
            tables.referred.insert((ino, end), RunSource::Stored(row));
        }
        let state = Arc::new(State(Mutex::new(tables)));
        let context = CommitContext {
            budget: Budget::default(),
            bucket: opened.bucket.clone(),
            tree: opened.tree.clone(),
            volume: opened.taken.head.uuid,
            writer: opened.writer,
            epoch: opened.epoch,
            next_seq: opened.next_seq,
            durable: opened.durable,
            flush_soon: opened.flush_soon,
            compression: Compression::default(),
            limits,
            kept: None,
        };
        Ok(Self {
            commit: commit::start(context, state.clone()),
            opened,
            found,
            state,
        })
    }

    pub fn epoch(&self) -> Epoch {
        self.opened.epoch
    }

    /// One operation: a file rewritten, an attribute set, another removed.
    pub fn act(&self, issued: &Issued) {
        let mut tables = self.state.0.lock().unwrap();
        tables.op += 1;
        let op = tables.op;
        issued.last.fetch_max(op, Ordering::SeqCst);
        tables.files.insert(1 + op % FILES, op);
        tables.rows.insert(attribute(100 + op % ATTRIBUTES), Some(op_row(op)));
        tables.rows.insert(attribute(100 + (op + 2) % ATTRIBUTES), None);
        tables.rows.insert(attribute(0), Some(op_row(op)));
        drop(tables);
        self.commit.dirtied(1);
    }

    /// As fsync: everything done before is durable after `Ok`.
    pub async fn sync(&self, issued: &Issued) -> Result<(), Lost> {
        let (op, generation) = {
            let tables = self.state.0.lock().unwrap();
            let open = u64::from(!tables.rows.is_empty());
            (tables.op, Generation(tables.generation + open))
        };
        self.commit.request_sync();
        self.commit.wait_durable(generation).await?;
        issued.acknowledged.fetch_max(op, Ordering::SeqCst);
        Ok(())
    }

    /// Ends cleanly and gives the volume back.
    pub async fn close(self) {
        self.commit.shutdown().await.unwrap();
        assert_eq!(self.opened.tree.applied(), self.commit.durable_applied());
        self.opened.tree.close().await.unwrap();
        self.opened.head.release(self.opened.epoch, None).await.unwrap();
    }

    /// The tree is exactly the state after some operation, at or past the last acknowledged one.
    pub async fn judge(&self, issued: &Issued) {
        let durable = self.commit.durable();
        self.commit.wait_applied(durable).await.unwrap();
        judge(
            &*self.opened.tree,
            &self.opened.bucket,
            self.opened.taken.head.uuid,
            issued,
        )
        .await;
    }
}

async fn found(tree: &dyn Tree) -> u64 {
    tree.get(&attribute(0)).await.unwrap().map_or(0, |row| op_of(&row))
}

async fn extents(tree: &dyn Tree) -> Vec<(u64, u64, ExtentRow)> {
    let key = |ino| Key::Extent {
        ino: InodeNo(ino),
        end: 0,
    };
    let rows = tree.scan(&key(0), &key(99), 1_000).await.unwrap();
    let extent = |row| match row {
        (Key::Extent { ino, end }, Row::Extent(row)) => (ino.0, end, row),
        other => panic!("{other:?}"),
    };
    rows.into_iter().map(extent).collect()
}

async fn judge(tree: &dyn Tree, bucket: &BucketRef, volume: Uuid, issued: &Issued) {
    let ops = found(tree).await;
    let (acknowledged, last) = (
        issued.acknowledged.load(Ordering::SeqCst),
        issued.last.load(Ordering::SeqCst),
    );
    assert!(
        (acknowledged..=last).contains(&ops),
        "{ops} is not in {acknowledged}..={last}"
    );

    let (files, attributes) = expected(ops);
    let rows = tree.scan(&attribute(1), &attribute(999), 1_000).await.unwrap();
    let stored: BTreeMap<u64, u64> = rows
        .iter()
        .map(|(key, row)| match key {
            Key::Xattr { ino, .. } => (ino.0, op_of(row)),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(stored, attributes, "attributes after operation {ops}");

    let mut live: BTreeMap<ObjectId, i64> = BTreeMap::new();
    let mut read: BTreeMap<u64, u64> = BTreeMap::new();
    for (ino, end, row) in extents(tree).await {
        *live.entry(row.object).or_default() += row.len as i64;
        let range = row.object_offset..row.object_offset + row.stored_bytes();
        let frame = bucket.get(&row.object.key(), Some(range)).await.unwrap().body;
        let data = open_frame(&frame, &FrameIdentity::of(volume, &row, 0)).unwrap();
        let op = u64::from_le_bytes(data[..8].try_into().unwrap());
        assert_eq!((data.clone(), end), (content(op), data.len() as u64));
        assert_eq!(read.insert(ino, op), None, "one run for each file");
    }
    assert_eq!(read, files, "files after operation {ops}");

    // Live bytes are differences that were added: a commit applied twice, or not at all, shows here.
    let (from, until) = (
        Key::ObjectStats(ObjectId::Journal(Epoch(0), volume::ids::JournalSeq(0))),
        Key::Orphan(InodeNo(0)),
    );
    for (key, row) in tree.scan(&from, &until, 10_000).await.unwrap() {
        let (
            Key::ObjectStats(object),
            Row::ObjectStats(ObjectStats {
                live_bytes,
                total_bytes,
            }),
        ) = (key, row)
        else {
            panic!("a foreign row among the sums");
        };
        assert_eq!(live_bytes, live.remove(&object).unwrap_or(0), "live bytes of {object}");
        assert!(total_bytes >= live_bytes);
    }
    assert_eq!(live, BTreeMap::new(), "objects without a sum");
}

/// Opens for reading and judges that: it must find the same, and write nothing.
pub async fn judge_reader(memory: Arc<MemoryBucket>, issued: &Issued) {
    let before = memory.keys();
    let config = TreeConfig {
        blocks: BlockCache::new(1 << 20),
        ..TreeConfig::default()
    };
    let reader = open_reader(memory.clone(), config).await.unwrap();
    judge(&*reader.tree, &reader.bucket, reader.head.uuid, issued).await;
    assert_eq!(memory.keys(), before, "a reader writes nothing");
}

/// Creates the head of an empty volume.
pub async fn new_volume(bucket: BucketRef) {
    let head = Head::new(NewHead {
        name: "test".to_owned(),
        volume: VolumeId::of_name("test").unwrap(),
        uuid: Uuid::from_u128(7),
        capacity_bytes: 0,
        parameters: Parameters::default(),
        now: Timestamp::default(),
    });
    let file = HeadFile::new(bucket, HeadWriter::new(Uuid::new_v4()));
    file.create(head).await.unwrap();
}

/// One thread and paused time: what happens depends on the seed alone, but for SlateDB's own random numbers.
pub fn runtime(_seed: u64) -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .start_paused(true)
        .build()
        .unwrap()
}

pub fn seeds(count: u64) -> std::ops::Range<u64> {
    7_000..7_000 + count
}

/// Runs a test and names the seed if it fails.
pub fn with_seed(seed: u64, test: impl FnOnce(u64) + std::panic::UnwindSafe) {
    let outcome = std::panic::catch_unwind(|| test(seed));
    assert!(outcome.is_ok(), "failed with seed {seed}");
}
