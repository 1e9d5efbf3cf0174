//! What is mounted on this node, and who uses it: the state machine behind the node service.
//!
//! For each volume there is one mount by the engine (its home, below the state folder), and bind mounts of it: one
//! per staging path, one per target path. `record.rs` holds what should be, the kernel's table what is, `converge.rs`
//! makes the second like the first. Every call changes the record and converges, so repeating it, or doing it after a
//! crash half way, leads to the same end (rule 20).
//!
//! Invariants:
//! - The home goes when the last path has gone, whatever order Nomad takes them away in (rule 3: it unstages too
//!   early).
//! - No path is reported as taken away before what was written through it is in the bucket (rule 10).
//! - Calls for one volume run one after another; duplicates wait and then find the work done.
//!
//! Callers: `node.rs`, and the server for `adopt` and `watch`. Absent: gRPC, and what a lease means (the engine
//! checks it).

use std::collections::HashMap;
use std::path::{Component, Path, PathBuf};
use std::sync::{Arc, Mutex};

use tracing::info;
use volume::ids::Lease;
use volume::volume_id::VolumeId;

use crate::capability::BindFlags;
use crate::credentials::Credentials;
use crate::deadlines::{Progress, to_the_end};
use crate::error::DriverError;
use crate::mounter::{Answer, MounterRef, Usage};

mod converge;
mod judge;
mod record;
mod watch;

pub use judge::TargetState;
pub use record::{Records, VolumeRecord};

use watch::Patience;

/// The right to mount a volume on this node, as ControllerPublish gave it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Right {
    /// The publication.
    pub lease: Lease,
    /// True if it is for reading only.
    pub read_only: bool,
    /// Keys that came with the call; `None` leaves what is known (quirk N11: an old Nomad server loses them).
    pub credentials: Option<Credentials>,
}

/// A path to add to a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The volume.
    pub volume: VolumeId,
    /// Staging or target path.
    pub path: PathBuf,
    /// Options of the mount there.
    pub flags: BindFlags,
    /// What entitles to it.
    pub right: Right,
}

/// Where this node keeps things.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Folders {
    /// Records and homes lie here. It must outlive the plugin's task.
    pub state: PathBuf,
    /// The root of Nomad's staging and target paths, if known: FUSE mounts below it that are dead are ours to clear.
    pub staging_root: Option<PathBuf>,
}

/// All volumes of this node.
#[derive(Debug)]
pub struct Targets {
    mounter: MounterRef,
    records: Records,
    homes: PathBuf,
    staging_root: Option<PathBuf>,
    /// One turn per volume in use. The map is held for a look-up; a turn is held across awaits, and only one at a time.
    turns: Mutex<HashMap<VolumeId, Arc<tokio::sync::Mutex<()>>>>,
    /// Volumes that could not be repaired, and when to try again. Held for a look-up.
    patience: Mutex<HashMap<VolumeId, Patience>>,
}

impl Targets {
    /// Opens the state folder; mounts nothing.
    ///
    /// # Errors
    /// `File` if the folders cannot be made.
    pub fn open(mounter: MounterRef, folders: Folders) -> Result<Arc<Self>, DriverError> {
        let records = Records::open(folders.state.join("volumes"))?;
        let homes = folders.state.join("mounts");
        std::fs::create_dir_all(&homes).map_err(DriverError::file("make", &homes))?;
        // The kernel's table has no symbolic links in its paths, so ours must have none either.
        let homes = homes.canonicalize().map_err(DriverError::file("resolve", &homes))?;
        let staging_root = folders.staging_root.map(|root| root.canonicalize().unwrap_or(root));
        Ok(Arc::new(Self {
            mounter,
            records,
            homes,
            staging_root,
            turns: Mutex::default(),
            patience: Mutex::default(),
        }))
    }

    /// Mounts a volume at a staging path. Repeating it changes nothing.
    ///
    /// # Errors
    /// `ReadOnlyInUse`, `ForeignMount`, `Silent`, `Mount`, `File`, `Record`. A path that was not staged before is
    /// then not staged.
    pub async fn stage(self: &Arc<Self>, place: Place, progress: &Progress) -> Result<(), DriverError> {
        let (this, steps) = (Arc::clone(self), progress.clone());
        let volume = place.volume.clone();
        self.in_turn(&volume, progress, async move { this.stage_now(place, &steps).await })
            .await
    }

