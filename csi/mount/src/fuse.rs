//! The skin: FUSE requests become calls of `Volume`, and their results become replies. Each operation calls and replies; a
//! transport (`session/device.rs`, `session/uring.rs`) brings it decoded and takes it encoded (`session/wire.rs`).
//!
//! What is in RAM is answered on the thread that read the request: a call is polled once in place, and only if it has to
//! wait does it become a task. Invariant: every request gets exactly one reply, also after a panic (a reply that is dropped
//! unsent says EIO). nodeid = inode number; file handles are always 0, so a successor has nothing to rebuild, and what must
//! not be done twice is done once (`once.rs`).
//! Absent on purpose: any meaning of an operation (`volume::ops`), error numbers (`errno.rs`), permission checks and
//! flock/fcntl locks (the kernel does both by itself, the locks because a volume has one writer).

use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use tokio::runtime::Handle;
use volume::attr::{Caller, CopyRange, NewNode, Place, SetAttr, SetXattr, XattrMode};
use volume::error::FsError;
use volume::ids::{DirCookie, InodeNo};
use volume::volume::Volume;

mod answer;
mod direct;
mod flags;
mod listing;
mod once;
pub mod reply;
mod seeking;
pub mod stat;

use answer::{About, refuse};
use reply::{Attributes, Content, Created, Found, Listing, Offset, Opened, Reply, Request, Space, Written, Xattr};
pub use seeking::Flusher;
use stat::{kind_of_mode, permissions};

/// Ten years: the one writer of a volume is this mount, so what the kernel remembers stays true until the kernel itself
/// changes it. A server that changes something behind its back must tell it.
const FOREVER: Duration = Duration::from_secs(10 * 365 * 24 * 3600);

/// 1 s: a mount that only reads may have a writer beside it, which it follows within a second (`volume`), so what the kernel
/// remembers adds one more.
const WHILE_READING: Duration = Duration::from_secs(1);

/// The largest part of copy_file_range answered at once: what a reply can count, in whole pages.
const COPY_BYTES_MAX: u64 = !4095u32 as u64;

/// One mounted volume as its transport calls it.
#[derive(Debug)]
pub struct Skin {
    volume: Volume,
    runtime: Handle,
    read_only: bool,
    /// How long the kernel may rely on what it was told.
    valid: Duration,
    flusher: Flusher,
}

/// Flags of open(2).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OpenFlags(pub i32);

/// What a program wants to make, with the umask that is to be taken from its mode.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Making {
    /// Kind and permission bits.
    pub mode: u32,
    /// Bits that it does not get.
    pub umask: u32,
}

/// What a program writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Writing {
    /// Where, in bytes.
    pub offset: u64,
    /// What.
    pub data: Bytes,
    /// It takes the set-user-id bit away.
    pub clears_suid: bool,
    /// Past the kernel's memory (O_DIRECT).
    pub direct: bool,
}

impl Skin {
    /// The skin of `volume`; what has to wait runs on `runtime`.
    pub fn new(volume: Volume, runtime: Handle, flusher: Flusher) -> Self {
        let read_only = volume.info().read_only;
        Self {
            volume,
            runtime,
            read_only,
            valid: if read_only { WHILE_READING } else { FOREVER },
            flusher,
        }
    }
}

fn caller(request: &Request, umask: u32) -> Caller {
    Caller {
        uid: request.uid,
        gid: request.gid,
        umask: permissions(umask),
    }
}

fn bytes(name: &[u8]) -> Bytes {
    Bytes::copy_from_slice(name)
}

/// Names and attributes.
impl Skin {
    /// Finds a name.
    pub fn lookup(&self, at: Place<'_>, reply: impl Reply<Found>) {
        let (volume, parent, name, valid) = (self.volume.clone(), at.dir, bytes(at.name), self.valid);
        let work = async move {
            match volume.lookup(parent, &name).await {
                Ok(attr) => Ok(Some(attr)),
                // The kernel remembers that the name does not exist, until it makes it itself.
                Err(FsError::NotFound) => Ok(None),
                Err(error) => Err(error),
            }
        };
        self.answer(About("lookup", parent), work, reply, move |attr| Found { attr, valid });
    }

