//! What the head says of an open volume: looked at every minute, and when somebody asks.
//!
//! So a volume that was expanded by a controller that no node hears of is larger in every running mount within
//! `LOOK_EVERY`. Callers: `engine.rs`, the control service. Absent: leases and epochs; a writer that was superseded learns
//! of it by its next commit, never by a clock.

use std::time::Duration;

use tokio::sync::watch;
use uuid::Uuid;
use volume::head::{HeadFile, HeadWriter};

use super::table::{Served, ServedKey};
use super::{Engine, EngineError};

/// 60 s: how late a mount knows of a new capacity if nobody tells it. One small GET each: less than a cent a month.
pub const LOOK_EVERY: Duration = Duration::from_secs(60);

impl Engine {
    /// Reads the head of an open volume now, and returns the capacity that its mounts enforce from here on; `None` for no
    /// limit.
    ///
    /// # Errors
    /// `NotMounted`, `Head`.
    pub async fn look(&self, volume_id: &str) -> Result<Option<u64>, EngineError> {
        let mut capacity_bytes = None;
        for served in self.all_of(volume_id)? {
            capacity_bytes = look_at(volume_id, &served).await?;
        }
        Ok(capacity_bytes)
    }

    /// Looks until the volume is closed.
    pub(super) fn keep_looking(&self, key: ServedKey, mut closed: watch::Receiver<bool>) {
        let engine = self.clone();
        tokio::spawn(async move {
            loop {
                tokio::select! {
                    _ = closed.wait_for(|closed| *closed) => return,
                    () = tokio::time::sleep(engine.inner.look_every) => {}
                }
                let served = engine.table().served.get(&key).cloned();
                let Some(served) = served else { return };
                let looked = tokio::select! {
                    _ = closed.wait_for(|closed| *closed) => return,
                    looked = look_at(&key.volume_id, &served) => looked,
                };
                if let Err(error) = looked {
                    tracing::debug!(%error, "the next look may tell more");
                }
            }
        });
    }
}

async fn look_at(volume_id: &str, served: &Served) -> Result<Option<u64>, EngineError> {
    let root = served.bucket.root(&served.spec.location);
    let file = HeadFile::new(root, HeadWriter::new(Uuid::nil()));
    let head = file.read().await.map_err(|source| EngineError::Head {
        volume_id: volume_id.to_owned(),
        source,
    })?;
    let info = served.volume.info();
    let capacity_bytes = (head.capacity_bytes > 0).then_some(head.capacity_bytes);
    // A head of another uuid is of the next volume of that name: ours was deleted, and its next commit will say so.
    if head.uuid == info.uuid && info.capacity_bytes != capacity_bytes {
        tracing::info!(volume_id, was = ?info.capacity_bytes, is = ?capacity_bytes, "the capacity of the volume has changed");
        served.volume.set_capacity_bytes(capacity_bytes);
    }
    Ok(served.volume.info().capacity_bytes)
}
