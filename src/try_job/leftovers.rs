//! What a run that was killed may have left below its state directory: an engine process, mounts, files.
//!
//! Called before each run and after it. Touches nothing outside of the state directory.

use std::path::{Path, PathBuf};
use std::time::Duration;

use csi_driver::mountinfo;
use proto::engine::v1::engine_client::EngineClient;
use proto::engine::v1::{HealthRequest, ShutdownRequest};
use tonic::transport::Endpoint;

use super::TryError;

/// 5 s to connect to an engine that may be dead.
const DIAL_MAX: Duration = Duration::from_secs(5);

/// 30 s for an engine to flush and unmount everything.
const ENGINE_MAX: Duration = Duration::from_secs(30);

/// 50 ms between two looks at a process that ends.
const POLL: Duration = Duration::from_millis(50);

/// Asks the engine behind a socket to flush, unmount and end, and waits until its process is gone; kills it if it will
/// not go. Nothing happens if no engine listens.
pub async fn stop_engine(socket: &Path) {
    if !socket.exists() {
        return;
    }
    let Ok(endpoint) = Endpoint::from_shared(format!("unix:{}", socket.display())) else {
        return;
    };
    let Ok(Ok(channel)) = tokio::time::timeout(DIAL_MAX, endpoint.connect()).await else {
        return;
    };
    let mut engine = EngineClient::new(channel);
    let Ok(Ok(health)) = tokio::time::timeout(DIAL_MAX, engine.health(HealthRequest {})).await else {
        return;
    };
    let pid = health.into_inner().pid;
    drop(tokio::time::timeout(ENGINE_MAX, engine.shutdown(ShutdownRequest::default())).await);
    drop(engine);
    let Ok(pid) = i32::try_from(pid) else { return };
    let gone = tokio::time::timeout(DIAL_MAX, async {
        while Path::new("/proc").join(pid.to_string()).exists() {
            tokio::time::sleep(POLL).await;
        }
    });
    if gone.await.is_err() {
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

/// Mount points below a directory, the innermost first.
///
/// # Errors
/// `State` if the kernel's list cannot be read.
pub fn mounts_below(dir: &Path) -> Result<Vec<PathBuf>, TryError> {
    let table = mountinfo::of_this_process().map_err(|source| TryError::State {
        path: mountinfo::TABLE.into(),
        source,
    })?;
    let mut mounts: Vec<PathBuf> = table
        .into_iter()
        .map(|mount| mount.path)
        .filter(|path| path.starts_with(dir) && path != dir)
        .collect();
    mounts.reverse();
    Ok(mounts)
}

/// Ends what is left of a run in `dir`, then removes the directory.
///
/// # Errors
/// `State` if the directory cannot be removed.
pub async fn sweep(dir: &Path) -> Result<(), TryError> {
    if !dir.exists() {
        return Ok(());
    }
    if let Ok(entries) = std::fs::read_dir(dir) {
        for entry in entries.flatten() {
            stop_engine(&engine_socket(&entry.path())).await;
        }
    }
    for mount in mounts_below(dir)? {
        let _ = nix::mount::umount2(&mount, nix::mount::MntFlags::MNT_DETACH);
    }
    std::fs::remove_dir_all(dir).map_err(|source| TryError::State {
        path: dir.to_owned(),
        source,
    })
}

/// Where the engine of a node listens.
pub fn engine_socket(node_dir: &Path) -> PathBuf {
    node_dir.join("engine.sock")
}
