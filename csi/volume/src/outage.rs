//! The store as a mount sees it: whether it answers, since when it does not, and what operations do meanwhile.
//!
//! Every request of a mount passes a `Watched` bucket, which notes how it ended. What the store does not do for now (it is
//! away, or refuses the keys) is waited for, by policy without end or for a time; then what needs the store fails until it
//! answers again. Reads and writes are told apart: keys that may only read let readers go on.
//! Invariants: nothing that was acknowledged is given up by an outage; what is in RAM or a cache is answered during one;
//! while one lasts somebody asks the store every few seconds, so its end is noticed also where all operations have failed.
//! Callers: `mount.rs` and `ops/` wait here; the engine shows it. Absent: repeating requests (the bucket's work, and the
//! commit's).

use std::fmt;
use std::ops::Range;
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, Weak};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta};
use crate::error::FsError;
use crate::head::ParameterError;
use crate::rope::Rope;

/// 2 s between looks whether the store is back, and between repeated reads: one small request, as long as an outage lasts.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// 60 s between two log lines about one outage.
const TELL_EVERY: Duration = Duration::from_secs(60);

/// 10 s without any answer, though one is waited for: shown as trouble before the first request has given up.
const SILENCE: Duration = Duration::from_secs(10);

/// 1 s to a day: a shorter patience would fail programs for a single slow request.
const PATIENCE_S: Range<u64> = 1..86_401;

/// What operations that need the store do while it does not answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum OnOutage {
    /// They wait until it is back.
    #[default]
    Block,
    /// They fail once it has been away for so many seconds, until it is back.
    FailAfterS(u64),
}

impl OnOutage {
    /// True for the default.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    fn patience(self) -> Option<Duration> {
        match self {
            OnOutage::Block => None,
            OnOutage::FailAfterS(seconds) => Some(Duration::from_secs(seconds)),
        }
    }
}

impl fmt::Display for OnOutage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            OnOutage::Block => f.write_str("block"),
            OnOutage::FailAfterS(seconds) => write!(f, "eio:{seconds}s"),
        }
    }
}

impl FromStr for OnOutage {
    type Err = ParameterError;

    fn from_str(value: &str) -> Result<Self, ParameterError> {
        if value == "block" {
            return Ok(OnOutage::Block);
        }
        let units = [("s", 1), ("m", 60), ("h", 3_600)];
        let time = value.strip_prefix("eio:").and_then(|time| {
            let (number, unit) = units.iter().find_map(|(unit, s)| Some((time.strip_suffix(unit)?, s)))?;
            number.parse::<u64>().ok()?.checked_mul(*unit)
        });
        match time.filter(|seconds| PATIENCE_S.contains(seconds)) {
            Some(seconds) => Ok(OnOutage::FailAfterS(seconds)),
            None => Err(ParameterError::Value {
                name: "s3_outage",
                value: value.to_owned(),
                known: "block, or eio: and a time from 1s to 24h, for example eio:30s",
            }),
        }
    }
}

/// An outage, as people read of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outage {
    /// How long it has lasted.
    pub lasts: Duration,
    /// The last failure, or that nothing comes at all.
    pub detail: String,
}

impl fmt::Display for Outage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "for {} s: {}", self.lasts.as_secs(), self.detail)
    }
}

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Way {
    Reading,
    Writing,
}

/// One way's requests.
#[derive(Debug, Default)]
struct Side {
    asking: u32,
    /// Since when requests wait or fail and none has been answered.
    silent_since: Option<Instant>,
    failure: Option<String>,
    told: Option<Instant>,
}

#[derive(Debug, Default)]
struct Sides {
    reading: Side,
    writing: Side,
    /// Somebody asks from time to time whether the store is back.
    looking: bool,
}

impl Sides {
    fn of(&mut self, way: Way) -> &mut Side {
        match way {
            Way::Reading => &mut self.reading,
            Way::Writing => &mut self.writing,
        }
    }
}

#[derive(Debug, Default)]
struct Inner {
    /// Held for a moment, never across an await.
    sides: Mutex<Sides>,
    /// Told of each answer, and of each first failure.
    changed: Notify,
    policy: OnceLock<OnOutage>,
}

/// What is known of the store. Cheap to clone: all clones are of one mount.
#[derive(Debug, Clone, Default)]
pub(crate) struct Watch {
    inner: Arc<Inner>,
}

