//! The node's rules, with the engine and the mount table in memory.

mod gone;

use super::*;
use crate::mounter::Mounter;
use crate::mounter::fake::{FakeMounter, USAGE};

struct Node {
    mounter: Arc<FakeMounter>,
    targets: Arc<Targets>,
    dir: tempfile::TempDir,
}

impl Node {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounter = Arc::new(FakeMounter::new());
        let targets = open(&mounter, dir.path());
        Self { mounter, targets, dir }
    }

    /// The plugin dies and starts anew; engine and kernel go on.
    async fn restart_plugin(&mut self) {
        self.targets = open(&self.mounter, self.dir.path());
        self.targets.adopt().await;
    }

    /// A path as Nomad would make it: the parent exists, the last part does not.
    fn path(&self, name: &str) -> PathBuf {
        let root = self.dir.path().canonicalize().unwrap().join("nomad");
        std::fs::create_dir_all(&root).unwrap();
        root.join(name)
    }

    async fn stage(&self, name: &str, lease: u64) -> Result<(), DriverError> {
        self.targets.stage(self.place(name, lease), &Progress::new()).await
    }

    async fn publish(&self, name: &str, lease: u64) -> Result<(), DriverError> {
        self.targets.publish(self.place(name, lease), &Progress::new()).await
    }

    async fn unpublish(&self, name: &str) -> Result<(), DriverError> {
        self.targets
            .unpublish(&v1(), &self.path(name), &Progress::new())
            .await
            .map(drop)
    }

    async fn unstage(&self, name: &str) -> Result<(), DriverError> {
        self.targets
            .unstage(&v1(), &self.path(name), &Progress::new())
            .await
            .map(drop)
    }

    fn place(&self, name: &str, lease: u64) -> Place {
        Place {
            volume: v1(),
            path: self.path(name),
            flags: BindFlags::default(),
            owner: Owner::default(),
            alone: false,
            right: Right {
                lease: Lease(lease),
                read_only: false,
                credentials: None,
            },
        }
    }

    fn home(&self) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join("state/mounts/v1")
    }

    fn is_mounted(&self, name: &str) -> bool {
        self.mounter.paths().contains(&self.path(name))
    }

    fn record(&self) -> Option<VolumeRecord> {
        self.targets.records.load(&Opening::writing(&v1())).unwrap()
    }

    /// Nothing of the volume is left on the node.
    fn assert_clean(&self) {
        assert_eq!(self.mounter.paths(), Vec::<PathBuf>::new());
        assert_eq!(self.record(), None);
        assert!(!self.home().exists());
    }
}

fn open(mounter: &Arc<FakeMounter>, dir: &Path) -> Arc<Targets> {
    let folders = Folders {
        state: dir.join("state"),
        staging_root: Some(dir.join("nomad")),
    };
    Targets::open(Arc::clone(mounter) as MounterRef, folders).unwrap()
}

fn v1() -> VolumeId {
    VolumeId::parse("v1").unwrap()
}

#[tokio::test]
async fn a_volume_goes_through_its_whole_life() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    assert!(node.is_mounted("staging") && node.is_mounted("target"));
    assert_eq!(
        node.mounter.mounts().len(),
        1,
        "one mount by the engine, whatever number of paths (rule 11)"
    );
    assert_eq!(node.targets.usage(&v1(), &node.path("target")).await.unwrap(), USAGE);
    node.unpublish("target").await.unwrap();
    assert!(!node.path("target").exists(), "the target directory is gone (rule 14)");
    assert!(node.is_mounted("staging"));
    node.unstage("staging").await.unwrap();
    node.assert_clean();
}

/// Rule 20: ten times of any call is once.
#[tokio::test]
async fn ten_times_of_each_call_is_once() {
    let node = Node::new();
    for _ in 0..10 {
        node.stage("staging", 1).await.unwrap();
    }
    for _ in 0..10 {
        node.publish("target", 1).await.unwrap();
    }
    assert_eq!(node.mounter.paths().len(), 3);
    for _ in 0..10 {
        node.unpublish("target").await.unwrap();
    }
    for _ in 0..10 {
        node.unstage("staging").await.unwrap();
    }
    node.assert_clean();
    assert_eq!(node.mounter.mounts().len(), 1);
}

