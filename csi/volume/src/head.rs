//! The head of a volume: one small object that says who may write it, in which epoch, and what it is.
//!
//! Invariant: only compare-and-swap changes a head (`HeadFile::update`); whatever was true of it at the swap was true of
//! the volume. Epochs only grow. Leases only grow and are never given out twice.
//! Callers: `admin.rs` for creation, publications and deletion; the engine for `take_over` and `release`.
//! Absent: the seal of the journal that must follow `take_over` before the new epoch acknowledges anything, and any
//! clock in a decision: the times here are for people to read.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bucket::{BucketError, BucketRef, ETag};
use crate::clock::Timestamp;
use crate::ids::{Epoch, Lease};
use crate::lineage::{Branch, Lineage, data_folder};
use crate::row::Applied;
use crate::volume_id::{NodeId, VolumeId};

mod access;
mod leadership;
mod parameters;
pub mod settings;
mod transport;

pub use access::AccessMode;
pub(crate) use leadership::check_tail;
pub use leadership::{Claim, TakenOver};
pub use parameters::{Compression, Durability, ParameterError, Parameters};
pub use settings::Settings;
pub use transport::Transport;

/// Key of the head below the volume's root.
pub const HEAD_KEY: &str = "head";

/// The newest format of a head that this program writes and reads.
pub const HEAD_FORMAT: u32 = 1;

/// 64 KiB: a head is read at every publish, mount and list, so it stays one small answer. A change that would make it
/// longer is refused; some two hundred publications, one for each node that reads a volume, fit beside the longest names.
pub const HEAD_BYTES_MAX: usize = 64 * 1024;

/// 12 swaps: each lost one means that somebody else's change got in. Above it `update` gives up as `Contended`.
pub(crate) const SWAPS_MAX: u32 = 12;

/// 5 ms, doubled with each lost swap: about one round trip to a bucket nearby. After 11 losses it is 10 s.
const BACKOFF_MS: u64 = 5;

/// The mount that writes the volume, or did until it ended without closing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leader {
    /// The node it runs on.
    pub node_id: NodeId,
    /// Made anew by each mount.
    pub session: Uuid,
    /// The lease it took the volume with; `None` for a mount by hand.
    pub lease: Option<Lease>,
    /// When it took over, in milliseconds since the Unix epoch, by its own clock.
    pub since_unix_ms: i64,
}

/// A node whose disk holds changes that were acknowledged and may not be in the bucket yet.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Tail {
    /// The node.
    pub node_id: NodeId,
    /// The reign that acknowledged them.
    pub epoch: Epoch,
    /// The mount that did.
    pub session: Uuid,
}

/// A node that the volume was published to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Publication {
    /// The node.
    pub node_id: NodeId,
    /// Its right, for as long as this publication is in the head.
    pub lease: Lease,
    /// True while every publish to this node asked for reading only.
    pub read_only: bool,
    /// The mode asked for last.
    pub mode: AccessMode,
    /// When, in milliseconds since the Unix epoch.
    pub published_unix_ms: i64,
}

/// Names one write of a head, so that a writer whose answer got lost can recognise it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Stamp {
    writer: Uuid,
    write: u64,
}

/// What the head says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    format: u32,
    /// Id of the volume: the folder that this head lies in.
    pub volume: VolumeId,
    /// The name it was created with.
    pub name: String,
    /// Identity of this very volume, never of another of the same name: it is in every frame and in `data_prefix`.
    pub uuid: Uuid,
    /// When it was created, in milliseconds since the Unix epoch.
    pub created_unix_ms: i64,
    /// The current reign; 0 before the first mount.
    pub epoch: Epoch,
    /// Who took that reign; `None` before the first mount and after a clean close.
    pub leader: Option<Leader>,
    /// True if nothing was written after the last close: there is no journal to replay.
    pub clean: bool,
    /// The last commit, where the last mount closed the volume and its tree contains just that.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub end: Option<Applied>,
    /// Quota in bytes; 0 means no limit.
    pub capacity_bytes: u64,
    /// What the volume was created as.
    pub parameters: Parameters,
    /// The nodes that may mount it.
    pub publications: Vec<Publication>,
    /// The highest lease ever given.
    pub last_lease: Lease,
    /// True from the begin of a deletion on. No way leads back.
    pub deleting: bool,
    /// Where it begins, if it is a clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub branch: Option<Branch>,
    /// Who holds what is not in the bucket yet, in a volume of durability `local` since its last clean close.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tail: Option<Tail>,
    /// The repair that made the tree anew, by its epoch; `None` where the volume has its first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<Epoch>,
    stamp: Stamp,
}

