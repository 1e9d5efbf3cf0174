//! Walking the journal: from a commit on, across seals and epochs, to the first object that is not there.
//!
//! Invariants: a commit is told only if it stands (its segments are there), and in its order; what comes after a seal in
//! a sealed epoch is never told, and of an ancestor of a clone nothing behind the commit where the clone branched off. Reads only. Callers: `open.rs` for writers and readers, `check.rs`.
//! Absent: sealing, and retries of requests (the `Bucket` does those).

use futures::future::BoxFuture;
use futures::stream::{FuturesOrdered, StreamExt, TryStreamExt};
use futures::{FutureExt, stream};
use uuid::Uuid;

use super::OpenError;
use crate::bucket::{BucketError, BucketRef, Object};
use crate::format::journal::{self, Journal, SegmentName};
use crate::format::seal::{Seal, is_seal};
use crate::format::{FormatError, segment};
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::lineage::Lineage;

/// 8 journal objects are fetched ahead: as many as a writer has under way.
const AHEAD_MAX: usize = 8;

/// 512 bytes tell a segment or a seal.
const LOOK_BYTES: u64 = 512;

/// What the walk met.
#[derive(Debug)]
pub(crate) enum Step {
    /// A commit that stands. The walk is behind it.
    Commit(Box<Journal>),
    /// A seal: the walk is at the first commit of the epoch that it names.
    Seal(Seal),
    /// This object, a commit or a segment of one, is not there. The walk stays and looks again when asked again.
    Missing(ObjectId),
}

/// A walk along the journal of one volume.
pub(crate) struct Walk {
    bucket: BucketRef,
    lineage: Lineage,
    epoch: Epoch,
    seq: JournalSeq,
    ahead: FuturesOrdered<BoxFuture<'static, Result<Object, BucketError>>>,
    ahead_seq: JournalSeq,
    ahead_max: usize,
}

impl std::fmt::Debug for Walk {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Walk")
            .field("epoch", &self.epoch)
            .field("seq", &self.seq)
            .finish_non_exhaustive()
    }
}

impl Walk {
    /// Begins at the commit (`epoch`, `seq`).
    pub fn new(bucket: BucketRef, lineage: Lineage, epoch: Epoch, seq: JournalSeq) -> Self {
        let mut walk = Self {
            bucket,
            lineage,
            epoch,
            seq,
            ahead: FuturesOrdered::new(),
            ahead_seq: seq,
            ahead_max: 1,
        };
        walk.go_to(epoch, seq);
        walk
    }

    fn volume(&self) -> Uuid {
        self.lineage.uuid_of(self.epoch)
    }

    /// True for what is of a volume that this one was cloned from.
    pub fn is_foreign(&self, object: ObjectId) -> bool {
        self.lineage.is_foreign(object)
    }

    /// Where the walk is.
    pub fn at(&self) -> (Epoch, JournalSeq) {
        (self.epoch, self.seq)
    }

    /// Goes on to the next object.
    pub async fn next(&mut self) -> Result<Step, OpenError> {
        let object = ObjectId::Journal(self.epoch, self.seq);
        let found = match self.fetch().await {
            Ok(found) => found,
            Err(BucketError::NotFound { .. }) => {
                self.go_to(self.epoch, self.seq);
                return self.missing(object);
            }
            Err(error) => {
                self.go_to(self.epoch, self.seq);
                return Err(error.into());
            }
        };
        if is_seal(&found.body) {
            return self.follow(&found.body, object);
        }
        let commit =
            journal::decode(&found.body, self.volume(), self.epoch, self.seq).map_err(|e| damaged(object, e))?;
        drop(found);
        for (name, presence) in self.look_for(&commit.segments).await? {
            let object = ObjectId::Segment(self.epoch, name.number);
            match presence {
                Presence::There => {}
                Presence::Sealed(seal) => return Ok(self.passed(seal)),
                Presence::Missing => {
                    self.go_to(self.epoch, self.seq);
                    return self.missing(object);
                }
            }
        }
        self.seq = self.seq.next();
        self.ahead_max = (self.ahead_max * 2).min(AHEAD_MAX);
        if self.lineage.goes_on_at(self.epoch, self.seq).is_some() {
            self.go_to(self.epoch, self.seq);
        }
        Ok(Step::Commit(Box::new(commit)))
    }

