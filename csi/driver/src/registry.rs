//! Makes this node known in the bucket, so that controllers tell its id from one that somebody misspelt.
//!
//! Invariant: the plugin never waits for it longer than a moment: a store that is away delays the first publish, not
//! the plugin's start.
//! Callers: `node.rs`, `server.rs`. Absent: whether a node is alive; only leases and epochs decide that.

use std::time::Duration;

use tokio::sync::watch;
use tracing::{info, warn};
use volume::admin::NodeRecord;

use crate::cluster::ClustersRef;
use crate::error::DriverError;

/// 3 s: what NodeGetInfo waits for the first registration. Nomad gives it 30 s, and asks again.
const SETTLE_MAX: Duration = Duration::from_secs(3);

/// 1 s, doubled up to `RETRY_MAX`, between tries while the store is away.
const RETRY_MIN: Duration = Duration::from_secs(1);
/// 30 s: how late a node may become known after the store has come back.
const RETRY_MAX: Duration = Duration::from_secs(30);

/// 15 min: how long a node stays unknown whose record somebody removed. One small GET each.
const REFRESH_EVERY: Duration = Duration::from_secs(900);

/// Whether this node is known.
#[derive(Debug, Clone)]
pub struct Registry {
    known: watch::Receiver<bool>,
}

impl Registry {
    /// A registry, and the work that keeps it: to be run for as long as the plugin lives.
    pub fn new(clusters: ClustersRef, record: NodeRecord) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (tell, known) = watch::channel(false);
        (Self { known }, keep(clusters, record, tell))
    }

    /// Waits a moment for this node to be known.
    pub async fn settled(&self) {
        let mut known = self.known.clone();
        // Neither a late store nor a stopping plugin is a reason to answer nothing.
        let _ = tokio::time::timeout(SETTLE_MAX, known.wait_for(|known| *known)).await;
    }
}

async fn keep(clusters: ClustersRef, record: NodeRecord, tell: watch::Sender<bool>) {
    let mut wait = RETRY_MIN;
    loop {
        match register(&clusters, &record).await {
            Ok(()) => {
                if !tell.send_replace(true) {
                    info!(node = %record.node_id, "this node is known in the bucket");
                }
                wait = RETRY_MIN;
                tokio::time::sleep(REFRESH_EVERY).await;
            }
            Err(failure) => {
                warn!(node = %record.node_id, ?failure, again_in_s = wait.as_secs(), "this node is not known yet: {failure}");
                tokio::time::sleep(wait).await;
                wait = (wait * 2).min(RETRY_MAX);
            }
        }
    }
}

async fn register(clusters: &ClustersRef, record: &NodeRecord) -> Result<(), DriverError> {
    Ok(clusters.admin(None).await?.register_node(record).await?)
}
