//! A tree for reading with later commits on top, held in RAM: what a reader sees of a journal that no tree contains yet.
//!
//! Invariant: the tree below never changes while this lives, so the two together are one state of the volume.
//! Callers: `open.rs` for readers. Absent: a bound of its own: the writer bounds the journal's tail by flushing its tree.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::sync::Arc;

use async_trait::async_trait;

use super::{Tree, TreeError, merged_stats};
use crate::row::{Applied, Key, ObjectStats, Row};

/// What a later commit says of a key.
#[derive(Debug, Clone)]
enum Change {
    Put(Row),
    Delete,
    /// Added to what the tree below holds.
    Add(ObjectStats),
}

/// A tree with commits on top.
#[derive(Debug)]
pub(crate) struct OverlayTree {
    /// `None` where no tree was ever written.
    below: Option<Arc<dyn Tree>>,
    changes: BTreeMap<Key, Change>,
    applied: Applied,
}

impl OverlayTree {
    pub fn new(below: Option<Arc<dyn Tree>>, applied: Applied) -> Self {
        Self {
            below,
            changes: BTreeMap::new(),
            applied,
        }
    }

    /// Puts one more commit on top.
    pub fn push(&mut self, applied: Applied, changes: Vec<(Key, Option<Row>)>) {
        for (key, row) in changes {
            let change = match (row, self.changes.get(&key)) {
                (None, _) => Change::Delete,
                (Some(Row::ObjectStats(delta)), None) => Change::Add(delta),
                (Some(Row::ObjectStats(delta)), Some(Change::Add(old))) => {
                    Change::Add(merged_stats(Some(Row::ObjectStats(*old)), delta))
                }
                (Some(Row::ObjectStats(delta)), Some(Change::Put(old))) => {
                    Change::Put(Row::ObjectStats(merged_stats(Some(old.clone()), delta)))
                }
                (Some(row), _) => Change::Put(row),
            };
            self.changes.insert(key, change);
        }
        self.changes.insert(Key::Applied, Change::Put(Row::Applied(applied)));
        self.applied = applied;
    }

    async fn below(&self, key: &Key) -> Result<Option<Row>, TreeError> {
        match &self.below {
            Some(tree) => tree.get(key).await,
            None => Ok(None),
        }
    }

    /// The next rows of the tree below, after `cursor`, and whether they are the last ones.
    async fn chunk(&self, cursor: &Cursor, until: &Key, rows_max: usize) -> Result<(Rows, bool), TreeError> {
        let Some(tree) = &self.below else {
            return Ok((Vec::new(), true));
        };
        let (from, after) = match cursor {
            Bound::Included(key) => (key, false),
            Bound::Excluded(key) => (key, true),
            Bound::Unbounded => unreachable!("a scan has a start"),
        };
        // A scan begins at a key, so to go on after one is to ask for it once more.
        let asked = rows_max.saturating_add(usize::from(after));
        let mut rows = tree.scan(from, until, asked).await?;
        let last = rows.len() < asked;
        if after && rows.first().is_some_and(|(key, _)| key == from) {
            rows.remove(0);
        }
        Ok((rows, last))
    }
}

type Rows = Vec<(Key, Row)>;
type Cursor = Bound<Key>;

/// Lays `changes` over `rows`; both are of the same range.
fn merged<'a>(rows: Rows, changes: impl Iterator<Item = (&'a Key, &'a Change)>) -> BTreeMap<Key, Row> {
    let mut merged: BTreeMap<Key, Row> = rows.into_iter().collect();
    for (key, change) in changes {
        match change {
            Change::Put(row) => {
                merged.insert(key.clone(), row.clone());
            }
            Change::Delete => {
                merged.remove(key);
            }
            Change::Add(delta) => {
                let sum = merged_stats(merged.remove(key), *delta);
                merged.insert(key.clone(), Row::ObjectStats(sum));
            }
        }
    }
    merged
}

#[async_trait]
impl Tree for OverlayTree {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TreeError> {
        match self.changes.get(key) {
            Some(Change::Put(row)) => Ok(Some(row.clone())),
            Some(Change::Delete) => Ok(None),
            Some(Change::Add(delta)) => {
                let sum = merged_stats(self.below(key).await?, *delta);
                Ok(Some(Row::ObjectStats(sum)))
            }
            None => self.below(key).await,
        }
    }

