//! Adopts what an earlier plugin left mounted, and repairs what dies while this one runs.
//!
//! A dead mount at one of Nomad's paths blocks Nomad before it calls us: its stat(2) of the path fails (rule 5). So
//! dead mounts are found at the start, before the first call is served (rule 4), when our engine ends, and every 10 s. Where the record
//! asks for the volume it is mounted anew.
//! Callers: `server.rs`. Absent: containers that hold a dead mount of their own; a new mount does not reach them.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use tokio::time::{Instant, MissedTickBehavior};
use tracing::{error, warn};

use super::Targets;
use super::converge::Lost;
use super::judge::fuse_below;
use super::record::VolumeRecord;
use crate::deadlines::Progress;
use crate::error::DriverError;
use crate::mounter::Answer;
use crate::mountinfo::top_at;
use crate::opening::Opening;

/// 10 s: how long a dead mount may be in Nomad's way (rule 5). One look costs a read of the mount table, and a statfs
/// and a list of the engine's mounts per volume: all of it local.
const WATCH_EVERY: Duration = Duration::from_secs(10);

/// 1 s: the least time between two looks.
const PAUSE: Duration = Duration::from_secs(1);

/// 3 s: how long the start waits for volumes to be adopted. Nomad looks for the socket every 5 s and gives it 30 s;
/// what takes longer (a store that is away) goes on behind the served socket.
const ADOPT_MAX: Duration = Duration::from_secs(3);

/// 5 min between two tries to repair a volume that another node holds. It begins with `WATCH_EVERY` and doubles.
const PATIENCE_MAX: Duration = Duration::from_secs(300);

/// 5 min at no target path: Nomad unstages right after its last unpublish, and publishes right after it staged. Where its plugin was away
/// in between, as when a node is drained, it does so never.
const STAGED_ALONE_MAX: Duration = Duration::from_secs(300);

/// When to look at a volume again that could not be repaired.
#[derive(Debug, Clone, Copy)]
pub(super) struct Patience {
    until: Instant,
    wait: Duration,
}

impl Targets {
    /// Mounts again what the records ask for and clears what is dead. Returns when that is done, or after
    /// `ADOPT_MAX`: the rest goes on.
    pub async fn adopt(self: &Arc<Self>) {
        let this = Arc::clone(self);
        let work = tokio::spawn(async move { this.look().await });
        if tokio::time::timeout(ADOPT_MAX, work).await.is_err() {
            warn!("volumes are still being adopted; serving already");
        }
    }

