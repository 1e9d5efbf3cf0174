//! What the cache on disk keeps, gives up, and survives.

use futures::FutureExt;
use tempfile::TempDir;

use super::*;
use crate::ids::{Epoch, JournalSeq, ObjectId};

fn key(n: u64) -> FrameKey {
    let object = if n.is_multiple_of(2) {
        ObjectId::Journal(Epoch(1), JournalSeq(n))
    } else {
        ObjectId::Segment(Epoch(1), n)
    };
    FrameKey { object, offset: n * 10 }
}

fn frame(n: u64) -> Bytes {
    Bytes::from(vec![n as u8; 5_000])
}

/// Puts frames one by one, as the disk takes them.
fn fill(cache: &DiskCache, numbers: std::ops::Range<u64>) {
    for n in numbers {
        cache.inner.append(&[(key(n), frame(n).into())], false).unwrap();
    }
}

/// A frame as it was put.
fn stored(frame: StoredFrame) -> (FrameKey, Bytes) {
    let whole = [frame.head.as_slice(), frame.content.as_slice()].concat();
    (frame.key, whole.into())
}

fn read(cache: &DiskCache, numbers: &[u64]) -> Vec<(FrameKey, Bytes)> {
    let stretches = cache.locate(numbers.iter().map(|n| key(*n)));
    stretches.iter().flat_map(Stretch::read).map(stored).collect()
}

/// Waits until the search of an earlier program's regions has found this frame.
async fn found(cache: &DiskCache, n: u64) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while read(cache, &[n]).is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "frame {n} is not found");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn frames_survive_a_restart_and_a_second_program_is_kept_out() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    fill(&cache, 0..20);
    assert!(
        DiskCache::open(dir.path(), 1 << 30).unwrap().is_none(),
        "one program at a time"
    );
    drop(cache);
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    found(&cache, 0).await;
    for n in 0..20 {
        assert_eq!(read(&cache, &[n]), [(key(n), frame(n))]);
    }
    assert!(read(&cache, &[20]).is_empty());
    cache.remove(key(3));
    assert!(read(&cache, &[3]).is_empty());
}

#[tokio::test]
async fn the_oldest_frames_go_when_the_cache_is_full() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 20).unwrap().unwrap();
    fill(&cache, 0..1_000);
    let bytes: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes <= 1 << 20, "{bytes} bytes on disk");
    assert!(read(&cache, &[0]).is_empty());
    assert_eq!(read(&cache, &[999]).len(), 1);
}

#[tokio::test]
async fn a_torn_or_foreign_region_costs_only_what_it_held() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    fill(&cache, 0..10);
    drop(cache);
    let path = region::path_of(dir.path(), 0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    std::fs::write(
        region::path_of(dir.path(), 7),
        b"this was never a region of a cache, but it is long enough to be read",
    )
    .unwrap();
    std::fs::write(dir.path().join("region-nonsense"), b"x").unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    found(&cache, 8).await;
    assert!(read(&cache, &[9]).is_empty(), "the torn entry");
    fill(&cache, 9..12);
    assert_eq!(read(&cache, &[9, 11]).len(), 2);
}

/// Goal: frames that came together are read by few calls, whatever region they went to. Method: batches that no region ends
/// with, into regions of 64 KiB, of which only the latest stay.
#[tokio::test]
async fn frames_that_were_put_together_are_read_together() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 20).unwrap().unwrap();
    for batch in 0..30 {
        let frames: Vec<_> = (batch * 7..batch * 7 + 7).map(|n| (key(n), frame(n).into())).collect();
        cache.inner.append(&frames, false).unwrap();
        // A second time changes nothing.
        let bytes = cache
            .inner
            .lock()
            .regions
            .values()
            .map(|region| region.bytes)
            .sum::<u64>();
        cache.inner.append(&frames, false).unwrap();
        let again = cache
            .inner
            .lock()
            .regions
            .values()
            .map(|region| region.bytes)
            .sum::<u64>();
        assert_eq!(bytes, again);
    }
    let latest: Vec<u64> = (140..210).collect();
    let stretches = cache.locate(latest.iter().map(|n| key(*n)));
    assert!(stretches.len() <= 8, "{} reads for six regions", stretches.len());
    assert!(latest.iter().all(|n| read(&cache, &[*n]) == [(key(*n), frame(*n))]));
    for stretch in &stretches {
        stretch.bring();
        let read: Vec<_> = stretch.read().into_iter().map(stored).collect();
        assert!(read.iter().map(|(key, _)| *key).eq(stretch.keys()));
        // What was just read the kernel has, unless the folder is on something that cannot tell.
        if let Some(cached) = stretch.look(1) {
            let cached: Vec<_> = cached.into_iter().map(stored).collect();
            assert_eq!(cached, read);
        }
    }
}

