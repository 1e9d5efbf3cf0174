//! The tail of a volume: what this node's disk has and the bucket does not have yet, for volumes of durability `local`.
//!
//! A folder for each mount that acknowledged something, with files of records that are only ever appended to and used again
//! once the bucket has all they hold. A record holds what changed since the one before it, in its final state; it names the
//! commit that will contain it, so that whoever recovers skips what a commit in the bucket contains already.
//!
//! Invariants:
//! - An fsync is answered only after its record was synced to the disk; a record is overwritten only after the bucket has
//!   its commit.
//! - The head names the session whose tail it is before that session answers its first fsync. A tail that the head does not
//!   name is never replayed.
//! - Where the disk fails or the log is full, the fsync waits for the bucket instead, and so does each one after it until
//!   the bucket has all that came before.
//! - The last record of all may be torn by a crash and is dropped then; anything else that cannot be read is an error.
//!
//! Beside them lie the spills (`spill.rs`), which a process leaves to its successor.
//!
//! Callers: `volume/mounting.rs`, `ops/sync.rs`, `mount.rs`. Absent: which change belongs into a record (`table/unlogged.rs`), and what
//! a record does to the tables (`table/replay.rs`).

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use uuid::Uuid;

use crate::ids::Epoch;

mod answers;
mod file;
mod log;
mod read;
mod record;
mod spill;
#[cfg(test)]
mod tests;

pub use answers::Answer;
pub(crate) use log::{Changes, TailLog};
pub(crate) use read::{Logged, TailReader};
pub(crate) use record::{Batch, Piece, Record};
pub(crate) use spill::{OpenCall, SpillLog, SpillName, Spilled, Taken};

/// Why the tail of a volume cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TailError {
    /// The disk.
    #[error("cannot {act} {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// Another program has it.
    #[error("another program uses {}", dir.display())]
    Busy {
        /// The folder.
        dir: PathBuf,
    },
    /// The head names a tail that is not there.
    #[error(
        "this node has acknowledged changes in epoch {epoch} that are not in the bucket, and {} does not hold them: mount it \
         with the folder that does, or give them up with `pannier volume drop-tail --accept-loss`",
        dir.display()
    )]
    Missing {
        /// Where it was looked for.
        dir: PathBuf,
        /// Whose.
        epoch: Epoch,
    },
    /// The same, where no folder was looked into.
    #[error(
        "this node has acknowledged changes in epoch {epoch} that are not in the bucket: mount it with the state folder that \
         holds them (--state-dir), or give them up with `pannier volume drop-tail --accept-loss`"
    )]
    NoFolder {
        /// Whose.
        epoch: Epoch,
    },
    /// Something that was acknowledged cannot be read.
    #[error(
        "the tail is damaged in {} at byte {offset}: {detail}; restore the file, or give the tail up with \
         `pannier volume drop-tail --accept-loss`",
        path.display()
    )]
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it.
        offset: u64,
        /// What is wrong.
        detail: String,
    },
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> TailError {
    let path = path.to_path_buf();
    move |source| TailError::Io { act, path, source }
}

/// Whose tail: the mount that wrote it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct TailName {
    /// The volume.
    pub volume: Uuid,
    /// Its epoch.
    pub epoch: Epoch,
    /// The mount.
    pub session: Uuid,
}

impl TailName {
    fn folder(&self) -> String {
        format!("{:016x}-{}", self.epoch.0, self.session.simple())
    }
}

/// The folder that holds the tails of one volume. No other mount uses it while this or a clone of it lives.
#[derive(Debug, Clone)]
pub(crate) struct TailDir {
    path: PathBuf,
    _lock: Arc<File>,
}

impl TailDir {
    /// As `open`, where it is known that who used it is dead: a thread of it that waits in the kernel may hold its lock still, so a
    /// new one takes its place.
    ///
    /// # Errors
    /// `Io`.
    pub fn open_after_death(state: &Path, volume: Uuid) -> Result<Self, TailError> {
        match Self::open(state, volume) {
            Err(TailError::Busy { dir }) => {
                let lock = dir.join("lock");
                fs::remove_file(&lock).map_err(io_error("remove", &lock))?;
                Self::open(state, volume)
            }
            done => done,
        }
    }

