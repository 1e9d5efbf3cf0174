//! Who ended our reign: the seal in our journal says it.
//!
//! Callers: `apply.rs`, where the tree tells first that another writer is there. (A put that meets the seal reads it by itself.)

use uuid::Uuid;

use crate::bucket::BucketRef;
use crate::format::seal::{Seal, is_seal};
use crate::ids::{Epoch, JournalSeq, ObjectId};

/// 64 objects: more than can be in flight, so the seal stands among them.
const LOOKS_MAX: u32 = 64;

/// The owner that the seal of `epoch` names, looked for from `seq` on; `None` if it cannot be found now.
pub(super) async fn owner_by_seal(bucket: &BucketRef, volume: Uuid, epoch: Epoch, seq: JournalSeq) -> Option<String> {
    let mut seq = seq;
    for _ in 0..LOOKS_MAX {
        let object = ObjectId::Journal(epoch, seq);
        let found = bucket.get(&object.key(), None).await.ok()?;
        if is_seal(&found.body) {
            return Some(Seal::decode(&found.body, volume, object).ok()?.owner);
        }
        seq = seq.next();
    }
    None
}
