//! From a volume's location to its bucket: stores that are shared, and buckets whose credentials can be replaced.
//!
//! Invariant: volumes with equal access share one `S3Store`, so one pool of connections; it ends with the last of them.
//! Callers: `open.rs`, the engine's `SetCredentials`. Absent: retries and errors of requests (`volume-s3`).

use std::ops::Range;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, RwLock, Weak};

use async_trait::async_trait;
use bytes::Bytes;
use volume::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta, Prefixed};
use volume::rope::Rope;
use volume_s3::{ConnectError, Counters, Credentials, PutOptions, S3Location, S3Options, S3Store};

/// How to reach a store.
#[derive(Debug, Clone, Default)]
pub struct Access {
    /// URL of the store; `None` for what the environment says, or Amazon's.
    pub endpoint: Option<String>,
    /// Region; `None` for what the environment says.
    pub region: Option<String>,
    /// Address the bucket in the path; `None` for yes at an own endpoint.
    pub path_style: Option<bool>,
    /// What each put says besides its content.
    pub put: PutOptions,
    /// File of PEM certificates to trust besides the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Keys; `None` for the usual chain.
    pub keys: Option<Keys>,
}

/// Explicit credentials. Not shown by `Debug`, except whose they are.
#[derive(Clone, PartialEq, Eq)]
pub struct Keys {
    /// Access key id.
    pub id: String,
    /// Secret access key.
    pub secret: String,
    /// Of temporary credentials.
    pub session_token: Option<String>,
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Keys").field("id", &self.id).finish_non_exhaustive()
    }
}

impl Access {
    fn is_same(&self, other: &Access) -> bool {
        let of = |access: &Access| (access.endpoint.clone(), access.region.clone(), access.path_style);
        of(self) == of(other) && self.put == other.put && self.ca_bundle == other.ca_bundle && self.keys == other.keys
    }
}

/// The stores in use.
#[derive(Debug, Default)]
pub struct Stores {
    /// Never held across a request.
    open: Mutex<Vec<(Access, Weak<S3Store>)>>,
    /// All requests of this process, whatever store they went to.
    counters: Arc<Counters>,
}

impl Stores {
    /// The store behind `access`.
    ///
    /// # Errors
    /// `ConnectError` for options that cannot work; nothing is asked of the store.
    pub async fn store(&self, access: &Access) -> Result<Arc<S3Store>, ConnectError> {
        if let Some(store) = self.find(access) {
            return Ok(store);
        }
        let credentials = match access.keys.clone() {
            None => Credentials::Chain,
            Some(Keys {
                id,
                secret,
                session_token,
            }) => Credentials::Keys {
                id,
                secret,
                session_token,
            },
        };
        let store = S3Store::connect(S3Options {
            endpoint: access.endpoint.clone(),
            region: access.region.clone(),
            path_style: access.path_style,
            ca_bundle: access.ca_bundle.clone(),
            credentials,
            put: access.put.clone(),
            counters: Some(Arc::clone(&self.counters)),
            ..S3Options::default()
        })
        .await?;
        let mut open = self
            .open
            .lock()
            .expect("nothing panics while it looks through the stores");
        open.retain(|(_, store)| store.strong_count() > 0);
        open.push((access.clone(), Arc::downgrade(&store)));
        Ok(store)
    }

    /// What was asked of all stores so far.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    fn find(&self, access: &Access) -> Option<Arc<S3Store>> {
        let open = self
            .open
            .lock()
            .expect("nothing panics while it looks through the stores");
        open.iter()
            .find(|(with, _)| with.is_same(access))
            .and_then(|(_, store)| store.upgrade())
    }
}

/// A bucket whose store can be exchanged for one with other credentials while it is in use. It shows all of the bucket: a
/// clone reads what lies in the folders beside its own, with the same credentials.
#[derive(Debug)]
pub struct ReplaceableBucket {
    name: String,
    /// Held only to clone or replace the reference.
    current: RwLock<BucketRef>,
}

impl ReplaceableBucket {
    /// The bucket called `name` in `store`.
    pub fn new(store: &Arc<S3Store>, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            current: RwLock::new(Arc::new(store.bucket(name))),
        }
    }

    /// A place in it, as the port that volumes are kept in.
    pub fn root(self: &Arc<Self>, location: &S3Location) -> BucketRef {
        Arc::new(Prefixed::new(self.clone(), location.prefix.clone()))
    }

    /// Every request from the next one on goes to `store`.
    pub fn replace(&self, store: &Arc<S3Store>) {
        *self.current.write().expect("nothing panics while it holds this") = Arc::new(store.bucket(&self.name));
    }

    fn current(&self) -> BucketRef {
        self.current.read().expect("nothing panics while it holds this").clone()
    }
}

#[async_trait]
impl Bucket for ReplaceableBucket {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.current().get(key, range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.current().head(key).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.current().put_if_absent(key, body).await
    }

    async fn put_rope_if_absent(&self, key: &str, body: Rope) -> Result<ETag, BucketError> {
        self.current().put_rope_if_absent(key, body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.current().put_if_match(key, body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.current().delete(key).await
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        self.current().delete_if_match(key, expected).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.current().list(request).await
    }
}
