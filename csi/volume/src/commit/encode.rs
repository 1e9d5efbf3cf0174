//! From a sealed generation to the objects of its commit: where content goes, which rows follow from it.
//!
//! Invariant: every `placed` cell of the generation is filled before a row that needs it is made; rows name objects of
//! this commit, or of commits before it. Plain functions: no requests, no time.
//! Callers: `run.rs`. Absent: encryption (the frame header has room for it).

use std::collections::BTreeMap;

use super::{CommitLimits, DirtyRun, RunSource, SealedGeneration};
use crate::format::codec::Compression;
use crate::format::frame::{FRAME_HEADER_BYTES, stored_bytes};
use crate::format::journal::{JournalBuilder, JournalName, SegmentName};
use crate::format::segment::SegmentBuilder;
use crate::ids::ObjectId;
use crate::rope::{PIECE_BYTES_MIN, Rope};
use crate::row::{ExtentRow, FRAME_BYTES, Key, ObjectStats, Row};

/// About what an encoded change takes, to reserve room.
const CHANGE_BYTES_TYPICAL: u64 = 128;

/// The objects of a commit, and what the tree is to be told once they are all in the bucket.
#[derive(Debug)]
pub(super) struct Encoded {
    pub journal: Rope,
    pub segments: Vec<(ObjectId, Rope)>,
    pub changes: Vec<(Key, Option<Row>)>,
    /// Where each new run lies.
    pub placed: Vec<ExtentRow>,
    /// Length of the changes as encoded.
    pub rows_bytes: u64,
}

/// Encodes a generation. `number_segment` gives the numbers of new segments, each once.
pub(super) fn encode(
    name: JournalName,
    limits: &CommitLimits,
    compression: Compression,
    sealed: SealedGeneration,
    number_segment: impl FnMut() -> u64,
) -> Encoded {
    let data_bytes: u64 = sealed.runs.iter().map(DirtyRun::len_bytes).sum();
    let segments = match data_bytes <= limits.inline_bytes_max {
        true => Vec::new(),
        false => build_segments(name, limits, compression, &sealed.runs, number_segment),
    };
    let names: Vec<SegmentName> = segments.iter().map(name_of).collect();
    let frames = match segments.is_empty() {
        true => copied_bytes(&sealed.runs),
        false => 0,
    };
    let changes_count = (sealed.extents.len() + sealed.rows.len()) as u64;
    let mut builder = JournalBuilder::new(name, &names, frames + changes_count * CHANGE_BYTES_TYPICAL);
    if segments.is_empty() {
        for run in &sealed.runs {
            place(run, builder.put_run(run.ino, run.offset, &run.data, compression));
        }
    }
    let placed = sealed.runs.iter().filter_map(|run| run.placed.get().cloned()).collect();
    let held: Vec<_> = sealed
        .runs
        .iter()
        .map(|run| (run.placed.clone(), run.held.clone()))
        .collect();
    let changes = changes_of(sealed);
    let (journal, rows_bytes) = builder.finish(&changes);
    let inline = (ObjectId::Journal(name.epoch, name.seq), journal.clone());
    for (placed, held) in held {
        let row = placed.get().expect("all runs were placed");
        let mut objects = segments.iter().chain(std::iter::once(&inline));
        if let Some((_, body)) = objects.find(|(object, _)| *object == row.object) {
            held.move_into(body, row);
        }
    }
    Encoded {
        journal,
        segments,
        changes,
        placed,
        rows_bytes,
    }
}

/// About what is copied of these runs into the object that they go to: their headers, and what is short.
fn copied_bytes(runs: &[DirtyRun]) -> u64 {
    let parts = runs.iter().flat_map(|run| &run.data);
    let bytes = parts.map(|part| match part.len() < PIECE_BYTES_MIN {
        true => stored_bytes(part.len() as u64),
        false => (part.len() as u64).div_ceil(u64::from(FRAME_BYTES)) * FRAME_HEADER_BYTES as u64,
    });
    bytes.sum()
}

fn name_of((object, body): &(ObjectId, Rope)) -> SegmentName {
    let ObjectId::Segment(_, number) = object else {
        unreachable!("only segments are built as segments");
    };
    SegmentName {
        number: *number,
        object_len: body.len_bytes(),
    }
}

