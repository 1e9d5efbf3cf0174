//! The classic transport: requests that fuser has read from /dev/fuse, and its replies. It works on every kernel.
//!
//! Pure hand-over: each callback names its arguments as `Skin` does. Absent: any decision.

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileHandle, Filesystem, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, TimeOrNow, WriteFlags,
};
use volume::attr::{CopyRange, Entry, Place, SetAttr};
use volume::ids::DirCookie;

use super::reply::{
    Attributes, Content, Created, Found, Listing, Offset, Opened, Refuse, Reply, Request, Space, Written, Xattr,
};
use super::stat::{
    STATFS_BLOCK_BYTES, file_attr, file_type, inode_no, no_file, permissions, set_time, statfs_blocks, timestamp,
};
use super::{Making, Skin, flags};
use crate::session::Way;

/// Inode numbers are never reused, so all are of one generation.
const GENERATION: Generation = Generation(0);

/// The handle of every open file.
const HANDLE: FileHandle = FileHandle(0);

/// The skin as fuser calls it, and the way by which requests reach it.
#[derive(Debug)]
pub struct Classic(pub Arc<Skin>, pub Way);

fn request(request: &fuser::Request) -> Request {
    Request {
        unique: request.unique().0,
        uid: request.uid(),
        gid: request.gid(),
    }
}

fn place(dir: INodeNo, name: &OsStr) -> Place<'_> {
    Place {
        dir: inode_no(dir),
        name: name.as_bytes(),
    }
}

/// True where truncating takes the set-user-id bit away. The kernel says so in a flag that fuser 0.18 does not pass on;
/// root is who may keep it.
fn clears_suid(request: &fuser::Request) -> bool {
    request.uid() != 0
}

impl Filesystem for Classic {
    fn init(&mut self, _request: &fuser::Request, config: &mut KernelConfig) -> io::Result<()> {
        flags::negotiate(config, self.0.read_only, self.1)
    }

    fn lookup(&self, _request: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.lookup(place(parent, name), reply);
    }

    fn forget(&self, _request: &fuser::Request, ino: INodeNo, count: u64) {
        self.0.forget(inode_no(ino), count);
    }

    fn getattr(&self, _request: &fuser::Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        self.0.getattr(inode_no(ino), reply);
    }

    fn setattr(
        &self,
        request: &fuser::Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        ctime: Option<SystemTime>,
        _handle: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let change = SetAttr {
            mode: mode.map(permissions),
            uid,
            gid,
            size,
            atime: atime.map(set_time),
            mtime: mtime.map(set_time),
            ctime: ctime.map(timestamp),
        };
        let clears = size.is_some() && clears_suid(request);
        self.0.setattr(inode_no(ino), change, clears, reply);
    }

    fn readlink(&self, _request: &fuser::Request, ino: INodeNo, reply: ReplyData) {
        self.0.readlink(inode_no(ino), reply);
    }

    fn mknod(
        &self,
        asked: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let making = Making { mode, umask };
        self.0
            .mknod(&request(asked), place(parent, name), (making, rdev), reply);
    }

    fn mkdir(&self, asked: &fuser::Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let making = Making { mode, umask };
        self.0.mkdir(&request(asked), place(parent, name), making, reply);
    }

    fn unlink(&self, asked: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.unlink(&request(asked), place(parent, name), reply);
    }

    fn rmdir(&self, asked: &fuser::Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0.rmdir(&request(asked), place(parent, name), reply);
    }

    fn symlink(&self, asked: &fuser::Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let target = target.as_os_str().as_bytes();
        self.0.symlink(&request(asked), place(parent, name), target, reply);
    }

    fn rename(
        &self,
        asked: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let places = (place(parent, name), place(new_parent, new_name));
        self.0.rename(&request(asked), places, flags, reply);
    }

    fn link(&self, asked: &fuser::Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        self.0.link(&request(asked), inode_no(ino), place(parent, name), reply);
    }

    fn open(&self, request: &fuser::Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        self.0.open(inode_no(ino), flags, clears_suid(request), reply);
    }

    fn create(
        &self,
        asked: &fuser::Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let file = (Making { mode, umask }, OpenFlags(flags));
        self.0.create(&request(asked), place(parent, name), file, reply);
    }

    fn read(
        &self,
        _request: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        self.0.read(inode_no(ino), offset, size, reply);
    }

    fn write(
        &self,
        _request: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let clears = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        self.0.write(inode_no(ino), (offset, data), clears, reply);
    }

    fn flush(
        &self,
        _request: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        _owner: LockOwner,
        reply: ReplyEmpty,
    ) {
        self.0.flush(inode_no(ino), reply);
    }

    fn release(
        &self,
        _request: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.0.release(inode_no(ino), flags, reply);
    }

    fn fsync(&self, _request: &fuser::Request, ino: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        self.0.fsync(inode_no(ino), reply);
    }

    fn opendir(&self, _request: &fuser::Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        self.0.opendir(reply);
    }

    fn readdir(
        &self,
        _request: &fuser::Request,
        dir: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectory,
    ) {
        self.0.readdir(inode_no(dir), DirCookie(offset), reply);
    }

    fn readdirplus(
        &self,
        _request: &fuser::Request,
        dir: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        self.0.readdirplus(inode_no(dir), DirCookie(offset), reply);
    }

    fn fsyncdir(
        &self,
        _request: &fuser::Request,
        dir: INodeNo,
        _handle: FileHandle,
        _data_only: bool,
        reply: ReplyEmpty,
    ) {
        self.0.fsync(inode_no(dir), reply);
    }

