//! Attributes: chmod, chown, truncate, times; and the suid bits that writing clears.

use bytes::Bytes;

use super::acl::{self, Acl};
use super::write::become_extents;
use crate::attr::{Attr, SetAttr, SetTime};
use crate::clock::Timestamp;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::FILE_BYTES_MAX;
use crate::mount::Mount;
use crate::row::{FileKind, INLINE_BYTES_MAX, InodeRow};
use crate::table::{Stop, Tables};

/// Set-user-id.
pub(super) const S_ISUID: u16 = 0o4000;
/// Set-group-id.
pub(super) const S_ISGID: u16 = 0o2000;
/// What the group may execute: set-group-id without it means mandatory locking, not a change of identity.
const S_IXGRP: u16 = 0o0010;
/// All bits that chmod(2) can set.
pub(super) const MODE_BITS: u16 = 0o7777;

/// The mode without what lets a program run as its owner or group.
fn without_suid(mode: u16) -> u16 {
    let mode = mode & !S_ISUID;
    if mode & S_IXGRP != 0 { mode & !S_ISGID } else { mode }
}

/// The mode after a change by somebody of this group: what is no program's keeps set-group-id only if the group is the file's.
fn without_suid_after(row: &InodeRow, caller_gid: u32) -> u16 {
    match row.gid == caller_gid {
        true => without_suid(row.mode),
        false => without_suid(row.mode) & !S_ISGID,
    }
}

fn time_of(set: SetTime, now: Timestamp) -> Timestamp {
    match set {
        SetTime::Now => now,
        SetTime::At(time) => time,
    }
}

/// See `Volume::setattr`.
pub(crate) async fn setattr(mount: &Mount, ino: InodeNo, change: &SetAttr) -> Result<Attr, FsError> {
    mount
        .change(|tables, now| {
            let has_xattrs = tables.inode(ino)?.has_xattrs;
            let list = match change.mode {
                Some(_) if has_xattrs => tables
                    .xattrs(ino)?
                    .get(acl::ACCESS)
                    .map(|list| Acl::decode(list))
                    .transpose()?,
                _ => None,
            };
            if *change != SetAttr::default() {
                if let Some(size) = change.size {
                    set_size(tables, ino, size, now)?;
                }
                if let (Some(list), Some(mode)) = (list, change.mode) {
                    tables.set_xattr(ino, acl::ACCESS, Some(list.with_mode(mode).encode()));
                }
                tables.change_inode(ino, |row| apply(row, change, now));
            }
            tables.attr(ino)
        })
        .await
}

fn apply(row: &mut InodeRow, change: &SetAttr, now: Timestamp) {
    if change.uid.is_some() || change.gid.is_some() {
        row.uid = change.uid.unwrap_or(row.uid);
        row.gid = change.gid.unwrap_or(row.gid);
        // Linux clears them for every caller, also root (chown(2), "Notes"); a mode given in the same call stands.
        if row.kind != FileKind::Directory && change.mode.is_none() {
            row.mode = without_suid(row.mode);
        }
    }
    if let Some(mode) = change.mode {
        row.mode = mode & MODE_BITS;
    }
    if let Some(atime) = change.atime {
        row.atime = time_of(atime, now);
    }
    if let Some(mtime) = change.mtime {
        row.mtime = time_of(mtime, now);
    }
    row.ctime = change.ctime.unwrap_or(now);
}

/// Truncates or extends a file. POSIX: ftruncate(2): mtime and ctime change also where the length does not.
pub(super) fn set_size(tables: &mut Tables, ino: InodeNo, size: u64, now: Timestamp) -> Result<(), Stop> {
    let row = tables.regular(ino)?;
    let (old, has_inline, has_extents) = (
        row.size,
        row.inline.is_some(),
        row.allocated > 0 && row.inline.is_none(),
    );
    if size > FILE_BYTES_MAX {
        return Err(FsError::TooBig.into());
    }
    if has_extents && size <= old {
        // Also what is reserved beyond the end goes (fallocate(2) with FALLOC_FL_KEEP_SIZE), as on other file systems.
        tables.need_extents(ino, size, u64::MAX)?;
        tables.free_range(ino, size, u64::MAX);
    } else if has_inline {
        if size > INLINE_BYTES_MAX as u64 {
            become_extents(tables, ino);
        } else if size != old {
            resize_inline(tables, ino, size as usize)?;
        }
    }
    tables.change_inode(ino, |row| {
        row.size = size;
        row.mtime = now;
        row.ctime = now;
    });
    Ok(())
}

fn resize_inline(tables: &mut Tables, ino: InodeNo, size: usize) -> Result<(), Stop> {
    let inline = tables.inode(ino)?.inline.clone().unwrap_or_default();
    if size > inline.len() {
        tables.check_room((size - inline.len()) as u64)?;
    }
    let before = inline.len() as u64;
    let resized = if size <= inline.len() {
        Bytes::copy_from_slice(&inline[..size])
    } else {
        let mut longer = inline.to_vec();
        longer.resize(size, 0);
        longer.into()
    };
    tables.change_inode(ino, |row| row.inline = (size > 0).then_some(resized));
    tables.change_allocated(ino, size as u64, before);
    Ok(())
}

/// See `Volume::clear_suid`.
pub(crate) async fn clear_suid(mount: &Mount, ino: InodeNo, caller_gid: u32) -> Result<bool, FsError> {
    let changes = mount
        .look(|tables| {
            tables
                .inode(ino)
                .map(|row| without_suid_after(row, caller_gid) != row.mode)
        })
        .await?;
    if !changes {
        return Ok(false);
    }
    mount
        .change(|tables, now| {
            tables.regular(ino)?;
            tables.change_inode(ino, |row| {
                row.mode = without_suid_after(row, caller_gid);
                row.ctime = now;
            });
            Ok(true)
        })
        .await
}
