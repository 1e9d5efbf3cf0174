//! Snapshots and clones on a bucket in memory: what is in them, what they keep, and what is freed with them.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::*;
use crate::admin::{Admin, CapacityRange, CreateVolume, Led};
use crate::attr::Caller;
use crate::bucket::Bucket;
use crate::bucket::memory::MemoryBucket;
use crate::check::{CheckOptions, check};
use crate::commit::CommitLimits;
use crate::gc::Collector;
use crate::ids::InodeNo;
use crate::limits::Limits;
use crate::ops::tests::Steps;
use crate::volume::{CacheConfig, OpenOptions, Volume};
use crate::volume_id::NodeId;

const ALICE: Caller = Caller {
    uid: 1,
    gid: 1,
    umask: 0,
};

/// More than fits into an inode's own row, so it lies in frames.
const BYTES: usize = 100_000;

/// A cluster in a bucket in memory.
struct World {
    memory: Arc<MemoryBucket>,
    admin: Admin,
}

impl World {
    fn new() -> Self {
        let memory = Arc::new(MemoryBucket::new());
        let cluster: BucketRef = Arc::new(Prefixed::new(memory.clone(), "c/"));
        Self {
            memory,
            admin: Admin::new(cluster, Uuid::from_u128(1)),
        }
    }

    async fn create(&self, name: &str) {
        self.admin.create(&new_volume(name)).await.unwrap();
    }

    fn root(&self, name: &str) -> BucketRef {
        self.admin.volume_root(&id(name))
    }

    async fn open(&self, name: &str) -> Volume {
        self.open_through(self.root(name)).await
    }

    async fn open_through(&self, root: BucketRef) -> Volume {
        let options = OpenOptions {
            node_id: NodeId::new("n").unwrap(),
            read_only: false,
            claim: None,
            cache: CacheConfig {
                ram_bytes: 0,
                ..CacheConfig::default()
            },
            limits: Limits::default(),
            commits: CommitLimits {
                cut_after: Duration::from_secs(3_600),
                ..CommitLimits::default()
            },
            state_dir: None,
            spill: None,
            clock: Arc::new(Steps::default()),
        };
        Volume::open(root, options).await.unwrap()
    }

    async fn snapshot(&self, volume: &str, name: &str) -> Result<Snapshot, AdminError> {
        self.admin.family().snapshot(volume, name, Timestamp::default()).await
    }

    async fn clone(&self, name: &str, source: Source) -> Result<Head, AdminError> {
        let new = NewClone {
            volume: new_volume(name),
            folder: name.to_owned(),
            source,
        };
        self.admin.family().clone_volume(&new).await
    }

    async fn restore(&self, snapshot: &str, name: &str) -> Volume {
        self.clone(name, Source::Snapshot(SnapshotId::parse(snapshot).unwrap()))
            .await
            .unwrap();
        self.open(name).await
    }

    async fn delete_snapshot(&self, name: &str) {
        let id = SnapshotId::parse(name).unwrap();
        self.admin.family().delete_snapshot(&id).await.unwrap();
    }

    async fn delete(&self, name: &str) {
        self.admin.delete(&id(name), Led::Ignore).await.unwrap();
    }

    async fn check(&self, name: &str) {
        let mut wrong = Vec::new();
        let report = check(self.root(name), CheckOptions::default(), &mut |damage| {
            wrong.push(damage)
        })
        .await;
        assert_eq!(wrong, [], "{name}");
        report.unwrap();
    }

    fn keys(&self, part: &str) -> Vec<String> {
        self.memory
            .keys()
            .into_iter()
            .filter(|key| key.contains(part))
            .collect()
    }
}

fn id(name: &str) -> VolumeId {
    VolumeId::parse(name).unwrap()
}

fn new_volume(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        capacity: CapacityRange::default(),
        parameters: Parameters::default(),
        now: Timestamp::default(),
    }
}

fn of_volume(name: &str) -> Source {
    Source::Volume(id(name))
}

