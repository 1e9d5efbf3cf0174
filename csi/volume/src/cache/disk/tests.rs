//! What the cache on disk keeps, gives up, and survives.

use tempfile::TempDir;

use super::*;

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
async fn fill(cache: &DiskCache, numbers: std::ops::Range<u64>) {
    for n in numbers {
        cache.inner.append(key(n), &frame(n)).unwrap();
    }
}

/// Waits until the search of an earlier program's regions has found this frame.
async fn found(cache: &DiskCache, n: u64) {
    let deadline = tokio::time::Instant::now() + std::time::Duration::from_secs(20);
    while cache.get(vec![key(n)]).await.is_empty() {
        assert!(tokio::time::Instant::now() < deadline, "frame {n} is not found");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn frames_survive_a_restart_and_a_second_program_is_kept_out() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    fill(&cache, 0..20).await;
    assert!(
        DiskCache::open(dir.path(), 1 << 30).unwrap().is_none(),
        "one program at a time"
    );
    drop(cache);
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    found(&cache, 0).await;
    for n in 0..20 {
        assert_eq!(cache.get(vec![key(n)]).await, [(key(n), frame(n))]);
    }
    assert!(cache.get(vec![key(20)]).await.is_empty());
    cache.remove(key(3));
    assert!(cache.get(vec![key(3)]).await.is_empty());
}

#[tokio::test]
async fn the_oldest_frames_go_when_the_cache_is_full() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 20).unwrap().unwrap();
    fill(&cache, 0..1_000).await;
    let bytes: u64 = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|file| file.unwrap().metadata().unwrap().len())
        .sum();
    assert!(bytes <= 1 << 20, "{bytes} bytes on disk");
    assert!(cache.get(vec![key(0)]).await.is_empty());
    assert_eq!(cache.get(vec![key(999)]).await.len(), 1);
}

#[tokio::test]
async fn a_torn_or_foreign_region_costs_only_what_it_held() {
    let dir = TempDir::new().unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    fill(&cache, 0..10).await;
    drop(cache);
    let path = path_of(dir.path(), 0);
    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    std::fs::write(
        path_of(dir.path(), 7),
        b"this was never a region of a cache, but it is long enough to be read",
    )
    .unwrap();
    std::fs::write(dir.path().join("region-nonsense"), b"x").unwrap();
    let cache = DiskCache::open(dir.path(), 1 << 30).unwrap().unwrap();
    found(&cache, 8).await;
    assert!(cache.get(vec![key(9)]).await.is_empty(), "the torn entry");
    fill(&cache, 9..12).await;
    assert_eq!(cache.get(vec![key(9), key(11)]).await.len(), 2);
}
