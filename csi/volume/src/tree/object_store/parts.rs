//! Parts of a tree's files, which never change: each is read once however many ask for it at the same time.
//!
//! A listing asks for many rows by several scans at once, each of which begins with the same index. SlateDB keeps what was read,
//! not what is being read.
//! Caller: `object_store.rs`. Absent: keeping anything (SlateDB's cache does), but for the ends of files (`ends.rs`).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::OnceCell;

use super::ends::Ends;
use crate::bucket::{BucketError, BucketRef, Object};

/// 64 parts: with more, those that nobody reads any more are forgotten.
const UNDER_WAY_MAX: usize = 64;

/// Which part: the file, and from where to where.
type Part = (String, Range<u64>);

/// What is read of files.
#[derive(Debug, Default)]
pub(super) struct Parts {
    ends: Ends,
    /// Held for a look-up, never across an await.
    under_way: Mutex<HashMap<Part, Weak<OnceCell<Object>>>>,
}

impl Parts {
    /// A part of a file; what lies behind its filter comes with that.
    ///
    /// # Errors
    /// As of `Bucket::get`.
    pub async fn get(&self, bucket: &BucketRef, key: &str, range: &Range<u64>) -> Result<Object, BucketError> {
        if let Some(object) = self.ends.get(key, range) {
            return Ok(object);
        }
        let reading = self.reading((key.to_owned(), range.clone()));
        let read = reading.get_or_try_init(|| self.read(bucket, key, range));
        read.await.cloned()
    }

    /// Where those who want this part now meet.
    fn reading(&self, part: Part) -> Arc<OnceCell<Object>> {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(reading) = under_way.get(&part).and_then(Weak::upgrade) {
            return reading;
        }
        if under_way.len() >= UNDER_WAY_MAX {
            under_way.retain(|_, reading| reading.strong_count() > 0);
        }
        let reading = Arc::default();
        under_way.insert(part, Arc::downgrade(&reading));
        reading
    }

    async fn read(&self, bucket: &BucketRef, key: &str, range: &Range<u64>) -> Result<Object, BucketError> {
        let end = self.ends.widened(key, range);
        let mut object = bucket.get(key, Some(range.start..end)).await?;
        let len = (range.end - range.start) as usize;
        if object.body.len() > len {
            let behind = Object {
                // Copied, so that neither keeps the other.
                body: Bytes::copy_from_slice(&object.body[len..]),
                ..object.clone()
            };
            self.ends.keep(key, range.end, behind);
            object.body.truncate(len);
        }
        Ok(object)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use async_trait::async_trait;

    use super::*;
    use crate::bucket::{Bucket, ETag, ListPage, ListRequest, ObjectMeta};

    /// A bucket of one file, which takes a moment to answer.
    #[derive(Debug, Default)]
    struct Slow {
        gets: AtomicUsize,
    }

    #[async_trait]
    impl Bucket for Slow {
        async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
            self.gets.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            let range = range.filter(|_| key == "a.sst");
            let range = range.ok_or_else(|| BucketError::NotFound { key: key.to_owned() })?;
            Ok(Object {
                body: Bytes::from(vec![7; (range.end - range.start) as usize]),
                etag: ETag("e".to_owned()),
                size_bytes: 1 << 40,
            })
        }

        async fn head(&self, _: &str) -> Result<ObjectMeta, BucketError> {
            unreachable!("parts are only read")
        }

        async fn put_if_absent(&self, _: &str, _: Bytes) -> Result<ETag, BucketError> {
            unreachable!("parts are only read")
        }

        async fn put_if_match(&self, _: &str, _: Bytes, _: &ETag) -> Result<ETag, BucketError> {
            unreachable!("parts are only read")
        }

        async fn delete(&self, _: &str) -> Result<(), BucketError> {
            unreachable!("parts are only read")
        }

        async fn list(&self, _: &ListRequest) -> Result<ListPage, BucketError> {
            unreachable!("parts are only read")
        }
    }

    #[tokio::test]
    async fn a_part_that_many_want_at_once_is_read_once_and_later_anew() {
        let slow = Arc::new(Slow::default());
        let (bucket, parts): (BucketRef, _) = (slow.clone(), Parts::default());
        let gets = || slow.gets.load(Ordering::Relaxed);
        // The first read of a file is taken for its filter, and brings what lies behind.
        let index = parts.get(&bucket, "a.sst", &(900..910)).await.unwrap();
        assert_eq!(index.body.len(), 10);
        let many = |key: &'static str, range: Range<u64>| {
            let (bucket, parts) = (&bucket, &parts);
            futures::future::join_all((0..20).map(move |_| {
                let range = range.clone();
                async move { parts.get(bucket, key, &range).await }
            }))
        };
        let behind = many("a.sst", 910..950).await;
        assert!(
            behind.iter().all(|read| read.is_ok()) && gets() == 1,
            "all find what is kept"
        );
        let read = many("a.sst", 10..30).await;
        assert!(
            read.iter()
                .all(|read| read.as_ref().is_ok_and(|object| object.body.len() == 20))
        );
        assert_eq!(gets(), 2, "they were asked for at the same time");
        parts.get(&bucket, "a.sst", &(10..30)).await.unwrap();
        assert_eq!(gets(), 3, "nothing is kept");
        let missing = many("b.sst", 10..30).await;
        assert!(
            missing
                .iter()
                .all(|read| matches!(read, Err(BucketError::NotFound { .. })))
        );
    }
}
