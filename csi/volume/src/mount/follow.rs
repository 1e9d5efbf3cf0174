//! A mount that only reads, beside a writer: it follows what the writer commits.
//!
//! An operation that comes more than `FRESH_FOR` after the last look asks the bucket first whether there is a newer state,
//! and is answered by it. So what was fsynced is seen within that time and the length of the look; who does not read asks
//! nothing. A state that can no longer be read, because the writer's garbage went, is left at once for the newest one.
//!
//! Invariants: rows in RAM are all of one state: a look-up that began before a newer one took its place is thrown away. Each
//! state is what a crash of the writer at that moment would have left: whole commits, in order.
//! Caller: `mount.rs`, `ops/read.rs`. Absent: what the kernel remembers of earlier answers (`fuse.rs` bounds it).

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::Semaphore;
use tokio::time::{Instant, timeout};
use uuid::Uuid;

use super::Mount;
use crate::bucket::{BucketError, BucketRef};
use crate::error::FsError;
use crate::head::{Head, HeadFile, HeadWriter};
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::open::{OpenError, OpenedReader, TreeConfig, open_reader};
use crate::tree::TreeError;
use crate::tree::blocks::BlockCache;
use crate::tree::latest::LatestTree;
use crate::tree::slate::newest_manifest;

/// 60 s until a state that was read before is closed: look-ups in it that have begun end long before.
const CLOSE_AFTER: Duration = Duration::from_secs(60);

/// 1 s: how old the last look may be. A reader that is busy beside a writer costs three small requests a second, one where
/// nobody writes.
const FRESH_FOR: Duration = Duration::from_secs(1);

/// 5 s for a look. A store that is away must not stop readers from what they have: they go on with the state before, and
/// look again after as long.
const LOOK_MAX: Duration = Duration::from_secs(5);

/// Which state is read.
#[derive(Debug, Clone, Copy)]
struct Seen {
    epoch: Epoch,
    clean: bool,
    next: (Epoch, JournalSeq),
    manifest: Option<u64>,
}

impl Seen {
    fn of(opened: &OpenedReader) -> Self {
        Self {
            epoch: opened.head.epoch,
            clean: opened.head.clean,
            next: opened.next,
            manifest: opened.manifest,
        }
    }
}

/// How a reader finds a newer state.
#[derive(Debug)]
pub(crate) struct Follow {
    /// The volume's root.
    root: BucketRef,
    tree: Arc<LatestTree>,
    blocks: BlockCache,
    /// One look or renewal at a time.
    turn: Semaphore,
    renewals: AtomicU64,
    /// Held for a copy.
    seen: Mutex<Seen>,
    /// Until when no look is needed. Held for a copy.
    fresh_until: Mutex<Instant>,
}

impl Follow {
    /// `tree` reads the state that was `opened`, and keeps its blocks in `blocks`.
    pub fn new(root: BucketRef, tree: Arc<LatestTree>, opened: &OpenedReader, blocks: BlockCache) -> Self {
        Self {
            root,
            tree,
            blocks,
            turn: Semaphore::new(1),
            renewals: AtomicU64::new(0),
            seen: Mutex::new(Seen::of(opened)),
            fresh_until: Mutex::new(Instant::now() + FRESH_FOR),
        }
    }

    fn seen(&self) -> Seen {
        *self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_fresh(&self) -> bool {
        Instant::now() < *self.fresh_until.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn set_fresh(&self, until: Instant) {
        *self.fresh_until.lock().unwrap_or_else(PoisonError::into_inner) = until;
    }
}

impl Mount {
    /// How often a newer state has taken the place of an older one.
    pub fn renewals(&self) -> u64 {
        self.follow
            .as_ref()
            .map_or(0, |follow| follow.renewals.load(Ordering::SeqCst))
    }

    /// Looks for a newer state, if the last look is too long ago. Does nothing for a mount that writes.
    pub(super) async fn freshen(&self) {
        let Some(follow) = &self.follow else { return };
        if follow.is_fresh() {
            return;
        }
        match timeout(LOOK_MAX, self.follow_writer(follow)).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                tracing::warn!(%error, volume = %self.uuid, "a newer state cannot be looked for: reading goes on with the one before");
                follow.set_fresh(Instant::now() + LOOK_MAX);
            }
            Err(_) => {
                tracing::warn!(volume = %self.uuid, "the store does not answer: reading goes on with the state before");
                follow.set_fresh(Instant::now() + LOOK_MAX);
            }
        }
    }

