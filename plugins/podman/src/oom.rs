//! Whether the kernel killed something in a container for lack of memory.
//!
//! Podman's own word for it is not reliable: conmon may see the death before the event that explains it. So the kernel is
//! asked directly, from the container's cgroup while it still exists. An adapter: it reads /proc and /sys.
//! Absent: what it means for the task (task.rs).

use std::fs::File;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

/// A watch on one container's cgroup, to be made before its program runs: a program may be killed before anybody has looked at it.
#[derive(Debug)]
pub struct OomWatch {
    killed: watch::Receiver<bool>,
    _reader: AbortOnDropHandle<()>,
}

/// 250 ms: how far our reader, and the kernel's word that a cgroup is gone, may be behind the news of a task's end. Only the
/// end of a task that failed waits for it.
const BEHIND_MAX: Duration = Duration::from_millis(250);

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
    pub async fn seen(&self) -> bool {
        let mut killed = self.killed.clone();
        let told = tokio::time::timeout(BEHIND_MAX, killed.wait_for(|killed| *killed)).await;
        matches!(told, Ok(Ok(_)))
    }

    /// The kernel counts into the eventfd: one for each OOM, and one when the cgroup goes.
    fn v1(cgroup: PathBuf) -> std::io::Result<Self> {
        let control = File::open(cgroup.join("memory.oom_control"))?;
        let events = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK)?;
        let registration = format!("{} {}", events.as_raw_fd(), control.as_raw_fd());
        std::fs::write(cgroup.join("cgroup.event_control"), registration)?;
        let before = kills(&std::fs::read_to_string(cgroup.join("memory.oom_control"))?) > 0;
        // SAFETY: as below.
        let events = unsafe { AsyncFd::register_with_interest(OwnedFd::from(events), Interest::READABLE) };
        let events = events.map_err(|error| error.into_parts().1)?;
        Ok(Self::reading(before, |tell| count_events(events, cgroup, tell)))
    }

    fn v2(cgroup: PathBuf) -> std::io::Result<Self> {
        let file = cgroup.join("memory.events");
        let inotify = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        inotify.add_watch(&file, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_DELETE_SELF)?;
        // SAFETY: the AsyncFd owns the descriptor, so it stays registered no longer than it is open.
        let changes = unsafe { AsyncFd::register_with_interest(OwnedFd::from(inotify), Interest::READABLE) };
        let changes = changes.map_err(|error| error.into_parts().1)?;
        Ok(Self::reading(false, |tell| read_on_change(changes, file, tell)))
    }

    fn reading<F>(before: bool, read: impl FnOnce(watch::Sender<bool>) -> F) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (tell, killed) = watch::channel(before);
        Self {
            killed,
            _reader: AbortOnDropHandle::new(tokio::spawn(read(tell))),
        }
    }
}

/// Counts until a kill is certain. An event that came while the cgroup was there is an OOM; of those that are read when it is
/// gone, one tells of its going, which may come late.
async fn count_events(events: AsyncFd<OwnedFd>, cgroup: PathBuf, tell: watch::Sender<bool>) {
    let mut count = 0;
    loop {
        let Ok(mut ready) = events.readable().await else {
            return;
        };
        let mut counted = [0; 8];
        if let Ok(Ok(8)) = ready.try_io(|fd| Ok(nix::unistd::read(fd.get_ref(), &mut counted)?)) {
            count += u64::from_ne_bytes(counted);
            if count > 1 || cgroup.exists() {
                tell.send_replace(true);
                return;
            }
        }
    }
}

/// Reads the file now and at each change, until something was killed or the file is gone.
async fn read_on_change(changes: AsyncFd<OwnedFd>, file: PathBuf, tell: watch::Sender<bool>) {
    loop {
        let Ok(text) = std::fs::read_to_string(&file) else {
            return;
        };
        if kills(&text) > 0 {
            tell.send_replace(true);
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
    use std::os::fd::AsFd as _;

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

    async fn told(watch: &OomWatch) {
        let mut killed = watch.killed.clone();
        let told = tokio::time::timeout(Duration::from_secs(30), killed.wait_for(|killed| *killed));
        told.await.unwrap().unwrap();
    }

    /// Method: a directory plays the cgroup; inotify tells of its file as it tells of the kernel's.
    #[tokio::test]
    async fn a_kill_in_a_v2_cgroup_is_seen_when_the_file_changes() {
        let cgroup = tempfile::tempdir().unwrap();
        let events = cgroup.path().join("memory.events");
        std::fs::write(&events, "max 0\noom_kill 0\n").unwrap();
        let watch = OomWatch::v2(cgroup.path().to_owned()).unwrap();
        assert!(!watch.seen().await);
        std::fs::write(&events, "max 4\noom_kill 1\n").unwrap();
        told(&watch).await;
        std::fs::remove_file(&events).unwrap();
        assert!(watch.seen().await, "it stays seen when the cgroup is gone");
    }

    /// Method: a directory plays the cgroup, and we play the kernel, which counts into the eventfd.
    #[tokio::test]
    async fn the_end_of_a_v1_cgroup_is_told_from_a_kill_whenever_it_is_read() {
        for (while_there, when_gone, killed) in [(1, 0, true), (0, 1, false), (0, 2, true), (1, 1, true), (0, 0, false)]
        {
            let cgroup = tempfile::tempdir().unwrap();
            let events = EventFd::from_flags(EfdFlags::EFD_CLOEXEC | EfdFlags::EFD_NONBLOCK).unwrap();
            let counted = events.as_fd().try_clone_to_owned().unwrap();
            // SAFETY: the AsyncFd owns the descriptor.
            let counted = unsafe { AsyncFd::register_with_interest(counted, Interest::READABLE) }.unwrap();
            let path = cgroup.path().to_owned();
            let watch = OomWatch::reading(false, |tell| count_events(counted, path, tell));
            if while_there > 0 {
                events.write(while_there).unwrap();
                told(&watch).await;
            }
            cgroup.close().unwrap();
            for _ in 0..when_gone {
                events.write(1).unwrap();
            }
            if killed {
                told(&watch).await;
            }
            assert_eq!(watch.seen().await, killed, "{while_there} {when_gone}");
        }
    }
}
