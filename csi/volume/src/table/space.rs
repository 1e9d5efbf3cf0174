//! Which bytes of a file take space: those with content, and those that fallocate(2) has reserved.
//!
//! Invariant: `InodeRow::allocated` is the number of bytes that have content or are reserved, inline content included.
//! Callers: the operations that write, reserve and free. Absent: the limit itself (`Tables::check_room`).

use super::Tables;
use crate::ids::InodeNo;
use crate::row::RESERVED_RANGES_MAX;

impl Tables {
    /// Bytes of a known range that take no space yet.
    pub fn free_within(&mut self, ino: InodeNo, start: u64, end: u64) -> u64 {
        let gaps = self.found(ino).reserved.gaps(start, end);
        let free = |(start, end): (u64, u64)| end - start - self.content_bytes(ino, start, end);
        gaps.into_iter().map(free).sum()
    }

    /// Reserves a known range. False, and nothing is done, if the file has too many reserved ranges for another one.
    pub fn reserve(&mut self, ino: InodeNo, start: u64, end: u64) -> bool {
        let mut reserved = self.found(ino).reserved.clone();
        reserved.insert(start, end);
        if reserved.len() > RESERVED_RANGES_MAX {
            return false;
        }
        let more = self.free_within(ino, start, end);
        self.change_inode(ino, |row| row.reserved = reserved);
        self.change_allocated(ino, more, 0);
        // Without content nothing else would ever let go of what is known of the file.
        self.queue_file(ino);
        true
    }

    /// Makes a known range a hole whose space is free again. Inside of a reserved range that would fall into too many
    /// pieces, the space stays reserved.
    pub fn free_range(&mut self, ino: InodeNo, start: u64, end: u64) {
        let before = self.found(ino).reserved.clone();
        let mut after = before.clone();
        after.remove(start, end);
        let content: u64 = before
            .gaps(start, end)
            .into_iter()
            .map(|(start, end)| self.content_bytes(ino, start, end))
            .sum();
        let mut freed = content;
        if after.len() <= RESERVED_RANGES_MAX {
            freed += before.count_within(start, end);
            if after != before {
                self.change_inode(ino, |row| row.reserved = after);
            }
        }
        self.carve(ino, start, end);
        self.change_allocated(ino, 0, freed);
    }

    /// The row of an inode that the operation has found.
    fn found(&mut self, ino: InodeNo) -> &crate::row::InodeRow {
        self.inode(ino).expect("the operation has found the inode")
    }
}
