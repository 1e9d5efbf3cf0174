//! The two services of a cloud that hand out keys: an instance's metadata service (version 2) and the token service that
//! changes a web identity token into keys. On loopback, with answers as AWS documents them.
//!
//! The keys are always the same pair (what the S3 server behind it knows), the session token is what the test says: so a
//! proxy in front of the server can tell which issue of keys signed a request. Absent: everything else of these services.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use chrono::{DateTime, Utc};
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio::task::{JoinHandle, JoinSet};

/// The token that sessions with the metadata service show.
const SESSION: &str = "metadata-session";

/// What is handed out now.
#[derive(Debug, Clone)]
pub struct Issue {
    /// Access key id.
    pub id: String,
    /// Its secret.
    pub secret: String,
    /// The session token.
    pub token: String,
    /// How long the keys live.
    pub life: Duration,
}

/// The running services. They end with this value.
#[derive(Debug)]
pub struct FakeCloud {
    address: SocketAddr,
    shared: Arc<Shared>,
    accepting: JoinHandle<()>,
}

#[derive(Debug)]
struct Shared {
    issue: Mutex<Issue>,
    /// What was shown to the token service, in order.
    identities: Mutex<Vec<String>>,
}

impl FakeCloud {
    /// Starts the services.
    ///
    /// # Panics
    /// If loopback has no free port.
    pub async fn start(issue: Issue) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.expect("a free port");
        let address = listener.local_addr().expect("a listener has an address");
        let shared = Arc::new(Shared {
            issue: Mutex::new(issue),
            identities: Mutex::default(),
        });
        let accepting = tokio::spawn(accept(listener, shared.clone()));
        Self {
            address,
            shared,
            accepting,
        }
    }

    /// Their URL.
    pub fn endpoint(&self) -> String {
        format!("http://{}", self.address)
    }

    /// Hands out keys with another session token from now on.
    ///
    /// # Panics
    /// Never.
    pub fn set_token(&self, token: &str) {
        self.shared.issue.lock().expect("nothing panics with it").token = token.to_owned();
    }

    /// The web identity tokens that keys were asked for with.
    ///
    /// # Panics
    /// Never.
    pub fn identities(&self) -> Vec<String> {
        self.shared.identities.lock().expect("nothing panics with it").clone()
    }
}

impl Drop for FakeCloud {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

async fn accept(listener: TcpListener, shared: Arc<Shared>) {
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                let shared = shared.clone();
                let service = service_fn(move |request| answer(shared.clone(), request));
                connections.spawn(async move {
                    let server = hyper::server::conn::http1::Builder::new();
                    drop(server.serve_connection(TokioIo::new(stream), service).await);
                });
            }
            Some(_) = connections.join_next() => {}
        }
    }
}

async fn answer(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let issue = shared.issue.lock().expect("nothing panics with it").clone();
    let has_session = parts
        .headers
        .get("x-aws-ec2-metadata-token")
        .is_some_and(|token| token == SESSION);
    let role = "/latest/meta-data/iam/security-credentials/";
    Ok(match (&parts.method, parts.uri.path()) {
        (&Method::PUT, "/latest/api/token") => {
            let mut answer = text(StatusCode::OK, SESSION.to_owned());
            let life = "x-aws-ec2-metadata-token-ttl-seconds";
            answer
                .headers_mut()
                .insert(life, "21600".parse().expect("a number is a header"));
            answer
        }
        (&Method::GET, path) if path.starts_with(role) || path.starts_with("/latest/") => match path.strip_prefix(role)
        {
            _ if !has_session => text(StatusCode::UNAUTHORIZED, String::new()),
            Some("") => text(StatusCode::OK, "node-role".to_owned()),
            Some("node-role") => text(StatusCode::OK, metadata(&issue)),
            Some(_) | None => text(StatusCode::NOT_FOUND, String::new()),
        },
        (&Method::POST, "/") => {
            let asked = String::from_utf8_lossy(&body).into_owned();
            let field = |name: &str| {
                asked
                    .split('&')
                    .find_map(|pair| pair.strip_prefix(name).map(str::to_owned))
            };
            let identity = field("WebIdentityToken=").unwrap_or_default();
            shared.identities.lock().expect("nothing panics with it").push(identity);
            match field("Action=").as_deref() {
                Some("AssumeRoleWithWebIdentity") => text(StatusCode::OK, assumed(&issue)),
                Some(_) | None => text(StatusCode::BAD_REQUEST, String::new()),
            }
        }
        _ => text(StatusCode::NOT_FOUND, String::new()),
    })
}

fn text(status: StatusCode, body: String) -> Response<Full<Bytes>> {
    let mut answer = Response::new(Full::new(Bytes::from(body)));
    *answer.status_mut() = status;
    answer
}

#[allow(clippy::disallowed_methods, reason = "keys expire by the clock of whoever gets them")]
fn expiry(issue: &Issue) -> String {
    let expiry: DateTime<Utc> = (SystemTime::now() + issue.life).into();
    expiry.format("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn metadata(issue: &Issue) -> String {
    let Issue { id, secret, token, .. } = issue;
    let expiry = expiry(issue);
    format!(
        r#"{{"Code":"Success","LastUpdated":"2020-01-01T00:00:00Z","Type":"AWS-HMAC","AccessKeyId":"{id}","SecretAccessKey":"{secret}","Token":"{token}","Expiration":"{expiry}"}}"#
    )
}

fn assumed(issue: &Issue) -> String {
    let Issue { id, secret, token, .. } = issue;
    let expiry = expiry(issue);
    format!(
        r#"<AssumeRoleWithWebIdentityResponse xmlns="https://sts.amazonaws.com/doc/2011-06-15/"><AssumeRoleWithWebIdentityResult><SubjectFromWebIdentityToken>node</SubjectFromWebIdentityToken><AssumedRoleUser><Arn>arn:aws:sts::123456789012:assumed-role/node/s</Arn><AssumedRoleId>AROA1:s</AssumedRoleId></AssumedRoleUser><Credentials><AccessKeyId>{id}</AccessKeyId><SecretAccessKey>{secret}</SecretAccessKey><SessionToken>{token}</SessionToken><Expiration>{expiry}</Expiration></Credentials></AssumeRoleWithWebIdentityResult><ResponseMetadata><RequestId>1</RequestId></ResponseMetadata></AssumeRoleWithWebIdentityResponse>"#
    )
}
