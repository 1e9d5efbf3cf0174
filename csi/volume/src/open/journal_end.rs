//! Where the journal of a volume ends, without reading all of it.
//!
//! A writer has at most `IN_FLIGHT_MAX` commits under way and acknowledges them in order, so a commit that is so many
//! places before one that is in the bucket was acknowledged, and all of its segments are there. Only the commits after it
//! are looked at one by one, as a recovery would. Invariant: the end is at or behind every commit that was acknowledged
//! before the call, and everything up to it is in the bucket.
//! Caller: `snapshot/moment.rs`. Absent: what keeps these objects where they are meanwhile (a hold).

use super::OpenError;
use super::walk::{Step, Walk};
use crate::bucket::{BucketRef, ListRequest};
use crate::commit::IN_FLIGHT_MAX;
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::lineage::Lineage;
use crate::row::Applied;

/// Finds the last commit of the journal that a recovery would replay, from a state of the tree on that holds all up to `from`.
pub(crate) async fn find_end(bucket: &BucketRef, lineage: Lineage, from: Applied) -> Result<Applied, OpenError> {
    let mut end = from;
    let mut walk = Walk::new(bucket.clone(), lineage, from.epoch, from.seq.next());
    loop {
        let (epoch, seq) = walk.at();
        end = end.max(before(epoch, seq));
        let listed = last_without_gap(bucket, epoch, seq).await?;
        let Some(last) = listed else { return Ok(end) };
        let looked_at = last.0.saturating_sub(IN_FLIGHT_MAX as u64 - 1).max(seq.0);
        // Where a clone branched off before that place, this leads behind it.
        walk.go_to(epoch, JournalSeq(looked_at));
        end = end.max(before(walk.at().0, walk.at().1));
        loop {
            match walk.next().await? {
                Step::Commit(commit) => {
                    end = Applied {
                        epoch: commit.epoch,
                        seq: commit.seq,
                    };
                }
                Step::Seal(_) => break,
                Step::Missing(_) => return Ok(end),
            }
            if walk.at().0 != epoch {
                break;
            }
        }
    }
}

/// The place before this one; 0 in an epoch is before its first commit.
fn before(epoch: Epoch, seq: JournalSeq) -> Applied {
    Applied {
        epoch,
        seq: JournalSeq(seq.0.saturating_sub(1)),
    }
}

/// The last journal object of an epoch before which none is missing, from `first` on; `None` if `first` is missing.
async fn last_without_gap(
    bucket: &BucketRef,
    epoch: Epoch,
    first: JournalSeq,
) -> Result<Option<JournalSeq>, OpenError> {
    let key = |seq| ObjectId::Journal(epoch, seq).key();
    let folder = key(first).rsplit_once('/').map(|(folder, _)| format!("{folder}/"));
    let mut request = ListRequest {
        prefix: folder.unwrap_or_default(),
        start_after: Some(key(JournalSeq(first.0.saturating_sub(1)))),
        ..ListRequest::default()
    };
    let (mut last, mut next) = (None, first);
    loop {
        let page = bucket.list(&request).await?;
        for object in &page.objects {
            if object.key != key(next) {
                return Ok(last);
            }
            last = Some(next);
            next = next.next();
        }
        request.page = page.next;
        if request.page.is_none() {
            return Ok(last);
        }
    }
}
