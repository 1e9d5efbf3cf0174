//! ExecTask and ExecTaskStreaming: the messages of a command in a task. What a command is, and when it is killed, is in
//! `crate::exec`.

use std::time::Duration;

use futures::stream::{self, StreamExt};
use futures::{FutureExt, Stream};
use proto::nomad::driver::{
    ExecTaskResponse, ExecTaskStreamingIoOperation, ExecTaskStreamingRequest, ExecTaskStreamingResponse, ExitResult,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use super::Messages;
use crate::error::DriverError;
use crate::exec::{ExecError, ExecInput, StreamingExec, exec_task, exec_task_streaming};
use crate::grpc;
use crate::plugin::Plugin;
use crate::podman::{ExecChunk, TtySize};

/// Sixteen pieces of output on their way: a command waits when its client does not read.
const CHUNKS_MAX: usize = 16;

/// Runs a command to its end. No limit: as long as it takes.
pub(super) async fn run(
    plugin: &Plugin,
    id: &str,
    command: Vec<String>,
    limit: Duration,
) -> Result<ExecTaskResponse, DriverError> {
    let task = plugin.task(id)?;
    let limit = (!limit.is_zero()).then_some(limit);
    let outcome = exec_task(&task.podman, &task.handle.container_id, &command, limit).await;
    let outcome = outcome.map_err(failed)?;
    Ok(ExecTaskResponse {
        stdout: outcome.stdout,
        stderr: outcome.stderr,
        result: Some(result(outcome.exit_code)),
    })
}

/// Runs a command with its streams. The command dies with the client's stream.
pub(super) async fn stream(
    plugin: &Plugin,
    mut input: Streaming<ExecTaskStreamingRequest>,
) -> Result<Messages<ExecTaskStreamingResponse>, DriverError> {
    let first = input.message().await.ok().flatten();
    let setup = first
        .and_then(|first| first.setup)
        .ok_or(DriverError::Incomplete { what: "setup" })?;
    let task = plugin.task(&setup.task_id)?;
    let request = StreamingExec {
        command: setup.command,
        tty: setup.tty,
    };
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    // On a task of its own: it must see the client go away, also when nobody polls the answer any more.
    let run = tokio::spawn(async move {
        exec_task_streaming(&task.podman, &task.handle.container_id, request, inputs(input), sender).await
    });
    let tty = setup.tty;
    let end = run.map(move |ended| match ended {
        Ok(Ok(exit_code)) => last_messages(exit_code, tty).into_iter().map(Ok).collect(),
        Ok(Err(error)) => vec![Err(grpc::status(&failed(error)))],
        Err(_panic) => vec![Err(grpc::status(&DriverError::Exec {
            message: "it was cut off".to_owned(),
        }))],
    });
    let output = ReceiverStream::new(chunks).map(|chunk| Ok(message(chunk)));
    let end = end
        .into_stream()
        .flat_map(|messages: Vec<Result<_, Status>>| stream::iter(messages));
    Ok(output.chain(end).boxed())
}

/// What the client sends, without the heartbeats. One message may carry both input and a size.
fn inputs(input: Streaming<ExecTaskStreamingRequest>) -> impl Stream<Item = ExecInput> + Send {
    let requests = input.take_while(|message| std::future::ready(message.is_ok()));
    requests
        .filter_map(|message| std::future::ready(message.ok()))
        .flat_map(|message| stream::iter(decoded(message)))
}

fn decoded(message: ExecTaskStreamingRequest) -> Vec<ExecInput> {
    let mut inputs = Vec::new();
    if let Some(size) = message.tty_size {
        let side = |side: i32| u16::try_from(side.max(0)).unwrap_or(u16::MAX);
        inputs.push(ExecInput::Resize(TtySize {
            height: side(size.height),
            width: side(size.width),
        }));
    }
    if let Some(stdin) = message.stdin {
        if !stdin.data.is_empty() {
            inputs.push(ExecInput::Stdin(stdin.data.into()));
        }
        if stdin.close {
            inputs.push(ExecInput::StdinClosed);
        }
    }
    inputs
}

fn message(chunk: ExecChunk) -> ExecTaskStreamingResponse {
    let data = |bytes: bytes::Bytes| {
        Some(ExecTaskStreamingIoOperation {
            data: bytes.into(),
            close: false,
        })
    };
    match chunk {
        ExecChunk::Stdout(bytes) => ExecTaskStreamingResponse {
            stdout: data(bytes),
            ..Default::default()
        },
        ExecChunk::Stderr(bytes) => ExecTaskStreamingResponse {
            stderr: data(bytes),
            ..Default::default()
        },
    }
}

/// The streams end first, each in a message of its own, then the command.
fn last_messages(exit_code: i32, tty: bool) -> Vec<ExecTaskStreamingResponse> {
    let close = || {
        Some(ExecTaskStreamingIoOperation {
            data: Vec::new(),
            close: true,
        })
    };
    let mut messages = vec![ExecTaskStreamingResponse {
        stdout: close(),
        ..Default::default()
    }];
    if !tty {
        messages.push(ExecTaskStreamingResponse {
            stderr: close(),
            ..Default::default()
        });
    }
    messages.push(ExecTaskStreamingResponse {
        exited: true,
        result: Some(result(exit_code)),
        ..Default::default()
    });
    messages
}

fn result(exit_code: i32) -> ExitResult {
    ExitResult {
        exit_code,
        ..Default::default()
    }
}

fn failed(error: ExecError) -> DriverError {
    match error {
        ExecError::TimedOut(limit) => DriverError::ExecTimedOut {
            seconds: limit.as_secs_f64(),
        },
        other => DriverError::Exec {
            message: other.to_string(),
        },
    }
}

#[cfg(test)]
mod tests {
    use proto::nomad::driver::exec_task_streaming_request::TerminalSize;

    use super::*;

    #[test]
    fn heartbeats_are_nothing_and_sizes_come_before_input() {
        assert!(decoded(ExecTaskStreamingRequest::default()).is_empty());
        let both = ExecTaskStreamingRequest {
            tty_size: Some(TerminalSize {
                height: 24,
                width: 100_000,
            }),
            stdin: Some(ExecTaskStreamingIoOperation {
                data: b"ls".to_vec(),
                close: true,
            }),
            ..Default::default()
        };
        let size = TtySize {
            height: 24,
            width: u16::MAX,
        };
        let expected = [
            ExecInput::Resize(size),
            ExecInput::Stdin("ls".into()),
            ExecInput::StdinClosed,
        ];
        assert_eq!(decoded(both), expected);
    }

    #[test]
    fn the_last_message_has_the_result() {
        let last = last_messages(3, true);
        assert_eq!(last.len(), 2);
        assert_eq!(last[1].result.as_ref().map(|result| result.exit_code), Some(3));
        assert!(last[1].exited && last_messages(0, false).len() == 3);
    }
}