/// What a new volume needs; see `Head::new`.
#[derive(Debug, Clone)]
pub struct NewHead {
    /// Name of the volume.
    pub name: String,
    /// Id made from that name.
    pub volume: VolumeId,
    /// Fresh for each volume ever created.
    pub uuid: Uuid,
    /// Quota in bytes; 0 means no limit.
    pub capacity_bytes: u64,
    /// What to create it as.
    pub parameters: Parameters,
    /// For people to read.
    pub now: Timestamp,
}

impl Head {
    /// The head of an empty volume that nobody has mounted.
    pub fn new(new: NewHead) -> Self {
        Self {
            format: HEAD_FORMAT,
            volume: new.volume,
            name: new.name,
            uuid: new.uuid,
            created_unix_ms: unix_ms(new.now),
            epoch: Epoch(0),
            leader: None,
            clean: true,
            end: None,
            capacity_bytes: new.capacity_bytes,
            parameters: new.parameters,
            publications: Vec::new(),
            last_lease: Lease(0),
            deleting: false,
            branch: None,
            tail: None,
            tree: None,
            stamp: Stamp {
                writer: Uuid::nil(),
                write: 0,
            },
        }
    }

    /// The head of a volume that begins as `branch` says: as if its writer of the last epoch there had crashed.
    #[must_use]
    pub fn branched(mut self, branch: Branch) -> Self {
        self.epoch = branch.until().epoch;
        self.clean = false;
        self.branch = Some(branch);
        self
    }

    /// The folder below the volume's root that holds its journal, segments, tree and holds.
    ///
    /// It is named by the uuid, so that a deletion which still runs somewhere can never reach into the next volume of
    /// the same name.
    pub fn data_prefix(&self) -> String {
        data_folder(self.uuid)
    }

    /// Whose objects this volume reads.
    pub fn lineage(&self) -> Lineage {
        let ancestors = self
            .branch
            .as_ref()
            .map_or_else(Vec::new, |branch| branch.ancestors.clone());
        Lineage::new(self.uuid, ancestors)
    }

    /// The publication to a node, if there is one.
    pub fn publication(&self, node_id: &NodeId) -> Option<&Publication> {
        self.publications
            .iter()
            .find(|publication| publication.node_id == *node_id)
    }

    /// The leader, unless its lease was revoked: then it may still run, but the next mount fences it.
    pub fn rightful_leader(&self) -> Option<&Leader> {
        let leader = self.leader.as_ref()?;
        match leader.lease {
            None => Some(leader),
            Some(lease) => self.publications.iter().any(|p| p.lease == lease).then_some(leader),
        }
    }

    fn encode(&self) -> Result<Bytes, HeadError> {
        let body = serde_json::to_vec(self).expect("a head holds only what JSON can say");
        if body.len() > HEAD_BYTES_MAX {
            return Err(HeadError::TooLong {
                volume: self.volume.clone(),
                bytes: body.len(),
            });
        }
        Ok(body.into())
    }

    fn decode(body: &[u8]) -> Result<Self, HeadError> {
        #[derive(Deserialize)]
        struct Format {
            format: u32,
        }
        // The format comes first: a newer head may hold what this program cannot even parse.
        let Format { format } = serde_json::from_slice(body).map_err(|source| HeadError::Corrupt { source })?;
        if format != HEAD_FORMAT {
            return Err(HeadError::Format { format });
        }
        serde_json::from_slice(body).map_err(|source| HeadError::Corrupt { source })
    }
}

/// Milliseconds since the Unix epoch, rounded down.
pub(crate) fn unix_ms(time: Timestamp) -> i64 {
    time.seconds
        .saturating_mul(1_000)
        .saturating_add(i64::from(time.nanos / 1_000_000))
}

