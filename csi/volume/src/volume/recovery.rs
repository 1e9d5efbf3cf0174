//! The tail of a volume at its opening: what an earlier mount of this node left on its disk goes into the bucket before
//! anybody uses the volume, and a new tail begins.
//!
//! Invariant: all of an old tail becomes one commit, so that a crash meanwhile leaves either all of it to do, or nothing; the
//! head names the old tail until the bucket has it. Caller: `mounting.rs`.

use std::path::Path;
use std::sync::Arc;

use super::spilled;
use crate::commit::{CommitHandle, Lost};
use crate::head::{Durability, Tail};
use crate::ids::{Generation, JournalSeq};
use crate::mount::State;
use crate::open::{OpenError, OpenedWriter};
use crate::table::{Log, Tables};
use crate::tail::{Changes, Logged, Record, TailDir, TailError, TailLog, TailName, TailReader};
use crate::tree::Tree;

/// The name of the tail that the head names.
pub(super) fn old_name(opened: &OpenedWriter) -> Option<TailName> {
    let head = &opened.taken.head;
    head.tail.as_ref().map(|tail| TailName {
        volume: head.uuid,
        epoch: tail.epoch,
        session: tail.session,
    })
}

/// Replays what this node's disk holds of the volume, and returns the folder for what comes. What a spill has of it, `left` behind
/// by the same process, was replayed already: it holds all that the tail does, and what was told since.
///
/// # Errors
/// `Tail` where the head names a tail that cannot be had; `Replay`, `Tree`.
pub(super) async fn recover(
    opened: &OpenedWriter,
    (state_dir, left): (Option<&Path>, Option<&spilled::Left>),
    state: &State,
) -> Result<Option<TailDir>, OpenError> {
    let head = &opened.taken.head;
    let old = old_name(opened);
    // A commit of a later reign contains all of the tail: it was the first of that reign.
    let pending = old.filter(|old| opened.last.epoch <= old.epoch);
    if head.parameters.durability != Durability::Local && old.is_none() {
        return Ok(None);
    }
    let Some(state_dir) = state_dir else {
        if let Some(old) = pending {
            return Err(TailError::NoFolder { epoch: old.epoch }.into());
        }
        tracing::warn!(volume = %head.uuid, "there is no state folder for the volume's tail: fsync waits for the bucket");
        return Ok(None);
    };
    let opened_dir = match left {
        Some(left) => Ok(left.dir()),
        None => TailDir::open(state_dir, head.uuid),
    };
    let found = opened_dir.and_then(|dir| {
        dir.put_others_aside(old)?;
        Ok(dir)
    });
    let dir = match (found, pending) {
        (Ok(dir), _) => dir,
        (Err(error @ TailError::Busy { .. }), _) | (Err(error), Some(_)) => return Err(error.into()),
        (Err(error), None) => {
            tracing::warn!(%error, volume = %head.uuid, "there is no folder for the volume's tail: fsync waits for the bucket");
            return Ok(None);
        }
    };
    if let Some(old) = pending.filter(|_| !left.is_some_and(spilled::Left::has_tail)) {
        let durable = match opened.last.epoch == old.epoch {
            // The n-th commit of a mount is its n-th generation.
            true => Generation(opened.last.seq.0),
            false => Generation(0),
        };
        let mut tail = dir.find(old)?;
        let mut records = 0;
        loop {
            let (rest, some) = read_some(tail, durable).await?;
            tail = rest;
            if some.is_empty() {
                break;
            }
            records += some.len();
            for logged in some {
                replay(logged.record, (opened, state)).await?;
            }
        }
        tracing::info!(volume = %head.uuid, epoch = %old.epoch, after = %durable, records, "the volume's tail was replayed");
    }
    Ok(Some(dir))
}

/// 512 records, or 8 MiB of them, are read at a time.
const READ_RECORDS: usize = 512;
const READ_BYTES: u64 = 8 * 1024 * 1024;

