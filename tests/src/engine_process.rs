//! `pannier engine` as a process of its own, and its control service as a blocking client.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use hyper_util::rt::TokioIo;
use nix::fcntl::{FcntlArg, fcntl};
use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::engine::v1 as wire;
use proto::engine::v1::engine_client::EngineClient;
use tokio::net::UnixStream;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Response, Status};

use crate::binaries::{Program, built};
use crate::local_store::{BUCKET, LocalStore};

/// 60 s for what takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A running engine. Dropped, it is killed, and its mounts are taken off.
#[derive(Debug)]
pub struct EngineProcess {
    process: Child,
    client: EngineClient<Channel>,
    runtime: tokio::runtime::Runtime,
    socket: PathBuf,
    log: PathBuf,
    mountpoints: Vec<PathBuf>,
}

/// A mount to ask an engine for; the rest is what tests want.
#[derive(Debug, Clone)]
pub struct Ask {
    /// Name of the volume, and last part of its prefix.
    pub volume: String,
    /// Where to; it exists and is empty.
    pub mountpoint: PathBuf,
    /// The node that the engine speaks for.
    pub node_id: String,
    /// Mount for reading only.
    pub read_only: bool,
    /// Take the volume from another node.
    pub take_over: bool,
    /// Make the volume first if there is none.
    pub create: bool,
    /// Where the store is, if not where it really is.
    pub endpoint: Option<String>,
    /// Key id and secret, if not those of the environment.
    pub keys: Option<(String, String)>,
    /// The bucket.
    pub bucket: String,
    /// How the kernel is to reach the engine.
    pub transport: wire::Transport,
}

impl Ask {
    /// A mount for reading and writing by node `node-1`, of a volume that is made if there is none.
    pub fn new(volume: &str, mountpoint: &Path) -> Self {
        Self {
            volume: volume.to_owned(),
            mountpoint: mountpoint.to_path_buf(),
            node_id: "node-1".to_owned(),
            read_only: false,
            take_over: false,
            create: true,
            endpoint: None,
            keys: None,
            bucket: BUCKET.to_owned(),
            transport: wire::Transport::Unspecified,
        }
    }
}

impl EngineProcess {
    /// Starts an engine whose socket and log are in `folder`, and waits until it answers.
    ///
    /// # Panics
    /// If it does not, with what it said.
    pub fn start(store: &LocalStore, folder: &Path) -> Self {
        Self::start_with(&store.environment(), folder)
    }

    /// Starts one that has these variables besides those of the test.
    ///
    /// # Panics
    /// As `start`.
    pub fn start_with(environment: &[(String, String)], folder: &Path) -> Self {
        Self::start_as(environment, folder, &["engine"])
    }

    /// Starts a keeper with an engine, whose sockets and log are in `folder`, and waits until the engine answers. The process is the
    /// keeper's.
    ///
    /// # Panics
    /// As `start`.
    pub fn start_kept(store: &LocalStore, folder: &Path) -> Self {
        Self::start_kept_for(store, folder, 30)
    }

    /// The same with a keeper that waits so many seconds for an engine.
    ///
    /// # Panics
    /// As `start`.
    pub fn start_kept_for(store: &LocalStore, folder: &Path, seconds: u64) -> Self {
        Self::start_keeper(&store.environment(), folder, (seconds, &[]))
    }

    /// The same with engines that have these arguments as well.
    ///
    /// # Panics
    /// As `start`.
    pub fn start_kept_with(store: &LocalStore, folder: &Path, of_engine: &[&str]) -> Self {
        Self::start_keeper(&store.environment(), folder, (30, of_engine))
    }

    /// The same with these variables besides those of the test, for a store that is none of the tests' own.
    ///
    /// # Panics
    /// As `start`.
    pub fn start_kept_from(environment: &[(String, String)], folder: &Path) -> Self {
        Self::start_keeper(environment, folder, (30, &[]))
    }

