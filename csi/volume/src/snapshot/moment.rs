//! The state that a snapshot or clone of a volume is of.
//!
//! Invariant: it is found after the hold was put, so it is no older than anything that a collector has acted on.

use uuid::Uuid;

use crate::bucket::BucketRef;
use crate::head::{Head, HeadFile, HeadWriter};
use crate::holds::HeldState;
use crate::lineage::{TreeAt, data_of};
use crate::open::journal_end::find_end;
use crate::open::{OpenError, TreeConfig};
use crate::tree::slate::{FOLDER, NOTHING, SlateReader};
use crate::tree::{Tree, checkpoint};

/// A moment of a volume.
#[derive(Debug)]
pub(super) struct Moment {
    /// The tree; `None` where there is none yet.
    pub tree: Option<TreeAt>,
    /// That tree's commits, and the last one.
    pub state: HeldState,
}

/// Marks the tree of the volume at `root` for `hold`, and finds the end of its journal.
pub(super) async fn find(root: &BucketRef, head: &Head, hold: Uuid) -> Result<Moment, OpenError> {
    let data = data_of(root, head)?;
    if let Some(moment) = closed(root, &data, head, hold).await? {
        return Ok(moment);
    }
    let tree = match checkpoint::exists(&data).await? {
        true => Some(mark(&data, head, hold).await?),
        // A clone that nobody has written has the tree that it was made with; its own hold keeps that.
        false => head.branch.as_ref().and_then(|branch| branch.tree),
    };
    let applied = tree.map_or(NOTHING, |tree| tree.applied);
    let state = HeldState {
        tree: applied,
        position: find_end(&data, head.lineage(), applied).await?,
        segments_below: None,
    };
    Ok(Moment { tree, state })
}

/// The moment of a volume that nobody has mounted since it was closed: its head says it all. `None` if it is no such one, or
/// no longer: whoever writes takes an epoch before he touches the tree, so the tree that was marked is the closed one if
/// the epoch still is the same afterwards.
async fn closed(root: &BucketRef, data: &BucketRef, head: &Head, hold: Uuid) -> Result<Option<Moment>, OpenError> {
    let Some(end) = head.end.filter(|_| head.clean) else {
        return Ok(None);
    };
    let checkpoint = checkpoint::put(data, hold, None).await?;
    let now = HeadFile::new(root.clone(), HeadWriter::new(hold)).read().await?;
    if (now.uuid, now.epoch, now.end) != (head.uuid, head.epoch, head.end) {
        return Ok(None);
    }
    let tree = TreeAt {
        uuid: head.uuid,
        checkpoint,
        applied: end,
        made: head.tree,
    };
    let state = HeldState {
        tree: end,
        position: end,
        segments_below: None,
    };
    Ok(Some(Moment {
        tree: Some(tree),
        state,
    }))
}

async fn mark(data: &BucketRef, head: &Head, hold: Uuid) -> Result<TreeAt, OpenError> {
    let checkpoint = checkpoint::put(data, hold, None).await?;
    let blocks = TreeConfig::default().blocks;
    let tree = SlateReader::open_at(data.clone(), FOLDER.to_owned(), checkpoint, &blocks).await?;
    let applied = tree.applied();
    tree.close().await?;
    Ok(TreeAt {
        uuid: head.uuid,
        checkpoint,
        applied,
        made: head.tree,
    })
}
