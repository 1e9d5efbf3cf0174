//! New inodes: files, directories, symlinks, pipes, sockets, devices.

use bytes::Bytes;

use super::acl::{self, Inherited, inherit};
use super::attributes::{MODE_BITS, S_ISGID};
use crate::attr::{Attr, Caller, NewNode};
use crate::clock::Timestamp;
use crate::dirent::check_new_name;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::{LINKS_MAX, SYMLINK_BYTES_MAX};
use crate::mount::Mount;
use crate::ranges::RangeSet;
use crate::row::{DirentRow, FileKind, InodeRow};
use crate::table::{Stop, Tables};

const ROOT: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

/// The row of the root directory of a new volume.
pub(crate) fn root_row(now: Timestamp) -> InodeRow {
    let root = NewNode {
        kind: FileKind::Directory,
        mode: 0o755,
        rdev: 0,
    };
    InodeRow {
        nlink: 2,
        parent: InodeNo::ROOT,
        ..row_of(&root, ROOT, now)
    }
}

fn row_of(node: &NewNode, caller: Caller, now: Timestamp) -> InodeRow {
    InodeRow {
        kind: node.kind,
        mode: node.mode & MODE_BITS,
        uid: caller.uid,
        gid: caller.gid,
        rdev: node.rdev,
        nlink: 1,
        size: 0,
        allocated: 0,
        parent: InodeNo::ROOT,
        entries: 0,
        atime: now,
        mtime: now,
        ctime: now,
        btime: now,
        has_xattrs: false,
        reserved: RangeSet::default(),
        inline: None,
    }
}

/// Refuses a directory that was removed while somebody works in it. POSIX: open(2), ENOENT.
pub(super) fn living_directory(tables: &mut Tables, dir: InodeNo) -> Result<&InodeRow, Stop> {
    let row = tables.directory(dir)?;
    if row.nlink == 0 {
        Err(FsError::NotFound.into())
    } else {
        Ok(row)
    }
}

/// Adds an entry and what it does to its directory.
pub(super) fn add_entry(tables: &mut Tables, dir: InodeNo, name: &[u8], entry: DirentRow, now: Timestamp) {
    tables.set_dirent(dir, name, Some(entry));
    tables.change_inode(dir, |row| {
        row.entries += 1;
        row.nlink += u32::from(entry.kind == FileKind::Directory);
        row.mtime = now;
        row.ctime = now;
    });
}

/// What to make, and where.
struct New<'a> {
    parent: InodeNo,
    name: &'a [u8],
    node: NewNode,
    target: Option<Bytes>,
    caller: Caller,
}

