//! Each family of operations, its good and its bad side, on a volume whose commits the test makes by hand: so a test
//! chooses what is only in RAM, what is on its way, and what was dropped and must be loaded again.

use std::collections::VecDeque;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use uuid::Uuid;

use crate::attr::{Attr, Caller, Place};
use crate::bucket::Bucket;
use crate::bucket::memory::MemoryBucket;
use crate::clock::{Clock, Timestamp};
use crate::commit::{DirtyState, RunSource, SealedGeneration};
use crate::error::FsError;
use crate::format::codec::Compression;
use crate::format::frame::{FrameIdentity, put_run};
use crate::ids::{DirCookie, Epoch, Generation, InodeNo, JournalSeq, ObjectId};
use crate::limits::Limits;
use crate::rope::RopeBuilder;
use crate::row::{Applied, ExtentRow, Key, Row};
use crate::tree::Tree;
use crate::tree::memory::MemoryTree;
use crate::volume::Volume;

mod content;
mod directories;
mod pressure;
mod space;

const ROOT: InodeNo = InodeNo::ROOT;
const ALICE: Caller = Caller {
    uid: 1_000,
    gid: 1_000,
    umask: 0,
};
const VOLUME: Uuid = Uuid::from_u128(77);

/// A clock that goes on by a second with each look.
#[derive(Debug, Default)]
pub(crate) struct Steps(AtomicI64);

impl Clock for Steps {
    fn now(&self) -> Timestamp {
        Timestamp {
            seconds: self.0.fetch_add(1, Ordering::Relaxed),
            nanos: 5,
        }
    }
}

/// A commit on its way: its generation and its rows.
type Commit = (Generation, Vec<(Key, Option<Row>)>);

/// A volume and its hand-made commits.
struct Rig {
    volume: Volume,
    tree: Arc<MemoryTree>,
    bucket: Arc<MemoryBucket>,
    seq: u64,
    uploaded: VecDeque<Commit>,
    landed: VecDeque<Commit>,
}

impl Rig {
    fn new() -> Self {
        Self::with(Limits::default())
    }

    /// Tables so small that everything clean is dropped at once.
    fn tight() -> Self {
        Self::with(Limits {
            table_bytes_max: 0,
            ..Limits::default()
        })
    }

    fn with(limits: Limits) -> Self {
        let (tree, bucket) = (Arc::new(MemoryTree::new()), Arc::new(MemoryBucket::new()));
        let volume = Volume::without_commits(Arc::clone(&tree) as _, Arc::clone(&bucket) as _, limits, VOLUME);
        Self {
            volume,
            tree,
            bucket,
            seq: 0,
            uploaded: VecDeque::new(),
            landed: VecDeque::new(),
        }
    }

    /// Cuts, and puts the content in the bucket. Nobody is told yet.
    async fn cut(&mut self) {
        let Some(sealed) = self.volume.state().seal() else {
            return;
        };
        self.seq += 1;
        let object = ObjectId::Journal(Epoch(1), JournalSeq(self.seq));
        let mut out = RopeBuilder::new(b"hdr", 0);
        for run in &sealed.runs {
            let first = FrameIdentity {
                volume: VOLUME,
                ino: run.ino,
                offset: run.offset,
            };
            let row = put_run(&mut out, object, first, &run.data, Compression::None);
            run.placed.set(row).expect("placed once");
        }
        self.bucket
            .put_rope_if_absent(&object.key(), out.finish())
            .await
            .unwrap();
        let generation = sealed.generation;
        self.uploaded.push_back((generation, changes_of(sealed)));
    }

    /// The oldest commit under way is durable.
    fn land(&mut self) {
        if let Some((generation, changes)) = self.uploaded.pop_front() {
            self.volume.state().durable(generation);
            self.landed.push_back((generation, changes));
        }
    }

    /// The oldest durable commit enters the tree.
    async fn apply(&mut self) {
        if let Some((generation, changes)) = self.landed.pop_front() {
            let applied = Applied {
                epoch: Epoch(1),
                seq: JournalSeq(generation.0),
            };
            self.tree.apply(applied, changes).await.unwrap();
            self.volume.state().applied(generation);
        }
    }

    /// Commits everything.
    async fn settle(&mut self) {
        self.cut().await;
        while !self.uploaded.is_empty() || !self.landed.is_empty() {
            self.land();
            self.apply().await;
        }
    }

    /// Drops everything from RAM that may be dropped: what follows comes from the tree and the bucket.
    async fn forget_all(&mut self) {
        self.settle().await;
        self.volume.drop_clean_rows();
    }

    /// The same volume, opened anew from what the tree and bucket hold.
    async fn reopened(mut self) -> Rig {
        self.settle().await;
        let counters = match self.tree.get(&Key::Counters).await.unwrap() {
            Some(Row::Counters(counters)) => counters,
            other => panic!("no counters: {other:?}"),
        };
        let (tree, bucket) = (Arc::clone(&self.tree), Arc::clone(&self.bucket));
        let volume = Volume::reopened(Arc::clone(&tree) as _, Arc::clone(&bucket) as _, counters, VOLUME);
        Rig {
            volume,
            tree,
            bucket,
            ..self
        }
    }

