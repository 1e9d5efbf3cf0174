//! What a look-up needs of many files of the tree, brought from all of them at once.
//!
//! SlateDB asks the files that no compaction has taken four at a time, and waits for the store each time: in a volume that was
//! just written, fifteen of them, the first listing of a folder waited twenty times. Here they are asked all together, and what
//! comes lies in the cache of blocks, where SlateDB finds it.
//! Caller: `slate.rs`. Absent: files of sorted runs, of which a look-up needs one each.

use std::sync::atomic::Ordering;

use slatedb::manifest::SsTableId;
use slatedb::{CacheTarget, DbCacheManagerOps};

use super::SlateTree;
use crate::tree::object_store::ends::ENDS_MAX;

/// 4 files are looked at by a scan at the same time, as SlateDB has it; more are four by four, each of which waits for the store.
const SCAN_FILES_AT_ONCE: usize = 4;

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
        self.bring(files, &[CacheTarget::Filters, CacheTarget::Index]).await;
    }

    /// Brings the first block that a scan reads of each file that no compaction has taken, where they are more than a scan brings
    /// at a time.
    pub(super) async fn bring_first_blocks(&self, from: &[u8]) {
        let files: Vec<_> = {
            let status = self.status.borrow();
            status.current_manifest.l0().iter().map(|file| file.sst.id).collect()
        };
        if (SCAN_FILES_AT_ONCE + 1..=ENDS_MAX).contains(&files.len()) {
            self.bring(files, &[CacheTarget::data(from..=from)]).await;
        }
    }

    async fn bring(&self, files: Vec<SsTableId>, targets: &[CacheTarget]) {
        let brought = files.into_iter().map(|file| self.db.warm_sst(file, targets));
        // Whoever needs what did not come asks for it, and reports an error.
        drop(futures::future::join_all(brought).await);
    }
}

#[cfg(test)]
mod tests {
    use std::ops::Range;
    use std::sync::Arc;
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

    /// A bucket whose reads take their time.
    #[derive(Debug)]
    struct Far(Arc<MemoryBucket>);

    #[async_trait]
    impl Bucket for Far {
        async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
            tokio::time::sleep(AWAY).await;
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

    /// Goal: the first scan of a tree of many files waits for the store a few times, however many they are. Method: files that all
    /// reach over the range that is listed, a store whose reads take a time of the test's own clock, and a look at that clock.
    #[tokio::test(start_paused = true)]
    async fn a_first_scan_asks_all_files_at_once() {
        let memory = Arc::new(MemoryBucket::new());
        let near: BucketRef = memory.clone();
        let tree = open(&near).await;
        for seq in 1..=FILES {
            let row = |ino| {
                Some(Row::Dirent(DirentRow {
                    ino: InodeNo(ino),
                    kind: FileKind::Regular,
                }))
            };
            let applied = Applied {
                epoch: Epoch(1),
                seq: JournalSeq(seq),
            };
            let rows = vec![
                (entry(1, seq), row(1)),
                (entry(5, seq), row(100 + seq)),
                (entry(9, seq), row(1)),
            ];
            tree.apply(applied, rows).await.unwrap();
            tree.flush().await.unwrap();
        }
        tree.close().await.unwrap();

        let far: BucketRef = Arc::new(Far(memory));
        let tree = open(&far).await;
        tree.expect_reads();
        let begun = Instant::now();
        let rows = tree.scan(&entry(5, 0), &entry(6, 0), 100).await.unwrap();
        let took = begun.elapsed();
        assert_eq!(rows.len() as u64, FILES);
        assert!(
            took <= 3 * AWAY,
            "{took:?}: indexes, then blocks, and one more for what is between"
        );
        tree.close().await.unwrap();
    }
}
