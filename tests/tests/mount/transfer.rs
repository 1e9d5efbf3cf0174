//! Import and export: objects of other programs become files and files become objects, once each, whatever interrupts.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Arc;

use bytes::Bytes;
use tests::binaries::{Program, built};
use tests::calls::pattern;
use tests::mounted::{MountOptions, Mounted};
use tests::s3_server::{Kind, S3Server};
use tokio::runtime::Runtime;
use volume::bucket::{Bucket, ListRequest};
use volume::head::Transport;
use volume_s3::{Metadata, S3Bucket, S3Store};

/// A store with the buckets `objects` (of others) and `volumes`.
struct Place {
    runtime: Runtime,
    server: S3Server,
    store: Arc<S3Store>,
    objects: S3Bucket,
}

impl Place {
    fn new() -> Option<Self> {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(S3Server::start(Kind::Minio))?;
        let store = runtime.block_on(server.store());
        for bucket in ["objects", "volumes"] {
            runtime.block_on(store.create_bucket(bucket)).unwrap();
        }
        let objects = store.bucket("objects");
        Some(Self {
            runtime,
            server,
            store,
            objects,
        })
    }

    fn put(&self, key: &str, body: &[u8], metadata: &[(&str, &str)]) {
        let own = |&(key, value): &(&str, &str)| (key.to_owned(), value.to_owned());
        let metadata: Metadata = metadata.iter().map(own).collect();
        let put = self.objects.put_plain(key, Bytes::copy_from_slice(body), &metadata);
        self.runtime.block_on(put).unwrap();
    }