/// Rule 20: after a change of leader Nomad sends the same call from two places at once.
#[tokio::test]
async fn the_same_call_at_the_same_time_gives_one_mount() {
    let node = Node::new();
    let staged = futures::future::join_all((0..10).map(|_| node.stage("staging", 1))).await;
    assert!(staged.iter().all(Result::is_ok), "{staged:?}");
    let published = futures::future::join_all((0..10).map(|_| node.publish("target", 1))).await;
    assert!(published.iter().all(Result::is_ok), "{published:?}");
    assert_eq!(node.mounter.paths().len(), 3);
    let gone = futures::future::join_all((0..10).map(|_| node.unpublish("target"))).await;
    assert!(gone.iter().all(Result::is_ok), "{gone:?}");
    node.unstage("staging").await.unwrap();
    node.assert_clean();
}

/// Rule 3: Nomad unstages while other allocations still use the volume. It stays mounted for them, and goes with the
/// last one.
#[tokio::test]
async fn a_premature_unstage_leaves_the_volume_to_its_users() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("a", 1).await.unwrap();
    node.publish("b", 1).await.unwrap();
    node.unpublish("a").await.unwrap();
    node.unstage("staging").await.unwrap();
    assert!(node.is_mounted("b"));
    assert_eq!(node.targets.usage(&v1(), &node.path("b")).await.unwrap(), USAGE);
    // The next allocation stages again, beside the old one.
    node.stage("staging", 1).await.unwrap();
    node.publish("c", 1).await.unwrap();
    node.unstage("staging").await.unwrap();
    node.unpublish("c").await.unwrap();
    assert!(node.is_mounted("b"));
    node.unpublish("b").await.unwrap();
    node.assert_clean();
    assert_eq!(node.mounter.mounts().len(), 1);
}

/// Rule 11: the staging path holds the way of use, so one volume has several.
#[tokio::test]
async fn two_staging_paths_are_two_views_of_one_mount() {
    let node = Node::new();
    node.stage("rw-file-system-single-node-writer", 1).await.unwrap();
    let mut reader = node.place("ro-file-system-single-node-writer", 1);
    reader.flags.read_only = true;
    node.targets.stage(reader, &Progress::new()).await.unwrap();
    let table = node.mounter.table().await.unwrap();
    let read_only = table.iter().filter(|mount| mount.read_only).count();
    assert_eq!((table.len(), read_only), (3, 1));
    node.unstage("rw-file-system-single-node-writer").await.unwrap();
    assert!(node.is_mounted("ro-file-system-single-node-writer"));
    node.unstage("ro-file-system-single-node-writer").await.unwrap();
    node.assert_clean();
}

/// Rule 4: after the plugin died NodeStage is not called again. The new one knows everything by itself.
#[tokio::test]
async fn a_new_plugin_adopts_what_is_mounted() {
    let mut node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    node.restart_plugin().await;
    assert_eq!(node.mounter.mounts().len(), 1, "what works is left alone");
    node.publish("second", 1).await.unwrap();
    node.unpublish("target").await.unwrap();
    node.unpublish("second").await.unwrap();
    node.unstage("staging").await.unwrap();
    node.assert_clean();
}

/// Rules 4 and 5: plugin and engine died, or the machine was reset. Before the first call is served, no path of
/// Nomad's is dead.
#[tokio::test]
async fn a_new_plugin_mounts_again_what_the_engine_left_dead() {
    let mut node = Node::new();
    let mut place = node.place("staging", 7);
    place.right.credentials = Some(Credentials {
        access_key_id: "a".into(),
        secret_access_key: "s".into(),
        session_token: None,
    });
    node.targets.stage(place.clone(), &Progress::new()).await.unwrap();
    node.publish("target", 7).await.unwrap();
    node.mounter.kill_engine();
    assert_eq!(node.mounter.probe(&node.path("target")).await, Answer::Dead);
    node.restart_plugin().await;
    for name in ["staging", "target"] {
        assert_eq!(node.mounter.probe(&node.path(name)).await, Answer::Alive(USAGE));
    }
    assert_eq!(node.mounter.paths().len(), 3, "the dead mounts are gone");
    let again = node.mounter.mounts().pop().unwrap();
    assert_eq!((again.lease, again.credentials), (Lease(7), place.right.credentials));
}

