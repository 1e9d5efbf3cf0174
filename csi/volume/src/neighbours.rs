//! Reading small files one after another: who reads two of those that were made together finds the others fetched already.
//!
//! Files made one after the other have neighbouring inode numbers, and their content lies together in the bucket, whatever
//! folders they are in. Without this, reading a source tree from a cold cache is one GET for each file. Who goes on to a
//! second group nearby reads a tree: four, then sixteen times as many are fetched, with the names and attributes around them.
//! Invariant: only caches are filled; what is wrong with content is found by whoever reads it.
//! Caller: `ops/read.rs`. Absent: large files (`readahead.rs`), and files whose content is in their row.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::fetch::{Pace, WantedPart};
use crate::ids::{DirCookie, InodeNo};
use crate::mount::Mount;
use crate::row::{ExtentRow, Key, Row};
use crate::tree::Tree;

/// Inode numbers of a group by how much is read: 256 are some two MiB of a source tree, two GETs; then 1,024, then 4,096.
const GROUP_INODES: [u64; 3] = [256, 1_024, 4_096];

/// 128 KiB: a file up to this, one frame, is a small one.
const SMALL_BYTES_MAX: u64 = 128 * 1024;

/// 4 MiB for each 256 inode numbers: an eighth of the frames that RAM keeps.
const GROUP_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// 48 MiB at once: more than twelve GETs under way do not make reading any faster.
const FETCH_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// 64 groups are remembered; what was fetched of a group longer ago is fetched again, if it is not in a cache.
const GROUPS_MAX: usize = 64;

/// 4 MiB: one GET of many. Nobody waits for its end, and half as many requests cost half as much.
const PACE: Pace = Pace {
    read_bytes: SMALL_BYTES_MAX,
    get_bytes: 4 * 1024 * 1024,
};

/// A file of the group that was read before makes it worth fetching: reading one file alone costs what it did. So does a
/// smaller group in it.
const READS_BEFORE: u32 = 1;

/// 4 runs of each inode number are looked at: more than small files have, and a file of more is none.
const ROWS_PER_INODE: usize = 4;

/// 4 looks at the runs of a group: each passes over one file of very many.
const SCANS_MAX: usize = 4;

/// Which size of groups, and the number among those.
type Group = (usize, u64);

/// A range of inode numbers: the first, and the one before which it ends.
type Inodes = (InodeNo, InodeNo);

/// Which groups of files are being read.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    /// The latest at the back, with what was read of each. Held for one decision, never across an await.
    groups: Mutex<VecDeque<(Group, u32)>>,
}

/// Notes one more read of a group; returns how many there were.
fn note(groups: &mut VecDeque<(Group, u32)>, group: Group) -> u32 {
    if let Some((_, reads)) = groups.iter_mut().find(|(known, _)| *known == group) {
        *reads = reads.saturating_add(1);
        return *reads;
    }
    if groups.len() >= GROUPS_MAX {
        groups.pop_front();
    }
    groups.push_back((group, 1));
    1
}

impl Neighbours {
    /// Notes that content of a small file had to be fetched; returns the inodes of a group to fetch. Groups are no larger than
    /// the `sizes` smallest.
    pub fn next(&self, ino: InodeNo, sizes: usize) -> Option<Inodes> {
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        let mut fetch = None;
        for (size, inodes) in GROUP_INODES.into_iter().enumerate().take(sizes) {
            let number = ino.0 / inodes;
            // A group that has just become worth fetching is one read of the larger one around it.
            if note(&mut groups, (size, number)) != READS_BEFORE + 1 {
                break;
            }
            fetch = Some((InodeNo(number * inodes), InodeNo((number + 1).saturating_mul(inodes))));
        }
        fetch
    }
}

