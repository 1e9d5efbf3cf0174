//! What a look-up needs of many files of the tree, brought from all of them at once.
//!
//! SlateDB asks the files that no compaction has taken four at a time, and waits for the store each time: in a volume that was
//! just written, fifteen of them, the first listing of a folder waited twenty times. Here they are asked all together what they
//! have, and what comes lies in the cache of blocks, where SlateDB finds it.
//! Caller: `slate.rs`. Absent: which files a scan then reads (`reach.rs`).

use std::sync::atomic::Ordering;

use slatedb::{CacheTarget, DbCacheManagerOps};

use super::SlateTree;
use crate::tree::object_store::ends::ENDS_MAX;

impl SlateTree {
    /// Brings the filters and indexes of the files that most look-ups ask, once: of all that no compaction has taken, and of the
    /// others too where they are few. A look-up by itself brings them four at a time.
    pub(super) async fn wait_for_ends(&self) {
        if self.reads_expected.load(Ordering::Relaxed) {
            self.ends.get_or_init(|| self.bring_ends()).await;
        }
    }

    async fn bring_ends(&self) {
        let files: Vec<_> = {
            let status = self.status.borrow();
            let manifest = &status.current_manifest;
            match manifest.all_sst_views().nth(ENDS_MAX) {
                None => manifest.all_sst_views().map(|file| file.sst.id).collect(),
                Some(_) => manifest.l0().iter().map(|file| file.sst.id).take(ENDS_MAX).collect(),
            }
        };
        let targets = &[CacheTarget::Filters, CacheTarget::Index];
        let brought = files.into_iter().map(|file| self.db.warm_sst(file, targets));
        // Whoever needs what did not come asks for it, and reports an error.
        drop(futures::future::join_all(brought).await);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU64, Ordering};
    use std::time::Duration;

    use async_trait::async_trait;
    use bytes::Bytes;
    use tokio::time::Instant;

    use crate::bucket::memory::MemoryBucket;
    use crate::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta};
    use crate::ids::{DirCookie, Epoch, InodeNo, JournalSeq};
    use crate::open::TreeConfig;
    use crate::row::{Applied, DirentRow, FileKind, Key, Row};
    use crate::tree::Tree;
    use crate::tree::slate::{SlateTree, seen_writer};

    /// How far the bucket is.
    const AWAY: Duration = Duration::from_millis(10);

    /// 7 files: one more, and they would be compacted.
    const FILES: u64 = 7;

    /// A bucket whose reads take their time, and are counted.
    #[derive(Debug)]
    struct Far(Arc<MemoryBucket>, AtomicU64);

    #[async_trait]
    impl Bucket for Far {
        async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
            tokio::time::sleep(AWAY).await;
            self.1.fetch_add(1, Ordering::Relaxed);
            self.0.get(key, range).await
        }

        async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
            self.0.head(key).await
        }

        async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
            self.0.put_if_absent(key, body).await
        }

        async fn put_if_match(&self, key: &str, body: Bytes, etag: &ETag) -> Result<ETag, BucketError> {
            self.0.put_if_match(key, body, etag).await
        }

        async fn delete(&self, key: &str) -> Result<(), BucketError> {
            self.0.delete(key).await
        }

        async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
            self.0.list(request).await
        }
    }

    async fn open(bucket: &BucketRef) -> SlateTree {
        let seen = seen_writer(bucket.clone()).await.unwrap();
        SlateTree::open(bucket.clone(), seen, &TreeConfig::default())
            .await
            .unwrap()
    }

    fn entry(dir: u64, cookie: u64) -> Key {
        Key::Dirent {
            dir: InodeNo(dir),
            cookie: DirCookie(cookie),
            name: Bytes::from_static(b"name"),
        }
    }

    fn row(ino: u64) -> Option<Row> {
        Some(Row::Dirent(DirentRow {
            ino: InodeNo(ino),
            kind: FileKind::Regular,
        }))
    }

    /// A tree of several files, each of which has an entry of folder 1, one of folder 9,000, and many of one folder of its own.
    async fn written(bucket: &BucketRef) {
        let tree = open(bucket).await;
        for seq in 1..=FILES {
            let applied = Applied {
                epoch: Epoch(1),
                seq: JournalSeq(seq),
            };
            let mut rows = vec![(entry(1, seq), row(seq)), (entry(9_000, seq), row(seq))];
            rows.extend((0..100).map(|n| (entry(1_000 * seq, 10 + n), row(100 * seq + n))));
            tree.apply(applied, rows).await.unwrap();
            tree.flush().await.unwrap();
        }
        tree.close().await.unwrap();
    }

    /// Goal: the first scan of a tree of many files asks each for what it has, all at once, and then reads those that have
    /// something. Method: files whose keys all reach over the range that is listed, a store whose reads take a time of the
    /// test's own clock, and a look at that clock and at the number of reads.
    #[tokio::test(start_paused = true)]
    async fn a_first_scan_reads_the_files_that_have_something_for_it() {
        let memory = Arc::new(MemoryBucket::new());
        written(&(memory.clone() as BucketRef)).await;
        let far = Arc::new(Far(memory, AtomicU64::new(0)));
        let tree = open(&(far.clone() as BucketRef)).await;
        tree.expect_reads();
        for (folder, found, reads_max, waits_max) in
            [(3_000, 100, FILES + 1, 2), (4_500, 0, 0, 0), (1, FILES, FILES, 2)]
        {
            let (begun, before) = (Instant::now(), far.1.load(Ordering::Relaxed));
            let rows = tree
                .scan(&entry(folder, 0), &entry(folder + 1, 0), 1_000)
                .await
                .unwrap();
            assert_eq!(rows.len() as u64, found, "of folder {folder}");
            let reads = far.1.load(Ordering::Relaxed) - before;
            assert!(reads <= reads_max, "{reads} reads for folder {folder}");
            let took = begun.elapsed();
            assert!(took <= waits_max * AWAY, "{took:?} for folder {folder}");
        }
        tree.close().await.unwrap();
    }
}
