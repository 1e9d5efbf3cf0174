//! Between a volume and ordinary objects: import of a prefix into a volume, and export of a volume to a prefix.
//!
//! An object is a file, its key the path. What a file has besides its content is written beside the object in the words of
//! s3fs and rclone, which read it, and is read from there (`attributes.rs`). Both directions can be stopped at any moment and run again: what is
//! there already, with its size and time, is skipped. Nothing that is there and differs is replaced unless asked.
//! Callers: `pannier volume import|export`. Absent: deleting at the destination, and hard links across objects.

mod attributes;
pub mod export;
pub mod import;
mod path;
mod tree;

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use volume::bucket::BucketError;
use volume::error::FsError;

/// How many bytes of one object are moved by one request: large enough that the wait for an answer is a small part.
const CHUNK_BYTES: u64 = 8 << 20;

/// Requests under way for one object, so that a single large one is not as slow as one connection.
const CHUNKS_AT_ONCE: usize = 4;

/// How to transfer.
#[derive(Debug, Clone, Copy)]
pub struct TransferOptions {
    /// Objects at once.
    pub parallel: usize,
    /// Replace what is there and differs.
    pub overwrite: bool,
}

/// What has been done so far; it may be read at any moment.
#[derive(Debug, Default)]
pub struct Progress {
    done: AtomicU64,
    bytes: AtomicU64,
    skipped: AtomicU64,
    failed: AtomicU64,
}

/// The counts of a transfer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Report {
    /// Files, links and directories transferred.
    pub done: u64,
    /// Bytes of their content.
    pub bytes: u64,
    /// Those that were there already.
    pub skipped: u64,
    /// Those that were not transferred; each was told.
    pub failed: u64,
}

impl Progress {
    /// The counts now.
    pub fn report(&self) -> Report {
        Report {
            done: self.done.load(Ordering::Relaxed),
            bytes: self.bytes.load(Ordering::Relaxed),
            skipped: self.skipped.load(Ordering::Relaxed),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }

    fn moved(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    fn count(&self, done: Done) {
        let counter = match done {
            Done::Transferred => &self.done,
            Done::Skipped => &self.skipped,
        };
        counter.fetch_add(1, Ordering::Relaxed);
    }
}

/// How one object ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Done {
    Transferred,
    Skipped,
}

/// Why one object was not transferred.
#[derive(Debug, Clone, thiserror::Error)]
enum Refusal {
    /// The store failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The volume failed.
    #[error(transparent)]
    Volume(#[from] FsError),
    /// It cannot be what it should become, or it changed meanwhile.
    #[error("{0}")]
    Not(String),
}

impl Refusal {
    /// True where the next object would meet the same.
    fn ends_all(&self) -> bool {
        match self {
            Refusal::Bucket(error) => is_of_the_store(error),
            Refusal::Volume(FsError::Bucket(error)) => is_of_the_store(error),
            Refusal::Volume(error) => matches!(
                error,
                FsError::Lost(_) | FsError::NoSpace | FsError::ReadOnly | FsError::Closed
            ),
            Refusal::Not(_) => false,
        }
    }
}

fn is_of_the_store(error: &BucketError) -> bool {
    matches!(
        error,
        BucketError::NoBucket { .. }
            | BucketError::Denied { .. }
            | BucketError::NoCredentials { .. }
            | BucketError::Unavailable { .. }
    )
}

/// Why a transfer ended early.
#[derive(Debug, thiserror::Error)]
pub enum TransferError {
    /// The listing of the source failed.
    #[error("the objects to import cannot be listed: {0}")]
    List(#[source] BucketError),
    /// A directory of the volume could not be read or made.
    #[error("{path} in the volume: {source}")]
    Volume {
        /// Path in the volume.
        path: String,
        /// Why.
        source: FsError,
    },
    /// One object met what all others would meet.
    #[error("{what}: {why}")]
    Ended {
        /// Key or path.
        what: String,
        /// Why.
        why: String,
    },
}

/// The names of a path in a volume, as `--into` and `--from` give it, without slashes at its ends.
///
/// # Errors
/// Why one cannot be a name, as the rest of a sentence.
pub fn names(path: &str) -> Result<Vec<String>, String> {
    Ok(path::parts(path)?.into_iter().map(str::to_owned).collect())
}

/// Where a transfer tells of each object that it could not transfer: (key or path, why).
pub type Tell = dyn Fn(&str, &str) + Send + Sync;
