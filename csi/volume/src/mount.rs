//! What a mount is made of, and how an operation runs on it: under the lock of the tables, or, where rows are missing,
//! after they were loaded.
//!
//! Invariant: an operation changes nothing before it has found everything that it needs, so beginning again after a load
//! is the same as having begun then. An operation that misses nothing never waits. What waits lies in boxes of its own, so that
//! the work of one that does not is a few hundred bytes, which are moved with each call (`the_work_of_a_call_is_small`).
//! Callers: `ops/`, `purge.rs`, `gc.rs`. Absent: what operations mean.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock};
use std::time::Duration;

use tokio::sync::Notify;
use uuid::Uuid;

use crate::bucket::BucketRef;
use crate::calls;
use crate::clock::{Clock, Timestamp};
use crate::commit::{CommitHandle, DirtyState, Lost, SealedGeneration};
use crate::error::FsError;
use crate::fetch::Fetcher;
use crate::format::codec::Compression;
use crate::head::Durability;
use crate::ids::{Epoch, Generation, InodeNo};
use crate::limits::CollectLimits;
use crate::lineage::Lineage;
use crate::metrics::Histogram;
use crate::neighbours::Neighbours;
use crate::outage::{Watch, Way};
use crate::readahead::Readahead;
use crate::table::{Log, Need, Stop, Tables};
use crate::tail::{Answer, Batch, Changes, SpillLog, Spilled, TailLog, Taken};
use crate::tree::{Tree, TreeError};

mod age;
mod follow;

use age::Ages;
pub(crate) use follow::Follow;

/// 2 renewals for one operation of a mount that only reads: the second for a writer that was quicker than the first.
const RENEWALS_MAX: u32 = 2;

/// 10,000 loads for one operation: a directory of ten million entries, or a file of two million extents that is cut to
/// nothing. More means that rows are evicted faster than the operation loads them, and it fails rather than run for ever.
const LOADS_MAX: usize = 10_000;

/// The tables as the commit and the operations share them.
#[derive(Debug)]
pub(crate) struct State {
    tables: Mutex<Tables>,
    /// Told whenever something became durable or will never be.
    room: Notify,
    /// Held for a moment, and never together with the tables.
    ages: Mutex<Ages>,
    /// How long calls waited for durability.
    pub fsyncs: Histogram,
    /// What this process leaves to its successor; not with durability `local`.
    pub spill: OnceLock<SpillLog>,
}

impl State {
    pub fn new(tables: Tables) -> Self {
        Self {
            tables: Mutex::new(tables),
            room: Notify::new(),
            ages: Mutex::default(),
            fsyncs: Histogram::default(),
            spill: OnceLock::new(),
        }
    }

    /// How long the oldest change that is not durable has been waiting.
    pub fn oldest_dirty(&self) -> Option<Duration> {
        if self.lock().dirty_bytes() == 0 {
            return None;
        }
        self.ages().oldest()
    }

    fn ages(&self) -> MutexGuard<'_, Ages> {
        self.ages.lock().expect("nothing panics while it holds the ages")
    }

    /// Locks the tables: for one operation, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Tables> {
        self.tables
            .lock()
            .expect("no operation panics while it holds the tables")
    }
}

impl DirtyState for State {
    fn seal(&self) -> Option<SealedGeneration> {
        let sealed = self.lock().seal();
        if let Some(sealed) = &sealed {
            // The bucket must not have a change before the spill has the answer to its call: a process that died between the
            // two would leave a call that was done and that nobody knows of, and its successor would do it again.
            if let Some(spill) = self.spill.get() {
                spill.wait_for_taken();
            }
            self.ages().sealed(sealed.generation);
        }
        sealed
    }

    fn unsealed_bytes(&self) -> u64 {
        self.lock().unsealed_bytes()
    }

    fn durable(&self, generation: Generation) {
        let clean = {
            let mut tables = self.lock();
            tables.set_durable(generation);
            tables.dirty_bytes() == 0
        };
        self.ages().durable(generation, clean);
        self.room.notify_waiters();
    }

    fn applied(&self, generation: Generation) {
        self.lock().set_applied(generation);
    }

    fn lost(&self, why: &Lost) {
        self.lock().set_lost(why);
        self.room.notify_waiters();
    }
}

