//! Fetching an image archive by its URL, for jobs that name one: `docker-archive:https://example/image.tar`.
//!
//! The archive goes into a file first, since Podman wants all of it in one call that must not wait for a slow server. Who asks
//! limits the time (`image_pull_timeout`). Absent: proxies, and credentials other than those in the URL.

use std::path::Path;

use base64::Engine as _;
use bytes::Bytes;
use http::{HeaderValue, Request, StatusCode, Uri, header};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::HttpsConnectorBuilder;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use tokio::io::AsyncWriteExt as _;

/// A cause of any type.
type BoxError = Box<dyn std::error::Error + Send + Sync>;

/// Ten redirections, as browsers and Go's client have it. After them the servers are pointing at each other.
const REDIRECTS_MAX: usize = 10;

/// Why there is no archive.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The URL is none.
    #[error("{url} is no URL of an archive")]
    Url {
        /// As written.
        url: String,
    },
    /// The server said no.
    #[error("{url}: the server answers {status}")]
    Status {
        /// Of the archive.
        url: String,
        /// What it said.
        status: StatusCode,
    },
    /// The servers send us in circles.
    #[error("{url}: more than {REDIRECTS_MAX} redirections")]
    Circle {
        /// Of the archive.
        url: String,
    },
    /// The server cannot be reached, or broke off.
    #[error("{url}: {}", chain(source.as_ref()))]
    Unreachable {
        /// Of the archive.
        url: String,
        /// Why.
        source: BoxError,
    },
    /// The archive cannot be stored.
    #[error("cannot store the archive of {url}: {source}")]
    Store {
        /// Of the archive.
        url: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

impl DownloadError {
    /// Whether the same request may succeed later without anybody changing the job.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::Store { .. } => true,
            Self::Status { status, .. } => {
                status.is_server_error()
                    || [StatusCode::TOO_MANY_REQUESTS, StatusCode::REQUEST_TIMEOUT].contains(status)
            }
            Self::Url { .. } | Self::Circle { .. } => false,
        }
    }
}

/// The causes of a failed request: the outermost text alone says only that it failed.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

/// Stores what is behind a URL in a file, which is replaced if it is there.
///
/// # Errors
/// [`DownloadError`], as its variants say. A part of the archive may be in the file then.
pub async fn download(url: &str, into: &Path) -> Result<(), DownloadError> {
    let store = |source| DownloadError::Store {
        url: shown(url),
        source,
    };
    let mut body = request(url).await?;
    let mut file = tokio::fs::File::create(into).await.map_err(store)?;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| DownloadError::Unreachable {
            url: shown(url),
            source: error.into(),
        })?;
        if let Ok(piece) = frame.into_data() {
            file.write_all(&piece).await.map_err(store)?;
        }
    }
    file.flush().await.map_err(store)
}

/// A URL as messages have it: without the credentials that may be in it.
#[must_use]
pub fn shown(url: &str) -> String {
    let Some((scheme, rest)) = url.split_once("://") else {
        return url.to_owned();
    };
    let (authority, path) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    format!("{scheme}://{host}{path}")
}

/// Asks for the archive, wherever it has moved to.
async fn request(url: &str) -> Result<Incoming, DownloadError> {
    let unreachable = |source: BoxError| DownloadError::Unreachable {
        url: shown(url),
        source,
    };
    let connector = HttpsConnectorBuilder::new()
        .with_native_roots()
        .map_err(|error| unreachable(error.into()))?;
    let client: Client<_, Empty<Bytes>> =
        Client::builder(TokioExecutor::new()).build(connector.https_or_http().enable_http1().build());
    let mut place = url.to_owned();
    for _ in 0..=REDIRECTS_MAX {
        let answer = client
            .request(request_for(&place)?)
            .await
            .map_err(|error| unreachable(error.into()))?;
        let status = answer.status();
        if status.is_success() {
            return Ok(answer.into_body());
        }
        let elsewhere = answer
            .headers()
            .get(header::LOCATION)
            .and_then(|place| place.to_str().ok());
        match elsewhere.filter(|_| status.is_redirection()) {
            Some(next) => place = join(&place, next),
            None => {
                return Err(DownloadError::Status {
                    url: shown(url),
                    status,
                });
            }
        }
    }
    Err(DownloadError::Circle { url: shown(url) })
}