impl Mount {
    /// Notes a read of content in the bucket. If it begins a small file that is in no cache, and others of its group were read
    /// before, fetches the rest of the group.
    pub fn read_neighbours(&self, ino: InodeNo, offset: u64, wanted: &[WantedPart]) {
        let small = wanted.iter().map(|part| part.row.len).sum::<u64>() <= SMALL_BYTES_MAX;
        if offset != 0 || !small || self.fetcher.holds(wanted) {
            return;
        }
        // What is not on disk must stay in RAM until it is read, and RAM has room for the smallest.
        let sizes = if self.fetcher.has_disk() { GROUP_INODES.len() } else { 1 };
        let Some(inodes) = self.neighbours.next(ino, sizes) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (tree, fetcher) = (Arc::clone(&self.tree), self.fetcher.clone());
            runtime.spawn(async move {
                let content = async { fetcher.warm(content_of(tree.as_ref(), inodes).await, PACE).await };
                tokio::join!(content, names_of(tree.as_ref(), inodes));
            });
        }
    }
}

fn rows_max((from, until): Inodes) -> usize {
    usize::try_from(until.0 - from.0).map_or(usize::MAX, |inodes| inodes.saturating_mul(ROWS_PER_INODE))
}

/// Reads the names and attributes of a group, for which the tree has a cache of its own. The smallest group needs none: whoever
/// lists its folders brings as much.
async fn names_of(tree: &dyn Tree, inodes: Inodes) {
    let (from, until) = inodes;
    if until.0 - from.0 <= GROUP_INODES[0] {
        return;
    }
    let names = |dir| Key::Dirent {
        dir,
        cookie: DirCookie(0),
        name: bytes::Bytes::new(),
    };
    let (names, attributes) = ((names(from), names(until)), (Key::Inode(from), Key::Inode(until)));
    // Who lists the folders meets an error again, and reports it.
    let _ = tokio::join!(
        tree.scan(&names.0, &names.1, rows_max(inodes)),
        tree.scan(&attributes.0, &attributes.1, rows_max(inodes)),
    );
}

/// What the small files of a group hold. What was changed since the tree was written is in RAM or found by who reads it: a
/// row that is not the newest costs a GET at most.
async fn content_of(tree: &dyn Tree, inodes: Inodes) -> Vec<WantedPart> {
    let (mut from, until) = inodes;
    let groups = (until.0 - from.0) / GROUP_INODES[0];
    let mut left_bytes = GROUP_BYTES_MAX.saturating_mul(groups).min(FETCH_BYTES_MAX);
    let bounds = |ino| Key::Extent { ino, end: 0 };
    let mut wanted = Vec::new();
    for _ in 0..SCANS_MAX {
        // Who reads the files meets an error again, and reports it.
        let rows = tree.scan(&bounds(from), &bounds(until), rows_max(inodes)).await;
        let rows = rows.unwrap_or_default();
        let full = rows.len() >= rows_max(inodes);
        let extents: Vec<Extent> = rows.into_iter().filter_map(extent).collect();
        for file in extents.chunk_by(|one, next| one.ino == next.ino) {
            let bytes = file
                .iter()
                .fold(0, |sum: u64, extent| sum.saturating_add(extent.row.len));
            // What was appended piece by piece lies in as many objects: not one of them is near another.
            let small = bytes <= SMALL_BYTES_MAX && file.len() <= ROWS_PER_INODE;
            if small && bytes <= left_bytes {
                left_bytes -= bytes;
                wanted.extend(file.iter().map(Extent::part));
            }
        }
        // The rest of the last one is passed over: it is no small file, or read by itself.
        match extents.last() {
            Some(last) if full => from = InodeNo(last.ino.0.saturating_add(1)),
            Some(_) | None => break,
        }
    }
    wanted
}

/// A run of a file.
struct Extent {
    ino: InodeNo,
    end: u64,
    row: Arc<ExtentRow>,
}

impl Extent {
    fn part(&self) -> WantedPart {
        WantedPart {
            offset: self.end.saturating_sub(self.row.len),
            row: Arc::clone(&self.row),
            skip: 0,
            len: self.row.len,
        }
    }
}