impl Watch {
    /// The bucket, watched.
    pub fn over(&self, bucket: BucketRef) -> BucketRef {
        Arc::new(Watched {
            bucket,
            watch: self.clone(),
        })
    }

    /// What to do in an outage, from now on. Before that operations wait.
    pub fn obey(&self, policy: OnOutage) {
        let _ = self.inner.policy.set(policy);
    }

    /// The outage there is now, if there is one.
    pub fn outage(&self) -> Option<Outage> {
        let sides = self.sides();
        let both = [&sides.reading, &sides.writing];
        let troubled = both.into_iter().filter_map(|side| {
            let lasts = side.silent_since?.elapsed();
            let detail = match &side.failure {
                Some(failure) => failure.clone(),
                None if lasts >= SILENCE => "the store does not answer".to_owned(),
                None => return None,
            };
            Some(Outage { lasts, detail })
        });
        troubled.max_by_key(|outage| outage.lasts)
    }

    /// Does what needs the store; gives up by the volume's policy.
    ///
    /// # Errors
    /// `StoreAway`, and the work's own.
    pub async fn bounded<T>(&self, way: Way, work: impl Future<Output = Result<T, FsError>>) -> Result<T, FsError> {
        tokio::select! {
            // What needs no request is done at once, also in an outage.
            biased;
            done = work => done,
            away = self.gave_up(way) => Err(away),
        }
    }

    /// Waits a moment before a failed read is tried again: until the store has answered somebody, or a few seconds.
    ///
    /// # Errors
    /// `StoreAway`.
    pub async fn pause(&self, way: Way) -> Result<(), FsError> {
        let answered = async {
            let _ = tokio::time::timeout(LOOK_EVERY, self.inner.changed.notified()).await;
            // Who answers all others at once may fail this very request for ever.
            tokio::time::sleep(LOOK_EVERY / 10).await;
            Ok(())
        };
        self.bounded(way, answered).await
    }

    /// Waits until the patience of the policy is at an end.
    async fn gave_up(&self, way: Way) -> FsError {
        loop {
            let changed = self.inner.changed.notified();
            let mut changed = std::pin::pin!(changed);
            changed.as_mut().enable();
            let patience = self.inner.policy.get().and_then(|policy| policy.patience());
            let since = self.sides().of(way).silent_since;
            let end = match (patience, since) {
                (Some(patience), Some(since)) => since + patience,
                _ => {
                    changed.await;
                    continue;
                }
            };
            tokio::select! {
                biased;
                () = changed => {}
                () = tokio::time::sleep_until(end) => return self.away(way),
            }
        }
    }

    fn away(&self, way: Way) -> FsError {
        let mut sides = self.sides();
        let side = sides.of(way);
        FsError::StoreAway {
            seconds: side.silent_since.map_or(0, |since| since.elapsed().as_secs()),
            detail: side.failure.clone().unwrap_or_else(|| "no answer".to_owned()),
        }
    }

    fn sides(&self) -> MutexGuard<'_, Sides> {
        self.inner.sides.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn begin(&self, way: Way) -> Asking<'_> {
        let mut sides = self.sides();
        let side = sides.of(way);
        side.asking += 1;
        if side.silent_since.is_none() {
            side.silent_since = Some(Instant::now());
            self.inner.changed.notify_waiters();
        }
        Asking { watch: self, way }
    }

    fn answered(&self, way: Way) {
        let mut sides = self.sides();
        let side = sides.of(way);
        side.silent_since = (side.asking > 0).then(Instant::now);
        if side.failure.take().is_some() {
            tracing::info!(?way, "the store answers again");
        }
        side.told = None;
        drop(sides);
        self.inner.changed.notify_waiters();
    }

    fn failed(&self, way: Way, error: &BucketError, bucket: &BucketRef) {
        let mut sides = self.sides();
        let side = sides.of(way);
        let now = Instant::now();
        side.failure = Some(error.to_string());
        let since = *side.silent_since.get_or_insert(now);
        if side.told.is_none_or(|told| now - told >= TELL_EVERY) {
            side.told = Some(now);
            tracing::error!(
                ?way,
                for_s = (now - since).as_secs(),
                "the store is in trouble, what needs it waits: {error}"
            );
        }
        let look = !std::mem::replace(&mut sides.looking, true);
        drop(sides);
        self.inner.changed.notify_waiters();
        if look {
            tokio::spawn(look_for_the_end(Arc::downgrade(&self.inner), bucket.clone()));
        }
    }
}

