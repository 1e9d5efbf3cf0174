//! The spill of a volume: every change that a program was told of, in a file of this node, before it was told.
//!
//! It is kept against the end of the process alone: the kernel has what was written, nothing is synced, and after a reboot it is
//! given up (what was fsynced is in the bucket). A successor replays what the bucket lacks and knows which calls were done.
//!
//! Invariants:
//! - A change is answered only after its record was written, or after the bucket has it.
//! - The bucket has a change only after its record, or at least the answer to its call, was written (`mount.rs` waits for it
//!   with each cut). So a call that was done is known, wherever its writer died.
//! - Records are in the order of the changes: the log is locked while the tables still are, and written under that lock.
//! - A file is used again only when the bucket has all it holds and each call in it was answered.
//!
//! Lock order: tables, then `writing`, then `open`. Callers: `mount.rs`, `volume/spilled.rs`. Absent: the answers' meaning
//! (`calls.rs`), and replaying.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use uuid::Uuid;

use super::answers::{Answer, Answers};
use super::file::{Against, Entry, LogFiles, Needs, Refused};
use super::record::{Batch, Record};
use super::{TailDir, TailError, TailName, io_error};
use crate::ids::{Epoch, Generation};

/// 65,536 answers are handed on from writer to writer; the youngest, because only calls of the last moments wait for one.
const HANDED_ON_MAX: usize = 65_536;

/// What the name of a spill's folder begins with.
pub(super) const SPILL: &str = "spill-";

/// The file in it with what was handed on.
const ANSWERS_FILE: &str = "answers";

/// Whose spill: the mount that wrote it, since which start of the machine, and to which connection of the kernel it answered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct SpillName {
    /// The mount.
    pub tail: TailName,
    /// The start of the machine.
    pub boot: Uuid,
    /// The connection.
    pub connection: Uuid,
}

impl SpillName {
    pub(super) fn folder(&self) -> String {
        format!(
            "{SPILL}{}-{}-{}",
            self.tail.folder(),
            self.boot.simple(),
            self.connection.simple()
        )
    }

    pub(super) fn parse(volume: Uuid, folder: &str) -> Option<Self> {
        let mut parts = folder.strip_prefix(SPILL)?.split('-');
        let epoch = Epoch(u64::from_str_radix(parts.next()?, 16).ok()?);
        let mut uuid = || Uuid::parse_str(parts.next()?).ok();
        let (session, boot, connection) = (uuid()?, uuid()?, uuid()?);
        Some(Self {
            tail: TailName { volume, epoch, session },
            boot,
            connection,
        })
    }
}

/// Records that hold a call which was not answered yet.
type OpenRecords = Mutex<BTreeSet<u64>>;

fn locked(open: &OpenRecords) -> MutexGuard<'_, BTreeSet<u64>> {
    open.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A call that is in the log and was not answered yet. Drop it when the answer has left.
#[derive(Debug)]
pub(crate) struct OpenCall {
    open: Arc<OpenRecords>,
    record: u64,
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        locked(&self.open).remove(&self.record);
    }
}

#[derive(Debug)]
struct Writing {
    files: LogFiles,
    /// What was taken and is in no record: nothing is logged before the bucket has this commit.
    waits_for: Option<Generation>,
    /// The disk has failed: the files are made anew before they are trusted again.
    broken: bool,
}

/// The running spill of a mount. Dropping it leaves the files, as a crash would.
#[derive(Debug)]
pub(crate) struct SpillLog {
    writing: Mutex<Writing>,
    open: Arc<OpenRecords>,
    /// What earlier writers have done for the same connection.
    inherited: BTreeMap<u64, Answer>,
    /// Until it is given up.
    dir: Mutex<Option<TailDir>>,
    name: SpillName,
}

impl SpillLog {
    /// Begins a spill in `dir`, which hands `inherited` on.
    ///
    /// # Errors
    /// `Io`.
    pub fn begin(dir: TailDir, name: SpillName, inherited: Vec<Answer>) -> Result<Self, TailError> {
        let folder = dir.path().join(name.folder());
        let files = LogFiles::create(folder.clone(), name.tail, Against::ProcessDeath)?;
        let mut inherited: BTreeMap<u64, Answer> = inherited.into_iter().map(|answer| (answer.call, answer)).collect();
        while inherited.len() > HANDED_ON_MAX {
            inherited.pop_first();
        }
        if !inherited.is_empty() {
            write_answers(&folder, inherited.values().copied().collect())?;
        }
        Ok(Self {
            writing: Mutex::new(Writing {
                files,
                waits_for: None,
                broken: false,
            }),
            open: Arc::default(),
            inherited,
            dir: Mutex::new(Some(dir)),
            name,
        })
    }