/// The next records of a tail that a commit after `durable` would contain; none at its end.
///
/// # Errors
/// `Tail`.
pub(super) async fn read_some(
    mut tail: TailReader,
    durable: Generation,
) -> Result<(TailReader, Vec<Logged>), TailError> {
    let read = move || {
        let (mut some, mut bytes) = (Vec::new(), 0);
        while some.len() < READ_RECORDS && bytes < READ_BYTES {
            let Some(logged) = tail.next(durable)? else { break };
            bytes += logged.record.content().map(|part| part.len() as u64).sum::<u64>();
            some.push(logged);
        }
        Ok((tail, some))
    };
    tokio::task::spawn_blocking(read)
        .await
        .expect("reading a tail does not panic")
}

/// Makes the tables what a record says.
///
/// # Errors
/// `Replay`, `Tree`.
pub(super) async fn replay(record: Record, (opened, state): (&OpenedWriter, &State)) -> Result<(), OpenError> {
    // The first number that the tree knows nothing of: what was replayed before may have used it since.
    let fresh = opened.counters.map_or(0, |counters| counters.next_ino);
    load(&record, fresh, (&*opened.tree, state)).await?;
    state.lock().replay(record).map_err(OpenError::Replay)
}

async fn load(record: &Record, fresh: u64, (tree, state): (&dyn Tree, &State)) -> Result<(), OpenError> {
    let missing = |tables: &mut Tables| tables.missing_for(record, fresh);
    loop {
        let need = missing(&mut state.lock());
        let Some(need) = need else { return Ok(()) };
        let loaded = need.ask(tree).await?;
        state.lock().load(loaded);
    }
}

/// Waits until the bucket has what was replayed, and begins the tail of this mount where the volume wants one and there is
/// room for it.
///
/// # Errors
/// `Lost`, `Fenced` where the bucket does not take it; `Head`.
pub(super) async fn begin(
    opened: &OpenedWriter,
    dir: Option<TailDir>,
    (state, commit): (&Arc<State>, &CommitHandle),
) -> Result<Option<TailLog>, OpenError> {
    let head = &opened.taken.head;
    let (old, local) = (old_name(opened), head.parameters.durability == Durability::Local);
    if !local && old.is_none() {
        return Ok(None);
    }
    assert_eq!(opened.next_seq, JournalSeq(1), "the n-th commit is the n-th generation");
    settle(state, commit).await?;
    let name = TailName {
        volume: head.uuid,
        epoch: opened.epoch,
        session: opened.writer,
    };
    let begun = match dir.filter(|_| local) {
        Some(dir) => start(dir, name, state).await,
        None => None,
    };
    let tail = begun.as_ref().map(|_| Tail {
        node_id: opened.node_id.clone(),
        epoch: name.epoch,
        session: name.session,
    });
    if tail != head.tail {
        opened.head.set_tail(opened.epoch, tail).await?;
    }
    if let (Some(log), Some(old)) = (&begun, old)
        && let Err(error) = log.remove(old)
    {
        tracing::warn!(%error, "the log of a tail that the bucket has all of was not removed");
    }
    Ok(begun)
}

/// Waits until the bucket has all that the tables hold.
///
/// # Errors
/// `Lost`, `Fenced`.
pub(super) async fn settle(state: &State, commit: &CommitHandle) -> Result<(), OpenError> {
    let (newest, unsealed) = {
        let tables = state.lock();
        (tables.newest_generation(), tables.unsealed_bytes())
    };
    commit.dirtied(unsealed);
    commit.request_sync();
    commit.wait_applied(newest).await.map_err(|lost| match lost {
        Lost::Fenced { owner } => OpenError::Fenced { owner },
        lost @ Lost::Journal { .. } => OpenError::Lost(lost),
    })
}

async fn start(dir: TailDir, name: TailName, state: &Arc<State>) -> Option<TailLog> {
    let place = dir.path().to_path_buf();
    let making = tokio::task::spawn_blocking(move || dir.begin(name).map(|files| (dir, files)));
    let made = making.await.expect("making files does not panic");
    let started = made.and_then(|(dir, files)| {
        state.lock().note_changes(Log::Tail);
        TailLog::start(dir, (name, files), Arc::clone(state) as Arc<dyn Changes>)
    });
    match started {
        Ok(log) => Some(log),
        Err(error) => {
            tracing::warn!(%error, dir = %place.display(), "the volume gets no tail: fsync waits for the bucket");
            None
        }
    }
}
