//! A bucket that misbehaves as real ones and networks do. This header is the fault model.
//!
//! | fault | what the caller sees | what happened |
//! |---|---|---|
//! | latency | the answer, late | all as it should be; calls overtake each other |
//! | fail before | `Unavailable` | nothing |
//! | fail after the effect | `Unavailable` | the put or delete took place before the answer was lost |
//! | late effect | `Unavailable` | the put or delete takes place some time later, if its condition still holds then |
//! | stale 412 | `Precondition` | the put took place; a repetition below the port met it (a client that cannot look itself up) |
//! | cut body | `Unavailable` | nothing; the body of a read ended early, which the client noticed |
//! | outage | `Unavailable`, for as long as it lasts | nothing |
//! | crash | `Unavailable`, for ever | the call it struck took place or not, by the seed; later calls do not reach the store |
//! | bit flip | the changed bytes | the store lost a bit of an object at rest; the version stays believable |
//!
//! Each was seen to break a volume with a mistake made on purpose (`tests/volume/faults.rs` plays each fault alone; the
//! right version passed the same worlds):
//!
//! | fault | mistake | what was seen |
//! |---|---|---|
//! | latency | a commit is acknowledged when it lands, not in its turn | the assertion that durability is told in order |
//! | latency | a refused seal is taken for one's own earlier try, a failed read for the end of the journal | 46 of 333 synced appends left |
//! | fail before | a put that was not answered is taken for done | 11 appends synced, none found |
//! | fail after the effect | a repeated put that is refused is taken for another mount's seal | a program was told that the volume is fenced |
//! | late effect | the same | the same |
//! | stale 412 | a first put that is refused is taken for another mount's seal | the same |
//! | cut body | a read that failed is told to the program, not repeated | a read of content failed |
//! | outage | a put is given up after eight tries | a program was refused when the store was back |
//! | crash | a commit is acknowledged when it is sent | 20 appends synced, 19 found |
//! | bit flip | the checksum of a frame is not compared | content that nobody wrote |
//!
//! Not in the model, because no store that passes the probe does it: lost objects after `Ok`, two winners of a race, lists
//! or reads that lag behind. Everything follows from the seed and the order of the calls, so under a current-thread
//! runtime with paused time one seed is one run.

use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use volume::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta};

/// How often things go wrong: each number is in thousandths of the calls that it can strike.
#[derive(Debug, Clone, Default)]
pub struct Faults {
    /// Latency of every call, uniform in this range.
    pub latency: Range<Duration>,
    /// Any call fails before it reaches the store.
    pub fail_before: u32,
    /// A put or delete takes place, and its answer is lost.
    pub fail_after: u32,
    /// A put or delete is reported lost and takes place later, within `late_by`.
    pub late_effect: u32,
    /// How late at most.
    pub late_by: Duration,
    /// A put that took place is answered `Precondition`.
    pub stale_precondition: u32,
    /// The body of a get is cut.
    pub cut_body: u32,
}

impl Faults {
    /// None.
    pub fn none() -> Self {
        Self::default()
    }

    /// Every fault of the model, each often enough to meet all in a hundred calls, seldom enough to get on.
    pub fn all() -> Self {
        Self {
            latency: Duration::from_millis(1)..Duration::from_millis(40),
            fail_before: 40,
            fail_after: 40,
            late_effect: 20,
            late_by: Duration::from_millis(500),
            stale_precondition: 20,
            cut_body: 20,
        }
    }
}

/// A put or delete that reached the store, in the order of their effects.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Mutation {
    /// Took place, with this body.
    Put(String, Bytes),
    /// Took place.
    Delete(String),
}

/// The bucket.
#[derive(Debug)]
pub struct FaultyBucket {
    inner: BucketRef,
    faults: Mutex<Faults>,
    chance: AtomicU64,
    available: AtomicBool,
    crashed: AtomicBool,
    /// Mutating calls until the crash; `u64::MAX` for none.
    mutations_left: AtomicU64,
    history: std::sync::Arc<Mutex<Vec<Mutation>>>,
}

/// What strikes one call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Strike {
    None,
    Before,
    After,
    Late(Duration),
    Stale,
    Cut,
}

impl FaultyBucket {
    /// Wraps a bucket that behaves. The same seed and the same order of calls give the same faults.
    pub fn new(inner: BucketRef, seed: u64, faults: Faults) -> Self {
        Self {
            inner,
            faults: Mutex::new(faults),
            // Neighbouring seeds must not be each other's next draw.
            chance: AtomicU64::new(mix(seed.wrapping_add(0x5851_f42d_4c95_7f2d))),
            available: AtomicBool::new(true),
            crashed: AtomicBool::new(false),
            mutations_left: AtomicU64::new(u64::MAX),
            history: std::sync::Arc::default(),
        }
    }

    /// Changes how often things go wrong from now on.
    pub fn set_faults(&self, faults: Faults) {
        *self.faults.lock().expect("nothing panics while it holds the faults") = faults;
    }

    /// Begins (false) or ends (true) an outage.
    pub fn set_available(&self, available: bool) {
        self.available.store(available, Ordering::SeqCst);
    }

    /// Crashes the caller's world now: no later call reaches the store. What was late may still land.
    pub fn crash(&self) {
        self.crashed.store(true, Ordering::SeqCst);
    }

    /// Crashes at the `mutations`-th put or delete from now, from 1. Whether that one takes place is up to the seed.
    pub fn crash_at(&self, mutations: u64) {
        assert!(mutations > 0, "mutations are counted from 1");
        self.mutations_left.store(mutations, Ordering::SeqCst);
    }

    /// True after a crash.
    pub fn is_crashed(&self) -> bool {
        self.crashed.load(Ordering::SeqCst)
    }

