//! StartTask: a recipe of named steps. Each step that leaves something behind says how to undo it; when a later step fails,
//! what was done is undone in reverse. What cannot be done is found out before anything is made.
//!
//! Invariant: a start reaches its end, good or bad, also when its caller has gone: it runs on a task of its own.
//! A container left by an earlier, half-done start of the same task is replaced, never joined.

use std::path::Path;
use std::sync::Arc;

use crate::error::DriverError;
use crate::events::Subject;
use crate::handle::{self, Handle};
use crate::host::Host;
use crate::images::ImageRequest;
use crate::images::keeper::HeldImage;
use crate::log_choice::LogChoice;
use crate::logs::{HeldOpen, JOURNAL_SOCKET, JournalPlan, LogPlan, TaskLogs, log_configuration, log_dir};
use crate::nomad_task::NomadTask;
use crate::oom::OomWatch;
use crate::plugin::{Plugin, Service, Settings};
use crate::podman::{BindMount, ContainerInfo, LogConfiguration};
use crate::roster::Taken;
use crate::served_mounts::{self, ServedMount};
use crate::spec::{self, DriverNetwork, Inputs, Plan};
use crate::task::Task;
use crate::task_config::TaskConfig;

/// Starts a task's container.
///
/// # Errors
/// Everything that StartTask may fail with; nothing is left behind then.
pub async fn start(plugin: Plugin, task: NomadTask, options: Vec<u8>) -> Result<Arc<Task>, DriverError> {
    // The caller's future is dropped when the agent goes away; half a container must not stay because of that.
    let start = tokio::spawn(async move { run(&plugin, &task, &options).await });
    start.await.unwrap_or(Err(DriverError::CutOff))
}

async fn run(plugin: &Plugin, task: &NomadTask, options: &[u8]) -> Result<Arc<Task>, DriverError> {
    let reservation = match plugin.roster.reserve(&task.id) {
        Ok(reservation) => reservation,
        // The same id comes again only when the answer to the first call was lost on its way.
        Err(Taken::Known(task)) => return Ok(task),
        Err(Taken::Starting) => return Err(DriverError::Starting { id: task.id.clone() }),
    };
    let options = TaskConfig::decode(options)?;
    let settings = plugin.settings();
    let service = Arc::clone(settings.service(&options.socket)?);
    let info = service
        .info()
        .await
        .map_err(|error| DriverError::start("ask podman for its host", error))?;
    let host = Host::read(&info, service.podman.socket_path(), &task.resources.cpuset_cgroup);
    let mut recipe = Recipe {
        plugin,
        task,
        options: &options,
        settings: &settings,
        service: &service,
        made: Made::default(),
    };
    match recipe.cook(&host).await {
        Ok((handle, memory)) => {
            let podman = Arc::clone(&service.podman);
            Ok(reservation.commit(Task::watch(handle, podman, recipe.made.logs, memory)))
        }
        Err(error) => {
            recipe.clean_up().await;
            Err(error)
        }
    }
}

struct Recipe<'a> {
    plugin: &'a Plugin,
    task: &'a NomadTask,
    options: &'a TaskConfig,
    settings: &'a Settings,
    service: &'a Service,
    made: Made,
}

/// Where a task's output goes.
#[derive(Default)]
struct Output {
    /// What conmon is told; None: whatever the Podman service does by itself.
    configuration: Option<LogConfiguration>,
    /// What the log process is told; None: there is none.
    plan: Option<LogPlan>,
}

impl Output {
    fn carried(plan: LogPlan) -> Self {
        Self {
            configuration: Some(log_configuration(&plan.dir)),
            plan: Some(plan),
        }
    }

    fn kept(configuration: LogConfiguration) -> Self {
        Self {
            configuration: Some(configuration),
            plan: None,
        }
    }
}

/// What has been made so far: a failed start must not leave it behind.
#[derive(Default)]
struct Made {
    container: Option<String>,
    logs: Option<TaskLogs>,
}

