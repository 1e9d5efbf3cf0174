//! The task's options: the `config { .. }` of a task with `driver = "podman"`.
//!
//! Same names, types and defaults as the driver that users come from. Everything that can be judged without a host is
//! judged here, all mistakes at once, each with its key and the way out. An option that is not acted on is an error,
//! never silence. Absent: what the options become (spec/*).

mod reader;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use crate::log_choice::{LogChoice, LogChoiceError};
use crate::msgpack::{Block, MsgpackError};
use crate::rlimit::{Limit, RlimitError};
use crate::units::UnitError;
use reader::Reader;

/// The checked options of one task.
#[derive(Clone, Default, PartialEq)]
pub struct TaskConfig {
    /// What to run: a reference, or an archive with `docker-archive:` or `oci-archive:`.
    pub image: ImageOptions,
    /// Program and arguments; empty: the image's.
    pub command: Vec<String>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Directory the program starts in.
    pub working_dir: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Run an init as pid 1.
    pub init: bool,
    /// The init's path on the host.
    pub init_path: Option<String>,
    /// With a terminal.
    pub tty: bool,
    /// With an open stdin.
    pub interactive: bool,
    /// The time zone, `local` for the host's.
    pub timezone: Option<String>,
    /// Whether the image's health check is run by Podman.
    pub healthchecks: bool,
    /// OCI annotations.
    pub annotations: BTreeMap<String, String>,
    /// Where its output goes; None: where the plugin's options say.
    pub logging: Option<LogChoice>,
    /// Labels of the container.
    pub labels: BTreeMap<String, String>,
    /// Name of the Podman service.
    pub socket: String,
    /// Volumes and tmpfs.
    pub storage: StorageOptions,
    /// Network.
    pub network: NetworkOptions,
    /// Limits.
    pub limits: LimitOptions,
    /// Privileges and namespaces.
    pub security: SecurityOptions,
}

/// The image and how to come by it.
#[derive(Clone, Default, PartialEq)]
pub struct ImageOptions {
    /// As written in the job.
    pub reference: String,
    /// Ask the registry even if the image is there.
    pub force_pull: bool,
    /// Deadline of the pull.
    pub pull_timeout: Duration,
    /// Another architecture than the host's.
    pub arch: Option<String>,
    /// Another operating system than the host's.
    pub os: Option<String>,
    /// A variant of the architecture.
    pub variant: Option<String>,
    /// Credentials.
    pub auth: Option<TaskAuth>,
    /// Whether the registry's certificate must be valid; None: as Podman is configured.
    pub tls_verify: Option<bool>,
    /// Pull without credentials when those given cannot be had.
    pub auth_soft_fail: bool,
}

/// Credentials in the job.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TaskAuth {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

/// What is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageOptions {
    /// `src:dst[:options]`.
    pub volumes: Vec<String>,
    /// `dst[:options]`.
    pub tmpfs: Vec<String>,
    /// `mount` blocks.
    pub mounts: Vec<MountOptions>,
    /// Options of the storage driver, such as `size`.
    pub storage_opt: BTreeMap<String, String>,
    /// `src[:dst[:perm]]` or a CDI name.
    pub devices: Vec<String>,
    /// Bytes of /dev/shm.
    pub shm_size: Option<i64>,
    /// Root file system read-only.
    pub readonly_rootfs: bool,
}

/// One `mount` block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountOptions {
    /// What is mounted.
    pub kind: MountKind,
    /// Path in the container.
    pub target: String,
    /// Read-only.
    pub readonly: bool,
}

/// What a `mount` block mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MountKind {
    /// A path of the host; relative ones begin in the task's directory.
    Bind {
        /// The path.
        source: String,
        /// `rprivate`, `rslave`, …
        propagation: Option<String>,
        /// `z` or `Z`.
        selinux: Option<String>,
    },
    /// One of Podman's named volumes, made if it is not there.
    Volume {
        /// Its name.
        name: String,
        /// Do not fill a new volume with what the image has at the place.
        no_copy: bool,
    },
    /// Memory.
    Tmpfs {
        /// Bytes at most.
        size: Option<i64>,
        /// Permission bits of its root.
        mode: Option<i64>,
    },
}