/// Goal: a volume's reader finds what its writer has cached, and the folder is free again when the last of them is gone.
#[tokio::test]
async fn regression_a_cache_that_this_process_has_open_is_shared() {
    let dir = TempDir::new().unwrap();
    let caches = OpenCaches::default();
    let writer = caches.open(dir.path(), 1 << 30).unwrap().unwrap();
    let reader = caches.clone().open(dir.path(), 1 << 30).unwrap().unwrap();
    fill(&writer, 0..5);
    assert_eq!(read(&reader, &[3]), [(key(3), frame(3))]);
    drop(writer);
    assert!(
        OpenCaches::default().open(dir.path(), 1 << 30).unwrap().is_none(),
        "the reader has it still, and others are kept out"
    );
    fill(&reader, 5..9);
    assert_eq!(read(&reader, &[1, 7]).len(), 2);
    drop(reader);
    let again = caches.open(dir.path(), 1 << 30).unwrap().unwrap();
    found(&again, 7).await;
}

/// A frame of a large file.
fn large(n: u64) -> Bytes {
    Bytes::from(vec![n as u8; 100_000 + n as usize])
}

/// It as a commit has it: its header apart from its content.
fn in_pieces(frame: &Bytes) -> Rope {
    [frame.slice(..64), frame.slice(64..)].into_iter().collect()
}

/// Goal: frames of large files, which go past the kernel's memory where they can, lie amid others, and all of them are found
/// at any moment and after a restart. Method: both turn by turn, so that each batch begins and ends where no block does.
#[tokio::test(start_paused = true)]
async fn frames_that_go_past_the_kernels_memory_lie_amid_others() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 128 << 20).unwrap().unwrap();
    let batches: Vec<Vec<u64>> = (0..30)
        .map(|batch| (1_000 + batch * 4..1_004 + batch * 4).collect())
        .collect();
    for (small, batch) in batches.iter().enumerate() {
        fill(&cache, small as u64..small as u64 + 1);
        let (kept_for, cut): (_, fn(&Bytes) -> Rope) = match small % 2 {
            0 => (KeptFor::Reading, |frame| frame.clone().into()),
            _ => (KeptFor::Later, in_pieces),
        };
        let frames = batch.iter().map(|n| (key(*n), cut(&large(*n))));
        assert!(cache.put(Arc::new(frames.collect()), kept_for));
        assert!(batch.iter().all(|n| cache.contains(key(*n))));
    }
    let all = || batches.iter().flatten().copied();
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(60);
    while all().any(|n| read(&cache, &[n]).is_empty() || cache.waiting(key(n)).is_some()) {
        assert!(tokio::time::Instant::now() < deadline, "not written, or never let go");
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let check = |cache: &DiskCache| {
        assert!(all().all(|n| read(cache, &[n]) == [(key(n), large(n))]));
        assert!((0..30).all(|n| read(cache, &[n]) == [(key(n), frame(n))]));
        let stretches = cache.locate(all().map(key));
        assert!(
            stretches.len() <= 40,
            "{} reads for {} batches",
            stretches.len(),
            batches.len()
        );
    };
    check(&cache);
    let regions = cache.inner.lock().regions.len();
    assert!(regions > 1, "{regions}: it takes more than one");
    drop(cache);
    let cache = DiskCache::open(dir.path(), 128 << 20).unwrap().unwrap();
    for n in all().chain(0..30) {
        found(&cache, n).await;
    }
    check(&cache);
}

/// Goal: large reads give the same frames whichever way they come, from any of them on and however many, before and after a restart.
/// Method: stretches that begin and end where no block does, read past the kernel's memory, by way of the kernel, and where the disk
/// refuses the former.
#[tokio::test(start_paused = true)]
async fn large_reads_give_the_same_past_the_kernels_memory_and_by_way_of_it() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    fill(&cache, 0..1);
    let frames: Vec<_> = (1_000..1_009).map(|n| (key(n), large(n))).collect();
    let put = |frames: &[(FrameKey, Bytes)], direct| {
        let frames: Vec<_> = frames.iter().map(|(key, frame)| (*key, in_pieces(frame))).collect();
        cache.inner.append(&frames, direct).unwrap();
    };
    put(&frames, true);
    // What was written by way of the kernel is there, and is read there.
    let others: Vec<_> = (2_000..2_009).map(|n| (key(n), large(n))).collect();
    put(&others, false);
    let stretches = cache.locate(others.iter().map(|(key, _)| *key));
    assert!(stretches.iter().all(|stretch| !stretch.is_past_kernel(u64::MAX)));
    let check = |cache: &DiskCache| {
        for (first, count) in [(0, 9), (0, 3), (1, 3), (4, 5), (6, 3)] {
            let wanted = &frames[first..first + count];
            let mut stretches = cache.locate(wanted.iter().map(|(key, _)| *key));
            assert_eq!(stretches.len(), 1, "{first}+{count}");
            let stretch = &mut stretches[0];
            assert!(!stretch.is_past_kernel(4096), "small reads go by way of the kernel");
            if !stretch.is_past_kernel(u64::MAX) {
                // The folder is on something that cannot.
                continue;
            }
            assert!(stretch.look(1).is_none());
            let read: Vec<_> = stretch.read().into_iter().map(stored).collect();
            assert!(read == wanted, "{first}+{count}");
            let writes_only = OpenOptions::new().write(true).open(dir.path().join("lock")).unwrap();
            stretch.source.direct = Some(Arc::new(writes_only));
            let read: Vec<_> = stretch.read().into_iter().map(stored).collect();
            assert!(read == wanted, "refused, {first}+{count}");
        }
    };
    check(&cache);
    drop(cache);
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    found(&cache, 1_008).await;
    check(&cache);
}

