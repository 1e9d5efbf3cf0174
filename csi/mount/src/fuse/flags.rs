//! What the flags of single requests mean to a volume, and the answer whose shape depends on a size.

use bytes::Bytes;
use nix::errno::Errno;
use volume::attr::{Fallocate, RenameMode, SeekKind};
use volume::error::FsError;

use super::OpenFlags;
use super::reply::Xattr;

/// The answer that makes the kernel stop sending a request it can do without.
pub const NOT_NEEDED: Errno = Errno::ENOSYS;

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
pub fn rename_mode(flags: u32) -> Result<RenameMode, FsError> {
    match flags {
        0 => Ok(RenameMode::Replace),
        libc::RENAME_NOREPLACE => Ok(RenameMode::NoReplace),
        libc::RENAME_EXCHANGE => Ok(RenameMode::Exchange),
        _ => Err(FsError::Invalid("these flags of renameat2")),
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
        assert_eq!(rename_mode(0).unwrap(), RenameMode::Replace);
        assert_eq!(rename_mode(libc::RENAME_EXCHANGE).unwrap(), RenameMode::Exchange);
        let both = libc::RENAME_EXCHANGE | libc::RENAME_NOREPLACE;
        assert!(matches!(rename_mode(both), Err(FsError::Invalid(_))));
        assert!(matches!(rename_mode(libc::RENAME_WHITEOUT), Err(FsError::Invalid(_))));
    }
}
