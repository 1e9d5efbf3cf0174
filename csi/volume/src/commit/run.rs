//! The commit loop: cuts, encodes, sends, acknowledges in order.
//!
//! Invariants: see `commit.rs`. One task owns all of it; uploads run beside it and report back.
//! Callers: `commit::start`. Absent: when to cut (`pace.rs`), how to put (`put.rs`), the tree (`apply.rs`).

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::Instant;

use super::apply::{Applier, Durable, Unflushed};
use super::encode::{Encoded, encode};
use super::handle::Shared;
use super::pace::{Decision, PutTime, Situation, decide};
use super::put::Putter;
use super::{CommitContext, DirtyState, KeepFrames, Lost, SealedGeneration};
use crate::format::journal::JournalName;
use crate::ids::{Generation, JournalSeq, ObjectId};
use crate::rope::Rope;
use crate::row::{Applied, ExtentRow};

/// 24 segments of 16 MiB under way: more would only queue in the store's client, holding their bytes.
const SEGMENT_PUTS_MAX: usize = 24;

/// 1 MiB: larger generations are encoded on a thread that may block.
const ENCODE_INLINE_BYTES_MAX: u64 = 1024 * 1024;

/// 128 MiB of rows and 1,024 commits that are durable but not in the tree yet. Above it nothing is sent: writers wait.
const BACKLOG_BYTES_MAX: u64 = 128 * 1024 * 1024;
const BACKLOG_COMMITS_MAX: u64 = 1_024;

/// A commit under way.
#[derive(Debug)]
struct Slot {
    commit: Durable,
    done: bool,
}

/// What an upload reports.
struct Upload {
    seq: JournalSeq,
    took: Duration,
    result: Result<(), Lost>,
}

pub(super) struct CommitLoop {
    context: CommitContext,
    state: Arc<dyn DirtyState>,
    shared: Arc<Shared>,
    putter: Putter,
    next_seq: JournalSeq,
    in_flight: VecDeque<Slot>,
    uploads: JoinSet<Upload>,
    put_time: PutTime,
    dirty_since: Option<Instant>,
    last_dispatch: Option<Instant>,
    applier: mpsc::UnboundedSender<Durable>,
}

/// Starts the loop and the applier; the handles are of the loop and the applier.
pub(super) fn spawn(
    context: CommitContext,
    state: Arc<dyn DirtyState>,
    shared: Arc<Shared>,
) -> (JoinHandle<()>, tokio::task::AbortHandle) {
    let (applier, commits) = mpsc::unbounded_channel();
    let behind = context.tree.applied() != context.durable;
    let unflushed = Unflushed {
        since: behind.then(Instant::now),
        commits: if context.flush_soon {
            context.limits.tree_flush_commits
        } else {
            0
        },
        ..Unflushed::default()
    };
    let applying = tokio::spawn(
        Applier {
            tree: context.tree.clone(),
            bucket: context.bucket.clone(),
            volume: context.volume,
            epoch: context.epoch,
            first_seq: context.next_seq,
            state: state.clone(),
            shared: shared.clone(),
            commits,
            unflushed,
            share: context.budget.unflushed(),
        }
        .run(),
    );
    let abort = applying.abort_handle();
    let putter = Putter {
        bucket: context.bucket.clone(),
        volume: context.volume,
        writer: context.writer,
        epoch: context.epoch,
        shared: shared.clone(),
        segments: Arc::new(Semaphore::new(SEGMENT_PUTS_MAX)),
    };
    let commit_loop = CommitLoop {
        next_seq: context.next_seq,
        context,
        state,
        shared,
        putter,
        in_flight: VecDeque::new(),
        uploads: JoinSet::new(),
        put_time: PutTime::new(),
        dirty_since: None,
        last_dispatch: None,
        applier,
    };
    (tokio::spawn(commit_loop.live(applying)), abort)
}

/// Says that the loop has ended, however it did.
struct End(Arc<Shared>);

impl Drop for End {
    fn drop(&mut self) {
        self.0.progress.send_modify(|progress| progress.ended = true);
    }
}

