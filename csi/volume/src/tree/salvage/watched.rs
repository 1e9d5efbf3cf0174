//! The bucket as it is seen while a tree is looked at: what the store failed to answer is kept in mind, so that it is never taken
//! for damage, and files are read in large pieces, whatever size of blocks is asked for.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use async_trait::async_trait;
use bytes::Bytes;

use crate::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta};
use crate::tree::TreeError;

/// 1 MiB is read of a file at a time, where blocks of 16 KiB are asked for one after another.
const PIECE_BYTES: u64 = 1024 * 1024;

/// 64 pieces in RAM: 64 MiB. Where more files are read in turns, pieces are read again.
const PIECES_MAX: usize = 64;

/// A part of a file.
#[derive(Debug)]
struct Piece {
    key: String,
    start: u64,
    object: Object,
}

/// A bucket that is read, and watched.
#[derive(Debug)]
pub(super) struct Watched {
    inner: BucketRef,
    pieces: Mutex<VecDeque<Piece>>,
    /// What the store has failed with.
    failure: Mutex<Option<BucketError>>,
}

/// What the store has not answered, in the tree's words.
pub(super) fn unavailable(error: BucketError) -> TreeError {
    TreeError::Unavailable {
        detail: error.to_string(),
    }
}

impl Watched {
    pub fn new(inner: BucketRef) -> Self {
        Self {
            inner,
            pieces: Mutex::default(),
            failure: Mutex::default(),
        }
    }

    /// What is wrong with a file, from the error that reading it has ended with.
    ///
    /// # Errors
    /// If the store has failed since this was asked last: then nothing is known of the file.
    pub fn damage(&self, error: TreeError) -> Result<String, TreeError> {
        self.damage_in_words(error.to_string())
    }

    /// As `damage`, of an error that is told in words.
    pub fn damage_in_words(&self, error: String) -> Result<String, TreeError> {
        match self.failure.lock().unwrap_or_else(PoisonError::into_inner).take() {
            Some(failure) => Err(unavailable(failure)),
            None => Ok(error),
        }
    }

    fn watch<T>(&self, answer: Result<T, BucketError>) -> Result<T, BucketError> {
        if let Err(error) = &answer
            && !matches!(error, BucketError::NotFound { .. } | BucketError::Unexpected { .. })
        {
            *self.failure.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.clone());
        }
        answer
    }

    /// A range, if a piece in RAM has all of it.
    fn known(&self, key: &str, range: &Range<u64>) -> Option<Object> {
        let pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        let found = pieces.iter().find(|piece| {
            let end = piece.start + piece.object.body.len() as u64;
            piece.key == key && piece.start <= range.start && range.end.min(piece.object.size_bytes) <= end
        })?;
        let end = found.object.body.len() as u64;
        let (from, until) = (range.start - found.start, (range.end - found.start).min(end));
        (from < until).then(|| Object {
            body: found.object.body.slice(from as usize..until as usize),
            ..found.object.clone()
        })
    }
}

#[async_trait]
impl Bucket for Watched {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let Some(range) = range else {
            return self.watch(self.inner.get(key, None).await);
        };
        if let Some(known) = self.known(key, &range) {
            return Ok(known);
        }
        let wide = range.start..range.end.max(range.start.saturating_add(PIECE_BYTES));
        let object = self.watch(self.inner.get(key, Some(wide)).await)?;
        let mut pieces = self.pieces.lock().unwrap_or_else(PoisonError::into_inner);
        if pieces.len() == PIECES_MAX {
            pieces.pop_front();
        }
        let body = object
            .body
            .slice(..object.body.len().min((range.end - range.start) as usize));
        pieces.push_back(Piece {
            key: key.to_owned(),
            start: range.start,
            object: object.clone(),
        });
        Ok(Object { body, ..object })
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.watch(self.inner.head(key).await)
    }

    async fn put_if_absent(&self, key: &str, _: Bytes) -> Result<ETag, BucketError> {
        Err(read_only(key))
    }

    async fn put_if_match(&self, key: &str, _: Bytes, _: &ETag) -> Result<ETag, BucketError> {
        Err(read_only(key))
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        Err(read_only(key))
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.watch(self.inner.list(request).await)
    }
}

fn read_only(key: &str) -> BucketError {
    BucketError::Unsupported {
        feature: "writing",
        detail: format!("{key} is only looked at"),
    }
}