    async fn file(&self, dir: InodeNo, name: &str) -> InodeNo {
        let attr = self.volume.create(dir, name.as_bytes(), 0o644, ALICE).await.unwrap();
        self.volume.release(attr.ino);
        attr.ino
    }

    async fn dir(&self, dir: InodeNo, name: &str) -> InodeNo {
        self.volume.mkdir(dir, name.as_bytes(), 0o755, ALICE).await.unwrap().ino
    }

    async fn write(&self, ino: InodeNo, offset: u64, data: &[u8]) {
        self.volume
            .write(ino, offset, Bytes::copy_from_slice(data))
            .await
            .unwrap();
    }

    async fn read(&self, ino: InodeNo, offset: u64, len: u32) -> Vec<u8> {
        self.volume.read(ino, offset, len).await.unwrap().concat()
    }

    async fn attr(&self, ino: InodeNo) -> Attr {
        self.volume.getattr(ino).await.unwrap()
    }

    /// Names in listing order, read in pages of `page` entries, without "." and "..".
    async fn names(&self, dir: InodeNo, page: usize) -> Vec<String> {
        let (mut names, mut after) = (Vec::new(), DirCookie(0));
        loop {
            let entries = self.volume.readdir(dir, after, page, false).await.unwrap();
            let Some(last) = entries.last() else { return names };
            after = last.cookie;
            names.extend(
                entries
                    .iter()
                    .map(|entry| String::from_utf8(entry.name.to_vec()).unwrap()),
            );
            names.retain(|name| name != "." && name != "..");
        }
    }
}

fn row_of(source: &RunSource) -> ExtentRow {
    match source {
        RunSource::Dirty { placed, skip, len } => placed.get().expect("placed before it is told").part(*skip, *len),
        RunSource::Stored(row) => row.clone(),
    }
}

/// The rows of a commit, as the commit loop derives them.
fn changes_of(sealed: SealedGeneration) -> Vec<(Key, Option<Row>)> {
    let mut changes = sealed.rows;
    for change in &sealed.extents {
        let key = Key::Extent {
            ino: change.ino,
            end: change.end,
        };
        changes.push((key, change.new.as_ref().map(|source| Row::Extent(row_of(source)))));
    }
    changes.push((Key::Counters, Some(Row::Counters(sealed.counters))));
    changes
}

fn place(dir: InodeNo, name: &str) -> Place<'_> {
    Place {
        dir,
        name: name.as_bytes(),
    }
}

/// Runs a test.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

/// Asserts that an operation failed with a given variant.
macro_rules! assert_fails {
    ($result:expr, $pattern:pat) => {{
        let result = $result;
        assert!(matches!(result, Err($pattern)), "{result:?}");
    }};
}
use assert_fails;

/// The work of each call is moved to the heap before it runs: it must not have room in itself for all that it may once wait for.
/// The largest is 688 bytes.
#[test]
fn the_work_of_a_call_is_small() {
    let rig = Rig::new();
    let volume = &rig.volume;
    let change = crate::attr::SetAttr::default();
    let sizes = [
        ("lookup", size_of_val(&volume.lookup(ROOT, b"a"))),
        ("getattr", size_of_val(&volume.getattr(ROOT))),
        ("setattr", size_of_val(&volume.setattr(ROOT, &change))),
        ("create", size_of_val(&volume.create(ROOT, b"a", 0o644, ALICE))),
        ("write", size_of_val(&volume.write(ROOT, 0, Bytes::new()))),
        ("getxattr", size_of_val(&volume.getxattr(ROOT, b"user.a"))),
    ];
    for (call, bytes) in sizes {
        assert!(bytes <= 768, "{call} takes {bytes} bytes: {sizes:?}");
    }
}

#[test]
fn what_is_in_ram_is_answered_without_waiting() {
    run(async {
        let rig = Rig::new();
        let polled_once = |operation: std::pin::Pin<Box<dyn Future<Output = ()>>>| {
            let mut operation = operation;
            let mut context = std::task::Context::from_waker(std::task::Waker::noop());
            assert!(operation.as_mut().poll(&mut context).is_ready(), "it waited");
        };
        let volume = rig.volume.clone();
        polled_once(Box::pin(async move {
            let ino = volume.create(ROOT, b"a", 0o600, ALICE).await.unwrap().ino;
            volume.write(ino, 0, Bytes::from(vec![1; 8_192])).await.unwrap();
            assert_eq!(volume.read(ino, 0, 8_192).await.unwrap().concat(), vec![1; 8_192]);
            volume.mkdir(ROOT, b"d", 0o700, ALICE).await.unwrap();
            assert!(matches!(volume.lookup(ROOT, b"missing").await, Err(FsError::NotFound)));
            volume
                .rename(place(ROOT, "a"), place(ROOT, "b"), crate::attr::RenameMode::Replace)
                .await
                .unwrap();
            volume.readdir(ROOT, DirCookie(0), 10, true).await.unwrap();
            volume.unlink(ROOT, b"b").await.unwrap();
            volume.flush(ino).await.unwrap();
        }));
    });
}
