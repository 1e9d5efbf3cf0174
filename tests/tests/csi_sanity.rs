//! The CSI project's own conformance suite against our plugin: `csi-sanity`, as the Kubernetes storage group publishes it.
//!
//! All specs of the capabilities that the plugin advertises must pass; none is skipped by us (the suite itself skips those of other
//! capabilities). First with engine and store in memory, so that a failure there is one of the driver; then with everything real.
#![expect(
    clippy::disallowed_macros,
    reason = "the counts of the suite are the test's own output"
)]

use std::collections::BTreeSet;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use csi_driver::cluster::fixed::FixedCluster;
use csi_driver::config::Mode;
use csi_driver::mounter::fake::FakeMounter;
use csi_driver::mountinfo;
use csi_driver::server::{Parts, serve};
use csi_driver::targets::Folders;
use tests::binaries::{Program, built};
use tests::s3_server::{Kind, S3Server, installed, skip};
use volume::bucket::memory::MemoryBucket;
use volume::clock::{Clock, Timestamp};
use volume::volume_id::NodeId;

/// 60 s: the plugin serves within a second; a machine that compiles at the same time needs longer.
const START_MAX: Duration = Duration::from_secs(60);

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
    "Node Service should work",
    "Node Service should be idempotent",
];

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
}

/// A folder that csi-sanity and the plugin share. Whatever is mounted below it goes with it.
struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    fn new() -> Self {
        // Short: a socket's path may have 107 bytes.
        let dir = tempfile::Builder::new()
            .prefix("pnr-csi-")
            .tempdir()
            .expect("a temporary folder");
        Self { dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn socket(&self) -> PathBuf {
        self.path("csi.sock")
    }

    /// Runs the suite, and checks what it says.
    fn run_sanity(&self, program: &Path) {
        let report = self.path("report.xml");
        let option = |name: &str, value: &Path| format!("--{name}={}", value.display());
        let output = Command::new(program)
            .arg(option("csi.endpoint", &self.socket()))
            .arg(option("csi.mountdir", &self.path("mount")))
            .arg(option("csi.stagingdir", &self.path("staging")))
            .arg(option("ginkgo.junit-report", &report))
            .args(["--csi.testvolumesize=1073741824", "--ginkgo.no-color"])
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
        let passed = passed_specs(&report);
        println!("csi-sanity: {} specs passed:", passed.len());
        for spec in &passed {
            println!("  {spec}");
        }
        for group in GROUPS {
            assert!(
                passed.iter().any(|spec| spec.contains(group)),
                "no spec of {group:?} was run"
            );
        }
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let root = self.dir.path();
        for mount in mountinfo::parse(&table).unwrap_or_default().iter().rev() {
            if mount.path.starts_with(root) {
                let gone = nix::mount::umount2(&mount.path, nix::mount::MntFlags::MNT_DETACH);
                println!("a mount was left at {}: {gone:?}", mount.path.display());
            }
        }
    }
}

/// Names of the test cases of a JUnit report that passed.
fn passed_specs(report: &str) -> BTreeSet<String> {
    let cases = report.split("<testcase ").skip(1);
    let passed = cases.filter(|case| {
        case.split('>')
            .next()
            .is_some_and(|head| head.contains("status=\"passed\""))
    });
    let name = |case: &str| Some(case.split_once("name=\"")?.1.split_once('"')?.0.to_owned());
    passed
        .filter_map(name)
        .filter(|name| name.starts_with("[It]"))
        .collect()
}

fn sanity() -> Option<PathBuf> {
    let program = installed("csi-sanity");
    if program.is_none() {
        skip("csi-sanity is not installed (`cargo xtask tools` installs it)");
    }
    program
}

async fn until_served(socket: &Path) {
    let served = async {
        while tokio::net::UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(START_MAX, served).await;
    waited.unwrap_or_else(|_| panic!("nobody serves at {}", socket.display()));
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
    tokio::task::block_in_place(|| ground.run_sanity(&program));
    serving.abort();
}

/// Why the real plugin cannot run here, if it cannot.
fn missing() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting needs root");
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse");
    }
    None
}

/// The real plugin as a process. Ending the value ends it and its engine, by their ids.
struct Plugin {
    process: Child,
    engine_socket: PathBuf,
}

impl Plugin {
    fn start(ground: &Ground, server: &S3Server, bucket: &str) -> Self {
        let state = ground.path("state");
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&state)
            .expect("the state folder");
        let log = std::fs::File::create(ground.path("plugin.log")).expect("the plugin's log");
        let process = Command::new(built(Program::Binary("pannier")))
            .args([
                "csi",
                "--mode",
                "monolith",
                "--node-id",
                "sanity-node",
                "--bucket",
                bucket,
                "--prefix",
                "cluster",
            ])
            .arg("--endpoint")
            .arg(format!("unix://{}", ground.socket().display()))
            .args(["--s3-endpoint", server.endpoint()])
            .arg("--state-dir")
            .arg(&state)
            .envs(S3Server::environment())
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .expect("the plugin starts");
        Self {
            process,
            engine_socket: state.join("engine.sock"),
        }
    }

    /// Ids of the engines that were started for our socket: they are nobody's children.
    fn engines(&self) -> Vec<nix::unistd::Pid> {
        let socket = self.engine_socket.to_string_lossy().into_owned();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = ids.filter(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&b"engine".as_slice()) && words.contains(&socket.as_bytes())
        });
        ours.map(nix::unistd::Pid::from_raw).collect()
    }
}

impl Drop for Plugin {
    fn drop(&mut self) {
        drop(self.process.kill());
        drop(self.process.wait());
        for engine in self.engines() {
            let _ = nix::sys::signal::kill(engine, nix::sys::signal::Signal::SIGKILL);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_plugin_conforms_with_engine_fuse_and_minio() {
    let Some(program) = sanity() else { return };
    if let Some(reason) = missing() {
        return skip(reason);
    }
    let Some(server) = S3Server::start(Kind::Minio).await else {
        return;
    };
    server.bucket("sanity").await;
    let ground = Ground::new();
    let plugin = Plugin::start(&ground, &server, "sanity");
    until_served(&ground.socket()).await;
    let suite = std::panic::AssertUnwindSafe(|| tokio::task::block_in_place(|| ground.run_sanity(&program)));
    let outcome = std::panic::catch_unwind(suite);
    if let Err(panic) = outcome {
        for log in ["plugin.log", "state/engine.log"] {
            let text = std::fs::read_to_string(ground.path(log)).unwrap_or_default();
            println!("{log}:\n{text}");
        }
        std::panic::resume_unwind(panic);
    }
    let left: Vec<_> = std::fs::read_dir(ground.path("state/volumes"))
        .expect("the records")
        .flatten()
        .collect();
    assert!(left.is_empty(), "state files were left: {left:?}");
    drop(plugin);
}
