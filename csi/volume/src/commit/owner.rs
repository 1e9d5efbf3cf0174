//! Who ended our reign: the seal in our journal says it.
//!
//! Callers: `apply.rs`, where the tree tells first that another writer is there. (A put that meets the seal reads it by itself.)

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::bucket::BucketRef;
use crate::format::seal::{Seal, is_seal};
use crate::ids::{Epoch, JournalSeq, ObjectId};

/// 64 objects: more than can be in flight, so the seal stands among them.
const LOOKS_MAX: u32 = 64;

/// 10 s, looked at every 100 ms: who takes a volume claims its tree before it seals the journal, a few requests apart.
const SEAL_WITHIN: Duration = Duration::from_secs(10);
/// See `SEAL_WITHIN`.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The owner that the seal of `epoch` names, looked for from `seq` on; `None` if there is none before long.
pub(super) async fn owner_by_seal(bucket: &BucketRef, volume: Uuid, epoch: Epoch, seq: JournalSeq) -> Option<String> {
    let begun = Instant::now();
    loop {
        let owner = look(bucket, volume, epoch, seq).await;
        if owner.is_some() || begun.elapsed() >= SEAL_WITHIN {
            return owner;
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn look(bucket: &BucketRef, volume: Uuid, epoch: Epoch, seq: JournalSeq) -> Option<String> {
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

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bucket::Bucket;
    use crate::bucket::memory::MemoryBucket;

    /// The tree tells of the new owner a moment before its seal is there.
    #[tokio::test(start_paused = true)]
    async fn regression_the_owner_is_named_by_a_seal_that_comes_a_moment_later() {
        let memory = Arc::new(MemoryBucket::new());
        let (bucket, volume, epoch): (BucketRef, _, _) = (memory.clone(), Uuid::from_u128(1), Epoch(3));
        let looking = tokio::spawn(async move { owner_by_seal(&bucket, volume, epoch, JournalSeq(5)).await });
        tokio::time::sleep(Duration::from_secs(3)).await;
        let object = ObjectId::Journal(epoch, JournalSeq(5));
        let seal = Seal {
            volume,
            object,
            next_epoch: Epoch(4),
            writer: Uuid::from_u128(2),
            owner: "node-2".to_owned(),
        };
        memory.put_if_absent(&object.key(), seal.encode()).await.unwrap();
        assert_eq!(looking.await.unwrap().as_deref(), Some("node-2"));
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_seal_comes_the_search_ends() {
        let bucket: BucketRef = Arc::new(MemoryBucket::new());
        assert_eq!(owner_by_seal(&bucket, Uuid::nil(), Epoch(1), JournalSeq(1)).await, None);
    }
}
