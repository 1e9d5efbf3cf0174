//! What a mount holds of its running commit loop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use tokio::sync::{Notify, watch};
use tokio::task::AbortHandle;

use super::{CommitLimits, CommitStats, Lost};
use crate::ids::{Epoch, Generation, ObjectId};
use crate::row::Applied;
use crate::tree::TreeError;

/// How far the commits have come. Each part only ever grows, until `lost` ends it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Progress {
    /// Everything up to here is durable in the bucket.
    pub durable: Generation,
    /// The tree contains everything up to here.
    pub applied: Generation,
    /// The commit that the durable tree contains: journal objects up to it are not needed for replay.
    pub flushed: Applied,
    /// Set once, never cleared.
    pub lost: Option<Lost>,
    /// The loop has ended, cleanly or not.
    pub ended: bool,
}

/// State that the handle, the loop and the applier share. No lock is held across an await.
#[derive(Debug)]
pub(super) struct Shared {
    pub limits: CommitLimits,
    /// Wakes the loop. It holds one permit, so a wish made while the loop works is not lost.
    pub wake: Notify,
    /// Wakes the applier for a flush that was asked for.
    pub flush: Notify,
    /// The loop knows that something is dirty and has its timer running.
    pub armed: AtomicBool,
    /// Somebody waits: cut as soon as the pace allows.
    pub sync_wanted: AtomicBool,
    /// Cut what is left, wait for it, and end.
    pub closing: AtomicBool,
    /// Flushes of the tree asked for so far.
    pub flushes_wanted: AtomicU64,
    /// Flushes done, and how the last one ended.
    pub flushed: watch::Sender<(u64, Result<Applied, TreeError>)>,
    pub progress: watch::Sender<Progress>,
    pub stats: Mutex<CommitStats>,
    /// Number of the next segment of this epoch.
    pub next_segment: AtomicU64,
    /// Commits, and bytes of their rows, that are durable and not in the tree yet.
    pub backlog: Mutex<(u64, u64)>,
}

impl Shared {
    pub fn new(limits: CommitLimits, durable: Applied) -> Self {
        let progress = Progress {
            durable: Generation(0),
            applied: Generation(0),
            flushed: durable,
            lost: None,
            ended: false,
        };
        Self {
            limits,
            wake: Notify::new(),
            flush: Notify::new(),
            armed: AtomicBool::new(false),
            sync_wanted: AtomicBool::new(false),
            closing: AtomicBool::new(false),
            flushes_wanted: AtomicU64::new(0),
            flushed: watch::Sender::new((0, Ok(durable))),
            progress: watch::Sender::new(progress),
            stats: Mutex::default(),
            next_segment: AtomicU64::new(1),
            backlog: Mutex::default(),
        }
    }

    pub fn stats(&self) -> MutexGuard<'_, CommitStats> {
        self.stats.lock().expect("no one panics while counting")
    }

    pub fn number_segment(&self) -> u64 {
        self.next_segment.fetch_add(1, Ordering::SeqCst)
    }

    fn backlog(&self) -> MutexGuard<'_, (u64, u64)> {
        self.backlog.lock().expect("no one panics while counting")
    }

    pub fn backlog_is_full(&self, commits_max: u64, bytes_max: u64) -> bool {
        let (commits, bytes) = *self.backlog();
        commits >= commits_max || bytes >= bytes_max
    }

    pub fn gave_to_backlog(&self, rows_bytes: u64) {
        let mut backlog = self.backlog();
        *backlog = (backlog.0 + 1, backlog.1 + rows_bytes);
    }

    /// The loop may have waited for it.
    pub fn took_from_backlog(&self, rows_bytes: u64) {
        let mut backlog = self.backlog();
        *backlog = (backlog.0 - 1, backlog.1 - rows_bytes);
        drop(backlog);
        self.wake.notify_one();
    }
}

/// A running commit loop. Dropping the last clone stops it at once, as a crash would; only `shutdown` leaves it clean.
#[derive(Debug, Clone)]
pub struct CommitHandle {
    pub(super) epoch: Epoch,
    pub(super) shared: Arc<Shared>,
    pub(super) _tasks: Arc<Tasks>,
}

