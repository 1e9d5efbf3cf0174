//! `exec/…`: commands inside running containers. Starting one leaves HTTP: the connection becomes the command's stdin
//! and output, so this file speaks on the bare socket.
//!
//! Invariant: not a byte that Podman sent behind its answer's head is lost, and closing stdin leaves the output open
//! (4.3.1 was seen to pass the half-close on at once).

use std::pin::Pin;

use bytes::{Buf, Bytes, BytesMut};
use futures::stream;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;

use super::client::Client;
use super::socket::{CALL_LIMIT, Call, Socket};
use super::{ExecChunk, ExecInfo, ExecSession, ExecSpec, ExecStreams, PodmanError, TtySize};

/// 64 KiB: the head of an answer longer than this is none of Podman's.
const HEAD_BYTES_MAX: usize = 64 << 10;

/// 64 KiB of output at a time, the size of a pipe.
const OUTPUT_PIECE_BYTES: usize = 64 << 10;

/// 16 MiB: Podman's frames are a read of some 32 KiB; a length above this is not one.
const FRAME_BYTES_MAX: usize = 16 << 20;

/// stream (1 byte), three zero bytes, length (4 bytes, big endian).
const FRAME_HEAD_BYTES: usize = 8;

#[derive(Serialize)]
#[serde(rename_all = "PascalCase")]
struct CreateBody<'a> {
    cmd: &'a [String],
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    tty: bool,
    #[serde(skip_serializing_if = "<[String]>::is_empty")]
    env: &'a [String],
    #[serde(skip_serializing_if = "Option::is_none")]
    user: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    working_dir: Option<&'a str>,
}

#[derive(Serialize)]
struct StartBody {
    #[serde(rename = "Detach")]
    detach: bool,
    #[serde(rename = "Tty")]
    tty: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    h: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    w: Option<u16>,
}

#[derive(Deserialize)]
struct Created {
    #[serde(rename = "Id")]
    id: String,
}

pub(super) async fn create(client: &Client, container: &str, spec: &ExecSpec) -> Result<ExecSession, PodmanError> {
    let body = CreateBody {
        cmd: &spec.command,
        attach_stdin: spec.stdin,
        attach_stdout: true,
        attach_stderr: true,
        tty: spec.tty,
        env: &spec.env,
        user: spec.user.as_deref(),
        working_dir: spec.working_dir.as_deref(),
    };
    let call = Call::post(client.target_of("containers", container, "/exec").await?).json(&body);
    let created: Created = client.socket.send(&call).await?.json()?;
    Ok(ExecSession {
        id: created.id,
        tty: spec.tty,
    })
}

pub(super) async fn inspect(client: &Client, session: &str) -> Result<Option<ExecInfo>, PodmanError> {
    let call = Call::get(client.target_of("exec", session, "/json").await?);
    client.socket.send(&call).await?.json_if_found()
}

