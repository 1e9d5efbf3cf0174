//! The bucket against a server that answers by a script: what real servers do too rarely to wait for.

use std::collections::VecDeque;
use std::sync::Mutex;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;
use crate::{Credentials, S3Options};

/// What the server does with one request.
#[derive(Debug, Clone)]
enum Step {
    /// Answers with a status, headers and a body.
    Answer(u16, &'static str, &'static str),
    /// Never answers.
    Hang,
    /// Answers that it is done, after the next request was answered.
    Slow,
    /// Closes the connection without a word.
    Drop,
    /// Promises a longer body than it sends.
    Cut(&'static str),
}

const NO_KEY: Step = Step::Answer(404, "", "<Error><Code>NoSuchKey</Code><Message>gone</Message></Error>");
const LOST: Step = Step::Answer(
    412,
    "",
    "<Error><Code>PreconditionFailed</Code><Message>no</Message></Error>",
);
const SLOW: Step = Step::Answer(503, "", "<Error><Code>SlowDown</Code><Message>slower</Message></Error>");
const CONFLICT: Step = Step::Answer(409, "", "<Error><Code>ConditionalRequestConflict</Code></Error>");
const DONE: Step = Step::Answer(200, "ETag: \"1\"\r\n", "");

struct Script {
    steps: Mutex<VecDeque<Step>>,
    seen: Mutex<Vec<String>>,
}

/// Serves `steps`, one for each request in the order of arrival, and returns a bucket on that server.
async fn scripted(steps: impl IntoIterator<Item = Step>) -> (S3Bucket, Arc<Script>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", listener.local_addr().unwrap());
    let script = Arc::new(Script {
        steps: Mutex::new(steps.into_iter().collect()),
        seen: Mutex::default(),
    });
    let serving = script.clone();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(stream, serving.clone()));
        }
    });
    (store(&endpoint, Duration::from_secs(10)).await.bucket("bucket"), script)
}

async fn store(endpoint: &str, total: Duration) -> Arc<S3Store> {
    let credentials = Credentials::Keys {
        id: "id".to_owned(),
        secret: "secret".to_owned(),
        session_token: None,
    };
    let retry = RetryPolicy {
        total,
        ..RetryPolicy::default()
    };
    let options = S3Options {
        endpoint: Some(endpoint.to_owned()),
        credentials,
        retry,
        ..S3Options::default()
    };
    S3Store::connect(options).await.unwrap()
}

