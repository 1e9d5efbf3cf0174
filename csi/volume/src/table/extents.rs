//! Content of files in RAM: which bytes are where. Pieces that were just written, runs on their way to the bucket, and
//! runs that are in it.
//!
//! Invariants:
//! - Extents of a file never overlap. Where `known` covers an offset and no extent does, there is a hole.
//! - The edges of `known` never cut a row of the tree.
//! - A key that was sealed and is gone since stays in `gone` until the tree says so too, and what it covered stays known.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use super::load::LoadedExtents;
use super::{EvictKey, Need, ROW_BYTES, RangeSet, Stop, Tables};
use crate::commit::{HeldContent, RunSource};
use crate::ids::{Generation, InodeNo};
use crate::row::{ExtentRow, RUN_BYTES_MAX};

/// 64 extents are dropped at a time, so that what is known of a file does not fall into more pieces than a 64th of them.
const EVICT_EXTENTS: usize = 64;

/// Half: a piece of which less than this is left is copied, so that small rests do not keep large buffers. What lies on its way to
/// the bucket and to the disk is counted without its buffer, and so keeps twice as much at most.
const COPY_BELOW: u64 = 2;

/// Content that was sealed in one piece: in RAM until it is durable, then only in the bucket.
#[derive(Debug)]
pub(crate) struct Run {
    /// Where the whole lies; filled by the commit.
    pub placed: Arc<OnceLock<ExtentRow>>,
    /// The content, until it is durable.
    pub held: Arc<HeldContent>,
}

impl Run {
    pub fn new(pieces: Vec<(u64, Bytes)>) -> Self {
        Self {
            placed: Arc::new(OnceLock::new()),
            held: Arc::new(HeldContent::new(pieces)),
        }
    }

    /// The content of a part, if it is still in RAM.
    fn slice(&self, skip: u64, len: u64, parts: &mut Vec<Part>) -> bool {
        self.held.slice(skip, len, |bytes| parts.push(Part::Bytes(bytes)))
    }
}

/// Where an extent's content is.
#[derive(Debug, Clone)]
pub(super) enum Source {
    /// Written since the last cut. `backing` is the length of the buffer that the bytes keep alive.
    Open { bytes: Bytes, backing: u64 },
    /// Sealed by this mount: the part of the run from `skip` on.
    Run { run: Arc<Run>, skip: u64 },
    /// In the bucket; the row is that of the whole extent.
    Stored(Arc<ExtentRow>),
}

impl Source {
    fn open(bytes: Bytes) -> Self {
        let backing = bytes.len() as u64;
        Source::Open { bytes, backing }
    }

    fn part(&self, skip: u64, len: u64) -> Source {
        match self {
            Source::Open { bytes, backing } => {
                let part = bytes.slice(skip as usize..(skip + len) as usize);
                if len < backing / COPY_BELOW {
                    return Source::open(Bytes::copy_from_slice(&part));
                }
                Source::Open {
                    bytes: part,
                    backing: *backing,
                }
            }
            Source::Run { run, skip: before } => Source::Run {
                run: Arc::clone(run),
                skip: before + skip,
            },
            Source::Stored(row) => Source::Stored(Arc::new(row.part(skip, len))),
        }
    }

    fn told(&self, len: u64) -> RunSource {
        match self {
            Source::Open { .. } => unreachable!("content is told only after it was sealed into a run"),
            Source::Run { run, skip } => RunSource::Dirty {
                placed: Arc::clone(&run.placed),
                skip: *skip,
                len,
            },
            Source::Stored(row) => RunSource::Stored(ExtentRow::clone(row)),
        }
    }
}

fn told_len(source: &RunSource) -> u64 {
    match source {
        RunSource::Dirty { len, .. } => *len,
        RunSource::Stored(row) => row.len,
    }
}

