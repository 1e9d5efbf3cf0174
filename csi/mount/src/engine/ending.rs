//! The end of a volume that has no mountpoint of ours any more.
//!
//! The kernel ends a connection with its last mount. It does so at once, unless there are mounts that we do not know: copies in other
//! mount namespaces (whoever makes one copies all mounts, and one that is private keeps them), or programs that have files of
//! a mount open that was detached. A copy that nobody uses would keep the volume open for ever, and away from this node: it is
//! cut off. A program that has files open goes on with them, until it closes them or the volume is to be mounted here again.
//! Never here: an end of what its caller has not let go of. A mountpoint that only vanished, tasks may have still.
//! Callers: `engine.rs`.

use std::path::PathBuf;
use std::time::Duration;

use tokio::time::{Instant, timeout, timeout_at};

use super::table::{Served, ServedKey};
use super::{Engine, EngineError, deadline};
use crate::mountpoint;

/// 1 s for the kernel to end a connection after its last mountpoint went: it does so at once unless there are others that
/// we do not know.
const END_PATIENCE: Duration = Duration::from_secs(1);

/// 50 s for a volume that was unmounted a moment ago to be closed, before it is mounted again: less than Nomad's patience.
const CLOSE_PATIENCE: Duration = Duration::from_secs(50);

/// 2 s between two looks whether programs have closed what they had open.
const LOOK_EVERY: Duration = Duration::from_secs(2);

/// What becomes of a volume without mountpoints while programs have files of it open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum IfUsed {
    /// It stays, and the caller is told.
    Refuse,
    /// It stays until they have closed them.
    Leave,
    /// They are cut off.
    CutOff,
}

impl IfUsed {
    /// What the caller of an unmount wants.
    pub fn told(detach_busy: bool) -> Self {
        match detach_busy {
            true => IfUsed::Leave,
            false => IfUsed::Refuse,
        }
    }
}

/// The kernel's number for what is mounted at the first of these that is a mountpoint.
pub(super) fn device_of<'a>(mut paths: impl Iterator<Item = &'a PathBuf>) -> Option<(u32, u32)> {
    paths.find_map(|path| {
        mountpoint::mounted_at(path)
            .ok()
            .flatten()
            .map(|mounted| mounted.device)
    })
}

impl Engine {
    /// Waits for what is just ending of a volume, so that a mount right after an unmount finds it closed. Whoever is left from
    /// before is cut off: the volume can be open only once, and is wanted.
    pub(super) async fn await_endings(&self, volume_id: &str) -> Result<(), EngineError> {
        let until = Instant::now() + CLOSE_PATIENCE;
        for read_only in [false, true] {
            let key = ServedKey {
                volume_id: volume_id.to_owned(),
                read_only,
            };
            let ending = self.table().served.get(&key).cloned();
            if let Some(served) = ending.filter(|served| served.mountpoints.is_empty()) {
                self.await_close(&key, &served, until, IfUsed::CutOff).await?;
            }
        }
        Ok(())
    }

    /// Waits until a volume without mountpoints is closed.
    ///
    /// # Errors
    /// `StillUsed` as `if_used` says, and where the kernel does not cut anybody off; `Deadline`.
    pub(super) async fn await_close(
        &self,
        key: &ServedKey,
        served: &Served,
        until: Instant,
        if_used: IfUsed,
    ) -> Result<(), EngineError> {
        let patience = until.min(Instant::now() + END_PATIENCE);
        if timeout_at(patience, served.session.ended()).await.is_err() {
            // Where the mountpoint only vanished, tasks may have the mount still.
            let may_be_cut = served.let_go && (if_used == IfUsed::CutOff || !is_used(served).await);
            let is_cut = may_be_cut && cut_off(key, served).await;
            match if_used {
                _ if is_cut => {}
                IfUsed::Leave if served.let_go => {
                    cut_off_later(key.clone(), served.clone());
                    return Ok(());
                }
                IfUsed::Leave => return Ok(()),
                IfUsed::Refuse | IfUsed::CutOff => {
                    let volume_id = key.volume_id.clone();
                    return Err(EngineError::StillUsed { volume_id });
                }
            }
        }
        let mut closed = served.closed.clone();
        match timeout_at(until, closed.wait_for(|closed| *closed)).await {
            Ok(_) => Ok(()),
            Err(_) => Err(deadline(key, served)),
        }
    }
}

/// True if a program has a file or folder of the volume open, as far as that can be seen.
async fn is_used(served: &Served) -> bool {
    if served.volume.open_files() > 0 {
        return true;
    }
    let Some(device) = served.device else { return true };
    let looked = tokio::task::spawn_blocking(move || mountpoint::is_used(device)).await;
    looked.expect("looking at programs does not panic")
}

/// Cuts a connection off as soon as nobody uses it.
fn cut_off_later(key: ServedKey, served: Served) {
    tracing::warn!(
        volume_id = key.volume_id,
        "the volume was unmounted, but programs have files of it open: it stays open until they close them"
    );
    tokio::spawn(async move {
        while timeout(LOOK_EVERY, served.session.ended()).await.is_err() {
            if !is_used(&served).await && cut_off(&key, &served).await {
                return;
            }
        }
    });
}

/// Ends the connection of a volume that has no mountpoint of ours. False if the kernel does not let us.
async fn cut_off(key: &ServedKey, served: &Served) -> bool {
    let volume_id = &key.volume_id;
    let Some(device) = served.device else { return false };
    let cut = tokio::task::spawn_blocking(move || mountpoint::cut(device)).await;
    match cut.expect("cutting a connection does not panic") {
        Ok(()) => {
            tracing::warn!(
                volume_id,
                "the volume was unmounted: what other mount namespaces still show of it is cut off"
            );
            true
        }
        Err(error) => {
            tracing::error!(%error, volume_id, "what other mount namespaces show of the volume cannot be cut off");
            false
        }
    }
}
