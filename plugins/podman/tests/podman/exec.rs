//! Commands in a real container: their streams, their ends, and that none outlives its client.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use podman_driver::exec::{ExecError, ExecInput, ExecOutcome, StreamingExec, exec_task, exec_task_streaming};
use podman_driver::podman::{ExecChunk, Podman, TtySize};
use tokio::sync::mpsc;

use crate::fixture::PodmanService;

/// A minute: nothing here lasts longer than a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A container that sleeps.
struct Sleeper {
    _service: Arc<PodmanService>,
    podman: Arc<dyn Podman>,
    id: String,
}

impl Sleeper {
    async fn new(name: &str) -> Option<Self> {
        let service = PodmanService::shared()?;
        let podman: Arc<dyn Podman> = Arc::new(service.client());
        let id = podman
            .create_container(&service.shell(name, "sleep 1000"))
            .await
            .unwrap()
            .id;
        podman.start_container(&id).await.unwrap();
        Some(Self {
            _service: service,
            podman,
            id,
        })
    }

    async fn remove(self) {
        self.podman.remove_container(&self.id, true).await.unwrap();
    }

    /// Processes in the container whose command line is this. The container's pid 1 is its `sleep 1000`.
    async fn count(&self, line: &str) -> usize {
        let info = self.podman.inspect_container(&self.id).await.unwrap().unwrap();
        let cgroup = info.state.cgroup_path.unwrap();
        let procs = std::fs::read_to_string(format!("/sys/fs/cgroup/memory{cgroup}/cgroup.procs"))
            .or_else(|_| std::fs::read_to_string(format!("/sys/fs/cgroup{cgroup}/cgroup.procs")))
            .unwrap();
        let is = |pid: &&str| {
            let words = std::fs::read(Path::new("/proc").join(pid).join("cmdline")).unwrap_or_default();
            String::from_utf8_lossy(&words).replace('\0', " ").trim() == line
        };
        procs.lines().filter(is).count()
    }