/// Content without a gap, up to the key that it has in the map.
#[derive(Debug)]
pub(super) struct Extent {
    pub start: u64,
    pub source: Source,
    pub changed: Generation,
}

/// A part of what a read returns, in order.
#[derive(Debug, Clone)]
pub(crate) enum Part {
    /// Content in RAM.
    Bytes(Bytes),
    /// A hole of this many bytes.
    Zeros(u64),
    /// Content in the bucket.
    Stored {
        /// Where it is in the file.
        offset: u64,
        /// Exactly the part.
        row: Arc<ExtentRow>,
        /// Bytes of the row to skip.
        skip: u64,
        /// Bytes to read.
        len: u64,
    },
}

/// What is known of a file's content.
#[derive(Debug, Default)]
pub(crate) struct FileExtents {
    /// By their end.
    pub(super) map: BTreeMap<u64, Extent>,
    /// Start of what a key that is gone covered when it was last sealed, and the generation that removed it.
    gone: BTreeMap<u64, (u64, Generation)>,
    known: RangeSet,
    /// Where the next eviction begins.
    hand: u64,
    queued: bool,
}

impl Tables {
    /// Notes that a file has no extents at all, in the tree or here.
    pub fn know_no_extents(&mut self, ino: InodeNo) {
        let file = self.files.entry(ino).or_default();
        if file.map.is_empty() {
            file.known = RangeSet::all();
        }
    }

    /// Makes sure that all extents of a range are known.
    ///
    /// # Errors
    /// A need if they are not.
    pub fn need_extents(&self, ino: InodeNo, start: u64, end: u64) -> Result<(), Stop> {
        let gap = match self.files.get(&ino) {
            Some(file) => file.known.first_gap(start, end),
            None if start < end => Some(start),
            None => None,
        };
        match gap {
            Some(at) => Err(Stop::Need(Need::Extents { ino, at })),
            None => Ok(()),
        }
    }

    /// Lets what is known of a file be dropped when room is needed.
    pub(super) fn queue_file(&mut self, ino: InodeNo) {
        if let Some(file) = self.files.get_mut(&ino)
            && !file.queued
        {
            file.queued = true;
            self.queue(EvictKey::File(ino));
        }
    }

    /// Number of extents of a file in RAM.
    pub fn extents_in_ram(&self, ino: InodeNo) -> usize {
        self.files.get(&ino).map_or(0, |file| file.map.len())
    }

    /// End of the n-th extent of a file in RAM.
    pub(super) fn nth_end(&self, ino: InodeNo, n: usize) -> Option<u64> {
        self.files.get(&ino)?.map.keys().nth(n).copied()
    }

    /// The extents of a file in RAM that end behind an offset, by their ends.
    fn extents_behind(&self, ino: InodeNo, offset: u64) -> impl Iterator<Item = (&u64, &Extent)> {
        let file = self.files.get(&ino).into_iter();
        file.flat_map(move |file| file.map.range(offset.saturating_add(1)..))
    }

    /// Bytes of a known range that are no holes.
    pub fn content_bytes(&self, ino: InodeNo, start: u64, end: u64) -> u64 {
        let overlapping = self
            .extents_behind(ino, start)
            .take_while(|(_, extent)| extent.start < end);
        overlapping
            .map(|(until, extent)| (*until).min(end) - extent.start.max(start))
            .sum()
    }

    /// The parts of a known range.
    pub fn parts(&self, ino: InodeNo, start: u64, end: u64) -> Vec<Part> {
        let mut parts = Vec::new();
        let mut at = start;
        let overlapping = self
            .extents_behind(ino, start)
            .take_while(|(_, extent)| extent.start < end);
        for (&until, extent) in overlapping {
            if extent.start > at {
                parts.push(Part::Zeros(extent.start - at));
                at = extent.start;
            }
            let stop = until.min(end);
            push_part(extent, at, stop - at, &mut parts);
            at = stop;
        }
        if at < end {
            parts.push(Part::Zeros(end - at));
        }
        parts
    }

