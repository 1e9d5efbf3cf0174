//! The RAM tables: what operations read and change. One `Tables` behind one lock serves a mount.
//!
//! Invariants:
//! - What was changed stays here until a tree that contains the change is readable (`Tables::evictable`); so a row that
//!   is absent here is as the tree says, also for a look-up in the tree that began before the change was applied.
//! - The lock is held for the length of one operation and never across an await. It is the only lock of the operations;
//!   a `Run`'s own lock is taken under it, never the other way around.
//! - Everything changed since the last cut is in `OpenGeneration`, and nowhere else.
//!
//! Callers: `ops/` through `mount.rs`; the commit through `DirtyState` (`table/seal.rs`). Absent: what operations mean.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};

use bytes::Bytes;

use crate::budget::Share;
use crate::commit::{Lost, RunSource};
use crate::error::FsError;
use crate::ids::{DirCookie, Generation, InodeNo, ObjectId};
use crate::limits::{CAPACITY_BYTES_UNLIMITED, Limits};
use crate::ranges::RangeSet;
use crate::row::{Counters, DirentRow, InodeRow};

mod dirents;
mod evict;
mod extents;
mod inodes;
mod load;
mod orphans;
mod relocate;
mod replay;
mod seal;
mod space;
mod unlogged;
mod xattrs;

pub(crate) use dirents::DirentKey;
use evict::EvictKey;
pub(crate) use extents::{FileExtents, Part};
pub(crate) use load::Need;
use seal::{Flight, Touched};
pub use unlogged::Log;
use unlogged::Unlogged;
use xattrs::XattrSet;

/// 256 bytes: what a row costs in RAM and in the journal, about, without its content. It is counted as dirty for each
/// changed row, so that changes of rows alone are bounded too.
pub(crate) const ROW_BYTES: u64 = 256;

/// Why an operation could not finish under the lock.
#[derive(Debug)]
pub(crate) enum Stop {
    /// It failed.
    Failed(FsError),
    /// It needs rows that are not in RAM: load them and begin again. Nothing was changed.
    Need(Need),
}

impl From<FsError> for Stop {
    fn from(error: FsError) -> Self {
        Stop::Failed(error)
    }
}

/// A row in RAM, or the knowledge that there is none.
#[derive(Debug)]
struct Slot<T> {
    value: Option<T>,
    /// The generation that changed it last; 0 if it is as it was loaded.
    changed: Generation,
    /// True if a sealed generation or the tree has a row here, so that its end must be told.
    stored: bool,
    /// Looked at since the clock hand passed.
    used: bool,
    /// In the queue of what may be dropped.
    queued: bool,
}

impl<T> Slot<T> {
    fn clean(value: Option<T>) -> Self {
        let stored = value.is_some();
        Self {
            value,
            changed: Generation(0),
            stored,
            used: false,
            queued: false,
        }
    }
}

/// Who holds an inode besides its names.
#[derive(Debug, Default, Clone, Copy)]
struct Refs {
    /// References of the kernel.
    lookups: u64,
    /// Open descriptions.
    opens: u64,
    /// It never had a name, and may be given one.
    nameable: bool,
}

/// What changed since the last cut.
#[derive(Debug)]
struct OpenGeneration {
    number: Generation,
    /// Content and rows, as `DirtyState::unsealed_bytes` counts them.
    bytes: u64,
    inodes: BTreeSet<InodeNo>,
    dirents: BTreeSet<DirentKey>,
    /// With what each key referred to at the last cut.
    extents: BTreeMap<(InodeNo, u64), Option<RunSource>>,
    xattrs: BTreeSet<(InodeNo, Bytes)>,
    orphans: BTreeSet<InodeNo>,
    /// Objects that were deleted from the bucket: their counters go.
    deleted_objects: BTreeSet<ObjectId>,
    /// Bytes of content of objects that were filled beside the commits.
    filled_objects: BTreeMap<ObjectId, u64>,
}