    /// Locks the log for what an operation has just changed, and takes it. Call it while the tables are locked; `newest` is
    /// the commit that will contain the change, `durable` the last one that the bucket has.
    pub fn take(
        &self,
        (newest, durable): (Generation, Generation),
        changes: impl FnOnce() -> Result<Option<Batch>, Generation>,
    ) -> Taken<'_> {
        let mut writing = self.writing.lock().unwrap_or_else(PoisonError::into_inner);
        let what = match writing.is_ready(durable) {
            false => Err(newest),
            true => changes(),
        };
        if let Err(generation) = &what {
            let waits_for = writing.waits_for.get_or_insert(*generation);
            *waits_for = (*waits_for).max(*generation);
        }
        Taken {
            log: self,
            writing,
            what,
            durable,
        }
    }

    /// Returns when everything that was taken before the call is written, or is known to wait for the bucket.
    pub fn wait_for_taken(&self) {
        drop(self.writing.lock().unwrap_or_else(PoisonError::into_inner));
    }

    /// What an earlier writer has answered to this call, or would have.
    pub fn answer_of(&self, call: u64) -> Option<Answer> {
        self.inherited.get(&call).copied()
    }

    /// Removes the files of an earlier spill: the bucket has all of it.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(&self, name: SpillName) -> Result<(), TailError> {
        match &*self.dir.lock().unwrap_or_else(PoisonError::into_inner) {
            Some(dir) => dir.remove_spill(name),
            None => Ok(()),
        }
    }

    /// Whose it is.
    pub fn name(&self) -> SpillName {
        self.name
    }

    /// Lets go of the folder, as a crash would.
    pub fn abandon(&self) {
        self.dir.lock().unwrap_or_else(PoisonError::into_inner).take();
    }
}

impl Writing {
    /// True if what is taken now can be written.
    fn is_ready(&mut self, durable: Generation) -> bool {
        if self.waits_for.is_some_and(|generation| generation > durable) {
            return false;
        }
        self.waits_for = None;
        if self.broken {
            if let Err(error) = self.files.reset() {
                tracing::debug!(%error, "the spill of the volume still fails");
                return false;
            }
            tracing::info!("the spill of the volume works again");
            self.broken = false;
        }
        true
    }
}

/// What became of a change.
#[derive(Debug, Default)]
pub(crate) struct Spilled {
    /// Its call, until that is answered.
    pub open: Option<OpenCall>,
    /// The commit that the bucket must have before anybody is told.
    pub waits_for: Option<Generation>,
}

/// What an operation has changed, taken but not written yet.
pub(crate) struct Taken<'a> {
    log: &'a SpillLog,
    writing: MutexGuard<'a, Writing>,
    what: Result<Option<Batch>, Generation>,
    durable: Generation,
}

impl Taken<'_> {
    /// Writes it, with the answer of the call that it was for. The tables need not be locked any more.
    ///
    /// Where the change itself cannot be written, its answer still is, alone: it holds if the bucket has the commit, and a
    /// successor knows whether it has.
    ///
    /// # Durability
    /// Without a commit to wait for, a successor on this node finds it, as long as the machine runs.
    pub fn write(mut self, answer: Option<Answer>) -> Spilled {
        match std::mem::replace(&mut self.what, Ok(None)) {
            Ok(None) => Spilled::default(),
            Ok(Some(batch)) => match self.append(&batch, answer) {
                Ok(open) => Spilled { open, waits_for: None },
                Err(generation) => self.write_alone(generation, answer),
            },
            Err(generation) => self.write_alone(generation, answer),
        }
    }

    /// Writes the answer without the change.
    fn write_alone(&mut self, generation: Generation, answer: Option<Answer>) -> Spilled {
        let alone = Batch {
            generation,
            record: Record::default(),
        };
        let open = match answer {
            Some(_) if !self.writing.broken => self.append(&alone, answer).ok().flatten(),
            Some(_) | None => None,
        };
        Spilled {
            open,
            waits_for: Some(generation),
        }
    }

    fn append(&mut self, batch: &Batch, answer: Option<Answer>) -> Result<Option<OpenCall>, Generation> {
        let first_open = locked(&self.log.open).first().copied();
        let answers = Answers {
            first_open: first_open.unwrap_or(u64::MAX),
            done: answer.into_iter().collect(),
        };
        let entry = Entry {
            generation: batch.generation,
            prefix: &answers.encode(),
            record: &batch.record,
        };
        let needs = Needs {
            durable: self.durable,
            first_record: answers.first_open,
        };
        match self.writing.files.append(&entry, needs) {
            Ok(record) => Ok((!answers.done.is_empty()).then(|| {
                locked(&self.log.open).insert(record);
                OpenCall {
                    open: Arc::clone(&self.log.open),
                    record,
                }
            })),
            Err(refused) => {
                let waits_for = self.writing.waits_for.get_or_insert(batch.generation);
                *waits_for = (*waits_for).max(batch.generation);
                match refused {
                    Refused::Full => tracing::debug!("the spill of the volume is full: changes wait for the bucket"),
                    Refused::Disk(error) => {
                        tracing::warn!(%error, "the spill of the volume fails: changes wait for the bucket until it works");
                        self.writing.broken = true;
                    }
                }
                Err(batch.generation)
            }
        }
    }
}