    /// Opens or makes the folder of a volume in `state`.
    ///
    /// # Errors
    /// `Io`, `Busy`.
    pub fn open(state: &Path, volume: Uuid) -> Result<Self, TailError> {
        let path = state.join("tails").join(volume.simple().to_string());
        fs::create_dir_all(&path).map_err(io_error("make", &path))?;
        let place = path.join("lock");
        let lock = OpenOptions::new().create(true).truncate(false).write(true).open(&place);
        let lock = lock.map_err(io_error("open", &place))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Err(TailError::Busy { dir: path }),
            Err(TryLockError::Error(source)) => return Err(io_error("lock", &place)(source)),
        }
        for folder in [state, &state.join("tails"), &path] {
            sync_folder(folder)?;
        }
        Ok(Self {
            path,
            _lock: Arc::new(lock),
        })
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The tail of this name.
    ///
    /// # Errors
    /// `Missing`, `Damaged`, `Io`.
    pub fn find(&self, name: TailName) -> Result<TailReader, TailError> {
        let folder = self.path.join(name.folder());
        match folder.is_dir() {
            true => TailReader::open(&folder, name),
            false => Err(TailError::Missing {
                dir: self.path.clone(),
                epoch: name.epoch,
            }),
        }
    }

    /// Begins a tail of this name.
    ///
    /// # Errors
    /// `Io`.
    pub fn begin(&self, name: TailName) -> Result<file::LogFiles, TailError> {
        let files = file::LogFiles::create(self.path.join(name.folder()), name, file::Against::PowerLoss)?;
        sync_folder(&self.path)?;
        Ok(files)
    }

    /// Removes the tail of this name: the bucket has all of it.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove(&self, name: TailName) -> Result<(), TailError> {
        remove_folder(&self.path.join(name.folder()))
    }

    /// The spills in it, oldest reign first.
    ///
    /// # Errors
    /// `Io`.
    pub fn spills(&self, volume: Uuid) -> Result<Vec<SpillName>, TailError> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(io_error("list", &self.path))? {
            let entry = entry.map_err(io_error("list", &self.path))?;
            found.extend(SpillName::parse(volume, &entry.file_name().to_string_lossy()));
        }
        found.sort_by_key(|name: &SpillName| name.tail.epoch);
        Ok(found)
    }

    /// The spill of this name, and the answers that its writer was handed.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn find_spill(&self, name: SpillName) -> Result<(TailReader, Vec<Answer>), TailError> {
        let folder = self.path.join(name.folder());
        let answers = spill::handed_on(&folder)?;
        Ok((TailReader::open(&folder, name.tail)?, answers))
    }

    /// Removes a spill: the bucket has all of it, or nobody wants it any more.
    ///
    /// # Errors
    /// `Io`.
    pub fn remove_spill(&self, name: SpillName) -> Result<(), TailError> {
        remove_folder(&self.path.join(name.folder()))
    }

    /// Puts a spill aside that cannot be read.
    ///
    /// # Errors
    /// `Io`.
    pub fn put_spill_aside(&self, name: SpillName) -> Result<(), TailError> {
        let (from, to) = (name.folder(), format!("{ASIDE}{}", name.folder()));
        fs::rename(self.path.join(&from), self.path.join(to)).map_err(io_error("rename", &self.path.join(from)))
    }

    /// Puts aside every tail but that of `kept`: the head does not name it, so it is never replayed. One without a record
    /// goes.
    ///
    /// # Errors
    /// `Io`.
    pub fn put_others_aside(&self, kept: Option<TailName>) -> Result<(), TailError> {
        let kept = kept.map(|name| name.folder());
        for entry in fs::read_dir(&self.path).map_err(io_error("list", &self.path))? {
            let entry = entry.map_err(io_error("list", &self.path))?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let other = name.starts_with(ASIDE) || name.starts_with(spill::SPILL);
            if other || kept.as_ref() == Some(&name) || !entry.path().is_dir() {
                continue;
            }
            if !read::has_records(&entry.path()) {
                remove_folder(&entry.path())?;
                continue;
            }
            let to = self.path.join(format!("{ASIDE}{name}"));
            fs::rename(entry.path(), &to).map_err(io_error("rename", &entry.path()))?;
            tracing::error!(
                kept_at = %to.display(),
                "the volume went on without a tail that this node holds: it is not replayed, but kept for whoever wants to look"
            );
        }
        sync_folder(&self.path)
    }
}

/// True if a process may have left a spill of this volume in `state`, whatever is in it.
pub(crate) fn may_have_spill(state: &Path, volume: Uuid) -> bool {
    let path = state.join("tails").join(volume.simple().to_string());
    let Ok(entries) = fs::read_dir(path) else { return false };
    entries
        .flatten()
        .any(|entry| entry.file_name().to_string_lossy().starts_with(spill::SPILL))
}

/// What the name of a folder begins with whose tail was refused.
const ASIDE: &str = "refused-";

fn remove_folder(folder: &Path) -> Result<(), TailError> {
    match fs::remove_dir_all(folder) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(io_error("remove", folder)(error)),
        _ => Ok(()),
    }
}

fn sync_folder(folder: &Path) -> Result<(), TailError> {
    let synced = File::open(folder).and_then(|folder| folder.sync_all());
    synced.map_err(io_error("sync", folder))
}
