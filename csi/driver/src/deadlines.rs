//! How long a call may take, and what it was doing when it took longer.
//!
//! Nomad's node calls have no deadline of their own (rule 1): one that hangs freezes its volume on the node for ever.
//! So every call ends within these limits, with a status that names the step it was at.
//! Callers: the three services. Absent: the limits of single steps (a probe, a mount), which are with those steps.

use std::future::Future;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::error::DriverError;

/// 110 s: Nomad gives a controller call 120 s in all, dialling included. Ending first, our text arrives and not
/// Nomad's.
pub const CONTROLLER_MAX: Duration = Duration::from_secs(110);

/// 60 s: a node call that Nomad may repeat. What goes on behind it ends by itself, and the next call finds it done.
pub const NODE_MAX: Duration = Duration::from_secs(60);

const _: () = assert!(CONTROLLER_MAX.as_secs() < 120, "Nomad's own limit must not come first");

/// Where a call is. Cheap to clone; all clones tell the same.
#[derive(Debug, Clone)]
pub struct Progress(Arc<Mutex<String>>);

impl Progress {
    /// A call that has done nothing yet.
    pub fn new() -> Self {
        Self(Arc::new(Mutex::new("beginning".to_owned())))
    }

    /// Says what comes next, as a participle: "mounting the volume".
    pub fn at(&self, step: impl Into<String>) {
        *self.0.lock().expect("nobody panics while holding a text") = step.into();
    }

    /// The step said last.
    pub fn step(&self) -> String {
        self.0.lock().expect("nobody panics while holding a text").clone()
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

/// Runs the work of a call, at most for `limit`.
///
/// # Errors
/// `Deadline` with the step that `work` was at; otherwise what `work` returns.
pub async fn within<T>(
    rpc: &'static str,
    limit: Duration,
    work: impl AsyncFnOnce(Progress) -> Result<T, DriverError>,
) -> Result<T, DriverError> {
    let progress = Progress::new();
    let timed = tokio::time::timeout(limit, work(progress.clone()));
    match timed.await {
        Ok(outcome) => outcome,
        Err(_) => Err(DriverError::Deadline {
            rpc,
            limit,
            step: progress.step(),
        }),
    }
}

/// Runs work that must not stop half-way: it goes on even if whoever waits for it gives up.
///
/// # Errors
/// What `work` returns. A panic inside `work` goes on in the caller.
pub async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, DriverError>> + Send + 'static,
) -> Result<T, DriverError> {
    match tokio::spawn(work).await {
        Ok(outcome) => outcome,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            Err(_) => Err(DriverError::Stopping),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Rule 1: a call that hangs ends at its limit, and names where it hung.
    #[tokio::test(start_paused = true)]
    async fn a_call_that_hangs_ends_at_its_limit_and_names_its_step() {
        let hang = async |progress: Progress| {
            progress.at("waiting for the engine");
            std::future::pending::<Result<(), DriverError>>().await
        };
        let error = within("NodeStageVolume", NODE_MAX, hang).await.unwrap_err();
        assert_eq!(
            error.to_string(),
            "NodeStageVolume did not end within 60 s: it was waiting for the engine"
        );
        assert_eq!(within("NodeGetInfo", NODE_MAX, async |_| Ok(7)).await.unwrap(), 7);
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_must_end_goes_on_after_its_waiter_gave_up() {
        let (tell, told) = tokio::sync::oneshot::channel();
        let work = to_the_end(async move {
            tokio::time::sleep(Duration::from_secs(5)).await;
            tell.send(()).expect("the test waits");
            Ok(())
        });
        assert!(tokio::time::timeout(Duration::from_secs(1), work).await.is_err());
        told.await.unwrap();
    }
}
