//! Frames from every tier: checked each time, fetched once, healed where another tier has them whole.

use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use async_trait::async_trait;
use tempfile::TempDir;

use uuid::Uuid;

use super::*;
use crate::bucket::memory::MemoryBucket;
use crate::bucket::{Bucket, ETag, ListPage, ListRequest, Object, ObjectMeta};
use crate::budget::Budget;
use crate::format::codec::Compression;
use crate::format::frame::put_run;
use crate::ids::Epoch;
use crate::rope::RopeBuilder;
use crate::row::FRAME_BYTES;

const VOLUME: Uuid = Uuid::from_u128(9);
const OBJECT: ObjectId = ObjectId::Segment(Epoch(1), 1);

/// Counts GETs, and answers them when the test lets it.
#[derive(Debug, Default)]
struct Counting {
    bucket: MemoryBucket,
    gets: AtomicUsize,
    held: AtomicBool,
}

#[async_trait]
impl Bucket for Counting {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.gets.fetch_add(1, Ordering::Relaxed);
        tokio::task::yield_now().await;
        while self.held.load(Ordering::Relaxed) {
            tokio::task::yield_now().await;
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

fn content(len: usize) -> Vec<u8> {
    (0..len).map(|i| (i % 251) as u8).collect()
}

/// A run of `len` bytes in a bucket.
async fn stored(len: usize) -> (Arc<Counting>, Arc<ExtentRow>) {
    let bucket = Arc::new(Counting::default());
    let mut out = RopeBuilder::new(b"what comes before", 0);
    let first = FrameIdentity {
        volume: VOLUME,
        ino: InodeNo(3),
        offset: 1 << 33,
    };
    let row = put_run(&mut out, OBJECT, first, &[content(len).into()], Compression::None);
    bucket.put_rope_if_absent(&OBJECT.key(), out.finish()).await.unwrap();
    (bucket, Arc::new(row))
}

fn part(row: &Arc<ExtentRow>, skip: u64, len: u64) -> WantedPart {
    WantedPart {
        offset: (1 << 33) + skip,
        row: Arc::clone(row),
        skip,
        len,
    }
}

const PACE: Pace = Pace {
    read_bytes: 1 << 20,
    get_bytes: 8 << 20,
};

fn tiers(ram_bytes: u64, disk: Option<DiskCache>) -> Tiers {
    let budget = Budget::default();
    Tiers {
        ram: RamCache::new(ram_bytes, budget.frames()),
        disk,
        ahead: Arc::clone(budget.ahead()),
    }
}

#[tokio::test]
async fn any_part_of_a_run_is_read_as_written_and_then_from_ram() {
    let len = 5 * FRAME_BYTES as usize + 1_000;
    let (bucket, row) = stored(len).await;
    let fetcher = Fetcher::new(Arc::clone(&bucket) as BucketRef, VOLUME, tiers(64 << 20, None));
    for (skip, count) in [
        (0, 1),
        (131_071, 2),
        (131_072, 131_072),
        (100, 400_000),
        (len as u64 - 5, 5),
        (0, len as u64),
    ] {
        let read = fetcher
            .read(vec![part(&row, skip, count)])
            .await
            .unwrap()
            .concat()
            .concat();
        assert!(
            read == content(len)[skip as usize..(skip + count) as usize],
            "{skip}+{count}"
        );
        // The row of a part leads to the same bytes.
        let cut = Arc::new(row.part(skip, count));
        let read = fetcher
            .read(vec![part(&cut, 0, count)])
            .await
            .unwrap()
            .concat()
            .concat();
        assert!(
            read == content(len)[skip as usize..(skip + count) as usize],
            "as a row of its own: {skip}+{count}"
        );
    }
    let before = bucket.gets.load(Ordering::Relaxed);
    fetcher.read(vec![part(&row, 0, len as u64)]).await.unwrap();
    assert_eq!(bucket.gets.load(Ordering::Relaxed), before, "all of it is in RAM");
}

#[tokio::test]
async fn readers_that_meet_share_one_get() {
    let (bucket, row) = stored(3 * FRAME_BYTES as usize).await;
    let fetcher = Fetcher::new(Arc::clone(&bucket) as BucketRef, VOLUME, tiers(0, None));
    bucket.held.store(true, Ordering::Relaxed);
    let mut readers: Vec<_> = (0..50)
        .map(|i| Box::pin(fetcher.read(vec![part(&row, i, 300_000)])))
        .collect();
    for reader in &mut readers {
        assert!(futures::poll!(reader).is_pending());
    }
    bucket.held.store(false, Ordering::Relaxed);
    for read in futures::future::join_all(readers).await {
        assert_eq!(read.unwrap().concat().concat().len(), 300_000);
    }
    assert_eq!(bucket.gets.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_reader_that_gives_up_does_not_stop_the_others() {
    let (bucket, row) = stored(FRAME_BYTES as usize).await;
    let fetcher = Fetcher::new(Arc::clone(&bucket) as BucketRef, VOLUME, tiers(0, None));
    {
        let mut given_up = Box::pin(fetcher.read(vec![part(&row, 0, 100)]));
        let mut context = std::task::Context::from_waker(std::task::Waker::noop());
        assert!(given_up.as_mut().poll(&mut context).is_pending());
    }
    assert_eq!(
        fetcher.read(vec![part(&row, 0, 100)]).await.unwrap().concat().concat(),
        content(100)
    );
}

/// Goal: a large read from the disk is as many pieces as there are frames at most, which nobody copies. Method: frames that the disk
/// has, read in parts that begin and end anywhere, before and after one of them is damaged there.
#[tokio::test(start_paused = true)]
async fn frames_on_disk_are_read_in_few_pieces() {
    let dir = TempDir::new().unwrap();
    let len = 6 * FRAME_BYTES as usize + 1_000;
    let (bucket, row) = stored(len).await;
    let disk = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    let fetcher = Fetcher::new(Arc::clone(&bucket) as BucketRef, VOLUME, tiers(0, Some(disk.clone())));
    let keys: Vec<FrameKey> = frames_of(&part(&row, 0, len as u64)).map(|frame| frame.key).collect();
    fetcher.warm(vec![part(&row, 0, len as u64)], PACE).await;
    while keys.iter().any(|key| disk.waiting(*key).is_some()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let gets = bucket.gets.load(Ordering::Relaxed);
    for (skip, count) in [(0, len), (100, 300_000), (131_000, 400), (0, 131_072)] {
        let read = fetcher.read(vec![part(&row, skip as u64, count as u64)]).await.unwrap();
        let frames = frames_of(&part(&row, skip as u64, count as u64)).count();
        assert!(read[0].len() <= frames, "{skip}+{count}: {} pieces", read[0].len());
        assert!(
            read.concat().concat() == content(len)[skip..skip + count],
            "{skip}+{count}"
        );
    }
    assert_eq!(bucket.gets.load(Ordering::Relaxed), gets, "all of it is on the disk");
    for region in std::fs::read_dir(dir.path()).unwrap() {
        let path = region.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        if let Some(byte) = bytes.get_mut(300_000) {
            *byte ^= 4;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    let read = fetcher
        .read(vec![part(&row, 0, len as u64)])
        .await
        .unwrap()
        .concat()
        .concat();
    assert!(read == content(len), "the damaged frame comes from the bucket");
    assert_eq!(bucket.gets.load(Ordering::Relaxed), gets + 1);
}

/// Goal: a short read costs the disk a short read, and damage is told all the same. Method: frames that were read whole, of which one
/// is damaged on the disk behind the back of the cache: what is beside the damage is read without a look at it.
#[tokio::test(start_paused = true)]
async fn of_a_frame_that_was_read_whole_a_short_read_takes_only_its_blocks() {
    let dir = TempDir::new().unwrap();
    let len = 4 * FRAME_BYTES as usize;
    let (bucket, row) = stored(len).await;
    let disk = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    let fetcher = Fetcher::new(
        Arc::clone(&bucket) as BucketRef,
        VOLUME,
        tiers(64 << 20, Some(disk.clone())),
    );
    let keys: Vec<FrameKey> = frames_of(&part(&row, 0, row.len)).map(|frame| frame.key).collect();
    fetcher.warm(vec![part(&row, 0, row.len)], PACE).await;
    while keys.iter().any(|key| disk.waiting(*key).is_some()) {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let read = async |skip: u64, len: u64| {
        let read = fetcher.read(vec![part(&row, skip, len)]).await.unwrap();
        let (start, end) = (skip as usize, (skip + len) as usize);
        assert!(read.concat().concat() == content(end)[start..], "{skip}+{len}");
        bucket.gets.load(Ordering::Relaxed)
    };
    let gets = read(0, row.len).await;
    let frame = u64::from(FRAME_BYTES);
    let damage = 2 * frame + 50_000;
    for region in std::fs::read_dir(dir.path()).unwrap() {
        let path = region.unwrap().path();
        let mut bytes = std::fs::read(&path).unwrap();
        let place = disk.locate(std::iter::once(keys[2])).pop();
        let damaged = place.and_then(|stretch| stretch.part_of_content(&(damage - 2 * frame..frame)));
        if let Some(byte) = bytes.get_mut(damaged.unwrap().position() as usize) {
            *byte ^= 4;
            std::fs::write(&path, bytes).unwrap();
        }
    }
    for (skip, len) in [
        (2 * frame, 4096),
        (2 * frame + 100_000, 1),
        (2 * frame + 60_000, 20_000),
    ] {
        assert_eq!(read(skip, len).await, gets, "nobody has seen the damage");
        assert!(
            !fetcher.inner.ram.contains(keys[2]),
            "{skip}+{len}: only blocks were read"
        );
    }
    assert_eq!(read(damage - 10, 20).await, gets + 1, "it is told and mended");
    assert_eq!(read(damage, 1).await, gets + 1);
    // In sequence all of the frame is read, once, and kept.
    for n in 0..4 {
        assert_eq!(read(frame + n * 4096, 4096).await, gets + 1);
        assert_eq!(fetcher.inner.ram.contains(keys[1]), n > 0, "{n}");
    }
}

#[tokio::test]
async fn what_is_damaged_in_ram_or_on_disk_is_fetched_anew() {
    let dir = TempDir::new().unwrap();
    let (bucket, row) = stored(10_000).await;
    let disk = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    let fetcher = Fetcher::new(
        Arc::clone(&bucket) as BucketRef,
        VOLUME,
        tiers(64 << 20, Some(disk.clone())),
    );
    let key = FrameKey {
        object: OBJECT,
        offset: row.object_offset,
    };
    let bad = Bytes::from(vec![1; row.frame_stored_lens[0] as usize]);
    fetcher.inner.ram.put(key, bad.clone());
    assert!(disk.put(Arc::new(vec![(key, bad.into())]), KeptFor::Reading));
    while disk.locate([key].into_iter()).is_empty() || disk.waiting(key).is_some() {
        tokio::task::yield_now().await;
    }
    let read = fetcher
        .read(vec![part(&row, 0, 10_000)])
        .await
        .unwrap()
        .concat()
        .concat();
    assert!(read == content(10_000));
    assert_eq!(bucket.gets.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn what_is_damaged_in_the_bucket_is_an_error_after_a_second_look() {
    let (bucket, row) = stored(10_000).await;
    let mut body = bucket.get(&OBJECT.key(), None).await.unwrap().body.to_vec();
    body[200] ^= 4;
    bucket.delete(&OBJECT.key()).await.unwrap();
    bucket.put_if_absent(&OBJECT.key(), body.into()).await.unwrap();
    bucket.gets.store(0, Ordering::Relaxed);
    let fetcher = Fetcher::new(Arc::clone(&bucket) as BucketRef, VOLUME, tiers(64 << 20, None));
    let answer = fetcher.read(vec![part(&row, 0, 10)]).await;
    assert!(
        matches!(&answer, Err(FetchError::Damaged(damage)) if damage.object == OBJECT),
        "{answer:?}"
    );
    assert_eq!(bucket.gets.load(Ordering::Relaxed), 2);
    bucket.delete(&OBJECT.key()).await.unwrap();
    let answer = fetcher.read(vec![part(&row, 0, 10)]).await;
    assert!(matches!(answer, Err(FetchError::Missing(_))), "{answer:?}");
    let other = Fetcher::new(bucket as BucketRef, Uuid::from_u128(10), tiers(64 << 20, None));
    assert!(
        other.read(vec![part(&row, 0, 10)]).await.is_err(),
        "another volume never reads it"
    );
}

/// Goal: one GET brings what lies together, as much as one may bring and no odd rest. Method: runs of any number of frames, and
/// two of them with a gap between.
#[tokio::test]
async fn frames_that_lie_together_are_divided_equally() {
    let frames = |count: u64| (count * u64::from(FRAME_BYTES)) as usize;
    for (count, gets) in [(1, 1), (64, 1), (90, 1), (96, 2), (128, 2), (200, 3)] {
        let (_, row) = stored(frames(count)).await;
        let frames: Vec<Frame> = frames_of(&part(&row, 0, row.len)).collect();
        let ranges: Vec<&[Frame]> = ranges_of(&frames, PACE.get_bytes).collect();
        assert_eq!(ranges.len(), gets, "{count} frames");
        assert_eq!(ranges.iter().map(|range| range.len()).sum::<usize>(), frames.len());
        let (shortest, longest) = (
            ranges.iter().map(|range| range.len()).min(),
            ranges.iter().map(|range| range.len()).max(),
        );
        assert!(
            longest.unwrap() - shortest.unwrap() <= 1,
            "{count} frames: {shortest:?} to {longest:?}"
        );
        let gap: Vec<Frame> = frames
            .iter()
            .enumerate()
            .filter(|(n, _)| *n != 7)
            .map(|(_, frame)| *frame)
            .collect();
        assert_eq!(ranges_of(&gap, u64::MAX).count(), if count > 7 { 2 } else { 1 });
    }
}

/// Goal: what is fetched ahead waits for its room, and whoever reads does not. Method: all room is taken.
#[tokio::test]
async fn without_room_nothing_is_fetched_ahead_and_reads_go_on() {
    let (bucket, row) = stored(4 * FRAME_BYTES as usize).await;
    let tiers = tiers(64 << 20, None);
    let room = Arc::clone(&tiers.ahead);
    let fetcher = Fetcher::new(Arc::clone(&bucket) as BucketRef, VOLUME, tiers);
    let taken = room.take(u64::MAX).await;
    let mut ahead = Box::pin(fetcher.warm(vec![part(&row, 0, row.len)], PACE));
    assert!(futures::poll!(&mut ahead).is_pending());
    assert_eq!(bucket.gets.load(Ordering::Relaxed), 0);
    let read = fetcher.read(vec![part(&row, 0, row.len)]).await.unwrap();
    assert!(read.concat().concat() == content(row.len as usize));
    drop(taken);
    ahead.await;
    assert_eq!(
        bucket.gets.load(Ordering::Relaxed),
        1,
        "what was read meanwhile is not fetched again"
    );
}
