//! What goes, what stays, and when.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use uuid::Uuid;

use super::*;
use crate::attr::{Caller, Fallocate};
use crate::bucket::memory::MemoryBucket;
use crate::bucket::{Bucket, BucketRef, ETag, ListPage, Object, Prefixed};
use crate::clock::Timestamp;
use crate::commit::CommitLimits;
use crate::head::{Head, HeadFile, HeadWriter, NewHead, Parameters};
use crate::ids::InodeNo;
use crate::limits::Limits;
use crate::ops::tests::Steps;
use crate::volume::{CacheConfig, OpenOptions, Volume};
use crate::volume_id::{NodeId, VolumeId};

const ALICE: Caller = Caller {
    uid: 1,
    gid: 1,
    umask: 0,
};

/// A volume in a bucket in memory.
struct World {
    bucket: Arc<MemoryBucket>,
    data_prefix: String,
}

impl World {
    async fn new() -> Self {
        let bucket = Arc::new(MemoryBucket::new());
        let head = Head::new(NewHead {
            name: "v".to_owned(),
            volume: VolumeId::of_name("v").unwrap(),
            uuid: Uuid::from_u128(5),
            capacity_bytes: 0,
            parameters: Parameters::default(),
            now: Timestamp::default(),
        });
        let file = HeadFile::new(Arc::clone(&bucket) as BucketRef, HeadWriter::new(Uuid::from_u128(6)));
        let head = file.create(head).await.unwrap();
        Self {
            bucket,
            data_prefix: head.data_prefix(),
        }
    }

    async fn open(&self) -> Volume {
        self.open_through(Arc::clone(&self.bucket) as BucketRef).await
    }

    async fn open_through(&self, bucket: BucketRef) -> Volume {
        let options = OpenOptions {
            node_id: NodeId::new("n").unwrap(),
            read_only: false,
            claim: None,
            cache: CacheConfig {
                ram_bytes: 0,
                ..CacheConfig::default()
            },
            state_dir: None,
            spill: None,
            limits: Limits::default(),
            commits: CommitLimits {
                cut_after: Duration::from_secs(3_600),
                ..CommitLimits::default()
            },
            clock: Arc::new(Steps::default()),
        };
        Volume::open(bucket, options).await.unwrap()
    }

    /// Keys of journal and segments, without the seals.
    async fn objects(&self) -> Vec<String> {
        self.keys(false).await
    }

    /// Keys of the seals.
    async fn seals(&self) -> Vec<String> {
        self.keys(true).await
    }

    async fn keys(&self, seals: bool) -> Vec<String> {
        let mut found = Vec::new();
        for key in self.bucket.keys() {
            let Some(short) = key
                .strip_prefix(&self.data_prefix)
                .filter(|short| ObjectId::parse(short).is_some())
            else {
                continue;
            };
            if is_seal(&self.bucket.get(&key, None).await.unwrap().body) == seals {
                found.push(short.to_owned());
            }
        }
        found
    }

    fn data(&self) -> Prefixed {
        Prefixed::new(Arc::clone(&self.bucket) as BucketRef, self.data_prefix.clone())
    }
}

