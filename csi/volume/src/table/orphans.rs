//! Inodes without a name, and who still holds them.
//!
//! A mount that goes on with a connection of the kernel does not know what the kernel holds. There an inode that loses its last
//! name, or has none, is held until the kernel says that it has forgotten it: it says so once, with all its references.
//!
//! An inode that lost its last name stays, with an `Orphan` row, until nobody has it open and the kernel has forgotten
//! it; then it is taken apart: at once where that is little work, otherwise by `purge.rs`.

use super::{Need, ROW_BYTES, Stop, Tables};
use crate::error::FsError;
use crate::ids::InodeNo;

/// 1,024 extents are given up by one call at most; more are left to further calls.
pub(crate) const PURGE_EXTENTS_MAX: usize = 1_024;

impl Tables {
    /// From now on the kernel may hold what was never told here.
    pub fn inherit(&mut self) {
        self.inherited = true;
    }

    /// True if somebody holds the inode, as far as that is known.
    pub(super) fn is_held(&mut self, ino: InodeNo) -> bool {
        if self.inherited {
            let refs = self.refs.entry(ino).or_default();
            refs.lookups = refs.lookups.max(1);
        }
        self.refs.contains_key(&ino)
    }

    /// The kernel has one more reference.
    pub fn remember(&mut self, ino: InodeNo) {
        self.refs.entry(ino).or_default().lookups += 1;
    }

    /// The kernel has `count` references less. True if there is something to purge.
    pub fn forget(&mut self, ino: InodeNo, count: u64) -> bool {
        let Some(refs) = self.refs.get_mut(&ino) else {
            return false;
        };
        refs.lookups = refs.lookups.saturating_sub(count);
        self.settle_refs(ino)
    }

    /// One more open description.
    pub fn open_inode(&mut self, ino: InodeNo) {
        self.refs.entry(ino).or_default().opens += 1;
    }

    /// How many open descriptions there are that were told here.
    pub fn open_files(&self) -> u64 {
        self.refs.values().map(|refs| refs.opens).sum()
    }

    /// One open description less. True if there is something to purge.
    pub fn release_open(&mut self, ino: InodeNo) -> bool {
        let Some(refs) = self.refs.get_mut(&ino) else {
            return false;
        };
        refs.opens = refs.opens.saturating_sub(1);
        self.settle_refs(ino)
    }

    fn settle_refs(&mut self, ino: InodeNo) -> bool {
        if self
            .refs
            .get(&ino)
            .is_some_and(|refs| refs.lookups == 0 && refs.opens == 0)
        {
            self.refs.remove(&ino);
            return self.purge_or_queue(ino);
        }
        false
    }

    /// Notes that an inode has lost its last name. True if there is something to purge.
    pub fn add_orphan(&mut self, ino: InodeNo) -> bool {
        self.orphans.insert(ino);
        self.change_orphan(ino);
        !self.is_held(ino) && self.purge_or_queue(ino)
    }

    /// Notes that an inode without a name, which somebody holds, never had one: it may be given one.
    pub fn add_nameless(&mut self, ino: InodeNo) {
        self.refs.entry(ino).or_default().nameable = true;
        let purges = self.add_orphan(ino);
        assert!(!purges, "somebody holds it");
    }

    /// True if an inode without a name may be given one. Where the kernel holds what was never told here, it knows which of them may,
    /// and refuses the others itself.
    pub fn is_nameable(&self, ino: InodeNo) -> bool {
        self.inherited || self.orphans.contains(&ino) && self.refs.get(&ino).is_some_and(|refs| refs.nameable)
    }

    /// Notes that it has got one, which makes it an inode like any other.
    pub fn end_nameless(&mut self, ino: InodeNo) {
        if let Some(refs) = self.refs.get_mut(&ino) {
            refs.nameable = false;
        }
        if self.inherited {
            // The tree may have it, although it was not listed yet: its end must be told.
            self.orphans_unsure.insert(ino);
        }
        self.end_orphan(ino);
    }

    /// Notes an orphan that an earlier mount has left. It may have ended since the tree was read.
    pub fn load_orphan(&mut self, ino: InodeNo) {
        self.orphans_unsure.insert(ino);
        if self.orphans.insert(ino) && !self.is_held(ino) {
            self.purgeable.push_back(ino);
        }
    }

    /// Takes an orphan apart that nobody holds, if all of it is in RAM and small.
    fn purge_or_queue(&mut self, ino: InodeNo) -> bool {
        if !self.orphans.contains(&ino) || self.check_writable().is_err() {
            return false;
        }
        if self.extents_in_ram(ino) <= PURGE_EXTENTS_MAX && matches!(self.purge_step(ino), Ok(true)) {
            return false;
        }
        self.purgeable.push_back(ino);
        true
    }

    /// Notes orphans that could not be purged.
    pub fn purge_again(&mut self, inos: Vec<InodeNo>) {
        self.purgeable.extend(inos);
    }

    /// The next orphan to purge.
    pub fn next_purgeable(&mut self) -> Option<InodeNo> {
        while let Some(ino) = self.purgeable.pop_front() {
            if self.orphans.contains(&ino) && !self.refs.contains_key(&ino) {
                return Some(ino);
            }
        }
        None
    }

    /// Takes a part of an orphan away: true if nothing is left of it.
    ///
    /// # Errors
    /// A need.
    pub fn purge_step(&mut self, ino: InodeNo) -> Result<bool, Stop> {
        let row = match self.inode(ino) {
            Ok(row) if row.nlink == 0 => row,
            Ok(_) | Err(Stop::Failed(FsError::Stale(_))) => {
                // It got a name, or ended, while it was listed with those that have none.
                self.end_orphan(ino);
                return Ok(true);
            }
            Err(stop) => return Err(stop),
        };
        let (has_xattrs, has_extents) = (row.has_xattrs, row.allocated > 0 && row.inline.is_none());
        if has_extents {
            // From the start on: where the known part ends, the next step goes on.
            let until = self.known_until(ino, 0);
            let end = self.nth_end(ino, PURGE_EXTENTS_MAX).map_or(until, |end| end.min(until));
            let bytes = self.content_bytes(ino, 0, end);
            if bytes == 0 && end < u64::MAX {
                return Err(Stop::Need(Need::Extents { ino, at: until }));
            }
            self.free_range(ino, 0, end);
            if self.inode(ino)?.allocated > 0 && end < u64::MAX {
                return Ok(false);
            }
        }
        if has_xattrs {
            let names: Vec<_> = self.xattrs(ino)?.keys().cloned().collect();
            for name in names {
                self.set_xattr(ino, &name, None);
            }
        }
        self.drop_listing(ino);
        self.remove_inode(ino);
        self.end_orphan(ino);
        Ok(true)
    }

    fn end_orphan(&mut self, ino: InodeNo) {
        self.orphans.remove(&ino);
        self.change_orphan(ino);
    }

    /// Notes for the next commit that the inode has become an orphan, or is none any more.
    fn change_orphan(&mut self, ino: InodeNo) {
        self.note_orphan(ino);
        self.open.orphans.insert(ino);
        self.open.bytes += ROW_BYTES;
    }

    /// Whether an orphan row must be told, and which: `None` if the tree is right already.
    pub(super) fn told_orphan(&mut self, ino: InodeNo) -> Option<bool> {
        let unsure = self.orphans_unsure.remove(&ino);
        if self.orphans.contains(&ino) {
            let fresh = self.orphans_stored.insert(ino);
            return (fresh || unsure).then_some(true);
        }
        let was_stored = self.orphans_stored.remove(&ino);
        (was_stored || unsure).then_some(false)
    }
}
