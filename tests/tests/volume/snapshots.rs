//! What snapshots, clones and restores cost, and how long they take at a store far away.

use std::sync::Arc;
use std::time::Duration;

use tests::counting_bucket::{CountingBucket, Counts};
use tests::environment::number;
use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::volume_store::{CALLER, SetClock, content_of, make_file, options};
use tokio::time::Instant;
use uuid::Uuid;
use volume::admin::{Admin, CapacityRange, CreateVolume, Led};
use volume::bucket::BucketRef;
use volume::bucket::memory::MemoryBucket;
use volume::clock::{Clock, Timestamp};
use volume::head::Parameters;
use volume::ids::InodeNo;
use volume::lineage::Source;
use volume::snapshot::{Family, NewClone};
use volume::volume::Volume;
use volume::volume_id::{SnapshotId, VolumeId};

use crate::say;

/// 20 ms: what a proxy in front of S3 adds to a PUT; to the others it adds less.
const LATENCY: Duration = Duration::from_millis(20);

/// Under 20 requests.
const REQUESTS_MAX: u64 = 19;

/// A cluster behind a slow wire that counts.
struct Far {
    wire: Arc<CountingBucket>,
    admin: Admin,
}

impl Far {
    fn new() -> Self {
        let latency = LATENCY..LATENCY + Duration::from_micros(1);
        let slow = Faults {
            latency,
            ..Faults::none()
        };
        let faulty = FaultyBucket::new(Arc::new(MemoryBucket::new()), 1, slow);
        let wire = Arc::new(CountingBucket::new(Arc::new(faulty)));
        let bucket: BucketRef = wire.clone();
        Self {
            wire,
            admin: Admin::new(bucket, Uuid::new_v4()),
        }
    }

    fn family(&self) -> Family {
        self.admin.family()
    }

    async fn open(&self, name: &str) -> Volume {
        let volume = VolumeId::parse(name).expect("a plain name");
        let root = self.admin.volume_root(&volume);
        Volume::open(root, options()).await.expect("the volume opens")
    }

    async fn clone(&self, name: &str, source: Source) {
        let new = NewClone {
            volume: new_volume(name),
            folder: name.to_owned(),
            source,
        };
        self.family().clone_volume(&new).await.expect("a clone is made");
    }

