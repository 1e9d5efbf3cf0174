//! The machine that a volume is mounted on: its wire to the bucket, its clock, and chance.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta, Prefixed};
use volume::clock::{Clock, Timestamp};
use volume::commit::CommitLimits;
use volume::limits::{CollectLimits, Limits};
use volume::volume::{CacheConfig, OpenOptions, Volume};
use volume::volume_id::NodeId as HostId;

use super::log::{Change, Log};

/// A random number from a seed: xorshift, the same for ever.
#[derive(Debug)]
pub struct Dice(u64);

impl Dice {
    /// The same seed, the same numbers.
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    /// A number from 0 to below `bound`.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0 >> 11) % bound
    }

    /// One of these, if there is any.
    pub fn pick<T: Copy>(&mut self, from: &[T]) -> Option<T> {
        if from.is_empty() {
            None
        } else {
            Some(from[self.below(from.len() as u64) as usize])
        }
    }
}

/// The bucket as one mount sees it: every request takes its time before and after its effect, until the mount's machine
/// dies; then nothing more comes through.
#[derive(Debug)]
pub struct Wire {
    bucket: Arc<MemoryBucket>,
    /// What it was asked to change.
    pub log: Log,
    dead: AtomicBool,
    dice: AtomicU64,
}

impl Wire {
    /// The machine dies.
    pub fn cut(&self) {
        self.dead.store(true, Ordering::Relaxed);
    }

    async fn pass(&self) {
        let mut dice = Dice(self.dice.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed) | 1);
        dice.below(2);
        match dice.below(2) {
            0 => tokio::task::yield_now().await,
            _ => tokio::time::sleep(Duration::from_micros(dice.below(2_000))).await,
        }
        if self.dead.load(Ordering::Relaxed) {
            std::future::pending::<()>().await;
        }
    }
}

#[async_trait]
impl Bucket for Wire {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.pass().await;
        self.bucket.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.pass().await;
        self.bucket.head(key).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        let request = self.log.begins(key, Change::PutIfAbsent(body.clone()));
        self.pass().await;
        let answer = self.bucket.put_if_absent(key, body).await;
        self.pass().await;
        self.log.ends(request);
        answer
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        let change = Change::PutIfMatch(body.clone(), expected.clone());
        let request = self.log.begins(key, change);
        self.pass().await;
        let answer = self.bucket.put_if_match(key, body, expected).await;
        self.pass().await;
        self.log.ends(request);
        answer
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let request = self.log.begins(key, Change::Delete);
        self.pass().await;
        let answer = self.bucket.delete(key).await;
        self.pass().await;
        self.log.ends(request);
        answer
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.pass().await;
        self.bucket.list(request).await
    }
}

/// Time for stamps; nothing is decided by it.
#[derive(Debug, Default)]
struct Ticks(AtomicU64);

impl Clock for Ticks {
    fn now(&self) -> Timestamp {
        Timestamp {
            seconds: self.0.fetch_add(1, Ordering::Relaxed) as i64,
            nanos: 0,
        }
    }
}

/// The disk of a node.
#[derive(Debug)]
pub struct Disk(tempfile::TempDir);

impl Disk {
    /// An empty one.
    pub fn new() -> Self {
        Self(tempfile::tempdir().expect("a folder"))
    }

    /// How many tails it holds.
    pub fn tails(&self) -> usize {
        let volumes = std::fs::read_dir(self.0.path().join("tails")).expect("there was a tail");
        let in_volume = |volume: std::io::Result<std::fs::DirEntry>| {
            let entries = std::fs::read_dir(volume.expect("a folder").path()).expect("a folder");
            entries
                .filter(|entry| entry.as_ref().is_ok_and(|entry| entry.path().is_dir()))
                .count()
        };
        volumes.map(in_volume).sum()
    }
}

/// A wire of its own to the bucket.
pub fn wire(bucket: &Arc<MemoryBucket>, dice: &mut Dice) -> Arc<Wire> {
    Arc::new(Wire {
        bucket: Arc::clone(bucket),
        log: Log::default(),
        dead: AtomicBool::new(false),
        dice: AtomicU64::new(dice.below(u64::MAX >> 12)),
    })
}

/// Opens the volume in a folder on a new machine, with limits of every size.
pub async fn open(
    bucket: &Arc<MemoryBucket>,
    folder: &str,
    dice: &mut Dice,
    disk: Option<&Disk>,
) -> (Arc<Wire>, Volume) {
    let wire = wire(bucket, dice);
    let table_bytes_max = dice.pick(&[0, 5_000, 64 << 20]).expect("sizes");
    let commits = CommitLimits {
        cut_after: Duration::from_millis(1 + dice.below(60)),
        inline_bytes_max: 1 + dice.below(100_000),
        segment_bytes_max: 50_000 + dice.below(100_000),
        tree_flush_commits: 1 + dice.below(20),
        ..CommitLimits::default()
    };
    let options = OpenOptions {
        node_id: HostId::new("node").expect("a plain name"),
        read_only: false,
        claim: None,
        cache: CacheConfig {
            ram_bytes: dice.below(400_000),
            ..CacheConfig::default()
        },
        state_dir: disk.map(|disk| disk.0.path().to_path_buf()),
        spill: None,
        limits: Limits {
            table_bytes_max,
            dirty_bytes_max: 100_000 + dice.below(1_000_000),
            collect: CollectLimits {
                every: Duration::from_millis(1 + dice.below(30)),
                repack_every: Duration::from_millis(dice.below(50)),
                slack_bytes: 0,
                small_objects_max: dice.below(20) as usize,
                holds_every: Duration::from_millis(dice.below(50)),
            },
            ..Limits::default()
        },
        commits,
        clock: Arc::new(Ticks::default()),
    };
    let root: BucketRef = Arc::new(Prefixed::new(wire.clone(), format!("{folder}/")));
    let opened = Volume::open(root, options).await;
    (
        wire,
        opened.unwrap_or_else(|error| panic!("the volume does not open: {error}")),
    )
}
