//! Which nodes may use a volume.
//!
//! Invariant: at most one node may write at a time, whatever the access mode; and a volume that is for one node is published
//! to one. Readers on other nodes follow the writer (see `mount/follow.rs`). Callers: the CSI controller; the node service
//! for `narrow`, and what it gives back by itself. Absent: whether a node is alive.

use super::{Admin, AdminError, known};
use crate::bucket::BucketRef;
use crate::clock::Timestamp;
use crate::head::{AccessMode, Head, HeadError, HeadFile, HeadWriter, Publication, check_tail, unix_ms};
use crate::ids::Lease;
use crate::volume_id::{NodeId, VolumeId};

/// 60 s: what is asked for again later than that is no repetition of a call, whose deadline was over.
const REPEAT_MS: i64 = 60_000;

/// A publication asked for.
#[derive(Debug, Clone)]
pub struct PublishVolume {
    /// The volume.
    pub volume: VolumeId,
    /// The node that shall be able to mount it.
    pub node_id: NodeId,
    /// For reading only.
    pub read_only: bool,
    /// How the node may use it.
    pub mode: AccessMode,
    /// For people to read.
    pub now: Timestamp,
}

/// Takes the right to mount the volume whose head lies at the top of `root` from a node that is gone, or from all, and returns
/// those that had it. What `unpublish` says of the node holds here, too.
///
/// # Durability
/// `Ok` means that the publications are out of the bucket.
///
/// # Errors
/// `Head`, `Bucket`.
pub async fn release_at(
    root: &BucketRef,
    writer: &HeadWriter,
    node_id: Option<&NodeId>,
) -> Result<Vec<NodeId>, AdminError> {
    let is_gone = |own: &Publication| node_id.is_none_or(|node_id| own.node_id == *node_id);
    let change = |head: &mut Head| {
        let (gone, left) = std::mem::take(&mut head.publications).into_iter().partition(is_gone);
        head.publications = left;
        let gone: Vec<Publication> = gone;
        Ok::<_, AdminError>(gone.into_iter().map(|own| own.node_id).collect())
    };
    let (_, released) = HeadFile::new(root.clone(), writer.clone()).update(change).await?;
    Ok(released)
}

impl Admin {
    /// Gives a node the right to mount a volume and returns its lease. Publishing to the same node again keeps the lease.
    ///
    /// # Durability
    /// `Ok` means that the publication is in the bucket.
    ///
    /// # Errors
    /// `NoNode`, `NotFound`; `PublishedElsewhere` while another node has it; `Head`, `Bucket`.
    pub async fn publish(&self, request: &PublishVolume) -> Result<Lease, AdminError> {
        // A volume that does not exist is the better answer where the node does not exist either.
        self.get(&request.volume).await?;
        self.node(&request.node_id).await?;
        let change = |head: &mut Head| {
            if head.deleting {
                return Err(AdminError::NotFound {
                    volume: head.volume.clone(),
                });
            }
            publish_in(head, request)
        };
        match self.head_file(&request.volume).update(change).await {
            Ok((_, lease)) => Ok(lease),
            Err(error) => Err(known(error, &request.volume)),
        }
    }