fn build_segments(
    name: JournalName,
    limits: &CommitLimits,
    compression: Compression,
    runs: &[DirtyRun],
    mut number_segment: impl FnMut() -> u64,
) -> Vec<(ObjectId, Rope)> {
    let mut segments = Vec::new();
    for group in groups(runs, limits.segment_bytes_max) {
        let object = ObjectId::Segment(name.epoch, number_segment());
        let mut builder = SegmentBuilder::new(name.volume, name.writer, object, copied_bytes(group));
        for run in group {
            place(run, builder.put_run(run.ino, run.offset, &run.data, compression));
        }
        segments.push((object, builder.finish()));
    }
    segments
}

/// Neighbours that fit into one segment together; a run is never divided.
fn groups(runs: &[DirtyRun], bytes_max: u64) -> Vec<&[DirtyRun]> {
    let mut groups = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (i, run) in runs.iter().enumerate() {
        let len = run.len_bytes();
        if i > start && bytes + len > bytes_max {
            groups.push(&runs[start..i]);
            (start, bytes) = (i, 0);
        }
        bytes += len;
    }
    if start < runs.len() {
        groups.push(&runs[start..]);
    }
    groups
}

fn place(run: &DirtyRun, row: ExtentRow) {
    let first = run.placed.set(row).is_ok();
    assert!(first, "inode {} at {} was committed twice", run.ino, run.offset);
}

fn changes_of(sealed: SealedGeneration) -> Vec<(Key, Option<Row>)> {
    let mut stats: BTreeMap<ObjectId, ObjectStats> = BTreeMap::new();
    for run in &sealed.runs {
        let row = run.placed.get().expect("all runs were placed");
        stats.entry(row.object).or_default().total_bytes += row.len as i64;
    }
    let mut changes = Vec::with_capacity(sealed.extents.len() + sealed.rows.len() + 4);
    for extent in sealed.extents {
        if let Some(old) = &extent.old {
            let row = resolved(old);
            stats.entry(row.object).or_default().live_bytes -= row.len as i64;
        }
        let new = extent.new.as_ref().map(resolved);
        if let Some(row) = &new {
            stats.entry(row.object).or_default().live_bytes += row.len as i64;
        }
        let key = Key::Extent {
            ino: extent.ino,
            end: extent.end,
        };
        changes.push((key, new.map(Row::Extent)));
    }
    for (key, row) in sealed.rows {
        match (key, row) {
            // Objects that were filled beside the commits: their totals join the rest of their sums.
            (Key::ObjectStats(object), Some(Row::ObjectStats(more))) => {
                let sum = stats.entry(object).or_default();
                sum.live_bytes += more.live_bytes;
                sum.total_bytes += more.total_bytes;
            }
            other => changes.push(other),
        }
    }
    for (object, delta) in stats {
        if delta != ObjectStats::default() {
            changes.push((Key::ObjectStats(object), Some(Row::ObjectStats(delta))));
        }
    }
    changes.push((Key::Counters, Some(Row::Counters(sealed.counters))));
    changes
}

