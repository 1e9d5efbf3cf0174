//! Deleting a volume, wherever its head lies.
//!
//! Invariant: the head goes last, so a deletion that stopped half way is found and goes on at the next try; and nothing is
//! deleted under a node that may mount the volume.

use futures::StreamExt;

use super::{AdminError, REQUESTS_IN_FLIGHT};
use crate::bucket::{BucketError, BucketRef, ListRequest};
use crate::head::{Head, HeadError, HeadFile, HeadWriter};

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
    delete_all(root, &head.data_prefix()).await?;
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

pub(super) async fn delete_all(bucket: &BucketRef, prefix: &str) -> Result<(), BucketError> {
    loop {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            ..Default::default()
        };
        let page = bucket.list(&request).await?;
        if page.objects.is_empty() {
            return Ok(());
        }
        // Collected, because a future that holds the iterator itself is not `Send` for every lifetime (rust-lang/rust#102211).
        let deletes: Vec<_> = page.objects.iter().map(|object| bucket.delete(&object.key)).collect();
        let mut deletes = futures::stream::iter(deletes).buffer_unordered(REQUESTS_IN_FLIGHT);
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
    }
}
