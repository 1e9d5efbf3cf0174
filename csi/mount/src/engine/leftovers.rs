//! What an engine that died leaves behind, and its removal: a lock nobody holds, a socket nobody answers, and mounts whose
//! every use fails with ENOTCONN.
//!
//! Invariant: nothing is removed unless the lock shows that its engine is dead, or the kernel says that the mount is.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::fcntl::{Flock, FlockArg};

use crate::mountpoint::{self, FILE_SYSTEM_TYPE, MountpointError, is_dead, mounted_at};

/// The list of mountpoints that an engine serves, beside its socket.
#[derive(Debug)]
pub struct Ledger {
    path: PathBuf,
}

impl Ledger {
    /// The ledger of the engine at `socket`.
    pub fn beside(socket: &Path) -> Self {
        Self {
            path: with_suffix(socket, ".mounts"),
        }
    }

    /// Replaces the list. A failure only costs a successor the cleaning, so it is logged and no more.
    pub fn write(&self, mountpoints: &[PathBuf]) {
        let draft = with_suffix(&self.path, ".new");
        let text = serde_json::to_vec(mountpoints).unwrap_or_default();
        if let Err(error) = fs::write(&draft, text).and_then(|()| fs::rename(&draft, &self.path)) {
            tracing::warn!(%error, path = %self.path.display(), "the mountpoints could not be noted");
        }
    }

    /// Takes dead mounts of the engine before off the tree, but for those that were `kept`: they only wait. Call it while holding
    /// the lock.
    pub fn clean(&self, kept: &[PathBuf]) {
        let listed = fs::read(&self.path)
            .ok()
            .and_then(|text| serde_json::from_slice::<Vec<PathBuf>>(&text).ok());
        let dead = listed
            .unwrap_or_default()
            .into_iter()
            .filter(|path| !kept.contains(path));
        for path in dead {
            match remove_if_dead(&path) {
                Ok(true) => tracing::warn!(mountpoint = %path.display(), "took off a mount whose engine had died"),
                Ok(false) => {}
                Err(error) => tracing::error!(%error, "a dead mount stays"),
            }
        }
        self.write(kept);
    }
}

/// Takes the mount at `path` off if it is one of ours and its server is gone. Returns whether it did.
///
/// # Errors
/// `MountpointError` if it is dead and does not go.
pub fn remove_if_dead(path: &Path) -> Result<bool, MountpointError> {
    let mut removed = false;
    // Mounts may lie on top of each other.
    while mounted_at(path)?.is_some_and(|mounted| mounted.file_system == FILE_SYSTEM_TYPE) && is_dead(path) {
        mountpoint::detach(path)?;
        removed = true;
    }
    Ok(removed)
}

/// The proof that no other engine serves at `socket`; held until it is dropped.
///
/// # Errors
/// `WouldBlock` if another engine lives.
pub fn lock(socket: &Path) -> io::Result<Flock<File>> {
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .mode(0o600)
        .open(with_suffix(socket, ".lock"))?;
    Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, error)| error.into())
}

/// The same, where it is known that the engine before is dead: a thread of it that waits in the kernel may hold its lock still,
/// so a new one takes its place.
///
/// # Errors
/// What the system refuses.
pub fn lock_after_death(socket: &Path) -> io::Result<Flock<File>> {
    match lock(socket) {
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
            fs::remove_file(with_suffix(socket, ".lock"))?;
            lock(socket)
        }
        done => done,
    }
}

fn with_suffix(path: &Path, suffix: &str) -> PathBuf {
    let mut name = path.as_os_str().to_owned();
    name.push(suffix);
    PathBuf::from(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_second_engine_at_the_same_socket_is_refused_until_the_first_is_gone() {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("engine.sock");
        let first = lock(&socket).unwrap();
        assert_eq!(lock(&socket).unwrap_err().kind(), io::ErrorKind::WouldBlock);
        drop(first);
        assert!(lock(&socket).is_ok());
    }

    #[test]
    fn cleaning_leaves_alone_what_is_not_a_dead_mount() {
        let dir = tempfile::tempdir().unwrap();
        let ledger = Ledger::beside(&dir.path().join("engine.sock"));
        ledger.clean(&[]);
        ledger.write(&[
            dir.path().to_path_buf(),
            PathBuf::from("/proc"),
            dir.path().join("absent"),
        ]);
        ledger.clean(&[]);
        assert!(mounted_at(Path::new("/proc")).unwrap().is_some());
        assert!(dir.path().exists());
    }
}