/// A request under way.
struct Asking<'a> {
    watch: &'a Watch,
    way: Way,
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut sides = self.watch.sides();
        let side = sides.of(self.way);
        side.asking -= 1;
        // Given up by whoever asked, before the store had a chance to answer or fail.
        if side.asking == 0 && side.failure.is_none() {
            side.silent_since = None;
        }
    }
}

/// Asks for the volume's head until reading works again. What could not be written is tried again by its commit.
async fn look_for_the_end(watch: Weak<Inner>, bucket: BucketRef) {
    let mut wait = LOOK_EVERY;
    loop {
        tokio::time::sleep(wait).await;
        let Some(inner) = watch.upgrade() else { return };
        let watch = Watch { inner };
        {
            let mut sides = watch.sides();
            if sides.reading.failure.is_none() && sides.writing.failure.is_none() {
                sides.looking = false;
                return;
            }
        }
        // Where only writing fails, readers learn by this whether they are concerned, and need no more.
        wait = LOOK_EVERY * 5;
        match bucket.head("head").await {
            Err(error) if is_outage(&error) => {
                wait = LOOK_EVERY;
                watch.failed(Way::Reading, &error, &bucket);
            }
            Ok(_) | Err(_) => watch.answered(Way::Reading),
        }
    }
}

/// True where the same request may succeed later, when the store is back or takes the keys.
pub(crate) fn is_outage(error: &BucketError) -> bool {
    match error {
        BucketError::Unavailable { .. } | BucketError::Denied { .. } | BucketError::NoCredentials { .. } => true,
        BucketError::NotFound { .. }
        | BucketError::Precondition { .. }
        | BucketError::NoBucket { .. }
        | BucketError::Unsupported { .. }
        | BucketError::Unexpected { .. } => false,
    }
}

/// A bucket whose answers are noted.
#[derive(Debug)]
struct Watched {
    bucket: BucketRef,
    watch: Watch,
}

impl Watched {
    async fn noted<T>(&self, way: Way, call: impl Future<Output = Result<T, BucketError>>) -> Result<T, BucketError> {
        let asking = self.watch.begin(way);
        let answer = call.await;
        match &answer {
            Err(error) if is_outage(error) => self.watch.failed(way, error, &self.bucket),
            Ok(_) | Err(_) => {
                // Before the answer is noted: silence goes on only for those that still wait.
                drop(asking);
                self.watch.answered(way);
            }
        }
        answer
    }
}

#[async_trait]
impl Bucket for Watched {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.noted(Way::Reading, self.bucket.get(key, range)).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.noted(Way::Reading, self.bucket.head(key)).await
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.noted(Way::Writing, self.bucket.put_if_absent(key, body)).await
    }

    async fn put_rope_if_absent(&self, key: &str, body: Rope) -> Result<ETag, BucketError> {
        self.noted(Way::Writing, self.bucket.put_rope_if_absent(key, body))
            .await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.noted(Way::Writing, self.bucket.put_if_match(key, body, expected))
            .await
    }

    // Deletions are nobody's who waits, and keys that may not delete are no outage.
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.bucket.delete(key).await
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        self.bucket.delete_if_match(key, expected).await
    }

    // Nothing that a program waits for lists, and keys that may not list are no outage.
    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.bucket.list(request).await
    }

    fn above(&self) -> Option<(BucketRef, String)> {
        let (bucket, name) = self.bucket.above()?;
        Some((self.watch.over(bucket), name))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_reads_as_it_is_shown_and_anything_else_is_refused() {
        for (text, policy) in [
            ("block", OnOutage::Block),
            ("eio:30s", OnOutage::FailAfterS(30)),
            ("eio:2m", OnOutage::FailAfterS(120)),
            ("eio:24h", OnOutage::FailAfterS(86_400)),
        ] {
            assert_eq!(text.parse::<OnOutage>().unwrap(), policy, "{text}");
            assert_eq!(policy.to_string().parse::<OnOutage>().unwrap(), policy);
        }
        for text in [
            "", "eio", "eio:", "eio:30", "eio:0s", "eio:25h", "eio:-1s", "wait", "Block",
        ] {
            let error = text.parse::<OnOutage>().unwrap_err().to_string();
            assert!(
                error.contains("s3_outage") && error.contains("eio:30s"),
                "{text}: {error}"
            );
        }
    }
}
