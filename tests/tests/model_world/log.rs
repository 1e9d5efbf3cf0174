//! What a mount asked the bucket to change, with the moments at which each request began and ended: what the bucket may look
//! like if everything stops at a moment follows from it.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use bytes::Bytes;
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{Bucket, ETag};

/// A point in the order of all that happens in a world.
pub type Moment = u64;

/// What a request changes.
#[derive(Debug, Clone)]
pub enum Change {
    /// `put_if_absent`.
    PutIfAbsent(Bytes),
    /// `put_if_match`.
    PutIfMatch(Bytes, ETag),
    /// `delete`.
    Delete,
}

/// A request that changes the bucket.
#[derive(Debug, Clone)]
pub struct Request {
    /// The object.
    pub key: String,
    /// What it asks for.
    pub change: Change,
    /// When it was made.
    pub began: Moment,
    /// When it was answered; `None` while it is under way.
    pub ended: Option<Moment>,
}

impl Request {
    /// Does it. A condition that does not hold is an answer like any other.
    pub async fn take_effect(&self, bucket: &MemoryBucket) {
        let _ = match &self.change {
            Change::PutIfAbsent(body) => bucket.put_if_absent(&self.key, body.clone()).await.map(drop),
            Change::PutIfMatch(body, expected) => {
                bucket.put_if_match(&self.key, body.clone(), expected).await.map(drop)
            }
            Change::Delete => bucket.delete(&self.key).await,
        };
    }
}

/// All requests of a world, in the order in which they began.
#[derive(Debug, Default)]
pub struct Log {
    clock: AtomicU64,
    requests: Mutex<Vec<Request>>,
}

impl Log {
    /// The next moment.
    pub fn tick(&self) -> Moment {
        self.clock.fetch_add(1, Ordering::SeqCst)
    }

    /// A request is made: its number.
    pub fn begins(&self, key: &str, change: Change) -> usize {
        let mut requests = self.lock();
        requests.push(Request {
            key: key.to_owned(),
            change,
            began: self.tick(),
            ended: None,
        });
        requests.len() - 1
    }

    /// It is about to be answered.
    pub fn ends(&self, request: usize) {
        self.lock()[request].ended = Some(self.tick());
    }

    /// All of them so far.
    pub fn requests(&self) -> Vec<Request> {
        self.lock().clone()
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Request>> {
        self.requests.lock().expect("nobody panics while it holds the log")
    }
}
