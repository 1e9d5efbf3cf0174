//! Nomad's side of a task driver: launches the plugin as an agent does, and drives one task at a time through its life.
//!
//! As an agent: launched once to ask who it is and what its options are, once to check the options, and once to live.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use go_plugin::{Agreement, Host, Launch, LogLine, MESSAGE_BYTES_MAX};
use hcl::eval::Context;
use proto::nomad::base::base_plugin_client::BasePluginClient;
use proto::nomad::base::{ConfigSchemaRequest, PluginInfoRequest, SetConfigRequest};
use proto::nomad::driver::driver_client::DriverClient;
use proto::nomad::driver::fingerprint_response::HealthState;
use proto::nomad::driver::{self, TaskConfig};
use proto::nomad::hclspec;
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;

use super::TryError;
use super::driver_config;
use super::hcl_reader::Source;
use super::report::Report;

/// 20 s until the driver must call itself healthy.
const HEALTHY_MAX: Duration = Duration::from_secs(20);

/// A client that takes messages as large as Nomad's.
fn client(channel: Channel) -> DriverClient<Channel> {
    DriverClient::new(channel).max_decoding_message_size(MESSAGE_BYTES_MAX)
}

/// How to launch the driver.
#[derive(Debug)]
pub struct DriverLaunch {
    /// The plugin binary.
    pub program: PathBuf,
    /// The `config` of the agent's `plugin` block, as HCL text.
    pub config: Source,
    /// More environment for the plugin.
    pub environment: Vec<(String, String)>,
    /// Where its log goes.
    pub log: PathBuf,
}

/// A live driver.
#[derive(Debug)]
pub struct DriverHost {
    host: Host,
    driver: DriverClient<Channel>,
    /// What the driver calls itself.
    pub name: String,
    /// The schema of a task's `config`.
    pub schema: hclspec::Spec,
}

/// How a task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TaskExit {
    /// Exit code.
    pub exit_code: i32,
    /// Signal, or 0.
    pub signal: i32,
    /// Killed for its memory.
    pub oom_killed: bool,
}

impl DriverLaunch {
    fn launch(&self) -> Launch {
        let mut launch = Launch::new(Agreement::NOMAD, &self.program);
        launch.variables = self
            .environment
            .iter()
            .map(|(key, value)| (key.into(), value.into()))
            .collect();
        let file = std::fs::OpenOptions::new().create(true).append(true).open(&self.log);
        let file = Mutex::new(file.ok());
        launch.log = Arc::new(move |line: LogLine| {
            use std::io::Write as _;
            // The log is a convenience: a full disk must not end the run.
            if let Ok(mut file) = file.lock()
                && let Some(file) = file.as_mut()
            {
                drop(writeln!(file, "{:?} {} {:?}", line.level, line.message, line.fields));
            }
        });
        launch
    }

    async fn start(&self) -> Result<Host, TryError> {
        self.launch().start().await.map_err(|source| TryError::Launch {
            program: self.program.clone(),
            source,
        })
    }
}

impl DriverHost {
    /// Launches the driver three times, as an agent does, and waits until it is healthy.
    ///
    /// # Errors
    /// `Launch`, `Rpc` or `Unhealthy`, with the plugin's own words.
    pub async fn start(launch: &DriverLaunch, report: &Report) -> Result<Self, TryError> {
        let (name, config) = report
            .step("driver", "launch 1: PluginInfo, ConfigSchema", ask(launch))
            .await?;
        report
            .step(
                "driver",
                "launch 2: SetConfig, to check the agent's options",
                check(launch, &config),
            )
            .await?;
        let (host, schema) = report
            .step(
                "driver",
                "launch 3: SetConfig, Init, Fingerprint, TaskConfigSchema",
                async { live(launch, config).await },
            )
            .await?;
        let driver = client(host.channel());
        Ok(Self {
            host,
            driver,
            name,
            schema,
        })
    }