    /// Goes to another place, or to where the journal goes on from there; what was fetched ahead is dropped.
    pub fn go_to(&mut self, epoch: Epoch, seq: JournalSeq) {
        let (mut epoch, mut seq) = (epoch, seq);
        while let Some(next) = self.lineage.goes_on_at(epoch, seq) {
            (epoch, seq) = next;
        }
        (self.epoch, self.seq, self.ahead_seq) = (epoch, seq, seq);
        self.ahead = FuturesOrdered::new();
        self.ahead_max = 1;
    }

    /// In an epoch of our own the journal may end anywhere; what we have of an ancestor was complete when we began.
    fn missing(&self, object: ObjectId) -> Result<Step, OpenError> {
        match self.lineage.is_foreign(object) {
            false => Ok(Step::Missing(object)),
            true => Err(OpenError::Damaged {
                key: object.key(),
                detail: "it is missing, and this volume was cloned with it".to_owned(),
            }),
        }
    }

    async fn fetch(&mut self) -> Result<Object, BucketError> {
        while self.ahead.len() < self.ahead_max {
            let key = ObjectId::Journal(self.epoch, self.ahead_seq).key();
            let bucket = self.bucket.clone();
            self.ahead
                .push_back(async move { bucket.get(&key, None).await }.boxed());
            self.ahead_seq = self.ahead_seq.next();
        }
        self.ahead.next().await.expect("at least one fetch is under way")
    }

    fn follow(&mut self, body: &[u8], object: ObjectId) -> Result<Step, OpenError> {
        let seal = Seal::decode(body, self.volume(), object).map_err(|e| damaged(object, e))?;
        Ok(self.passed(seal))
    }

    fn passed(&mut self, seal: Seal) -> Step {
        self.go_to(seal.next_epoch, JournalSeq(1));
        Step::Seal(seal)
    }

    /// Looks for all segments of a commit, in their order. By `&mut`, since fetches under way may move between threads but
    /// not be shared by them, and the future of an opening must be `Send`.
    async fn look_for(&mut self, names: &[SegmentName]) -> Result<Vec<(SegmentName, Presence)>, OpenError> {
        let looks = names.iter().map(|name| {
            let (bucket, volume, epoch, name) = (self.bucket.clone(), self.volume(), self.epoch, *name);
            async move { Ok((name, look_for(&bucket, volume, epoch, name).await?)) }
        });
        stream::iter(looks.collect::<Vec<_>>())
            .buffered(AHEAD_MAX)
            .try_collect()
            .await
    }
}

/// What is at the key of a segment.
#[derive(Debug)]
enum Presence {
    There,
    Sealed(Seal),
    Missing,
}

async fn look_for(bucket: &BucketRef, volume: Uuid, epoch: Epoch, name: SegmentName) -> Result<Presence, OpenError> {
    let object = ObjectId::Segment(epoch, name.number);
    let found = match bucket.get(&object.key(), Some(0..LOOK_BYTES)).await {
        Ok(found) => found,
        Err(BucketError::NotFound { .. }) => return Ok(Presence::Missing),
        Err(error) => return Err(error.into()),
    };
    if is_seal(&found.body) {
        let seal = Seal::decode(&found.body, volume, object).map_err(|e| damaged(object, e))?;
        return Ok(Presence::Sealed(seal));
    }
    let header = segment::decode_header(&found.body, found.size_bytes, volume, object);
    let header = header.map_err(|e| damaged(object, e))?;
    match header.object_len == name.object_len {
        true => Ok(Presence::There),
        false => Err(OpenError::Damaged {
            key: object.key(),
            detail: format!(
                "it has {} bytes, its commit says {}",
                header.object_len, name.object_len
            ),
        }),
    }
}

fn damaged(object: ObjectId, error: FormatError) -> OpenError {
    OpenError::Damaged {
        key: object.key(),
        detail: error.to_string(),
    }
}
