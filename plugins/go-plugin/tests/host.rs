//! `serve` and `connect` against each other: the example driver is launched as Nomad launches it.
//! HashiCorp's own client does the same from the Go module in the workspace's tests.

#![expect(clippy::unwrap_used, reason = "helpers of tests fail like tests")]

use std::{
    env,
    io::Read,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use futures::{StreamExt, future::join_all};
use go_plugin::{Agreement, ConnectError, Exit, Host, Launch, LogLine, MESSAGE_BYTES_MAX, Shutdown};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use proto::{
    goplugin::{grpc_broker_client::GrpcBrokerClient, grpc_stdio_client::GrpcStdioClient},
    nomad::driver::{driver_client::DriverClient, *},
};
use tempfile::TempDir;
use tokio::time::timeout;
use tonic::transport::Channel;
use tonic_health::pb::{HealthCheckRequest, health_client::HealthClient};

/// 20 s: far beyond what anything here takes, so that only a hang reaches it.
const DEADLINE: Duration = Duration::from_secs(20);

/// The example driver, which cargo builds with the tests of this crate.
fn timer() -> PathBuf {
    let tests = env::current_exe().unwrap();
    let program = tests.parent().unwrap().parent().unwrap().join("examples/timer");
    if !program.exists() {
        // One test target was asked for by name, and examples are not built for that.
        let status = Command::new(env!("CARGO"))
            .args(["build", "--quiet", "--package", "go-plugin", "--example", "timer"])
            .status();
        assert!(status.unwrap().success());
    }
    program
}

struct World {
    folder: TempDir,
    log: Arc<Mutex<Vec<LogLine>>>,
}

impl World {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            log: Arc::default(),
        }
    }

    fn launch(&self, program: impl Into<PathBuf>) -> Launch {
        let log = self.log.clone();
        Launch {
            variables: vec![("PLUGIN_UNIX_SOCKET_DIR".into(), self.folder.path().into())],
            handshake_limit: DEADLINE,
            log: Arc::new(move |line| log.lock().unwrap().push(line)),
            ..Launch::new(Agreement::NOMAD, program)
        }
    }

    async fn start(&self) -> Host {
        self.launch(timer()).start().await.unwrap()
    }

    /// A program that is no plugin.
    fn script(&self, text: &str) -> Launch {
        let launch = self.launch("/bin/sh");
        Launch {
            arguments: vec!["-c".into(), text.into()],
            ..launch
        }
    }

    /// Waits for a line of the log.
    async fn logged(&self, part: &str) -> LogLine {
        let started = Instant::now();
        loop {
            if let Some(line) = self.log.lock().unwrap().iter().find(|line| line.message.contains(part)) {
                return line.clone();
            }
            assert!(
                started.elapsed() < DEADLINE,
                "no line with {part:?} in {:?}",
                self.log.lock().unwrap()
            );
            tokio::task::yield_now().await;
        }
    }

    fn sockets(&self) -> usize {
        std::fs::read_dir(self.folder.path()).unwrap().count()
    }
}

