//! Snapshots and clones at a store in trouble.

use std::sync::Arc;
use std::time::Duration;

use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::volume_store::{SetClock, content_of, make_file, options};
use uuid::Uuid;
use volume::admin::{Admin, CapacityRange, CreateVolume, Led};
use volume::bucket::BucketRef;
use volume::bucket::memory::MemoryBucket;
use volume::clock::{Clock, Timestamp};
use volume::head::Parameters;
use volume::lineage::Source;
use volume::snapshot::NewClone;
use volume::volume::Volume;
use volume::volume_id::{SnapshotId, VolumeId};

use crate::say;

fn new_volume(name: &str) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        capacity: CapacityRange::default(),
        parameters: Parameters::default(),
        now: Timestamp::default(),
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
