//! The cut: everything that changed since the last one, in its final state; and what becomes of it afterwards.

use std::sync::Arc;

use bytes::Bytes;

use super::extents::Run;
use super::{DirentKey, OpenGeneration, Tables};
use crate::commit::{DirtyRun, ExtentChange, Lost, SealedGeneration};
use crate::ids::{Generation, InodeNo};
use crate::row::{Key, ObjectStats, Row};

/// The keys that a generation changed.
#[derive(Debug, Default)]
pub(super) struct Touched {
    pub inodes: Vec<InodeNo>,
    pub dirents: Vec<DirentKey>,
    pub extents: Vec<(InodeNo, u64)>,
    pub xattrs: Vec<InodeNo>,
}

/// A generation between its cut and the tree.
#[derive(Debug)]
pub(super) struct Flight {
    generation: Generation,
    bytes: u64,
    runs: Vec<Arc<Run>>,
    touched: Touched,
}

impl Tables {
    /// Bytes changed since the last cut.
    pub fn unsealed_bytes(&self) -> u64 {
        self.open.bytes
    }

    /// Cuts here. `None` if nothing has changed.
    pub fn seal(&mut self) -> Option<SealedGeneration> {
        if self.open.is_empty() {
            return None;
        }
        let generation = self.open.number;
        let mut rows: Vec<(Key, Option<Row>)> =
            Vec::with_capacity(self.open.inodes.len() + self.open.dirents.len() + 8);
        let (runs, extents, sealed_runs) = self.seal_extents();
        let open = std::mem::replace(&mut self.open, OpenGeneration::new(generation.next()));
        let mut touched = Touched {
            extents: open.extents.into_keys().collect(),
            ..Touched::default()
        };
        for ino in open.inodes {
            let slot = self.inodes.get_mut(&ino).expect("a changed row stays in RAM");
            if slot.value.is_some() || slot.stored {
                rows.push((Key::Inode(ino), slot.value.clone().map(Row::Inode)));
            }
            slot.stored = slot.value.is_some();
            touched.inodes.push(ino);
        }
        for key in open.dirents {
            let slot = self.dirents.get_mut(&key).expect("a changed row stays in RAM");
            if slot.value.is_some() || slot.stored {
                rows.push((key.row_key(), slot.value.map(Row::Dirent)));
            }
            slot.stored = slot.value.is_some();
            touched.dirents.push(key);
        }
        for (ino, name) in open.xattrs {
            let value = self.xattr_value(ino, &name);
            if touched.xattrs.last() != Some(&ino) {
                touched.xattrs.push(ino);
            }
            rows.push((Key::Xattr { ino, name }, value.map(Row::Xattr)));
        }
        for ino in open.orphans {
            if let Some(present) = self.told_orphan(ino) {
                rows.push((Key::Orphan(ino), present.then_some(Row::Orphan)));
            }
        }
        rows.extend(
            open.deleted_objects
                .into_iter()
                .map(|object| (Key::ObjectStats(object), None)),
        );
        rows.extend(open.filled_objects.into_iter().map(|(object, bytes)| {
            let total = ObjectStats {
                live_bytes: 0,
                total_bytes: i64::try_from(bytes).expect("a segment has few bytes"),
            };
            (Key::ObjectStats(object), Some(Row::ObjectStats(total)))
        }));
        self.flying_bytes += open.bytes;
        self.flights.push_back(Flight {
            generation,
            bytes: open.bytes,
            runs: sealed_runs,
            touched,
        });
        Some(SealedGeneration {
            generation,
            runs,
            extents,
            rows,
            counters: self.counters,
        })
    }

    fn seal_extents(&mut self) -> (Vec<DirtyRun>, Vec<ExtentChange>, Vec<Arc<Run>>) {
        let mut inos: Vec<InodeNo> = self.open.extents.keys().map(|(ino, _)| *ino).collect();
        inos.dedup();
        let (mut dirty, mut sealed_runs) = (Vec::new(), Vec::new());
        for ino in inos {
            let mut runs: Vec<(u64, Vec<Bytes>, Arc<Run>)> = Vec::new();
            self.seal_file(ino, &mut runs);
            for (offset, data, run) in runs {
                dirty.push(DirtyRun {
                    ino,
                    offset,
                    data,
                    placed: Arc::clone(&run.placed),
                    held: Arc::clone(&run.held),
                });
                sealed_runs.push(run);
            }
        }
        let mut changes = Vec::with_capacity(self.open.extents.len());
        for (&(ino, end), old) in &self.open.extents {
            let new = self.told_extent(ino, end);
            if old.is_some() || new.is_some() {
                changes.push(ExtentChange {
                    ino,
                    end,
                    old: old.clone(),
                    new,
                });
            }
        }
        (dirty, changes, sealed_runs)
    }

    /// Everything up to this generation is in the bucket: writers have room again, and its content leaves RAM.
    pub fn set_durable(&mut self, generation: Generation) {
        assert!(generation >= self.durable, "durability is told in order");
        for flight in self.flights.iter_mut().filter(|flight| flight.generation <= generation) {
            self.flying_bytes -= std::mem::take(&mut flight.bytes);
            flight.runs.drain(..).for_each(|run| run.held.give_up());
        }
        self.durable = generation;
        self.dirty_share.allowed(self.dirty_bytes());
        self.unlogged.forget(generation);
    }

    /// The tree contains everything up to this generation.
    pub fn set_applied(&mut self, generation: Generation) {
        assert!(generation <= self.durable, "only what is durable is applied");
        while self
            .flights
            .front()
            .is_some_and(|flight| flight.generation <= generation)
        {
            let flight = self.flights.pop_front().expect("looked at above");
            self.releasing.push_back((flight.generation, flight.touched));
        }
        self.applied = generation;
        self.release();
        self.shrink();
    }

    /// Nothing becomes durable any more. What is dirty stays, so that reads go on as before.
    pub fn set_lost(&mut self, why: &Lost) {
        self.lost.get_or_insert_with(|| why.clone());
    }
}
