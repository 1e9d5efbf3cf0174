//! A plugin's process, from its launch to its end: one task owns it and reports.

use std::{
    process::Stdio,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{
    io::{AsyncBufReadExt, AsyncReadExt, BufReader},
    process::{Child, ChildStdout, Command},
    sync::{mpsc, watch},
    task::JoinHandle,
    time::{MissedTickBehavior, interval, timeout},
};

use super::{Exit, Launch, LogReader, stderr};
use crate::{ConnectError, Handshake, LogLine};

/// 4 KiB: a handshake is one short line; more is a program that is no plugin and talks.
const HANDSHAKE_BYTES_MAX: u64 = 4096;

/// 1 s for the pipes to close after the process; what keeps them open longer is a child that inherited them.
const PIPES_LIMIT: Duration = Duration::from_secs(1);

/// 100 ms between two looks at a process that is not our child. go-plugin looks once a second.
const POLL_INTERVAL: Duration = Duration::from_millis(100);

/// A plugin that printed its handshake.
pub(super) struct Started {
    pub(super) handshake: Handshake,
    pub(super) pid: u32,
    pub(super) exit: watch::Receiver<Option<Exit>>,
    pub(super) orders: Orders,
}

/// What the watching task can be told. Hanging up means Kill.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    Kill,
    Leave,
}

/// The way to the watching task.
#[derive(Debug)]
pub(super) struct Orders(mpsc::Sender<Order>);

impl Orders {
    /// Gives an order; of no effect once the process ended.
    pub(super) async fn give(&self, order: Order) {
        let _ = self.0.send(order).await;
        // The task hangs up once it has left or killed, so that the caller goes on after the deed.
        self.0.closed().await;
    }
}

/// A child that is killed when this is dropped, unless it was left: also when the runtime ends under the watching task.
struct Owned {
    child: Child,
    left: bool,
}

impl Drop for Owned {
    fn drop(&mut self) {
        if !self.left {
            // Of no effect on a child that was waited for.
            let _ = self.child.start_kill();
        }
    }
}

/// Launches a plugin and waits for its handshake.
pub(super) async fn start(launch: &Launch) -> Result<Started, ConnectError> {
    let program = &launch.program;
    let failed = |source| ConnectError::Process {
        program: program.clone(),
        source,
    };
    let child = command(launch).spawn().map_err(|source| ConnectError::Spawn {
        program: program.clone(),
        source,
    })?;
    let mut owned = Owned { child, left: false };
    let pid = owned.child.id().expect("a child that was not waited for has an id");
    let stderr = owned.child.stderr.take().expect("stderr is piped");
    let mut stdout = BufReader::new(owned.child.stdout.take().expect("stdout is piped"));

    let tail = Arc::new(Mutex::new(stderr::Tail::default()));
    let log_reader = tokio::spawn(stderr::read(stderr, launch.log.clone(), tail.clone()));
    let said = || tail.lock().unwrap_or_else(PoisonError::into_inner).text();

    let mut line = Vec::new();
    let mut start = (&mut stdout).take(HANDSHAKE_BYTES_MAX);
    let reading = start.read_until(b'\n', &mut line);
    let Ok(read) = timeout(launch.handshake_limit, reading).await.map(Result::ok) else {
        let limit_secs = launch.handshake_limit.as_secs();
        return Err(ConnectError::HandshakeTimeout {
            program: program.clone(),
            limit_secs,
            stderr: said(),
        });
    };
    if read.is_none_or(|length| length == 0) {
        // It closed its output: it is gone, or as good as.
        let status = match timeout(PIPES_LIMIT, owned.child.wait()).await {
            Ok(status) => status.map_err(failed)?,
            Err(_) => {
                owned.child.start_kill().map_err(failed)?;
                owned.child.wait().await.map_err(failed)?
            }
        };
        let _ = timeout(PIPES_LIMIT, log_reader).await;
        return Err(ConnectError::ExitedBeforeHandshake {
            program: program.clone(),
            status,
            stderr: said(),
        });
    }
    let line = String::from_utf8_lossy(&line).into_owned();
    let handshake = Handshake::parse(&line).map_err(|source| ConnectError::Handshake {
        program: program.clone(),
        line: line.trim_end().to_owned(),
        source,
    })?;
    let (got, want) = (handshake.protocol_version, launch.agreement.protocol_version);
    if got != want {
        return Err(ConnectError::ProtocolVersion {
            program: program.clone(),
            got,
            want,
        });
    }

    let output_reader = tokio::spawn(read_stray_output(stdout, launch.log.clone()));
    let (report, exit) = watch::channel(None);
    let (orders, orders_in) = mpsc::channel(1);
    tokio::spawn(supervise(owned, [log_reader, output_reader], orders_in, report));
    Ok(Started {
        handshake,
        pid,
        exit,
        orders: Orders(orders),
    })
}