    fn start_keeper(environment: &[(String, String)], folder: &Path, (seconds, of_engine): (u64, &[&str])) -> Self {
        let socket = folder.join("engine.sock").to_string_lossy().into_owned();
        let seconds = seconds.to_string();
        let mut words = vec!["keeper", "--abort-after", &seconds, "--socket", &socket, "--"];
        words.extend(of_engine);
        Self::start_as(environment, folder, &words)
    }

    /// Starts a keeper as a service manager that listens at `notify` does, which hands it these descriptors by their names.
    ///
    /// # Panics
    /// As `start`.
    pub fn start_as_service(store: &LocalStore, folder: &Path, notify: &Path, handed: &[(String, OwnedFd)]) -> Self {
        let socket = folder.join("engine.sock").to_string_lossy().into_owned();
        let names: Vec<_> = handed.iter().map(|(name, _)| name.as_str()).collect();
        // Far from the numbers that they get in the new process.
        let numbers: Vec<_> = handed
            .iter()
            .map(|(_, fd)| fcntl(fd, FcntlArg::F_DUPFD_CLOEXEC(200)).expect("a descriptor"))
            .collect();
        let mut command = Command::new("/bin/sh");
        command.args(["-c", "LISTEN_PID=$$ exec \"$0\" \"$@\""]);
        command.arg(built(Program::Binary("pannier"))).envs(store.environment());
        command
            .env("NOTIFY_SOCKET", notify)
            .env("LISTEN_FDNAMES", names.join(":"));
        command.env("LISTEN_FDS", numbers.len().to_string());
        let of_child = numbers.clone();
        // SAFETY: between fork and exec only dup2(2) is called, which is async-signal-safe, allocates nothing and takes no lock.
        unsafe {
            command.pre_exec(move || {
                for (at, number) in (3..).zip(&of_child) {
                    if libc::dup2(*number, at) < 0 {
                        return Err(std::io::Error::last_os_error());
                    }
                }
                Ok(())
            });
        }
        let engine = Self::start_command(command, folder, &["keeper", "--socket", &socket, "--"]);
        for number in numbers {
            nix::unistd::close(number).expect("a descriptor of ours");
        }
        engine
    }

    /// Starts what these words say, a keeper or an engine, that has these variables.
    ///
    /// # Panics
    /// As `start`.
    pub fn start_as(environment: &[(String, String)], folder: &Path, words: &[&str]) -> Self {
        let mut command = Command::new(built(Program::Binary("pannier")));
        command.envs(environment.iter().cloned());
        Self::start_command(command, folder, words)
    }

