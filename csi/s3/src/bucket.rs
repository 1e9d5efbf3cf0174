//! The port's verbs as S3 requests.
//!
//! Invariant: `Precondition` means that another writer won. A conditional put that was repeated may meet the effect of its
//! own first try; then the object holds the very bytes that were sent, and the put succeeded (see `settle`).

use std::ops::Range;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use aws_sdk_s3::operation::get_object::GetObjectOutput;
use aws_sdk_s3::operation::list_objects_v2::ListObjectsV2Output;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use bytes::Bytes;
use tokio::sync::SemaphorePermit;
use tokio::time::Instant;
use volume::bucket::{Bucket, BucketError, ETag, LIST_ROWS_MAX, ListPage, ListRequest, Object, ObjectMeta};
use volume::rope::Rope;

use crate::body::{Signed, stream};
use crate::counters::Operation;
use crate::error::{Asked, failure};
use crate::retry::{Failed, Failure, RetryPolicy};
use crate::store::S3Store;
use crate::trust::CONNECTIONS_MAX;

mod plain;

pub use plain::{Metadata, PARTS_MAX, Part, Upload};

/// 5 s: whether a bucket can be used is asked by somebody who waits for the answer.
const VERIFY_TOTAL: Duration = Duration::from_secs(5);

/// 32 MiB of memory for a body before any of it is here, whatever length the store says; more than one GET asks for.
const RESERVED_BYTES_MAX: usize = 32 * 1024 * 1024;

/// 16 connections free: with fewer, a second request would only wait for what others need.
const CONNECTIONS_SPARE: usize = CONNECTIONS_MAX / 4;

/// One bucket of a store.
#[derive(Debug, Clone)]
pub struct S3Bucket {
    store: Arc<S3Store>,
    name: String,
}

impl S3Bucket {
    pub(crate) fn new(store: Arc<S3Store>, name: &str) -> Self {
        Self {
            store,
            name: name.to_owned(),
        }
    }

    /// Asks whether the bucket is there and may be read, within a few seconds.
    ///
    /// # Errors
    /// `NoBucket`, `Denied` or `Unavailable`, which say what and where.
    pub async fn verify(&self) -> Result<(), BucketError> {
        let policy = RetryPolicy {
            total: self.store.retry.total.min(VERIFY_TOTAL),
            ..self.store.retry
        };
        // Not HeadBucket: its answers have no body, so a missing bucket and a wrong key look like any other refusal.
        let request = ListRequest {
            rows_max: 1,
            ..Default::default()
        };
        let asked = self.asked(Operation::List, "");
        let send = |attempt| self.list_once(&asked, &request, attempt);
        policy
            .run(&self.store.chance, send)
            .await
            .map(drop)
            .map_err(|failed| failed.error)
    }

    pub(crate) async fn create(&self) -> Result<(), BucketError> {
        let asked = self.asked(Operation::PutIfAbsent, "");
        let send = |attempt| async move {
            let _connection = self.connection().await;
            let request = self.store.client.create_bucket().bucket(&self.name);
            match self.once(&asked, attempt, 0, request.send()).await? {
                Ok(_) => Ok(()),
                Err(error)
                    if error
                        .as_service_error()
                        .is_some_and(|e| e.is_bucket_already_owned_by_you()) =>
                {
                    Ok(())
                }
                Err(error) => Err(failure(&asked, error)),
            }
        };
        self.store
            .retry
            .run(&self.store.chance, send)
            .await
            .map_err(|failed| failed.error)
    }

    fn asked<'a>(&'a self, operation: Operation, key: &'a str) -> Asked<'a> {
        Asked {
            operation,
            endpoint: &self.store.endpoint,
            bucket: &self.name,
            key,
            keys: &self.store.keys,
        }
    }