fn write_answers(folder: &Path, done: Vec<Answer>) -> Result<(), TailError> {
    let mut bytes = Answers { first_open: 0, done }.encode();
    let sum = crc32c::crc32c(&bytes);
    bytes.extend_from_slice(&sum.to_le_bytes());
    let (draft, path) = (folder.join("new-answers"), folder.join(ANSWERS_FILE));
    fs::write(&draft, bytes).map_err(io_error("write", &draft))?;
    fs::rename(&draft, &path).map_err(io_error("rename", &draft))
}

/// What the writer of the spill in `folder` was handed on.
///
/// # Errors
/// `Damaged`, `Io`.
pub(super) fn handed_on(folder: &Path) -> Result<Vec<Answer>, TailError> {
    let path = folder.join(ANSWERS_FILE);
    let bytes = match fs::read(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => Bytes::from(read.map_err(io_error("read", &path))?),
    };
    let damaged = |detail: &str| TailError::Damaged {
        path: path.clone(),
        offset: 0,
        detail: detail.to_owned(),
    };
    let at = bytes.len().checked_sub(4).ok_or_else(|| damaged("it is too short"))?;
    let mut body = bytes.slice(..at);
    if crc32c::crc32c(&body).to_le_bytes() != bytes[at..] {
        return Err(damaged("its checksum is wrong"));
    }
    let answers = Answers::decode_front(&mut body).map_err(|error| damaged(&error.to_string()))?;
    Ok(answers.done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::InodeNo;
    use crate::row::{Counters, Key, Row};
    use crate::tail::Piece;

    const NAME: SpillName = SpillName {
        tail: TailName {
            volume: Uuid::from_u128(7),
            epoch: Epoch(3),
            session: Uuid::from_u128(9),
        },
        boot: Uuid::from_u128(1),
        connection: Uuid::from_u128(2),
    };

    fn batch(generation: u64) -> Batch {
        let piece = Piece {
            ino: InodeNo(5),
            start: 0,
            end: 4_000_000,
            content: vec![Bytes::from(vec![7; 4_000_000])],
        };
        Batch {
            generation: Generation(generation),
            record: Record {
                rows: vec![(Key::Counters, Some(Row::Counters(Counters::default())))],
                pieces: vec![piece],
            },
        }
    }

    /// What a spill that is full cannot take waits for the bucket; the answer to its call is known to a successor all the same,
    /// because the bucket may have the change when its program's answer has not left.
    #[test]
    fn a_full_spill_knows_the_answers_of_what_it_cannot_hold() {
        let disk = tempfile::tempdir().unwrap();
        let dir = TailDir::open(disk.path(), NAME.tail.volume).unwrap();
        let log = SpillLog::begin(dir, NAME, Vec::new()).unwrap();
        log.writing.lock().unwrap().files.bound(24 * 1024 * 1024);
        let answer = |call| Answer { call, ino: InodeNo(5) };
        let (mut calls, mut open) = (Vec::new(), Vec::new());
        let mut refused = 0;
        while refused < 3 {
            let call = 2 * (1 + calls.len() as u64);
            assert!(call < 100, "it grows without end");
            let at = (Generation(1), Generation(0));
            let spilled = log.take(at, || Ok(Some(batch(1)))).write(Some(answer(call)));
            refused += u64::from(spilled.waits_for.is_some());
            open.push(spilled.open.expect("its answer is known"));
            calls.push(call);
        }
        let dir = log.dir.lock().unwrap().take().unwrap();
        let (mut reader, _) = dir.find_spill(NAME).unwrap();
        let (mut found, mut whole) = (Vec::new(), 0);
        while let Some(logged) = reader.next(Generation(0)).unwrap() {
            found.extend(logged.answers.done.iter().map(|answer| answer.call));
            whole += usize::from(!logged.record.is_empty());
        }
        assert_eq!(found, calls);
        assert_eq!(whole, calls.len() - 3);
    }
}
