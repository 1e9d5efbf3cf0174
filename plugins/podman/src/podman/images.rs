//! `images/…`: what containers are made of.

use std::path::Path;

use base64::Engine as _;
use bytes::{Buf, Bytes, BytesMut};
use futures::TryStreamExt;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use serde::Deserialize;
use tokio_util::io::ReaderStream;

use super::client::Client;
use super::socket::{Body, Call, StreamedAnswer, percent_encoded};
use super::{BoxError, ImageInfo, PodmanError, PullFailure, PullProgress, PullRequest, RegistryAuth};

/// 256 KiB from the disk at a time: archives are hundreds of MiB, and each piece is one write to the socket.
const ARCHIVE_PIECE_BYTES: usize = 256 << 10;

/// 1 MiB: a line of a pull's report longer than this is no report.
const REPORT_BYTES_MAX: usize = 1 << 20;

pub(super) async fn inspect(client: &Client, reference: &str) -> Result<Option<ImageInfo>, PodmanError> {
    let call = Call::get(client.target_of("images", reference, "/json").await?);
    client.socket.send(&call).await?.json_if_found()
}

pub(super) async fn remove(client: &Client, reference: &str) -> Result<(), PodmanError> {
    let call = Call::delete(client.target_of("images", reference, "?force=false").await?);
    match client.socket.send(&call).await?.ok() {
        Ok(_) | Err(PodmanError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// One line of a pull's report, and the whole of a load's and an import's.
#[derive(Default, Deserialize)]
#[serde(default)]
struct Report {
    stream: Option<String>,
    error: Option<String>,
    id: Option<String>,
    #[serde(rename = "Id")]
    import_id: Option<String>,
    #[serde(rename = "Names")]
    names: Option<Vec<String>>,
}

/// Twice: the second finds no layer of an image that is being removed any more.
pub(super) async fn pull(
    client: &Client,
    pull: &PullRequest,
    progress: PullProgress<'_>,
) -> Result<String, PodmanError> {
    match pull_once(client, pull, progress).await {
        Err(PodmanError::Pull {
            kind: PullFailure::Raced,
            ..
        }) => pull_once(client, pull, progress).await,
        done => done,
    }
}

async fn pull_once(client: &Client, pull: &PullRequest, progress: PullProgress<'_>) -> Result<String, PodmanError> {
    let mut call = Call::post(client.target(&pull_endpoint(pull)).await?).limit(None);
    if let Some(auth) = &pull.auth {
        call = call.header("x-registry-auth", auth_header(auth));
    }
    let refused = |error: PodmanError| match error {
        PodmanError::Refused { message, .. }
        | PodmanError::NotFound { message, .. }
        | PodmanError::Conflict { message, .. } => pull_error(&pull.reference, message),
        other => other,
    };
    let answer = client.socket.stream(&call).await?.success().await.map_err(refused)?;
    read_pull_report(&call, answer, pull, progress).await
}

fn pull_endpoint(pull: &PullRequest) -> String {
    let mut endpoint = format!(
        "images/pull?reference={}&policy={}",
        percent_encoded(&pull.reference),
        if pull.always { "always" } else { "missing" }
    );
    let mut add = |key: &str, value: &Option<String>| {
        if let Some(value) = value {
            endpoint.push_str(&format!("&{key}={}", percent_encoded(value)));
        }
    };
    add("arch", &pull.platform.arch);
    add("os", &pull.platform.os);
    add("variant", &pull.platform.variant);
    add("tlsVerify", &pull.tls_verify.map(|verify| verify.to_string()));
    endpoint
}

/// Podman reads base64url of JSON with the padding left on, as Docker's clients write it.
fn auth_header(auth: &RegistryAuth) -> String {
    let mut fields = serde_json::Map::new();
    match &auth.identity_token {
        Some(token) => fields.insert("identitytoken".to_owned(), token.clone().into()),
        None => fields.insert("password".to_owned(), auth.password.clone().into()),
    };
    fields.insert("username".to_owned(), auth.username.clone().into());
    base64::engine::general_purpose::URL_SAFE.encode(serde_json::Value::Object(fields).to_string())
}

/// Reads to the end: the status is 200 from the first line on, and the error, if there is one, is the last line.
async fn read_pull_report(
    call: &Call,
    mut answer: StreamedAnswer,
    pull: &PullRequest,
    progress: PullProgress<'_>,
) -> Result<String, PodmanError> {
    let mut unread = BytesMut::new();
    let mut id = None;
    let mut error = None;
    loop {
        let piece = answer.next().await?;
        let at_end = piece.is_none();
        unread.extend_from_slice(&piece.unwrap_or_default());
        if at_end && !unread.is_empty() {
            unread.extend_from_slice(b"\n");
        }
        while let Some(end) = unread.iter().position(|byte| *byte == b'\n') {
            let line = unread.split_to(end);
            unread.advance(1);
            if line.iter().all(u8::is_ascii_whitespace) {
                continue;
            }
            let report: Report = serde_json::from_slice(&line).map_err(|error| call.protocol(error.to_string()))?;
            if let Some(text) = &report.stream {
                progress(text.trim_end());
            }
            id = report.id.filter(|id| !id.is_empty()).or(id);
            error = report.error.filter(|error| !error.is_empty()).or(error);
        }
        if unread.len() > REPORT_BYTES_MAX {
            return Err(call.protocol(format!("a line is longer than {REPORT_BYTES_MAX} bytes")));
        }
        if at_end {
            break;
        }
    }
    match (error, id) {
        (Some(message), _) => Err(pull_error(&pull.reference, message)),
        (None, Some(id)) => Ok(id),
        (None, None) => Err(call.protocol("it ended with neither an image nor an error")),
    }
}

fn pull_error(reference: &str, message: String) -> PodmanError {
    PodmanError::Pull {
        reference: reference.to_owned(),
        kind: pull_failure(&message),
        message,
    }
}

/// Sorts the texts of containers/image, of registries and of Go's net package. Order matters: a registry that is
/// away is also reported as "authentication" trouble by some, and "not found" also ends DNS errors.
fn pull_failure(message: &str) -> PullFailure {
    const REGISTRY: [&str; 17] = [
        "connection refused",
        "connection reset",
        "no such host",
        "network is unreachable",
        "no route to host",
        "i/o timeout",
        "tls handshake timeout",
        "deadline exceeded",
        "temporary failure in name resolution",
        "server misbehaving",
        "unexpected eof",
        "toomanyrequests",
        "too many requests",
        "500 internal server error",
        "502 bad gateway",
        "503 service unavailable",
        "504 gateway time",
    ];
    const DENIED: [&str; 5] = [
        "unauthorized",
        "authentication required",
        "invalid username/password",
        "access to the resource is denied",
        "403",
    ];
    const ABSENT: [&str; 5] = [
        "manifest unknown",
        "name unknown",
        "not known to registry",
        "no such image",
        "404 (not found)",
    ];
    const REFERENCE: [&str; 4] = [
        "invalid reference format",
        "parsing reference",
        "short-name",
        "unsupported transport",
    ];
    const RACED: [&str; 1] = ["layer not known"];
    let text = message.to_ascii_lowercase();
    let says = |words: &[&str]| words.iter().any(|word| text.contains(word));
    if says(&REGISTRY) || text.ends_with(": eof") {
        PullFailure::Registry
    } else if says(&DENIED) {
        PullFailure::Denied
    } else if says(&ABSENT) {
        PullFailure::NoSuchImage
    } else if says(&REFERENCE) {
        PullFailure::BadReference
    } else if says(&RACED) {
        PullFailure::Raced
    } else {
        PullFailure::Other
    }
}

pub(super) async fn load(client: &Client, archive: &Path) -> Result<Vec<String>, PodmanError> {
    let call = archive_call(client.target("images/load").await?);
    let unreadable = |source| PodmanError::Archive {
        path: archive.to_owned(),
        source,
    };
    let file = tokio::fs::File::open(archive).await.map_err(unreadable)?;
    let pieces = ReaderStream::with_capacity(file, ARCHIVE_PIECE_BYTES);
    let body = Body::new(StreamBody::new(pieces.map_ok(Frame::data).map_err(BoxError::from)));
    let report: Report = client.socket.upload(&call, body).await?.json()?;
    Ok(report.names.unwrap_or_default())
}

pub(super) async fn import(client: &Client, root_tar: Bytes, reference: &str) -> Result<String, PodmanError> {
    let endpoint = format!("images/import?reference={}", percent_encoded(reference));
    let call = archive_call(client.target(&endpoint).await?);
    let body = http_body_util::Full::new(root_tar)
        .map_err(|never| match never {})
        .boxed_unsync();
    let report: Report = client.socket.upload(&call, body).await?.json()?;
    report
        .import_id
        .or(report.id)
        .ok_or_else(|| call.protocol("it names no image"))
}

/// No deadline: how long an archive takes depends on its size, and callers have theirs.
fn archive_call(target: String) -> Call {
    Call::post(target)
        .limit(None)
        .header("content-type", "application/x-tar".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: a failed pull says whether another try helps. Method: texts of Podman 4.3 and 5 and of registries.
    #[test]
    fn pull_errors_are_sorted_by_whether_another_try_helps() {
        let cases = [
            (
                "initializing source docker://127.0.0.1:1/a:1: pinging container registry 127.0.0.1:1: Get \"http://127.0.0.1:1/v2/\": dial tcp 127.0.0.1:1: connect: connection refused",
                PullFailure::Registry,
            ),
            (
                "initializing source docker://r/a:1: reading manifest 1 in r/a: toomanyrequests: slow down",
                PullFailure::Registry,
            ),
            (
                "pinging container registry r: Get \"https://r/v2/\": EOF",
                PullFailure::Registry,
            ),
            (
                "pinging container registry r: Get \"https://r/v2/\": dial tcp: lookup r: no such host",
                PullFailure::Registry,
            ),
            (
                "initializing source docker://r/a:9: reading manifest 9 in r/a: manifest unknown",
                PullFailure::NoSuchImage,
            ),
            (
                "reading manifest latest in r/a: name unknown: repository name not known to registry",
                PullFailure::NoSuchImage,
            ),
            (
                "reading manifest 1 in r/a: unauthorized: authentication required",
                PullFailure::Denied,
            ),
            ("requested access to the resource is denied", PullFailure::Denied),
            (
                "short-name \"a\" did not resolve to an alias and no unqualified-search registries are defined",
                PullFailure::BadReference,
            ),
            (
                "copying system image from manifest list: no space left on device",
                PullFailure::Other,
            ),
        ];
        for (text, kind) in cases {
            assert_eq!(pull_failure(text), kind, "{text}");
        }
    }

    #[test]
    fn the_auth_header_is_base64url_of_json() {
        let auth = RegistryAuth {
            username: "u".into(),
            password: "p?>~".into(),
            identity_token: None,
        };
        let header = auth_header(&auth);
        let json = base64::engine::general_purpose::URL_SAFE.decode(header).unwrap();
        assert_eq!(json, br#"{"password":"p?>~","username":"u"}"#);
        assert_eq!(
            format!("{auth:?}"),
            "RegistryAuth { .. }",
            "credentials never reach a log"
        );
    }

    #[test]
    fn references_are_escaped_in_the_query() {
        let pull = PullRequest {
            reference: "r:5000/a&b:1".into(),
            tls_verify: Some(false),
            ..PullRequest::default()
        };
        assert_eq!(
            pull_endpoint(&pull),
            "images/pull?reference=r%3A5000%2Fa%26b%3A1&policy=missing&tlsVerify=false"
        );
    }
}