    /// Takes references of the kernel back.
    pub fn forget(&self, ino: InodeNo, count: u64) {
        self.volume.forget(ino, count);
    }

    /// Tells attributes.
    pub fn getattr(&self, ino: InodeNo, reply: impl Reply<Attributes>) {
        let (volume, valid) = (self.volume.clone(), self.valid);
        let work = async move { volume.getattr(ino).await };
        self.answer(About("getattr", ino), work, reply, move |attr| Attributes {
            attr,
            valid,
        });
    }

    /// Changes attributes; `clears_suid` where a new length takes the set-user-id bit away.
    pub fn setattr(
        &self,
        (request, ino): (&Request, InodeNo),
        change: SetAttr,
        clears_suid: bool,
        reply: impl Reply<Attributes>,
    ) {
        let (volume, gid) = (self.volume.clone(), request.gid);
        let work = async move {
            if clears_suid {
                volume.clear_suid(ino, gid).await?;
            }
            volume.setattr(ino, &change).await
        };
        self.answer(About("setattr", ino), work, reply, |attr| Attributes {
            attr,
            valid: FOREVER,
        });
    }

    /// Tells where a symbolic link leads.
    pub fn readlink(&self, ino: InodeNo, reply: impl Reply<Content>) {
        let volume = self.volume.clone();
        let work = async move { volume.readlink(ino).await };
        self.answer(About("readlink", ino), work, reply, |target| Content(vec![target]));
    }

    /// Makes a file or what is no folder and no link, without opening it.
    pub fn mknod(&self, request: &Request, at: Place<'_>, (making, rdev): (Making, u32), reply: impl Reply<Found>) {
        let (parent, Making { mode, umask }) = (at.dir, making);
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
        let (volume, name, caller) = (self.volume.clone(), bytes(at.name), caller(request, umask));
        self.make((request, About("mknod", parent)), reply, async move {
            volume.make_node(parent, &name, node, caller).await
        });
    }

    /// Makes a folder.
    pub fn mkdir(&self, request: &Request, at: Place<'_>, making: Making, reply: impl Reply<Found>) {
        let (volume, parent, name) = (self.volume.clone(), at.dir, bytes(at.name));
        let (mode, caller) = (permissions(making.mode), caller(request, making.umask));
        self.make((request, About("mkdir", parent)), reply, async move {
            volume.mkdir(parent, &name, mode, caller).await
        });
    }

    /// Takes a name away.
    pub fn unlink(&self, request: &Request, at: Place<'_>, reply: impl Reply<()>) {
        let (volume, parent, name) = (self.volume.clone(), at.dir, bytes(at.name));
        let work = async move { volume.unlink(parent, &name).await };
        self.once((request, About("unlink", parent)), work, reply);
    }

    /// Takes a folder away.
    pub fn rmdir(&self, request: &Request, at: Place<'_>, reply: impl Reply<()>) {
        let (volume, parent, name) = (self.volume.clone(), at.dir, bytes(at.name));
        let work = async move { volume.rmdir(parent, &name).await };
        self.once((request, About("rmdir", parent)), work, reply);
    }

    /// Makes a symbolic link.
    pub fn symlink(&self, request: &Request, at: Place<'_>, target: &[u8], reply: impl Reply<Found>) {
        let (volume, parent, name, target) = (self.volume.clone(), at.dir, bytes(at.name), bytes(target));
        let caller = caller(request, 0);
        self.make((request, About("symlink", parent)), reply, async move {
            volume.symlink(parent, &name, &target, caller).await
        });
    }

