//! Being a plugin: from the first line of `main` to the exit of the process.
//!
//! The order matters to the host: it waits for the handshake line, which must not come before the socket listens; it
//! sees the plugin's end only when both pipes are closed, so nothing else may hold them; and it waits two seconds for an
//! exit after Shutdown. What may never happen here: a byte on standard output after the handshake (the host stops reading
//! and the plugin would block), an exit that waits for streams to end (the host's never do).
//! Called by a plugin's `main`. Absent: what the plugin serves; it hands its routes in.

mod connection;
mod services;
mod socket;
mod watchdog;

use std::{
    error::Error,
    fs::{File, OpenOptions},
    io::{self, Write},
    os::fd::AsFd,
    path::PathBuf,
    process::{self, ExitCode},
    thread,
};

use futures::{Stream, StreamExt};
use nix::unistd;
use tokio::{
    net::UnixListener,
    signal::unix::{Signal, SignalKind, signal},
    time::Duration,
};
use tokio_util::sync::CancellationToken;
use tonic::{service::Routes, transport::Server};
use tracing::{info, warn};

use crate::{Agreement, Handshake, HostEnvironment, ServeError, log, log::Sink};
use connection::Connection;
use socket::Socket;
use watchdog::Patience;

/// 256 KiB may be under way on one stream before its reader takes them: an `exec` whose command does not read stops there.
const STREAM_WINDOW_BYTES: u32 = 256 * 1024;

/// 16 MiB may be under way on a connection: room for 64 such stopped streams before they slow the others down.
const CONNECTION_WINDOW_BYTES: u32 = 16 * 1024 * 1024;

const _: () = assert!(CONNECTION_WINDOW_BYTES / STREAM_WINDOW_BYTES >= 64);

/// 1,024 calls cancelled before they were seen: an agent that stops cancels all its streams at once, and that is no attack.
const PENDING_RESETS_MAX: usize = 1024;

/// 100 ms between two tries to accept when the process is out of descriptors.
const ACCEPT_BACKOFF: Duration = Duration::from_millis(100);

/// Where lines go once the host's pipe broke.
const SYSLOG_SOCKET: &str = "/dev/log";

/// What a plugin is, to its host.
#[derive(Clone, Copy, Debug)]
pub struct Plugin {
    /// Its name: the first part of `@module` in its log, and part of its socket's path.
    pub name: &'static str,
    /// What it agreed on with its host.
    pub agreement: Agreement,
}

/// Runs a plugin: this is the whole of a plugin's `main`, but for `--version` and the like, which come before it.
///
/// `make` is called inside the runtime, before the host is told where to connect; it returns the plugin's services. It must be
/// fast and free of side effects: a host launches a plugin several times only to ask what it is.
/// Returns when the host asked for Shutdown or SIGTERM came; the caller returns the code from `main` at once.
pub fn run<Make, Making>(plugin: &Plugin, make: Make) -> ExitCode
where
    Make: FnOnce() -> Making,
    Making: Future<Output = Result<Routes, Box<dyn Error + Send + Sync>>>,
{
    match try_run(plugin, make) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            explain(&error);
            ExitCode::FAILURE
        }
    }
}

fn try_run<Make, Making>(plugin: &Plugin, make: Make) -> Result<(), ServeError>
where
    Make: FnOnce() -> Making,
    Making: Future<Output = Result<Routes, Box<dyn Error + Send + Sync>>>,
{
    let environment = HostEnvironment::read(&plugin.agreement);
    environment.check(plugin.name, &plugin.agreement)?;

    // A duplicate that no child inherits: standard error itself becomes /dev/null later.
    let pipe = io::stderr().as_fd().try_clone_to_owned().map_err(ServeError::Streams)?;
    let sink = Sink::start(plugin.name, File::from(pipe), PathBuf::from(SYSLOG_SOCKET)).map_err(ServeError::Streams)?;
    log::install(plugin.name, &sink);

    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(worker_threads())
        .enable_all()
        .build()
        .map_err(ServeError::Runtime)?;
    let log = sink.clone();
    let hung = move || {
        tracing::error!("the plugin has not answered itself for a minute and ends, so that the host launches it again");
        log.flush();
        process::abort();
    };
    watchdog::start(runtime.handle(), Patience::USUAL, hung).map_err(ServeError::Runtime)?;
    let served = runtime.block_on(serve(plugin, &environment, make));
    if let Err(error) = &served {
        tracing::error!(error = error as &dyn Error, "the plugin ends");
    }
    // Streams that the host holds open never end, and blocking work may not either: the process goes without them.
    runtime.shutdown_background();
    sink.flush();
    served
}