    /// StartTask. Returns the handle that Nomad would keep.
    ///
    /// # Errors
    /// `Rpc`, with the driver's words.
    pub async fn start_task(&mut self, task: TaskConfig, report: &Report) -> Result<driver::TaskHandle, TryError> {
        let request = driver::StartTaskRequest { task: Some(task) };
        let reply = report
            .step("driver", "StartTask", self.driver.start_task(request))
            .await
            .map_err(|status| TryError::rpc("StartTask", &status))?
            .into_inner();
        reply.handle.ok_or(TryError::NoHandle)
    }

    /// WaitTask: returns when the task has ended.
    ///
    /// # Errors
    /// `Rpc`; Nomad would take it for a failed task.
    pub async fn wait_task(&self, task_id: &str) -> Result<TaskExit, TryError> {
        let mut driver = self.driver.clone();
        let reply = driver
            .wait_task(driver::WaitTaskRequest {
                task_id: task_id.to_owned(),
            })
            .await
            .map_err(|status| TryError::rpc("WaitTask", &status))?
            .into_inner();
        let result = reply.result.unwrap_or_default();
        Ok(TaskExit {
            exit_code: result.exit_code,
            signal: result.signal,
            oom_killed: result.oom_killed,
        })
    }

    /// StopTask with the task's own signal and timeout.
    ///
    /// # Errors
    /// `Rpc`, with the driver's words.
    pub async fn stop_task(
        &mut self,
        task_id: &str,
        timeout: Duration,
        signal: &str,
        report: &Report,
    ) -> Result<(), TryError> {
        let request = driver::StopTaskRequest {
            task_id: task_id.to_owned(),
            timeout: prost_types::Duration::try_from(timeout).ok(),
            signal: signal.to_owned(),
        };
        report
            .step("driver", "StopTask", self.driver.stop_task(request))
            .await
            .map_err(|status| TryError::rpc("StopTask", &status))?;
        Ok(())
    }

    /// DestroyTask: removes the container.
    ///
    /// # Errors
    /// `Rpc`, with the driver's words.
    pub async fn destroy_task(&mut self, task_id: &str, report: &Report) -> Result<(), TryError> {
        let request = driver::DestroyTaskRequest {
            task_id: task_id.to_owned(),
            force: true,
        };
        report
            .step("driver", "DestroyTask", self.driver.destroy_task(request))
            .await
            .map_err(|status| TryError::rpc("DestroyTask", &status))?;
        Ok(())
    }

    /// Ends the plugin as an agent that stops does.
    pub async fn stop(self) {
        self.host.shutdown().await;
    }
}

async fn ask(launch: &DriverLaunch) -> Result<(String, Vec<u8>), TryError> {
    let host = launch.start().await?;
    let mut base = BasePluginClient::new(host.channel());
    let asked = async {
        let info = base
            .plugin_info(PluginInfoRequest {})
            .await
            .map_err(|status| TryError::rpc("PluginInfo", &status))?
            .into_inner();
        let schema = base
            .config_schema(ConfigSchemaRequest {})
            .await
            .map_err(|status| TryError::rpc("ConfigSchema", &status))?
            .into_inner();
        let body = launch.config.parse()?;
        let config = driver_config::encode(&launch.config, &Context::new(), &body, &schema.spec.unwrap_or_default())?;
        Ok::<_, TryError>((info.name, config))
    };
    let result = asked.await;
    host.shutdown().await;
    result
}

async fn check(launch: &DriverLaunch, config: &[u8]) -> Result<(), TryError> {
    let host = launch.start().await?;
    let result = set_config(&host, config.to_vec(), None).await;
    host.shutdown().await;
    result
}

async fn live(launch: &DriverLaunch, config: Vec<u8>) -> Result<(Host, hclspec::Spec), TryError> {
    let host = launch.start().await?;
    match prepare(&host, config).await {
        Ok(schema) => Ok((host, schema)),
        Err(error) => {
            host.shutdown().await;
            Err(error)
        }
    }
}

