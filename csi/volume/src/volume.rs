//! A mounted volume: the one thing that `fuse.rs`, the command line and the tests hold.
//!
//! Every operation is an async function that finishes without waiting when all it needs is in RAM, so a FUSE thread may
//! poll it once and answer inline. What an operation means is in `ops/`, one file per family; here are only the names.
//! Never here: permission checks (the kernel's work) and error numbers (`csi/mount/src/errno.rs`).

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::time::Instant;
use uuid::Uuid;

use crate::attr::{
    Attr, Caller, CopyRange, Entry, Fallocate, NewNode, Place, RenameMode, SeekKind, SetAttr, SetXattr, StatFs,
};
use crate::bucket::BucketRef;
use crate::clock::Clock;
use crate::commit::{CommitHandle, CommitLimits, CommitStats, Lost};
use crate::error::FsError;
use crate::head::Durability;
use crate::ids::{DirCookie, Epoch, InodeNo, Lease};
use crate::limits::{DISK_CACHE_BYTES_MAX, FRAME_CACHE_BYTES_MAX, Limits};
use crate::metrics::HistogramSnapshot;
use crate::open::OpenError;
use crate::ops;
use crate::outage::Outage;
use crate::tail::Answer;
use crate::volume_id::NodeId;

pub use crate::fetch::FrameCounts;

mod mounting;
mod recovery;
mod spilled;

use mounting::Inner;

/// Where content that was read stays, to be read again without the bucket.
#[derive(Debug, Clone)]
pub struct CacheConfig {
    /// Folder for frames on disk, shared by all volumes of a node; `None` keeps them in RAM only.
    pub dir: Option<PathBuf>,
    /// Bytes of frames in RAM.
    pub ram_bytes: u64,
    /// Bytes of frames on disk.
    pub disk_bytes: u64,
}

impl Default for CacheConfig {
    fn default() -> Self {
        Self {
            dir: None,
            ram_bytes: FRAME_CACHE_BYTES_MAX,
            disk_bytes: DISK_CACHE_BYTES_MAX,
        }
    }
}

/// How to open a volume.
#[derive(Debug, Clone)]
pub struct OpenOptions {
    /// Name of this node: other nodes read it when they find the volume in use.
    pub node_id: NodeId,
    /// Open for reading only: nothing is taken over and nothing is ever written.
    pub read_only: bool,
    /// The right to write that the controller gave to this node; `None` takes the volume whoever holds it.
    pub claim: Option<Lease>,
    /// Where to keep content.
    pub cache: CacheConfig,
    /// Folder on a disk that survives a reboot, for what fsync leaves there in volumes of durability `local`; without one their
    /// fsync waits for the bucket.
    pub state_dir: Option<PathBuf>,
    /// Take in what an earlier process has left in `state_dir`, and leave every change there for a successor.
    pub spill: Option<SpillOptions>,
    /// How much may be in RAM.
    pub limits: Limits,
    /// How much a commit gathers, and when it leaves.
    pub commits: CommitLimits,
    /// What time it is.
    pub clock: Arc<dyn Clock>,
}

/// What a process leaves to its successor is for whom.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SpillOptions {
    /// Identity of this start of the machine: what was left before it is worth nothing.
    pub boot: Uuid,
    /// Identity of the connection with the kernel: calls are numbered in it.
    pub connection: Uuid,
    /// The connection is an earlier process's: programs have files open and wait for answers.
    pub adopts: bool,
    /// Leave every change as well. Without it what an earlier process has left is taken in, and that is all.
    pub leaves: bool,
}

/// What a volume is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Identity of the volume: it is in every frame.
    pub uuid: Uuid,
    /// The term in which this mount writes.
    pub epoch: Epoch,
    /// True if this mount never writes.
    pub read_only: bool,
    /// Bytes that its files may take; `None` without a limit.
    pub capacity_bytes: Option<u64>,
    /// When fsync returns.
    pub durability: Durability,
}

