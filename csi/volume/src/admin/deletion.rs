//! Deleting a volume, wherever its head lies.
//!
//! Invariant: the head goes last, so a deletion that stopped half way is found and goes on at the next try; and nothing is
//! deleted under a node that may mount the volume. What snapshots and clones need stays without a head
//! (`snapshot/release.rs`): to whoever lists volumes this one is gone.

use super::AdminError;
use crate::bucket::BucketRef;
use crate::head::{Head, HeadError, HeadFile, HeadWriter};
use crate::snapshot::abandon;

/// Whether `delete` may take a volume from under a mount that holds no lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Led {
    /// Refuse.
    Keep,
    /// Delete: the operator knows that the mount is gone for good.
    Ignore,
}

/// `Admin::delete` for the volume whose head lies at the top of `root`, wherever that is. Returns whether there was one.
///
/// # Durability
/// As `Admin::delete`.
///
/// # Errors
/// As `Admin::delete`.
pub async fn delete_at(root: &BucketRef, writer: &HeadWriter, led: Led) -> Result<bool, AdminError> {
    let file = HeadFile::new(root.clone(), writer.clone());
    let change = |head: &mut Head| {
        if head.deleting {
            return Ok(());
        }
        if let Some(by) = user_of(head, led) {
            return Err(AdminError::InUse {
                volume: head.volume.clone(),
                by,
            });
        }
        head.deleting = true;
        head.leader = None;
        head.epoch = head.epoch.next();
        Ok(())
    };
    let head = match file.update(change).await {
        Ok((head, ())) => head,
        Err(AdminError::Head(HeadError::Missing)) => return Ok(false),
        Err(error) => return Err(error),
    };
    abandon(root, writer, &head).await?;
    // Conditional where the store can: this deletion may be so late that the name already has its next volume.
    match file.delete(&head).await {
        Ok(()) | Err(HeadError::Contended | HeadError::Missing) => Ok(true),
        Err(error) => Err(error.into()),
    }
}

fn user_of(head: &Head, led: Led) -> Option<String> {
    if let Some(publication) = head.publications.first() {
        return Some(format!(
            "it is published to node {} as {}",
            publication.node_id, publication.mode
        ));
    }
    match head.rightful_leader() {
        Some(leader) if led == Led::Keep => Some(format!("node {} has it mounted by hand", leader.node_id)),
        Some(_) | None => None,
    }
}
