//! A task's output on its way to Nomad.
//!
//! conmon writes both streams into a private file; a process of its own, started here, takes them apart again and
//! writes Nomad's FIFOs (see `logs/relay.rs`). The container never waits for a reader, a reader never sees conmon's
//! prefixes, and the plugin may die at any time.
//!
//! Here is the plugin's side: it starts that process, starts it again should it die, and tells it that the container has
//! ended. Invariant: while either of the two lives, Nomad's reader sees no end of file. Called by start, recover, wait
//! and destroy.

mod journal;
mod lane;
mod plan;
mod record;
mod relay;

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use nix::sys::signal::Signal;
use nix::unistd::Pid;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use crate::pidfd::PidFd;
use crate::podman::LogConfiguration;
pub use journal::{JOURNAL_SOCKET, JournalPlan};
use plan::LogLock;
pub use plan::LogPlan;

/// The first argument that makes the plugin's binary a log process.
const RELAY_ARGUMENT: &str = "log-relay";

/// conmon starts the file anew after this many bytes, losing what was not read; so never (4 EiB).
const LOG_BYTES_MAX: i64 = 1 << 62;

/// Between two tries to start a log process that does not stay.
const RESTART_WAIT_MIN: Duration = Duration::from_millis(20);

/// The longest of these waits.
const RESTART_WAIT_MAX: Duration = Duration::from_secs(5);

/// Between tries to hold the FIFOs open too, until Nomad's reader is there.
const KEEP_OPEN_RETRY_MIN: Duration = Duration::from_millis(5);

/// The longest of these waits.
const KEEP_OPEN_RETRY_MAX: Duration = Duration::from_secs(1);

/// A second for a killed process to be gone: it only has to be scheduled once.
const KILL_LIMIT: Duration = Duration::from_secs(1);

/// Where the plugin's program is, to be started as log process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RelayProgram(PathBuf);

