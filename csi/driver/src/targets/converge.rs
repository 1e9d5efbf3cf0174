//! Makes what is mounted like what the record asks for, and takes mounts away.
//!
//! Invariant: each step may be the last one before a crash; doing all of them again from the record leads to the same
//! end.
//! Callers: the calls in `targets.rs`, and `watch.rs`. Absent: turns (the caller has the volume's).

use std::io;
use std::path::Path;
use std::time::Duration;

use tracing::{error, info, warn};
use volume::volume_id::VolumeId;

use super::judge::{TargetState, judge};
use super::record::VolumeRecord;
use super::{Right, Targets};
use crate::credentials::Credentials;
use crate::deadlines::Progress;
use crate::error::DriverError;
use crate::mounter::{Answer, MountSpec, Served};
use crate::mountinfo::{Device, MountPoint, top_at};
use crate::opening::Opening;

/// 16 mounts on top of each other at one path. More than one is the trace of a bug or of an operator; above it we
/// give up with an error.
const STACKED_MAX: u32 = 16;

/// 45 s: what is dirty has this long to reach the bucket, within the 60 s of a node call.
const FLUSH_MAX: Duration = Duration::from_secs(45);

const _: () = assert!(FLUSH_MAX.as_secs() < crate::deadlines::NODE_MAX.as_secs());

/// What to do with a mount that serves, but can never write again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Lost {
    /// Leave it: its users shall see the loss, and reads go on.
    Keep,
    /// Mount anew: a new user comes with a right of its own.
    Replace,
}

impl Targets {
    /// Takes over the right that a call came with. Where it is another one, the volume is flushed and unmounted, to
    /// be opened anew under it.
    pub(super) async fn entitle(
        &self,
        record: &mut VolumeRecord,
        right: &Right,
        steps: &Progress,
    ) -> Result<(), DriverError> {
        if record.opening.read_only {
            // Nothing that a reader does depends on the lease.
            record.lease = right.lease;
        } else if record.lease != right.lease {
            // The lease before was taken back although the volume stayed mounted (quirk N9). What was written under it
            // is flushed if it still counts.
            info!(volume = %record.opening, old = %record.lease, new = %right.lease, "mounting anew with another right");
            self.end_all(record, steps).await?;
            record.lease = right.lease;
        }
        let Some(credentials) = &right.credentials else {
            return Ok(());
        };
        if record.credentials.as_ref() != Some(credentials) {
            record.credentials = Some(credentials.clone());
            self.renew(&record.opening, credentials).await?;
            // The keys are the volume's: readers that have a mount of their own must not go on with those before.
            for beside in Opening::both(&record.opening.volume) {
                let known = self.records.load(&beside)?.filter(|_| beside != record.opening);
                if let Some(mut other) = known {
                    other.credentials = Some(credentials.clone());
                    self.renew(&beside, credentials).await?;
                    self.records.save(&other)?;
                }
            }
        }
        Ok(())
    }

    async fn renew(&self, opening: &Opening, credentials: &Credentials) -> Result<(), DriverError> {
        let renewed = self.mounter.renew(opening, credentials).await;
        renewed.map_err(DriverError::mount(&opening.volume))
    }

    /// Saves the record and converges. If that fails, `undo` takes back from the record what the call had added.
    pub(super) async fn reach(
        &self,
        mut record: VolumeRecord,
        steps: &Progress,
        undo: impl FnOnce(&mut VolumeRecord),
    ) -> Result<(), DriverError> {
        self.records.save(&record)?;
        let Err(failure) = self.converge(&record, Lost::Replace, steps).await else {
            return Ok(());
        };
        undo(&mut record);
        // The first failure is what the caller must hear of; what is left over is found by the watch.
        let undone = if record.is_used() {
            self.records.save(&record)
        } else {
            self.release(record, steps).await
        };
        if let Err(second) = undone {
            warn!(error = ?second, "the record could not be taken back after a failure");
        }
        Err(failure)
    }

