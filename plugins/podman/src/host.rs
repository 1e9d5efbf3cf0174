//! What the driver knows of the host that a Podman service runs containers on: from the service itself, and from this
//! process's own limits. An adapter: it reads /proc and /sys. Called before a task starts and by the fingerprint.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use nix::sys::resource::{Resource, getrlimit};

use crate::podman::HostInfo;
use crate::rlimit::HostLimits;

/// The facts that decide how a container is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Podman runs without root.
    pub rootless: bool,
    /// Containers live in cgroup v2.
    pub cgroup_v2: bool,
    /// systemd manages the cgroups.
    pub systemd_cgroups: bool,
    /// Podman's major version; 0 when it did not say.
    pub podman_major: u32,
    /// Processors.
    pub cpus: u32,
    /// What limits a container may have.
    pub limits: HostLimits,
    /// Cores that tasks without cores of their own may use; None: all.
    pub shared_cpuset: Option<String>,
}

impl Host {
    /// From what a service says, with this process's limits. `cpuset_cgroup` is the cgroup that Nomad made for the
    /// task's cores; it is empty where Nomad manages none.
    #[must_use]
    pub fn read(info: &HostInfo, cpuset_cgroup: &str) -> Self {
        let major = |version: &String| version.split('.').next()?.parse().ok();
        let online = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            rootless: info.host.security.rootless.unwrap_or(false),
            cgroup_v2: info.host.cgroup_version.as_deref() == Some("v2"),
            systemd_cgroups: info.host.cgroup_manager.as_deref() == Some("systemd"),
            podman_major: info.version.version.as_ref().and_then(major).unwrap_or(0),
            cpus: info.host.cpus.unwrap_or_else(|| u32::try_from(online).unwrap_or(1)),
            limits: own_limits(),
            shared_cpuset: shared_cpuset(cpuset_cgroup),
        }
    }

    /// A rootful host with cgroup v2 and systemd that limits nothing.
    #[cfg(test)]
    pub(crate) fn for_tests() -> Self {
        let limits = HostLimits {
            may_raise: true,
            ..HostLimits::default()
        };
        Self {
            cgroup_v2: true,
            systemd_cgroups: true,
            podman_major: 5,
            cpus: 4,
            limits,
            ..Self::default()
        }
    }
}

/// This process's hard limits and whether it may raise them. A Podman service on the same host normally has the same:
/// both are started by the same init, as root.
fn own_limits() -> HostLimits {
    let resources = [
        ("as", Resource::RLIMIT_AS),
        ("core", Resource::RLIMIT_CORE),
        ("cpu", Resource::RLIMIT_CPU),
        ("data", Resource::RLIMIT_DATA),
        ("fsize", Resource::RLIMIT_FSIZE),
        ("locks", Resource::RLIMIT_LOCKS),
        ("memlock", Resource::RLIMIT_MEMLOCK),
        ("msgqueue", Resource::RLIMIT_MSGQUEUE),
        ("nice", Resource::RLIMIT_NICE),
        ("nofile", Resource::RLIMIT_NOFILE),
        ("nproc", Resource::RLIMIT_NPROC),
        ("rss", Resource::RLIMIT_RSS),
        ("rtprio", Resource::RLIMIT_RTPRIO),
        ("rttime", Resource::RLIMIT_RTTIME),
        ("sigpending", Resource::RLIMIT_SIGPENDING),
        ("stack", Resource::RLIMIT_STACK),
    ];
    let hard: BTreeMap<String, u64> = resources
        .into_iter()
        .filter_map(|(name, resource)| Some((name.to_owned(), getrlimit(resource).ok()?.1)))
        .collect();
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    HostLimits {
        hard,
        may_raise: has_sys_resource(&status),
    }
}

/// Whether `/proc/<pid>/status` shows CAP_SYS_RESOURCE as effective.
fn has_sys_resource(status: &str) -> bool {
    /// linux/capability.h: CAP_SYS_RESOURCE.
    const CAP_SYS_RESOURCE: u32 = 24;
    let mask = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let mask = mask
        .and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok())
        .unwrap_or(0);
    mask & (1 << CAP_SYS_RESOURCE) != 0
}

/// The cores of Nomad's shared slice, so that tasks without `cores` stay off the cores that others reserved.
fn shared_cpuset(cpuset_cgroup: &str) -> Option<String> {
    let scope = Path::new(cpuset_cgroup);
    if cpuset_cgroup.is_empty() || !scope.parent().is_some_and(|slice| slice.ends_with("share.slice")) {
        return None;
    }
    let candidates = [
        scope.to_path_buf(),
        scope.parent().map(PathBuf::from).unwrap_or_default(),
    ];
    let read = |folder: &PathBuf| std::fs::read_to_string(folder.join("cpuset.cpus.effective")).ok();
    let cores = candidates.iter().find_map(read)?.trim().to_owned();
    (!cores.is_empty()).then_some(cores)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::{HostFacts, SecurityFacts, VersionFacts};

    #[test]
    fn a_service_that_says_nothing_is_a_rootful_host_with_cgroup_v1() {
        let host = Host::read(&HostInfo::default(), "");
        assert!(!host.rootless && !host.cgroup_v2 && !host.systemd_cgroups);
        assert!(host.cpus >= 1 && host.shared_cpuset.is_none());
        assert!(host.limits.hard.contains_key("nofile"));
    }

    #[test]
    fn the_services_facts_are_taken_over() {
        let info = HostInfo {
            host: HostFacts {
                cgroup_version: Some("v2".into()),
                cgroup_manager: Some("systemd".into()),
                cpus: Some(64),
                security: SecurityFacts {
                    rootless: Some(true),
                    ..SecurityFacts::default()
                },
                ..HostFacts::default()
            },
            version: VersionFacts {
                version: Some("5.2.1".into()),
                ..VersionFacts::default()
            },
        };
        let host = Host::read(&info, "");
        assert!(host.rootless && host.cgroup_v2 && host.systemd_cgroups);
        assert_eq!((host.cpus, host.podman_major), (64, 5));
    }

    #[test]
    fn cap_sys_resource_is_bit_24() {
        assert!(has_sys_resource("CapEff:\t000001ffffffffff\n"));
        assert!(!has_sys_resource("CapEff:\t000001fffeffffff\n"));
        assert!(!has_sys_resource(""));
    }

    #[test]
    fn cores_come_from_the_shared_slice_only() {
        let root = tempfile::tempdir().unwrap();
        for slice in ["share.slice", "reserve.slice"] {
            let scope = root.path().join(slice).join("a.b.scope");
            std::fs::create_dir_all(&scope).unwrap();
            std::fs::write(scope.parent().unwrap().join("cpuset.cpus.effective"), "0-1\n").unwrap();
        }
        let scope = |slice: &str| root.path().join(slice).join("a.b.scope").to_string_lossy().into_owned();
        assert_eq!(shared_cpuset(&scope("share.slice")).as_deref(), Some("0-1"));
        assert_eq!(shared_cpuset(&scope("reserve.slice")), None);
        assert_eq!(shared_cpuset(""), None);
    }
}