/// How a mount is doing, beside what `info`, `dirty_bytes` and `commit_stats` tell.
#[derive(Debug, Clone, Copy)]
pub struct VolumeMetrics {
    /// How long calls waited for durability.
    pub fsyncs: HistogramSnapshot,
    /// How long the oldest change that is not in the bucket has been waiting.
    pub oldest_dirty: Option<Duration>,
    /// Where content came from.
    pub frames: FrameCounts,
}

/// A mounted volume. Cheap to clone: all clones are the same mount.
///
/// Dropping the last clone stops its background work at once, as a crash would; only `close` leaves it clean.
#[derive(Debug, Clone)]
pub struct Volume {
    inner: Arc<Inner>,
}

impl Volume {
    /// Opens the volume at the root of `bucket`, and takes it over from whoever wrote it, unless `read_only`.
    ///
    /// # Errors
    /// `OpenError`: what is missing, damaged, or who holds the volume.
    pub async fn open(bucket: BucketRef, options: OpenOptions) -> Result<Volume, OpenError> {
        let opened = mounting::open(bucket, options).await?;
        Ok(Self {
            inner: Arc::new(opened),
        })
    }

    /// Commits what is dirty, flushes the tree, gives the volume back and ends the background work. All later calls fail.
    ///
    /// # Durability
    /// After `Ok` everything is in the bucket.
    ///
    /// # Errors
    /// `FsError::Lost` if the volume was lost before.
    pub async fn close(&self) -> Result<(), FsError> {
        mounting::close(&self.inner).await
    }

    /// What an earlier process of this connection has answered to a call, or was about to: it must not be done again.
    pub fn answer_of(&self, call: u64) -> Option<Answer> {
        self.inner.mount.state.spill.get()?.answer_of(call)
    }

    /// True if a successor of this process would find every change that programs were told of. A reader makes none.
    pub fn survives(&self) -> bool {
        let mount = &self.inner.mount;
        mount.read_only || mount.state.spill.get().is_some()
    }

    /// What the volume is.
    pub fn info(&self) -> VolumeInfo {
        let mount = &self.inner.mount;
        VolumeInfo {
            uuid: mount.uuid,
            epoch: mount.epoch,
            read_only: mount.read_only,
            capacity_bytes: mount.lock().capacity_bytes(),
            durability: mount.durability,
        }
    }

    /// Bytes that are not durable yet.
    pub fn dirty_bytes(&self) -> u64 {
        self.inner.mount.lock().dirty_bytes()
    }

    /// How many times programs have files open, as far as this process was told: an earlier one may have opened some.
    pub fn open_files(&self) -> u64 {
        self.inner.mount.lock().open_files()
    }

    /// Why nothing can be written any more, if so.
    pub fn lost(&self) -> Option<Lost> {
        self.inner.mount.lock().lost().cloned()
    }

    /// What is wrong with the store for this mount; `None` while it answers.
    pub fn outage(&self) -> Option<Outage> {
        self.inner.mount.watch.outage()
    }

    /// What was sent to the bucket so far; `None` for a mount that only reads.
    pub fn commit_stats(&self) -> Option<CommitStats> {
        self.inner.mount.commit.as_ref().map(CommitHandle::stats)
    }

    /// How the mount is doing.
    pub fn metrics(&self) -> VolumeMetrics {
        let mount = &self.inner.mount;
        VolumeMetrics {
            fsyncs: mount.state.fsyncs.snapshot(),
            oldest_dirty: mount.state.oldest_dirty(),
            frames: mount.fetcher.counts(),
        }
    }

    /// Changes how many bytes the files of this mount may take; `None` takes the limit away.
    pub fn set_capacity_bytes(&self, capacity_bytes: Option<u64>) {
        self.inner.mount.lock().set_capacity_bytes(capacity_bytes);
    }

    /// Finds a name. Counts one reference of the kernel, which `forget` takes back.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NameTooLong`.
    pub async fn lookup(&self, parent: InodeNo, name: &[u8]) -> Result<Attr, FsError> {
        ops::lookup::lookup(&self.inner.mount, parent, name).await
    }

