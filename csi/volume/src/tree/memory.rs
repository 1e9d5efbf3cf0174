//! A well-behaved tree in memory, for tests and simulations.
//!
//! It keeps encoded bytes, so that every row that passes through it has passed the codec, and it knows which part a
//! `flush` has made durable, so that a test can go on with what a crash would leave (`after_crash`). Absent: faults.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};

use async_trait::async_trait;

use super::{Tree, TreeError, merged_stats};
use crate::ids::{Epoch, JournalSeq};
use crate::row::codec::{decode_pair, encode_key, encode_row};
use crate::row::{Applied, Key, Row};

/// A tree that lives as long as this value.
#[derive(Debug)]
pub struct MemoryTree {
    /// Held for the length of one call, never across an await.
    state: Mutex<State>,
}

#[derive(Debug, Clone)]
struct State {
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
    applied: Applied,
    durable: (BTreeMap<Vec<u8>, Vec<u8>>, Applied),
    closed: bool,
}

impl Default for MemoryTree {
    fn default() -> Self {
        Self::new()
    }
}

impl MemoryTree {
    /// An empty tree.
    pub fn new() -> Self {
        let applied = Applied {
            epoch: Epoch(0),
            seq: JournalSeq(0),
        };
        Self::of(BTreeMap::new(), applied)
    }

    fn of(rows: BTreeMap<Vec<u8>, Vec<u8>>, applied: Applied) -> Self {
        let state = State {
            durable: (rows.clone(), applied),
            rows,
            applied,
            closed: false,
        };
        Self {
            state: Mutex::new(state),
        }
    }

    /// The tree that an open after a crash at this moment would find: all that the last `flush` made durable.
    pub fn after_crash(&self) -> Self {
        let (rows, applied) = self.lock().durable.clone();
        Self::of(rows, applied)
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("no call panics while it holds the rows")
    }

    fn open(&self) -> Result<MutexGuard<'_, State>, TreeError> {
        match self.lock() {
            state if state.closed => Err(TreeError::Closed),
            state => Ok(state),
        }
    }
}

fn decoded(key: &[u8], row: &[u8]) -> Result<(Key, Row), TreeError> {
    decode_pair(key, row).map_err(|error| TreeError::Corrupt {
        place: format!("{key:02x?}"),
        detail: error.to_string(),
    })
}

#[async_trait]
impl Tree for MemoryTree {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TreeError> {
        let state = self.open()?;
        let key = encode_key(key);
        state
            .rows
            .get(&key)
            .map(|row| decoded(&key, row).map(|(_, row)| row))
            .transpose()
    }

    async fn scan(&self, from: &Key, until: &Key, rows_max: usize) -> Result<Vec<(Key, Row)>, TreeError> {
        let (from, until) = (encode_key(from), encode_key(until));
        if from >= until {
            return Ok(Vec::new());
        }
        let state = self.open()?;
        let rows = state.rows.range(from..until).take(rows_max);
        rows.map(|(key, row)| decoded(key, row)).collect()
    }

    async fn apply(&self, applied: Applied, changes: Vec<(Key, Option<Row>)>) -> Result<(), TreeError> {
        let mut state = self.open()?;
        let mut rows = std::mem::take(&mut state.rows);
        for (key, row) in changes {
            let bytes = encode_key(&key);
            match row {
                Some(Row::ObjectStats(delta)) => {
                    let old = rows.get(&bytes).map(|row| decoded(&bytes, row)).transpose()?;
                    let sum = merged_stats(old.map(|(_, row)| row), delta);
                    rows.insert(bytes, encode_row(&Row::ObjectStats(sum)));
                }
                Some(row) => {
                    rows.insert(bytes, encode_row(&row));
                }
                None => {
                    rows.remove(&bytes);
                }
            }
        }
        rows.insert(encode_key(&Key::Applied), encode_row(&Row::Applied(applied)));
        state.rows = rows;
        state.applied = applied;
        Ok(())
    }

    async fn flush(&self) -> Result<Applied, TreeError> {
        let mut state = self.open()?;
        state.durable = (state.rows.clone(), state.applied);
        Ok(state.applied)
    }

    fn applied(&self) -> Applied {
        self.lock().applied
    }

    async fn close(&self) -> Result<(), TreeError> {
        self.flush().await?;
        self.lock().closed = true;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::contract;
    use super::*;

    #[tokio::test]
    async fn the_tree_in_memory_keeps_the_contract() {
        contract::check(&MemoryTree::new()).await;
    }

    #[tokio::test]
    async fn a_crash_leaves_what_was_flushed() {
        let tree = MemoryTree::new();
        contract::fill(&tree).await;
        let flushed = tree.flush().await.unwrap();
        let later = Applied {
            epoch: flushed.epoch,
            seq: flushed.seq.next(),
        };
        tree.apply(later, vec![(Key::Counters, None)]).await.unwrap();
        let survivor = tree.after_crash();
        assert_eq!((tree.applied(), survivor.applied()), (later, flushed));
        assert!(survivor.get(&Key::Counters).await.unwrap().is_some());
        assert!(tree.get(&Key::Counters).await.unwrap().is_none());
    }
}
