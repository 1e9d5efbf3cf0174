//! Why an operation on a mounted volume failed. `csi/mount/src/errno.rs` is the only place that turns it into a number.

use std::sync::Arc;

use crate::bucket::BucketError;
use crate::commit::Lost;
use crate::head::HeadError;
use crate::ids::{InodeNo, ObjectId};
use crate::tree::TreeError;

/// An operation's failure. The variant is the fact that the caller acts on; causes are kept.
#[derive(Debug, Clone, thiserror::Error)]
pub enum FsError {
    /// No such entry in the directory.
    #[error("no such file or directory")]
    NotFound,
    /// The inode is gone (a stale handle).
    #[error("inode {0} does not exist any more")]
    Stale(InodeNo),
    /// The name exists.
    #[error("the name exists")]
    Exists,
    /// A directory was needed.
    #[error("not a directory")]
    NotDirectory,
    /// A directory is not allowed here.
    #[error("is a directory")]
    IsDirectory,
    /// The directory has entries.
    #[error("directory not empty")]
    NotEmpty,
    /// A name of more than 255 bytes, or a symlink target of more than 4,095.
    #[error("name too long")]
    NameTooLong,
    /// An argument that POSIX calls invalid; the text says which.
    #[error("invalid argument: {0}")]
    Invalid(&'static str),
    /// The capacity of the volume is used up.
    #[error("the volume's capacity is used up")]
    NoSpace,
    /// Beyond the largest file.
    #[error("beyond the largest file size")]
    TooBig,
    /// More hard links than an inode can count.
    #[error("too many links")]
    TooManyLinks,
    /// No such extended attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// The value does not fit.
    #[error("the attribute is larger than allowed")]
    AttributeTooLarge,
    /// SEEK_DATA or SEEK_HOLE beyond the end.
    #[error("no data or hole there")]
    NoSuchOffset,
    /// Not allowed for this kind of file.
    #[error("operation not permitted")]
    NotPermitted,
    /// Not offered.
    #[error("not supported: {0}")]
    NotSupported(&'static str),
    /// Mounted read-only.
    #[error("the volume is mounted read-only")]
    ReadOnly,
    /// Another writer owns the volume, or the journal is lost: writes are refused for ever.
    #[error("writes are refused: {0}")]
    Lost(Lost),
    /// Content in the bucket fails its checksum or identity, or is missing.
    #[error("content of inode {ino} at {offset} is damaged in {object}: {detail}")]
    Damaged {
        /// The file.
        ino: InodeNo,
        /// File offset of the damaged frame.
        offset: u64,
        /// Where it lies.
        object: ObjectId,
        /// What is wrong.
        detail: String,
    },
    /// The bucket failed below the operation.
    #[error("the bucket failed: {0}")]
    Bucket(#[source] Arc<BucketError>),
    /// The store has been away for longer than the volume's policy waits. Nothing that was acknowledged is lost.
    #[error("the store has not answered for {seconds} s, longer than the volume's s3_outage waits: {detail}")]
    StoreAway {
        /// How long it has been away.
        seconds: u64,
        /// The last failure.
        detail: String,
    },
    /// The tree failed below the operation.
    #[error("the metadata tree failed: {0}")]
    Tree(#[source] Arc<TreeError>),
    /// The head could not be given back at the end.
    #[error("the head of the volume could not be changed: {0}")]
    Head(#[source] Arc<HeadError>),
    /// The volume is closed.
    #[error("the volume is closed")]
    Closed,
}

impl From<BucketError> for FsError {
    fn from(error: BucketError) -> Self {
        FsError::Bucket(Arc::new(error))
    }
}

impl From<TreeError> for FsError {
    fn from(error: TreeError) -> Self {
        FsError::Tree(Arc::new(error))
    }
}