/// Rule 5: a mount that dies while the plugin runs is repaired by the watch, and a dead one that nobody knows is
/// cleared.
#[tokio::test(start_paused = true)]
async fn the_watch_repairs_dead_mounts_and_clears_unknown_ones() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    let other = VolumeId::parse("v2").unwrap();
    let stray = node.place("stray", 1);
    let stray = Place {
        volume: other.clone(),
        ..stray
    };
    node.targets.stage(stray, &Progress::new()).await.unwrap();
    node.targets.records.remove(&Opening::writing(&other)).unwrap();
    let watch = tokio::spawn(Arc::clone(&node.targets).watch());
    node.mounter.kill_engine();
    tokio::time::sleep(std::time::Duration::from_secs(11)).await;
    assert_eq!(node.mounter.probe(&node.path("staging")).await, Answer::Alive(USAGE));
    assert!(!node.is_mounted("stray"));
    assert_eq!(node.mounter.paths().len(), 2);
    watch.abort();
}

/// A container that restarts within a second or two of the engine's death finds its volume.
#[tokio::test(start_paused = true)]
async fn the_end_of_our_engine_is_answered_at_once_and_again_after_a_pause() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    let watch = tokio::spawn(Arc::clone(&node.targets).watch());
    for _ in 0..3 {
        let begun = tokio::time::Instant::now();
        node.mounter.kill_engine();
        while node.mounter.probe(&node.path("staging")).await == Answer::Dead {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        assert!(begun.elapsed() <= std::time::Duration::from_millis(1_100));
    }
    assert_eq!(node.mounter.mounts().len(), 4);
    watch.abort();
}

/// Rule 5: where the volume cannot be mounted again, its paths are at least no longer dead, and are asked for less
/// and less often.
#[tokio::test(start_paused = true)]
async fn paths_of_a_volume_that_another_node_took_are_cleared() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    node.mounter.kill_engine();
    node.mounter.refuse_mounts(Some("published to node n2"));
    node.targets.look().await;
    assert_eq!(node.mounter.paths(), Vec::<PathBuf>::new());
    assert!(node.targets.wants_patience(&Opening::writing(&v1())));
    // Nomad takes the paths away in the end; that needs no engine.
    node.unpublish("target").await.unwrap();
    node.unstage("staging").await.unwrap();
    node.assert_clean();
}

/// Rule 10: Nomad frees the volume for others after an unpublish, so what was written must be in the bucket by then.
#[tokio::test]
async fn an_unpublish_that_cannot_flush_fails_and_a_later_one_flushes() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    node.mounter.store_down(true);
    let failure = node.unpublish("target").await.unwrap_err();
    assert!(failure.to_string().contains("store did not answer"), "{failure}");
    assert!(!node.path("target").exists());
    node.targets.look().await;
    assert!(
        !node.path("target").exists(),
        "the watch does not bring an unpublished path back"
    );
    assert!(
        node.unpublish("target").await.is_err(),
        "and the failure is not forgotten"
    );
    assert_eq!(node.mounter.flushes(), 0);
    node.mounter.store_down(false);
    node.unpublish("target").await.unwrap();
    assert_eq!(node.mounter.flushes(), 1);
    node.mounter.store_down(true);
    assert!(node.unstage("staging").await.is_err());
    node.mounter.store_down(false);
    node.unstage("staging").await.unwrap();
    assert_eq!(node.mounter.flushes(), 2);
    node.assert_clean();
}

/// Rule 10, the other side: what another node has taken can never be flushed, and must not hold the node for ever.
#[tokio::test]
async fn a_volume_that_was_taken_over_is_let_go() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    node.mounter.lose(&v1(), "taken over by n2");
    node.unpublish("target").await.unwrap();
    node.unstage("staging").await.unwrap();
    assert_eq!(node.record(), None);
    assert!(!node.is_mounted("staging") && !node.is_mounted("target"));
}

/// Rule 9: the lease may be taken back and given anew while the mount stays. The volume is opened anew under the new
/// one.
#[tokio::test]
async fn another_lease_opens_the_volume_anew() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    // Nomad finds the staging path mounted and goes straight to publish.
    node.publish("next", 2).await.unwrap();
    let leases: Vec<_> = node.mounter.mounts().iter().map(|spec| spec.lease).collect();
    assert_eq!(leases, [Lease(1), Lease(2)]);
    assert_eq!(
        node.mounter.flushes(),
        1,
        "what was written under the old one was flushed"
    );
    for name in ["staging", "target", "next"] {
        assert_eq!(
            node.mounter.probe(&node.path(name)).await,
            Answer::Alive(USAGE),
            "{name}"
        );
    }
}

#[tokio::test]
async fn a_publish_without_a_stage_is_refused() {
    let node = Node::new();
    let failure = node.publish("target", 1).await.unwrap_err();
    assert!(matches!(failure, DriverError::NotStaged { .. }), "{failure}");
    assert!(node.mounter.mounts().is_empty());
}