impl CommitLoop {
    async fn live(mut self, applying: JoinHandle<()>) {
        let _end = End(self.shared.clone());
        let panicked = |what: &str| Lost::Journal {
            detail: format!("{what} has panicked, see the log"),
        };
        match AssertUnwindSafe(self.run()).catch_unwind().await {
            Ok(Ok(())) => {
                drop(self.applier);
                if applying.await.is_err_and(|error| error.is_panic()) {
                    self.shared.lose(&*self.state, &panicked("the applier of commits"));
                }
            }
            Ok(Err(why)) => self.shared.lose(&*self.state, &why),
            Err(_) => self.shared.lose(&*self.state, &panicked("the commit loop")),
        }
    }

    async fn run(&mut self) -> Result<(), Lost> {
        loop {
            if let Some(lost) = self.shared.progress.borrow().lost.clone() {
                return Err(lost);
            }
            let situation = self.situation();
            let until = match decide(&self.context.limits, &situation) {
                Decision::Dispatch => {
                    let sent = self.dispatch().await?;
                    let idle = !sent && self.in_flight.is_empty();
                    if idle && self.shared.closing.load(Ordering::SeqCst) {
                        return Ok(());
                    }
                    // Nothing was dirty: what is under way may be all that is left.
                    match sent {
                        true => continue,
                        false => None,
                    }
                }
                Decision::At(then) => Some(then),
                Decision::Wait => None,
            };
            self.wait(until).await?;
        }
    }

    fn situation(&mut self) -> Situation {
        let now = Instant::now();
        if self.shared.armed.load(Ordering::SeqCst) {
            self.dirty_since.get_or_insert(now);
        }
        let closing = self.shared.closing.load(Ordering::SeqCst);
        Situation {
            now,
            in_flight: self.in_flight.len(),
            tree_behind: self.shared.backlog_is_full(BACKLOG_COMMITS_MAX, BACKLOG_BYTES_MAX),
            wanted: closing || self.shared.sync_wanted.load(Ordering::SeqCst),
            unsealed_bytes: self.state.unsealed_bytes(),
            dirty_since: self.dirty_since,
            last_dispatch: self.last_dispatch,
            spacing: self.put_time.spacing(self.context.limits.in_flight_max),
        }
    }

    async fn wait(&mut self, until: Option<Instant>) -> Result<(), Lost> {
        let shared = self.shared.clone();
        tokio::select! {
            biased;
            Some(upload) = self.uploads.join_next() => self.landed(upload),
            () = shared.wake.notified() => Ok(()),
            () = sleep_until(until) => Ok(()),
        }
    }

    /// Cuts, encodes and sends. False if nothing was dirty.
    async fn dispatch(&mut self) -> Result<bool, Lost> {
        // Cleared before the cut: a wish or a change that comes after belongs to the next one.
        self.shared.sync_wanted.store(false, Ordering::SeqCst);
        self.shared.armed.store(false, Ordering::SeqCst);
        self.dirty_since = None;
        let Some(sealed) = self.state.seal() else {
            return Ok(false);
        };
        self.last_dispatch = Some(Instant::now());
        let seq = self.next_seq;
        self.next_seq = seq.next();
        let generation = sealed.generation;
        let encoded = self.encode(seq, sealed).await?;
        let commit = Durable {
            generation,
            applied: Applied {
                epoch: self.context.epoch,
                seq,
            },
            changes: encoded.changes,
            rows_bytes: encoded.rows_bytes,
        };
        self.in_flight.push_back(Slot { commit, done: false });
        let (putter, kept) = (self.putter.clone(), self.context.kept.clone());
        let (journal, segments, placed) = (encoded.journal, encoded.segments, encoded.placed);
        self.uploads.spawn(async move {
            let started = Instant::now();
            let result = putter.put_commit(seq, journal.clone(), segments.clone()).await;
            let took = started.elapsed();
            if let (Some(kept), Ok(())) = (kept, &result) {
                keep(&*kept, ObjectId::Journal(putter.epoch, seq), &journal, &placed);
                segments
                    .iter()
                    .for_each(|(object, body)| keep(&*kept, *object, body, &placed));
            }
            Upload { seq, took, result }
        });
        Ok(true)
    }

