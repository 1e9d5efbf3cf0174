//! Space after churn, what getting it back costs, and what a crash meanwhile leaves.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tests::counting_bucket::{CountingBucket, Counts};
use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::history::Dice;
use tests::volume_store::{VolumeStore, content_of, make_file, options};
use volume::commit::CommitLimits;
use volume::ids::InodeNo;
use volume::volume::{CacheConfig, OpenOptions, Volume};

const KIB: u64 = 1024;

/// A file and what it must hold.
struct Kept {
    ino: InodeNo,
    content: Vec<u8>,
}

/// Overwrites a piece somewhere in one of the files, and says with what.
async fn overwrite(volume: &Volume, files: &mut [Kept], dice: &mut Dice, bytes: u64) {
    let count = files.len() as u64;
    let file = &mut files[dice.below(count) as usize];
    let offset = dice.below((file.content.len() as u64 - bytes) / 4096 + 1) as usize * 4096;
    let data = dice.bytes(bytes);
    file.content[offset..offset + data.len()].copy_from_slice(&data);
    volume.write(file.ino, offset as u64, Bytes::from(data)).await.unwrap();
}

/// What a request costs: S3 asks twelve and a half times as much for a write or a list as for a read, nothing for a delete.
fn price(counts: &Counts) -> f64 {
    (counts.puts + counts.lists) as f64 * 12.5 + (counts.gets + counts.heads) as f64
}

/// After an hour of databases (8 KiB at random places, each with an fsync) and of files that come and go, what is stored is at
/// most 1.3 times what lives, at under a tenth of what the churn itself cost.
#[tokio::test(start_paused = true)]
async fn churn_leaves_little_garbage_and_clearing_it_costs_little() {
    let mut dice = Dice::new(4_711);
    let (store, counting, volume, _scratch) = distant_and_cached().await;
    let mut files = Vec::new();
    for name in ["a", "b", "c"] {
        let content = dice.bytes(20 << 20);
        let ino = make_file(&volume, name, &content).await;
        files.push(Kept { ino, content });
        volume.sync_all().await.unwrap();
    }
    let start = (counting.counts(), commits(&volume));
    for round in 0..2_000u64 {
        overwrite(&volume, &mut files, &mut dice, 8 * KIB).await;
        volume.fsync(files[0].ino).await.unwrap();
        if round % 200 == 0 {
            let name = format!("comes and goes {round}");
            let ino = make_file(&volume, &name, &vec![9; 3 << 20]).await;
            volume.sync_all().await.unwrap();
            tokio::time::sleep(Duration::from_secs(60)).await;
            volume.unlink(InodeNo::ROOT, name.as_bytes()).await.unwrap();
            volume.release(ino);
            volume.forget(ino, 1);
        }
    }
    garbage_is_little_and_cheap((&store, &counting, &volume), start, &files).await;
}

/// A volume at a distant store whose requests are counted, with a cache on disk.
async fn distant_and_cached() -> (VolumeStore, Arc<CountingBucket>, Volume, tempfile::TempDir) {
    let store = VolumeStore::new().await;
    let distant = Faults {
        latency: Duration::from_millis(5)..Duration::from_millis(30),
        ..Faults::none()
    };
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, distant));
    let counting = Arc::new(CountingBucket::new(faulty));
    let scratch = tempfile::tempdir().unwrap();
    let cached = OpenOptions {
        cache: CacheConfig {
            dir: Some(scratch.path().to_owned()),
            ..CacheConfig::default()
        },
        ..options()
    };
    let volume = store.open(counting.clone(), cached).await;
    (store, counting, volume, scratch)
}

/// Half an hour later what is stored, and what was asked for beside the churn's commits since `start`, are within bounds.
async fn garbage_is_little_and_cheap(
    (store, counting, volume): (&VolumeStore, &CountingBucket, &Volume),
    start: (Counts, u64),
    files: &[Kept],
) {
    let churn = Counts {
        puts: commits(volume) - start.1,
        ..Counts::default()
    };
    tokio::time::sleep(Duration::from_secs(1_800)).await;
    let (space, stored) = (volume.statfs(), store.stored_bytes().await);
    let used = space.total_bytes - space.free_bytes;
    let live: u64 = files.iter().map(|file| file.content.len() as u64).sum();
    let all = counting.counts().since(&start.0);
    let clearing = all.since(&churn);
    crate::say(&format!(
        "{live} bytes live in {stored} stored, {:.2}; beside {} commits {clearing:?}, {:.3} of their price",
        stored as f64 / live as f64,
        churn.puts,
        price(&clearing) / price(&churn)
    ));
    assert_eq!(used, live);
    assert!(
        stored as f64 <= 1.3 * live as f64,
        "{stored} bytes are stored for {live}"
    );
    assert!(
        price(&clearing) * 10.0 <= price(&churn),
        "{clearing:?} beside {churn:?}"
    );
    for file in files {
        assert!(content_of(volume, file.ino).await == file.content);
    }
    volume.close().await.unwrap();
    store.check("after the churn").await;
}