impl Recipe<'_> {
    /// Makes the container and starts it; what to recover it by, and the watch on its memory.
    async fn cook(&mut self, host: &Host) -> Result<(Handle, Option<OomWatch>), DriverError> {
        let logs = self.output(host)?;
        let inputs = Inputs {
            task: self.task,
            options: self.options,
            config: &self.settings.config,
            host,
            logs: logs.configuration.as_ref(),
        };
        let mut plan = spec::container(inputs)?;
        check_confined(self.task, &plan)?;
        self.check_network(&plan).await?;
        let held = logs.plan.as_ref().map(HeldOpen::of).unwrap_or_default();
        let served = served_mounts::of(&self.task.mounts).await?;
        self.remove_leftover().await?;
        self.write_name_files(&mut plan).await?;
        // Held until the container shows that it is needed.
        let image = self.ensure_image().await?;
        plan.container.image.clone_from(&image.id);
        let container = self.create(&plan).await?;
        drop(image);
        let logs = logs.plan.map(|plan| self.journalled(plan, &container));
        self.collect_logs(logs.as_ref(), held).await?;
        let made = self.init_container(&container).await?;
        self.check_runtime(made.runtime)?;
        // 0 if its first process is gone.
        let pid = made.state.pid.unwrap_or_default();
        self.check_mounts(&served, pid)?;
        let memory = OomWatch::of(pid);
        self.start_container(&container).await?;
        let info = self.inspect(&container).await?;
        let network = spec::driver_network(inputs, &plan, &info);
        Ok((self.handle(container, logs, network, &info), memory))
    }

    /// Where output goes, as the task says or else the plugin's options.
    fn output(&self, host: &Host) -> Result<Output, DriverError> {
        let config = &self.settings.config;
        let choice = self.options.logging.as_ref().unwrap_or(&config.logging);
        let nowhere = Path::new("/dev/null");
        let collected = !config.disable_log_collection && self.task.stdout_path != nowhere;
        let by_podman = |driver: &str| LogConfiguration {
            driver: driver.to_owned(),
            ..LogConfiguration::default()
        };
        let plan = LogPlan {
            dir: log_dir(&self.task.alloc_dir, &self.task.name),
            stdout: self.task.stdout_path.clone(),
            stderr: self.task.stderr_path.clone(),
            writer: host.writer,
            journal: None,
        };
        match choice {
            LogChoice::Nomad if collected => Ok(Output::carried(plan)),
            // The operator collects what Podman's own log driver keeps.
            LogChoice::Nomad if config.disable_log_collection => Ok(Output::default()),
            LogChoice::Nomad | LogChoice::Nowhere => Ok(Output::kept(by_podman("none"))),
            LogChoice::File { path, bytes_max } => Ok(Output::kept(LogConfiguration {
                path: path.clone(),
                size: *bytes_max,
                ..by_podman("k8s-file")
            })),
            LogChoice::Journald { .. } => {
                if !Path::new(JOURNAL_SOCKET).exists() {
                    return Err(DriverError::NoJournal { socket: JOURNAL_SOCKET });
                }
                let (stdout, stderr) = if collected {
                    (plan.stdout, plan.stderr)
                } else {
                    (nowhere.to_owned(), nowhere.to_owned())
                };
                Ok(Output::carried(LogPlan { stdout, stderr, ..plan }))
            }
        }
    }

    /// The plan with the entries' fields, once the container has an id.
    fn journalled(&self, plan: LogPlan, container: &str) -> LogPlan {
        let choice = self.options.logging.as_ref().unwrap_or(&self.settings.config.logging);
        let LogChoice::Journald { tag } = choice else {
            return plan;
        };
        let mut journal = JournalPlan::new(container, &self.task.container_name(), tag.as_deref());
        let ours = [
            ("NOMAD_ALLOC_ID", &self.task.alloc_id),
            ("NOMAD_JOB_NAME", &self.task.job_name),
            ("NOMAD_TASK_NAME", &self.task.name),
            ("NOMAD_NAMESPACE", &self.task.namespace),
        ];
        journal
            .fields
            .extend(ours.map(|(name, value)| (name.to_owned(), value.clone())));
        LogPlan {
            journal: Some(journal),
            ..plan
        }
    }

    /// Podman before 5 takes the wish for another runtime and forgets it. A task that asked for a virtual machine must not
    /// run without one.
    fn check_runtime(&self, got: Option<String>) -> Result<(), DriverError> {
        let Some(wanted) = &self.options.security.runtime else {
            return Ok(());
        };
        let got = got.unwrap_or_default();
        if Path::new(&got).file_name() == Path::new(wanted).file_name() {
            return Ok(());
        }
        Err(DriverError::Runtime {
            wanted: wanted.clone(),
            got,
        })
    }

    /// Writes /etc/hosts and /etc/resolv.conf for a container to which Podman gives another's, and mounts them.
    async fn write_name_files(&self, plan: &mut Plan) -> Result<(), DriverError> {
        let files = std::mem::take(&mut plan.name_files);
        let mut texts = Vec::new();
        if !files.hosts.is_empty() {
            let mut hosts = match &files.hosts_of {
                Some(name) => self.hosts_of(name).await?,
                None => String::new(),
            };
            files.hosts.iter().for_each(|line| hosts.push_str(&format!("{line}\n")));
            texts.push(("hosts", hosts));
        }
        if !files.resolv.is_empty() {
            texts.push(("resolv.conf", files.resolv.join("\n") + "\n"));
        }
        let dir = self.task.task_dir().join(".podman-names");
        for (name, text) in texts {
            let path = dir.join(name);
            let written = std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&path, text));
            written.map_err(|source| DriverError::NameFile {
                path: path.clone(),
                source,
            })?;
            plan.container.mounts.push(BindMount {
                destination: format!("/etc/{name}"),
                kind: "bind".to_owned(),
                source: path.to_string_lossy().into_owned(),
                options: vec!["rbind".to_owned(), "rprivate".to_owned()],
            });
        }
        Ok(())
    }

    /// The /etc/hosts of the container whose network is shared.
    async fn hosts_of(&self, name: &str) -> Result<String, DriverError> {
        let found = self.service.podman.inspect_container(name).await;
        let found =
            found.map_err(|error| DriverError::start("look at the container whose network is shared", error))?;
        let path = found.and_then(|info| info.hosts_path).filter(|path| !path.is_empty());
        let hosts = path.and_then(|path| std::fs::read_to_string(path).ok());
        Ok(hosts.unwrap_or_else(|| "127.0.0.1\tlocalhost\n::1\tlocalhost\n".to_owned()))
    }

    async fn check_network(&self, plan: &Plan) -> Result<(), DriverError> {
        for name in &plan.custom_networks {
            let exists = self.service.podman.network_exists(name).await;
            if !exists.map_err(|error| DriverError::start("look for the network", error))? {
                return Err(DriverError::NoSuchNetwork { name: name.clone() });
            }
        }
        Ok(())
    }

    /// Removes a container of the same name: an earlier start of this very task made it, and its plugin died before it
    /// could tell Nomad. Its program may still run, with nobody who would ever stop it.
    async fn remove_leftover(&self) -> Result<(), DriverError> {
        let name = self.task.container_name();
        let found = self.service.podman.inspect_container(&name).await;
        let Some(info) = found.map_err(|error| DriverError::start("look for a leftover container", error))? else {
            return Ok(());
        };
        if !belongs_to(&info, self.task) {
            return Err(DriverError::NameTaken { name });
        }
        tracing::info!(
            name,
            status = info.state.status,
            "removing a container left by an earlier start"
        );
        let id = info.id.as_deref().unwrap_or(&name);
        let removed = self.service.podman.remove_container(id, true).await;
        removed.map_err(|error| DriverError::start("remove a leftover container", error))
    }

    async fn ensure_image(&self) -> Result<HeldImage, DriverError> {
        let subject = self.subject();
        let progress = |line: &str| self.plugin.events.emit(&subject, line);
        let request = ImageRequest {
            options: &self.options.image,
            task_dir: &self.task.task_dir(),
            progress: &progress,
        };
        let ensured = self.service.images.ensure(&self.service.podman, request).await;
        ensured.map_err(|error| DriverError::Image {
            reference: self.options.image.reference.clone(),
            recoverable: error.is_recoverable(),
            message: error.to_string(),
        })
    }

    async fn create(&mut self, plan: &Plan) -> Result<String, DriverError> {
        let created = self.service.podman.create_container(&plan.container).await;
        let created = created.map_err(|error| DriverError::start("create the container", error))?;
        self.made.container = Some(created.id.clone());
        let subject = self.subject();
        for remark in plan.remarks.iter().chain(&created.warnings) {
            self.plugin.events.emit(&subject, remark.as_str());
        }
        Ok(created.id)
    }

    /// Before the container starts, so that a program's first line finds its reader.
    async fn collect_logs(&mut self, plan: Option<&LogPlan>, held: HeldOpen) -> Result<(), DriverError> {
        let Some(plan) = plan else { return Ok(()) };
        self.made.logs = Some(TaskLogs::start_after(held, plan.clone(), &self.plugin.relay).await?);
        Ok(())
    }

    /// Makes all of the container but for running its program, which may run out of memory or write to a mount at once; what it
    /// is then.
    async fn init_container(&self, container: &str) -> Result<ContainerInfo, DriverError> {
        let made = self.service.podman.init_container(container).await;
        made.map_err(|error| DriverError::start("start the container", error))?;
        self.inspect(container).await
    }

    /// Whether the container has what its program is to write to.
    fn check_mounts(&self, served: &[ServedMount], pid: i32) -> Result<(), DriverError> {
        match served_mounts::missing_from(served, pid) {
            None => Ok(()),
            Some(path) => Err(DriverError::UnseenMount {
                path: path.to_owned(),
                socket: self.service.podman.socket_path().to_owned(),
            }),
        }
    }

    async fn start_container(&self, container: &str) -> Result<(), DriverError> {
        let started = self.service.podman.start_container(container).await;
        started.map_err(|error| DriverError::start("start the container", error))
    }

    async fn inspect(&self, container: &str) -> Result<ContainerInfo, DriverError> {
        let info = self.service.podman.inspect_container(container).await;
        let info = info.map_err(|error| DriverError::start("inspect the container", error))?;
        // Somebody removed it in this very moment: the task has ended, and its wait will say so.
        Ok(info.unwrap_or_default())
    }

    fn handle(
        &self,
        container_id: String,
        logs: Option<LogPlan>,
        network: Option<DriverNetwork>,
        info: &ContainerInfo,
    ) -> Handle {
        Handle {
            version: handle::VERSION,
            task_id: self.task.id.clone(),
            task_name: self.task.name.clone(),
            alloc_id: self.task.alloc_id.clone(),
            container_id,
            container_name: self.task.container_name(),
            socket: self.options.socket.clone(),
            started_at: info.state.started_at.clone().unwrap_or_default(),
            stop_signal: stop_signal(info),
            logs,
            network,
            remove_container: self.settings.config.gc.container,
            compute: self.settings.compute,
            predecessor: false,
        }
    }

    async fn clean_up(&mut self) {
        if let Some(id) = self.made.container.take()
            && let Err(error) = self.service.podman.remove_container(&id, true).await
        {
            // The next start of this task finds it by its name and removes it.
            tracing::warn!(container = id, error = ?error, "cannot remove the container of a failed start");
        }
        if let Some(logs) = self.made.logs.take()
            && let Err(error) = logs.remove().await
        {
            tracing::warn!(task = self.task.id, error = ?error, "cannot remove the logs of a failed start");
        }
    }

    fn subject(&self) -> Subject {
        let NomadTask { id, name, alloc_id, .. } = self.task;
        Subject {
            task_id: id.clone(),
            task_name: name.clone(),
            alloc_id: alloc_id.clone(),
        }
    }
}

