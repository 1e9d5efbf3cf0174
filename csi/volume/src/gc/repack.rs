//! Repacking: what lives in objects that are mostly dead, and in many small ones, is gathered into new segments.
//!
//! One pass walks all extents in their order, so what lies together in a file or a folder comes to lie together in the
//! bucket. Content is read through the caches, verified as always, and in passing: readers go first.
//!
//! Invariants:
//! - A segment is in the bucket before a row names it; the rows change under the lock, each only if it still is what was
//!   copied, as any write changes them. So a crash at any moment leaves either place, and both hold the same content.
//! - A new segment is not judged dead before the tree contains every row that names it (`Filled`).
//!
//! Caller: `gc.rs`. Absent: which objects are moved (`census.rs`), and their deletion (they die like any other).

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;

use crate::bucket::BucketError;
use crate::commit::{CommitHandle, KeepFrames};
use crate::error::FsError;
use crate::fetch::{FetchError, WantedPart};
use crate::format::segment::{self, SegmentBuilder};
use crate::ids::{Generation, InodeNo, ObjectId};
use crate::mount::Mount;
use crate::rope::Rope;
use crate::row::{ExtentRow, Key, Row};

/// 1,000 extents are looked at a time, and 64,000 in a round: the tree is read in passing, not in a rush.
const SCAN_ROWS: usize = 1_000;
/// See `SCAN_ROWS`.
const SCANS_PER_ROUND: usize = 64;

/// 8 MiB of content in a new segment, which is held in RAM twice while it is built.
const SEGMENT_BYTES: u64 = 8 * 1024 * 1024;

/// 16 segments in a round of five seconds: 25 MiB/s, which is more than writes with fsync make, and leaves the rest of
/// a link to others.
const SEGMENTS_PER_ROUND: usize = 16;

/// 2 MiB: neighbours up to it become one run, and are read together.
const GROUP_BYTES: u64 = 2 * 1024 * 1024;

/// 8 MiB of frames are read at once: of a frame that holds little that lives all is read.
const READ_BYTES: u64 = 8 * 1024 * 1024;

/// 64 extents are read at once, or all neighbours of a group: between them is seen whether the volume is being closed.
const READ_EXTENTS: usize = 64;

/// 512 bytes tell whose a segment is.
const LOOK_BYTES: u64 = 512;

/// An extent as the tree told it.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    /// File offset of its first byte.
    pub start: u64,
    /// Where it lies.
    pub row: ExtentRow,
}

impl Piece {
    /// First byte after it.
    pub fn end(&self) -> u64 {
        self.start + self.row.len
    }
}

/// Neighbours of one file.
#[derive(Debug)]
struct Group {
    ino: InodeNo,
    pieces: Vec<Piece>,
}

/// A segment made by a pass, and the generation that has the last of the rows that name it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Filled {
    pub object: ObjectId,
    pub generation: Generation,
}

/// One walk over all extents.
#[derive(Debug)]
pub(super) struct Pass {
    victims: BTreeSet<ObjectId>,
    from: Key,
    /// Objects whose content cannot be read: they stay as they are.
    pub unreadable: BTreeSet<ObjectId>,
}

impl Pass {
    pub fn new(victims: BTreeSet<ObjectId>) -> Self {
        Self {
            victims,
            from: Key::Extent {
                ino: InodeNo(0),
                end: 0,
            },
            unreadable: BTreeSet::new(),
        }
    }

    /// Goes on for a round. True if the walk is over. `filled` gets each segment as soon as a row may name it.
    ///
    /// # Errors
    /// The tree's or the bucket's: the same extents are looked at again.
    pub async fn round(&mut self, mount: &Mount, filled: &mut Vec<Filled>) -> Result<bool, FsError> {
        let Some(commit) = &mount.commit else { return Ok(true) };
        let (mut scans, mut segments) = (0, 0);
        while scans < SCANS_PER_ROUND && segments < SEGMENTS_PER_ROUND {
            let (groups, next) = self.gather(mount, &mut scans).await?;
            if !groups.is_empty() {
                segments += 1;
                self.move_groups(mount, commit, groups, filled).await?;
            }
            match next {
                Some(next) => self.from = next,
                None => return Ok(true),
            }
        }
        Ok(false)
    }

