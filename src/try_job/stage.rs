//! Everything that runs during a try, in the one place that ends it again.
//!
//! `Stage` owns the parts; `play.rs` says in which order they act. `clear` may be called at any moment and ends whatever
//! is there, in reverse order, each part within a bound.

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::Duration;

use proto::nomad::driver;

use super::csi_plugin::{Claim, CsiPlugin, MountedVolume, PluginLaunch};
use super::driver_config;
use super::driver_host::{self, DriverHost};
use super::hcl_reader::Source;
use super::job_file::{Group, GroupVolume, Job, Task, task_context};
use super::leftovers;
use super::report::Report;
use super::task_output::TaskOutput;
use super::volume_file::VolumeFile;
use super::{Interrupt, TryError};

/// A node: its plugin and what it has mounted.
#[derive(Debug)]
struct Node {
    plugin: CsiPlugin,
    dir: PathBuf,
    mounted: Vec<(String, MountedVolume)>,
}

/// A volume as the plugin knows it.
#[derive(Debug, Clone)]
struct KnownVolume {
    csi_id: String,
    context: HashMap<String, String>,
}

/// A task that was started and not yet destroyed.
#[derive(Debug)]
struct LiveTask {
    id: String,
    kill_timeout: Duration,
    kill_signal: String,
}

/// The parts of a run.
#[derive(Debug)]
pub struct Stage {
    report: Report,
    interrupt: Interrupt,
    state_dir: PathBuf,
    driver: Option<DriverHost>,
    node: Option<Node>,
    tasks: Vec<LiveTask>,
    volumes: HashMap<String, KnownVolume>,
}

impl Stage {
    /// An empty stage below `state_dir`.
    pub fn new(report: Report, interrupt: Interrupt, state_dir: PathBuf) -> Self {
        Self {
            report,
            interrupt,
            state_dir,
            driver: None,
            node: None,
            tasks: Vec::new(),
            volumes: HashMap::new(),
        }
    }

    /// Brings the driver in.
    pub fn set_driver(&mut self, driver: DriverHost) {
        self.driver = Some(driver);
    }

    /// Starts a node with nothing but its name: an empty state directory, so an empty cache.
    ///
    /// # Errors
    /// As `CsiPlugin::start`.
    pub async fn enter_node(&mut self, launch: &PluginLaunch) -> Result<(), TryError> {
        self.interrupt.check()?;
        std::fs::create_dir_all(&launch.state_dir).map_err(|source| TryError::State {
            path: launch.state_dir.clone(),
            source,
        })?;
        let plugin = CsiPlugin::start(launch, &self.report).await?;
        self.node = Some(Node {
            plugin,
            dir: launch.state_dir.clone(),
            mounted: Vec::new(),
        });
        Ok(())
    }

    /// Creates a volume through the node's plugin.
    ///
    /// # Errors
    /// `Rpc`, with the plugin's words.
    pub async fn create_volume(&mut self, file: &VolumeFile) -> Result<(), TryError> {
        self.interrupt.check()?;
        let report = self.report;
        let (csi_id, context) = self.node_mut().plugin.create(file, &report).await?;
        self.volumes.insert(file.id.clone(), KnownVolume { csi_id, context });
        Ok(())
    }

    /// Deletes every volume that this run created.
    ///
    /// # Errors
    /// `Rpc`, with the plugin's words.
    pub async fn delete_volumes(&mut self) -> Result<(), TryError> {
        let report = self.report;
        let mut volumes: Vec<_> = self.volumes.drain().collect();
        volumes.sort_by(|(a, _), (b, _)| a.cmp(b));
        for (_, volume) in volumes {
            self.node_mut().plugin.delete(&volume.csi_id, &report).await?;
        }
        Ok(())
    }

    /// Plays a job to its end on the present node.
    ///
    /// # Errors
    /// The first failure; what was begun stays for `clear`.
    pub async fn play(&mut self, job: &Job, source: &Source) -> Result<(), TryError> {
        for group in &job.groups {
            let alloc_id = uuid::Uuid::new_v4().to_string();
            for volume in &group.volumes {
                self.claim(volume, job, &alloc_id).await?;
            }
            for task in &group.tasks {
                self.run_task(job, group, task, (source, &alloc_id)).await?;
            }
            self.release_all().await?;
        }
        Ok(())
    }

    /// Leaves the node: plugin, engine, and every file of it, cache included.
    ///
    /// # Errors
    /// `State` if something of it cannot be removed.
    pub async fn leave_node(&mut self) -> Result<(), TryError> {
        let Some(node) = self.node.take() else { return Ok(()) };
        let Node { plugin, dir, .. } = node;
        let report = self.report;
        report
            .step("csi", "stop the plugin and its engine", async {
                plugin.stop().await;
                leftovers::stop_engine(&leftovers::engine_socket(&dir)).await;
                leftovers::sweep(&dir).await
            })
            .await?;
        report.note(format!("deleted {}, the node's cache with it", dir.display()));
        Ok(())
    }

    /// Ends whatever is there. Errors are shown and not returned: every part gets its turn.
    pub async fn clear(&mut self) {
        let report = self.report;
        if let Some(driver) = &mut self.driver {
            for task in self.tasks.drain(..) {
                show(
                    report,
                    driver
                        .stop_task(&task.id, task.kill_timeout, &task.kill_signal, &report)
                        .await,
                );
                show(report, driver.destroy_task(&task.id, &report).await);
            }
        }
        if self.node.is_some() {
            show(report, self.release_all().await);
            show(report, self.leave_node().await);
        }
        if let Some(driver) = self.driver.take() {
            driver.stop().await;
        }
    }

