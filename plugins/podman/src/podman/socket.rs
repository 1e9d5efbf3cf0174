//! The connection to a Podman service: HTTP/1.1 over its unix socket, and THE translation of what Podman answers into
//! [`PodmanError`]. HTTP statuses and Podman's error texts appear nowhere else.
//!
//! Each call has a connection of its own: a service that was restarted, upgraded or socket-activated in between is not
//! noticed, and a call that is given up takes nobody else's connection with it. (A connect over a unix socket costs some
//! 50 µs, Podman's cheapest answer 1 ms.)
//!
//! Invariant: what may be sent twice is retried with bounded back-off, what may not be is retried only while nothing of
//! it has left this process. Absent: what the calls mean (see the files per endpoint family).

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;
use tokio_util::task::AbortOnDropHandle;

use super::{BoxError, PodmanError};

/// Thirty seconds: Podman holds a container's lock while it is being stopped or cleaned up, and answers about it only
/// afterwards. Later than this a task start fails (recoverably) rather than hangs.
pub(super) const CALL_LIMIT: Duration = Duration::from_secs(30);

/// Waits between the tries of a call that can be repeated: 1.55 s in all, the time a service needs to be restarted.
const BACK_OFF_MS: [u64; 5] = [50, 100, 200, 400, 800];

/// 16 MiB: an answer that is read whole. The largest, a list of thousands of containers, is a tenth of it.
const ANSWER_BYTES_MAX: usize = 16 << 20;

/// A request body: whole, or streamed from a file.
pub(super) type Body = UnsyncBoxBody<Bytes, BoxError>;

/// The socket of one service.
#[derive(Debug, Clone)]
pub(super) struct Socket {
    path: PathBuf,
    /// The operator's deadline of calls that have one; `None`: each call's own.
    pub(super) limit: Option<Duration>,
}

/// One request.
#[derive(Debug, Clone)]
pub(super) struct Call {
    /// The method.
    pub(super) method: Method,
    /// Path and query, from the root.
    pub(super) target: String,
    /// Headers on top of those that every call has.
    pub(super) headers: Vec<(&'static str, String)>,
    /// JSON, or nothing.
    pub(super) json: Option<Bytes>,
    /// Until the answer is complete; `None`: as long as it takes.
    pub(super) limit: Option<Duration>,
    /// Whether it does the same when it is done twice.
    pub(super) repeatable: bool,
}

/// A complete answer.
#[derive(Debug)]
pub(super) struct Answer {
    call: String,
    status: StatusCode,
    headers: HeaderMap,
    body: Bytes,
}

/// An answer whose body comes piece by piece. Dropping it closes the connection.
#[derive(Debug)]
pub(super) struct StreamedAnswer {
    call: String,
    socket: PathBuf,
    status: StatusCode,
    headers: HeaderMap,
    body: Incoming,
    _driver: AbortOnDropHandle<()>,
}

/// What Podman says when it says no.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Complaint {
    cause: Option<String>,
    message: Option<String>,
}

impl Call {
    /// A GET, which can always be repeated.
    pub(super) fn get(target: impl Into<String>) -> Self {
        Self::new(Method::GET, target.into(), true)
    }

    /// A POST without a body, which cannot be repeated unless [`Call::repeatable`] says so.
    pub(super) fn post(target: impl Into<String>) -> Self {
        Self::new(Method::POST, target.into(), false)
    }

    /// A DELETE: what is gone stays gone.
    pub(super) fn delete(target: impl Into<String>) -> Self {
        Self::new(Method::DELETE, target.into(), true)
    }

    fn new(method: Method, target: String, repeatable: bool) -> Self {
        Self {
            method,
            target,
            headers: Vec::new(),
            json: None,
            limit: Some(CALL_LIMIT),
            repeatable,
        }
    }

    /// With a JSON body.
    pub(super) fn json<T: serde::Serialize>(mut self, body: &T) -> Self {
        let bytes = serde_json::to_vec(body).expect("our request types have string keys only, so they are JSON");
        self.json = Some(bytes.into());
        self
    }

    /// With one more header.
    pub(super) fn header(mut self, name: &'static str, value: String) -> Self {
        self.headers.push((name, value));
        self
    }

    /// With another deadline.
    pub(super) fn limit(mut self, limit: Option<Duration>) -> Self {
        self.limit = limit;
        self
    }

