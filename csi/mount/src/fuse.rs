//! The skin: FUSE requests become calls of `Volume`, and their results become replies. Each callback decodes, calls, replies.
//!
//! What is in RAM is answered on the thread that read the request: a call is polled once in place, and only if it has to
//! wait does it become a task. Invariant: every request gets exactly one reply, also after a panic (a reply that is dropped
//! unsent says EIO). nodeid = inode number; file handles are always 0, so a successor has nothing to rebuild, and what must
//! not be done twice is done once (`once.rs`).
//! Absent on purpose: any meaning of an operation (`volume::ops`), error numbers (`errno.rs`), permission checks and
//! flock/fcntl locks (the kernel does both by itself, the locks because a volume has one writer).

use std::ffi::OsStr;
use std::io;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::time::{Duration, SystemTime};

use bytes::{Bytes, BytesMut};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, KernelConfig, LockOwner,
    OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty,
    ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use tokio::runtime::Handle;
use volume::attr::{Caller, CopyRange, NewNode, Place, SetAttr, XattrMode};
use volume::error::FsError;
use volume::ids::DirCookie;
use volume::volume::Volume;

mod answer;
mod flags;
mod listing;
mod once;
mod seeking;
mod stat;

use answer::{About, refuse};
pub use seeking::Flusher;
use stat::{file_attr, inode_no, kind_of_mode, no_file, permissions, set_time, timestamp};

use crate::session::Outgoing;

/// Ten years: the one writer of a volume is this mount, so what the kernel remembers stays true until the kernel itself
/// changes it. A server that changes something behind its back must tell it.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// 1 s: a mount that only reads may have a writer beside it, which it follows within a second (`volume`), so what the kernel
/// remembers adds one more.
const WHILE_READING: Duration = Duration::from_secs(1);

/// The largest part of copy_file_range answered at once: what a reply can count, in whole pages.
const COPY_BYTES_MAX: u64 = !4095u32 as u64;

/// Bytes of a block in statfs(2).
const STATFS_BLOCK_BYTES: u32 = 4096;

/// Inode numbers are never reused, so all are of one generation.
const GENERATION: Generation = Generation(0);

/// The handle of every open file.
const HANDLE: FileHandle = FileHandle(0);

/// One mounted volume as fuser calls it.
#[derive(Debug)]
pub struct Skin {
    volume: Volume,
    runtime: Handle,
    read_only: bool,
    /// How long the kernel may rely on what it was told.
    valid: Duration,
    flusher: Flusher,
    outgoing: Outgoing,
}

impl Skin {
    /// The skin of `volume`; what has to wait runs on `runtime`.
    pub fn new(volume: Volume, runtime: Handle, (flusher, outgoing): (Flusher, Outgoing)) -> Self {
        let read_only = volume.info().read_only;
        Self {
            volume,
            runtime,
            read_only,
            valid: if read_only { WHILE_READING } else { FOREVER },
            flusher,
            outgoing,
        }
    }
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid(),
        gid: request.gid(),
        umask: permissions(umask),
    }
}

