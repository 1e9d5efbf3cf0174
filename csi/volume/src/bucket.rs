//! The `Bucket` port: the few verbs that a volume needs of an object store, in the volume's words.
//!
//! Invariant for every implementation: a `put_if_absent` or `put_if_match` that returned `Ok` is durable and visible to
//! every later call of anyone; two racers of one key never both get `Ok`. An error other than `Precondition` leaves it
//! unknown whether the effect took place: callers read back and compare, they never assume.
//! Callers: the journal, segments, head, tree and garbage collector of this crate. Absent: listing in a hot path, and
//! retries, which the implementations bound by time (see `csi/s3`).

use std::collections::BTreeMap;
use std::ops::{Bound, Range};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;

use crate::rope::Rope;

pub mod contract;
pub mod memory;

/// The opaque version of an object, as the store returns it (an ETag with its quotes, if it has them).
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ETag(pub String);

/// What `head` and `list` tell of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectMeta {
    /// Full key within the bucket port's root, without a leading slash.
    pub key: String,
    /// Size in bytes.
    pub size_bytes: u64,
    /// Version of the object; a list may leave it out.
    pub etag: Option<ETag>,
    /// Last modification in milliseconds since the Unix epoch, by the store's clock. Never used for safety.
    pub modified_unix_ms: u64,
}

/// The body of an object together with its version.
#[derive(Debug, Clone)]
pub struct Object {
    /// The bytes asked for.
    pub body: Bytes,
    /// The version that they belong to.
    pub etag: ETag,
    /// Size of the whole object in bytes, also when a range was asked for.
    pub size_bytes: u64,
}

/// One page of a listing.
#[derive(Debug, Clone, Default)]
pub struct ListPage {
    /// Objects in ascending order of their keys.
    pub objects: Vec<ObjectMeta>,
    /// Common prefixes, each ending in the delimiter, when one was asked for.
    pub prefixes: Vec<String>,
    /// Give this to the next call; `None` after the last page.
    pub next: Option<String>,
}

/// Which keys to list.
#[derive(Debug, Clone, Default)]
pub struct ListRequest {
    /// Only keys that start with this (no implicit slash).
    pub prefix: String,
    /// Only keys strictly greater than this.
    pub start_after: Option<String>,
    /// Group keys by the first `/` after the prefix.
    pub delimited: bool,
    /// The page token of the previous answer.
    pub page: Option<String>,
    /// At most this many rows in the page; 0 leaves it to the store (1,000 on S3).
    pub rows_max: u32,
}

/// 1,000 rows: what S3 returns at most in one page, and we too, so that nobody forgets to ask for the next one.
pub const LIST_ROWS_MAX: u32 = 1_000;

impl ListRequest {
    /// Answers this request from all keys of a bucket, as S3 would: for stores that hold their keys in memory.
    ///
    /// The page token is the last row of the page, a key or a common prefix.
    pub fn page_of<V>(&self, keys: &BTreeMap<String, V>, meta: impl Fn(&str, &V) -> ObjectMeta) -> ListPage {
        let rows_max = if self.rows_max == 0 {
            LIST_ROWS_MAX
        } else {
            self.rows_max.min(LIST_ROWS_MAX)
        } as usize;
        let after = self.page.as_ref().max(self.start_after.as_ref());
        let start = match after.filter(|after| **after >= self.prefix) {
            Some(after) => Bound::Excluded(after),
            None => Bound::Included(&self.prefix),
        };
        let mut page = ListPage::default();
        let mut last: Option<String> = None;
        for (key, value) in keys.range::<String, _>((start, Bound::Unbounded)) {
            let Some(rest) = key.strip_prefix(&self.prefix) else {
                break;
            };
            let folder = match rest.find('/') {
                Some(at) if self.delimited => Some(key[..self.prefix.len() + at + 1].to_owned()),
                Some(_) | None => None,
            };
            if folder.is_some() && (folder == last || folder == self.page) {
                continue;
            }
            if page.objects.len() + page.prefixes.len() == rows_max {
                page.next = last;
                break;
            }
            last = Some(folder.clone().unwrap_or_else(|| key.clone()));
            match folder {
                Some(folder) => page.prefixes.push(folder),
                None => page.objects.push(meta(key, value)),
            }
        }
        page
    }
}

/// Why a call on the bucket failed. Each variant tells the caller what it may do.
#[derive(Debug, Clone, thiserror::Error)]
pub enum BucketError {
    /// The object does not exist.
    #[error("object {key} does not exist")]
    NotFound {
        /// Key asked for.
        key: String,
    },
    /// A conditional put lost: the key exists (`put_if_absent`) or has another version (`put_if_match`).
    /// An implementation that retries must look whether it met its own first try, and then return `Ok`. It tells by the
    /// bytes: so a body for which winning means something holds a nonce, and equal bytes are never of two writers.
    #[error("object {key} exists or has changed")]
    Precondition {
        /// Key written to.
        key: String,
    },
    /// The bucket itself does not exist.
    #[error("bucket {bucket} does not exist")]
    NoBucket {
        /// Name of the bucket.
        bucket: String,
    },
    /// The store refuses these credentials, or they lack the right.
    #[error("access to {key} denied: {detail}")]
    Denied {
        /// Key or bucket.
        key: String,
        /// The store's own words.
        detail: String,
    },
    /// There are no credentials to ask with.
    #[error("no credentials for {key}: {detail}")]
    NoCredentials {
        /// Key or bucket.
        key: String,
        /// Where they were looked for, and what to do.
        detail: String,
    },
    /// The store lacks something that Pannier needs; retrying is pointless.
    #[error("the store does not support {feature}: {detail}")]
    Unsupported {
        /// For example "conditional put".
        feature: &'static str,
        /// What was seen.
        detail: String,
    },
    /// No answer, a cut answer, 5xx or throttling, after the implementation's own bounded retries. Trying later may work.
    #[error("the store did not answer for {key}: {detail}")]
    Unavailable {
        /// Key or bucket.
        key: String,
        /// The last failure.
        detail: String,
    },
    /// Any other answer that a correct store would not give.
    #[error("unexpected answer of the store for {key}: {detail}")]
    Unexpected {
        /// Key or bucket.
        key: String,
        /// What was seen.
        detail: String,
    },
}