    /// Marked as doing the same when done twice.
    pub(super) fn repeatable(mut self) -> Self {
        self.repeatable = true;
        self
    }

    /// What the messages call it: method and path, no query (which may be long and is of no use to a reader).
    fn name(&self) -> String {
        let path = self.target.split('?').next().unwrap_or_default();
        format!("{} {path}", self.method)
    }
}

/// Where in its life a call broke: before anything was sent, it may be repeated whatever it is.
enum Broken {
    BeforeSending(BoxError),
    AfterSending(BoxError),
}

impl Socket {
    pub(super) fn new(path: impl Into<PathBuf>) -> Self {
        Self {
            path: path.into(),
            limit: None,
        }
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Sends a call and reads its answer whole.
    ///
    /// # Errors
    /// [`PodmanError::Unreachable`] after the last try, [`PodmanError::TimedOut`] at the deadline. A refusal is an answer.
    pub(super) async fn send(&self, call: &Call) -> Result<Answer, PodmanError> {
        self.within(call, async {
            let streamed = self.open(call, None).await?;
            streamed.whole().await
        })
        .await
    }

    /// Sends a call and hands its answer over as soon as the head is there. The deadline covers the head only.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub(super) async fn stream(&self, call: &Call) -> Result<StreamedAnswer, PodmanError> {
        self.within(call, self.open(call, None)).await
    }

    /// Sends a call with a streamed body, once.
    ///
    /// # Errors
    /// As [`Socket::send`].
    pub(super) async fn upload(&self, call: &Call, body: Body) -> Result<Answer, PodmanError> {
        self.within(call, async {
            let streamed = self.open(call, Some(body)).await?;
            streamed.whole().await
        })
        .await
    }

    /// A bare connection, for what HTTP cannot carry.
    ///
    /// # Errors
    /// [`PodmanError::Unreachable`].
    pub(super) async fn connect(&self, call: &Call) -> Result<UnixStream, PodmanError> {
        UnixStream::connect(&self.path)
            .await
            .map_err(|source| self.unreachable(call.name(), Box::new(source)))
    }

    pub(super) fn unreachable(&self, call: String, source: BoxError) -> PodmanError {
        PodmanError::Unreachable {
            call,
            socket: self.path.clone(),
            source,
        }
    }

    async fn within<T>(
        &self,
        call: &Call,
        work: impl Future<Output = Result<T, PodmanError>>,
    ) -> Result<T, PodmanError> {
        let Some(own) = call.limit else { return work.await };
        // The operator's limit is for calls that do something: whether the service is there at all is asked in less.
        let limit = self.limit.filter(|_| own >= CALL_LIMIT).unwrap_or(own);
        match tokio::time::timeout(limit, work).await {
            Ok(done) => done,
            Err(_elapsed) => Err(PodmanError::TimedOut {
                call: call.name(),
                limit,
            }),
        }
    }

    async fn open(&self, call: &Call, mut body: Option<Body>) -> Result<StreamedAnswer, PodmanError> {
        let once = body.is_some();
        let mut waits = BACK_OFF_MS.iter();
        loop {
            let (error, may_repeat) = match self.try_open(call, body.take()).await {
                Ok(answer) => return Ok(answer),
                Err(Broken::BeforeSending(error)) => (error, !once),
                Err(Broken::AfterSending(error)) => (error, !once && call.repeatable),
            };
            match waits.next() {
                Some(wait_ms) if may_repeat => tokio::time::sleep(Duration::from_millis(*wait_ms)).await,
                _ => return Err(self.unreachable(call.name(), error)),
            }
        }
    }

    async fn try_open(&self, call: &Call, body: Option<Body>) -> Result<StreamedAnswer, Broken> {
        let request = call
            .request(body)
            .map_err(|error| Broken::BeforeSending(Box::new(error)))?;
        let stream = UnixStream::connect(&self.path)
            .await
            .map_err(|error| Broken::BeforeSending(Box::new(error)))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| Broken::BeforeSending(Box::new(error)))?;
        // The driver's own result tells nothing that the response future does not tell as well.
        let driver = AbortOnDropHandle::new(tokio::spawn(async move {
            let _ = connection.await;
        }));
        let response = sender
            .send_request(request)
            .await
            .map_err(|error| Broken::AfterSending(Box::new(error)))?;
        let (head, body) = response.into_parts();
        Ok(StreamedAnswer {
            call: call.name(),
            socket: self.path.clone(),
            status: head.status,
            headers: head.headers,
            body,
            _driver: driver,
        })
    }
}