    /// Like `parts`, as far as the extents are known: for reading ahead.
    pub fn parts_known(&self, ino: InodeNo, start: u64, end: u64) -> Vec<Part> {
        let known = self.files.get(&ino).and_then(|file| file.known.covering(start));
        match known {
            Some((_, until)) => self.parts(ino, start, end.min(until)),
            None => Vec::new(),
        }
    }

    /// The first offset in a known range that has content.
    pub fn next_content(&self, ino: InodeNo, start: u64, end: u64) -> Option<u64> {
        let (_, extent) = self.extents_behind(ino, start).next()?;
        let at = extent.start.max(start);
        (at < end).then_some(at)
    }

    /// The first offset in a known range that is in a hole.
    pub fn next_hole(&self, ino: InodeNo, start: u64, end: u64) -> Option<u64> {
        let mut at = start;
        for (&until, extent) in self.extents_behind(ino, start) {
            if at >= end || extent.start > at {
                break;
            }
            at = until;
        }
        (at < end).then_some(at)
    }

    /// How far the known part of a file reaches from `start` on.
    pub fn known_until(&self, ino: InodeNo, start: u64) -> u64 {
        self.files
            .get(&ino)
            .and_then(|file| file.known.covering(start))
            .map_or(start, |(_, end)| end)
    }

    /// Makes a known range a hole. The caller counts what was allocated.
    pub fn carve(&mut self, ino: InodeNo, start: u64, end: u64) {
        self.note_content(ino, start, end);
        self.cut_out(ino, start, end);
    }

    /// Makes a known range a hole, where what it reads does not change in the end.
    pub(super) fn cut_out(&mut self, ino: InodeNo, start: u64, end: u64) {
        loop {
            let Some(file) = self.files.get(&ino) else { return };
            let Some((&until, extent)) = file.map.range(start.saturating_add(1)..).next() else {
                return;
            };
            if extent.start >= end {
                return;
            }
            let from = extent.start;
            self.touch_extent(ino, until);
            let file = self.files.get_mut(&ino).expect("found above");
            let extent = file.map.remove(&until).expect("found above");
            self.bytes -= ROW_BYTES;
            if until > end {
                let source = extent.source.part(end - from, until - end);
                self.put_extent(
                    ino,
                    until,
                    Extent {
                        start: end,
                        source,
                        changed: self.open.number,
                    },
                );
            } else {
                self.note_gone(ino, until);
            }
            if from < start {
                self.touch_extent(ino, start);
                let source = extent.source.part(0, start - from);
                self.put_extent(
                    ino,
                    start,
                    Extent {
                        start: from,
                        source,
                        changed: self.open.number,
                    },
                );
            }
        }
    }

    /// Puts new content where `carve` has made a hole.
    pub fn put_content(&mut self, ino: InodeNo, offset: u64, data: Bytes) {
        let mut rest = data;
        let mut at = offset;
        self.open.bytes += rest.len() as u64;
        self.note_content(ino, offset, offset + rest.len() as u64);
        while !rest.is_empty() {
            let piece = rest.split_to(rest.len().min(RUN_BYTES_MAX as usize));
            let end = at + piece.len() as u64;
            self.touch_extent(ino, end);
            self.put_extent(
                ino,
                end,
                Extent {
                    start: at,
                    source: Source::open(piece),
                    changed: self.open.number,
                },
            );
            at = end;
        }
    }

    pub(super) fn put_extent(&mut self, ino: InodeNo, end: u64, extent: Extent) {
        self.bytes += ROW_BYTES;
        let before = self.files.entry(ino).or_default().map.insert(end, extent);
        assert!(before.is_none(), "two extents of inode {ino} end at {end}");
    }