/// Why a head could not be read or changed.
#[derive(Debug, thiserror::Error)]
pub enum HeadError {
    /// There is no head: no such volume, or it was deleted.
    #[error("there is no volume here: its head does not exist")]
    Missing,
    /// A head is already there.
    #[error("there is a volume here already")]
    Exists,
    /// Written by a newer program (or by no program that was ever released).
    #[error("the volume has format {format}, this program knows format {HEAD_FORMAT}: use a newer one")]
    Format {
        /// What the head says.
        format: u32,
    },
    /// Not JSON, or not a head.
    #[error("the head of the volume is damaged: {source}")]
    Corrupt {
        /// Where and what.
        source: serde_json::Error,
    },
    /// The change does not fit.
    #[error("the head of volume {volume} would have {bytes} bytes, {HEAD_BYTES_MAX} are allowed")]
    TooLong {
        /// The volume.
        volume: VolumeId,
        /// Its length with the change.
        bytes: usize,
    },
    /// The volume is being deleted.
    #[error("volume {volume} is being deleted")]
    Deleting {
        /// The volume.
        volume: VolumeId,
    },
    /// The node has no right to mount it, or no longer.
    #[error("volume {volume} is not published to node {node_id} with lease {lease}")]
    NoLease {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node_id: NodeId,
        /// The lease that it showed.
        lease: Lease,
    },
    /// A mount without a lease met a node that has one.
    #[error("volume {volume} is published to node {node_id}")]
    Published {
        /// The volume.
        volume: VolumeId,
        /// The node that may mount it.
        node_id: NodeId,
    },
    /// Another mount took the volume over.
    #[error("volume {volume} was taken over in epoch {epoch} by node {owner}")]
    Fenced {
        /// The volume.
        volume: VolumeId,
        /// The reign that ended ours.
        epoch: Epoch,
        /// Its node, or "nobody" after it closed.
        owner: String,
    },
    /// Another node has acknowledged what is not in the bucket.
    #[error(
        "node {node_id} holds changes of volume {volume} that it has acknowledged and that may not be in the bucket: let it \
         mount and unmount the volume, or, if it is lost for good, give them up with `pannier volume drop-tail --accept-loss`"
    )]
    TailElsewhere {
        /// The volume.
        volume: VolumeId,
        /// The node.
        node_id: NodeId,
    },
    /// It is a clone, and the folder of its ancestors is out of sight.
    #[error("volume {volume} is a clone: it can be read only together with the volumes beside it")]
    Apart {
        /// The volume.
        volume: VolumeId,
    },
    /// Every swap was lost to somebody else's.
    #[error("the head of the volume changed {SWAPS_MAX} times while it was being changed")]
    Contended,
    /// The store failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// Who writes heads: one value for each process or mount, cloned to each `HeadFile` that it uses.
#[derive(Debug, Clone)]
pub struct HeadWriter {
    id: Uuid,
    writes: Arc<AtomicU64>,
}

impl HeadWriter {
    /// `id` is fresh for each call of this.
    pub fn new(id: Uuid) -> Self {
        Self {
            id,
            writes: Arc::new(AtomicU64::new(0)),
        }
    }

    pub(crate) fn stamp(&self) -> Stamp {
        Stamp {
            writer: self.id,
            write: self.writes.fetch_add(1, Ordering::Relaxed),
        }
    }

    /// How long to wait after a lost swap. Half of it is fixed, half differs from writer to writer: they must not meet again.
    pub(crate) fn backoff(&self, swap: u32) -> Duration {
        let wait_ms = BACKOFF_MS << swap;
        let part = u64::from(self.id.as_bytes()[(swap % 16) as usize]);
        Duration::from_millis(wait_ms / 2 + wait_ms * part / 510)
    }
}

/// The head object of one volume.
#[derive(Debug)]
pub struct HeadFile {
    root: BucketRef,
    writer: HeadWriter,
}

impl HeadFile {
    /// `root` is the bucket seen through the volume's root.
    pub fn new(root: BucketRef, writer: HeadWriter) -> Self {
        Self { root, writer }
    }

    /// Reads the head.
    ///
    /// # Errors
    /// `Missing`, `Format`, `Corrupt` or `Bucket`.
    pub async fn read(&self) -> Result<Head, HeadError> {
        Ok(self.read_versioned().await?.0)
    }

