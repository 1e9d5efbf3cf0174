//! Commands in a running task: for scripts and checks (one answer at the end), and for a user's terminal (streams).
//!
//! Invariant: a command does not outlive the one who asked for it. When a deadline passes, when the client goes away or
//! when the future here is dropped, the command is killed, with its process group. Called by `driver.rs`.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::Peekable;
use futures::{Stream, StreamExt};
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getpgid};
use tokio::io::{AsyncWrite, AsyncWriteExt};
use tokio::sync::{mpsc, watch};

use crate::pidfd::PidFd;
use crate::podman::{ExecChunk, ExecSession, ExecSpec, ExecStreams, Podman, PodmanError, TtySize};

/// 1 MiB of each stream is kept of a command without streams: Nomad's checks keep 4 KiB of it, and a script that says more
/// than this must not take the plugin's memory. What comes later is read and forgotten.
const OUTPUT_BYTES_MAX: usize = 1 << 20;

/// Ten seconds for Podman to say how a command ended whose output has ended: it writes that down a moment later.
const EXIT_CODE_LIMIT: Duration = Duration::from_secs(10);

/// Where looking for the exit code begins.
const EXIT_CODE_LOOK_MIN: Duration = Duration::from_millis(5);

/// The longest time between two looks for the exit code.
const EXIT_CODE_LOOK_MAX: Duration = Duration::from_millis(200);

/// A fifth of a second for a client with a terminal to say its size before the command starts.
const FIRST_SIZE_LIMIT: Duration = Duration::from_millis(200);

/// Between two tries to tell a terminal its size. Tries end with the command, since all of a session's work does.
const RESIZE_RETRY: Duration = Duration::from_millis(50);

/// How a command without streams ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecOutcome {
    /// Its exit code.
    pub exit_code: i32,
    /// The beginning of its stdout.
    pub stdout: Vec<u8>,
    /// The beginning of its stderr.
    pub stderr: Vec<u8>,
}

/// What a client with streams sends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecInput {
    /// Bytes for stdin.
    Stdin(Bytes),
    /// End of stdin.
    StdinClosed,
    /// The terminal's size.
    Resize(TtySize),
}

/// What a client with streams asks for.
#[derive(Debug, Clone, Default)]
pub struct StreamingExec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// With a terminal.
    pub tty: bool,
}

