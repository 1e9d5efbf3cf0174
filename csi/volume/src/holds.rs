//! What keeps the data of a volume in the bucket besides the volume itself: its snapshots and clones.
//!
//! One object in the data folder, `holds`, which only compare-and-swap changes; it is made with the first hold. It decides
//! every race: the collector reads it before it deletes anything (`gc/held.rs`), and a volume's deletion closes it.
//!
//! Why a hold put by anybody, at any time, is enough, with no word to the mount that writes the volume:
//! - The collector judges, then reads the holds, then deletes. If it read before the hold was put, then it had judged before,
//!   in a state of the tree that was durable by then. What is dead in such a state is dead in all later ones: an extent can
//!   only come to name an object by being copied from one that names it. A snapshot's state is looked for after its hold was
//!   put, so it is such a later one, and does not need what goes. The same holds for journal objects: the durable tree
//!   contained them, and so does the tree that the snapshot marks afterwards.
//! - If it read after the hold was put, it keeps what the hold may need: everything while the hold's state is unknown; from
//!   then on each object that is no newer than the last commit of the state (`position`), unless it was seen dead in a
//!   state that the marked tree contains (`tree`).
//! - It matters not which mount collects, or whether it has been superseded: both arguments are about one deletion.
//! - Moving content (`gc/repack.rs`) makes new objects and kills old ones; the old ones are held like any other.
//!
//! A hold is `pending` until what it is for exists: the record of a snapshot, the head of a clone. A pending hold whose maker
//! died is completed or taken away by whoever finds it (`snapshot/settle.rs`); the maker, if it only was slow, then finds its
//! hold gone and withdraws what it made. A hold of a clone stays until the clone's *data* goes, so a clone that is
//! deleted while others were made of it goes on holding what they need.
//!
//! Invariant: a folder whose volume is gone (`abandoned`) is deleted with its last hold, and not before.
//! Callers: `snapshot/`, `admin/deletion.rs`, `gc/held.rs`, `check/`. Absent: what is held (the collector's decision).

use std::collections::BTreeSet;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bucket::{BucketError, BucketRef, ETag};
use crate::head::{HeadWriter, SWAPS_MAX, Stamp};
use crate::ids::ObjectId;
use crate::row::Applied;
use crate::volume_id::SnapshotId;

/// Key of the holds below the volume's data prefix.
pub const HOLDS_KEY: &str = "holds";

/// The newest format that this program writes and reads.
const HOLDS_FORMAT: u32 = 1;

/// 10,000 holds: some 3 MiB, which a collector reads when they have changed. One more is refused.
pub const HOLDS_MAX: usize = 10_000;

/// What a hold is for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HeldFor {
    /// A snapshot.
    Snapshot(SnapshotId),
    /// The volume in this folder, whose data folder has the hold's id.
    Clone(String),
}

/// The state that a hold keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeldState {
    /// What the marked tree contains.
    pub tree: Applied,
    /// The last commit; those after `tree` are replayed from the journal.
    pub position: Applied,
    /// Segments of the last epoch with this number and above are newer; `None` until a collector has seen the hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub segments_below: Option<u64>,
}

/// One hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Hold {
    /// Fresh for each hold; of a clone its own uuid.
    pub id: Uuid,
    /// What it is for.
    pub held_for: HeldFor,
    /// True until what it is for exists.
    pub pending: bool,
    /// `None` until it was found.
    pub state: Option<HeldState>,
}

impl Hold {
    /// True if the collector must leave `object`, which it saw dead in the state `seen_dead`, if it knows one.
    pub fn needs(&self, object: ObjectId, seen_dead: Option<Applied>) -> bool {
        let Some(state) = &self.state else { return true };
        if seen_dead.is_some_and(|seen| seen <= state.tree) {
            return false;
        }
        match object {
            ObjectId::Journal(epoch, seq) => Applied { epoch, seq } <= state.position,
            ObjectId::Segment(epoch, number) if epoch == state.position.epoch => {
                state.segments_below.is_none_or(|below| number < below)
            }
            ObjectId::Segment(epoch, _) => epoch < state.position.epoch,
        }
    }
}

/// The volume whose data a folder's own data needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parent {
    /// Its folder.
    pub folder: String,
    /// Identity of its data.
    pub uuid: Uuid,
}

