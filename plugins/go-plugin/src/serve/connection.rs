//! A connection that tells when it is closed. Shutdown needs it: the process ends as soon as the host, having read the
//! answer, closes, rather than after a guess of how long that takes.

use std::{
    io,
    pin::Pin,
    task::{Context, Poll},
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    net::UnixStream,
};
use tokio_util::sync::{CancellationToken, DropGuard};
use tonic::transport::server::Connected;

/// One connection of the host.
pub(super) struct Connection {
    stream: UnixStream,
    closed: CancellationToken,
    /// Cancels `closed` when the server lets go of the connection.
    _guard: DropGuard,
}

/// Given to every request of a connection.
#[derive(Clone)]
pub(super) struct ConnectionClosed(pub(super) CancellationToken);

impl Connection {
    pub(super) fn new(stream: UnixStream) -> Self {
        let closed = CancellationToken::new();
        Self {
            stream,
            _guard: closed.clone().drop_guard(),
            closed,
        }
    }
}

impl Connected for Connection {
    type ConnectInfo = ConnectionClosed;

    fn connect_info(&self) -> Self::ConnectInfo {
        ConnectionClosed(self.closed.clone())
    }
}

impl AsyncRead for Connection {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(cx, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
