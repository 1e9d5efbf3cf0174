//! What the kernel counts for a container, read from its cgroup: version 2, or the hierarchies of version 1. An adapter:
//! it reads files of /sys/fs/cgroup and knows their formats; nothing here asks Podman.
//!
//! Every file may be missing (a controller that is off, an older kernel): then its numbers are `None`, not zero.

use std::fs::File;
use std::io::{self, Read as _};
use std::path::{Path, PathBuf};

/// Where cgroups are mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// 4 KiB: the longest of the files, memory.stat, fits, so that each is read in one call and a second that says so.
const FILE_BYTES: usize = 4096;

/// A container's directories.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Cgroup {
    /// One directory.
    V2(PathBuf),
    /// A directory for each controller.
    V1 {
        /// Throttling.
        cpu: PathBuf,
        /// Time used.
        cpuacct: PathBuf,
        /// Memory.
        memory: PathBuf,
    },
}

/// What the files say at one moment.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Reading {
    /// Nanoseconds of processor time.
    pub cpu_ns: u64,
    /// Nanoseconds of it in programs.
    pub cpu_user_ns: Option<u64>,
    /// Nanoseconds of it in the kernel.
    pub cpu_system_ns: Option<u64>,
    /// Periods in which the container was held back.
    pub throttled_periods: Option<u64>,
    /// Nanoseconds for which it was held back.
    pub throttled_ns: Option<u64>,
    /// Memory, all in bytes.
    pub memory: MemoryReading,
}

/// Memory at one moment, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct MemoryReading {
    /// Anonymous memory.
    pub rss: Option<u64>,
    /// Page cache.
    pub cache: Option<u64>,
    /// In total.
    pub usage: Option<u64>,
    /// The most it ever was in total.
    pub max_usage: Option<u64>,
    /// The kernel's part.
    pub kernel: Option<u64>,
    /// The most the kernel's part ever was.
    pub kernel_max: Option<u64>,
    /// Swapped out.
    pub swap: Option<u64>,
}

impl Cgroup {
    /// The directories of a cgroup path as Podman tells it (`State.CgroupPath`), below `root`; `None` if they are not
    /// there: the container has ended.
    #[must_use]
    pub fn find(root: &Path, cgroup_path: &str) -> Option<Self> {
        let below = cgroup_path.trim_matches('/');
        if below.is_empty() {
            return None;
        }
        if root.join("cgroup.controllers").exists() {
            // crun puts processes into a cgroup of its own below the one that Podman made and that has the limits.
            let below = below.strip_suffix("/container").unwrap_or(below);
            return Some(root.join(below)).filter(|dir| dir.is_dir()).map(Self::V2);
        }
        // Systemd mounts both controllers as one; distributions without it, apart.
        let place = |names: [&str; 2]| {
            names
                .into_iter()
                .map(|name| root.join(name).join(below))
                .find(|dir| dir.is_dir())
        };
        Some(Self::V1 {
            cpu: place(["cpu", "cpu,cpuacct"])?,
            cpuacct: place(["cpuacct", "cpu,cpuacct"])?,
            memory: place(["memory", "memory"])?,
        })
    }

    /// Reads the files.
    ///
    /// # Errors
    /// If even the processor time cannot be read: the container has ended.
    pub fn read(&self) -> io::Result<Reading> {
        match self {
            Self::V2(dir) => read_v2(dir),
            Self::V1 { cpu, cpuacct, memory } => read_v1(cpu, cpuacct, memory),
        }
    }
}

fn read_v2(dir: &Path) -> io::Result<Reading> {
    let cpu = Table::read(&dir.join("cpu.stat"))?;
    let micros = |key| cpu.get(key).map(|micros: u64| micros.saturating_mul(1000));
    let memory = Table::read(&dir.join("memory.stat")).unwrap_or_default();
    let parts = || {
        ["kernel_stack", "pagetables", "percpu", "sock", "slab"]
            .into_iter()
            .filter_map(|key| memory.get(key))
    };
    Ok(Reading {
        cpu_ns: micros("usage_usec").ok_or_else(|| io::Error::other("cpu.stat has no usage_usec"))?,
        cpu_user_ns: micros("user_usec"),
        cpu_system_ns: micros("system_usec"),
        throttled_periods: cpu.get("nr_throttled"),
        throttled_ns: micros("throttled_usec"),
        memory: MemoryReading {
            rss: memory.get("anon"),
            cache: memory.get("file"),
            usage: number(&dir.join("memory.current")),
            // Since Linux 5.19.
            max_usage: number(&dir.join("memory.peak")),
            // Since Linux 5.18 one number, before that the sum of its parts.
            kernel: memory
                .get("kernel")
                .or_else(|| memory.get("slab").map(|_| parts().sum())),
            kernel_max: None,
            swap: number(&dir.join("memory.swap.current")),
        },
    })
}

