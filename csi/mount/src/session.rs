//! One FUSE connection of a volume: attached to a folder, served by a few threads, until the kernel ends it.
//!
//! Invariant: the connection lives exactly as long as the kernel holds the mount (or a copy of it somewhere); nothing here
//! ends it but `unmount` of the last of them. Callers: `engine.rs` and `foreground.rs`, which close the volume afterwards.
//! Absent: the volume's own life, and what a request means (`fuse.rs`).

use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Duration;

use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use tokio::runtime::Handle;
use tokio::sync::watch;
use volume::error::FsError;
use volume::head::Transport;
use volume::volume::Volume;

use crate::fuse::{Flusher, Skin};
use crate::mountpoint::{self, AttachOptions, MountpointError};

mod device;
mod greeting;
mod requests;
mod room;
pub mod uring;
pub mod wire;

use device::Device;
pub(crate) use device::SENT_AGAIN;
pub use greeting::Greeting;
pub(crate) use greeting::forget_pages;
use requests::Requests;
use uring::{Connection, Rings};
use wire::Serve;

/// At most 8 threads read requests of one mount: each has 1 MiB of memory to read to, and what they do is
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
    /// From /dev/fuse.
    Direct,
    /// From /dev/fuse to memory that outlives this process.
    Kept,
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
    skin: Arc<Skin>,
    flusher: Flusher,
    /// The connection.
    pub device: OwnedFd,
    /// What the kernel said when it was made.
    pub greeting: Greeting,
    /// What a successor needs beside it, from a kernel that cannot send requests again.
    pub requests: Option<Arc<Requests>>,
    way: Way,
    content_bytes_max: usize,
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
        let agreed = greeting.agree(volume.info().read_only, way)?;
        let flusher = Flusher::default();
        match new {
            true => agreed
                .tell(&device)
                .map_err(|source| SessionError::Greeting { source })?,
            // To a successor's answer the kernel does not listen: it has its own since the mount.
            false => flusher.inherit(),
        }
        Ok(Self {
            skin: Arc::new(Skin::new(volume, runtime.clone(), flusher.clone())),
            flusher,
            device,
            greeting,
            requests,
            way,
            content_bytes_max: agreed.content_bytes_max(),
            new,
        })
    }

    /// True if it is to be served by io_uring.
    pub fn is_by_rings(&self) -> bool {
        self.way == Way::Rings
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
        let mounted = self.new.then(|| mountpoint::mounted_at(path).ok().flatten()).flatten();
        if let Some(mounted) = &mounted {
            mountpoint::widen_read_ahead(mounted);
        }
        let of_greeting = |source| SessionError::Greeting { source };
        let of_thread = |source| SessionError::Thread { source };
        let agreed = (self.way, self.content_bytes_max);
        let rings = start_rings(
            &self.device,
            agreed,
            (mounted.map(|mounted| mounted.device), &self.skin),
        )?;
        let transport = match &rings {
            None => Transport::Classic,
            Some(_) => Transport::IoUring,
        };
        let classic = Device::new(self.device.try_clone().map_err(of_greeting)?, self.requests.clone());
        if !self.new && self.requests.is_none() {
            greeting::ask_again(&self.device).map_err(of_greeting)?;
        }
        self.flusher.start(self.device.into()).map_err(of_thread)?;
        classic.serve_leftovers(&*self.skin).map_err(of_greeting)?;
        let readers = start_readers((&classic, path), agreed, &self.skin)?;
        let (end, ended) = watch::channel(false);
        let place = path.to_path_buf();
        std::thread::Builder::new()
            .name("fuse-session".into())
            .spawn(move || {
                // What failed was told when it did.
                if wait_for_end(readers, rings).is_err() {
                    tracing::error!(mountpoint = %place.display(), "a mount has ended of which not all threads served to the end");
                }
                end.send_replace(true);
            })
            .map_err(of_thread)?;
        Ok(Session { ended, transport })
    }
}

fn start_rings(
    device: &OwnedFd,
    (way, content_bytes_max): (Way, usize),
    (number, server): (Option<(u32, u32)>, &Arc<impl Serve>),
) -> Result<Option<Rings>, SessionError> {
    if way != Way::Rings {
        return Ok(None);
    }
    let connection = Connection {
        request_bytes_max: content_bytes_max,
        device: number,
    };
    Rings::start(device, connection, server)
        .map(Some)
        .map_err(|source| SessionError::Rings { source })
}

type Reader = JoinHandle<io::Result<()>>;

fn start_readers(
    (device, path): (&Device, &Path),
    (way, content_bytes_max): (Way, usize),
    server: &Arc<impl Serve>,
) -> Result<Vec<Reader>, SessionError> {
    let threads = match way {
        // For references that are taken back, and interrupts.
        Way::Rings => 1,
        Way::Direct | Way::Kept => {
            let cores = std::thread::available_parallelism().map_or(1, usize::from);
            cores.clamp(*THREADS.start(), *THREADS.end())
        }
    };
    let start = |nth| {
        let (device, server, place) = (device.clone(), Arc::clone(server), path.to_path_buf());
        let run = move || {
            let ran = device.run(content_bytes_max, &*server);
            // The others go on, so nobody else tells it before the end.
            ran.inspect_err(|error| {
                tracing::error!(%error, mountpoint = %place.display(), "a thread of a mount reads no more requests");
            })
        };
        std::thread::Builder::new().name(format!("fuse-{nth}")).spawn(run)
    };
    (0..threads)
        .map(start)
        .collect::<io::Result<_>>()
        .map_err(|source| SessionError::Thread { source })
}

/// Returns when the connection has ended, with the first failure of those that served it.
fn wait_for_end(readers: Vec<Reader>, rings: Option<Rings>) -> io::Result<()> {
    let mut ends = Ok(());
    for reader in readers {
        let end = reader
            .join()
            .unwrap_or_else(|_| Err(io::Error::other("a thread panicked")));
        ends = ends.and(end);
    }
    rings.into_iter().for_each(Rings::end);
    ends
}

/// Serves a new connection, of a mount at a path, with something else than a volume, until it ends: for whoever measures what the
/// kernel's side of it costs, and ours.
///
/// # Errors
/// `SessionError`.
pub fn serve_until_end(
    (device, path): (&OwnedFd, &Path),
    transport: Transport,
    server: &Arc<impl Serve>,
) -> Result<(), SessionError> {
    let failed = |source| SessionError::Greeting { source };
    let way = match transport {
        Transport::Classic => Way::Direct,
        Transport::IoUring => Way::Rings,
    };
    let agreed = greeting::hear(device).map_err(failed)?.agree(false, way)?;
    agreed.tell(device).map_err(failed)?;
    let agreed = (way, agreed.content_bytes_max());
    let rings = start_rings(device, agreed, (None, server))?;
    let classic = Device::new(device.try_clone().map_err(failed)?, None);
    wait_for_end(start_readers((&classic, path), agreed, server)?, rings).map_err(failed)
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
                uring::Unavailable::NotOffered.tell_of(&options.source);
            }
            let keeps = !rings && succession != Succession::None && !greeting.can_send_again();
            let requests = keeps.then(Requests::new).transpose()?.map(Arc::new);
            let way = match (rings, keeps) {
                (true, _) => Way::Rings,
                (false, true) => Way::Kept,
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
        let way = if requests.is_some() { Way::Kept } else { Way::Direct };
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
