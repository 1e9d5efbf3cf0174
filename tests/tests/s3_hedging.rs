//! A store that answers one request in twenty late: second requests hide it, for a bounded price.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use tests::local_store::{BUCKET, LocalStore};
use tests::s3_proxy::{Delays, Fault, S3Proxy, Verb};
use volume::bucket::Bucket;
use volume_s3::{Credentials, Operation, S3Options, S3Store};

/// Much longer than any answer takes on a busy machine.
const LATE: Duration = Duration::from_secs(3);

const WARM: u64 = 300;
const REQUESTS: u64 = 800;

/// Goal: of 800 reads and 800 conditional puts, of which one in twenty is answered 3 s late, nearly none takes that long, and
/// at most one in twenty is sent twice. Method: a proxy holds every twentieth request.
#[test]
fn late_answers_are_hidden_and_few_requests_are_sent_twice() {
    let store = LocalStore::start();
    let proxy = store.block_on(S3Proxy::start(&store.endpoint(), Delays::default()));
    let keys = store.environment();
    let value = |name: &str| keys.iter().find(|(known, _)| known == name).unwrap().1.clone();
    let options = S3Options {
        endpoint: Some(proxy.endpoint()),
        region: Some("us-east-1".to_owned()),
        credentials: Credentials::Keys {
            id: value("AWS_ACCESS_KEY_ID"),
            secret: value("AWS_SECRET_ACCESS_KEY"),
            session_token: None,
        },
        ..S3Options::default()
    };
    let s3 = store.block_on(S3Store::connect(options)).unwrap();
    let bucket = Arc::new(s3.bucket(BUCKET));
    let put = |from: u64, count: u64| {
        let bucket = bucket.clone();
        stream::iter(from..from + count)
            .map(move |n| {
                let bucket = bucket.clone();
                async move {
                    let begun = Instant::now();
                    let body = Bytes::from(format!("{n:0>4096}"));
                    bucket.put_if_absent(&format!("o/{n}"), body).await.unwrap();
                    begun.elapsed()
                }
            })
            .buffer_unordered(4)
            .collect::<Vec<_>>()
    };
    let get = |count: u64| {
        let bucket = bucket.clone();
        stream::iter(0..count)
            .map(move |n| {
                let bucket = bucket.clone();
                async move {
                    let begun = Instant::now();
                    let found = bucket.get(&format!("o/{}", n % WARM), Some(0..4096)).await.unwrap();
                    assert_eq!(found.body.len(), 4096);
                    begun.elapsed()
                }
            })
            .buffer_unordered(4)
            .collect::<Vec<_>>()
    };
    store.block_on(put(0, WARM));
    store.block_on(get(WARM));
    let warm = s3.counters().snapshot();
    let mut seen = [0_u64; 2];
    proxy.set_rule(move |request| {
        let way = usize::from(request.verb == Verb::Put);
        seen[way] += 1;
        seen[way].is_multiple_of(20).then_some(Fault::Slow(LATE))
    });
    let puts = store.block_on(put(WARM, REQUESTS));
    let gets = store.block_on(get(REQUESTS));
    let sent = s3.counters().snapshot().since(&warm);
    for (operation, times) in [(Operation::PutIfAbsent, puts), (Operation::Get, gets)] {
        let late = times.iter().filter(|time| **time >= LATE).count();
        let count = sent.of(operation);
        eprint(&format!("{}: {late} of {REQUESTS} late; {count:?}", operation.name()));
        // Without second requests it would be 40.
        assert!(late <= 12, "{late} of {} {} were late", times.len(), operation.name());
        assert!(count.hedges >= 20 && count.hedges_won >= 20, "{count:?}");
        assert!(count.hedges <= REQUESTS / 20 + 11, "{count:?}");
    }
    proxy.clear_rule();
    // Each put has had its effect once, whichever of its requests it was.
    for n in [0, WARM, WARM + 19, WARM + REQUESTS - 1] {
        let found = store.block_on(bucket.get(&format!("o/{n}"), None)).unwrap();
        assert_eq!(found.body, format!("{n:0>4096}"));
    }
}

/// Measured numbers, for whoever runs the test by hand.
fn eprint(text: &str) {
    use std::io::Write;
    writeln!(std::io::stderr(), "{text}").expect("there is a standard error");
}