/// The request for a URL, with the credentials in it where they belong.
fn request_for(url: &str) -> Result<Request<Empty<Bytes>>, DownloadError> {
    let wrong = || DownloadError::Url { url: shown(url) };
    let (scheme, rest) = url.split_once("://").ok_or_else(wrong)?;
    let authority_end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, path) = rest.split_at(authority_end);
    let (login, host) = match authority.rsplit_once('@') {
        Some((login, host)) => (Some(login), host),
        None => (None, authority),
    };
    let path = path.split('#').next().unwrap_or_default();
    let slash = if path.starts_with('/') { "" } else { "/" };
    let uri: Uri = format!("{scheme}://{host}{slash}{path}").parse().map_err(|_| wrong())?;
    let mut request = Request::get(uri)
        .header(header::HOST, host)
        .header(
            header::USER_AGENT,
            concat!("nomad-driver-podman/", env!("CARGO_PKG_VERSION")),
        )
        .body(Empty::new())
        .map_err(|_| wrong())?;
    if let Some(login) = login {
        let basic = format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(login));
        let mut basic = HeaderValue::from_str(&basic).map_err(|_| wrong())?;
        basic.set_sensitive(true);
        request.headers_mut().insert(header::AUTHORIZATION, basic);
    }
    Ok(request)
}

/// Where a `Location` leads: a URL, or a path on the same server.
fn join(from: &str, to: &str) -> String {
    if to.contains("://") {
        return to.to_owned();
    }
    let start = from.find("://").map_or(0, |at| at + "://".len());
    let end = from[start..].find(['/', '?', '#']).map_or(from.len(), |at| start + at);
    let folder = match to.strip_prefix('/') {
        Some(_) => "",
        None => from[end..]
            .split(['?', '#'])
            .next()
            .and_then(|path| path.rsplit_once('/'))
            .map_or("", |(head, _)| head),
    };
    let slash = if to.starts_with('/') { "" } else { "/" };
    format!("{}{folder}{slash}{to}", &from[..end])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_location_is_a_url_or_a_path() {
        for (from, to, want) in [
            ("http://a/x/y.tar", "https://b/z", "https://b/z"),
            ("http://a/x/y.tar", "/z", "http://a/z"),
            ("http://a/x/y.tar?q=/1", "z", "http://a/x/z"),
            ("http://a", "z", "http://a/z"),
        ] {
            assert_eq!(join(from, to), want, "{from} -> {to}");
        }
    }

    #[test]
    fn messages_have_no_credentials() {
        for (url, want) in [
            ("https://me:pw@example.com/a@b.tar", "https://example.com/a@b.tar"),
            ("http://example.com", "http://example.com"),
            ("nothing", "nothing"),
        ] {
            assert_eq!(shown(url), want);
        }
    }

    #[test]
    fn credentials_leave_the_url_and_become_a_header() {
        let request = request_for("https://me:pw@example.com:8443?x=1#part").unwrap();
        assert_eq!(request.uri(), "https://example.com:8443/?x=1");
        assert_eq!(request.headers()["host"], "example.com:8443");
        assert_eq!(request.headers()["authorization"], "Basic bWU6cHc=");
        for bad in ["example", "http://", "http://a b/"] {
            assert!(matches!(request_for(bad), Err(DownloadError::Url { .. })), "{bad}");
        }
    }

    /// Goal: the connector can be made, that is, exactly one provider of cryptography is linked. Method: ask nobody.
    #[tokio::test]
    async fn a_server_that_is_not_there_may_come_back() {
        let folder = tempfile::tempdir().unwrap();
        let error = download("https://127.0.0.1:1/image.tar", &folder.path().join("a"))
            .await
            .unwrap_err();
        assert!(
            error.is_recoverable() && error.to_string().contains("refused"),
            "{error}"
        );
    }
}