/// The command as Nomad makes it: this process's environment, and the protocol's variables.
fn command(launch: &Launch) -> Command {
    let mut command = Command::new(&launch.program);
    for name in ["PLUGIN_CLIENT_CERT", "PLUGIN_MULTIPLEX_GRPC", "NOTIFY_SOCKET"] {
        command.env_remove(name);
    }
    command
        .args(&launch.arguments)
        .env(launch.agreement.cookie_name, launch.agreement.cookie_value)
        .env("PLUGIN_MIN_PORT", "10000")
        .env("PLUGIN_MAX_PORT", "25000")
        .env(
            "PLUGIN_PROTOCOL_VERSIONS",
            launch.agreement.protocol_version.to_string(),
        )
        .envs(launch.variables.iter().map(|(name, value)| (name, value)))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// Owns the process until it ends, is killed or is left.
async fn supervise(
    mut owned: Owned,
    mut readers: [JoinHandle<()>; 2],
    mut orders: mpsc::Receiver<Order>,
    report: watch::Sender<Option<Exit>>,
) {
    let status = tokio::select! {
        status = owned.child.wait() => status,
        order = orders.recv() => match order {
            Some(Order::Leave) => {
                owned.left = true;
                readers.iter().for_each(JoinHandle::abort);
                return;
            }
            Some(Order::Kill) | None => {
                // Failing means that it ended just now.
                let _ = owned.child.start_kill();
                orders.close();
                owned.child.wait().await
            }
        },
    };
    let closed = async {
        for reader in &mut readers {
            let _ = reader.await;
        }
    };
    let pipes_closed = timeout(PIPES_LIMIT, closed).await.is_ok();
    readers.iter().for_each(JoinHandle::abort);
    report.send_replace(Some(Exit {
        status: status.ok(),
        pipes_closed,
    }));
}

/// Watches a process that is not our child.
///
/// # Errors
/// [`ConnectError::Gone`] if there is none of that id.
pub(super) fn watch(pid: u32) -> Result<(watch::Receiver<Option<Exit>>, Orders), ConnectError> {
    let gone = || ConnectError::Gone { pid };
    let process = Pid::from_raw(i32::try_from(pid).map_err(|_| gone())?);
    if kill(process, None) == Err(Errno::ESRCH) {
        return Err(gone());
    }
    let (report, exit) = watch::channel(None);
    let (orders, mut orders_in) = mpsc::channel(1);
    tokio::spawn(async move {
        let mut ticks = interval(POLL_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut obeying = true;
        loop {
            tokio::select! {
                _ = ticks.tick() => {
                    if kill(process, None) == Err(Errno::ESRCH) {
                        report.send_replace(Some(Exit { status: None, pipes_closed: true }));
                        return;
                    }
                }
                order = orders_in.recv(), if obeying => match order {
                    Some(Order::Leave) => return,
                    Some(Order::Kill) | None => {
                        obeying = false;
                        orders_in.close();
                        let _ = kill(process, Signal::SIGKILL);
                    }
                },
            }
        }
    });
    Ok((exit, Orders(orders)))
}

/// Reads what a plugin prints on standard output after its handshake, which it should not: its author is told.
async fn read_stray_output(mut stdout: BufReader<ChildStdout>, log: LogReader) {
    let mut piece = vec![0; 4096];
    while let Ok(length @ 1..) = stdout.read(&mut piece).await {
        let text = String::from_utf8_lossy(&piece[..length]);
        log(LogLine::warning(format!(
            "the plugin printed on standard output after its handshake: {}",
            text.trim_end()
        )));
    }
}
