//! Serves metrics over HTTP: `GET /metrics`, on a TCP address or a unix socket.
//!
//! Anybody who can connect may read them; they hold names of volumes and numbers, and no secret. Callers: `pannier engine`
//! and `pannier csi`. Absent: what the text says, TLS and access control (listen on loopback or on a socket, or put a proxy
//! in front).

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::Full;
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::Semaphore;
use volume::metrics::{Exposition, Kind};

/// 16 readers at a time: more wait to be accepted.
const READERS_MAX: usize = 16;

/// The format of the text.
const TEXT: HeaderValue = HeaderValue::from_static("text/plain; version=0.0.4; charset=utf-8");

/// What is asked for the text.
pub type Source = Arc<dyn Fn() -> String + Send + Sync>;

/// Where to serve.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MetricsAddress {
    /// A port.
    Tcp(SocketAddr),
    /// A socket.
    Unix(PathBuf),
}

/// Not a place to serve at.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is neither an address with a port, for example 127.0.0.1:9464, nor unix:// with an absolute path")]
pub struct AddressError {
    /// As given.
    text: String,
}

impl FromStr for MetricsAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        let refused = || AddressError { text: text.to_owned() };
        match text.strip_prefix("unix://") {
            Some(path) if Path::new(path).is_absolute() => Ok(Self::Unix(path.into())),
            Some(_) => Err(refused()),
            None => text.parse().map(Self::Tcp).map_err(|_| refused()),
        }
    }
}

/// Serves until the process ends; where that is impossible, the log says why: mounts do not depend on who watches them.
pub async fn serve_metrics(address: MetricsAddress, source: Source) {
    match serve(&address, source).await {
        Ok(address) => tracing::info!(?address, "metrics are served"),
        Err(error) => tracing::error!(?address, %error, "metrics cannot be served"),
    }
}

/// What Prometheus' own clients tell of a process: memory, descriptors and processor time.
pub fn process_metrics() -> String {
    let mut text = Exposition::default();
    let mut one = |name, kind, help, value: Option<f64>| {
        text.begin(name, kind, help);
        if let Some(value) = value {
            text.sample(&[], value);
        }
    };
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let resident = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = resident.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    one(
        "process_resident_memory_bytes",
        Kind::Gauge,
        "Resident memory.",
        kib.map(|kib| kib * 1024.0),
    );
    let open = std::fs::read_dir("/proc/self/fd").map(Iterator::count);
    #[expect(clippy::cast_precision_loss, reason = "there are few descriptors")]
    let open = open.ok().map(|open| open as f64);
    one("process_open_fds", Kind::Gauge, "Open descriptors.", open);
    text.finish()
}

/// Serves until the process ends. Returns the address that was bound.
///
/// # Errors
/// If it cannot be bound.
pub async fn serve(address: &MetricsAddress, source: Source) -> io::Result<MetricsAddress> {
    let readers = Arc::new(Semaphore::new(READERS_MAX));
    match address {
        MetricsAddress::Tcp(address) => {
            let listener = TcpListener::bind(address).await?;
            let bound = listener.local_addr()?;
            tokio::spawn(async move {
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    answer(accepted, &readers, &source).await;
                }
            });
            Ok(MetricsAddress::Tcp(bound))
        }
        MetricsAddress::Unix(path) => {
            // What an earlier process left there; of anything else the bind says that it is there.
            if std::os::unix::net::UnixStream::connect(path)
                .is_err_and(|e| e.kind() == io::ErrorKind::ConnectionRefused)
            {
                std::fs::remove_file(path)?;
            }
            let listener = UnixListener::bind(path)?;
            tokio::spawn(async move {
                loop {
                    let accepted = listener.accept().await.map(|(stream, _)| stream);
                    answer(accepted, &readers, &source).await;
                }
            });
            Ok(address.clone())
        }
    }
}

async fn answer<S: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    accepted: io::Result<S>,
    readers: &Arc<Semaphore>,
    source: &Source,
) {
    let reader = Arc::clone(readers).acquire_owned().await;
    // No more descriptors, for example: the next one is accepted when there are.
    let Ok(stream) = accepted else { return };
    let source = Arc::clone(source);
    tokio::spawn(async move {
        let service = service_fn(|request| {
            let source = Arc::clone(&source);
            async move { Ok::<_, Infallible>(respond(&request, &source)) }
        });
        let connection = hyper::server::conn::http1::Builder::new()
            .keep_alive(false)
            .serve_connection(TokioIo::new(stream), service);
        // A reader that goes away is nobody's loss; one that says nothing is sent away.
        drop(tokio::time::timeout(std::time::Duration::from_secs(10), connection).await);
        drop(reader);
    });
}

fn respond(request: &Request<hyper::body::Incoming>, source: &Source) -> Response<Full<Bytes>> {
    let with = |status, text: String| {
        let mut response = Response::new(Full::new(Bytes::from(text)));
        *response.status_mut() = status;
        response
    };
    match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => {
            let mut response = with(StatusCode::OK, source());
            response.headers_mut().insert(CONTENT_TYPE, TEXT);
            response
        }
        (&Method::GET, _) => with(StatusCode::NOT_FOUND, "metrics are at /metrics\n".into()),
        _ => with(StatusCode::METHOD_NOT_ALLOWED, "only GET\n".into()),
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    async fn get(address: SocketAddr, path: &str) -> String {
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nhost: x\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    #[tokio::test]
    async fn the_text_is_served_at_its_path_and_nowhere_else() {
        let any = "127.0.0.1:0".parse().unwrap();
        let MetricsAddress::Tcp(bound) = serve(&any, Arc::new(|| "numbers 1\n".into())).await.unwrap() else {
            panic!("a port was asked for");
        };
        let text = get(bound, "/metrics").await;
        assert!(
            text.contains("200 OK") && text.contains("0.0.4") && text.ends_with("numbers 1\n"),
            "{text}"
        );
        assert!(get(bound, "/").await.contains("404"));
        for wrong in ["9464", "unix://relative", "localhost"] {
            assert!(wrong.parse::<MetricsAddress>().is_err(), "{wrong}");
        }
    }
}
