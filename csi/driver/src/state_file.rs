//! Small files of the node's state, for their owner alone.
//!
//! Invariant: whoever reads a file sees its old content or its new, never a part, also after a crash of the machine;
//! and nobody but the owner can open it, because it may hold keys. Callers: `targets/record.rs`, `keyring.rs`, `rights.rs`.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use crate::error::DriverError;

/// Makes a folder and those above it; `Ok` if it exists.
///
/// # Errors
/// `File`.
pub fn make_folder(path: &Path) -> Result<(), DriverError> {
    let made = DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(DriverError::file("make", path))
}

/// Calls that come twice write one file twice, and its fresh copy has one name: they take turns.
static TURN: Mutex<()> = Mutex::new(());

/// The content of a file, if it exists.
///
/// # Errors
/// `File`.
pub fn read(path: &Path) -> Result<Option<Vec<u8>>, DriverError> {
    match fs::read(path) {
        Ok(body) => Ok(Some(body)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(DriverError::file("read", path)(error)),
    }
}

/// Puts `body` in place of what the file held.
///
/// # Durability
/// `Ok` means that it survives a crash of the machine.
///
/// # Errors
/// `File`; the file then holds what it held.
pub fn write(path: &Path, body: &[u8]) -> Result<(), DriverError> {
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    write_whole(path, body).map_err(DriverError::file("write", path))
}

/// Removes a file; `Ok` if it does not exist.
///
/// # Errors
/// `File`.
pub fn remove(path: &Path) -> Result<(), DriverError> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DriverError::file("remove", path)(error)),
        Ok(()) | Err(_) => Ok(()),
    }
}

fn write_whole(path: &Path, body: &[u8]) -> io::Result<()> {
    let fresh = path.with_extension("new");
    // What a crash left of an earlier try; its mode may be another.
    let _ = fs::remove_file(&fresh);
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&fresh)?;
    file.write_all(body)?;
    file.sync_all()?;
    fs::rename(&fresh, path)?;
    match path.parent() {
        Some(dir) => File::open(dir)?.sync_all(),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_that_many_write_at_once_is_one_of_them_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v1.json");
        std::thread::scope(|scope| {
            for writer in 0..8_u8 {
                let path = &path;
                scope.spawn(move || {
                    for _ in 0..20 {
                        write(path, &[b'a' + writer; 4_096]).unwrap();
                    }
                });
            }
        });
        let body = read(&path).unwrap().unwrap();
        assert_eq!(body, vec![body[0]; 4_096]);
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1, "no copy is left behind");
    }
}