async fn write(volume: &Volume, name: &str, byte: u8) {
    let ino = match volume.lookup(InodeNo::ROOT, name.as_bytes()).await {
        Ok(attr) => attr.ino,
        Err(_) => {
            let made = volume
                .create(InodeNo::ROOT, name.as_bytes(), 0o600, ALICE)
                .await
                .unwrap();
            made.ino
        }
    };
    volume.write(ino, 0, Bytes::from(vec![byte; BYTES])).await.unwrap();
    volume.fsync(ino).await.unwrap();
}

/// The byte that a file is full of; `None` if there is no such file.
async fn read(volume: &Volume, name: &str) -> Option<u8> {
    let attr = volume.lookup(InodeNo::ROOT, name.as_bytes()).await.ok()?;
    let content = volume.read(attr.ino, 0, u32::MAX).await.unwrap().concat();
    assert!(content.len() == BYTES && content.iter().all(|byte| *byte == content[0]));
    Some(content[0])
}

async fn flush_tree(volume: &Volume) {
    volume.sync_all().await.unwrap();
    volume.mount().commit.clone().unwrap().flush_tree().await.unwrap();
}

/// Everything that may go goes.
async fn collect(volume: &Volume) -> Collector {
    let mut collector = Collector::new(volume.mount(), false);
    for _ in 0..4 {
        flush_tree(volume).await;
        collector.round().await.unwrap();
    }
    collector
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(test);
}

/// Goal: a snapshot of a mounted volume is what was fsynced before the call, whatever is written, collected and flushed later.
/// Method: the tree has an older state, then a newer one, then the collector deletes all it may.
#[test]
fn a_snapshot_of_a_mounted_volume_holds_every_fsync_before_it_and_nothing_after() {
    run(async {
        let world = World::new();
        world.create("v").await;
        let volume = world.open("v").await;
        write(&volume, "old", 1).await;
        flush_tree(&volume).await;
        write(&volume, "old", 2).await;
        write(&volume, "new", 3).await;
        let made = world.snapshot("v", "s").await.unwrap();
        assert_eq!(made, world.snapshot("v", "s").await.unwrap(), "the same call again");
        write(&volume, "old", 4).await;
        write(&volume, "later", 5).await;
        volume.unlink(InodeNo::ROOT, b"new").await.unwrap();
        collect(&volume).await;
        let copy = world.restore("s", "copy").await;
        let found = (
            read(&copy, "old").await,
            read(&copy, "new").await,
            read(&copy, "later").await,
        );
        assert_eq!(found, (Some(2), Some(3), None));
        let found = (
            read(&volume, "old").await,
            read(&volume, "new").await,
            read(&volume, "later").await,
        );
        assert_eq!(found, (Some(4), None, Some(5)));
        copy.close().await.unwrap();
        volume.close().await.unwrap();
        world.check("v").await;
        world.check("copy").await;
    });
}

/// Goal: a clone is a volume of its own: neither sees what is written to the other, each can be opened again and again, and
/// what it was cloned from may go first.
#[test]
fn a_clone_and_its_source_live_apart_and_either_may_go_first() {
    run(async {
        let world = World::new();
        world.create("v").await;
        let volume = world.open("v").await;
        write(&volume, "f", 1).await;
        let head = world.clone("c", of_volume("v")).await.unwrap();
        assert_eq!(
            head.uuid,
            world.clone("c", of_volume("v")).await.unwrap().uuid,
            "the same call again"
        );
        write(&volume, "f", 2).await;
        collect(&volume).await;
        for round in 0..3 {
            let copy = world.open("c").await;
            assert_eq!(read(&copy, "f").await, Some(1));
            let own = format!("own{round}");
            write(&copy, &own, 7).await;
            if round == 1 {
                // A crash.
                drop(copy);
            } else {
                collect(&copy).await;
                copy.close().await.unwrap();
            }
            world.check("c").await;
        }
        assert_eq!(read(&volume, "own0").await, None);
        volume.close().await.unwrap();
        world.delete("v").await;
        assert!(matches!(
            world.admin.get(&id("v")).await,
            Err(AdminError::NotFound { .. })
        ));
        let copy = world.open("c").await;
        let found = (read(&copy, "f").await, read(&copy, "own1").await);
        assert_eq!(found, (Some(1), Some(7)));
        copy.close().await.unwrap();
        // The name is free again, and the new volume has nothing of the old one.
        world.create("v").await;
        let volume = world.open("v").await;
        assert_eq!(read(&volume, "f").await, None);
        volume.close().await.unwrap();
        world.delete("v").await;
        world.check("c").await;
        world.delete("c").await;
        assert_eq!(
            world.keys("/v/"),
            Vec::<String>::new(),
            "nothing is left of any of them"
        );
    });
}

