//! Opening a volume: for writing (take over, seal what was before, replay) or for reading (replay into RAM).
//!
//! Invariants: a writer commits in its epoch only after it has sealed every epoch before; what a seal has judged lost is
//! never replayed by anyone, what stands before it is replayed by everyone. A reader writes nothing at all.
//! Callers: `volume.rs`. Absent: the RAM tables, and the making of the root directory of an empty volume.

use std::path::Path;
use std::sync::Arc;

use uuid::Uuid;

use crate::bucket::{BucketError, BucketRef};
use crate::clock::Timestamp;
use crate::commit::Lost;
use crate::error::FsError;
use crate::format::seal::Seal;
use crate::head::{Claim, Head, HeadError, HeadFile, HeadWriter, TakenOver};
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::lineage::{Lineage, TreeAt, data_of};
use crate::row::{Applied, Counters, Key, Row};
use crate::tail::{TailError, may_have_spill};
use crate::tree::blocks::BlockCache;
use crate::tree::overlay::OverlayTree;
use crate::tree::slate::{NOTHING, SeenWriter, SlateReader, SlateTree, newest_manifest, seen_writer};
use crate::tree::{Tree, TreeError, checkpoint};
use crate::volume_id::NodeId;

pub(crate) mod journal_end;
pub(crate) mod leftovers;
pub(crate) mod walk;

use walk::{Step, Walk};

/// How to keep the tree.
#[derive(Debug, Clone)]
pub struct TreeConfig {
    /// Where decoded blocks are kept.
    pub blocks: BlockCache,
    /// This node's time: what a writer stamps the tree's files with. It may be wrong.
    pub now: Timestamp,
    /// Programs wait for a writer's tree: what may as well be done behind its opening is.
    pub in_haste: bool,
}

impl Default for TreeConfig {
    fn default() -> Self {
        Self {
            blocks: BlockCache::new(TREE_CACHE_BYTES),
            now: Timestamp::default(),
            in_haste: false,
        }
    }
}

/// 16 MiB: blocks of the tree in RAM, where nobody gives a cache. What operations need often is in the RAM tables already.
pub const TREE_CACHE_BYTES: u64 = 16 * 1024 * 1024;

/// 8 claims of the tree: each lost one means that another mount opened it meanwhile, which the head then tells.
const CLAIMS_MAX: u32 = 8;

/// 64 commits replayed: from there on the tree is flushed at once, so that a mount that crashes again and again does not
/// replay more each time.
const REPLAYED_FLUSH: u64 = 64;

/// 512 in haste; fewer are flushed when the volume is open.
const REPLAYED_FLUSH_IN_HASTE: u64 = 512;

/// 5 reads of a volume that is being written meanwhile; the last one is taken as it is, an older state but a whole one.
const READS_MAX: u32 = 5;

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
    /// What tells our journal objects from anybody's: the session of the claim.
    pub writer: Uuid,
    /// Where we are.
    pub node_id: NodeId,
    /// Where our journal begins.
    pub next_seq: JournalSeq,
    /// The last commit before our epoch.
    pub last: Applied,
    /// The commit up to which the tree is durable.
    pub durable: Applied,
    /// So much was replayed that the tree should be flushed at once.
    pub flush_soon: bool,
    /// Totals after the last commit; `None` for a volume that was never written.
    pub counters: Option<Counters>,
}

/// A volume as of some commit, for reading.
#[derive(Debug)]
pub struct OpenedReader {
    /// The head as found.
    pub head: Head,
    /// The bucket seen through the volume's data prefix.
    pub bucket: BucketRef,
    /// The tree with the tail of the journal on top.
    pub tree: Arc<dyn Tree>,
    /// Up to which commit.
    pub applied: Applied,
    /// Where the next commit will be.
    pub next: (Epoch, JournalSeq),
    /// The state of the tree below, as its files count them.
    pub manifest: Option<u64>,
    /// Totals after that commit; `None` for a volume that was never written.
    pub counters: Option<Counters>,
}

/// An object of the journal that cannot be understood.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Damaged {
    /// The object.
    pub key: String,
    /// What is wrong.
    pub detail: String,
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
    /// What this node's disk holds of it cannot be used.
    #[error(transparent)]
    Tail(#[from] TailError),
    /// Nothing can be committed.
    #[error("nothing can be committed: {0}")]
    Lost(Lost),
    /// What the tail holds could not be brought together with what the bucket has.
    #[error("the tail could not be replayed: {0}")]
    Replay(FsError),
    /// An object of the journal cannot be understood: what follows it is not replayed, so nothing is opened.
    #[error("journal object {key} is damaged: {detail}")]
    Damaged {
        /// The object.
        key: String,
        /// What is wrong.
        detail: String,
    },
}