    /// Makes what is mounted like the record.
    pub(super) async fn converge(
        &self,
        record: &VolumeRecord,
        lost: Lost,
        steps: &Progress,
    ) -> Result<(), DriverError> {
        let opening = &record.opening;
        let device = match self.serving(record, lost, steps).await? {
            Some(device) => device,
            None => self.mount_home(record, steps).await?,
        };
        for (path, flags) in record.paths() {
            let table = self.table(opening).await?;
            match judge(&table, path, Some(device), *flags) {
                TargetState::Mounted => continue,
                TargetState::NotMounted => {}
                TargetState::Stale | TargetState::OtherOptions => self.take_away(opening, path).await?,
                TargetState::Foreign { fs_type, source } => {
                    return Err(DriverError::ForeignMount {
                        volume: opening.volume.to_string(),
                        path: path.clone(),
                        fs_type,
                        source_name: source,
                    });
                }
            }
            steps.at(format!("mounting the volume at {}", path.display()));
            std::fs::create_dir_all(path).map_err(DriverError::file("make", path))?;
            let bound = self.mounter.bind(&self.home(opening), path, *flags).await;
            bound.map_err(DriverError::mount(&opening.volume))?;
        }
        Ok(())
    }

    /// The device of the volume's home, if it is mounted and works.
    async fn serving(
        &self,
        record: &VolumeRecord,
        lost: Lost,
        steps: &Progress,
    ) -> Result<Option<Device>, DriverError> {
        let opening = &record.opening;
        let volume = &opening.volume;
        let home = self.home(opening);
        let Some(device) = top_at(&self.table(opening).await?, &home).map(|mount| mount.device) else {
            return Ok(None);
        };
        steps.at("asking the mount whether it is alive");
        match self.mounter.probe(&home).await {
            Answer::Dead | Answer::Gone => return Ok(None),
            Answer::Silent => {
                return Err(DriverError::Silent {
                    volume: volume.to_string(),
                    path: home,
                });
            }
            Answer::Alive(_) => {}
        }
        let why = self.served(opening).await?.and_then(|served| served.lost);
        match (why, lost) {
            (Some(why), Lost::Replace) => {
                warn!(%volume, why, "the mount can write no more: mounting anew");
                self.end_all(record, steps).await?;
                Ok(None)
            }
            (Some(_), Lost::Keep) | (None, _) => Ok(Some(device)),
        }
    }

    /// Has the engine mount the volume, after what is dead is out of the way.
    async fn mount_home(&self, record: &VolumeRecord, steps: &Progress) -> Result<Device, DriverError> {
        let (opening, volume) = (&record.opening, &record.opening.volume);
        let home = self.home(opening);
        self.end_all(record, steps).await?;
        std::fs::create_dir_all(&home).map_err(DriverError::file("make", &home))?;
        steps.at("waiting for the engine to open and mount the volume");
        let spec = MountSpec {
            opening: opening.clone(),
            path: home.clone(),
            lease: record.lease,
            credentials: record.credentials.clone(),
        };
        self.mounter.mount(&spec).await.map_err(DriverError::mount(volume))?;
        info!(%volume, lease = %record.lease, read_only = opening.read_only, "mounted");
        let table = self.table(opening).await?;
        let mounted = top_at(&table, &home).map(|mount| mount.device);
        // The engine said it is mounted; if it is not here, then engine and plugin do not see the same mounts.
        mounted.ok_or(DriverError::Silent {
            volume: volume.to_string(),
            path: home,
        })
    }

    /// Takes all mounts of the volume away. The bind mounts first: while one is left, the engine cannot close the
    /// volume.
    async fn end_all(&self, record: &VolumeRecord, steps: &Progress) -> Result<(), DriverError> {
        steps.at("clearing the mounts of the volume");
        for (path, _) in record.paths() {
            self.take_away(&record.opening, path).await?;
        }
        self.end_home(&record.opening, steps).await
    }

