//! `pannier try --nomad`: the same jobs on a real Nomad agent, server and client in one process, with nothing but the
//! `nomad` program added. The plugins are the same binaries; the CSI plugin runs as a raw_exec job on the host.
//!
//! Everything of the agent lies below the state directory; it listens on loopback only and is stopped at the end.

use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use tokio::process::{Child, Command};

use super::play::Store;
use super::report::Report;
use super::{Interrupt, Options, TryError, VERIFY_JOB, VOLUME_FILE, WRITE_JOB, leftovers};
use crate::host_setup::HostSetup;

/// 60 s for the agent to elect itself and to find its drivers.
const AGENT_MAX: Duration = Duration::from_secs(60);

/// 90 s for a CSI plugin to register: Nomad polls its socket every 5 s and counts it healthy after that.
const PLUGIN_MAX: Duration = Duration::from_secs(90);

/// 10 minutes for a job of the default run.
const JOB_MAX: Duration = Duration::from_secs(600);

/// 15 s for the agent to end after SIGINT.
const STOP_MAX: Duration = Duration::from_secs(15);

/// 500 ms between two questions to the agent.
const POLL: Duration = Duration::from_millis(500);

/// Ports of the agent on loopback, away from Nomad's own 4646 to 4648, so that an agent of the machine is not disturbed.
const PORTS: (u16, u16, u16) = (24646, 24647, 24648);

/// Id of the CSI plugin, as jobs/try-volume.hcl names it.
const PLUGIN_ID: &str = "pannier";

/// Plays the default run, or the job file of the options, on an agent of its own.
///
/// # Errors
/// The first failure; the agent and what ran on it are gone by then.
pub async fn play(
    nomad: &Path,
    options: &Options,
    store: &Store,
    host: &HostSetup,
    (report, interrupt): (&Report, &Interrupt),
) -> Result<(), TryError> {
    report.chapter("A Nomad agent");
    let dir = options.state_dir.join("nomad");
    let mut agent = Agent::start(nomad, options, host, dir).await?;
    let result = tokio::select! {
        result = agent.play(options, store, report) => result,
        () = interrupt.asked() => Err(TryError::Interrupted),
    };
    agent.stop(report).await;
    result
}

#[derive(Debug)]
struct Agent {
    nomad: PathBuf,
    dir: PathBuf,
    child: Child,
    /// Jobs to stop at the end, in order.
    jobs: Vec<String>,
}

impl Agent {
    async fn start(nomad: &Path, options: &Options, host: &HostSetup, dir: PathBuf) -> Result<Self, TryError> {
        let plugins = dir.join("plugins");
        std::fs::create_dir_all(&plugins).map_err(|source| TryError::State {
            path: plugins.clone(),
            source,
        })?;
        let plugin = plugins.join("nomad-driver-podman");
        std::fs::copy(&options.driver, &plugin).map_err(|source| TryError::State { path: plugin, source })?;
        let config = dir.join("agent.hcl");
        write(&config, &agent_config(&dir, &plugins, host.podman_socket()))?;
        let log_path = dir.join("agent.log");
        let log = std::fs::File::create(&log_path).map_err(|source| TryError::State {
            path: log_path.clone(),
            source,
        })?;
        let log_too = log
            .try_clone()
            .map_err(|source| TryError::State { path: log_path, source })?;
        let child = Command::new(nomad)
            .args(["agent", "-config"])
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(log)
            .stderr(log_too)
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .map_err(|source| TryError::State {
                path: nomad.to_owned(),
                source,
            })?;
        Ok(Self {
            nomad: nomad.to_owned(),
            dir,
            child,
            jobs: Vec::new(),
        })
    }

    async fn play(&mut self, options: &Options, store: &Store, report: &Report) -> Result<(), TryError> {
        report
            .step("nomad", "agent ready, driver podman healthy", self.wait_healthy())
            .await?;
        let csi_job = self.dir.join("csi.nomad.hcl");
        write(&csi_job, &csi_job_file(&self.dir, options, store))?;
        report
            .step("nomad", "job run pannier-csi", self.run_job(&csi_job, "pannier-csi"))
            .await?;
        report
            .step("nomad", "the CSI plugin is healthy", self.wait_plugin())
            .await?;
        let volumes = match &options.job {
            Some(_) => options.volumes.clone(),
            None => vec![self.file("try-volume.hcl", VOLUME_FILE)?],
        };
        for volume in &volumes {
            let create = ["volume", "create", &volume.display().to_string()].map(str::to_owned);
            report
                .step(
                    "nomad",
                    format!("volume create {}", volume.display()),
                    self.command(&create),
                )
                .await?;
        }
        let jobs = match &options.job {
            Some(file) => vec![file.clone()],
            None => vec![
                self.file("try-write.nomad.hcl", WRITE_JOB)?,
                self.file("try-verify.nomad.hcl", VERIFY_JOB)?,
            ],
        };
        for file in &jobs {
            let name = super::job_file::read(file).map(|(job, _)| job.id)?;
            report.chapter(format!("Nomad: job run {}", file.display()));
            report
                .step("nomad", format!("job run {name}"), self.run_job(file, &name))
                .await?;
            let ended = report
                .step("nomad", format!("{name} has ended"), self.wait_job(&name))
                .await;
            report.note(self.logs(&name).await.trim_end());
            ended?;
        }
        if options.keep {
            Ok(())
        } else {
            self.give_back(report).await
        }
    }

