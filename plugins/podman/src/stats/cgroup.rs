//! What the kernel counts for a container, read from its cgroup: version 2, or the hierarchies of version 1. An adapter:
//! it reads files of /sys/fs/cgroup and knows their formats; nothing here asks Podman.
//!
//! Every file may be missing (a controller that is off, an older kernel): then its numbers are `None`, not zero.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

/// Where cgroups are mounted.
pub const CGROUP_ROOT: &str = "/sys/fs/cgroup";

/// 8 KiB: the longest of the files, memory.stat, fits twice. A longer one is read again with a buffer twice as long.
const FILE_BYTES: usize = 8 * 1024;

/// 1 MiB, far beyond what any kernel writes. A longer file is not one of these, and cannot be read.
const FILE_BYTES_MAX: usize = 1024 * 1024;

/// A container's files, open for as long as it is measured: to find and open them costs three times what reading them does.
#[derive(Debug)]
pub enum Cgroup {
    /// One directory.
    V2(V2),
    /// A directory for each controller.
    V1(V1),
}

/// Files of cgroup version 2.
#[derive(Debug)]
pub struct V2 {
    cpu: File,
    memory: Option<File>,
    memory_current: Option<File>,
    memory_peak: Option<File>,
    swap_current: Option<File>,
}

/// Files of cgroup version 1.
#[derive(Debug)]
pub struct V1 {
    throttling: Option<File>,
    cpu: File,
    cpu_user: Option<File>,
    cpu_system: Option<File>,
    memory: Option<File>,
    memory_usage: Option<File>,
    memory_max_usage: Option<File>,
    kernel: Option<File>,
    kernel_max: Option<File>,
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
    /// Opens the files of a cgroup path as Podman tells it (`State.CgroupPath`), below `root`; `None` if it is not there:
    /// the container has ended.
    #[must_use]
    pub fn open(root: &Path, cgroup_path: &str) -> Option<Self> {
        let below = cgroup_path.trim_matches('/');
        if below.is_empty() {
            return None;
        }
        if root.join("cgroup.controllers").exists() {
            // crun puts processes into a cgroup of its own below the one that Podman made and that has the limits.
            let below = below.strip_suffix("/container").unwrap_or(below);
            return V2::open(&root.join(below)).map(Self::V2);
        }
        // Systemd mounts both controllers as one; distributions without it, apart.
        let place = |names: [&str; 2]| {
            names
                .into_iter()
                .map(|name| root.join(name).join(below))
                .find(|dir| dir.is_dir())
        };
        V1::open(
            &place(["cpu", "cpu,cpuacct"])?,
            &place(["cpuacct", "cpu,cpuacct"])?,
            &place(["memory", "memory"])?,
        )
        .map(Self::V1)
    }

    /// Reads the files. The kernel may take milliseconds where it has many processors to ask.
    ///
    /// # Errors
    /// If even the processor time cannot be read: the container has ended (the kernel then says ENODEV of an open file).
    pub fn read(&self) -> io::Result<Reading> {
        match self {
            Self::V2(files) => files.read(),
            Self::V1(files) => files.read(),
        }
    }
}

impl V2 {
    fn open(dir: &Path) -> Option<Self> {
        let file = |name: &str| File::open(dir.join(name)).ok();
        Some(Self {
            cpu: file("cpu.stat")?,
            memory: file("memory.stat"),
            memory_current: file("memory.current"),
            // Since Linux 5.19.
            memory_peak: file("memory.peak"),
            swap_current: file("memory.swap.current"),
        })
    }

    fn read(&self) -> io::Result<Reading> {
        let cpu = Table::read(&self.cpu)?;
        let micros = |key| cpu.get(key).map(|micros: u64| micros.saturating_mul(1000));
        let memory = table(self.memory.as_ref());
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
                usage: number(self.memory_current.as_ref()),
                max_usage: number(self.memory_peak.as_ref()),
                // Since Linux 5.18 one number, before that the sum of its parts.
                kernel: memory
                    .get("kernel")
                    .or_else(|| memory.get("slab").map(|_| parts().sum())),
                kernel_max: None,
                swap: number(self.swap_current.as_ref()),
            },
        })
    }
}