    fn statfs(&self, _request: &fuser::Request, _ino: INodeNo, reply: ReplyStatfs) {
        self.0.statfs(reply);
    }

    fn setxattr(
        &self,
        asked: &fuser::Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let asked = request(asked);
        self.0
            .setxattr((&asked, inode_no(ino)), (name.as_bytes(), value), flags, reply);
    }

    fn getxattr(&self, _request: &fuser::Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        self.0.getxattr(inode_no(ino), name.as_bytes(), size, reply);
    }

    fn listxattr(&self, _request: &fuser::Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        self.0.listxattr(inode_no(ino), size, reply);
    }

    fn removexattr(&self, asked: &fuser::Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        self.0
            .removexattr(&request(asked), inode_no(ino), name.as_bytes(), reply);
    }

    fn fallocate(
        &self,
        asked: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        len_bytes: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        self.0
            .fallocate(&request(asked), inode_no(ino), (mode, offset, len_bytes), reply);
    }

    fn lseek(
        &self,
        _request: &fuser::Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        self.0.lseek(inode_no(ino), offset, whence, reply);
    }

    fn copy_file_range(
        &self,
        asked: &fuser::Request,
        from: INodeNo,
        _from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        to_offset: u64,
        len_bytes: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let range = CopyRange {
            from: inode_no(from),
            from_offset,
            to: inode_no(to),
            to_offset,
            len_bytes,
        };
        self.0.copy_file_range(&request(asked), range, reply);
    }
}

macro_rules! refuse {
    ($($reply:ty),*) => { $(impl Refuse for $reply {
        fn refuse(self, errno: Errno) {
            self.error(errno);
        }
    })* };
}

refuse!(
    ReplyAttr,
    ReplyCreate,
    ReplyData,
    ReplyDirectory,
    ReplyDirectoryPlus,
    ReplyEmpty,
    ReplyEntry,
    ReplyLseek,
    ReplyOpen,
    ReplyStatfs,
    ReplyWrite,
    ReplyXattr
);

impl Reply<()> for ReplyEmpty {
    fn give(self, (): ()) {
        self.ok();
    }
}

impl Reply<Found> for ReplyEntry {
    fn give(self, Found { attr, valid }: Found) {
        let attr = attr.map_or_else(no_file, |attr| file_attr(&attr));
        self.entry(&valid, &attr, GENERATION);
    }
}

impl Reply<Attributes> for ReplyAttr {
    fn give(self, Attributes { attr, valid }: Attributes) {
        self.attr(&valid, &file_attr(&attr));
    }
}

impl Reply<Opened> for ReplyOpen {
    fn give(self, Opened(flags): Opened) {
        self.opened(HANDLE, flags);
    }
}

impl Reply<Created> for ReplyCreate {
    fn give(self, Created(Found { attr, valid }, Opened(flags)): Created) {
        let attr = attr.map_or_else(no_file, |attr| file_attr(&attr));
        self.created(&valid, &attr, GENERATION, HANDLE, flags);
    }
}

impl Reply<Content> for ReplyData {
    fn give(self, Content(parts): Content) {
        self.data(&one_piece(parts));
    }
}

impl Reply<Written> for ReplyWrite {
    fn give(self, Written(len_bytes): Written) {
        self.written(len_bytes);
    }
}

impl Reply<Offset> for ReplyLseek {
    fn give(self, Offset(offset): Offset) {
        self.offset(offset);
    }
}

impl Reply<Xattr> for ReplyXattr {
    fn give(self, xattr: Xattr) {
        match xattr {
            Xattr::Length(len_bytes) => self.size(len_bytes),
            Xattr::Value(value) => self.data(&value),
        }
    }
}

impl Reply<Space> for ReplyStatfs {
    fn give(self, Space(space): Space) {
        let (total, free) = statfs_blocks(&space);
        self.statfs(
            total,
            free,
            free,
            space.inodes.saturating_add(space.free_inodes),
            space.free_inodes,
            STATFS_BLOCK_BYTES,
            volume::limits::NAME_BYTES_MAX as u32,
            STATFS_BLOCK_BYTES,
        );
    }
}

impl Reply<()> for ReplyDirectory {
    fn give(self, (): ()) {
        self.ok();
    }
}

impl Listing for ReplyDirectory {
    fn add(&mut self, entry: &Entry, _valid: Duration) -> bool {
        let name = OsStr::from_bytes(&entry.name);
        ReplyDirectory::add(self, INodeNo(entry.ino.0), entry.cookie.0, file_type(entry.kind), name)
    }
}

impl Reply<()> for ReplyDirectoryPlus {
    fn give(self, (): ()) {
        self.ok();
    }
}

impl Listing for ReplyDirectoryPlus {
    fn add(&mut self, entry: &Entry, valid: Duration) -> bool {
        let attr = entry.attr.as_ref().map_or_else(no_file, file_attr);
        let (ino, name) = (INodeNo(entry.ino.0), OsStr::from_bytes(&entry.name));
        ReplyDirectoryPlus::add(self, ino, entry.cookie.0, name, &valid, &attr, GENERATION)
    }
}

/// What was read, in one piece: a reply takes only one.
fn one_piece(mut parts: Vec<Bytes>) -> Bytes {
    if parts.len() <= 1 {
        return parts.pop().unwrap_or_default();
    }
    let mut whole = BytesMut::with_capacity(parts.iter().map(Bytes::len).sum());
    parts.iter().for_each(|part| whole.extend_from_slice(part));
    whole.freeze()
}