    /// What took place in the store through this bucket, in order.
    pub fn history(&self) -> Vec<Mutation> {
        self.history.lock().expect("nothing panics while it records").clone()
    }

    fn draw(&self) -> u64 {
        mix(self.chance.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::SeqCst))
    }

    fn draw_below(&self, longest: Duration) -> Duration {
        longest.mul_f64((self.draw() >> 11) as f64 / (1u64 << 53) as f64)
    }

    /// Waits, and decides what strikes a call. `Err` where it does not reach the store.
    async fn enter(&self, key: &str, mutates: bool) -> Result<Strike, BucketError> {
        let faults = self
            .faults
            .lock()
            .expect("nothing panics while it holds the faults")
            .clone();
        let wait = faults.latency.start + self.draw_below(faults.latency.end.saturating_sub(faults.latency.start));
        let draw = self.draw() % 1000;
        let late = self.draw_below(faults.late_by);
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
        if self.is_crashed() {
            return Err(unavailable(key, "crashed"));
        }
        if !self.available.load(Ordering::SeqCst) {
            return Err(unavailable(key, "outage"));
        }
        if mutates && self.mutations_left.fetch_sub(1, Ordering::SeqCst) == 1 {
            self.crash();
            return if self.draw().is_multiple_of(2) {
                Ok(Strike::After)
            } else {
                Err(unavailable(key, "crashed"))
            };
        }
        let table = [
            (faults.fail_before, true, Strike::Before),
            (faults.fail_after, mutates, Strike::After),
            (faults.late_effect, mutates, Strike::Late(late)),
            (faults.stale_precondition, mutates, Strike::Stale),
            (faults.cut_body, !mutates, Strike::Cut),
        ];
        let mut bound = 0;
        for (thousandths, applies, strike) in table {
            bound += u64::from(thousandths);
            if draw < bound {
                return match strike {
                    Strike::Before if applies => Err(unavailable(key, "no connection")),
                    strike if applies => Ok(strike),
                    _ => Ok(Strike::None),
                };
            }
        }
        Ok(Strike::None)
    }

    async fn mutate(&self, key: &str, what: Change) -> Result<Option<ETag>, BucketError> {
        let strike = self.enter(key, true).await?;
        let (inner, history, key) = (self.inner.clone(), self.history.clone(), key.to_owned());
        if let Strike::Late(delay) = strike {
            let error = unavailable(&key, "no answer");
            tokio::spawn(async move {
                tokio::time::sleep(delay).await;
                // Nobody waits for this answer any more.
                drop(what.carry_out(&inner, &history, &key).await);
            });
            return Err(error);
        }
        let is_put = !matches!(what, Change::Delete(_));
        let answer = what.carry_out(&inner, &history, &key).await;
        match strike {
            Strike::After => Err(unavailable(&key, "no answer")),
            Strike::Stale if is_put && answer.is_ok() => Err(BucketError::Precondition { key }),
            _ => answer,
        }
    }
}

#[derive(Debug)]
enum Change {
    Create(Bytes),
    Replace(Bytes, ETag),
    Delete(Option<ETag>),
}

impl Change {
    async fn carry_out(
        self,
        inner: &BucketRef,
        history: &Mutex<Vec<Mutation>>,
        key: &str,
    ) -> Result<Option<ETag>, BucketError> {
        let record = |mutation| history.lock().expect("nothing panics while it records").push(mutation);
        match self {
            Change::Create(body) => {
                let etag = inner.put_if_absent(key, body.clone()).await?;
                record(Mutation::Put(key.to_owned(), body));
                Ok(Some(etag))
            }
            Change::Replace(body, expected) => {
                let etag = inner.put_if_match(key, body.clone(), &expected).await?;
                record(Mutation::Put(key.to_owned(), body));
                Ok(Some(etag))
            }
            Change::Delete(expected) => {
                match expected {
                    Some(expected) => inner.delete_if_match(key, &expected).await?,
                    None => inner.delete(key).await?,
                }
                record(Mutation::Delete(key.to_owned()));
                Ok(None)
            }
        }
    }
}

/// Flips one bit of an object at rest, behind everybody's back.
///
/// # Errors
/// What the bucket answers; `NotFound` if there is no such object.
pub async fn flip_bit(bucket: &BucketRef, key: &str, bit: u64) -> Result<(), BucketError> {
    let object = bucket.get(key, None).await?;
    let mut body = object.body.to_vec();
    assert!(
        bit < object.size_bytes * 8,
        "{key} has {} bytes, and no bit {bit}",
        body.len()
    );
    body[(bit / 8) as usize] ^= 1 << (bit % 8);
    bucket.put_if_match(key, body.into(), &object.etag).await.map(drop)
}

fn unavailable(key: &str, detail: &str) -> BucketError {
    BucketError::Unavailable {
        key: key.to_owned(),
        detail: detail.to_owned(),
    }
}

/// SplitMix64's output function.
fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[async_trait]
impl Bucket for FaultyBucket {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        match self.enter(key, false).await? {
            Strike::Cut => Err(unavailable(key, "the body was cut")),
            _ => self.inner.get(key, range).await,
        }
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.enter(key, false).await?;
        self.inner.head(key).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        let etag = self.mutate(key, Change::Create(body)).await?;
        Ok(etag.expect("a put that took place has a version"))
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        let etag = self.mutate(key, Change::Replace(body, expected.clone())).await?;
        Ok(etag.expect("a put that took place has a version"))
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.mutate(key, Change::Delete(None)).await.map(drop)
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        self.mutate(key, Change::Delete(Some(expected.clone()))).await.map(drop)
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.enter(&request.prefix, false).await?;
        self.inner.list(request).await
    }
}
