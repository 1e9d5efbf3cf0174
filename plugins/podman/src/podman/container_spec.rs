//! What a container is made from: the keys of libpod's SpecGenerator that the driver uses, and no others.
//! A field left empty is not sent, so that Podman's own default holds. Called by `spec/*`, sent by `containers.rs`.
//!
//! Names are SpecGenerator's; the types below it are those of the OCI runtime specification.

use std::collections::BTreeMap;

use serde::Serialize;

/// The body of `POST /libpod/containers/create`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct ContainerSpec {
    /// The container's name.
    pub name: String,
    /// Image reference or id.
    pub image: String,
    /// Replaces the image's entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub entrypoint: Option<Vec<String>>,
    /// Command and arguments after the entrypoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub command: Option<Vec<String>>,
    /// Environment on top of the image's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    /// Labels on top of the image's.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// OCI annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// The number of the signal that asks the container to end.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_signal: Option<i32>,
    /// Seconds between the stop signal and SIGKILL when Podman itself stops it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub stop_timeout: Option<u32>,
    /// Always `no`: Nomad restarts tasks, Podman does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart_policy: Option<String>,
    /// Always false: the exit code must stay readable until DestroyTask.
    pub remove: bool,
    /// Allocate a terminal.
    pub terminal: bool,
    /// Keep stdin open.
    pub stdin: bool,
    /// `uid[:gid]` or `name[:group]` of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub user: Option<String>,
    /// Supplementary groups.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
    /// Working directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub work_dir: Option<String>,
    /// Make the working directory if it is not in the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub create_working_dir: Option<bool>,
    /// Host name; needs a UTS namespace of its own.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub hostname: Option<String>,
    /// Time zone, `local` for the host's.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub timezone: Option<String>,
    /// Network namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub netns: Option<Namespace>,
    /// Networks to join with `netns` bridge.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub networks: BTreeMap<String, NetworkOptions>,
    /// Options for slirp4netns or pasta.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub network_options: BTreeMap<String, Vec<String>>,
    /// Published ports.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub portmappings: Vec<PortMapping>,
    /// IP addresses of name servers.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_server: Vec<String>,
    /// Search domains.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_search: Vec<String>,
    /// resolv.conf options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub dns_option: Vec<String>,
    /// `name:ip` lines for /etc/hosts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub hostadd: Vec<String>,
    /// `image`, `none` or a path: what /etc/hosts begins with.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub base_hosts_file: Option<String>,
    /// Leave the image's /etc/hosts alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_image_hosts: Option<bool>,
    /// Leave the image's /etc/resolv.conf alone.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub use_image_resolve_conf: Option<bool>,
    /// PID namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pidns: Option<Namespace>,
    /// IPC namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub ipcns: Option<Namespace>,
    /// UTS namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub utsns: Option<Namespace>,
    /// User namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub userns: Option<Namespace>,
    /// How ids are mapped when `userns` asks for it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub idmappings: Option<IdMappings>,
    /// Cgroup namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroupns: Option<Namespace>,
    /// Cgroup the container's own is made in.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroup_parent: Option<String>,
    /// `enabled`, `disabled`, `no-conmon`, `split`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cgroups_mode: Option<String>,
    /// Limits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub resource_limits: Option<ResourceLimits>,
    /// Cgroup v2 files by name, such as `memory.high`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub unified: BTreeMap<String, String>,
    /// -1000 to 1000.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oom_score_adj: Option<i32>,
    /// POSIX limits.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub r_limits: Vec<Rlimit>,
    /// Kernel parameters of the container's namespaces.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub sysctl: BTreeMap<String, String>,
    /// Bind, tmpfs and other mounts.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mounts: Vec<BindMount>,
    /// Podman's named volumes.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub volumes: Vec<NamedVolume>,
    /// Options of the storage driver for the container's layer.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub storage_opts: BTreeMap<String, String>,
    /// `anonymous` (default), `tmpfs` or `ignore`: what becomes of VOLUME lines of the image.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_volume_mode: Option<String>,
    /// Devices by path; Podman splits `src[:dst[:perm]]` and knows CDI names.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub devices: Vec<DeviceNode>,
    /// Rules of the device cgroup.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub device_cgroup_rule: Vec<DeviceCgroupRule>,
    /// Bytes of /dev/shm.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shm_size: Option<i64>,
    /// All privileges.
    pub privileged: bool,
    /// Capabilities on top of the default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub cap_drop: Vec<String>,
    /// No gain of privileges by exec.
    pub no_new_privileges: bool,
    /// SELinux label options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub selinux_opts: Vec<String>,
    /// AppArmor profile or `unconfined`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub apparmor_profile: Option<String>,
    /// Path of a seccomp profile on the host or `unconfined`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub seccomp_profile_path: Option<String>,
    /// Options of the /proc mount.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub procfs_opts: Vec<String>,
    /// Paths hidden on top of the default.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub mask: Vec<String>,
    /// Paths not hidden, `ALL` for none.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub unmask: Vec<String>,
    /// Root file system read-only.
    pub read_only_filesystem: bool,
    /// Run an init as pid 1.
    pub init: bool,
    /// The init's path on the host.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub init_path: Option<String>,
    /// Podman's secrets as files.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub secrets: Vec<Secret>,
    /// Podman's secrets as variables: variable -> secret.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub secret_env: BTreeMap<String, String>,
    /// The health check; [`HealthCheck::none`] turns the image's own off.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub healthconfig: Option<HealthCheck>,
    /// Where conmon writes the output.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub log_configuration: Option<LogConfiguration>,
    /// Another OCI runtime, name or path.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oci_runtime: Option<String>,
    /// Always `ignore`: no NOTIFY_SOCKET of ours reaches the container.
    #[serde(rename = "sdnotifyMode", skip_serializing_if = "Option::is_none")]
    pub sdnotify_mode: Option<String>,
    /// `false`, `true` or `always`: mounts that systemd as pid 1 wants.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub systemd: Option<String>,
    /// `httpproxy`: pass the service's proxy variables into the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub httpproxy: Option<bool>,
}