fn bytes(name: &OsStr) -> Bytes {
    Bytes::copy_from_slice(name.as_bytes())
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

impl Filesystem for Skin {
    fn init(&mut self, _request: &Request, config: &mut KernelConfig) -> io::Result<()> {
        flags::negotiate(config, self.read_only, self.outgoing.is_relayed())
    }

    fn lookup(&self, _request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (volume, name, valid) = (self.volume.clone(), bytes(name), self.valid);
        self.run(async move {
            match volume.lookup(inode_no(parent), &name).await {
                Ok(attr) => reply.entry(&valid, &file_attr(&attr), GENERATION),
                // The kernel remembers that the name does not exist, until it makes it itself.
                Err(FsError::NotFound) => reply.entry(&valid, &no_file(), GENERATION),
                Err(error) => refuse(reply, About("lookup", parent), &error),
            }
        });
    }

    fn forget(&self, _request: &Request, ino: INodeNo, count: u64) {
        self.volume.forget(inode_no(ino), count);
    }

    fn getattr(&self, _request: &Request, ino: INodeNo, _handle: Option<FileHandle>, reply: ReplyAttr) {
        let (volume, valid) = (self.volume.clone(), self.valid);
        let work = async move { volume.getattr(inode_no(ino)).await };
        self.answer(About("getattr", ino), work, reply, move |reply, attr| {
            reply.attr(&valid, &file_attr(&attr))
        });
    }

    fn setattr(
        &self,
        request: &Request,
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
        let volume = self.volume.clone();
        let work = async move {
            if clears {
                volume.clear_suid(inode_no(ino)).await?;
            }
            volume.setattr(inode_no(ino), &change).await
        };
        self.answer(About("setattr", ino), work, reply, |reply, attr| {
            reply.attr(&FOREVER, &file_attr(&attr))
        });
    }

    fn readlink(&self, _request: &Request, ino: INodeNo, reply: ReplyData) {
        let volume = self.volume.clone();
        let work = async move { volume.readlink(inode_no(ino)).await };
        self.answer(About("readlink", ino), work, reply, |reply, target| reply.data(&target));
    }

    fn mknod(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let Some(kind) = kind_of_mode(mode) else {
            return refuse(
                reply,
                About("mknod", parent),
                &FsError::Invalid("a mode that names no kind of file"),
            );
        };
        let node = NewNode {
            kind,
            mode: permissions(mode),
            rdev,
        };
        let (volume, name, caller) = (self.volume.clone(), bytes(name), caller(request, umask));
        self.make((request, About("mknod", parent)), reply, async move {
            volume.make_node(inode_no(parent), &name, node, caller).await
        });
    }

    fn mkdir(&self, request: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        let (volume, name, caller) = (self.volume.clone(), bytes(name), caller(request, umask));
        self.make((request, About("mkdir", parent)), reply, async move {
            volume.mkdir(inode_no(parent), &name, permissions(mode), caller).await
        });
    }

    fn unlink(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (volume, name) = (self.volume.clone(), bytes(name));
        let work = async move { volume.unlink(inode_no(parent), &name).await };
        self.once((request, About("unlink", parent)), work, reply);
    }

    fn rmdir(&self, request: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (volume, name) = (self.volume.clone(), bytes(name));
        let work = async move { volume.rmdir(inode_no(parent), &name).await };
        self.once((request, About("rmdir", parent)), work, reply);
    }

    fn symlink(&self, request: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (volume, name, target) = (self.volume.clone(), bytes(name), bytes(target.as_os_str()));
        let caller = caller(request, 0);
        self.make((request, About("symlink", parent)), reply, async move {
            volume.symlink(inode_no(parent), &name, &target, caller).await
        });
    }

    fn rename(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        new_parent: INodeNo,
        new_name: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = match flags::rename_mode(flags) {
            Ok(mode) => mode,
            Err(error) => return refuse(reply, About("rename", parent), &error),
        };
        let (volume, from, to) = (self.volume.clone(), bytes(name), bytes(new_name));
        let work = async move {
            let from = Place {
                dir: inode_no(parent),
                name: &from,
            };
            let to = Place {
                dir: inode_no(new_parent),
                name: &to,
            };
            volume.rename(from, to, mode).await
        };
        self.once((request, About("rename", parent)), work, reply);
    }

    fn link(&self, request: &Request, ino: INodeNo, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let (volume, name) = (self.volume.clone(), bytes(name));
        self.make((request, About("link", ino)), reply, async move {
            volume.link(inode_no(ino), inode_no(parent), &name).await
        });
    }

    fn open(&self, request: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        let truncate = flags::truncates(flags);
        let clears = truncate && clears_suid(request);
        let (volume, flusher, open_flags) = (self.volume.clone(), self.flusher.clone(), self.open_flags());
        let work = async move {
            if clears {
                volume.clear_suid(inode_no(ino)).await?;
            }
            volume.open_file(inode_no(ino), truncate).await
        };
        self.answer(About("open", ino), work, reply, move |reply, _| {
            flusher.opened(inode_no(ino), flags);
            reply.opened(HANDLE, open_flags);
        });
    }

    fn create(
        &self,
        request: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (volume, name, caller) = (self.volume.clone(), bytes(name), caller(request, umask));
        let work = async move { volume.create(inode_no(parent), &name, permissions(mode), caller).await };
        self.make_open((request, About("create", parent)), flags, reply, work);
    }

    fn read(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let volume = self.volume.clone();
        let work = async move { volume.read(inode_no(ino), offset, size).await };
        self.answer(About("read", ino), work, reply, |reply, parts| {
            reply.data(&one_piece(parts))
        });
    }

    fn write(
        &self,
        _request: &Request,
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
        let (volume, data) = (self.volume.clone(), Bytes::copy_from_slice(data));
        let len_bytes = u32::try_from(data.len()).expect("a request is at most 1 MiB long");
        let work = async move {
            if clears {
                volume.clear_suid(inode_no(ino)).await?;
            }
            volume.write(inode_no(ino), offset, data).await
        };
        self.answer(About("write", ino), work, reply, move |reply, ()| {
            reply.written(len_bytes)
        });
    }

    fn flush(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        let volume = self.volume.clone();
        let work = async move { volume.flush(inode_no(ino)).await };
        self.answer(About("flush", ino), work, reply, |reply, ()| reply.ok());
    }

    fn release(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.flusher.released(inode_no(ino), flags);
        self.volume.release(inode_no(ino));
        reply.ok();
    }

    fn fsync(&self, _request: &Request, ino: INodeNo, _handle: FileHandle, _data_only: bool, reply: ReplyEmpty) {
        let volume = self.volume.clone();
        let work = async move { volume.fsync(inode_no(ino)).await };
        self.answer(About("fsync", ino), work, reply, |reply, ()| reply.ok());
    }

    fn opendir(&self, _request: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // "Not needed": the kernel stops asking, and caches listings until it changes the directory itself.
        reply.error(flags::NOT_NEEDED);
    }

    fn readdir(&self, _request: &Request, dir: INodeNo, _handle: FileHandle, offset: u64, reply: ReplyDirectory) {
        let volume = self.volume.clone();
        self.run(async move {
            let mut reply = reply;
            match listing::fill(&volume, inode_no(dir), DirCookie(offset), &mut reply).await {
                Ok(()) => reply.ok(),
                Err(error) => refuse(reply, About("readdir", dir), &error),
            }
        });
    }

    fn readdirplus(
        &self,
        _request: &Request,
        dir: INodeNo,
        _handle: FileHandle,
        offset: u64,
        reply: ReplyDirectoryPlus,
    ) {
        let (volume, valid) = (self.volume.clone(), self.valid);
        self.run(async move {
            let mut reply = reply;
            match listing::fill_plus((&volume, valid), inode_no(dir), DirCookie(offset), &mut reply).await {
                Ok(()) => reply.ok(),
                Err(error) => refuse(reply, About("readdirplus", dir), &error),
            }
        });
    }

    fn fsyncdir(&self, request: &Request, dir: INodeNo, handle: FileHandle, data_only: bool, reply: ReplyEmpty) {
        self.fsync(request, dir, handle, data_only, reply);
    }

    fn statfs(&self, _request: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let space = self.volume.statfs();
        let blocks = |bytes: u64| bytes / u64::from(STATFS_BLOCK_BYTES);
        reply.statfs(
            blocks(space.total_bytes),
            blocks(space.free_bytes),
            blocks(space.free_bytes),
            space.inodes.saturating_add(space.free_inodes),
            space.free_inodes,
            STATFS_BLOCK_BYTES,
            volume::limits::NAME_BYTES_MAX as u32,
            STATFS_BLOCK_BYTES,
        );
    }

    fn setxattr(
        &self,
        request: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        let (volume, name, value) = (self.volume.clone(), bytes(name), Bytes::copy_from_slice(value));
        let work = async move { volume.setxattr(inode_no(ino), &name, value, mode).await };
        self.once((request, About("setxattr", ino)), work, reply);
    }

    fn getxattr(&self, _request: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let (volume, name) = (self.volume.clone(), bytes(name));
        let work = async move { volume.getxattr(inode_no(ino), &name).await };
        self.answer(About("getxattr", ino), work, reply, move |reply, value| {
            flags::give_xattr(reply, size, &value)
        });
    }

    fn listxattr(&self, _request: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let volume = self.volume.clone();
        let work = async move { volume.listxattr(inode_no(ino)).await };
        self.answer(About("listxattr", ino), work, reply, move |reply, names| {
            let list: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
            flags::give_xattr(reply, size, &list);
        });
    }

    fn removexattr(&self, request: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let (volume, name) = (self.volume.clone(), bytes(name));
        let work = async move { volume.removexattr(inode_no(ino), &name).await };
        self.once((request, About("removexattr", ino)), work, reply);
    }

    fn fallocate(
        &self,
        request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: u64,
        len_bytes: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let what = match flags::fallocate(mode) {
            Ok(what) => what,
            Err(error) => return refuse(reply, About("fallocate", ino), &error),
        };
        let (volume, suid) = (self.volume.clone(), self.suid_taker(request));
        let work = async move {
            suid.take(inode_no(ino)).await?;
            volume.fallocate(inode_no(ino), what, offset, len_bytes).await
        };
        self.answer(About("fallocate", ino), work, reply, |reply, ()| reply.ok());
    }

    fn lseek(
        &self,
        _request: &Request,
        ino: INodeNo,
        _handle: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        let (volume, flusher) = (self.volume.clone(), self.flusher.clone());
        let work = async move {
            let kind = flags::seek_kind(whence)?;
            let offset = u64::try_from(offset).map_err(|_| FsError::NoSuchOffset)?;
            flusher.flush(inode_no(ino)).await;
            volume.seek(inode_no(ino), offset, kind).await
        };
        self.answer(About("lseek", ino), work, reply, |reply, found| {
            reply.offset(i64::try_from(found).unwrap_or(i64::MAX));
        });
    }

    fn copy_file_range(
        &self,
        request: &Request,
        from: INodeNo,
        _from_handle: FileHandle,
        from_offset: u64,
        to: INodeNo,
        _to_handle: FileHandle,
        to_offset: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        let len_bytes = len.min(COPY_BYTES_MAX);
        let range = CopyRange {
            from: inode_no(from),
            from_offset,
            to: inode_no(to),
            to_offset,
            len_bytes,
        };
        let (volume, suid) = (self.volume.clone(), self.suid_taker(request));
        let work = async move {
            suid.take(inode_no(to)).await?;
            volume.copy_file_range(range).await
        };
        self.answer(About("copy_file_range", to), work, reply, |reply, copied| {
            reply.written(u32::try_from(copied).expect("never more than COPY_BYTES_MAX"));
        });
    }
}

/// Takes the set-user-id bit from files that change by requests of which the kernel thinks that they leave the mode alone.
struct SuidTaker {
    /// `None` where the caller may keep the bit.
    of: Option<(Volume, Flusher)>,
}

impl SuidTaker {
    async fn take(&self, ino: volume::ids::InodeNo) -> Result<(), FsError> {
        if let Some((volume, flusher)) = &self.of
            && volume.clear_suid(ino).await?
        {
            flusher.forget_attributes(ino).await;
        }
        Ok(())
    }
}

impl Skin {
    fn suid_taker(&self, request: &Request) -> SuidTaker {
        SuidTaker {
            of: clears_suid(request).then(|| (self.volume.clone(), self.flusher.clone())),
        }
    }

    fn open_flags(&self) -> FopenFlags {
        let mut flags = FopenFlags::FOPEN_KEEP_CACHE;
        // Nothing of a read-only mount can get lost, so close(2) need not ask.
        flags.set(FopenFlags::FOPEN_NOFLUSH, self.read_only);
        flags
    }
}

/// True where truncating takes the set-user-id bit away. The kernel says so in a flag that fuser 0.18 does not pass on;
/// root is who may keep it.
fn clears_suid(request: &Request) -> bool {
    request.uid() != 0
}