pub(super) async fn resize(client: &Client, session: &str, size: TtySize) -> Result<bool, PodmanError> {
    let verb = format!("/resize?h={}&w={}", size.height, size.width);
    let call = Call::post(client.target_of("exec", session, &verb).await?).repeatable();
    match client.socket.send(&call).await?.ok() {
        Ok(_) => Ok(true),
        // 409, and 500 with 4.3: the command has ended, or has not begun. 4.3 says so for a moment after the first output
        // has come already.
        Err(PodmanError::Conflict { .. } | PodmanError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

pub(super) async fn start(
    client: &Client,
    session: &ExecSession,
    size: Option<TtySize>,
) -> Result<ExecStreams, PodmanError> {
    let body = StartBody {
        detach: false,
        tty: session.tty,
        h: size.map(|s| s.height),
        w: size.map(|s| s.width),
    };
    let call = Call::post(client.target_of("exec", &session.id, "/start").await?).json(&body);
    let limited = tokio::time::timeout(CALL_LIMIT, attach(client, &call)).await;
    let (connection, unread) = limited.map_err(|_elapsed| PodmanError::TimedOut {
        call: call.describe(),
        limit: CALL_LIMIT,
    })??;
    let (reader, writer) = connection.into_split();
    let output = Output {
        reader: Box::pin(reader),
        unread,
        tty: session.tty,
        call,
        socket: client.socket.clone(),
    };
    Ok(ExecStreams {
        stdin: Box::pin(writer),
        output: Box::pin(stream::try_unfold(output, |mut output| async move {
            Ok(output.next().await?.map(|chunk| (chunk, output)))
        })),
    })
}

/// Sends the start and reads the answer's head. What came behind it is the beginning of the output.
async fn attach(client: &Client, call: &Call) -> Result<(UnixStream, BytesMut), PodmanError> {
    let broken = |error: std::io::Error| client.socket.unreachable(call.describe(), Box::new(error));
    let mut connection = client.socket.connect(call).await?;
    connection.write_all(&call.upgrade_bytes()).await.map_err(broken)?;
    let mut unread = BytesMut::new();
    let head = loop {
        if let Some(head) = take_head(&mut unread) {
            break head.map_err(|detail| call.protocol(detail))?;
        }
        if unread.len() > HEAD_BYTES_MAX || connection.read_buf(&mut unread).await.map_err(broken)? == 0 {
            return Err(call.protocol("it ends before its head does"));
        }
    };
    if head.attached() {
        return Ok((connection, unread));
    }
    let wanted = head.content_length.unwrap_or(0).min(HEAD_BYTES_MAX);
    while unread.len() < wanted && connection.read_buf(&mut unread).await.map_err(broken)? > 0 {}
    Err(match call.answer(head.status, unread.freeze()).ok() {
        Err(refusal) => refusal,
        Ok(_) => call.protocol(format!("status {} does not attach", head.status)),
    })
}

/// The head of the answer to a start.
struct Head {
    status: u16,
    content_length: Option<usize>,
}

impl Head {
    /// 101 when Podman honours the upgrade, 200 with a raw body when something between does not.
    fn attached(&self) -> bool {
        self.status == 101 || (self.status == 200 && self.content_length.is_none())
    }
}

/// Takes a complete head off the front; `None` as long as it is not complete.
fn take_head(unread: &mut BytesMut) -> Option<Result<Head, String>> {
    let end = unread.windows(4).position(|window| window == b"\r\n\r\n")? + 4;
    let head = unread.split_to(end);
    let text = String::from_utf8_lossy(&head);
    let mut lines = text.split("\r\n");
    let status_line = lines.next().unwrap_or_default();
    let Some(status) = status_line.split(' ').nth(1).and_then(|status| status.parse().ok()) else {
        return Some(Err(format!("{status_line:?} is no status line")));
    };
    let content_length = lines
        .filter_map(|line| line.split_once(':'))
        .find(|(name, _)| name.eq_ignore_ascii_case("content-length"))
        .and_then(|(_, value)| value.trim().parse().ok());
    Some(Ok(Head { status, content_length }))
}

/// The reading half of an attached command.
struct Output {
    reader: Pin<Box<dyn AsyncRead + Send>>,
    unread: BytesMut,
    /// With a terminal the output is raw, without one it comes in frames, whatever the content type says: 4.3.1 says
    /// `raw-stream` of both.
    tty: bool,
    call: Call,
    socket: Socket,
}

impl Output {
    async fn next(&mut self) -> Result<Option<ExecChunk>, PodmanError> {
        loop {
            let taken = if self.tty { self.take_raw() } else { self.take_frame()? };
            if taken.is_some() {
                return Ok(taken);
            }
            self.unread.reserve(OUTPUT_PIECE_BYTES);
            let read = self.reader.read_buf(&mut self.unread).await;
            let read = read.map_err(|error| self.socket.unreachable(self.call.describe(), Box::new(error)))?;
            if read == 0 {
                return if self.unread.is_empty() {
                    Ok(None)
                } else {
                    Err(self.call.protocol("it ends within a frame"))
                };
            }
        }
    }

    fn take_raw(&mut self) -> Option<ExecChunk> {
        (!self.unread.is_empty()).then(|| ExecChunk::Stdout(self.unread.split().freeze()))
    }

    fn take_frame(&mut self) -> Result<Option<ExecChunk>, PodmanError> {
        while self.unread.len() >= FRAME_HEAD_BYTES {
            let stream = self.unread[0];
            let len_bytes = [self.unread[4], self.unread[5], self.unread[6], self.unread[7]];
            let len = u32::from_be_bytes(len_bytes) as usize;
            if self.unread[1..4] != [0, 0, 0] || len > FRAME_BYTES_MAX {
                return Err(self.call.protocol("the output is not in frames"));
            }
            if self.unread.len() < FRAME_HEAD_BYTES + len {
                return Ok(None);
            }
            self.unread.advance(FRAME_HEAD_BYTES);
            let payload: Bytes = self.unread.split_to(len).freeze();
            match stream {
                1 if len > 0 => return Ok(Some(ExecChunk::Stdout(payload))),
                2 if len > 0 => return Ok(Some(ExecChunk::Stderr(payload))),
                3 => return Err(self.call.protocol(String::from_utf8_lossy(&payload))),
                0..=2 => {}
                other => return Err(self.call.protocol(format!("stream {other} is unknown"))),
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncWriteExt as _;

    use super::*;

    fn output(reader: impl AsyncRead + Send + 'static, tty: bool) -> Output {
        Output {
            reader: Box::pin(reader),
            unread: BytesMut::new(),
            tty,
            call: Call::post("/exec/1/start"),
            socket: Socket::new("/nowhere"),
        }
    }

    async fn collect(mut output: Output) -> Result<(Vec<u8>, Vec<u8>), PodmanError> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(chunk) = output.next().await? {
            match chunk {
                ExecChunk::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecChunk::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            }
        }
        Ok((stdout, stderr))
    }

    /// Goal: frames survive any cutting of the connection. Method: every cut of two frames into two writes.
    #[tokio::test]
    async fn frames_are_joined_wherever_the_connection_cuts_them() {
        let wire = b"\x01\0\0\0\0\0\0\x03out\x02\0\0\0\0\0\0\x04err\n\x01\0\0\0\0\0\0\x01!";
        for cut in 0..wire.len() {
            let (mut far, near) = tokio::io::duplex(64);
            let (first, second) = (wire[..cut].to_vec(), wire[cut..].to_vec());
            tokio::spawn(async move {
                far.write_all(&first).await.unwrap();
                tokio::task::yield_now().await;
                far.write_all(&second).await.unwrap();
            });
            let (stdout, stderr) = collect(output(near, false)).await.unwrap();
            assert_eq!(
                (stdout.as_slice(), stderr.as_slice()),
                (b"out!".as_slice(), b"err\n".as_slice()),
                "cut at {cut}"
            );
        }
    }

    #[tokio::test]
    async fn output_that_ends_within_a_frame_is_an_error_not_an_end() {
        let wire: &[u8] = b"\x01\0\0\0\0\0\0\x09out";
        assert!(matches!(
            collect(output(wire, false)).await,
            Err(PodmanError::Protocol { .. })
        ));
    }

    #[tokio::test]
    async fn output_of_a_terminal_is_taken_as_it_is() {
        let wire: &[u8] = b"\x01\0\0\0\0\0\0\x03out";
        assert_eq!(collect(output(wire, true)).await.unwrap().0, wire);
    }

    #[test]
    fn what_follows_the_head_stays_in_the_buffer() {
        let mut unread = BytesMut::from(&b"HTTP/1.1 101 UPGRADED\r\nConnection: Upgrade\r\n\r\nfirst bytes"[..]);
        let head = take_head(&mut unread).unwrap().unwrap();
        assert!(head.attached());
        assert_eq!(&unread[..], b"first bytes");
        let mut partial = BytesMut::from(&b"HTTP/1.1 101 UPGRADED\r\nConn"[..]);
        assert!(take_head(&mut partial).is_none());
    }
}
