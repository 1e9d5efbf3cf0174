//! Pending holds that somebody finds: completed where what they are for exists, taken away where it does not.
//!
//! Invariant: the swap of the holds decides. A maker that was only slow finds its hold gone, and withdraws.

use super::release::drop_marks;
use super::{Snapshot, decode, record_key};
use crate::admin::AdminError;
use crate::bucket::{BucketError, BucketRef, Prefixed};
use crate::head::{HeadError, HeadFile, HeadWriter};
use crate::holds::{HeldFor, HeldState, Hold, HoldsError, HoldsFile};

/// Completes a pending hold, or takes it away. True if it stands.
pub(crate) async fn settle(family: &BucketRef, holds: &mut HoldsFile, hold: &Hold) -> Result<bool, AdminError> {
    let state = match &hold.held_for {
        HeldFor::Snapshot(id) => match family.get(&record_key(id), None).await {
            Ok(object) => {
                let found: Snapshot = decode(id.as_str(), &object.body)?;
                (found.hold == hold.id).then_some(found.state)
            }
            Err(BucketError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
        },
        HeldFor::Clone(folder) => state_of_clone(family, folder, hold).await?,
    };
    let settled = holds.update(|holds| {
        Ok::<_, HoldsError>(match state {
            Some(state) => holds.complete(hold.id, state),
            None => {
                // Unless somebody has completed it since.
                let pending = holds.get(hold.id).is_some_and(|hold| hold.pending);
                if pending {
                    holds.release(hold.id);
                }
                !pending
            }
        })
    });
    Ok(settled.await?)
}

/// As `settle`, and takes away the mark of a hold that went.
pub(crate) async fn settle_stale(
    family: &BucketRef,
    data: &BucketRef,
    holds: &mut HoldsFile,
    hold: &Hold,
) -> Result<(), AdminError> {
    if !settle(family, holds, hold).await? {
        drop_marks(data, &HeadWriter::new(hold.id)).await?;
    }
    Ok(())
}

async fn state_of_clone(family: &BucketRef, folder: &str, hold: &Hold) -> Result<Option<HeldState>, AdminError> {
    let root: BucketRef = std::sync::Arc::new(Prefixed::new(family.clone(), format!("{folder}/")));
    match HeadFile::new(root, HeadWriter::new(hold.id)).read().await {
        Ok(head) if head.uuid == hold.id => Ok(head.branch.map(|branch| branch.held())),
        Ok(_) | Err(HeadError::Missing) => Ok(None),
        Err(error) => Err(error.into()),
    }
}
