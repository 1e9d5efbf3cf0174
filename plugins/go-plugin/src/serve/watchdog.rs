//! Ends a plugin that hangs. A host sees that a plugin died and launches it again, but it never looks whether one that lives
//! still answers: Nomad sends no pings, so a hung driver would keep its node's tasks out of reach until a person comes.
//! What may never happen here: ending a plugin that was only stopped for a while. Time is counted in the watching thread's own
//! waits, which stand still with the process.

use std::{
    future, io,
    sync::mpsc::{self, RecvTimeoutError},
    thread,
    time::Duration,
};

use tokio::runtime::Handle;

/// 10 s between two questions, and for an answer: a healthy runtime needs microseconds.
const INTERVAL: Duration = Duration::from_secs(10);

/// 6 questions without an answer, so one minute: long enough for any disk that is only slow.
const MISSES_MAX: u32 = 6;

/// How patient the watchdog is.
#[derive(Clone, Copy, Debug)]
pub(super) struct Patience {
    interval: Duration,
    misses_max: u32,
}

impl Patience {
    /// For a plugin in use.
    pub(super) const USUAL: Self = Self {
        interval: INTERVAL,
        misses_max: MISSES_MAX,
    };
}

/// Watches `runtime` from a thread of its own, and calls `hung` once if it stops answering. Ends with the runtime.
///
/// # Errors
/// If the thread cannot be started.
pub(super) fn start(runtime: &Handle, patience: Patience, hung: impl FnOnce() + Send + 'static) -> io::Result<()> {
    let runtime = runtime.clone();
    thread::Builder::new().name("watchdog".into()).spawn(move || {
        if watch(&runtime, patience) == End::Hung {
            hung();
        }
    })?;
    Ok(())
}

#[derive(Debug, PartialEq, Eq)]
enum End {
    Hung,
    Shutdown,
}

fn watch(runtime: &Handle, patience: Patience) -> End {
    // Held by a task that never ends, and dropped with the runtime.
    let (alive, shutdown) = mpsc::channel::<()>();
    runtime.spawn(async move {
        future::pending::<()>().await;
        drop(alive);
    });
    while shutdown.recv_timeout(patience.interval) == Err(RecvTimeoutError::Timeout) {
        let (answer, answers) = mpsc::channel();
        runtime.spawn(async move { answer.send(()) });
        let mut misses = 0;
        while answers.recv_timeout(patience.interval) == Err(RecvTimeoutError::Timeout) {
            misses += 1;
            if misses >= patience.misses_max {
                return End::Hung;
            }
        }
    }
    End::Shutdown
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHORT: Patience = Patience {
        interval: Duration::from_millis(20),
        misses_max: 50,
    };

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap()
    }

    fn watched(runtime: &tokio::runtime::Runtime) -> mpsc::Receiver<()> {
        let (hung, told) = mpsc::channel();
        start(runtime.handle(), SHORT, move || hung.send(()).unwrap()).unwrap();
        told
    }

    #[test]
    fn a_runtime_whose_workers_are_blocked_is_noticed() {
        let runtime = runtime();
        let told = watched(&runtime);
        // It has answered for a while when it hangs.
        assert_eq!(told.recv_timeout(5 * SHORT.interval), Err(RecvTimeoutError::Timeout));
        let (release, blocked) = mpsc::channel::<()>();
        runtime.spawn(async move { blocked.recv() });
        assert_eq!(told.recv_timeout(Duration::from_secs(10)), Ok(()));
        drop(release);
    }

    /// Goal: no healthy plugin is ended. Method: a runtime that works for longer than a hang may last, and then ends.
    #[test]
    fn a_runtime_that_works_and_then_ends_is_left_alone() {
        let runtime = runtime();
        let told = watched(&runtime);
        assert_eq!(
            told.recv_timeout(Duration::from_millis(1500)),
            Err(RecvTimeoutError::Timeout)
        );
        drop(runtime);
        // The thread goes, and takes its end of the channel along.
        assert_eq!(
            told.recv_timeout(Duration::from_secs(10)),
            Err(RecvTimeoutError::Disconnected)
        );
    }
}
