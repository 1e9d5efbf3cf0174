//! Mountpoints: attaching a FUSE connection to a folder, finding ours, and taking them off again.
//!
//! Root mounts by mount(2); others by fusermount3. Invariant: nothing here waits for the server of a mount, except
//! `unmount`, which says so. Absent: who uses a mount, and when it may go (`engine.rs`).

use std::fs;
use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, FdFlag, OFlag, fcntl, open};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::socket::{AddressFamily, ControlMessageOwned, MsgFlags, SockFlag, SockType, recvmsg, socketpair};
use nix::sys::stat::Mode;
use volume::head::Transport;

mod mountinfo;
mod users;

pub use mountinfo::{Mounted, mounted, mounted_at};
pub use users::is_used;

/// The type that our mounts have in mountinfo.
pub const FILE_SYSTEM_TYPE: &str = "fuse.pannier";

/// 4 MiB of read-ahead: a sequential reader then has some four 1 MiB requests under way, which hides a store's latency
/// behind its bandwidth. The kernel's own 128 KiB would make every second request wait.
const READ_AHEAD_KIB: u32 = 4096;

/// What to attach.
#[derive(Debug, Clone)]
pub struct AttachOptions {
    /// What mount(8) shows as the source, for example `s3://bucket/prefix`.
    pub source: String,
    /// Attach without the right to write.
    pub read_only: bool,
    /// Do not allow programs to be run from it.
    pub noexec: bool,
    /// Do not honour set-user-id bits.
    pub nosuid: bool,
    /// How its requests are to come; they come by the classic way where the kernel does not offer the other.
    pub transport: Transport,
}

