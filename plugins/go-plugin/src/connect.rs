//! Hosting a plugin, as Nomad does: launch it, wait for its handshake, connect, read its log, end it; or attach to one
//! that outlived another host. Called by tools that play an agent's part and by tests.
//! What may never happen here: a plugin left running by accident (only [`Host::detach`] leaves one), a wait without limit.
//! Absent: what is said over the channel.

mod process;
mod stderr;

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    process::ExitStatus,
    sync::Arc,
    time::Duration,
};

use hyper_util::rt::TokioIo;
use proto::goplugin::{Empty, grpc_controller_client::GrpcControllerClient};
use tokio::{net::UnixStream, sync::watch, time::timeout};
use tonic::transport::{Channel, Endpoint};

use crate::{Agreement, ConnectError};
use process::{Order, Orders};
pub use stderr::LogLine;

/// 60 s: what Nomad gives a plugin to come up.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(60);

/// 2 s to answer Shutdown, and again 2 s to be gone; then the plugin is killed. go-plugin's own figures.
const GRACE: Duration = Duration::from_secs(2);

/// 5 s for a killed process to be seen dead. Longer means it hangs in the kernel.
const KILL_LIMIT: Duration = Duration::from_secs(5);

/// Windows as wide as HashiCorp's client grows them: one slow stream must not slow the others.
const WINDOW_BYTES: u32 = 16 * 1024 * 1024;

/// What reads a plugin's log lines.
pub type LogReader = Arc<dyn Fn(LogLine) + Send + Sync>;

/// How to launch a plugin.
#[derive(Clone)]
pub struct Launch {
    /// What it must agree on.
    pub agreement: Agreement,
    /// The program.
    pub program: PathBuf,
    /// Its arguments.
    pub arguments: Vec<OsString>,
    /// Environment variables beside this process's own and the protocol's.
    pub variables: Vec<(OsString, OsString)>,
    /// How long it has to print its handshake.
    pub handshake_limit: Duration,
    /// Told of each line of its log.
    pub log: LogReader,
}

impl fmt::Debug for Launch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Without the variables: a caller may pass secrets in them.
        f.debug_struct("Launch")
            .field("program", &self.program)
            .field("arguments", &self.arguments)
            .finish_non_exhaustive()
    }
}

/// Where a running plugin is, to attach to it again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reattach {
    /// Its process.
    pub pid: u32,
    /// Its socket.
    pub socket: PathBuf,
}

/// How a plugin's process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exit {
    /// Its status; not known of a plugin that was attached to, for it is not our child.
    pub status: Option<ExitStatus>,
    /// Whether its pipes closed with it. If not, a child of it holds them, and Nomad would not see this end.
    pub pipes_closed: bool,
}

/// How a shutdown went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shutdown {
    /// It went by itself.
    Graceful(Exit),
    /// It had to be killed.
    Killed(Exit),
    /// It was killed and is not seen dead.
    Stuck,
}

/// A plugin that runs. Dropped, it is killed.
#[derive(Debug)]
pub struct Host {
    channel: Channel,
    place: Reattach,
    exit: watch::Receiver<Option<Exit>>,
    orders: Orders,
}

impl Launch {
    /// A launch with Nomad's limits, no arguments, and the log read by nobody.
    pub fn new(agreement: Agreement, program: impl Into<PathBuf>) -> Self {
        Self {
            agreement,
            program: program.into(),
            arguments: Vec::new(),
            variables: Vec::new(),
            handshake_limit: HANDSHAKE_LIMIT,
            log: Arc::new(|_| {}),
        }
    }

    /// Launches the plugin and connects to it.
    ///
    /// # Errors
    /// [`ConnectError`]: it does not start, ends or is silent before its handshake, says something else, or does not listen.
    /// No process is left then.
    pub async fn start(self) -> Result<Host, ConnectError> {
        let started = process::start(&self).await?;
        let channel = dial(&started.handshake.socket).await?;
        let place = Reattach {
            pid: started.pid,
            socket: started.handshake.socket,
        };
        Ok(Host {
            channel,
            place,
            exit: started.exit,
            orders: started.orders,
        })
    }
}

impl Host {
    /// Attaches to a plugin that another host launched. Its log stays with that host's pipe.
    ///
    /// # Errors
    /// [`ConnectError::Gone`] if there is no such process, [`ConnectError::Dial`] if it does not listen.
    pub async fn attach(place: Reattach) -> Result<Self, ConnectError> {
        let (exit, orders) = process::watch(place.pid)?;
        let channel = match dial(&place.socket).await {
            Ok(channel) => channel,
            Err(error) => {
                // The id may belong to another program by now: it is not ours to kill.
                orders.give(Order::Leave).await;
                return Err(error);
            }
        };
        Ok(Self {
            channel,
            place,
            exit,
            orders,
        })
    }

    /// The connection, for any generated client. Clients need `.max_decoding_message_size(MESSAGE_BYTES_MAX)`.
    pub fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// The plugin's process.
    pub fn pid(&self) -> u32 {
        self.place.pid
    }

    /// The plugin's socket.
    pub fn socket(&self) -> &Path {
        &self.place.socket
    }

    /// How the process ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for the process to end by itself.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.clone();
        let exit = exit
            .wait_for(Option::is_some)
            .await
            .expect("the watcher reports before it goes");
        exit.expect("waited until it is there")
    }

    /// Lets the plugin run on without this host, as an agent that is killed does: its log pipe breaks.
    pub async fn detach(self) -> Reattach {
        self.orders.give(Order::Leave).await;
        self.place.clone()
    }

    /// Ends the plugin as go-plugin's client does: asks, waits two seconds, kills.
    /// What the services behind the channel want to be told first is the caller's part.
    pub async fn shutdown(self) -> Shutdown {
        let Self {
            channel, exit, orders, ..
        } = self;
        let asked = async {
            let mut controller = GrpcControllerClient::new(channel);
            // The client goes with this block, so that the plugin sees its host close.
            controller.shutdown(Empty {}).await.is_ok()
        };
        let answered = timeout(GRACE, asked).await.unwrap_or(false);
        if answered && let Some(exit) = wait_within(&exit, GRACE).await {
            return Shutdown::Graceful(exit);
        }
        orders.give(Order::Kill).await;
        match wait_within(&exit, KILL_LIMIT).await {
            Some(exit) => Shutdown::Killed(exit),
            None => Shutdown::Stuck,
        }
    }
}

async fn wait_within(exit: &watch::Receiver<Option<Exit>>, limit: Duration) -> Option<Exit> {
    let mut exit = exit.clone();
    let seen = timeout(limit, exit.wait_for(Option::is_some)).await;
    seen.ok()?.ok().and_then(|exit| *exit)
}

/// Connects to a plugin's socket. The authority is what HashiCorp's client sends.
async fn dial(socket: &Path) -> Result<Channel, ConnectError> {
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { UnixStream::connect(path).await.map(TokioIo::new) }
    });
    Endpoint::from_static("http://unused")
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES)
        .connect_with_connector(connector)
        .await
        .map_err(|source| ConnectError::Dial {
            socket: socket.to_owned(),
            source,
        })
}
