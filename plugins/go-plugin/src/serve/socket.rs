//! The socket a plugin listens on: in a private folder, so that no moment exists in which another user could connect.
//! Folders of plugins that were killed are removed by the next one. What may never happen here: removing the socket of
//! a plugin that lives.

use std::{
    fs,
    hash::{BuildHasher, Hasher, RandomState},
    io,
    os::unix::{
        ffi::OsStrExt,
        fs::{DirBuilderExt, MetadataExt, PermissionsExt},
        net::UnixStream,
    },
    path::{Path, PathBuf},
};

use nix::unistd::{Gid, Group, chown, geteuid};
use tokio::net::UnixListener;
use tracing::debug;

use crate::{HostEnvironment, ServeError};

/// 107 bytes: sun_path less its terminator. unix(7).
const PATH_BYTES_MAX: usize = 107;

/// The socket's name in its folder.
const FILE_NAME: &str = "socket";

/// 16 tries at a name that nobody has taken; each is one of 2^64.
const NAME_TRIES_MAX: usize = 16;

/// A socket that goes when this is dropped.
#[derive(Debug)]
pub(super) struct Socket {
    folder: PathBuf,
    path: PathBuf,
}

impl Socket {
    /// Makes a private folder in the host's and listens in it, after clearing away what dead plugins of this name left.
    ///
    /// # Errors
    /// The `Socket…` variants and `Listen` of [`ServeError`].
    pub(super) fn listen(plugin: &str, environment: &HostEnvironment) -> Result<(Self, UnixListener), ServeError> {
        let parent = &environment.socket_folder;
        let prefix = format!("plugin-{plugin}-");
        remove_stale(parent, &prefix);
        let group = environment.socket_group.as_deref().map(find_group).transpose()?;

        let folder = make_folder(parent, &prefix).map_err(|source| ServeError::SocketFolder {
            folder: parent.clone(),
            source,
        })?;
        // From here on the folder is removed on every way out.
        let socket = Self {
            path: folder.join(FILE_NAME),
            folder,
        };
        let got = socket.path.as_os_str().as_bytes().len();
        if got > PATH_BYTES_MAX {
            return Err(ServeError::SocketPathLength {
                path: socket.path.clone(),
                got,
                max: PATH_BYTES_MAX,
            });
        }
        let failed = |source| ServeError::Listen {
            path: socket.path.clone(),
            source,
        };
        let listener = UnixListener::bind(&socket.path).map_err(failed)?;
        socket.restrict(group).map_err(failed)?;
        Ok((socket, listener))
    }

    /// Where the socket is.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Lets this user alone, or the group as well, reach the socket.
    fn restrict(&self, group: Option<Gid>) -> io::Result<()> {
        let mode = |path, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode));
        let Some(group) = group else {
            return mode(&self.path, 0o600);
        };
        chown(&self.path, None, Some(group))?;
        mode(&self.path, 0o660)?;
        // Last: until now nobody else could come near.
        chown(&self.folder, None, Some(group))?;
        mode(&self.folder, 0o710)
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        // Best effort: what stays is cleared away by the next plugin of this name.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_dir(&self.folder);
    }
}

/// Makes a folder of an unguessable name that this user alone can enter.
fn make_folder(parent: &Path, prefix: &str) -> io::Result<PathBuf> {
    let mut taken = io::ErrorKind::AlreadyExists.into();
    for _ in 0..NAME_TRIES_MAX {
        // The keys of a hasher are the standard library's only chance.
        let chance = RandomState::new().build_hasher().finish();
        let folder = parent.join(format!("{prefix}{chance:016x}"));
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => taken = error,
            Err(error) => return Err(error),
        }
    }
    Err(taken)
}

/// Finds a group by number or by name.
fn find_group(group: &str) -> Result<Gid, ServeError> {
    if let Ok(number) = group.parse() {
        return Ok(Gid::from_raw(number));
    }
    match Group::from_name(group) {
        Ok(Some(found)) => Ok(found.gid),
        Ok(None) | Err(_) => Err(ServeError::SocketGroup {
            group: group.to_owned(),
        }),
    }
}

