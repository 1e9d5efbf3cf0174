//! One FUSE connection of a volume: attached to a folder, served by a few threads, until the kernel ends it.
//!
//! Invariant: the connection lives exactly as long as the kernel holds the mount (or a copy of it somewhere); nothing here
//! ends it but `unmount` of the last of them. Callers: `engine.rs` and `foreground.rs`, which close the volume afterwards.
//! Absent: the volume's own life, and what a request means (`fuse.rs`).

use std::io;
use std::path::Path;
use std::time::Duration;

use fuser::{Config, SessionACL};
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::runtime::Handle;
use tokio::sync::watch;
use volume::error::FsError;
use volume::volume::Volume;

use crate::fuse::{Flusher, Skin};
use crate::mountpoint::{self, AttachOptions, MountpointError};

/// At most 8 threads read requests of one mount: each has 16 MiB of address space for its buffer, and what they do is
/// short. At least 2, so that a copy of 1 MiB on one never keeps a stat waiting.
const THREADS: std::ops::RangeInclusive<usize> = 2..=8;

/// 50 ms between two tries to unmount what somebody uses only for a moment.
const BUSY_RETRY: Duration = Duration::from_millis(50);

/// 2 s: who uses a mount for longer means it.
const BUSY_RETRIES: u32 = 40;

/// Why a connection could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The folder cannot be mounted on.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The kernel's greeting failed.
    #[error("the kernel's FUSE does not work with this program: {source}")]
    Greeting {
        /// What failed.
        source: io::Error,
    },
    /// No thread could be started.
    #[error("cannot start a thread: {source}")]
    Thread {
        /// Why.
        source: io::Error,
    },
}

/// A live connection. Dropping it does not end it.
#[derive(Debug, Clone)]
pub struct Session {
    ended: watch::Receiver<bool>,
}

impl Session {
    /// Mounts `volume` at `path`, which `mountpoint::check` has approved, and serves it. Blocks for the greeting.
    ///
    /// # Errors
    /// `SessionError`; then nothing is mounted.
    pub fn start(
        volume: Volume,
        path: &Path,
        options: &AttachOptions,
        runtime: &Handle,
    ) -> Result<Session, SessionError> {
        let device = mountpoint::attach(path, options)?;
        Self::serve(volume, path, device, runtime).inspect_err(|_| {
            if let Err(error) = mountpoint::detach(path) {
                tracing::error!(%error, "the mount that nobody serves could not be taken off");
            }
        })
    }

    fn serve(
        volume: Volume,
        path: &Path,
        device: std::os::fd::OwnedFd,
        runtime: &Handle,
    ) -> Result<Session, SessionError> {
        let flusher = Flusher::default();
        let skin = Skin::new(volume, runtime.clone(), flusher.clone());
        let mut config = Config::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        config.n_threads = Some(cores.clamp(*THREADS.start(), *THREADS.end()));
        // The kernel has checked who may (`allow_other`, `default_permissions`); a second check here would only differ.
        let session = fuser::Session::from_fd(skin, device, SessionACL::All, config)
            .map_err(|source| SessionError::Greeting { source })?;
        flusher
            .start(session.notifier())
            .map_err(|source| SessionError::Thread { source })?;
        if let Ok(Some(mounted)) = mountpoint::mounted_at(path) {
            mountpoint::widen_read_ahead(&mounted);
        }
        let (end, ended) = watch::channel(false);
        let place = path.to_path_buf();
        std::thread::Builder::new()
            .name("fuse-session".into())
            .spawn(move || {
                if let Err(error) = session.run() {
                    tracing::error!(%error, mountpoint = %place.display(), "serving the mount failed");
                }
                end.send_replace(true);
            })
            .map_err(|source| SessionError::Thread { source })?;
        Ok(Session { ended })
    }

    /// Returns when the kernel has given the connection up: no program can reach the volume any more.
    pub async fn ended(&self) {
        let mut ended = self.ended.clone();
        // The sender is dropped only by a thread that panicked: that is an end as well.
        let _ = ended.wait_for(|ended| *ended).await;
    }

    /// True once it has ended.
    pub fn has_ended(&self) -> bool {
        *self.ended.borrow()
    }
}

/// Makes everything that programs wrote to the mount at `path` durable: first the kernel's dirty pages go to the volume, then
/// the volume's to the bucket. Waits for as long as that takes.
///
/// # Durability
/// After `Ok` everything written before the call is in the bucket.
///
/// # Errors
/// `FsError` if it never will be.
pub async fn flush(volume: &Volume, path: &Path) -> Result<(), FsError> {
    let place = path.to_path_buf();
    let pages = tokio::task::spawn_blocking(move || -> nix::Result<()> {
        let root = open(
            &place,
            OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC,
            Mode::empty(),
        )?;
        nix::unistd::syncfs(root)
    });
    match pages.await {
        Ok(Ok(())) => {}
        // Not reachable any more, or writing back failed: what reached the volume is flushed all the same, and what did not
        // was told to its program.
        Ok(Err(error)) => {
            tracing::warn!(%error, mountpoint = %path.display(), "the kernel did not write everything back")
        }
        Err(error) => tracing::error!(%error, "the flush panicked"),
    }
    volume.drain().await
}

/// Unmounts `path`, with some patience for programs that look at it only for a moment; if `detach_busy`, takes it out of the
/// tree while others still use it.
///
/// # Errors
/// `Busy` unless `detach_busy`; `Kernel`, `Fusermount`.
pub async fn unmount(path: &Path, detach_busy: bool) -> Result<(), MountpointError> {
    for _ in 0..BUSY_RETRIES {
        match blocking(path, mountpoint::unmount).await {
            Err(MountpointError::Busy { .. }) => tokio::time::sleep(BUSY_RETRY).await,
            done => return done,
        }
    }
    if detach_busy {
        return blocking(path, mountpoint::detach).await;
    }
    Err(MountpointError::Busy {
        path: path.to_path_buf(),
    })
}

/// Unmounting writes dirty pages back, which this very process serves: never on a thread that others wait for.
pub(crate) async fn blocking<T: Send + 'static>(path: &Path, act: impl FnOnce(&Path) -> T + Send + 'static) -> T {
    let path = path.to_path_buf();
    tokio::task::spawn_blocking(move || act(&path))
        .await
        .expect("acts on mountpoints do not panic")
}
