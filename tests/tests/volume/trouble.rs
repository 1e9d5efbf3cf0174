//! The store in trouble: storms of errors, slow and cut answers, lost replies, an outage of an hour.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::history::Dice;
use tests::volume_store::{CALLER, VolumeStore, content_of, make_file, options};
use tokio::time::{Instant, timeout};
use volume::error::FsError;
use volume::head::Parameters;
use volume::ids::InodeNo;
use volume::limits::Limits;
use volume::volume::{OpenOptions, Volume};

/// Worlds of the storm.
const SEEDS: std::ops::Range<u64> = 0..6;

/// A third of all requests fails, some of them after their effect; bodies are cut, answers late.
fn storm() -> Faults {
    Faults {
        latency: Duration::from_millis(5)..Duration::from_millis(800),
        fail_before: 150,
        fail_after: 80,
        late_effect: 30,
        late_by: Duration::from_secs(20),
        stale_precondition: 40,
        cut_body: 60,
    }
}

/// Whatever the store does, an fsync that returned is kept, what was written is read back, and nothing needs a remount.
#[tokio::test(start_paused = true)]
async fn a_storm_of_errors_loses_no_fsync_and_ends_without_a_remount() {
    for seed in SEEDS {
        let store = VolumeStore::new().await;
        let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), seed, Faults::none()));
        let volume = store.open(faulty.clone(), options()).await;
        let mut dice = Dice::new(seed);
        let mut content = dice.bytes(2 << 20);
        let ino = make_file(&volume, "f", &content).await;
        volume.sync_all().await.unwrap();
        faulty.set_faults(storm());
        for step in 0..60 {
            let (offset, data) = (dice.below(1 << 20) as usize, dice.bytes(9_000));
            content[offset..offset + data.len()].copy_from_slice(&data);
            volume.write(ino, offset as u64, Bytes::from(data)).await.unwrap();
            let synced = timeout(Duration::from_secs(3_600), volume.fsync(ino)).await;
            synced
                .unwrap_or_else(|_| panic!("seed {seed}: the fsync of step {step} is stuck"))
                .unwrap();
        }
        faulty.crash();
        drop(volume);
        let volume = store.open(store.memory.clone(), options()).await;
        assert!(content_of(&volume, ino).await == content, "seed {seed}");
        volume.close().await.unwrap();
        store.check(&format!("seed {seed}")).await;
    }
}

/// With the store away for an hour: what is in RAM is read at once, writers wait at their bound, none fails; when it is back
/// all goes on, and all of it is kept.
#[tokio::test(start_paused = true)]
async fn an_outage_of_an_hour_blocks_writers_within_bounds_and_fails_nobody() {
    const DIRTY_BYTES_MAX: u64 = 8 << 20;
    const PIECE: usize = 256 << 10;
    let store = VolumeStore::new().await;
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let bounded = OpenOptions {
        limits: Limits {
            dirty_bytes_max: DIRTY_BYTES_MAX,
            ..Limits::default()
        },
        ..options()
    };
    let volume = store.open(faulty.clone(), bounded).await;
    let cached = make_file(&volume, "cached", &[5; 300_000]).await;
    let written = make_file(&volume, "written", &[]).await;
    volume.sync_all().await.unwrap();
    faulty.set_available(false);
    let begun = Instant::now();
    let writer = {
        let volume = volume.clone();
        tokio::spawn(async move {
            for piece in 0..100u64 {
                let data = Bytes::from(vec![piece as u8; PIECE]);
                volume.write(written, piece * PIECE as u64, data).await.unwrap();
            }
            volume.fsync(written).await.unwrap();
        })
    };
    while begun.elapsed() < Duration::from_secs(3_600) {
        tokio::time::sleep(Duration::from_secs(60)).await;
        let asked = Instant::now();
        assert!(volume.getattr(InodeNo::ROOT).await.is_ok());
        assert_eq!(content_of(&volume, cached).await, vec![5; 300_000]);
        assert!(asked.elapsed() < Duration::from_millis(50), "answered from RAM");
        let dirty = volume.dirty_bytes();
        assert!(dirty <= DIRTY_BYTES_MAX + 2 * PIECE as u64, "{dirty} bytes wait");
        assert!(volume.lost().is_none() && !writer.is_finished());
    }
    faulty.set_available(true);
    let done = timeout(Duration::from_secs(600), writer).await;
    done.expect("the writer goes on").unwrap();
    volume.mkdir(InodeNo::ROOT, b"afterwards", 0o700, CALLER).await.unwrap();
    volume.sync_all().await.unwrap();
    faulty.crash();
    drop(volume);
    let volume = store.open(store.memory.clone(), options()).await;
    let content = content_of(&volume, written).await;
    assert!(
        content.len() == 100 * PIECE
            && content
                .chunks(PIECE)
                .enumerate()
                .all(|(n, piece)| piece == [n as u8; PIECE])
    );
    volume.lookup(InodeNo::ROOT, b"afterwards").await.unwrap();
}

