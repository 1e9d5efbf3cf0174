//! What is mounted on this node, and who uses it: the state machine behind the node service.
//!
//! For each volume there is one mount by the engine (its home, below the state folder), or two: for writing, and for
//! readers who must outlive the writer (see `opening.rs`). Of a home there are bind mounts: one per staging path, one per
//! target path. `record.rs` holds what should be, the kernel's table what is, `converge.rs`
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

use tokio::time::Instant;
use tracing::info;
use volume::ids::Lease;
use volume::volume_id::VolumeId;

use crate::capability::{BindFlags, Owner};
use crate::credentials::Credentials;
use crate::deadlines::{Progress, to_the_end};
use crate::error::{DriverError, Fault};
use crate::mounter::{Answer, MounterRef, Usage};
use crate::opening::Opening;

mod allocations;
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
    /// Whose the top directory is to be. A mount that cannot write leaves it as it is.
    pub owner: Owner,
    /// True if the volume may have no other target path.
    pub alone: bool,
    /// What entitles to it.
    pub right: Right,
}

impl Place {
    /// What the path shows.
    fn opening(&self) -> Opening {
        Opening {
            volume: self.volume.clone(),
            read_only: self.right.read_only,
        }
    }

    /// A volume mounted for reading only is so at every path.
    fn effective(&self) -> BindFlags {
        BindFlags {
            read_only: self.flags.read_only || self.right.read_only,
            ..self.flags
        }
    }
}

