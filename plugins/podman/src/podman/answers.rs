//! What Podman answers, as far as the driver reads it. Every field is optional and unknown ones are skipped, so that no
//! version's answer can break the driver.

use std::collections::BTreeMap;

use serde::{Deserialize, Deserializer};

/// `null` where an object, list or map belongs counts as an empty one: Go writes nil that way.
fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

/// `GET /libpod/info`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct HostInfo {
    /// The host.
    #[serde(deserialize_with = "null_is_default")]
    pub host: HostFacts,
    /// Podman's versions.
    #[serde(deserialize_with = "null_is_default")]
    pub version: VersionFacts,
    /// Where images and containers are.
    #[serde(deserialize_with = "null_is_default")]
    pub store: StoreFacts,
}

/// The storage of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StoreFacts {
    /// Its directory on the host.
    pub graph_root: Option<std::path::PathBuf>,
}

/// The host of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct HostFacts {
    /// `amd64`, …
    pub arch: Option<String>,
    /// `linux`.
    pub os: Option<String>,
    /// Number of processors.
    pub cpus: Option<u32>,
    /// Bytes of memory.
    pub mem_total: Option<i64>,
    /// `v1` or `v2`.
    pub cgroup_version: Option<String>,
    /// `systemd` or `cgroupfs`.
    pub cgroup_manager: Option<String>,
    /// Controllers that containers may use.
    pub cgroup_controllers: Option<Vec<String>>,
    /// `netavark` or `cni`.
    pub network_backend: Option<String>,
    /// Whom the users of containers are on the host; empty where they are themselves.
    #[serde(deserialize_with = "null_is_default")]
    pub id_mappings: HostIds,
    /// Security features.
    #[serde(deserialize_with = "null_is_default")]
    pub security: SecurityFacts,
    /// The OCI runtime.
    #[serde(deserialize_with = "null_is_default")]
    pub oci_runtime: RuntimeFacts,
}

/// How the ids of a rootless service's containers lie on the host.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct HostIds {
    /// Users.
    #[serde(deserialize_with = "null_is_default")]
    pub uidmap: Vec<IdRange>,
    /// Groups.
    #[serde(deserialize_with = "null_is_default")]
    pub gidmap: Vec<IdRange>,
}

/// A range of ids.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct IdRange {
    /// The first one, inside.
    pub container_id: u32,
    /// The same on the host.
    pub host_id: u32,
    /// How many.
    pub size: u32,
}

/// The OCI runtime of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct RuntimeFacts {
    /// `crun`, `runc`, …
    pub name: Option<String>,
    /// Where it is.
    pub path: Option<String>,
    /// What it says of itself, several lines.
    pub version: Option<String>,
}

/// Security features of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SecurityFacts {
    /// AppArmor is usable.
    pub apparmor_enabled: Option<bool>,
    /// Default capabilities, separated by commas.
    pub capabilities: Option<String>,
    /// The service runs without root.
    pub rootless: Option<bool>,
    /// Seccomp is usable.
    pub seccomp_enabled: Option<bool>,
    /// The default profile.
    pub seccomp_profile_path: Option<String>,
    /// SELinux is usable.
    pub selinux_enabled: Option<bool>,
}

/// Versions of a service.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct VersionFacts {
    /// Podman's version.
    pub version: Option<String>,
    /// The API's version.
    #[serde(rename = "APIVersion")]
    pub api_version: Option<String>,
}

/// `GET /libpod/containers/{id}/json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerInfo {
    /// Full id.
    pub id: Option<String>,
    /// Name without a slash.
    pub name: Option<String>,
    /// Id of the image.
    pub image: Option<String>,
    /// Reference of the image as it was asked for.
    pub image_name: Option<String>,
    /// The OCI runtime that runs it, name or path.
    #[serde(rename = "OCIRuntime")]
    pub runtime: Option<String>,
    /// Its /etc/hosts, on the host.
    pub hosts_path: Option<String>,
    /// What it does now.
    #[serde(deserialize_with = "null_is_default")]
    pub state: ContainerState,
    /// What it was made from.
    #[serde(deserialize_with = "null_is_default")]
    pub config: ContainerConfig,
    /// The host's side of it.
    #[serde(deserialize_with = "null_is_default")]
    pub host_config: HostConfig,
    /// Its network.
    #[serde(deserialize_with = "null_is_default")]
    pub network_settings: ContainerNetworkSettings,
}

impl ContainerInfo {
    /// Whether its first process runs (also while it is paused).
    #[must_use]
    pub fn is_running(&self) -> bool {
        matches!(self.state.status.as_deref(), Some("running" | "paused" | "stopping"))
    }

    /// Whether it ran and has ended. `stopped` is Podman's word for "ended, not yet cleaned up".
    #[must_use]
    pub fn has_ended(&self) -> bool {
        matches!(self.state.status.as_deref(), Some("exited" | "stopped"))
    }
}

