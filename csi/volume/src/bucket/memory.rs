//! A well-behaved bucket in memory, for tests and simulations.
//!
//! It keeps every promise of the port, among them strongly consistent lists. Like S3's, its versions are made from the
//! bytes alone: writing the same bytes again gives the same version, so code that mistakes an equal version for an
//! untouched object fails here as it would there. Absent: faults (see `tests/src/faulty_bucket.rs`) and a clock, so
//! every modification time is 0.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;

use super::{Bucket, BucketError, ETag, ListPage, ListRequest, Object, ObjectMeta};

/// An object store that lives as long as this value.
#[derive(Debug, Default)]
pub struct MemoryBucket {
    /// Held for the length of one verb, never across an await.
    objects: Mutex<BTreeMap<String, Bytes>>,
}

impl MemoryBucket {
    /// An empty bucket.
    pub fn new() -> Self {
        Self::default()
    }

    /// A bucket that begins with the same objects and goes its own way.
    #[must_use]
    pub fn fork(&self) -> Self {
        Self {
            objects: Mutex::new(self.lock().clone()),
        }
    }

    /// All keys in ascending order, for assertions.
    pub fn keys(&self) -> Vec<String> {
        self.lock().keys().cloned().collect()
    }

    /// Sum of the sizes of all objects.
    pub fn size_bytes(&self) -> u64 {
        self.lock().values().map(|body| body.len() as u64).sum()
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, Bytes>> {
        self.objects.lock().expect("no verb panics while it holds the objects")
    }
}

fn etag_of(body: &[u8]) -> ETag {
    let half = |salt: u8| {
        let mut hasher = DefaultHasher::new();
        salt.hash(&mut hasher);
        body.hash(&mut hasher);
        hasher.finish()
    };
    ETag(format!("\"{:016x}{:016x}\"", half(0), half(1)))
}

fn meta_of(key: &str, body: &Bytes) -> ObjectMeta {
    ObjectMeta {
        key: key.to_owned(),
        size_bytes: body.len() as u64,
        etag: Some(etag_of(body)),
        modified_unix_ms: 0,
    }
}

fn missing(key: &str) -> BucketError {
    BucketError::NotFound { key: key.to_owned() }
}

fn lost(key: &str) -> BucketError {
    BucketError::Precondition { key: key.to_owned() }
}

fn slice(key: &str, body: &Bytes, range: &Range<u64>) -> Result<Bytes, BucketError> {
    assert!(
        range.start < range.end,
        "an empty range of {key} was asked for: {range:?}"
    );
    let size = body.len() as u64;
    if range.start >= size {
        return Err(BucketError::Unexpected {
            key: key.to_owned(),
            detail: format!("range {range:?} begins past the end, at {size}"),
        });
    }
    // Both ends are at most the length of a body in memory, so they fit a usize.
    Ok(body.slice(range.start as usize..range.end.min(size) as usize))
}

#[async_trait]
impl Bucket for MemoryBucket {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let whole = self.lock().get(key).cloned().ok_or_else(|| missing(key))?;
        let body = match &range {
            Some(range) => slice(key, &whole, range)?,
            None => whole.clone(),
        };
        Ok(Object {
            body,
            etag: etag_of(&whole),
            size_bytes: whole.len() as u64,
        })
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.lock()
            .get(key)
            .map(|body| meta_of(key, body))
            .ok_or_else(|| missing(key))
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        let mut objects = self.lock();
        if objects.contains_key(key) {
            return Err(lost(key));
        }
        let etag = etag_of(&body);
        objects.insert(key.to_owned(), body);
        Ok(etag)
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        let mut objects = self.lock();
        match objects.get_mut(key) {
            Some(old) if etag_of(old) == *expected => {
                *old = body;
                Ok(etag_of(old))
            }
            Some(_) | None => Err(lost(key)),
        }
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.lock().remove(key);
        Ok(())
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        let mut objects = self.lock();
        match objects.get(key) {
            Some(body) if etag_of(body) == *expected => objects.remove(key),
            Some(_) => return Err(lost(key)),
            None => None,
        };
        Ok(())
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        Ok(request.page_of(&self.lock(), meta_of))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::{BucketRef, Prefixed, contract};
    use super::*;

    #[tokio::test]
    async fn the_bucket_in_memory_keeps_the_contract() {
        let memory = Arc::new(MemoryBucket::new());
        let bucket: BucketRef = memory.clone();
        contract::check(&bucket, "").await.unwrap();
        assert_eq!(memory.keys(), Vec::<String>::new(), "the check leaves nothing behind");
    }

    #[tokio::test]
    async fn a_prefixed_bucket_keeps_the_contract_and_its_neighbours() {
        let memory = Arc::new(MemoryBucket::new());
        let bucket: BucketRef = memory.clone();
        bucket
            .put_if_absent("neighbour", Bytes::from_static(b"n"))
            .await
            .unwrap();
        let prefixed: BucketRef = Arc::new(Prefixed::new(bucket, "team/a/"));
        contract::check(&prefixed, "deep/").await.unwrap();
        assert_eq!(memory.keys(), ["neighbour"]);
    }

    #[tokio::test]
    async fn equal_bytes_have_equal_versions_as_on_s3() {
        let bucket = MemoryBucket::new();
        let first = bucket.put_if_absent("k", Bytes::from_static(b"same")).await.unwrap();
        let other = bucket
            .put_if_match("k", Bytes::from_static(b"other"), &first)
            .await
            .unwrap();
        assert_ne!(first, other);
        let back = bucket
            .put_if_match("k", Bytes::from_static(b"same"), &other)
            .await
            .unwrap();
        assert_eq!(first, back);
    }
}