/// At least two, so that one blocked thread is not all of them; at most eight, for a plugin waits more than it works, and
/// nodes have hundreds of cores.
fn worker_threads() -> usize {
    thread::available_parallelism().map_or(2, |cores| cores.get().clamp(2, 8))
}

async fn serve<Make, Making>(plugin: &Plugin, environment: &HostEnvironment, make: Make) -> Result<(), ServeError>
where
    Make: FnOnce() -> Making,
    Making: Future<Output = Result<Routes, Box<dyn Error + Send + Sync>>>,
{
    let mut signals = Signals::install().map_err(ServeError::Runtime)?;
    let (socket, listener) = Socket::listen(plugin.name, environment)?;
    let exit = CancellationToken::new();
    let routes = services::add_own(make().await.map_err(ServeError::Services)?, &exit).await;
    let server = Server::builder()
        .max_concurrent_streams(None)
        .initial_stream_window_size(STREAM_WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_max_pending_accept_reset_streams(Some(PENDING_RESETS_MAX))
        .add_routes(routes)
        .serve_with_incoming(connections(listener));

    let handshake = Handshake {
        protocol_version: plugin.agreement.protocol_version,
        socket: socket.path().to_owned(),
        multiplexes: environment.asks_multiplexing.then_some(false),
    };
    // Traced before it is printed: from then on the host may kill this process at any moment.
    info!(socket = %socket.path().display(), "serving");
    print(&handshake).map_err(ServeError::Handshake)?;
    silence_standard_streams().map_err(ServeError::Streams)?;

    tokio::select! {
        ended = server => ended.map_err(ServeError::Serve),
        () = exit.cancelled() => {
            info!("the host asked for the plugin's end");
            Ok(())
        }
        () = signals.termination() => {
            info!("SIGTERM");
            Ok(())
        }
    }
}

/// The signals a plugin treats differently from other programs.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
    pipe: Signal,
}

impl Signals {
    /// Handlers, not SIG_IGN: children inherit the latter, and would not end by Ctrl-C either.
    fn install() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            pipe: signal(SignalKind::pipe())?,
        })
    }

    /// Returns at SIGTERM. Ctrl-C at the agent's terminal reaches the plugin as well, but the agent still needs it to end in order.
    async fn termination(&mut self) {
        loop {
            tokio::select! {
                _ = self.terminate.recv() => return,
                _ = self.interrupt.recv() => {}
                _ = self.pipe.recv() => {}
            }
        }
    }
}

/// The connections that come in. Never ends; an error to accept is traced and waited out.
fn connections(listener: UnixListener) -> impl Stream<Item = io::Result<Connection>> {
    futures::stream::unfold(listener, |listener| async {
        loop {
            match listener.accept().await {
                Ok((stream, _)) => return Some((Ok(Connection::new(stream)), listener)),
                Err(error) => {
                    warn!(error = &error as &dyn Error, "cannot accept a connection");
                    tokio::time::sleep(ACCEPT_BACKOFF).await;
                }
            }
        }
    })
    .boxed()
}

/// Prints the handshake: the only thing a plugin ever prints on standard output.
fn print(handshake: &Handshake) -> io::Result<()> {
    let mut out = io::stdout().lock();
    writeln!(out, "{handshake}")?;
    out.flush()
}

/// Points standard input, output and error at /dev/null. What a dependency prints by mistake then harms nobody, and no
/// child that inherits them keeps the host from seeing this process's end.
fn silence_standard_streams() -> io::Result<()> {
    let null = OpenOptions::new().read(true).write(true).open("/dev/null")?;
    unistd::dup2_stdin(&null)?;
    unistd::dup2_stdout(&null)?;
    unistd::dup2_stderr(&null)?;
    Ok(())
}

/// Tells a person on standard error why the plugin does not serve. After the handshake that is /dev/null, and the log has it.
fn explain(error: &ServeError) {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        text.push_str(": ");
        text.push_str(&error.to_string());
        cause = error.source();
    }
    let _ = writeln!(io::stderr(), "{text}");
}