    /// Flushes and unmounts the volume's home, and removes its directory. `Ok` if there is none.
    pub(super) async fn end_home(&self, opening: &Opening, steps: &Progress) -> Result<(), DriverError> {
        let (home, volume) = (self.home(opening), &opening.volume);
        steps.at("flushing the volume to the bucket and unmounting it");
        if let Err(failure) = self.mounter.unmount(opening).await {
            let why = self.served(opening).await?.and_then(|served| served.lost);
            // What another node has taken over can never be flushed: insisting would keep the volume here for ever.
            let Some(why) = why else {
                return Err(DriverError::mount(volume)(failure));
            };
            error!(%volume, why, error = ?failure, "unmounting a volume whose last writes are lost");
        }
        self.take_away(opening, &home).await?;
        match std::fs::remove_dir(&home) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(DriverError::file("remove", home)(error)),
            Ok(()) | Err(_) => Ok(()),
        }
    }

    /// Makes what was written durable, if a mount is there that can.
    pub(super) async fn flush(&self, record: &VolumeRecord) -> Result<(), DriverError> {
        let (opening, volume) = (&record.opening, &record.opening.volume);
        let home = self.home(opening);
        if opening.read_only || top_at(&self.table(opening).await?, &home).is_none() {
            return Ok(());
        }
        if let Some(why) = self.served(opening).await?.and_then(|served| served.lost) {
            error!(%volume, why, "the last writes to the volume are lost");
            return Ok(());
        }
        match self.mounter.probe(&home).await {
            // Whatever the engine had not flushed when it died is lost; waiting brings it not back.
            Answer::Dead | Answer::Gone => Ok(()),
            Answer::Silent => Err(DriverError::Silent {
                volume: volume.to_string(),
                path: home,
            }),
            Answer::Alive(_) => {
                let flushed = self.mounter.flush(&home, FLUSH_MAX).await;
                flushed.map_err(DriverError::mount(volume))
            }
        }
    }

    /// Takes all FUSE mounts away that lie on top of `path`. A mount of somebody else stays.
    pub(super) async fn take_away(&self, opening: &Opening, path: &Path) -> Result<(), DriverError> {
        for _ in 0..STACKED_MAX {
            let table = self.table(opening).await?;
            match judge(&table, path, None, Default::default()) {
                TargetState::NotMounted | TargetState::Foreign { .. } => return Ok(()),
                TargetState::Stale | TargetState::Mounted | TargetState::OtherOptions => {}
            }
            let detached = self.mounter.detach(path).await;
            detached.map_err(DriverError::mount(&opening.volume))?;
        }
        Err(DriverError::Silent {
            volume: opening.volume.to_string(),
            path: path.to_owned(),
        })
    }

    /// A path that the volume's record does not know: takes away only what is this volume, or dead and nobody's.
    pub(super) async fn clear_unknown(&self, volume: &VolumeId, path: &Path) -> Result<(), DriverError> {
        let writing = Opening::writing(volume);
        let table = self.table(&writing).await?;
        let Some(top) = top_at(&table, path) else {
            return Ok(());
        };
        if self.owner_of(path)?.is_some() {
            return Ok(());
        }
        let homes = Opening::both(volume).map(|opening| self.home(&opening));
        let is_served = |home| top_at(&table, home).is_some_and(|mount| mount.device == top.device);
        let ours = homes.iter().any(|home| is_served(home));
        let stale = judge(&table, path, None, Default::default()) == TargetState::Stale;
        if ours || (stale && self.mounter.probe(path).await == Answer::Dead) {
            return self.take_away(&writing, path).await;
        }
        Ok(())
    }

    /// The opening whose record has this path.
    pub(super) fn owner_of(&self, path: &Path) -> Result<Option<Opening>, DriverError> {
        for opening in self.records.openings()? {
            // A damaged record is told of at the start and by calls for its own volume.
            let Ok(Some(record)) = self.records.load(&opening) else {
                continue;
            };
            if record.paths().any(|(known, _)| known == path) {
                return Ok(Some(opening));
            }
        }
        Ok(None)
    }

    /// Removes the directory of a target (rule 14), unless it is a mount of somebody else or holds files.
    pub(super) fn remove_target(&self, path: &Path) -> Result<(), DriverError> {
        match std::fs::remove_dir(path) {
            Ok(()) => {
                if let Some(allocations) = self.allocations() {
                    allocations.remove_empty(path);
                }
                Ok(())
            }
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound | io::ErrorKind::NotADirectory => Ok(()),
                io::ErrorKind::ResourceBusy | io::ErrorKind::DirectoryNotEmpty => {
                    warn!(path = %path.display(), %error, "the target directory is not ours to remove");
                    Ok(())
                }
                _ => Err(DriverError::file("remove", path)(error)),
            },
        }
    }

    async fn served(&self, opening: &Opening) -> Result<Option<Served>, DriverError> {
        let served = self.mounter.served().await;
        let served = served.map_err(DriverError::mount(&opening.volume))?;
        Ok(served.into_iter().find(|served| served.opening == *opening))
    }

    pub(super) async fn table(&self, opening: &Opening) -> Result<Vec<MountPoint>, DriverError> {
        self.mounter.table().await.map_err(DriverError::mount(&opening.volume))
    }
}
