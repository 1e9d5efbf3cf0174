//! The kernel's half of the port: mount table, bind mounts, and looking at a mount that may be dead.
//!
//! Invariant: no system call that can wait for a FUSE server runs on the async threads, and no path has more than one
//! such call waiting, so a mount that never answers costs one thread and not one per probe.
//! Callers: `engine.rs`. Absent: the engine.

use std::collections::HashSet;
use std::fs::File;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statvfs::statvfs;

use tracing::warn;

use super::{Answer, MountError, Usage};
use crate::capability::{BindFlags, Owner};
use crate::mountinfo::{self, MountPoint};

/// 2 s: the engine answers statfs from memory, so a healthy mount needs microseconds. Longer only delays the start of
/// the plugin.
const PROBE_MAX: Duration = Duration::from_secs(2);

/// 20 s: reading and changing one row, which may have to come from the bucket.
const OWN_MAX: Duration = Duration::from_secs(20);

/// The mount table of this process, and probes under way.
#[derive(Debug, Default)]
pub(super) struct Kernel {
    /// Held for the length of a look-up, never across an await.
    probed: Arc<Mutex<HashSet<PathBuf>>>,
}

impl Kernel {
    pub(super) async fn table(&self) -> Result<Vec<MountPoint>, MountError> {
        let path = Path::new(mountinfo::TABLE);
        let table = std::fs::read(path).map_err(|source| failed("read", path, source))?;
        Ok(mountinfo::parse(&table)?)
    }

    pub(super) async fn probe(&self, path: &Path) -> Answer {
        let key = path.to_owned();
        if !self.lock().insert(key.clone()) {
            // The probe before this one still waits.
            return Answer::Silent;
        }
        let probed = Arc::clone(&self.probed);
        let asked = tokio::task::spawn_blocking(move || {
            let answer = statvfs(&key);
            probed.lock().expect("nobody panics while holding the set").remove(&key);
            answer
        });
        match tokio::time::timeout(PROBE_MAX, asked).await {
            Ok(Ok(Ok(stat))) => Answer::Alive(usage(&stat)),
            Ok(Ok(Err(Errno::ENOENT | Errno::ENOTDIR))) => Answer::Gone,
            Ok(Ok(Err(Errno::ENOTCONN | Errno::ECONNABORTED))) => Answer::Dead,
            Ok(Ok(Err(_)) | Err(_)) | Err(_) => Answer::Silent,
        }
    }

    /// The writeback cache of the kernel first, then a sync of the directory: the engine takes one as a sync of the
    /// whole volume.
    pub(super) async fn flush(&self, path: &Path, limit: Duration) -> Result<(), MountError> {
        let owned = path.to_owned();
        let flushed = blocking("flush", path, move || {
            let directory = File::open(&owned)?;
            match nix::unistd::syncfs(&directory) {
                // The volume was full when the kernel wrote its pages back, which the program that wrote them was told. What
                // the volume took is what there is to flush.
                Err(Errno::ENOSPC) => {
                    warn!(path = %owned.display(), "the volume was full: not all that was written is in it")
                }
                done => done?,
            }
            directory.sync_all()
        });
        match tokio::time::timeout(limit, flushed).await {
            Ok(outcome) => outcome,
            Err(_) => Err(MountError::Slow {
                detail: format!("{} was not flushed within {} s", path.display(), limit.as_secs()),
            }),
        }
    }

    pub(super) async fn bind(&self, source: &Path, target: &Path, flags: BindFlags) -> Result<(), MountError> {
        let (from, to) = (source.to_owned(), target.to_owned());
        blocking("bind-mount", target, move || {
            mount(Some(&from), &to, None::<&str>, MsFlags::MS_BIND, None::<&str>)?;
            let extra = ms_flags(flags);
            if extra.is_empty() {
                return Ok(());
            }
            // A bind mount ignores all other flags when it is made; they come by a second call.
            let all = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | extra;
            mount(None::<&str>, &to, None::<&str>, all, None::<&str>).map_err(|errno| {
                // Without its flags the mount must not stay: it could be written although it was asked for read-only.
                let _ = umount2(&to, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW);
                errno.into()
            })
        })
        .await
    }

