//! The shapes that operations take and give: attributes, callers, entries. One vocabulary for `fuse.rs` and the tests.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::ids::{DirCookie, InodeNo};
use crate::row::FileKind;

/// Attributes of an inode, as stat(2) wants them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attr {
    /// Inode number.
    pub ino: InodeNo,
    /// Kind.
    pub kind: FileKind,
    /// Permission bits, 12 bits.
    pub mode: u16,
    /// Number of names.
    pub nlink: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device files.
    pub rdev: u32,
    /// Length in bytes.
    pub size: u64,
    /// Allocated space in units of 512 bytes.
    pub blocks_512: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
}

/// Who asks. Permissions are the kernel's work (`default_permissions`); this decides ownership of what is created.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Caller {
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
    /// Permission bits that new entries do not get, unless their directory has a default access control list. 0 where
    /// somebody has taken them away already.
    pub umask: u16,
}

/// What to make with `Volume::make_node`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NewNode {
    /// Kind; symlinks have their own call.
    pub kind: FileKind,
    /// Permission bits asked for; the caller's umask is taken from them.
    pub mode: u16,
    /// Device number of device files.
    pub rdev: u32,
}

/// A time to set.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SetTime {
    /// The volume's clock.
    Now,
    /// As given.
    At(Timestamp),
}

/// Which attributes to change; `None` leaves one as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SetAttr {
    /// Permission bits.
    pub mode: Option<u16>,
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Length in bytes: truncates or extends with a hole.
    pub size: Option<u64>,
    /// Access time.
    pub atime: Option<SetTime>,
    /// Modification time.
    pub mtime: Option<SetTime>,
    /// Change time (the kernel sends it with the writeback cache).
    pub ctime: Option<Timestamp>,
}

/// One entry of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// What it names.
    pub ino: InodeNo,
    /// Kind of it.
    pub kind: FileKind,
    /// The name.
    pub name: Bytes,
    /// Resume after this entry with it.
    pub cookie: DirCookie,
    /// Attributes, where the listing was asked for them (readdirplus).
    pub attr: Option<Attr>,
}

/// How rename(2) treats an existing target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RenameMode {
    /// Replace it.
    Replace,
    /// RENAME_NOREPLACE: refuse.
    NoReplace,
    /// RENAME_EXCHANGE: swap the two.
    Exchange,
}

/// How setxattr(2) treats an existing attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum XattrMode {
    /// Create or replace.
    Any,
    /// XATTR_CREATE.
    Create,
    /// XATTR_REPLACE.
    Replace,
}

/// How setxattr(2) sets an attribute.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SetXattr {
    /// What becomes of an existing one.
    pub mode: XattrMode,
    /// Clear the sgid bit with it: somebody who is not of the file's group gives it an access list.
    pub clears_sgid: bool,
}

impl From<XattrMode> for SetXattr {
    fn from(mode: XattrMode) -> Self {
        Self {
            mode,
            clears_sgid: false,
        }
    }
}

/// What fallocate(2) does to the range.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallocate {
    /// Reserve; extend the file unless `keep_size`.
    Allocate {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
    /// FALLOC_FL_PUNCH_HOLE (always keeps the size).
    PunchHole,
    /// FALLOC_FL_ZERO_RANGE.
    ZeroRange {
        /// FALLOC_FL_KEEP_SIZE.
        keep_size: bool,
    },
}

/// What to seek for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SeekKind {
    /// SEEK_DATA.
    Data,
    /// SEEK_HOLE.
    Hole,
}

/// Space and inodes, as statvfs(3) wants them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StatFs {
    /// Capacity in bytes; a huge number where the volume has no limit.
    pub total_bytes: u64,
    /// Bytes left.
    pub free_bytes: u64,
    /// Inodes in use.
    pub inodes: u64,
    /// Inodes that could still be made.
    pub free_inodes: u64,
}

/// A name in a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place<'a> {
    /// The directory.
    pub dir: InodeNo,
    /// The name in it.
    pub name: &'a [u8],
}

/// What copy_file_range(2) copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CopyRange {
    /// The file to read.
    pub from: InodeNo,
    /// Where to read.
    pub from_offset: u64,
    /// The file to write.
    pub to: InodeNo,
    /// Where to write.
    pub to_offset: u64,
    /// How many bytes.
    pub len_bytes: u64,
}
