//! What is agreed with the kernel at the start, what the flags of single requests mean to a volume, and the answer whose
//! shape depends on a size.

use std::io;

use bytes::Bytes;
use fuser::{Errno, InitFlags, KernelConfig, OpenFlags, RenameFlags};
use volume::attr::{Fallocate, RenameMode, SeekKind};
use volume::error::FsError;

use super::reply::Xattr;
use crate::session::{WRITE_BYTES_MAX, Way};

/// The answer that makes the kernel stop sending a request it can do without.
pub const NOT_NEEDED: Errno = Errno::ENOSYS;

/// 1 MiB: the kernel's own largest request (256 pages). Larger ones were not faster.
const REQUEST_BYTES_MAX: u32 = 1024 * 1024;

/// 32 reads ahead and writes behind at a time; above it the kernel makes their callers wait. A write that waits for room holds
/// its 1 MiB in our memory, beside what is dirty.
const BACKGROUND_REQUESTS_MAX: u16 = 32;

/// Agrees with the kernel on how to talk. A mount that writes gets the writeback cache: the kernel answers write(2) from
/// its own memory and sends us whole pages later. Locks are not asked for, so the kernel keeps them by itself. The
/// umask comes to us, because a directory's default list may take its place.
pub fn negotiate(config: &mut KernelConfig, read_only: bool, way: Way) -> io::Result<()> {
    let mut wanted = InitFlags::FUSE_ASYNC_READ
        | InitFlags::FUSE_PARALLEL_DIROPS
        | InitFlags::FUSE_ATOMIC_O_TRUNC
        | InitFlags::FUSE_BIG_WRITES
        | InitFlags::FUSE_MAX_PAGES
        | InitFlags::FUSE_DO_READDIRPLUS
        | InitFlags::FUSE_ASYNC_DIO
        | InitFlags::FUSE_CACHE_SYMLINKS
        | InitFlags::FUSE_NO_OPENDIR_SUPPORT
        | InitFlags::FUSE_DIRECT_IO_ALLOW_MMAP
        | InitFlags::FUSE_POSIX_ACL
        | InitFlags::FUSE_DONT_MASK;
    if !read_only {
        wanted |=
            InitFlags::FUSE_WRITEBACK_CACHE | InitFlags::FUSE_HANDLE_KILLPRIV_V2 | InitFlags::FUSE_EXPLICIT_INVAL_DATA;
    } else {
        // A reader may go on with a newer state, in which a file is another one.
        wanted |= InitFlags::FUSE_AUTO_INVAL_DATA;
    }
    wanted.set(InitFlags::FUSE_OVER_IO_URING, way == Way::Rings);
    // An older kernel lacks some: without them it is slower, not wrong.
    let offered = wanted & config.capabilities();
    config
        .add_capabilities(offered)
        .map_err(|bits| io::Error::other(format!("the kernel takes {bits:?} back")))?;
    let fits = |nearest: u32| io::Error::other(format!("the kernel wants {nearest} instead"));
    let write_bytes_max = match way {
        Way::Relayed => WRITE_BYTES_MAX,
        Way::Direct | Way::Rings => REQUEST_BYTES_MAX,
    };
    config.set_max_write(write_bytes_max).map_err(fits)?;
    config
        .set_max_background(BACKGROUND_REQUESTS_MAX)
        .map_err(|nearest| fits(nearest.into()))?;
    Ok(())
}

/// Whether open(2) empties the file.
pub fn truncates(flags: OpenFlags) -> bool {
    flags.0 & libc::O_TRUNC != 0
}

/// Whether a descriptor may write.
pub fn writes(flags: OpenFlags) -> bool {
    flags.0 & libc::O_ACCMODE != libc::O_RDONLY
}

/// Flags of renameat2(2). RENAME_WHITEOUT is for overlay file systems' upper layers, which a volume cannot be (they want
/// whiteout devices).
pub fn rename_mode(flags: RenameFlags) -> Result<RenameMode, FsError> {
    if flags == RenameFlags::RENAME_NOREPLACE {
        Ok(RenameMode::NoReplace)
    } else if flags == RenameFlags::RENAME_EXCHANGE {
        Ok(RenameMode::Exchange)
    } else if flags.is_empty() {
        Ok(RenameMode::Replace)
    } else {
        Err(FsError::Invalid("these flags of renameat2"))
    }
}

/// The mode of fallocate(2).
pub fn fallocate(mode: i32) -> Result<Fallocate, FsError> {
    let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
    match mode & !libc::FALLOC_FL_KEEP_SIZE {
        0 => Ok(Fallocate::Allocate { keep_size }),
        libc::FALLOC_FL_PUNCH_HOLE if keep_size => Ok(Fallocate::PunchHole),
        libc::FALLOC_FL_ZERO_RANGE => Ok(Fallocate::ZeroRange { keep_size }),
        _ => Err(FsError::NotSupported("collapsing, inserting or unsharing a range")),
    }
}

/// The two kinds of lseek(2) that the kernel asks us for.
pub fn seek_kind(whence: i32) -> Result<SeekKind, FsError> {
    match whence {
        libc::SEEK_DATA => Ok(SeekKind::Data),
        libc::SEEK_HOLE => Ok(SeekKind::Hole),
        _ => Err(FsError::Invalid("whence of lseek")),
    }
}

/// getxattr(2) and listxattr(2): a size of 0 asks for the length. `None`: it does not fit.
pub fn xattr(size: u32, value: Bytes) -> Option<Xattr> {
    let len_bytes = u32::try_from(value.len()).expect("at most XATTR_BYTES_MAX or XATTR_LIST_BYTES_MAX");
    match size {
        0 => Some(Xattr::Length(len_bytes)),
        _ => (len_bytes <= size).then_some(Xattr::Value(value)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fallocate_knows_three_acts_and_refuses_the_others() {
        assert_eq!(fallocate(0).unwrap(), Fallocate::Allocate { keep_size: false });
        assert_eq!(
            fallocate(libc::FALLOC_FL_KEEP_SIZE).unwrap(),
            Fallocate::Allocate { keep_size: true }
        );
        let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        assert_eq!(fallocate(punch).unwrap(), Fallocate::PunchHole);
        assert_eq!(
            fallocate(libc::FALLOC_FL_ZERO_RANGE).unwrap(),
            Fallocate::ZeroRange { keep_size: false }
        );
        for refused in [
            libc::FALLOC_FL_COLLAPSE_RANGE,
            libc::FALLOC_FL_INSERT_RANGE,
            libc::FALLOC_FL_PUNCH_HOLE,
        ] {
            assert!(matches!(fallocate(refused), Err(FsError::NotSupported(_))));
        }
    }

    #[test]
    fn rename_flags_that_contradict_each_other_are_invalid() {
        assert_eq!(rename_mode(RenameFlags::empty()).unwrap(), RenameMode::Replace);
        assert_eq!(rename_mode(RenameFlags::RENAME_EXCHANGE).unwrap(), RenameMode::Exchange);
        let both = RenameFlags::RENAME_EXCHANGE | RenameFlags::RENAME_NOREPLACE;
        assert!(matches!(rename_mode(both), Err(FsError::Invalid(_))));
        assert!(matches!(
            rename_mode(RenameFlags::RENAME_WHITEOUT),
            Err(FsError::Invalid(_))
        ));
    }
}