    fn start_command(mut command: Command, folder: &Path, words: &[&str]) -> Self {
        let (socket, log) = (folder.join("engine.sock"), folder.join("engine.log"));
        let errors = File::options().create(true).append(true).open(&log).expect("the log");
        command.args(words).arg("--socket").arg(&socket);
        command.arg("--log-file").arg(&log);
        command.arg("--cache-dir").arg(folder.join("cache"));
        command.arg("--state-dir").arg(folder.join("state"));
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors);
        let process = command.spawn().expect("pannier starts");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .expect("a runtime");
        let client = runtime.block_on(async { connect_lazily(socket.clone()) });
        let mut engine = Self {
            process,
            client,
            runtime,
            socket,
            log,
            mountpoints: Vec::new(),
        };
        let begun = Instant::now();
        while engine.health().is_err() {
            if let Some(status) = engine.process.try_wait().expect("a child can be waited for") {
                panic!("the engine ended with {status}:\n{}", engine.said());
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "the engine does not answer; it said:\n{}",
                engine.said()
            );
            std::thread::park_timeout(Duration::from_millis(10));
        }
        engine
    }

    /// Mounts.
    ///
    /// # Errors
    /// What the engine says.
    pub fn mount(&mut self, store: &LocalStore, ask: &Ask) -> Result<wire::MountInfo, Status> {
        if ask.create {
            store.create_volume(&ask.volume);
        }
        self.mount_from(&store.endpoint(), ask)
    }

    /// Mounts a volume that is there, from a store that is none of the tests' own.
    ///
    /// # Errors
    /// What the engine says.
    pub fn mount_from(&mut self, endpoint: &str, ask: &Ask) -> Result<wire::MountInfo, Status> {
        let credentials = ask.keys.clone().map(|(id, secret)| wire::Credentials {
            access_key_id: id,
            secret_access_key: secret,
            session_token: String::new(),
        });
        let request = wire::MountRequest {
            credentials,
            volume_id: ask.volume.clone(),
            location: Some(wire::VolumeLocation {
                bucket: ask.bucket.clone(),
                prefix: format!("v/{}", ask.volume),
                endpoint: ask.endpoint.clone().unwrap_or_else(|| endpoint.to_owned()),
                ..Default::default()
            }),
            mountpoint: ask.mountpoint.to_string_lossy().into_owned(),
            read_only: ask.read_only,
            node_id: ask.node_id.clone(),
            take_over: ask.take_over,
            options: Some(wire::MountOptions {
                transport: ask.transport.into(),
                ..Default::default()
            }),
            ..Default::default()
        };
        self.mountpoints.push(ask.mountpoint.clone());
        let answer = self.runtime.block_on(self.client.mount(request));
        Ok(answer?.into_inner().mount.expect("an answer describes the mount"))
    }

    /// Unmounts one mountpoint.
    ///
    /// # Errors
    /// What the engine says.
    pub fn unmount(&mut self, mountpoint: &Path, deadline: Duration) -> Result<wire::UnmountResponse, Status> {
        let request = wire::UnmountRequest {
            which: Some(wire::unmount_request::Which::Mountpoint(
                mountpoint.to_string_lossy().into_owned(),
            )),
            deadline_ms: u64::try_from(deadline.as_millis()).expect("a deadline of our time"),
            detach_busy: false,
        };
        self.runtime
            .block_on(self.client.unmount(request))
            .map(Response::into_inner)
    }

    /// Gives a volume other keys: key id, secret and token.
    ///
    /// # Errors
    /// What the engine says.
    pub fn set_credentials(&mut self, volume: &str, (id, secret, token): (&str, &str, &str)) -> Result<(), Status> {
        let request = wire::SetCredentialsRequest {
            volume_id: volume.to_owned(),
            credentials: Some(wire::Credentials {
                access_key_id: id.to_owned(),
                secret_access_key: secret.to_owned(),
                session_token: token.to_owned(),
            }),
        };
        self.runtime.block_on(self.client.set_credentials(request)).map(drop)
    }

    /// All its mounts.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn mounts(&mut self) -> Vec<wire::MountInfo> {
        let answer = self
            .runtime
            .block_on(self.client.list_mounts(wire::ListMountsRequest {}));
        answer.expect("an engine lists its mounts").into_inner().mounts
    }

    /// Lists its mounts again and again until told otherwise, beside whatever else it is asked.
    ///
    /// # Panics
    /// If it does not answer.
    pub fn list_until(&self, done: Arc<AtomicBool>) -> tokio::task::JoinHandle<()> {
        let mut client = self.client.clone();
        self.runtime.spawn(async move {
            while !done.load(Ordering::Relaxed) {
                let listed = client.list_mounts(wire::ListMountsRequest {}).await;
                listed.expect("an engine lists its mounts");
            }
        })
    }

    /// Its health.
    ///
    /// # Errors
    /// If it does not answer.
    pub fn health(&mut self) -> Result<wire::HealthResponse, Status> {
        let answer = self.runtime.block_on(self.client.health(wire::HealthRequest {}));
        answer.map(Response::into_inner)
    }

    /// Another one in its place, which has its mounts; it has ended.
    pub fn succeeded_by(mut self, start: impl FnOnce() -> Self) -> Self {
        let mountpoints = std::mem::take(&mut self.mountpoints);
        let mut next = start();
        next.mountpoints = mountpoints;
        next
    }

    /// Tells it to end, and waits for that.
    ///
    /// # Errors
    /// What the engine says.
    ///
    /// # Panics
    /// If it said yes and stays.
    pub fn shut_down(&mut self) -> Result<ExitStatus, Status> {
        self.runtime
            .block_on(self.client.shutdown(wire::ShutdownRequest { deadline_ms: 30_000 }))?;
        Ok(self.wait())
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().expect("a pid is positive"))
    }

    /// The engine that its keeper has started last; `None` while there is none.
    pub fn kept_engine(&self) -> Option<Pid> {
        self.children()
            .split_whitespace()
            .last()?
            .parse()
            .ok()
            .map(Pid::from_raw)
    }

    /// Waits until its keeper has started another engine than `before`.
    ///
    /// # Panics
    /// If it does not.
    pub fn kept_engine_after(&self, before: Pid) -> Pid {
        let begun = Instant::now();
        loop {
            if let Some(now) = self.kept_engine().filter(|now| *now != before) {
                return now;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "no engine follows; it said:\n{}",
                self.said()
            );
            std::thread::park_timeout(Duration::from_millis(1));
        }
    }

    /// How many engines its keeper has that have not ended.
    pub fn kept_engines(&self) -> usize {
        self.children().split_whitespace().count()
    }

    fn children(&self) -> String {
        let keeper = self.pid();
        std::fs::read_to_string(format!("/proc/{keeper}/task/{keeper}/children")).unwrap_or_default()
    }

    /// Lets its keeper replace the engine by another one of the same program, with these arguments as well.
    ///
    /// # Panics
    /// If the keeper refuses.
    pub fn replace_engine(&self, more: &[&str]) {
        self.replace_engine_by(&built(Program::Binary("pannier")), more);
    }

    /// The same, by an engine of that program.
    ///
    /// # Panics
    /// If the keeper refuses.
    pub fn replace_engine_by(&self, program: &Path, more: &[&str]) {
        let folder = self.socket.parent().expect("a folder of ours");
        let mut command = Command::new(program);
        command
            .arg("keeper")
            .arg("--socket")
            .arg(&self.socket)
            .arg("--replace-engine")
            .arg("--");
        command
            .arg("--socket")
            .arg(&self.socket)
            .arg("--log-file")
            .arg(&self.log);
        command.arg("--cache-dir").arg(folder.join("cache"));
        command.arg("--state-dir").arg(folder.join("state")).args(more);
        let done = command.output().expect("pannier runs");
        assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
    }

    /// Where it listens.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// What it wrote so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Sends it a signal.
    ///
    /// # Panics
    /// If it ended before.
    pub fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our child is there until it is waited for");
    }

    /// Waits until it has ended.
    ///
    /// # Panics
    /// If it does not.
    pub fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(begun.elapsed() < PATIENCE, "it did not end; it said:\n{}", self.said());
            std::thread::park_timeout(Duration::from_millis(10));
        }
    }
}

impl Drop for EngineProcess {
    fn drop(&mut self) {
        let kept = self.kept_engine();
        // All fail where the test has ended them already. A keeper goes first: it would start another engine.
        drop(self.process.kill());
        drop(self.process.wait());
        if let Some(engine) = kept {
            let _ = kill(engine, Signal::SIGKILL);
        }
        for path in &self.mountpoints {
            while umount2(path, MntFlags::MNT_DETACH).is_ok() {}
        }
    }
}

fn connect_lazily(socket: PathBuf) -> EngineClient<Channel> {
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { UnixStream::connect(socket).await.map(TokioIo::new) }
    });
    // The URI is a form that tonic asks for; the connector looks at the socket only.
    EngineClient::new(Endpoint::from_static("http://engine.invalid").connect_with_connector_lazy(connector))
}
