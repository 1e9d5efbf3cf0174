//! Gives back the right to volumes that nobody on this node uses any more, where Nomad forgets to.
//!
//! Nomad tells the controller of a node that left a volume (ControllerUnpublish), but not always: when the plugin's job is
//! stopped while the last claim is freed, Nomad drops the claim and tells nobody. The volume would stay published to
//! this node for ever: no other node could have it, and it could not be deleted. So each volume that comes to this node is noted on
//! disk. If it is still published here `GRACE` after its last path went, and was not published anew, its publication is
//! withdrawn; and if readers are left whose writer went otherwise than by a call, the right to write is.
//! Invariant: a volume leaves this node's records only when everything of it is in the bucket (`targets.rs`).
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
use crate::targets::{Left, Targets};

/// 30 s between two looks at the notes; a look is local unless one is due.
const LOOK_EVERY: Duration = Duration::from_secs(30);

/// 5 min: Nomad's own tries take less, and a volume that is on its way back to this node is staged sooner.
const GRACE: Duration = Duration::from_secs(300);

/// 24 h: a note that cannot be acted upon for so long (its keys are worth nothing any more) is dropped, and told.
const GIVE_UP: Duration = Duration::from_secs(24 * 3_600);

/// What is noted of a volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Note {
    /// Since when it is unused; `None` while it is used.
    unused_since_unix_s: Option<i64>,
    /// Since when only readers are left of those who could write; `None` while one can, or none ever could.
    #[serde(default)]
    unwritten_since_unix_s: Option<i64>,
    /// True from the first writer on, until the right to write was given back.
    #[serde(default)]
    writes: bool,
    /// Its own keys, if it has any.
    credentials: Option<Credentials>,
}

/// What this node has a right to without need, and since when.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Needless {
    Volume(i64),
    Writing(i64),
}

impl Needless {
    fn since(self) -> i64 {
        match self {
            Needless::Volume(since) | Needless::Writing(since) => since,
        }
    }
}

impl Note {
    /// The note at a moment when this was left of the volume's users.
    fn at(&self, left: Left, now_s: i64) -> Self {
        let unused = (left == Left::Nothing).then(|| self.unused_since_unix_s.unwrap_or(now_s));
        let unwritten =
            (left == Left::OnlyReaders && self.writes).then(|| self.unwritten_since_unix_s.unwrap_or(now_s));
        Self {
            unused_since_unix_s: unused,
            unwritten_since_unix_s: unwritten,
            ..self.clone()
        }
    }

    fn needless(&self) -> Option<Needless> {
        let unwritten = self.unwritten_since_unix_s.map(Needless::Writing);
        self.unused_since_unix_s.map(Needless::Volume).or(unwritten)
    }
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

    /// The volume is about to be used on this node, for writing or not, with keys of its own if it has any.
    ///
    /// # Errors
    /// `File`, `Record`.
    pub fn taken(&self, volume: &VolumeId, writes: bool, credentials: Option<Credentials>) -> Result<(), DriverError> {
        let _turn = self.turn();
        let known = self.load(volume)?;
        let known_credentials = known.as_ref().and_then(|known| known.credentials.clone());
        let unwritten = known.as_ref().and_then(|known| known.unwritten_since_unix_s);
        let note = Note {
            unused_since_unix_s: None,
            unwritten_since_unix_s: unwritten.filter(|_| !writes),
            writes: writes || known.as_ref().is_some_and(|known| known.writes),
            credentials: credentials.or(known_credentials),
        };
        match known.as_ref() == Some(&note) {
            true => Ok(()),
            false => self.save(volume, &note),
        }
    }

    /// A path of the volume was taken away on this node, and this is left. The time that counts begins here.
    ///
    /// # Errors
    /// `File`, `Record`.
    pub fn left(&self, volume: &VolumeId, left: Left) -> Result<(), DriverError> {
        self.seen(volume, left, self.clock.now().seconds).map(drop)
    }

    /// Looks every 30 s, for ever. Dropping it ends it.
    pub async fn watch(self: Arc<Self>, targets: Arc<Targets>) {
        loop {
            tokio::time::sleep(LOOK_EVERY).await;
            self.look(self.clock.now(), |volume| targets.left(volume)).await;
        }
    }

    /// One look at all notes.
    async fn look(&self, now: Timestamp, left: impl Fn(&VolumeId) -> Result<Left, DriverError>) {
        let volumes = match self.volumes() {
            Ok(volumes) => volumes,
            Err(error) => return warn!(?error, "the notes of this node's volumes cannot be read: {error}"),
        };
        for volume in volumes {
            let settled = match left(&volume) {
                // A call may use it before its record says so; then it has just been noted, and `GRACE` begins now.
                Ok(left) => self.settle(&volume, left, now.seconds).await,
                Err(error) => Err(error),
            };
            if let Err(error) = settled {
                warn!(%volume, ?error, "cannot look whether the volume is still published to this node: {error}");
            }
        }
    }

