//! What snapshots and clones hold of this volume, as its collector sees it. Why that is enough: `holds.rs`.
//!
//! Invariant: the holds are read after the judgement and before the deletion of everything that is deleted.
//! Caller: `gc.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use tokio::time::Instant;
use uuid::Uuid;

use crate::error::FsError;
use crate::head::HeadWriter;
use crate::holds::{Holds, HoldsError, HoldsFile};
use crate::ids::ObjectId;
use crate::mount::Mount;
use crate::row::Applied;
use crate::snapshot::settle_stale;
use crate::tree::TreeError;

/// 15 minutes: a snapshot or clone takes seconds to make. Who takes longer finds its hold gone and begins again.
const STALE_AFTER: Duration = Duration::from_secs(900);

/// The holds, and what waits for them to go.
#[derive(Debug)]
pub(super) struct Held {
    file: HoldsFile,
    looked: Option<Instant>,
    /// Pending holds, and when they were first seen.
    pending: BTreeMap<Uuid, Instant>,
    /// Journal objects without counters that were held when they were judged.
    kept: BTreeSet<ObjectId>,
}

impl Held {
    pub fn new(mount: &Mount) -> Self {
        Self {
            file: HoldsFile::new(mount.bucket.clone(), HeadWriter::new(Uuid::new_v4())),
            looked: None,
            pending: BTreeMap::new(),
            kept: BTreeSet::new(),
        }
    }

    /// True if the object must stay, as far as is known: then that costs no request.
    pub fn needs(&self, object: ObjectId, seen_dead: Option<Applied>) -> bool {
        self.file.seen().is_some_and(|holds| holds.need(object, seen_dead))
    }

    /// Keeps journal objects in mind that are garbage but for a hold, or could not be deleted.
    pub fn keep(&mut self, objects: impl IntoIterator<Item = ObjectId>) {
        self.kept.extend(objects);
    }

    /// Those of them that nothing holds any more, as far as is known.
    pub fn take_free(&mut self) -> BTreeSet<ObjectId> {
        let (held, free) = std::mem::take(&mut self.kept)
            .into_iter()
            .partition(|object| self.needs(*object, None));
        self.kept = held;
        free
    }

    /// True if it is time to look whether something was released: once at first, then only while something is held.
    pub fn is_due(&self, dead_held: bool, every: Duration) -> bool {
        let waits = dead_held || !self.kept.is_empty() || !self.pending.is_empty();
        self.looked.is_none_or(|looked| waits && looked.elapsed() >= every)
    }

    /// Reads the holds if they have changed, tells them where this mount is, and settles what was left pending.
    ///
    /// # Errors
    /// The bucket's, or holds that cannot be read: then nothing may be deleted.
    pub async fn refresh(&mut self, mount: &Mount) -> Result<&Holds, FsError> {
        self.file.refresh().await.map_err(outward)?;
        self.looked = Some(Instant::now());
        self.bound_segments(mount).await.map_err(outward)?;
        self.settle(mount).await;
        match self.file.seen() {
            Some(_) => {}
            // After a lost swap.
            None => drop(self.file.read().await.map_err(outward)?),
        }
        Ok(self.file.seen().expect("it was just read"))
    }

    /// Segments that get their number from here on are in no state that was found before.
    async fn bound_segments(&mut self, mount: &Mount) -> Result<(), HoldsError> {
        let Some(commit) = &mount.commit else { return Ok(()) };
        let open = |holds: &Holds| {
            let states = holds.holds.iter().filter_map(|hold| hold.state);
            states
                .filter(|state| state.segments_below.is_none() && state.position.epoch <= mount.epoch)
                .count()
        };
        if self.file.seen().is_none_or(|holds| open(holds) == 0) {
            return Ok(());
        }
        let ids = self.file.seen().map(Holds::ids).unwrap_or_default();
        let below = commit.next_segment();
        let bound = |holds: &mut Holds| {
            // Only those that were seen before the number was.
            for hold in holds.holds.iter_mut().filter(|hold| ids.contains(&hold.id)) {
                if let Some(state) = &mut hold.state
                    && state.segments_below.is_none()
                    && state.position.epoch <= mount.epoch
                {
                    let newest = state.position.epoch == mount.epoch;
                    state.segments_below = Some(if newest { below } else { u64::MAX });
                }
            }
            Ok::<_, HoldsError>(())
        };
        self.file.update(bound).await
    }

    async fn settle(&mut self, mount: &Mount) {
        let now = Instant::now();
        let holds = self.file.seen().map_or(&[][..], |holds| &holds.holds[..]);
        let pending: Vec<_> = holds.iter().filter(|hold| hold.pending).cloned().collect();
        let ids: BTreeSet<Uuid> = pending.iter().map(|hold| hold.id).collect();
        self.pending.retain(|id, _| ids.contains(id));
        for hold in pending {
            let since = *self.pending.entry(hold.id).or_insert(now);
            let Some(family) = mount.family.as_ref().filter(|_| now - since >= STALE_AFTER) else {
                continue;
            };
            if let Err(error) = settle_stale(family, &mount.bucket, &mut self.file, &hold).await {
                tracing::warn!(%error, volume = %mount.uuid, hold = %hold.id, "a pending hold could not be settled; it is tried again");
            }
        }
    }

    /// Says that the bucket was searched for what the first `released` holds had held.
    pub async fn swept(&mut self, released: u64) -> Result<(), FsError> {
        let change = |holds: &mut Holds| {
            holds.swept = holds.swept.max(released);
            Ok::<_, HoldsError>(())
        };
        self.file.update(change).await.map_err(outward)
    }
}

fn outward(error: HoldsError) -> FsError {
    match error {
        HoldsError::Bucket(error) => FsError::from(error),
        other => FsError::from(TreeError::Corrupt {
            place: "the holds".to_owned(),
            detail: other.to_string(),
        }),
    }
}