/// Goal: what only a deleted snapshot kept is freed, by the mount that writes the volume and by a later one.
#[test]
fn a_deleted_snapshot_gives_its_space_back() {
    run(async {
        let world = World::new();
        world.create("v").await;
        let volume = world.open("v").await;
        write(&volume, "f", 1).await;
        collect(&volume).await;
        let objects = |world: &World| world.keys("/j/").len() + world.keys("/s/").len();
        let before = objects(&world);
        world.snapshot("v", "s").await.unwrap();
        for byte in 2..6 {
            write(&volume, "f", byte).await;
        }
        let mut collector = collect(&volume).await;
        assert_eq!(objects(&world), before + 1, "that of the snapshot, and the newest");
        world.delete_snapshot("s").await;
        world.delete_snapshot("s").await;
        collector.look_at_holds().await.unwrap();
        for _ in 0..3 {
            collector.round().await.unwrap();
            flush_tree(&volume).await;
        }
        assert_eq!(objects(&world), before);
        // The same, with nobody there when the snapshot goes.
        world.snapshot("v", "s").await.unwrap();
        write(&volume, "f", 7).await;
        collect(&volume).await;
        volume.close().await.unwrap();
        world.delete_snapshot("s").await;
        let volume = world.open("v").await;
        write(&volume, "g", 8).await;
        collect(&volume).await;
        assert_eq!(world.keys("/s/").len() + contents(&world).await, 2, "one for each file");
        assert_eq!(read(&volume, "f").await, Some(7));
        volume.close().await.unwrap();
        assert!(matches!(
            world
                .admin
                .family()
                .find_snapshot(&SnapshotId::parse("s").unwrap())
                .await,
            Err(AdminError::NoSnapshot { .. })
        ));
    });
}

/// Journal objects that are no seals.
async fn contents(world: &World) -> usize {
    let mut count = 0;
    for key in world.keys("/j/") {
        let body = world.memory.get(&key, None).await.unwrap().body;
        count += usize::from(!crate::format::seal::is_seal(&body));
    }
    count
}

/// Goal: clones of clones and of snapshots of clones, mounted or never mounted, are what their source was.
#[test]
fn clones_of_clones_and_snapshots_of_clones_are_what_their_source_was() {
    run(async {
        let world = World::new();
        world.create("a").await;
        let a = world.open("a").await;
        write(&a, "a", 1).await;
        world.clone("b", of_volume("a")).await.unwrap();
        write(&a, "a", 9).await;
        // Of one that nobody has ever mounted.
        world.clone("c", of_volume("b")).await.unwrap();
        world.snapshot("b", "early").await.unwrap();
        let b = world.open("b").await;
        write(&b, "b", 2).await;
        world.snapshot("b", "late").await.unwrap();
        write(&b, "b", 8).await;
        collect(&a).await;
        collect(&b).await;
        let c = world.open("c").await;
        assert_eq!((read(&c, "a").await, read(&c, "b").await), (Some(1), None));
        let d = world.restore("early", "d").await;
        assert_eq!((read(&d, "a").await, read(&d, "b").await), (Some(1), None));
        a.close().await.unwrap();
        b.close().await.unwrap();
        world.delete("a").await;
        world.delete("b").await;
        let e = world.restore("late", "e").await;
        assert_eq!((read(&e, "a").await, read(&e, "b").await), (Some(1), Some(2)));
        for snapshot in ["early", "late"] {
            world.delete_snapshot(snapshot).await;
        }
        for (name, volume) in [("c", c), ("d", d), ("e", e)] {
            write(&volume, name, 3).await;
            collect(&volume).await;
            volume.close().await.unwrap();
            world.check(name).await;
            world.delete(name).await;
        }
        assert_eq!(world.memory.keys(), Vec::<String>::new(), "nothing is left");
    });
}