/// The same of an hour of mail: small files, each with an fsync, of which as many go as come.
#[tokio::test(start_paused = true)]
async fn small_files_that_come_and_go_leave_little_garbage() {
    const KEPT: usize = 1_200;
    let mut dice = Dice::new(815);
    let (store, counting, volume, _scratch) = distant_and_cached().await;
    let mut files = Vec::new();
    let mut start = None;
    for round in 0..2 * KEPT as u64 {
        let content = dice.bytes(600 + dice.clone().below(100_000));
        let name = format!("mail {round}");
        let ino = make_file(&volume, &name, &content).await;
        volume.fsync(ino).await.unwrap();
        volume.release(ino);
        files.push((name, Kept { ino, content }));
        if files.len() > KEPT {
            start.get_or_insert_with(|| (counting.counts(), commits(&volume)));
            let (name, gone) = files.swap_remove(dice.below(files.len() as u64) as usize);
            volume.unlink(InodeNo::ROOT, name.as_bytes()).await.unwrap();
            volume.forget(gone.ino, 1);
        }
        tokio::time::sleep(Duration::from_millis(900)).await;
    }
    let start = start.expect("more came than are kept");
    let kept: Vec<Kept> = files.into_iter().map(|(_, kept)| kept).collect();
    garbage_is_little_and_cheap((&store, &counting, &volume), start, &kept).await;
}

/// Objects that commits have put, of rows and content.
fn commits(volume: &Volume) -> u64 {
    let stats = volume.commit_stats().unwrap();
    stats.journal_objects + stats.segments
}

/// Commits of some KiB become segments, so a little churn makes garbage of every kind.
fn small_segments() -> OpenOptions {
    OpenOptions {
        cache: CacheConfig {
            ram_bytes: 0,
            ..CacheConfig::default()
        },
        commits: CommitLimits {
            tree_flush_commits: 20,
            ..CommitLimits::default()
        },
        ..options()
    }
}

/// Goal: moving content loses nothing, whichever request is the last. Method: a volume with much garbage is mounted through a bucket
/// that dies at its n-th change, for each n until none is struck; what is mounted afterwards holds all that was synced.
#[tokio::test(start_paused = true)]
async fn a_crash_while_content_is_moved_loses_nothing_at_whichever_request() {
    for strike in 1.. {
        let mut dice = Dice::new(1_000 + strike);
        let store = VolumeStore::new().await;
        let mut files = Vec::new();
        let volume = store.open(store.memory.clone(), small_segments()).await;
        for name in ["a", "b"] {
            let content = dice.bytes(10 << 20);
            let ino = make_file(&volume, name, &content).await;
            files.push(Kept { ino, content });
        }
        volume.sync_all().await.unwrap();
        drop(volume);
        let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), strike, Faults::none()));
        let volume = store.open(faulty.clone(), small_segments()).await;
        for _ in 0..4 {
            for _ in 0..12 {
                overwrite(&volume, &mut files, &mut dice, 500 * KIB).await;
            }
            volume.sync_all().await.unwrap();
        }
        faulty.crash_at(strike);
        tokio::time::sleep(Duration::from_secs(700)).await;
        let crashed = faulty.is_crashed();
        drop(volume);
        let volume = store.open(store.memory.clone(), small_segments()).await;
        for file in &files {
            assert!(
                content_of(&volume, file.ino).await == file.content,
                "struck at {strike}"
            );
        }
        store.check(&format!("struck at {strike}")).await;
        volume.close().await.unwrap();
        if !crashed {
            crate::say(&format!("{} changes of the bucket were struck", strike - 1));
            assert!(strike > 8, "hardly anything was moved");
            return;
        }
    }
}
