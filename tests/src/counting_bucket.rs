//! A bucket that counts what is asked of it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use volume::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta};

/// How many requests of each kind.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    /// Reads of objects.
    pub gets: u64,
    /// Those of them that read files of the metadata tree.
    pub tree_gets: u64,
    /// Reads of attributes.
    pub heads: u64,
    /// Objects written.
    pub puts: u64,
    /// Objects deleted: S3 does not charge for them.
    pub deletes: u64,
    /// Pages listed.
    pub lists: u64,
}

impl Counts {
    /// All of them together.
    pub fn total(&self) -> u64 {
        self.gets + self.heads + self.puts + self.deletes + self.lists
    }

    /// What came since `before`.
    #[must_use]
    pub fn since(&self, before: &Counts) -> Counts {
        Counts {
            gets: self.gets - before.gets,
            tree_gets: self.tree_gets - before.tree_gets,
            heads: self.heads - before.heads,
            puts: self.puts - before.puts,
            deletes: self.deletes - before.deletes,
            lists: self.lists - before.lists,
        }
    }
}

/// The bucket.
#[derive(Debug)]
pub struct CountingBucket {
    inner: BucketRef,
    gets: AtomicU64,
    tree_gets: AtomicU64,
    heads: AtomicU64,
    puts: AtomicU64,
    deletes: AtomicU64,
    lists: AtomicU64,
}

impl CountingBucket {
    /// Counts what is asked of `inner` through it.
    pub fn new(inner: BucketRef) -> Self {
        let zero = || AtomicU64::new(0);
        Self {
            inner,
            gets: zero(),
            tree_gets: zero(),
            heads: zero(),
            puts: zero(),
            deletes: zero(),
            lists: zero(),
        }
    }

    /// What was asked so far.
    pub fn counts(&self) -> Counts {
        let read = |count: &AtomicU64| count.load(Ordering::SeqCst);
        Counts {
            gets: read(&self.gets),
            tree_gets: read(&self.tree_gets),
            heads: read(&self.heads),
            puts: read(&self.puts),
            deletes: read(&self.deletes),
            lists: read(&self.lists),
        }
    }
}

fn count(counter: &AtomicU64) {
    counter.fetch_add(1, Ordering::SeqCst);
}

#[async_trait]
impl Bucket for CountingBucket {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        count(&self.gets);
        if key.contains("/m/") {
            count(&self.tree_gets);
        }
        self.inner.get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        count(&self.heads);
        self.inner.head(key).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        count(&self.puts);
        self.inner.put_if_absent(key, body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        count(&self.puts);
        self.inner.put_if_match(key, body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        count(&self.deletes);
        self.inner.delete(key).await
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        count(&self.deletes);
        self.inner.delete_if_match(key, expected).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        count(&self.lists);
        self.inner.list(request).await
    }
}
