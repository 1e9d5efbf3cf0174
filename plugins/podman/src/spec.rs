//! From a task to the container that runs it: pure functions, no IO, no clock.
//!
//! [`container`] is the only way in; each file below fills the fields of one subject. What cannot be done is an error here,
//! before anything exists on the host. Absent: pulling, creating, starting (start.rs).

mod labels;
mod mounts;
mod network;
mod process;
mod resources;
mod security;

use std::path::PathBuf;

use crate::config::Config;
use crate::host::Host;
use crate::nomad_task::NomadTask;
use crate::podman::{ContainerSpec, HealthCheck, LogConfiguration};
use crate::rlimit::RlimitError;
use crate::task_config::TaskConfig;

pub use labels::{ALLOC_ID_LABEL, DRIVER_LABEL, DRIVER_LABEL_VALUE, TASK_ID_LABEL};
pub use network::{DriverNetwork, driver_network};

/// Everything a container is made from.
#[derive(Debug, Clone, Copy)]
pub struct Inputs<'a> {
    /// What Nomad tells of the task.
    pub task: &'a NomadTask,
    /// The task's own options.
    pub options: &'a TaskConfig,
    /// The plugin's options.
    pub config: &'a Config,
    /// Where it will run.
    pub host: &'a Host,
    /// Where its output goes; None: nowhere.
    pub logs: Option<&'a LogConfiguration>,
}

/// What to ask Podman for. The image is filled in once it is there.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Plan {
    /// The request.
    pub container: ContainerSpec,
    /// What a person should know though the task can start; shown as task events.
    pub remarks: Vec<String>,
    /// Volume sources that must lie inside the allocation's directory also after symlinks are followed.
    pub confined: Vec<PathBuf>,
    /// A network that must exist.
    pub custom_network: Option<String>,
}

/// Why a task cannot become a container. Each text names the option and the way out.
#[derive(Debug, thiserror::Error)]
pub enum SpecError {
    /// A limit that cannot be had.
    #[error(transparent)]
    Rlimit(#[from] RlimitError),
    /// A volume that is no `src:dst[:options]`.
    #[error("volumes: {text:?} is malformed, write \"source:destination\" or \"source:destination:options\"")]
    Volume {
        /// What was written.
        text: String,
    },
    /// A tmpfs without an absolute destination.
    #[error("tmpfs: {text:?} is malformed, write \"/destination\" or \"/destination:options\"")]
    Tmpfs {
        /// What was written.
        text: String,
    },
    /// A host path while volumes are off.
    #[error(
        "volumes are not enabled; cannot mount host paths: {text:?} (volumes {{ enabled = true }} in the plugin's config allows it)"
    )]
    VolumesDisabled {
        /// What was written.
        text: String,
    },
    /// A propagation mode that Nomad does not have.
    #[error(
        "the mount on {task_path} has the propagation mode {mode:?}; known are private, host-to-task and bidirectional"
    )]
    Propagation {
        /// The mount.
        task_path: String,
        /// What was said.
        mode: String,
    },
    /// `ports` names a port that the group does not have.
    #[error("Port {label:?} not found, check network stanza")]
    NoSuchPort {
        /// The label.
        label: String,
    },
    /// Both ways to publish ports.
    #[error("Invalid port declaration; use of port_map and ports: port_map is the old form, remove it")]
    PortsAndPortMap,
    /// `ports` without a network.
    #[error("No ports defined in network stanza: ports needs a network block with port labels in the group")]
    NoGroupPorts,
    /// `port_map` without a network.
    #[error(
        "Trying to map ports but no network interface is available: port_map needs a network block in the task's resources"
    )]
    NoTaskNetwork,
    /// An option that the network mode cannot fulfil.
    #[error("{option} cannot be used with network_mode {mode:?}: it needs a bridge or a network of Podman's")]
    NotInThisNetwork {
        /// The option.
        option: &'static str,
        /// The mode.
        mode: String,
    },
    /// A task in a network namespace of root's, on a Podman without root.
    #[error(
        "the group's network namespace belongs to root, a rootless Podman cannot join it: set network_mode to pasta, slirp4netns or host, or use a rootful socket"
    )]
    RootlessGroupNetwork,
    /// A name server that is no address.
    #[error("Invalid dns server address, dns={text}")]
    DnsServer {
        /// What was said.
        text: String,
    },
    /// An ipc_mode that does not exist.
    #[error(
        "invalid ipc_mode {mode:?}: expected one of host, private, shareable, none, container:<id>, ns:<path>, task:<name>"
    )]
    IpcMode {
        /// What was written.
        mode: String,
    },
    /// shm_size for a /dev/shm that belongs to somebody else.
    #[error("shm_size cannot be used with ipc_mode={mode:?}; it requires a private or shareable IPC namespace")]
    ShmSize {
        /// The mode.
        mode: String,
    },
    /// A userns that does not exist.
    #[error("userns: {text:?}: {reason}")]
    Userns {
        /// What was written.
        text: String,
        /// What is wrong.
        reason: &'static str,
    },
    /// A security_opt that does not exist.
    #[error(
        "invalid security_opt: {text:?}; known are no-new-privileges, label=, apparmor=, seccomp=, proc-opts=, mask=, unmask= and systempaths=unconfined"
    )]
    SecurityOpt {
        /// What was written.
        text: String,
    },
    /// Less memory and swap than memory.
    #[error("memory_swap = {swap} is below the memory limit of {limit} bytes: it counts memory and swap together")]
    SwapBelowMemory {
        /// What was written.
        swap: i64,
        /// The task's limit.
        limit: i64,
    },
}

