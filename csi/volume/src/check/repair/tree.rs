//! A tree whose own files are damaged is made anew: from all rows that can still be read, and what the journal still has of those
//! that cannot.
//!
//! Invariants: nothing of the old tree is changed or deleted; the new one lies in a folder of its own, that the head names only
//! when it is complete, by a swap that fails if anybody has taken the volume since. So a repair that was cut short has changed
//! nothing but the epoch, and can be begun again. Before the journal is read for the last time it is sealed, so that a writer that still
//! runs somewhere acknowledges nothing that the new tree would lack.
//! Which version of a row is the newest: of two in files the one of the later batch; a row of the journal counts where the tree
//! has lost rows, or lacks the commit; batches and commits are compared by the rows that say which commit a batch was.
//! Caller: `check/repair.rs`. Absent: what the rows that are found lack of each other, which the passes after it mend.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use uuid::Uuid;

use super::super::tree_files::{loses, owner_in_words, survey, told};
use super::journal::{Left, LeftRow, end_known_journal, read_left};
use super::{Damage, Finding, Remedy, RepairError, RepairOptions, RepairReport};
use crate::bucket::BucketRef;
use crate::head::{Claim, Head, HeadFile, HeadWriter};
use crate::ids::Epoch;
use crate::lineage::data_of;
use crate::open::{OpenError, TreeConfig};
use crate::row::codec::decode_pair;
use crate::row::{Applied, Key, ObjectStats, Row};
use crate::tree::Tree;
use crate::tree::salvage::{Survey, Version};
use crate::tree::slate::{NOTHING, SlateTree, seen_writer};

/// 4 MiB of rows are written at a time: a fraction of what the tree holds in RAM.
const BATCH_BYTES: usize = 4 * 1024 * 1024;

/// 10,000 rows are written at a time.
const BATCH_ROWS: usize = 10_000;

/// 10,000 inodes are named one by one whose rows may be old; of more, only how many.
const TOLD_MAX: usize = 10_000;

/// What became of the tree.
pub(super) enum TreeState {
    /// Nothing is wrong with it.
    Sound,
    /// It can be made anew.
    Planned,
    /// It was made anew.
    Made,
}

/// A repair of the tree's files.
struct Mending<'a> {
    root: &'a BucketRef,
    head: Head,
    /// The data folder, with the old tree.
    bucket: BucketRef,
    survey: Survey,
    points: Vec<(Applied, u64)>,
    options: &'a RepairOptions,
}

/// Looks at the tree's files, and makes the tree anew if it must and may be.
pub(super) async fn mend_tree(
    (root, head): (&BucketRef, &Head),
    options: &RepairOptions,
    (report, tell): (&mut RepairReport, &mut (dyn FnMut(Finding) + Send)),
) -> Result<TreeState, RepairError> {
    let bucket = data_of(root, head).map_err(OpenError::from)?;
    let Some(survey) = survey(&bucket, head).await? else {
        return Ok(TreeState::Sound);
    };
    if survey.wrong.is_empty() {
        return Ok(TreeState::Sound);
    }
    let loses = loses(&survey);
    let remedy = match (loses, options.accept_loss) {
        (false, _) => Remedy::Mended,
        (true, true) => Remedy::GivenUp,
        (true, false) => Remedy::NeedsConsent,
    };
    for wrong in &survey.wrong {
        let action = match (wrong.lost.is_some(), loses) {
            (true, true) => {
                "the tree is made anew, of older rows and the journal where these are lost: what neither has is gone"
            }
            _ => "the tree is made anew of the rows that can be read",
        };
        let damage = told(wrong, survey.base);
        tell_one((damage, remedy, action.to_owned()), (&mut *report, &mut *tell));
    }
    if !options.apply {
        return Ok(TreeState::Planned);
    }
    if remedy == Remedy::NeedsConsent {
        return Err(RepairError::TreeRows);
    }
    let mending = Mending {
        root,
        head: head.clone(),
        bucket,
        points: survey.points(),
        survey,
        options,
    };
    for (damage, action) in mending.make().await? {
        tell_one((damage, Remedy::GivenUp, action), (&mut *report, &mut *tell));
    }
    Ok(TreeState::Made)
}

fn tell_one(
    (damage, remedy, action): (Damage, Remedy, String),
    (report, tell): (&mut RepairReport, &mut (dyn FnMut(Finding) + Send)),
) {
    match remedy {
        Remedy::Mended => report.mended += 1,
        Remedy::GivenUp => report.given_up += 1,
        Remedy::NeedsConsent => report.left += 1,
    }
    tell(Finding { damage, remedy, action });
}