    /// Moves a name.
    pub fn rename(&self, request: &Request, (from, to): (Place<'_>, Place<'_>), flags: u32, reply: impl Reply<()>) {
        let about = About("rename", from.dir);
        let mode = match flags::rename_mode(flags) {
            Ok(mode) => mode,
            Err(error) => return refuse(reply, about, &error),
        };
        let (volume, name, new_name) = (self.volume.clone(), bytes(from.name), bytes(to.name));
        let (parent, new_parent) = (from.dir, to.dir);
        let work = async move {
            let from = Place {
                dir: parent,
                name: &name,
            };
            let to = Place {
                dir: new_parent,
                name: &new_name,
            };
            volume.rename(from, to, mode).await
        };
        self.once((request, about), work, reply);
    }

    /// Gives a file one more name.
    pub fn link(&self, request: &Request, ino: InodeNo, to: Place<'_>, reply: impl Reply<Found>) {
        let (volume, parent, name) = (self.volume.clone(), to.dir, bytes(to.name));
        self.make((request, About("link", ino)), reply, async move {
            volume.link(ino, parent, &name).await
        });
    }
}

/// Content.
impl Skin {
    /// Opens a file; `clears_suid` where emptying it takes the set-user-id bit away.
    pub fn open(
        &self,
        (request, ino): (&Request, InodeNo),
        flags: OpenFlags,
        clears_suid: bool,
        reply: impl Reply<Opened>,
    ) {
        let truncate = flags::truncates(flags);
        let suid = self.suid_taker(request, truncate && clears_suid);
        let (volume, flusher, open_flags) = (self.volume.clone(), self.flusher.clone(), self.open_flags());
        let work = async move {
            suid.take(ino).await?;
            volume.open_file(ino, truncate).await
        };
        self.answer(About("open", ino), work, reply, move |_| {
            flusher.opened(ino, flags);
            Opened(open_flags)
        });
    }

    /// Makes a file and opens it.
    pub fn create(
        &self,
        request: &Request,
        at: Place<'_>,
        (making, flags): (Making, OpenFlags),
        reply: impl Reply<Created>,
    ) {
        let (volume, parent, name) = (self.volume.clone(), at.dir, bytes(at.name));
        let (mode, caller) = (permissions(making.mode), caller(request, making.umask));
        let work = async move { volume.create(parent, &name, mode, caller).await };
        self.make_open((request, About("create", parent)), flags, reply, work);
    }

    /// Makes a file without a name and opens it.
    pub fn tmpfile(
        &self,
        request: &Request,
        dir: InodeNo,
        (making, flags): (Making, OpenFlags),
        reply: impl Reply<Created>,
    ) {
        let volume = self.volume.clone();
        let (mode, caller) = (permissions(making.mode), caller(request, making.umask));
        let work = async move { volume.create_nameless(dir, mode, caller).await };
        self.make_open((request, About("tmpfile", dir)), flags, reply, work);
    }

    /// Reads, past the kernel's memory (`direct`) or for it.
    pub fn read(&self, ino: InodeNo, (offset, size): (u64, u32), direct: bool, reply: impl Reply<Content>) {
        if !direct {
            self.flusher.reads_pages(ino);
        }
        let volume = self.volume.clone();
        let work = async move { volume.read(ino, offset, size).await };
        self.answer(About("read", ino), work, reply, Content);
    }

    /// Writes.
    pub fn write(&self, (request, ino): (&Request, InodeNo), writing: Writing, reply: impl Reply<Written>) {
        let (volume, flusher) = (self.volume.clone(), self.flusher.clone());
        let suid = self.suid_taker(request, writing.clears_suid);
        let Writing {
            offset, data, direct, ..
        } = writing;
        let len_bytes = u32::try_from(data.len()).expect("a request is at most 1 MiB long");
        let work = async move {
            suid.take(ino).await?;
            volume.write(ino, offset, data).await?;
            if direct {
                flusher
                    .written_directly(ino, offset..offset + u64::from(len_bytes))
                    .await;
            }
            Ok(())
        };
        self.answer(About("write", ino), work, reply, move |()| Written(len_bytes));
    }