    /// Mounts a staged volume at a target path, which it makes. Repeating it changes nothing.
    ///
    /// # Errors
    /// `NotStaged`; `PublishedOtherwise` if the volume is there with other options; and those of `stage`.
    pub async fn publish(self: &Arc<Self>, place: Place, progress: &Progress) -> Result<(), DriverError> {
        let (this, steps) = (Arc::clone(self), progress.clone());
        let volume = place.volume.clone();
        self.in_turn(&volume, progress, async move { this.publish_now(place, &steps).await })
            .await
    }

    /// Takes a volume from a target path and removes that directory. `Ok` if it is not there.
    ///
    /// # Durability
    /// `Ok` means that everything written through the path is in the bucket.
    ///
    /// # Errors
    /// `Mount`, `File`, `Record`. The path may be gone already; calling again goes on.
    pub async fn unpublish(
        self: &Arc<Self>,
        volume: &VolumeId,
        path: &Path,
        progress: &Progress,
    ) -> Result<(), DriverError> {
        let (this, steps) = (Arc::clone(self), progress.clone());
        let (id, path) = (volume.clone(), path.to_owned());
        self.in_turn(
            volume,
            progress,
            async move { this.unpublish_now(&id, &path, &steps).await },
        )
        .await
    }

    /// Takes a volume from a staging path. While target paths use it the volume stays mounted for them.
    ///
    /// # Durability
    /// If it was the last path, `Ok` means that everything is in the bucket and the volume is free for other nodes.
    ///
    /// # Errors
    /// As `unpublish`.
    pub async fn unstage(
        self: &Arc<Self>,
        volume: &VolumeId,
        path: &Path,
        progress: &Progress,
    ) -> Result<(), DriverError> {
        let (this, steps) = (Arc::clone(self), progress.clone());
        let (id, path) = (volume.clone(), path.to_owned());
        self.in_turn(
            volume,
            progress,
            async move { this.unstage_now(&id, &path, &steps).await },
        )
        .await
    }

    /// Space and inodes of a volume at one of its paths. Waits for no turn: it must answer while a mount is under way.
    ///
    /// # Errors
    /// `NoVolume`, `NoPath`; `Silent` if the mount there does not answer or is dead; `Record`.
    pub async fn usage(&self, volume: &VolumeId, path: &Path) -> Result<Usage, DriverError> {
        let record = self.records.load(volume)?.ok_or_else(|| DriverError::NoVolume {
            volume: volume.to_string(),
        })?;
        // A path that cannot be one is not the volume's: CSI wants the same answer as for any other.
        let path = resolved(path).unwrap_or_else(|_| path.to_owned());
        if !record.paths().any(|(known, _)| *known == path) {
            let volume = volume.to_string();
            return Err(DriverError::NoPath { volume, path });
        }
        match self.mounter.probe(&path).await {
            Answer::Alive(usage) => Ok(usage),
            Answer::Dead | Answer::Silent | Answer::Gone => Err(DriverError::Silent {
                volume: volume.to_string(),
                path,
            }),
        }
    }

    async fn stage_now(&self, mut place: Place, steps: &Progress) -> Result<(), DriverError> {
        place.path = resolved(&place.path)?;
        let before = self.records.load(&place.volume)?;
        let mut record = before
            .clone()
            .unwrap_or_else(|| VolumeRecord::new(place.volume.clone(), place.right.read_only, place.right.lease));
        self.entitle(&mut record, &place.right, steps).await?;
        let flags = effective(&record, &place);
        record.staged.insert(place.path.clone(), flags);
        let had = before.is_some_and(|before| before.staged.contains_key(&place.path));
        self.reach(record, steps, |record| {
            if !had {
                record.staged.remove(&place.path);
            }
        })
        .await
    }

    async fn publish_now(&self, mut place: Place, steps: &Progress) -> Result<(), DriverError> {
        let parent = place.path.parent().unwrap_or(Path::new("/")).to_owned();
        std::fs::create_dir_all(&parent).map_err(DriverError::file("make", parent))?;
        place.path = resolved(&place.path)?;
        let not_staged = || DriverError::NotStaged {
            volume: place.volume.to_string(),
        };
        // Not the staging path of this call is asked for, but any use: a premature unstage (rule 3) may have come
        // between.
        let mut record = self.records.load(&place.volume)?.ok_or_else(not_staged)?;
        if !record.is_used() {
            return Err(not_staged());
        }
        self.entitle(&mut record, &place.right, steps).await?;
        let flags = effective(&record, &place);
        let known = record.published.insert(place.path.clone(), flags);
        if known.is_some_and(|known| known != flags) {
            let volume = place.volume.to_string();
            return Err(DriverError::PublishedOtherwise {
                volume,
                path: place.path,
            });
        }
        self.reach(record, steps, |record| {
            if known.is_none() {
                record.published.remove(&place.path);
            }
        })
        .await
    }

