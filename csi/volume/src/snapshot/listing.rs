//! All snapshots of a family, in pages.

use futures::StreamExt;

use super::{Family, RECORDS, Snapshot, records_after};
use crate::admin::{AdminError, REQUESTS_IN_FLIGHT};
use crate::volume_id::{SnapshotId, VolumeId};

/// 100 snapshots in a page when the caller does not say.
const PAGE_SNAPSHOTS: usize = 100;

/// One page of a list.
#[derive(Debug)]
pub struct SnapshotPage {
    /// In ascending order of their ids.
    pub snapshots: Vec<Snapshot>,
    /// Give this to the next call; `None` after the last page.
    pub next: Option<SnapshotId>,
}

impl Family {
    /// Lists snapshots, at most `snapshots_max` of them (0 leaves it to us), beginning after `after`; those of one volume
    /// if `of` names it.
    ///
    /// # Errors
    /// `SnapshotRecord`, `Bucket`.
    pub async fn snapshots(
        &self,
        after: Option<&SnapshotId>,
        snapshots_max: usize,
        of: Option<&VolumeId>,
    ) -> Result<SnapshotPage, AdminError> {
        let wanted = if snapshots_max == 0 {
            PAGE_SNAPSHOTS
        } else {
            snapshots_max
        };
        let mut after = after.cloned();
        let mut found: Vec<Snapshot> = Vec::new();
        loop {
            // One more than wanted: only then is it known whether another page follows.
            let page = self.folder.list(&records_after(after.as_ref(), wanted + 1)).await?;
            let names = page
                .objects
                .iter()
                .filter_map(|object| object.key.strip_prefix(RECORDS));
            let ids: Vec<SnapshotId> = names.filter_map(|name| SnapshotId::parse(name).ok()).collect();
            after = ids.last().cloned().or(after);
            let reads: Vec<_> = ids
                .into_iter()
                .map(|id| async move { self.record(&id).await })
                .collect();
            let mut reads = futures::stream::iter(reads).buffered(REQUESTS_IN_FLIGHT);
            while let Some(read) = reads.next().await {
                let Some((snapshot, _)) = read? else { continue };
                if of.is_some_and(|of| *of != snapshot.volume) {
                    continue;
                }
                if found.len() == wanted {
                    let next = found.last().map(|last| last.id.clone());
                    return Ok(SnapshotPage { snapshots: found, next });
                }
                found.push(snapshot);
            }
            if page.next.is_none() {
                return Ok(SnapshotPage {
                    snapshots: found,
                    next: None,
                });
            }
        }
    }
}
