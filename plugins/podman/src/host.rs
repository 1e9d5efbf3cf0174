//! What the driver knows of the host that a Podman service runs containers on: from the service itself, and from
//! the limits of its process. An adapter: it reads /proc and /sys. Called before a task starts and by the fingerprint.

use std::collections::BTreeMap;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};

use nix::sys::socket::{getsockopt, sockopt::PeerCredentials};

use crate::podman::{HostInfo, IdRange};
use crate::rlimit::HostLimits;

/// A user and group of the host, as which Podman and conmon run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogWriter {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
}

/// The facts that decide how a container is made.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Host {
    /// Podman runs without root.
    pub rootless: bool,
    /// Whose process writes the output of a rootless service's containers.
    pub writer: Option<LogWriter>,
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
    /// From what a service says, and from the process behind its socket. `cpuset_cgroup` is the cgroup that Nomad made for
    /// the task's cores; it is empty where Nomad manages none.
    #[must_use]
    pub fn read(info: &HostInfo, socket: &Path, cpuset_cgroup: &str) -> Self {
        let major = |version: &String| version.split('.').next()?.parse().ok();
        let online = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let rootless = info.host.security.rootless.unwrap_or(false);
        Self {
            rootless,
            writer: writer(info).filter(|_| rootless),
            cgroup_v2: info.host.cgroup_version.as_deref() == Some("v2"),
            systemd_cgroups: info.host.cgroup_manager.as_deref() == Some("systemd"),
            podman_major: info.version.version.as_ref().and_then(major).unwrap_or(0),
            cpus: info.host.cpus.unwrap_or_else(|| u32::try_from(online).unwrap_or(1)),
            limits: service_limits(socket),
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

/// Root inside a rootless service's containers is the service's own user.
fn writer(info: &HostInfo) -> Option<LogWriter> {
    let root = |ranges: &[IdRange]| Some(ranges.iter().find(|range| range.container_id == 0)?.host_id);
    let ids = &info.host.id_mappings;
    Some(LogWriter {
        uid: root(&ids.uidmap)?,
        gid: root(&ids.gidmap)?,
    })
}

/// The limits of the process behind the socket, from which containers inherit: it may have fewer than we, and Podman
/// lowers its own. With socket activation the process is systemd, whose limits are those of its services' parent.
fn service_limits(socket: &Path) -> HostLimits {
    let pid = UnixStream::connect(socket)
        .ok()
        .and_then(|stream| getsockopt(&stream, PeerCredentials).ok());
    let place = pid.map_or_else(
        || "/proc/self".to_owned(),
        |credentials| format!("/proc/{}", credentials.pid()),
    );
    let read = |file: &str| std::fs::read_to_string(format!("{place}/{file}")).unwrap_or_default();
    let mut hard = parse_limits(&read("limits"));
    // Podman lowers its own limit to this once it runs, so a socket-activated one will as well.
    let pid_max = std::fs::read_to_string("/proc/sys/kernel/pid_max")
        .ok()
        .and_then(|text| text.trim().parse().ok());
    if let (Some(processes), Some(pid_max)) = (hard.get_mut("nproc"), pid_max) {
        *processes = (*processes).min(pid_max);
    }
    HostLimits {
        hard,
        may_raise: has_sys_resource(&read("status")),
    }
}

/// The hard limits in `/proc/<pid>/limits`: a name in words, then soft, hard and unit. "unlimited" ones are left out.
fn parse_limits(text: &str) -> BTreeMap<String, u64> {
    const WORDS: [(&str, &str); 16] = [
        ("Max address space", "as"),
        ("Max core file size", "core"),
        ("Max cpu time", "cpu"),
        ("Max data size", "data"),
        ("Max file size", "fsize"),
        ("Max file locks", "locks"),
        ("Max locked memory", "memlock"),
        ("Max msgqueue size", "msgqueue"),
        ("Max nice priority", "nice"),
        ("Max open files", "nofile"),
        ("Max processes", "nproc"),
        ("Max resident set", "rss"),
        ("Max realtime priority", "rtprio"),
        ("Max realtime timeout", "rttime"),
        ("Max pending signals", "sigpending"),
        ("Max stack size", "stack"),
    ];
    let hard = |line: &str| {
        let (words, name) = WORDS.iter().find(|(words, _)| line.starts_with(&format!("{words} ")))?;
        let value = line[words.len()..].split_whitespace().nth(1)?;
        Some(((*name).to_owned(), value.parse().ok()?))
    };
    text.lines().filter_map(hard).collect()
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
    use crate::podman::{HostFacts, HostIds, SecurityFacts, VersionFacts};

    #[test]
    fn a_service_that_says_nothing_is_a_rootful_host_with_cgroup_v1() {
        let host = Host::read(&HostInfo::default(), Path::new("/nowhere"), "");
        assert!(!host.rootless && !host.cgroup_v2 && !host.systemd_cgroups);
        assert!(host.cpus >= 1 && host.shared_cpuset.is_none());
        assert!(host.limits.hard.contains_key("nofile"));
    }

    #[test]
    fn the_services_facts_are_taken_over() {
        let ranges = |root| {
            let range = |container_id, host_id, size| IdRange {
                container_id,
                host_id,
                size,
            };
            vec![range(1, 200_000, 65_536), range(0, root, 1)]
        };
        let info = HostInfo {
            host: HostFacts {
                cgroup_version: Some("v2".into()),
                cgroup_manager: Some("systemd".into()),
                cpus: Some(64),
                id_mappings: HostIds {
                    uidmap: ranges(1_000),
                    gidmap: ranges(100),
                },
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
            ..HostInfo::default()
        };
        let host = Host::read(&info, Path::new("/nowhere"), "");
        assert!(host.rootless && host.cgroup_v2 && host.systemd_cgroups);
        assert_eq!(host.writer, Some(LogWriter { uid: 1_000, gid: 100 }));
        assert_eq!((host.cpus, host.podman_major), (64, 5));
    }

    #[test]
    fn limits_are_read_as_proc_writes_them() {
        let text = "Limit                     Soft Limit           Hard Limit           Units     \n\
                    Max cpu time              unlimited            unlimited            seconds   \n\
                    Max processes             4096                 8192                 processes \n\
                    Max open files            1024                 20000                files     \n\
                    Max nice priority         0                    0                    \n";
        let limits = parse_limits(text);
        assert_eq!(
            limits,
            [("nice", 0), ("nofile", 20000), ("nproc", 8192)]
                .map(|(n, v)| (n.to_owned(), v))
                .into()
        );
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
