//! Putting the objects of one commit: again and again until each is in the bucket as ours, or a seal is in its place.
//!
//! Invariants: `Ok` means that the very bytes are in the bucket under their key; a refusal is believed only after what
//! stands there was read: our own earlier try is success, a seal is the end. Callers: `run.rs`.
//! Absent: the order of acknowledgements, and a limit of time: what is not in the bucket stays in RAM, which is bounded.

use std::sync::Arc;
use std::time::Duration;

use futures::future;
use tokio::sync::Semaphore;
use uuid::Uuid;

use super::Lost;
use super::handle::Shared;
use crate::bucket::{BucketError, BucketRef};
use crate::format::seal::{Seal, is_seal};
use crate::format::{journal, segment};
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::rope::Rope;

/// 50 ms to 5 s between tries, doubling. The bucket itself has retried before it gave up.
const BACKOFF: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(5));

/// 512 bytes tell a segment or a seal.
const LOOK_BYTES: u64 = 512;

/// Puts objects of one mount.
#[derive(Debug, Clone)]
pub(super) struct Putter {
    pub bucket: BucketRef,
    pub volume: Uuid,
    pub writer: Uuid,
    pub epoch: Epoch,
    pub shared: Arc<Shared>,
    /// Segments under way at the same time, of all commits. Journal objects pass by.
    pub segments: Arc<Semaphore>,
}

impl Putter {
    /// Puts all objects of a commit, at the same time.
    ///
    /// # Durability
    /// After `Ok` all of them are in the bucket.
    pub async fn put_commit(&self, seq: JournalSeq, body: Rope, segments: Vec<(ObjectId, Rope)>) -> Result<(), Lost> {
        let journal = self.put(ObjectId::Journal(self.epoch, seq), body);
        let segments = segments.into_iter().map(|(object, body)| async move {
            let permit = self.segments.acquire().await;
            let _permit = permit.expect("the semaphore is never closed");
            self.put(object, body).await
        });
        future::try_join(journal, future::try_join_all(segments)).await?;
        Ok(())
    }

    async fn put(&self, object: ObjectId, body: Rope) -> Result<(), Lost> {
        let key = object.key();
        let mut backoff = BACKOFF.0;
        loop {
            let error = match self.bucket.put_rope_if_absent(&key, body.clone()).await {
                Ok(_) => break,
                Err(BucketError::Precondition { .. }) => match self.look(object, &key).await {
                    Ok(()) => break,
                    Err(Look::Lost(lost)) => return Err(lost),
                    Err(Look::Again(error)) => error,
                },
                Err(error @ BucketError::Unsupported { .. }) => return Err(journal_lost(&key, &error)),
                Err(error) => error,
            };
            tracing::warn!(%key, %error, backoff_ms = backoff.as_millis(), "a put of the journal is tried again");
            self.shared.stats().retries += 1;
            tokio::time::sleep(backoff).await;
            backoff = (backoff * 2).min(BACKOFF.1);
        }
        let mut stats = self.shared.stats();
        stats.stored_bytes += body.len_bytes();
        match object {
            ObjectId::Journal(..) => stats.journal_objects += 1,
            ObjectId::Segment(..) => stats.segments += 1,
        }
        Ok(())
    }

    /// Looks at what stands where our put was refused: `Ok` if it is ours.
    async fn look(&self, object: ObjectId, key: &str) -> Result<(), Look> {
        let range = match object {
            ObjectId::Journal(..) => None,
            ObjectId::Segment(..) => Some(0..LOOK_BYTES),
        };
        let found = match self.bucket.get(key, range).await {
            Ok(found) => found,
            Err(error @ BucketError::NotFound { .. }) => return Err(Look::Lost(journal_lost(key, &error))),
            Err(error) => return Err(Look::Again(error)),
        };
        if is_seal(&found.body) {
            return match Seal::decode(&found.body, self.volume, object) {
                Ok(seal) => Err(Look::Lost(Lost::Fenced { owner: seal.owner })),
                Err(error) => Err(Look::Lost(journal_lost(key, &error))),
            };
        }
        let writer = match object {
            ObjectId::Journal(epoch, seq) => journal::decode_writer(&found.body, self.volume, epoch, seq),
            ObjectId::Segment(..) => {
                segment::decode_header(&found.body, found.size_bytes, self.volume, object).map(|header| header.writer)
            }
        };
        match writer {
            Ok(writer) if writer == self.writer => Ok(()),
            Ok(other) => Err(Look::Lost(Lost::Journal {
                detail: format!("{key} was written by another mount, {other}"),
            })),
            Err(error) => Err(Look::Lost(journal_lost(key, &error))),
        }
    }
}

enum Look {
    Lost(Lost),
    Again(BucketError),
}

fn journal_lost(key: &str, error: &dyn std::error::Error) -> Lost {
    Lost::Journal {
        detail: format!("{key}: {error}"),
    }
}