    /// A program closes a descriptor.
    pub fn flush(&self, ino: InodeNo, reply: impl Reply<()>) {
        let volume = self.volume.clone();
        let work = async move { volume.flush(ino).await };
        self.answer(About("flush", ino), work, reply, |()| ());
    }

    /// Nobody has the file open by this opening any more.
    pub fn release(&self, ino: InodeNo, flags: OpenFlags, reply: impl Reply<()>) {
        self.flusher.released(ino, flags);
        self.volume.release(ino);
        reply.give(());
    }

    /// Makes everything of a file or a folder durable.
    pub fn fsync(&self, ino: InodeNo, reply: impl Reply<()>) {
        let volume = self.volume.clone();
        let work = async move { volume.fsync(ino).await };
        self.answer(About("fsync", ino), work, reply, |()| ());
    }

    /// Reserves, punches or zeroes a range.
    pub fn fallocate(
        &self,
        request: &Request,
        ino: InodeNo,
        (mode, offset, len_bytes): (i32, u64, u64),
        reply: impl Reply<()>,
    ) {
        let what = match flags::fallocate(mode) {
            Ok(what) => what,
            Err(error) => return refuse(reply, About("fallocate", ino), &error),
        };
        let (volume, suid) = (self.volume.clone(), self.suid_taker(request, request.uid != 0));
        let work = async move {
            suid.take(ino).await?;
            volume.fallocate(ino, what, offset, len_bytes).await
        };
        self.answer(About("fallocate", ino), work, reply, |()| ());
    }

    /// Finds data or a hole.
    pub fn lseek(&self, ino: InodeNo, offset: i64, whence: i32, reply: impl Reply<Offset>) {
        let (volume, flusher) = (self.volume.clone(), self.flusher.clone());
        let work = async move {
            let kind = flags::seek_kind(whence)?;
            let offset = u64::try_from(offset).map_err(|_| FsError::NoSuchOffset)?;
            flusher.flush(ino).await;
            volume.seek(ino, offset, kind).await
        };
        self.answer(About("lseek", ino), work, reply, |found| {
            Offset(i64::try_from(found).unwrap_or(i64::MAX))
        });
    }

    /// Copies, or a first part of what is asked for.
    pub fn copy_file_range(&self, request: &Request, mut range: CopyRange, reply: impl Reply<Written>) {
        range.len_bytes = range.len_bytes.min(COPY_BYTES_MAX);
        let (volume, suid) = (self.volume.clone(), self.suid_taker(request, request.uid != 0));
        let work = async move {
            suid.take(range.to).await?;
            volume.copy_file_range(range).await
        };
        self.answer(About("copy_file_range", range.to), work, reply, |copied| {
            Written(u32::try_from(copied).expect("never more than COPY_BYTES_MAX"))
        });
    }
}

/// Listings, space, extended attributes.
impl Skin {
    /// Opens a folder.
    pub fn opendir(&self, reply: impl Reply<Opened>) {
        // "Not needed": the kernel stops asking, and caches listings until it changes the directory itself.
        reply.refuse(flags::NOT_NEEDED);
    }

    /// Lists a folder, from one place on.
    pub fn readdir(&self, dir: InodeNo, after: DirCookie, reply: impl Listing) {
        let volume = self.volume.clone();
        self.run(async move {
            let mut reply = reply;
            match listing::fill(&volume, dir, after, &mut reply).await {
                Ok(()) => reply.give(()),
                Err(error) => refuse(reply, About("readdir", dir), &error),
            }
        });
    }

    /// Lists a folder with attributes.
    pub fn readdirplus(&self, dir: InodeNo, after: DirCookie, reply: impl Listing) {
        let (volume, valid) = (self.volume.clone(), self.valid);
        self.run(async move {
            let mut reply = reply;
            match listing::fill_plus((&volume, valid), dir, after, &mut reply).await {
                Ok(()) => reply.give(()),
                Err(error) => refuse(reply, About("readdirplus", dir), &error),
            }
        });
    }