/// Goal: long reads wait for their turn, which comes in order, and short ones never do.
#[tokio::test]
async fn so_many_large_reads_go_at_a_time_and_the_next_in_order() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    let file = Arc::new(File::open(dir.path().join("lock")).unwrap());
    let of = |direct| {
        let file = Arc::clone(&file);
        [Stretch::new(Source { file, direct }, 0, (key(1), 1 << 20))]
    };
    let (long, short) = (of(Some(Arc::clone(&file))), of(None));
    let at_once = || cache.turn(&long).now_or_never().flatten();
    let mut reading: Vec<_> = (0..LARGE_READS_AT_ONCE).filter_map(|_| at_once()).collect();
    assert_eq!(reading.len(), LARGE_READS_AT_ONCE);
    let (mut next, mut last) = (Box::pin(cache.turn(&long)), Box::pin(cache.turn(&long)));
    assert!((&mut next).now_or_never().is_none() && (&mut last).now_or_never().is_none());
    assert!(cache.turn(&short).now_or_never().expect("at once").is_none());
    reading.pop();
    assert!((&mut last).now_or_never().is_none(), "it came later");
    assert!(next.now_or_never().flatten().is_some());
    assert!(last.now_or_never().flatten().is_some());
}

/// Goal: a disk that does not keep up costs neither memory nor time. Method: more than may wait, before anything is written.
#[tokio::test]
async fn more_than_may_wait_is_not_kept() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    let mut index = cache.inner.lock();
    let batch = |n: u64| {
        Arc::new(
            (n * 10..n * 10 + 10)
                .map(|n| (key(n), large(n).into()))
                .collect::<Vec<_>>(),
        )
    };
    let taken = (0..100)
        .take_while(|n| index.waiting.add(batch(*n), KeptFor::Reading))
        .count();
    assert!((46..=50).contains(&taken), "{taken} of a MB each");
    assert!(index.waiting.has(key(0)) && !index.waiting.has(key(999)));
}

/// Goal: what was read by who reads in sequence, and is on the disk, does not stay in memory; what was not read does, for a while.
/// Method: a batch that is written, read frame by frame, and another that comes while the first waits.
#[tokio::test(start_paused = true)]
async fn what_was_read_and_written_is_forgotten_at_once() {
    let batch =
        |numbers: std::ops::Range<u64>| Arc::new(numbers.map(|n| (key(n), large(n).into())).collect::<Vec<_>>());
    let mut waiting = Waiting::default();
    assert!(waiting.add(batch(0..4), KeptFor::Reading));
    // Its last frame comes again, with others.
    assert!(waiting.add(batch(3..7), KeptFor::Reading));
    assert!((0..2).all(|n| waiting.read(key(n)).is_some_and(|frame| frame.is(&large(n)))));
    let (first, direct) = waiting.next().expect("it waits");
    assert!(direct);
    waiting.written(first, direct);
    assert!(waiting.has(key(1)), "one of its frames was not read");
    assert!(waiting.read(key(0)).is_some(), "a second time");
    assert!(waiting.has(key(2)));
    assert!(waiting.read(key(2)).is_some());
    assert!((0..3).all(|n| !waiting.has(key(n))), "all of it was read");
    assert!(
        (3..7).all(|n| waiting.read(key(n)).is_some()),
        "the other one waits for the disk"
    );
    let (second, direct) = waiting.next().expect("it waits");
    assert!((3..7).all(|n| waiting.has(key(n))), "it is being written");
    waiting.written(second, direct);
    assert!((3..7).all(|n| !waiting.has(key(n))));
    assert!(waiting.next().is_none() && waiting.is_empty());
}