#[tokio::test]
async fn a_publish_with_other_options_at_the_same_path_is_refused() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    let mut other = node.place("target", 1);
    other.flags.read_only = true;
    let failure = node.targets.publish(other, &Progress::new()).await.unwrap_err();
    assert!(matches!(failure, DriverError::PublishedOtherwise { .. }), "{failure}");
    node.publish("target", 1).await.unwrap();
}

/// csi-sanity and Nomad both unpublish volumes that were never there; what another volume has at that path stays.
#[tokio::test]
async fn taking_a_volume_from_a_path_where_another_one_is_touches_nothing() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    let other = VolumeId::parse("v2").unwrap();
    node.targets
        .unpublish(&other, &node.path("target"), &Progress::new())
        .await
        .unwrap();
    node.targets
        .unstage(&other, &node.path("staging"), &Progress::new())
        .await
        .unwrap();
    assert!(node.is_mounted("staging") && node.is_mounted("target"));
    node.mounter.mount_foreign(&node.path("disk"), "/dev/sdb1");
    node.unpublish("disk").await.unwrap();
    assert!(node.is_mounted("disk"));
}

#[tokio::test]
async fn a_path_where_something_else_is_mounted_is_refused_by_its_name() {
    let node = Node::new();
    node.mounter.mount_foreign(&node.path("staging"), "/dev/sdb1");
    let failure = node.stage("staging", 1).await.unwrap_err().to_string();
    assert!(failure.contains("/dev/sdb1") && failure.contains("ext4"), "{failure}");
    assert_eq!(node.record(), None, "a stage that failed leaves nothing");
    assert_eq!(node.mounter.paths(), [node.path("staging")]);
}

#[tokio::test]
async fn a_stage_that_the_engine_refuses_leaves_nothing() {
    let node = Node::new();
    node.mounter.refuse_mounts(Some("published to node n2"));
    let failure = node.stage("staging", 1).await.unwrap_err().to_string();
    assert!(failure.contains("published to node n2"), "{failure}");
    node.assert_clean();
    node.mounter.refuse_mounts(None);
    node.stage("staging", 1).await.unwrap();
}

/// Rule 1: a mount that never answers does not hang the call.
#[tokio::test]
async fn a_silent_mount_is_an_error_and_not_a_hang() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.mounter.silence(&node.home());
    let failure = node.publish("target", 1).await.unwrap_err();
    assert!(matches!(failure, DriverError::Silent { .. }), "{failure}");
    assert!(!node.is_mounted("target"));
}

/// Rule 1: while one call of a volume hangs, another one waits and says for what; a third volume is not touched by it.
#[tokio::test(start_paused = true)]
async fn a_call_behind_a_hanging_one_says_what_it_waits_for() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    let held = node.mounter.hold_flushes().await;
    let limit = crate::deadlines::NODE_MAX;
    let first = crate::deadlines::within("NodeUnpublishVolume", limit, |steps| {
        let (targets, path) = (Arc::clone(&node.targets), node.path("target"));
        async move { targets.unpublish(&v1(), &path, &steps).await }
    });
    let text = first.await.unwrap_err().to_string();
    assert!(text.contains("flushing the volume to the bucket"), "{text}");
    let second = crate::deadlines::within("NodePublishVolume", limit, |steps| {
        let (targets, place) = (Arc::clone(&node.targets), node.place("next", 1));
        async move { targets.publish(place, &steps).await }
    });
    let text = second.await.unwrap_err().to_string();
    assert!(
        text.contains("waiting for an earlier call of the same volume"),
        "{text}"
    );
    drop(held);
    node.unpublish("target").await.unwrap();
    assert!(
        !node.is_mounted("next"),
        "work that was given up in the queue never begins"
    );
    node.unstage("staging").await.unwrap();
    node.assert_clean();
}

/// Rule 5: a state file that is damaged is told of and set aside; it stops nothing else.
#[tokio::test]
async fn a_damaged_state_file_is_set_aside() {
    let mut node = Node::new();
    node.stage("staging", 1).await.unwrap();
    let file = node.dir.path().join("state/volumes/v1.json");
    std::fs::write(&file, b"{").unwrap();
    assert!(matches!(
        node.stage("staging", 1).await,
        Err(DriverError::Record { .. })
    ));
    node.restart_plugin().await;
    assert!(file.with_extension("damaged").exists());
    // Without a record the volume can still be taken away, and staged anew.
    node.unstage("staging").await.unwrap();
    node.assert_clean();
    node.stage("staging", 1).await.unwrap();
}