/// The signal that asks the program to end: the image's, else SIGTERM. Podman 4 gives a number, Podman 5 a name.
pub(crate) fn stop_signal(info: &ContainerInfo) -> String {
    match &info.config.stop_signal {
        Some(serde_json::Value::String(name)) if !name.is_empty() => name.clone(),
        Some(serde_json::Value::Number(number)) if number.as_i64() != Some(0) => number.to_string(),
        Some(_) | None => "SIGTERM".to_owned(),
    }
}

/// Whether a container of the task's name was made for this task: by us (our labels), or by the driver that users come
/// from (its environment names the allocation).
fn belongs_to(info: &ContainerInfo, task: &NomadTask) -> bool {
    let labels = &info.config.labels;
    let ours = labels
        .get(spec::DRIVER_LABEL)
        .is_some_and(|driver| driver == spec::DRIVER_LABEL_VALUE)
        && labels.get(spec::ALLOC_ID_LABEL) == Some(&task.alloc_id);
    ours || info.config.env.contains(&format!("NOMAD_ALLOC_ID={}", task.alloc_id))
}

/// Follows symlinks of volumes that must stay inside the allocation.
fn check_confined(task: &NomadTask, plan: &Plan) -> Result<(), DriverError> {
    let root = task.alloc_dir.canonicalize().unwrap_or_else(|_| task.alloc_dir.clone());
    for path in &plan.confined {
        // A source that is not there leads nowhere; Podman will name it.
        let Ok(target) = path.canonicalize() else { continue };
        if !target.starts_with(&root) {
            return Err(DriverError::Escapes {
                path: path.clone(),
                target,
            });
        }
    }
    Ok(())
}