/// A volume whose caches are empty, with one file of some size in the bucket.
async fn cold_file(parameters: &[(&str, &str)]) -> (VolumeStore, Arc<FaultyBucket>, Volume, InodeNo) {
    let map = parameters
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let store = VolumeStore::with(Parameters::from_map(&map.collect()).unwrap()).await;
    let volume = store.open(store.memory.clone(), options()).await;
    let ino = make_file(&volume, "cold", &[7; 300_000]).await;
    volume.close().await.unwrap();
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let volume = store.open(faulty.clone(), options()).await;
    volume.lookup(InodeNo::ROOT, b"cold").await.unwrap();
    (store, faulty, volume, ino)
}

/// `s3_outage = "block"`, the default: a program that reads what only the bucket has waits, and reads it when the store is back.
#[tokio::test(start_paused = true)]
async fn a_read_waits_for_a_store_that_is_away() {
    let (_store, faulty, volume, ino) = cold_file(&[]).await;
    faulty.set_available(false);
    let reading = {
        let volume = volume.clone();
        tokio::spawn(async move { content_of(&volume, ino).await })
    };
    tokio::time::sleep(Duration::from_secs(600)).await;
    assert!(!reading.is_finished(), "it waits");
    let outage = volume.outage().expect("the trouble is shown");
    assert!(outage.lasts >= Duration::from_secs(500), "{outage}");
    faulty.set_available(true);
    let read = timeout(Duration::from_secs(60), reading).await.expect("it goes on");
    assert_eq!(read.unwrap(), vec![7; 300_000]);
    until_over(&volume).await;
}

/// Waits until an outage is told of no more: the tree's upkeep met it too, and tries again in its own time.
async fn until_over(volume: &Volume) {
    let over = async {
        while volume.outage().is_some() {
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    };
    timeout(Duration::from_secs(600), over)
        .await
        .expect("the end is noticed");
}

/// `s3_outage = "eio:30s"`: what needs the store fails once it has been away for that long, and at once from then on; the rest
/// works. Nothing that was acknowledged is lost: it goes out when the store is back, without a remount.
#[tokio::test(start_paused = true)]
async fn a_volume_that_fails_in_an_outage_does_so_in_time_and_loses_nothing() {
    let (store, faulty, volume, cold) = cold_file(&[("s3_outage", "eio:30s")]).await;
    let cached = make_file(&volume, "cached", &[5; 9_000]).await;
    volume.sync_all().await.unwrap();
    faulty.set_available(false);
    let begun = Instant::now();
    let written = make_file(&volume, "written", &[6; 9_000]).await;
    let failed = volume.fsync(written).await.unwrap_err();
    assert!(matches!(failed, FsError::StoreAway { .. }), "{failed}");
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_secs(29) && took < Duration::from_secs(40),
        "{took:?}"
    );
    // Long after: what needs the store fails at once, what does not is answered.
    tokio::time::sleep(Duration::from_secs(300)).await;
    let asked = Instant::now();
    assert!(matches!(volume.fsync(written).await, Err(FsError::StoreAway { .. })));
    assert!(matches!(volume.read(cold, 0, 10).await, Err(FsError::StoreAway { .. })));
    assert_eq!(content_of(&volume, cached).await, vec![5; 9_000]);
    volume
        .mkdir(InodeNo::ROOT, b"made meanwhile", 0o700, CALLER)
        .await
        .unwrap();
    assert!(asked.elapsed() < Duration::from_secs(5), "{:?}", asked.elapsed());
    assert!(volume.lost().is_none(), "an outage loses nothing");

    // Nobody asks for anything; the end is noticed all the same.
    faulty.set_available(true);
    tokio::time::sleep(Duration::from_secs(60)).await;
    until_over(&volume).await;
    assert_eq!(content_of(&volume, cold).await, vec![7; 300_000]);
    volume.fsync(written).await.unwrap();
    faulty.crash();
    drop(volume);
    let volume = store.open(store.memory.clone(), options()).await;
    assert_eq!(content_of(&volume, written).await, vec![6; 9_000]);
    volume.lookup(InodeNo::ROOT, b"made meanwhile").await.unwrap();
}
