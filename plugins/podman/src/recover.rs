//! RecoverTask: a running (or meanwhile ended) container is taken over from the driver state alone.
//!
//! Invariants: nothing here opens a FIFO or waits for long, since the agent's own start waits for it. A container that
//! ended while nobody watched is recovered too: its true exit code is what Nomad must hear. A Podman that does not
//! answer yet is no reason to fail, for then Nomad would destroy a container that runs well.

use std::sync::Arc;
use std::time::Duration;

use crate::error::DriverError;
use crate::events::Subject;
use crate::handle::Handle;
use crate::logs::TaskLogs;
use crate::oom::OomWatch;
use crate::plugin::Plugin;
use crate::podman::{ContainerInfo, Podman};
use crate::roster::Taken;
use crate::start::stop_signal;
use crate::task::Task;

/// 3 s for Podman to say what became of a container: the agent recovers its tasks one after the other.
const LOOK_LIMIT: Duration = Duration::from_secs(3);

/// 10 s for an ended container to run again (recover_stopped); after it Nomad starts the task anew.
const START_LIMIT: Duration = Duration::from_secs(10);

/// Takes a task over from its driver state.
///
/// # Errors
/// `Handle` for a state that cannot be read, `UnknownSocket`, `NotRecovered` for a container that is gone or never ran.
pub async fn recover(plugin: &Plugin, of: &Subject, state: &[u8]) -> Result<Arc<Task>, DriverError> {
    let mut handle = Handle::decode(state, of)?;
    if !of.task_id.is_empty() {
        handle.task_id.clone_from(&of.task_id);
    }
    let reservation = match plugin.roster.reserve(&handle.task_id) {
        Ok(reservation) => reservation,
        // The agent restarted and this plugin did not: the task was never lost.
        Err(Taken::Known(task)) => return Ok(task),
        Err(Taken::Starting) => return Err(DriverError::Starting { id: handle.task_id }),
    };
    let settings = plugin.settings();
    if handle.predecessor {
        handle.remove_container = settings.config.gc.container;
        handle.compute = settings.compute;
    }
    let service = settings.service(&handle.socket)?;
    let podman = Arc::clone(&service.podman);
    let look = podman.inspect_container(&handle.container_id);
    let pid = match service.within(LOOK_LIMIT, look).await {
        Some(Ok(info)) => {
            check(&handle, info.as_ref(), &*podman, settings.config.recover_stopped).await?;
            if let Some(info) = &info {
                complete(&mut handle, info);
            }
            info.and_then(|info| info.state.pid)
        }
        silent => {
            let error = silent.and_then(Result::err);
            service.found_silent();
            tracing::warn!(task = handle.task_id, error = ?error, "podman does not answer, taking the task over unseen");
            None
        }
    };
    let logs = resume_logs(plugin, &handle);
    tracing::info!(task = handle.task_id, container = handle.container_id, "recovered");
    let memory = pid.and_then(OomWatch::of);
    Ok(reservation.commit(Task::watch(handle, podman, logs, memory)))
}

/// What a predecessor's state does not have, the container does.
fn complete(handle: &mut Handle, info: &ContainerInfo) {
    if handle.stop_signal.is_empty() {
        handle.stop_signal = stop_signal(info);
    }
    if handle.started_at.is_empty() {
        handle.started_at = info.state.started_at.clone().unwrap_or_default();
    }
}

async fn check(
    handle: &Handle,
    info: Option<&ContainerInfo>,
    podman: &dyn Podman,
    recover_stopped: bool,
) -> Result<(), DriverError> {
    let lost = |state: String| DriverError::NotRecovered {
        container: handle.container_id.clone(),
        state,
    };
    let Some(info) = info else {
        return Err(lost("is gone".to_owned()));
    };
    if info.is_running() {
        return Ok(());
    }
    if info.has_ended() && !recover_stopped {
        return Ok(());
    }
    if info.has_ended() {
        let started = podman.start_container(&handle.container_id);
        let started = tokio::time::timeout(START_LIMIT, started).await;
        let started = started.map_err(|_| lost("has ended and does not start again in time".to_owned()))?;
        started.map_err(|error| lost(format!("has ended and cannot be started again: {error}")))?;
        if let Some(plan) = &handle.logs
            && let Err(error) = TaskLogs::reopen(&plan.dir)
        {
            tracing::warn!(task = handle.task_id, error = ?error, "cannot reopen the logs of a task that runs again");
        }
        return Ok(());
    }
    let status = info.state.status.as_deref().unwrap_or("in an unknown state");
    Err(lost(format!("is {status}, not running")))
}

/// A task whose logs cannot be collected any more is still a task that runs.
fn resume_logs(plugin: &Plugin, handle: &Handle) -> Option<TaskLogs> {
    let plan = handle.logs.as_ref()?;
    match TaskLogs::resume(&plan.dir, &plugin.relay) {
        Ok(logs) => Some(logs),
        Err(error) => {
            tracing::error!(task = handle.task_id, error = ?error, "cannot go on with the logs of a recovered task");
            plugin
                .events
                .emit(&handle.subject(), format!("Logs are not collected: {error}"));
            None
        }
    }
}