/// A namespace: `host`, `private`, `none`, `bridge`, `path` with a path, `container` with an id, …
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Namespace {
    /// The mode.
    pub nsmode: String,
    /// What the mode refers to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub value: String,
}

impl Namespace {
    /// A mode that stands alone.
    #[must_use]
    pub fn of(nsmode: &str) -> Self {
        Self {
            nsmode: nsmode.to_owned(),
            value: String::new(),
        }
    }

    /// A mode with what it refers to.
    #[must_use]
    pub fn with(nsmode: &str, value: impl Into<String>) -> Self {
        Self {
            nsmode: nsmode.to_owned(),
            value: value.into(),
        }
    }
}

/// How the container takes part in one network.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct NetworkOptions {
    /// Fixed addresses.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub static_ips: Vec<String>,
    /// Fixed MAC address, `aa:bb:…`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub static_mac: Option<String>,
    /// Names that the network's DNS answers to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub aliases: Vec<String>,
    /// The interface's name in the container.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub interface_name: Option<String>,
}

/// One published port.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct PortMapping {
    /// Address on the host; empty: all.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub host_ip: String,
    /// Port in the container.
    pub container_port: u16,
    /// Port on the host.
    pub host_port: u16,
    /// `tcp`, `udp` or `sctp`.
    pub protocol: String,
}

/// The id maps of a user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct IdMappings {
    /// Let Podman choose a free range.
    pub auto_user_ns: bool,
    /// What the range must fulfil.
    pub auto_user_ns_opts: AutoUserNs,
    /// uid maps.
    #[serde(rename = "UIDMap", skip_serializing_if = "Vec::is_empty")]
    pub uid_map: Vec<IdMap>,
    /// gid maps.
    #[serde(rename = "GIDMap", skip_serializing_if = "Vec::is_empty")]
    pub gid_map: Vec<IdMap>,
}

