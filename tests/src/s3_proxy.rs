//! An HTTP proxy on loopback between our client and an S3 server: it makes the distance of a real bucket, counts what goes
//! through, and breaks things on demand.
//!
//! Requests pass unchanged, with their Host header, so their signatures hold. A request is forwarded whole and answered
//! whole, which is what the delays model: time to the first byte. Absent: bandwidth limits, TLS.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream;
use http::{Method, Request, Response, StatusCode, Uri, header};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

/// How long each request is held before it is forwarded.
#[derive(Debug, Clone, Copy, Default)]
pub struct Delays {
    /// PUT, POST and DELETE.
    pub write: Duration,
    /// GET, HEAD and lists.
    pub read: Duration,
}

impl Delays {
    /// 20 ms and 12 ms: S3 in the same region on a good day.
    pub const REGION: Delays = Delays {
        write: Duration::from_millis(20),
        read: Duration::from_millis(12),
    };
}

/// What is done to one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Answered with this status (of an S3 error without a body's details), not forwarded.
    Status(u16),
    /// Answered with this status, code and message of S3, not forwarded.
    Refusal(u16, &'static str, &'static str),
    /// Held for so long, then carried out.
    Slow(Duration),
    /// Held for as long as the proxy lives, or its client's patience.
    Hang,
    /// The connection is closed, and nothing forwarded.
    DropRequest,
    /// Forwarded and carried out; then the connection is closed without the answer.
    DropReply,
    /// Carried out; only so many bytes of the answer's body come, then the connection is closed.
    CutReply(usize),
}

/// A request as a rule sees it.
#[derive(Debug, Clone)]
pub struct Seen {
    /// Its kind.
    pub verb: Verb,
    /// Path and query.
    pub target: String,
    /// The range of bytes that is asked for, as the header has it; empty for the whole.
    pub range: String,
    /// Token of the temporary keys that it is signed with; empty for none.
    pub token: String,
    /// How many requests came before it.
    pub number: u64,
}

/// Kinds of requests, as S3 bills them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verb {
    /// PUT of an object or bucket.
    Put,
    /// GET of an object.
    Get,
    /// HEAD.
    Head,
    /// List of keys.
    List,
    /// DELETE.
    Delete,
    /// Anything else.
    Other,
}

impl Verb {
    fn of(method: &Method, uri: &Uri) -> Self {
        let is_list = uri.query().is_some_and(|query| query.contains("list-type=2"));
        match *method {
            Method::PUT => Verb::Put,
            Method::GET if is_list => Verb::List,
            Method::GET => Verb::Get,
            Method::HEAD => Verb::Head,
            Method::DELETE => Verb::Delete,
            _ => Verb::Other,
        }
    }

    fn is_read(self) -> bool {
        matches!(self, Verb::Get | Verb::Head | Verb::List)
    }
}

/// What went through, by kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Count {
    /// Requests that came.
    pub requests: u64,
    /// Bytes of their bodies.
    pub request_bytes: u64,
    /// Bytes of the bodies of the server's answers.
    pub reply_bytes: u64,
}

/// Counts of all kinds at one moment.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Counts(BTreeMap<Verb, Count>);

impl Counts {
    /// The count of one kind.
    pub fn of(&self, verb: Verb) -> Count {
        self.0.get(&verb).copied().unwrap_or_default()
    }

    /// All requests.
    pub fn requests(&self) -> u64 {
        self.0.values().map(|count| count.requests).sum()
    }

    /// What came after `earlier` was taken.
    #[must_use]
    pub fn since(&self, earlier: &Counts) -> Counts {
        let difference = |verb: &Verb, now: &Count| {
            let before = earlier.of(*verb);
            Count {
                requests: now.requests - before.requests,
                request_bytes: now.request_bytes - before.request_bytes,
                reply_bytes: now.reply_bytes - before.reply_bytes,
            }
        };
        Counts(
            self.0
                .iter()
                .map(|(verb, now)| (*verb, difference(verb, now)))
                .collect(),
        )
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (verb, count) in self.0.iter().filter(|(_, count)| count.requests > 0) {
            write!(
                f,
                "{} {verb:?} ({} B up, {} B down)  ",
                count.requests, count.request_bytes, count.reply_bytes
            )?;
        }
        Ok(())
    }
}

type Rule = Box<dyn FnMut(&Seen) -> Option<Fault> + Send>;
type Body = BoxBody<Bytes, std::io::Error>;

struct Shared {
    upstream: String,
    delays: Mutex<Delays>,
    client: Client<HttpConnector, Full<Bytes>>,
    counts: Mutex<BTreeMap<Verb, Count>>,
    rule: Mutex<Option<Rule>>,
    open: watch::Sender<bool>,
}

/// A running proxy. It ends with this value, and with it all its connections.
pub struct S3Proxy {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

impl fmt::Debug for S3Proxy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("S3Proxy")
            .field("address", &self.address)
            .field("upstream", &self.shared.upstream)
            .finish()
    }
}

impl S3Proxy {
    /// Starts a proxy in front of `upstream` (`http://HOST:PORT`).
    pub async fn start(upstream: &str, delays: Delays) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
            .await
            .expect("loopback has a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let shared = Arc::new(Shared {
            upstream: upstream.to_owned(),
            delays: Mutex::new(delays),
            client: Client::builder(TokioExecutor::new()).build(connector),
            counts: Mutex::default(),
            rule: Mutex::default(),
            open: watch::Sender::new(true),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self {
            address,
            shared,
            accepting,
        }
    }

    /// URL of the proxy.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// What went through so far.
    pub fn counts(&self) -> Counts {
        Counts(
            self.shared
                .counts
                .lock()
                .expect("nothing panics while it counts")
                .clone(),
        )
    }