impl OpenGeneration {
    fn new(number: Generation) -> Self {
        Self {
            number,
            bytes: 0,
            inodes: BTreeSet::new(),
            dirents: BTreeSet::new(),
            extents: BTreeMap::new(),
            xattrs: BTreeSet::new(),
            orphans: BTreeSet::new(),
            deleted_objects: BTreeSet::new(),
            filled_objects: BTreeMap::new(),
        }
    }

    fn is_empty(&self) -> bool {
        self.inodes.is_empty()
            && self.dirents.is_empty()
            && self.extents.is_empty()
            && self.xattrs.is_empty()
            && self.orphans.is_empty()
            && self.deleted_objects.is_empty()
            && self.filled_objects.is_empty()
    }
}

/// All that a mount knows in RAM.
#[derive(Debug)]
pub(crate) struct Tables {
    inodes: HashMap<InodeNo, Slot<InodeRow>>,
    dirents: BTreeMap<DirentKey, Slot<DirentRow>>,
    /// Per directory, the cookies for which all entries are in `dirents`.
    listings: HashMap<InodeNo, RangeSet>,
    files: HashMap<InodeNo, FileExtents>,
    xattrs: HashMap<InodeNo, XattrSet>,
    /// Inodes without a name.
    orphans: BTreeSet<InodeNo>,
    /// Those of which a sealed generation or the tree has a row.
    orphans_stored: BTreeSet<InodeNo>,
    /// Those of which the tree may have a row or not: what becomes of them is told in any case.
    orphans_unsure: BTreeSet<InodeNo>,
    /// Orphans that nobody holds and that `purge.rs` must take apart.
    purgeable: VecDeque<InodeNo>,
    /// The kernel may hold what was never told here.
    inherited: bool,
    refs: HashMap<InodeNo, Refs>,
    counters: Counters,
    capacity_bytes: Option<u64>,
    open: OpenGeneration,
    /// What the tail does not have yet; `None` for a volume without one.
    unlogged: Unlogged,
    /// Sealed and not applied, oldest first.
    flights: VecDeque<Flight>,
    /// Bytes of content and rows that are sealed and not durable.
    flying_bytes: u64,
    durable: Generation,
    applied: Generation,
    /// Applied, but not yet evictable because of a look-up in the tree that began before.
    releasing: VecDeque<(Generation, Touched)>,
    /// Look-ups in the tree now running, by what was applied when they began.
    fetches: BTreeMap<Generation, usize>,
    /// What may be dropped, the longest untouched first.
    evictable: VecDeque<EvictKey>,
    /// What everything here costs, about.
    bytes: u64,
    limits: Limits,
    /// What is dirty here, of what may be in all volumes.
    dirty_share: Share,
    /// The rows here, of those in all volumes.
    rows_share: Share,
    read_only: bool,
    lost: Option<Lost>,
    closed: bool,
}

impl Tables {
    /// The tables of a volume just opened.
    pub fn new(counters: Counters, limits: Limits, read_only: bool) -> Self {
        Self {
            inodes: HashMap::new(),
            dirents: BTreeMap::new(),
            listings: HashMap::new(),
            files: HashMap::new(),
            xattrs: HashMap::new(),
            orphans: BTreeSet::new(),
            orphans_stored: BTreeSet::new(),
            orphans_unsure: BTreeSet::new(),
            purgeable: VecDeque::new(),
            inherited: false,
            refs: HashMap::new(),
            counters,
            capacity_bytes: None,
            open: OpenGeneration::new(Generation(1)),
            unlogged: Unlogged::default(),
            flights: VecDeque::new(),
            flying_bytes: 0,
            durable: Generation(0),
            applied: Generation(0),
            releasing: VecDeque::new(),
            fetches: BTreeMap::new(),
            evictable: VecDeque::new(),
            bytes: 0,
            dirty_share: limits.budget.dirty(),
            rows_share: limits.budget.rows(),
            limits,
            read_only,
            lost: None,
            closed: false,
        }
    }