    /// Takes back `count` references that `lookup`, `create`, `make_node`, `mkdir`, `symlink` and `link` have counted.
    pub fn forget(&self, ino: InodeNo, count: u64) {
        ops::lookup::forget(&self.inner.mount, ino, count);
    }

    /// Attributes of an inode.
    ///
    /// # Errors
    /// `Stale` if it does not exist any more.
    pub async fn getattr(&self, ino: InodeNo) -> Result<Attr, FsError> {
        ops::lookup::getattr(&self.inner.mount, ino).await
    }

    /// Changes attributes and returns them all. POSIX: chmod(2), chown(2), truncate(2), utimensat(2).
    ///
    /// # Errors
    /// `Stale`; `IsDirectory` or `Invalid` for the length of what is no regular file; `TooBig`; `NoSpace`.
    pub async fn setattr(&self, ino: InodeNo, change: &SetAttr) -> Result<Attr, FsError> {
        ops::attributes::setattr(&self.inner.mount, ino, change).await
    }

    /// Clears the suid bit, and the sgid bit of what its group may execute or is not the caller's group, as a write by somebody else
    /// than root does. True if there was one.
    ///
    /// # Errors
    /// `Stale`.
    pub async fn clear_suid(&self, ino: InodeNo, caller_gid: u32) -> Result<bool, FsError> {
        ops::attributes::clear_suid(&self.inner.mount, ino, caller_gid).await
    }

    /// Target of a symlink.
    ///
    /// # Errors
    /// `Invalid` if it is none.
    pub async fn readlink(&self, ino: InodeNo) -> Result<Bytes, FsError> {
        ops::lookup::readlink(&self.inner.mount, ino).await
    }

    /// Makes a regular file, pipe, socket or device. POSIX: mknod(2). Counts a reference.
    ///
    /// # Errors
    /// `Exists`, `NotFound` or `Stale` (the directory is gone), `NotDirectory`, `NameTooLong`, `Invalid` (a kind that has
    /// a call of its own).
    pub async fn make_node(
        &self,
        parent: InodeNo,
        name: &[u8],
        node: NewNode,
        caller: Caller,
    ) -> Result<Attr, FsError> {
        ops::make::make_node(&self.inner.mount, parent, name, node, caller).await
    }

    /// Makes a directory. Counts a reference.
    ///
    /// # Errors
    /// As `make_node`; `TooManyLinks`.
    pub async fn mkdir(&self, parent: InodeNo, name: &[u8], mode: u16, caller: Caller) -> Result<Attr, FsError> {
        ops::make::mkdir(&self.inner.mount, parent, name, mode, caller).await
    }

    /// Makes a symlink. Counts a reference.
    ///
    /// # Errors
    /// As `make_node`; `NameTooLong` also for the target.
    pub async fn symlink(&self, parent: InodeNo, name: &[u8], target: &[u8], caller: Caller) -> Result<Attr, FsError> {
        ops::make::symlink(&self.inner.mount, parent, name, target, caller).await
    }

    /// Gives an inode another name. Counts a reference.
    ///
    /// # Errors
    /// As `make_node`; `NotPermitted` for a directory; `TooManyLinks`.
    pub async fn link(&self, ino: InodeNo, parent: InodeNo, name: &[u8]) -> Result<Attr, FsError> {
        ops::link::link(&self.inner.mount, ino, parent, name).await
    }

    /// Removes a name of what is no directory. Its content stays while it is open.
    ///
    /// # Errors
    /// `NotFound`, `IsDirectory`, `NotDirectory`.
    pub async fn unlink(&self, parent: InodeNo, name: &[u8]) -> Result<(), FsError> {
        ops::unlink::unlink(&self.inner.mount, parent, name).await
    }

    /// Removes an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `NotDirectory`, `NotEmpty`, `Invalid` for "." and `NotEmpty` for "..".
    pub async fn rmdir(&self, parent: InodeNo, name: &[u8]) -> Result<(), FsError> {
        ops::unlink::rmdir(&self.inner.mount, parent, name).await
    }