async fn flush_tree(volume: &Volume) {
    volume.sync_all().await.unwrap();
    let commit = volume.mount().commit.clone().unwrap();
    commit.flush_tree().await.unwrap();
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

#[test]
fn keys_of_objects_are_read_back_and_others_are_none() {
    for object in [
        ObjectId::Journal(Epoch(3), JournalSeq(77)),
        ObjectId::Segment(Epoch(1), 0xabc),
    ] {
        assert_eq!(ObjectId::parse(&object.key()), Some(object));
    }
    for key in [
        "head",
        "j/1/2",
        "s/00/0000000000000001-0000000000000abd",
        "m/manifest/1",
        "j//",
        "s/zz/1-2",
    ] {
        assert_eq!(ObjectId::parse(key), None, "{key}");
    }
}

#[test]
fn an_overwritten_object_goes_only_after_the_tree_is_durable_and_its_counters_with_it() {
    run(async {
        let world = World::new().await;
        let volume = world.open().await;
        let ino = volume.create(InodeNo::ROOT, b"f", 0o600, ALICE).await.unwrap().ino;
        volume.write(ino, 0, Bytes::from(vec![1; 100_000])).await.unwrap();
        volume.fsync(ino).await.unwrap();
        volume.write(ino, 0, Bytes::from(vec![2; 100_000])).await.unwrap();
        volume.fsync(ino).await.unwrap();
        let before = world.objects().await;
        assert_eq!(before.len(), 2, "{before:?}");
        let mut collector = Collector::new(volume.mount(), false);
        collector.round().await.unwrap();
        assert_eq!(world.objects().await, before, "a replay would still need both");
        flush_tree(&volume).await;
        collector.round().await.unwrap();
        collector.round().await.unwrap();
        assert_eq!(world.objects().await, before[1..], "the first is dead");
        flush_tree(&volume).await;
        collector.round().await.unwrap();
        assert_eq!(
            collector.stats(ObjectId::parse(&before[0]).unwrap()).await.unwrap(),
            None
        );
        assert_eq!(volume.read(ino, 0, 100_000).await.unwrap().concat(), vec![2; 100_000]);
        volume.close().await.unwrap();
        let volume = world.open().await;
        assert_eq!(volume.read(ino, 0, 100_000).await.unwrap().concat(), vec![2; 100_000]);
    });
}

#[test]
fn an_object_with_one_live_byte_stays() {
    run(async {
        let world = World::new().await;
        let volume = world.open().await;
        let ino = volume.create(InodeNo::ROOT, b"f", 0o600, ALICE).await.unwrap().ino;
        volume.write(ino, 0, Bytes::from(vec![1; 100_000])).await.unwrap();
        volume.fsync(ino).await.unwrap();
        volume.fallocate(ino, Fallocate::PunchHole, 0, 99_999).await.unwrap();
        flush_tree(&volume).await;
        let mut collector = Collector::new(volume.mount(), false);
        for _ in 0..3 {
            collector.round().await.unwrap();
        }
        assert_eq!(volume.read(ino, 99_998, 10).await.unwrap().concat(), [0, 1]);
        volume.unlink(InodeNo::ROOT, b"f").await.unwrap();
        volume.forget(ino, 1);
        volume.release(ino);
        flush_tree(&volume).await;
        for _ in 0..2 {
            collector.round().await.unwrap();
            flush_tree(&volume).await;
        }
        volume.close().await.unwrap();
        assert_eq!(
            world.objects().await,
            Vec::<String>::new(),
            "an empty volume keeps no object"
        );
    });
}

#[test]
fn journal_objects_of_rows_alone_go_with_the_flush_and_none_is_left_by_a_close() {
    run(async {
        let world = World::new().await;
        let volume = world.open().await;
        for i in 0..20 {
            volume
                .mkdir(InodeNo::ROOT, format!("d{i}").as_bytes(), 0o700, ALICE)
                .await
                .unwrap();
            volume.sync_all().await.unwrap();
        }
        assert_eq!(world.objects().await.len(), 20);
        flush_tree(&volume).await;
        let mut collector = Collector::new(volume.mount(), false);
        collector.round().await.unwrap();
        assert_eq!(world.objects().await.len(), 0);
        volume.mkdir(InodeNo::ROOT, b"last", 0o700, ALICE).await.unwrap();
        volume.close().await.unwrap();
        assert_eq!(world.objects().await.len(), 0);
        let volume = world.open().await;
        assert_eq!(volume.statfs().inodes, 22);
    });
}

#[test]
fn what_a_crash_left_is_swept_and_seals_and_living_objects_stay() {
    run(async {
        let world = World::new().await;
        let volume = world.open().await;
        let ino = volume.create(InodeNo::ROOT, b"f", 0o600, ALICE).await.unwrap().ino;
        volume.write(ino, 0, Bytes::from(vec![1; 100_000])).await.unwrap();
        volume.fsync(ino).await.unwrap();
        volume.mkdir(InodeNo::ROOT, b"rows only", 0o700, ALICE).await.unwrap();
        volume.sync_all().await.unwrap();
        drop(volume);
        // A segment whose commit never came to be.
        let orphan = ObjectId::Segment(Epoch(1), 9);
        world
            .data()
            .put_if_absent(&orphan.key(), Bytes::from(vec![7; 10_000]))
            .await
            .unwrap();
        let volume = world.open().await;
        let found = world.objects().await;
        assert_eq!(found.len(), 3, "content, rows, segment: {found:?}");
        let seals = world.seals().await;
        volume.mkdir(InodeNo::ROOT, b"new", 0o700, ALICE).await.unwrap();
        flush_tree(&volume).await;
        let mut collector = Collector::new(volume.mount(), true);
        for _ in 0..3 {
            collector.round().await.unwrap();
        }
        assert_eq!(world.objects().await, found[..1], "the content");
        assert_eq!(world.seals().await, seals, "a seal is never deleted");
        assert_eq!(volume.read(ino, 0, 100_000).await.unwrap().concat(), vec![1; 100_000]);
        assert!(collector.sweep.is_none(), "nothing is listed again");
    });
}

/// A bucket whose journal is slow to read, and which tells how often it was.
#[derive(Debug)]
struct SlowJournal {
    bucket: Arc<MemoryBucket>,
    each: Duration,
    gets: watch::Sender<usize>,
}

#[async_trait]
impl Bucket for SlowJournal {
    async fn get(&self, key: &str, range: Option<std::ops::Range<u64>>) -> Result<Object, BucketError> {
        if key.contains("/j/") && range.is_some() {
            self.gets.send_modify(|gets| *gets += 1);
            tokio::time::sleep(self.each).await;
        }
        self.bucket.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.bucket.head(key).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.bucket.put_if_absent(key, body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.bucket.put_if_match(key, body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.bucket.delete(key).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.bucket.list(request).await
    }
}

/// Goal: a close waits for a few GETs of a pass at most, and what the pass has begun leaves nothing behind. Method: a thousand small
/// objects, of which a store that takes 200 ms for each GET is being asked when the volume is closed.
#[tokio::test(start_paused = true)]
async fn a_close_does_not_wait_until_a_thousand_small_objects_are_gathered() {
    let world = World::new().await;
    let volume = world.open().await;
    for i in 0..1_000 {
        let name = format!("f{i}");
        let made = volume.create(InodeNo::ROOT, name.as_bytes(), 0o600, ALICE).await;
        let ino = made.unwrap().ino;
        volume.write(ino, 0, Bytes::from(vec![1; 10_000])).await.unwrap();
        volume.fsync(ino).await.unwrap();
    }
    volume.close().await.unwrap();
    let before = world.objects().await;
    assert_eq!(before.len(), 1_000);
    let slow = Arc::new(SlowJournal {
        bucket: Arc::clone(&world.bucket),
        each: Duration::from_millis(200),
        gets: watch::Sender::new(0),
    });
    let volume = world.open_through(Arc::clone(&slow) as BucketRef).await;
    let mut gets = slow.gets.subscribe();
    gets.wait_for(|gets| *gets > 0).await.unwrap();
    let began = Instant::now();
    volume.close().await.unwrap();
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    assert!(*gets.borrow() < 100, "{} were read", *gets.borrow());
    assert_eq!(world.objects().await, before);
}