    /// Forgets every row: another state of the volume is read from now on. Who holds which inode stays.
    ///
    /// Panics where something can be dirty: a mistake of the caller.
    pub fn forget_state(&mut self, counters: Counters) {
        assert!(self.read_only, "only a mount that reads alone changes its state");
        self.inodes.clear();
        self.dirents.clear();
        self.listings.clear();
        self.files.clear();
        self.xattrs.clear();
        self.orphans.clear();
        self.orphans_stored.clear();
        self.orphans_unsure.clear();
        self.evictable.clear();
        self.open = OpenGeneration::new(self.open.number);
        self.bytes = 0;
        self.counters = counters;
    }

    /// Totals of the volume.
    pub fn counters(&self) -> Counters {
        self.counters
    }

    /// What the files may take, if there is a limit.
    pub fn capacity_bytes(&self) -> Option<u64> {
        self.capacity_bytes
    }

    /// Changes what the files may take.
    pub fn set_capacity_bytes(&mut self, capacity_bytes: Option<u64>) {
        self.capacity_bytes = capacity_bytes;
    }

    /// Refuses content that would exceed the capacity. Shrinking and overwriting is always allowed.
    pub fn check_room(&self, more_bytes: u64) -> Result<(), FsError> {
        let capacity = self.capacity_bytes.unwrap_or(CAPACITY_BYTES_UNLIMITED);
        if more_bytes > 0 && self.counters.used_bytes.saturating_add(more_bytes) > capacity {
            return Err(FsError::NoSpace);
        }
        Ok(())
    }

    /// Refuses any operation after `close`.
    pub fn check_open(&self) -> Result<(), FsError> {
        if self.closed { Err(FsError::Closed) } else { Ok(()) }
    }

    /// Refuses changes where none can become durable.
    pub fn check_writable(&self) -> Result<(), FsError> {
        self.check_open()?;
        if self.read_only {
            return Err(FsError::ReadOnly);
        }
        match &self.lost {
            Some(lost) => Err(FsError::Lost(lost.clone())),
            None => Ok(()),
        }
    }

    /// Ends the mount: all later operations fail. False if it was ended before.
    pub fn set_closed(&mut self) -> bool {
        !std::mem::replace(&mut self.closed, true)
    }

    /// Why nothing becomes durable any more, if so.
    pub fn lost(&self) -> Option<&Lost> {
        self.lost.as_ref()
    }

    /// Content and rows that are not durable.
    pub fn dirty_bytes(&self) -> u64 {
        // The root directory that reading an unwritten volume shows is nothing to be written.
        if self.read_only {
            0
        } else {
            self.open.bytes + self.flying_bytes
        }
    }

    /// True if writers must wait.
    pub fn is_full(&self) -> bool {
        let dirty = self.dirty_bytes();
        // What must leave first is this volume's own: it never waits for another.
        dirty >= self.limits.dirty_bytes_max.min(self.dirty_share.allowed(dirty))
    }

    /// What everything here costs, about.
    #[cfg(test)]
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// The generation that holds everything done so far: 0 if nothing was done.
    pub fn newest_generation(&self) -> Generation {
        if self.open.is_empty() {
            Generation(self.open.number.0 - 1)
        } else {
            self.open.number
        }
    }

    /// Up to where everything is durable.
    pub fn durable(&self) -> Generation {
        self.durable
    }

    /// Up to where the tree contains everything.
    pub fn applied(&self) -> Generation {
        self.applied
    }

    /// Notes that an object was deleted from the bucket.
    pub fn forget_object(&mut self, object: ObjectId) {
        if self.open.deleted_objects.insert(object) {
            self.open.bytes += ROW_BYTES;
        }
    }

    /// Notes how much content an object was filled with beside the commits.
    pub fn note_filled(&mut self, object: ObjectId, total_bytes: u64) {
        self.open.filled_objects.insert(object, total_bytes);
        self.open.bytes += ROW_BYTES;
    }

    fn queue(&mut self, key: EvictKey) {
        self.evictable.push_back(key);
    }

    fn note_cookies_unknown(&mut self, dir: InodeNo, cookie: DirCookie) {
        if let Some(known) = self.listings.get_mut(&dir)
            && let Some((start, end)) = known.covering(cookie.0)
        {
            known.remove(start, end);
            if known.is_empty() {
                self.listings.remove(&dir);
            }
        }
    }
}