    async fn follow_writer(&self, follow: &Follow) -> Result<(), OpenError> {
        let _turn = follow.turn.acquire().await.expect("the semaphore is never closed");
        if follow.is_fresh() {
            return Ok(());
        }
        // What is committed after this moment may be missed by the look.
        let begun = Instant::now();
        if self.is_newer(follow).await? {
            self.renew_now(follow).await?;
        }
        follow.set_fresh(begun + FRESH_FOR);
        Ok(())
    }

    /// Whether the bucket holds a state that is not the one that is read.
    async fn is_newer(&self, follow: &Follow) -> Result<bool, OpenError> {
        let seen = follow.seen();
        let file = HeadFile::new(Arc::clone(&follow.root), HeadWriter::new(Uuid::nil()));
        let Head { epoch, clean, .. } = file.read().await?;
        if (epoch, clean) != (seen.epoch, seen.clean) {
            return Ok(true);
        }
        if clean {
            // Nobody writes, and nobody has since.
            return Ok(false);
        }
        let (epoch, seq) = seen.next;
        match self.bucket.head(&ObjectId::Journal(epoch, seq).key()).await {
            Ok(_) => return Ok(true),
            Err(BucketError::NotFound { .. }) => {}
            Err(error) => return Err(error.into()),
        }
        // It may have been there and gone: the writer deletes what its tree contains.
        Ok(newest_manifest(self.bucket.clone()).await? != seen.manifest)
    }

    /// Goes on with the newest state, unless that has happened since `seen` renewals. False for a mount that writes.
    ///
    /// # Errors
    /// Why the newest state cannot be opened.
    pub async fn renew(&self, seen: u64) -> Result<bool, OpenError> {
        let Some(follow) = &self.follow else { return Ok(false) };
        let _turn = follow.turn.acquire().await.expect("the semaphore is never closed");
        if self.renewals() != seen {
            return Ok(true);
        }
        let renewed = self.renew_now(follow).await?;
        if renewed {
            tracing::info!(volume = %self.uuid, "the state that was read is gone from the bucket: reading goes on with the newest one");
        }
        Ok(renewed)
    }

    /// The caller has the turn. False if there is no state to read.
    async fn renew_now(&self, follow: &Follow) -> Result<bool, OpenError> {
        let config = TreeConfig {
            blocks: follow.blocks.clone(),
            ..TreeConfig::default()
        };
        let opened = open_reader(follow.root.clone(), config).await?;
        let seen = Seen::of(&opened);
        let (Some(counters), true) = (opened.counters, opened.head.uuid == self.uuid) else {
            // Nothing was ever written, or the volume was deleted and its name has its next one.
            return Ok(false);
        };
        let before = follow.tree.replace(opened.tree);
        {
            let mut tables = self.lock();
            tables.forget_state(counters);
            follow.renewals.fetch_add(1, Ordering::SeqCst);
        }
        *follow.seen.lock().unwrap_or_else(PoisonError::into_inner) = seen;
        tokio::spawn(async move {
            tokio::time::sleep(CLOSE_AFTER).await;
            if let Err(error) = before.close().await {
                tracing::debug!(%error, "an older state of a volume could not be closed");
            }
        });
        Ok(true)
    }

    /// After a failed look-up: true if it is to be tried again in a newer state.
    pub(super) async fn renew_after(&self, seen: u64, error: &FsError) -> bool {
        let gone = match error {
            FsError::Tree(error) => match &**error {
                TreeError::Unavailable { .. }
                | TreeError::Corrupt { .. }
                | TreeError::Failed { .. }
                | TreeError::Closed => true,
                TreeError::Fenced | TreeError::ReadOnly => false,
            },
            _ => false,
        };
        gone && matches!(self.renew(seen).await, Ok(true))
    }
}
