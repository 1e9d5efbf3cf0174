//! What the journal has of rows that the tree has lost, and the journal's end.
//!
//! Bounded: rows are kept for a window of keys at a time, and the journal is read once more for each.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Damage, RepairError};
use crate::bucket::{BucketError, BucketRef};
use crate::commit::IN_FLIGHT_MAX;
use crate::format::seal::Seal;
use crate::head::{Claim, Head};
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::open::OpenError;
use crate::open::leftovers::{Leftovers, each_commit};
use crate::open::walk::{Step, Walk};
use crate::row::codec::encode_key;
use crate::row::{Applied, Key, Row};

/// 8 looks at a journal that grows meanwhile: whoever writes meets a seal at the first.
const LOOKS_MAX: u32 = 8;

/// A row that a commit has changed last, of those that are left.
#[derive(Debug)]
pub(super) struct LeftRow {
    pub at: Applied,
    pub key: Key,
    pub row: Option<Row>,
}

/// Rows of the journal.
#[derive(Debug, Default)]
pub(super) struct Left {
    pub rows: BTreeMap<Bytes, LeftRow>,
    /// Where they end, as keys go; `None` after the last one.
    pub until: Option<Bytes>,
    pub found: Leftovers,
}

impl Left {
    fn take(&mut self, (at, rows_max): (Applied, usize), (key, encoded, row): (Key, Bytes, Option<Row>)) {
        if self.until.as_ref().is_some_and(|until| encoded >= *until) {
            return;
        }
        self.rows.insert(encoded, LeftRow { at, key, row });
        if self.rows.len() > rows_max {
            self.until = self.rows.pop_last().map(|(key, _)| key);
        }
    }

    /// Commits behind this one that could not be used.
    pub fn told(&self, behind: Applied) -> Vec<(Damage, String)> {
        let damaged = self.found.damaged.iter().filter(|(at, _)| *at > behind);
        let told = damaged.map(|(_, damaged)| {
            let damage = Damage {
                object: damaged.key.clone(),
                // Which rows it had changed nobody knows.
                place: "the whole".to_owned(),
                detail: damaged.detail.clone(),
            };
            (damage, "the commit is not used".to_owned())
        });
        told.collect()
    }
}

/// Reads what the journal has of wanted rows with keys from `from` on. With `seal` the journal is ended first, where it ends.
pub(super) async fn read_left(
    (bucket, head): (&BucketRef, &Head),
    seal: Option<(Epoch, &Claim)>,
    (from, rows_max): (Bytes, usize),
    wanted: &(dyn Fn(&[u8], Applied) -> bool + Sync),
) -> Result<Left, RepairError> {
    let lineage = head.lineage();
    for _ in 0..LOOKS_MAX {
        let mut left = Left::default();
        let see = |commit: crate::format::journal::Journal| {
            let at = Applied {
                epoch: commit.epoch,
                seq: commit.seq,
            };
            for (key, row) in commit.changes {
                let encoded = Bytes::from(encode_key(&key));
                // Sums are counted anew, and which commit the tree contains is not for a commit to say.
                let derived = matches!(key, Key::ObjectStats(_) | Key::Applied);
                if !derived && encoded >= from && wanted(&encoded, at) {
                    left.take((at, rows_max), (key, encoded, row));
                }
            }
        };
        let found = each_commit(bucket, &lineage, see).await?;
        let ended = match (seal, found.next()) {
            (Some(seal), Some(next)) => end_journal(bucket, head, seal, next).await?,
            _ => true,
        };
        left.found = found;
        if ended {
            return Ok(left);
        }
    }
    Err(RepairError::Changed)
}

/// Puts a seal where the next commit would be, and where one before it may be under way. False if something has come meanwhile.
async fn end_journal(
    bucket: &BucketRef,
    head: &Head,
    (epoch, claim): (Epoch, &Claim),
    (of, next): (Epoch, JournalSeq),
) -> Result<bool, RepairError> {
    let first = next.0.saturating_sub(IN_FLIGHT_MAX as u64).max(1);
    for seq in first..=next.0 {
        let object = ObjectId::Journal(of, JournalSeq(seq));
        if of >= epoch || head.lineage().is_foreign(object) {
            continue;
        }
        let there = match bucket.head(&object.key()).await {
            Ok(_) => true,
            Err(BucketError::NotFound { .. }) => false,
            Err(error) => return Err(error.into()),
        };
        if there && seq < next.0 {
            continue;
        }
        if there || !put_seal(bucket, head, (epoch, claim), object).await? {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Ends the journal where a recovery that begins behind `applied` would.
pub(super) async fn end_known_journal(
    bucket: &BucketRef,
    head: &Head,
    (epoch, claim): (Epoch, &Claim),
    applied: Applied,
) -> Result<(), RepairError> {
    let mut walk = Walk::new(bucket.clone(), head.lineage(), applied.epoch, applied.seq.next());
    while walk.at().0 < epoch {
        match walk.next().await {
            Ok(Step::Commit(_) | Step::Seal(_)) => {}
            Ok(Step::Missing(object)) => {
                if put_seal(bucket, head, (epoch, claim), object).await? {
                    return Ok(());
                }
            }
            // It ends there, unless the operator gives it up: that is the recovery's to say.
            Err(OpenError::Damaged { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
    match walk.at().0 == epoch {
        true => Ok(()),
        false => Err(RepairError::Changed),
    }
}

/// False if something is there by now.
async fn put_seal(
    bucket: &BucketRef,
    head: &Head,
    (epoch, claim): (Epoch, &Claim),
    object: ObjectId,
) -> Result<bool, RepairError> {
    let seal = Seal {
        volume: head.uuid,
        object,
        next_epoch: epoch,
        writer: claim.session,
        owner: claim.node_id.to_string(),
    };
    match bucket.put_if_absent(&object.key(), seal.encode()).await {
        Ok(_) => Ok(true),
        Err(BucketError::Precondition { .. }) => Ok(false),
        Err(error) => Err(error.into()),
    }
}
