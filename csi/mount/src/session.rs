//! One FUSE connection of a volume: attached to a folder, served by a few threads, until the kernel ends it.
//!
//! Invariant: the connection lives exactly as long as the kernel holds the mount (or a copy of it somewhere); nothing here
//! ends it but `unmount` of the last of them. Callers: `engine.rs` and `foreground.rs`, which close the volume afterwards.
//! Absent: the volume's own life, and what a request means (`fuse.rs`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use fuser::Config;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::runtime::Handle;
use tokio::sync::watch;
use volume::error::FsError;
use volume::head::Transport;
use volume::volume::Volume;

use crate::fuse::{Classic, Flusher, Skin};
use crate::mountpoint::{self, AttachOptions, MountpointError};

mod greeting;
mod relay;
mod requests;
pub mod uring;

use greeting::Greeted;
pub use greeting::Greeting;
pub(crate) use greeting::forget_pages;
use relay::Relay;
pub(crate) use relay::{Outgoing, SENT_AGAIN};
use requests::Requests;
pub(crate) use requests::WRITE_BYTES_MAX;
use uring::{Connection, Rings};

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
    /// The kernel has agreed to io_uring and then refused a ring.
    #[error("the mount cannot be served by io_uring: {source}")]
    Rings {
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

/// The way of requests to the skin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Way {
    /// From /dev/fuse to fuser.
    Direct,
    /// By `Requests`.
    Relayed,
    /// By io_uring, but for what only /dev/fuse brings.
    Rings,
}

/// Whether another process can go on with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Succession {
    /// No.
    None,
    /// Yes, by means of the kernel's if it has any, and by ours otherwise.
    Kept,
    /// Yes, as on a kernel that has none.
    KeptByUs,
}

/// A connection that is not served yet.
#[derive(Debug)]
pub struct Attached {
    session: fuser::Session<Classic>,
    flusher: Flusher,
    /// The connection.
    pub device: OwnedFd,
    /// What the kernel said when it was made.
    pub greeting: Greeting,
    /// What a successor needs beside it, from a kernel that cannot send requests again.
    pub requests: Option<Arc<Requests>>,
    relay: Option<Relay>,
    rings: Option<(Arc<Skin>, usize)>,
    new: bool,
}

impl Attached {
    fn new(
        volume: Volume,
        (device, greeting): (OwnedFd, Greeting),
        (way, requests): (Way, Option<Arc<Requests>>),
        runtime: &Handle,
        new: bool,
    ) -> Result<Self, SessionError> {
        let flusher = Flusher::default();
        if !new {
            flusher.inherit();
        }
        let outgoing = match &requests {
            Some(_) => Outgoing::relayed(),
            None => Outgoing::default(),
        };
        let skin = Arc::new(Skin::new(volume, runtime.clone(), (flusher.clone(), outgoing.clone())));
        let mut config = Config::default();
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let threads = match way {
            Way::Direct | Way::Relayed => cores.clamp(*THREADS.start(), *THREADS.end()),
            // For references that are taken back, and interrupts.
            Way::Rings => 1,
        };
        config.n_threads = Some(threads);
        let failed = |source| SessionError::Greeting { source };
        let classic = Classic(Arc::clone(&skin), way);
        let Greeted {
            session,
            socket,
            request_bytes_max,
        } = greeting::greet(classic, (&device, &greeting), config, new).map_err(failed)?;
        let relay = match &requests {
            Some(requests) => Some(Relay {
                device: device.try_clone().map_err(failed)?,
                socket,
                requests: Arc::clone(requests),
                outgoing,
                threads,
            }),
            None => {
                greeting::connect(&session, &device).map_err(failed)?;
                None
            }
        };
        Ok(Self {
            session,
            flusher,
            device,
            greeting,
            requests,
            relay,
            rings: (way == Way::Rings).then_some((skin, request_bytes_max)),
            new,
        })
    }

    /// True if it is to be served by io_uring.
    pub fn is_by_rings(&self) -> bool {
        self.rings.is_some()
    }

    /// Serves it, at `path`. Requests that a predecessor has not answered come again.
    ///
    /// # Errors
    /// `Thread`, `Rings`; `Greeting` where the kernel cannot send them again. A new connection is taken off `path` then.
    pub fn serve(self, path: &Path) -> Result<Session, SessionError> {
        let new = self.new;
        self.start(path).inspect_err(|_| {
            if let Some(Err(error)) = new.then(|| mountpoint::detach(path)) {
                tracing::error!(%error, "the mount that nobody serves could not be taken off");
            }
        })
    }

