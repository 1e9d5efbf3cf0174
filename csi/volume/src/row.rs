//! What the metadata tree holds: keys and rows, without their byte encoding (`row/codec.rs`).
//!
//! Invariant: a row that names an object is written to the tree only after that object is durable (see `commit.rs`).
//! Keys sort so that a directory is one range, a file's extents are one range, and rows of one inode lie together.

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::ids::{DirCookie, Epoch, InodeNo, JournalSeq, ObjectId};
use crate::ranges::RangeSet;

pub mod codec;

/// Largest content that lives in the inode's own row, in bytes: the target of a symbolic link, or a short file.
pub const INLINE_BYTES_MAX: usize = 4096;

/// 512 bytes: what is written to a file beyond it goes to frames. A listing reads the rows of all that it names, so content in
/// them is paid for by everybody who only wants attributes.
pub const INLINE_WRITTEN_BYTES_MAX: usize = 512;

const _: () = assert!(INLINE_WRITTEN_BYTES_MAX <= INLINE_BYTES_MAX);

/// Uncompressed bytes of a frame, the unit of checksum and of the smallest read: 128 KiB keeps a random 4 KiB read small
/// and the header (64 bytes) below 0.1 %. The last frame of a run may be shorter.
pub const FRAME_BYTES: u32 = 128 * 1024;

/// Longest extent run in bytes: one segment. A sequential GiB is 64 rows.
pub const RUN_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// Most frames of a run: one segment full of them.
pub const FRAMES_PER_RUN_MAX: usize = (RUN_BYTES_MAX / FRAME_BYTES as u64) as usize;

/// 128 separate ranges that fallocate(2) has reserved in one file: 2 KiB in its row at most. One more is refused as not
/// supported, and the C library then writes zeros; a hole punched into the last one keeps its space.
pub const RESERVED_RANGES_MAX: usize = 128;

const _: () = assert!(RUN_BYTES_MAX.is_multiple_of(FRAME_BYTES as u64));

/// A key of the tree, in the order of its encoding.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Key {
    /// The counters of the volume: one row.
    Counters,
    /// Which commit the tree contains up to: one row, written in the same batch as the commit's rows.
    Applied,
    /// Attributes and inline content.
    Inode(InodeNo),
    /// An entry of a directory; the cookie is the hash of the name, so a listing is in cookie order.
    Dirent {
        /// The directory.
        dir: InodeNo,
        /// Hash of `name` (`dirent::cookie_of`).
        cookie: DirCookie,
        /// Name in bytes, 1 to 255, without `/` and NUL.
        name: Bytes,
    },
    /// A run of a file's content, keyed by its END (exclusive), so that a forward seek from any offset finds the run
    /// that covers it.
    Extent {
        /// The file.
        ino: InodeNo,
        /// First byte after the run.
        end: u64,
    },
    /// An extended attribute.
    Xattr {
        /// The inode.
        ino: InodeNo,
        /// Attribute name with its namespace, 1 to 255 bytes.
        name: Bytes,
    },
    /// Live and total bytes of an object; merged, never read-modify-written.
    ObjectStats(ObjectId),
    /// An inode without a name whose content is still to be purged, or that is still open.
    Orphan(InodeNo),
}

/// A row of the tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Row {
    /// For `Key::Counters`.
    Counters(Counters),
    /// For `Key::Applied`.
    Applied(Applied),
    /// For `Key::Inode`.
    Inode(InodeRow),
    /// For `Key::Dirent`.
    Dirent(DirentRow),
    /// For `Key::Extent`.
    Extent(ExtentRow),
    /// For `Key::Xattr`: the value, at most 64 KiB.
    Xattr(Bytes),
    /// For `Key::ObjectStats`: when written, a difference to add; when read, the sum.
    ObjectStats(ObjectStats),
    /// For `Key::Orphan`.
    Orphan,
}

/// Totals of the volume. The single writer holds the truth in RAM; each commit carries them as absolute values.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The next inode number to give out.
    pub next_ino: u64,
    /// Bytes of all files' allocated content (not holes), as quota counts them.
    pub used_bytes: u64,
    /// Number of inodes.
    pub inodes: u64,
}

/// The last commit whose rows the tree contains. Places in a journal are in the order of their epochs, then numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Applied {
    /// Epoch of that commit.
    pub epoch: Epoch,
    /// Its place in the epoch's journal; 0 before the first.
    pub seq: JournalSeq,
}