    /// Does something, and tells what it cost and how long it took.
    async fn measured(&self, what: &str, work: impl Future<Output = ()>) -> (Counts, Duration) {
        let (before, began) = (self.wire.counts(), Instant::now());
        work.await;
        let (counts, took) = (self.wire.counts().since(&before), began.elapsed());
        say(&format!(
            "{what}: {} requests in {} ms: {counts:?}",
            counts.total(),
            took.as_millis()
        ));
        (counts, took)
    }
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

fn cheap(what: &str, (counts, took): (Counts, Duration)) {
    assert!(counts.total() <= REQUESTS_MAX, "{what} made {counts:?}");
    assert!(took < Duration::from_secs(1), "{what} took {took:?}");
}

/// Clones, snapshots and restores of a volume of 20,000 files cost under 20 requests and less than a second at 20 ms each,
/// as of an empty one; so does a snapshot while the volume is mounted and its tree is behind the journal, but for the
/// commits that may be under way. `PANNIER_TEST_FILES` is another number of files.
#[tokio::test(start_paused = true)]
async fn a_clone_a_snapshot_and_a_restore_cost_the_same_whatever_the_volume_holds() {
    for files in [1, number("PANNIER_TEST_FILES").unwrap_or(20_000)] {
        let far = Far::new();
        far.admin.create(&new_volume("v")).await.expect("a new volume");
        let volume = far.open("v").await;
        for i in 0..files {
            let made = volume
                .create(InodeNo::ROOT, format!("f{i}").as_bytes(), 0o600, CALLER)
                .await
                .expect("a new file");
            volume.release(made.ino);
        }
        volume.close().await.expect("it is ours");
        let source = || Source::Volume(VolumeId::parse("v").expect("a plain name"));
        let id = SnapshotId::parse("s").expect("a plain name");
        let cost = far.measured("clone", far.clone("c", source())).await;
        cheap("a clone", cost);
        let snapshot = async {
            let now = SetClock::at(1_800_000_000).now();
            far.family().snapshot("v", "s", now).await.expect("a snapshot is made");
        };
        cheap("a snapshot", far.measured("snapshot", snapshot).await);
        let cost = far
            .measured("restore", far.clone("r", Source::Snapshot(id.clone())))
            .await;
        cheap("a restore", cost);
        for name in ["c", "r"] {
            let opening = async {
                let copy = far.open(name).await;
                let found = copy.statfs().inodes;
                assert_eq!(found, files + 1, "files and root");
                copy.close().await.expect("it is ours");
            };
            far.measured("first mount and unmount of a clone", opening).await;
        }
        let volume = far.open("v").await;
        for i in 0..50 {
            let name = format!("new{i}");
            make_file(&volume, &name, &[7; 10_000]).await;
            volume.sync_all().await.expect("it is ours");
        }
        let busy = async {
            let now = SetClock::at(1_800_000_000).now();
            far.family().snapshot("v", "t", now).await.expect("a snapshot is made");
        };
        let (counts, took) = far.measured("snapshot of a mounted volume", busy).await;
        assert!(counts.total() <= REQUESTS_MAX + 20, "{counts:?}");
        assert!(took < Duration::from_secs(1), "{took:?}");
        let gone = async {
            far.family().delete_snapshot(&id).await.expect("it can be deleted");
        };
        far.measured("deletion of a snapshot", gone).await;
        volume.close().await.expect("it is ours");
    }
}

/// Worlds of the run below. More are for long runs.
const SEEDS: std::ops::Range<u64> = 0..8;

/// Does something again until the store lets it.
async fn until_done<T, E: std::fmt::Display>(seed: u64, work: impl AsyncFn() -> Result<T, E>) -> T {
    for _ in 0..100 {
        match work().await {
            Ok(done) => return done,
            Err(error) => say(&format!("seed {seed}: again, because {error}")),
        }
    }
    panic!("seed {seed}: a hundred tries have failed");
}

/// Through every fault of a store, repeated calls make each snapshot and clone once and whole, and deletions leave nothing.
#[tokio::test(start_paused = true)]
async fn repeated_calls_come_through_every_fault_and_deletions_leave_nothing() {
    for seed in SEEDS {
        let memory = Arc::new(MemoryBucket::new());
        let faulty: BucketRef = Arc::new(FaultyBucket::new(memory.clone(), seed, Faults::all()));
        let (sound, shaken) = (
            Admin::new(memory.clone(), Uuid::new_v4()),
            Admin::new(faulty, Uuid::new_v4()),
        );
        sound.create(&new_volume("v")).await.expect("a new volume");
        let root = |admin: &Admin, name: &str| admin.volume_root(&VolumeId::parse(name).expect("a plain name"));
        let volume = Volume::open(root(&sound, "v"), options())
            .await
            .expect("the volume opens");
        let ino = make_file(&volume, "f", &[0; 50_000]).await;
        for byte in 1..4_u8 {
            let content = bytes::Bytes::from(vec![byte; 50_000]);
            volume.write(ino, 0, content).await.expect("it is ours");
            volume.fsync(ino).await.expect("it is ours");
            let now = SetClock::at(1_800_000_000).now();
            let name = format!("s{byte}");
            let family = shaken.family();
            until_done(seed, async || family.snapshot("v", &name, now).await).await;
        }
        for byte in 1..4_u8 {
            let id = SnapshotId::parse(&format!("s{byte}")).expect("a plain name");
            let folder = format!("c{byte}");
            let family = shaken.family();
            let new = NewClone {
                volume: new_volume(&folder),
                folder: folder.clone(),
                source: Source::Snapshot(id.clone()),
            };
            until_done(seed, async || family.clone_volume(&new).await).await;
            let copy = Volume::open(root(&sound, &folder), options())
                .await
                .expect("the clone opens");
            assert_eq!(content_of(&copy, ino).await, vec![byte; 50_000], "seed {seed}");
            copy.close().await.expect("it is ours");
            until_done(seed, async || family.delete_snapshot(&id).await).await;
        }
        volume.close().await.expect("it is ours");
        // What was reported lost takes effect.
        tokio::time::sleep(Duration::from_secs(1)).await;
        for name in ["v", "c1", "c2", "c3"] {
            let volume = VolumeId::parse(name).expect("a plain name");
            until_done(seed, async || shaken.delete(&volume, Led::Ignore).await).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        for name in ["v", "c1", "c2", "c3"] {
            let volume = VolumeId::parse(name).expect("a plain name");
            sound.delete(&volume, Led::Ignore).await.expect("it can be deleted");
        }
        assert_eq!(memory.keys(), Vec::<String>::new(), "seed {seed}");
    }
}
