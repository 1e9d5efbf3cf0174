//! The ends of a task: StopTask, SignalTask, DestroyTask.
//! Invariants: each of them may be repeated, and one that comes too late is a success: Nomad cannot be told "not found".
//! The exit code stays readable until DestroyTask. No call here uses Podman's own stop, whose timeouts are whole seconds.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::signal::Signal;

use crate::error::DriverError;
use crate::logs::{TaskLogs, log_dir};
use crate::plugin::Plugin;
use crate::podman::Podman;
use crate::spec;
use crate::task::{Phase, Task};

/// 30 s from SIGKILL to the end: a process in an uninterruptible read of a slow disk may need seconds. After it StopTask fails,
/// and Nomad tries again.
const KILL_GRACE: Duration = Duration::from_secs(30);

/// 5 s for the log process to hand over what the program wrote last; what is not taken by then is lost with the container.
const DRAIN_GRACE: Duration = Duration::from_secs(5);

/// Asks a task to end, waits, then kills it. `signal` is the job's `kill_signal`; empty: the image's own.
///
/// # Errors
/// `UnknownSignal`, `Podman`, `WillNotDie`. A task that nobody knows is a success.
pub async fn stop(plugin: &Plugin, id: &str, timeout: Duration, signal: &str) -> Result<(), DriverError> {
    let Some(task) = plugin.roster.get(id) else {
        tracing::debug!(task = id, "stop of a task that is gone");
        return Ok(());
    };
    let signal = if signal.is_empty() {
        task.handle.stop_signal.clone()
    } else {
        known(signal)?
    };
    let signal = if signal.is_empty() {
        "SIGTERM".to_owned()
    } else {
        signal
    };
    if task.phase() != Phase::Running {
        return Ok(());
    }
    if !timeout.is_zero() {
        send(&task, &signal).await?;
        if tokio::time::timeout(timeout, task.ended()).await.is_ok() {
            return Ok(());
        }
        tracing::info!(task = id, signal, ?timeout, "the task did not end in time, killing it");
    }
    kill(&task).await
}

/// Sends a signal to a task.
///
/// # Errors
/// `UnknownTask`, `NotRunning`, `UnknownSignal`, `Podman`.
pub async fn signal(plugin: &Plugin, id: &str, signal: &str) -> Result<(), DriverError> {
    let task = plugin.task(id)?;
    let signal = known(signal)?;
    if task.phase() != Phase::Running {
        return Err(DriverError::NotRunning { id: id.to_owned() });
    }
    send(&task, &signal).await
}

/// Removes what is left of a task. Also for a task that this process does not know: its container is found by label.
///
/// # Errors
/// `StillRunning` without `force`, `Podman`, `WillNotDie`.
pub async fn destroy(plugin: &Plugin, id: &str, force: bool) -> Result<(), DriverError> {
    let Some(task) = plugin.roster.get(id) else {
        return destroy_unknown(plugin, id).await;
    };
    if task.phase() == Phase::Running {
        if !force {
            return Err(DriverError::StillRunning { id: id.to_owned() });
        }
        // First the end, then the removal: whoever waits for the task must learn how it ended.
        kill(&task).await?;
    }
    if let Some(logs) = task.take_logs() {
        end_logs(id, logs).await;
    }
    if task.handle.remove_container {
        let removed = task.podman.remove_container(&task.handle.container_id, true).await;
        removed.map_err(|source| DriverError::Podman {
            step: "remove the container",
            source,
        })?;
    }
    plugin.roster.remove(id);
    Ok(())
}

async fn end_logs(id: &str, logs: TaskLogs) {
    if !logs.drain(DRAIN_GRACE).await {
        tracing::warn!(task = id, "nobody read the last lines of the task's output");
    }
    if let Err(error) = logs.remove().await {
        // Nomad removes the allocation's directory, and this one with it.
        tracing::warn!(task = id, error = ?error, "cannot remove the task's log directory");
    }
}

