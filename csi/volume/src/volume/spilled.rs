//! The spill of a volume at its opening: what an earlier process of this node has told programs and the bucket lacks goes on.
//!
//! Invariants:
//! - A spill is replayed only onto the very state that its writer continued: as long as no commit of a later reign stands.
//!   Whoever else had the volume meanwhile and committed nothing has changed nothing.
//! - All that is replayed becomes one commit, and nobody uses the volume before the bucket has it.
//! - A spill that cannot be used never keeps a volume from being opened: it promises nothing beyond the end of a process.
//! - Either the tail that the head names is replayed (`recovery.rs`) or the spill of the same mount, never a part of each: a spill
//!   beside which there is a tail is read to its end before anything of it is replayed.
//!
//! Caller: `mounting.rs`.

use std::cmp::Ordering;
use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use super::{SpillOptions, recovery};
use crate::commit::CommitHandle;
use crate::ids::Generation;
use crate::mount::State;
use crate::open::{OpenError, OpenedWriter};
use crate::table::Log;
use crate::tail::{Answer, SpillLog, SpillName, TailDir, TailError, TailName, may_have_spill};

/// What was left, and where this mount leaves its own.
#[derive(Debug)]
pub(super) struct Left {
    dir: TailDir,
    options: SpillOptions,
    /// What goes when the bucket has it.
    old: Vec<SpillName>,
    answers: Vec<Answer>,
    /// How many records were replayed.
    records: u64,
    /// The tail that the head names.
    tail: Option<TailName>,
    /// All that is in that tail was replayed.
    has_tail: bool,
}

/// What one spill held.
#[derive(Debug, Default)]
struct Held {
    answers: Vec<Answer>,
    records: u64,
}

/// Replays what an earlier process has left of the volume. `None` where this mount leaves nothing either.
///
/// # Errors
/// `Tail` where another program has the folder; `Replay`, `Tree`.
pub(super) async fn recover(
    opened: &OpenedWriter,
    (options, state_dir): (Option<SpillOptions>, Option<&Path>),
    state: &State,
) -> Result<Option<Left>, OpenError> {
    let head = &opened.taken.head;
    let (Some(options), Some(state_dir)) = (options, state_dir) else {
        return Ok(None);
    };
    if !options.leaves && !may_have_spill(state_dir, head.uuid) {
        return Ok(None);
    }
    let folder = match options.adopts {
        true => TailDir::open_after_death(state_dir, head.uuid),
        false => TailDir::open(state_dir, head.uuid),
    };
    let found = folder.and_then(|dir| Ok((dir.spills(head.uuid)?, dir)));
    let (spills, dir) = match found {
        Ok(found) => found,
        Err(error @ TailError::Busy { .. }) => return Err(error.into()),
        Err(error) => {
            tracing::warn!(%error, volume = %head.uuid, "what this process has not sent yet is not kept for a successor");
            return Ok(None);
        }
    };
    let mut left = Left {
        dir,
        options,
        old: Vec::new(),
        answers: Vec::new(),
        records: 0,
        tail: recovery::old_name(opened),
        has_tail: false,
    };
    for name in spills {
        left.take_in(name, (opened, state)).await?;
    }
    Ok(Some(left))
}

impl Left {
    /// The folder that it lies in.
    pub fn dir(&self) -> TailDir {
        self.dir.clone()
    }

    /// True if all was replayed that the tail holds which the head names. One that is empty says nothing: its writer may have failed
    /// to begin it.
    pub fn has_tail(&self) -> bool {
        self.has_tail
    }