/// Takes the volume at `root` (the bucket seen through the volume's root) over: CAS of the head, seals, replay. `state_dir` is
/// where this node may hold more of it.
///
/// # Durability
/// After `Ok` no older writer can acknowledge anything any more, and all that one ever did is in the tree, or in the
/// journal from where the durable tree ends.
///
/// # Errors
/// `OpenError`.
pub async fn open_writer(
    root: BucketRef,
    claim: Claim,
    config: TreeConfig,
    state_dir: Option<&Path>,
) -> Result<OpenedWriter, OpenError> {
    open_writer_over(root, claim, config, (state_dir, None)).await
}

/// As `open_writer`; with `over` a journal that is damaged ends before the damage, which is noted there: what follows is given up.
///
/// # Errors
/// `OpenError`; `Damaged` also with `over`, where the damage is an ancestor's.
pub(crate) async fn open_writer_over(
    root: BucketRef,
    claim: Claim,
    config: TreeConfig,
    (state_dir, over): (Option<&Path>, Option<&mut Vec<Damaged>>),
) -> Result<OpenedWriter, OpenError> {
    let head = HeadFile::new(root.clone(), HeadWriter::new(claim.session));
    let known = head.read_versioned().await?;
    // The tree of a clone may not have begun; any other one is looked at meanwhile.
    let looked_at = match tree_of(&known.0) {
        None => Some((data_of(&root, &known.0)?, known.0.uuid)),
        Some(_) => None,
    };
    let look = async {
        let (bucket, uuid) = looked_at?;
        Some((seen_writer(bucket).await, uuid))
    };
    let (taken, seen) = tokio::join!(head.take_over_from(Some(known), &claim), look);
    let taken = taken?;
    let seen = match seen {
        Some((seen, uuid)) if uuid == taken.head.uuid && tree_of(&taken.head).is_none() => Some(seen?),
        Some(_) | None => None,
    };
    let (epoch, volume) = (taken.head.epoch, taken.head.uuid);
    let bucket = data_of(&root, &taken.head)?;
    if let Some(at) = tree_of(&taken.head) {
        checkpoint::begin(&bucket, at).await?;
    }
    let sealer = Sealer {
        bucket: bucket.clone(),
        volume,
        epoch,
        writer: claim.session,
        owner: claim.node_id.to_string(),
    };
    let lineage = taken.head.lineage();
    let (sealed, tree) = tokio::join!(
        sealer.seal_end(taken.end, lineage.clone()),
        claim_tree(seen, (&bucket, &head), epoch, &config),
    );
    let (sealed, tree) = (sealed?, tree?);
    let found = tree.applied();
    let replayed = match sealed && taken.end == Some(found) {
        true => 0,
        false => {
            let mut walk = Walk::new(bucket.clone(), lineage, found.epoch, found.seq.next());
            let replayed = sealer.replay(&mut walk, &tree, (&taken, over)).await;
            if replayed.is_err() && taken.clean {
                give_back(&head, &taken).await;
            }
            replayed?
        }
    };
    let last = tree.applied();
    let ours = Applied {
        epoch,
        seq: JournalSeq(0),
    };
    // Later walks begin here, instead of following a seal for each mount that wrote nothing. While a tail or a spill waits to
    // be replayed, the tree goes on telling where the journal that it continues has ended.
    let waits = taken.head.tail.is_some() || state_dir.is_some_and(|dir| may_have_spill(dir, volume));
    if !waits {
        tree.apply(ours, Vec::new()).await?;
    }
    let many = match config.in_haste {
        true => REPLAYED_FLUSH_IN_HASTE,
        false => REPLAYED_FLUSH,
    };
    let (durable, flush_soon) = match replayed >= many {
        true => (tree.flush().await?, false),
        false => (found, replayed >= REPLAYED_FLUSH),
    };
    tracing::info!(%volume, %epoch, replayed, "the volume was taken for writing");
    Ok(OpenedWriter {
        taken,
        head,
        bucket,
        counters: counters_of(&tree).await?,
        tree: Arc::new(tree),
        epoch,
        writer: claim.session,
        node_id: claim.node_id,
        next_seq: JournalSeq(1),
        last,
        durable,
        flush_soon,
    })
}

/// Opens the tree for writing. Who was superseded meanwhile must not fence the tree of who did it: so the tree is
/// claimed against the writer that it showed before our reign was confirmed, and a lost claim is confirmed anew.
///
/// `seen` is the writer that it showed just now, if somebody has looked.
async fn claim_tree(
    mut seen: Option<SeenWriter>,
    (bucket, head): (&BucketRef, &HeadFile),
    epoch: Epoch,
    config: &TreeConfig,
) -> Result<SlateTree, OpenError> {
    for _ in 0..CLAIMS_MAX {
        let seen = match seen.take() {
            Some(seen) => seen,
            None => seen_writer(bucket.clone()).await?,
        };
        head.confirm(epoch).await?;
        match SlateTree::open(bucket.clone(), seen, config).await {
            Err(TreeError::Fenced) => {}
            answer => return Ok(answer?),
        }
    }
    Err(OpenError::Tree(TreeError::Fenced))
}

