//! Names taken away: unlink and rmdir. The inode goes with its last name, once nobody holds it.

use crate::clock::Timestamp;
use crate::dirent::check_length;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::row::{DirentRow, FileKind};
use crate::table::{Stop, Tables};

/// Takes an entry out of a directory; its inode is left as it is.
pub(super) fn remove_entry(tables: &mut Tables, dir: InodeNo, name: &[u8], kind: FileKind, now: Timestamp) {
    tables.set_dirent(dir, name, None);
    tables.change_inode(dir, |row| {
        row.entries -= 1;
        row.nlink -= u32::from(kind == FileKind::Directory);
        row.mtime = now;
        row.ctime = now;
    });
}

/// An inode that `inode` has found has one name less. True if there is something to purge.
pub(super) fn lose_name(tables: &mut Tables, entry: DirentRow, now: Timestamp) -> bool {
    let left = tables.change_inode(entry.ino, |row| {
        // A directory has one name, and counts itself.
        row.nlink = if entry.kind == FileKind::Directory {
            0
        } else {
            row.nlink - 1
        };
        row.ctime = now;
        row.nlink
    });
    left == 0 && tables.add_orphan(entry.ino)
}

/// Refuses to remove a directory that has entries.
pub(super) fn check_empty(tables: &mut Tables, dir: InodeNo) -> Result<(), Stop> {
    if tables.inode(dir)?.entries > 0 {
        Err(FsError::NotEmpty.into())
    } else {
        Ok(())
    }
}

/// See `Volume::unlink`.
pub(crate) async fn unlink(mount: &Mount, parent: InodeNo, name: &[u8]) -> Result<(), FsError> {
    check_length(name)?;
    let purge = mount
        .change_once(
            |tables, now| {
                tables.directory(parent)?;
                if matches!(name, b"." | b"..") {
                    return Err(FsError::IsDirectory.into());
                }
                let entry = tables.dirent(parent, name)?.ok_or(FsError::NotFound)?;
                if entry.kind == FileKind::Directory {
                    return Err(FsError::IsDirectory.into());
                }
                tables.inode(entry.ino)?;
                remove_entry(tables, parent, name, entry.kind, now);
                Ok(lose_name(tables, entry, now))
            },
            |_| InodeNo::NONE,
        )
        .await?;
    if purge {
        mount.purge.notify_one();
    }
    Ok(())
}

/// See `Volume::rmdir`.
pub(crate) async fn rmdir(mount: &Mount, parent: InodeNo, name: &[u8]) -> Result<(), FsError> {
    check_length(name)?;
    let purge = mount
        .change_once(
            |tables, now| {
                tables.directory(parent)?;
                match name {
                    b"." => return Err(FsError::Invalid("a directory cannot remove itself").into()),
                    b".." => return Err(FsError::NotEmpty.into()),
                    _ => {}
                }
                let entry = tables.dirent(parent, name)?.ok_or(FsError::NotFound)?;
                if entry.kind != FileKind::Directory {
                    return Err(FsError::NotDirectory.into());
                }
                check_empty(tables, entry.ino)?;
                remove_entry(tables, parent, name, entry.kind, now);
                Ok(lose_name(tables, entry, now))
            },
            |_| InodeNo::NONE,
        )
        .await?;
    if purge {
        mount.purge.notify_one();
    }
    Ok(())
}