impl Changes for State {
    fn take(&self) -> Result<Option<Batch>, Generation> {
        self.lock().take_unlogged(Log::Tail)
    }

    fn durable(&self) -> Generation {
        self.lock().durable()
    }
}

/// A mounted volume's parts.
#[derive(Debug)]
pub(crate) struct Mount {
    pub state: Arc<State>,
    pub tree: Arc<dyn Tree>,
    /// For a mount that only reads.
    pub follow: Option<Follow>,
    /// `None` for a mount that only reads.
    pub commit: Option<CommitHandle>,
    /// Where the journal, segments and tree are.
    pub bucket: BucketRef,
    /// What is known of the store.
    pub watch: Watch,
    pub fetcher: Fetcher,
    pub readahead: Readahead,
    pub neighbours: Neighbours,
    pub clock: Arc<dyn Clock>,
    pub uuid: Uuid,
    pub lineage: Lineage,
    /// The folder of the volumes beside this one, if that is in sight.
    pub family: Option<BucketRef>,
    pub epoch: Epoch,
    /// What tells our objects from anybody's.
    pub writer: Uuid,
    /// How what it writes is compressed.
    pub compression: Compression,
    pub read_only: bool,
    /// Permission bits that nothing made here gets.
    pub umask: u16,
    /// What is on this node's disk before it is in the bucket; only with durability `local`.
    pub tail: Option<TailLog>,
    /// When fsync returns.
    pub durability: Durability,
    pub collect: CollectLimits,
    /// Told when there is an orphan to purge.
    pub purge: Notify,
}

/// How far an operation came at one try.
enum Attempt<R> {
    /// It is done.
    Done(R, Spilled),
    /// It needs rows.
    Missing(Need),
    /// Too much is dirty.
    Full(u64),
}

/// A look-up in the tree under way; ends with this value, also if the operation is given up.
struct Fetching<'a> {
    state: &'a State,
    began: Generation,
}

impl Drop for Fetching<'_> {
    fn drop(&mut self) {
        self.state.lock().end_fetch(self.began);
    }
}

