//! One task from its start to DestroyTask: its phase, and who waits for the end of it.
//!
//! Invariant: the end of a task is learned once, from Podman's wait, and stays readable until DestroyTask. It is never
//! lost by a caller that gives up, and never made up: a container that vanished ends the task with an error text.
//! Absent: who makes and removes containers (start.rs, stop.rs).

use std::sync::{Arc, Mutex, PoisonError};

use tokio::sync::watch;
use tokio::task::AbortHandle;

use crate::handle::Handle;
use crate::logs::TaskLogs;
use crate::oom::OomWatch;
use crate::podman::{ExitStatus, Podman, PodmanError};

/// Where a task is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Phase {
    /// Its container runs, as far as Podman has said.
    Running,
    /// Its container has ended.
    Ended(Exit),
}

/// How a task ended.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Exit {
    /// The exit code; 128 + n for a death by signal n.
    pub code: i32,
    /// The signal that ended it; 0: none.
    pub signal: i32,
    /// The kernel killed it for lack of memory.
    pub oom_killed: bool,
    /// When, RFC 3339 as Podman says it.
    pub finished_at: Option<String>,
    /// Why the exit code is not known.
    pub error: Option<String>,
}

/// A task that was started or recovered.
#[derive(Debug)]
pub struct Task {
    /// What is known of it.
    pub handle: Handle,
    /// The service that its container lives in.
    pub podman: Arc<dyn Podman>,
    phase: watch::Receiver<Phase>,
    watcher: AbortHandle,
    // Taken once, by DestroyTask; never held across an await.
    logs: Mutex<Option<TaskLogs>>,
}

/// The least exit code that means a death by signal.
const SIGNAL_BASE: i32 = 128;
/// The last real-time signal.
const SIGNAL_MAX: i32 = 64;

impl Exit {
    /// From what Podman says of the end.
    #[must_use]
    pub fn of(status: ExitStatus, finished_at: Option<String>) -> Self {
        let number = status.code - SIGNAL_BASE;
        let signal = if (1..=SIGNAL_MAX).contains(&number) { number } else { 0 };
        Self {
            code: status.code,
            signal,
            oom_killed: status.oom_killed,
            finished_at,
            error: None,
        }
    }

    /// For a container that somebody removed: nobody can say how it ended, so it counts as failed.
    #[must_use]
    pub fn lost(error: &PodmanError) -> Self {
        let error = Some(format!(
            "the container was removed by somebody else, its exit code is lost: {error}"
        ));
        Self {
            code: 1,
            error,
            ..Self::default()
        }
    }
}

impl Task {
    /// Begins to watch a container that runs or has ended. Must be called inside a runtime.
    #[must_use]
    pub fn watch(handle: Handle, podman: Arc<dyn Podman>, logs: Option<TaskLogs>, memory: Option<OomWatch>) -> Self {
        let (sender, phase) = watch::channel(Phase::Running);
        let (container, service) = (handle.container_id.clone(), Arc::clone(&podman));
        let watcher = tokio::spawn(async move {
            let mut exit = learn_exit(&container, &*service).await;
            // A program that survived the kill of one of its children did not end for lack of memory.
            if let Some(memory) = memory.filter(|_| exit.code != 0 && !exit.oom_killed) {
                exit.oom_killed = memory.seen().await;
            }
            tracing::info!(container, code = exit.code, oom_killed = exit.oom_killed, "task ended");
            // Receivers keep the value when the sender is gone, so the result outlives this watcher.
            let _ = sender.send(Phase::Ended(exit));
        });
        Self {
            handle,
            podman,
            phase,
            watcher: watcher.abort_handle(),
            logs: Mutex::new(logs),
        }
    }

    /// The logs, for whoever ends them; None when there are none, or somebody else ends them already.
    pub fn take_logs(&self) -> Option<TaskLogs> {
        self.logs.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// Where the task is now.
    #[must_use]
    pub fn phase(&self) -> Phase {
        self.phase.borrow().clone()
    }

    /// Waits for the end. Any number may wait, and giving up loses nothing.
    pub async fn ended(&self) -> Exit {
        let mut phase = self.phase.clone();
        let ended = phase.wait_for(|phase| matches!(phase, Phase::Ended(_))).await;
        match ended.map(|phase| phase.clone()) {
            Ok(Phase::Ended(exit)) => exit,
            // The watcher was aborted: DestroyTask came first, and took the container with it.
            Ok(Phase::Running) | Err(_) => Exit {
                code: SIGNAL_BASE + nix::libc::SIGKILL,
                signal: nix::libc::SIGKILL,
                error: Some("the task was destroyed while it ran".to_owned()),
                ..Exit::default()
            },
        }
    }
}

impl Drop for Task {
    fn drop(&mut self) {
        self.watcher.abort();
    }
}

async fn learn_exit(container: &str, podman: &dyn Podman) -> Exit {
    match podman.wait_exit(container).await {
        Ok(status) => {
            // Only for the time of the end: a failure to tell it must not hide the code.
            let info = podman.inspect_container(container).await.ok().flatten();
            Exit::of(status, info.and_then(|info| info.state.finished_at))
        }
        Err(error) => Exit::lost(&error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_death_by_signal_is_told_as_code_and_signal() {
        for (code, oom_killed, signal) in [
            (0, false, 0),
            (1, false, 0),
            (137, true, 9),
            (143, false, 15),
            (255, false, 0),
        ] {
            let exit = Exit::of(ExitStatus { code, oom_killed }, None);
            assert_eq!((exit.code, exit.signal, exit.oom_killed), (code, signal, oom_killed));
        }
    }
}
