//! The probe against stores that fail in the ways that real ones do.

use std::ops::Range;
use std::sync::Arc;

use super::*;
use crate::bucket::memory::MemoryBucket;
use crate::bucket::{Bucket, ListPage, ListRequest, Object, ObjectMeta};

/// The ways in which real stores fail, each seen in the field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    /// The conditions are ignored: everyone gets 200.
    Ignores,
    /// The condition is checked and the object then written, as two steps.
    ChecksThenWrites,
    /// `If-Match` holds, unless the object does not exist.
    MatchesWhatIsGone,
    /// `If-Match` is answered with "not implemented".
    Refuses,
}

#[derive(Debug)]
struct Flawed {
    inner: MemoryBucket,
    flaw: Flaw,
}

impl Flawed {
    async fn overwrite(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.inner.delete(key).await?;
        self.inner.put_if_absent(key, body).await
    }
}

#[async_trait::async_trait]
impl Bucket for Flawed {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.inner.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.inner.head(key).await
    }
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        match self.flaw {
            Flaw::Ignores => self.overwrite(key, body).await,
            Flaw::ChecksThenWrites => {
                if self.inner.head(key).await.is_ok() {
                    return Err(BucketError::Precondition { key: key.to_owned() });
                }
                tokio::task::yield_now().await;
                self.overwrite(key, body).await
            }
            Flaw::MatchesWhatIsGone | Flaw::Refuses => self.inner.put_if_absent(key, body).await,
        }
    }
    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        match self.flaw {
            Flaw::Ignores => self.overwrite(key, body).await,
            Flaw::MatchesWhatIsGone if self.inner.head(key).await.is_err() => self.overwrite(key, body).await,
            Flaw::Refuses => Err(BucketError::Unsupported {
                feature: "conditional put",
                detail: "501 NotImplemented".to_owned(),
            }),
            Flaw::ChecksThenWrites | Flaw::MatchesWhatIsGone => self.inner.put_if_match(key, body, expected).await,
        }
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(key).await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.inner.list(request).await
    }
}

async fn verdict(flaw: Flaw) -> ProbeError {
    let store = Arc::new(Flawed {
        inner: MemoryBucket::new(),
        flaw,
    });
    let bucket: BucketRef = store.clone();
    let verdict = probe(&bucket, "probe/", Uuid::from_u128(1), Trial::default()).await;
    assert_eq!(
        store.inner.keys(),
        Vec::<String>::new(),
        "the trial of {flaw:?} left something behind"
    );
    verdict.unwrap_err()
}

#[tokio::test]
async fn a_store_that_keeps_its_conditions_passes_and_is_left_empty() {
    let memory = Arc::new(MemoryBucket::new());
    let bucket: BucketRef = memory.clone();
    probe(&bucket, "probe/", Uuid::from_u128(1), Trial::default())
        .await
        .unwrap();
    assert_eq!(memory.keys(), Vec::<String>::new());
}

#[tokio::test]
async fn a_store_that_ignores_conditions_is_refused_with_what_was_seen() {
    let error = verdict(Flaw::Ignores).await.to_string();
    assert!(error.contains("If-None-Match") && error.contains("8 won"), "{error}");
}

#[tokio::test]
async fn a_store_that_checks_and_then_writes_is_refused() {
    let error = verdict(Flaw::ChecksThenWrites).await.to_string();
    assert!(error.contains("If-None-Match") && error.contains("won"), "{error}");
}

#[tokio::test]
async fn a_store_that_matches_deleted_objects_is_refused() {
    let error = verdict(Flaw::MatchesWhatIsGone).await.to_string();
    assert!(error.contains("deleted"), "{error}");
}

#[tokio::test]
async fn a_store_without_conditional_puts_is_refused_as_unsupported() {
    let error = verdict(Flaw::Refuses).await;
    assert!(
        matches!(error, ProbeError::Bucket(BucketError::Unsupported { .. })),
        "{error}"
    );
}