    /// Changes the delays of requests that come from now on.
    pub fn set_delays(&self, delays: Delays) {
        *self
            .shared
            .delays
            .lock()
            .expect("nothing panics while it holds the delays") = delays;
    }

    /// Asks `rule` about every request from now on; it replaces the rule before.
    pub fn set_rule(&self, rule: impl FnMut(&Seen) -> Option<Fault> + Send + 'static) {
        *self.shared.rule.lock().expect("a rule does not panic") = Some(Box::new(rule));
    }

    /// Lets everything pass again.
    pub fn clear_rule(&self) {
        *self.shared.rule.lock().expect("a rule does not panic") = None;
    }

    /// Holds every request that comes from now on until `resume`. Those on their way go on.
    pub fn pause(&self) {
        self.shared.open.send_replace(false);
    }

    /// Lets the held requests go.
    pub fn resume(&self) {
        self.shared.open.send_replace(true);
    }
}

impl Drop for S3Proxy {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    // Connections end with this task.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                // Without it small answers wait for the client's delayed acknowledgement.
                drop(stream.set_nodelay(true));
                let shared = shared.clone();
                let service = service_fn(move |request| handle(shared.clone(), request));
                connections.spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    // A connection that ends with an error is one that we were told to break, or that the client left.
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

/// The error that makes hyper close a connection without an answer.
#[derive(Debug, thiserror::Error)]
#[error("the connection is closed on purpose")]
struct Closed;

fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> BoxFuture<'static, Result<Response<Body>, Closed>> {
    Box::pin(async move {
        let (parts, body) = request.into_parts();
        let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
        let verb = Verb::of(&parts.method, &parts.uri);
        let number = shared.count(verb, |count| {
            count.requests += 1;
            count.request_bytes += body.len() as u64;
        });
        let target = parts.uri.path_and_query().map_or_else(String::new, ToString::to_string);
        let fault = shared.fault(&Seen {
            verb,
            target: target.clone(),
            range: text_of(&parts.headers, "range"),
            token: text_of(&parts.headers, "x-amz-security-token"),
            number,
        });
        // Nobody else sends on this channel, so waiting fails only when the proxy has ended.
        shared
            .open
            .subscribe()
            .wait_for(|open| *open)
            .await
            .map_err(|_| Closed)?;
        tokio::time::sleep(shared.delay(verb)).await;
        match fault {
            Some(Fault::Status(status)) => return Ok(refusal(status, String::new())),
            Some(Fault::Refusal(status, code, message)) => {
                let body = format!("<Error><Code>{code}</Code><Message>{message}</Message></Error>");
                return Ok(refusal(status, body));
            }
            Some(Fault::DropRequest) => return Err(Closed),
            // Ended by the client, who closes the connection, or by the proxy's end.
            Some(Fault::Hang) => return std::future::pending().await,
            Some(Fault::Slow(time)) => tokio::time::sleep(time).await,
            Some(Fault::DropReply | Fault::CutReply(_)) | None => {}
        }
        let uri: Uri = format!("{}{target}", shared.upstream).parse().map_err(|_| Closed)?;
        let mut forwarded = Request::new(Full::new(body));
        *forwarded.method_mut() = parts.method;
        *forwarded.uri_mut() = uri;
        *forwarded.headers_mut() = parts.headers;
        let answer = shared.client.request(forwarded).await.map_err(|_| Closed)?;
        let (head, body) = answer.into_parts();
        let body = body.collect().await.map_err(|_| Closed)?.to_bytes();
        shared.count(verb, |count| count.reply_bytes += body.len() as u64);
        match fault {
            Some(Fault::DropReply) => Err(Closed),
            Some(Fault::CutReply(bytes)) if bytes < body.len() => Ok(cut(head, body, bytes)),
            _ => Ok(Response::from_parts(head, Full::new(body).map_err(never).boxed())),
        }
    })
}

impl Shared {
    /// Counts, and returns how many requests of all kinds came before this one.
    fn count(&self, verb: Verb, change: impl FnOnce(&mut Count)) -> u64 {
        let mut counts = self.counts.lock().expect("nothing panics while it counts");
        change(counts.entry(verb).or_default());
        counts
            .values()
            .map(|count| count.requests)
            .sum::<u64>()
            .saturating_sub(1)
    }

    fn fault(&self, seen: &Seen) -> Option<Fault> {
        self.rule
            .lock()
            .expect("a rule does not panic")
            .as_mut()
            .and_then(|rule| rule(seen))
    }

    fn delay(&self, verb: Verb) -> Duration {
        let delays = self.delays.lock().expect("nothing panics while it holds the delays");
        if verb.is_read() { delays.read } else { delays.write }
    }
}

fn never(never: Infallible) -> std::io::Error {
    match never {}
}

fn text_of(headers: &http::HeaderMap, name: &str) -> String {
    let value = headers.get(name);
    value
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default()
        .to_owned()
}

fn refusal(status: u16, body: String) -> Response<Body> {
    let mut answer = Response::new(Full::new(Bytes::from(body)).map_err(never).boxed());
    *answer.status_mut() = StatusCode::from_u16(status).expect("a rule names a status of HTTP");
    answer
}

fn cut(mut head: http::response::Parts, body: Bytes, bytes: usize) -> Response<Body> {
    // The length still promises the whole.
    head.headers.insert(header::CONTENT_LENGTH, body.len().into());
    let pieces = [Ok(Frame::data(body.slice(..bytes))), Err(std::io::Error::other(Closed))];
    Response::from_parts(head, BodyExt::boxed(StreamBody::new(stream::iter(pieces))))
}