impl V1 {
    fn open(cpu: &Path, cpuacct: &Path, memory: &Path) -> Option<Self> {
        let file = |dir: &Path, name: &str| File::open(dir.join(name)).ok();
        Some(Self {
            throttling: file(cpu, "cpu.stat"),
            cpu: file(cpuacct, "cpuacct.usage")?,
            cpu_user: file(cpuacct, "cpuacct.usage_user"),
            cpu_system: file(cpuacct, "cpuacct.usage_sys"),
            memory: file(memory, "memory.stat"),
            memory_usage: file(memory, "memory.usage_in_bytes"),
            memory_max_usage: file(memory, "memory.max_usage_in_bytes"),
            kernel: file(memory, "memory.kmem.usage_in_bytes"),
            kernel_max: file(memory, "memory.kmem.max_usage_in_bytes"),
        })
    }

    fn read(&self) -> io::Result<Reading> {
        let parsed = text_of(&self.cpu)?.trim().parse();
        let throttling = table(self.throttling.as_ref());
        let memory = table(self.memory.as_ref());
        Ok(Reading {
            cpu_ns: parsed.map_err(io::Error::other)?,
            cpu_user_ns: number(self.cpu_user.as_ref()),
            cpu_system_ns: number(self.cpu_system.as_ref()),
            throttled_periods: throttling.get("nr_throttled"),
            throttled_ns: throttling.get("throttled_time"),
            memory: MemoryReading {
                rss: memory.get("total_rss"),
                cache: memory.get("total_cache"),
                usage: number(self.memory_usage.as_ref()),
                max_usage: number(self.memory_max_usage.as_ref()),
                kernel: number(self.kernel.as_ref()),
                kernel_max: number(self.kernel_max.as_ref()),
                swap: memory.get("total_swap"),
            },
        })
    }
}

/// A file of lines with a key and a number.
#[derive(Default)]
struct Table {
    text: String,
}

impl Table {
    fn read(file: &File) -> io::Result<Self> {
        Ok(Self { text: text_of(file)? })
    }

    fn get(&self, key: &str) -> Option<u64> {
        let value = |line: &str| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok();
        self.text.lines().find_map(value)
    }
}

/// What a file says now. The kernel writes it anew for a read from its start, and whole if it fits: so one call, and
/// none that asks whether that was all.
fn text_of(file: &File) -> io::Result<String> {
    let mut bytes = vec![0; FILE_BYTES];
    loop {
        let length = file.read_at(&mut bytes, 0)?;
        if length < bytes.len() {
            bytes.truncate(length);
            return String::from_utf8(bytes).map_err(io::Error::other);
        }
        if length >= FILE_BYTES_MAX {
            return Err(io::Error::other("longer than any file of a cgroup"));
        }
        bytes.resize(length * 2, 0);
    }
}

fn table(file: Option<&File>) -> Table {
    file.and_then(|file| Table::read(file).ok()).unwrap_or_default()
}

fn number(file: Option<&File>) -> Option<u64> {
    text_of(file?).ok()?.trim().parse().ok()
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
        let cgroup = Cgroup::open(root.path(), "/machine.slice/libpod-1.scope/container").unwrap();
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
        assert_eq!(V2::open(root.path()).unwrap().read().unwrap().memory.kernel, Some(33));
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
            let reading = Cgroup::open(root.path(), "/p/c").unwrap().read().unwrap();
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
        assert!(Cgroup::open(root.path(), "/p/c").is_none());
        assert!(Cgroup::open(root.path(), "").is_none());
        write(root.path(), "cgroup.controllers", "cpu memory");
        assert!(Cgroup::open(root.path(), "/p/c").is_none());
    }

    #[test]
    fn each_reading_is_of_its_own_moment_however_long_the_files_are() {
        let root = tempfile::tempdir().unwrap();
        write(root.path(), "cgroup.controllers", "cpu memory");
        let dir = root.path().join("c");
        write(&dir, "cpu.stat", "usage_usec 5\n");
        let filler = "filler 0\n".repeat(FILE_BYTES);
        write(&dir, "memory.stat", &format!("{filler}anon 7\n"));
        let cgroup = Cgroup::open(root.path(), "/c").unwrap();
        assert_eq!(cgroup.read().unwrap().memory.rss, Some(7));
        write(&dir, "cpu.stat", "usage_usec 6\n");
        write(&dir, "memory.stat", "anon 8\n");
        let reading = cgroup.read().unwrap();
        assert_eq!((reading.cpu_ns, reading.memory.rss), (6000, Some(8)));
        write(&dir, "memory.stat", &"x".repeat(FILE_BYTES_MAX));
        assert_eq!(cgroup.read().unwrap().memory.rss, None);
    }
}
