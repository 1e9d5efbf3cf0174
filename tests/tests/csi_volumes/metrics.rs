//! What an operator sees.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use tests::binaries::{Program, built};
use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Nomad, Use};
use tests::s3_server::S3Server;

use super::{MIB, options, server, write};

/// `GET /metrics` on a unix socket.
async fn metrics(socket: &Path) -> String {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut stream = tokio::net::UnixStream::connect(socket)
        .await
        .expect("metrics are served");
    let request = b"GET /metrics HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n";
    stream.write_all(request).await.expect("a request");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await.expect("an answer");
    let (head, text) = answer.split_once("\r\n\r\n").expect("a head and a body");
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    text.to_owned()
}

/// Words of a text that are names of our metrics.
fn names(text: &str) -> BTreeSet<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = words.filter(|word| word.starts_with("pannier_") || word.starts_with("process_"));
    let base = |word: &str| {
        let ends = ["_bucket", "_sum", "_count"];
        ends.iter()
            .find_map(|end| word.strip_suffix(end))
            .unwrap_or(word)
            .to_owned()
    };
    ours.map(base).collect()
}

/// Goal: what plugin and engine tell is what the dashboard asks for and what docs/operations.md explains, and it is true: an
/// fsync, a commit, its PUTs and the calls are counted. Method: both are scraped while a volume is used.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_dashboard_and_the_manual_know_every_metric() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let mut options = options(&server);
    for (name, socket) in [("PANNIER_METRICS", "plugin"), ("PANNIER_ENGINE_METRICS", "engine")] {
        options.push((name.into(), format!("unix://{}", ground.path(socket).display())));
    }
    let plugin = CsiPlugin::start_with(&ground, "n1", options).await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 8 * MIB as i64).await;
    let v1 = Use::writer("v1", "alloc");
    nomad.start(&v1).await.expect("the volume is mounted");
    write(&nomad.target(&v1).join("file"), "content");
    nomad
        .claim(&Use::writer("none", "alloc"))
        .await
        .expect_err("no such volume");
    let (engine, csi) = (
        metrics(&ground.path("engine")).await,
        metrics(&ground.path("plugin")).await,
    );
    let both = format!("{engine}{csi}");
    let value = |line: &str| {
        let found = both.lines().find_map(|told| told.strip_prefix(line));
        let found = found.unwrap_or_else(|| panic!("{line} is not in\n{both}"));
        found.trim().parse::<f64>().expect("a number")
    };
    let labels = "{volume=\"v1\",access=\"rw\"}";
    assert!(value(&format!("pannier_volume_fsync_seconds_count{labels} ")) >= 1.0);
    assert!(value(&format!("pannier_volume_commits_total{labels} ")) >= 1.0);
    assert_eq!(
        value(&format!("pannier_volume_capacity_bytes{labels} ")),
        8.0 * MIB as f64
    );
    assert_eq!(value(&format!("pannier_volume_lost{labels} ")), 0.0);
    assert_eq!(value(&format!("pannier_volume_mountpoints{labels} ")), 1.0);
    assert!(value("pannier_s3_requests_total{operation=\"put_if_absent\"} ") >= 1.0);
    assert_eq!(
        value("pannier_csi_calls_total{rpc=\"NodeStageVolume\",code=\"Ok\"} "),
        1.0
    );
    assert_eq!(
        value("pannier_csi_calls_total{rpc=\"ControllerPublishVolume\",code=\"NotFound\"} "),
        1.0
    );
    assert!(value("process_resident_memory_bytes ") > 1e6);

    let root = Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the workspace");
    let told = names(&both);
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_else(|error| panic!("{file}: {error}"));
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("jobs/grafana-dashboard.json")).expect("the dashboard is JSON");
    let asked: BTreeSet<String> = dashboard["panels"]
        .as_array()
        .expect("it has panels")
        .iter()
        .flat_map(|panel| panel["targets"].as_array().expect("a panel has targets"))
        .flat_map(|target| names(target["expr"].as_str().expect("an expression")))
        .collect();
    assert!(
        asked.len() >= 15 && asked.is_subset(&told),
        "{:?}",
        asked.difference(&told)
    );
    let explained = names(&read("docs/operations.md"));
    assert!(told.is_subset(&explained), "{:?}", told.difference(&explained));
    assert!(explained.is_subset(&told), "{:?}", explained.difference(&told));
    nomad.stop(&v1).await.expect("the volume is let go");
}

pub(super) fn pannier(arguments: &[&str]) -> std::process::Output {
    let mut command = std::process::Command::new(built(Program::Binary("pannier")));
    let run = command.args(arguments).envs(S3Server::environment()).output();
    run.expect("pannier runs")
}

/// Goal: `pannier mounts` says what an engine serves, `pannier doctor` whether a node and a store will do; both as JSON, and
/// where something is wrong with what to do.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_operator_is_told_what_is_mounted_and_what_is_wrong() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 0).await;
    let v1 = Use::writer("v1", "alloc");
    nomad.start(&v1).await.expect("the volume is mounted");
    let socket = ground.path("state/engine.sock").to_string_lossy().into_owned();
    let listed = pannier(&["mounts", "--engine-socket", &socket, "--json"]);
    let listed: serde_json::Value = serde_json::from_slice(&listed.stdout).expect("JSON");
    assert_eq!(
        (listed[0]["volume"].as_str(), listed[0]["read_only"].as_bool()),
        (Some("v1"), Some(false))
    );
    let nobody = pannier(&["mounts", "--engine-socket", "/nonexistent.sock"]);
    assert!(!nobody.status.success());
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("/nonexistent.sock"));

    let doctor = |place: &str| pannier(&["doctor", place, "--endpoint", server.endpoint(), "--json"]);
    let findings = |output: &std::process::Output| -> serde_json::Value {
        serde_json::from_slice(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"))
    };
    let outcome = |findings: &serde_json::Value, check: &str| {
        let all = findings.as_array().expect("a list");
        let found = all.iter().find(|finding| finding["check"] == check);
        found.unwrap_or_else(|| panic!("{check} in {findings}"))["outcome"].clone()
    };
    let well = findings(&doctor("s3://volumes/cluster"));
    for check in ["rights", "fuse", "store", "store rights", "store races", "clock"] {
        assert_eq!(outcome(&well, check), "ok", "{well}");
    }
    let missing = doctor("s3://no-such-bucket/cluster");
    assert!(!missing.status.success(), "a script sees it by the exit code");
    let ill = findings(&missing);
    assert_eq!(outcome(&ill, "store"), "failure");
    let of_store = ill
        .as_array()
        .expect("a list")
        .iter()
        .find(|finding| finding["check"] == "store");
    let advice = of_store.expect("it is there")["advice"]
        .as_str()
        .expect("what to do")
        .to_owned();
    assert!(advice.contains("create the bucket"), "{advice}");
    nomad.stop(&v1).await.expect("the volume is let go");
}
