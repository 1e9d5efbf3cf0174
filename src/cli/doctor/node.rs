//! What the machine offers: rights, FUSE, mount propagation, Podman, limits.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use csi_driver::mountinfo::{self, MountPoint};
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::Finding;

/// 3 s for a Podman service that is started by its socket.
const PODMAN_MAX: Duration = Duration::from_secs(3);

/// 4,096 descriptors: 128 connections, the disk cache and some hundred mounts.
const DESCRIPTORS_MIN: u64 = 4_096;

/// 1 GiB: below it the cache on disk keeps less than one volume's working set.
const CACHE_BYTES_MIN: u64 = 1 << 30;

/// Mounting by mount(2) needs the administrator's right.
pub fn rights() -> Finding {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let effective = status.lines().find_map(|line| line.strip_prefix("CapEff:"));
    let bits = effective.and_then(|hex| u64::from_str_radix(hex.trim(), 16).ok());
    // CAP_SYS_ADMIN is capability 21.
    if bits.unwrap_or(0) & (1 << 21) != 0 {
        return Finding::ok("rights", "CAP_SYS_ADMIN is there");
    }
    Finding::failure(
        "rights",
        "CAP_SYS_ADMIN is missing",
        "run the plugin as root, by raw_exec or with the capability sys_admin",
    )
}

/// The kernel's half of every mount.
pub fn fuse() -> Finding {
    let opened = fs::File::options().read(true).write(true).open("/dev/fuse");
    match opened {
        Ok(_) => {
            let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
            Finding::ok("fuse", format!("/dev/fuse opens, kernel {}", release.trim()))
        }
        Err(error) => Finding::failure(
            "fuse",
            format!("/dev/fuse cannot be opened: {error}"),
            "modprobe fuse; in a container give it the device /dev/fuse",
        ),
    }
}

/// The faster way of requests, which volumes may ask for.
pub fn io_uring() -> Finding {
    use volume_mount::session::uring::{Unavailable, is_available};
    match is_available() {
        Ok(()) => Finding::ok("io_uring", "volumes with transport = \"io_uring\" are served so"),
        Err(Unavailable::Off { .. }) => Finding::ok(
            "io_uring",
            "off in the kernel until a volume with transport = \"io_uring\" is mounted, which switches it on",
        ),
        Err(why) => Finding::warning(
            "io_uring",
            why.to_string(),
            "only volumes with transport = \"io_uring\" miss it: their mounts are classic here",
        ),
    }
}

/// A time after which the kernel ends a connection whose server waits for the store.
pub fn request_timeout() -> Finding {
    for name in ["default_request_timeout", "max_request_timeout"] {
        let path = format!("/proc/sys/fs/fuse/{name}");
        let seconds = fs::read_to_string(&path)
            .ok()
            .and_then(|text| text.trim().parse::<u64>().ok());
        if let Some(seconds @ 1..) = seconds {
            return Finding::warning(
                "fuse timeout",
                format!("fs.fuse.{name} is {seconds} s: a store that is away for longer ends all mounts"),
                format!("sysctl fs.fuse.{name}=0"),
            );
        }
    }
    Finding::ok("fuse timeout", "the kernel gives requests the time they need")
}

/// Whether a mount made at the staging root reaches containers.
pub fn propagation(root: &Path) -> Finding {
    let table = mountinfo::of_this_process().unwrap_or_default();
    judge_propagation(&table, root)
}

fn judge_propagation(table: &[MountPoint], root: &Path) -> Finding {
    let Some(mount) = mountinfo::holding(table, root) else {
        return Finding::failure(
            "propagation",
            format!("no mount holds {}", root.display()),
            "name the folder that Nomad mounts volumes below: --staging-root",
        );
    };
    let point = mount.path.display();
    match mount.shared {
        true => Finding::ok("propagation", format!("{point} is a shared mount")),
        false => Finding::warning(
            "propagation",
            format!("{point} is a private mount: mounts below it do not reach containers that run already"),
            format!("mount --make-rshared {point}, at boot, before Nomad and Podman"),
        ),
    }
}

/// Whether the service that runs the tasks answers.
pub fn podman(socket: &Path) -> Finding {
    let name = socket.display();
    match ping(socket) {
        Ok(version) => Finding::ok("podman", format!("{name} answers ({version})")),
        Err(error) => Finding::warning(
            "podman",
            format!("{name} does not answer: {error}"),
            "systemctl enable --now podman.socket, or --podman-socket for another place; only Podman tasks need it",
        ),
    }
}