    /// The next extents in victims, a segment of them at most, and where to go on: `None` at the end.
    async fn gather(&self, mount: &Mount, scans: &mut usize) -> Result<(Vec<Group>, Option<Key>), FsError> {
        let end = Key::Xattr {
            ino: InodeNo(0),
            name: Bytes::new(),
        };
        let (mut groups, mut bytes, mut from): (Vec<Group>, u64, Key) = (Vec::new(), 0, self.from.clone());
        while *scans < SCANS_PER_ROUND {
            *scans += 1;
            let rows = mount.tree.scan(&from, &end, SCAN_ROWS).await?;
            let full = rows.len() == SCAN_ROWS;
            for (key, row) in rows {
                let (Key::Extent { ino, end }, Row::Extent(row)) = (key, row) else {
                    continue;
                };
                from = Key::Extent {
                    ino,
                    end: end.saturating_add(1),
                };
                if !self.victims.contains(&row.object) || row.len > end {
                    continue;
                }
                bytes += row.len;
                add(
                    &mut groups,
                    ino,
                    Piece {
                        start: end - row.len,
                        row,
                    },
                );
                if bytes >= SEGMENT_BYTES {
                    return Ok((groups, Some(from)));
                }
            }
            if !full {
                return Ok((groups, None));
            }
        }
        Ok((groups, Some(from)))
    }

    /// Copies groups into a new segment and lets their rows name it. `Closed` if the volume is being closed.
    async fn move_groups(
        &mut self,
        mount: &Mount,
        commit: &CommitHandle,
        groups: Vec<Group>,
        filled: &mut Vec<Filled>,
    ) -> Result<(), FsError> {
        let object = commit.allocate_segment();
        let (mut builder, mut placed, mut cached) = (None, Vec::new(), true);
        for chunk in chunks(groups) {
            mount.lock().check_open()?;
            cached &= mount.fetcher.holds(&wanted(&chunk));
            let contents = self.read(mount, &chunk).await?;
            for (group, content) in chunk.into_iter().zip(contents) {
                let Some(content) = content else { continue };
                let builder = builder.get_or_insert_with(|| SegmentBuilder::new(mount.uuid, mount.writer, object, 0));
                // Copied: what lives may be a small part of what was read, which must not stay until the segment is put.
                let content = [Bytes::from(content.concat())];
                let row = builder.put_run(group.ino, group.pieces[0].start, &content, mount.compression);
                placed.push((group, row));
            }
        }
        let Some(builder) = builder else { return Ok(()) };
        let body = builder.finish();
        put(mount, object, body.clone()).await?;
        if cached {
            let rows: Vec<ExtentRow> = placed.iter().map(|(_, row)| row.clone()).collect();
            mount.fetcher.keep(&body, &rows);
        }
        name(mount, object, placed, filled).await
    }

    /// The content of each group; `None` for one that cannot be moved.
    async fn read(&mut self, mount: &Mount, groups: &[Group]) -> Result<Vec<Option<Vec<Bytes>>>, FsError> {
        if let Ok(contents) = mount.fetcher.read_in_passing(wanted(groups)).await {
            let mut contents = contents.into_iter();
            let of_group = |group: &Group| Some(contents.by_ref().take(group.pieces.len()).flatten().collect());
            return Ok(groups.iter().map(of_group).collect());
        }
        // Which of them it was.
        let mut contents = Vec::new();
        for group in groups {
            let content = match mount.fetcher.read_in_passing(wanted(std::slice::from_ref(group))).await {
                Ok(content) => Some(content.concat()),
                // Given up meanwhile, as the tables will say.
                Err(FetchError::Missing(_)) => None,
                Err(FetchError::Damaged(damage)) => {
                    tracing::error!(ino = %group.ino, offset = damage.offset, object = %damage.object, detail = damage.detail, "content is damaged: it is not moved");
                    self.unreadable.insert(damage.object);
                    None
                }
                Err(FetchError::Bucket(error)) => return Err(FsError::Bucket(error)),
            };
            contents.push(content);
        }
        Ok(contents)
    }
}

