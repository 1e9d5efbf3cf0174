//! Mounts of a task that something serves: a CSI volume's above all. Whether they are alive before a container is made, and
//! whether the container has them before its program runs.
//!
//! Invariant: a program never finds the empty folder below a mount in place of the mount. It would: a Podman service in a mount
//! namespace of its own (`PrivateMounts=` and the like), which mounts made later do not reach, binds that folder without a
//! word, and a database would be written to the host's disk.
//! Absent: host volumes that are plain folders, which look the same in every namespace.

use std::ffi::OsString;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;

use crate::error::DriverError;
use crate::nomad_task::Mount;

/// 10 s for all of them: a mount that lives answers from memory.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// A mount of the host, by the device that a mount table names it with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ServedMount {
    path: PathBuf,
    device: String,
}

/// Those of a task's mounts whose source is itself a mount of the host, all of them alive.
///
/// # Errors
/// `DeadMount` for one that does not answer, or answers that nobody serves it: it may be mounted again soon.
pub async fn of(mounts: &[Mount]) -> Result<Vec<ServedMount>, DriverError> {
    let paths: Vec<PathBuf> = mounts.iter().map(|mount| PathBuf::from(&mount.host_path)).collect();
    let Some(first) = paths.first().cloned() else {
        return Ok(Vec::new());
    };
    // A mount that hangs holds this thread until it answers; it is one of the blocking ones.
    let looking = tokio::task::spawn_blocking(move || look(&paths));
    match tokio::time::timeout(ANSWER_MAX, looking).await {
        Ok(Ok(found)) => found,
        Ok(Err(_)) => Err(DriverError::CutOff),
        Err(_) => Err(DriverError::DeadMount {
            path: first,
            source: io::ErrorKind::TimedOut.into(),
        }),
    }
}

fn look(paths: &[PathBuf]) -> Result<Vec<ServedMount>, DriverError> {
    let mut real = Vec::new();
    for path in paths {
        match path.canonicalize().and_then(|real| real.metadata().map(|_| real)) {
            Ok(path) => real.push(path),
            Err(source) if is_dead(&source) => {
                return Err(DriverError::DeadMount {
                    path: path.clone(),
                    source,
                });
            }
            // A source that is not there is Podman's to name.
            Err(_) => {}
        }
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    Ok(real.into_iter().filter_map(|path| mounted_at(&table, path)).collect())
}

fn is_dead(error: &io::Error) -> bool {
    let errno = error.raw_os_error().map(Errno::from_raw);
    matches!(
        errno,
        Some(Errno::ENOTCONN | Errno::ECONNABORTED | Errno::ESTALE | Errno::EIO | Errno::EHOSTDOWN | Errno::ETIMEDOUT)
    )
}

/// The topmost mount at exactly this path.
fn mounted_at(table: &str, path: PathBuf) -> Option<ServedMount> {
    let (_, device) = entries(table).filter(|(point, _)| *point == path).last()?;
    Some(ServedMount {
        path,
        device: device.to_owned(),
    })
}

/// The first of these mounts that a process does not have; `None` if it has all, or if its mount table cannot be read (that of a
/// process which just ended, or of another user's).
pub fn missing_from(mounts: &[ServedMount], pid: i32) -> Option<&Path> {
    if mounts.is_empty() {
        return None;
    }
    let table = std::fs::read_to_string(format!("/proc/{pid}/mountinfo")).ok()?;
    let lacks = |mount: &&ServedMount| !entries(&table).any(|(_, device)| device == mount.device);
    mounts.iter().find(lacks).map(|mount| mount.path.as_path())
}

/// (mountpoint, device) of each mount, in the order of the table (source: proc_pid_mountinfo(5)).
fn entries(table: &str) -> impl Iterator<Item = (PathBuf, &str)> {
    table.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let device = fields.nth(2)?;
        let point = fields.nth(1)?;
        Some((unescaped(point), device))
    })
}

/// Space, tab, newline and backslash stand as `\` and three octal digits.
fn unescaped(field: &str) -> PathBuf {
    let bytes = field.as_bytes();
    let (mut path, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while at < bytes.len() {
        let octal = (bytes[at] == b'\\')
            .then(|| field.get(at + 1..at + 4))
            .flatten()
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        path.push(octal.unwrap_or(bytes[at]));
        at += if octal.is_some() { 4 } else { 1 };
    }
    PathBuf::from(OsString::from_vec(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    const TABLE: &str = "\
23 1 254:0 / / rw,relatime - ext4 /dev/vda rw
80 23 0:50 / /mnt/a\\040b rw shared:3 - fuse.pannier s3://b/v/ rw
81 80 0:51 / /mnt/a\\040b rw shared:4 - fuse.pannier s3://b/w/ rw
nonsense
";

    #[test]
    fn the_topmost_mount_at_a_path_is_found_and_a_folder_is_none() {
        let found = mounted_at(TABLE, "/mnt/a b".into()).unwrap();
        assert_eq!(
            (found.path.as_path(), found.device.as_str()),
            (Path::new("/mnt/a b"), "0:51")
        );
        assert_eq!(mounted_at(TABLE, "/mnt/a b/folder".into()), None);
    }

    #[test]
    fn a_process_has_its_own_mounts_and_not_one_of_a_device_that_is_not_there() {
        let own: i32 = std::process::id().try_into().unwrap();
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
        let there = mounted_at(&table, "/proc".into()).unwrap();
        let absent = ServedMount {
            path: "/mnt/volume".into(),
            device: "4095:1048575".into(),
        };
        assert_eq!(missing_from(std::slice::from_ref(&there), own), None);
        assert_eq!(
            missing_from(&[there, absent.clone()], own),
            Some(Path::new("/mnt/volume"))
        );
        assert_eq!(missing_from(&[absent], i32::MAX), None);
    }

    #[tokio::test]
    async fn a_plain_folder_and_a_missing_one_are_not_served() {
        let dir = tempfile::tempdir().unwrap();
        let mount = |path: &Path| Mount {
            host_path: path.display().to_string(),
            ..Mount::default()
        };
        let found = of(&[mount(dir.path()), mount(&dir.path().join("missing"))])
            .await
            .unwrap();
        assert_eq!(found, []);
        assert_eq!(of(&[mount(Path::new("/proc"))]).await.unwrap().len(), 1);
    }
}