    /// Keeps what a key referred to at the last cut, the first time that it changes after it.
    fn touch_extent(&mut self, ino: InodeNo, end: u64) {
        let std::collections::btree_map::Entry::Vacant(entry) = self.open.extents.entry((ino, end)) else {
            return;
        };
        let now = self.files.get(&ino).and_then(|file| file.map.get(&end));
        entry.insert(now.map(|extent| extent.source.told(end - extent.start)));
        self.open.bytes += ROW_BYTES;
    }

    fn note_gone(&mut self, ino: InodeNo, end: u64) {
        let Some(Some(old)) = self.open.extents.get(&(ino, end)) else {
            return;
        };
        let start = end - told_len(old);
        let file = self
            .files
            .get_mut(&ino)
            .expect("a key is gone from a file that is here");
        file.gone.insert(end, (start, self.open.number));
    }

    /// Joins the pieces written since the last cut into runs and returns them with their file offsets.
    pub(super) fn seal_file(&mut self, ino: InodeNo, runs: &mut Vec<(u64, Vec<Bytes>, Arc<Run>)>) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        let mut group: Vec<(u64, u64, Bytes)> = Vec::new();
        for (&(_, end), _) in self.open.extents.range((ino, 0)..=(ino, u64::MAX)) {
            let Some(Extent {
                start,
                source: Source::Open { bytes, .. },
                ..
            }) = file.map.get(&end)
            else {
                continue;
            };
            let (start, bytes) = (*start, bytes.clone());
            let joins = match (group.first(), group.last()) {
                (Some((first, _, _)), Some((_, last, _))) => *last == start && end - first <= RUN_BYTES_MAX,
                _ => true,
            };
            if !joins {
                self.bytes -= seal_group(file, std::mem::take(&mut group), self.open.number, runs);
            }
            group.push((start, end, bytes));
        }
        if !group.is_empty() {
            self.bytes -= seal_group(file, group, self.open.number, runs);
        }
    }

    /// What a key refers to after `seal_file`.
    pub(super) fn told_extent(&self, ino: InodeNo, end: u64) -> Option<RunSource> {
        let extent = self.files.get(&ino)?.map.get(&end)?;
        Some(extent.source.told(end - extent.start))
    }

    /// Puts what the tree holds between `from` and `until` where nothing is known.
    pub(super) fn load_extents(&mut self, loaded: LoadedExtents) {
        let LoadedExtents { ino, from, until, rows } = loaded;
        let file = self.files.entry(ino).or_default();
        let from = rows.first().map_or(from, |(end, row)| from.min(end - row.len));
        let mut at = from;
        while let Some(gap) = file.known.first_gap(at, until) {
            let gap_end = file.known.next_from(gap).map_or(until, |next| next.min(until));
            for (end, row) in rows.iter().filter(|(end, row)| *end > gap && end - row.len < gap_end) {
                let start = end - row.len;
                let (first, last) = (start.max(gap), (*end).min(gap_end));
                let source = Source::Stored(Arc::new(row.part(first - start, last - first)));
                file.map.insert(
                    last,
                    Extent {
                        start: first,
                        source,
                        changed: Generation(0),
                    },
                );
                self.bytes += ROW_BYTES;
            }
            file.known.insert(gap, gap_end);
            at = gap_end;
        }
        self.queue_file(ino);
    }

    pub(super) fn release_extent(&mut self, ino: InodeNo, end: u64, up_to: Generation) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        if file.gone.get(&end).is_some_and(|(_, changed)| *changed <= up_to) {
            file.gone.remove(&end);
        }
        if let Some(extent) = file.map.get_mut(&end)
            && extent.changed <= up_to
            && let Source::Run { run, skip } = &extent.source
        {
            let placed = run.placed.get().expect("an applied run has its place");
            extent.source = Source::Stored(Arc::new(placed.part(*skip, end - extent.start)));
        }
        if file.map.is_empty() && file.gone.is_empty() {
            // Nothing is left: the row of the inode says so.
            self.files.remove(&ino);
        } else if !file.queued && !file.map.is_empty() {
            file.queued = true;
            self.queue(EvictKey::File(ino));
        }
    }

    /// Drops a batch of clean extents, from where the last one ended.
    pub(super) fn evict_extents(&mut self, ino: InodeNo, up_to: Generation) {
        let Some(file) = self.files.get_mut(&ino) else { return };
        file.queued = false;
        if file.map.is_empty() && file.gone.is_empty() {
            self.files.remove(&ino);
            return;
        }
        if file.gone.len() > EVICT_EXTENTS {
            // Much was just removed; the release of the last of it brings the file back here.
            return;
        }
        let mut batch: Vec<u64> = Vec::with_capacity(EVICT_EXTENTS);
        let mut start = 0;
        for (&end, extent) in file.map.range(file.hand.saturating_add(1)..) {
            if extent.changed > up_to {
                if batch.is_empty() {
                    continue;
                }
                break;
            }
            let first = if batch.is_empty() { extent.start } else { start };
            let crosses_gone = file
                .gone
                .range(first.saturating_add(1)..)
                .any(|(_, (gone, _))| *gone < end);
            let split = file.known.covering(first).is_none_or(|(_, until)| until < end);
            if (crosses_gone || split) && !batch.is_empty() {
                break;
            }
            if crosses_gone {
                continue;
            }
            start = first;
            batch.push(end);
            if batch.len() == EVICT_EXTENTS {
                break;
            }
        }
        let Some(&last) = batch.last() else {
            // Nothing here may go now; once round, and what is dirty comes back when it is released.
            if std::mem::take(&mut file.hand) > 0 {
                file.queued = true;
                self.queue(EvictKey::File(ino));
            }
            return;
        };
        for end in &batch {
            file.map.remove(end);
        }
        file.known.remove(start, last);
        file.hand = last;
        file.queued = true;
        self.bytes -= ROW_BYTES * batch.len() as u64;
        if file.map.is_empty() && file.gone.is_empty() {
            self.files.remove(&ino);
        } else {
            self.queue(EvictKey::File(ino));
        }
    }
}

