//! Inode rows in RAM.

use super::{EvictKey, Need, ROW_BYTES, Slot, Stop, Tables};
use crate::attr::Attr;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::row::{FileKind, InodeRow};

/// What a row costs in RAM, about.
pub(super) fn cost(value: Option<&InodeRow>) -> u64 {
    ROW_BYTES
        + value
            .and_then(|row| row.inline.as_ref())
            .map_or(0, |inline| inline.len() as u64)
}

impl Tables {
    /// The row of an inode.
    ///
    /// # Errors
    /// `Stale` if there is none; a need if it is not in RAM.
    pub fn inode(&mut self, ino: InodeNo) -> Result<&InodeRow, Stop> {
        match self.inodes.get_mut(&ino) {
            None => Err(Stop::Need(Need::Inodes(vec![ino]))),
            Some(slot) => {
                slot.used = true;
                slot.value.as_ref().ok_or(Stop::Failed(FsError::Stale(ino)))
            }
        }
    }

    /// True if it is in RAM what the inode is, or that there is none.
    pub fn knows_inode(&self, ino: InodeNo) -> bool {
        self.inodes.contains_key(&ino)
    }

    /// The row of an inode that is a directory with a name, so that entries can be made in it.
    ///
    /// # Errors
    /// `NotDirectory`, `Stale`; a need.
    pub fn directory(&mut self, ino: InodeNo) -> Result<&InodeRow, Stop> {
        let row = self.inode(ino)?;
        if row.kind == FileKind::Directory {
            Ok(row)
        } else {
            Err(FsError::NotDirectory.into())
        }
    }

    /// The row of a regular file.
    ///
    /// # Errors
    /// `IsDirectory`, `Invalid`, `Stale`; a need.
    pub fn regular(&mut self, ino: InodeNo) -> Result<&InodeRow, Stop> {
        let row = self.inode(ino)?;
        match row.kind {
            FileKind::Regular => Ok(row),
            FileKind::Directory => Err(FsError::IsDirectory.into()),
            FileKind::Symlink | FileKind::Fifo | FileKind::Socket | FileKind::CharDevice | FileKind::BlockDevice => {
                Err(FsError::Invalid("not a regular file").into())
            }
        }
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// Those of `inode`.
    pub fn attr(&mut self, ino: InodeNo) -> Result<Attr, Stop> {
        let row = self.inode(ino)?;
        Ok(Attr {
            ino,
            kind: row.kind,
            mode: row.mode,
            nlink: row.nlink,
            uid: row.uid,
            gid: row.gid,
            rdev: row.rdev,
            size: row.size,
            blocks_512: row.allocated.div_ceil(512),
            atime: row.atime,
            mtime: row.mtime,
            ctime: row.ctime,
            btime: row.btime,
        })
    }

    /// Changes the row of an inode that `inode` has just found.
    pub fn change_inode<R>(&mut self, ino: InodeNo, change: impl FnOnce(&mut InodeRow) -> R) -> R {
        let slot = self.inodes.get_mut(&ino).expect("the operation has found the inode");
        let before = cost(slot.value.as_ref());
        let row = slot.value.as_mut().expect("the operation has found the inode");
        let old_inline = row.inline.as_ref().map(|inline| inline.as_ptr());
        let result = change(row);
        let inline = row.inline.as_ref();
        let new_inline = inline.map_or(0, |now| {
            if old_inline == Some(now.as_ptr()) {
                0
            } else {
                now.len() as u64
            }
        });
        let after = cost(slot.value.as_ref());
        slot.used = true;
        if slot.changed != self.open.number {
            slot.changed = self.open.number;
            self.open.inodes.insert(ino);
            self.open.bytes += ROW_BYTES;
        }
        self.open.bytes += new_inline;
        self.bytes = self.bytes + after - before;
        self.note_inode(ino);
        result
    }

    /// Makes an inode and returns its number.
    pub fn add_inode(&mut self, row: InodeRow) -> InodeNo {
        let ino = InodeNo(self.counters.next_ino);
        self.counters.next_ino = ino.next().0;
        self.counters.inodes += 1;
        self.counters.used_bytes += row.allocated;
        self.bytes += cost(Some(&row));
        self.open.bytes += cost(Some(&row));
        let mut slot = Slot::clean(Some(row));
        slot.stored = false;
        slot.changed = self.open.number;
        let before = self.inodes.insert(ino, slot);
        assert!(before.is_none(), "inode number {ino} was given out twice");
        self.open.inodes.insert(ino);
        self.note_inode(ino);
        ino
    }

    /// Ends an inode whose content is gone already.
    pub(super) fn remove_inode(&mut self, ino: InodeNo) {
        let slot = self.inodes.get_mut(&ino).expect("the operation has found the inode");
        let row = slot.value.take().expect("the operation has found the inode");
        self.bytes = self.bytes + cost(None) - cost(Some(&row));
        self.counters.inodes -= 1;
        self.counters.used_bytes -= row.allocated;
        if slot.changed != self.open.number {
            slot.changed = self.open.number;
            self.open.inodes.insert(ino);
            self.open.bytes += ROW_BYTES;
        }
        self.note_inode(ino);
    }

    /// Counts content that came or went.
    pub fn change_allocated(&mut self, ino: InodeNo, more_bytes: u64, fewer_bytes: u64) {
        self.change_inode(ino, |row| row.allocated = row.allocated + more_bytes - fewer_bytes);
        self.counters.used_bytes = self.counters.used_bytes + more_bytes - fewer_bytes;
    }

    /// Puts what the tree holds where nothing is known.
    pub(super) fn load_inode(&mut self, ino: InodeNo, row: Option<InodeRow>) {
        if self.inodes.contains_key(&ino) {
            return;
        }
        self.bytes += cost(row.as_ref());
        let mut slot = Slot::clean(row);
        slot.queued = true;
        self.inodes.insert(ino, slot);
        self.queue(EvictKey::Inode(ino));
    }

    pub(super) fn release_inode(&mut self, ino: InodeNo, up_to: crate::ids::Generation) {
        let Some(slot) = self.inodes.get_mut(&ino) else { return };
        if slot.changed > up_to || slot.queued {
            return;
        }
        if slot.value.is_none() {
            self.inodes.remove(&ino);
            self.bytes -= cost(None);
            return;
        }
        slot.queued = true;
        self.queue(EvictKey::Inode(ino));
    }

    /// Drops a clean row. False where it must stay or was used lately.
    pub(super) fn evict_inode(&mut self, ino: InodeNo, up_to: crate::ids::Generation) {
        let Some(slot) = self.inodes.get_mut(&ino) else { return };
        slot.queued = false;
        if slot.changed > up_to {
            return;
        }
        if std::mem::take(&mut slot.used) {
            slot.queued = true;
            self.queue(EvictKey::Inode(ino));
            return;
        }
        self.bytes -= cost(slot.value.as_ref());
        self.inodes.remove(&ino);
    }
}