    /// Creates the head of a new volume.
    ///
    /// # Durability
    /// `Ok` means that the volume exists in the bucket.
    ///
    /// # Errors
    /// `Exists` if there is one; `TooLong` if the name is too long for it; `Bucket`.
    pub async fn create(&self, mut head: Head) -> Result<Head, HeadError> {
        head.stamp = self.writer.stamp();
        let error = match self.root.put_if_absent(HEAD_KEY, head.encode()?).await {
            Ok(_) => return Ok(head),
            Err(error) => error,
        };
        // Whatever the answer was, the head itself says whose it is.
        match self.read().await {
            Ok(found) if found.stamp == head.stamp => Ok(found),
            Ok(_) => Err(HeadError::Exists),
            // What went wrong first tells more than that reading back went wrong too.
            Err(_) => Err(error.into()),
        }
    }

    /// Changes the head by compare-and-swap and returns it as written, with what `change` returned at the swap.
    ///
    /// `change` sees the newest head each time it is called, and must lead to the same end when it is called on its own
    /// result. Where it changes nothing, nothing is written.
    ///
    /// # Durability
    /// `Ok` means that the change is in the bucket.
    ///
    /// # Errors
    /// What `change` refuses with, and as `E` also `Missing`, `Format`, `Corrupt`, `TooLong`, `Contended` and `Bucket`.
    /// After `Bucket` with a transient error the change may still come to be.
    pub async fn update<T, E: From<HeadError>>(
        &self,
        change: impl FnMut(&mut Head) -> Result<T, E>,
    ) -> Result<(Head, T), E> {
        self.update_from(None, change).await
    }

    /// As `update`. The first swap is made on the head as it is `known`, if it can be: a refusal of `change` that rests on it
    /// counts for nothing, and neither does that there was nothing to change.
    async fn update_from<T, E: From<HeadError>>(
        &self,
        mut known: Option<(Head, ETag)>,
        mut change: impl FnMut(&mut Head) -> Result<T, E>,
    ) -> Result<(Head, T), E> {
        known = known.filter(|(head, _)| {
            let mut new = head.clone();
            change(&mut new).is_ok() && new != *head
        });
        // A put that was said to be lost may have landed, or land later than the next one. So every stamp of this call is ours.
        let mut ours: Vec<(Stamp, T)> = Vec::new();
        for swap in 0..SWAPS_MAX {
            let (old, etag) = match known.take() {
                Some(known) => known,
                None => self.read_versioned().await?,
            };
            if let Some(at) = ours.iter().position(|(stamp, _)| *stamp == old.stamp) {
                return Ok((old, ours.swap_remove(at).1));
            }
            let mut new = old.clone();
            let outcome = change(&mut new)?;
            if new == old {
                return Ok((old, outcome));
            }
            new.stamp = self.writer.stamp();
            match self.root.put_if_match(HEAD_KEY, new.encode()?, &etag).await {
                Ok(_) => return Ok((new, outcome)),
                Err(BucketError::Precondition { .. }) => {}
                Err(error) if error.is_transient() && swap + 1 < SWAPS_MAX => {}
                Err(error) => return Err(HeadError::from(error).into()),
            }
            ours.push((new.stamp, outcome));
            tokio::time::sleep(self.writer.backoff(swap)).await;
        }
        Err(HeadError::Contended.into())
    }

    /// Deletes the head as it was when `head` was read; `Contended` if it has changed since.
    pub(crate) async fn delete(&self, head: &Head) -> Result<(), HeadError> {
        let (found, etag) = match self.read_versioned().await {
            Ok(found) => found,
            Err(HeadError::Missing) => return Ok(()),
            Err(error) => return Err(error),
        };
        if found.stamp != head.stamp {
            return Err(HeadError::Contended);
        }
        match self.root.delete_if_match(HEAD_KEY, &etag).await {
            Err(BucketError::Precondition { .. }) => Err(HeadError::Contended),
            answer => Ok(answer?),
        }
    }

    /// Reads the head, and which version of it that is.
    pub(crate) async fn read_versioned(&self) -> Result<(Head, ETag), HeadError> {
        match self.root.get(HEAD_KEY, None).await {
            Ok(object) => Ok((Head::decode(&object.body)?, object.etag)),
            Err(BucketError::NotFound { .. }) => Err(HeadError::Missing),
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests;
