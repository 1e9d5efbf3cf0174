//! Durable commits into the tree, in order, and the tree into the bucket from time to time.
//!
//! Invariant: a commit reaches the tree only after it was acknowledged. Callers: `run.rs` starts it.
//! Absent: retries of requests (the tree makes them without end): a tree that fails has failed for this mount.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::time::Instant;
use uuid::Uuid;

use super::handle::Shared;
use super::owner::owner_by_seal;
use super::{DirtyState, Lost};
use crate::bucket::BucketRef;
use crate::budget::Share;
use crate::ids::{Epoch, Generation, JournalSeq};
use crate::row::{Applied, Key, Row};
use crate::tree::{Tree, TreeError};

/// A commit that is in the bucket and not yet in the tree.
#[derive(Debug)]
pub(super) struct Durable {
    pub generation: Generation,
    pub applied: Applied,
    pub changes: Vec<(Key, Option<Row>)>,
    pub rows_bytes: u64,
}

type Flush = Pin<Box<dyn Future<Output = Result<Applied, TreeError>> + Send>>;

/// A flush under way and how many wishes it fulfils.
struct Flushing {
    wishes: u64,
    future: Flush,
}

/// Applies and flushes until there is nothing more to come.
pub(super) struct Applier {
    pub tree: Arc<dyn Tree>,
    pub bucket: BucketRef,
    pub volume: Uuid,
    pub epoch: Epoch,
    /// The first commit of this mount.
    pub first_seq: JournalSeq,
    pub state: Arc<dyn DirtyState>,
    pub shared: Arc<Shared>,
    pub commits: mpsc::UnboundedReceiver<Durable>,
    /// Row bytes and commits that the tree holds in RAM only, and since when.
    pub unflushed: Unflushed,
    /// The same rows, of those that the trees of all volumes hold.
    pub share: Share,
}

/// What the tree holds in RAM only.
#[derive(Debug, Default, Clone, Copy)]
pub(super) struct Unflushed {
    pub rows_bytes: u64,
    pub commits: u64,
    pub since: Option<Instant>,
}

impl Applier {
    /// Returns when the loop has dropped its end and everything is applied and flushed, or the tree has failed.
    pub async fn run(mut self) {
        let mut flushing: Option<Flushing> = None;
        loop {
            if flushing.is_none() && self.flush_is_due() {
                flushing = Some(self.begin_flush());
            }
            let timer = match (self.unflushed.since, &flushing) {
                (Some(since), None) => since + self.shared.limits.tree_flush_after,
                (Some(_) | None, _) => Instant::now() + self.shared.limits.tree_flush_after,
            };
            let going_on = tokio::select! {
                biased;
                result = finished(&mut flushing) => self.end_flush(&mut flushing, result).await,
                commit = self.commits.recv() => match commit {
                    Some(commit) => self.apply(commit).await,
                    None => break,
                },
                () = self.shared.flush.notified() => true,
                () = tokio::time::sleep_until(timer) => true,
            };
            if !going_on {
                return;
            }
        }
        if flushing.is_some() {
            let result = finished(&mut flushing).await;
            if !self.end_flush(&mut flushing, result).await {
                return;
            }
        }
        let lost = self.shared.progress.borrow().lost.is_some();
        if !lost && self.unflushed.since.is_some() {
            let mut last = Some(self.begin_flush());
            let result = finished(&mut last).await;
            self.end_flush(&mut last, result).await;
        }
    }

    fn flush_is_due(&self) -> bool {
        let limits = &self.shared.limits;
        // Half: what is being flushed is held until it is in the bucket, beside what comes meanwhile.
        let allowed = self.share.allowed(self.unflushed.rows_bytes);
        let wished = self.shared.flushes_wanted.load(Ordering::SeqCst) > self.shared.flushed.borrow().0;
        let old = self
            .unflushed
            .since
            .is_some_and(|since| since.elapsed() >= limits.tree_flush_after);
        wished
            || old
            || self.unflushed.rows_bytes >= limits.tree_flush_bytes.min(allowed / 2)
            || self.unflushed.commits >= limits.tree_flush_commits
    }

    fn begin_flush(&mut self) -> Flushing {
        self.unflushed = Unflushed::default();
        let tree = self.tree.clone();
        Flushing {
            wishes: self.shared.flushes_wanted.load(Ordering::SeqCst),
            future: Box::pin(async move { tree.flush().await }),
        }
    }

    /// Returns false if the tree has failed.
    async fn end_flush(&mut self, flushing: &mut Option<Flushing>, result: Result<Applied, TreeError>) -> bool {
        let wishes = flushing.take().map_or(0, |flushing| flushing.wishes);
        match &result {
            Ok(applied) => {
                self.shared.stats().tree_flushes += 1;
                self.shared.progress.send_modify(|progress| progress.flushed = *applied);
            }
            Err(TreeError::Unavailable { detail }) => {
                tracing::warn!(detail, "the tree could not be flushed, it will be tried again");
                self.unflushed.since = Some(Instant::now());
            }
            Err(error) => self.fail(error).await,
        }
        let going_on = matches!(&result, Ok(_) | Err(TreeError::Unavailable { .. }));
        self.shared
            .flushed
            .send_modify(|last| *last = (wishes.max(last.0), result));
        going_on
    }

    /// Returns false if the tree has failed.
    async fn apply(&mut self, commit: Durable) -> bool {
        if let Err(error) = self.tree.apply(commit.applied, commit.changes).await {
            self.fail(&error).await;
            return false;
        }
        self.unflushed.rows_bytes += commit.rows_bytes;
        self.unflushed.commits += 1;
        self.unflushed.since.get_or_insert_with(Instant::now);
        let generation = commit.generation;
        self.shared
            .progress
            .send_modify(|progress| progress.applied = generation);
        self.state.applied(generation);
        self.shared.took_from_backlog(commit.rows_bytes);
        true
    }

    /// Who it is stands in the seal, which follows the claim of the tree. Until it is there our commits still stand.
    async fn owner(&self) -> Option<String> {
        let applied = self.tree.applied();
        let seq = if applied.epoch == self.epoch {
            applied.seq.next()
        } else {
            self.first_seq
        };
        owner_by_seal(&self.bucket, self.volume, self.epoch, seq).await
    }

    async fn fail(&self, error: &TreeError) {
        let why = match error {
            TreeError::Fenced => Lost::Fenced {
                owner: self.owner().await.unwrap_or_else(|| "another writer".to_owned()),
            },
            other => Lost::Journal {
                detail: format!("the metadata tree failed: {other}"),
            },
        };
        self.shared.lose(&*self.state, &why);
    }
}

/// Waits for the flush under way; for ever if there is none.
async fn finished(flushing: &mut Option<Flushing>) -> Result<Applied, TreeError> {
    match flushing {
        Some(flushing) => flushing.future.as_mut().await,
        None => std::future::pending().await,
    }
}