    /// Changes nothing where nothing differs: a change costs a commit.
    pub(super) async fn own(&self, path: &Path, owner: Owner) -> Result<(), MountError> {
        let owned = path.to_owned();
        let done = blocking("give the top directory of", path, move || {
            let found = std::fs::metadata(&owned)?;
            let other = |wanted: Option<u32>, is: u32| wanted.filter(|wanted| *wanted != is);
            let (uid, gid) = (other(owner.uid, found.uid()), other(owner.gid, found.gid()));
            if uid.is_some() || gid.is_some() {
                std::os::unix::fs::chown(&owned, uid, gid)?;
            }
            // After chown(2), which may take the set-group-id bit.
            let bits = found.mode() & 0o7777;
            let wanted = owner.mode.map_or(bits, u32::from) | u32::from(owner.more_mode);
            let changed = wanted != bits || gid.is_some() || uid.is_some();
            if changed && std::fs::metadata(&owned)?.mode() & 0o7777 != wanted {
                std::fs::set_permissions(&owned, std::fs::Permissions::from_mode(wanted))?;
            }
            Ok(())
        });
        match tokio::time::timeout(OWN_MAX, done).await {
            Ok(outcome) => outcome,
            Err(_) => Err(MountError::Slow {
                detail: format!(
                    "{} was not given to its owner within {} s",
                    path.display(),
                    OWN_MAX.as_secs()
                ),
            }),
        }
    }

    pub(super) async fn detach(&self, path: &Path) -> Result<(), MountError> {
        let owned = path.to_owned();
        blocking("unmount", path, move || {
            match umount2(&owned, MntFlags::UMOUNT_NOFOLLOW) {
                // EINVAL: not a mount point.
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
                Err(_) => {}
            }
            match umount2(&owned, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
                Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
                Err(errno) => Err(errno.into()),
            }
        })
        .await
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashSet<PathBuf>> {
        self.probed.lock().expect("nobody panics while holding the set")
    }
}

fn ms_flags(flags: BindFlags) -> MsFlags {
    let mut bits = MsFlags::empty();
    bits.set(MsFlags::MS_RDONLY, flags.read_only);
    bits.set(MsFlags::MS_NOEXEC, flags.noexec);
    bits.set(MsFlags::MS_NOSUID, flags.nosuid);
    bits.set(MsFlags::MS_NODEV, flags.nodev);
    bits.set(MsFlags::MS_NOATIME, flags.noatime);
    bits
}

fn usage(stat: &nix::sys::statvfs::Statvfs) -> Usage {
    let fragment_bytes = stat.fragment_size();
    Usage {
        total_bytes: stat.blocks().saturating_mul(fragment_bytes),
        free_bytes: stat.blocks_available().saturating_mul(fragment_bytes),
        inodes: stat.files(),
        free_inodes: stat.files_available(),
    }
}

async fn blocking(
    act: &'static str,
    path: &Path,
    work: impl FnOnce() -> io::Result<()> + Send + 'static,
) -> Result<(), MountError> {
    let outcome = tokio::task::spawn_blocking(work).await;
    outcome
        .unwrap_or_else(|stopped| Err(io::Error::other(stopped)))
        .map_err(|source| failed(act, path, source))
}

fn failed(act: &'static str, path: &Path, source: io::Error) -> MountError {
    MountError::Kernel {
        act,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn an_ordinary_directory_is_alive_and_a_missing_one_is_gone() {
        let kernel = Kernel::default();
        let dir = tempfile::tempdir().unwrap();
        let Answer::Alive(usage) = kernel.probe(dir.path()).await else {
            panic!("a directory answers")
        };
        assert!(usage.total_bytes >= usage.free_bytes && usage.total_bytes > 0);
        assert_eq!(kernel.probe(&dir.path().join("none")).await, Answer::Gone);
        kernel.flush(dir.path(), PROBE_MAX).await.unwrap();
    }

    /// Goal: flags of a bind mount hold, and taking it away twice is once. Method: real mounts; skipped without the
    /// right to mount.
    #[tokio::test]
    async fn a_read_only_bind_refuses_writes_and_is_taken_away_twice() {
        let kernel = Kernel::default();
        let dir = tempfile::tempdir().unwrap();
        let (source, target) = (dir.path().join("source"), dir.path().join("target"));
        std::fs::create_dir_all(&source).unwrap();
        std::fs::create_dir_all(&target).unwrap();
        let flags = BindFlags {
            read_only: true,
            ..BindFlags::default()
        };
        if let Err(error) = kernel.bind(&source, &target, flags).await {
            assert!(!nix::unistd::geteuid().is_root(), "root may mount: {error}");
            return;
        }
        let refused = std::fs::write(target.join("file"), "x");
        let row = mountinfo::top_at(&kernel.table().await.unwrap(), &target).cloned();
        kernel.detach(&target).await.unwrap();
        kernel.detach(&target).await.unwrap();
        assert!(refused.is_err());
        assert!(row.unwrap().read_only);
        assert_eq!(mountinfo::top_at(&kernel.table().await.unwrap(), &target), None);
    }
}