    /// Stops the jobs that used the volume and deletes it.
    async fn give_back(&mut self, report: &Report) -> Result<(), TryError> {
        for job in self.jobs.iter().skip(1) {
            drop(
                self.command(&["job", "stop", "-purge", "-detach", job].map(str::to_owned))
                    .await,
            );
        }
        let delete = ["volume", "delete", "try"].map(str::to_owned);
        report
            .step("nomad", "volume delete try, once its claims are released", async {
                let deadline = tokio::time::Instant::now() + PLUGIN_MAX;
                loop {
                    match self.command(&delete).await {
                        Ok(_) => return Ok(()),
                        Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
                        Err(_) => tokio::time::sleep(POLL).await,
                    }
                }
            })
            .await
    }

    async fn stop(mut self, report: &Report) {
        for job in std::mem::take(&mut self.jobs).iter().rev() {
            let stopped = self.command(&["job", "stop", "-purge", job].map(str::to_owned)).await;
            if let Err(error) = stopped {
                report.note(format!("while cleaning up: {error}"));
            }
        }
        leftovers::stop_engine(&self.dir.join("engine.sock")).await;
        if let Some(pid) = self.child.id() {
            let pid = nix::unistd::Pid::from_raw(pid.cast_signed());
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT);
        }
        if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_err() {
            drop(self.child.kill().await);
        }
    }

    fn file(&self, name: &str, text: &str) -> Result<PathBuf, TryError> {
        let path = self.dir.join(name);
        write(&path, text)?;
        Ok(path)
    }

    /// Runs `nomad` against our agent and returns what it printed.
    async fn command(&self, arguments: &[String]) -> Result<String, TryError> {
        let output = Command::new(&self.nomad)
            .args(arguments)
            .env("NOMAD_ADDR", format!("http://127.0.0.1:{}", PORTS.0))
            .stdin(Stdio::null())
            .kill_on_drop(true)
            .output()
            .await
            .map_err(|source| TryError::State {
                path: self.nomad.clone(),
                source,
            })?;
        if output.status.success() {
            return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
        }
        let said = [output.stderr, output.stdout].concat();
        Err(TryError::Tool {
            command: format!("nomad {}", arguments.join(" ")),
            detail: String::from_utf8_lossy(&said).trim().to_owned(),
        })
    }

    async fn json(&self, arguments: &[&str]) -> Result<Value, TryError> {
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        let text = self.command(&arguments).await?;
        serde_json::from_str(&text).map_err(|error| TryError::Tool {
            command: format!("nomad {}", arguments.join(" ")),
            detail: format!("printed no JSON: {error}"),
        })
    }

    /// Repeats a question until it is answered with true, or says what the last answer was.
    async fn wait_for(
        &self,
        limit: Duration,
        what: &str,
        arguments: &[&str],
        done: impl Fn(&Value) -> bool,
    ) -> Result<Value, TryError> {
        let deadline = tokio::time::Instant::now() + limit;
        loop {
            let answer = self.json(arguments).await;
            if let Ok(value) = &answer
                && done(value)
            {
                return answer;
            }
            if tokio::time::Instant::now() > deadline {
                let log = self.dir.join("agent.log");
                let last = answer.map_or_else(|error| error.to_string(), |_| String::new());
                return Err(TryError::Plugin {
                    name: "nomad",
                    what: format!("{what} never came: {last}"),
                    log,
                });
            }
            tokio::time::sleep(POLL).await;
        }
    }

    async fn wait_healthy(&self) -> Result<(), TryError> {
        self.wait_for(
            AGENT_MAX,
            "a healthy driver podman",
            &["node", "status", "-self", "-json"],
            |node| node["Drivers"]["podman"]["Healthy"] == Value::Bool(true) && node["Status"] == "ready",
        )
        .await
        .map(drop)
    }

    async fn wait_plugin(&self) -> Result<(), TryError> {
        let question = ["plugin", "status", "-type", "csi", "-json", PLUGIN_ID];
        self.wait_for(PLUGIN_MAX, "a healthy CSI plugin", &question, |plugin| {
            plugin["ControllersHealthy"].as_u64() >= Some(1) && plugin["NodesHealthy"].as_u64() >= Some(1)
        })
        .await
        .map(drop)
    }

    async fn run_job(&mut self, file: &Path, name: &str) -> Result<(), TryError> {
        self.jobs.push(name.to_owned());
        self.command(&["job", "run", "-detach", &file.display().to_string()].map(str::to_owned))
            .await
            .map(drop)
    }

    /// Waits until the newest allocation of a batch job has ended, and judges it.
    async fn wait_job(&self, name: &str) -> Result<(), TryError> {
        let allocs = self
            .wait_for(
                JOB_MAX,
                "the end of the job",
                &["job", "allocs", "-json", name],
                |allocs| {
                    allocs.as_array().is_some_and(|allocs| {
                        allocs.iter().any(|alloc| alloc["ClientStatus"] == "complete")
                            || (!allocs.is_empty() && allocs.iter().all(|alloc| alloc["ClientStatus"] == "failed"))
                    })
                },
            )
            .await?;
        let complete = allocs
            .as_array()
            .is_some_and(|allocs| allocs.iter().any(|alloc| alloc["ClientStatus"] == "complete"));
        if complete {
            return Ok(());
        }
        let detail = allocs[0]["TaskStates"].to_string();
        Err(TryError::Tool {
            command: format!("nomad job run {name}"),
            detail,
        })
    }

    async fn logs(&self, name: &str) -> String {
        let mut text = String::new();
        for stream in ["-stdout", "-stderr"] {
            let logs = self
                .command(&["alloc", "logs", stream, "-job", name].map(str::to_owned))
                .await;
            text.push_str(&logs.unwrap_or_default());
        }
        text
    }
}

