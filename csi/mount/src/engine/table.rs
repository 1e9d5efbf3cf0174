//! What the engine has open and where it shows it: look-ups and changes that never wait for a store or a mount.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, MutexGuard};

use tokio::sync::{OwnedMutexGuard, watch};
use volume::head::Transport;
use volume::volume::Volume;

use super::kept::Left;
use super::{Engine, EngineError, MountInfo, MountSpec};
use crate::mountpoint;
use crate::open::{Carried, OpenSpec};
use crate::session::Session;
use crate::store::ReplaceableBucket;

/// A volume is open once for writing, and perhaps once more for reading only.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ServedKey {
    /// The caller's name for the volume.
    pub volume_id: String,
    /// Opened for reading only.
    pub read_only: bool,
}

/// An open volume with its connection.
#[derive(Debug, Clone)]
pub struct Served {
    /// The volume.
    pub volume: Volume,
    /// Its bucket.
    pub bucket: Arc<ReplaceableBucket>,
    /// Its connection.
    pub session: Session,
    /// Turns true when the volume is closed.
    pub closed: watch::Receiver<bool>,
    /// The kernel's number for the connection; `None` for one that was adopted without a mountpoint.
    pub device: Option<(u32, u32)>,
    /// Whoever had it mounted wants it no more: its last mountpoint did not just vanish.
    pub let_go: bool,
    /// How it was opened.
    pub spec: OpenSpec,
    /// How the kernel was to reach this process.
    pub asked: Transport,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// Where it can be seen.
    pub mountpoints: BTreeMap<PathBuf, Shown>,
}

/// One mountpoint of an open volume.
#[derive(Debug, Clone)]
pub struct Shown {
    /// This one cannot write.
    pub read_only: bool,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
}

/// What is open, and who works on which volume.
#[derive(Debug, Default)]
pub struct Table {
    /// The open volumes.
    pub served: BTreeMap<ServedKey, Served>,
    /// One lock per volume that somebody mounts or unmounts.
    pub locks: BTreeMap<String, Arc<tokio::sync::Mutex<()>>>,
    /// What the keeper holds beside each connection.
    pub left: BTreeMap<ServedKey, Left>,
}

impl Engine {
    pub(super) fn table(&self) -> MutexGuard<'_, Table> {
        self.inner
            .table
            .lock()
            .expect("nothing panics while it holds the table")
    }

    pub(super) async fn lock(&self, volume_id: &str) -> OwnedMutexGuard<()> {
        let lock = {
            let mut table = self.table();
            table.locks.retain(|_, lock| Arc::strong_count(lock) > 1);
            table.locks.entry(volume_id.to_owned()).or_default().clone()
        };
        lock.lock_owned().await
    }

    /// The open volume that a mount of `spec` can show: one open for writing serves readers as well.
    pub(super) fn served_for(&self, spec: &MountSpec) -> Option<(ServedKey, Served)> {
        let table = self.table();
        let writers = [false].into_iter();
        let candidates = writers.chain(spec.open.read_only.then_some(true));
        candidates
            .map(|read_only| ServedKey {
                volume_id: spec.volume_id.clone(),
                read_only,
            })
            .find_map(|key| table.served.get(&key).cloned().map(|served| (key, served)))
    }

    pub(super) fn find(&self, path: &Path) -> Option<(ServedKey, Served)> {
        let table = self.table();
        let mut all = table.served.iter();
        all.find(|(_, served)| served.mountpoints.contains_key(path))
            .map(|(key, served)| (key.clone(), served.clone()))
    }

    pub(super) fn all_of(&self, volume_id: &str) -> Result<Vec<Served>, EngineError> {
        let table = self.table();
        let all: Vec<_> = table
            .served
            .iter()
            .filter(|(key, _)| key.volume_id == volume_id)
            .map(|(_, served)| served.clone())
            .collect();
        if all.is_empty() {
            return Err(EngineError::NotMounted {
                what: volume_id.to_owned(),
            });
        }
        Ok(all)
    }

    pub(super) fn paths_of(&self, volume_id: &str) -> Vec<PathBuf> {
        let table = self.table();
        let of_volume = table.served.iter().filter(|(key, _)| key.volume_id == volume_id);
        of_volume
            .flat_map(|(_, served)| served.mountpoints.keys().cloned())
            .collect()
    }

    /// Notes that a mountpoint was taken off because its caller wants it no more. The volume if that was the last one.
    pub(super) fn remove(&self, key: &ServedKey, path: &Path) -> Option<Served> {
        let mut table = self.table();
        let served = table.served.get_mut(key)?;
        served.mountpoints.remove(path);
        served.let_go = served.mountpoints.is_empty();
        served.let_go.then(|| served.clone())
    }

    pub(super) fn info_at(&self, path: &Path) -> Option<MountInfo> {
        let (key, served) = self.find(path)?;
        infos(&key, &served).into_iter().find(|info| info.mountpoint == path)
    }

    /// Forgets mountpoints that somebody else took off.
    pub(super) fn forget_vanished(&self) {
        // Held while the kernel's table is read: what another call mounts and notes between the two is no mount that vanished.
        let mut table = self.table();
        let Ok(mounted) = mountpoint::mounted() else { return };
        let there = |path: &PathBuf| {
            mounted
                .iter()
                .any(|m| m.mountpoint == *path && m.file_system == mountpoint::FILE_SYSTEM_TYPE)
        };
        for served in table.served.values_mut() {
            served.mountpoints.retain(|path, _| there(path));
        }
    }

    /// Notes the mountpoints for an engine that comes after a crash of this one.
    pub(super) fn note(&self) {
        let paths: Vec<PathBuf> = self
            .table()
            .served
            .values()
            .flat_map(|served| served.mountpoints.keys().cloned())
            .collect();
        self.inner.ledger.write(&paths);
    }
}

/// The mounts of one open volume.
pub fn infos(key: &ServedKey, served: &Served) -> Vec<MountInfo> {
    let info = |mountpoint: PathBuf, read_only, since_unix_ms| MountInfo {
        volume_id: key.volume_id.clone(),
        mountpoint,
        read_only,
        volume: served.volume.info(),
        dirty_bytes: served.volume.dirty_bytes(),
        lost: served.volume.lost(),
        outage: served.volume.outage(),
        since_unix_ms,
        location: served.spec.location.clone(),
        access: served.spec.access.clone(),
        node_id: served.spec.node_id.clone(),
        lease: served.spec.lease,
        transport: Carried {
            asked: served.asked,
            by: served.session.transport(),
        },
    };
    if served.mountpoints.is_empty() {
        return vec![info(PathBuf::new(), key.read_only, served.since_unix_ms)];
    }
    let shown = served.mountpoints.iter();
    shown
        .map(|(path, shown)| info(path.clone(), shown.read_only, shown.since_unix_ms))
        .collect()
}