/// Why a command has no exit code.
#[derive(Debug, thiserror::Error)]
pub enum ExecError {
    /// Podman failed, or cannot run it.
    #[error(transparent)]
    Podman(#[from] PodmanError),
    /// It took too long and was killed.
    #[error("the command did not end within {0:?} and was killed")]
    TimedOut(Duration),
    /// The client went away and the command was killed.
    #[error("the client went away; the command was killed")]
    ClientGone,
    /// There is nothing to run.
    #[error("the command is empty")]
    Empty,
    /// Podman does not say how it ended.
    #[error("podman does not say how the command ended")]
    NoExitCode,
}

/// Runs a command to its end. Without a timeout it may take as long as it likes.
///
/// # Errors
/// [`ExecError::Podman`], [`ExecError::TimedOut`], [`ExecError::Empty`], [`ExecError::NoExitCode`].
pub async fn exec_task(
    podman: &Arc<dyn Podman>,
    container: &str,
    command: &[String],
    timeout: Option<Duration>,
) -> Result<ExecOutcome, ExecError> {
    let work = async {
        let spec = ExecSpec {
            command: command.to_vec(),
            ..ExecSpec::default()
        };
        let (mut running, mut streams) = Running::start(podman, container, &spec, None).await?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(chunk) = streams.output.next().await {
            match chunk? {
                ExecChunk::Stdout(bytes) => keep(&mut stdout, &bytes),
                ExecChunk::Stderr(bytes) => keep(&mut stderr, &bytes),
            }
        }
        let exit_code = running.exit_code().await?;
        Ok(ExecOutcome {
            exit_code,
            stdout,
            stderr,
        })
    };
    match timeout {
        None => work.await,
        // Dropping the work kills the command.
        Some(limit) => tokio::time::timeout(limit, work)
            .await
            .unwrap_or(Err(ExecError::TimedOut(limit))),
    }
}

/// Runs a command with its streams in a client's hands; returns its exit code. Ends with [`ExecError::ClientGone`] once
/// nobody takes `output` any more. The end of `input` is the end of stdin.
///
/// # Errors
/// As [`exec_task`], with [`ExecError::ClientGone`] instead of a timeout.
pub async fn exec_task_streaming(
    podman: &Arc<dyn Podman>,
    container: &str,
    request: StreamingExec,
    input: impl Stream<Item = ExecInput> + Send,
    output: mpsc::Sender<ExecChunk>,
) -> Result<i32, ExecError> {
    let spec = ExecSpec {
        command: request.command,
        tty: request.tty,
        stdin: true,
        ..ExecSpec::default()
    };
    let mut input = std::pin::pin!(input.peekable());
    let first = if spec.tty {
        first_size(input.as_mut()).await
    } else {
        None
    };
    let (mut running, streams) = Running::start(podman, container, &spec, first).await?;
    let ExecStreams {
        stdin,
        output: mut chunks,
    } = streams;
    let session = running.session.clone();
    let carry_output = async {
        while let Some(chunk) = chunks.next().await {
            if output.send(chunk?).await.is_err() {
                return Err(ExecError::ClientGone);
            }
        }
        Ok(())
    };
    let (tell_size, size) = watch::channel(None);
    let carry_input = async {
        let sizes = carry_sizes(&**podman, &session, size);
        futures::future::join(carry_input(input, stdin, tell_size), sizes).await;
        std::future::pending::<()>().await;
    };
    // The output decides: a command may read its stdin or not, and may end before its input does.
    tokio::select! {
        carried = carry_output => carried?,
        () = carry_input => {}
        () = output.closed() => return Err(ExecError::ClientGone),
    }
    running.exit_code().await
}

/// Input that the command does not want is no error: it may have closed its stdin.
async fn carry_input(
    input: impl Stream<Item = ExecInput>,
    mut stdin: impl AsyncWrite + Unpin,
    tell_size: watch::Sender<Option<TtySize>>,
) {
    let mut input = std::pin::pin!(input);
    let mut open = true;
    while let Some(message) = input.next().await {
        match message {
            ExecInput::Stdin(bytes) if open => open = stdin.write_all(&bytes).await.is_ok(),
            ExecInput::Stdin(_) => {}
            ExecInput::StdinClosed => {
                open = false;
                let _ = stdin.shutdown().await;
            }
            ExecInput::Resize(size) => {
                tell_size.send_replace(Some(size));
            }
        }
    }
    let _ = stdin.shutdown().await;
}

/// The size that a terminal begins with. Users' programs send it at once, and it must go along with the start: told
/// later, conmon (2.1.6) was seen to lose it while Podman (4.3.1) called it done.
async fn first_size<S: Stream<Item = ExecInput>>(mut input: Pin<&mut Peekable<S>>) -> Option<TtySize> {
    let is_size = |input: &ExecInput| matches!(input, ExecInput::Resize(_));
    let first = tokio::time::timeout(FIRST_SIZE_LIMIT, input.as_mut().next_if(is_size)).await;
    match first {
        Ok(Some(ExecInput::Resize(size))) => Some(size),
        Ok(_) | Err(_) => None,
    }
}

/// Tells the terminal each size; again as long as Podman says that the command does not run yet, unless there is a newer
/// one. A terminal of the wrong size is a nuisance, no reason to end somebody's session.
async fn carry_sizes(podman: &dyn Podman, session: &ExecSession, mut sizes: watch::Receiver<Option<TtySize>>) {
    let mut wait = None;
    loop {
        let changed = match wait {
            None => sizes.changed().await,
            Some(wait) => tokio::time::timeout(wait, sizes.changed()).await.unwrap_or(Ok(())),
        };
        let latest = *sizes.borrow_and_update();
        let (Ok(()), Some(size)) = (changed, latest) else {
            return;
        };
        wait = match podman.resize_exec(&session.id, size).await {
            Ok(true) => None,
            Ok(false) => Some(RESIZE_RETRY),
            Err(error) => {
                tracing::debug!(session = session.id, %error, "cannot resize a terminal");
                None
            }
        };
    }
}

fn keep(kept: &mut Vec<u8>, bytes: &[u8]) {
    let room = OUTPUT_BYTES_MAX.saturating_sub(kept.len());
    kept.extend_from_slice(&bytes[..bytes.len().min(room)]);
}

/// A command that runs. Dropped before its exit code is known, it is killed.
struct Running {
    podman: Arc<dyn Podman>,
    container: String,
    session: ExecSession,
    ended: bool,
}

impl Running {
    async fn start(
        podman: &Arc<dyn Podman>,
        container: &str,
        spec: &ExecSpec,
        size: Option<TtySize>,
    ) -> Result<(Self, ExecStreams), ExecError> {
        if spec.command.is_empty() {
            return Err(ExecError::Empty);
        }
        let session = podman.create_exec(container, spec).await?;
        let running = Self {
            podman: Arc::clone(podman),
            container: container.to_owned(),
            session: session.clone(),
            ended: false,
        };
        let streams = podman.start_exec(&session, size).await?;
        Ok((running, streams))
    }