impl Call {
    fn request(&self, body: Option<Body>) -> Result<Request<Body>, http::Error> {
        let mut request = Request::builder()
            .method(self.method.clone())
            .uri(&self.target)
            .header("host", "podman");
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        if self.json.is_some() {
            request = request.header("content-type", "application/json");
        }
        let whole = || {
            Full::new(self.json.clone().unwrap_or_default())
                .map_err(|never| match never {})
                .boxed_unsync()
        };
        request.body(body.unwrap_or_else(whole))
    }

    /// The call as bytes, for a connection that leaves HTTP after the answer's head.
    pub(super) fn upgrade_bytes(&self) -> Vec<u8> {
        let json = self.json.clone().unwrap_or_default();
        let head = format!(
            "{} {} HTTP/1.1\r\nHost: podman\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Type: application/json\r\n\
             Content-Length: {}\r\n\r\n",
            self.method,
            self.target,
            json.len()
        );
        [head.as_bytes(), &json].concat()
    }

    /// The translation of an answer that came on a bare connection.
    pub(super) fn answer(&self, status: u16, body: Bytes) -> Answer {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_GATEWAY);
        Answer {
            call: self.name(),
            status,
            headers: HeaderMap::new(),
            body,
        }
    }

    pub(super) fn protocol(&self, detail: impl Into<String>) -> PodmanError {
        PodmanError::Protocol {
            call: self.name(),
            detail: detail.into(),
        }
    }

    pub(super) fn describe(&self) -> String {
        self.name()
    }
}

impl StreamedAnswer {
    /// The next piece of the body; `None` at its end.
    ///
    /// # Errors
    /// [`PodmanError::Unreachable`] if the connection broke before the end.
    pub(super) async fn next(&mut self) -> Result<Option<Bytes>, PodmanError> {
        while let Some(frame) = self.body.frame().await {
            let frame = frame.map_err(|source| PodmanError::Unreachable {
                call: self.call.clone(),
                socket: self.socket.clone(),
                source: Box::new(source),
            })?;
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
        Ok(None)
    }

    /// The answer itself if it is a success; its refusal, read to the end, if not.
    ///
    /// # Errors
    /// The refusal.
    pub(super) async fn success(self) -> Result<Self, PodmanError> {
        if self.status.is_success() {
            return Ok(self);
        }
        Err(self.whole().await?.refusal())
    }

    async fn whole(mut self) -> Result<Answer, PodmanError> {
        let mut body = Vec::new();
        while let Some(piece) = self.next().await? {
            if body.len() + piece.len() > ANSWER_BYTES_MAX {
                let detail = format!("it is longer than {ANSWER_BYTES_MAX} bytes");
                return Err(PodmanError::Protocol {
                    call: self.call,
                    detail,
                });
            }
            body.extend_from_slice(&piece);
        }
        Ok(Answer {
            call: self.call,
            status: self.status,
            headers: self.headers,
            body: body.into(),
        })
    }
}

impl Answer {
    /// The body of a success as JSON.
    ///
    /// # Errors
    /// The refusal, or [`PodmanError::Protocol`] if the body is not what it should be.
    pub(super) fn json<T: for<'de> Deserialize<'de>>(self) -> Result<T, PodmanError> {
        let answer = self.ok()?;
        serde_json::from_slice(&answer.body).map_err(|error| PodmanError::Protocol {
            call: answer.call,
            detail: error.to_string(),
        })
    }

