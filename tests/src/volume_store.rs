//! A bucket in memory with one volume in it, opened as the engine opens it, for tests that call `Volume` themselves.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use bytes::Bytes;
use uuid::Uuid;
use volume::attr::Caller;
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{Bucket, BucketRef};
use volume::check::{CheckOptions, check};
use volume::clock::{Clock, Timestamp};
use volume::commit::CommitLimits;
use volume::format::seal::is_seal;
use volume::head::{Head, HeadFile, HeadWriter, NewHead, Parameters};
use volume::ids::{InodeNo, ObjectId};
use volume::limits::Limits;
use volume::volume::{CacheConfig, OpenOptions, Volume};
use volume::volume_id::{NodeId, VolumeId};

/// Who makes files.
pub const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// A clock that a test sets.
#[derive(Debug, Default)]
pub struct SetClock(AtomicI64);

impl SetClock {
    /// Shows so many seconds after 1970.
    pub fn at(seconds: i64) -> Arc<Self> {
        Arc::new(Self(AtomicI64::new(seconds)))
    }
}

impl Clock for SetClock {
    fn now(&self) -> Timestamp {
        Timestamp {
            seconds: self.0.load(Ordering::SeqCst),
            nanos: 0,
        }
    }
}

/// The bucket.
#[derive(Debug)]
pub struct VolumeStore {
    /// What is stored.
    pub memory: Arc<MemoryBucket>,
    data_prefix: String,
}

/// How this engine opens a volume.
pub fn options() -> OpenOptions {
    OpenOptions {
        node_id: NodeId::new("node").expect("a plain name"),
        read_only: false,
        claim: None,
        cache: CacheConfig::default(),
        state_dir: None,
        spill: None,
        limits: Limits::default(),
        commits: CommitLimits::default(),
        clock: SetClock::at(1_800_000_000),
    }
}

impl VolumeStore {
    /// A volume that was never written.
    ///
    /// # Panics
    /// Where the bucket in memory fails.
    pub async fn new() -> Self {
        Self::with(Parameters::default()).await
    }

    /// A volume that was never written, made with these parameters.
    ///
    /// # Panics
    /// Where the bucket in memory fails.
    pub async fn with(parameters: Parameters) -> Self {
        let memory = Arc::new(MemoryBucket::new());
        let head = Head::new(NewHead {
            name: "v".to_owned(),
            volume: VolumeId::of_name("v").expect("a plain name"),
            uuid: Uuid::from_u128(11),
            capacity_bytes: 0,
            parameters,
            now: Timestamp::default(),
        });
        let file = HeadFile::new(memory.clone(), HeadWriter::new(Uuid::from_u128(12)));
        let head = file.create(head).await.expect("a new head");
        Self {
            memory,
            data_prefix: head.data_prefix(),
        }
    }

    /// Opens the volume through `bucket`, which leads to what is stored here.
    ///
    /// # Panics
    /// Where it does not open.
    pub async fn open(&self, bucket: BucketRef, options: OpenOptions) -> Volume {
        Volume::open(bucket, options).await.expect("the volume opens")
    }

    /// The stored objects that hold content or rows, with their sizes; without seals, the tree and the head.
    ///
    /// # Panics
    /// Where the bucket in memory fails.
    pub async fn objects(&self) -> Vec<(ObjectId, u64)> {
        let mut objects = Vec::new();
        for key in self.memory.keys() {
            let short = key.strip_prefix(&self.data_prefix).and_then(ObjectId::parse);
            let Some(object) = short else { continue };
            let found = self.memory.get(&key, None).await.expect("it is listed");
            if !is_seal(&found.body) {
                objects.push((object, found.size_bytes));
            }
        }
        objects
    }

    /// Bytes of them.
    pub async fn stored_bytes(&self) -> u64 {
        self.objects().await.iter().map(|(_, size)| size).sum()
    }

    /// Reads and verifies every row and frame; returns how many objects hold content.
    ///
    /// # Panics
    /// Where anything is wrong.
    pub async fn check(&self, context: &str) -> u64 {
        let mut wrong = Vec::new();
        let bucket: BucketRef = self.memory.clone();
        let report = check(bucket, CheckOptions::default(), &mut |damage| wrong.push(damage)).await;
        assert!(wrong.is_empty(), "{context}: {wrong:?}");
        report.expect("the volume can be read").objects
    }
}

/// A new file with this content.
///
/// # Panics
/// Where the volume fails.
pub async fn make_file(volume: &Volume, name: &str, content: &[u8]) -> InodeNo {
    let made = volume.create(InodeNo::ROOT, name.as_bytes(), 0o600, CALLER).await;
    let ino = made.expect("a new file").ino;
    volume
        .write(ino, 0, Bytes::copy_from_slice(content))
        .await
        .expect("it is written");
    ino
}

/// The whole content of a file.
///
/// # Panics
/// Where the volume fails.
pub async fn content_of(volume: &Volume, ino: InodeNo) -> Vec<u8> {
    volume.read(ino, 0, u32::MAX).await.expect("it is read").concat()
}
