//! The keeper: a small process that holds the connections of a node's mounts while engines come and go.
//!
//! It knows nothing of volumes: a connection is a descriptor, and beside it lies what the next engine needs to serve it, which
//! nobody else reads. It starts the engine, starts it again when it dies, and gives the new one everything. Programs whose
//! files are on a mount wait meanwhile; after `abort_after` without an engine it lets the connections go, which ends
//! the waiting with errors, because a task that hangs for ever cannot even be killed.
//!
//! Invariants: one engine serves at a time, and it is a child of the keeper; connections are given to an engine only when the one
//! before has ended. What lies beside a connection may hold keys: it is locked in memory and never written anywhere.
//! Callers: `pannier keeper`. Absent: a runtime, a store, and any reading of what it keeps.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::fcntl::Flock;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::unistd::Pid;

mod child;
mod client;
mod secret;
mod service_manager;
mod shelf;
mod slim;
mod wire;

use crate::engine::leftovers::lock;
pub use child::EngineCommand;
use child::{Engine, Life, Program};
pub use client::{KeeperClient, KeeperError, Kept, replace_engine};
pub use service_manager::ServiceManager;
use shelf::Shelf;
use slim::Slim;
use wire::{Message, Peer};

/// 30 s: a program that waits for a mount without an engine is told an error then. Longer than any start of an engine, shorter
/// than the patience of most health checks.
pub const ABORT_AFTER: Duration = Duration::from_secs(30);

/// 20 ms: what an engine does first, to answer what the one before left unanswered, is what killed that one. An engine that got over
/// it was no failure: the next one is started at once, and has the whole of `abort_after`.
const PROVEN_AFTER: Duration = Duration::from_millis(20);

/// 3 engines that fail one after another are followed at once by the next one; then it is waited longer each time.
const FAILURES_AT_ONCE: u32 = 3;

/// 2 s at most from the end of one to the start of the next, so that there are many tries in `ABORT_AFTER`.
const START_WAIT_MAX: Duration = Duration::from_secs(2);

/// 30 s for a new engine to say that it is ready to take over; the old one goes on if it does not.
const REPLACE_WITHIN: Duration = Duration::from_secs(30);

/// 1 s between looks at an engine that gives no sign. One whose thread waits in the kernel for its own mount is dead and does not
/// end: it will when the next one answers.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// 5 ms between looks at one that dies.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// 5 s for an engine that was killed with its keeper.
const ENGINE_ENDS_WITHIN: Duration = Duration::from_secs(5);

/// 1 s without a word: then memory that only the last ones needed is given back.
const SLIM_AFTER: Duration = Duration::from_secs(1);

/// 64 peers at a time: the engine, one that is about to replace it, and whoever asks for that.
const PEERS_MAX: usize = 64;

/// How a keeper runs.
#[derive(Debug)]
pub struct KeeperConfig {
    /// The engine's socket; the keeper's own lies beside it.
    pub engine_socket: PathBuf,
    /// How to start an engine.
    pub command: EngineCommand,
    /// See `ABORT_AFTER`.
    pub abort_after: Duration,
    /// Who has started this process, if it was a service manager.
    pub service_manager: ServiceManager,
}

/// Where the keeper of the engine at `engine_socket` listens.
pub fn socket_beside(engine_socket: &Path) -> PathBuf {
    let mut name = engine_socket.as_os_str().to_owned();
    name.push(".keeper");
    name.into()
}

/// Runs a keeper until the engine has ended and nothing is kept any more.
///
/// # Errors
/// `AddrInUse` if another keeper lives; what the system refuses.
pub fn run_keeper(config: KeeperConfig) -> io::Result<()> {
    let socket = socket_beside(&config.engine_socket);
    let _lock: Flock<_> = lock(&socket).map_err(|error| match error.kind() {
        io::ErrorKind::WouldBlock => io::Error::new(io::ErrorKind::AddrInUse, "another keeper lives here"),
        _ => error,
    })?;
    secret::hide_from_dumps();
    let mut awaited = SigSet::empty();
    for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        awaited.add(signal);
    }
    awaited.thread_block()?;
    let signals = SignalFd::with_flags(&awaited, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let listener = wire::listen(&socket)?;
    let shelf = Shelf::of(config.service_manager);
    if !shelf.is_empty() {
        tracing::info!(
            mounts = shelf.len(),
            "the keeper before has left these with the service manager"
        );
        await_end_of_engine(&config.engine_socket);
    }
    let mut keeper = Keeper {
        program: Program::hold(&config.command)?,
        abort_after: config.abort_after,
        socket,
        shelf,
        engine: None,
        next: None,
        dying: Vec::new(),
        look_at: None,
        peers: Vec::new(),
        failures: 0,
        start_at: Some(Instant::now()),
        alone_since: Some(Instant::now()),
        ending: false,
        slim: Slim::default(),
        slim_at: Instant::now() + SLIM_AFTER,
    };
    while keeper.turn(&signals, &listener)? {}
    // The socket's absence tells that nobody keeps anything here.
    std::fs::remove_file(&keeper.socket)
}

