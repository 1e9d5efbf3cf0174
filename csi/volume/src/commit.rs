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
use std::time::Duration;

use bytes::Bytes;
use uuid::Uuid;

use crate::bucket::BucketRef;
use crate::budget::Budget;
use crate::format::codec::Compression;
use crate::ids::{Epoch, Generation, InodeNo, JournalSeq};
use crate::rope::Rope;
use crate::row::{Applied, Counters, ExtentRow, Key, RUN_BYTES_MAX, Row};
use crate::tree::Tree;

mod apply;
mod encode;
mod handle;
mod held;
mod owner;
mod pace;
mod put;
mod run;

pub use handle::CommitHandle;
use handle::{Shared, Tasks};
pub use held::HeldContent;

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
    /// The same content as readers hold it: the commit lets it be a part of the object that it puts.
    pub held: Arc<HeldContent>,
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

/// Keeps frames that a commit has put into the bucket, so that reading back what was written asks nobody.
pub trait KeepFrames: std::fmt::Debug + Send + Sync + 'static {
    /// Takes the frames of these runs out of `body`, which is the whole of the object that the rows name. Does not wait.
    fn keep(&self, body: &Rope, rows: &[ExtentRow]);
}

/// How much a commit gathers, and when it leaves.
#[derive(Debug, Clone)]
pub struct CommitLimits {
    /// Commits under way at the same time. Above it changes gather in RAM.
    pub in_flight_max: usize,
    /// Longest time that a change stays in RAM only, when nobody waits for it.
    pub cut_after: Duration,
    /// Bytes not cut at which a commit leaves although nobody waits, if nothing is under way.
    pub cut_bytes: u64,
    /// The same while others are under way: larger, so that a long write costs few objects.
    pub cut_bytes_busy: u64,
    /// Content up to which a commit is one journal object; with more it goes out as segments beside it.
    pub inline_bytes_max: u64,
    /// Content of one segment, unless a single run is longer.
    pub segment_bytes_max: u64,
    /// Bytes of rows given to the tree after which it is flushed.
    pub tree_flush_bytes: u64,
    /// Commits after which the tree is flushed: bounds the replay of the next open.
    pub tree_flush_commits: u64,
    /// Longest time that the tree stays behind the journal while there are commits.
    pub tree_flush_after: Duration,
}

impl Default for CommitLimits {
    fn default() -> Self {
        Self {
            in_flight_max: IN_FLIGHT_MAX,
            cut_after: Duration::from_secs(1),
            cut_bytes: INLINE_DATA_BYTES_MAX,
            cut_bytes_busy: 4 * INLINE_DATA_BYTES_MAX,
            inline_bytes_max: INLINE_DATA_BYTES_MAX,
            segment_bytes_max: SEGMENT_DATA_BYTES_MAX,
            tree_flush_bytes: 16 * 1024 * 1024,
            tree_flush_commits: 1_000,
            tree_flush_after: Duration::from_secs(300),
        }
    }
}

/// 8 commits: the pace is then a PUT's latency divided by 8, and a crash leaves at most 8 unfinished ones to judge.
pub const IN_FLIGHT_MAX: usize = 8;

/// 8 MiB: content of a commit that travels inside the journal object. One with more goes out as segments, in parallel.
pub const INLINE_DATA_BYTES_MAX: u64 = 8 * 1024 * 1024;

/// 20 MiB of content in a segment: one run of the largest size and the rest of a commit that is a little larger, which as a
/// segment of its own would be a request for a MiB or two; and few enough that they go out in parallel.
pub const SEGMENT_DATA_BYTES_MAX: u64 = RUN_BYTES_MAX / 4 * 5;

const _: () = assert!(INLINE_DATA_BYTES_MAX <= SEGMENT_DATA_BYTES_MAX);

/// What a commit loop works on. `bucket` is rooted at the volume's data prefix.
#[derive(Debug, Clone)]
pub struct CommitContext {
    /// Where the journal, segments and tree are.
    pub bucket: BucketRef,
    /// Takes the rows of durable commits.
    pub tree: Arc<dyn Tree>,
    /// Identity of the volume, in every object and frame.
    pub volume: Uuid,
    /// Fresh for each mount: tells our own journal objects from anybody's.
    pub writer: Uuid,
    /// Our reign; everything before it is sealed.
    pub epoch: Epoch,
    /// The journal position of the first commit.
    pub next_seq: JournalSeq,
    /// The commit up to which the tree is durable, as found or made at open.
    pub durable: Applied,
    /// Flush the tree at once: it holds much that only the journal has.
    pub flush_soon: bool,
    /// How content is compressed.
    pub compression: Compression,
    /// How much and when.
    pub limits: CommitLimits,
    /// What all volumes of the process have together.
    pub budget: Budget,
    /// Gets what was put, before it is acknowledged; `None` where nobody reads.
    pub kept: Option<Arc<dyn KeepFrames>>,
}

/// What a commit loop has sent.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CommitStats {
    /// Commits that are durable.
    pub commits: u64,
    /// Journal objects put.
    pub journal_objects: u64,
    /// Segments put.
    pub segments: u64,
    /// Bytes of both.
    pub stored_bytes: u64,
    /// Puts that were tried again.
    pub retries: u64,
    /// Flushes of the tree.
    pub tree_flushes: u64,
}

/// Starts committing what `state` gathers. Must be called within a tokio runtime.
pub fn start(context: CommitContext, state: Arc<dyn DirtyState>) -> CommitHandle {
    let shared = Arc::new(Shared::new(context.limits.clone(), context.durable));
    let epoch = context.epoch;
    let (commit_loop, applier) = run::spawn(context, state, shared.clone());
    CommitHandle {
        epoch,
        shared,
        _tasks: Arc::new(Tasks(vec![commit_loop.abort_handle(), applier])),
    }
}
