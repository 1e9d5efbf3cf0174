//! Names to inodes: lookup, getattr, readlink, forget.

use bytes::Bytes;

use crate::attr::Attr;
use crate::dirent::check_length;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::row::FileKind;
use crate::table::{Need, Stop, Tables};

/// The inode that a name of a directory stands for, "." and ".." included.
pub(super) fn resolve(tables: &mut Tables, parent: InodeNo, name: &[u8]) -> Result<InodeNo, Stop> {
    if name == b"." {
        // Also of a file: so the kernel finds by its number what it has forgotten.
        return match tables.inode(parent)?.nlink {
            0 => Err(FsError::Stale(parent).into()),
            _ => Ok(parent),
        };
    }
    let directory = tables.directory(parent)?;
    match name {
        b".." => Ok(directory.parent),
        _ => match tables.dirent(parent, name)? {
            Some(entry) => Ok(entry.ino),
            None => Err(FsError::NotFound.into()),
        },
    }
}

/// See `Volume::lookup`.
pub(crate) async fn lookup(mount: &Mount, parent: InodeNo, name: &[u8]) -> Result<Attr, FsError> {
    check_length(name)?;
    mount
        .look(|tables| {
            let ino = resolve(tables, parent, name)?;
            let attr = match tables.attr(ino) {
                Err(Stop::Need(_)) if leads_to_directory(tables, parent, name) => {
                    return Err(Stop::Need(Need::Folder(ino)));
                }
                attr => attr?,
            };
            tables.remember(ino);
            Ok(attr)
        })
        .await
}

fn leads_to_directory(tables: &mut Tables, parent: InodeNo, name: &[u8]) -> bool {
    let entry = tables.dirent(parent, name).ok().flatten();
    entry.is_some_and(|entry| entry.kind == FileKind::Directory)
}

/// See `Volume::getattr`.
pub(crate) async fn getattr(mount: &Mount, ino: InodeNo) -> Result<Attr, FsError> {
    mount.look(|tables| tables.attr(ino)).await
}

/// See `Volume::readlink`.
pub(crate) async fn readlink(mount: &Mount, ino: InodeNo) -> Result<Bytes, FsError> {
    mount
        .look(|tables| {
            let row = tables.inode(ino)?;
            match (row.kind, &row.inline) {
                (FileKind::Symlink, Some(target)) => Ok(target.clone()),
                (FileKind::Symlink, None) => Ok(Bytes::new()),
                _ => Err(FsError::Invalid("not a symbolic link").into()),
            }
        })
        .await
}

/// See `Volume::forget`.
pub(crate) fn forget(mount: &Mount, ino: InodeNo, count: u64) {
    let mut tables = mount.lock();
    let purge = tables.forget(ino, count);
    let unsealed = tables.unsealed_bytes();
    drop(tables);
    mount.dirtied(unsealed);
    if purge {
        mount.purge.notify_one();
    }
}