    /// Waits for one of the connections; it is free again when the value is dropped.
    async fn connection(&self) -> SemaphorePermit<'_> {
        self.store
            .connections
            .acquire()
            .await
            .expect("the connections are never closed")
    }

    /// Counts one request and bounds its time. The caller holds a connection.
    async fn once<T>(
        &self,
        asked: &Asked<'_>,
        attempt: u32,
        body_bytes: u64,
        request: impl Future<Output = T>,
    ) -> Result<T, Failure> {
        self.store.counters.request(asked.operation, attempt > 0, body_bytes);
        let time = self.store.retry.attempt_time(body_bytes);
        let begun = Instant::now();
        let answered = tokio::time::timeout(time, request).await;
        self.store.counters.answered(asked.operation, begun.elapsed());
        match answered {
            Ok(answer) => Ok(answer),
            Err(_) => Err(asked.cut(format!("no answer within {:.0} s", time.as_secs_f32()))),
        }
    }

    /// Sends requests as the policy says. Where the store refuses the keys and others are to be had by now, all begins anew
    /// with them.
    async fn run<T, F>(&self, mut send: impl FnMut(u32) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        match self.store.retry.run(&self.store.chance, &mut send).await {
            Err(refused) if matches!(refused.error, BucketError::Denied { .. }) => {
                if !self.store.keys.renew_refused().await {
                    return Err(refused);
                }
                let again = self
                    .store
                    .retry
                    .run(&self.store.chance, |attempt| send(attempt + 1))
                    .await;
                again.map_err(|failed| Failed {
                    maybe_done: failed.maybe_done || refused.maybe_done,
                    ..failed
                })
            }
            done => done,
        }
    }

    /// Sends a request, and a second one if no answer comes in the time that is usual. True if there was a second one: then
    /// a refused condition may be its work.
    async fn hedged<T, F>(&self, asked: &Asked<'_>, bytes: u64, send: impl Fn() -> F) -> (Result<T, Failure>, bool)
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let (store, begun) = (&self.store, Instant::now());
        let mut first = pin!(send());
        if let Some(wait) = store.hedging.wait(asked.operation, bytes) {
            if let Ok(answer) = tokio::time::timeout(wait, &mut first).await {
                self.took(asked, bytes, begun, &answer);
                return (answer, false);
            }
            let spare = store.connections.available_permits() >= CONNECTIONS_SPARE;
            if spare && store.hedging.spend() {
                store.counters.hedge(asked.operation);
                let answer = self.race(asked, first, send()).await;
                self.took(asked, bytes, begun, &answer);
                return (answer, true);
            }
        }
        let answer = first.await;
        self.took(asked, bytes, begun, &answer);
        (answer, false)
    }

    /// The first answer of two requests counts, unless it is a failure and the other one succeeds.
    async fn race<T, F>(&self, asked: &Asked<'_>, mut first: Pin<&mut F>, second: F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let mut second = pin!(second);
        let (answer, won) = tokio::select! {
            biased;
            answer = &mut first => (answer, false),
            answer = &mut second => (answer, true),
        };
        let failure = match answer {
            Ok(answer) => {
                if won {
                    self.store.counters.hedge_won(asked.operation);
                }
                return Ok(answer);
            }
            // What the store knows for certain it knows of both.
            Err(Failure::Final(BucketError::Precondition { .. } | BucketError::NotFound { .. })) => return answer,
            Err(failure) => failure,
        };
        let other = if won { first.await } else { second.await };
        other.map_err(|other| other.beside(failure))
    }

    fn took<T>(&self, asked: &Asked<'_>, bytes: u64, begun: Instant, answer: &Result<T, Failure>) {
        if answer.is_ok() {
            self.store.hedging.took(asked.operation, bytes, begun.elapsed());
        }
    }

    async fn get_once(&self, asked: &Asked<'_>, range: Option<Range<u64>>, attempt: u32) -> Result<Object, Failure> {
        let _connection = self.connection().await;
        let answer = self.send_get(asked, range.as_ref(), attempt).await?;
        self.read_body(asked, range, answer).await
    }

    /// Up to the beginning of the body. The caller holds a connection.
    async fn send_get(
        &self,
        asked: &Asked<'_>,
        range: Option<&Range<u64>>,
        attempt: u32,
    ) -> Result<GetObjectOutput, Failure> {
        let mut request = self.store.client.get_object().bucket(&self.name).key(asked.key);
        if let Some(range) = range {
            request = request.range(format!("bytes={}-{}", range.start, range.end - 1));
        }
        self.once(asked, attempt, 0, request.send())
            .await?
            .map_err(|error| failure(asked, error))
    }

    /// Reads a body piece by piece; each piece has the time of a request, so that slow is told from stalled.
    async fn read_body(
        &self,
        asked: &Asked<'_>,
        range: Option<Range<u64>>,
        mut answer: GetObjectOutput,
    ) -> Result<Object, Failure> {
        let Some(length) = answer.content_length().and_then(|length| usize::try_from(length).ok()) else {
            return Err(Failure::Final(asked.unexpected("an object without a length")));
        };
        let size_bytes = match answer
            .content_range()
            .map(|range| range.rsplit('/').next().unwrap_or(""))
        {
            Some(total) => total
                .parse()
                .map_err(|_| Failure::Final(asked.unexpected("a range without a total")))?,
            None if range.is_some() => {
                return Err(Failure::Final(
                    asked.unexpected("the whole object where a range was asked for"),
                ));
            }
            None => length as u64,
        };
        let etag = etag(asked, answer.e_tag())?;
        let mut body = Vec::with_capacity(length.min(RESERVED_BYTES_MAX));
        let mut whole = None;
        loop {
            let piece = match tokio::time::timeout(self.store.retry.attempt, answer.body.next()).await {
                Ok(None) => break,
                Ok(Some(Ok(piece))) => piece,
                Ok(Some(Err(error))) => return Err(asked.cut(format!("the body was cut: {error}"))),
                Err(_) => return Err(asked.cut("the body stalled")),
            };
            self.store.counters.received(asked.operation, piece.len() as u64);
            if body.is_empty() && piece.len() == length {
                // Small objects come in one piece, which then needs no copy.
                whole = Some(piece);
            } else if piece.len() <= length - body.len() {
                body.extend_from_slice(&piece);
            } else {
                return Err(asked.cut(format!("more than {length} bytes came")));
            }
        }
        let body = whole.unwrap_or_else(|| body.into());
        if body.len() != length {
            return Err(asked.cut(format!("{} of {length} bytes came", body.len())));
        }
        let wanted = range.map_or(size_bytes, |range| {
            range.end.min(size_bytes).saturating_sub(range.start)
        });
        if body.len() as u64 != wanted {
            return Err(Failure::Final(
                asked.unexpected(format!("{} bytes instead of {wanted}", body.len())),
            ));
        }
        Ok(Object { body, etag, size_bytes })
    }

    async fn list_once(&self, asked: &Asked<'_>, list: &ListRequest, attempt: u32) -> Result<ListPage, Failure> {
        let _connection = self.connection().await;
        let rows_max = if list.rows_max == 0 {
            LIST_ROWS_MAX
        } else {
            list.rows_max.min(LIST_ROWS_MAX)
        };
        let request = self
            .store
            .client
            .list_objects_v2()
            .bucket(&self.name)
            .prefix(&list.prefix)
            .max_keys(rows_max as i32)
            .set_start_after(list.start_after.clone())
            .set_delimiter(list.delimited.then(|| "/".to_owned()))
            .set_continuation_token(list.page.clone());
        let answer = self
            .once(asked, attempt, 0, request.send())
            .await?
            .map_err(|error| failure(asked, error))?;
        list_page(asked, answer)
    }

    async fn put(&self, asked: &Asked<'_>, body: Rope, condition: Condition<'_>) -> Result<ETag, BucketError> {
        // Under TLS nobody can change a body on its way, and a sum of it would be for nothing; in the clear the store checks it.
        let signed = (!self.store.is_encrypted()).then(|| Signed::of(&body));
        let (body, signed) = (&body, &signed);
        let send = |attempt| async move {
            let once = || self.put_once(asked, (body, signed.clone()), condition, attempt);
            match self.hedged(asked, body.len_bytes(), once).await {
                // The object may be there by the other of both requests.
                (Err(Failure::Final(BucketError::Precondition { .. })), true) => {
                    self.settle(asked, body).await.map_err(Failure::Final)
                }
                (answer, _) => answer,
            }
        };
        match self.run(send).await {
            Ok(etag) => Ok(etag),
            Err(Failed {
                error: BucketError::Precondition { .. },
                maybe_done: true,
            }) => self.settle(asked, body).await,
            Err(failed) => Err(failed.error),
        }
    }

    async fn put_once(
        &self,
        asked: &Asked<'_>,
        (body, signed): (&Rope, Option<Signed>),
        condition: Condition<'_>,
        attempt: u32,
    ) -> Result<ETag, Failure> {
        let _connection = self.connection().await;
        let request = self
            .store
            .client
            .put_object()
            .bucket(&self.name)
            .key(asked.key)
            .body(stream(body));
        let request = self.store.put.on(condition.on(request)).customize();
        let request = match signed {
            Some(signed) => request.interceptor(signed),
            None => request.disable_payload_signing(),
        };
        let answer = self
            .once(asked, attempt, body.len_bytes(), request.send())
            .await?
            .map_err(|error| failure(asked, error))?;
        etag(asked, answer.e_tag())
    }

    /// What is not there is deleted.
    async fn delete_once(&self, asked: &Asked<'_>, expected: Option<&ETag>, attempt: u32) -> Result<(), Failure> {
        let _connection = self.connection().await;
        let request = self.store.client.delete_object().bucket(&self.name).key(asked.key);
        let request = request.set_if_match(expected.map(|etag| etag.0.clone()));
        let answer = self.once(asked, attempt, 0, request.send()).await?;
        match answer.map_err(|error| failure(asked, error)) {
            Ok(_) | Err(Failure::Final(BucketError::NotFound { .. })) => Ok(()),
            Err(failure) => Err(failure),
        }
    }

    /// A conditional put met an object after one of its own tries had got no answer. Was that try the winner?
    ///
    /// It was if the object holds exactly what we sent. Bodies for which winning means something hold a nonce (the port
    /// asks for it), so equal bytes can only be of this very call. If ours won and was then replaced by another writer,
    /// this says `Precondition` although there was an effect: the caller reads the object before its next try and sees it.
    async fn settle(&self, asked: &Asked<'_>, body: &Rope) -> Result<ETag, BucketError> {
        let read = Asked {
            operation: Operation::Get,
            ..*asked
        };
        match self.run(|attempt| self.get_once(&read, None, attempt)).await {
            Ok(object) if body.is(&object.body) => Ok(object.etag),
            Ok(_) => Err(asked.precondition()),
            Err(Failed {
                error: BucketError::NotFound { .. },
                ..
            }) => Err(asked.precondition()),
            Err(failed) => Err(failed.error),
        }
    }
}

