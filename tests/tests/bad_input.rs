//! What a person gets wrong, and what a store may do wrong: each ends in an error that names what and where, and changes nothing.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use tests::binaries::{Program, built};
use tests::local_store::LocalStore;
use tests::mounted::{MountOptions, Mounted};
use uuid::Uuid;
use volume::admin::{Admin, NodeRecord, PublishVolume};
use volume::bucket::{Bucket, Prefixed};
use volume::clock::Timestamp;
use volume::head::{AccessMode, HEAD_KEY, Transport};
use volume::volume_id::{NodeId, VolumeId};

/// Runs `pannier` with the store's keys and these arguments.
fn pannier(store: &LocalStore, arguments: &[&str]) -> Output {
    let mut command = Command::new(built(Program::Binary("pannier")));
    command.args(arguments).args(["--endpoint", &store.endpoint()]);
    command.envs(store.environment()).output().expect("pannier runs")
}

/// It must fail, and its words must hold these.
fn refused(output: &Output, words: &[&str]) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "this must fail; it said: {said}");
    for word in words {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
}

fn text(path: &Path) -> &str {
    path.to_str().expect("our paths are text")
}

/// Goal: who has no credentials is told so at once, where they were looked for and what to set, on one line. Method: neither
/// environment nor files have any, and the metadata service is a port that takes connections and says nothing.
#[test]
fn without_credentials_a_command_says_where_it_looked_and_what_to_set() {
    let store = LocalStore::start();
    let silent = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
    let metadata = format!("http://{}", silent.local_addr().expect("it has an address"));
    let output = Command::new(built(Program::Binary("pannier")))
        .args(["volume", "ls", "s3://bucket/v", "--endpoint", &store.endpoint()])
        .env_clear()
        .env("HOME", "/nonexistent")
        .env("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata)
        .output()
        .expect("pannier runs");
    let said = String::from_utf8_lossy(&output.stderr);
    refused(
        &output,
        &[
            "no credentials for s3://bucket",
            "/nonexistent/.aws/credentials",
            "no metadata service answers",
            "set AWS_ACCESS_KEY_ID",
        ],
    );
    assert_eq!(said.lines().count(), 1, "{said}");
}

#[test]
fn a_mount_that_cannot_be_says_what_is_wrong_and_where() {
    let store = LocalStore::start();
    let mnt = store.folder("mnt");
    let mount = |location: &str, dir: &Path| pannier(&store, &["mount", location, text(dir)]);
    let volume = store.location("volume");
    refused(&mount("bucket/volume", &mnt), &["bucket/volume", "s3://"]);
    refused(&mount(&volume, &mnt), &[&volume, "no volume here"]);
    refused(
        &mount("s3://no-such-bucket/v/volume", &mnt),
        &["no-such-bucket", "does not exist", &store.endpoint()],
    );
    store.create_volume("volume");
    refused(
        &mount(&volume, &PathBuf::from("/nonexistent")),
        &["/nonexistent", "does not exist"],
    );
    let full = store.folder("full");
    fs::write(full.join("file"), "").unwrap();
    refused(&mount(&volume, &full), &[text(&full), "not empty"]);
    refused(&mount(&volume, &full.join("file")), &["not a directory"]);
    refused(&mount(&volume, Path::new("/proc")), &["/proc", "mountpoint already"]);
    let mut wrong_key = Command::new(built(Program::Binary("pannier")));
    wrong_key.args(["mount", &volume, text(&mnt), "--endpoint", &store.endpoint()]);
    wrong_key
        .envs(store.environment())
        .env("AWS_SECRET_ACCESS_KEY", "wrong");
    refused(&wrong_key.output().unwrap(), &[&volume, "denied"]);
    let head: serde_json::Value = show(&store, &volume);
    assert_eq!(head["epoch"], 0, "none of these took the volume");
}

/// `pannier volume show --json`.
fn show(store: &LocalStore, location: &str) -> serde_json::Value {
    let shown = pannier(store, &["volume", "show", location, "--json"]);
    assert!(shown.status.success(), "{}", String::from_utf8_lossy(&shown.stderr));
    serde_json::from_slice::<serde_json::Value>(&shown.stdout).expect("JSON")["head"].take()
}

#[test]
fn a_volume_that_another_node_has_is_taken_only_on_request() {
    let store = LocalStore::start();
    store.create_volume("volume");
    let (mnt, volume) = (store.folder("mnt"), VolumeId::of_name("volume").unwrap());
    let node_id = NodeId::new("node-7").unwrap();
    let admin = Admin::new(store.bucket(), Uuid::new_v4());
    store.block_on(async {
        let record = NodeRecord::new(node_id.clone(), "test", 0);
        admin.register_node(&record).await.unwrap();
        let publish = PublishVolume {
            volume: volume.clone(),
            node_id,
            read_only: false,
            mode: AccessMode::SingleNodeWriter,
            now: Timestamp::default(),
        };
        admin.publish(&publish).await.unwrap();
    });
    let location = store.location("volume");
    let polite = pannier(&store, &["mount", &location, text(&mnt)]);
    refused(&polite, &[&location, "published to node node-7"]);
    refused(&pannier(&store, &["volume", "rm", &location]), &["in use", "node-7"]);
    let listed = pannier(&store, &["volume", "ls", "s3://tests"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("node-7"));
}

#[test]
fn a_damaged_head_is_told_and_left_alone() {
    let store = LocalStore::start();
    store.create_volume("volume");
    let bucket = Prefixed::new(store.bucket(), "v/volume/");
    let damaged = Bytes::from_static(b"{\"format\": 1, this is no head");
    store.block_on(async {
        let found = bucket.get(HEAD_KEY, None).await.unwrap();
        bucket
            .put_if_match(HEAD_KEY, damaged.clone(), &found.etag)
            .await
            .unwrap();
    });
    let (mnt, location) = (store.folder("mnt"), store.location("volume"));
    refused(
        &pannier(&store, &["mount", &location, text(&mnt), "--create"]),
        &[&location, "head", "damaged"],
    );
    refused(
        &pannier(&store, &["volume", "show", &location]),
        &[&location, "head", "damaged"],
    );
    let listed = pannier(&store, &["volume", "ls", "s3://tests"]);
    assert!(
        String::from_utf8_lossy(&listed.stdout).contains("damaged"),
        "the list goes on past it"
    );
    let newer = Bytes::from_static(b"{\"format\": 999}");
    store.block_on(async {
        let found = bucket.get(HEAD_KEY, None).await.unwrap();
        assert_eq!(found.body, damaged, "nobody wrote to it");
        bucket.put_if_match(HEAD_KEY, newer, &found.etag).await.unwrap();
    });
    refused(
        &pannier(&store, &["mount", &location, text(&mnt)]),
        &["format 999", "newer"],
    );
}

/// A corrupted object: reading it fails and says which, `check` finds it, and nothing else is lost.
#[test]
fn a_corrupted_object_is_named_by_reads_and_by_check() {
    let store = LocalStore::start();
    let options = |cache: &str| MountOptions {
        location: store.location("volume"),
        endpoint: store.endpoint(),
        dir: store.folder("mnt"),
        cache_dir: store.folder(cache),
        create: true,
        read_only: false,
        transport: Transport::Classic,
        environment: store.environment(),
    };
    let mounted = Mounted::new(&options("cache-1"));
    fs::write(mounted.dir().join("sound"), vec![1u8; 100_000]).unwrap();
    fs::File::open(mounted.dir()).unwrap().sync_all().unwrap();
    // Nothing that gets shorter, so that it lies in the bucket as it is.
    let noise: Vec<u8> = (0..75_000u32)
        .flat_map(|n| n.wrapping_mul(0x9e37_79b9).to_le_bytes())
        .collect();
    let noise: Vec<u8> = noise
        .iter()
        .scan(7u8, |sum, byte| {
            *sum = sum.rotate_left(3) ^ byte;
            Some(*sum)
        })
        .collect();
    fs::write(mounted.dir().join("hurt"), &noise).unwrap();
    assert!(mounted.unmount().success());
    let location = store.location("volume");
    let sound = pannier(&store, &["volume", "check", &location]);
    assert!(sound.status.success(), "{}", String::from_utf8_lossy(&sound.stdout));
    assert!(String::from_utf8_lossy(&sound.stdout).contains("no damage"));

    let object = corrupt(&store, &noise[..64]);
    let checked = pannier(&store, &["volume", "check", &location]);
    refused(&checked, &["damage"]);
    let told = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert!(told.contains(&object), "{object} is not in: {told}");
    let mounted = Mounted::new(&options("cache-2"));
    assert_eq!(fs::read(mounted.dir().join("sound")).unwrap(), vec![1u8; 100_000]);
    let error = fs::read(mounted.dir().join("hurt")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    assert_eq!(fs::metadata(mounted.dir().join("hurt")).unwrap().size(), 300_000);
    assert!(
        mounted.said().contains(&object),
        "the log names {object}: {}",
        mounted.said()
    );
    assert!(mounted.unmount().success());
}

/// Flips a byte in the object that holds `content`, and returns its key below the volume's data prefix.
fn corrupt(store: &LocalStore, content: &[u8]) -> String {
    let bucket = store.bucket();
    store.block_on(async {
        let mut request = volume::bucket::ListRequest {
            prefix: "v/volume/".into(),
            ..Default::default()
        };
        loop {
            let page = bucket.list(&request).await.expect("a listing");
            for meta in &page.objects {
                let object = bucket.get(&meta.key, None).await.expect("what was listed");
                let Some(at) = object.body.windows(content.len()).position(|window| window == content) else {
                    continue;
                };
                let mut body = object.body.to_vec();
                body[at] ^= 0x40;
                bucket
                    .put_if_match(&meta.key, body.into(), &object.etag)
                    .await
                    .expect("what was just read");
                let mut parts: Vec<_> = meta.key.split('/').collect();
                return parts.split_off(3).join("/");
            }
            request.page = page.next;
            assert!(request.page.is_some(), "the content is in some object");
        }
    })
}

/// A store that ignores the conditions of puts, as several do, must not get a volume: two writers would destroy it.
#[test]
fn a_store_without_conditional_puts_gets_no_volume() {
    let store = LocalStore::start();
    let (endpoint, objects) = store.block_on(careless_server());
    let mut command = Command::new(built(Program::Binary("pannier")));
    let mnt = store.folder("mnt");
    command.args([
        "mount",
        "s3://careless/v/volume",
        text(&mnt),
        "--create",
        "--endpoint",
        &endpoint,
    ]);
    let output = command.envs(store.environment()).output().unwrap();
    refused(
        &output,
        &["s3://careless/v/volume", "cannot keep volumes", "exactly one"],
    );
    let left: Vec<String> = objects
        .lock()
        .unwrap()
        .keys()
        .filter(|key| key.ends_with("/head"))
        .cloned()
        .collect();
    assert!(left.is_empty(), "no volume was made: {left:?}");
}

type Objects = Arc<Mutex<HashMap<String, Bytes>>>;

/// The least S3 server that does not look at `If-None-Match`.
async fn careless_server() -> (String, Objects) {
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0))
        .await
        .expect("a free port");
    let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
    let objects = Objects::default();
    let kept = Arc::clone(&objects);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let objects = Arc::clone(&kept);
            let serve = service_fn(move |request| careless(Arc::clone(&objects), request));
            tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), serve));
        }
    });
    (endpoint, objects)
}

