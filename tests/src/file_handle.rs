//! Handles of files (name_to_handle_at(2), open_by_handle_at(2)), as NFS servers use them.

use std::fs::File;
use std::os::fd::{AsRawFd, FromRawFd};
use std::path::Path;

use crate::calls::{c, done};

/// MAX_HANDLE_SZ.
const HANDLE_BYTES_MAX: usize = 128;

/// Stands for a file, whatever it is called.
#[derive(Debug, Clone)]
#[repr(C)]
pub struct FileHandle {
    bytes: u32,
    kind: i32,
    handle: [u8; HANDLE_BYTES_MAX],
}

impl FileHandle {
    /// That of what is called so.
    pub fn of(path: &Path) -> Self {
        let mut handle = Self {
            bytes: HANDLE_BYTES_MAX as u32,
            kind: 0,
            handle: [0; HANDLE_BYTES_MAX],
        };
        let (path, mut mount) = (c(path), 0i32);
        // SAFETY: the path ends in NUL, the handle has the room that it tells, and both live through the call.
        done(unsafe {
            libc::syscall(
                libc::SYS_name_to_handle_at,
                libc::AT_FDCWD,
                path.as_ptr(),
                &raw mut handle,
                &raw mut mount,
                0,
            )
        })
        .expect("name_to_handle_at");
        handle
    }

    /// Opens it for reading, in the file system that has `root`.
    pub fn open(&self, root: &File) -> std::io::Result<File> {
        let mut handle = self.clone();
        // SAFETY: the handle is one that the kernel gave, and lives through the call.
        let opened = done(unsafe {
            libc::syscall(
                libc::SYS_open_by_handle_at,
                root.as_raw_fd(),
                &raw mut handle,
                libc::O_RDONLY | libc::O_CLOEXEC,
            )
        })?;
        // SAFETY: a new descriptor that nobody else has.
        Ok(unsafe { File::from_raw_fd(opened as i32) })
    }
}