/// What uses a volume on this node after a path was taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    /// Nothing.
    Nothing,
    /// Readers that have a mount of their own, while the path was none of theirs: the node needs the right to write no
    /// more.
    OnlyReaders,
    /// Something that may write, or the path was a reader's and others are left.
    Other,
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
    patience: Mutex<HashMap<Opening, Patience>>,
    /// Volumes that are staged and at no target path, and since when that was seen. Held for a look-up.
    staged_alone: Mutex<HashMap<Opening, Instant>>,
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
            staged_alone: Mutex::default(),
        }))
    }

    /// Mounts a volume at a staging path. Repeating it changes nothing.
    ///
    /// # Errors
    /// `ForeignMount`, `Silent`, `Mount`, `File`, `Record`. A path that was not staged before is
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
    /// `NotStaged`; `PublishedOtherwise` if the volume is there with other options; `PublishedOnce`; and those of `stage`.
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
    ) -> Result<Left, DriverError> {
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
    ) -> Result<Left, DriverError> {
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
        let (_, path) = self.known_path(volume, path)?;
        match self.mounter.probe(&path).await {
            Answer::Alive(usage) => Ok(usage),
            Answer::Dead | Answer::Silent | Answer::Gone => Err(DriverError::Silent {
                volume: volume.to_string(),
                path,
            }),
        }
    }

    /// What is wrong with the mount of a volume at one of its paths; `None` while all is well.
    ///
    /// # Errors
    /// `NoVolume`, `NoPath`, `Mount`, `Record`.
    pub async fn trouble(&self, volume: &VolumeId, path: &Path) -> Result<Option<String>, DriverError> {
        let (opening, _) = self.known_path(volume, path)?;
        let served = self.mounter.served().await;
        let served = served.map_err(DriverError::mount(volume))?;
        Ok(match served.into_iter().find(|served| served.opening == opening) {
            Some(served) => match (served.lost, served.outage) {
                (Some(why), _) => Some(format!("no write is acknowledged any more: {why}")),
                (None, outage) => outage.map(|outage| format!("the store is in trouble {outage}")),
            },
            None => Some("no engine serves the mount".to_owned()),
        })
    }

    /// What uses the volume on this node now, or should.
    ///
    /// # Errors
    /// `File`, `Record`.
    pub fn left(&self, volume: &VolumeId) -> Result<Left, DriverError> {
        let records = self.records_of(volume)?;
        Ok(match records.iter().all(|record| record.opening.read_only) {
            _ if records.is_empty() => Left::Nothing,
            true => Left::OnlyReaders,
            false => Left::Other,
        })
    }

    /// The keys that a volume on this node was mounted with; `None` for the plugin's own.
    ///
    /// # Errors
    /// `File`, `Record`.
    pub fn credentials(&self, volume: &VolumeId) -> Result<Option<Credentials>, DriverError> {
        let records = self.records_of(volume)?;
        Ok(records.into_iter().find_map(|record| record.credentials))
    }

    /// Makes the mount of a volume at one of its paths know the capacity that the volume has by now, and returns it;
    /// `None` for no limit.
    ///
    /// # Errors
    /// `NoVolume`, `NoPath`, `Mount`, `Record`.
    pub async fn learn_capacity(&self, volume: &VolumeId, path: &Path) -> Result<Option<u64>, DriverError> {
        let (opening, _) = self.known_path(volume, path)?;
        let looked = self.mounter.look(&opening).await;
        looked.map_err(DriverError::mount(volume))
    }

    /// A path as the kernel has it, and the opening that it shows, if it is one of the volume's.
    fn known_path(&self, volume: &VolumeId, path: &Path) -> Result<(Opening, PathBuf), DriverError> {
        // A path that cannot be one is not the volume's: CSI wants the same answer as for any other.
        let path = resolved(path).unwrap_or_else(|_| path.to_owned());
        let records = self.records_of(volume)?;
        if records.is_empty() {
            return Err(DriverError::NoVolume {
                volume: volume.to_string(),
            });
        }
        let shows = |record: &VolumeRecord| record.paths().any(|(known, _)| *known == path);
        match records.into_iter().find(shows) {
            Some(record) => Ok((record.opening, path)),
            None => Err(DriverError::NoPath {
                volume: volume.to_string(),
                path,
            }),
        }
    }

    /// The records of a volume: for writing, for reading, or both.
    fn records_of(&self, volume: &VolumeId) -> Result<Vec<VolumeRecord>, DriverError> {
        let both = Opening::both(volume);
        let loaded = both.iter().map(|opening| self.records.load(opening));
        loaded.filter_map(Result::transpose).collect()
    }

    async fn stage_now(&self, mut place: Place, steps: &Progress) -> Result<(), DriverError> {
        place.path = resolved(&place.path)?;
        let opening = place.opening();
        self.staged_anew(&opening);
        let before = self.records.load(&opening)?;
        let mut record = before
            .clone()
            .unwrap_or_else(|| VolumeRecord::new(opening, place.right.lease));
        self.entitle(&mut record, &place.right, steps).await?;
        record.staged.insert(place.path.clone(), place.effective());
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
        let volume = || place.volume.to_string();
        self.staged_anew(&place.opening());
        // Not the staging path of this call is asked for, but any use: a premature unstage (rule 3) may have come
        // between.
        let record = self.records.load(&place.opening())?.filter(VolumeRecord::is_used);
        let mut record = record.ok_or_else(|| DriverError::NotStaged { volume: volume() })?;
        let other = record.published.keys().find(|path| **path != place.path);
        if let (true, Some(path)) = (place.alone, other) {
            return Err(DriverError::PublishedOnce {
                volume: volume(),
                path: path.clone(),
            });
        }
        self.entitle(&mut record, &place.right, steps).await?;
        let flags = place.effective();
        let known = record.published.insert(place.path.clone(), flags);
        if self.allocations().is_some_and(|nomad| nomad.has_folder(&place.path)) {
            record.of_allocations.insert(place.path.clone());
        }
        if known.is_some_and(|known| known != flags) {
            return Err(DriverError::PublishedOtherwise {
                volume: volume(),
                path: place.path,
            });
        }
        let home = self.home(&record.opening);
        self.reach(record, steps, |record| {
            if known.is_none() {
                record.forget(&place.path);
            }
        })
        .await?;
        if flags.read_only || place.owner == Owner::default() {
            return Ok(());
        }
        steps.at("giving the top directory to its owner");
        let owned = self.mounter.own(&home, place.owner).await;
        owned.map_err(DriverError::mount(&place.volume))
    }

    async fn unpublish_now(&self, volume: &VolumeId, path: &Path, steps: &Progress) -> Result<Left, DriverError> {
        let path = resolved(path)?;
        let known = |record: &VolumeRecord| record.published.contains_key(&path) || record.unflushed.contains(&path);
        let Some(mut record) = self.records_of(volume)?.into_iter().find(known) else {
            steps.at("clearing a path that is not published");
            self.clear_unknown(volume, &path).await?;
            self.remove_target(&path)?;
            return self.left(volume);
        };
        steps.at("unmounting the target path");
        // On record first: a flush that fails must neither be forgotten, nor bring the target path back.
        record.forget(&path);
        record.unflushed.insert(path.clone());
        self.records.save(&record)?;
        self.take_away(&record.opening, &path).await?;
        self.remove_target(&path)?;
        steps.at("flushing the volume to the bucket");
        self.flush(&record).await?;
        record.unflushed.remove(&path);
        let reader = record.opening.read_only;
        self.release(record, steps).await?;
        self.left_after(volume, reader)
    }

    async fn unstage_now(&self, volume: &VolumeId, path: &Path, steps: &Progress) -> Result<Left, DriverError> {
        let path = resolved(path)?;
        let records = self.records_of(volume)?;
        let stages = |record: &VolumeRecord| record.opening.read_only && record.staged.contains_key(&path);
        let reader = records.iter().any(stages);
        steps.at("unmounting the staging path");
        if !records.iter().any(|record| record.staged.contains_key(&path)) {
            self.clear_unknown(volume, &path).await?;
        }
        for opening in Opening::both(volume) {
            let record = records.iter().find(|record| record.opening == opening);
            let Some(mut record) = record.cloned() else {
                // Without a record nothing should be mounted; a state folder that was lost leaves a home behind.
                self.end_home(&opening, steps).await?;
                continue;
            };
            if record.staged.remove(&path).is_some() {
                self.take_away(&opening, &path).await?;
                if !record.published.is_empty() {
                    let users = record.published.len();
                    info!(%volume, users, "unstaged while published: the volume stays mounted until the last unpublish");
                }
            } else if record.is_used() {
                continue;
            }
            self.release(record, steps).await?;
        }
        self.left_after(volume, reader)
    }

    /// Saves a record that lost a path; ends the volume's mount if that was the last one.
    async fn release(&self, record: VolumeRecord, steps: &Progress) -> Result<(), DriverError> {
        self.records.save(&record)?;
        if record.is_used() {
            return Ok(());
        }
        self.end_home(&record.opening, steps).await?;
        self.records.remove(&record.opening)
    }

    /// What is left after a path went, which was a reader's or not.
    fn left_after(&self, volume: &VolumeId, reader: bool) -> Result<Left, DriverError> {
        Ok(match self.left(volume)? {
            Left::OnlyReaders if reader => Left::Other,
            left => left,
        })
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

    fn home(&self, opening: &Opening) -> PathBuf {
        self.homes.join(opening.to_string())
    }
}

/// The path as the kernel's table has it: absolute, without symbolic links in front of its last part. That part
/// itself is not looked at, because it may be a mount that is dead.
fn resolved(path: &Path) -> Result<PathBuf, DriverError> {
    let plain = path
        .components()
        .all(|part| matches!(part, Component::RootDir | Component::Normal(_)));
    let (Some(parent), Some(name), true) = (path.parent(), path.file_name(), plain && path.is_absolute()) else {
        return Err(DriverError::invalid(format!("path {}", path.display()), Fault::Path));
    };
    let parent = parent.canonicalize().unwrap_or_else(|_| parent.to_owned());
    Ok(parent.join(name))
}

#[cfg(test)]
mod tests;
