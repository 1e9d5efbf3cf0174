//! From dirty state in RAM to the bucket: one commit is one journal object, with data and rows together.
//!
//! Invariants:
//! - Commits are acknowledged (`DirtyState::durable`) strictly in order, each only when its journal object and every
//!   segment that it names are in the bucket.
//! - Rows reach the tree only after that (`Tree::apply`), in the same order.
//! - After `Lost` nothing is acknowledged ever again by this mount.
//!
//! Callers: `volume.rs` starts it; `ops/sync.rs` waits for it. Absent: what the operations mean (`ops/`), and retries of
//! single requests (the `Bucket` does those; here only a whole commit is tried again until it stands or is fenced).

use std::sync::{Arc, OnceLock};

use bytes::Bytes;

use crate::ids::{Generation, InodeNo};
use crate::row::{Counters, ExtentRow, Key, Row};

/// A contiguous piece of a file that became dirty, at most `RUN_BYTES_MAX` long: it becomes one extent run.
#[derive(Debug, Clone)]
pub struct DirtyRun {
    /// The file.
    pub ino: InodeNo,
    /// File offset of the first byte.
    pub offset: u64,
    /// The content, in order, without gaps.
    pub data: Vec<Bytes>,
    /// Filled by the commit before it encodes any row: where the whole piece lies (`skip` 0, `len` its length).
    pub placed: Arc<OnceLock<ExtentRow>>,
}

impl DirtyRun {
    /// Length in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.data.iter().map(|part| part.len() as u64).sum()
    }
}

/// Part of content that is, or is about to be, in the bucket.
#[derive(Debug, Clone)]
pub enum RunSource {
    /// Part of a dirty piece of this or an earlier generation: `skip` bytes into it, `len` bytes long.
    Dirty {
        /// Where the whole piece lies, filled at the latest when its own generation is encoded.
        placed: Arc<OnceLock<ExtentRow>>,
        /// Bytes to skip.
        skip: u64,
        /// Length in bytes.
        len: u64,
    },
    /// In the bucket already; `skip` and `len` of the row are those of the part.
    Stored(ExtentRow),
}

/// One change of a file's extent rows. The commit derives the row and the objects' live bytes from it.
#[derive(Debug, Clone)]
pub struct ExtentChange {
    /// The file.
    pub ino: InodeNo,
    /// The key: first byte after the run.
    pub end: u64,
    /// What this key referred to in the generation before, if it existed there.
    pub old: Option<RunSource>,
    /// What it refers to now; `None` deletes the row.
    pub new: Option<RunSource>,
}

/// Everything that changed between two cuts, in its final state: the unit of commit.
#[derive(Debug)]
pub struct SealedGeneration {
    /// Its number; consecutive from 1 in each mount.
    pub generation: Generation,
    /// New content.
    pub runs: Vec<DirtyRun>,
    /// Changed extent rows.
    pub extents: Vec<ExtentChange>,
    /// All other changed rows; `None` deletes.
    pub rows: Vec<(Key, Option<Row>)>,
    /// Totals at the cut.
    pub counters: Counters,
}

/// Why no commit of this mount can be acknowledged any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Lost {
    /// Another writer has sealed our epoch.
    #[error("the volume was taken over by {owner}")]
    Fenced {
        /// Who, as the seal says.
        owner: String,
    },
    /// The bucket gave an answer after which this mount cannot know what is durable.
    #[error("the journal can no longer be written: {detail}")]
    Journal {
        /// What was seen.
        detail: String,
    },
}

/// The RAM tables as the commit sees them. Calls are short, never block and take no lock across an await.
pub trait DirtyState: Send + Sync + 'static {
    /// Cuts here: returns all that changed since the last cut, or `None` if nothing did.
    fn seal(&self) -> Option<SealedGeneration>;

    /// Bytes of content and rows that became dirty since the last cut.
    fn unsealed_bytes(&self) -> u64;

    /// Everything up to this generation is durable in the bucket.
    fn durable(&self, generation: Generation);

    /// The tree contains everything up to this generation: its entries may be dropped from RAM.
    fn applied(&self, generation: Generation);

    /// No commit after the last durable one will ever be acknowledged: refuse writes, fail syncs for ever.
    fn lost(&self, why: &Lost);
}
