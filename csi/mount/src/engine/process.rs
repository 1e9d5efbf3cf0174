//! The engine as a process: `pannier engine`.
//!
//! It is nobody's child for long: a session of its own, so that the end of the plugin that started it, or of a terminal, does
//! not reach it. It ends on Shutdown and SIGTERM only, after everything is flushed and unmounted; a second signal ends
//! it at once, with what could not be flushed told in the log.

use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use tokio::net::UnixListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_stream::wrappers::UnixListenerStream;
use volume::budget::Budget;
use volume::clock::Clock;
use volume::volume::CacheConfig;

use super::kept;
use super::leftovers::{Ledger, lock, lock_after_death};
use super::server::Service;
use super::{Engine, EngineError};
use crate::clock::{SystemClock, unix_ms};
use crate::keeper::{KeeperClient, KeeperError};
use crate::session::Succession;

/// 10 s between two tries to end while the store does not take what is dirty.
const STOP_ROUND: Duration = Duration::from_secs(10);

/// How an engine runs.
#[derive(Debug, Clone)]
pub struct EngineConfig {
    /// Where to listen.
    pub socket: PathBuf,
    /// What a mount caches if its caller does not say.
    pub cache: CacheConfig,
    /// Memory for all volumes together, in bytes.
    pub memory_bytes: u64,
    /// Where volumes of durability `local` keep what is not in the bucket yet; on a disk that survives a reboot.
    pub state_dir: Option<PathBuf>,
    /// How often the head of an open volume is looked at; see `LOOK_EVERY`.
    pub look_every: Duration,
    /// Where the keeper listens that has started this engine.
    pub keeper: Option<PathBuf>,
    /// Let mounts outlive this engine without the kernel's help, as before Linux 6.9.
    pub relays: bool,
    /// Version of the program, for `Health`.
    pub version: &'static str,
}

/// Why the engine could not run.
#[derive(Debug, thiserror::Error)]
pub enum ProcessError {
    /// Another one lives.
    #[error("another engine serves at {}", socket.display())]
    Taken {
        /// Its socket.
        socket: PathBuf,
    },
    /// The socket, or something beside it.
    #[error("{act} {}: {source}", path.display())]
    Io {
        /// What was tried.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// Why it failed.
        source: io::Error,
    },
    /// The keeper.
    #[error(transparent)]
    Keeper(#[from] KeeperError),
    /// The control service ended.
    #[error("the control service failed: {source}")]
    Serve {
        /// Why.
        source: tonic::transport::Error,
    },
    /// It was told twice to end.
    #[error("ended before everything was in the bucket: {source}")]
    Forced {
        /// What was left.
        source: EngineError,
    },
}

fn io_error(act: &'static str, path: &Path) -> impl FnOnce(io::Error) -> ProcessError {
    let path = path.to_path_buf();
    move |source| ProcessError::Io { act, path, source }
}

/// Runs an engine until it is told to end. `ready` is called when the socket answers, with what to ask for metrics.
///
/// # Durability
/// After `Ok` everything written to its mounts is in the bucket.
///
/// # Errors
/// `ProcessError`.
pub async fn run_engine(config: EngineConfig, ready: impl FnOnce(Engine)) -> Result<(), ProcessError> {
    leave_parent();
    let socket = &config.socket;
    // First: it returns when the engine before has ended, and with it has let go of everything below.
    let (keeper, kept) = match config.keeper.clone() {
        None => (None, Vec::new()),
        Some(at) => {
            let taken = tokio::task::spawn_blocking(move || KeeperClient::take_over(&at, kept::FORMAT));
            let (keeper, kept) = taken.await.expect("asking the keeper does not panic")?;
            let succession = match config.relays {
                true => Succession::KeptByUs,
                false => Succession::Kept,
            };
            (Some((keeper, succession)), kept)
        }
    };
    let locked = match keeper {
        Some(_) => lock_after_death(socket),
        None => lock(socket),
    };
    let _lock = locked.map_err(|source| match source.kind() {
        io::ErrorKind::WouldBlock => ProcessError::Taken { socket: socket.clone() },
        _ => io_error("cannot lock", socket)(source),
    })?;
    let ledger = Ledger::beside(socket);
    ledger.clean(&kept::mountpoints_of(&kept));
    // Whoever calls from now on waits until everything is served again, instead of finding less than there is.
    let listener = listen(socket)?;
    let engine = Engine::new(ledger, config.look_every, Budget::new(config.memory_bytes), keeper);
    engine.adopt(kept, config.state_dir.as_deref()).await;
    let (stop, stopped) = watch::channel(false);
    let since_unix_ms = unix_ms(SystemClock.now());
    let service = Service::new(engine.clone(), &config, since_unix_ms, stop.clone());
    let serving = tonic::transport::Server::builder()
        .add_service(service.into_server())
        .serve_with_incoming_shutdown(UnixListenerStream::new(listener), until_true(stopped));
    let signalled = tokio::spawn(end_by_signal(engine.clone(), stop));
    ready(engine);
    let served = serving.await;
    if let Err(error) = std::fs::remove_file(socket) {
        tracing::debug!(%error, "the socket was gone already");
    }
    served.map_err(|source| ProcessError::Serve { source })?;
    match signalled.is_finished() {
        true => signalled.await.expect("waiting for signals does not panic"),
        false => Ok(()),
    }
}

/// A session of its own. Refused for a process group's leader, which a shell's job is: then it is one already in effect.
fn leave_parent() {
    if let Err(error) = nix::unistd::setsid() {
        tracing::debug!(%error, "stays in the session that it was started in");
    }
}

fn listen(socket: &Path) -> Result<UnixListener, ProcessError> {
    // We hold the lock: whoever made it is dead.
    match std::fs::remove_file(socket) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("cannot replace", socket)(error)),
        _ => {}
    }
    let listener = UnixListener::bind(socket).map_err(io_error("cannot listen at", socket))?;
    // Whoever can write to the socket can mount anything anywhere.
    let owner_only = std::fs::Permissions::from_mode(0o600);
    std::fs::set_permissions(socket, owner_only).map_err(io_error("cannot protect", socket))?;
    Ok(listener)
}

async fn until_true(mut flag: watch::Receiver<bool>) {
    let _ = flag.wait_for(|set| *set).await;
}

/// Waits for SIGTERM or SIGINT, then ends everything, as long as that takes; gives up at the next signal.
async fn end_by_signal(engine: Engine, stop: watch::Sender<bool>) -> Result<(), ProcessError> {
    let (Ok(mut terminate), Ok(mut interrupt)) = (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be awaited: this engine ends by Shutdown only");
        return std::future::pending().await;
    };
    // A terminal that goes away is no reason to end.
    let _hangup = signal(SignalKind::hangup());
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    tracing::info!("told to end: flushing and unmounting");
    let mut last = None;
    loop {
        let round = engine.unmount_all(Instant::now() + STOP_ROUND);
        let done = tokio::select! {
            done = round => done,
            _ = terminate.recv() => break,
            _ = interrupt.recv() => break,
        };
        match done {
            Ok(()) => {
                stop.send_replace(true);
                return Ok(());
            }
            Err(error) => {
                tracing::error!(%error, "not everything is flushed yet; a second signal ends me all the same");
                last = Some(error);
            }
        }
    }
    stop.send_replace(true);
    last.map_or(Ok(()), |source| Err(ProcessError::Forced { source }))
}