fn ping(socket: &Path) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(PODMAN_MAX))?;
    stream.set_write_timeout(Some(PODMAN_MAX))?;
    stream.write_all(b"GET /_ping HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n")?;
    let mut answer = String::new();
    stream.take(64 * 1024).read_to_string(&mut answer)?;
    if !answer.starts_with("HTTP/1.1 200") {
        let first = answer.lines().next().unwrap_or("nothing").to_owned();
        return Err(std::io::Error::other(format!("it said {first:?}")));
    }
    let version = answer
        .lines()
        .find_map(|line| line.strip_prefix("Libpod-Api-Version: "));
    Ok(version.map_or_else(|| "of unknown version".to_owned(), |version| format!("API {version}")))
}

/// How many descriptors an engine may have.
pub fn descriptors() -> Finding {
    match getrlimit(Resource::RLIMIT_NOFILE) {
        Ok((_, most)) if most >= DESCRIPTORS_MIN => Finding::ok("descriptors", format!("{most} may be open")),
        Ok((_, most)) => Finding::warning(
            "descriptors",
            format!("only {most} may be open"),
            format!("give the Nomad agent LimitNOFILE={DESCRIPTORS_MIN} or more"),
        ),
        Err(error) => Finding::warning("descriptors", format!("unknown: {error}"), "look at ulimit -n"),
    }
}

/// Whether tasks can be limited.
pub fn control_groups() -> Finding {
    if let Ok(controllers) = fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        let missing: Vec<_> = ["cpu", "memory", "pids"]
            .into_iter()
            .filter(|name| !controllers.split_whitespace().any(|there| there == *name))
            .collect();
        if missing.is_empty() {
            return Finding::ok("cgroups", "version 2 with cpu, memory and pids");
        }
        return Finding::warning(
            "cgroups",
            format!("version 2 without {}", missing.join(", ")),
            "boot without cgroup_disable=, and delegate the controllers to Nomad",
        );
    }
    if Path::new("/sys/fs/cgroup/memory").is_dir() {
        return Finding::ok("cgroups", "version 1");
    }
    Finding::warning(
        "cgroups",
        "none is mounted",
        "mount -t cgroup2 none /sys/fs/cgroup; without it tasks have no limits",
    )
}

/// Room for the cache on disk.
pub fn cache_space(dir: &Path) -> Finding {
    // The folder is made by the first mount; until then its nearest parent tells.
    let there = dir.ancestors().find(|dir| dir.is_dir()).unwrap_or(Path::new("/"));
    match statvfs(there) {
        Ok(space) => {
            let free = space.blocks_available() * space.fragment_size();
            let found = format!("{} MiB are free at {}", free >> 20, there.display());
            if free >= CACHE_BYTES_MIN {
                Finding::ok("cache", found)
            } else {
                Finding::warning(
                    "cache",
                    found,
                    "put the cache on a larger disk, or lower cache_disk_bytes",
                )
            }
        }
        Err(error) => Finding::warning(
            "cache",
            format!("{}: {error}", there.display()),
            "name a folder on a local disk: --cache-dir",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::doctor::Outcome;

    #[test]
    fn a_private_mount_is_told_with_its_place() {
        let table = mountinfo::parse(
            b"1 0 8:1 / / rw - ext4 /dev/sda rw\n\
              2 1 0:5 / /opt rw shared:3 - tmpfs t rw\n\
              3 2 0:6 / /opt/nomad rw - tmpfs t rw\n",
        )
        .unwrap();
        for (path, point, outcome) in [
            ("/etc", "/ is", Outcome::Warning),
            ("/opt/x", "/opt is", Outcome::Ok),
            ("/opt/nomad/client/csi", "/opt/nomad is", Outcome::Warning),
        ] {
            let finding = judge_propagation(&table, Path::new(path));
            assert_eq!(finding.outcome, outcome, "{path}");
            assert!(finding.found.starts_with(point), "{finding:?}");
        }
        assert_eq!(judge_propagation(&[], Path::new("/")).outcome, Outcome::Failure);
    }

    #[test]
    fn what_is_missing_is_told_with_what_to_do() {
        let podman = podman(Path::new("/nonexistent.sock"));
        assert_eq!(podman.outcome, Outcome::Warning);
        assert!(podman.found.contains("/nonexistent.sock") && podman.advice.contains("podman.socket"));
        let cache = cache_space(Path::new("/nonexistent/cache"));
        assert!(cache.found.contains(" at /"), "{cache:?}");
    }
}
