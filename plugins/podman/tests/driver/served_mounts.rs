//! Mounts that something serves, such as CSI volumes: a program finds the mount or is not started.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use proto::nomad::driver::Mount;

use crate::agent::{Agent, Job};
use crate::fixture::PodmanService;

/// A folder that is a mount of its own, whose later mounts reach a service's namespace or do not.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    fn new(propagation: MsFlags) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("served-")
            .tempdir_in("/var/tmp")
            .unwrap();
        let place = Self { dir };
        bind(place.dir.path());
        mount(None::<&str>, place.dir.path(), None::<&str>, propagation, None::<&str>).unwrap();
        place
    }

    /// Mounts a tmpfs with one file below it, as an engine mounts a volume long after Podman was started.
    fn volume(&self) -> PathBuf {
        let volume = self.dir.path().join("volume");
        std::fs::create_dir(&volume).unwrap();
        mount(Some("none"), &volume, Some("tmpfs"), MsFlags::empty(), Some("size=1m")).unwrap();
        std::fs::write(volume.join("file"), "from-the-volume").unwrap();
        volume
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The volume may be mounted or not; both are gone afterwards.
        let _ = umount2(&self.dir.path().join("volume"), MntFlags::MNT_DETACH);
        let _ = umount2(self.dir.path(), MntFlags::MNT_DETACH);
    }
}

fn bind(dir: &Path) {
    mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>).unwrap();
}

fn job_with(volume: &Path) -> Job {
    let mut job = Job::new("cat /data/file > /local/out; echo written > /data/new");
    job.task.mounts.push(Mount {
        task_path: "/data".into(),
        host_path: volume.display().to_string(),
        ..Mount::default()
    });
    job
}

/// Goal: a program never writes to the host's disk what it means for its volume. Method: a volume mounted where the service's
/// mount namespace sees it, and one where it does not.
#[tokio::test]
async fn a_task_has_its_volume_or_is_not_started() {
    if !nix::unistd::geteuid().is_root() {
        drop(PodmanService::shared());
        return;
    }
    let (reached, hidden) = (Place::new(MsFlags::MS_SHARED), Place::new(MsFlags::MS_PRIVATE));
    let Some(service) = PodmanService::start() else { return };
    let agent = Agent::start(&service.socket()).await;

    let volume = reached.volume();
    let job = job_with(&volume);
    assert_eq!(agent.run(&job).await, 0);
    assert_eq!(job.wrote("out"), "from-the-volume");
    assert_eq!(std::fs::read_to_string(volume.join("new")).unwrap(), "written\n");

    let volume = hidden.volume();
    let job = job_with(&volume);
    let error = agent.start_task(&job).await.unwrap_err();
    let text = error.message();
    assert!(
        text.contains(volume.to_str().unwrap()) && text.contains("mount namespace"),
        "{text}"
    );
    umount2(&volume, MntFlags::MNT_DETACH).unwrap();
    assert_eq!(
        std::fs::read_dir(&volume).unwrap().count(),
        0,
        "nothing was written below the mount"
    );
    assert!(!job.local("out").exists(), "the program did not run");
}