fn push_part(extent: &Extent, at: u64, len: u64, parts: &mut Vec<Part>) {
    let skip = at - extent.start;
    match &extent.source {
        Source::Open { bytes, .. } => parts.push(Part::Bytes(bytes.slice(skip as usize..(skip + len) as usize))),
        Source::Run { run, skip: before } => {
            if !run.slice(before + skip, len, parts) {
                let placed = run
                    .placed
                    .get()
                    .expect("a run that gave its content up is in the bucket");
                parts.push(Part::Stored {
                    offset: at,
                    row: Arc::new(placed.clone()),
                    skip: before + skip,
                    len,
                });
            }
        }
        Source::Stored(row) => parts.push(Part::Stored {
            offset: at,
            row: Arc::clone(row),
            skip,
            len,
        }),
    }
}

/// Makes one run of contiguous pieces; returns by how much the tables shrank.
fn seal_group(
    file: &mut FileExtents,
    group: Vec<(u64, u64, Bytes)>,
    changed: Generation,
    runs: &mut Vec<(u64, Vec<Bytes>, Arc<Run>)>,
) -> u64 {
    let (first, last) = (group[0].0, group[group.len() - 1].1);
    for (_, end, _) in &group {
        file.map.remove(end);
    }
    let data = group.iter().map(|(_, _, bytes)| bytes.clone()).collect();
    let shrunk = ROW_BYTES * (group.len() as u64 - 1);
    let run = Arc::new(Run::new(
        group
            .into_iter()
            .map(|(start, _, bytes)| (start - first, bytes))
            .collect(),
    ));
    let source = Source::Run {
        run: Arc::clone(&run),
        skip: 0,
    };
    file.map.insert(
        last,
        Extent {
            start: first,
            source,
            changed,
        },
    );
    runs.push((first, data, run));
    shrunk
}