#[derive(Debug, Clone, Copy)]
enum Condition<'a> {
    Absent,
    Match(&'a ETag),
}

impl Condition<'_> {
    fn on(self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        match self {
            Condition::Absent => request.if_none_match("*"),
            Condition::Match(etag) => request.if_match(&etag.0),
        }
    }
}

fn etag(asked: &Asked<'_>, etag: Option<&str>) -> Result<ETag, Failure> {
    match etag {
        Some(etag) => Ok(ETag(etag.to_owned())),
        None => Err(Failure::Final(asked.unexpected("an answer without an ETag"))),
    }
}

fn length(asked: &Asked<'_>, length: Option<i64>) -> Result<u64, Failure> {
    let missing = || Failure::Final(asked.unexpected("an object without a length"));
    length.and_then(|length| u64::try_from(length).ok()).ok_or_else(missing)
}

fn list_page(asked: &Asked<'_>, answer: ListObjectsV2Output) -> Result<ListPage, Failure> {
    let mut page = ListPage::default();
    for object in answer.contents() {
        page.objects.push(ObjectMeta {
            key: object.key().unwrap_or_default().to_owned(),
            size_bytes: length(asked, object.size())?,
            etag: object.e_tag().map(|etag| ETag(etag.to_owned())),
            modified_unix_ms: object.last_modified().map_or(0, unix_ms),
        });
    }
    page.prefixes = answer
        .common_prefixes()
        .iter()
        .filter_map(|prefix| prefix.prefix())
        .map(str::to_owned)
        .collect();
    if answer.is_truncated() == Some(true) {
        let token = answer.next_continuation_token().map(str::to_owned);
        page.next = Some(token.ok_or_else(|| Failure::Final(asked.unexpected("a cut list without a token")))?);
    }
    Ok(page)
}