    /// Renames. POSIX: rename(2); Linux: renameat2(2).
    ///
    /// # Errors
    /// `NotFound`, `Exists`, `IsDirectory`, `NotDirectory`, `NotEmpty`, `Invalid` (a directory into itself).
    pub async fn rename(&self, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> Result<(), FsError> {
        ops::rename::rename(&self.inner.mount, from, to, mode).await
    }

    /// Makes a regular file and opens it: counts a reference and an open, which `release` takes back.
    ///
    /// # Errors
    /// As `make_node`.
    pub async fn create(&self, parent: InodeNo, name: &[u8], mode: u16, caller: Caller) -> Result<Attr, FsError> {
        ops::make::create(&self.inner.mount, parent, name, mode, caller).await
    }

    /// Makes a regular file without a name, as a file of `parent`, and opens it: counts as `create` does. It is gone when nobody holds it
    /// any more, or after a crash, unless `link` has given it a name. POSIX: none; Linux: open(2), O_TMPFILE.
    ///
    /// # Errors
    /// As `make_node`, but for those of a name.
    pub async fn create_nameless(&self, parent: InodeNo, mode: u16, caller: Caller) -> Result<Attr, FsError> {
        ops::make::create_nameless(&self.inner.mount, parent, mode, caller).await
    }

    /// Opens a regular file or directory, and empties a file if `truncate`. `release` takes it back.
    ///
    /// # Errors
    /// `Stale`; those of `setattr` with `truncate`.
    pub async fn open_file(&self, ino: InodeNo, truncate: bool) -> Result<Attr, FsError> {
        ops::open::open_file(&self.inner.mount, ino, truncate).await
    }

    /// Takes back one `open_file` or `create`. The last one of a file without a name gives its content up.
    pub fn release(&self, ino: InodeNo) {
        ops::open::release(&self.inner.mount, ino);
    }

    /// Reads up to `len_bytes` at `offset`, in order; fewer only at the end of the file, none beyond it.
    ///
    /// # Errors
    /// `Stale`, `IsDirectory`, `Invalid`; `Damaged` or `Bucket` if the content cannot be had.
    pub async fn read(&self, ino: InodeNo, offset: u64, len_bytes: u32) -> Result<Vec<Bytes>, FsError> {
        ops::read::read(&self.inner.mount, ino, offset, len_bytes).await
    }

    /// Writes all of `data` at `offset`. Waits while too much is dirty.
    ///
    /// # Durability
    /// None, until an `fsync` of whatever inode returns.
    ///
    /// # Errors
    /// `Stale`, `IsDirectory`, `Invalid`, `TooBig`, `NoSpace`, `ReadOnly`, `Lost`.
    pub async fn write(&self, ino: InodeNo, offset: u64, data: Bytes) -> Result<(), FsError> {
        ops::write::write(&self.inner.mount, ino, offset, data).await
    }

    /// What close(2) of a descriptor waits for: nothing. It only tells of data that was lost.
    ///
    /// # Errors
    /// `Lost`.
    pub async fn flush(&self, ino: InodeNo) -> Result<(), FsError> {
        let _ = ino;
        ops::sync::flush(&self.inner.mount)
    }

    /// Waits until everything done before the call is durable (`ops/sync.rs` says what that means in the volume's mode). For
    /// files and directories alike.
    ///
    /// # Durability
    /// That is what it is for.
    ///
    /// # Errors
    /// `Lost`: what was not durable before never will be.
    pub async fn fsync(&self, ino: InodeNo) -> Result<(), FsError> {
        let _ = ino;
        self.sync_all().await
    }

    /// As `fsync`, for syncfs(2).
    ///
    /// # Errors
    /// `Lost`.
    pub async fn sync_all(&self) -> Result<(), FsError> {
        let (mount, begun) = (&self.inner.mount, Instant::now());
        let synced = ops::sync::sync(mount).await;
        mount.state.fsyncs.observe(begun.elapsed());
        synced
    }

    /// Waits until everything done before the call is in the bucket, whatever fsync means for this volume.
    ///
    /// # Durability
    /// That is what it is for.
    ///
    /// # Errors
    /// `Lost`: what was not in the bucket before never will be.
    pub async fn drain(&self) -> Result<(), FsError> {
        ops::sync::drain(&self.inner.mount).await
    }

    /// Lists at most `entries_max` entries that come after `after` (0 from the start), with "." and ".." first. Empty at
    /// the end. Entries that exist throughout are told exactly once. Counts no references.
    ///
    /// # Errors
    /// `NotDirectory`, `Stale`.
    pub async fn readdir(
        &self,
        dir: InodeNo,
        after: DirCookie,
        entries_max: usize,
        with_attrs: bool,
    ) -> Result<Vec<Entry>, FsError> {
        ops::readdir::readdir(&self.inner.mount, dir, after, entries_max, with_attrs).await
    }

    /// Counts one reference of the kernel: for each entry that a readdirplus reply carried.
    pub fn remember(&self, ino: InodeNo) {
        self.inner.mount.lock().remember(ino);
    }

    /// Value of an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`, `Stale`.
    pub async fn getxattr(&self, ino: InodeNo, name: &[u8]) -> Result<Bytes, FsError> {
        ops::xattr::getxattr(&self.inner.mount, ino, name).await
    }

    /// Sets an extended attribute.
    ///
    /// # Errors
    /// `Exists`, `NoAttribute` (as `how` asks), `NameTooLong`, `AttributeTooLarge`, `NoSpace`.
    pub async fn setxattr(
        &self,
        ino: InodeNo,
        name: &[u8],
        value: Bytes,
        how: impl Into<SetXattr>,
    ) -> Result<(), FsError> {
        ops::xattr::setxattr(&self.inner.mount, ino, name, value, how.into()).await
    }

    /// Names of all extended attributes, in order.
    ///
    /// # Errors
    /// `Stale`.
    pub async fn listxattr(&self, ino: InodeNo) -> Result<Vec<Bytes>, FsError> {
        ops::xattr::listxattr(&self.inner.mount, ino).await
    }

    /// Removes an extended attribute.
    ///
    /// # Errors
    /// `NoAttribute`.
    pub async fn removexattr(&self, ino: InodeNo, name: &[u8]) -> Result<(), FsError> {
        ops::xattr::removexattr(&self.inner.mount, ino, name).await
    }

    /// Space and inodes.
    pub fn statfs(&self) -> StatFs {
        ops::statfs::statfs(&self.inner.mount)
    }

    /// Extends a file, or frees or zeroes a range. Linux: fallocate(2).
    ///
    /// # Errors
    /// `Invalid`, `TooBig`, `NoSpace`, `Stale`.
    pub async fn fallocate(&self, ino: InodeNo, what: Fallocate, offset: u64, len_bytes: u64) -> Result<(), FsError> {
        ops::fallocate::fallocate(&self.inner.mount, ino, what, offset, len_bytes).await
    }

    /// Next offset at or after `offset` with data, or with a hole. The end of the file counts as a hole.
    ///
    /// # Errors
    /// `NoSuchOffset` beyond the end, or where no data follows.
    pub async fn seek(&self, ino: InodeNo, offset: u64, kind: SeekKind) -> Result<u64, FsError> {
        ops::seek::seek(&self.inner.mount, ino, offset, kind).await
    }

    /// Copies a range of one file into another, or within one, and returns how many bytes it copied: fewer than asked for
    /// only at the end of the source, or where it copies in steps.
    ///
    /// # Errors
    /// `Invalid` where the ranges overlap in one file; those of `read` and `write`.
    pub async fn copy_file_range(&self, range: CopyRange) -> Result<u64, FsError> {
        ops::copy::copy_file_range(&self.inner.mount, range).await
    }
}