    async fn unpublish_now(&self, volume: &VolumeId, path: &Path, steps: &Progress) -> Result<(), DriverError> {
        let path = resolved(path)?;
        let record = self.records.load(volume)?;
        let known = |record: &VolumeRecord| record.published.contains_key(&path) || record.unflushed.contains(&path);
        let Some(mut record) = record.filter(known) else {
            steps.at("clearing a path that is not published");
            self.clear_unknown(volume, &path).await?;
            return self.remove_target(&path);
        };
        steps.at("unmounting the target path");
        // On record first: a flush that fails must neither be forgotten, nor bring the target path back.
        record.published.remove(&path);
        record.unflushed.insert(path.clone());
        self.records.save(&record)?;
        self.take_away(volume, &path).await?;
        self.remove_target(&path)?;
        steps.at("flushing the volume to the bucket");
        self.flush(&record).await?;
        record.unflushed.remove(&path);
        self.release(record, steps).await
    }

    async fn unstage_now(&self, volume: &VolumeId, path: &Path, steps: &Progress) -> Result<(), DriverError> {
        let path = resolved(path)?;
        let Some(mut record) = self.records.load(volume)? else {
            steps.at("clearing a path that is not staged");
            self.clear_unknown(volume, &path).await?;
            // Without a record nothing should be mounted; a state folder that was lost leaves a home behind.
            return self.end_home(volume, steps).await;
        };
        steps.at("unmounting the staging path");
        if record.staged.remove(&path).is_some() {
            self.take_away(volume, &path).await?;
        } else {
            self.clear_unknown(volume, &path).await?;
        }
        if !record.published.is_empty() {
            let users = record.published.len();
            info!(%volume, users, "unstaged while published: the volume stays mounted until the last unpublish");
        }
        self.release(record, steps).await
    }

    /// Saves a record that lost a path; ends the volume's mount if that was the last one.
    async fn release(&self, record: VolumeRecord, steps: &Progress) -> Result<(), DriverError> {
        self.records.save(&record)?;
        if record.is_used() {
            return Ok(());
        }
        self.end_home(&record.volume, steps).await?;
        self.records.remove(&record.volume)
    }

    /// Waits for the volume's turn, then does `work` to its end, even if the call that asked for it gives up.
    async fn in_turn<T: Send + 'static>(
        &self,
        volume: &VolumeId,
        progress: &Progress,
        work: impl Future<Output = Result<T, DriverError>> + Send + 'static,
    ) -> Result<T, DriverError> {
        progress.at("waiting for an earlier call of the same volume to end");
        // Giving up while waiting leaves the queue: work that nobody waits for must not begin.
        let turn = self.turn(volume).lock_owned().await;
        progress.at("reading the volume's state");
        to_the_end(async move {
            let outcome = work.await;
            drop(turn);
            outcome
        })
        .await
    }

    fn turn(&self, volume: &VolumeId) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = self.turns.lock().expect("nobody panics while holding the map");
        // A turn that only the map holds is nobody's.
        turns.retain(|_, turn| Arc::strong_count(turn) > 1);
        Arc::clone(turns.entry(volume.clone()).or_default())
    }

    fn home(&self, volume: &VolumeId) -> PathBuf {
        self.homes.join(volume.as_str())
    }
}

/// A volume mounted for reading only is so at every path.
fn effective(record: &VolumeRecord, place: &Place) -> BindFlags {
    BindFlags {
        read_only: place.flags.read_only || record.read_only || place.right.read_only,
        ..place.flags
    }
}

/// The path as the kernel's table has it: absolute, without symbolic links in front of its last part. That part
/// itself is not looked at, because it may be a mount that is dead.
fn resolved(path: &Path) -> Result<PathBuf, DriverError> {
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), plain && path.is_absolute()) else {
        let detail = "must be absolute, without . and .., and not the root".to_owned();
        return Err(DriverError::invalid(format!("path {}", path.display()), detail));
    };
    let parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
    Ok(parent.join(name))
}

#[cfg(test)]
mod tests;
