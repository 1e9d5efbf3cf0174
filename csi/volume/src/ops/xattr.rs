//! Extended attributes. Linux: xattr(7); which namespaces a caller may use is the kernel's work.

use bytes::Bytes;

use super::acl::{self, Acl};
use super::attributes::S_ISGID;
use crate::attr::{SetXattr, XattrMode};
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::{NAME_BYTES_MAX, XATTR_BYTES_MAX, XATTR_LIST_BYTES_MAX};
use crate::mount::Mount;

fn check_name(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if name.is_empty() || name.contains(&0) {
        return Err(FsError::Invalid("that is no name of an attribute"));
    }
    Ok(())
}

/// See `Volume::getxattr`.
pub(crate) async fn getxattr(mount: &Mount, ino: InodeNo, name: &[u8]) -> Result<Bytes, FsError> {
    mount
        .look(|tables| Ok(tables.xattrs(ino)?.get(name).cloned().ok_or(FsError::NoAttribute)?))
        .await
}

/// See `Volume::listxattr`.
pub(crate) async fn listxattr(mount: &Mount, ino: InodeNo) -> Result<Vec<Bytes>, FsError> {
    mount
        .look(|tables| Ok(tables.xattrs(ino)?.keys().cloned().collect()))
        .await
}

/// See `Volume::setxattr`.
pub(crate) async fn setxattr(
    mount: &Mount,
    ino: InodeNo,
    name: &[u8],
    value: Bytes,
    how: SetXattr,
) -> Result<(), FsError> {
    check_name(name)?;
    if value.len() > XATTR_BYTES_MAX {
        return Err(FsError::AttributeTooLarge);
    }
    // A list that is no list is refused before it could decide who may do what.
    let list = if matches!(name, acl::ACCESS | acl::DEFAULT) {
        Some(Acl::decode(&value)?)
    } else {
        None
    };
    mount
        .change_once(
            |tables, now| {
                let values = tables.xattrs(ino)?;
                let exists = values.contains_key(name);
                match how.mode {
                    XattrMode::Create if exists => return Err(FsError::Exists.into()),
                    XattrMode::Replace if !exists => return Err(FsError::NoAttribute.into()),
                    XattrMode::Any | XattrMode::Create | XattrMode::Replace => {}
                }
                let listed: usize = values.keys().map(|name| name.len() + 1).sum();
                if !exists && listed + name.len() + 1 > XATTR_LIST_BYTES_MAX {
                    return Err(FsError::NoSpace.into());
                }
                let access = list.as_ref().filter(|_| name == acl::ACCESS);
                // What the mode says all of is not kept twice.
                let kept = access.is_none_or(|list| !list.is_mode());
                tables.set_xattr(ino, name, kept.then(|| value.clone()));
                tables.change_inode(ino, |row| {
                    row.ctime = now;
                    row.mode = access.map_or(row.mode, |list| acl::mode_with(row.mode, list));
                    if how.clears_sgid {
                        row.mode &= !S_ISGID;
                    }
                });
                Ok(())
            },
            |()| InodeNo::NONE,
        )
        .await
}

/// See `Volume::removexattr`.
pub(crate) async fn removexattr(mount: &Mount, ino: InodeNo, name: &[u8]) -> Result<(), FsError> {
    mount
        .change_once(
            |tables, now| {
                if !tables.xattrs(ino)?.contains_key(name) {
                    return Err(FsError::NoAttribute.into());
                }
                tables.set_xattr(ino, name, None);
                tables.change_inode(ino, |row| row.ctime = now);
                Ok(())
            },
            |()| InodeNo::NONE,
        )
        .await
}