    async fn settle(&self, volume: &VolumeId, left: Left, now_s: i64) -> Result<(), DriverError> {
        let Some(note) = self.seen(volume, left, now_s)? else {
            return Ok(());
        };
        let Some(needless) = note.needless() else { return Ok(()) };
        let age_s = now_s.saturating_sub(needless.since());
        if age_s < GRACE.as_secs() as i64 {
            return Ok(());
        }
        let settled = self.give_back(volume, &note, needless).await;
        if settled.is_ok() || age_s > GIVE_UP.as_secs() as i64 {
            let _turn = self.turn();
            // It may have come back to this node meanwhile: then there is something to note again.
            if self.load(volume)?.as_ref() == Some(&note) {
                match needless {
                    Needless::Volume(_) => state_file::remove(&self.path(volume))?,
                    Needless::Writing(_) => {
                        let writes = settled.as_ref().is_ok_and(|given_back| !given_back);
                        let unwritten_since_unix_s = None;
                        self.save(
                            volume,
                            &Note {
                                writes,
                                unwritten_since_unix_s,
                                ..note
                            },
                        )?;
                    }
                }
            }
        }
        settled.map(drop)
    }

    /// Brings the note of a volume up to date, if there is one.
    fn seen(&self, volume: &VolumeId, left: Left, now_s: i64) -> Result<Option<Note>, DriverError> {
        let _turn = self.turn();
        let Some(known) = self.load(volume)? else {
            return Ok(None);
        };
        let note = known.at(left, now_s);
        if note != known {
            self.save(volume, &note)?;
        }
        Ok(Some(note))
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

    /// False where the right was asked for again, or is in use after all.
    async fn give_back(&self, volume: &VolumeId, note: &Note, needless: Needless) -> Result<bool, DriverError> {
        let admin = self.clusters.admin(note.credentials.as_ref()).await?;
        let until = Timestamp {
            seconds: needless.since(),
            nanos: 0,
        };
        let given_back = match needless {
            Needless::Volume(_) => admin.unpublish_unused(volume, &self.node_id, until).await?,
            Needless::Writing(_) => admin.narrow_unused(volume, &self.node_id, until).await?,
        };
        if given_back {
            info!(%volume, ?needless, "this node has no more need of a right to the volume: it is given back");
        }
        Ok(given_back)
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
            world.rights.taken(&world.volume, true, None).unwrap();
            world.look(900, Left::Other).await;
            world.rights.left(&world.volume, Left::Nothing).unwrap();
            world
        }

        async fn publish(&self, second: i64) {
            let request = PublishVolume {
                volume: self.volume.clone(),
                node_id: self.node_id.clone(),
                read_only: false,
                mode: AccessMode::MultiNodeSingleWriter,
                now: at(second),
            };
            self.admin.publish(&request).await.unwrap();
        }

        async fn look(&self, second: i64, left: Left) {
            self.rights.look(at(second), |_| Ok(left)).await;
        }

        async fn writes(&self) -> bool {
            let head = self.admin.get(&self.volume).await.unwrap();
            head.publications.iter().any(|publication| !publication.read_only)
        }

        async fn is_published(&self) -> bool {
            !self.admin.get(&self.volume).await.unwrap().publications.is_empty()
        }
    }

    #[tokio::test]
    async fn a_volume_that_nomad_forgot_is_given_back_after_five_minutes() {
        let world = World::new().await;
        world.look(1_299, Left::Nothing).await;
        assert!(world.is_published().await, "Nomad has five minutes");
        world.look(1_300, Left::Nothing).await;
        assert!(!world.is_published().await);
        assert_eq!(world.rights.volumes().unwrap(), []);
        world.publish(2_000).await;
        world.look(9_000, Left::Nothing).await;
        assert!(world.is_published().await, "a note acts once");
    }

    #[tokio::test]
    async fn a_volume_that_comes_back_keeps_its_right() {
        let staged = World::new().await;
        staged.rights.taken(&staged.volume, true, None).unwrap();
        staged.look(1_200, Left::Other).await;
        staged.look(2_000, Left::Other).await;
        staged.look(2_100, Left::Nothing).await;
        assert!(staged.is_published().await, "it was staged again");
        let on_its_way = World::new().await;
        on_its_way.publish(1_298).await;
        on_its_way.look(1_300, Left::Nothing).await;
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
        world.look(1_300, Left::Nothing).await;
        assert_eq!(world.rights.volumes().unwrap(), []);
    }

    /// A writer whose allocation was collected went without a call; its readers stay on the node.
    #[tokio::test]
    async fn the_right_to_write_is_given_back_five_minutes_after_the_last_writer_went_and_readers_stay() {
        let world = World::new().await;
        world.look(1_010, Left::OnlyReaders).await;
        world.rights.taken(&world.volume, false, None).unwrap();
        world.look(1_309, Left::OnlyReaders).await;
        assert!(world.writes().await, "a writer may be on its way");
        world.look(1_310, Left::OnlyReaders).await;
        assert!(world.is_published().await && !world.writes().await);
        // The next writer is published, and not taken for the last one.
        world.publish(2_000).await;
        world.look(9_000, Left::OnlyReaders).await;
        assert!(world.writes().await, "a note acts once");
    }

    #[tokio::test]
    async fn a_writer_that_comes_back_beside_readers_keeps_its_right() {
        let world = World::new().await;
        world.look(1_010, Left::OnlyReaders).await;
        world.publish(1_305).await;
        world.look(1_320, Left::OnlyReaders).await;
        assert!(world.writes().await, "it was published again and will be staged");
        world.rights.taken(&world.volume, true, None).unwrap();
        world.look(1_330, Left::Other).await;
        world.look(9_000, Left::OnlyReaders).await;
        world.look(9_299, Left::OnlyReaders).await;
        assert!(world.writes().await);
        world.look(9_300, Left::OnlyReaders).await;
        assert!(!world.writes().await, "the time begins anew with each writer");
    }
}