/// Why a folder could not become a mountpoint, or stop being one.
#[derive(Debug, thiserror::Error)]
pub enum MountpointError {
    /// There is no such folder.
    #[error("mountpoint {} does not exist", path.display())]
    Absent {
        /// The path asked for.
        path: PathBuf,
    },
    /// It is not a directory.
    #[error("mountpoint {} is not a directory", path.display())]
    NotDirectory {
        /// The path asked for.
        path: PathBuf,
    },
    /// It has entries, which the mount would hide.
    #[error("mountpoint {} is not empty", path.display())]
    NotEmpty {
        /// The path asked for.
        path: PathBuf,
    },
    /// Something is mounted there.
    #[error("{} is a mountpoint already: {file_system} of {mounted_source}", path.display())]
    Taken {
        /// The path asked for.
        path: PathBuf,
        /// Type of what is mounted.
        file_system: String,
        /// Its source.
        mounted_source: String,
    },
    /// A dead mount of ours lies there: its server ended without unmounting.
    #[error("{} holds a mount whose server is gone; detach it with `umount -l {}`", path.display(), path.display())]
    Dead {
        /// The path asked for.
        path: PathBuf,
    },
    /// Programs still use it.
    #[error("mountpoint {} is busy: programs still use files of it", path.display())]
    Busy {
        /// The path.
        path: PathBuf,
    },
    /// The kernel refused.
    #[error("{act} {}: {source}", path.display())]
    Kernel {
        /// What was tried.
        act: &'static str,
        /// On which path.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// fusermount3 refused.
    #[error("fusermount3 could not mount {}: {detail}", path.display())]
    Fusermount {
        /// On which path.
        path: PathBuf,
        /// Its own words.
        detail: String,
    },
}

fn kernel(act: &'static str, path: &Path, source: impl Into<io::Error>) -> MountpointError {
    MountpointError::Kernel {
        act,
        path: path.to_path_buf(),
        source: source.into(),
    }
}

/// Checks that a volume may be mounted at `path`, and returns its canonical form.
///
/// # Errors
/// `Absent`, `NotDirectory`, `NotEmpty`, `Taken`, `Dead`, `Kernel`.
pub fn check(path: &Path) -> Result<PathBuf, MountpointError> {
    // First mountinfo, which never asks a server: a stat of a dead or hanging mount would fail or hang.
    if let Some(found) = mounted_at(path)? {
        if found.file_system == FILE_SYSTEM_TYPE && is_dead(path) {
            return Err(MountpointError::Dead {
                path: path.to_path_buf(),
            });
        }
        return Err(MountpointError::Taken {
            path: path.to_path_buf(),
            file_system: found.file_system,
            mounted_source: found.source,
        });
    }
    let canonical = fs::canonicalize(path).map_err(|error| match error.kind() {
        io::ErrorKind::NotFound => MountpointError::Absent {
            path: path.to_path_buf(),
        },
        _ => kernel("cannot resolve", path, error),
    })?;
    if canonical != path && mounted_at(&canonical)?.is_some() {
        return check(&canonical);
    }
    if !fs::metadata(&canonical)
        .map_err(|error| kernel("cannot stat", path, error))?
        .is_dir()
    {
        return Err(MountpointError::NotDirectory {
            path: path.to_path_buf(),
        });
    }
    let mut entries = fs::read_dir(&canonical).map_err(|error| kernel("cannot read", path, error))?;
    if entries.next().is_some() {
        return Err(MountpointError::NotEmpty {
            path: path.to_path_buf(),
        });
    }
    Ok(canonical)
}

/// Makes `path` (canonical, see `check`) a mountpoint and returns the connection's descriptor. The kernel's greeting
/// waits on it: whoever serves it must answer that first.
///
/// # Errors
/// `Kernel`, `Fusermount`.
pub fn attach(path: &Path, options: &AttachOptions) -> Result<OwnedFd, MountpointError> {
    if !nix::unistd::geteuid().is_root() {
        return attach_by_fusermount(path, options);
    }
    let device = open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
        .map_err(|error| kernel("cannot open /dev/fuse for", path, error))?;
    let root_mode = fs::metadata(path)
        .map_err(|error| kernel("cannot stat", path, error))?
        .permissions()
        .mode();
    let data = format!(
        "fd={},rootmode={root_mode:o},user_id={},group_id={},allow_other,default_permissions",
        device.as_raw_fd(),
        nix::unistd::getuid(),
        nix::unistd::getgid(),
    );
    let mut flags = MsFlags::MS_NODEV;
    flags.set(MsFlags::MS_RDONLY, options.read_only);
    flags.set(MsFlags::MS_NOEXEC, options.noexec);
    flags.set(MsFlags::MS_NOSUID, options.nosuid);
    mount(
        Some(options.source.as_str()),
        path,
        Some(FILE_SYSTEM_TYPE),
        flags,
        Some(data.as_str()),
    )
    .map_err(|error| kernel("cannot mount", path, error))?;
    Ok(device)
}

/// Without root there is no `allow_other` (only /etc/fuse.conf can give it), and set-user-id bits are off.
fn attach_by_fusermount(path: &Path, options: &AttachOptions) -> Result<OwnedFd, MountpointError> {
    let (ours, theirs) = socketpair(AddressFamily::Unix, SockType::Stream, None, SockFlag::empty())
        .map_err(|error| kernel("cannot make a socket for", path, error))?;
    fcntl(&ours, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))
        .map_err(|error| kernel("cannot guard a socket for", path, error))?;
    let source = options.source.replace('\\', "\\\\").replace(',', "\\,");
    let mut words = format!("fsname={source},subtype=pannier,default_permissions,nodev,nosuid");
    for (wanted, word) in [(options.read_only, ",ro"), (options.noexec, ",noexec")] {
        if wanted {
            words.push_str(word);
        }
    }
    let child = Command::new("fusermount3")
        .args(["-o", &words, "--"])
        .arg(path)
        .env("_FUSE_COMMFD", theirs.as_raw_fd().to_string())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|error| kernel("cannot run fusermount3 for", path, error))?;
    drop(theirs);
    let received = receive_descriptor(&ours);
    let output = child
        .wait_with_output()
        .map_err(|error| kernel("cannot wait for fusermount3 for", path, error))?;
    match received {
        Ok(Some(device)) if output.status.success() => Ok(device),
        Ok(_) => {
            let detail = String::from_utf8_lossy(&output.stderr).trim().to_owned();
            Err(MountpointError::Fusermount {
                path: path.to_path_buf(),
                detail,
            })
        }
        Err(error) => Err(kernel("cannot receive the connection of", path, error)),
    }
}

/// The descriptor that fusermount3 sends; `None` if it hung up without one.
fn receive_descriptor(socket: &OwnedFd) -> nix::Result<Option<OwnedFd>> {
    let mut byte = [0u8; 1];
    let mut parts = [IoSliceMut::new(&mut byte)];
    let mut space = nix::cmsg_space!(RawFd);
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut space),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    for part in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = part
            && let Some(raw) = descriptors.first()
        {
            // SAFETY: the kernel has just installed this descriptor for us, nobody else knows its number, and it is
            // wrapped only here.
            return Ok(Some(unsafe { OwnedFd::from_raw_fd(*raw) }));
        }
    }
    Ok(None)
}

