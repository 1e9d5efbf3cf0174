//! What an operator does to volumes by hand, with `pannier volume`.

use serde_json::Value;
use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Nomad, Use};

use super::metrics::pannier;
use super::{server, write};

/// Goal: each command of an operator does what it says on a volume of Nomad's, mounted or not, tells it as JSON, and refuses
/// what cannot be with a reason. Method: one volume that is in use, and what is made of it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn volumes_are_changed_kept_and_copied_by_hand() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 16 << 20).await;
    let v1 = Use::writer("v1", "alloc");
    nomad.start(&v1).await.expect("the volume is mounted");
    write(&nomad.target(&v1).join("file"), "content");
    let location = "s3://volumes/cluster/v/v1";
    let run = |words: &[&str]| pannier(&[&["volume"], words, &["--endpoint", server.endpoint()]].concat());
    let json = |words: &[&str]| -> Value {
        let output = run(&[words, &["--json"]].concat());
        let said = String::from_utf8_lossy(&output.stderr);
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{words:?}: {error}: {said}"))
    };
    let refused = |words: &[&str], why: &str| {
        let output = run(words);
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && said.contains(why), "{words:?}: {said}");
    };

    let expanded = json(&["expand", location, "--capacity", "32MiB"]);
    assert_eq!(expanded["capacity_bytes"], 32 << 20);
    refused(&["expand", location, "--capacity", "1MiB"], "never becomes smaller");
    let modified = json(&["modify", location, "compression=zstd", "cache_disk=1GiB"]);
    assert_eq!(modified["parameters"]["compression"], "zstd");
    assert_eq!(modified["parameters"]["settings"]["cache_disk_bytes"], 1_u64 << 30);
    refused(&["modify", location, "uid=7"], "cannot be changed");
    refused(&["modify", location, "colour=red"], "unknown");
    refused(&["modify", location, "durability"], "NAME=VALUE");

    let listed = json(&["ls", "s3://volumes/cluster"]);
    assert_eq!(listed[0]["id"], "v1");
    let shown = json(&["show", location]);
    let head = &shown["head"];
    assert_eq!(
        (&head["capacity_bytes"], &head["leader"]["node_id"]),
        (&(32 << 20).into(), &"n1".into())
    );
    assert_eq!(head["publications"][0]["node_id"], "n1");
    refused(&["rm", location], "n1");

    assert_eq!(json(&["snapshot", "create", location, "s1"])["name"], "s1");
    assert_eq!(json(&["snapshot", "ls", location])[0]["volume"], "v1");
    json(&["clone", location, "v2", "--snapshot", "s1", "--capacity", "64MiB"]);
    refused(&["clone", location, "v2"], "v2");
    nomad.stop(&v1).await.expect("the volume is let go");
    json(&["rm", location]);
    assert_eq!(json(&["snapshot", "rm", location, "s1"])["removed"], "s1");
    let copy = Use::writer("v2", "alloc-2");
    nomad.start(&copy).await.expect("a copy is a volume");
    let found = std::fs::read_to_string(nomad.target(&copy).join("file")).expect("the copy has the file");
    assert_eq!(found, "content", "although its source and the snapshot are gone");
    nomad.stop(&copy).await.expect("the copy is let go");
    let copy = "s3://volumes/cluster/v/v2";
    assert!(run(&["check", copy]).status.success());
    // What is left in the bucket of a cluster that is gone.
    nomad
        .claim(&Use::writer("v2", "alloc-3"))
        .await
        .expect("it is published");
    refused(&["rm", copy], "n1");
    assert_eq!(
        json(&["release", copy, "--node", "n2"])["released"],
        Value::Array(Vec::new())
    );
    assert_eq!(json(&["release", copy, "--all"])["released"][0], "n1");
    json(&["rm", copy]);
    assert_eq!(json(&["ls", "s3://volumes/cluster"]), Value::Array(Vec::new()));
}
