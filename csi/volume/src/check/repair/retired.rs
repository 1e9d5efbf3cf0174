//! Trees that a repair has replaced, and that snapshots and clones still read: they are found by the newest manifest, so where
//! that one is damaged, an older one is put behind it.
//!
//! Never done with the tree that a volume has: its writer would go on from that older state.

use std::sync::Arc;

use crate::bucket::{BucketError, BucketRef, ListRequest, Prefixed};
use crate::head::Head;
use crate::lineage::{REPAIRED, made_by, with_tree};
use crate::tree::salvage;

use super::RepairError;

/// Makes what can be found again be found again.
pub(super) async fn mend_retired(root: &BucketRef, head: &Head) -> Result<(), RepairError> {
    let Some(current) = head.tree else { return Ok(()) };
    let data: BucketRef = Arc::new(Prefixed::new(root.clone(), head.data_prefix()));
    let request = ListRequest {
        prefix: REPAIRED.to_owned(),
        delimited: true,
        ..ListRequest::default()
    };
    let page = data.list(&request).await?;
    let made = page.prefixes.iter().filter_map(|folder| made_by(folder)).map(Some);
    let retired = [None].into_iter().chain(made.filter(|made| *made < Some(current)));
    for made in retired {
        let tree = with_tree(data.clone(), made);
        let Some((readable, next)) = salvage::readable_manifest(&tree).await? else {
            continue;
        };
        let body = tree.get(&readable, None).await?.body;
        match tree.put_if_absent(&next, body).await {
            Ok(_) | Err(BucketError::Precondition { .. }) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}
