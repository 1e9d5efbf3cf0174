//! What changed since the last record of a log: which rows and which ranges of files, by the commit that will contain
//! them; and the record that is made of it. A volume has up to two logs, its tail and its spill, each of which gets all.
//!
//! Invariant: everything changed and neither recorded nor in the bucket is here. What the bucket has leaves, so a record
//! never needs content that is not in RAM. Callers: the tables note each change, where the volume has a log;
//! `tail/log.rs` and `tail/spill.rs` take it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;

use super::extents::Part;
use super::{DirentKey, Tables};
use crate::ids::{Generation, InodeNo};
use crate::ranges::RangeSet;
use crate::row::{Key, Row};
use crate::tail::{Batch, Piece, Record};

/// What one generation changed since the last record.
#[derive(Debug, Default)]
struct Changed {
    inodes: BTreeSet<InodeNo>,
    dirents: BTreeSet<DirentKey>,
    xattrs: BTreeSet<(InodeNo, Bytes)>,
    orphans: BTreeSet<InodeNo>,
    content: BTreeMap<InodeNo, RangeSet>,
}

impl Changed {
    fn is_empty(&self) -> bool {
        self.inodes.is_empty()
            && self.dirents.is_empty()
            && self.xattrs.is_empty()
            && self.orphans.is_empty()
            && self.content.is_empty()
    }

    fn join(&mut self, other: Changed) {
        self.inodes.extend(other.inodes);
        self.dirents.extend(other.dirents);
        self.xattrs.extend(other.xattrs);
        self.orphans.extend(other.orphans);
        for (ino, ranges) in other.content {
            let all = self.content.entry(ino).or_default();
            ranges.iter().for_each(|(start, end)| all.insert(start, end));
        }
    }
}

/// What one log has not recorded, the oldest generation first.
#[derive(Debug, Default)]
struct Queue(VecDeque<(Generation, Changed)>);

impl Queue {
    fn of(&mut self, generation: Generation) -> &mut Changed {
        if self.0.back().is_none_or(|(last, _)| *last != generation) {
            self.0.push_back((generation, Changed::default()));
        }
        &mut self.0.back_mut().expect("put there just now").1
    }

    fn forget(&mut self, durable: Generation) {
        while self.0.front().is_some_and(|(generation, _)| *generation <= durable) {
            self.0.pop_front();
        }
    }
}

/// Who records what changed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Log {
    /// What an fsync of durability `local` leaves on the disk.
    Tail,
    /// What a process leaves to its successor.
    Spill,
}

/// What the logs of a volume have not recorded; nothing where there is no such log.
#[derive(Debug, Default)]
pub(super) struct Unlogged {
    tail: Option<Queue>,
    spill: Option<Queue>,
}

impl Unlogged {
    fn of(&mut self, log: Log) -> &mut Option<Queue> {
        match log {
            Log::Tail => &mut self.tail,
            Log::Spill => &mut self.spill,
        }
    }

    fn note(&mut self, generation: Generation, mut note: impl FnMut(&mut Changed)) {
        for queue in self.tail.iter_mut().chain(&mut self.spill) {
            note(queue.of(generation));
        }
    }

    /// The bucket has everything up to here.
    pub fn forget(&mut self, durable: Generation) {
        for queue in self.tail.iter_mut().chain(&mut self.spill) {
            queue.forget(durable);
        }
    }
}

impl Tables {
    /// From now on changes are noted for this log. Everything until now must be in the bucket.
    pub fn note_changes(&mut self, log: Log) {
        *self.unlogged.of(log) = Some(Queue::default());
    }

    pub(super) fn note_inode(&mut self, ino: InodeNo) {
        self.unlogged.note(self.open.number, |changed| {
            changed.inodes.insert(ino);
        });
    }

    pub(super) fn note_dirent(&mut self, key: &DirentKey) {
        self.unlogged.note(self.open.number, |changed| {
            changed.dirents.insert(key.clone());
        });
    }

    pub(super) fn note_xattr(&mut self, ino: InodeNo, name: &Bytes) {
        self.unlogged.note(self.open.number, |changed| {
            changed.xattrs.insert((ino, name.clone()));
        });
    }

    pub(super) fn note_orphan(&mut self, ino: InodeNo) {
        self.unlogged.note(self.open.number, |changed| {
            changed.orphans.insert(ino);
        });
    }

    pub(super) fn note_content(&mut self, ino: InodeNo, start: u64, end: u64) {
        self.unlogged.note(self.open.number, |changed| {
            changed.content.entry(ino).or_default().insert(start, end);
        });
    }

    /// What changed since this log's last call and is not in the bucket, as it is now.
    ///
    /// # Errors
    /// The generation to wait for, where content that changed is not in RAM.
    pub fn take_unlogged(&mut self, log: Log) -> Result<Option<Batch>, Generation> {
        let generation = self.newest_generation();
        let Some(queue) = self.unlogged.of(log) else {
            return Err(generation);
        };
        let mut all = Changed::default();
        queue.0.drain(..).for_each(|(_, changed)| all.join(changed));
        if all.is_empty() {
            return Ok(None);
        }
        let mut record = Record::default();
        for ino in all.inodes {
            let slot = self.inodes.get(&ino).expect("a changed row stays in RAM");
            record.rows.push((Key::Inode(ino), slot.value.clone().map(Row::Inode)));
        }
        for key in all.dirents {
            let slot = self.dirents.get(&key).expect("a changed row stays in RAM");
            record.rows.push((key.row_key(), slot.value.map(Row::Dirent)));
        }
        for (ino, name) in all.xattrs {
            let value = self.xattr_value(ino, &name).map(Row::Xattr);
            record.rows.push((Key::Xattr { ino, name }, value));
        }
        for ino in all.orphans {
            let present = self.orphans.contains(&ino);
            record.rows.push((Key::Orphan(ino), present.then_some(Row::Orphan)));
        }
        record.rows.push((Key::Counters, Some(Row::Counters(self.counters))));
        for (ino, ranges) in all.content {
            for (start, end) in ranges.iter() {
                if !self.push_pieces((ino, start, end), &mut record.pieces) {
                    return Err(generation);
                }
            }
        }
        Ok(Some(Batch { generation, record }))
    }

    /// Adds a range as it is now, neighbouring content in one piece. False if not all of it is in RAM.
    fn push_pieces(&self, (ino, start, end): (InodeNo, u64, u64), pieces: &mut Vec<Piece>) -> bool {
        let mut at = start;
        for part in self.parts(ino, start, end) {
            let (len, content) = match part {
                Part::Bytes(bytes) => (bytes.len() as u64, Some(bytes)),
                Part::Zeros(len) => (len, None),
                Part::Stored { .. } => return false,
            };
            match (pieces.last_mut(), content) {
                (Some(last), Some(bytes)) if last.ino == ino && last.end == at && !last.content.is_empty() => {
                    last.content.push(bytes);
                    last.end += len;
                }
                (_, content) => pieces.push(Piece {
                    ino,
                    start: at,
                    end: at + len,
                    content: content.into_iter().collect(),
                }),
            }
            at += len;
        }
        true
    }
}
