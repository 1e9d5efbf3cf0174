//! Who writes a volume: taking it over and giving it back.
//!
//! Fencing needs no clock. `take_over` moves the head to the next epoch; the one who did it then seals the epochs before
//! (see the journal), and from that on no older writer gets an acknowledgement. Until it has sealed it must not
//! acknowledge anything itself.

use uuid::Uuid;

use super::{Head, HeadError, HeadFile, Leader, Tail, unix_ms};
use crate::bucket::ETag;
use crate::clock::Timestamp;
use crate::ids::{Epoch, Lease};
use crate::row::Applied;
use crate::volume_id::NodeId;

/// Who wants to write a volume.
#[derive(Debug, Clone)]
pub struct Claim {
    /// The node.
    pub node_id: NodeId,
    /// Fresh for each mount.
    pub session: Uuid,
    /// The lease of a publication; `None` for a mount by hand, which is refused while the volume is published.
    pub lease: Option<Lease>,
    /// For people to read.
    pub now: Timestamp,
}

/// A volume that was taken over: the head with our epoch in it, and what was found.
#[derive(Debug, Clone)]
pub struct TakenOver {
    /// The head as written; `epoch` is ours.
    pub head: Head,
    /// The reign before ours, which is to be sealed and replayed unless `clean`.
    pub before: Epoch,
    /// True if that reign closed the volume and nothing was written since.
    pub clean: bool,
    /// The last commit of a reign that closed the volume, if the tree contains just that.
    pub end: Option<Applied>,
    /// Who held the volume and did not close it.
    pub displaced: Option<Leader>,
}

impl HeadFile {
    /// Takes the volume for a new writer: the next epoch, led by `claim`.
    ///
    /// Taking it over again in the same session changes nothing. The head is not clean from here on. An older leader
    /// learns of it at its next journal write after the seal.
    ///
    /// # Errors
    /// `Deleting`; `NoLease` if the lease was revoked; `Published` if there is none and a node has one; `TailElsewhere`; and
    /// those of `update`.
    pub async fn take_over(&self, claim: &Claim) -> Result<TakenOver, HeadError> {
        self.take_over_from(None, claim).await
    }

    /// As `take_over`, with the head as it was just read: one request less, where it is still the same.
    pub(crate) async fn take_over_from(
        &self,
        known: Option<(Head, ETag)>,
        claim: &Claim,
    ) -> Result<TakenOver, HeadError> {
        let mut found = None;
        let change = |head: &mut Head| {
            check_right(head, claim)?;
            check_tail(head, &claim.node_id)?;
            if head
                .leader
                .as_ref()
                .is_some_and(|leader| leader.session == claim.session)
            {
                // An earlier try of ours took it, and somebody changed something else since.
                return Ok(found.clone().unwrap_or((Epoch(head.epoch.0 - 1), None, None)));
            }
            let now = (head.epoch, head.clean.then(|| head.end.take()), head.leader.take());
            found = Some(now.clone());
            head.epoch = head.epoch.next();
            head.clean = false;
            head.end = None;
            head.leader = Some(Leader {
                node_id: claim.node_id.clone(),
                session: claim.session,
                lease: claim.lease,
                since_unix_ms: unix_ms(claim.now),
            });
            Ok::<_, HeadError>(now)
        };
        let (head, (before, clean, displaced)) = self.update_from(known, change).await?;
        Ok(TakenOver {
            head,
            before,
            clean: clean.is_some(),
            end: clean.flatten(),
            displaced,
        })
    }

    /// Takes a volume whose tree is to be made anew, if its reign is still `seen`. What its last mount said of its end stays:
    /// nothing is committed by this reign, and the next one needs it.
    ///
    /// # Errors
    /// `Fenced` if somebody else took it since; those of `take_over`.
    pub(crate) async fn take_for_repair(&self, claim: &Claim, seen: Epoch) -> Result<Head, HeadError> {
        let change = |head: &mut Head| {
            check_right(head, claim)?;
            check_tail(head, &claim.node_id)?;
            let leader = head.leader.as_ref();
            if leader.is_some_and(|leader| leader.session == claim.session) {
                return Ok(());
            }
            check_epoch(head, seen)?;
            head.epoch = seen.next();
            head.leader = Some(Leader {
                node_id: claim.node_id.clone(),
                session: claim.session,
                lease: claim.lease,
                since_unix_ms: unix_ms(claim.now),
            });
            Ok::<_, HeadError>(())
        };
        Ok(self.update(change).await?.0)
    }