    /// As [`Answer::json`]; `None` if Podman says that the thing does not exist.
    ///
    /// # Errors
    /// As [`Answer::json`], without [`PodmanError::NotFound`].
    pub(super) fn json_if_found<T: for<'de> Deserialize<'de>>(self) -> Result<Option<T>, PodmanError> {
        match self.json() {
            Ok(found) => Ok(Some(found)),
            Err(PodmanError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The answer if it is a success. `304 Not Modified` is one: what was asked for is so already.
    ///
    /// # Errors
    /// The refusal.
    pub(super) fn ok(self) -> Result<Self, PodmanError> {
        if self.status.is_success() || self.status == StatusCode::NOT_MODIFIED {
            return Ok(self);
        }
        Err(self.refusal())
    }

    /// A header of the answer, if it is there and readable.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }

    /// Podman's own sorting is too coarse to be relied on: 4.3 answers 500 to a taken name and to a container in the
    /// wrong state, which later versions call 409. The cause is the text of a Go error value that has not changed.
    fn refusal(self) -> PodmanError {
        let complaint: Complaint = serde_json::from_slice(&self.body).unwrap_or_default();
        let call = self.call;
        let message = match complaint.message {
            Some(message) if !message.is_empty() => message,
            _ => String::from_utf8_lossy(&self.body).trim().to_owned(),
        };
        let cause = complaint.cause.unwrap_or_default();
        let says = |text: &str| cause.contains(text) || message.ends_with(text);
        if self.status == StatusCode::NOT_FOUND || NOT_FOUND_CAUSES.iter().any(|text| says(text)) {
            PodmanError::NotFound { call, message }
        } else if self.status == StatusCode::CONFLICT || CONFLICT_CAUSES.iter().any(|text| says(text)) {
            PodmanError::Conflict { call, message }
        } else {
            PodmanError::Refused {
                call,
                status: self.status.as_u16(),
                message,
            }
        }
    }
}

/// libpod/define/errors.go and containers/storage/errors.go, 4.3 to 5.x.
const NOT_FOUND_CAUSES: [&str; 8] = [
    "no such container",
    "no such image",
    "image not known",
    "no such volume",
    "network not found",
    "no such exec session",
    "no container with name or ID",
    "identifier is not a container",
];

/// libpod/define/errors.go and containers/storage/errors.go, 4.3 to 5.x.
const CONFLICT_CAUSES: [&str; 6] = [
    "that name is already in use",
    "container state improper",
    "exec session state improper",
    "container already exists",
    "image is in use by a container",
    "image used by",
];

/// A value of a query or a part of a path: everything but the unreserved characters of RFC 3986 as `%XX`.
pub(super) fn percent_encoded(text: &str) -> String {
    use std::fmt::Write as _;

    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            encoded.push(char::from(byte));
        } else {
            write!(encoded, "%{byte:02X}").expect("writing to a String cannot fail");
        }
    }
    encoded
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(status: u16, body: &str) -> PodmanError {
        Call::get("/v4.0.0/libpod/x?y=z")
            .answer(status, Bytes::copy_from_slice(body.as_bytes()))
            .refusal()
    }

    /// Goal: what 4.3.1 answers is sorted by its cause. Method: its own answers, recorded.
    #[test]
    fn a_taken_name_is_a_conflict_though_podman_4_calls_it_500() {
        let taken = r#"{"cause":"that name is already in use","message":"creating container storage: the container name \"t1\" is already in use by 3e8e. You have to remove that container to be able to reuse that name: that name is already in use","response":500}"#;
        let state = r#"{"cause":"container state improper","message":"can only kill running containers. 3e8e is in state created: container state improper","response":500}"#;
        assert!(matches!(refusal(500, taken), PodmanError::Conflict { .. }));
        assert!(matches!(refusal(500, state), PodmanError::Conflict { .. }));
        assert!(matches!(refusal(409, state), PodmanError::Conflict { .. }));
    }

    #[test]
    fn the_runtimes_text_reaches_the_reader_whole() {
        let body = r#"{"cause":"OCI runtime error","message":"crun: executable file `nope` not found in $PATH: No such file or directory: OCI runtime attempted to invoke a command that was not found","response":500}"#;
        let error = refusal(500, body);
        assert!(matches!(error, PodmanError::Refused { status: 500, .. }));
        assert!(error.to_string().starts_with("crun: executable file `nope` not found"));
        assert!(!error.is_recoverable());
    }

    #[test]
    fn a_busy_port_may_be_tried_again() {
        let body = r#"{"cause":"x","message":"listen tcp 0.0.0.0:80: bind: address already in use","response":500}"#;
        assert!(refusal(500, body).is_recoverable());
    }

    #[test]
    fn an_answer_that_is_no_json_is_its_own_message() {
        assert_eq!(refusal(502, "bad gateway\n").to_string(), "bad gateway");
    }

    #[test]
    fn names_are_encoded_for_paths_and_queries() {
        assert_eq!(
            percent_encoded("docker.io/library/a:1@sha256:0"),
            "docker.io%2Flibrary%2Fa%3A1%40sha256%3A0"
        );
    }
}