    async fn encode(&mut self, seq: JournalSeq, sealed: SealedGeneration) -> Result<Encoded, Lost> {
        let name = JournalName {
            volume: self.context.volume,
            writer: self.context.writer,
            epoch: self.context.epoch,
            seq,
        };
        let bytes: u64 = sealed.runs.iter().map(|run| run.len_bytes()).sum();
        let (shared, compression) = (self.shared.clone(), self.context.compression);
        if bytes <= ENCODE_INLINE_BYTES_MAX {
            return Ok(encode(name, &shared.limits, compression, sealed, || {
                shared.number_segment()
            }));
        }
        let mut encoding = tokio::task::spawn_blocking(move || {
            encode(name, &shared.limits, compression, sealed, || shared.number_segment())
        });
        loop {
            // Acknowledgements go on meanwhile.
            tokio::select! {
                biased;
                encoded = &mut encoding => return encoded.map_err(|error| Lost::Journal {
                    detail: format!("a commit could not be encoded: {error}"),
                }),
                Some(upload) = self.uploads.join_next() => self.landed(upload)?,
            }
        }
    }

    fn landed(&mut self, upload: Result<Upload, JoinError>) -> Result<(), Lost> {
        let upload = upload.map_err(|error| Lost::Journal {
            detail: format!("an upload ended: {error}"),
        })?;
        upload.result?;
        self.put_time.add(upload.took);
        let slot = self
            .in_flight
            .iter_mut()
            .find(|slot| slot.commit.applied.seq == upload.seq);
        slot.expect("every upload has its slot").done = true;
        while self.in_flight.front().is_some_and(|slot| slot.done) {
            let slot = self.in_flight.pop_front().expect("it was just seen");
            self.acknowledge(slot.commit)?;
        }
        Ok(())
    }

    fn acknowledge(&self, commit: Durable) -> Result<(), Lost> {
        let generation = commit.generation;
        self.shared.acknowledge(generation)?;
        self.state.durable(generation);
        self.shared.stats().commits += 1;
        self.shared.gave_to_backlog(commit.rows_bytes);
        // Where the tree has failed, the applier has told why, and that reason stays.
        self.applier.send(commit).map_err(|_| Lost::Journal {
            detail: "the applier of commits has ended".to_owned(),
        })
    }
}

impl Shared {
    /// Everything up to `generation` is durable, unless the mount was lost before.
    fn acknowledge(&self, generation: Generation) -> Result<(), Lost> {
        let mut lost = None;
        self.progress.send_if_modified(|progress| {
            lost = progress.lost.clone();
            if lost.is_none() {
                progress.durable = generation;
            }
            lost.is_none()
        });
        lost.map_or(Ok(()), Err)
    }

    /// Ends all acknowledgements. The first reason stays.
    pub(super) fn lose(&self, state: &dyn DirtyState, why: &Lost) {
        let first = self.progress.send_if_modified(|progress| {
            let first = progress.lost.is_none();
            if first {
                progress.lost = Some(why.clone());
            }
            first
        });
        if first {
            tracing::error!(%why, "nothing is made durable any more by this mount");
            state.lost(why);
            self.wake.notify_one();
        }
    }
}

/// Gives the frames of one object away, before its commit gives up the content in RAM.
fn keep(kept: &dyn KeepFrames, object: ObjectId, body: &Rope, placed: &[ExtentRow]) {
    let rows: Vec<ExtentRow> = placed.iter().filter(|row| row.object == object).cloned().collect();
    if !rows.is_empty() {
        kept.keep(body, &rows);
    }
}

async fn sleep_until(then: Option<Instant>) {
    match then {
        Some(then) => tokio::time::sleep_until(then).await,
        None => std::future::pending().await,
    }
}