/// Wishes for an automatic user namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct AutoUserNs {
    /// Number of ids; 0: as many as the image needs.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<u32>,
    /// Additional uid maps.
    #[serde(rename = "AdditionalUIDMappings", skip_serializing_if = "Vec::is_empty")]
    pub additional_uid_mappings: Vec<IdMap>,
    /// Additional gid maps.
    #[serde(rename = "AdditionalGIDMappings", skip_serializing_if = "Vec::is_empty")]
    pub additional_gid_mappings: Vec<IdMap>,
}

/// One range of an id map.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct IdMap {
    /// First id in the container.
    pub container_id: u32,
    /// First id on the host.
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// Cgroup limits, as the OCI runtime specification's `linux.resources`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct ResourceLimits {
    /// CPU.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<CpuLimits>,
    /// Memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<MemoryLimits>,
    /// Processes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub pids: Option<PidsLimit>,
}

/// CPU limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct CpuLimits {
    /// Relative weight, 2 to 262144.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub shares: Option<u64>,
    /// Microseconds per period.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<i64>,
    /// Microseconds.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub period: Option<u64>,
    /// Cores, such as `0-3,7`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpus: Option<String>,
    /// Memory nodes.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mems: Option<String>,
}

/// Memory limits.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct MemoryLimits {
    /// Bytes; above it the kernel kills.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub limit: Option<i64>,
    /// Bytes the kernel tries to get down to under pressure.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reservation: Option<i64>,
    /// Bytes of memory and swap together; -1 unlimited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swap: Option<i64>,
    /// 0 to 100, cgroup v1 only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub swappiness: Option<u64>,
}

/// Limit of processes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct PidsLimit {
    /// How many; -1 unlimited.
    pub limit: i64,
}

/// A POSIX limit.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Rlimit {
    /// `RLIMIT_NOFILE`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// The most a process may raise it to.
    pub hard: u64,
    /// Where it starts.
    pub soft: u64,
}

/// A mount that is no named volume.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct BindMount {
    /// Path in the container.
    pub destination: String,
    /// `bind`, `tmpfs`, …
    #[serde(rename = "type")]
    pub kind: String,
    /// Path on the host, or the type again.
    pub source: String,
    /// Mount options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// One of Podman's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct NamedVolume {
    /// Its name.
    pub name: String,
    /// Path in the container.
    pub dest: String,
    /// Mount options.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub options: Vec<String>,
}

/// A device, by path.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeviceNode {
    /// `src[:dst[:perm]]` or a CDI name.
    pub path: String,
}

/// A rule of the device cgroup.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct DeviceCgroupRule {
    /// Allowed or denied.
    pub allow: bool,
    /// `a`, `b` or `c`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<String>,
    /// Major number; none: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub major: Option<i64>,
    /// Minor number; none: all.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub minor: Option<i64>,
    /// Of `rwm`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub access: Option<String>,
}

/// One of Podman's secrets as a file.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct Secret {
    /// Name of the secret.
    pub source: String,
    /// Path in the container.
    pub target: String,
    /// Owner.
    #[serde(rename = "UID")]
    pub uid: u32,
    /// Group.
    #[serde(rename = "GID")]
    pub gid: u32,
    /// Permission bits.
    pub mode: u32,
}

/// A health check.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "PascalCase")]
pub struct HealthCheck {
    /// `["NONE"]`, `["CMD", …]` or `["CMD-SHELL", …]`.
    pub test: Vec<String>,
}

impl HealthCheck {
    /// No health check, whatever the image says.
    #[must_use]
    pub fn none() -> Self {
        Self {
            test: vec!["NONE".to_owned()],
        }
    }
}

/// Where conmon writes a container's output.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct LogConfiguration {
    /// `k8s-file`, `journald`, `none`, `passthrough`.
    pub driver: String,
    /// The file, for `k8s-file`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub path: Option<String>,
    /// Bytes after which conmon starts the file anew; -1 never.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub size: Option<i64>,
    /// Options such as `tag`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, String>,
}