    /// Looks every 10 s, and when the engine ended, for ever. Dropping it ends it.
    pub async fn watch(self: Arc<Self>) {
        let mut ticks = tokio::time::interval_at(Instant::now() + WATCH_EVERY, WATCH_EVERY);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = ticks.tick() => {}
                () = self.mounter.engine_ended() => {}
            }
            self.look().await;
            // An engine that ends as soon as it has mounted is started once a second, not at once for ever.
            tokio::time::sleep(PAUSE).await;
        }
    }

    /// One look at everything.
    pub(super) async fn look(self: &Arc<Self>) {
        match self.records.openings() {
            Ok(openings) => {
                // Those of one volume have one turn: the second of them would find it taken at every look.
                let mut volumes = BTreeMap::<_, Vec<_>>::new();
                for opening in openings {
                    volumes.entry(opening.volume.clone()).or_default().push(opening);
                }
                let repairs = volumes.values().map(|openings| async move {
                    for opening in openings {
                        self.repair(opening).await;
                    }
                });
                join_all(repairs).await;
            }
            Err(error) => error!(?error, "the state folder cannot be read: {error}"),
        }
        for root in [Some(&self.homes), self.staging_root.as_ref()].into_iter().flatten() {
            if let Err(error) = self.clear_dead(root).await {
                warn!(?error, root = %root.display(), "dead mounts may be left: {error}");
            }
        }
    }

    async fn repair(self: &Arc<Self>, opening: &Opening) {
        if self.wants_patience(opening) {
            return;
        }
        // A call is at work on this volume: it converges by itself.
        let Ok(_turn) = self.turn(&opening.volume).try_lock_owned() else {
            return;
        };
        match self.repair_now(opening).await {
            Ok(()) => self.forget_patience(opening),
            Err(failure) => {
                let wait = self.more_patience(opening);
                warn!(volume = %opening, ?failure, again_in_s = wait.as_secs(), "cannot be repaired yet: {failure}");
            }
        }
    }

    async fn repair_now(&self, opening: &Opening) -> Result<(), DriverError> {
        let mut record = match self.records.load(opening) {
            Ok(Some(record)) => record,
            Ok(None) => return Ok(()),
            Err(damaged @ DriverError::Record { .. }) => {
                let aside = self.records.set_aside(opening)?;
                error!(volume = %opening, error = ?damaged, aside = %aside.display(), "a state file is damaged and was set aside");
                return Ok(());
            }
            Err(error) => return Err(error),
        };
        let steps = Progress::new();
        if self.end_collected(&record, &steps).await? {
            match self.records.load(opening)? {
                Some(left) => record = left,
                None => return Ok(()),
            }
        }
        self.forget_dead(&mut record).await?;
        self.forget_stages(&mut record).await?;
        if record.is_used() {
            self.converge(&record, Lost::Keep, &steps).await
        } else {
            // The last path is gone: the flush after it failed, or nobody came to take it away.
            self.release(record, &steps).await
        }
    }

    /// Forgets target paths whose folders somebody took away: nobody will call for them. Never a path where something is mounted.
    async fn forget_dead(&self, record: &mut VolumeRecord) -> Result<(), DriverError> {
        let Some(allocations) = self.allocations() else {
            return Ok(());
        };
        let published = record.published.keys();
        let gone: Vec<_> = published
            .filter(|path| allocations.was_removed(path))
            .cloned()
            .collect();
        if gone.is_empty() {
            return Ok(());
        }
        let table = self.table(&record.opening).await?;
        for path in gone.into_iter().filter(|path| top_at(&table, path).is_none()) {
            warn!(volume = %record.opening, path = %path.display(), "the allocation of a target path is gone: it is forgotten");
            record.forget(&path);
        }
        self.records.save(record)
    }

    /// Takes staging paths away that Nomad has forgotten: the volume has been at no target path for long.
    async fn forget_stages(&self, record: &mut VolumeRecord) -> Result<(), DriverError> {
        let opening = record.opening.clone();
        if record.staged.is_empty() || !record.published.is_empty() || !record.unflushed.is_empty() {
            self.staged_anew(&opening);
            return Ok(());
        }
        let since = {
            let mut alone = self.staged_alone.lock().expect("nobody panics while holding the map");
            *alone.entry(opening.clone()).or_insert_with(Instant::now)
        };
        if since.elapsed() < STAGED_ALONE_MAX {
            return Ok(());
        }
        for path in std::mem::take(&mut record.staged).into_keys() {
            warn!(volume = %opening, path = %path.display(), "no allocation uses the volume, and Nomad does not unstage it: it is unstaged");
            self.take_away(&opening, &path).await?;
        }
        self.staged_anew(&opening);
        self.records.save(record)
    }

    /// From now on the time begins anew after which a volume that is staged and not published is taken for forgotten.
    pub(super) fn staged_anew(&self, opening: &Opening) {
        let mut alone = self.staged_alone.lock().expect("nobody panics while holding the map");
        alone.remove(opening);
    }

    /// Takes dead FUSE mounts away that no record knows: those that one does know are repaired.
    async fn clear_dead(&self, root: &Path) -> Result<(), DriverError> {
        let mount_error = |source| DriverError::Mount {
            volume: "(none)".into(),
            source,
        };
        let table = self.mounter.table().await.map_err(mount_error)?;
        for mount in fuse_below(&table, root) {
            let known = match mount.path.strip_prefix(&self.homes).ok().and_then(Path::to_str) {
                Some(name) => Opening::parse(name).is_ok_and(|id| matches!(self.records.load(&id), Ok(Some(_)))),
                None => self.owner_of(&mount.path)?.is_some(),
            };
            if !known && self.mounter.probe(&mount.path).await == Answer::Dead {
                warn!(path = %mount.path.display(), source = mount.source, "clearing a dead mount");
                self.mounter.detach(&mount.path).await.map_err(mount_error)?;
            }
        }
        Ok(())
    }

    pub(super) fn wants_patience(&self, opening: &Opening) -> bool {
        let patience = self.patience.lock().expect("nobody panics while holding the map");
        patience
            .get(opening)
            .is_some_and(|patience| Instant::now() < patience.until)
    }

    fn forget_patience(&self, opening: &Opening) {
        self.patience
            .lock()
            .expect("nobody panics while holding the map")
            .remove(opening);
    }

    fn more_patience(&self, opening: &Opening) -> Duration {
        let mut patience = self.patience.lock().expect("nobody panics while holding the map");
        let wait = match patience.get(opening) {
            Some(before) => (before.wait * 2).min(PATIENCE_MAX),
            None => WATCH_EVERY,
        };
        let until = Instant::now() + wait;
        patience.insert(opening.clone(), Patience { until, wait });
        wait
    }
}