async fn prepare(host: &Host, config: Vec<u8>) -> Result<hclspec::Spec, TryError> {
    let nomad = proto::nomad::base::NomadConfig {
        driver: Some(proto::nomad::base::NomadDriverConfig::default()),
    };
    set_config(host, config, Some(nomad)).await?;
    let mut driver = client(host.channel());
    driver
        .init(driver::InitRequest {})
        .await
        .map_err(|status| TryError::rpc("Init", &status))?;
    let mut fingerprints = driver
        .fingerprint(driver::FingerprintRequest {})
        .await
        .map_err(|status| TryError::rpc("Fingerprint", &status))?
        .into_inner();
    let mut last = String::from("no fingerprint came");
    let healthy = tokio::time::timeout(HEALTHY_MAX, async {
        while let Some(fingerprint) = fingerprints.next().await {
            let fingerprint = fingerprint.map_err(|status| TryError::rpc("Fingerprint", &status))?;
            if fingerprint.health() == HealthState::Healthy {
                return Ok(());
            }
            last = format!(
                "{:?}: {} {}",
                fingerprint.health(),
                fingerprint.health_description,
                fingerprint.err
            );
        }
        Err(TryError::Unhealthy("the fingerprint stream ended".to_owned()))
    })
    .await;
    match healthy {
        Ok(result) => result?,
        Err(_) => return Err(TryError::Unhealthy(last)),
    }
    let schema = driver
        .task_config_schema(driver::TaskConfigSchemaRequest {})
        .await
        .map_err(|status| TryError::rpc("TaskConfigSchema", &status))?
        .into_inner();
    Ok(schema.spec.unwrap_or_default())
}

async fn set_config(
    host: &Host,
    config: Vec<u8>,
    nomad: Option<proto::nomad::base::NomadConfig>,
) -> Result<(), TryError> {
    let mut base = BasePluginClient::new(host.channel());
    let request = SetConfigRequest {
        msgpack_config: config,
        nomad_config: nomad,
        plugin_api_version: "v0.1.0".to_owned(),
    };
    base.set_config(request)
        .await
        .map_err(|status| TryError::rpc("SetConfig", &status))?;
    Ok(())
}

/// Numbers of the task's resources as Nomad sends them.
pub fn resources(cpu_mhz: u64, memory_mb: u64, memory_max_mb: u64) -> driver::Resources {
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    driver::Resources {
        allocated_resources: Some(driver::AllocatedTaskResources {
            cpu: Some(driver::AllocatedCpuResources {
                cpu_shares: whole(cpu_mhz),
            }),
            memory: Some(driver::AllocatedMemoryResources {
                memory_mb: whole(memory_mb),
                memory_max_mb: whole(memory_max_mb),
            }),
            networks: Vec::new(),
        }),
        linux_resources: Some(driver::LinuxResources {
            cpu_shares: whole(cpu_mhz),
            memory_limit_bytes: whole(memory_mb.max(memory_max_mb).saturating_mul(1 << 20)),
            ..Default::default()
        }),
        ports: Vec::new(),
    }
}

/// The environment that Nomad gives every task, before the file's own.
pub fn base_environment(job: &str, group: &str, task: &str, alloc_id: &str) -> HashMap<String, String> {
    [
        ("NOMAD_ALLOC_DIR", "/alloc"),
        ("NOMAD_TASK_DIR", "/local"),
        ("NOMAD_SECRETS_DIR", "/secrets"),
        ("NOMAD_ALLOC_ID", alloc_id),
        ("NOMAD_ALLOC_INDEX", "0"),
        ("NOMAD_JOB_ID", job),
        ("NOMAD_JOB_NAME", job),
        ("NOMAD_GROUP_NAME", group),
        ("NOMAD_TASK_NAME", task),
    ]
    .into_iter()
    .map(|(key, value)| (key.to_owned(), value.to_owned()))
    .collect()
}