/// How the task is reached and reaches others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// `bridge`, `host`, `none`, a network's name, …
    pub mode: Option<String>,
    /// Networks of Podman's to join.
    pub networks: Vec<String>,
    /// Names that the DNS of these networks answers to.
    pub aliases: Vec<String>,
    /// Labels of the group's ports to publish.
    pub ports: Vec<String>,
    /// Old style: label to port in the container.
    pub port_map: BTreeMap<String, u16>,
    /// Fixed addresses.
    pub static_ips: Vec<IpAddr>,
    /// Fixed MAC address.
    pub static_mac: Option<String>,
    /// `host:ip` lines for /etc/hosts.
    pub extra_hosts: Vec<String>,
}

/// What the task may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitOptions {
    /// CPU is cut off at the reservation instead of weighted.
    pub cpu_hard_limit: bool,
    /// Microseconds of one CPU period.
    pub cpu_cfs_period: Option<u64>,
    /// Bytes kept under memory pressure.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together.
    pub memory_swap: Option<i64>,
    /// 0 to 100, cgroup v1 only.
    pub memory_swappiness: Option<u64>,
    /// Processes.
    pub pids_limit: Option<i64>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// POSIX limits by name.
    pub ulimits: BTreeMap<String, Limit>,
    /// Kernel parameters.
    pub sysctl: BTreeMap<String, String>,
}

/// What the task is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// All privileges.
    pub privileged: bool,
    /// Capabilities added.
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    pub cap_drop: Vec<String>,
    /// `no-new-privileges`, `label=…`, …
    pub security_opt: Vec<String>,
    /// SELinux label options.
    pub selinux_opts: Vec<String>,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// `host`, `private`, `task:NAME`, …
    pub ipc_mode: Option<String>,
    /// `auto`, `keep-id`, …
    pub userns: Option<String>,
    /// `host`, `private`, `task:NAME`, …
    pub pid_mode: Option<String>,
    /// `host` or `private`.
    pub uts_mode: Option<String>,
    /// `host` or `private`.
    pub cgroupns: Option<String>,
    /// Supplementary groups.
    pub group_add: Vec<String>,
    /// Another OCI runtime.
    pub runtime: Option<String>,
}

/// Never prints credentials.
impl std::fmt::Debug for TaskConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskConfig")
            .field("image", &self.image.reference)
            .finish_non_exhaustive()
    }
}

/// A mistake in the task's options.
#[derive(Debug, thiserror::Error)]
pub enum TaskConfigError {
    /// A value of the wrong type.
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
    /// A required option is not there.
    #[error("image name required: set image in the task's config")]
    NoImage,
    /// A duration or size that is none.
    #[error("{key}: {source}")]
    Unit {
        /// The option.
        key: &'static str,
        /// Why.
        source: UnitError,
    },
    /// A limit that is none.
    #[error(transparent)]
    Ulimit(#[from] RlimitError),
    /// A number outside of what is allowed.
    #[error("{key} = {value} is out of range: {min} to {max}")]
    Range {
        /// The option.
        key: String,
        /// What was written.
        value: i64,
        /// The least.
        min: i64,
        /// The most.
        max: i64,
    },
    /// A text that does not have the option's form.
    #[error("{key}: {text:?} is malformed, write {want}")]
    Malformed {
        /// The option.
        key: &'static str,
        /// What was written.
        text: String,
        /// The form.
        want: &'static str,
    },
    /// Output that is to go where it cannot.
    #[error("logging: {0}")]
    Logging(#[from] LogChoiceError),
    /// An option of a block that is missing or too much.
    #[error("{key}: {what}")]
    Block {
        /// The option.
        key: &'static str,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// All mistakes of one task's options.
#[derive(Debug)]
pub struct TaskConfigErrors(pub Vec<TaskConfigError>);

impl std::fmt::Display for TaskConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for TaskConfigErrors {}

impl TaskConfig {
    /// Reads the options as StartTask brings them.
    ///
    /// # Errors
    /// All mistakes found.
    pub fn decode(msgpack: &[u8]) -> Result<Self, TaskConfigErrors> {
        let block = Block::decode(msgpack).map_err(|error| TaskConfigErrors(vec![error.into()]))?;
        Reader::new(block).read()
    }
}

#[cfg(test)]
mod tests;
