//! What holds the data of a volume: each hold has what it is for, and each snapshot is looked at as the volume that would
//! begin as it.

use std::sync::Arc;

use uuid::Uuid;

use super::Damage;
use crate::admin::AdminError;
use crate::bucket::{BucketRef, Prefixed};
use crate::head::{Head, HeadError, HeadFile, HeadWriter};
use crate::holds::{HOLDS_KEY, HeldFor, HoldsError, HoldsFile};
use crate::lineage::data_at;
use crate::open::OpenError;
use crate::snapshot::Family;

/// A snapshot as its hold leads to it.
pub(super) enum Held {
    /// Where it is told, and the head of a volume that begins as it.
    Sound(String, Box<Head>),
    /// Not there, or not to be understood.
    Broken(Damage),
}

/// A folder that no volume has: what begins as a snapshot has nothing of its own.
pub(super) fn nowhere(family: &BucketRef) -> BucketRef {
    Arc::new(Prefixed::new(family.clone(), ".nowhere/"))
}

/// The snapshots that hold the data `uuid` of the volume in `folder`, and what is wrong with its holds. One that is pending
/// is being made, or is settled by whoever meets it.
pub(super) async fn snapshots(family: &BucketRef, folder: &str, uuid: Uuid) -> Result<Vec<Held>, OpenError> {
    let writer = HeadWriter::new(Uuid::nil());
    let mut file = HoldsFile::new(data_at(family, folder, uuid), writer.clone());
    let holds = match file.read().await {
        Ok(holds) => holds,
        Err(HoldsError::Bucket(error)) => return Err(error.into()),
        Err(error) => return Ok(vec![broken(HOLDS_KEY, "the holds", &error.to_string())]),
    };
    let mut found = Vec::new();
    for hold in holds.holds.iter().filter(|hold| !hold.pending) {
        match &hold.held_for {
            HeldFor::Snapshot(id) => {
                let place = format!("snapshot {id}");
                let record = Family::new(family.clone(), writer.clone()).recorded(id).await;
                found.push(match record {
                    Ok(Some(record)) if record.hold == hold.id => Held::Sound(place, Box::new(record.as_head())),
                    Ok(Some(_) | None) => broken(HOLDS_KEY, &place, "it is held and has no record"),
                    Err(AdminError::Bucket(error)) => return Err(error.into()),
                    Err(error) => broken(HOLDS_KEY, &place, &error.to_string()),
                });
            }
            HeldFor::Clone(folder) => found.extend(clone(family, folder, hold.id).await?),
        }
    }
    Ok(found)
}

/// A clone must be there, or have been deleted before volumes that were made of it.
async fn clone(family: &BucketRef, folder: &str, uuid: Uuid) -> Result<Option<Held>, OpenError> {
    let writer = HeadWriter::new(Uuid::nil());
    let root: BucketRef = Arc::new(Prefixed::new(family.clone(), format!("{folder}/")));
    match HeadFile::new(root, writer.clone()).read().await {
        Ok(head) if head.uuid == uuid => return Ok(None),
        Ok(_) | Err(HeadError::Missing) => {}
        Err(HeadError::Bucket(error)) => return Err(error.into()),
        Err(error) => {
            let place = format!("clone {folder}");
            return Ok(Some(broken(HOLDS_KEY, &place, &error.to_string())));
        }
    }
    let mut file = HoldsFile::new(data_at(family, folder, uuid), writer);
    let place = format!("clone {folder}");
    Ok(match file.read().await {
        Ok(holds) if holds.abandoned.is_some() => None,
        Ok(_) => Some(broken(
            HOLDS_KEY,
            &place,
            "it is held and does not exist: its deletion has stopped half way",
        )),
        Err(HoldsError::Bucket(error)) => return Err(error.into()),
        Err(error) => Some(broken(HOLDS_KEY, &place, &error.to_string())),
    })
}

fn broken(object: &str, place: &str, detail: &str) -> Held {
    Held::Broken(Damage {
        object: object.to_owned(),
        place: place.to_owned(),
        detail: detail.to_owned(),
    })
}