/// The state of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerState {
    /// `created`, `initialized`, `running`, `paused`, `stopping`, `stopped`, `exited`, `removing`.
    pub status: Option<String>,
    /// Whether it runs.
    pub running: Option<bool>,
    /// Host pid of its first process; 0 when it does not run.
    pub pid: Option<i32>,
    /// Host pid of its conmon.
    pub conmon_pid: Option<i32>,
    /// Exit code; 0 as long as it runs.
    pub exit_code: Option<i32>,
    /// Killed for lack of memory.
    #[serde(rename = "OOMKilled")]
    pub oom_killed: Option<bool>,
    /// The runtime's complaint.
    pub error: Option<String>,
    /// RFC 3339; year 1 when it never started.
    pub started_at: Option<String>,
    /// RFC 3339; year 1 when it has not ended.
    pub finished_at: Option<String>,
    /// Path below the cgroup root; only while it runs.
    pub cgroup_path: Option<String>,
}

/// What a container was made from.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerConfig {
    /// Labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// Environment, `KEY=value`.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// Command.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// User.
    pub user: Option<String>,
    /// With a terminal.
    pub tty: Option<bool>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// The stop signal: a number before Podman 5, a name since.
    pub stop_signal: Option<serde_json::Value>,
}

/// The host's side of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostConfig {
    /// Cgroup it was made in.
    pub cgroup_parent: Option<String>,
    /// Where its output goes.
    #[serde(deserialize_with = "null_is_default")]
    pub log_config: LogConfig,
    /// `bridge`, `host`, `ns:…`, `container:…`.
    pub network_mode: Option<String>,
    /// Bytes.
    pub memory: Option<i64>,
    /// Bytes.
    pub memory_swap: Option<i64>,
    /// Relative weight.
    pub cpu_shares: Option<u64>,
}

/// Where a container's output goes.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct LogConfig {
    /// `k8s-file`, `journald`, …
    #[serde(rename = "Type")]
    pub driver: Option<String>,
    /// The file.
    pub path: Option<String>,
}

/// The network of a container.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerNetworkSettings {
    /// Address in the default network.
    #[serde(rename = "IPAddress")]
    pub ip_address: Option<String>,
    /// IPv6 address in the default network.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Option<String>,
    /// Path of its network namespace.
    pub sandbox_key: Option<String>,
    /// Published ports: `80/tcp` -> where on the host.
    #[serde(deserialize_with = "null_is_default")]
    pub ports: BTreeMap<String, Option<Vec<HostPort>>>,
    /// By network.
    #[serde(deserialize_with = "null_is_default")]
    pub networks: BTreeMap<String, ContainerNetwork>,
}

/// A container in one network.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerNetwork {
    /// Address.
    #[serde(rename = "IPAddress")]
    pub ip_address: Option<String>,
    /// IPv6 address.
    #[serde(rename = "GlobalIPv6Address")]
    pub global_ipv6_address: Option<String>,
    /// Names that the network's DNS answers to.
    pub aliases: Option<Vec<String>>,
}

/// Where a port is published.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct HostPort {
    /// Address.
    #[serde(rename = "HostIp")]
    pub host_ip: Option<String>,
    /// Port, decimal.
    pub host_port: Option<String>,
}

/// One of `GET /libpod/containers/json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ContainerListing {
    /// Full id.
    pub id: Option<String>,
    /// Names.
    #[serde(deserialize_with = "null_is_default")]
    pub names: Vec<String>,
    /// As [`ContainerState::status`].
    pub state: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
    /// Id of the image.
    #[serde(rename = "ImageID")]
    pub image_id: Option<String>,
}

/// `GET /libpod/images/{name}/json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageInfo {
    /// Full id.
    pub id: Option<String>,
    /// References.
    #[serde(deserialize_with = "null_is_default")]
    pub repo_tags: Vec<String>,
    /// References by digest.
    #[serde(deserialize_with = "null_is_default")]
    pub repo_digests: Vec<String>,
    /// `amd64`, …
    pub architecture: Option<String>,
    /// `linux`.
    pub os: Option<String>,
    /// Bytes.
    pub size: Option<i64>,
    /// What containers of it get.
    #[serde(deserialize_with = "null_is_default")]
    pub config: ImageConfig,
}

/// What containers of an image get.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    /// User.
    pub user: Option<String>,
    /// Entrypoint.
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    /// Command.
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    /// Environment.
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// Stop signal, by name or number.
    pub stop_signal: Option<String>,
    /// Working directory.
    pub working_dir: Option<String>,
    /// Labels.
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

/// `GET /libpod/exec/{id}/json`.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ExecInfo {
    /// Whether the command runs.
    pub running: Option<bool>,
    /// Its exit code once it does not.
    pub exit_code: Option<i32>,
    /// Host pid of the command.
    pub pid: Option<i32>,
}
