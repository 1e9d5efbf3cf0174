//! Whether the kernel killed something in a container for lack of memory.
//!
//! Podman's own word for it is not reliable: conmon may see the death before the event that explains it. So the kernel is
//! asked directly, from the container's cgroup while it still exists. An adapter: it reads /proc and /sys.
//! Absent: what it means for the task (task.rs).

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio_util::task::AbortOnDropHandle;

/// A watch on one container's cgroup, to be made soon after its start.
#[derive(Debug)]
pub struct OomWatch(Kind);

#[derive(Debug)]
enum Kind {
    /// The kernel counts into the eventfd: one for each OOM, and one when the cgroup goes.
    V1 {
        events: EventFd,
        cgroup: PathBuf,
        before: bool,
    },
    /// A task reads `memory.events` whenever it changes.
    V2 {
        seen: Arc<AtomicBool>,
        _reader: AbortOnDropHandle<()>,
    },
}

/// Where cgroups are mounted, on every distribution.
const CGROUPS: &str = "/sys/fs/cgroup";

impl OomWatch {
    /// Watches the cgroup of a process; None if it has ended or its cgroup counts no memory. Must be called inside a runtime.
    #[must_use]
    pub fn of(pid: i32) -> Option<Self> {
        if pid <= 0 {
            return None;
        }
        let cgroups = std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok()?;
        let watch = match memory_cgroup(&cgroups)? {
            (Version::V1, path) => Self::v1(below(&format!("{CGROUPS}/memory"), path)),
            (Version::V2, path) => Self::v2(below(CGROUPS, path)),
        };
        watch
            .map_err(|error| tracing::warn!(pid, error = ?error, "cannot watch for lack of memory"))
            .ok()
    }

    /// Whether something was killed up to now. After the container's end too: what the kernel said then is kept.
    #[must_use]
    pub fn seen(&self) -> bool {
        match &self.0 {
            Kind::V1 { before: true, .. } => true,
            Kind::V1 { events, cgroup, .. } => {
                let count = events.read().unwrap_or(0);
                // The end of the cgroup is one event too.
                let ended = u64::from(!cgroup.exists());
                count > ended
            }
            Kind::V2 { seen, .. } => seen.load(Ordering::Acquire),
        }
    }

    fn v1(cgroup: PathBuf) -> std::io::Result<Self> {
        let control = File::open(cgroup.join("memory.oom_control"))?;
        let events = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let registration = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        std::fs::write(cgroup.join("cgroup.event_control"), registration)?;
        let before = kills(&std::fs::read_to_string(cgroup.join("memory.oom_control"))?) > 0;
        Ok(Self(Kind::V1 { events, cgroup, before }))
    }

    fn v2(cgroup: PathBuf) -> std::io::Result<Self> {
        let file = cgroup.join("memory.events");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(&file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF)?;
        // SAFETY: the AsyncFd owns the descriptor, so it stays registered no longer than it is open.
        let changes = unsafe { AsyncFd::register_with_interest(OwnedFd::from(inotify), Interest::READABLE) };
        let changes = changes.map_err(|error| error.into_parts().1)?;
        let seen = Arc::new(AtomicBool::new(false));
        let reader = tokio::spawn(read_on_change(changes, file, Arc::clone(&seen)));
        Ok(Self(Kind::V2 {
            seen,
            _reader: AbortOnDropHandle::new(reader),
        }))
    }
}

/// Reads the file now and at each change, until something was killed or the file is gone.
async fn read_on_change(changes: AsyncFd<OwnedFd>, file: PathBuf, seen: Arc<AtomicBool>) {
    loop {
        let Ok(text) = std::fs::read_to_string(&file) else {
            return;
        };
        if kills(&text) > 0 {
            seen.store(true, Ordering::Release);
            return;
        }
        let Ok(mut ready) = changes.readable().await else {
            return;
        };
        // What changed does not matter, only that something did.
        let mut buffer = [0; 4096];
        let _ = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut buffer)?));
    }
}

enum Version {
    V1,
    V2,
}

/// The cgroup that counts a process's memory, from `/proc/<pid>/cgroup`.
fn memory_cgroup(text: &str) -> Option<(Version, &str)> {
    let mut unified = None;
    for line in text.lines() {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.split(',').any(|controller| controller == "memory") {
            return Some((Version::V1, path));
        }
        if controllers.is_empty() {
            unified = Some((Version::V2, path));
        }
    }
    unified
}

fn below(root: &str, path: &str) -> PathBuf {
    Path::new(root).join(path.trim_start_matches('/'))
}

/// The counter `oom_kill` of `memory.oom_control` (v1) and `memory.events` (v2).
fn kills(text: &str) -> u64 {
    let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
    count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_memory_controller_decides_where_to_look() {
        let hybrid = "9:memory:/libpod/x\n8:cpu,cpuacct:/y\n0::/unified\n";
        assert!(matches!(memory_cgroup(hybrid), Some((Version::V1, "/libpod/x"))));
        assert!(matches!(
            memory_cgroup("0::/nomad.slice/a:b\n"),
            Some((Version::V2, "/nomad.slice/a:b"))
        ));
        assert!(memory_cgroup("1:cpu:/x\n").is_none());
    }

    #[test]
    fn only_kills_count() {
        assert_eq!(kills("low 0\nmax 7\noom 3\noom_kill 2\noom_group_kill 9\n"), 2);
        assert_eq!(kills("oom_kill_disable 1\nunder_oom 0\noom_kill 0\n"), 0);
    }

    /// Method: a directory plays the cgroup; inotify tells of its file as it tells of the kernel's.
    #[tokio::test]
    async fn a_kill_in_a_v2_cgroup_is_seen_when_the_file_changes() {
        let cgroup = tempfile::tempdir().unwrap();
        let events = cgroup.path().join("memory.events");
        std::fs::write(&events, "max 0\noom_kill 0\n").unwrap();
        let watch = OomWatch::v2(cgroup.path().to_owned()).unwrap();
        assert!(!watch.seen());
        std::fs::write(&events, "max 4\noom_kill 1\n").unwrap();
        let seen = async {
            while !watch.seen() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), seen).await.unwrap();
        std::fs::remove_file(&events).unwrap();
        assert!(watch.seen(), "it stays seen when the cgroup is gone");
    }
}