    /// Tells how much room there is.
    pub fn statfs(&self, reply: impl Reply<Space>) {
        reply.give(Space(self.volume.statfs()));
    }

    /// Sets an extended attribute; `clears_sgid` where that takes the set-group-id bit away.
    pub fn setxattr(
        &self,
        (request, ino): (&Request, InodeNo),
        (name, value): (&[u8], &[u8]),
        (flags, clears_sgid): (i32, bool),
        reply: impl Reply<()>,
    ) {
        let mode = match flags {
            libc::XATTR_CREATE => XattrMode::Create,
            libc::XATTR_REPLACE => XattrMode::Replace,
            _ => XattrMode::Any,
        };
        let how = SetXattr { mode, clears_sgid };
        let (volume, name, value) = (self.volume.clone(), bytes(name), bytes(value));
        let work = async move { volume.setxattr(ino, &name, value, how).await };
        self.once((request, About("setxattr", ino)), work, reply);
    }

    /// Tells an extended attribute, or its length where `size` is 0.
    pub fn getxattr(&self, ino: InodeNo, name: &[u8], size: u32, reply: impl Reply<Xattr>) {
        let (volume, name) = (self.volume.clone(), bytes(name));
        let work = async move { volume.getxattr(ino, &name).await };
        self.give_xattr((About("getxattr", ino), size), work, reply);
    }

    /// Tells the names of all extended attributes, or their length where `size` is 0.
    pub fn listxattr(&self, ino: InodeNo, size: u32, reply: impl Reply<Xattr>) {
        let volume = self.volume.clone();
        let work = async move {
            let names = volume.listxattr(ino).await?;
            let list: Vec<u8> = names.iter().flat_map(|name| name.iter().copied().chain([0])).collect();
            Ok(Bytes::from(list))
        };
        self.give_xattr((About("listxattr", ino), size), work, reply);
    }

    fn give_xattr(
        &self,
        (about, size): (About, u32),
        work: impl Future<Output = Result<Bytes, FsError>> + Send + 'static,
        reply: impl Reply<Xattr>,
    ) {
        self.run(async move {
            match work.await.map(|value| flags::xattr(size, value)) {
                Ok(Some(xattr)) => reply.give(xattr),
                Ok(None) => reply.refuse(Errno::ERANGE),
                Err(error) => refuse(reply, about, &error),
            }
        });
    }

    /// Takes an extended attribute away.
    pub fn removexattr(&self, request: &Request, ino: InodeNo, name: &[u8], reply: impl Reply<()>) {
        let (volume, name) = (self.volume.clone(), bytes(name));
        let work = async move { volume.removexattr(ino, &name).await };
        self.once((request, About("removexattr", ino)), work, reply);
    }
}

/// Takes the set-user-id bit from files that change by requests of which the kernel thinks that they leave the mode alone.
struct SuidTaker {
    /// `None` where the caller may keep the bit; else with the caller's group.
    of: Option<(Volume, Flusher, u32)>,
}

impl SuidTaker {
    async fn take(&self, ino: InodeNo) -> Result<(), FsError> {
        if let Some((volume, flusher, gid)) = &self.of
            && volume.clear_suid(ino, *gid).await?
        {
            flusher.forget_attributes(ino).await;
        }
        Ok(())
    }
}

impl Skin {
    /// Where the kernel does not say who may keep the bit, root may.
    fn suid_taker(&self, request: &Request, takes: bool) -> SuidTaker {
        SuidTaker {
            of: takes.then(|| (self.volume.clone(), self.flusher.clone(), request.gid)),
        }
    }

    fn open_flags(&self) -> u32 {
        match self.read_only {
            // Nothing of it can get lost when a program closes it.
            true => Opened::KEEP_CACHE | Opened::NO_FLUSH,
            false => Opened::KEEP_CACHE,
        }
    }
}
