//! What snapshots and clones hold of the volume: put back from their records and heads, where the object that says it is gone.
//!
//! Without it the collector would delete what they need with the next mount. Of an object that is there no hold is missed by
//! mistake: a record without one is of a deletion that stopped half way.

use std::sync::Arc;

use uuid::Uuid;

use super::{Damage, Finding, Remedy, RepairError, Repairer};
use crate::admin::AdminError;
use crate::bucket::{BucketError, BucketRef, ListRequest, Prefixed};
use crate::head::{Head, HeadError, HeadFile, HeadWriter};
use crate::holds::{HOLDS_KEY, HeldFor, Hold, HoldsError, HoldsFile};
use crate::lineage::data_at;
use crate::open::OpenError;
use crate::snapshot::Family;

impl Repairer<'_> {
    pub(super) async fn mend_holds(&mut self, root: &BucketRef, head: &Head) -> Result<(), RepairError> {
        let Some((family, folder)) = root.above() else {
            return Ok(());
        };
        let data = data_at(&family, &folder, head.uuid);
        let lost = match data.get(HOLDS_KEY, None).await {
            Err(BucketError::NotFound { .. }) => None,
            Err(error) => return Err(error.into()),
            Ok(object) => {
                let mut file = HoldsFile::new(data.clone(), HeadWriter::new(Uuid::new_v4()));
                match file.read().await {
                    Err(HoldsError::Corrupt { .. }) => Some(object.etag),
                    Ok(_) | Err(_) => return Ok(()),
                }
            }
        };
        let mut wanted = held_by_snapshots(&family, &folder, head.uuid).await?;
        wanted.extend(held_by_clones(&family, &folder, head.uuid).await?);
        if wanted.is_empty() && lost.is_none() {
            return Ok(());
        }
        if self.options.apply {
            if let Some(etag) = &lost {
                data.delete_if_match(HOLDS_KEY, etag).await?;
            }
            let mut file = HoldsFile::new(data, HeadWriter::new(Uuid::new_v4()));
            let put = file.update(|holds| wanted.iter().try_for_each(|hold| holds.put_beside(hold.clone())));
            put.await.map_err(|error: HoldsError| match error {
                HoldsError::Bucket(error) => RepairError::from(error),
                error => RepairError::Holds(error),
            })?;
        }
        for hold in wanted {
            let of = match &hold.held_for {
                HeldFor::Snapshot(id) => format!("snapshot {id}"),
                HeldFor::Clone(folder) => format!("clone {folder}"),
            };
            let damage = Damage {
                object: HOLDS_KEY.to_owned(),
                place: of,
                detail: "nothing keeps the collector from deleting what it needs".to_owned(),
            };
            self.tell(vec![Finding {
                damage,
                remedy: Remedy::Mended,
                action: "its hold is put back".to_owned(),
            }]);
        }
        Ok(())
    }
}

async fn held_by_snapshots(family: &BucketRef, folder: &str, uuid: Uuid) -> Result<Vec<Hold>, RepairError> {
    let snapshots = Family::new(family.clone(), HeadWriter::new(Uuid::new_v4()));
    let (mut found, mut after) = (Vec::new(), None);
    loop {
        let page = snapshots.snapshots(after.as_ref(), 0, None).await;
        let page = page.map_err(|error| match error {
            AdminError::Bucket(error) => RepairError::from(error),
            error => RepairError::Snapshots(Box::new(error)),
        })?;
        let ours = page.snapshots.into_iter();
        let ours = ours.filter(|snapshot| snapshot.folder == folder && snapshot.uuid == uuid);
        found.extend(ours.map(|snapshot| Hold {
            id: snapshot.hold,
            held_for: HeldFor::Snapshot(snapshot.id),
            pending: false,
            state: Some(snapshot.state),
        }));
        match page.next {
            Some(next) => after = Some(next),
            None => return Ok(found),
        }
    }
}

async fn held_by_clones(family: &BucketRef, folder: &str, uuid: Uuid) -> Result<Vec<Hold>, RepairError> {
    let mut found = Vec::new();
    let mut request = ListRequest {
        delimited: true,
        ..ListRequest::default()
    };
    loop {
        let page = family.list(&request).await?;
        for prefix in page.prefixes {
            let beside = prefix.trim_end_matches('/').to_owned();
            let root: BucketRef = Arc::new(Prefixed::new(family.clone(), prefix));
            let head = match HeadFile::new(root, HeadWriter::new(Uuid::nil())).read().await {
                Ok(head) => head,
                Err(HeadError::Bucket(error)) => return Err(OpenError::from(error).into()),
                // No volume, or one that cannot be read: its own repair says so.
                Err(_) => continue,
            };
            let Some(branch) = &head.branch else { continue };
            let parent = branch.parent();
            if parent.folder == folder && parent.uuid == uuid {
                found.push(Hold {
                    id: head.uuid,
                    held_for: HeldFor::Clone(beside),
                    pending: false,
                    state: Some(branch.held()),
                });
            }
        }
        match page.next {
            Some(next) => request.page = Some(next),
            None => return Ok(found),
        }
    }
}