/// Said when the volume was deleted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Abandoned {
    /// What it was cloned from: that is held until this folder goes.
    pub parent: Option<Parent>,
}

/// All holds on the data of one volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Holds {
    format: u32,
    /// In the order of their making.
    pub holds: Vec<Hold>,
    /// The volume is gone: its data goes with the last hold.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub abandoned: Option<Abandoned>,
    /// Holds taken away so far.
    pub released: u64,
    /// How many of them a collector has searched the bucket after.
    pub swept: u64,
    stamp: Option<Stamp>,
}

impl Default for Holds {
    fn default() -> Self {
        Self {
            format: HOLDS_FORMAT,
            holds: Vec::new(),
            abandoned: None,
            released: 0,
            swept: 0,
            stamp: None,
        }
    }
}

impl Holds {
    /// The hold of this id.
    pub fn get(&self, id: Uuid) -> Option<&Hold> {
        self.holds.iter().find(|hold| hold.id == id)
    }

    /// Ids of all holds.
    pub fn ids(&self) -> BTreeSet<Uuid> {
        self.holds.iter().map(|hold| hold.id).collect()
    }

    /// True if the collector must leave the object, for whichever hold.
    pub fn need(&self, object: ObjectId, seen_dead: Option<Applied>) -> bool {
        self.holds.iter().any(|hold| hold.needs(object, seen_dead))
    }

    /// Puts a hold; one of that id stays.
    ///
    /// # Errors
    /// `Abandoned`, `TooMany`.
    pub fn put(&mut self, hold: Hold) -> Result<(), HoldsError> {
        match self.abandoned {
            Some(_) => Err(HoldsError::Abandoned),
            None => self.put_beside(hold),
        }
    }

    /// As `put`, for a state that another hold keeps by now, so that it matters not whether the volume is gone.
    ///
    /// # Errors
    /// `TooMany`.
    pub fn put_beside(&mut self, hold: Hold) -> Result<(), HoldsError> {
        if self.get(hold.id).is_some() {
            return Ok(());
        }
        if self.holds.len() >= HOLDS_MAX {
            return Err(HoldsError::TooMany);
        }
        self.holds.push(hold);
        Ok(())
    }

    /// Says that what the hold is for exists, and which state that is. False if there is no such hold any more.
    pub fn complete(&mut self, id: Uuid, state: HeldState) -> bool {
        let Some(hold) = self.holds.iter_mut().find(|hold| hold.id == id) else {
            return false;
        };
        hold.pending = false;
        hold.state.get_or_insert(state);
        true
    }

    /// Takes a hold away; `Ok` if there is none.
    pub fn release(&mut self, id: Uuid) {
        let before = self.holds.len();
        self.holds.retain(|hold| hold.id != id);
        self.released += (before - self.holds.len()) as u64;
    }

    /// True if the data may go.
    pub fn is_over(&self) -> bool {
        self.abandoned.is_some() && self.holds.is_empty()
    }
}

/// Why holds could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum HoldsError {
    /// The volume was deleted: nothing new may depend on its data.
    #[error("the volume was deleted")]
    Abandoned,
    /// One more does not fit.
    #[error("the volume has {HOLDS_MAX} snapshots and clones, which is the limit")]
    TooMany,
    /// Written by a newer program.
    #[error("the holds of the volume have format {format}, this program knows format {HOLDS_FORMAT}: use a newer one")]
    Format {
        /// What they say.
        format: u32,
    },
    /// Not JSON, or no holds.
    #[error("the holds of the volume are damaged: {source}")]
    Corrupt {
        /// Where and what.
        source: serde_json::Error,
    },
    /// Every swap was lost to somebody else's.
    #[error("the holds of the volume changed {SWAPS_MAX} times while they were being changed")]
    Contended,
    /// The store failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// The holds of one volume, as last seen.
#[derive(Debug)]
pub struct HoldsFile {
    data: BucketRef,
    writer: HeadWriter,
    /// With the version; `None` in it where there were none.
    seen: Option<(Holds, Option<ETag>)>,
}

impl HoldsFile {
    /// `data` is the bucket seen through the volume's data prefix.
    pub fn new(data: BucketRef, writer: HeadWriter) -> Self {
        Self {
            data,
            writer,
            seen: None,
        }
    }

