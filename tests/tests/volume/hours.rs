//! Clocks that disagree, readers beside writers, idling.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tests::counting_bucket::CountingBucket;
use tests::volume_store::{SetClock, VolumeStore, content_of, make_file, options};
use volume::error::FsError;
use volume::ids::InodeNo;
use volume::volume::OpenOptions;

const HOUR: Duration = Duration::from_secs(3_600);

/// A volume written by a node whose clock is ahead opens on one whose clock is right, and is written there.
#[tokio::test(start_paused = true)]
async fn a_node_whose_clock_is_an_hour_behind_the_last_writers_goes_on_writing() {
    let store = VolumeStore::new().await;
    let mut written = Vec::new();
    for (round, seconds) in [1_800_003_600, 1_800_000_000, 1_799_990_000].into_iter().enumerate() {
        let options = OpenOptions {
            clock: SetClock::at(seconds),
            ..options()
        };
        let volume = store.open(store.memory.clone(), options).await;
        for ino in &written {
            assert_eq!(content_of(&volume, *ino).await, vec![7; 10_000], "round {round}");
        }
        written.push(make_file(&volume, &format!("f{round}"), &[7; 10_000]).await);
        volume.sync_all().await.unwrap();
        // Long enough for the tree to be flushed and compacted on the way.
        tokio::time::sleep(HOUR / 4).await;
        make_file(&volume, &format!("g{round}"), &[8; 10_000]).await;
        volume.close().await.unwrap();
    }
    store.check("after three clocks").await;
}

/// What was written is read back without a request, before it is in the bucket and after.
#[tokio::test(start_paused = true)]
async fn reading_back_what_was_written_asks_the_bucket_nothing() {
    let store = VolumeStore::new().await;
    let counting = Arc::new(CountingBucket::new(store.memory.clone()));
    let volume = store.open(counting.clone(), options()).await;
    let content: Vec<u8> = (0..12_000_000u32).map(|i| (i / 5) as u8).collect();
    let large = make_file(&volume, "large", &content).await;
    let small = make_file(&volume, "small", &content[..50_000]).await;
    volume.sync_all().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let before = counting.counts();
    assert!(content_of(&volume, large).await == content);
    assert!(content_of(&volume, small).await == content[..50_000]);
    assert_eq!(counting.counts().since(&before).gets, 0);
}

/// A mount that only reads goes on while a writer beside it changes everything, and its garbage goes: it then shows the
/// newer state, and no damage.
#[tokio::test(start_paused = true)]
async fn a_reader_beside_a_writer_goes_on_after_the_writers_garbage_went() {
    let store = VolumeStore::new().await;
    let writer = store.open(store.memory.clone(), options()).await;
    let (kept, gone) = (
        make_file(&writer, "kept", &[1; 100_000]).await,
        make_file(&writer, "gone", &[2; 100_000]).await,
    );
    writer.sync_all().await.unwrap();
    let reading = OpenOptions {
        read_only: true,
        ..options()
    };
    let reader = store.open(store.memory.clone(), reading).await;
    assert_eq!(content_of(&reader, kept).await, vec![1; 100_000]);
    let before = store.objects().await;

    writer.write(kept, 0, Bytes::from(vec![3; 70_000])).await.unwrap();
    writer.unlink(InodeNo::ROOT, b"gone").await.unwrap();
    writer.forget(gone, 1);
    writer.release(gone);
    writer.write(kept, 70_000, Bytes::from(vec![4; 60_000])).await.unwrap();
    writer.sync_all().await.unwrap();
    tokio::time::sleep(HOUR).await;
    let after = store.objects().await;
    assert!(before.iter().all(|object| !after.contains(object)), "the garbage went");

    let error = reader.read(gone, 0, 10).await.unwrap_err();
    assert!(matches!(error, FsError::Stale(_)), "{error}");
    let expected = [vec![3; 70_000], vec![4; 60_000]].concat();
    assert!(content_of(&reader, kept).await == expected);
    assert_eq!(reader.getattr(kept).await.unwrap().size, 130_000);
    // Later still, when the tree's own files have been replaced too.
    for i in 0..3 {
        make_file(&writer, &format!("n{i}"), &[5; 10]).await;
        tokio::time::sleep(3 * HOUR).await;
    }
    assert!(content_of(&reader, kept).await == expected);
    reader.close().await.unwrap();
    writer.close().await.unwrap();
}

/// A reader beside a writer shows what was fsynced a second ago, whenever its last look was, and before that a state that
/// was one.
#[tokio::test(start_paused = true)]
async fn a_reader_shows_what_was_fsynced_a_second_ago() {
    let store = VolumeStore::new().await;
    let writer = store.open(store.memory.clone(), options()).await;
    let file = make_file(&writer, "file", &[0; 10_000]).await;
    writer.sync_all().await.unwrap();
    let reading = OpenOptions {
        read_only: true,
        ..options()
    };
    let reader = store.open(store.memory.clone(), reading).await;
    for round in 1..=50_u8 {
        writer.write(file, 0, Bytes::from(vec![round; 10_000])).await.unwrap();
        writer.sync_all().await.unwrap();
        // So the last look is anywhere between the fsync and a second before it.
        tokio::time::sleep(Duration::from_millis(u64::from(round) * 370 % 1_000)).await;
        let early = content_of(&reader, file).await;
        let whole = [round - 1, round].map(|round| vec![round; 10_000]);
        assert!(whole.contains(&early), "round {round} shows what never was");
        tokio::time::sleep(Duration::from_secs(1)).await;
        let late = content_of(&reader, file).await;
        assert!(late == whole[1], "round {round}: {} is shown", late[0]);
    }
    reader.close().await.unwrap();
    writer.close().await.unwrap();
}

/// An idle mounted volume asks the store at most once a minute.
#[tokio::test(start_paused = true)]
async fn an_idle_volume_makes_at_most_one_request_a_minute() {
    let store = VolumeStore::new().await;
    let counting = Arc::new(CountingBucket::new(store.memory.clone()));
    let volume = store.open(counting.clone(), options()).await;
    for i in 0..100 {
        make_file(&volume, &format!("f{i}"), &[i as u8; 20_000]).await;
        volume.sync_all().await.unwrap();
    }
    // What the load leaves to do is done within minutes.
    tokio::time::sleep(HOUR / 2).await;
    let before = counting.counts();
    tokio::time::sleep(6 * HOUR).await;
    let idle = counting.counts().since(&before);
    crate::say(&format!("six idle hours: {idle:?}"));
    assert!(idle.total() <= 6 * 60, "{idle:?}");
    volume.close().await.unwrap();
}
