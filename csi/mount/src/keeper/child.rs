//! Engines as children of the keeper.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
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

/// One engine, running or just ended.
#[derive(Debug)]
pub struct Engine {
    child: Child,
    /// How it was started.
    pub command: EngineCommand,
    /// Everything was given to it.
    pub has_all: bool,
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
    pub fn start(command: &EngineCommand, socket: &Path) -> io::Result<Self> {
        let mut process = Command::new(&command.program);
        process
            .args(&command.args)
            .arg("--keeper")
            .arg(socket)
            .stdin(Stdio::null());
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
            command: command.clone(),
            has_all: false,
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

    /// True if it runs nothing any more, though a thread of it may still wait in the kernel.
    pub fn is_dead(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        // The state follows the name, which ends with the last bracket.
        stat.rsplit_once(')')
            .is_some_and(|(_, rest)| rest.trim_start().starts_with(['Z', 'X']))
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
