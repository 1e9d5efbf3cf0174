//! Content that is missing or damaged: it stays, so that reading it fails, or becomes a hole where the loss is accepted.

use bytes::Bytes;
use futures::stream::{self, StreamExt};

use super::super::cursor::Cursor;
use super::super::foreign;
use super::super::inodes::first_xattr;
use super::{Changes, Damage, RepairError, Repairer, Round};
use crate::bucket::{BucketError, BucketRef};
use crate::format::frame::{FrameIdentity, open_frame};
use crate::ids::InodeNo;
use crate::lineage::Lineage;
use crate::row::{ExtentRow, FRAME_BYTES, Key, Row};

/// 64 runs are looked at together, 4 of them are read in parallel.
const RUNS_AT_ONCE: usize = 64;
/// See `RUNS_AT_ONCE`.
const READS_MAX: usize = 4;

/// A run, and the file and offset that it is content of.
#[derive(Debug)]
struct Run {
    ino: InodeNo,
    end: u64,
    row: ExtentRow,
}

impl Run {
    fn start(&self) -> u64 {
        self.end.saturating_sub(self.row.len)
    }

    /// The range of the file that a frame holds.
    fn range_of(&self, frame: usize) -> (u64, u64) {
        let before = (frame as u64 * u64::from(FRAME_BYTES)).saturating_sub(self.row.skip);
        let behind = ((frame as u64 + 1) * u64::from(FRAME_BYTES)).saturating_sub(self.row.skip);
        (
            self.start() + before.min(self.row.len),
            self.start() + behind.min(self.row.len),
        )
    }

    /// The rows of what is left without these ranges, which are in order.
    fn without(&self, lost: &[(u64, u64)]) -> Changes {
        let key = |end| Key::Extent { ino: self.ino, end };
        let mut changes = Vec::new();
        let mut at = self.start();
        for (from, until) in lost.iter().copied().chain([(self.end, self.end)]) {
            if at < from {
                let part = self.row.part(at - self.start(), from - at);
                changes.push((key(from), Some(Row::Extent(part))));
            }
            at = until;
        }
        if lost.last().is_some_and(|(_, until)| *until == self.end) {
            changes.push((key(self.end), None));
        }
        changes
    }
}

impl Repairer<'_> {
    /// Looks at runs from a key on, until many changes are found; where to go on, if there is more.
    pub(super) async fn mend_content(&self, from: Key, round: &mut Round) -> Result<Option<Key>, RepairError> {
        let mut extents = Cursor::new(self.tree(), from, first_xattr());
        while !round.is_full() {
            let mut runs = Vec::with_capacity(RUNS_AT_ONCE);
            while runs.len() < RUNS_AT_ONCE
                && let Some((key, row)) = extents.next().await?
            {
                match (key, row) {
                    (Key::Extent { ino, end }, Row::Extent(row)) => runs.push(Run { ino, end, row }),
                    (key, _) => return Err(foreign(&key).into()),
                }
            }
            if runs.is_empty() {
                return Ok(None);
            }
            let reads: Vec<_> = runs.into_iter().map(|run| read(self.bucket.clone(), run)).collect();
            let mut reads = stream::iter(reads).buffered(READS_MAX);
            while let Some((run, stored)) = reads.next().await {
                judge(round, &self.lineage, &run, stored?);
            }
        }
        // The last run is looked at again, which costs a read and is right.
        Ok(extents.peek().await?.map(|(key, _)| key.clone()))
    }
}

fn judge(round: &mut Round, lineage: &Lineage, run: &Run, stored: Option<Bytes>) {
    let mut lost: Vec<(u64, u64)> = Vec::new();
    let mut why = String::new();
    let volume = lineage.uuid_of(run.row.object.epoch());
    let mut at = 0;
    for (index, len) in run.row.frame_stored_lens.iter().enumerate() {
        let (from, until) = run.range_of(index);
        let detail = match &stored {
            None => Some("the object does not exist".to_owned()),
            Some(stored) => {
                let end = (at + *len as usize).min(stored.len());
                let frame = stored.slice(at.min(end)..end);
                at = end;
                let needed = (run.row.skip + run.row.len)
                    .saturating_sub(index as u64 * u64::from(FRAME_BYTES))
                    .min(u64::from(FRAME_BYTES));
                match open_frame(&frame, &FrameIdentity::of(volume, &run.row, index)) {
                    Ok(content) if content.len() as u64 >= needed => None,
                    Ok(content) => Some(format!("the frame holds {} bytes of {needed}", content.len())),
                    Err(error) => Some(error.to_string()),
                }
            }
        };
        let Some(detail) = detail else { continue };
        why = detail;
        match lost.last_mut() {
            Some((_, end)) if *end == from => *end = until,
            Some(_) | None => lost.push((from, until)),
        }
    }
    if lost.is_empty() {
        return;
    }
    let ranges: Vec<_> = lost.iter().map(|(from, until)| format!("{from}..{until}")).collect();
    let damage = Damage {
        object: run.row.object.key(),
        place: format!("inode {} at {}", run.ino, ranges.join(", ")),
        detail: why,
    };
    let action = "the range becomes a hole; as it is, reading it fails";
    round.lose(damage, action, run.without(&lost));
}

/// What is stored of a run; `None` if its object does not exist.
async fn read(bucket: BucketRef, run: Run) -> (Run, Result<Option<Bytes>, BucketError>) {
    let start = run.row.object_offset;
    let range = start..start + run.row.stored_bytes();
    let answer = match bucket.get(&run.row.object.key(), Some(range)).await {
        Ok(object) => Ok(Some(object.body)),
        // Past the end of an object that was cut: its frames show what is missing.
        Err(BucketError::Unexpected { .. }) => Ok(Some(Bytes::new())),
        Err(BucketError::NotFound { .. }) => Ok(None),
        Err(error) => Err(error),
    };
    (run, answer)
}