/// Waits until the engine of the keeper before has let go of its lock; a service manager has ended it with that keeper. A thread that
/// waits in the kernel for its own mount may hold it for ever, which ends when the next engine answers.
fn await_end_of_engine(engine_socket: &Path) {
    let begun = Instant::now();
    while begun.elapsed() < ENGINE_ENDS_WITHIN {
        if lock(engine_socket).is_ok() {
            return;
        }
        std::thread::park_timeout(LOOK_AGAIN);
    }
    tracing::warn!("the engine before has not let go of its lock; the next one starts all the same");
}

#[derive(Debug)]
struct Keeper {
    /// How to start an engine.
    program: Program,
    abort_after: Duration,
    socket: PathBuf,
    shelf: Shelf,
    engine: Option<Engine>,
    /// One that is to replace it.
    next: Option<Engine>,
    /// Dead ones that have not ended yet.
    dying: Vec<Engine>,
    /// When to look whether the engine is dead.
    look_at: Option<Instant>,
    peers: Vec<Peer>,
    /// Engines that died soon, one after another.
    failures: u32,
    /// When to start an engine; `None` while one runs.
    start_at: Option<Instant>,
    /// Since when no engine has proven itself; looked at while none serves.
    alone_since: Option<Instant>,
    /// Told to end.
    ending: bool,
    slim: Slim,
    /// From when on to give back what the last thing done needed.
    slim_at: Instant,
}

impl Keeper {
    /// Waits for something and does it. False at the end.
    fn turn(&mut self, signals: &SignalFd, listener: &OwnedFd) -> io::Result<bool> {
        if self.start_at.is_some_and(|at| at <= Instant::now()) {
            self.start_engine();
        }
        self.give_up_late();
        if self.look_at.is_some_and(|at| at <= Instant::now()) {
            self.look();
        }
        let none = self.engine.is_none() && self.next.is_none();
        if none && self.shelf.is_empty() && (self.ending || self.start_at.is_none()) {
            return Ok(false);
        }
        let (signalled, knocked, spoke) = self.wait(signals, listener)?;
        if signalled || knocked || !spoke.is_empty() {
            self.slim_at = Instant::now() + SLIM_AFTER;
        }
        for at in spoke.into_iter().rev() {
            self.hear(at);
        }
        if signalled {
            while let Some(signal) = signals.read_signal()? {
                self.signalled(signal.ssi_signo.cast_signed());
            }
        }
        if knocked && let Some(peer) = wire::accept(listener)? {
            if self.peers.len() == PEERS_MAX {
                tracing::warn!("too many ask at once: one is turned away");
            } else {
                self.peers.push(peer);
            }
        }
        Ok(true)
    }

    /// Looks at an engine that has given no sign.
    fn look(&mut self) {
        let life = self.engine.as_ref().map(Engine::life);
        // One that was killed for the next one's sake.
        let is_ready = |pid| self.peers.iter().any(|peer| peer.pid == pid && peer.is_ready);
        let is_replaced = self.next.as_ref().is_some_and(|next| is_ready(next.pid()));
        let wait = match is_replaced || life == Some(Life::Dies) {
            true => LOOK_AGAIN,
            false => LOOK_EVERY,
        };
        self.look_at = life.map(|_| Instant::now() + wait);
        if life == Some(Life::Dead) {
            self.bury();
        }
    }