/// The kind of an inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum FileKind {
    /// Regular file.
    Regular = 1,
    /// Directory.
    Directory = 2,
    /// Symbolic link; its target is the inline content.
    Symlink = 3,
    /// Named pipe.
    Fifo = 4,
    /// Socket.
    Socket = 5,
    /// Character device.
    CharDevice = 6,
    /// Block device.
    BlockDevice = 7,
}

/// Attributes of an inode, with the content of small files and symlinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct InodeRow {
    /// What it is.
    pub kind: FileKind,
    /// Permission bits with suid, sgid and sticky: 12 bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Device number of device files.
    pub rdev: u32,
    /// Number of names; a directory counts "." and the ".." of its subdirectories.
    pub nlink: u32,
    /// Length in bytes.
    pub size: u64,
    /// Bytes allocated (what st_blocks counts): content, and what is reserved and has none.
    pub allocated: u64,
    /// Parent of a directory; unused for others.
    pub parent: InodeNo,
    /// Number of entries of a directory without "." and "..".
    pub entries: u64,
    /// Last access.
    pub atime: Timestamp,
    /// Last change of content.
    pub mtime: Timestamp,
    /// Last change of the inode.
    pub ctime: Timestamp,
    /// Creation.
    pub btime: Timestamp,
    /// True where at least one xattr row exists, so that getxattr of most files needs no look-up.
    pub has_xattrs: bool,
    /// Where space is reserved (fallocate(2)), with and without content; ranges may reach beyond the end. Only where there
    /// is no inline content, and at most `RESERVED_RANGES_MAX`.
    pub reserved: RangeSet,
    /// The whole content where it is at most `INLINE_BYTES_MAX` and no extent exists; a symlink's target.
    pub inline: Option<Bytes>,
}

/// An entry of a directory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DirentRow {
    /// What it names.
    pub ino: InodeNo,
    /// Kind of that inode (readdir's d_type).
    pub kind: FileKind,
}

/// Where a run of content lies: consecutive frames of one object.
///
/// Frame i holds `FRAME_BYTES` uncompressed bytes (the last may hold fewer) and takes `frame_stored_lens[i]` bytes in
/// the object, header included, so a row alone is enough to read any part of the run with one ranged GET.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExtentRow {
    /// Length of the run in bytes of the file.
    pub len: u64,
    /// The object.
    pub object: ObjectId,
    /// Where the first frame's header starts in the object.
    pub object_offset: u64,
    /// Uncompressed bytes to skip at the start of the first frame.
    pub skip: u64,
    /// Stored length of each frame, header included.
    pub frame_stored_lens: Vec<u32>,
    /// Identity that the frames carry: the inode that wrote them (another one after a by-reference copy).
    pub origin_ino: InodeNo,
    /// Identity that the frames carry: the file offset of the first frame's first byte when written.
    pub origin_offset: u64,
}

impl ExtentRow {
    /// The row of a part of this run: `skip` bytes into it, `len` bytes long. Frames outside the part are left out.
    ///
    /// Panics where the part is empty or reaches outside the run: a mistake of the caller.
    #[must_use]
    pub fn part(&self, skip: u64, len: u64) -> ExtentRow {
        assert!(
            len > 0 && skip.checked_add(len).is_some_and(|end| end <= self.len),
            "part {skip}+{len} reaches outside {self:?}"
        );
        let (frame, start) = (u64::from(FRAME_BYTES), self.skip + skip);
        let (first, end) = ((start / frame) as usize, (start + len).div_ceil(frame) as usize);
        let before: u64 = self.frame_stored_lens[..first].iter().map(|len| u64::from(*len)).sum();
        ExtentRow {
            len,
            object: self.object,
            object_offset: self.object_offset + before,
            skip: start % frame,
            frame_stored_lens: self.frame_stored_lens[first..end].to_vec(),
            origin_ino: self.origin_ino,
            origin_offset: self.origin_offset + first as u64 * frame,
        }
    }

    /// Bytes that the frames of this run take in the object, headers included.
    pub fn stored_bytes(&self) -> u64 {
        self.frame_stored_lens.iter().map(|len| u64::from(*len)).sum()
    }
}

/// Bytes of an object that runs refer to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct ObjectStats {
    /// Bytes referred to (uncompressed); 0 means dead.
    pub live_bytes: i64,
    /// Bytes that it held when it was made (uncompressed).
    pub total_bytes: i64,
}