impl Mending<'_> {
    /// Makes the new tree, and lets the head name it. Returns what may be older than it was.
    async fn make(&self) -> Result<Vec<(Damage, String)>, RepairError> {
        let claim = Claim {
            node_id: self.options.node_id.clone(),
            session: Uuid::new_v4(),
            lease: None,
            now: self.options.now,
        };
        let file = HeadFile::new(self.root.clone(), HeadWriter::new(claim.session));
        let taken = file
            .take_for_repair(&claim, self.head.epoch)
            .await
            .map_err(OpenError::from)?;
        let seal = (taken.epoch, &claim);
        let known = self.is_applied_known();
        if known && !self.head.clean {
            end_known_journal(&self.bucket, &taken, seal, self.applied()).await?;
        }
        let wanted = |key: &[u8], at: Applied| self.wants(key, at);
        let ends = (!known && !self.head.clean).then_some(seal);
        let window = self.options.window_rows;
        let mut left = read_left((&self.bucket, &taken), ends, (Bytes::new(), window), &wanted).await?;
        let applied = self.applied_after(known, &left);
        let mut maker = Maker::begin(self, taken.epoch).await?;
        let mut rows = self.survey.rows();
        let mut version = rows.next().await?;
        loop {
            let until = left.until.clone();
            let is_ours = |version: &Version| until.as_ref().is_none_or(|until| version.key < *until);
            while let Some(found) = version.take_if(|version| is_ours(version)) {
                maker.take_before(&mut left.rows, &found.key).await?;
                let of_journal = left.rows.remove(&found.key);
                maker.choose(found, of_journal).await?;
                version = rows.next().await?;
            }
            maker.take_rest(std::mem::take(&mut left.rows)).await?;
            let Some(from) = until else { break };
            left = read_left((&self.bucket, &taken), None, (from, window), &wanted).await?;
        }
        let mut told = maker.end(applied).await?;
        if !known {
            told.extend(left.told(self.applied()));
        }
        if !self.survey.is_current(&self.bucket).await? {
            return Err(RepairError::Changed);
        }
        let name = |head: &mut Head| {
            if head.epoch != taken.epoch {
                return Err(RepairError::Changed);
            }
            head.tree = Some(taken.epoch);
            Ok(())
        };
        file.update(name).await?;
        Ok(told)
    }

    /// The last commit that the old tree is known to have contained.
    fn applied(&self) -> Applied {
        self.points.last().map_or(NOTHING, |(applied, _)| *applied)
    }

    /// True if it contained no later one.
    fn is_applied_known(&self) -> bool {
        let closed = self.head.end.filter(|_| self.head.clean);
        self.survey.knows_applied() || closed.is_some_and(|end| end == self.applied())
    }

    /// Whether a row of the journal may be needed. What is behind the tree is left to the recovery that follows, where it can be.
    fn wants(&self, key: &[u8], at: Applied) -> bool {
        match at > self.applied() {
            true => !self.is_applied_known(),
            false => self.survey.has_lost(key),
        }
    }

    /// The commit that the new tree contains everything up to that is left.
    fn applied_after(&self, known: bool, left: &Left) -> Applied {
        if known {
            return self.applied();
        }
        let begins = |epoch: Epoch| Applied { epoch, ..NOTHING };
        let places = [
            Some(self.applied()),
            left.found.last,
            left.found.sealed.map(begins),
            self.head.end.filter(|_| self.head.clean),
            self.head.branch.as_ref().map(|branch| branch.until()),
        ];
        places.into_iter().flatten().max().unwrap_or(NOTHING)
    }

    /// True if a commit is newer than a batch of the tree.
    fn is_newer(&self, commit: Applied, batch: u64) -> bool {
        let below = self.points.iter().rev().find(|(point, _)| *point <= commit);
        let above = self.points.iter().find(|(point, _)| *point >= commit);
        if above.is_some_and(|(_, at)| batch >= *at) {
            return false;
        }
        match below {
            None => false,
            Some((_, at)) if batch <= *at => true,
            // Each commit is a batch.
            Some((point, at)) => point.epoch == commit.epoch && at.saturating_add(commit.seq.0 - point.seq.0) > batch,
        }
    }
}

/// Writes the new tree.
struct Maker<'a> {
    of: &'a Mending<'a>,
    tree: SlateTree,
    batch: Vec<(Key, Option<Row>)>,
    bytes: usize,
    /// Of which inodes rows may be older than they were, by kind.
    older: BTreeMap<u64, BTreeSet<&'static str>>,
    /// Rows of inodes that are not among them any more.
    untold: u64,
}

