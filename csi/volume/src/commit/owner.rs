//! Who ended our reign: the seal in our journal says it.
//!
//! Callers: `apply.rs`, where the tree tells first that another writer is there. (A put that meets the seal reads it by itself.)

use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::bucket::BucketRef;
use crate::format::seal::{Seal, is_seal};
use crate::ids::{Epoch, JournalSeq, ObjectId};

/// 10 s, looked at every 100 ms: who takes a volume claims its tree before it seals the journal, a few requests apart.
const SEAL_WITHIN: Duration = Duration::from_secs(10);
/// See `SEAL_WITHIN`.
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// The owner that the seal of `epoch` names, looked for from `seq` on; `None` if there is none before long.
pub(super) async fn owner_by_seal(bucket: &BucketRef, volume: Uuid, epoch: Epoch, seq: JournalSeq) -> Option<String> {
    let (begun, mut seq) = (Instant::now(), seq);
    while begun.elapsed() < SEAL_WITHIN {
        let object = ObjectId::Journal(epoch, seq);
        match bucket.get(&object.key(), None).await {
            Ok(found) if is_seal(&found.body) => {
                return Some(Seal::decode(&found.body, volume, object).ok()?.owner);
            }
            // Until the seal is there our commits go on, any number of them: the search follows.
            Ok(_) => seq = seq.next(),
            Err(_) => tokio::time::sleep(LOOK_EVERY).await,
        }
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

    /// Between the claim of the tree and the seal a quick writer commits hundreds of times.
    #[tokio::test(start_paused = true)]
    async fn regression_the_owner_is_named_by_a_seal_behind_many_commits() {
        let memory = Arc::new(MemoryBucket::new());
        let (bucket, volume, epoch): (BucketRef, _, _) = (memory.clone(), Uuid::from_u128(1), Epoch(3));
        for seq in 1..300 {
            let key = ObjectId::Journal(epoch, JournalSeq(seq)).key();
            memory
                .put_if_absent(&key, bytes::Bytes::from(format!("commit {seq}")))
                .await
                .unwrap();
        }
        let object = ObjectId::Journal(epoch, JournalSeq(300));
        let seal = Seal {
            volume,
            object,
            next_epoch: Epoch(4),
            writer: Uuid::from_u128(2),
            owner: "node-2".to_owned(),
        };
        memory.put_if_absent(&object.key(), seal.encode()).await.unwrap();
        let owner = owner_by_seal(&bucket, volume, epoch, JournalSeq(1)).await;
        assert_eq!(owner.as_deref(), Some("node-2"));
    }

    #[tokio::test(start_paused = true)]
    async fn where_no_seal_comes_the_search_ends() {
        let bucket: BucketRef = Arc::new(MemoryBucket::new());
        assert_eq!(owner_by_seal(&bucket, Uuid::nil(), Epoch(1), JournalSeq(1)).await, None);
    }
}