    fn node_mut(&mut self) -> &mut Node {
        self.node.as_mut().expect("a node is entered before volumes are used")
    }

    async fn claim(&mut self, volume: &GroupVolume, job: &Job, alloc_id: &str) -> Result<(), TryError> {
        self.interrupt.check()?;
        let known = self.volumes.get(&volume.source).cloned();
        let known = known.ok_or_else(|| TryError::NoVolumeFile(volume.source.clone()))?;
        let claim = Claim {
            volume,
            volume_id: &known.csi_id,
            context: &known.context,
            alloc_id,
            namespace: &job.namespace,
        };
        let report = self.report;
        let node = self.node_mut();
        let mounted = node.plugin.claim(&claim, &report).await?;
        node.mounted.push((volume.name.clone(), mounted));
        Ok(())
    }

    async fn release_all(&mut self) -> Result<(), TryError> {
        let report = self.report;
        let node = self.node_mut();
        let mut result = Ok(());
        while let Some((_, mounted)) = node.mounted.pop() {
            result = result.and(node.plugin.release(&mounted, &report).await);
        }
        result
    }

    async fn run_task(
        &mut self,
        job: &Job,
        group: &Group,
        task: &Task,
        (source, alloc_id): (&Source, &str),
    ) -> Result<(), TryError> {
        self.interrupt.check()?;
        let driver = self.driver.as_ref().expect("the driver is brought in before tasks run");
        if task.driver != driver.name {
            return Err(TryError::OtherDriver {
                task: task.name.clone(),
                driver: task.driver.clone(),
                has: driver.name.clone(),
            });
        }
        let config = driver_config::encode(source, &task_context(), &task.config, &driver.schema)?;
        let alloc_dir = self.make_alloc_dir(alloc_id, &task.name)?;
        let output = TaskOutput::open(&alloc_dir.join("alloc/logs"), &task.name)?;
        let mut request = self.task_config(job, group, task, alloc_id);
        request.msgpack_driver_config = config;
        request.alloc_dir = alloc_dir.display().to_string();
        request.stdout_path = output.stdout.display().to_string();
        request.stderr_path = output.stderr.display().to_string();
        let task_id = request.id.clone();
        self.tasks.push(LiveTask {
            id: task_id.clone(),
            kill_timeout: task.kill_timeout,
            kill_signal: task.kill_signal.clone(),
        });
        let report = self.report;
        let interrupt = self.interrupt.clone();
        let driver = self.driver.as_mut().expect("it was there above");
        driver.start_task(request, &report).await?;
        let exit = report
            .step("driver", format!("WaitTask {}", task.name), async {
                tokio::select! {
                    exit = driver.wait_task(&task_id) => exit,
                    () = interrupt.asked() => Err(TryError::Interrupted),
                }
            })
            .await?;
        driver.destroy_task(&task_id, &report).await?;
        self.tasks.retain(|live| live.id != task_id);
        let bytes = output.finish().await;
        report.note(format!("{bytes} bytes of output; exit code {}", exit.exit_code));
        if exit.exit_code != 0 || exit.signal != 0 {
            return Err(TryError::TaskFailed {
                task: task.name.clone(),
                exit_code: exit.exit_code,
                signal: exit.signal,
                oom_killed: exit.oom_killed,
            });
        }
        Ok(())
    }

    /// The directories of an allocation, as Nomad lays them out.
    fn make_alloc_dir(&self, alloc_id: &str, task: &str) -> Result<PathBuf, TryError> {
        use std::os::unix::fs::PermissionsExt as _;
        let alloc_dir = self.state_dir.join("alloc").join(alloc_id);
        for part in ["alloc/data", "alloc/logs", "alloc/tmp"]
            .map(PathBuf::from)
            .into_iter()
            .chain(["local", "secrets", "private", "tmp"].map(|part| PathBuf::from(task).join(part)))
        {
            let path = alloc_dir.join(part);
            std::fs::create_dir_all(&path)
                .and_then(|()| std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o777)))
                .map_err(|source| TryError::State { path, source })?;
        }
        Ok(alloc_dir)
    }

    fn task_config(&self, job: &Job, group: &Group, task: &Task, alloc_id: &str) -> driver::TaskConfig {
        let node = self.node.as_ref().expect("a node is entered before tasks run");
        let mut env = driver_host::base_environment(&job.id, &group.name, &task.name, alloc_id);
        env.extend(task.env.iter().cloned());
        let mounts = task.mounts.iter().filter_map(|mount| {
            let (_, mounted) = node.mounted.iter().find(|(name, _)| *name == mount.volume)?;
            Some(driver::Mount {
                task_path: mount.destination.clone(),
                host_path: mounted.target.display().to_string(),
                readonly: mount.read_only,
                propagation_mode: mount.propagation_mode.clone(),
                request_name: mount.volume.clone(),
                ..Default::default()
            })
        });
        driver::TaskConfig {
            id: format!("{alloc_id}/{}/{}", task.name, &uuid::Uuid::new_v4().to_string()[..8]),
            name: task.name.clone(),
            env,
            resources: Some(driver_host::resources(task.cpu_mhz, task.memory_mb, task.memory_max_mb)),
            mounts: mounts.collect(),
            user: task.user.clone(),
            task_group_name: group.name.clone(),
            job_name: job.id.clone(),
            job_id: job.id.clone(),
            alloc_id: alloc_id.to_owned(),
            namespace: job.namespace.clone(),
            node_name: node.plugin.node_id.clone(),
            node_id: node.plugin.node_id.clone(),
            ..Default::default()
        }
    }
}

fn show(report: Report, result: Result<(), TryError>) {
    if let Err(error) = result {
        report.note(format!("while cleaning up: {error}"));
    }
}