    /// Gives the volume back after everything was written: no leader, and clean. `end` is the last commit, where the tree in
    /// the bucket contains just that. Giving it back twice is one.
    ///
    /// # Errors
    /// `Fenced` if another mount took it over since; those of `update`.
    pub async fn release(&self, epoch: Epoch, end: Option<Applied>) -> Result<(), HeadError> {
        let change = |head: &mut Head| {
            check_epoch(head, epoch)?;
            head.leader = None;
            head.clean = true;
            head.end = end;
            head.tail = None;
            Ok::<_, HeadError>(())
        };
        self.update(change).await?;
        Ok(())
    }

    /// Names who holds what is not in the bucket yet: before `epoch` acknowledges anything that is only on a node's disk, and
    /// only after an older tail is in the bucket.
    ///
    /// # Errors
    /// `Fenced` if another mount took the volume over since; those of `update`.
    pub async fn set_tail(&self, epoch: Epoch, tail: Option<Tail>) -> Result<(), HeadError> {
        let change = |head: &mut Head| {
            check_epoch(head, epoch)?;
            head.tail.clone_from(&tail);
            Ok::<_, HeadError>(())
        };
        self.update(change).await?;
        Ok(())
    }

    /// Gives up what a node has acknowledged and not put into the bucket, and ends the reign that did: the volume goes on
    /// from what the bucket has. Returns what was given up; doing it again changes nothing.
    ///
    /// # Errors
    /// `Deleting`; those of `update`.
    pub async fn drop_tail(&self) -> Result<Option<Tail>, HeadError> {
        let mut dropped = None;
        let change = |head: &mut Head| {
            check_deleting(head)?;
            if let Some(tail) = head.tail.take() {
                dropped = Some(tail);
                head.epoch = head.epoch.next();
                head.leader = None;
                head.clean = false;
            }
            Ok::<_, HeadError>(dropped.clone())
        };
        Ok(self.update(change).await?.1)
    }

    /// Asks whether `epoch` still reigns, for example after a pause that may have been long.
    ///
    /// # Errors
    /// `Fenced` if it does not; those of `read`.
    pub async fn confirm(&self, epoch: Epoch) -> Result<(), HeadError> {
        check_epoch(&self.read().await?, epoch)
    }
}

/// What another node has acknowledged must not be passed over.
pub(crate) fn check_tail(head: &Head, node_id: &NodeId) -> Result<(), HeadError> {
    match &head.tail {
        Some(tail) if tail.node_id != *node_id => Err(HeadError::TailElsewhere {
            volume: head.volume.clone(),
            node_id: tail.node_id.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

fn check_deleting(head: &Head) -> Result<(), HeadError> {
    match head.deleting {
        true => Err(HeadError::Deleting {
            volume: head.volume.clone(),
        }),
        false => Ok(()),
    }
}

fn check_epoch(head: &Head, epoch: Epoch) -> Result<(), HeadError> {
    check_deleting(head)?;
    if head.epoch == epoch {
        return Ok(());
    }
    let owner = head
        .leader
        .as_ref()
        .map_or_else(|| "nobody".to_owned(), |leader| leader.node_id.to_string());
    Err(HeadError::Fenced {
        volume: head.volume.clone(),
        epoch: head.epoch,
        owner,
    })
}

fn check_right(head: &Head, claim: &Claim) -> Result<(), HeadError> {
    let volume = || head.volume.clone();
    check_deleting(head)?;
    match claim.lease {
        Some(lease) => match head.publication(&claim.node_id) {
            Some(publication) if publication.lease == lease && !publication.read_only => Ok(()),
            Some(_) | None => Err(HeadError::NoLease {
                volume: volume(),
                node_id: claim.node_id.clone(),
                lease,
            }),
        },
        None => match head.publications.first() {
            Some(other) => Err(HeadError::Published {
                volume: volume(),
                node_id: other.node_id.clone(),
            }),
            None => Ok(()),
        },
    }
}
