//! What leaves RAM when the tables are too large: rows that the tree has too, the longest untouched first.

use super::Tables;
use super::dirents::DirentKey;
use crate::ids::{Generation, InodeNo};

/// 64 rows are looked at by one operation at most, so that none pays for the memory that others used.
const STEPS_MAX: usize = 64;

/// Something that may be dropped.
#[derive(Debug)]
pub(super) enum EvictKey {
    Inode(InodeNo),
    Dirent(DirentKey),
    File(InodeNo),
    Xattrs(InodeNo),
}

impl Tables {
    /// Rows changed by this generation or before are in the tree, for every look-up that runs now too.
    fn settled(&self) -> Generation {
        match self.fetches.first_key_value() {
            Some((&began, _)) => began.min(self.applied),
            None => self.applied,
        }
    }

    /// A look-up in the tree begins: what it may not see stays in RAM until it ends.
    pub fn begin_fetch(&mut self) -> Generation {
        *self.fetches.entry(self.applied).or_default() += 1;
        self.applied
    }

    /// A look-up that began with `began` ends.
    pub fn end_fetch(&mut self, began: Generation) {
        let count = self.fetches.get_mut(&began).expect("a fetch ends once");
        *count -= 1;
        if *count == 0 {
            self.fetches.remove(&began);
        }
        self.release();
    }

    /// Makes evictable what has settled since.
    pub(super) fn release(&mut self) {
        let settled = self.settled();
        while self
            .releasing
            .front()
            .is_some_and(|(generation, _)| *generation <= settled)
        {
            let (up_to, touched) = self.releasing.pop_front().expect("looked at above");
            for ino in touched.inodes {
                self.release_inode(ino, up_to);
            }
            for key in touched.dirents {
                self.release_dirent(&key, up_to);
            }
            for (ino, end) in touched.extents {
                self.release_extent(ino, end, up_to);
            }
            for ino in touched.xattrs {
                self.release_xattrs(ino, up_to);
            }
        }
    }

    /// Drops all rows that may be dropped, until the tables have at most `bytes_max`.
    #[cfg(test)]
    pub fn shrink_to(&mut self, bytes_max: u64) {
        let limit = std::mem::replace(&mut self.limits.table_bytes_max, bytes_max);
        while self.bytes > bytes_max && !self.evictable.is_empty() {
            self.shrink();
        }
        self.limits.table_bytes_max = limit;
    }

    /// Drops some clean rows if the tables are too large.
    pub fn shrink(&mut self) {
        let settled = self.settled();
        let bytes_max = self.limits.table_bytes_max.min(self.rows_share.allowed(self.bytes));
        for _ in 0..STEPS_MAX {
            if self.bytes <= bytes_max {
                return;
            }
            match self.evictable.pop_front() {
                None => return,
                Some(EvictKey::Inode(ino)) => self.evict_inode(ino, settled),
                Some(EvictKey::Dirent(key)) => self.evict_dirent(&key, settled),
                Some(EvictKey::File(ino)) => self.evict_extents(ino, settled),
                Some(EvictKey::Xattrs(ino)) => self.evict_xattrs(ino, settled),
            }
        }
    }
}
