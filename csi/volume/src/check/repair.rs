//! Repairing a volume: what a damaged bucket can leave is made consistent again, and what cannot be saved is named.
//!
//! Nothing is guessed. What follows from other rows is counted anew; what nothing refers to goes; a file that lost its names is
//! found in `lost+found`. Content that is missing or damaged stays as it is, so that reading it fails, unless the operator
//! accepts the loss: then it becomes a hole, and a journal that is damaged ends before the damage.
//! Invariants: a plan changes nothing in the bucket, and finds what a repair would do, by doing it to rows in RAM; a repair takes
//! the volume as a writer does, so no other can write meanwhile, and is refused while a node has it; doing it again, also after it
//! was cut short, goes on. The next mount searches the bucket for objects that no row names, as after a crash.
//! Files of the tree that are damaged come first (`repair/tree.rs`): no row can be mended while there is nothing to write rows to.
//! Callers: `pannier volume check --repair`. Absent: damage of the head, and of files of a tree that only snapshots read.

use std::collections::BTreeSet;
use std::sync::Arc;

use uuid::Uuid;

use super::Damage;
use super::inodes::{first_dirent, first_extent, first_inode};
use crate::admin::AdminError;
use crate::bucket::BucketRef;
use crate::clock::Timestamp;
use crate::head::{Claim, Head, HeadError, HeadFile, HeadWriter};
use crate::holds::HoldsError;
use crate::ids::Epoch;
use crate::lineage::{Lineage, data_of};
use crate::open::{Damaged, OpenError, TreeConfig, open_reader, open_writer_over, read_as, read_tree_only};
use crate::row::{Applied, Key, Row};
use crate::tree::Tree;
use crate::tree::overlay::OverlayTree;
use crate::volume_id::NodeId;

mod content;
mod holds;
mod inodes;
mod journal;
mod names;
mod retired;
mod sums;
mod tree;

use tree::{TreeState, mend_tree};

/// 10,000 changes are made at a time; then a pass begins again, until it finds nothing more.
const CHANGES_PER_ROUND: usize = 10_000;

/// 10,000 rounds: a hundred million changes. More means that a change does not stick.
const ROUNDS_MAX: u32 = 10_000;

/// What to repair, and what may be lost by it.
#[derive(Debug, Clone)]
pub struct RepairOptions {
    /// Change the bucket; otherwise only tell what would be done.
    pub apply: bool,
    /// Give up content and commits that are damaged: ranges become holes, the journal ends before the damage.
    pub accept_loss: bool,
    /// Also if a mount by hand did not end cleanly: it must be gone for good.
    pub force: bool,
    /// Read all content.
    pub content: bool,
    /// Inodes or objects counted at a time.
    pub window_rows: usize,
    /// The name that the head shows while the volume is repaired.
    pub node_id: NodeId,
    /// For people to read, in the head.
    pub now: Timestamp,
}

impl RepairOptions {
    /// Tell what could be done without any loss, and change nothing.
    pub fn plan(node_id: NodeId, now: Timestamp) -> Self {
        Self {
            apply: false,
            accept_loss: false,
            force: false,
            content: true,
            window_rows: super::WINDOW_ROWS,
            node_id,
            now,
        }
    }
}

/// What is done about a damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Remedy {
    /// Made good; nothing is lost by it.
    Mended,
    /// Given up, as the operator accepts.
    GivenUp,
    /// It stays as it is: making it good loses something.
    NeedsConsent,
}

/// A damage, and what was done, or would be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What is wrong.
    pub damage: Damage,
    /// What is done about it.
    pub remedy: Remedy,
    /// In words: "the entry is removed".
    pub action: String,
}

/// How much was found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RepairReport {
    /// Made good without loss.
    pub mended: u64,
    /// Given up.
    pub given_up: u64,
    /// Left as they are.
    pub left: u64,
}