    async fn until_count(&self, line: &str, wanted: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.count(line).await != wanted {
            assert!(
                Instant::now() < deadline,
                "{} of {line:?}, wanted {wanted}",
                self.count(line).await
            );
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn shell(script: &str) -> Vec<String> {
    ["/bin/sh", "-c", script].map(str::to_owned).to_vec()
}

#[tokio::test]
async fn a_command_without_streams_gives_its_output_and_code() {
    let Some(sleeper) = Sleeper::new("exec-plain").await else {
        return;
    };
    let command = shell("echo out; echo err >&2; exit 42");
    let outcome = exec_task(&sleeper.podman, &sleeper.id, &command, None).await.unwrap();
    let expected = ExecOutcome {
        exit_code: 42,
        stdout: b"out\n".to_vec(),
        stderr: b"err\n".to_vec(),
    };
    assert_eq!(outcome, expected);
    // Podman has attached already when crun finds nothing to run: the reason comes as output, with the shells' code.
    let absent = exec_task(&sleeper.podman, &sleeper.id, &["/bin/absent".to_owned()], None)
        .await
        .unwrap();
    assert_eq!(absent.exit_code, 127);
    assert!(
        String::from_utf8_lossy(&absent.stderr).contains("/bin/absent"),
        "{absent:?}"
    );
    sleeper.remove().await;
}

/// Goal: a script that hangs does not stay. Method: a command with a child of its own, and a short timeout.
#[tokio::test]
async fn a_command_that_takes_too_long_is_killed_with_its_children() {
    let Some(sleeper) = Sleeper::new("exec-timeout").await else {
        return;
    };
    let command = shell("sleep 777 & sleep 888");
    let limit = Duration::from_millis(700);
    let error = exec_task(&sleeper.podman, &sleeper.id, &command, Some(limit))
        .await
        .unwrap_err();
    assert!(matches!(error, ExecError::TimedOut(_)), "{error}");
    sleeper.until_count("sleep 777", 0).await;
    sleeper.until_count("sleep 888", 0).await;
    assert_eq!(sleeper.count("sleep 1000").await, 1, "the task itself goes on");
    sleeper.remove().await;
}

/// Goal: stdin arrives whole and its end is seen, while output flows. Method: five megabytes through `cat`.
#[tokio::test]
async fn five_megabytes_go_in_and_come_out() {
    let Some(sleeper) = Sleeper::new("exec-cat").await else {
        return;
    };
    let piece: Vec<u8> = (0..=255).cycle().take(50_000).collect();
    let expected = piece.repeat(100);
    let mut inputs = vec![ExecInput::Stdin(piece.into()); 100];
    inputs.push(ExecInput::StdinClosed);
    let (output, mut chunks) = mpsc::channel(4);
    let request = StreamingExec {
        command: shell("cat; echo done >&2; exit 3"),
        tty: false,
    };
    let input = futures::stream::iter(inputs);
    let collect = async {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(chunk) = chunks.recv().await {
            match chunk {
                ExecChunk::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecChunk::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            }
        }
        (stdout, stderr)
    };
    let run = exec_task_streaming(&sleeper.podman, &sleeper.id, request, input, output);
    let (code, (stdout, stderr)) = tokio::time::timeout(PATIENCE, futures::future::join(run, collect))
        .await
        .unwrap();
    assert_eq!(code.unwrap(), 3);
    assert!(stdout == expected, "{} bytes of {}", stdout.len(), expected.len());
    assert_eq!(stderr, b"done\n");
    sleeper.remove().await;
}

/// Goal: a terminal has the size that its user's has, also when that changes, and gives one stream. Method: the command
/// says its size again and again.
#[tokio::test]
async fn a_terminal_has_its_users_size() {
    let Some(sleeper) = Sleeper::new("exec-tty").await else {
        return;
    };
    let (input, inputs) = mpsc::channel(4);
    let (output, mut chunks) = mpsc::channel(4);
    let script = "echo ready; until read -t 0.1 line; do stty size; done; echo bye >&2; exit 5";
    let request = StreamingExec {
        command: shell(script),
        tty: true,
    };
    let size = TtySize { height: 33, width: 111 };
    // Sent before the terminal is there, as users' programs do.
    input.send(ExecInput::Resize(size)).await.unwrap();
    let (podman, id) = (Arc::clone(&sleeper.podman), sleeper.id.clone());
    let run = tokio::spawn(async move {
        let inputs = tokio_stream::wrappers::ReceiverStream::new(inputs).boxed();
        exec_task_streaming(&podman, &id, request, inputs, output).await
    });
    let mut text = String::new();
    let mut until = async |wanted: &str| {
        let more = async {
            while !text.contains(wanted) {
                match chunks.recv().await.expect("the terminal is open") {
                    ExecChunk::Stdout(bytes) => text.push_str(&String::from_utf8_lossy(&bytes)),
                    ExecChunk::Stderr(_) => panic!("a terminal has one stream"),
                }
            }
        };
        let came = tokio::time::timeout(PATIENCE, more).await;
        assert!(
            came.is_ok(),
            "no {wanted:?} comes, only {:?}",
            text.get(..200.min(text.len()))
        );
    };
    until("33 111").await;
    input
        .send(ExecInput::Resize(TtySize { height: 44, width: 99 }))
        .await
        .unwrap();
    until("44 99").await;
    input.send(ExecInput::Stdin("q\n".into())).await.unwrap();
    until("bye").await;
    assert_eq!(tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap().unwrap(), 5);
    sleeper.remove().await;
}

/// Goal: nothing stays in a task of somebody who went away. Method: the receiver of the output is dropped (the client's
/// stream is gone) with and without a terminal.
#[tokio::test]
async fn a_command_dies_with_its_client() {
    let Some(sleeper) = Sleeper::new("exec-gone").await else {
        return;
    };
    for tty in [false, true] {
        let (output, chunks) = mpsc::channel(4);
        let request = StreamingExec {
            command: shell("sleep 555 & sleep 666"),
            tty,
        };
        let (podman, id) = (Arc::clone(&sleeper.podman), sleeper.id.clone());
        let input = futures::stream::pending();
        let run = tokio::spawn(async move { exec_task_streaming(&podman, &id, request, input, output).await });
        sleeper.until_count("sleep 666", 1).await;
        drop(chunks);
        let ended = tokio::time::timeout(PATIENCE, run).await.unwrap().unwrap();
        assert!(matches!(ended, Err(ExecError::ClientGone)), "{ended:?}");
        sleeper.until_count("sleep 555", 0).await;
        sleeper.until_count("sleep 666", 0).await;
    }
    sleeper.remove().await;
}