/// After a failed recovery Nomad destroys a task that was never taken over, and starts it anew under another id.
async fn destroy_unknown(plugin: &Plugin, id: &str) -> Result<(), DriverError> {
    let labels = [
        (spec::TASK_ID_LABEL, id),
        (spec::DRIVER_LABEL, spec::DRIVER_LABEL_VALUE),
    ];
    let labels = labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into();
    let settings = plugin.settings();
    for service in settings.services.values() {
        // A service that does not answer cannot be helped by trying longer: the call must be quick, and the next start
        // of the task removes a container of its name.
        let Ok(found) = service.podman.list_containers(&labels).await else {
            continue;
        };
        for container in found.into_iter().filter_map(|listing| listing.id) {
            tracing::info!(
                task = id,
                container,
                "removing the container of a task that was not recovered"
            );
            end_logs_of(&*service.podman, &container).await;
            let removed = service.podman.remove_container(&container, true).await;
            removed.map_err(|source| DriverError::Podman {
                step: "remove the container",
                source,
            })?;
        }
    }
    Ok(())
}

/// Ends the log process of a container that is about to be removed. Its directory is known from the container itself.
pub(crate) async fn end_logs_of(podman: &dyn Podman, container: &str) {
    let Ok(Some(info)) = podman.inspect_container(container).await else {
        return;
    };
    let file = info.host_config.log_config.path.unwrap_or_default();
    let Some(dir) = Path::new(&file).parent().filter(|dir| *dir == log_dir_of(dir)) else {
        return;
    };
    if let Err(error) = TaskLogs::remove_dir(dir).await {
        tracing::warn!(container, error = ?error, "cannot remove the log directory of a container");
    }
}

/// What the directory would be called if it were a task's: a container of another making may log anywhere.
fn log_dir_of(dir: &Path) -> PathBuf {
    let task = dir.parent();
    let (alloc, name) = (task.and_then(Path::parent), task.and_then(Path::file_name));
    match (alloc, name) {
        (Some(alloc), Some(name)) => log_dir(alloc, &name.to_string_lossy()),
        _ => PathBuf::new(),
    }
}

async fn send(task: &Arc<Task>, signal: &str) -> Result<(), DriverError> {
    match task.podman.kill_container(&task.handle.container_id, signal).await {
        Ok(()) => Ok(()),
        // Gone: nobody is left to tell, and the wait ends by itself.
        Err(error) if error.is_not_found() => Ok(()),
        Err(source) => Err(DriverError::Podman {
            step: "signal the container",
            source,
        }),
    }
}

async fn kill(task: &Arc<Task>) -> Result<(), DriverError> {
    send(task, "SIGKILL").await?;
    match tokio::time::timeout(KILL_GRACE, task.ended()).await {
        Ok(_) => Ok(()),
        Err(_) => Err(DriverError::WillNotDie {
            container: task.handle.container_id.clone(),
            seconds: KILL_GRACE.as_secs(),
        }),
    }
}

/// A signal in the form that Podman takes: SIGHUP, HUP, 1, SIGRTMIN+3.
fn known(name: &str) -> Result<String, DriverError> {
    let upper = name.trim().to_ascii_uppercase();
    let full = if upper.starts_with("SIG") {
        upper.clone()
    } else {
        format!("SIG{upper}")
    };
    let number = upper.parse::<i32>().is_ok_and(|number| (1..=64).contains(&number));
    if number {
        return Ok(upper);
    }
    let real_time = full.strip_prefix("SIGRTMIN").or_else(|| full.strip_prefix("SIGRTMAX"));
    let offset = |rest: &str| {
        rest.strip_prefix(['+', '-'])
            .is_some_and(|number| number.parse::<u8>().is_ok())
    };
    let real_time = real_time.is_some_and(|rest| rest.is_empty() || offset(rest));
    if real_time || full.parse::<Signal>().is_ok() {
        return Ok(full);
    }
    Err(DriverError::UnknownSignal { name: name.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (name, want) in [
            ("SIGHUP", "SIGHUP"),
            ("hup", "SIGHUP"),
            ("9", "9"),
            ("SIGRTMIN+3", "SIGRTMIN+3"),
            ("rtmin", "SIGRTMIN"),
        ] {
            assert_eq!(known(name).unwrap(), want);
        }
        for bad in ["", "SIGNOPE", "0", "65", "-1", "SIGRTMIN+x"] {
            assert!(matches!(known(bad), Err(DriverError::UnknownSignal { .. })), "{bad:?}");
        }
    }
}