impl<'a> New<'a> {
    /// Whatever leads nowhere. The volume's own umask takes away what the program's leaves.
    fn of(mount: &Mount, (parent, name): (InodeNo, &'a [u8]), node: NewNode, caller: Caller) -> Self {
        Self {
            parent,
            name,
            node,
            target: None,
            caller: Caller {
                umask: caller.umask | mount.umask,
                ..caller
            },
        }
    }

    /// What has a kind and a mode only.
    fn of_kind(mount: &Mount, at: (InodeNo, &'a [u8]), (kind, mode): (FileKind, u16), caller: Caller) -> Self {
        Self::of(mount, at, NewNode { kind, mode, rdev: 0 }, caller)
    }
}

fn make(tables: &mut Tables, new: &New<'_>, now: Timestamp) -> Result<Attr, Stop> {
    living_directory(tables, new.parent)?;
    if tables.dirent(new.parent, new.name)?.is_some() {
        return Err(FsError::Exists.into());
    }
    let ino = make_inode(tables, new, 1, now)?;
    add_entry(
        tables,
        new.parent,
        new.name,
        DirentRow {
            ino,
            kind: new.node.kind,
        },
        now,
    );
    tables.remember(ino);
    tables.attr(ino)
}

/// An inode as its directory wants it, which no directory has yet.
fn make_inode(tables: &mut Tables, new: &New<'_>, nlink: u32, now: Timestamp) -> Result<InodeNo, Stop> {
    let directory = living_directory(tables, new.parent)?;
    let (dir_mode, dir_gid, dir_nlink) = (directory.mode, directory.gid, directory.nlink);
    let inherits = directory.has_xattrs && new.node.kind != FileKind::Symlink;
    let is_directory = new.node.kind == FileKind::Directory;
    if is_directory && dir_nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    let attributes = if inherits {
        Some(tables.xattrs(new.parent)?)
    } else {
        None
    };
    let Inherited { mode, access, default } = match new.node.kind {
        // The bits of a symlink mean nothing and are always all set.
        FileKind::Symlink => inherit(None, new.node.mode, 0, false)?,
        _ => inherit(attributes, new.node.mode, new.caller.umask, is_directory)?,
    };
    let mut row = row_of(&NewNode { mode, ..new.node }, new.caller, now);
    row.nlink = nlink;
    if dir_mode & S_ISGID != 0 {
        row.gid = dir_gid;
        if is_directory {
            row.mode |= S_ISGID;
        }
    }
    if is_directory {
        row.nlink = 2;
        row.parent = new.parent;
    }
    if let Some(target) = &new.target {
        tables.check_room(target.len() as u64)?;
        row.size = target.len() as u64;
        row.allocated = target.len() as u64;
        row.inline = Some(target.clone());
    }
    let ino = tables.add_inode(row);
    for (name, list) in [(acl::ACCESS, access), (acl::DEFAULT, default)] {
        if list.is_some() {
            tables.xattrs(ino)?;
            tables.set_xattr(ino, name, list);
        }
    }
    if is_directory {
        tables.know_empty_directory(ino);
    }
    Ok(ino)
}

/// See `Volume::make_node`.
pub(crate) async fn make_node(
    mount: &Mount,
    parent: InodeNo,
    name: &[u8],
    node: NewNode,
    caller: Caller,
) -> Result<Attr, FsError> {
    check_new_name(name)?;
    if matches!(node.kind, FileKind::Directory | FileKind::Symlink) {
        return Err(FsError::Invalid("a directory or symbolic link is made by another call"));
    }
    let new = New::of(mount, (parent, name), node, caller);
    mount
        .change_once(|tables, now| make(tables, &new, now), |attr| attr.ino)
        .await
}

/// See `Volume::create`.
pub(crate) async fn create(
    mount: &Mount,
    parent: InodeNo,
    name: &[u8],
    mode: u16,
    caller: Caller,
) -> Result<Attr, FsError> {
    check_new_name(name)?;
    let new = New::of_kind(mount, (parent, name), (FileKind::Regular, mode), caller);
    mount
        .change_once(
            |tables, now| {
                let attr = make(tables, &new, now)?;
                tables.open_inode(attr.ino);
                Ok(attr)
            },
            |attr| attr.ino,
        )
        .await
}

/// See `Volume::create_nameless`.
pub(crate) async fn create_nameless(
    mount: &Mount,
    parent: InodeNo,
    mode: u16,
    caller: Caller,
) -> Result<Attr, FsError> {
    let new = New::of_kind(mount, (parent, b""), (FileKind::Regular, mode), caller);
    mount
        .change_once(
            |tables, now| {
                let ino = make_inode(tables, &new, 0, now)?;
                // Held before it is an orphan, or it would go at once.
                tables.remember(ino);
                tables.open_inode(ino);
                tables.add_nameless(ino);
                tables.attr(ino)
            },
            |attr| attr.ino,
        )
        .await
}

/// See `Volume::mkdir`.
pub(crate) async fn mkdir(
    mount: &Mount,
    parent: InodeNo,
    name: &[u8],
    mode: u16,
    caller: Caller,
) -> Result<Attr, FsError> {
    check_new_name(name)?;
    let new = New::of_kind(mount, (parent, name), (FileKind::Directory, mode), caller);
    mount
        .change_once(|tables, now| make(tables, &new, now), |attr| attr.ino)
        .await
}

/// See `Volume::symlink`.
pub(crate) async fn symlink(
    mount: &Mount,
    parent: InodeNo,
    name: &[u8],
    target: &[u8],
    caller: Caller,
) -> Result<Attr, FsError> {
    check_new_name(name)?;
    if target.len() > SYMLINK_BYTES_MAX {
        return Err(FsError::NameTooLong);
    }
    if target.is_empty() {
        return Err(FsError::NotFound);
    }
    let new = New {
        target: Some(Bytes::copy_from_slice(target)),
        ..New::of_kind(mount, (parent, name), (FileKind::Symlink, 0o777), caller)
    };
    mount
        .change_once(|tables, now| make(tables, &new, now), |attr| attr.ino)
        .await
}
