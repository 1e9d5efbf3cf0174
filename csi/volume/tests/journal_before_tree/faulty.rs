//! A bucket that delays, lies about what happened, holds keys back, and dies at a request.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::watch;
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{Bucket, BucketError, ETag, ListPage, ListRequest, Object, ObjectMeta};

/// Before or after the effect of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Moment {
    Before,
    After,
}

#[derive(Debug, Clone, Copy)]
pub struct Faults {
    pub seed: u64,
    /// Longest delay before the effect and again after it.
    pub delay_max: Duration,
    /// The request, counted from 1, at which nothing is answered any more, ever.
    pub die_at: Option<(u64, Moment)>,
}

impl Faults {
    pub fn delays(seed: u64) -> Self {
        Self {
            seed,
            delay_max: Duration::from_millis(10),
            die_at: None,
        }
    }
}

#[derive(Debug)]
pub struct FaultyBucket {
    inner: Arc<MemoryBucket>,
    faults: Faults,
    random: AtomicU64,
    requests: AtomicU64,
    puts: AtomicU64,
    /// Of 100 puts and deletes, how many claim to have failed: half of them before, half after the effect.
    lies_percent: AtomicU64,
    dead: watch::Sender<bool>,
    /// Puts of keys that contain one of these wait until it is taken out.
    held: watch::Sender<BTreeSet<String>>,
    /// Keys of puts that arrived, in order.
    arrived: Mutex<Vec<String>>,
    /// Keys of all requests that arrived, in order.
    log: Mutex<Vec<String>>,
}

impl FaultyBucket {
    pub fn new(inner: Arc<MemoryBucket>, faults: Faults) -> Arc<Self> {
        Arc::new(Self {
            inner,
            faults,
            random: AtomicU64::new(faults.seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1),
            requests: AtomicU64::new(0),
            puts: AtomicU64::new(0),
            lies_percent: AtomicU64::new(0),
            dead: watch::Sender::new(false),
            held: watch::Sender::new(BTreeSet::new()),
            arrived: Mutex::default(),
            log: Mutex::default(),
        })
    }

    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::SeqCst)
    }

    /// Keys of the requests after the first `from`.
    pub fn log(&self, from: u64) -> Vec<String> {
        self.log.lock().unwrap()[from as usize..].to_vec()
    }

    pub fn puts(&self) -> u64 {
        self.puts.load(Ordering::SeqCst)
    }

    pub fn set_lies(&self, percent: u64) {
        self.lies_percent.store(percent, Ordering::SeqCst);
    }

    /// Holds puts back whose keys contain `part`, before their effect.
    pub fn hold(&self, part: &str) {
        self.held.send_modify(|held| {
            held.insert(part.to_owned());
        });
    }

    pub fn let_go(&self, part: &str) {
        self.held.send_modify(|held| {
            held.remove(part);
        });
    }

    /// Waits until a put of a key that contains `part` has arrived.
    pub async fn arrival(&self, part: &str) {
        while !self.arrived.lock().unwrap().iter().any(|key| key.contains(part)) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns once the bucket has died.
    pub async fn dead(&self) {
        let mut dead = self.dead.subscribe();
        dead.wait_for(|dead| *dead).await.unwrap();
    }

    fn random(&self) -> u64 {
        let step = |mut x: u64| {
            x ^= x << 13;
            x ^= x >> 7;
            x ^ (x << 17)
        };
        let update = |x| Some(step(x));
        self.random
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, update)
            .unwrap()
            >> 11
    }

    async fn delay(&self) {
        let max = self.faults.delay_max.as_micros() as u64;
        if max > 0 {
            tokio::time::sleep(Duration::from_micros(self.random() % max)).await;
        }
    }

    async fn die_if(&self, die: bool) {
        if die {
            self.dead.send_replace(true);
        }
        if *self.dead.borrow() {
            std::future::pending::<()>().await;
        }
    }

    /// Runs a request with all its faults.
    async fn with_faults<T>(
        &self,
        key: &str,
        changes: bool,
        effect: impl Future<Output = Result<T, BucketError>>,
    ) -> Result<T, BucketError> {
        let number = self.requests.fetch_add(1, Ordering::SeqCst) + 1;
        self.log.lock().unwrap().push(key.to_owned());
        let dies = |moment| self.faults.die_at == Some((number, moment));
        self.delay().await;
        self.die_if(dies(Moment::Before)).await;
        let lie =
            (changes && self.random() % 100 < self.lies_percent.load(Ordering::SeqCst)).then(|| self.random() % 2);
        let unavailable = BucketError::Unavailable {
            key: key.to_owned(),
            detail: "made up".to_owned(),
        };
        if lie == Some(0) {
            return Err(unavailable);
        }
        let answer = effect.await;
        self.die_if(dies(Moment::After)).await;
        self.delay().await;
        self.die_if(false).await;
        match lie {
            Some(_) => Err(unavailable),
            None => answer,
        }
    }

    async fn put_arrives(&self, key: &str) {
        self.puts.fetch_add(1, Ordering::SeqCst);
        self.arrived.lock().unwrap().push(key.to_owned());
        let mut held = self.held.subscribe();
        let free = |held: &BTreeSet<String>| !held.iter().any(|part| key.contains(part));
        held.wait_for(free).await.unwrap();
    }
}

#[async_trait]
impl Bucket for FaultyBucket {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.with_faults(key, false, self.inner.get(key, range)).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.with_faults(key, false, self.inner.head(key)).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.put_arrives(key).await;
        self.with_faults(key, true, self.inner.put_if_absent(key, body)).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.put_arrives(key).await;
        self.with_faults(key, true, self.inner.put_if_match(key, body, expected))
            .await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.with_faults(key, true, self.inner.delete(key)).await
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        self.with_faults(key, true, self.inner.delete_if_match(key, expected))
            .await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.with_faults(&request.prefix, false, self.inner.list(request)).await
    }
}