/// Ends the tasks with the last handle.
#[derive(Debug)]
pub(super) struct Tasks(pub Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl CommitHandle {
    /// Tells the loop that something is dirty, and how many bytes are not cut yet. Cheap: call it after each change.
    pub fn dirtied(&self, unsealed_bytes: u64) {
        let first = !self.shared.armed.swap(true, Ordering::SeqCst);
        if first || unsealed_bytes >= self.shared.limits.cut_bytes {
            self.shared.wake.notify_one();
        }
    }

    /// Asks for a cut as soon as the pace of commits allows: at once if nothing is in flight. Does not wait.
    pub fn request_sync(&self) {
        self.shared.sync_wanted.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
    }

    /// Waits until everything up to `generation` is durable. Does not ask for a cut.
    ///
    /// # Durability
    /// After `Ok` the changes of `generation` and all before it are in the bucket.
    ///
    /// # Errors
    /// `Lost`: it never will be.
    pub async fn wait_durable(&self, generation: Generation) -> Result<(), Lost> {
        self.wait(|progress| progress.durable >= generation).await.map(|_| ())
    }

    /// Waits until the tree contains everything up to `generation`.
    ///
    /// # Errors
    /// `Lost`: it never will.
    pub async fn wait_applied(&self, generation: Generation) -> Result<(), Lost> {
        self.wait(|progress| progress.applied >= generation).await.map(|_| ())
    }

    async fn wait(&self, reached: impl Fn(&Progress) -> bool) -> Result<Progress, Lost> {
        let mut progress = self.shared.progress.subscribe();
        let end = progress
            .wait_for(|progress| reached(progress) || progress.lost.is_some() || progress.ended)
            .await;
        let end = end.expect("the sender lives in what this handle holds").clone();
        match &end.lost {
            _ if reached(&end) => Ok(end),
            Some(lost) => Err(lost.clone()),
            None => Err(Lost::Journal {
                detail: "the volume was closed".to_owned(),
            }),
        }
    }

    /// The last generation that is durable.
    pub fn durable(&self) -> Generation {
        self.shared.progress.borrow().durable
    }

    /// The commit up to which the durable tree contains everything: journal objects up to it are not replayed any more,
    /// so those without live content may be deleted.
    pub fn durable_applied(&self) -> Applied {
        self.shared.progress.borrow().flushed
    }

    /// Why nothing is acknowledged any more, if so.
    pub fn lost(&self) -> Option<Lost> {
        self.shared.progress.borrow().lost.clone()
    }

    /// What was sent so far.
    pub fn stats(&self) -> CommitStats {
        self.shared.stats().clone()
    }

    /// A new segment of this mount, for content that is moved: it is put before the commit whose rows name it.
    pub fn allocate_segment(&self) -> ObjectId {
        ObjectId::Segment(self.epoch, self.shared.number_segment())
    }

    /// The number that the next segment will get: no commit that was made before names it or a higher one.
    pub fn next_segment(&self) -> u64 {
        self.shared.next_segment.load(Ordering::SeqCst)
    }

    /// Makes the tree durable up to what it contains now, and returns up to which commit.
    ///
    /// # Errors
    /// Those of `Tree::flush`; `Closed` if the loop ended before.
    pub async fn flush_tree(&self) -> Result<Applied, TreeError> {
        let mut flushed = self.shared.flushed.subscribe();
        let mut progress = self.shared.progress.subscribe();
        let wanted = self.shared.flushes_wanted.fetch_add(1, Ordering::SeqCst) + 1;
        self.shared.flush.notify_one();
        tokio::select! {
            done = flushed.wait_for(|(count, _)| *count >= wanted) => {
                done.expect("the sender lives in what this handle holds").1.clone()
            }
            _ = progress.wait_for(|progress| progress.ended) => Err(TreeError::Closed),
        }
    }

    /// Commits what is dirty, waits until the tree contains it, flushes the tree and ends the loop. The tree stays open.
    /// Nothing may become dirty after the call.
    ///
    /// # Durability
    /// After `Ok` everything is in the bucket and the next open replays nothing.
    ///
    /// # Errors
    /// `Lost`, if the last changes could not be made durable.
    pub async fn shutdown(&self) -> Result<(), Lost> {
        self.shared.closing.store(true, Ordering::SeqCst);
        self.shared.wake.notify_one();
        let end = self.wait(|progress| progress.ended).await?;
        match end.lost {
            Some(lost) => Err(lost),
            None => Ok(()),
        }
    }
}
