//! `pannier csi` as a process, with the ground it works on: a folder for its state, its socket and Nomad's paths.
//!
//! Ending the values ends the plugin and the engines that it started, by their ids, and unmounts what is left below
//! the folder.

use std::io;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use csi_driver::mountinfo;
use hyper_util::rt::TokioIo;
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};

use crate::binaries::{Program, built};
use crate::s3_server::S3Server;

/// 60 s: the plugin serves within a second; a machine that compiles at the same time needs longer.
const START_MAX: Duration = Duration::from_secs(60);

/// Why mounting is impossible here, if it is.
pub fn unable_to_mount() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("mounting needs root");
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("there is no /dev/fuse");
    }
    None
}

/// A folder that a plugin and its callers share.
#[derive(Debug)]
pub struct Ground {
    dir: tempfile::TempDir,
}

impl Ground {
    /// An empty one.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn new() -> Self {
        // Short: a socket's path may have 107 bytes.
        let dir = tempfile::Builder::new().prefix("pnr-csi-").tempdir();
        Self {
            dir: dir.expect("a temporary folder"),
        }
    }

    /// Something below it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Where the plugin serves.
    pub fn socket(&self) -> PathBuf {
        self.path("csi.sock")
    }

    /// What is mounted below it.
    pub fn mounts(&self) -> Vec<PathBuf> {
        let table = std::fs::read("/proc/self/mountinfo").unwrap_or_default();
        let mounts = mountinfo::parse(&table).unwrap_or_default().into_iter();
        let below = mounts.filter(|mount| mount.path.starts_with(self.dir.path()));
        below.map(|mount| mount.path).collect()
    }

    /// Output of plugin and engine, for a test that failed.
    pub fn logs(&self) -> String {
        let read = |name: &str| std::fs::read_to_string(self.path(name)).unwrap_or_default();
        format!("plugin:\n{}\nengine:\n{}", read("plugin.log"), read("state/engine.log"))
    }
}

impl Default for Ground {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Ground {
    fn drop(&mut self) {
        for path in self.mounts().iter().rev() {
            tracing::warn!(path = %path.display(), "a mount was left");
            let _ = umount2(path, MntFlags::MNT_DETACH);
        }
    }
}

/// Waits until somebody serves at a socket.
///
/// # Panics
/// If nobody does in time.
pub async fn until_served(socket: &Path) {
    let served = async {
        while UnixStream::connect(socket).await.is_err() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let waited = tokio::time::timeout(START_MAX, served).await;
    waited.unwrap_or_else(|_| panic!("nobody serves at {}", socket.display()));
}

/// A connection to whoever serves at a socket.
pub fn channel(socket: &Path) -> Channel {
    let socket = socket.to_owned();
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://plugin").connect_with_connector_lazy(connector)
}

/// A monolith plugin.
#[derive(Debug)]
pub struct CsiPlugin {
    process: Child,
    state: PathBuf,
    socket: PathBuf,
}

impl CsiPlugin {
    /// Starts it as node `node_id`, on a bucket of `server`, and waits until it serves.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start(ground: &Ground, server: &S3Server, bucket: &str, node_id: &str) -> Self {
        let environment = S3Server::environment().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let place = [("PANNIER_BUCKET", bucket), ("PANNIER_S3_ENDPOINT", server.endpoint())];
        let place = place.map(|(name, value)| (name.to_owned(), value.to_owned()));
        Self::start_with(ground, node_id, environment.into_iter().chain(place)).await
    }

    /// The same, with this environment: bucket, store and keys, and whatever options.
    ///
    /// # Panics
    /// If it does not start.
    pub async fn start_with(
        ground: &Ground,
        node_id: &str,
        environment: impl IntoIterator<Item = (String, String)>,
    ) -> Self {
        let (state, socket) = (ground.path("state"), ground.socket());
        let log = std::fs::File::options()
            .create(true)
            .append(true)
            .open(ground.path("plugin.log"));
        let log = log.expect("the plugin's log");
        let process = Command::new(built(Program::Binary("pannier")))
            .args([
                "csi",
                "--mode",
                "monolith",
                "--prefix",
                "cluster",
                "--node-id",
                node_id,
                "--endpoint",
            ])
            .arg(format!("unix://{}", socket.display()))
            .arg("--state-dir")
            .arg(&state)
            .arg("--staging-root")
            .arg(ground.path("nomad"))
            .envs(environment)
            .stdin(Stdio::null())
            .stdout(log.try_clone().expect("a second handle of the log"))
            .stderr(log)
            .spawn()
            .expect("the plugin starts");
        let plugin = Self { process, state, socket };
        until_served(&plugin.socket).await;
        plugin
    }

    /// A connection to it.
    pub fn channel(&self) -> Channel {
        channel(&self.socket)
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().expect("a pid is positive"))
    }

    /// Kills the plugin and leaves its engine alone.
    pub fn kill_only_plugin(&mut self) {
        // It may have ended by itself; then there is nothing to kill.
        drop(self.process.kill());
        drop(self.process.wait());
    }

    /// Kills the engine and leaves the plugin alone; returns how many there were.
    pub fn kill_only_engine(&self) -> usize {
        let engines = self.engines();
        for engine in &engines {
            let _ = kill(*engine, Signal::SIGKILL);
        }
        engines.len()
    }

    /// Ids of the engines that serve for this plugin's state folder.
    pub fn engines(&self) -> Vec<Pid> {
        self.processes("engine")
    }

    /// Ids of the keepers of those engines.
    pub fn keepers(&self) -> Vec<Pid> {
        self.processes("keeper")
    }

    fn processes(&self, command: &str) -> Vec<Pid> {
        let socket = self.state.join("engine.sock").to_string_lossy().into_owned();
        let processes = std::fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let ours = ids.filter(|id| {
            let line = std::fs::read(format!("/proc/{id}/cmdline")).unwrap_or_default();
            let words: Vec<_> = line.split(|byte| *byte == 0).collect();
            words.get(1) == Some(&command.as_bytes()) && words.contains(&socket.as_bytes())
        });
        ours.map(Pid::from_raw).collect()
    }
}

impl Drop for CsiPlugin {
    fn drop(&mut self) {
        self.kill_only_plugin();
        // First: it would start another engine.
        for keeper in self.keepers() {
            let _ = kill(keeper, Signal::SIGKILL);
        }
        self.kill_only_engine();
    }
}