impl BucketError {
    /// True where a later try may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, BucketError::Unavailable { .. })
    }
}

/// An object store, rooted at one bucket and prefix: keys given here are relative to that root.
#[async_trait]
pub trait Bucket: std::fmt::Debug + Send + Sync + 'static {
    /// Reads a whole object, or `range` (bytes, not empty, end exclusive, clamped by the store to the object's end).
    /// A range that begins past the end is `Unexpected`: whoever asks knows from elsewhere how long the object must be.
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError>;

    /// Size and version without the body.
    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError>;

    /// Creates an object; `Precondition` if the key exists. `body` holds a nonce wherever two writers may race
    /// (see `BucketError::Precondition`).
    ///
    /// # Durability
    /// `Ok` means durable in the store.
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError>;

    /// As `put_if_absent`, of what lies in several pieces. This default copies them to one.
    ///
    /// # Durability
    /// `Ok` means durable in the store.
    async fn put_rope_if_absent(&self, key: &str, body: Rope) -> Result<ETag, BucketError> {
        self.put_if_absent(key, body.to_bytes()).await
    }

    /// Replaces version `expected` of an object; `Precondition` if it has another version or is gone. `body` holds a
    /// nonce, and differs from every earlier one: on S3 equal bytes have equal versions.
    ///
    /// # Durability
    /// `Ok` means durable in the store.
    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError>;

    /// Deletes an object; `Ok` if it did not exist.
    async fn delete(&self, key: &str) -> Result<(), BucketError>;

    /// Deletes version `expected` of an object; `Ok` if it is gone, `Precondition` if it has another version.
    ///
    /// Not every store knows conditional deletes. This default looks first and then deletes, which leaves a window: use
    /// it to make a mistake unlikely, never to decide a race.
    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        match self.head(key).await {
            Ok(meta) if meta.etag.as_ref() == Some(expected) => self.delete(key).await,
            Ok(_) => Err(BucketError::Precondition { key: key.to_owned() }),
            Err(BucketError::NotFound { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Lists one page of keys in ascending order.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError>;

    /// The folder above the one that this bucket is rooted at, and the name of that one in it; `None` where nothing is
    /// known to be above.
    fn above(&self) -> Option<(BucketRef, String)> {
        None
    }
}

/// A bucket as it is handed around.
pub type BucketRef = Arc<dyn Bucket>;

/// The bucket seen through a longer prefix: every key gets `prefix` in front, listings lose it again.
#[derive(Debug, Clone)]
pub struct Prefixed {
    inner: BucketRef,
    prefix: String,
}

impl Prefixed {
    /// `prefix` must be empty or end in `/`.
    pub fn new(inner: BucketRef, prefix: impl Into<String>) -> Self {
        let prefix = prefix.into();
        assert!(
            prefix.is_empty() || prefix.ends_with('/'),
            "a prefix ends in a slash: {prefix:?}"
        );
        Self { inner, prefix }
    }

    fn key(&self, key: &str) -> String {
        format!("{}{key}", self.prefix)
    }

    fn strip(&self, key: String) -> String {
        match key.strip_prefix(&self.prefix) {
            Some(rest) => rest.to_owned(),
            None => key,
        }
    }
}

#[async_trait]
impl Bucket for Prefixed {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.inner.get(&self.key(key), range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let mut meta = self.inner.head(&self.key(key)).await?;
        meta.key = self.strip(meta.key);
        Ok(meta)
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.inner.put_if_absent(&self.key(key), body).await
    }

    async fn put_rope_if_absent(&self, key: &str, body: Rope) -> Result<ETag, BucketError> {
        self.inner.put_rope_if_absent(&self.key(key), body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.inner.put_if_match(&self.key(key), body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(&self.key(key)).await
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        self.inner.delete_if_match(&self.key(key), expected).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        let inner = ListRequest {
            prefix: self.key(&request.prefix),
            start_after: request.start_after.as_deref().map(|k| self.key(k)),
            ..request.clone()
        };
        let mut page = self.inner.list(&inner).await?;
        for object in &mut page.objects {
            object.key = self.strip(std::mem::take(&mut object.key));
        }
        for prefix in &mut page.prefixes {
            *prefix = self.strip(std::mem::take(prefix));
        }
        Ok(page)
    }

    fn above(&self) -> Option<(BucketRef, String)> {
        let folder = self.prefix.strip_suffix('/')?;
        Some(match folder.rsplit_once('/') {
            Some((above, name)) => (
                Arc::new(Prefixed::new(Arc::clone(&self.inner), format!("{above}/"))),
                name.to_owned(),
            ),
            None => (Arc::clone(&self.inner), folder.to_owned()),
        })
    }
}
