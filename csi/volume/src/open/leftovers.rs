//! What is in the bucket of a journal, also where commits are missing between others: the collector takes those that the tree
//! contains and that hold no content, so of a journal whose tree is lost only some are left.
//!
//! Invariants: commits are told in their order, and none that a seal has ended. Whether what is missing stood nobody knows, so
//! what is told is not a state that the volume ever had, but of each row one that it had.
//! Callers: `check/tree_files.rs`, `check/repair/tree.rs`. Absent: recovery, which ends where the first commit is missing (`walk.rs`).

use futures::stream::{self, StreamExt};

use super::walk::{Step, Walk};
use super::{Damaged, OpenError};
use crate::bucket::{BucketRef, ListRequest};
use crate::format::journal::Journal;
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::lineage::{Lineage, folder_above};
use crate::row::Applied;

/// 8 commits are read at a time.
const READS_MAX: usize = 8;

/// What there was of a journal.
#[derive(Debug, Default)]
pub(crate) struct Leftovers {
    /// Commits that cannot be understood, or whose segments are gone, and their places.
    pub damaged: Vec<(Applied, Damaged)>,
    /// The last commit.
    pub last: Option<Applied>,
    /// Where the journal goes on after the last seal, if nothing was committed since.
    pub sealed: Option<Epoch>,
}

impl Leftovers {
    /// Where the next commit would be.
    pub fn next(&self) -> Option<(Epoch, JournalSeq)> {
        let next = self.last.map(|last| (last.epoch, last.seq.next()));
        self.sealed.map(|epoch| (epoch, JournalSeq(1))).or(next)
    }
}

/// True if the volume itself has committed anything.
pub(crate) async fn has_commits(bucket: &BucketRef, lineage: &Lineage) -> Result<bool, OpenError> {
    for (epoch, seq) in places(bucket, lineage).await? {
        if lineage.is_foreign(ObjectId::Journal(epoch, seq)) {
            continue;
        }
        let step = Walk::new(bucket.clone(), lineage.clone(), epoch, seq).next().await;
        match step {
            Ok(Step::Seal(_)) => {}
            Ok(Step::Commit(_) | Step::Missing(_)) | Err(OpenError::Damaged { .. }) => return Ok(true),
            Err(error) => return Err(error),
        }
    }
    Ok(false)
}

/// Shows every commit to `see`.
///
/// # Errors
/// `OpenError` where the store does not answer.
pub(crate) async fn each_commit(
    bucket: &BucketRef,
    lineage: &Lineage,
    mut see: impl FnMut(Journal),
) -> Result<Leftovers, OpenError> {
    let mut found = Leftovers::default();
    let mut begins = (Epoch(0), JournalSeq(0));
    let reads = places(bucket, lineage).await?.into_iter().map(|place| {
        let mut walk = Walk::new(bucket.clone(), lineage.clone(), place.0, place.1);
        async move { (place, walk.next().await) }
    });
    let mut reads = stream::iter(reads.collect::<Vec<_>>()).buffered(READS_MAX);
    while let Some((place, step)) = reads.next().await {
        if place < begins {
            continue;
        }
        let at = Applied {
            epoch: place.0,
            seq: place.1,
        };
        match step {
            Ok(Step::Commit(commit)) => {
                found.last = Some(at);
                found.sealed = None;
                see(*commit);
            }
            Ok(Step::Seal(seal)) => {
                begins = (seal.next_epoch, JournalSeq(1));
                found.sealed = Some(seal.next_epoch);
            }
            Ok(Step::Missing(object)) => {
                let key = ObjectId::Journal(place.0, place.1).key();
                let detail = format!("its segment {object} is gone");
                found.damaged.push((at, Damaged { key, detail }));
            }
            Err(OpenError::Damaged { key, detail }) => found.damaged.push((at, Damaged { key, detail })),
            Err(error) => return Err(error),
        }
    }
    Ok(found)
}

/// The places of all journal objects that are the volume's, of its ancestors' too, in order.
async fn places(bucket: &BucketRef, lineage: &Lineage) -> Result<Vec<(Epoch, JournalSeq)>, OpenError> {
    let above = lineage.ancestors().map(|uuid| (folder_above(uuid), Some(uuid)));
    let folders: Vec<_> = above.chain([(String::new(), None)]).collect();
    let mut places = Vec::new();
    for (folder, of) in folders {
        let mut request = ListRequest {
            prefix: format!("{folder}j/"),
            ..ListRequest::default()
        };
        loop {
            let page = bucket.list(&request).await?;
            let objects = page.objects.iter();
            let objects = objects.filter_map(|object| ObjectId::parse(object.key.strip_prefix(&folder)?));
            places.extend(objects.filter_map(|object| match object {
                ObjectId::Journal(epoch, seq) if lineage.is_of(of, epoch, seq) => Some((epoch, seq)),
                ObjectId::Journal(..) | ObjectId::Segment(..) => None,
            }));
            request.page = page.next;
            if request.page.is_none() {
                break;
            }
        }
    }
    places.sort_unstable();
    Ok(places)
}