/// Groups whose frames together are few enough to be read at once; each chunk has at least one.
fn chunks(groups: Vec<Group>) -> Vec<Vec<Group>> {
    let (mut chunks, mut bytes, mut extents): (Vec<Vec<Group>>, u64, usize) = (Vec::new(), 0, 0);
    for group in groups {
        let more_bytes: u64 = group.pieces.iter().map(|piece| piece.row.stored_bytes()).sum();
        (bytes, extents) = (bytes + more_bytes, extents + group.pieces.len());
        match chunks.last_mut() {
            Some(chunk) if bytes <= READ_BYTES && extents <= READ_EXTENTS => chunk.push(group),
            Some(_) | None => {
                (bytes, extents) = (more_bytes, group.pieces.len());
                chunks.push(vec![group]);
            }
        }
    }
    chunks
}

/// Adds an extent to the group of its neighbours.
fn add(groups: &mut Vec<Group>, ino: InodeNo, piece: Piece) {
    if let Some(last) = groups.last_mut()
        && last.ino == ino
        && last.pieces.last().is_some_and(|before| before.end() == piece.start)
        && piece.end() - last.pieces[0].start <= GROUP_BYTES
    {
        last.pieces.push(piece);
        return;
    }
    groups.push(Group {
        ino,
        pieces: vec![piece],
    });
}

fn wanted(groups: &[Group]) -> Vec<WantedPart> {
    let pieces = groups.iter().flat_map(|group| &group.pieces);
    let part = |piece: &Piece| WantedPart {
        offset: piece.start,
        row: Arc::new(piece.row.clone()),
        skip: 0,
        len: piece.row.len,
    };
    pieces.map(part).collect()
}

/// Puts a segment that nobody names yet.
async fn put(mount: &Mount, object: ObjectId, body: Rope) -> Result<(), FsError> {
    let key = object.key();
    let error = match mount.bucket.put_rope_if_absent(&key, body).await {
        Ok(_) => return Ok(()),
        // Its number is ours alone: what stands there is an earlier try of this put, or a mistake.
        Err(error @ BucketError::Precondition { .. }) => {
            let found = mount.bucket.get(&key, Some(0..LOOK_BYTES)).await?;
            match segment::decode_header(&found.body, found.size_bytes, mount.uuid, object) {
                Ok(header) if header.writer == mount.writer => return Ok(()),
                Ok(_) | Err(_) => error,
            }
        }
        Err(error) => error,
    };
    discard(mount, object).await;
    Err(error.into())
}

/// Lets rows name the segment; discards it if none does.
async fn name(
    mount: &Mount,
    object: ObjectId,
    placed: Vec<(Group, ExtentRow)>,
    filled: &mut Vec<Filled>,
) -> Result<(), FsError> {
    let total_bytes: u64 = placed.iter().map(|(_, row)| row.len).sum();
    let (mut moved_bytes, mut failed) = (0, None);
    for (group, row) in placed {
        let moving = mount.change(|tables, _| tables.relocate(group.ino, &group.pieces, &row));
        match moving.await {
            Ok(bytes) => moved_bytes += bytes,
            Err(FsError::Stale(_)) => {}
            Err(error) => {
                failed = Some(error);
                break;
            }
        }
    }
    if moved_bytes == 0 {
        discard(mount, object).await;
    } else {
        let (generation, unsealed) = {
            let mut tables = mount.lock();
            tables.note_filled(object, total_bytes);
            (tables.newest_generation(), tables.unsealed_bytes())
        };
        filled.push(Filled { object, generation });
        mount.dirtied(unsealed);
    }
    failed.map_or(Ok(()), Err)
}

/// Takes back a segment that nothing names.
async fn discard(mount: &Mount, object: ObjectId) {
    if let Err(error) = mount.bucket.delete(&object.key()).await {
        tracing::warn!(%error, %object, "a segment that nothing names could not be deleted; a sweep after a crash finds it");
    }
}