fn driver(host: &Host) -> DriverClient<Channel> {
    DriverClient::new(host.channel()).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// A task with an environment.
fn task(id: &str, env: &[(&str, &str)]) -> StartTaskRequest {
    let env = env
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    StartTaskRequest {
        task: Some(TaskConfig {
            id: id.into(),
            name: id.into(),
            env,
            ..TaskConfig::default()
        }),
    }
}

async fn result(driver: &mut DriverClient<Channel>, id: &str) -> ExitResult {
    let waiting = driver.wait_task(WaitTaskRequest { task_id: id.into() });
    timeout(DEADLINE, waiting)
        .await
        .unwrap()
        .unwrap()
        .into_inner()
        .result
        .unwrap()
}

fn is_graceful(shutdown: Shutdown) -> Exit {
    match shutdown {
        Shutdown::Graceful(exit) => exit,
        Shutdown::Killed(_) | Shutdown::Stuck => panic!("{shutdown:?}"),
    }
}

#[tokio::test]
async fn a_plugin_is_launched_used_and_ended_within_its_grace() {
    let world = World::new();
    let host = world.start().await;
    let mut driver = driver(&host);
    // As Nomad has it at every moment: streams that never end.
    let mut broker = GrpcBrokerClient::new(host.channel());
    let _broker = broker.start_stream(futures::stream::pending()).await.unwrap();
    let _stdio = GrpcStdioClient::new(host.channel()).stream_stdio(()).await.unwrap();
    let mut fingerprint = driver.fingerprint(FingerprintRequest {}).await.unwrap().into_inner();
    assert_eq!(
        fingerprint.next().await.unwrap().unwrap().health_description,
        "Time passes."
    );

    let health = HealthCheckRequest {
        service: "plugin".into(),
    };
    let health = HealthClient::new(host.channel())
        .check(health)
        .await
        .unwrap()
        .into_inner();
    assert_eq!(health.status, 1, "SERVING");

    driver
        .start_task(task("t", &[("DURATION_MS", "30"), ("EXIT_CODE", "3")]))
        .await
        .unwrap();
    assert_eq!(result(&mut driver, "t").await.exit_code, 3);

    assert_eq!(world.sockets(), 1);
    let started = Instant::now();
    let exit = is_graceful(host.shutdown().await);
    assert!(exit.status.unwrap().success() && exit.pipes_closed, "{exit:?}");
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
    assert_eq!(world.sockets(), 0);
    assert_eq!(
        world.logged("serving").await.module.as_deref(),
        Some("timer.go_plugin.serve")
    );
}

/// Goal: no limit of streams dead-locks an agent with many tasks. Method: 400 waits on one connection, then a stop through it.
#[tokio::test]
async fn hundreds_of_waits_leave_room_for_a_stop() {
    let world = World::new();
    let host = world.start().await;
    let driver = driver(&host);
    let ids: Vec<String> = (0..400).map(|n| format!("t{n}")).collect();
    let waits = ids.iter().map(|id| {
        let mut driver = driver.clone();
        async move {
            driver
                .start_task(task(id, &[("DURATION_MS", "3600000")]))
                .await
                .unwrap();
            result(&mut driver, id).await
        }
    });
    let stops = async {
        let mut driver = driver.clone();
        for id in &ids {
            // A start may still be under way: stopping what is not there is no error, so ask until it is.
            while driver
                .inspect_task(InspectTaskRequest { task_id: id.clone() })
                .await
                .is_err()
            {}
            driver
                .stop_task(StopTaskRequest {
                    task_id: id.clone(),
                    ..StopTaskRequest::default()
                })
                .await
                .unwrap();
        }
    };
    let (results, ()) = timeout(DEADLINE, async { tokio::join!(join_all(waits), stops) })
        .await
        .unwrap();
    assert!(results.iter().all(|result| result.signal == 15));
    is_graceful(host.shutdown().await);
}

#[tokio::test]
async fn a_message_far_above_tonics_own_limit_is_taken() {
    let world = World::new();
    let host = world.start().await;
    let template = "x".repeat(20 * 1024 * 1024);
    let response = driver(&host)
        .start_task(task("t", &[("TEMPLATE", &template)]))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(
        response.handle.unwrap().config.unwrap().env["TEMPLATE"].len(),
        template.len()
    );
    is_graceful(host.shutdown().await);
}

#[tokio::test]
async fn a_plugin_that_is_killed_is_seen_to_end_and_its_task_recovers_in_the_next() {
    let world = World::new();
    let host = world.start().await;
    let started = driver(&host)
        .start_task(task("t", &[("DURATION_MS", "400"), ("EXIT_CODE", "7")]))
        .await
        .unwrap();
    let handle = started.into_inner().handle;
    kill(Pid::from_raw(host.pid().cast_signed()), Signal::SIGKILL).unwrap();
    let exit = timeout(DEADLINE, host.wait()).await.unwrap();
    assert!(exit.pipes_closed && !exit.status.unwrap().success(), "{exit:?}");
    assert_eq!(world.sockets(), 1, "it could not clean up");

    let next = world.start().await;
    assert_eq!(world.sockets(), 1, "the next one did");
    let mut driver = driver(&next);
    driver
        .recover_task(RecoverTaskRequest {
            handle,
            ..RecoverTaskRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(result(&mut driver, "t").await.exit_code, 7);
    is_graceful(next.shutdown().await);
}

/// Goal: an agent that was killed finds its plugin again. Method: the first host lets go without a word, so that the log's
/// pipe breaks; the second attaches by process and socket, the plugin logs and works on.
#[tokio::test]
async fn a_plugin_outlives_its_host_and_is_attached_to_again() {
    let world = World::new();
    let host = world.start().await;
    driver(&host)
        .start_task(task("t", &[("DURATION_MS", "3600000")]))
        .await
        .unwrap();
    let place = host.detach().await;

    let again = Host::attach(place.clone()).await.unwrap();
    assert_eq!(again.pid(), place.pid);
    let mut driver = driver(&again);
    driver.start_task(task("child", &[("LEAVE_CHILD", "0")])).await.unwrap();
    driver
        .stop_task(StopTaskRequest {
            task_id: "t".into(),
            ..StopTaskRequest::default()
        })
        .await
        .unwrap();
    assert_eq!(result(&mut driver, "t").await.signal, 15);
    is_graceful(again.shutdown().await);
    assert!(matches!(
        Host::attach(place).await,
        Err(ConnectError::Gone { .. } | ConnectError::Dial { .. })
    ));
}

#[tokio::test]
async fn what_is_printed_after_the_handshake_blocks_nothing_and_reaches_nobody() {
    let world = World::new();
    let host = world.start().await;
    let mut driver = driver(&host);
    let printing = driver.start_task(task("t", &[("PRINT", "1")]));
    timeout(DEADLINE, printing).await.unwrap().unwrap();
    is_graceful(host.shutdown().await);
    assert!(
        world
            .log
            .lock()
            .unwrap()
            .iter()
            .all(|line| !line.message.contains("xxx"))
    );
}

#[tokio::test]
async fn a_child_left_behind_does_not_hide_the_plugins_end() {
    let world = World::new();
    let host = world.start().await;
    driver(&host)
        .start_task(task("t", &[("LEAVE_CHILD", "5")]))
        .await
        .unwrap();
    world.logged("left a child").await;
    let exit = is_graceful(host.shutdown().await);
    assert!(exit.pipes_closed, "the child holds the host's pipes");
}

#[tokio::test]
async fn a_panic_is_one_error_line_and_not_the_end() {
    let world = World::new();
    let host = world.start().await;
    let mut driver = driver(&host);
    driver.start_task(task("t", &[("PANIC", "1")])).await.unwrap_err();
    let line = world.logged("panicked: asked to panic").await;
    assert_eq!(line.level, tracing::Level::ERROR);
    assert!(
        line.fields["location"].as_str().unwrap().contains("timer.rs"),
        "{line:?}"
    );
    driver.start_task(task("t", &[])).await.unwrap();
    is_graceful(host.shutdown().await);
}

/// Ctrl-C at the agent's terminal reaches its plugins too; only the agent decides when they go.
#[tokio::test]
async fn an_interrupt_is_ignored_and_a_termination_is_not() {
    let world = World::new();
    let host = world.start().await;
    let process = Pid::from_raw(host.pid().cast_signed());
    for signal in [Signal::SIGINT, Signal::SIGPIPE] {
        kill(process, signal).unwrap();
    }
    driver(&host).start_task(task("t", &[])).await.unwrap();
    assert_eq!(host.exit(), None);
    kill(process, Signal::SIGTERM).unwrap();
    let exit = timeout(DEADLINE, host.wait()).await.unwrap();
    assert_eq!(exit.status.unwrap().code(), Some(0));
    assert_eq!(world.sockets(), 0);
}

#[tokio::test]
async fn a_host_that_is_dropped_leaves_no_plugin() {
    let world = World::new();
    let host = world.start().await;
    let process = Pid::from_raw(host.pid().cast_signed());
    drop(host);
    let started = Instant::now();
    while kill(process, None).is_ok() {
        assert!(started.elapsed() < DEADLINE, "{process} lives");
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn a_program_that_is_no_plugin_is_refused_with_its_own_words() {
    let world = World::new();
    let refused = async |text| world.script(text).start().await.unwrap_err();

    let error = refused("echo 'no such disk' >&2; exit 4").await;
    assert!(matches!(error, ConnectError::ExitedBeforeHandshake { .. }), "{error:?}");
    assert!(
        error.to_string().contains("no such disk") && error.to_string().contains("exit status: 4"),
        "{error}"
    );

    let error = refused("echo hello; exec sleep 60").await;
    assert!(
        matches!(&error, ConnectError::Handshake { line, .. } if line == "hello"),
        "{error:?}"
    );

    let error = refused("echo '1|3|unix|/nonexistent|grpc|'; exec sleep 60").await;
    assert!(
        matches!(error, ConnectError::ProtocolVersion { got: 3, want: 2, .. }),
        "{error:?}"
    );

    let error = refused("echo '1|2|unix|/nonexistent|grpc|'; exec sleep 60").await;
    assert!(matches!(error, ConnectError::Dial { .. }), "{error:?}");

    let silent = Launch {
        handshake_limit: Duration::from_millis(50),
        ..world.script("exec sleep 60")
    };
    let error = silent.start().await.unwrap_err();
    assert!(matches!(error, ConnectError::HandshakeTimeout { .. }), "{error:?}");

    let error = world.launch("/nonexistent").start().await.unwrap_err();
    assert!(matches!(error, ConnectError::Spawn { .. }), "{error:?}");
}

/// A person who starts the program, or a host of another kind, is told what it is.
#[test]
fn a_plugin_started_by_hand_explains_itself() {
    let explained = |variables: &[(&str, &str)]| {
        let mut command = Command::new(timer());
        command
            .env_remove(Agreement::NOMAD.cookie_name)
            .envs(variables.iter().copied());
        let output = command.stdin(Stdio::null()).output().unwrap();
        assert_eq!(
            (output.status.code(), output.stdout.as_slice()),
            (Some(1), [].as_slice())
        );
        String::from_utf8(output.stderr).unwrap()
    };
    assert!(explained(&[]).contains("timer is a plugin of Nomad"));
    let cookie = (Agreement::NOMAD.cookie_name, Agreement::NOMAD.cookie_value);
    assert!(explained(&[cookie, ("PLUGIN_CLIENT_CERT", "PEM")]).contains("TLS"));
    assert!(explained(&[cookie, ("PLUGIN_PROTOCOL_VERSIONS", "9")]).contains("versions 9"));
    assert!(explained(&[cookie, ("PLUGIN_UNIX_SOCKET_DIR", "/nonexistent")]).contains("/nonexistent"));
}

/// Asked whether it multiplexes, a plugin answers no in a seventh field; HashiCorp's client waits for the answer.
#[test]
fn a_host_that_asks_for_multiplexing_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let mut child = Command::new(timer())
        .env(Agreement::NOMAD.cookie_name, Agreement::NOMAD.cookie_value)
        .env("PLUGIN_UNIX_SOCKET_DIR", folder.path())
        .env("PLUGIN_MULTIPLEX_GRPC", "true")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    // To its end: the plugin closes its output after the handshake.
    child.stdout.take().unwrap().read_to_string(&mut line).unwrap();
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGTERM).unwrap();
    child.wait().unwrap();
    let socket = line
        .strip_prefix("1|2|unix|")
        .and_then(|rest| rest.strip_suffix("|grpc||false\n"))
        .unwrap();
    assert!(Path::new(socket).starts_with(folder.path()), "{line}");
}
