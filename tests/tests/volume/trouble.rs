//! The store in trouble: storms of errors, slow and cut answers, lost replies, an outage of an hour.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::history::Dice;
use tests::volume_store::{CALLER, VolumeStore, content_of, make_file, options};
use tokio::time::{Instant, timeout};
use volume::ids::InodeNo;
use volume::limits::Limits;
use volume::volume::OpenOptions;

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