impl Mount {
    /// Locks the tables: for one operation, never across an await.
    pub fn lock(&self) -> MutexGuard<'_, Tables> {
        self.state.lock()
    }

    /// Runs an operation that changes nothing.
    pub async fn look<R>(&self, mut operation: impl FnMut(&mut Tables) -> Result<R, Stop>) -> Result<R, FsError> {
        if self.follow.is_some() {
            Box::pin(self.freshen()).await;
        }
        let mut renewals = 0;
        for _ in 0..LOADS_MAX {
            let seen = self.renewals();
            let need = {
                let mut tables = self.lock();
                tables.check_open()?;
                match operation(&mut tables) {
                    Ok(result) => {
                        // Only now: what the operation has loaded must stay until it has found everything.
                        tables.shrink();
                        return Ok(result);
                    }
                    Err(Stop::Failed(error)) => return Err(error),
                    Err(Stop::Need(need)) => need,
                }
            };
            if let Err(error) = Box::pin(self.load(need)).await {
                renewals += 1;
                if renewals > RENEWALS_MAX || !Box::pin(self.renew_after(seen, &error)).await {
                    return Err(error);
                }
            }
        }
        Err(overrun())
    }

    /// Runs an operation that changes something; waits before it while too much is dirty. To run it twice is to run it once.
    ///
    /// # Errors
    /// `ReadOnly`, `Lost`, `Closed`, and the operation's own.
    pub async fn change<R>(
        &self,
        operation: impl FnMut(&mut Tables, Timestamp) -> Result<R, Stop>,
    ) -> Result<R, FsError> {
        self.run(operation, |_| None).await
    }

    /// As `change`, for an operation that must not be run twice: its call is recorded with what it changes. `named` is the inode
    /// that the answer names.
    ///
    /// # Errors
    /// As of `change`.
    pub async fn change_once<R>(
        &self,
        operation: impl FnMut(&mut Tables, Timestamp) -> Result<R, Stop>,
        named: impl Fn(&R) -> InodeNo,
    ) -> Result<R, FsError> {
        let answer = |result: &R| {
            calls::number().map(|call| Answer {
                call,
                ino: named(result),
            })
        };
        self.run(operation, answer).await
    }

    async fn run<R>(
        &self,
        mut operation: impl FnMut(&mut Tables, Timestamp) -> Result<R, Stop>,
        answer: impl Fn(&R) -> Option<Answer>,
    ) -> Result<R, FsError> {
        let now = self.clock.now();
        let mut loads = 0;
        while loads < LOADS_MAX {
            match self.attempt(|tables| operation(tables, now), &answer)? {
                Attempt::Done(result, spilled) => {
                    spilled.open.into_iter().for_each(calls::keep);
                    if let Some(generation) = spilled.waits_for {
                        Box::pin(self.wait_for_bucket(generation)).await?;
                    }
                    return Ok(result);
                }
                Attempt::Missing(need) => {
                    loads += 1;
                    Box::pin(self.load(need)).await?;
                }
                Attempt::Full(unsealed) => {
                    let room = async {
                        self.wait_for_room(unsealed).await;
                        Ok(())
                    };
                    Box::pin(self.watch.bounded(Way::Writing, room)).await?;
                }
            }
        }
        Err(overrun())
    }

    /// Tries an operation once, and writes what it has changed to the spill.
    fn attempt<R>(
        &self,
        operation: impl FnOnce(&mut Tables) -> Result<R, Stop>,
        answer: impl Fn(&R) -> Option<Answer>,
    ) -> Result<Attempt<R>, FsError> {
        let mut tables = self.lock();
        tables.check_writable()?;
        if tables.is_full() {
            return Ok(Attempt::Full(tables.unsealed_bytes()));
        }
        match operation(&mut tables) {
            Ok(result) => {
                let unsealed = tables.unsealed_bytes();
                let taken = self.take_for_spill(&mut tables);
                tables.shrink();
                drop(tables);
                let spilled = taken.map_or_else(Spilled::default, |taken| taken.write(answer(&result)));
                self.dirtied(unsealed);
                Ok(Attempt::Done(result, spilled))
            }
            Err(Stop::Failed(error)) => Err(error),
            Err(Stop::Need(need)) => Ok(Attempt::Missing(need)),
        }
    }

    /// Loads rows into the tables.
    pub async fn load(&self, need: Need) -> Result<(), FsError> {
        self.tree.expect_reads();
        let began = self.lock().begin_fetch();
        let fetching = Fetching {
            state: &self.state,
            began,
        };
        let seen = self.renewals();
        let ask = async { need.ask(self.tree.as_ref()).await.map_err(FsError::from) };
        let loaded = self.watch.bounded(Way::Reading, ask).await?;
        {
            let mut tables = self.lock();
            // What an older state said is nothing to be known in a newer one.
            if self.renewals() == seen {
                tables.load(loaded);
            }
        }
        drop(fetching);
        Ok(())
    }

    /// Tells the commit that something changed.
    pub fn dirtied(&self, unsealed_bytes: u64) {
        if let Some(commit) = &self.commit
            && unsealed_bytes > 0
        {
            self.state.ages().dirtied();
            commit.dirtied(unsealed_bytes);
        }
    }

    /// What was just changed, for the spill, if there is one.
    fn take_for_spill(&self, tables: &mut Tables) -> Option<Taken<'_>> {
        let spill = self.state.spill.get()?;
        let state = (tables.newest_generation(), tables.durable());
        Some(spill.take(state, || tables.take_unlogged(Log::Spill)))
    }

    /// The spill does not have it: the bucket must, before anybody is told.
    async fn wait_for_bucket(&self, generation: Generation) -> Result<(), FsError> {
        let Some(commit) = &self.commit else { return Ok(()) };
        commit.request_sync();
        commit.wait_durable(generation).await.map_err(FsError::Lost)
    }

    async fn wait_for_room(&self, unsealed_bytes: u64) {
        let room = self.state.room.notified();
        let mut room = std::pin::pin!(room);
        room.as_mut().enable();
        // What came between the look under the lock and here must not be missed.
        let wait = {
            let tables = self.lock();
            tables.is_full() && tables.check_writable().is_ok()
        };
        if wait {
            self.dirtied(unsealed_bytes.max(1));
            if let Some(commit) = &self.commit {
                commit.request_sync();
            }
            room.await;
        }
    }
}

fn overrun() -> FsError {
    FsError::from(TreeError::Unavailable {
        detail: format!("an operation needed more than {LOADS_MAX} loads"),
    })
}