async fn counters_of(tree: &dyn Tree) -> Result<Option<Counters>, OpenError> {
    match tree.get(&Key::Counters).await? {
        None => Ok(None),
        Some(Row::Counters(counters)) => Ok(Some(counters)),
        Some(other) => Err(OpenError::Tree(TreeError::Corrupt {
            place: "the counters".to_owned(),
            detail: format!("{other:?}"),
        })),
    }
}

/// What is there ends before the commit at which the volume was closed.
fn ends_before(found: Applied, end: Applied) -> OpenError {
    let place = |applied: Applied| format!("commit {} of epoch {}", applied.seq, applied.epoch);
    OpenError::Tree(TreeError::Corrupt {
        place: "the end of the metadata tree".to_owned(),
        detail: format!(
            "it ends at {}, but the volume was closed at {}: files of it are gone; `pannier volume check` says which, and with \
             --repair what can be done",
            place(found),
            place(end)
        ),
    })
}

/// Leaves the head of a volume that was closed, and does not open, as one that was closed: what it says of the end is needed to
/// notice that something is missing.
async fn give_back(head: &HeadFile, taken: &TakenOver) {
    if let Err(error) = head.release(taken.head.epoch, taken.end).await {
        tracing::warn!(%error, "the volume that could not be opened was not given back");
    }
}

/// Who takes the volume over.
struct Sealer {
    bucket: BucketRef,
    volume: Uuid,
    epoch: Epoch,
    writer: Uuid,
    owner: String,
}

impl Sealer {
    /// Replays every commit that stands and seals where they end. Returns how many there were.
    ///
    /// Where the writer before has closed the volume, no commit is expected, only looked for if the seal says so; and a tree and a
    /// journal that end before the commit at which it was closed are refused.
    async fn replay(
        &self,
        walk: &mut Walk,
        tree: &dyn Tree,
        (taken, mut over): (&TakenOver, Option<&mut Vec<Damaged>>),
    ) -> Result<u64, OpenError> {
        let mut replayed = 0;
        let (epoch, seq) = walk.at();
        let closed = taken.end.filter(|end| *end > tree.applied());
        if taken.clean && closed.is_none() && self.seal(ObjectId::Journal(epoch, seq)).await? {
            return Ok(replayed);
        }
        loop {
            if walk.at() == (self.epoch, JournalSeq(1)) {
                // The first writer of a clone: what was before is its ancestors', and ended long ago.
                return Ok(replayed);
            }
            let step = match (walk.next().await, &mut over) {
                (Err(OpenError::Damaged { key, detail }), Some(over)) => {
                    self.seal_over(walk, &key, &detail).await?;
                    over.push(Damaged { key, detail });
                    continue;
                }
                (step, _) => step?,
            };
            match step {
                Step::Commit(commit) => {
                    let applied = Applied {
                        epoch: commit.epoch,
                        seq: commit.seq,
                    };
                    tree.apply(applied, commit.changes).await?;
                    replayed += 1;
                }
                Step::Seal(seal) if seal.next_epoch == self.epoch && seal.writer == self.writer => return Ok(replayed),
                Step::Seal(seal) if seal.next_epoch >= self.epoch => {
                    return Err(OpenError::Fenced { owner: seal.owner });
                }
                Step::Seal(_) => {}
                Step::Missing(object) => {
                    if let Some(end) = closed.filter(|end| walk.at() <= (end.epoch, end.seq)) {
                        return Err(ends_before(tree.applied(), end));
                    }
                    if self.seal(object).await? {
                        return Ok(replayed);
                    }
                }
            }
        }
    }

    /// Seals where a writer has said that its journal ends, `end` being its last commit. False if it did not say so, or
    /// something is there.
    async fn seal_end(&self, end: Option<Applied>, lineage: Lineage) -> Result<bool, OpenError> {
        let Some(end) = end else { return Ok(false) };
        let (epoch, seq) = Walk::new(self.bucket.clone(), lineage, end.epoch, end.seq.next()).at();
        if epoch == self.epoch {
            // The first writer of a clone: what was before is its ancestors'.
            return Ok(false);
        }
        self.seal(ObjectId::Journal(epoch, seq)).await
    }

