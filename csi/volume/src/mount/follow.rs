//! A mount that only reads, beside a writer: it stays at the state that it opened until that state is no longer in the
//! bucket, because the writer's garbage went; then it goes on with the newest one.
//!
//! Invariant: rows in RAM are all of one state: a look-up that began before a newer one took its place is thrown away.
//! Caller: `mount.rs`, `ops/read.rs`. Absent: following a writer as it writes.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Semaphore;

use super::Mount;
use crate::bucket::BucketRef;
use crate::error::FsError;
use crate::open::{OpenError, TreeConfig, open_reader};
use crate::tree::TreeError;
use crate::tree::latest::LatestTree;

/// 60 s until a state that was read before is closed: look-ups in it that have begun end long before.
const CLOSE_AFTER: Duration = Duration::from_secs(60);

/// How a reader finds a newer state.
#[derive(Debug)]
pub(crate) struct Follow {
    /// The volume's root.
    root: BucketRef,
    tree: Arc<LatestTree>,
    /// One renewal at a time.
    turn: Semaphore,
    renewals: AtomicU64,
}

impl Follow {
    pub fn new(root: BucketRef, tree: Arc<LatestTree>) -> Self {
        Self {
            root,
            tree,
            turn: Semaphore::new(1),
            renewals: AtomicU64::new(0),
        }
    }
}

impl Mount {
    /// How often a newer state has taken the place of an older one.
    pub fn renewals(&self) -> u64 {
        self.follow
            .as_ref()
            .map_or(0, |follow| follow.renewals.load(Ordering::SeqCst))
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
        let opened = open_reader(follow.root.clone(), TreeConfig::default()).await?;
        let Some(counters) = opened.counters else {
            return Ok(false);
        };
        let before = follow.tree.replace(opened.tree);
        {
            let mut tables = self.lock();
            tables.forget_state(counters);
            follow.renewals.fetch_add(1, Ordering::SeqCst);
        }
        tracing::info!(volume = %self.uuid, "the state that was read is gone from the bucket: reading goes on with the newest one");
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
