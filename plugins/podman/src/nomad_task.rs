//! What Nomad tells of a task besides its driver options: ids, directories, environment, resources, mounts, network.
//! Plain data in the driver's words; `driver/decode.rs` fills it from the wire. Called by spec/* and start.rs.

use std::collections::BTreeMap;
use std::path::PathBuf;

/// A task as Nomad hands it over.
#[derive(Clone, Default, PartialEq)]
pub struct NomadTask {
    /// Nomad's id of this run of the task.
    pub id: String,
    /// The task's name in the job.
    pub name: String,
    /// The allocation.
    pub alloc_id: String,
    /// The job's id.
    pub job_id: String,
    /// The job's name.
    pub job_name: String,
    /// The task group.
    pub group: String,
    /// The namespace.
    pub namespace: String,
    /// The node's id.
    pub node_id: String,
    /// The node's name.
    pub node_name: String,
    /// The environment, complete: templates, identity, devices.
    pub env: BTreeMap<String, String>,
    /// `user` of the task; empty: the image's.
    pub user: String,
    /// The allocation's directory on the host.
    pub alloc_dir: PathBuf,
    /// FIFO for stdout; `/dev/null` when logs are not collected.
    pub stdout_path: PathBuf,
    /// FIFO for stderr.
    pub stderr_path: PathBuf,
    /// Limits.
    pub resources: Resources,
    /// Host volumes, CSI volumes, device plugins' mounts.
    pub mounts: Vec<Mount>,
    /// Device plugins' devices.
    pub devices: Vec<Device>,
    /// The group's network, if it has one of its own.
    pub network: Option<NetworkIsolation>,
    /// The group's `dns` block.
    pub dns: Option<Dns>,
}

/// Never prints the environment: it holds the task's secrets.
impl std::fmt::Debug for NomadTask {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NomadTask")
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}

/// What the scheduler gave the task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Resources {
    /// MiB reserved.
    pub memory_mb: i64,
    /// MiB at most; 0: as reserved, -1: no limit.
    pub memory_max_mb: i64,
    /// CPU weight.
    pub cpu_shares: i64,
    /// Share of the node's CPU, 0 to 1.
    pub percent_ticks: f64,
    /// Cores of a task with `cores`; empty: none of its own.
    pub cpuset_cpus: String,
    /// The cgroup that Nomad made for the task's cores.
    pub cpuset_cgroup: String,
    /// The group's ports by label; None: the group has no network block.
    pub ports: Option<Vec<Port>>,
    /// The task's own (old style) networks.
    pub networks: Vec<TaskNetwork>,
}

/// A port of the group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Port {
    /// Its label.
    pub label: String,
    /// The port on the host.
    pub value: u16,
    /// The port in the container; 0: the same.
    pub to: u16,
    /// The address on the host.
    pub host_ip: String,
}

/// A network of the task itself, as jobs before group networks had.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct TaskNetwork {
    /// The address on the host.
    pub ip: String,
    /// Its ports: label and port on the host.
    pub ports: Vec<(String, u16)>,
}

/// A directory to mount.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mount {
    /// Path in the container.
    pub task_path: String,
    /// Path on the host.
    pub host_path: String,
    /// Read-only.
    pub readonly: bool,
    /// `""`, `private`, `host-to-task` or `bidirectional`.
    pub propagation_mode: String,
    /// `z`, `Z` or nothing.
    pub selinux_label: String,
}

/// A device to pass.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Device {
    /// Path in the container.
    pub task_path: String,
    /// Path on the host.
    pub host_path: String,
    /// Of `rwm`.
    pub permissions: String,
}

/// How the group's network is shared.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkIsolation {
    /// What Nomad made.
    pub mode: IsolationMode,
    /// The network namespace's path; empty for the host's.
    pub path: String,
    /// The group's host name and address for /etc/hosts.
    pub hosts: Option<GroupHost>,
}

/// Nomad's network isolation modes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum IsolationMode {
    /// The host's network.
    #[default]
    Host,
    /// One namespace for the group.
    Group,
    /// One namespace for the task.
    Task,
    /// No network.
    None,
}

/// The entry of the group in /etc/hosts.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupHost {
    /// Its name.
    pub hostname: String,
    /// Its address.
    pub address: String,
}

/// Name resolution.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Dns {
    /// Name servers.
    pub servers: Vec<String>,
    /// Search domains.
    pub searches: Vec<String>,
    /// Options of resolv.conf.
    pub options: Vec<String>,
}

impl NomadTask {
    /// The container's name: the task's and its allocation's, as operators and other tasks (`task:NAME`) know it.
    #[must_use]
    pub fn container_name(&self) -> String {
        self.container_name_of(&self.name)
    }

    /// The container name of another task of the same allocation.
    #[must_use]
    pub fn container_name_of(&self, task: &str) -> String {
        format!("{task}-{}", self.alloc_id)
    }

    /// The task's own directory on the host; relative volume sources begin here.
    #[must_use]
    pub fn task_dir(&self) -> PathBuf {
        self.alloc_dir.join(&self.name)
    }
}
