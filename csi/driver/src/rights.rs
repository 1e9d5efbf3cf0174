//! Gives back the right to volumes that nobody on this node uses any more, where Nomad forgets to.
//!
//! Nomad tells the controller of a node that left a volume (ControllerUnpublish), but not always: when the plugin's job is
//! stopped while the last claim is freed, Nomad drops the claim and tells nobody. The volume would stay published to
//! this node for ever: no other node could have it, and it could not be deleted. So each volume that comes to this node is noted on
//! disk. If it is still published here `GRACE` after its last path went, and was not published anew, its publication is
//! withdrawn. Invariant: a volume leaves this node's records only when everything of it is in the bucket (`targets.rs`).
//! Callers: `node.rs` notes, `server.rs` runs the watch. Absent: nodes that are gone; theirs is Nomad's word alone.

use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tracing::{info, warn};
use volume::clock::{Clock, Timestamp};
use volume::volume_id::{NodeId, VolumeId};

use crate::cluster::ClustersRef;
use crate::credentials::Credentials;
use crate::error::DriverError;
use crate::state_file;
use crate::targets::Targets;

/// 30 s between two looks at the notes; a look is local unless one is due.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// 5 min: Nomad's own tries take less, and a volume that is on its way back to this node is staged sooner.
const GRACE: Duration = Duration::from_secs(300);

/// 24 h: a note that cannot be acted upon for so long (its keys are worth nothing any more) is dropped, and told.
const GIVE_UP: Duration = Duration::from_secs(24 * 3_600);

/// What is noted of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// When it was first seen to be unused; `None` while it is used.
    unused_since_unix_s: Option<i64>,
    /// Its own keys, if it has any.
    credentials: Option<Credentials>,
}

/// The volumes that came to this node, until they are given back.
#[derive(Debug)]
pub struct Rights {
    dir: PathBuf,
    node_id: NodeId,
    clusters: ClustersRef,
    clock: Arc<dyn Clock>,
    /// Held from the reading of a note to its writing.
    turn: Mutex<()>,
}

impl Rights {
    /// Notes lie in `dir`, which is made.
    ///
    /// # Errors
    /// `File`.
    pub fn open(
        dir: PathBuf,
        node_id: NodeId,
        clusters: ClustersRef,
        clock: Arc<dyn Clock>,
    ) -> Result<Arc<Self>, DriverError> {
        state_file::make_folder(&dir)?;
        Ok(Arc::new(Self {
            dir,
            node_id,
            clusters,
            clock,
            turn: Mutex::new(()),
        }))
    }

    /// The volume is about to be used on this node, with keys of its own if it has any.
    ///
    /// # Errors
    /// `File`, `Record`.
    pub fn taken(&self, volume: &VolumeId, credentials: Option<Credentials>) -> Result<(), DriverError> {
        let _turn = self.turn();
        let known = self.load(volume)?;
        let credentials = credentials.or_else(|| known.as_ref()?.credentials.clone());
        let note = Note {
            unused_since_unix_s: None,
            credentials,
        };
        match known.as_ref() == Some(&note) {
            true => Ok(()),
            false => self.save(volume, &note),
        }
    }

    /// Looks every 30 s, for ever. Dropping it ends it.
    pub async fn watch(self: Arc<Self>, targets: Arc<Targets>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look(self.clock.now(), |volume| targets.knows(volume)).await;
        }
    }

    /// One look at all notes.
    async fn look(&self, now: Timestamp, is_used: impl Fn(&VolumeId) -> Result<bool, DriverError>) {
        let volumes = match self.volumes() {
            Ok(volumes) => volumes,
            Err(error) => return warn!(?error, "the notes of this node's volumes cannot be read: {error}"),
        };
        for volume in volumes {
            let settled = match is_used(&volume) {
                // A call may use it before its record says so; then it has just been noted, and `GRACE` begins now.
                Ok(is_used) => self.settle(&volume, is_used, now.seconds).await,
                Err(error) => Err(error),
            };
            if let Err(error) = settled {
                warn!(%volume, ?error, "cannot look whether the volume is still published to this node: {error}");
            }
        }
    }

    async fn settle(&self, volume: &VolumeId, is_used: bool, now_s: i64) -> Result<(), DriverError> {
        let Some((note, since)) = self.unused(volume, is_used, now_s)? else {
            return Ok(());
        };
        let age_s = now_s.saturating_sub(since);
        if age_s < GRACE.as_secs() as i64 {
            return Ok(());
        }
        let settled = self.withdraw(volume, (&note, since)).await;
        if settled.is_ok() || age_s > GIVE_UP.as_secs() as i64 {
            let _turn = self.turn();
            // It may have come back to this node meanwhile: then there is something to note again.
            if self.load(volume)?.as_ref() == Some(&note) {
                state_file::remove(&self.path(volume))?;
            }
        }
        settled
    }

    /// The note of a volume that was unused at the last look too, and since when it is.
    fn unused(&self, volume: &VolumeId, is_used: bool, now_s: i64) -> Result<Option<(Note, i64)>, DriverError> {
        let _turn = self.turn();
        let Some(mut note) = self.load(volume)? else {
            return Ok(None);
        };
        if let Some(since) = note.unused_since_unix_s.filter(|_| !is_used) {
            return Ok(Some((note, since)));
        }
        let since = (!is_used).then_some(now_s);
        if note.unused_since_unix_s != since {
            note.unused_since_unix_s = since;
            self.save(volume, &note)?;
        }
        Ok(None)
    }

    fn turn(&self) -> MutexGuard<'_, ()> {
        self.turn.lock().expect("nobody panics while holding the turn")
    }

    fn load(&self, volume: &VolumeId) -> Result<Option<Note>, DriverError> {
        let path = self.path(volume);
        let Some(body) = state_file::read(&path)? else {
            return Ok(None);
        };
        let note = serde_json::from_slice(&body);
        note.map(Some).map_err(|source| DriverError::Record { path, source })
    }

    fn save(&self, volume: &VolumeId, note: &Note) -> Result<(), DriverError> {
        let body = serde_json::to_vec_pretty(note).expect("a note holds only what JSON can say");
        state_file::write(&self.path(volume), &body)
    }

    async fn withdraw(&self, volume: &VolumeId, (note, since): (&Note, i64)) -> Result<(), DriverError> {
        let admin = self.clusters.admin(note.credentials.as_ref()).await?;
        let until = Timestamp {
            seconds: since,
            nanos: 0,
        };
        if admin.unpublish_unused(volume, &self.node_id, until).await? {
            info!(%volume, "the volume was still published to this node, which does not use it: the right is given back");
        }
        Ok(())
    }

    fn volumes(&self) -> Result<Vec<VolumeId>, DriverError> {
        let failed = DriverError::file("list", &self.dir);
        let names = fs::read_dir(&self.dir).and_then(|entries| {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            names.collect::<Result<Vec<_>, _>>()
        });
        let volume = |name: &std::ffi::OsString| VolumeId::parse(name.to_str()?.strip_suffix(".json")?).ok();
        Ok(names.map_err(failed)?.iter().filter_map(volume).collect())
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.dir.join(format!("{volume}.json"))
    }
}