fn write(path: &Path, text: &str) -> Result<(), TryError> {
    std::fs::write(path, text).map_err(|source| TryError::State {
        path: path.to_owned(),
        source,
    })
}

fn agent_config(dir: &Path, plugins: &Path, podman_socket: &Path) -> String {
    let (http, rpc, serf) = PORTS;
    format!(
        r#"data_dir   = "{data}"
plugin_dir = "{plugins}"
bind_addr  = "127.0.0.1"
ports {{
  http = {http}
  rpc  = {rpc}
  serf = {serf}
}}
advertise {{
  http = "127.0.0.1"
  rpc  = "127.0.0.1"
  serf = "127.0.0.1"
}}
server {{
  enabled          = true
  bootstrap_expect = 1
}}
client {{
  enabled           = true
  network_interface = "lo"
  options = {{
    "fingerprint.denylist" = "env_aws,env_azure,env_digitalocean,env_gce"
  }}
}}
telemetry {{
  publish_allocation_metrics = true
}}
plugin "raw_exec" {{
  config {{
    enabled = true
  }}
}}
plugin "nomad-driver-podman" {{
  config {{
    socket_path = "unix://{socket}"
  }}
}}
"#,
        data = dir.join("data").display(),
        plugins = plugins.display(),
        socket = podman_socket.display(),
    )
}

/// The CSI plugin as a job on the host: with `stage_publish_base_dir` as the host's own path, the paths that Nomad gives
/// are the same for the plugin, the engine and the containers.
fn csi_job_file(dir: &Path, options: &Options, store: &Store) -> String {
    let base = dir.join("data/client/csi/monolith").join(PLUGIN_ID);
    let mut arguments = vec![
        "csi".to_owned(),
        "--mode=monolith".to_owned(),
        "--node-id=try-node".to_owned(),
        format!("--bucket={}", store.bucket),
        format!("--prefix={}", store.prefix),
        format!("--staging-root={}", base.display()),
        format!("--engine-socket={}", dir.join("engine.sock").display()),
    ];
    arguments.extend(
        store
            .endpoint
            .iter()
            .map(|endpoint| format!("--s3-endpoint={endpoint}")),
    );
    arguments.extend(store.region.iter().map(|region| format!("--region={region}")));
    let arguments: Vec<String> = arguments.iter().map(|argument| format!("{argument:?}")).collect();
    let environment: Vec<String> = store
        .environment
        .iter()
        .map(|(key, value)| format!("        {key} = {value:?}"))
        .collect();
    format!(
        r#"job "pannier-csi" {{
  type = "system"
  group "csi" {{
    task "plugin" {{
      driver = "raw_exec"
      config {{
        command = "{program}"
        args    = [{arguments}]
      }}
      env {{
{environment}
      }}
      csi_plugin {{
        id                     = "{PLUGIN_ID}"
        type                   = "monolith"
        mount_dir              = "/csi"
        stage_publish_base_dir = "{base}"
      }}
      resources {{
        cpu    = 200
        memory = 256
      }}
    }}
  }}
}}
"#,
        program = options.pannier.display(),
        arguments = arguments.join(", "),
        environment = environment.join("\n"),
        base = base.display(),
    )
}