/// Why a volume could not be repaired.
#[derive(Debug, thiserror::Error)]
pub enum RepairError {
    /// Somebody has it.
    #[error("node {node_id} has the volume mounted, or ended without unmounting: unmount it there first")]
    InUse {
        /// Who.
        node_id: NodeId,
    },
    /// A change did not stick.
    #[error("the repair does not come to an end; the last pass was {pass}")]
    Endless {
        /// Which.
        pass: &'static str,
    },
    /// The journal is damaged, and without giving up what follows nothing can be changed.
    #[error(
        "the journal is damaged at {key}, and what follows can only be given up: see the plan, and accept the loss"
    )]
    Journal {
        /// The object.
        key: String,
    },
    /// Files of the tree are damaged, and with them rows that nothing else has.
    #[error(
        "files of the metadata tree are damaged, and some rows in them can only be given up: see the plan, and accept the loss"
    )]
    TreeRows,
    /// Somebody writes it.
    #[error("the volume has changed while it was being repaired: a mount still runs somewhere; begin again")]
    Changed,
    /// The holds cannot be put back.
    #[error("what snapshots and clones hold cannot be put back: {0}")]
    Holds(#[source] HoldsError),
    /// The snapshots of the family cannot be read.
    #[error("the snapshots cannot be read: {0}")]
    Snapshots(#[source] Box<AdminError>),
    /// The volume cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
}

impl From<crate::tree::TreeError> for RepairError {
    fn from(error: crate::tree::TreeError) -> Self {
        RepairError::Open(error.into())
    }
}

impl From<HeadError> for RepairError {
    fn from(error: HeadError) -> Self {
        RepairError::Open(error.into())
    }
}

impl From<crate::bucket::BucketError> for RepairError {
    fn from(error: crate::bucket::BucketError) -> Self {
        RepairError::Open(error.into())
    }
}

/// Rows to change.
type Changes = Vec<(Key, Option<Row>)>;

/// Whose rows are changed.
enum Rows {
    /// In RAM, over those of the bucket.
    Planned(OverlayTree),
    /// Those of the bucket.
    Written(Arc<dyn Tree>),
}

/// What a repair works on, and where it tells what it finds.
struct Repairer<'a> {
    rows: Rows,
    bucket: BucketRef,
    lineage: Lineage,
    options: RepairOptions,
    report: RepairReport,
    /// What was told to stay, so that it is told once.
    left: BTreeSet<(String, String)>,
    tell: &'a mut (dyn FnMut(Finding) + Send),
}

/// Repairs the volume at `root` (the bucket seen through the volume's root), or plans to.
///
/// # Durability
/// After `Ok` of a repair that applies, everything told is in the bucket.
///
/// # Errors
/// `RepairError`. What was told before holds; the repair can be begun again.
pub async fn repair(
    root: BucketRef,
    options: RepairOptions,
    tell: &mut (dyn FnMut(Finding) + Send),
) -> Result<RepairReport, RepairError> {
    let file = HeadFile::new(root.clone(), HeadWriter::new(Uuid::new_v4()));
    let head = file.read().await.map_err(OpenError::from)?;
    refuse_used(&head, &options)?;
    let mut report = RepairReport::default();
    let tree = mend_tree((&root, &head), &options, (&mut report, &mut *tell)).await?;
    if options.apply {
        retired::mend_retired(&root, &file.read().await?).await?;
        return apply(root, options, (report, tell)).await;
    }
    match tree {
        // What its rows lack of each other shows when there is one to read.
        TreeState::Planned => Ok(report),
        TreeState::Sound | TreeState::Made => plan(root, head, options, tell).await,
    }
}