/// Removes folders of ours whose socket nobody listens on any more.
fn remove_stale(parent: &Path, prefix: &str) {
    let Ok(entries) = fs::read_dir(parent) else { return };
    for entry in entries.flatten() {
        let folder = entry.path();
        let ours = entry.file_name().to_string_lossy().starts_with(prefix)
            && fs::symlink_metadata(&folder).is_ok_and(|it| it.is_dir() && it.uid() == geteuid().as_raw());
        let path = folder.join(FILE_NAME);
        // Refused is proof that the listener is gone. Anything else, also a folder whose plugin is about to listen, is left alone.
        let refused =
            || UnixStream::connect(&path).is_err_and(|error| error.kind() == io::ErrorKind::ConnectionRefused);
        if ours && refused() {
            debug!(folder = %folder.display(), "removing the socket of a plugin that is gone");
            let _ = fs::remove_file(&path);
            let _ = fs::remove_dir(&folder);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_folder(folder: &Path) -> HostEnvironment {
        HostEnvironment {
            socket_folder: folder.to_owned(),
            ..HostEnvironment::default()
        }
    }

    fn names(folder: &Path) -> usize {
        fs::read_dir(folder).unwrap().count()
    }

    #[tokio::test]
    async fn the_socket_is_private_and_goes_with_its_owner() {
        let parent = tempfile::tempdir().unwrap();
        let (socket, _listener) = Socket::listen("demo", &in_folder(parent.path())).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&socket.folder), mode(&socket.path)), (0o700, 0o600));
        UnixStream::connect(socket.path()).unwrap();
        drop(socket);
        assert_eq!(names(parent.path()), 0);
    }

    #[tokio::test]
    async fn a_group_may_connect_when_the_host_says_so() {
        let parent = tempfile::tempdir().unwrap();
        let group = nix::unistd::getegid().to_string();
        let environment = HostEnvironment {
            socket_group: Some(group),
            ..in_folder(parent.path())
        };
        let (socket, _listener) = Socket::listen("demo", &environment).unwrap();
        let mode = |path: &Path| fs::metadata(path).unwrap().mode() & 0o777;
        assert_eq!((mode(&socket.folder), mode(&socket.path)), (0o710, 0o660));

        let unknown = HostEnvironment {
            socket_group: Some("no-such-group".into()),
            ..environment
        };
        let error = Socket::listen("demo", &unknown).unwrap_err();
        assert!(matches!(error, ServeError::SocketGroup { .. }), "{error}");
    }

    #[tokio::test]
    async fn only_sockets_of_dead_plugins_are_removed() {
        let parent = tempfile::tempdir().unwrap();
        let (alive, _listener) = Socket::listen("demo", &in_folder(parent.path())).unwrap();
        let (dead, listener) = Socket::listen("demo", &in_folder(parent.path())).unwrap();
        drop(listener);
        // Killed: it had no chance to clean up.
        std::mem::forget(dead);
        let unbound = parent.path().join("plugin-demo-about-to-listen");
        fs::create_dir(&unbound).unwrap();
        assert_eq!(names(parent.path()), 3);

        let (_next, _listener) = Socket::listen("demo", &in_folder(parent.path())).unwrap();
        assert_eq!(names(parent.path()), 3, "the dead one went, the next one came");
        assert!(unbound.exists());
        UnixStream::connect(alive.path()).unwrap();
    }

    #[tokio::test]
    async fn a_path_that_the_kernel_would_cut_is_refused_and_leaves_nothing() {
        let parent = tempfile::tempdir().unwrap();
        let long = parent.path().join("x".repeat(100));
        fs::create_dir(&long).unwrap();
        let error = Socket::listen("demo", &in_folder(&long)).unwrap_err();
        assert!(error.to_string().contains("PLUGIN_UNIX_SOCKET_DIR"), "{error}");
        assert_eq!(names(&long), 0);
    }
}
