//! Our S3 client against the servers that people run, and against the distance and the faults of real networks.
//!
//! Goal: the port's promises hold on each of them, and what goes wrong ends in an error that says what and where. Method: the
//! contract and the probe of `volume`, through `volume-s3`, on MinIO, versitygw and our own server; a proxy breaks things.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use pannier::object_server::ObjectServer;
use tests::mounted::{MountOptions, Mounted};
use tests::s3_proxy::{Delays, Fault, S3Proxy, Seen, Verb};
use tests::s3_server::{Kind, S3Server, certificate};
use uuid::Uuid;
use volume::admin::{Admin, CapacityRange, CreateVolume};
use volume::bucket::{
    Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta, Prefixed, contract,
};
use volume::clock::Timestamp;
use volume::head::{Parameters, Transport};
use volume::probe::{Trial, probe};
use volume_s3::{Credentials, Operation, RetryPolicy, S3Bucket, S3Options, S3Store};

/// A client that gives up soon, because its failures are what is tested.
async fn impatient(endpoint: &str, credentials: Credentials) -> Arc<S3Store> {
    let retry = RetryPolicy {
        total: Duration::from_secs(3),
        ..RetryPolicy::default()
    };
    let endpoint = Some(endpoint.to_owned());
    S3Store::connect(S3Options {
        endpoint,
        credentials,
        retry,
        ..S3Options::default()
    })
    .await
    .unwrap()
}

async fn keeps_contract_and_probe(bucket: BucketRef, trial: Trial) {
    let prefixed: BucketRef = Arc::new(Prefixed::new(bucket.clone(), "some team/contract/"));
    contract::check(&prefixed, "").await.unwrap();
    probe(&bucket, "probe/", Uuid::new_v4(), trial).await.unwrap();
}

async fn refuses_strangers(endpoint: &str, bucket: &str) {
    let keys = |id: &str| Credentials::Keys {
        id: id.to_owned(),
        secret: "wrong".to_owned(),
        session_token: None,
    };
    for id in ["pannier-tests", "nobody"] {
        let error = impatient(endpoint, keys(id))
            .await
            .bucket(bucket)
            .verify()
            .await
            .unwrap_err();
        let text = error.to_string();
        assert!(matches!(error, BucketError::Denied { .. }), "{text}");
        assert!(text.contains(bucket) && text.contains(endpoint), "{text}");
    }
}