    async fn take_in(&mut self, name: SpillName, (opened, state): (&OpenedWriter, &State)) -> Result<(), OpenError> {
        self.old.push(name);
        let (volume, epoch) = (name.tail.volume, name.tail.epoch);
        if name.boot != self.options.boot {
            tracing::info!(%volume, %epoch, "what was not in the bucket before the machine started anew is given up");
            return Ok(());
        }
        let durable = match opened.last.epoch.cmp(&epoch) {
            Ordering::Less => Some(Generation(0)),
            // The n-th commit of a mount is its n-th generation.
            Ordering::Equal => Some(Generation(opened.last.seq.0)),
            Ordering::Greater => None,
        };
        match self.replay(name, durable, (opened, state)).await {
            Ok(held) => {
                self.has_tail |= held.records > 0 && self.tail == Some(name.tail);
                if held.records > 0 {
                    tracing::info!(%volume, %epoch, after = ?durable, records = held.records, "a spill was replayed");
                }
                if self.options.adopts && name.connection == self.options.connection {
                    self.answers.extend(held.answers);
                }
                Ok(())
            }
            Err(OpenError::Tail(error)) => {
                tracing::error!(
                    %error, %volume, %epoch,
                    "changes of an engine that died could not be read: what was not fsynced of them may be lost"
                );
                self.old.pop();
                Ok(self.dir.put_spill_aside(name)?)
            }
            Err(error) => Err(error),
        }
    }

    async fn read_through(&self, name: SpillName) -> Result<(), TailError> {
        let mut reader = self.dir.find_spill(name)?.0.doubting();
        loop {
            let (rest, some) = recovery::read_some(reader, Generation(0)).await?;
            if some.is_empty() {
                return Ok(());
            }
            reader = rest;
        }
    }

    /// Replays what a commit after `durable` would contain: nothing if `None`, where the bucket has all of it.
    async fn replay(
        &mut self,
        name: SpillName,
        durable: Option<Generation>,
        to: (&OpenedWriter, &State),
    ) -> Result<Held, OpenError> {
        if self.tail == Some(name.tail) {
            self.read_through(name).await?;
        }
        let (mut reader, handed_on) = self.dir.find_spill(name)?;
        let mut held = Held {
            answers: handed_on,
            ..Held::default()
        };
        let mut done = Vec::new();
        let mut first_open = u64::MAX;
        loop {
            // From the first record on: the answers of calls that the bucket has are wanted as well.
            let (rest, some) = recovery::read_some(reader, Generation(0)).await?;
            reader = rest;
            if some.is_empty() {
                break;
            }
            for logged in some {
                // The record's own call may wait, whatever was open when it was written.
                first_open = logged.answers.first_open.min(logged.number);
                let is_durable = durable.is_some_and(|durable| logged.generation <= durable);
                // An answer alone holds if the bucket has its commit. Who replayed the rest has handed on those that hold.
                let holds = !logged.record.rows.is_empty() || is_durable;
                let answers = logged.answers.done.into_iter().filter(|_| holds);
                done.extend(answers.map(|answer| (logged.number, answer)));
                if durable.is_some() && !is_durable {
                    recovery::replay(logged.record, to).await?;
                    held.records += 1;
                    self.records += 1;
                }
            }
        }
        let open = done.into_iter().filter(|(number, _)| *number >= first_open);
        held.answers.extend(open.map(|(_, answer)| answer));
        Ok(held)
    }
}

/// Waits until the bucket has what was replayed, and begins the spill of this mount.
///
/// # Errors
/// `Lost`, `Fenced` where the bucket does not take it.
pub(super) async fn begin(
    opened: &OpenedWriter,
    left: Option<Left>,
    (state, commit): (&Arc<State>, &CommitHandle),
) -> Result<Option<SpillLog>, OpenError> {
    let Some(left) = left else { return Ok(None) };
    let Left {
        dir,
        options,
        old,
        answers,
        records,
        ..
    } = left;
    if !options.leaves {
        if records > 0 {
            recovery::settle(state, commit).await?;
        }
        tell(old.into_iter().try_for_each(|name| dir.remove_spill(name)));
        return Ok(None);
    }
    let name = own_name(opened, options, opened.writer);
    let begun = tokio::task::spawn_blocking(move || SpillLog::begin(dir, name, answers))
        .await
        .expect("making files does not panic");
    if records > 0 {
        recovery::settle(state, commit).await?;
    }
    let log = match begun {
        Ok(log) => log,
        Err(error) => {
            tracing::warn!(%error, volume = %name.tail.volume, "what this process has not sent yet is not kept for a successor");
            return Ok(None);
        }
    };
    state.lock().note_changes(Log::Spill);
    tell(old.into_iter().try_for_each(|name| log.remove(name)));
    Ok(Some(log))
}