/// Makes the request for the task's container.
///
/// # Errors
/// The first thing that cannot be done.
pub fn container(inputs: Inputs<'_>) -> Result<Plan, SpecError> {
    let mut plan = Plan::default();
    process::fill(inputs, &mut plan);
    labels::fill(inputs, &mut plan);
    mounts::fill(inputs, &mut plan)?;
    network::fill(inputs, &mut plan)?;
    resources::fill(inputs, &mut plan)?;
    security::fill(inputs, &mut plan)?;
    let no_logs = || LogConfiguration {
        driver: "none".to_owned(),
        ..LogConfiguration::default()
    };
    plan.container.log_configuration = Some(inputs.logs.cloned().unwrap_or_else(no_logs));
    // The image's own health check would run on systemd timers that nobody reads: Nomad has its own checks.
    plan.container.healthconfig = Some(HealthCheck::none());
    plan.container.restart_policy = Some("no".to_owned());
    plan.container.sdnotify_mode = Some("ignore".to_owned());
    plan.container.systemd = Some("false".to_owned());
    Ok(plan)
}

#[cfg(test)]
pub(crate) mod fixture {
    //! A task, options, plugin options and a host to vary in the tables below.

    use super::*;

    /// What `container` is called with, owned.
    pub(crate) struct Case {
        pub(crate) task: NomadTask,
        pub(crate) options: TaskConfig,
        pub(crate) config: Config,
        pub(crate) host: Host,
    }

    impl Case {
        /// A rootful host with cgroup v2 and systemd, a task that says nothing.
        pub(crate) fn new() -> Self {
            let task = NomadTask {
                id: "alloc1/web/1".into(),
                name: "web".into(),
                alloc_id: "alloc1".into(),
                alloc_dir: "/nomad/alloc1".into(),
                ..NomadTask::default()
            };
            Self {
                task,
                options: TaskConfig::default(),
                config: Config::default_for(0),
                host: Host::for_tests(),
            }
        }

        /// The plan for it.
        pub(crate) fn plan(&self) -> Result<Plan, SpecError> {
            let Self {
                task,
                options,
                config,
                host,
            } = self;
            container(Inputs {
                task,
                options,
                config,
                host,
                logs: None,
            })
        }

        /// The container for it, which must be possible.
        pub(crate) fn container(&self) -> ContainerSpec {
            self.plan().unwrap().container
        }

        /// The text of the error it must be.
        pub(crate) fn error(&self) -> String {
            self.plan().unwrap_err().to_string()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::Case;
    use super::*;

    #[test]
    fn a_container_is_never_removed_or_restarted_behind_nomads_back() {
        let spec = Case::new().container();
        assert!(!spec.remove);
        assert_eq!(spec.restart_policy.as_deref(), Some("no"));
        assert_eq!(spec.name, "web-alloc1");
    }

    #[test]
    fn output_goes_to_the_file_that_the_log_process_reads_or_nowhere() {
        let Case {
            task,
            options,
            config,
            host,
        } = Case::new();
        let file = LogConfiguration {
            driver: "k8s-file".into(),
            path: Some("/log".into()),
            ..Default::default()
        };
        let inputs = |logs| Inputs {
            task: &task,
            options: &options,
            config: &config,
            host: &host,
            logs,
        };
        assert_eq!(
            container(inputs(Some(&file))).unwrap().container.log_configuration,
            Some(file.clone())
        );
        let none = container(inputs(None)).unwrap().container.log_configuration.unwrap();
        assert_eq!((none.driver.as_str(), none.path), ("none", None));
    }
}