fn read_v1(cpu: &Path, cpuacct: &Path, memory: &Path) -> io::Result<Reading> {
    let throttling = Table::read(&cpu.join("cpu.stat")).unwrap_or_default();
    let stat = Table::read(&memory.join("memory.stat")).unwrap_or_default();
    let usage = cpuacct.join("cpuacct.usage");
    let parsed = text_of(&usage)?.trim().parse();
    Ok(Reading {
        cpu_ns: parsed.map_err(io::Error::other)?,
        cpu_user_ns: number(&cpuacct.join("cpuacct.usage_user")),
        cpu_system_ns: number(&cpuacct.join("cpuacct.usage_sys")),
        throttled_periods: throttling.get("nr_throttled"),
        throttled_ns: throttling.get("throttled_time"),
        memory: MemoryReading {
            rss: stat.get("total_rss"),
            cache: stat.get("total_cache"),
            usage: number(&memory.join("memory.usage_in_bytes")),
            max_usage: number(&memory.join("memory.max_usage_in_bytes")),
            kernel: number(&memory.join("memory.kmem.usage_in_bytes")),
            kernel_max: number(&memory.join("memory.kmem.max_usage_in_bytes")),
            swap: stat.get("total_swap"),
        },
    })
}

/// A file of lines with a key and a number.
#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn read(path: &Path) -> io::Result<Self> {
        Ok(Self { text: text_of(path)? })
    }

    fn get(&self, key: &str) -> Option<u64> {
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
        self.text.lines().find_map(value)
    }
}

/// What a file says. The standard library asks for size and position first, which such files do not have: a third of the calls
/// that a sample costs.
fn text_of(path: &Path) -> io::Result<String> {
    let mut file = File::open(path)?;
    let mut bytes = Vec::new();
    loop {
        let end = bytes.len();
        bytes.resize(end + FILE_BYTES, 0);
        let length = file.read(&mut bytes[end..])?;
        bytes.truncate(end + length);
        if length == 0 {
            return String::from_utf8(bytes).map_err(io::Error::other);
        }
    }
}

fn number(path: &Path) -> Option<u64> {
    text_of(path).ok()?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(dir: &Path, name: &str, text: &str) {
        std::fs::create_dir_all(dir).unwrap();
        std::fs::write(dir.join(name), text).unwrap();
    }

    #[test]
    fn version_2_is_read_from_the_scope_above_cruns_own_cgroup() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "cgroup.controllers", "cpu memory");
        let scope = root.path().join("machine.slice/libpod-1.scope");
        write(&scope.join("container"), "cpu.stat", "usage_usec 1\n");
        write(
            &scope,
            "cpu.stat",
            "usage_usec 5000\nuser_usec 3000\nsystem_usec 2000\nnr_periods 9\nnr_throttled 4\nthrottled_usec 7\n",
        );
        write(&scope, "memory.stat", "anon 100\nfile 200\nkernel 30\nfile_mapped 5\n");
        write(&scope, "memory.current", "350\n");
        write(&scope, "memory.peak", "400\n");
        let cgroup = Cgroup::find(root.path(), "/machine.slice/libpod-1.scope/container").unwrap();
        assert_eq!(cgroup, Cgroup::V2(scope));
        let memory = MemoryReading {
            rss: Some(100),
            cache: Some(200),
            usage: Some(350),
            max_usage: Some(400),
            kernel: Some(30),
            kernel_max: None,
            swap: None,
        };
        let reading = Reading {
            cpu_ns: 5_000_000,
            cpu_user_ns: Some(3_000_000),
            cpu_system_ns: Some(2_000_000),
            throttled_periods: Some(4),
            throttled_ns: Some(7000),
            memory,
        };
        assert_eq!(cgroup.read().unwrap(), reading);
    }

    #[test]
    fn before_linux_5_18_the_kernels_part_is_a_sum() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "cpu.stat", "usage_usec 5\n");
        write(
            root.path(),
            "memory.stat",
            "anon 1\nkernel_stack 10\nslab 20\nslab_reclaimable 15\nsock 3\n",
        );
        assert_eq!(read_v2(root.path()).unwrap().memory.kernel, Some(33));
    }

    #[test]
    fn version_1_is_read_with_controllers_together_or_apart() {
        for both in ["cpu,cpuacct", ""] {
            let root = tempfile::tempdir().unwrap();
            let place = |name: &str| root.path().join(if both.is_empty() { name } else { both }).join("p/c");
            write(
                &place("cpu"),
                "cpu.stat",
                "nr_periods 1\nnr_throttled 2\nthrottled_time 3\n",
            );
            write(&place("cpuacct"), "cpuacct.usage", "900\n");
            write(&place("cpuacct"), "cpuacct.usage_user", "600\n");
            let memory = root.path().join("memory/p/c");
            write(
                &memory,
                "memory.stat",
                "cache 1\nrss 1\ntotal_cache 20\ntotal_rss 30\ntotal_swap 0\n",
            );
            write(&memory, "memory.usage_in_bytes", "55\n");
            let reading = Cgroup::find(root.path(), "/p/c").unwrap().read().unwrap();
            assert_eq!(
                (reading.cpu_ns, reading.cpu_user_ns, reading.cpu_system_ns),
                (900, Some(600), None)
            );
            assert_eq!((reading.throttled_periods, reading.throttled_ns), (Some(2), Some(3)));
            let memory = reading.memory;
            assert_eq!(
                (memory.rss, memory.cache, memory.usage, memory.swap),
                (Some(30), Some(20), Some(55), Some(0))
            );
        }
    }

    #[test]
    fn a_container_that_has_ended_has_no_cgroup() {
        let root = tempfile::tempdir().unwrap();
        assert_eq!(Cgroup::find(root.path(), "/p/c"), None);
        assert_eq!(Cgroup::find(root.path(), ""), None);
        assert!(Cgroup::V2(root.path().join("gone")).read().is_err());
    }
}
