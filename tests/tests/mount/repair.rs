//! `pannier volume check --repair`, as an operator uses it after objects of the bucket were lost.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::fs;
use std::process::{Command, Output};

use tests::binaries::{Program, built};
use tests::calls::pattern;
use tests::local_store::LocalStore;
use tests::mounted::{MountOptions, Mounted};
use volume::bucket::ListRequest;
use volume::head::Transport;

fn check(options: &MountOptions, more: &[&str]) -> (bool, String) {
    let mut command = Command::new(built(Program::Binary("pannier")));
    command.args(["volume", "check", &options.location, "--endpoint", &options.endpoint]);
    command.args(more).envs(options.environment.iter().cloned());
    let Output { status, stdout, stderr } = command.output().unwrap();
    let said = [stdout, stderr].map(|said| String::from_utf8_lossy(&said).into_owned());
    (status.success(), said.concat())
}

/// Goal: an operator sees what was lost, nothing is given up before he says so, and afterwards the volume is sound. Method:
/// an object with content is deleted; the command is run in the order of docs/operations.md, and once beside a mount.
#[test]
fn a_lost_object_is_named_and_given_up_only_when_that_is_accepted() {
    let store = LocalStore::start();
    let mut options = MountOptions {
        location: store.location("volume"),
        endpoint: store.endpoint(),
        dir: store.folder("mnt"),
        cache_dir: store.folder("cache-0"),
        create: true,
        read_only: false,
        transport: Transport::Classic,
        environment: store.environment(),
    };
    let mounted = Mounted::new(&options);
    fs::write(mounted.dir().join("large"), pattern(700_000, 1)).unwrap();
    let (done, said) = check(&options, &["--repair", "--apply"]);
    assert!(!done && said.contains("has the volume mounted"), "{said}");
    assert!(mounted.unmount().success());

    let bucket = store.bucket();
    let all = ListRequest {
        prefix: "v/volume/".to_owned(),
        ..ListRequest::default()
    };
    let objects = store.block_on(bucket.list(&all)).unwrap().objects;
    let largest = objects.iter().max_by_key(|object| object.size_bytes).unwrap();
    assert!(largest.size_bytes > 10_000, "{largest:?}");
    store.block_on(bucket.delete(&largest.key)).unwrap();

    let object = largest
        .key
        .rsplit_once("/j/")
        .or(largest.key.rsplit_once("/s/"))
        .unwrap()
        .1;
    for (arguments, expected) in [
        (&[][..], "the object does not exist"),
        (&["--repair"], "with --accept-loss"),
        (&["--repair", "--apply"], "left as they are"),
        (&["--repair", "--json"], "\"remedy\":\"needs-consent\""),
    ] {
        let (done, said) = check(&options, arguments);
        assert!(
            !done && said.contains(expected) && said.contains(object),
            "{arguments:?}: {said}"
        );
    }
    let (done, said) = check(&options, &["--repair", "--accept-loss"]);
    assert!(done && said.contains("nothing was changed"), "{said}");
    let (done, said) = check(&options, &["--repair", "--apply", "--accept-loss"]);
    assert!(done && said.contains("given up"), "{said}");
    let (done, said) = check(&options, &[]);
    assert!(done && said.contains("no damage found"), "{said}");

    options.create = false;
    options.cache_dir = store.folder("cache-1");
    let mounted = Mounted::new(&options);
    assert_eq!(fs::read(mounted.dir().join("large")).unwrap(), vec![0; 700_000]);
    assert!(mounted.unmount().success());
}
