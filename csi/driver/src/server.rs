//! The plugin as a process: one unix socket with the services of its mode.
//!
//! Invariant: what an earlier plugin left mounted is adopted before the first call is served (rule 4). Ending the
//! plugin unmounts nothing (rule 17): whoever runs `serve` just drops it. Callers: `pannier csi`, and tests. Absent:
//! reading options (`config.rs`), and signals.

use std::io;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use proto::csi::v1::controller_server::ControllerServer;
use proto::csi::v1::identity_server::IdentityServer;
use proto::csi::v1::node_server::NodeServer;
use tokio::net::UnixListener;
use tokio_stream::wrappers::UnixListenerStream;
use tonic::transport::Server;
use tracing::info;
use volume::admin::NodeRecord;
use volume::clock::Clock;
use volume::volume_id::NodeId;

use crate::cluster::ClustersRef;
use crate::config::Mode;
use crate::controller::ControllerService;
use crate::error::DriverError;
use crate::identity::{IdentityService, PLUGIN_NAME};
use crate::keyring::Keyring;
use crate::mounter::MounterRef;
use crate::node::NodeService;
use crate::registry::Registry;
use crate::rights::Rights;
use crate::targets::{Folders, Targets};

/// What the services are made of.
#[derive(Debug, Clone)]
pub struct Parts {
    /// Which services to serve.
    pub mode: Mode,
    /// The socket.
    pub endpoint: PathBuf,
    /// This node, as controllers know it.
    pub node_id: NodeId,
    /// Where state is kept.
    pub folders: Folders,
    /// The bucket.
    pub clusters: ClustersRef,
    /// Engine and kernel.
    pub mounter: MounterRef,
    /// Wall time, for people to read.
    pub clock: Arc<dyn Clock>,
}

/// Why the plugin cannot serve.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be bound.
    #[error("cannot listen at {}: {source}", path.display())]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The state folder cannot be used.
    #[error(transparent)]
    State(#[from] DriverError),
    /// The connection layer failed.
    #[error("serving failed: {0}")]
    Transport(#[from] tonic::transport::Error),
}

/// Serves until the future is dropped.
///
/// # Errors
/// `Bind`, `State`, `Transport`.
pub async fn serve(parts: Parts) -> Result<(), ServeError> {
    let mut server = Server::builder().add_service(IdentityServer::new(IdentityService));
    if parts.mode.has_controller() {
        let keyring = Keyring::open(parts.folders.state.join("keys"))?;
        let clusters = Arc::clone(&parts.clusters);
        let service = ControllerService::new(clusters, keyring, Arc::clone(&parts.clock));
        server = server.add_service(ControllerServer::new(service));
    }
    let mut background = tokio::task::JoinSet::new();
    if parts.mode.has_node() {
        let targets = Targets::open(Arc::clone(&parts.mounter), parts.folders.clone())?;
        targets.adopt().await;
        background.spawn(Arc::clone(&targets).watch());
        let now_ms = parts.clock.now().seconds.saturating_mul(1_000);
        let record = NodeRecord::new(parts.node_id.clone(), env!("CARGO_PKG_VERSION"), now_ms);
        let (registry, keeping) = Registry::new(Arc::clone(&parts.clusters), record);
        background.spawn(keeping);
        let rights = Rights::open(
            parts.folders.state.join("given-up"),
            parts.node_id.clone(),
            Arc::clone(&parts.clusters),
            Arc::clone(&parts.clock),
        )?;
        background.spawn(Arc::clone(&rights).watch(Arc::clone(&targets)));
        let clusters = Arc::clone(&parts.clusters);
        let service = NodeService::new(parts.node_id.clone(), targets, registry, (clusters, rights));
        server = server.add_service(NodeServer::new(service));
    }
    let listener = bind(&parts.endpoint).map_err(|source| ServeError::Bind {
        path: parts.endpoint.clone(),
        source,
    })?;
    info!(name = PLUGIN_NAME, mode = ?parts.mode, node = %parts.node_id, endpoint = %parts.endpoint.display(), "serving");
    server.serve_with_incoming(UnixListenerStream::new(listener)).await?;
    Ok(())
}

/// Listens at a path, in place of the socket that an earlier process left there. Only the owner may connect.
fn bind(path: &Path) -> io::Result<UnixListener> {
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent)?;
    }
    match std::fs::symlink_metadata(path) {
        Ok(found) if found.file_type().is_socket() => std::fs::remove_file(path)?,
        Ok(_) => {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                "it exists and is no socket",
            ));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(path)?;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok(listener)
}

#[cfg(test)]
mod tests;
