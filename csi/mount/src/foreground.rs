//! One volume, mounted by hand in the foreground: `pannier mount`.
//!
//! Ends when somebody unmounts it (umount(8) is enough) or when it is told to stop; both write everything to the bucket and
//! give the volume back before they return.

use std::future::Future;
use std::path::PathBuf;
use std::time::Duration;

use tokio::runtime::Handle;
use volume::budget::Budget;
use volume::error::FsError;
use volume::head::Transport;
use volume::volume::VolumeInfo;
use volume_s3::S3Location;

use crate::mountpoint::{self, AttachOptions, MountpointError};
use crate::open::{Connection, OpenFailed, OpenSpec, Opened, open};
use crate::session::{Session, SessionError, Succession, flush, unmount};
use crate::store::Stores;

/// 5 s for programs that still use a mount that was told to stop; then they get errors, with everything they wrote safe.
const DETACHED_PATIENCE: Duration = Duration::from_secs(5);

/// What to mount where.
#[derive(Debug, Clone)]
pub struct ForegroundMount {
    /// The volume.
    pub open: OpenSpec,
    /// An existing, empty folder.
    pub mountpoint: PathBuf,
}

/// What `mount_foreground` tells when the mount can be used.
#[derive(Debug, Clone)]
pub struct Ready {
    /// Where, as a canonical path.
    pub mountpoint: PathBuf,
    /// What.
    pub info: VolumeInfo,
    /// How the kernel reaches this process.
    pub transport: Transport,
}

/// Why a foreground mount failed.
#[derive(Debug, thiserror::Error)]
pub enum ForegroundError {
    /// The folder cannot be mounted on, or does not let go.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The volume could not be opened.
    #[error(transparent)]
    Open(#[from] OpenFailed),
    /// The connection to the kernel failed.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The end did not reach the bucket.
    #[error("volume {location}: not everything that was written is in the bucket: {source}")]
    Close {
        /// The volume's place.
        location: S3Location,
        /// Why.
        source: FsError,
    },
}

/// Mounts, calls `ready`, and serves until the mount is gone or `stop` is.
///
/// # Durability
/// After `Ok` everything written to the mount is in the bucket.
///
/// # Errors
/// `ForegroundError`.
pub async fn mount_foreground(
    request: ForegroundMount,
    ready: impl FnOnce(Ready),
    stop: impl Future<Output = ()>,
) -> Result<(), ForegroundError> {
    // Before anything is taken over: a typing error must not disturb the volume's present writer.
    let path = mountpoint::check(&request.mountpoint)?;
    let location = request.open.location.clone();
    let Opened { volume, transport, .. } = open(
        &request.open,
        Connection::begin(false),
        (&Stores::default(), &Budget::default()),
    )
    .await?;
    let options = AttachOptions {
        source: location.to_string(),
        read_only: request.open.read_only,
        noexec: false,
        nosuid: false,
        transport: transport.by,
    };
    let attached = Session::attach(volume.clone(), &path, &options, Succession::None, &Handle::current());
    let session = match attached.and_then(|attached| attached.serve(&path)) {
        Ok(session) => session,
        Err(error) => {
            if let Err(error) = volume.close().await {
                tracing::error!(%error, "the volume that could not be mounted was not given back");
            }
            return Err(error.into());
        }
    };
    ready(Ready {
        mountpoint: path.clone(),
        info: volume.info(),
        transport: session.transport(),
    });
    tokio::select! {
        () = session.ended() => {}
        () = stop => {
            // First without the tree being touched: it takes longest, and programs go on meanwhile.
            if let Err(error) = flush(&volume, &path).await {
                tracing::error!(%error, "flushing before the unmount failed");
            }
            unmount(&path, true).await?;
            if tokio::time::timeout(DETACHED_PATIENCE, session.ended()).await.is_err() {
                tracing::warn!(mountpoint = %path.display(), "programs still use the mount: they will get errors from now on");
            }
        }
    }
    volume
        .close()
        .await
        .map_err(|source| ForegroundError::Close { location, source })
}
