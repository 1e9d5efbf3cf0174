//! All rows of some files in the order of their keys, each in its newest version.
//!
//! Bounded: of each file that reaches over the key at hand one block is held.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;

use bytes::Bytes;
use slatedb::{RowEntry, ValueDeletable};

use super::file::TreeFile;
use super::watched::Watched;
use crate::row::codec::{decode_row, encode_row};
use crate::row::{ObjectStats, Row};
use crate::tree::slate::outward;
use crate::tree::{TreeError, merged_stats};

/// A row in its newest version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Version {
    pub key: Bytes,
    /// The batch that wrote it.
    pub seq: u64,
    /// `None` where it was deleted.
    pub row: Option<Bytes>,
}

/// Where the reading of a file is.
struct Place<'a> {
    file: &'a TreeFile,
    next_block: usize,
    rows: VecDeque<RowEntry>,
}

/// Rows of many files.
pub(crate) struct Merge<'a> {
    places: Vec<Place<'a>>,
    /// What comes next of each file: of one key the newest version first. A file that was not read yet stands before all of its
    /// rows.
    next: BinaryHeap<Reverse<(Bytes, Reverse<u64>, usize)>>,
    store: Arc<Watched>,
}

impl<'a> Merge<'a> {
    pub(super) fn of(files: &'a [TreeFile], store: &Arc<Watched>) -> Self {
        let places: Vec<Place<'a>> = files
            .iter()
            .filter(|file| file.file.is_some() && file.blocks > 0)
            .map(|file| Place {
                file,
                next_block: 0,
                rows: VecDeque::new(),
            })
            .collect();
        let begin = |(at, place): (usize, &Place<'a>)| Reverse((place.file.first.clone(), Reverse(u64::MAX), at));
        Self {
            next: places.iter().enumerate().map(begin).collect(),
            places,
            store: Arc::clone(store),
        }
    }

    /// The next row.
    ///
    /// # Errors
    /// `TreeError`; `Corrupt` if a file has changed since it was looked at.
    pub async fn next(&mut self) -> Result<Option<Version>, TreeError> {
        let mut versions: Vec<RowEntry> = Vec::new();
        while let Some(Reverse((key, _, at))) = self.next.peek() {
            let at = *at;
            if versions.first().is_some_and(|row| row.key != *key) {
                break;
            }
            self.next.pop();
            if let Some(row) = self.places[at].rows.pop_front() {
                // The same version may be in a file and in what a compaction has made of it.
                if versions.last().is_none_or(|last| last.seq != row.seq) {
                    versions.push(row);
                }
            }
            self.fill(at).await?;
            if let Some(row) = self.places[at].rows.front() {
                self.next.push(Reverse((row.key.clone(), Reverse(row.seq), at)));
            }
        }
        Ok(newest(versions))
    }

    /// Reads on in a file, if nothing of it is at hand.
    async fn fill(&mut self, at: usize) -> Result<(), TreeError> {
        let place = &mut self.places[at];
        while place.rows.is_empty() && place.next_block < place.file.blocks {
            let block = place.next_block;
            place.next_block += 1;
            if place.file.bad.binary_search(&block).is_ok() {
                continue;
            }
            let file = place
                .file
                .file
                .as_ref()
                .expect("only files that can be read are merged");
            match file.read_block(block).await {
                Ok(rows) => place.rows = rows.into(),
                Err(error) => {
                    let detail = self.store.damage(outward(error))?;
                    return Err(TreeError::Corrupt {
                        place: place.file.key.clone(),
                        detail,
                    });
                }
            }
        }
        Ok(())
    }
}

/// What the versions of one key, the newest first, say of it.
fn newest(versions: Vec<RowEntry>) -> Option<Version> {
    let (key, seq) = versions.first().map(|row| (row.key.clone(), row.seq))?;
    let mut sum: Option<ObjectStats> = None;
    for version in versions {
        match (version.value, sum) {
            (ValueDeletable::Tombstone, _) => break,
            (ValueDeletable::Value(row), None) => {
                return Some(Version {
                    key,
                    seq,
                    row: Some(row),
                });
            }
            (ValueDeletable::Value(row), Some(newer)) => {
                sum = Some(added(&row, newer));
                break;
            }
            (ValueDeletable::Merge(row), newer) => sum = Some(added(&row, newer.unwrap_or_default())),
        }
    }
    let row = sum.map(|sum| encode_row(&Row::ObjectStats(sum)).into());
    Some(Version { key, seq, row })
}

fn added(row: &[u8], newer: ObjectStats) -> ObjectStats {
    merged_stats(decode_row(row).ok(), newer)
}
