//! The agent's part: the real plugin binary, launched and spoken to over the real protocol, with tasks as Nomad sends them.

#![allow(dead_code, reason = "each test target uses a part of it")]
#![allow(clippy::unwrap_used, reason = "an agent that cannot go on has failed its test")]

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use go_plugin::{Agreement, Host, Launch, MESSAGE_BYTES_MAX};
use proto::nomad::base::SetConfigRequest;
use proto::nomad::base::base_plugin_client::BasePluginClient;
use proto::nomad::driver::driver_client::DriverClient;
use proto::nomad::driver::{
    AllocatedMemoryResources, AllocatedTaskResources, DestroyTaskRequest, ExitResult, InspectTaskRequest,
    InspectTaskResponse, LinuxResources, RecoverTaskRequest, Resources, StartTaskRequest, StartTaskResponse,
    StopTaskRequest, TaskConfig, TaskHandle, WaitTaskRequest, WaitTaskResponse,
};
use rmpv::Value;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;

use crate::fixture::BUSYBOX;

/// The plugin under test.
pub const PLUGIN: &str = env!("CARGO_BIN_EXE_nomad-driver-podman");

/// A minute: a container start takes a second on an idle machine, and these run many at once on two busy cores.
pub const LIMIT: Duration = Duration::from_secs(60);

/// Makes the names of a test process's tasks differ.
static NEXT_TASK: AtomicU32 = AtomicU32::new(0);

/// A launched plugin.
pub struct Agent {
    pub host: Host,
    pub base: BasePluginClient<Channel>,
    pub driver: DriverClient<Channel>,
}

impl Agent {
    /// Launches the plugin and configures it for a Podman service.
    pub async fn start(socket: &Path) -> Self {
        Self::with_options(vec![("socket_path", socket.to_str().unwrap().into())]).await
    }

    /// Launches the plugin with these options.
    pub async fn with_options(options: Vec<(&str, Value)>) -> Self {
        let mut agent = Self::launch().await;
        let request = SetConfigRequest {
            msgpack_config: msgpack(options),
            ..SetConfigRequest::default()
        };
        agent.base.set_config(request).await.unwrap();
        agent
    }

    /// Launches the plugin and tells it nothing.
    pub async fn launch() -> Self {
        Self::of(Launch::new(Agreement::NOMAD, PLUGIN)).await
    }

    /// Launches the plugin in a way of the test's own.
    pub async fn of(launch: Launch) -> Self {
        let host = launch.start().await.unwrap();
        let channel = host.channel();
        Self {
            host,
            base: BasePluginClient::new(channel.clone()),
            driver: DriverClient::new(channel).max_encoding_message_size(MESSAGE_BYTES_MAX),
        }
    }

    /// StartTask.
    pub async fn start_task(&self, job: &Job) -> Result<StartTaskResponse, Status> {
        let request = StartTaskRequest {
            task: Some(job.config()),
        };
        within(self.driver.clone().start_task(request))
            .await
            .map(tonic::Response::into_inner)
    }

    /// StartTask, which must succeed.
    pub async fn started(&self, job: &Job) -> TaskHandle {
        self.start_task(job).await.unwrap().handle.unwrap()
    }

    /// WaitTask.
    pub async fn wait(&self, job: &Job) -> Result<WaitTaskResponse, Status> {
        let request = WaitTaskRequest { task_id: job.id() };
        within(self.driver.clone().wait_task(request))
            .await
            .map(tonic::Response::into_inner)
    }

    /// The result of WaitTask.
    pub async fn exit(&self, job: &Job) -> ExitResult {
        self.wait(job).await.unwrap().result.unwrap()
    }

    /// StopTask.
    pub async fn stop(&self, job: &Job, timeout: Duration, signal: &str) -> Result<(), Status> {
        let timeout = Some(timeout.try_into().unwrap());
        let request = StopTaskRequest {
            task_id: job.id(),
            timeout,
            signal: signal.to_owned(),
        };
        within(self.driver.clone().stop_task(request)).await.map(|_| ())
    }

    /// DestroyTask.
    pub async fn destroy(&self, job: &Job, force: bool) -> Result<(), Status> {
        let request = DestroyTaskRequest {
            task_id: job.id(),
            force,
        };
        within(self.driver.clone().destroy_task(request)).await.map(|_| ())
    }

    /// InspectTask.
    pub async fn inspect(&self, job: &Job) -> Result<InspectTaskResponse, Status> {
        let request = InspectTaskRequest { task_id: job.id() };
        within(self.driver.clone().inspect_task(request))
            .await
            .map(tonic::Response::into_inner)
    }

    /// RecoverTask, as after an agent's restart: the handle's configuration has lost the driver's options.
    pub async fn recover(&self, handle: &TaskHandle) -> Result<(), Status> {
        let mut handle = handle.clone();
        let config = handle.config.as_mut().unwrap();
        config.msgpack_driver_config.clear();
        config.env.clear();
        let request = RecoverTaskRequest {
            task_id: String::new(),
            handle: Some(handle),
        };
        within(self.driver.clone().recover_task(request)).await.map(|_| ())
    }

