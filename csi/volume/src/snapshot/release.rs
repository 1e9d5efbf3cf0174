//! Taking holds away, and the data of a volume that is gone with the last of them.
//!
//! Invariant: whatever a folder's data needs is released before that data's own `holds` go, so the same call again finds
//! where a crash has stopped it.

use futures::StreamExt;
use uuid::Uuid;

use super::settle;
use crate::admin::{AdminError, REQUESTS_IN_FLIGHT};
use crate::bucket::{BucketError, BucketRef, ListRequest, Prefixed};
use crate::head::{Head, HeadWriter};
use crate::holds::{Abandoned, HOLDS_KEY, Holds, HoldsError, HoldsFile, Parent};
use crate::ids::Epoch;
use crate::lineage::{REPAIRED, data_at, made_by, with_tree};
use crate::open::OpenError;
use crate::tree::{TreeError, checkpoint};

/// Takes a hold away from the data folder `uuid` of the volume folder `folder`, and deletes that data if nobody needs it
/// any more. `Ok` if the hold or the data is gone already.
pub(crate) async fn release(
    family: &BucketRef,
    writer: &HeadWriter,
    (folder, uuid): (String, Uuid),
    hold: Uuid,
) -> Result<(), AdminError> {
    let (mut next, mut going) = (Some((folder, uuid, hold)), Vec::new());
    while let Some((folder, uuid, hold)) = next.take() {
        let data = data_at(family, &folder, uuid);
        let mut holds = HoldsFile::new(data.clone(), writer.clone());
        let abandoned = holds.update(|holds| {
            holds.release(hold);
            Ok::<_, HoldsError>(if holds.is_over() { holds.abandoned.clone() } else { None })
        });
        match abandoned.await? {
            Some(Abandoned { parent }) => {
                // Its own hold on what it was cloned from goes with it.
                next = parent.map(|parent| (parent.folder, parent.uuid, uuid));
                going.push(data);
            }
            None => drop_marks(&data, writer).await?,
        }
    }
    for data in going {
        delete_data(&data).await?;
    }
    Ok(())
}

/// Takes away the marks in the trees of this data that no hold needs.
pub(super) async fn drop_marks(data: &BucketRef, writer: &HeadWriter) -> Result<(), AdminError> {
    let made = repaired_trees(data).await?;
    if made.is_empty() {
        return drop_marks_in(data, data, writer).await;
    }
    // Which one the volume has now is not known here. Marks in the others keep nothing that would go without them.
    for made in [None].into_iter().chain(made) {
        match drop_marks_in(&with_tree(data.clone(), made), data, writer).await {
            Err(AdminError::Open(OpenError::Tree(TreeError::Corrupt { place, detail }))) => {
                tracing::warn!(place, detail, ?made, "a tree that was replaced keeps its marks");
            }
            answer => answer?,
        }
    }
    Ok(())
}

async fn drop_marks_in(tree: &BucketRef, data: &BucketRef, writer: &HeadWriter) -> Result<(), AdminError> {
    let held = async || {
        let mut holds = HoldsFile::new(data.clone(), writer.clone());
        Ok::<_, AdminError>(holds.read().await.map(Holds::ids)?)
    };
    checkpoint::drop_unheld(tree, held).await
}

/// The repairs that have made trees of this data anew.
async fn repaired_trees(data: &BucketRef) -> Result<Vec<Option<Epoch>>, BucketError> {
    let request = ListRequest {
        prefix: REPAIRED.to_owned(),
        delimited: true,
        ..ListRequest::default()
    };
    // A page: a thousand repairs.
    let page = data.list(&request).await?;
    let folders = page.prefixes.iter();
    Ok(folders.filter_map(|folder| made_by(folder)).map(Some).collect())
}

/// Gives up the data of a volume that is being deleted: it goes at once, or with the last hold on it. True if it is gone.
pub(crate) async fn abandon(root: &BucketRef, writer: &HeadWriter, head: &Head) -> Result<bool, AdminError> {
    let data: BucketRef = std::sync::Arc::new(Prefixed::new(root.clone(), head.data_prefix()));
    let parent = head.branch.as_ref().map(|branch| Parent {
        folder: branch.parent().folder.clone(),
        uuid: branch.parent().uuid,
    });
    let family = root.above().map(|(family, _)| family);
    let mut holds = HoldsFile::new(data.clone(), writer.clone());
    let close = |holds: &mut Holds| {
        let parent = parent.clone();
        holds.abandoned.get_or_insert(Abandoned { parent });
        Ok::<_, HoldsError>(holds.clone())
    };
    let left = holds.update(close).await?;
    if let Some(family) = &family {
        // None can come any more. One that is being made loses its race here, or was quick enough.
        for hold in left.holds.iter().filter(|hold| hold.pending) {
            settle(family, &mut holds, hold).await?;
        }
    }
    if !holds.update(|holds| Ok::<_, HoldsError>(holds.is_over())).await? {
        tracing::info!(volume = %head.volume, "the volume's data stays: snapshots or clones need it");
        drop_marks(&data, writer).await?;
        return Ok(false);
    }
    if let (Some(family), Some(parent)) = (&family, parent) {
        release(family, writer, (parent.folder, parent.uuid), head.uuid).await?;
    }
    delete_data(&data).await?;
    Ok(true)
}

/// Deletes everything in a data folder, what leads here again last.
async fn delete_data(data: &BucketRef) -> Result<(), BucketError> {
    let mut request = ListRequest::default();
    loop {
        let page = data.list(&request).await?;
        // Collected, because a future that holds the iterator itself is not `Send` for every lifetime (rust-lang/rust#102211).
        let going = page.objects.iter().filter(|object| object.key != HOLDS_KEY);
        let deletes: Vec<_> = going.map(|object| data.delete(&object.key)).collect();
        let mut deletes = futures::stream::iter(deletes).buffer_unordered(REQUESTS_IN_FLIGHT);
        while let Some(deleted) = deletes.next().await {
            deleted?;
        }
        request.page = page.next;
        if request.page.is_none() {
            break;
        }
    }
    data.delete(HOLDS_KEY).await
}