async fn careless(objects: Objects, request: Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let (key, method) = (request.uri().path().to_owned(), request.method().clone());
    let is_list = request.uri().query().is_some_and(|query| query.contains("list-type"));
    let body = request
        .into_body()
        .collect()
        .await
        .map(|body| body.to_bytes())
        .unwrap_or_default();
    let mut objects = objects.lock().expect("nobody panics with it");
    let (status, body) = if method == Method::PUT {
        objects.insert(key, body);
        (StatusCode::OK, Bytes::new())
    } else if is_list {
        let empty = "<ListBucketResult><IsTruncated>false</IsTruncated><KeyCount>0</KeyCount></ListBucketResult>";
        (StatusCode::OK, Bytes::from_static(empty.as_bytes()))
    } else if method == Method::DELETE {
        objects.remove(&key);
        (StatusCode::NO_CONTENT, Bytes::new())
    } else if let Some(found) = objects.get(&key) {
        (StatusCode::OK, found.clone())
    } else {
        let missing = "<Error><Code>NoSuchKey</Code><Message>none</Message></Error>";
        (StatusCode::NOT_FOUND, Bytes::from_static(missing.as_bytes()))
    };
    let answer = Response::builder().status(status).header("ETag", "\"1\"");
    Ok(answer.body(Full::new(body)).expect("a plain answer"))
}
