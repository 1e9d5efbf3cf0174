//! What fsync promises in each mode of durability, from the outside.

use std::sync::Arc;
use std::time::Duration;

use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::volume_store::{VolumeStore, content_of, make_file, options};
use tokio::time::{Instant, timeout};
use volume::head::{Durability, Parameters};
use volume::ids::InodeNo;

/// In `relaxed` mode fsync returns at once, whatever the bucket does; the bucket follows within 5 seconds, and `drain` waits
/// for it.
#[tokio::test(start_paused = true)]
async fn a_relaxed_fsync_asks_for_nothing_and_the_bucket_follows_within_seconds() {
    let store = VolumeStore::with(Parameters {
        durability: Durability::Relaxed,
        ..Parameters::default()
    })
    .await;
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let volume = store.open(faulty.clone(), options()).await;
    assert_eq!(volume.info().durability, Durability::Relaxed);
    let first = make_file(&volume, "first", b"kept").await;
    volume.drain().await.unwrap();
    faulty.set_available(false);
    let begun = Instant::now();
    make_file(&volume, "second", b"on its way").await;
    volume.fsync(first).await.unwrap();
    volume.sync_all().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "nobody was waited for");
    let drained = timeout(Duration::from_secs(60), volume.drain()).await;
    assert!(drained.is_err(), "the bucket is away, so nothing can be in it");
    faulty.set_available(true);
    volume.drain().await.unwrap();
    let third = make_file(&volume, "third", b"follows").await;
    volume.fsync(third).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    faulty.crash();
    drop(volume);
    let volume = store.open(store.memory.clone(), options()).await;
    for (name, content) in [("first", "kept"), ("second", "on its way"), ("third", "follows")] {
        let ino = volume.lookup(InodeNo::ROOT, name.as_bytes()).await.unwrap().ino;
        assert_eq!(content_of(&volume, ino).await, content.as_bytes());
    }
    volume.close().await.unwrap();
}