#[cfg(test)]
mod tests {
    use uuid::Uuid;
    use volume::admin::{Admin, CapacityRange, CreateVolume, Led, NodeRecord, PublishVolume};
    use volume::bucket::BucketRef;
    use volume::bucket::memory::MemoryBucket;
    use volume::head::{AccessMode, Parameters};

    use super::*;
    use crate::cluster::fixed::FixedCluster;

    #[derive(Debug)]
    struct At(i64);

    impl Clock for At {
        fn now(&self) -> Timestamp {
            at(self.0)
        }
    }

    fn at(seconds: i64) -> Timestamp {
        Timestamp { seconds, nanos: 0 }
    }

    struct World {
        _dir: tempfile::TempDir,
        admin: Admin,
        rights: Arc<Rights>,
        volume: VolumeId,
        node_id: NodeId,
    }

    impl World {
        /// A volume that was published to this node at second 100 and given up before second 1000.
        async fn new() -> Self {
            let bucket: BucketRef = Arc::new(MemoryBucket::new());
            let (admin, node_id) = (Admin::new(bucket.clone(), Uuid::new_v4()), NodeId::new("n1").unwrap());
            admin
                .register_node(&NodeRecord::new(node_id.clone(), "1", 0))
                .await
                .unwrap();
            let new = CreateVolume {
                name: "v1".to_owned(),
                uuid: Uuid::new_v4(),
                capacity: CapacityRange::default(),
                parameters: Parameters::default(),
                now: at(0),
            };
            let volume = admin.create(&new).await.unwrap().volume;
            let dir = tempfile::tempdir().unwrap();
            let clusters = Arc::new(FixedCluster::new(bucket));
            let rights = Rights::open(
                dir.path().join("rights"),
                node_id.clone(),
                clusters,
                Arc::new(At(1_000)),
            )
            .unwrap();
            let world = Self {
                _dir: dir,
                admin,
                rights,
                volume,
                node_id,
            };
            world.publish(100).await;
            world.rights.taken(&world.volume, None).unwrap();
            world.look(900, true).await;
            world.look(1_000, false).await;
            world
        }

        async fn publish(&self, second: i64) {
            let request = PublishVolume {
                volume: self.volume.clone(),
                node_id: self.node_id.clone(),
                read_only: false,
                mode: AccessMode::SingleNodeWriter,
                now: at(second),
            };
            self.admin.publish(&request).await.unwrap();
        }

        async fn look(&self, second: i64, is_used: bool) {
            self.rights.look(at(second), |_| Ok(is_used)).await;
        }

        async fn is_published(&self) -> bool {
            !self.admin.get(&self.volume).await.unwrap().publications.is_empty()
        }
    }

    #[tokio::test]
    async fn a_volume_that_nomad_forgot_is_given_back_after_five_minutes() {
        let world = World::new().await;
        world.look(1_299, false).await;
        assert!(world.is_published().await, "Nomad has five minutes");
        world.look(1_300, false).await;
        assert!(!world.is_published().await);
        assert_eq!(world.rights.volumes().unwrap(), []);
        world.publish(2_000).await;
        world.look(9_000, false).await;
        assert!(world.is_published().await, "a note acts once");
    }

    #[tokio::test]
    async fn a_volume_that_comes_back_keeps_its_right() {
        let staged = World::new().await;
        staged.rights.taken(&staged.volume, None).unwrap();
        staged.look(1_200, true).await;
        staged.look(2_000, true).await;
        staged.look(2_100, false).await;
        assert!(staged.is_published().await, "it was staged again");
        let on_its_way = World::new().await;
        on_its_way.publish(1_298).await;
        on_its_way.look(1_300, false).await;
        assert!(
            on_its_way.is_published().await,
            "it was published again and will be staged"
        );
    }

    #[tokio::test]
    async fn a_volume_that_is_gone_leaves_no_note() {
        let world = World::new().await;
        world.admin.unpublish(&world.volume, &world.node_id).await.unwrap();
        world.admin.delete(&world.volume, Led::Keep).await.unwrap();
        world.look(1_300, false).await;
        assert_eq!(world.rights.volumes().unwrap(), []);
    }
}