async fn names_the_missing_bucket(store: &Arc<S3Store>) {
    let bucket = store.bucket("not-there");
    for error in [
        bucket.verify().await.unwrap_err(),
        bucket.get("k", None).await.unwrap_err(),
        bucket.put_if_absent("k", Bytes::from_static(b"x")).await.unwrap_err(),
    ] {
        assert!(matches!(error, BucketError::NoBucket { .. }), "{error}");
        assert!(error.to_string().contains("s3://not-there"), "{error}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn minio_keeps_the_contract_and_its_refusals_are_clear() {
    let Some(server) = S3Server::start(Kind::Minio).await else {
        return;
    };
    keeps_contract_and_probe(server.bucket("minio-contract").await, Trial { rounds: 4, racers: 32 }).await;
    refuses_strangers(server.endpoint(), "minio-contract").await;
    names_the_missing_bucket(&server.store().await).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn versitygw_keeps_the_contract_and_its_refusals_are_clear() {
    let Some(server) = S3Server::start(Kind::VersityGw).await else {
        return;
    };
    keeps_contract_and_probe(server.bucket("versity-contract").await, Trial { rounds: 4, racers: 32 }).await;
    refuses_strangers(server.endpoint(), "versity-contract").await;
    names_the_missing_bucket(&server.store().await).await;
}

/// `pannier try`'s own server, with its own bucket.
struct Own {
    _dir: tempfile::TempDir,
    server: ObjectServer,
    store: Arc<S3Store>,
}

impl Own {
    async fn start() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let server = ObjectServer::start(dir.path(), "own").await.unwrap();
        let store = Self::client(&server, &server.endpoint()).await;
        Self {
            _dir: dir,
            server,
            store,
        }
    }

    async fn client(server: &ObjectServer, endpoint: &str) -> Arc<S3Store> {
        let (id, secret) = (server.access_key_id().to_owned(), server.secret_access_key().to_owned());
        let credentials = Credentials::Keys {
            id,
            secret,
            session_token: None,
        };
        let endpoint = Some(endpoint.to_owned());
        S3Store::connect(S3Options {
            endpoint,
            credentials,
            ..S3Options::default()
        })
        .await
        .unwrap()
    }

    /// The same bucket through a proxy.
    async fn proxied(&self) -> (S3Proxy, S3Bucket, Arc<S3Store>) {
        let proxy = S3Proxy::start(&self.server.endpoint(), Delays::default()).await;
        let store = Self::client(&self.server, &proxy.endpoint()).await;
        (proxy, store.bucket("own"), store)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn our_own_server_keeps_the_contract_under_32_racers() {
    let own = Own::start().await;
    keeps_contract_and_probe(Arc::new(own.store.bucket("own")), Trial { rounds: 8, racers: 32 }).await;
    refuses_strangers(&own.server.endpoint(), "own").await;
    names_the_missing_bucket(&own.store).await;
}

/// Strikes the first request of a kind.
fn first(verb: Verb, fault: Fault) -> impl FnMut(&Seen) -> Option<Fault> + Send + 'static {
    let mut struck = false;
    move |seen| {
        let strikes = !struck && seen.verb == verb;
        struck |= strikes;
        strikes.then_some(fault)
    }
}

#[tokio::test]
async fn a_put_is_made_once_whatever_happens_to_its_first_try() {
    let own = Own::start().await;
    let (proxy, bucket, _) = own.proxied().await;
    let faults = [
        Fault::DropRequest,
        Fault::DropReply,
        Fault::Status(500),
        Fault::Status(503),
        Fault::Status(429),
    ];
    for (n, fault) in faults.into_iter().enumerate() {
        let key = format!("k{n}");
        let one = Bytes::from(format!("one {n}"));
        proxy.set_rule(first(Verb::Put, fault));
        let etag = bucket.put_if_absent(&key, one.clone()).await.unwrap();
        assert_eq!(bucket.get(&key, None).await.unwrap().body, one, "{fault:?}");
        proxy.set_rule(first(Verb::Put, fault));
        let two = Bytes::from(format!("two {n}"));
        let second = bucket.put_if_match(&key, two.clone(), &etag).await.unwrap();
        let found = bucket.get(&key, None).await.unwrap();
        assert_eq!((found.body, found.etag), (two, second), "{fault:?}");
        let error = bucket
            .put_if_match(&key, Bytes::from_static(b"three"), &etag)
            .await
            .unwrap_err();
        assert!(matches!(error, BucketError::Precondition { .. }), "{fault:?}: {error}");
    }
}

#[tokio::test]
async fn a_read_is_whole_whatever_happens_to_its_first_try() {
    let own = Own::start().await;
    let (proxy, bucket, _) = own.proxied().await;
    let body = Bytes::from(vec![7; 300_000]);
    bucket.put_if_absent("k", body.clone()).await.unwrap();
    for fault in [
        Fault::CutReply(100_000),
        Fault::CutReply(0),
        Fault::DropReply,
        Fault::Status(502),
    ] {
        proxy.set_rule(first(Verb::Get, fault));
        assert_eq!(bucket.get("k", None).await.unwrap().body, body, "{fault:?}");
        proxy.set_rule(first(Verb::Get, fault));
        assert_eq!(
            bucket.get("k", Some(10..20)).await.unwrap().body,
            body.slice(10..20),
            "{fault:?}"
        );
    }
}

#[tokio::test]
async fn our_counters_agree_with_what_the_network_saw() {
    let own = Own::start().await;
    let (proxy, bucket, store) = own.proxied().await;
    proxy.set_rule(first(Verb::Put, Fault::Status(503)));
    let etag = bucket.put_if_absent("k", Bytes::from(vec![1; 1000])).await.unwrap();
    bucket
        .put_if_match("k", Bytes::from(vec![2; 500]), &etag)
        .await
        .unwrap();
    bucket.get("k", Some(0..100)).await.unwrap();
    bucket.head("k").await.unwrap();
    bucket.list(&Default::default()).await.unwrap();
    bucket.delete("k").await.unwrap();
    let (ours, seen) = (store.counters().snapshot(), proxy.counts());
    assert_eq!((ours.puts(), ours.of(Operation::PutIfAbsent).repeats), (3, 1));
    assert_eq!(
        (seen.of(Verb::Put).requests, seen.of(Verb::Put).request_bytes),
        (3, 2500)
    );
    assert_eq!(
        (ours.of(Operation::Get).received_bytes, seen.of(Verb::Get).reply_bytes),
        (100, 100)
    );
    for (operation, verb) in [
        (Operation::Get, Verb::Get),
        (Operation::Head, Verb::Head),
        (Operation::List, Verb::List),
        (Operation::Delete, Verb::Delete),
    ] {
        assert_eq!(
            (ours.of(operation).requests, seen.of(verb).requests),
            (1, 1),
            "{verb:?}"
        );
    }
}

#[tokio::test]
async fn a_store_that_pauses_is_waited_for_and_delays_are_what_they_say() {
    let own = Own::start().await;
    let (proxy, bucket, _) = own.proxied().await;
    proxy.set_delays(Delays::REGION);
    let begun = tokio::time::Instant::now();
    bucket.put_if_absent("k", Bytes::from_static(b"x")).await.unwrap();
    assert!(begun.elapsed() >= Delays::REGION.write);
    proxy.pause();
    let reading = tokio::spawn(async move { bucket.get("k", None).await });
    let came = async {
        while proxy.counts().of(Verb::Get).requests == 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(10), came)
        .await
        .expect("the read comes to the proxy");
    assert!(!reading.is_finished());
    proxy.resume();
    assert_eq!(reading.await.unwrap().unwrap().body, "x");
}

/// Goal: a store that answers 200 to every put, whatever the condition, is refused. Method: make one of ours.
#[tokio::test]
async fn a_volume_is_not_created_on_a_store_whose_conditions_do_not_hold() {
    let own = Own::start().await;
    let cluster: BucketRef = Arc::new(Careless(own.store.bucket("own")));
    let admin = Admin::new(cluster.clone(), Uuid::new_v4());
    let request = CreateVolume {
        name: "v".to_owned(),
        uuid: Uuid::new_v4(),
        capacity: CapacityRange::default(),
        parameters: Parameters::default(),
        now: Timestamp::default(),
    };
    let error = admin.create(&request).await.unwrap_err().to_string();
    assert!(
        error.contains("cannot keep volumes") && error.contains("If-None-Match"),
        "{error}"
    );
    assert!(
        cluster.list(&Default::default()).await.unwrap().objects.is_empty(),
        "nothing is left behind"
    );
}

/// A bucket whose puts take no notice of their conditions.
#[derive(Debug)]
struct Careless(S3Bucket);

impl Careless {
    async fn put(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        loop {
            match self.0.put_if_absent(key, body.clone()).await {
                Err(BucketError::Precondition { .. }) => self.0.delete(key).await?,
                answer => return answer,
            }
        }
    }
}

#[async_trait::async_trait]
impl Bucket for Careless {
    async fn get(&self, key: &str, range: Option<std::ops::Range<u64>>) -> Result<Object, BucketError> {
        self.0.get(key, range).await
    }
    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        self.0.head(key).await
    }
    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.put(key, body).await
    }
    async fn put_if_match(&self, key: &str, body: Bytes, _expected: &ETag) -> Result<ETag, BucketError> {
        self.put(key, body).await
    }
    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.0.delete(key).await
    }
    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        self.0.list(request).await
    }
}

