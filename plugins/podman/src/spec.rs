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

pub use labels::{ALLOC_ID_LABEL, DRIVER_LABEL, DRIVER_LABEL_VALUE, NODE_ID_LABEL, TASK_ID_LABEL};
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
    /// Where conmon writes its output; None: where the Podman service does by itself.
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
    /// Networks that must exist.
    pub custom_networks: Vec<String>,
    /// Files of names that Podman does not make for this container.
    pub name_files: NameFiles,
}

/// Name resolution of a container that shares another's network, or has none: Podman leaves it what that one has.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameFiles {
    /// The container whose /etc/hosts comes first.
    pub hosts_of: Option<String>,
    /// Lines for /etc/hosts, if there are any.
    pub hosts: Vec<String>,
    /// Lines of /etc/resolv.conf, if they are not that of the other.
    pub resolv: Vec<String>,
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
    /// Something that the operator does not let tasks have.
    #[error("{option} = {value:?} is not allowed on this client: {way_out}")]
    Forbidden {
        /// The option.
        option: &'static str,
        /// What was written.
        value: String,
        /// What would allow it.
        way_out: String,
    },
    /// A namespace that cannot be had.
    #[error("invalid {option} {mode:?}: expected one of {known}")]
    NamespaceMode {
        /// The option.
        option: &'static str,
        /// What was written.
        mode: String,
        /// What can be had.
        known: &'static str,
    },
    /// More processes than the operator lets a task have.
    #[error("pids_limit = {wanted} is more than the operator allows: pids_limit = {max} in the plugin's config")]
    PidsLimit {
        /// What was written.
        wanted: i64,
        /// The most.
        max: i64,
    },
    /// Networks for a container that has none of its own.
    #[error(
        "{option} cannot be used with {with}: leave network_mode out, and the group without a network block that makes a \
         namespace"
    )]
    NoNetworksHere {
        /// The option.
        option: &'static str,
        /// What stands against it.
        with: String,
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
    plan.container.log_configuration = inputs.logs.cloned();
    // The image's own health check would run on systemd timers that nobody reads: Nomad has its own checks.
    plan.container.healthconfig = (!inputs.options.healthchecks).then(HealthCheck::none);
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
    fn output_goes_where_it_is_told_and_else_where_podman_puts_it() {
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
        for logs in [Some(&file), None] {
            let inputs = Inputs {
                task: &task,
                options: &options,
                config: &config,
                host: &host,
                logs,
            };
            assert_eq!(container(inputs).unwrap().container.log_configuration.as_ref(), logs);
        }
    }

    #[test]
    fn an_images_health_check_runs_only_if_the_job_asks() {
        let mut case = Case::new();
        assert_eq!(case.container().healthconfig, Some(HealthCheck::none()));
        case.options.healthchecks = true;
        assert_eq!(case.container().healthconfig, None);
    }
}