    /// Runs a task to its end and removes it; its exit code.
    pub async fn run(&self, job: &Job) -> i32 {
        self.started(job).await;
        let exit = self.exit(job).await;
        self.destroy(job, true).await.unwrap();
        exit.exit_code
    }

    /// Kills the plugin as a crash would.
    pub async fn kill(self) {
        nix::sys::signal::kill(
            nix::unistd::Pid::from_raw(self.host.pid().cast_signed()),
            nix::sys::signal::Signal::SIGKILL,
        )
        .unwrap();
        within(self.host.wait()).await;
    }
}

/// A task of a job, and the directory of its allocation.
pub struct Job {
    pub task: TaskConfig,
    pub options: Vec<(&'static str, Value)>,
    dir: TempDir,
}

impl Job {
    /// A task that runs a shell script in the host's network. Its output goes nowhere.
    pub fn new(script: &str) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("alloc-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let number = NEXT_TASK.fetch_add(1, Ordering::Relaxed);
        let alloc_id = format!("{:08x}-0000-4000-8000-{number:012x}", std::process::id());
        for place in ["alloc/logs", "alloc/data", "work/local", "work/secrets", "work/private"] {
            std::fs::create_dir_all(dir.path().join(place)).unwrap();
        }
        let env = [
            ("NOMAD_ALLOC_DIR", "/alloc"),
            ("NOMAD_TASK_DIR", "/local"),
            ("NOMAD_SECRETS_DIR", "/secrets"),
            ("NOMAD_ALLOC_ID", &alloc_id),
        ];
        let task = TaskConfig {
            id: format!("{alloc_id}/work/{number:08x}"),
            name: "work".into(),
            alloc_id: alloc_id.clone(),
            job_name: "tests".into(),
            job_id: "tests".into(),
            task_group_name: "group".into(),
            namespace: "default".into(),
            alloc_dir: dir.path().display().to_string(),
            stdout_path: "/dev/null".into(),
            stderr_path: "/dev/null".into(),
            env: env
                .into_iter()
                .map(|(name, value)| (name.to_owned(), value.to_owned()))
                .collect(),
            resources: Some(Resources {
                allocated_resources: Some(AllocatedTaskResources {
                    memory: Some(AllocatedMemoryResources {
                        memory_mb: 64,
                        memory_max_mb: 0,
                    }),
                    ..AllocatedTaskResources::default()
                }),
                linux_resources: Some(LinuxResources {
                    cpu_shares: 100,
                    ..LinuxResources::default()
                }),
                ports: Vec::new(),
            }),
            ..TaskConfig::default()
        };
        let command = Value::Array(vec!["-c".into(), script.into()]);
        let options = vec![
            ("image", BUSYBOX.into()),
            ("command", "/bin/sh".into()),
            ("args", command),
            ("network_mode", "host".into()),
        ];
        Self { task, options, dir }
    }

    /// Sets an option, or replaces it.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl Into<Value>) -> Self {
        self.options.retain(|(name, _)| *name != key);
        self.options.push((key, value.into()));
        self
    }

    /// Nomad's id of it.
    pub fn id(&self) -> String {
        self.task.id.clone()
    }

    /// The name of its container.
    pub fn container(&self) -> String {
        format!("work-{}", self.task.alloc_id)
    }

    /// A file of the task's own directory, as the host sees it.
    pub fn local(&self, file: &str) -> PathBuf {
        self.dir.path().join("work/local").join(file)
    }

    /// The directory of the allocation.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// What the task wrote into a file of its `/local`.
    pub fn wrote(&self, file: &str) -> String {
        std::fs::read_to_string(self.local(file)).unwrap_or_else(|error| panic!("{file}: {error}"))
    }

    /// Waits until the task wrote a file.
    pub async fn until_wrote(&self, file: &str) -> String {
        let written = async {
            loop {
                match std::fs::read_to_string(self.local(file)) {
                    Ok(text) if text.ends_with('\n') => return text,
                    _ => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            }
        };
        tokio::time::timeout(LIMIT, written)
            .await
            .unwrap_or_else(|_| panic!("the task never wrote {file}"))
    }

    /// The task as Nomad sends it.
    pub fn config(&self) -> TaskConfig {
        TaskConfig {
            msgpack_driver_config: msgpack(self.options.clone()),
            ..self.task.clone()
        }
    }
}

/// A block of options on the wire.
pub fn msgpack(options: Vec<(&str, Value)>) -> Vec<u8> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &map(options)).unwrap();
    bytes
}

/// A block.
pub fn map(entries: Vec<(&str, Value)>) -> Value {
    Value::Map(
        entries
            .into_iter()
            .map(|(key, value)| (Value::from(key), value))
            .collect(),
    )
}

/// A list of strings.
pub fn list(items: &[&str]) -> Value {
    Value::Array(items.iter().map(|item| Value::from(*item)).collect())
}

/// The lines `key=value` of a text.
pub fn pairs(text: &str) -> HashMap<&str, &str> {
    text.lines().filter_map(|line| line.split_once('=')).collect()
}

/// Waits for an answer, but not for ever.
pub async fn within<T>(answer: impl Future<Output = T>) -> T {
    tokio::time::timeout(LIMIT, answer)
        .await
        .expect("no answer in a minute")
}