    /// Reads the holds; none at all where nothing ever held.
    ///
    /// # Errors
    /// `Format`, `Corrupt`, `Bucket`.
    pub async fn read(&mut self) -> Result<&Holds, HoldsError> {
        let found = match self.data.get(HOLDS_KEY, None).await {
            Ok(object) => (decode(&object.body)?, Some(object.etag)),
            Err(BucketError::NotFound { .. }) => (Holds::default(), None),
            Err(error) => return Err(error.into()),
        };
        Ok(&self.seen.insert(found).0)
    }

    /// As `read`, with a request that brings no body where nothing has changed since. True if something has.
    ///
    /// # Errors
    /// As `read`.
    pub async fn refresh(&mut self) -> Result<bool, HoldsError> {
        let now = match self.data.head(HOLDS_KEY).await {
            Ok(meta) => meta.etag,
            Err(BucketError::NotFound { .. }) if self.seen.as_ref().is_some_and(|(_, etag)| etag.is_none()) => {
                return Ok(false);
            }
            Err(BucketError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        };
        if now.is_some() && self.seen.as_ref().is_some_and(|(_, etag)| *etag == now) {
            return Ok(false);
        }
        self.read().await?;
        Ok(true)
    }

    /// As last seen, if ever.
    pub fn seen(&self) -> Option<&Holds> {
        self.seen.as_ref().map(|(holds, _)| holds)
    }

    /// Changes the holds by compare-and-swap and returns what `change` returned at the swap. See `HeadFile::update`.
    ///
    /// # Durability
    /// `Ok` means that the change is in the bucket.
    ///
    /// # Errors
    /// What `change` refuses with, and as `E` also `Format`, `Corrupt`, `Contended` and `Bucket`.
    pub async fn update<T, E: From<HoldsError>>(
        &mut self,
        mut change: impl FnMut(&mut Holds) -> Result<T, E>,
    ) -> Result<T, E> {
        let mut ours: Vec<(Stamp, T)> = Vec::new();
        for swap in 0..SWAPS_MAX {
            let fresh = self.seen.is_none();
            if fresh {
                self.read().await?;
            }
            let (old, etag) = self.seen.take().expect("it was just read");
            if let Some(at) = ours.iter().position(|(stamp, _)| Some(*stamp) == old.stamp) {
                self.seen = Some((old, etag));
                return Ok(ours.swap_remove(at).1);
            }
            let mut new = old.clone();
            let changed = change(&mut new);
            // What was seen earlier may be old: it may be swapped against, which finds out, and nothing else.
            if !fresh && (changed.is_err() || new == old) {
                continue;
            }
            let outcome = match changed {
                Ok(outcome) if new != old => outcome,
                unchanged => {
                    self.seen = Some((old, etag));
                    return unchanged;
                }
            };
            let stamp = self.writer.stamp();
            new.stamp = Some(stamp);
            match self.put(&new, etag.as_ref()).await {
                Ok(etag) => {
                    self.seen = Some((new, Some(etag)));
                    return Ok(outcome);
                }
                Err(BucketError::Precondition { .. }) => {}
                Err(error) if error.is_transient() && swap + 1 < SWAPS_MAX => {}
                Err(error) => return Err(HoldsError::from(error).into()),
            }
            ours.push((stamp, outcome));
            tokio::time::sleep(self.writer.backoff(swap)).await;
        }
        Err(HoldsError::Contended.into())
    }

    async fn put(&self, holds: &Holds, etag: Option<&ETag>) -> Result<ETag, BucketError> {
        let body = Bytes::from(serde_json::to_vec(holds).expect("holds hold only what JSON can say"));
        match etag {
            Some(etag) => self.data.put_if_match(HOLDS_KEY, body, etag).await,
            None => self.data.put_if_absent(HOLDS_KEY, body).await,
        }
    }
}

fn decode(body: &[u8]) -> Result<Holds, HoldsError> {
    #[derive(Deserialize)]
    struct Format {
        format: u32,
    }
    let Format { format } = serde_json::from_slice(body).map_err(|source| HoldsError::Corrupt { source })?;
    if format != HOLDS_FORMAT {
        return Err(HoldsError::Format { format });
    }
    serde_json::from_slice(body).map_err(|source| HoldsError::Corrupt { source })
}