fn tell(removed: Result<(), TailError>) {
    if let Err(error) = removed {
        tracing::warn!(%error, "a spill that nobody needs any more was not removed");
    }
}

fn own_name(opened: &OpenedWriter, options: SpillOptions, session: Uuid) -> SpillName {
    SpillName {
        tail: TailName {
            volume: opened.taken.head.uuid,
            epoch: opened.epoch,
            session,
        },
        boot: options.boot,
        connection: options.connection,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicBool;
    use std::sync::atomic::Ordering::SeqCst;
    use std::time::{Duration, Instant};

    use super::*;
    use crate::bucket::memory::MemoryBucket;
    use crate::clock::Timestamp;
    use crate::commit::DirtyState;
    use crate::ids::{Epoch, InodeNo};
    use crate::limits::Limits;
    use crate::ops::make::root_row;
    use crate::tree::memory::MemoryTree;
    use crate::volume::Volume;

    /// 200 ms: a cut that does not wait is made within microseconds, and then the test ends at once.
    const NOT_WITHIN: Duration = Duration::from_millis(200);

    const NAME: SpillName = SpillName {
        tail: TailName {
            volume: Uuid::from_u128(7),
            epoch: Epoch(1),
            session: Uuid::from_u128(8),
        },
        boot: Uuid::from_u128(9),
        connection: Uuid::from_u128(10),
    };

    /// Goal: no commit contains a change before the spill has it with the answer to its call. (A program once got ENOENT for a
    /// folder that it had made: rmdir was in the bucket when its engine was killed, the answer was not in the spill, and the
    /// next engine did it again.) Method: a change that is taken and not written, and a cut beside it.
    #[test]
    fn regression_a_commit_overtook_the_record_of_a_call() {
        let disk = tempfile::tempdir().unwrap();
        let bucket = Arc::new(MemoryBucket::new());
        let volume = Volume::without_commits(
            Arc::new(MemoryTree::default()),
            bucket,
            Limits::default(),
            NAME.tail.volume,
        );
        let state = volume.state();
        let dir = TailDir::open(disk.path(), NAME.tail.volume).unwrap();
        state
            .spill
            .set(SpillLog::begin(dir, NAME, Vec::new()).unwrap())
            .unwrap();
        let spill = state.spill.get().unwrap();
        let mut tables = state.lock();
        tables.note_changes(Log::Spill);
        tables.add_inode(root_row(Timestamp::default()));
        let at = (tables.newest_generation(), tables.durable());
        let taken = spill.take(at, || tables.take_unlogged(Log::Spill));
        drop(tables);
        let is_cut = AtomicBool::new(false);
        let open = std::thread::scope(|scope| {
            scope.spawn(|| {
                assert!(state.seal().is_some(), "there is a change to be cut");
                is_cut.store(true, SeqCst);
            });
            let begun = Instant::now();
            while !is_cut.load(SeqCst) && begun.elapsed() < NOT_WITHIN {
                std::thread::park_timeout(Duration::from_millis(1));
            }
            assert!(!is_cut.load(SeqCst), "a commit has what the spill has not");
            taken.write(Some(Answer {
                call: 4,
                ino: InodeNo(0),
            }))
        });
        assert!(is_cut.load(SeqCst) && open.open.is_some() && open.waits_for.is_none());
    }
}