    /// Takes the right to mount a volume from a node, dead or alive. `Ok` if it had none, or the volume does not exist.
    ///
    /// The node may still write until the next mount elsewhere fences it; it cannot take the volume over again.
    ///
    /// # Durability
    /// `Ok` means that the publication is out of the bucket.
    ///
    /// # Errors
    /// `Head`, `Bucket`.
    pub async fn unpublish(&self, volume: &VolumeId, node_id: &NodeId) -> Result<(), AdminError> {
        let change = |head: &mut Head| {
            head.publications.retain(|publication| publication.node_id != *node_id);
            Ok::<_, AdminError>(())
        };
        match self.head_file(volume).update(change).await {
            Ok(_) | Err(AdminError::Head(HeadError::Missing)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes a right back that its node says it does not use: one that was last asked for before `until`, while the node has
    /// the volume not open for writing. True if there was one.
    ///
    /// # Errors
    /// As `unpublish`.
    pub async fn unpublish_unused(
        &self,
        volume: &VolumeId,
        node_id: &NodeId,
        until: Timestamp,
    ) -> Result<bool, AdminError> {
        let change = |head: &mut Head| {
            if head.rightful_leader().is_some_and(|leader| leader.node_id == *node_id) {
                return Ok::<_, AdminError>(false);
            }
            let before = head.publications.len();
            head.publications
                .retain(|own| own.node_id != *node_id || own.published_unix_ms > unix_ms(until));
            Ok(head.publications.len() < before)
        };
        match self.head_file(volume).update(change).await {
            Ok((_, withdrawn)) => Ok(withdrawn),
            Err(AdminError::Head(HeadError::Missing)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Takes the right to mount a volume from every node.
    ///
    /// # Errors
    /// As `unpublish`.
    pub async fn unpublish_all(&self, volume: &VolumeId) -> Result<(), AdminError> {
        let change = |head: &mut Head| {
            head.publications.clear();
            Ok::<_, AdminError>(())
        };
        match self.head_file(volume).update(change).await {
            Ok(_) | Err(AdminError::Head(HeadError::Missing)) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Takes the right to write from a node that goes on reading: its last writer is gone, and its readers stay. `Ok` if it
    /// has no such right. A lease that was given for writing is worth nothing afterwards.
    ///
    /// # Durability
    /// `Ok` means that another node may write from now on.
    ///
    /// # Errors
    /// `Head`, `Bucket`.
    pub async fn narrow(&self, volume: &VolumeId, node_id: &NodeId) -> Result<(), AdminError> {
        self.narrow_if(volume, node_id, |_| true).await.map(drop)
    }

    /// As `narrow`, of a right that was last asked for before `until`. False if the node has one that was asked for since, or
    /// has the volume open for writing.
    ///
    /// # Durability
    /// As `narrow`.
    ///
    /// # Errors
    /// As `narrow`.
    pub async fn narrow_unused(
        &self,
        volume: &VolumeId,
        node_id: &NodeId,
        until: Timestamp,
    ) -> Result<bool, AdminError> {
        let is_old = |own: &Publication| own.published_unix_ms <= unix_ms(until);
        self.narrow_if(volume, node_id, is_old).await
    }

    /// True if the node has no right to write afterwards.
    async fn narrow_if(
        &self,
        volume: &VolumeId,
        node_id: &NodeId,
        may: impl Fn(&Publication) -> bool,
    ) -> Result<bool, AdminError> {
        let change = |head: &mut Head| {
            let led_by_it = head.rightful_leader().is_some_and(|leader| leader.node_id == *node_id);
            let next = head.last_lease.next();
            let own = head.publications.iter_mut().find(|own| own.node_id == *node_id);
            let Some(own) = own.filter(|own| own.mode.is_multi_node() && !own.read_only) else {
                return Ok::<_, AdminError>(true);
            };
            if led_by_it || !may(own) {
                return Ok(false);
            }
            own.read_only = true;
            own.lease = next;
            head.last_lease = next;
            Ok(true)
        };
        match self.head_file(volume).update(change).await {
            Ok((_, narrowed)) => Ok(narrowed),
            Err(AdminError::Head(HeadError::Missing)) => Ok(true),
            Err(error) => Err(error),
        }
    }
}

fn publish_in(head: &mut Head, request: &PublishVolume) -> Result<Lease, AdminError> {
    let others = head
        .publications
        .iter()
        .filter(|publication| publication.node_id != request.node_id);
    for other in others {
        check_beside(head, other, request)?;
    }
    if !request.read_only {
        check_tail(head, &request.node_id)?;
    }
    let own = head
        .publications
        .iter_mut()
        .find(|publication| publication.node_id == request.node_id);
    if let Some(own) = own {
        // Nomad publishes once for each way of use, and unpublishes once: so the wider right stays.
        if own.read_only && !request.read_only {
            own.read_only = false;
            own.mode = request.mode;
        }
        // So that the node can tell a right that is asked for again from one that was forgotten. Repetitions of one call are
        // closer to each other, and write nothing.
        if unix_ms(request.now).saturating_sub(own.published_unix_ms) > REPEAT_MS {
            own.published_unix_ms = unix_ms(request.now);
        }
        return Ok(own.lease);
    }
    head.last_lease = head.last_lease.next();
    head.publications.push(Publication {
        node_id: request.node_id.clone(),
        lease: head.last_lease,
        read_only: request.read_only,
        mode: request.mode,
        published_unix_ms: unix_ms(request.now),
    });
    Ok(head.last_lease)
}

/// Whether a node may have the volume beside `other`.
fn check_beside(head: &Head, other: &Publication, request: &PublishVolume) -> Result<(), AdminError> {
    let (volume, node_id) = (head.volume.clone(), other.node_id.clone());
    let both_write = !other.read_only && !request.read_only;
    if request.mode == AccessMode::MultiNodeMultiWriter && other.mode == request.mode && both_write {
        return Err(AdminError::WrittenElsewhere { volume, node_id });
    }
    if both_write || !other.mode.is_multi_node() || !request.mode.is_multi_node() {
        return Err(AdminError::PublishedElsewhere {
            volume,
            node_id,
            mode: other.mode,
        });
    }
    Ok(())
}
