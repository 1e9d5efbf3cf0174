//! The metadata tree: what is known of the volume below the RAM tables.
//!
//! Invariant: the tree contains exactly the commits up to its `Applied` row, never a part of one: `apply` is one atomic
//! batch, and what survives a crash is a prefix of the batches.
//! Callers: `table.rs` on a miss, `commit.rs` after a commit is durable, `open.rs`. Absent: caching of rows (RAM tables).

use std::fmt::Debug;

use async_trait::async_trait;

use crate::row::{Applied, Key, ObjectStats, Row};

pub mod blocks;
pub(crate) mod checkpoint;
mod clock;
#[cfg(test)]
pub(crate) mod contract;
pub(crate) mod latest;
pub mod memory;
mod object_store;
pub(crate) mod overlay;
mod reach;
pub(crate) mod salvage;
pub mod slate;
mod unlogged;
mod upkeep;

/// What the operations and the commit need of a tree.
#[async_trait]
pub trait Tree: Debug + Send + Sync + 'static {
    /// The row of a key, merged for `ObjectStats`.
    async fn get(&self, key: &Key) -> Result<Option<Row>, TreeError>;

    /// At most `rows_max` rows with `from <= key < until`, in order.
    async fn scan(&self, from: &Key, until: &Key, rows_max: usize) -> Result<Vec<(Key, Row)>, TreeError>;

    /// Operations begin to miss rows: what nearly every look-up in the tree needs may come at once, instead of file after file.
    fn expect_reads(&self) {}

    /// Writes one commit: all changes and the `Applied` row, atomically. `None` deletes. Readers see it at once.
    ///
    /// # Durability
    /// None: it becomes durable with a later `flush`; until then the journal has it.
    async fn apply(&self, applied: Applied, changes: Vec<(Key, Option<Row>)>) -> Result<(), TreeError>;

    /// Makes everything applied so far durable, and returns up to which commit.
    async fn flush(&self) -> Result<Applied, TreeError>;

    /// The last commit applied (at open: the last one found durable in the tree).
    fn applied(&self) -> Applied;

    /// Flushes and ends the background work. Further calls fail.
    async fn close(&self) -> Result<(), TreeError>;
}

/// Why the tree could not answer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeError {
    /// Another writer has opened the tree: this one may never write again.
    #[error("another writer has taken the volume's tree")]
    Fenced,
    /// The store did not answer.
    #[error("the store did not answer the tree: {detail}")]
    Unavailable {
        /// What the tree's own layer said.
        detail: String,
    },
    /// Bytes that do not decode, or that fail their checksum.
    #[error("the tree holds bytes that do not decode at {place}: {detail}")]
    Corrupt {
        /// Key or object.
        place: String,
        /// What is wrong.
        detail: String,
    },
    /// The tree's own layer broke down; opening the volume again may help.
    #[error("the tree failed: {detail}")]
    Failed {
        /// What the tree's own layer said.
        detail: String,
    },
    /// Opened read-only.
    #[error("the tree is open for reading only")]
    ReadOnly,
    /// Closed already.
    #[error("the tree is closed")]
    Closed,
}

/// The sum of what an object's row held and a difference to it.
pub(crate) fn merged_stats(old: Option<Row>, delta: ObjectStats) -> ObjectStats {
    match old {
        Some(Row::ObjectStats(old)) => ObjectStats {
            live_bytes: old.live_bytes.saturating_add(delta.live_bytes),
            total_bytes: old.total_bytes.saturating_add(delta.total_bytes),
        },
        Some(_) | None => delta,
    }
}
