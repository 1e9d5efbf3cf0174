//! Finding and making directories of a volume by path, without a kernel that remembers inodes.

use volume::attr::{Attr, Caller};
use volume::error::FsError;
use volume::ids::InodeNo;
use volume::row::FileKind;
use volume::volume::Volume;

/// Makes everything as root; the owner is set after.
pub const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// An entry, or `None`. No reference is kept.
///
/// # Errors
/// `FsError`, as of `Volume::lookup`, without `NotFound`.
pub async fn find(volume: &Volume, dir: InodeNo, name: &[u8]) -> Result<Option<Attr>, FsError> {
    match volume.lookup(dir, name).await {
        Ok(attr) => {
            volume.forget(attr.ino, 1);
            Ok(Some(attr))
        }
        Err(FsError::NotFound) => Ok(None),
        Err(error) => Err(error),
    }
}

/// The directory at `parts` below `dir`, made where it is missing.
///
/// # Errors
/// `NotDirectory` where something else is in the way; others as of `Volume::mkdir`.
pub async fn directory(volume: &Volume, dir: InodeNo, parts: &[&str], mode: u16) -> Result<InodeNo, FsError> {
    let mut at = dir;
    for part in parts {
        at = step(volume, at, part.as_bytes(), mode).await?;
    }
    Ok(at)
}

async fn step(volume: &Volume, dir: InodeNo, name: &[u8], mode: u16) -> Result<InodeNo, FsError> {
    if let Some(found) = find(volume, dir, name).await? {
        return as_directory(&found);
    }
    match volume.mkdir(dir, name, mode, ROOT).await {
        Ok(made) => {
            volume.forget(made.ino, 1);
            Ok(made.ino)
        }
        // Another object of the same directory was quicker.
        Err(FsError::Exists) => match find(volume, dir, name).await? {
            Some(found) => as_directory(&found),
            None => Err(FsError::NotFound),
        },
        Err(error) => Err(error),
    }
}

fn as_directory(attr: &Attr) -> Result<InodeNo, FsError> {
    match attr.kind {
        FileKind::Directory => Ok(attr.ino),
        _ => Err(FsError::NotDirectory),
    }
}