fn refuse_used(head: &Head, options: &RepairOptions) -> Result<(), RepairError> {
    if let Some(publication) = head.publications.first() {
        let node_id = publication.node_id.clone();
        return Err(RepairError::InUse { node_id });
    }
    match head.rightful_leader() {
        Some(leader) if !options.force => Err(RepairError::InUse {
            node_id: leader.node_id.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

async fn plan(
    root: BucketRef,
    head: Head,
    options: RepairOptions,
    tell: &mut (dyn FnMut(Finding) + Send),
) -> Result<RepairReport, RepairError> {
    let bucket = data_of(&root, &head).map_err(OpenError::from)?;
    let lineage = head.lineage();
    let mut report = RepairReport::default();
    let below = match read_as(&root, head.clone(), TreeConfig::default()).await {
        Ok(opened) => opened.tree,
        Err(OpenError::Damaged { key, detail }) => {
            told_journal(Damaged { key, detail }, &options, (&mut report, &mut *tell));
            read_tree_only(&bucket, &head, &TreeConfig::default()).await?
        }
        Err(error) => return Err(error.into()),
    };
    let applied = below.applied();
    let mut repairer = Repairer {
        rows: Rows::Planned(OverlayTree::new(Some(below.clone()), applied)),
        bucket,
        lineage,
        options,
        report,
        left: BTreeSet::new(),
        tell,
    };
    repairer.all(&root, &head).await?;
    let report = repairer.report;
    below.close().await?;
    Ok(report)
}

async fn apply(
    root: BucketRef,
    options: RepairOptions,
    (mut report, tell): (RepairReport, &mut (dyn FnMut(Finding) + Send)),
) -> Result<RepairReport, RepairError> {
    if let (false, Err(OpenError::Damaged { key, .. })) = (options.accept_loss, sound_journal(&root).await) {
        return Err(RepairError::Journal { key });
    }
    let claim = Claim {
        node_id: options.node_id.clone(),
        session: Uuid::new_v4(),
        lease: None,
        now: options.now,
    };
    let config = TreeConfig {
        now: options.now,
        ..TreeConfig::default()
    };
    let mut damaged = Vec::new();
    let over = options.accept_loss.then_some(&mut damaged);
    let opened = open_writer_over(root.clone(), claim, config, (None, over)).await?;
    for damage in damaged {
        told_journal(damage, &options, (&mut report, &mut *tell));
    }
    let head = opened.taken.head.clone();
    let mut repairer = Repairer {
        rows: Rows::Written(opened.tree.clone()),
        bucket: opened.bucket.clone(),
        lineage: head.lineage(),
        options,
        report,
        left: BTreeSet::new(),
        tell,
    };
    let done = repairer.all(&root, &head).await;
    let report = repairer.report;
    opened.tree.flush().await?;
    opened.tree.close().await?;
    release_unclean(&root, opened.epoch).await?;
    done?;
    Ok(report)
}

/// Reads the whole journal, before anything is changed.
async fn sound_journal(root: &BucketRef) -> Result<(), OpenError> {
    let opened = open_reader(root.clone(), TreeConfig::default()).await?;
    opened.tree.close().await?;
    Ok(())
}

/// Gives the volume back as after a crash: the next mount searches the bucket for what no row names.
async fn release_unclean(root: &BucketRef, epoch: Epoch) -> Result<(), RepairError> {
    let file = HeadFile::new(root.clone(), HeadWriter::new(Uuid::new_v4()));
    let change = |head: &mut Head| {
        // Whoever took the volume meanwhile keeps it.
        if head.epoch == epoch {
            head.leader = None;
        }
        Ok::<_, HeadError>(())
    };
    file.update(change).await.map_err(OpenError::from)?;
    Ok(())
}

fn told_journal(
    Damaged { key, detail }: Damaged,
    options: &RepairOptions,
    (report, tell): (&mut RepairReport, &mut (dyn FnMut(Finding) + Send)),
) {
    let action = "the journal ends before it: commits from there on are given up".to_owned();
    let remedy = if options.accept_loss {
        report.given_up += 1;
        Remedy::GivenUp
    } else {
        report.left += 1;
        Remedy::NeedsConsent
    };
    let damage = Damage {
        object: key,
        place: "the journal".to_owned(),
        detail,
    };
    tell(Finding { damage, remedy, action });
}

/// What a pass found in one round, and the changes that mend it.
struct Round {
    accept_loss: bool,
    changes: Changes,
    found: Vec<Finding>,
}

impl Round {
    fn is_full(&self) -> bool {
        self.changes.len() >= CHANGES_PER_ROUND
    }

    /// Something in the rows is made good.
    fn mend(&mut self, (place, detail): (String, String), action: &str, changes: Changes) {
        let object = "m/".to_owned();
        self.found.push(Finding {
            damage: Damage { object, place, detail },
            remedy: Remedy::Mended,
            action: action.to_owned(),
        });
        self.changes.extend(changes);
    }

    /// Something is lost by making it good.
    fn lose(&mut self, damage: Damage, action: &str, changes: Changes) {
        let remedy = if self.accept_loss {
            self.changes.extend(changes);
            Remedy::GivenUp
        } else {
            Remedy::NeedsConsent
        };
        self.found.push(Finding {
            damage,
            remedy,
            action: action.to_owned(),
        });
    }
}

/// Does a pass again and again, until it changes nothing.
macro_rules! until_sound {
    ($self:ident, $pass:ident) => {{
        let mut rounds = 0;
        loop {
            let mut round = $self.round();
            $self.$pass(&mut round).await?;
            $self.tell(round.found);
            if round.changes.is_empty() {
                break;
            }
            rounds += 1;
            if rounds > ROUNDS_MAX {
                return Err(RepairError::Endless {
                    pass: stringify!($pass),
                });
            }
            $self.change(round.changes).await?;
        }
    }};
}

impl Repairer<'_> {
    async fn all(&mut self, root: &BucketRef, head: &Head) -> Result<(), RepairError> {
        self.mend_holds(root, head).await?;
        if self.tree().get(&Key::Counters).await?.is_none() && self.is_empty().await? {
            // Nothing was ever written.
            return Ok(());
        }
        until_sound!(self, mend_strays);
        until_sound!(self, mend_names);
        let mut next = self.options.content.then(first_extent);
        while let Some(from) = next {
            let mut round = self.round();
            next = self.mend_content(from, &mut round).await?;
            self.tell(round.found);
            self.change(round.changes).await?;
        }
        until_sound!(self, mend_nameless);
        until_sound!(self, mend_inodes);
        until_sound!(self, mend_sums);
        until_sound!(self, mend_counters);
        Ok(())
    }

    async fn is_empty(&self) -> Result<bool, RepairError> {
        Ok(self.tree().scan(&first_inode(), &first_dirent(), 1).await?.is_empty())
    }

    fn tree(&self) -> &dyn Tree {
        match &self.rows {
            Rows::Planned(tree) => tree,
            Rows::Written(tree) => tree.as_ref(),
        }
    }

    async fn change(&mut self, changes: Changes) -> Result<(), RepairError> {
        match &mut self.rows {
            Rows::Planned(tree) => {
                let applied: Applied = tree.applied();
                tree.push(applied, changes);
            }
            Rows::Written(tree) => tree.apply(tree.applied(), changes).await?,
        }
        Ok(())
    }

    fn round(&self) -> Round {
        Round {
            accept_loss: self.options.accept_loss,
            changes: Vec::new(),
            found: Vec::new(),
        }
    }

    fn tell(&mut self, found: Vec<Finding>) {
        for finding in found {
            match finding.remedy {
                Remedy::Mended => self.report.mended += 1,
                Remedy::GivenUp => self.report.given_up += 1,
                Remedy::NeedsConsent => {
                    let place = (finding.damage.object.clone(), finding.damage.place.clone());
                    if !self.left.insert(place) {
                        continue;
                    }
                    self.report.left += 1;
                }
            }
            (self.tell)(finding);
        }
    }
}

#[cfg(test)]
mod tests;