/// Goal: what cannot be is refused, and leaves nothing behind.
#[test]
fn a_taken_name_a_missing_source_and_too_little_room_are_refused() {
    run(async {
        let world = World::new();
        world.create("v").await;
        world.create("w").await;
        world.snapshot("v", "s").await.unwrap();
        let taken = world.snapshot("w", "s").await;
        assert!(matches!(taken, Err(AdminError::SnapshotExists { .. })), "{taken:?}");
        let missing = world.snapshot("x", "t").await;
        assert!(matches!(missing, Err(AdminError::NotFound { .. })), "{missing:?}");
        let missing = world
            .clone("y", Source::Snapshot(SnapshotId::parse("t").unwrap()))
            .await;
        assert!(matches!(missing, Err(AdminError::NoSnapshot { .. })), "{missing:?}");
        world.clone("c", of_volume("v")).await.unwrap();
        let other = world.clone("c", of_volume("w")).await;
        assert!(
            matches!(other, Err(AdminError::AlreadyExists { what: "source", .. })),
            "{other:?}"
        );
        let plain = world.admin.create(&new_volume("c")).await;
        assert!(
            matches!(plain, Err(AdminError::AlreadyExists { what: "source", .. })),
            "{plain:?}"
        );
        world.admin.set_capacity(&id("w"), 1_000).await.unwrap();
        let new = NewClone {
            volume: CreateVolume {
                capacity: CapacityRange {
                    required_bytes: 999,
                    limit_bytes: 0,
                },
                ..new_volume("z")
            },
            folder: "z".to_owned(),
            source: of_volume("w"),
        };
        let small = world.admin.family().clone_volume(&new).await;
        assert!(matches!(small, Err(AdminError::Smaller { .. })), "{small:?}");
        world.delete_snapshot("s").await;
        for name in ["v", "w", "c"] {
            world.delete(name).await;
        }
        assert_eq!(world.memory.keys(), Vec::<String>::new(), "nothing is left");
    });
}

/// Goal: ten makers at once make one snapshot and one clone, and leave one hold and one mark for each.
#[test]
fn ten_makers_at_once_make_one() {
    run(async {
        let world = World::new();
        world.create("v").await;
        let volume = world.open("v").await;
        write(&volume, "f", 1).await;
        let snapshots = futures::future::join_all((0..10).map(|_| world.snapshot("v", "s"))).await;
        let first = snapshots[0].as_ref().unwrap();
        assert!(snapshots.iter().all(|made| made.as_ref().unwrap() == first));
        let clones = futures::future::join_all((0..10).map(|_| world.clone("c", of_volume("v")))).await;
        let first = clones[0].as_ref().unwrap().uuid;
        assert!(clones.iter().all(|made| made.as_ref().unwrap().uuid == first));
        let mount = volume.mount();
        let mut holds = HoldsFile::new(mount.bucket.clone(), HeadWriter::new(Uuid::from_u128(3)));
        let holds = holds.read().await.unwrap();
        assert_eq!(holds.holds.len(), 2, "{holds:?}");
        assert!(holds.holds.iter().all(|hold| !hold.pending));
        volume.close().await.unwrap();
        world.delete_snapshot("s").await;
        world.delete("v").await;
        world.check("c").await;
        world.delete("c").await;
        assert_eq!(world.memory.keys(), Vec::<String>::new());
    });
}

/// A bucket whose deletions wait while it is shut.
#[derive(Debug)]
struct Gate {
    inner: BucketRef,
    open: tokio::sync::watch::Sender<bool>,
}