/// What can go wrong with a task's logs.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The directory or a file in it cannot be made.
    #[error("cannot make the log directory {}", dir.display())]
    Directory {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The process cannot be started.
    #[error("cannot start the log process of {}", dir.display())]
    Process {
        /// The directory.
        dir: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// The logs of one task, from before its container starts until it is destroyed. Dropping it leaves the log process
/// alone: it goes on without the plugin.
#[derive(Debug)]
pub struct TaskLogs {
    plan: LogPlan,
    finished: watch::Receiver<bool>,
    supervisor: AbortOnDropHandle<()>,
}

/// The FIFOs of a log process that is about to be replaced. It belongs to a start of the same task whose plugin died, which the
/// agent tries once more without starting its reader again: that must not see an end in between.
#[derive(Debug, Default)]
pub struct HeldOpen([Option<File>; 2]);

impl HeldOpen {
    /// Of the log process in a plan's directory; nothing if there is none. To be called before that one's container is removed,
    /// for it goes with the container.
    #[must_use]
    pub fn of(plan: &LogPlan) -> Self {
        if !matches!(LogLock::holder(plan), Ok(Some(_))) {
            // Were the plugin the only writer and killed, the reader would see an end.
            return Self::default();
        }
        Self([&plan.stdout, &plan.stderr].map(|path| lane::open_fifo(path).ok()))
    }
}

impl Default for RelayProgram {
    /// This very program, also after its file was replaced by an upgrade.
    fn default() -> Self {
        Self(PathBuf::from("/proc/self/exe"))
    }
}

impl RelayProgram {
    /// Another program, for hosts of the driver that are not the plugin itself.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self(path.into())
    }
}

/// The log directory of a task, below the allocation's directory and never mounted into containers. Nomad removes it with
/// the allocation, should the plugin never get to it. Not in the task's `private`: Nomad mounts a tmpfs of 1 MiB there.
#[must_use]
pub fn log_dir(alloc_dir: &Path, task_name: &str) -> PathBuf {
    alloc_dir.join(task_name).join(".podman-log")
}

/// What a container is created with so that its output can be carried from this directory.
#[must_use]
pub fn log_configuration(log_dir: &Path) -> LogConfiguration {
    LogConfiguration {
        driver: "k8s-file".to_owned(),
        path: Some(plan::container_log(log_dir).display().to_string()),
        size: Some(LOG_BYTES_MAX),
        options: BTreeMap::new(),
    }
}

/// The whole life of the process if its arguments make it a log process; its exit code then. For the first line of
/// `main`: no runtime, no logger, no thread must be there yet.
pub fn relay_main(arguments: impl IntoIterator<Item = OsString>) -> Option<i32> {
    let mut arguments = arguments.into_iter().skip(1);
    if arguments.next()? != RELAY_ARGUMENT {
        return None;
    }
    let Some(dir) = arguments.next() else { return Some(2) };
    ignore_lease_signal();
    Some(relay::run(Path::new(&dir)))
}

impl TaskLogs {
    /// Begins the logs of a container that is about to be started. What an earlier container of the task left in the
    /// directory is gone afterwards. Must be called inside a runtime.
    ///
    /// # Errors
    /// [`LogError`], as its variants say. Nothing is left running then.
    pub async fn start(plan: LogPlan, program: &RelayProgram) -> Result<Self, LogError> {
        let held = HeldOpen::of(&plan);
        Self::start_after(held, plan, program).await
    }

    /// As [`TaskLogs::start`], after what was held open of an earlier start.
    ///
    /// # Errors
    /// As [`TaskLogs::start`].
    pub async fn start_after(held: HeldOpen, plan: LogPlan, program: &RelayProgram) -> Result<Self, LogError> {
        let directory = |source| LogError::Directory {
            dir: plan.dir.clone(),
            source,
        };
        end_process(&plan).await.map_err(directory)?;
        plan.make().map_err(directory)?;
        Self::supervise(plan, program.clone(), held.0)
    }

    /// Goes on with the logs of a container that was started earlier, and may have ended since. The log process of
    /// then is taken over if it lives and started again at its last position if it does not.
    ///
    /// # Errors
    /// [`LogError::Directory`] if there is no plan in the directory: nothing can be known of these logs.
    pub fn resume(dir: &Path, program: &RelayProgram) -> Result<Self, LogError> {
        let plan = LogPlan::read(dir).map_err(|source| LogError::Directory {
            dir: dir.to_owned(),
            source,
        })?;
        Self::supervise(plan, program.clone(), [None, None])
    }

    /// Says that the container of these logs was started again after its end, so that they are not finished after all. To
    /// be followed by [`TaskLogs::resume`].
    ///
    /// # Errors
    /// Of the file system.
    pub fn reopen(dir: &Path) -> Result<(), LogError> {
        let reopened = LogPlan::read(dir).and_then(|plan| plan.reopen());
        reopened.map_err(|source| LogError::Directory {
            dir: dir.to_owned(),
            source,
        })
    }

    /// What the streams come from and go to.
    #[must_use]
    pub fn plan(&self) -> &LogPlan {
        &self.plan
    }

    /// Says that the container has ended, and waits until Nomad has read the last byte; false if that takes longer than
    /// `limit`. The log process goes on trying in any case.
    pub async fn drain(&self, limit: Duration) -> bool {
        if let Err(error) = self.plan.mark_ended() {
            tracing::warn!(dir = %self.plan.dir.display(), %error, "cannot tell the log process of the task's end");
        }
        let mut finished = self.finished.clone();
        let done = tokio::time::timeout(limit, finished.wait_for(|finished| *finished)).await;
        matches!(done, Ok(Ok(_)))
    }

    /// Ends the log process, read or not, and removes the directory.
    ///
    /// # Errors
    /// Of the file system. A directory that is gone is a success.
    pub async fn remove(self) -> Result<(), LogError> {
        let plan = self.plan.clone();
        drop(self);
        Self::remove_dir(&plan.dir).await
    }

    /// As [`TaskLogs::remove`], for logs that could not be resumed.
    ///
    /// # Errors
    /// As [`TaskLogs::remove`].
    pub async fn remove_dir(dir: &Path) -> Result<(), LogError> {
        let gone = |source: io::Error| match source.kind() {
            io::ErrorKind::NotFound => Ok(()),
            _ => Err(LogError::Directory {
                dir: dir.to_owned(),
                source,
            }),
        };
        if let Ok(plan) = LogPlan::read(dir) {
            end_process(&plan).await.or_else(gone)?;
        }
        std::fs::remove_dir_all(dir).or_else(gone)
    }

    fn supervise(plan: LogPlan, program: RelayProgram, keepers: [Option<File>; 2]) -> Result<Self, LogError> {
        // The first start is tried here, so that a start that cannot succeed fails the task.
        let first = spawn(&plan, &program).map_err(|source| LogError::Process {
            dir: plan.dir.clone(),
            source,
        })?;
        let (tell, finished) = watch::channel(false);
        let supervised = plan.clone();
        let supervisor = AbortOnDropHandle::new(tokio::spawn(async move {
            supervise(&supervised, &program, first, keepers).await;
            let _ = tell.send(true);
        }));
        Ok(Self {
            plan,
            finished,
            supervisor,
        })
    }
}

impl TaskLogs {
    /// Whether the plugin still looks after the log process.
    #[must_use]
    pub fn is_supervised(&self) -> bool {
        !self.supervisor.is_finished()
    }
}

/// Keeps a log process there until its work is done. Returns when it is, with the FIFOs closed.
async fn supervise(
    plan: &LogPlan,
    program: &RelayProgram,
    first: tokio::process::Child,
    mut keepers: [Option<File>; 2],
) {
    let mut process = Some(first);
    let mut wait = RESTART_WAIT_MIN;
    loop {
        let begun = tokio::time::Instant::now();
        let life = async {
            if let Some(child) = &mut process {
                let _ = child.wait().await;
            }
            // Another process may have had the lock: one that a plugin before this one started.
            other_process_ended(plan).await
        };
        let lived = tokio::select! {
            lived = life => lived,
            never = keep_open(plan, &mut keepers) => never,
        };
        if plan.position().finished || !plan.dir.exists() {
            return;
        }
        let failure = plan.failure();
        tracing::warn!(dir = %plan.dir.display(), ?failure, error = lived.err().map(tracing::field::display),
            "the log process ended before its time; starting another one");
        if begun.elapsed() > RESTART_WAIT_MAX {
            wait = RESTART_WAIT_MIN;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(RESTART_WAIT_MAX);
        process = match spawn(plan, program) {
            Ok(child) => Some(child),
            Err(error) => {
                tracing::error!(dir = %plan.dir.display(), %error, "cannot start the log process");
                None
            }
        };
    }
}

/// Holds both FIFOs open for writing as soon as they have a reader: should the log process die, the reader sees no end.
async fn keep_open(plan: &LogPlan, keepers: &mut [Option<File>; 2]) -> ! {
    let mut wait = KEEP_OPEN_RETRY_MIN;
    loop {
        // Never before the log process: were the plugin the only writer and killed, the reader would see an end.
        let first = plan.position().is_begun();
        for (keeper, path) in keepers.iter_mut().zip([&plan.stdout, &plan.stderr]) {
            if first && keeper.is_none() {
                *keeper = lane::open_fifo(path).ok();
            }
        }
        if keepers.iter().all(Option::is_some) {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(KEEP_OPEN_RETRY_MAX);
    }
}

/// Returns once no process holds the directory's lock.
async fn other_process_ended(plan: &LogPlan) -> io::Result<()> {
    while let Some(pid) = LogLock::holder(plan)? {
        let process = PidFd::open(Pid::from_raw(pid))?;
        // Only a process that still has the lock now is the one that the descriptor means.
        if LogLock::holder(plan)? == Some(pid) {
            process.ended().await?;
        }
    }
    Ok(())
}

/// Kills the log process of a directory, if there is one, and waits until it is gone.
async fn end_process(plan: &LogPlan) -> io::Result<()> {
    let Some(pid) = LogLock::holder(plan)? else {
        return Ok(());
    };
    let process = PidFd::open(Pid::from_raw(pid))?;
    if LogLock::holder(plan)? != Some(pid) {
        return Ok(());
    }
    process.signal(Signal::SIGKILL)?;
    let gone = tokio::time::timeout(KILL_LIMIT, other_process_ended(plan)).await;
    gone.unwrap_or_else(|_elapsed| Err(io::Error::other(format!("process {pid} does not end"))))
}

fn spawn(plan: &LogPlan, program: &RelayProgram) -> io::Result<tokio::process::Child> {
    let mut command = std::process::Command::new(&program.0);
    // Nothing of the plugin's surroundings: Nomad's cookies and addresses must not reach a process that outlives it.
    command
        .arg0("nomad-driver-podman")
        .arg(RELAY_ARGUMENT)
        .arg(&plan.dir)
        .env_clear()
        .current_dir("/");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    // SAFETY: between fork and exec only two system calls are made, with constant arguments; nothing is allocated.
    unsafe {
        command.pre_exec(|| {
            // A session of its own: no signal for the plugin's process group reaches it.
            nix::unistd::setsid()?;
            // Whatever the plugin inherited goes no further. Close-on-exec rather than closed, since the standard
            // library tells its parent through one of them that exec has failed. Before Linux 5.11 this call fails, and
            // only what was opened without the flag is inherited.
            libc::close_range(3, libc::c_uint::MAX, libc::CLOSE_RANGE_CLOEXEC.cast_signed());
            Ok(())
        });
    }
    tokio::process::Command::from(command).spawn()
}

/// See `Log::writers` in `relay.rs`.
fn ignore_lease_signal() {
    // SAFETY: SIG_IGN installs no handler, so nothing runs in signal context.
    unsafe {
        libc::signal(libc::SIGIO, libc::SIG_IGN);
    }
}