impl<'a> Maker<'a> {
    async fn begin(of: &'a Mending<'a>, epoch: Epoch) -> Result<Self, RepairError> {
        let mut head = of.head.clone();
        head.tree = Some(epoch);
        let bucket = data_of(of.root, &head).map_err(OpenError::from)?;
        let config = TreeConfig {
            now: of.options.now,
            ..TreeConfig::default()
        };
        let seen = seen_writer(bucket.clone()).await?;
        Ok(Self {
            of,
            tree: SlateTree::open(bucket, seen, &config).await?,
            batch: Vec::new(),
            bytes: 0,
            older: BTreeMap::new(),
            untold: 0,
        })
    }

    /// Takes the rows of the journal before a key that the tree has no version of.
    async fn take_before(&mut self, rows: &mut BTreeMap<Bytes, LeftRow>, key: &Bytes) -> Result<(), RepairError> {
        while let Some(first) = rows.first_entry().filter(|first| first.key() < key) {
            let (key, row) = first.remove_entry();
            self.take_left(&key, row).await?;
        }
        Ok(())
    }

    async fn take_rest(&mut self, rows: BTreeMap<Bytes, LeftRow>) -> Result<(), RepairError> {
        for (key, row) in rows {
            self.take_left(&key, row).await?;
        }
        Ok(())
    }

    /// A row of the journal.
    async fn take_left(&mut self, key: &Bytes, left: LeftRow) -> Result<(), RepairError> {
        self.note(key);
        match left.row {
            Some(row) => self.put(left.key, row, key.len()).await,
            None => Ok(()),
        }
    }

    /// The newer of two versions of a row.
    async fn choose(&mut self, found: Version, left: Option<LeftRow>) -> Result<(), RepairError> {
        if let Some(left) = left
            && self.of.is_newer(left.at, found.seq)
        {
            return self.take_left(&found.key, left).await;
        }
        let Some(bytes) = &found.row else { return Ok(()) };
        // What does not decode was told, and is among the lost.
        let Ok((key, row)) = decode_pair(&found.key, bytes) else {
            return Ok(());
        };
        self.note(&found.key);
        match (key, row) {
            (Key::Applied, _) => Ok(()),
            // Nothing lives in it: a sum of nothing is added to nothing.
            (Key::ObjectStats(_), Row::ObjectStats(sum)) if sum == ObjectStats::default() => Ok(()),
            (key, row) => self.put(key, row, bytes.len()).await,
        }
    }

    /// Keeps in mind whose row is among those that may be older than they were.
    fn note(&mut self, key: &[u8]) {
        let lost = self.of.survey.has_lost(key);
        let Some((ino, kind)) = owner_in_words(key).filter(|_| lost) else {
            return;
        };
        if self.older.len() < TOLD_MAX || self.older.contains_key(&ino) {
            self.older.entry(ino).or_default().insert(kind);
        } else {
            self.untold += 1;
        }
    }

    async fn put(&mut self, key: Key, row: Row, bytes: usize) -> Result<(), RepairError> {
        self.batch.push((key, Some(row)));
        self.bytes += bytes;
        if self.bytes >= BATCH_BYTES || self.batch.len() >= BATCH_ROWS {
            self.bytes = 0;
            self.tree.apply(NOTHING, std::mem::take(&mut self.batch)).await?;
        }
        Ok(())
    }

    /// Ends the tree as one that contains everything up to this commit, and tells what may be older.
    async fn end(mut self, applied: Applied) -> Result<Vec<(Damage, String)>, RepairError> {
        self.tree.apply(applied, std::mem::take(&mut self.batch)).await?;
        self.tree.flush().await?;
        self.tree.close().await?;
        let action = || "what was found of them is taken: compare it with a copy".to_owned();
        let mut told: Vec<_> = self
            .older
            .into_iter()
            .map(|(ino, kinds)| {
                let kinds: Vec<_> = kinds.into_iter().collect();
                let damage = Damage {
                    object: "m/".to_owned(),
                    place: format!("inode {ino}"),
                    detail: format!(
                        "its {} may be older than they were, or of a file that was deleted",
                        kinds.join(" and ")
                    ),
                };
                (damage, action())
            })
            .collect();
        if self.untold > 0 {
            let damage = Damage {
                object: "m/".to_owned(),
                place: "the whole".to_owned(),
                detail: format!("{} rows of more inodes may be older than they were", self.untold),
            };
            told.push((damage, action()));
        }
        Ok(told)
    }
}