fn resolved(source: &RunSource) -> ExtentRow {
    match source {
        RunSource::Stored(row) => row.clone(),
        RunSource::Dirty { placed, skip, len } => placed
            .get()
            .expect("a run is placed at the latest with its own generation, and generations are encoded in order")
            .part(*skip, *len),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, OnceLock};

    use bytes::Bytes;
    use uuid::Uuid;

    use super::*;
    use crate::commit::ExtentChange;
    use crate::format::frame::{FrameIdentity, open_frame};
    use crate::format::journal;
    use crate::ids::{Epoch, Generation, InodeNo, JournalSeq};
    use crate::row::Counters;

    const NAME: JournalName = JournalName {
        volume: Uuid::from_u128(7),
        writer: Uuid::from_u128(1),
        epoch: Epoch(2),
        seq: JournalSeq(3),
    };

    const MIB: usize = 1024 * 1024;

    fn run(ino: u64, len: usize) -> DirtyRun {
        DirtyRun {
            ino: InodeNo(ino),
            offset: 0,
            data: vec![Bytes::from(vec![ino as u8; len])],
            placed: Arc::new(OnceLock::new()),
            held: Arc::default(),
        }
    }

    fn whole(run: &DirtyRun) -> ExtentChange {
        ExtentChange {
            ino: run.ino,
            end: run.len_bytes(),
            old: None,
            new: Some(RunSource::Dirty {
                placed: run.placed.clone(),
                skip: 0,
                len: run.len_bytes(),
            }),
        }
    }

    fn sealed(runs: Vec<DirtyRun>, extents: Vec<ExtentChange>) -> SealedGeneration {
        SealedGeneration {
            generation: Generation(1),
            runs,
            extents,
            rows: Vec::new(),
            counters: Counters::default(),
        }
    }

    fn encoded(sealed: SealedGeneration) -> Encoded {
        let mut next = 0;
        encode(NAME, &CommitLimits::default(), Compression::None, sealed, || {
            next += 1;
            next
        })
    }

    #[test]
    fn little_content_travels_in_the_journal_object() {
        let runs = vec![run(5, 3), run(6, FRAME_BYTES as usize + 1)];
        let extents = runs.iter().map(whole).collect();
        let placed = runs[1].placed.clone();
        let encoded = encoded(sealed(runs, extents));
        assert!(encoded.segments.is_empty());
        let row = placed.get().unwrap();
        assert_eq!(row.object, ObjectId::Journal(NAME.epoch, NAME.seq));
        let frame = row.object_offset as usize..row.object_offset as usize + row.frame_stored_lens[0] as usize;
        let body = encoded.journal.to_bytes();
        let content = open_frame(&body.slice(frame), &FrameIdentity::of(NAME.volume, row, 0)).unwrap();
        assert!(content.len() == FRAME_BYTES as usize && content.iter().all(|byte| *byte == 6));
        let journal = journal::decode(&body, NAME.volume, NAME.epoch, NAME.seq).unwrap();
        assert_eq!(journal.changes, encoded.changes);
    }

    #[test]
    fn much_content_goes_to_segments_that_the_journal_object_names() {
        let runs: Vec<DirtyRun> = [5, 6, 5, 16, 5].iter().map(|mib| run(*mib as u64, mib * MIB)).collect();
        let extents = runs.iter().map(whole).collect();
        let placed: Vec<_> = runs.iter().map(|run| run.placed.clone()).collect();
        let encoded = encoded(sealed(runs, extents));
        let numbers: Vec<ObjectId> = placed.iter().map(|row| row.get().unwrap().object).collect();
        assert_eq!(
            numbers,
            [1, 1, 1, 2, 3].map(|number| ObjectId::Segment(NAME.epoch, number))
        );
        let body = encoded.journal.to_bytes();
        let journal = journal::decode(&body, NAME.volume, NAME.epoch, NAME.seq).unwrap();
        let lens: Vec<u64> = encoded.segments.iter().map(|(_, body)| body.len_bytes()).collect();
        assert_eq!(
            journal.segments.iter().map(|name| name.object_len).collect::<Vec<_>>(),
            lens
        );
        assert!(body.len() < 2_000, "{} bytes", body.len());
    }

    #[test]
    fn live_bytes_follow_what_runs_replace() {
        let first = run(5, 1000);
        let placed = first.placed.clone();
        let (first, whole_of_it) = (vec![first.clone()], whole(&first));
        encoded(sealed(first, vec![whole_of_it.clone()]));
        // The middle is overwritten: the old run becomes two, around a new one.
        let middle = run(5, 100);
        let part = |skip, len| {
            Some(RunSource::Dirty {
                placed: placed.clone(),
                skip,
                len,
            })
        };
        let change = |end, old, new| ExtentChange {
            ino: InodeNo(5),
            end,
            old,
            new,
        };
        let extents = vec![
            change(400, None, part(0, 400)),
            ExtentChange {
                end: 500,
                ..whole(&middle)
            },
            change(1000, whole_of_it.new.clone(), part(500, 500)),
        ];
        let name = JournalName {
            seq: JournalSeq(4),
            ..NAME
        };
        let second = encode(
            name,
            &CommitLimits::default(),
            Compression::None,
            sealed(vec![middle], extents),
            || unreachable!("all of it is small"),
        );
        let stats: Vec<_> = second
            .changes
            .iter()
            .filter_map(|(key, row)| match (key, row) {
                (Key::ObjectStats(object), Some(Row::ObjectStats(stats))) => Some((*object, *stats)),
                _ => None,
            })
            .collect();
        let (old, new) = (
            ObjectId::Journal(NAME.epoch, NAME.seq),
            ObjectId::Journal(NAME.epoch, name.seq),
        );
        let delta = |live_bytes, total_bytes| ObjectStats {
            live_bytes,
            total_bytes,
        };
        assert_eq!(stats, [(old, delta(-100, 0)), (new, delta(100, 100))]);
        let Some((_, Some(Row::Extent(tail)))) = second.changes.get(2) else {
            panic!("{:?}", second.changes);
        };
        assert_eq!((tail.len, tail.skip, tail.origin_ino), (500, 500, InodeNo(5)));
    }
}
