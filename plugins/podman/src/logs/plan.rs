//! What the plugin and the log process tell each other: files in the task's log directory, versioned, and readable by
//! older and newer plugins alike.
//!
//! | file | written by | what |
//! |---|---|---|
//! | `container.log` | conmon | both streams, `k8s-file` |
//! | `plan.json` | plugin, once | where the streams go |
//! | `position` | log process | up to where they have been delivered |
//! | `journal` | log process | up to where the journal has them, if it gets them |
//! | `lock` | log process | locked as long as it lives; its pid |
//! | `ended` | plugin | there once the container has ended |
//! | `failure` | log process | why it gave up |

use std::fs::{File, OpenOptions, Permissions};
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};
use serde::{Deserialize, Serialize};

use super::journal::JournalPlan;
use super::record::Cursor;
use crate::host::LogWriter;

/// Version 1: as the table above says.
const VERSION: u32 = 1;

/// The position's size: one write of a fixed length within one page, so that a kill leaves the old or the new one.
const POSITION_BYTES: usize = 256;

/// Where a container's output comes from and goes to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogPlan {
    /// The directory of all files of the table; the task's own, and of nobody else.
    pub dir: PathBuf,
    /// Nomad's FIFO for stdout.
    pub stdout: PathBuf,
    /// Nomad's FIFO for stderr.
    pub stderr: PathBuf,
    /// Who writes the log, if not root. What is to be made is told by it; nobody reads it back.
    #[serde(skip)]
    pub writer: Option<LogWriter>,
    /// The journal that gets them as well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub journal: Option<JournalPlan>,
}

#[derive(Serialize, Deserialize)]
struct PlanFile {
    version: u32,
    #[serde(flatten)]
    plan: LogPlan,
}

/// Up to where the output was delivered.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(super) struct Position {
    /// The inode that the cursors belong to: another one begins at its start.
    pub(super) inode: u64,
    pub(super) stdout: Cursor,
    pub(super) stderr: Cursor,
    /// The container has ended and all of its output was delivered.
    pub(super) finished: bool,
}

/// The file with the position, kept open.
#[derive(Debug)]
pub(super) struct PositionFile {
    file: File,
    last: Position,
}

/// The right to be the log process of a directory, until dropped.
#[derive(Debug)]
pub(super) struct LogLock {
    _lock: Flock<File>,
}

impl LogPlan {
    /// The file that conmon writes.
    #[must_use]
    pub fn container_log(&self) -> PathBuf {
        container_log(&self.dir)
    }

    /// Makes the directory and an empty log. What an earlier container left there goes away.
    ///
    /// # Errors
    /// Of the file system.
    pub(super) fn make(&self) -> io::Result<()> {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&self.dir)?;
        // Only passed through: whoever could write here could make the log process, which is root, open what it should not.
        let mode = if self.writer.is_some() { 0o711 } else { 0o700 };
        std::fs::set_permissions(&self.dir, Permissions::from_mode(mode))?;
        for name in ["position", "journal", "ended", "failure", "container.log"] {
            remove_if_there(&self.dir.join(name))?;
        }
        let log = private().write(true).create_new(true).open(self.container_log())?;
        if let Some(writer) = self.writer {
            std::os::unix::fs::fchown(&log, Some(writer.uid), Some(writer.gid))?;
        }
        let file = PlanFile {
            version: VERSION,
            plan: self.clone(),
        };
        let json = serde_json::to_vec(&file).expect("paths from Nomad are UTF-8, so a plan is JSON");
        let unfinished = self.dir.join("plan.json.new");
        private()
            .write(true)
            .create(true)
            .truncate(true)
            .open(&unfinished)?
            .write_all(&json)?;
        std::fs::rename(unfinished, self.dir.join("plan.json"))
    }

    /// Reads a plan back.
    ///
    /// # Errors
    /// Of the file system, or that it is no plan of a version known here.
    pub(super) fn read(dir: &Path) -> io::Result<Self> {
        let json = std::fs::read(dir.join("plan.json"))?;
        let file: PlanFile = serde_json::from_slice(&json)?;
        if file.version != VERSION {
            return Err(io::Error::other(format!(
                "plan.json has version {}, known is {VERSION}",
                file.version
            )));
        }
        Ok(Self {
            dir: dir.to_owned(),
            ..file.plan
        })
    }

    /// Takes back that the container has ended and that all was delivered.
    pub(super) fn reopen(&self) -> io::Result<()> {
        remove_if_there(&self.dir.join("ended"))?;
        let mut file = PositionFile::open(self)?;
        let unfinished = Position {
            finished: false,
            ..file.last()
        };
        file.keep(unfinished)
    }

    pub(super) fn mark_ended(&self) -> io::Result<()> {
        private()
            .write(true)
            .create(true)
            .truncate(false)
            .open(self.dir.join("ended"))
            .map(drop)
    }

    pub(super) fn is_marked_ended(&self) -> bool {
        self.dir.join("ended").exists()
    }

    /// Keeps the reason for which a log process ended before its time.
    pub(super) fn tell_failure(&self, failure: &str) {
        // Where this fails, nobody is left to tell.
        let _ = private()
            .write(true)
            .create(true)
            .truncate(true)
            .open(self.dir.join("failure"))
            .and_then(|mut file| file.write_all(failure.as_bytes()));
    }

    pub(super) fn failure(&self) -> Option<String> {
        std::fs::read_to_string(self.dir.join("failure")).ok()
    }

    /// The position as it is now, by whoever writes it.
    pub(super) fn position(&self) -> Position {
        PositionFile::parse(&std::fs::read(self.dir.join("position")).unwrap_or_default()).unwrap_or_default()
    }
}