    async fn exit_code(&mut self) -> Result<i32, ExecError> {
        let look = async {
            let mut wait = EXIT_CODE_LOOK_MIN;
            loop {
                let info = self
                    .podman
                    .inspect_exec(&self.session.id)
                    .await?
                    .ok_or(ExecError::NoExitCode)?;
                if info.running == Some(false) {
                    return info.exit_code.ok_or(ExecError::NoExitCode);
                }
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(EXIT_CODE_LOOK_MAX);
            }
        };
        let code = tokio::time::timeout(EXIT_CODE_LIMIT, look)
            .await
            .unwrap_or(Err(ExecError::NoExitCode))?;
        self.ended = true;
        Ok(code)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let Ok(runtime) = tokio::runtime::Handle::try_current() else {
            return;
        };
        if self.ended {
            return;
        }
        let (podman, container, session) = (Arc::clone(&self.podman), self.container.clone(), self.session.clone());
        runtime.spawn(async move {
            if let Err(error) = kill_session(&*podman, &container, &session).await {
                tracing::warn!(container, session = session.id, %error, "cannot kill a command whose client has gone");
            }
        });
    }
}

/// Podman has no verb for this: its kill is for containers. So it is done by the host's pid, held by a descriptor while
/// Podman is asked a second time whether that is still the one.
async fn kill_session(podman: &dyn Podman, container: &str, session: &ExecSession) -> Result<(), ExecError> {
    let Some(pid) = running_pid(podman, session).await? else {
        return Ok(());
    };
    let Ok(process) = PidFd::open(pid) else { return Ok(()) };
    let first = podman
        .inspect_container(container)
        .await?
        .and_then(|info| info.state.pid)
        .map(Pid::from_raw);
    if running_pid(podman, session).await? != Some(pid) {
        return Ok(());
    }
    // crun starts each command in a session of its own, with or without a terminal (seen with 1.8.1), so its children are
    // found by the group. Not so other runtimes: the group of the container's first process, or ours, is never killed.
    let group = getpgid(Some(pid)).ok();
    let not_ours = [first.and_then(|first| getpgid(Some(first)).ok()), getpgid(None).ok()];
    if let Some(group) = group.filter(|group| group.as_raw() > 1 && !not_ours.contains(&Some(*group))) {
        let _ = nix::sys::signal::killpg(group, Signal::SIGKILL);
    }
    if let Err(error) = process.signal(Signal::SIGKILL) {
        tracing::warn!(container, session = session.id, %error, "cannot kill a command");
    }
    Ok(())
}

async fn running_pid(podman: &dyn Podman, session: &ExecSession) -> Result<Option<Pid>, ExecError> {
    let info = podman.inspect_exec(&session.id).await?;
    let pid = info.filter(|info| info.running == Some(true)).and_then(|info| info.pid);
    Ok(pid.filter(|pid| *pid > 1).map(Pid::from_raw))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::{ContainerSpec, ExecScript, FakePodman, ImageInfo};

    async fn fake() -> (Arc<dyn Podman>, String) {
        let podman = FakePodman::new();
        podman.add_image("image", ImageInfo::default());
        let long = Bytes::from(vec![b'x'; OUTPUT_BYTES_MAX + 1]);
        podman.add_exec(
            &["long"],
            ExecScript {
                stdout: long,
                stderr: "e".into(),
                exit_code: 3,
            },
        );
        let spec = ContainerSpec {
            name: "c".into(),
            image: "image".into(),
            ..ContainerSpec::default()
        };
        let id = podman.create_container(&spec).await.unwrap().id;
        podman.start_container(&id).await.unwrap();
        (Arc::new(podman), id)
    }

    #[tokio::test]
    async fn output_is_kept_up_to_its_bound_and_the_exit_code_is_told() {
        let (podman, id) = fake().await;
        let outcome = exec_task(&podman, &id, &["long".to_owned()], None).await.unwrap();
        assert_eq!((outcome.exit_code, outcome.stdout.len()), (3, OUTPUT_BYTES_MAX));
        assert_eq!(outcome.stderr, b"e");
    }

    #[tokio::test]
    async fn an_empty_command_and_a_missing_container_are_errors() {
        let (podman, id) = fake().await;
        assert!(matches!(
            exec_task(&podman, &id, &[], None).await,
            Err(ExecError::Empty)
        ));
        let gone = exec_task(&podman, "gone", &["long".to_owned()], None).await;
        assert!(matches!(gone, Err(ExecError::Podman(PodmanError::NotFound { .. }))));
    }
}