    fn start(self, path: &Path) -> Result<Session, SessionError> {
        let Self {
            session,
            flusher,
            device,
            relay,
            rings,
            new,
            ..
        } = self;
        let of_thread = |source| SessionError::Thread { source };
        let relayed = relay.is_some();
        if let Some(relay) = relay {
            relay.start().map_err(of_thread)?;
        }
        let mounted = new.then(|| mountpoint::mounted_at(path).ok().flatten()).flatten();
        if let Some(mounted) = &mounted {
            mountpoint::widen_read_ahead(mounted);
        }
        let start_rings = |(skin, request_bytes_max)| {
            let connection = Connection {
                request_bytes_max,
                device: mounted.map(|mounted| mounted.device),
            };
            Rings::start(&device, connection, &skin).map_err(|source| SessionError::Rings { source })
        };
        let rings = rings.map(start_rings).transpose()?;
        let transport = match &rings {
            None => Transport::Classic,
            Some(_) => Transport::IoUring,
        };
        if !new && !relayed {
            greeting::ask_again(&device).map_err(|source| SessionError::Greeting { source })?;
        }
        flusher.start(device.into()).map_err(of_thread)?;
        let (end, ended) = watch::channel(false);
        let place = path.to_path_buf();
        std::thread::Builder::new()
            .name("fuse-session".into())
            .spawn(move || {
                if let Err(error) = session.run() {
                    tracing::error!(%error, mountpoint = %place.display(), "serving the mount failed");
                }
                if let Some(rings) = rings {
                    rings.end();
                }
                end.send_replace(true);
            })
            .map_err(of_thread)?;
        Ok(Session { ended, transport })
    }
}

/// A live connection. Dropping it does not end it.
#[derive(Debug, Clone)]
pub struct Session {
    ended: watch::Receiver<bool>,
    transport: Transport,
}

impl Session {
    /// Mounts `volume` at `path`, which `mountpoint::check` has approved. Nothing is served before `Attached::serve`. Blocks
    /// for the greeting.
    ///
    /// # Errors
    /// `SessionError`; then nothing is mounted.
    pub fn attach(
        volume: Volume,
        path: &Path,
        options: &AttachOptions,
        succession: Succession,
        runtime: &Handle,
    ) -> Result<Attached, SessionError> {
        let device = mountpoint::attach(path, options)?;
        let greeted = || {
            let mut greeting = greeting::hear(&device)?;
            if succession == Succession::KeptByUs {
                greeting = greeting.of_an_older_kernel();
            }
            let rings = options.transport == Transport::IoUring && greeting.offers_rings();
            if options.transport == Transport::IoUring && !rings {
                let why = uring::Unavailable::NotOffered;
                tracing::warn!(mountpoint = %path.display(), "the mount is not served by io_uring but as any other: {why}");
            }
            let relays = !rings && succession != Succession::None && !greeting.can_send_again();
            let requests = relays.then(Requests::new).transpose()?.map(Arc::new);
            let way = match (rings, relays) {
                (true, _) => Way::Rings,
                (false, true) => Way::Relayed,
                (false, false) => Way::Direct,
            };
            Ok((greeting, (way, requests)))
        };
        let greeted = greeted().map_err(|source| SessionError::Greeting { source });
        greeted
            .and_then(|(greeting, way)| Attached::new(volume, (device, greeting), way, runtime, true))
            .inspect_err(|_| {
                if let Err(error) = mountpoint::detach(path) {
                    tracing::error!(%error, "the mount that nobody serves could not be taken off");
                }
            })
    }

    /// Goes on with a connection that another process has served; `requests` is what lay beside it.
    ///
    /// # Errors
    /// `SessionError`; the connection stays as it is.
    pub fn adopt(
        volume: Volume,
        kept: (OwnedFd, Greeting),
        requests: Option<OwnedFd>,
        runtime: &Handle,
    ) -> Result<Attached, SessionError> {
        let failed = |source| SessionError::Greeting { source };
        let requests = match (requests, kept.1.can_send_again()) {
            (Some(left), _) => Some(Arc::new(Requests::left(left).map_err(failed)?)),
            (None, true) => None,
            (None, false) => {
                return Err(failed(io::Error::other(
                    "what programs have asked is not known, and the kernel is older than Linux 6.9",
                )));
            }
        };
        let way = if requests.is_some() { Way::Relayed } else { Way::Direct };
        Attached::new(volume, kept, (way, requests), runtime, false)
    }

    /// How the kernel reaches this process.
    pub fn transport(&self) -> Transport {
        self.transport
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