async fn serve(mut stream: TcpStream, script: Arc<Script>) {
    let mut input = Vec::new();
    loop {
        let Some(head) = read_request(&mut stream, &mut input).await else {
            return;
        };
        script.seen.lock().unwrap().push(head);
        let step = script
            .steps
            .lock()
            .unwrap()
            .pop_front()
            .expect("the script has a step for each request");
        let answer = match step {
            Step::Answer(status, headers, body) => {
                format!(
                    "HTTP/1.1 {status} X\r\n{headers}Content-Length: {}\r\n\r\n{body}",
                    body.len()
                )
            }
            Step::Drop => return,
            Step::Hang => return std::future::pending().await,
            Step::Slow => {
                let next = async {
                    while script.seen.lock().unwrap().len() < 2 {
                        tokio::task::yield_now().await;
                    }
                    tokio::time::sleep(Duration::from_millis(200)).await;
                };
                next.await;
                "HTTP/1.1 200 X\r\nETag: \"1\"\r\nContent-Length: 0\r\n\r\n".to_owned()
            }
            Step::Cut(body) => {
                let cut = format!(
                    "HTTP/1.1 200 X\r\nETag: \"1\"\r\nContent-Length: {}\r\n\r\n{body}",
                    body.len() + 9
                );
                stream.write_all(cut.as_bytes()).await.unwrap();
                return;
            }
        };
        stream.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// Reads one request with its body and returns its head; `None` at the end of the connection.
async fn read_request(stream: &mut TcpStream, input: &mut Vec<u8>) -> Option<String> {
    loop {
        if let Some(end) = input.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            let head = String::from_utf8(input[..end].to_vec()).unwrap();
            let length = head
                .lines()
                .find_map(|line| line.to_ascii_lowercase().strip_prefix("content-length: ")?.parse().ok());
            let whole = end + 4 + length.unwrap_or(0);
            if input.len() >= whole {
                input.drain(..whole);
                return Some(head);
            }
        }
        if stream.read_buf(input).await.unwrap_or(0) == 0 {
            return None;
        }
    }
}

fn body() -> Bytes {
    Bytes::from_static(b"mine 4711")
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_is_known_by_its_bytes() {
    let mine = Step::Answer(200, "ETag: \"7\"\r\n", "mine 4711");
    let (bucket, script) = scripted([Step::Drop, LOST, mine]).await;
    assert_eq!(
        bucket.put_if_absent("k", body()).await.unwrap(),
        ETag("\"7\"".to_owned())
    );
    let seen = script.seen.lock().unwrap().clone();
    assert!(
        seen[0].contains("if-none-match: *") && seen[1].contains("if-none-match: *"),
        "{seen:?}"
    );
    assert!(seen[2].starts_with("GET /bucket/k"), "{seen:?}");
}

#[tokio::test]
async fn a_put_whose_answer_was_lost_and_that_another_writer_won_is_lost() {
    for (name, found) in [
        ("other bytes", Step::Answer(200, "ETag: \"7\"\r\n", "yours 815")),
        ("nothing", NO_KEY),
    ] {
        let (bucket, _script) = scripted([Step::Drop, LOST, found]).await;
        let error = bucket
            .put_if_match("k", body(), &ETag("\"0\"".to_owned()))
            .await
            .unwrap_err();
        assert!(matches!(error, BucketError::Precondition { .. }), "{name}: {error}");
    }
}

/// A 412 that follows only clear refusals is a loss, without a further look: even the same bytes would be of another.
/// All tries of a put in several pieces send the same bytes under the same sum, and what stands there is compared with all of them.
#[tokio::test]
async fn a_put_in_pieces_is_repeated_and_known_as_any_other() {
    let pieces = [&b"mine"[..], b" ", b"4711"].map(Bytes::from_static);
    for (found, won) in [("mine 4711", true), ("mine 4712", false), ("mine 471", false)] {
        let there = Step::Answer(200, "ETag: \"7\"\r\n", found);
        let (bucket, script) = scripted([SLOW, Step::Drop, LOST, there]).await;
        let put = bucket.put_rope_if_absent("k", pieces.iter().cloned().collect()).await;
        match (won, put) {
            (true, Ok(etag)) => assert_eq!(etag, ETag("\"7\"".to_owned())),
            (false, Err(BucketError::Precondition { .. })) => {}
            (_, other) => panic!("{found}: {other:?}"),
        }
        let seen = script.seen.lock().unwrap();
        assert_eq!(seen.len(), 4);
        for head in &seen[..3] {
            let head = head.to_ascii_lowercase();
            for line in [
                "content-length: 9",
                "x-amz-content-sha256: e67f9362a597c2453321024daba0b468055ebb1a9587b63d3dc23593c9532ad6",
            ] {
                assert!(head.lines().any(|other| other == line), "{line}: {head}");
            }
        }
    }
}

#[tokio::test]
async fn a_put_that_was_surely_refused_before_is_not_looked_up() {
    let (bucket, script) = scripted([SLOW, CONFLICT, LOST]).await;
    let error = bucket.put_if_absent("k", body()).await.unwrap_err();
    assert!(matches!(error, BucketError::Precondition { .. }), "{error}");
    assert_eq!(script.seen.lock().unwrap().len(), 3);
}

#[tokio::test]
async fn throttling_conflicts_and_broken_servers_are_waited_out() {
    let broken = Step::Answer(500, "", "<Error><Code>InternalError</Code></Error>");
    let busy = Step::Answer(429, "", "<Error><Code>TooManyRequests</Code></Error>");
    let (bucket, _script) = scripted([SLOW, CONFLICT, broken, busy, DONE]).await;
    bucket.put_if_absent("k", body()).await.unwrap();
    let count = bucket.store.counters().snapshot().of(Operation::PutIfAbsent);
    assert_eq!((count.requests, count.repeats, count.sent_bytes), (5, 4, 45));
}

#[tokio::test]
async fn a_body_that_was_cut_is_read_again() {
    let whole = Step::Answer(200, "ETag: \"1\"\r\n", "whole");
    let (bucket, _script) = scripted([Step::Cut("who"), Step::Drop, whole]).await;
    assert_eq!(bucket.get("k", None).await.unwrap().body, "whole");
}

#[tokio::test]
async fn a_condition_on_an_object_that_is_gone_is_lost() {
    let (bucket, _script) = scripted([NO_KEY]).await;
    let error = bucket
        .put_if_match("k", body(), &ETag("\"0\"".to_owned()))
        .await
        .unwrap_err();
    assert!(matches!(error, BucketError::Precondition { .. }), "{error}");
}

#[tokio::test]
async fn a_store_without_conditional_puts_is_called_that() {
    let refused = Step::Answer(
        501,
        "",
        "<Error><Code>NotImplemented</Code><Message>header</Message></Error>",
    );
    let (bucket, _script) = scripted([refused]).await;
    let error = bucket.put_if_absent("k", body()).await.unwrap_err();
    assert!(
        matches!(error, BucketError::Unsupported { feature, .. } if feature.contains("If-None-Match")),
        "{error}"
    );
}

#[tokio::test]
async fn refusals_say_what_was_refused_and_where() {
    let denied = Step::Answer(
        403,
        "",
        "<Error><Code>SignatureDoesNotMatch</Code><Message>wrong key</Message></Error>",
    );
    let no_bucket = Step::Answer(
        404,
        "",
        "<Error><Code>NoSuchBucket</Code><Message>none</Message></Error>",
    );
    let (bucket, _script) = scripted([denied, no_bucket]).await;
    let error = bucket.get("a/b", None).await.unwrap_err();
    let text = error.to_string();
    assert!(matches!(error, BucketError::Denied { .. }), "{text}");
    for part in [
        "s3://bucket/a/b",
        "SignatureDoesNotMatch",
        "wrong key",
        "at http://127.0.0.1:",
    ] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
    let error = bucket.put_if_absent("a/b", body()).await.unwrap_err();
    assert!(
        matches!(&error, BucketError::NoBucket { bucket } if bucket.contains("s3://bucket")),
        "{error}"
    );
}

#[tokio::test]
async fn an_endpoint_that_nobody_serves_is_named_when_time_is_up() {
    // The port was free a moment ago, and nobody is told of it.
    let port = TcpListener::bind("127.0.0.1:0")
        .await
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let endpoint = format!("http://127.0.0.1:{port}");
    let bucket = store(&endpoint, Duration::from_millis(300)).await.bucket("bucket");
    let error = bucket.verify().await.unwrap_err();
    let text = error.to_string();
    assert!(error.is_transient(), "{text}");
    for part in [endpoint.as_str(), "s3://bucket/", "onnection refused", "tries in"] {
        assert!(text.contains(part), "{part} is missing in: {text}");
    }
}

#[tokio::test]
async fn an_endpoint_that_is_no_url_is_refused_before_anything_is_sent() {
    let options = S3Options {
        endpoint: Some("localhost:9000".to_owned()),
        ..S3Options::default()
    };
    let error = S3Store::connect(options).await.unwrap_err().to_string();
    assert!(error.contains("localhost:9000") && error.contains("http://"), "{error}");
}

#[test]
fn secrets_are_not_printed() {
    let secret = Some("token-secret".to_owned());
    let keys = Credentials::Keys {
        id: "AKIA1".to_owned(),
        secret: "key-secret".to_owned(),
        session_token: secret,
    };
    let printed = format!("{keys:?}");
    assert!(printed.contains("AKIA1") && !printed.contains("secret"), "{printed}");
}

/// Makes the store believe that puts and gets are usually answered within a millisecond.
fn prime(bucket: &S3Bucket) {
    for _ in 0..400 {
        for operation in [Operation::Get, Operation::PutIfAbsent] {
            bucket.store.hedging.wait(operation, 9);
            bucket.store.hedging.took(operation, 9, Duration::from_millis(1));
        }
    }
}

#[tokio::test]
async fn a_slow_get_is_asked_for_twice_and_the_first_answer_counts() {
    let whole = Step::Answer(200, "ETag: \"1\"\r\n", "whole");
    let (bucket, _script) = scripted([Step::Hang, whole]).await;
    prime(&bucket);
    let begun = Instant::now();
    assert_eq!(bucket.get("k", None).await.unwrap().body, "whole");
    assert!(
        begun.elapsed() < bucket.store.retry.attempt,
        "the first request was not waited for"
    );
    let count = bucket.store.counters().snapshot().of(Operation::Get);
    assert_eq!(
        (count.requests, count.repeats, count.hedges, count.hedges_won),
        (2, 0, 1, 1)
    );
}

/// The second request of a put meets what the first one did: the bytes tell that it was ours.
#[tokio::test]
async fn a_slow_put_whose_second_request_meets_its_own_effect_has_won() {
    let mine = Step::Answer(200, "ETag: \"7\"\r\n", "mine 4711");
    let (bucket, script) = scripted([Step::Hang, LOST, mine]).await;
    prime(&bucket);
    assert_eq!(
        bucket.put_if_absent("k", body()).await.unwrap(),
        ETag("\"7\"".to_owned())
    );
    let seen = script.seen.lock().unwrap().clone();
    assert!(seen[1].starts_with("PUT") && seen[2].starts_with("GET"), "{seen:?}");
}

#[tokio::test]
async fn a_slow_put_that_another_writer_won_is_lost() {
    let other = Step::Answer(200, "ETag: \"7\"\r\n", "yours 815");
    let (bucket, _script) = scripted([Step::Hang, LOST, other]).await;
    prime(&bucket);
    let error = bucket.put_if_absent("k", body()).await.unwrap_err();
    assert!(matches!(error, BucketError::Precondition { .. }), "{error}");
}

/// A second request that fails says nothing of the first, which is waited for.
#[tokio::test]
async fn a_second_request_that_fails_leaves_the_first_its_time() {
    let (bucket, _script) = scripted([Step::Slow, SLOW]).await;
    prime(&bucket);
    bucket.put_if_absent("k", body()).await.unwrap();
    let count = bucket.store.counters().snapshot().of(Operation::PutIfAbsent);
    assert_eq!((count.requests, count.hedges, count.hedges_won), (2, 1, 0));
}
