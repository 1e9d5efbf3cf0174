//! The CSI project's own conformance suite against our plugin: `csi-sanity`, as the Kubernetes storage group publishes
//! it.
//!
//! All specs of the capabilities that the plugin advertises must pass; none is skipped by us (the suite itself skips
//! those of other capabilities). First with engine and store in memory, so that a failure there is one of the driver;
//! then with everything real.
#![expect(
    clippy::disallowed_macros,
    reason = "the counts of the suite are the test's own output"
)]

use std::collections::BTreeSet;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use csi_driver::cluster::fixed::FixedCluster;
use csi_driver::config::Mode;
use csi_driver::mounter::fake::FakeMounter;
use csi_driver::server::{Parts, serve};
use csi_driver::targets::Folders;
use tests::csi_plugin::{CsiPlugin, Ground, unable_to_mount, until_served};
use tests::s3_server::{Kind, S3Server, installed, skip};
use volume::bucket::memory::MemoryBucket;
use volume::clock::{Clock, Timestamp};
use volume::volume_id::NodeId;

/// The groups that the suite must have run, by words of their specs' names: what we advertise.
const GROUPS: &[&str] = &[
    "Identity Service",
    "ListVolumes",
    "CreateVolume",
    "DeleteVolume",
    "ValidateVolumeCapabilities",
    "ControllerPublishVolume",
    "ControllerUnpublishVolume",
    "volume lifecycle",
    "NodePublishVolume",
    "NodeUnpublishVolume",
    "NodeStageVolume",
    "NodeUnstageVolume",
    "NodeGetVolumeStats",
    "GetCapacity",
    "ExpandVolume [Controller Server]",
    "ModifyVolume",
    "NodeExpandVolume",
    "Node Service should work",
    "Node Service should be idempotent",
    "CreateSnapshot",
    "DeleteSnapshot",
    "ListSnapshots",
    "GetSnapshot",
    "should create volume from an existing source snapshot",
    "should create volume from an existing source volume",
];

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        // No time at all would be a snapshot without a time.
        Timestamp {
            seconds: 1_800_000_000,
            nanos: 0,
        }
    }
}

/// Runs the suite against the plugin at the ground's socket, and checks what it says.
fn run_sanity(ground: &Ground, program: &Path) {
    let report = ground.path("report.xml");
    let mutable = ground.path("mutable.yaml");
    std::fs::write(&mutable, "cache_ram: 64MiB\ndurability: remote\n").expect("a file of parameters");
    let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
    let output = Command::new(program)
        .arg(option("csi.endpoint", &ground.socket()))
        .arg(option("csi.mountdir", &ground.path("mount")))
        .arg(option("csi.stagingdir", &ground.path("staging")))
        .arg(option("ginkgo.junit-report", &report))
        .arg(option("csi.testvolumemutableparameters", &mutable))
        .args([
            "--csi.testvolumesize=1073741824",
            "--csi.testvolumeexpandsize=2147483648",
            "--ginkgo.no-color",
        ])
        .output()
        .expect("csi-sanity starts");
    let text = String::from_utf8_lossy(&output.stdout);
    for line in text
        .lines()
        .filter(|line| line.starts_with("Ran ") || line.contains("Passed |"))
    {
        println!("csi-sanity: {line}");
    }
    assert!(output.status.success(), "csi-sanity: {}\n{text}", output.status);
    let report = std::fs::read_to_string(&report).expect("the suite writes its report");
    let passed = specs(&report, "passed");
    println!("csi-sanity: {} specs of our capabilities passed", passed.len());
    for skipped in specs(&report, "skipped") {
        println!("csi-sanity left out: {skipped}");
    }
    for group in GROUPS {
        assert!(
            passed.iter().any(|spec| spec.contains(group)),
            "no spec of {group:?} was run, only {passed:#?}"
        );
    }
}

/// Names of the specs of a JUnit report that ended so.
fn specs(report: &str, status: &str) -> BTreeSet<String> {
    let attribute = |case: &str, name: &str| {
        let value = case.split_once(&format!(" {name}=\""))?.1;
        Some(value.split_once('"')?.0.to_owned())
    };
    let cases = report.split("<testcase").skip(1);
    let ended = cases.filter(|case| attribute(case, "status").as_deref() == Some(status));
    let names = ended.filter_map(|case| attribute(case, "name"));
    names.filter(|name| name.starts_with("[It]")).collect()
}

fn sanity() -> Option<PathBuf> {
    let program = installed("csi-sanity");
    if program.is_none() {
        skip("csi-sanity is not installed (`cargo xtask tools` installs it)");
    }
    program
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_driver_conforms_with_engine_and_store_in_memory() {
    let Some(program) = sanity() else { return };
    let ground = Ground::new();
    let parts = Parts {
        mode: Mode::Monolith,
        endpoint: ground.socket(),
        node_id: NodeId::new("sanity-node").expect("a plain id"),
        folders: Folders {
            state: ground.path("state"),
            staging_root: None,
        },
        clusters: Arc::new(FixedCluster::new(Arc::new(MemoryBucket::new()))),
        mounter: Arc::new(FakeMounter::new()),
        clock: Arc::new(Stopped),
    };
    let serving = tokio::spawn(serve(parts));
    until_served(&ground.socket()).await;
    tokio::task::block_in_place(|| run_sanity(&ground, &program));
    serving.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugin_conforms_with_engine_fuse_and_minio() {
    conforms_on(Kind::Minio).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugin_conforms_with_engine_fuse_and_versitygw() {
    conforms_on(Kind::VersityGw).await;
}

async fn conforms_on(kind: Kind) {
    let Some(program) = sanity() else { return };
    if let Some(reason) = unable_to_mount() {
        return skip(reason);
    }
    let Some(server) = S3Server::start_in_ram(kind).await else {
        return;
    };
    server.bucket("sanity").await;
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "sanity", "sanity-node").await;
    let suite = AssertUnwindSafe(|| tokio::task::block_in_place(|| run_sanity(&ground, &program)));
    if let Err(panic) = catch_unwind(suite) {
        println!("{}", ground.logs());
        resume_unwind(panic);
    }
    let left = std::fs::read_dir(ground.path("state/volumes"))
        .expect("the records")
        .flatten();
    let left: Vec<_> = left.map(|entry| entry.file_name()).collect();
    assert!(left.is_empty(), "state files were left: {left:?}");
    assert_eq!(ground.mounts(), Vec::<PathBuf>::new());
    drop(plugin);
}