    async fn scan(&self, from: &Key, until: &Key, rows_max: usize) -> Result<Rows, TreeError> {
        let mut found = Vec::new();
        if from >= until || rows_max == 0 {
            return Ok(found);
        }
        let mut cursor = Bound::Included(from.clone());
        loop {
            let (rows, last) = self.chunk(&cursor, until, rows_max - found.len()).await?;
            let end = match rows.last() {
                Some((key, _)) if !last => Bound::Included(key.clone()),
                Some(_) | None => Bound::Excluded(until.clone()),
            };
            let changes = self.changes.range((cursor, end.clone()));
            found.extend(merged(rows, changes));
            found.truncate(rows_max);
            match end {
                Bound::Included(key) if found.len() < rows_max => cursor = Bound::Excluded(key),
                Bound::Included(_) | Bound::Excluded(_) | Bound::Unbounded => return Ok(found),
            }
        }
    }

    async fn apply(&self, _: Applied, _: Vec<(Key, Option<Row>)>) -> Result<(), TreeError> {
        Err(TreeError::ReadOnly)
    }

    async fn flush(&self) -> Result<Applied, TreeError> {
        Err(TreeError::ReadOnly)
    }

    fn applied(&self) -> Applied {
        self.applied
    }

    async fn close(&self) -> Result<(), TreeError> {
        match &self.below {
            Some(tree) => tree.close().await,
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::memory::MemoryTree;
    use super::*;
    use crate::ids::{Epoch, InodeNo, JournalSeq, ObjectId};

    fn at(seq: u64) -> Applied {
        Applied {
            epoch: Epoch(1),
            seq: JournalSeq(seq),
        }
    }

    fn key(number: u64) -> Key {
        match number % 3 {
            0 => Key::Orphan(InodeNo(number)),
            1 => Key::Xattr {
                ino: InodeNo(number),
                name: bytes::Bytes::new(),
            },
            _ => Key::ObjectStats(ObjectId::Segment(Epoch(1), number)),
        }
    }

    fn row(key: &Key, value: i8) -> Row {
        match key {
            Key::ObjectStats(_) => Row::ObjectStats(ObjectStats {
                live_bytes: i64::from(value),
                total_bytes: 1,
            }),
            Key::Xattr { .. } => Row::Xattr(bytes::Bytes::copy_from_slice(&[value as u8])),
            _ => Row::Orphan,
        }
    }

    proptest! {
        /// Goal: an overlay reads as a tree that has applied the same commits. Method: random commits, divided anywhere.
        #[test]
        fn an_overlay_reads_as_the_tree_it_stands_for(
            commits in prop::collection::vec(prop::collection::vec((0u64..20, prop::option::of(any::<i8>())), 0..8), 0..8),
            divided_at in 0usize..8,
            rows_max in 1usize..12,
            range in (0u64..20, 0u64..20),
        ) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
            runtime.block_on(async {
                let (below, whole) = (Arc::new(MemoryTree::new()), MemoryTree::new());
                let mut overlay = None;
                for (i, commit) in commits.iter().enumerate() {
                    let changes: Vec<_> = commit
                        .iter()
                        .map(|(number, value)| (key(*number), value.map(|value| row(&key(*number), value))))
                        .collect();
                    let applied = at(i as u64 + 1);
                    whole.apply(applied, changes.clone()).await.unwrap();
                    if i < divided_at {
                        below.apply(applied, changes).await.unwrap();
                    } else {
                        let new = || OverlayTree::new(Some(below.clone()), at(i as u64));
                        overlay.get_or_insert_with(new).push(applied, changes);
                    }
                }
                let overlay = overlay.unwrap_or_else(|| OverlayTree::new(Some(below.clone()), below.applied()));
                assert_eq!(overlay.applied(), whole.applied());
                for number in 0..20 {
                    assert_eq!(overlay.get(&key(number)).await, whole.get(&key(number)).await);
                }
                let (from, until) = (key(range.0), key(range.1));
                let want = whole.scan(&from, &until, rows_max).await;
                assert_eq!(overlay.scan(&from, &until, rows_max).await, want);
                let all = (Key::Counters, Key::Orphan(InodeNo(u64::MAX)));
                let want = whole.scan(&all.0, &all.1, rows_max).await;
                assert_eq!(overlay.scan(&all.0, &all.1, rows_max).await, want);
            });
        }
    }
}
