//! A record of the tail into the tables: what it says becomes what is dirty.
//!
//! Invariant: a record is applied as a whole, after everything that it changes was loaded, so that no cut ever sees a part
//! of it. Caller: `volume/mounting.rs`, before anything else uses the mount.

use super::{DirentKey, ROW_BYTES, Slot, Stop, Tables, inodes};
use crate::error::FsError;
use crate::ids::{Generation, InodeNo};
use crate::row::{DirentRow, InodeRow, Key, Row};
use crate::table::Need;
use crate::tail::{Piece, Record};
use crate::tree::TreeError;

impl<T> Slot<T> {
    /// What a record says. The tree may have a row here, so the end of it must be told.
    fn replayed(value: Option<T>, changed: Generation) -> Self {
        let mut slot = Slot::clean(value);
        slot.stored = true;
        slot.changed = changed;
        slot
    }
}

impl Tables {
    /// What must be loaded before `replay` of this record; `None` where nothing is missing.
    ///
    /// `fresh` is the first inode number that the tree knows nothing of.
    pub fn missing_for(&mut self, record: &Record, fresh: u64) -> Option<Need> {
        for piece in &record.pieces {
            if piece.ino.0 >= fresh && !self.files.contains_key(&piece.ino) {
                self.know_no_extents(piece.ino);
            }
            if let Err(Stop::Need(need)) = self.need_extents(piece.ino, piece.start, piece.end) {
                return Some(need);
            }
        }
        for (key, _) in &record.rows {
            if let Key::Xattr { ino, .. } = key
                && !self.xattrs.contains_key(ino)
            {
                return Some(Need::Xattrs(*ino));
            }
        }
        None
    }

    /// Makes the tables what the record says. `missing_for` has found nothing missing.
    ///
    /// # Errors
    /// `Corrupt` for a row that no record holds.
    pub fn replay(&mut self, record: Record) -> Result<(), FsError> {
        for piece in record.pieces {
            self.replay_piece(piece);
        }
        for (key, row) in record.rows {
            match (key, row) {
                (Key::Counters, Some(Row::Counters(counters))) => self.counters = counters,
                (Key::Inode(ino), Some(Row::Inode(row))) => self.replay_inode(ino, Some(row)),
                (Key::Inode(ino), None) => self.replay_inode(ino, None),
                (Key::Dirent { dir, cookie, name }, Some(Row::Dirent(row))) => {
                    self.replay_dirent(DirentKey { dir, cookie, name }, Some(row));
                }
                (Key::Dirent { dir, cookie, name }, None) => {
                    self.replay_dirent(DirentKey { dir, cookie, name }, None);
                }
                (Key::Xattr { ino, name }, Some(Row::Xattr(value))) => {
                    self.put_xattr(ino, name, Some(value));
                }
                (Key::Xattr { ino, name }, None) => {
                    self.put_xattr(ino, name, None);
                }
                (Key::Orphan(ino), row) => self.replay_orphan(ino, row.is_some()),
                (key, _) => {
                    return Err(FsError::from(TreeError::Corrupt {
                        place: format!("{key:?}"),
                        detail: "a record of the tail holds no such row".to_owned(),
                    }));
                }
            }
        }
        Ok(())
    }

    fn replay_piece(&mut self, piece: Piece) {
        self.carve(piece.ino, piece.start, piece.end);
        let mut at = piece.start;
        for bytes in piece.content {
            let len = bytes.len() as u64;
            self.put_content(piece.ino, at, bytes);
            at += len;
        }
    }

    fn replay_inode(&mut self, ino: InodeNo, row: Option<InodeRow>) {
        let after = inodes::cost(row.as_ref());
        let slot = Slot::replayed(row, self.open.number);
        let before = self.inodes.insert(ino, slot);
        self.bytes = self.bytes + after - before.map_or(0, |slot| inodes::cost(slot.value.as_ref()));
        self.open.inodes.insert(ino);
        self.open.bytes += after;
    }

    fn replay_dirent(&mut self, key: DirentKey, row: Option<DirentRow>) {
        let cost = ROW_BYTES + key.name.len() as u64;
        let slot = Slot::replayed(row, self.open.number);
        if self.dirents.insert(key.clone(), slot).is_none() {
            self.bytes += cost;
        }
        self.open.dirents.insert(key);
        self.open.bytes += cost;
    }

    fn replay_orphan(&mut self, ino: InodeNo, present: bool) {
        if present {
            if self.orphans.insert(ino) && !self.is_held(ino) {
                self.purgeable.push_back(ino);
            }
        } else {
            self.orphans.remove(&ino);
            // The tree may have it: its end must be told, and a new beginning too.
            self.orphans_unsure.insert(ino);
        }
        self.open.orphans.insert(ino);
        self.open.bytes += ROW_BYTES;
    }
}
