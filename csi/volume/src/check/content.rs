//! Each frame that a file refers to: read, its checksum and identity verified.

use bytes::Bytes;
use futures::stream::{FuturesUnordered, StreamExt};

use super::cursor::Cursor;
use super::inodes::{first_extent, first_xattr};
use super::{Checker, foreign};
use crate::bucket::{BucketError, BucketRef};
use crate::format::frame::{FrameIdentity, open_frame};
use crate::ids::InodeNo;
use crate::open::OpenError;
use crate::row::{ExtentRow, FRAME_BYTES, Key, Row};

/// 4 runs of 16 MiB are read in parallel.
const READS_MAX: usize = 4;

/// A run, and the file and offset that it is content of.
#[derive(Debug)]
struct Run {
    ino: InodeNo,
    start: u64,
    row: ExtentRow,
}

impl Checker<'_> {
    pub(super) async fn check_content(&mut self) -> Result<(), OpenError> {
        let mut extents = Cursor::new(self.tree, first_extent(), first_xattr());
        let mut reads = FuturesUnordered::new();
        loop {
            while reads.len() < READS_MAX
                && let Some((key, row)) = extents.next().await?
            {
                match (key, row) {
                    (Key::Extent { ino, end }, Row::Extent(row)) => {
                        let start = end.saturating_sub(row.len);
                        reads.push(read(self.bucket.clone(), Run { ino, start, row }));
                    }
                    (key, _) => return Err(foreign(&key)),
                }
            }
            match reads.next().await {
                None => return Ok(()),
                Some((run, Ok(stored))) => self.check_run(&run, &stored),
                Some((run, Err(BucketError::NotFound { .. }))) => {
                    let place = format!("inode {} at {}", run.ino, run.start);
                    self.damaged_object(run.row.object, place, "the object does not exist".to_owned());
                }
                Some((_, Err(error))) => return Err(error.into()),
            }
        }
    }

    fn check_run(&mut self, run: &Run, stored: &Bytes) {
        self.report.content_bytes += stored.len() as u64;
        let mut at = 0;
        for (index, len) in run.row.frame_stored_lens.iter().enumerate() {
            let end = (at + *len as usize).min(stored.len());
            let frame = stored.slice(at.min(end)..end);
            at = end;
            self.report.frames += 1;
            let before = index as u64 * u64::from(FRAME_BYTES);
            let needed = (run.row.skip + run.row.len)
                .saturating_sub(before)
                .min(u64::from(FRAME_BYTES));
            let volume = self.lineage.uuid_of(run.row.object.epoch());
            let detail = match open_frame(&frame, &FrameIdentity::of(volume, &run.row, index)) {
                Ok(content) if content.len() as u64 >= needed => continue,
                Ok(content) => format!("the frame holds {} bytes of {needed}", content.len()),
                Err(error) => error.to_string(),
            };
            let offset = run.start.saturating_add(before.saturating_sub(run.row.skip));
            let place = format!("inode {} at {offset}", run.ino);
            self.damaged_object(run.row.object, place, detail);
        }
    }
}

async fn read(bucket: BucketRef, run: Run) -> (Run, Result<Bytes, BucketError>) {
    let start = run.row.object_offset;
    let range = start..start + run.row.stored_bytes();
    let answer = bucket.get(&run.row.object.key(), Some(range)).await;
    // A range past the end of a cut object: the frames will show what is missing.
    let body = match answer {
        Ok(object) => Ok(object.body),
        Err(BucketError::Unexpected { .. }) => Ok(Bytes::new()),
        Err(error) => Err(error),
    };
    (run, body)
}