    /// Puts our seal in the place of an object that is damaged, and lets the walk meet it.
    async fn seal_over(&self, walk: &mut Walk, key: &str, detail: &str) -> Result<(), OpenError> {
        let damaged = || OpenError::Damaged {
            key: key.to_owned(),
            detail: detail.to_owned(),
        };
        let object = ObjectId::parse(key)
            .filter(|object| !walk.is_foreign(*object))
            .ok_or_else(damaged)?;
        let found = self.bucket.head(key).await?;
        let etag = found.etag.ok_or_else(damaged)?;
        let seal = self.seal_of(object).encode();
        self.bucket.put_if_match(key, seal, &etag).await?;
        let (epoch, seq) = walk.at();
        walk.go_to(epoch, seq);
        Ok(())
    }

    fn seal_of(&self, object: ObjectId) -> Seal {
        Seal {
            volume: self.volume,
            object,
            next_epoch: self.epoch,
            writer: self.writer,
            owner: self.owner.clone(),
        }
    }

    /// Puts our seal where `object` is missing. False if something is there by now.
    async fn seal(&self, object: ObjectId) -> Result<bool, OpenError> {
        let seal = self.seal_of(object);
        match self.bucket.put_if_absent(&object.key(), seal.encode()).await {
            Ok(_) => Ok(true),
            Err(BucketError::Precondition { .. }) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }
}

/// Opens the volume at `root` for reading, as of its last durable commit. Writes nothing.
///
/// # Errors
/// `OpenError`.
pub async fn open_reader(root: BucketRef, config: TreeConfig) -> Result<OpenedReader, OpenError> {
    let head = HeadFile::new(root.clone(), HeadWriter::new(Uuid::nil())).read().await?;
    let opened = read_as(&root, head, config).await?;
    match opened.head.end.filter(|end| opened.head.clean && *end > opened.applied) {
        Some(end) => Err(ends_before(opened.applied, end)),
        None => Ok(opened),
    }
}

/// As `open_reader`, for the volume whose head this would be.
pub(crate) async fn read_as(root: &BucketRef, head: Head, config: TreeConfig) -> Result<OpenedReader, OpenError> {
    let bucket = data_of(root, &head)?;
    for attempt in 1.. {
        let (tree, manifest, next) = read_state(&bucket, &head, &config).await?;
        // A writer that flushed its tree meanwhile may have deleted journal objects before we asked for them: then the
        // journal seemed to end too early.
        let newest = newest_manifest(bucket.clone()).await?;
        if newest == manifest || attempt == READS_MAX {
            return Ok(OpenedReader {
                head,
                bucket,
                applied: tree.applied(),
                next,
                manifest,
                counters: counters_of(&tree).await?,
                tree: Arc::new(tree),
            });
        }
        tree.close().await?;
    }
    unreachable!("the last attempt returns")
}

/// The tree alone, without the tail of the journal: what can still be checked where the journal is damaged.
pub(crate) async fn read_tree_only(
    bucket: &BucketRef,
    head: &Head,
    config: &TreeConfig,
) -> Result<Arc<dyn Tree>, OpenError> {
    let (tree, _) = overlay(bucket, head, config).await?;
    Ok(Arc::new(tree))
}

/// The state of an ancestor's tree that a clone begins with.
fn tree_of(head: &Head) -> Option<TreeAt> {
    head.branch.as_ref()?.tree
}

/// The tree as it is in the bucket, with nothing on top yet, and the number of its manifest.
async fn overlay(
    bucket: &BucketRef,
    head: &Head,
    config: &TreeConfig,
) -> Result<(OverlayTree, Option<u64>), OpenError> {
    let own = SlateReader::open(bucket.clone(), &config.blocks).await?;
    let manifest = own.as_ref().map(SlateReader::manifest);
    let below = match (own, tree_of(head)) {
        (None, Some(at)) => {
            // A clone that nobody has written yet.
            let path = checkpoint::path_of(at);
            Some(SlateReader::open_at(bucket.clone(), path, at.checkpoint, &config.blocks).await?)
        }
        (own, _) => own,
    };
    let applied = below.as_ref().map_or(NOTHING, |tree| tree.applied());
    let below = below.map(|tree| Arc::new(tree) as Arc<dyn Tree>);
    Ok((OverlayTree::new(below, applied), manifest))
}

async fn read_state(
    bucket: &BucketRef,
    head: &Head,
    config: &TreeConfig,
) -> Result<(OverlayTree, Option<u64>, (Epoch, JournalSeq)), OpenError> {
    let (mut tree, manifest) = overlay(bucket, head, config).await?;
    let applied = tree.applied();
    let mut walk = Walk::new(bucket.clone(), head.lineage(), applied.epoch, applied.seq.next());
    loop {
        match walk.next().await? {
            Step::Commit(commit) => {
                let applied = Applied {
                    epoch: commit.epoch,
                    seq: commit.seq,
                };
                tree.push(applied, commit.changes);
            }
            Step::Seal(_) => {}
            Step::Missing(_) => return Ok((tree, manifest, walk.at())),
        }
    }
}