    /// Keys below a prefix, without it, with content and what is written beside them.
    fn below(&self, prefix: &str) -> BTreeMap<String, (Bytes, Metadata)> {
        let request = ListRequest {
            prefix: prefix.to_owned(),
            ..ListRequest::default()
        };
        let listed = self.runtime.block_on(self.objects.list(&request)).unwrap();
        assert_eq!(listed.next, None, "a test has few objects");
        let read = |key: &str| self.runtime.block_on(self.objects.get_plain(key, None)).unwrap();
        listed
            .objects
            .iter()
            .map(|object| {
                let (content, beside) = read(&object.key);
                (object.key[prefix.len()..].to_owned(), (content.body, beside))
            })
            .collect()
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(built(Program::Binary("pannier")));
        command
            .arg("volume")
            .args(arguments)
            .args(["--endpoint", self.server.endpoint()]);
        command.envs(S3Server::environment()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("pannier starts")
    }

    /// (done, skipped, failed) of a run with `--json`, and whether it succeeded.
    fn counts(&self, arguments: &[&str]) -> ((u64, u64, u64), bool, String) {
        let output = self.run(&[arguments, &["--json"]].concat());
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        let told: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{errors}"));
        let of = |key: &str| told[key].as_u64().unwrap();
        (
            (of("done"), of("skipped"), of("failed")),
            output.status.success(),
            errors,
        )
    }

    fn mounted(&self, dir: &Path, cache_dir: &Path) -> Mounted {
        Mounted::new(&MountOptions {
            location: "s3://volumes/imported".to_owned(),
            endpoint: self.server.endpoint().to_owned(),
            dir: dir.to_owned(),
            cache_dir: cache_dir.to_owned(),
            create: false,
            read_only: false,
            transport: Transport::Classic,
            environment: Vec::new(),
        })
    }
}

const IMPORT: &[&str] = &[
    "import",
    "s3://volumes/imported",
    "--from",
    "s3://objects/src",
    "--create",
];
const EXPORT: &[&str] = &["export", "s3://volumes/imported", "--to", "s3://objects/out"];

/// What s3fs and rclone wrote beside an object is the file's; what cannot be a path is told and the rest goes on; a second
/// run reads nothing again; an export writes the same objects, and replaces no other's.
#[test]
fn objects_become_files_and_files_become_objects() {
    let Some(place) = Place::new() else { return };
    let large = pattern(20_000_001, 3);
    place.put("src/a.txt", b"plain", &[]);
    let tool = [
        ("mode", "33261"),
        ("uid", "1000"),
        ("gid", "100"),
        ("mtime", "1700000000.5"),
    ];
    place.put("src/bin/tool", b"#!/bin/sh\n", &tool);
    place.put("src/bin/link", b"tool", &[("mode", "41471"), ("mtime", "1700000001")]);
    place.put("src/empty/", b"", &[("mode", "16832"), ("uid", "7"), ("gid", "8")]);
    place.put("src/empty file", b"", &[]);
    place.put("src/large", &large, &[]);
    let (counts, success, errors) = place.counts(IMPORT);
    assert_eq!((counts, success), ((6, 0, 0), true), "{errors}");

    let dir = tempfile::tempdir().unwrap();
    let (mountpoint, cache) = (dir.path().join("mnt"), dir.path().join("cache"));
    fs::create_dir(&mountpoint).unwrap();
    let mounted = place.mounted(&mountpoint, &cache);
    assert_eq!(fs::read(mountpoint.join("a.txt")).unwrap(), b"plain");
    assert!(fs::read(mountpoint.join("large")).unwrap() == large);
    let tool = fs::metadata(mountpoint.join("bin/tool")).unwrap();
    assert_eq!((tool.mode() & 0o7777, tool.uid(), tool.gid()), (0o755, 1000, 100));
    assert_eq!((tool.mtime(), tool.mtime_nsec()), (1_700_000_000, 500_000_000));
    assert_eq!(fs::read_link(mountpoint.join("bin/link")).unwrap(), Path::new("tool"));
    let empty = fs::metadata(mountpoint.join("empty")).unwrap();
    assert_eq!((empty.mode() & 0o7777, empty.uid(), empty.gid()), (0o700, 7, 8));
    fs::write(mountpoint.join("own"), "of the volume").unwrap();
    nix::unistd::mkfifo(&mountpoint.join("pipe"), nix::sys::stat::Mode::S_IRUSR).unwrap();
    fs::create_dir(mountpoint.join("late")).unwrap();
    assert!(mounted.unmount().success());

    place.put("src/a.txt", b"other", &[]);
    place.put("src/late", b"is a directory in the volume", &[]);
    place.put("src/own/below", b"is below a file", &[]);
    let (counts, _, errors) = place.counts(IMPORT);
    assert_eq!(counts, (0, 5, 3), "{errors}");
    for word in ["--overwrite", "src/late", "src/own/below"] {
        assert!(errors.contains(word), "{word}: {errors}");
    }
    let (counts, _, errors) = place.counts(&[IMPORT, &["--overwrite"]].concat());
    assert_eq!(counts, (1, 5, 2), "{errors}");

    place.put("out/own", b"another program's", &[]);
    let (counts, success, errors) = place.counts(EXPORT);
    assert_eq!((counts, success), ((8, 0, 2), false), "{errors}");
    assert!(errors.contains("pipe") && errors.contains("out/own"), "{errors}");
    let out = place.below("out/");
    assert_eq!(out["own"].0, "another program's");
    assert!(out["large"].0 == large);
    assert_eq!(out["a.txt"].0, "other");
    assert_eq!(out["bin/link"].0, "tool");
    assert_eq!(out["bin/tool"].1["mode"], "33261");
    assert_eq!(out["bin/tool"].1["mtime"], "1700000000.500000000");
    assert_eq!(out["empty/"].1["mode"], "16832");
    let (counts, _, errors) = place.counts(&[EXPORT, &["--overwrite"]].concat());
    assert_eq!(counts, (1, 8, 1), "{errors}");
}

/// A command that is killed leaves no half a file under its name, and the next one goes on.
#[test]
fn an_import_that_is_killed_goes_on_where_it_was() {
    let Some(place) = Place::new() else { return };
    let contents: Vec<_> = (0..200).map(|n| pattern(20_000 + n * 997, n as u64)).collect();
    for (n, content) in contents.iter().enumerate() {
        place.put(&format!("src/d{}/f{n}", n % 7), content, &[]);
    }
    let volumes = place.store.bucket("volumes");
    let objects = || {
        let listed = place.runtime.block_on(volumes.list(&ListRequest::default()));
        listed.unwrap().objects.len()
    };
    let mut killed = 0;
    for grown in [6, 9, 12] {
        let (before, command) = (objects(), &mut place.command(IMPORT));
        let mut child = command
            .args(["--parallel", "2"])
            .stderr(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() && objects() < before + grown {}
        if child.try_wait().unwrap().is_none() {
            killed += 1;
        }
        kill_and_wait(child);
    }
    assert!(killed > 0, "no import took long enough to be killed");
    let ((done, skipped, failed), success, errors) = place.counts(IMPORT);
    assert!(success, "{errors}");
    assert_eq!((done + skipped, failed), (200, 0), "{errors}");
    let (counts, success, errors) = place.counts(EXPORT);
    assert_eq!((counts, success), ((207, 0, 0), true), "{errors}");
    let out = place.below("out/");
    for (n, content) in contents.iter().enumerate() {
        assert!(out[&format!("d{}/f{n}", n % 7)].0 == content, "file {n}");
    }
    assert_eq!(out.len(), 207, "nothing else: {:?}", out.keys());
}

fn kill_and_wait(mut child: Child) {
    // One that ended by itself is only waited for.
    drop(child.kill());
    child.wait().unwrap();
}

/// What cannot work is refused before anything is changed.
#[test]
fn a_transfer_that_cannot_be_says_why() {
    let Some(place) = Place::new() else { return };
    for (arguments, word) in [
        (
            &["import", "s3://volumes/a/b", "--from", "s3://volumes/a"][..],
            "lie in each other",
        ),
        (
            &["import", "s3://volumes/none", "--from", "s3://objects/src"],
            "there is no volume here",
        ),
        (
            &["import", "s3://volumes/none", "--from", "s3://nowhere-at-all/src"],
            "nowhere-at-all",
        ),
        (
            &[
                "export",
                "s3://volumes/none",
                "--to",
                "s3://objects/x",
                "--from",
                "/../etc",
            ],
            "no name",
        ),
        (
            &[
                "import",
                "s3://volumes/none",
                "--from",
                "s3://objects/src",
                "--file-mode",
                "9",
            ],
            "octal",
        ),
    ] {
        let output = place.run(arguments);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(word),
            "{arguments:?}: {errors}"
        );
    }
    assert!(place.below("").is_empty());
}