#[async_trait::async_trait]
impl Bucket for Gate {
    async fn get(&self, key: &str, range: Option<std::ops::Range<u64>>) -> Result<crate::bucket::Object, BucketError> {
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<crate::bucket::ObjectMeta, BucketError> {
        self.inner.head(key).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.inner.put_if_absent(key, body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.inner.put_if_match(key, body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.open.subscribe().wait_for(|open| *open).await.unwrap();
        self.inner.delete(key).await
    }

    async fn list(&self, request: &ListRequest) -> Result<crate::bucket::ListPage, BucketError> {
        self.inner.list(request).await
    }
}

/// Goal: a collector that read the holds before a snapshot put its own, and deletes afterwards, takes nothing that the
/// snapshot needs. Method: its deletions are stopped on their way, and go on when the snapshot is there.
#[test]
fn a_collector_that_looked_just_before_the_hold_takes_nothing_from_the_snapshot() {
    run(async {
        let world = World::new();
        world.create("v").await;
        let gate = Arc::new(Gate {
            inner: world.memory.clone(),
            open: tokio::sync::watch::Sender::new(true),
        });
        let volume = world
            .open_through(Arc::new(Prefixed::new(gate.clone(), "c/v/v/")))
            .await;
        write(&volume, "f", 1).await;
        write(&volume, "f", 2).await;
        volume.mkdir(InodeNo::ROOT, b"rows only", 0o700, ALICE).await.unwrap();
        flush_tree(&volume).await;
        let before = contents(&world).await;
        let mut collector = Collector::new(volume.mount(), false);
        gate.open.send_replace(false);
        let collecting = tokio::spawn(async move {
            for _ in 0..3 {
                collector.round().await.unwrap();
            }
        });
        for _ in 0..1_000 {
            tokio::task::yield_now().await;
        }
        assert_eq!(contents(&world).await, before, "the deletions are on their way");
        write(&volume, "g", 3).await;
        world.snapshot("v", "s").await.unwrap();
        write(&volume, "f", 4).await;
        write(&volume, "g", 5).await;
        gate.open.send_replace(true);
        collecting.await.unwrap();
        assert!(contents(&world).await < before + 3, "something has gone");
        collect(&volume).await;
        let copy = world.restore("s", "copy").await;
        assert_eq!((read(&copy, "f").await, read(&copy, "g").await), (Some(2), Some(3)));
        copy.lookup(InodeNo::ROOT, b"rows only").await.unwrap();
        copy.close().await.unwrap();
        world.check("copy").await;
        volume.close().await.unwrap();
        world.check("v").await;
    });
}

/// Goal: while a hold's state is unknown nothing is deleted; a hold whose maker died is taken away, and then it is.
#[tokio::test(start_paused = true)]
async fn a_pending_hold_keeps_everything_and_one_that_was_left_goes() {
    let world = World::new();
    world.create("v").await;
    let volume = world.open("v").await;
    write(&volume, "f", 1).await;
    let mount = volume.mount();
    let mut holds = HoldsFile::new(mount.bucket.clone(), HeadWriter::new(Uuid::from_u128(3)));
    let left = pending(Uuid::from_u128(4), HeldFor::Snapshot(SnapshotId::parse("s").unwrap()));
    holds.update(|holds| holds.put(left.clone())).await.unwrap();
    for byte in 2..5 {
        write(&volume, "f", byte).await;
    }
    let mut collector = collect(&volume).await;
    assert_eq!(contents(&world).await, 4, "nothing has gone");
    tokio::time::sleep(Duration::from_secs(1_000)).await;
    for _ in 0..4 {
        collector.round().await.unwrap();
        flush_tree(&volume).await;
    }
    assert_eq!(contents(&world).await, 1, "only the newest is left");
    assert_eq!(holds.read().await.unwrap().holds, []);
    assert_eq!(read(&volume, "f").await, Some(4));
    volume.close().await.unwrap();
}

/// Goal: who made a snapshot so slowly that its hold was taken away has made none; made again, it is there once.
#[test]
fn a_record_whose_hold_was_taken_away_is_no_snapshot() {
    run(async {
        let world = World::new();
        world.create("v").await;
        let made = world.snapshot("v", "s").await.unwrap();
        let data = data_at(&world.admin.family().folder, "v", made.uuid);
        let mut holds = HoldsFile::new(data, HeadWriter::new(Uuid::from_u128(3)));
        let take = |holds: &mut crate::holds::Holds| {
            holds.release(made.hold);
            Ok::<_, HoldsError>(())
        };
        holds.update(take).await.unwrap();
        let cloned = world.clone("c", Source::Snapshot(made.id.clone())).await;
        assert!(matches!(cloned, Err(AdminError::NoSnapshot { .. })), "{cloned:?}");
        let again = world.snapshot("v", "s").await.unwrap();
        assert_ne!(again.hold, made.hold);
        assert_eq!(holds.read().await.unwrap().holds.len(), 1);
        world.clone("c", Source::Snapshot(made.id)).await.unwrap();
    });
}