/// Goal: a store with a certificate of its own authority is used when that authority is named, to every request of a mount, and
/// is refused by the name of the certificate's fault when it is not. Method: MinIO with TLS and `pannier mount`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mount_trusts_the_authority_that_it_is_told_and_no_other() {
    let Some(server) = S3Server::start_with_tls().await else {
        return;
    };
    drop(server.bucket("secure").await);
    let dir = tempfile::tempdir().unwrap();
    let folder = |name: &str| {
        let folder = dir.path().join(name);
        std::fs::create_dir(&folder).unwrap();
        folder
    };
    let (mnt, stranger) = (folder("mnt"), dir.path().join("stranger.crt"));
    certificate(&stranger, &dir.path().join("stranger.key"));
    let options = |authority: &std::path::Path| MountOptions {
        location: "s3://secure/volume".to_owned(),
        endpoint: server.endpoint().to_owned(),
        dir: mnt.clone(),
        cache_dir: dir.path().join("cache"),
        create: true,
        read_only: false,
        transport: Transport::Classic,
        environment: vec![("PANNIER_CA_BUNDLE".to_owned(), authority.display().to_string())],
    };
    let (_, said) = Mounted::start(&options(&stranger)).unwrap_err();
    assert!(
        said.contains("s3://secure/volume") && said.contains("certificate"),
        "{said}"
    );
    let mount = Mounted::new(&options(&server.authority().unwrap()));
    std::fs::write(mount.dir().join("file"), b"over TLS").unwrap();
    assert!(mount.unmount().success());
    let again = Mounted::new(&options(&server.authority().unwrap()));
    assert_eq!(std::fs::read(again.dir().join("file")).unwrap(), b"over TLS");
}
