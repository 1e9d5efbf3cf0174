//! Attributes, kinds and times as FUSE writes them, and back.
//!
//! Pure conversions. Absent: any decision; and flags of open and rename, which `fuse.rs` reads where it needs them.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fuser::{FileAttr, FileType, INodeNo, TimeOrNow};
use volume::attr::{Attr, SetTime, StatFs};
use volume::clock::Timestamp;
use volume::ids::InodeNo;
use volume::row::FileKind;

/// 4 KiB: what stat(2) gives as the preferred block. Larger values make some programs allocate huge buffers.
pub const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// Bytes of a block in statfs(2).
pub const STATFS_BLOCK_BYTES: u32 = 4096;

/// The file type bits of a mode, as in inode(7).
const TYPE_MASK: u32 = 0o170_000;

/// Attributes as the kernel wants them.
pub fn file_attr(attr: &Attr) -> FileAttr {
    FileAttr {
        ino: INodeNo(attr.ino.0),
        size: attr.size,
        blocks: attr.blocks_512,
        atime: system_time(attr.atime),
        mtime: system_time(attr.mtime),
        ctime: system_time(attr.ctime),
        crtime: system_time(attr.btime),
        kind: file_type(attr.kind),
        perm: attr.mode,
        nlink: attr.nlink,
        uid: attr.uid,
        gid: attr.gid,
        rdev: attr.rdev,
        blksize: PREFERRED_BLOCK_BYTES,
        flags: 0,
    }
}

/// What a negative entry says: inode 0, with a life time. All else is not looked at.
pub fn no_file() -> FileAttr {
    FileAttr {
        ino: INodeNo(0),
        size: 0,
        blocks: 0,
        atime: UNIX_EPOCH,
        mtime: UNIX_EPOCH,
        ctime: UNIX_EPOCH,
        crtime: UNIX_EPOCH,
        kind: FileType::RegularFile,
        perm: 0,
        nlink: 0,
        uid: 0,
        gid: 0,
        rdev: 0,
        blksize: PREFERRED_BLOCK_BYTES,
        flags: 0,
    }
}

/// FUSE's nodeid is the inode number.
pub fn inode_no(ino: INodeNo) -> InodeNo {
    InodeNo(ino.0)
}

/// All blocks of statfs(2), and the free ones.
pub fn statfs_blocks(space: &StatFs) -> (u64, u64) {
    let blocks = |bytes: u64| bytes / u64::from(STATFS_BLOCK_BYTES);
    (blocks(space.total_bytes), blocks(space.free_bytes))
}

/// The kind for readdir's d_type.
pub fn file_type(kind: FileKind) -> FileType {
    match kind {
        FileKind::Regular => FileType::RegularFile,
        FileKind::Directory => FileType::Directory,
        FileKind::Symlink => FileType::Symlink,
        FileKind::Fifo => FileType::NamedPipe,
        FileKind::Socket => FileType::Socket,
        FileKind::CharDevice => FileType::CharDevice,
        FileKind::BlockDevice => FileType::BlockDevice,
    }
}

/// What mknod(2) is asked to make; `None` for bits that name nothing. No bits at all mean a regular file.
pub fn kind_of_mode(mode: u32) -> Option<FileKind> {
    match mode & TYPE_MASK {
        0 | 0o100_000 => Some(FileKind::Regular),
        0o010_000 => Some(FileKind::Fifo),
        0o020_000 => Some(FileKind::CharDevice),
        0o060_000 => Some(FileKind::BlockDevice),
        0o140_000 => Some(FileKind::Socket),
        _ => None,
    }
}

/// The 12 permission bits of a mode.
pub fn permissions(mode: u32) -> u16 {
    (mode & 0o7777) as u16
}

/// A stamp as the library takes it. It turns it into the seconds and nanoseconds that we gave, also before 1970.
pub fn system_time(time: Timestamp) -> SystemTime {
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let nanos = Duration::from_nanos(u64::from(time.nanos));
    let whole = if time.seconds >= 0 {
        UNIX_EPOCH.checked_add(seconds)
    } else {
        UNIX_EPOCH.checked_sub(seconds)
    };
    whole.and_then(|whole| whole.checked_add(nanos)).unwrap_or(UNIX_EPOCH)
}

/// A stamp as the kernel sent it.
///
/// fuser 0.18 makes, for a time before 1970, the epoch minus the absolute seconds minus the nanoseconds, where the kernel
/// meant plus. The kernel's own numbers can be had back from that without loss.
pub fn timestamp(time: SystemTime) -> Timestamp {
    match time.duration_since(UNIX_EPOCH) {
        Ok(since) => Timestamp {
            seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
            nanos: since.subsec_nanos(),
        },
        Err(before) => Timestamp {
            seconds: 0i64
                .checked_sub_unsigned(before.duration().as_secs())
                .unwrap_or(i64::MIN),
            nanos: before.duration().subsec_nanos(),
        },
    }
}

/// A time to set as the kernel sent it.
pub fn set_time(time: TimeOrNow) -> SetTime {
    match time {
        TimeOrNow::Now => SetTime::Now,
        TimeOrNow::SpecificTime(time) => SetTime::At(timestamp(time)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_reach_the_kernel_as_given_also_before_1970() {
        // What fuser makes of a SystemTime when it writes: floor to seconds, the rest in nanoseconds.
        let written = |time: SystemTime| match time.duration_since(UNIX_EPOCH) {
            Ok(since) => (since.as_secs() as i64, since.subsec_nanos()),
            Err(before) => {
                let before = before.duration();
                match before.subsec_nanos() {
                    0 => (-(before.as_secs() as i64), 0),
                    nanos => (-(before.as_secs() as i64) - 1, 1_000_000_000 - nanos),
                }
            }
        };
        for (seconds, nanos) in [
            (0, 0),
            (1, 1),
            (1_700_000_000, 999_999_999),
            (-1, 0),
            (-2, 800_000_000),
            (-1, 1),
        ] {
            assert_eq!(written(system_time(Timestamp { seconds, nanos })), (seconds, nanos));
        }
    }

    #[test]
    fn times_from_the_kernel_are_read_as_it_meant_them() {
        // What fuser makes of the kernel's numbers when it reads.
        let read = |seconds: i64, nanos: u32| {
            if seconds >= 0 {
                UNIX_EPOCH + Duration::new(seconds as u64, nanos)
            } else {
                UNIX_EPOCH - Duration::new(seconds.unsigned_abs(), nanos)
            }
        };
        for (seconds, nanos) in [(0, 0), (5, 7), (-1, 0), (-2, 800_000_000), (-1, 999_999_999)] {
            assert_eq!(timestamp(read(seconds, nanos)), Timestamp { seconds, nanos });
        }
    }

    #[test]
    fn mknod_makes_what_the_type_bits_say() {
        assert_eq!(kind_of_mode(0o644), Some(FileKind::Regular));
        assert_eq!(kind_of_mode(0o010_644), Some(FileKind::Fifo));
        assert_eq!(kind_of_mode(0o040_755), None, "directories have their own call");
    }
}
