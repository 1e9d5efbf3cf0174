//! Engines as children of the keeper.

use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, kill};
use nix::unistd::Pid;

/// How to start an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineCommand {
    /// The program.
    pub program: PathBuf,
    /// Its arguments, to which the keeper adds where it listens.
    pub args: Vec<OsString>,
}

/// A program that engines are started from, as it was when somebody said so: its file may be deleted or replaced since, as the one
/// that a job has brought is when the job's next version comes.
#[derive(Debug, Clone)]
pub struct Program {
    command: EngineCommand,
    file: Arc<File>,
}

impl Program {
    /// Holds the program of this command.
    ///
    /// # Errors
    /// `NotFound` and what else the system says of its file.
    pub fn hold(command: &EngineCommand) -> io::Result<Self> {
        Ok(Self {
            command: command.clone(),
            file: Arc::new(File::open(&command.program)?),
        })
    }

    /// Where it was.
    pub fn path(&self) -> &Path {
        &self.command.program
    }

    /// Where it can be run from: its own place while it is there, which is what people look for in a list of processes.
    fn runs_from(&self) -> PathBuf {
        let is_there = std::fs::metadata(self.path())
            .and_then(|found| Ok((found, self.file.metadata()?)))
            .is_ok_and(|(found, held)| (found.dev(), found.ino()) == (held.dev(), held.ino()));
        match is_there {
            true => self.path().to_path_buf(),
            false => format!("/proc/self/fd/{}", self.file.as_raw_fd()).into(),
        }
    }
}

/// How far a process is from its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// It lives.
    Lives,
    /// Killed, but a thread may still take something from a connection and answer it to nobody.
    Dies,
    /// Nothing of it will do anything any more. A thread may still wait in the kernel for a mount of its own, which keeps the
    /// process from being collected until the next engine answers.
    Dead,
}

/// The state of a thread, as the kernel writes it after the name, which ends with the last bracket.
fn state_in(stat: &str) -> Option<char> {
    stat.rsplit_once(')')?.1.trim_start().chars().next()
}

/// `first` is the first thread's state: only a killed process goes on without it. The others end one after another, each when
/// the kernel runs it again, which takes its time on a busy machine.
fn life_of(first: char, mut all: impl Iterator<Item = char>) -> Life {
    match first {
        'Z' | 'X' if all.all(|state| matches!(state, 'Z' | 'X' | 'D')) => Life::Dead,
        'Z' | 'X' => Life::Dies,
        _ => Life::Lives,
    }
}

/// One engine, running or just ended.
#[derive(Debug)]
pub struct Engine {
    child: Child,
    /// What it was started from.
    pub program: Program,
    /// When it said last that it is about to serve what it was given.
    pub adopts_since: Option<Instant>,
    /// Since when it runs.
    pub since: Instant,
    /// Since when it serves.
    pub serves_since: Option<Instant>,
}

impl Engine {
    /// Starts one that knows its keeper at `socket`.
    ///
    /// # Errors
    /// What the system refuses.
    pub fn start(program: &Program, socket: &Path) -> io::Result<Self> {
        let mut process = Command::new(program.runs_from());
        process
            .arg0(program.path())
            .args(&program.command.args)
            .arg("--keeper")
            .arg(socket)
            .stdin(Stdio::null());
        // What a service manager has said to the keeper.
        for name in ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"] {
            process.env_remove(name);
        }
        // SAFETY: between fork and exec only the mask of signals is set, which is async-signal-safe, allocates nothing and takes
        // no lock. The keeper's own mask would make the engine deaf.
        unsafe {
            process.pre_exec(|| SigSet::empty().thread_set_mask().map_err(io::Error::from));
        }
        let child = process.spawn()?;
        // Where memory is short the engine goes first: the keeper keeps what it had.
        let score = format!("/proc/{}/oom_score_adj", child.id());
        if let Err(error) = std::fs::write(score, "0") {
            tracing::debug!(%error, "the engine's score stays the keeper's");
        }
        Ok(Self {
            child,
            program: program.clone(),
            adopts_since: None,
            since: Instant::now(),
            serves_since: None,
        })
    }

    /// Its process id.
    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }

    /// How it ended, if it did.
    pub fn has_ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().ok().flatten()
    }

    /// Whether it has ended, though the kernel may not say so yet.
    pub fn life(&self) -> Life {
        let of_thread = |path: PathBuf| state_in(&std::fs::read_to_string(path.join("stat")).ok()?);
        let process = PathBuf::from(format!("/proc/{}", self.pid()));
        let Some(first) = of_thread(process.clone()) else {
            return Life::Lives;
        };
        let threads = std::fs::read_dir(process.join("task")).into_iter().flatten();
        // One that ended since it was listed has no state any more.
        life_of(first, threads.flatten().filter_map(|entry| of_thread(entry.path())))
    }

    /// For how long it has served.
    pub fn served_for(&self) -> Duration {
        self.serves_since.map_or(Duration::ZERO, |since| since.elapsed())
    }

    /// Ends it at once.
    pub fn kill(&self) {
        self.signal(Signal::SIGKILL);
    }

    /// Tells it to end.
    pub fn terminate(&self) {
        self.signal(Signal::SIGTERM);
    }

    fn signal(&self, signal: Signal) {
        // It is our child and was not waited for: the number is still its own.
        if let Err(error) = kill(Pid::from_raw(self.pid()), signal) {
            tracing::debug!(%error, pid = self.pid(), "a signal was not sent");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_state_of_a_thread_follows_its_name_whatever_that_is() {
        assert_eq!(state_in("12 (tokio) worker) S 1 12"), Some('S'));
        assert_eq!(state_in("12 (pannier) Z 1 12"), Some('Z'));
        assert_eq!(state_in(""), None);
    }

    /// A connection is not given on while a thread of the engine before may still read from it: what that takes, nobody answers.
    #[test]
    fn an_engine_is_dead_when_none_of_its_threads_can_run() {
        assert_eq!(life_of('S', ['S', 'R', 'D'].into_iter()), Life::Lives);
        assert_eq!(
            life_of('D', ['D'].into_iter()),
            Life::Lives,
            "its first thread waits for a disk"
        );
        assert_eq!(life_of('Z', ['Z', 'R'].into_iter()), Life::Dies);
        assert_eq!(life_of('Z', ['Z', 'D', 'S'].into_iter()), Life::Dies);
        assert_eq!(life_of('Z', ['Z', 'D', 'X'].into_iter()), Life::Dead);
        assert_eq!(life_of('X', [].into_iter()), Life::Dead);
    }
}