fn extent(row: (Key, Row)) -> Option<Extent> {
    match row {
        (Key::Extent { ino, end }, Row::Extent(row)) => Some(Extent {
            ino,
            end,
            row: Arc::new(row),
        }),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{Epoch, JournalSeq, ObjectId};
    use crate::row::Applied;
    use crate::tree::memory::MemoryTree;

    const ALL: usize = GROUP_INODES.len();

    fn inodes(first: u64, end: u64) -> Option<Inodes> {
        Some((InodeNo(first), InodeNo(end)))
    }

    #[test]
    fn the_second_file_of_a_group_fetches_it_once() {
        let neighbours = Neighbours::default();
        assert_eq!(neighbours.next(InodeNo(300), ALL), None);
        assert_eq!(neighbours.next(InodeNo(200), ALL), None, "that is another group");
        assert_eq!(neighbours.next(InodeNo(511), ALL), inodes(256, 512));
        assert_eq!(neighbours.next(InodeNo(400), ALL), None, "it is fetched already");
    }

    #[test]
    fn who_goes_on_to_the_next_group_reads_a_tree() {
        let neighbours = Neighbours::default();
        let read = |ino| {
            (
                neighbours.next(InodeNo(ino), ALL),
                neighbours.next(InodeNo(ino + 1), ALL),
            )
        };
        assert_eq!(read(5_000), (None, inodes(4_864, 5_120)));
        assert_eq!(read(5_200), (None, inodes(5_120, 5_376)), "another one of 1,024");
        assert_eq!(read(5_400), (None, inodes(5_120, 6_144)));
        assert_eq!(
            read(5_800),
            (None, inodes(5_632, 5_888)),
            "it was fetched, and lost since"
        );
        assert_eq!(read(6_200), (None, inodes(6_144, 6_400)));
        assert_eq!(read(4_300), (None, inodes(4_096, 8_192)), "the second 1,024 of 4,096");
        assert_eq!(
            read(6_500),
            (None, inodes(6_144, 7_168)),
            "a larger group is fetched once"
        );
        let small = Neighbours::default();
        for ino in (0..4_096).step_by(100) {
            let fetched = small.next(InodeNo(ino), 1);
            assert!(
                fetched.is_none_or(|(from, until)| until.0 - from.0 == 256),
                "{fetched:?}"
            );
        }
    }

    #[test]
    fn files_read_at_random_fetch_nothing_but_themselves() {
        let neighbours = Neighbours::default();
        for n in 0..10_000u64 {
            assert_eq!(
                neighbours.next(InodeNo(n * 7_919 % 10_007 * GROUP_INODES[0]), ALL),
                None
            );
        }
    }

    /// Goal: what is fetched for a reader of small files is small files, all of them. Method: amid them one that was appended to more
    /// often than one look shows, each time into an object of its own, and a large one.
    #[tokio::test]
    async fn a_file_of_many_pieces_is_no_small_file() {
        let tree = MemoryTree::new();
        let extent = |ino, end, len, object| {
            let row = ExtentRow {
                len,
                object: ObjectId::Segment(Epoch(1), object),
                object_offset: 0,
                skip: 0,
                frame_stored_lens: vec![100; len.div_ceil(SMALL_BYTES_MAX) as usize],
                origin_ino: InodeNo(ino),
                origin_offset: 0,
            };
            let key = Key::Extent { ino: InodeNo(ino), end };
            (key, Some(Row::Extent(row)))
        };
        let mut rows = vec![
            extent(10, 5_000, 5_000, 1),
            extent(12, SMALL_BYTES_MAX + 1, SMALL_BYTES_MAX + 1, 1),
            extent(13, 4_096, 4_096, 1),
            extent(13, 9_000, 4_904, 2),
        ];
        rows.extend((1..=2_000).map(|n| extent(11, n * 1_000, 1_000, 10 + n)));
        let applied = Applied {
            epoch: Epoch(1),
            seq: JournalSeq(1),
        };
        tree.apply(applied, rows).await.unwrap();
        let wanted = content_of(&tree, (InodeNo(0), InodeNo(256))).await;
        let found: Vec<_> = wanted
            .iter()
            .map(|part| (part.row.origin_ino.0, part.offset, part.len))
            .collect();
        assert_eq!(found, [(10, 0, 5_000), (13, 0, 4_096), (13, 4_096, 4_904)]);
    }
}
