//! Further names of an inode.

use super::make::{add_entry, living_directory};
use crate::attr::Attr;
use crate::dirent::check_new_name;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::LINKS_MAX;
use crate::mount::Mount;
use crate::row::{DirentRow, FileKind};

/// See `Volume::link`.
pub(crate) async fn link(mount: &Mount, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Result<Attr, FsError> {
    check_new_name(name)?;
    mount
        .change_once(
            |tables, now| {
                let row = tables.inode(ino)?;
                let (kind, nlink) = (row.kind, row.nlink);
                if kind == FileKind::Directory {
                    return Err(FsError::NotPermitted.into());
                }
                living_directory(tables, parent)?;
                if tables.dirent(parent, name)?.is_some() {
                    return Err(FsError::Exists.into());
                }
                if nlink >= LINKS_MAX {
                    return Err(FsError::TooManyLinks.into());
                }
                // A file that lost its last name while it was open gets none again: Linux, link(2), ENOENT. One that never had a
                // name may get one: open(2), O_TMPFILE.
                let is_nameless = nlink == 0;
                if is_nameless && !tables.is_nameable(ino) {
                    return Err(FsError::NotFound.into());
                }
                add_entry(tables, parent, name, DirentRow { ino, kind }, now);
                tables.change_inode(ino, |row| {
                    row.nlink += 1;
                    row.ctime = now;
                });
                if is_nameless {
                    tables.end_nameless(ino);
                }
                tables.remember(ino);
                tables.attr(ino)
            },
            |attr| attr.ino,
        )
        .await
}