fn unix_ms(time: &aws_sdk_s3::primitives::DateTime) -> u64 {
    time.to_millis().ok().and_then(|ms| u64::try_from(ms).ok()).unwrap_or(0)
}

#[async_trait]
impl Bucket for S3Bucket {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        if let Some(range) = &range {
            assert!(
                range.start < range.end,
                "an empty range of {key} was asked for: {range:?}"
            );
        }
        let asked = self.asked(Operation::Get, key);
        let bytes = range.as_ref().map_or(0, |range| range.end - range.start);
        let send = |attempt| {
            let (asked, range) = (&asked, range.clone());
            async move {
                let once = || self.get_once(asked, range.clone(), attempt);
                self.hedged(asked, bytes, once).await.0
            }
        };
        self.run(send).await.map_err(|failed| failed.error)
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.head_plain(key).await.map(|(meta, _)| meta)
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.put_rope_if_absent(key, body.into()).await
    }

    async fn put_rope_if_absent(&self, key: &str, body: Rope) -> Result<ETag, BucketError> {
        self.put(&self.asked(Operation::PutIfAbsent, key), body, Condition::Absent)
            .await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.put(
            &self.asked(Operation::PutIfMatch, key),
            body.into(),
            Condition::Match(expected),
        )
        .await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let asked = self.asked(Operation::Delete, key);
        let deleted = self.run(|attempt| self.delete_once(&asked, None, attempt)).await;
        deleted.map_err(|failed| failed.error)
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        // Look first: some stores ignore the condition. It then still narrows the window to one round trip.
        match self.head(key).await {
            Ok(meta) if meta.etag.as_ref() == Some(expected) => {}
            Ok(_) => return Err(BucketError::Precondition { key: key.to_owned() }),
            Err(BucketError::NotFound { .. }) => return Ok(()),
            Err(error) => return Err(error),
        }
        let asked = self.asked(Operation::Delete, key);
        let deleted = self
            .run(|attempt| self.delete_once(&asked, Some(expected), attempt))
            .await;
        match deleted.map_err(|failed| failed.error) {
            Err(BucketError::Unsupported { .. }) => self.delete(key).await,
            answer => answer,
        }
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        let asked = self.asked(Operation::List, &request.prefix);
        self.run(|attempt| self.list_once(&asked, request, attempt))
            .await
            .map_err(|failed| failed.error)
    }
}

#[cfg(test)]
mod tests;
