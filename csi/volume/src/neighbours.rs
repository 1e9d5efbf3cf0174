//! Reading small files one after another: who reads two of those that were made together finds the others fetched already.
//!
//! Files made one after the other have neighbouring inode numbers, and their content lies together in the bucket, whatever
//! folders they are in. Without this, reading a source tree from a cold cache is one GET for each file.
//! Invariant: only caches are filled; what is wrong with content is found by whoever reads it.
//! Caller: `ops/read.rs`. Absent: large files (`readahead.rs`), and files whose content is in their row.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use crate::fetch::WantedPart;
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::row::{Key, Row};
use crate::tree::Tree;

/// 256 inode numbers make a group: some two MiB of a source tree, two GETs.
const GROUP_INODES: u64 = 256;

/// 128 KiB: a run up to this, one frame, is content of a small file.
const SMALL_BYTES_MAX: u64 = 128 * 1024;

/// 4 MiB of one group at most: an eighth of the frames that RAM keeps.
const GROUP_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// 64 groups are remembered; what was fetched of a group longer ago is fetched again, if it is not in a cache.
const GROUPS_MAX: usize = 64;

/// A file of the group that was read before makes it worth fetching: reading one file alone costs what it did.
const READS_BEFORE: u32 = 1;

/// 1,024 runs of a group are looked at: more than its small files have.
const ROWS_MAX: usize = 4 * GROUP_INODES as usize;

#[derive(Debug)]
struct Group {
    number: u64,
    reads: u32,
}

/// Which groups of files are being read.
#[derive(Debug, Default)]
pub(crate) struct Neighbours {
    /// The latest at the back. Held for one decision, never across an await.
    groups: Mutex<VecDeque<Group>>,
}

impl Neighbours {
    /// Notes that content of a small file had to be fetched; returns the inodes of a group to fetch, from the first to before the
    /// second.
    pub fn next(&self, ino: InodeNo) -> Option<(InodeNo, InodeNo)> {
        let number = ino.0 / GROUP_INODES;
        let mut groups = self.groups.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(group) = groups.iter_mut().find(|group| group.number == number) {
            group.reads = group.reads.saturating_add(1);
            let first = number * GROUP_INODES;
            return (group.reads == READS_BEFORE + 1).then_some((InodeNo(first), InodeNo(first + GROUP_INODES)));
        }
        if groups.len() >= GROUPS_MAX {
            groups.pop_front();
        }
        groups.push_back(Group { number, reads: 1 });
        None
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
        let Some((from, until)) = self.neighbours.next(ino) else {
            return;
        };
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            let (tree, fetcher) = (Arc::clone(&self.tree), self.fetcher.clone());
            runtime.spawn(async move { fetcher.warm(content_of(tree.as_ref(), from, until).await).await });
        }
    }
}

/// What the small files of a group hold. What was changed since the tree was written is in RAM or found by who reads it: a
/// row that is not the newest costs a GET at most.
async fn content_of(tree: &dyn Tree, from: InodeNo, until: InodeNo) -> Vec<WantedPart> {
    let bounds = |ino| Key::Extent { ino, end: 0 };
    // Who reads the files meets an error again, and reports it.
    let rows = tree
        .scan(&bounds(from), &bounds(until), ROWS_MAX)
        .await
        .unwrap_or_default();
    let (mut wanted, mut bytes) = (Vec::new(), 0);
    for row in rows {
        let (Key::Extent { end, .. }, Row::Extent(row)) = row else {
            continue;
        };
        if row.len > SMALL_BYTES_MAX || row.len > end || bytes + row.len > GROUP_BYTES_MAX {
            continue;
        }
        bytes += row.len;
        wanted.push(WantedPart {
            offset: end - row.len,
            skip: 0,
            len: row.len,
            row: Arc::new(row),
        });
    }
    wanted
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_file_of_a_group_fetches_it_once() {
        let neighbours = Neighbours::default();
        assert_eq!(neighbours.next(InodeNo(300)), None);
        assert_eq!(neighbours.next(InodeNo(200)), None, "that is another group");
        assert_eq!(neighbours.next(InodeNo(511)), Some((InodeNo(256), InodeNo(512))));
        assert_eq!(neighbours.next(InodeNo(400)), None, "it is fetched already");
    }

    #[test]
    fn files_read_at_random_fetch_nothing_but_themselves() {
        let neighbours = Neighbours::default();
        for n in 0..10_000u64 {
            assert_eq!(neighbours.next(InodeNo(n * 7_919 % 10_007 * GROUP_INODES)), None);
        }
    }
}