    fn wait(&mut self, signals: &SignalFd, listener: &OwnedFd) -> io::Result<(bool, bool, Vec<usize>)> {
        let mut waits = vec![
            PollFd::new(signals.as_fd(), PollFlags::POLLIN),
            PollFd::new(listener.as_fd(), PollFlags::POLLIN),
        ];
        let of_peers = self
            .peers
            .iter()
            .map(|peer| PollFd::new(peer.as_fd(), PollFlags::POLLIN));
        waits.extend(of_peers);
        let timeout = match self.next_deadline() {
            None => PollTimeout::NONE,
            // One more, so that the deadline has passed when it is looked at.
            Some(at) => {
                let left = at.saturating_duration_since(Instant::now()).as_millis() + 1;
                PollTimeout::try_from(u32::try_from(left).unwrap_or(u32::MAX)).unwrap_or(PollTimeout::MAX)
            }
        };
        let polled = match self.slim_at <= Instant::now() {
            true => self.slim.poll(&mut waits, timeout),
            false => poll(&mut waits, timeout),
        };
        match polled {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready: Vec<bool> = waits
            .iter()
            .map(|wait| wait.revents().is_some_and(|events| !events.is_empty()))
            .collect();
        let spoke = (2..ready.len()).filter(|at| ready[*at]).map(|at| at - 2).collect();
        Ok((ready[0], ready[1], spoke))
    }

    fn next_deadline(&self) -> Option<Instant> {
        let abort = self.abort_at();
        let replace = self.next.as_ref().map(|next| next.since + REPLACE_WITHIN);
        let slim = Some(self.slim_at).filter(|at| *at > Instant::now());
        [self.start_at, abort, replace, self.look_at, slim]
            .into_iter()
            .flatten()
            .min()
    }

    /// When the connections are let go; `None` while an engine serves them.
    fn abort_at(&self) -> Option<Instant> {
        let served = self.engine.as_ref().is_some_and(|engine| engine.serves_since.is_some());
        let waits = !served && !self.shelf.is_empty();
        let adopts = self.engine.as_ref().and_then(|engine| engine.adopts_since);
        // One that says it is about to serve is waited for as long as it says so; the account goes on when it fails.
        self.alone_since
            .filter(|_| waits)
            .map(|since| adopts.map_or(since, |adopts| adopts.max(since)) + self.abort_after)
    }

    fn start_engine(&mut self) {
        self.start_at = None;
        match Engine::start(&self.program, &self.socket) {
            Ok(engine) => {
                tracing::info!(pid = engine.pid(), kept = self.shelf.len(), "started an engine");
                self.engine = Some(engine);
            }
            Err(error) => {
                tracing::error!(%error, program = %self.program.path().display(), "the engine cannot be started");
                self.start_later();
            }
        }
    }

    /// After a failure: at once at first, then later and later, because what kills an engine at its start kills the next one.
    fn start_later(&mut self) {
        if self.shelf.is_empty() || self.ending {
            return;
        }
        let wait = match self.failures.checked_sub(FAILURES_AT_ONCE) {
            None => Duration::ZERO,
            Some(more) => Duration::from_millis(50 << more.min(7)).min(START_WAIT_MAX),
        };
        self.failures += 1;
        self.start_at = Some(Instant::now() + wait);
    }

    /// Lets go of what has waited too long: of the mounts without an engine, and of an engine that is not ready.
    fn give_up_late(&mut self) {
        let now = Instant::now();
        if self.abort_at().is_some_and(|at| now >= at) {
            tracing::error!(
                mounts = self.shelf.len(),
                seconds = self.abort_after.as_secs(),
                "no engine has served for too long: programs that wait for their files get errors now"
            );
            self.shelf.clear();
            // One that has them and does not get on: they end with it.
            if let Some(engine) = &self.engine {
                engine.kill();
            }
        }
        if let Some(next) = self.next.take_if(|next| now >= next.since + REPLACE_WITHIN) {
            tracing::error!(
                pid = next.pid(),
                "the new engine does not get ready: the old one goes on"
            );
            next.kill();
        }
    }

    fn signalled(&mut self, signal: i32) {
        if signal == Signal::SIGCHLD as i32 {
            self.bury();
        } else if signal != Signal::SIGHUP as i32 {
            self.ending = true;
            match &self.engine {
                // It flushes and unmounts everything first.
                Some(engine) => engine.terminate(),
                None => self.shelf.clear(),
            }
        }
    }

    /// Collects engines that have ended.
    fn bury(&mut self) {
        if let Some(next) = self.next.take_if(|next| next.has_ended().is_some()) {
            tracing::error!(
                pid = next.pid(),
                "the new engine ended before it was ready: the old one goes on"
            );
            if self.engine.is_none() {
                self.start_later();
            }
        }
        self.dying.retain_mut(|engine| engine.has_ended().is_none());
        let ended = |engine: &mut Engine| engine.has_ended().is_some() || engine.life() == Life::Dead;
        let Some(mut engine) = self.engine.take_if(ended) else {
            return;
        };
        self.look_at = None;
        let status = engine.has_ended().map(|status| status.to_string());
        tracing::warn!(pid = engine.pid(), status, kept = self.shelf.len(), "the engine ended");
        self.peers.retain(|peer| peer.pid != engine.pid());
        if engine.served_for() >= PROVEN_AFTER {
            self.failures = 0;
            self.alone_since = None;
        }
        // The first that fails opens the account of all that follow.
        self.alone_since.get_or_insert_with(Instant::now);
        if engine.has_ended().is_none() {
            self.dying.push(engine);
        }
        match self.next.take() {
            // It was told to wait for this.
            Some(next) => self.hand_over(next),
            None => self.start_later(),
        }
    }

    /// The engine that was to replace the old one is the engine now.
    fn hand_over(&mut self, next: Engine) {
        let pid = next.pid();
        self.program = next.program.clone();
        self.engine = Some(next);
        if let Some(at) = self.peers.iter().position(|peer| peer.pid == pid && peer.is_ready) {
            self.give_all(at);
        }
    }

    /// Something came from a peer, or it has gone.
    fn hear(&mut self, at: usize) {
        let (message, connection) = match self.peers[at].receive() {
            Ok(Some(received)) => received,
            Ok(None) => {
                self.peers.remove(at);
                return;
            }
            Err(error) => {
                tracing::warn!(%error, pid = self.peers[at].pid, "what a peer said was not understood");
                self.peers.remove(at);
                return;
            }
        };
        let pid = self.peers[at].pid;
        let is_engine = self.engine.as_ref().is_some_and(|engine| engine.pid() == pid);
        let answer = match message {
            Message::Ready { reads } => return self.ready(at, reads),
            Message::Replace { program, args } => self.replace(EngineCommand { program, args }),
            Message::Keep { key, needs, beside } if is_engine => {
                match self.shelf.keep(key, connection, (needs, beside)) {
                    true => Message::Done,
                    false => Message::Refused {
                        why: "there is no connection to keep".into(),
                    },
                }
            }
            Message::Serves if is_engine => {
                if let Some(engine) = &mut self.engine {
                    engine.serves_since = Some(Instant::now());
                }
                Message::Done
            }
            Message::Adopts if is_engine => {
                if let Some(engine) = &mut self.engine {
                    engine.adopts_since = Some(Instant::now());
                }
                Message::Done
            }
            Message::Forget { key } if is_engine => {
                self.shelf.forget(&key);
                Message::Done
            }
            Message::Unknown { kind } => Message::Refused {
                why: format!("this keeper is older than that word, whose number is {kind}"),
            },
            _ => Message::Refused {
                why: "only the engine that the keeper has started may say that".into(),
            },
        };
        self.tell(at, &answer);
    }

    fn tell(&mut self, at: usize, message: &Message) {
        if let Err(error) = self.peers[at].send(message, None) {
            tracing::debug!(%error, "a peer did not wait for its answer");
        }
    }

    /// An engine is ready to serve.
    fn ready(&mut self, at: usize, reads: u32) {
        let pid = self.peers[at].pid;
        let is = |engine: &Option<Engine>| engine.as_ref().is_some_and(|engine| engine.pid() == pid);
        let refusal = if !is(&self.engine) && !is(&self.next) {
            Some("the keeper has not started this engine".to_owned())
        } else {
            let too_new = self.shelf.needs().filter(|needs| *needs > reads);
            too_new.map(|needs| format!("a mount needs version {needs} of an engine, this one reads up to {reads}"))
        };
        if let Some(why) = refusal {
            tracing::error!(pid, why, "an engine was refused");
            return self.tell(at, &Message::Refused { why });
        }
        self.peers[at].is_ready = true;
        match (&self.engine, is(&self.engine)) {
            (_, true) => self.give_all(at),
            // Killed, not asked: what a crash loses nothing of, this loses nothing of.
            (Some(old), false) => {
                old.kill();
                self.look_at = Some(Instant::now() + LOOK_AGAIN);
            }
            (None, false) => {
                let next = self.next.take().expect("it is one of both");
                self.hand_over(next);
            }
        }
    }

    fn give_all(&mut self, at: usize) {
        self.look_at = Some(Instant::now() + LOOK_EVERY);
        let peer = &mut self.peers[at];
        for (key, shelved) in self.shelf.iter() {
            if let Err(error) = peer.send_kept(key, &shelved.beside, &shelved.connection) {
                tracing::error!(%error, "an engine did not take what was kept");
                return;
            }
        }
        self.tell(at, &Message::All);
    }

    fn replace(&mut self, command: EngineCommand) -> Message {
        if self.next.is_some() {
            return Message::Refused {
                why: "the engine is being replaced already".into(),
            };
        }
        let program = command.program.display().to_string();
        match Program::hold(&command).and_then(|held| Engine::start(&held, &self.socket)) {
            Ok(next) => {
                tracing::info!(pid = next.pid(), program, "started an engine to replace the old one");
                self.next = Some(next);
                if self.engine.is_none() {
                    self.start_at = None;
                }
                Message::Done
            }
            Err(error) => Message::Refused {
                why: format!("{program} cannot be started: {error}"),
            },
        }
    }
}

impl Drop for Keeper {
    fn drop(&mut self) {
        // Only after an error of the keeper's own: nobody would collect them.
        for engine in [self.engine.take(), self.next.take()].into_iter().flatten() {
            let _ = kill(Pid::from_raw(engine.pid()), Signal::SIGTERM);
        }
    }
}
