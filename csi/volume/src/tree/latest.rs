//! The tree of a mount that only reads: one state of the volume, until a newer one takes its place.
//!
//! Invariant: each call is answered by one state. Caller: `mount.rs`. Absent: when a newer state is needed.

use std::sync::{Arc, PoisonError, RwLock};

use async_trait::async_trait;

use super::{Tree, TreeError};
use crate::row::{Applied, Key, Row};

/// The state that is read now.
#[derive(Debug)]
pub(crate) struct LatestTree {
    /// Held for a clone, never across an await.
    now: RwLock<Arc<dyn Tree>>,
}

impl LatestTree {
    pub fn new(tree: Arc<dyn Tree>) -> Self {
        Self { now: RwLock::new(tree) }
    }

    /// Reads from `tree` from now on, and returns what was read before.
    pub fn replace(&self, tree: Arc<dyn Tree>) -> Arc<dyn Tree> {
        std::mem::replace(&mut *self.now.write().unwrap_or_else(PoisonError::into_inner), tree)
    }

    fn now(&self) -> Arc<dyn Tree> {
        Arc::clone(&self.now.read().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl Tree for LatestTree {
    async fn get(&self, key: &Key) -> Result<Option<Row>, TreeError> {
        self.now().get(key).await
    }

    async fn scan(&self, from: &Key, until: &Key, rows_max: usize) -> Result<Vec<(Key, Row)>, TreeError> {
        self.now().scan(from, until, rows_max).await
    }

    async fn apply(&self, _: Applied, _: Vec<(Key, Option<Row>)>) -> Result<(), TreeError> {
        Err(TreeError::ReadOnly)
    }

    async fn flush(&self) -> Result<Applied, TreeError> {
        Err(TreeError::ReadOnly)
    }

    fn applied(&self) -> Applied {
        self.now().applied()
    }

    async fn close(&self) -> Result<(), TreeError> {
        self.now().close().await
    }
}
