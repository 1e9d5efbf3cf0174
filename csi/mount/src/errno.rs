//! The one table from a volume's errors to the numbers that programs see in errno.
//!
//! Here and nowhere else: who wonders why a program saw EIO finds the answer in this file. Callers: `fuse.rs`.
//! Absent: logging, which `fuse.rs` does where the error leaves us.

use nix::errno::Errno;
use volume::error::FsError;

/// The number for an operation's failure. Where POSIX leaves a choice, the comment says why this one.
pub fn errno_of(error: &FsError) -> Errno {
    match error {
        FsError::NotFound => Errno::ENOENT,
        // Not ENOENT: the program holds a file that existed. The kernel looks the path up again once.
        FsError::Stale(_) => Errno::ESTALE,
        FsError::Exists => Errno::EEXIST,
        FsError::NotDirectory => Errno::ENOTDIR,
        FsError::IsDirectory => Errno::EISDIR,
        // POSIX allows EEXIST as well; Linux programs expect this.
        FsError::NotEmpty => Errno::ENOTEMPTY,
        FsError::NameTooLong => Errno::ENAMETOOLONG,
        FsError::Invalid(_) => Errno::EINVAL,
        // Not EDQUOT: the capacity is the size of the volume, not the share of one user.
        FsError::NoSpace => Errno::ENOSPC,
        FsError::TooBig => Errno::EFBIG,
        FsError::TooManyLinks => Errno::EMLINK,
        FsError::NoAttribute => Errno::ENODATA,
        FsError::AttributeTooLarge => Errno::E2BIG,
        FsError::NoSuchOffset => Errno::ENXIO,
        FsError::NotPermitted => Errno::EPERM,
        FsError::NotSupported(_) => Errno::EOPNOTSUPP,
        FsError::ReadOnly => Errno::EROFS,
        // A volume that another writer took behaves as a read-only one: reads go on. For syncs see `errno_of_sync`.
        FsError::Lost(_) => Errno::EROFS,
        FsError::Damaged { .. } => Errno::EIO,
        FsError::Bucket(_) => Errno::EIO,
        // What the operator has chosen by `s3_outage=eio:...`: programs that would rather fail than wait.
        FsError::StoreAway { .. } => Errno::EIO,
        FsError::Tree(_) => Errno::EIO,
        FsError::Head(_) => Errno::EIO,
        // What the kernel itself says of a mount whose server is gone.
        FsError::Closed => Errno::ENOTCONN,
    }
}

/// The number for a failed fsync or close: data that was written is not durable and never will be by this mount. POSIX
/// has EIO for that, and databases act on it; EROFS would tell them that nothing was lost.
pub fn errno_of_sync(error: &FsError) -> Errno {
    match error {
        FsError::Lost(_) => Errno::EIO,
        other => errno_of(other),
    }
}

/// True where the failure is ours or the store's, and not an ordinary answer to a program: these are logged.
pub fn is_fault(error: &FsError) -> bool {
    matches!(
        error,
        FsError::Damaged { .. }
            | FsError::Bucket(_)
            | FsError::Tree(_)
            | FsError::Head(_)
            | FsError::Closed
            | FsError::Stale(_)
    )
}

#[cfg(test)]
mod tests {
    use volume::commit::Lost;

    use super::*;

    #[test]
    fn a_volume_taken_by_another_writer_is_read_only_for_writes_and_an_io_error_for_fsync() {
        let lost = FsError::Lost(Lost::Fenced { owner: "node-2".into() });
        assert_eq!(errno_of(&lost), Errno::EROFS);
        assert_eq!(errno_of_sync(&lost), Errno::EIO);
        assert_eq!(errno_of_sync(&FsError::NoSpace), Errno::ENOSPC);
    }

    #[test]
    fn an_ordinary_refusal_is_no_fault() {
        assert!(!is_fault(&FsError::NotFound));
        assert!(is_fault(&FsError::Closed));
    }
}