#[tokio::test]
async fn usage_of_an_unknown_volume_or_path_is_told_apart() {
    let node = Node::new();
    let unknown = node.targets.usage(&v1(), &node.path("target")).await;
    assert!(matches!(unknown, Err(DriverError::NoVolume { .. })));
    node.stage("staging", 1).await.unwrap();
    let elsewhere = node.targets.usage(&v1(), &node.path("target")).await;
    assert!(matches!(elsewhere, Err(DriverError::NoPath { .. })));
    node.mounter.kill_engine();
    let dead = node.targets.usage(&v1(), &node.path("staging")).await;
    assert!(matches!(dead, Err(DriverError::Silent { .. })));
}

/// Readers of a multi-node volume outlive the writer beside them: they have a mount of their own, and whoever takes the
/// last writing path away hears that only readers are left.
#[tokio::test]
async fn readers_have_a_mount_of_their_own_beside_a_writer() {
    let node = Node::new();
    let reader = |name: &str| {
        let mut place = node.place(name, 1);
        place.right.read_only = true;
        place
    };
    let steps = Progress::new();
    node.targets.stage(reader("ro-staging"), &steps).await.unwrap();
    node.targets.publish(reader("ro-target"), &steps).await.unwrap();
    node.stage("staging", 1).await.unwrap();
    node.publish("target", 1).await.unwrap();
    let openings: Vec<_> = node.mounter.mounts().into_iter().map(|mount| mount.opening).collect();
    assert_eq!(openings, [Opening::reading(&v1()), Opening::writing(&v1())]);
    let gone = async |name| node.targets.unpublish(&v1(), &node.path(name), &steps).await.unwrap();
    assert_eq!(gone("target").await, Left::Other, "the staging path may write");
    for _ in 0..2 {
        let left = node
            .targets
            .unstage(&v1(), &node.path("staging"), &steps)
            .await
            .unwrap();
        assert_eq!(left, Left::OnlyReaders, "also when it is asked again");
    }
    assert!(node.is_mounted("ro-target") && node.is_mounted("ro-staging"));
    assert_eq!(gone("ro-target").await, Left::Other);
    node.unstage("ro-staging").await.unwrap();
    node.assert_clean();
}

/// Keys are the volume's: a call that brings new ones renews all of its mounts, and none is mounted anew for it.
#[tokio::test]
async fn new_keys_reach_every_mount_of_the_volume() {
    let node = Node::new();
    let place = |name: &str, read_only, id: &str| {
        let mut place = node.place(name, 1);
        place.right.read_only = read_only;
        place.right.credentials = Some(Credentials {
            access_key_id: id.into(),
            secret_access_key: "s".into(),
            session_token: None,
        });
        place
    };
    let steps = Progress::new();
    node.targets.stage(place("ro", true, "old"), &steps).await.unwrap();
    node.targets.stage(place("rw", false, "old"), &steps).await.unwrap();
    node.targets
        .publish(place("target", false, "new"), &steps)
        .await
        .unwrap();
    for (opening, id) in node.mounter.keys() {
        assert_eq!(id.as_deref(), Some("new"), "{opening}");
        let kept = node.targets.records.load(&opening).unwrap().unwrap().credentials;
        assert_eq!(kept.unwrap().access_key_id, "new", "{opening}");
    }
    assert_eq!(node.mounter.mounts().len(), 2);
}

/// CSI, NodePublishVolume: of a volume that is for one writer at one path a second target is refused.
#[tokio::test]
async fn a_second_path_of_a_single_writer_is_refused() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    let place = |name: &str| Place {
        alone: true,
        ..node.place(name, 1)
    };
    for _ in 0..2 {
        node.targets.publish(place("target"), &Progress::new()).await.unwrap();
    }
    let second = node
        .targets
        .publish(place("second"), &Progress::new())
        .await
        .unwrap_err();
    assert!(matches!(second, DriverError::PublishedOnce { .. }), "{second}");
    node.publish("second", 1).await.unwrap();
}

#[tokio::test]
async fn a_path_that_could_lead_elsewhere_is_refused() {
    let node = Node::new();
    for path in ["relative", "/", "/a/../b"] {
        let place = Place {
            path: path.into(),
            ..node.place("staging", 1)
        };
        let failure = node.targets.stage(place, &Progress::new()).await.unwrap_err();
        assert!(matches!(failure, DriverError::Invalid { .. }), "{path}: {failure}");
    }
}