/// The file in a log directory that conmon writes.
pub(super) fn container_log(dir: &Path) -> PathBuf {
    dir.join("container.log")
}

impl Position {
    /// Whether a log process has been at work, and so has opened every FIFO that had a reader.
    pub(super) fn is_begun(&self) -> bool {
        self.inode != 0
    }
}

impl PositionFile {
    /// Opens it; a new or damaged one says "from the start".
    pub(super) fn open(plan: &LogPlan) -> io::Result<Self> {
        Self::open_at(&plan.dir.join("position"))
    }

    /// As [`PositionFile::open`], of what the journal has.
    pub(super) fn open_journal(plan: &LogPlan) -> io::Result<Self> {
        Self::open_at(&plan.dir.join("journal"))
    }

    fn open_at(path: &Path) -> io::Result<Self> {
        let mut file = private()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(path)?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(Self {
            file,
            last: Self::parse(&bytes).unwrap_or_default(),
        })
    }

    pub(super) fn last(&self) -> Position {
        self.last
    }

    /// Keeps a position over the death of this process (not of the host: its containers die with it).
    pub(super) fn keep(&mut self, position: Position) -> io::Result<()> {
        if position == self.last {
            return Ok(());
        }
        let mut bytes = serde_json::to_vec(&position).expect("numbers and words are JSON");
        assert!(
            bytes.len() <= POSITION_BYTES,
            "four 20-digit numbers and some words are shorter"
        );
        bytes.resize(POSITION_BYTES, b' ');
        self.file.write_all_at(&bytes, 0)?;
        self.last = position;
        Ok(())
    }

    fn parse(bytes: &[u8]) -> Option<Position> {
        serde_json::from_slice(bytes).ok()
    }
}

impl LogLock {
    /// The lock, with our pid in it; `None` if another process has it.
    pub(super) fn take(plan: &LogPlan) -> io::Result<Option<Self>> {
        let file = private()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(plan.dir.join("lock"))?;
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => {
                lock.set_len(0)?;
                lock.write_all_at(format!("{}\n", std::process::id()).as_bytes(), 0)?;
                Ok(Some(Self { _lock: lock }))
            }
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(None),
            Err((_, errno)) => Err(errno.into()),
        }
    }

    /// The pid of the process that holds the lock now; `None` if nobody does.
    pub(super) fn holder(plan: &LogPlan) -> io::Result<Option<i32>> {
        let mut file = match File::open(plan.dir.join("lock")) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut text = String::new();
        file.read_to_string(&mut text)?;
        match Flock::lock(file, FlockArg::LockSharedNonblock) {
            Ok(_free) => Ok(None),
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(text.trim().parse().ok()),
            Err((_, errno)) => Err(errno.into()),
        }
    }
}

/// Files of tasks are nobody's but ours.
fn private() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.mode(0o600);
    options
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::logs::record::Within;

    fn plan(dir: &tempfile::TempDir) -> LogPlan {
        LogPlan {
            dir: dir.path().join("log"),
            stdout: "/o".into(),
            stderr: "/e".into(),
            ..LogPlan::default()
        }
    }

    #[test]
    fn a_plan_comes_back_and_an_unknown_version_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir);
        plan.make().unwrap();
        assert_eq!(LogPlan::read(&plan.dir).unwrap(), plan);
        std::fs::write(
            plan.dir.join("plan.json"),
            r#"{"version":9,"dir":"","stdout":"","stderr":""}"#,
        )
        .unwrap();
        assert!(LogPlan::read(&plan.dir).unwrap_err().to_string().contains("version 9"));
    }

    #[test]
    fn a_position_is_kept_and_a_damaged_one_is_the_start() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir);
        plan.make().unwrap();
        let there = Cursor {
            offset: u64::MAX,
            within: Within::Partial,
        };
        let position = Position {
            inode: u64::MAX,
            stdout: there,
            stderr: there,
            finished: false,
        };
        PositionFile::open(&plan).unwrap().keep(position).unwrap();
        assert_eq!(PositionFile::open(&plan).unwrap().last(), position);
        assert_eq!(plan.position(), position);
        std::fs::write(plan.dir.join("position"), "{\"inode\":").unwrap();
        assert_eq!(plan.position(), Position::default());
    }

    #[test]
    fn one_process_at_a_time_holds_the_lock() {
        let dir = tempfile::tempdir().unwrap();
        let plan = plan(&dir);
        plan.make().unwrap();
        assert_eq!(LogLock::holder(&plan).unwrap(), None);
        let lock = LogLock::take(&plan).unwrap().expect("nobody has it");
        assert!(LogLock::take(&plan).unwrap().is_none());
        assert_eq!(LogLock::holder(&plan).unwrap(), Some(std::process::id().cast_signed()));
        drop(lock);
        assert!(LogLock::take(&plan).unwrap().is_some());
    }
}
