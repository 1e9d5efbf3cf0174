//! Opening a volume: for writing (take over, seal what was before, replay) or for reading (replay into RAM).
//!
//! Invariants: a writer commits in its epoch only after it has sealed every epoch before; what a seal has judged lost is
//! never replayed by anyone, what stands before it is replayed by everyone. A reader writes nothing at all.
//! Callers: `volume.rs`. Absent: the RAM tables, and the making of the root directory of an empty volume.

use std::sync::Arc;

use crate::bucket::{BucketError, BucketRef};
use crate::head::{Claim, HeadError, HeadFile, TakenOver};
use crate::ids::{Epoch, JournalSeq};
use crate::row::{Applied, Counters};
use crate::tree::{Tree, TreeError};

/// How to keep the tree.
#[derive(Debug, Clone)]
pub struct TreeConfig {
    /// Bytes of decoded blocks kept in RAM.
    pub cache_bytes: u64,
}

impl Default for TreeConfig {
    fn default() -> Self {
        Self {
            cache_bytes: TREE_CACHE_BYTES,
        }
    }
}

/// 32 MiB: blocks of the tree in RAM, for each volume. What operations need often is in the RAM tables already.
pub const TREE_CACHE_BYTES: u64 = 32 * 1024 * 1024;

/// A volume that is ours to write: everything before is sealed and replayed.
#[derive(Debug)]
pub struct OpenedWriter {
    /// The head, and what was found in it.
    pub taken: TakenOver,
    /// To confirm and release the epoch with.
    pub head: HeadFile,
    /// The bucket seen through the volume's data prefix.
    pub bucket: BucketRef,
    /// Contains every commit before our epoch.
    pub tree: Arc<dyn Tree>,
    /// Our reign.
    pub epoch: Epoch,
    /// Where our journal begins.
    pub next_seq: JournalSeq,
    /// Totals after the last commit; `None` for a volume that was never written.
    pub counters: Option<Counters>,
}

/// A volume as of some commit, for reading.
#[derive(Debug)]
pub struct OpenedReader {
    /// The head as found.
    pub head: crate::head::Head,
    /// The bucket seen through the volume's data prefix.
    pub bucket: BucketRef,
    /// The tree with the tail of the journal on top.
    pub tree: Arc<dyn Tree>,
    /// Up to which commit.
    pub applied: Applied,
    /// Totals after that commit; `None` for a volume that was never written.
    pub counters: Option<Counters>,
}

/// Why a volume could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// There is no such volume, or we have no right to it, or another mount was quicker.
    #[error(transparent)]
    Head(#[from] HeadError),
    /// The store failed.
    #[error("the bucket failed while the volume was opened: {0}")]
    Bucket(#[from] BucketError),
    /// The tree failed.
    #[error("the metadata tree could not be opened: {0}")]
    Tree(#[from] TreeError),
    /// Another writer took the volume over while we were opening it.
    #[error("the volume was taken over by {owner} while it was being opened")]
    Fenced {
        /// Who, as its seal says.
        owner: String,
    },
    /// An object of the journal cannot be understood: what follows it is not replayed, so nothing is opened.
    #[error("journal object {key} is damaged: {detail}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong.
        detail: String,
    },
}

/// Takes the volume at `root` (the bucket seen through the volume's root) over: CAS of the head, seals, replay.
///
/// # Durability
/// After `Ok` no older writer can acknowledge anything any more, and all that one ever did is in the tree.
///
/// # Errors
/// `OpenError`.
pub async fn open_writer(root: BucketRef, claim: Claim, config: TreeConfig) -> Result<OpenedWriter, OpenError> {
    let _ = (root, claim, config);
    unimplemented!("the body lands next")
}

/// Opens the volume at `root` for reading, as of its last durable commit. Writes nothing.
///
/// # Errors
/// `OpenError`.
pub async fn open_reader(root: BucketRef, config: TreeConfig) -> Result<OpenedReader, OpenError> {
    let _ = (root, config);
    unimplemented!("the body lands next")
}