/// Makes `new` show what is mounted at `mounted`.
///
/// # Errors
/// `Kernel`.
pub fn attach_again(mounted: &Path, new: &Path, read_only: bool) -> Result<(), MountpointError> {
    mount(Some(mounted), new, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .map_err(|error| kernel("cannot bind to", new, error))?;
    if !read_only {
        return Ok(());
    }
    let flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY | MsFlags::MS_NODEV;
    mount(None::<&str>, new, None::<&str>, flags, None::<&str>).map_err(|error| {
        let _ = umount2(new, MntFlags::MNT_DETACH);
        kernel("cannot make read-only", new, error)
    })
}

/// Takes the mount off. Waits until the kernel's dirty pages of the last mount of a volume have been written to its
/// server: call it on a thread that may block, with its own limit of time.
///
/// # Errors
/// `Busy` while programs use it; `Kernel`. `Ok` if nothing is mounted there.
pub fn unmount(path: &Path) -> Result<(), MountpointError> {
    match umount2(path, MntFlags::UMOUNT_NOFOLLOW) {
        // EINVAL: not a mountpoint; ENOENT: the folder is gone, and a mount with it.
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EBUSY) => Err(MountpointError::Busy {
            path: path.to_path_buf(),
        }),
        // Not root: the set-user-id program may.
        Err(Errno::EPERM) => fusermount(path, &["-u"]),
        Err(error) => Err(kernel("cannot unmount", path, error)),
    }
}

/// Takes the mount out of the tree at once; programs that use files of it go on until they close them.
///
/// # Errors
/// `Kernel`. `Ok` if nothing is mounted there.
pub fn detach(path: &Path) -> Result<(), MountpointError> {
    match umount2(path, MntFlags::MNT_DETACH | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
        Err(Errno::EPERM) => fusermount(path, &["-u", "-z"]),
        Err(error) => Err(kernel("cannot detach", path, error)),
    }
}

fn fusermount(path: &Path, arguments: &[&str]) -> Result<(), MountpointError> {
    let output = Command::new("fusermount3")
        .args(arguments)
        .arg("--")
        .arg(path)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| kernel("cannot run fusermount3 for", path, error))?;
    let words = String::from_utf8_lossy(&output.stderr);
    if output.status.success() || words.contains("not found in /etc/mtab") {
        return Ok(());
    }
    if words.contains("busy") {
        return Err(MountpointError::Busy {
            path: path.to_path_buf(),
        });
    }
    Err(MountpointError::Fusermount {
        path: path.to_path_buf(),
        detail: words.trim().to_owned(),
    })
}

/// Cuts the connection of the mount at `path`: everything that waits on it fails at once. The last resort before an end
/// that must not hang.
pub fn abort(path: &Path) {
    let _ = umount2(path, MntFlags::MNT_FORCE | MntFlags::UMOUNT_NOFOLLOW);
}

/// Where the kernel lets FUSE connections be controlled, a folder for each, by the number of its device.
const CONNECTIONS: &str = "/sys/fs/fuse/connections";

/// Ends the connection of a device wherever it is mounted, as if its server had ended: whoever uses it gets errors.
///
/// # Errors
/// `Kernel`. `Ok` if there is no such connection.
pub fn cut(device: (u32, u32)) -> Result<(), MountpointError> {
    let folder = Path::new(CONNECTIONS);
    let door = folder.join(device.1.to_string()).join("abort");
    let refused = |error: io::Error| kernel("cannot end the connection at", &door, error);
    match fs::write(&door, "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        done => return done.map_err(refused),
    }
    // It is not there, or nobody has mounted what shows it, which systemd does elsewhere.
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    mount(Some("fusectl"), folder, Some("fusectl"), flags, None::<&str>)
        .map_err(|error| kernel("cannot mount", folder, error))?;
    let cut = fs::write(&door, "1");
    let _ = umount2(folder, MntFlags::MNT_DETACH);
    match cut {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(refused(error)),
        _ => Ok(()),
    }
}

/// True if a FUSE mount's server is gone. Only for mounts whose server is known not to run: a live one that hangs would
/// hang this too.
pub fn is_dead(path: &Path) -> bool {
    matches!(
        nix::sys::statfs::statfs(path),
        // ECANCELED: its rings were just ending.
        Err(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ECANCELED)
    )
}

/// Widens the kernel's read-ahead on a mount; a machine that does not let us keeps its own, which is only slower.
pub fn widen_read_ahead(mounted: &Mounted) {
    let (major, minor) = mounted.device;
    let setting = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&setting, READ_AHEAD_KIB.to_string()) {
        tracing::debug!(%error, setting, "the kernel's own read-ahead stays");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_that_cannot_be_a_mountpoint_is_refused_by_its_reason() {
        let dir = tempfile::tempdir().unwrap();
        let absent = dir.path().join("absent");
        assert!(matches!(check(&absent), Err(MountpointError::Absent { path }) if path == absent));
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        assert!(matches!(check(&file), Err(MountpointError::NotDirectory { .. })));
        assert!(matches!(check(dir.path()), Err(MountpointError::NotEmpty { .. })));
        assert!(matches!(check(Path::new("/proc")), Err(MountpointError::Taken { .. })));
        fs::remove_file(&file).unwrap();
        assert_eq!(check(dir.path()).unwrap(), fs::canonicalize(dir.path()).unwrap());
    }
}
