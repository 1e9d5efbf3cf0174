//! `check --repair` of a volume that somebody mounts for writing meanwhile.
//!
//! Goal: what the writer was told is kept stays, whichever of the two gives way. Method: the repair is held before each change of the
//! bucket that it makes, a writer mounts there and syncs a file, the repair goes on, and the writer goes on as well.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use tests::volume_store::{CALLER, content_of, options};
use tokio::sync::Notify;
use tokio::time::timeout;
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{Bucket, BucketError, ETag, ListPage, ListRequest, Object, ObjectMeta};
use volume::error::FsError;
use volume::ids::InodeNo;
use volume::volume::Volume;

use super::say;
use super::tree_repair::{STUCK, World, mended, repaired, seed, with_loss};

/// A bucket that holds one change up.
#[derive(Debug)]
struct Held {
    memory: Arc<MemoryBucket>,
    /// Which, counted from 1.
    held: u64,
    changes: AtomicU64,
    reached: Notify,
    released: Notify,
}

impl Held {
    async fn pass(&self) {
        if self.changes.fetch_add(1, Ordering::SeqCst) + 1 == self.held {
            self.reached.notify_one();
            self.released.notified().await;
        }
    }
}

#[async_trait]
impl Bucket for Held {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.memory.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.memory.head(key).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.pass().await;
        self.memory.put_if_absent(key, body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.pass().await;
        self.memory.put_if_match(key, body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.pass().await;
        self.memory.delete(key).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.memory.list(request).await
    }
}

/// Makes a file and syncs it; true if that was told to have worked.
async fn keeps(volume: &Volume, name: &str) -> bool {
    let work = async {
        let made = volume.create(InodeNo::ROOT, name.as_bytes(), 0o600, CALLER);
        let ino = made.await?.ino;
        volume.write(ino, 0, Bytes::copy_from_slice(name.as_bytes())).await?;
        volume.fsync(ino).await
    };
    let worked: Result<(), FsError> = timeout(STUCK, work).await.expect("a writer is told something");
    worked.is_ok()
}

#[tokio::test(start_paused = true)]
async fn a_writer_that_mounts_during_a_repair_loses_nothing_that_it_was_told() {
    let seed = seed();
    let (mut holds, mut writers, mut gave_way) = (0, 0, 0);
    for closed in [true, false] {
        let world = World::new(seed, closed).await;
        let damaged = world.with_a_flipped_bit().await;
        for held in 1.. {
            let what = format!("seed {seed}, closed {closed}, held at {held}");
            let memory = Arc::new(damaged.fork());
            let bucket = Arc::new(Held {
                memory: memory.clone(),
                held,
                changes: AtomicU64::new(0),
                reached: Notify::new(),
                released: Notify::new(),
            });
            let mut repair = Box::pin(repaired(bucket.clone(), with_loss()));
            tokio::select! {
                () = bucket.reached.notified() => {}
                ended = &mut repair => {
                    ended.0.unwrap_or_else(|error| panic!("{what}: {error}"));
                    break;
                }
            }
            holds += 1;
            let mut told = Vec::new();
            let opened = timeout(STUCK, Volume::open(memory.clone(), options())).await.unwrap();
            if let Ok(writer) = &opened
                && keeps(writer, "during").await
            {
                told.push("during");
            }
            bucket.released.notify_one();
            let (report, _) = timeout(STUCK, repair).await.unwrap();
            gave_way += u32::from(report.is_err());
            if let Ok(writer) = opened {
                writers += 1;
                if keeps(&writer, "after").await {
                    told.push("after");
                }
                drop(writer);
            }
            let (report, found) = timeout(STUCK, mended(&memory)).await.unwrap();
            report.unwrap_or_else(|error| panic!("{what}: {error}"));
            world.sound(&memory, &what).await;
            let volume = Volume::open(memory.clone(), options()).await.unwrap();
            for name in told {
                let kept = volume.lookup(InodeNo::ROOT, name.as_bytes()).await;
                let kept = kept.unwrap_or_else(|error| panic!("{what}: {name}: {error}; {found:#?}"));
                assert_eq!(content_of(&volume, kept.ino).await, name.as_bytes(), "{what}");
            }
            volume.close().await.unwrap();
        }
    }
    say(&format!(
        "{holds} holds: {writers} writers mounted, {gave_way} repairs gave way"
    ));
    assert!(writers > 5 && gave_way > 0);
}
