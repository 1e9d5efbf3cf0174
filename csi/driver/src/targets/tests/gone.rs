//! What ended while no plugin was there to be told: allocations, and engines.

use std::time::Duration;

use super::*;

/// Stages, and publishes for two allocations where Nomad would; returns their target paths.
async fn two_allocations(node: &Node) -> [PathBuf; 2] {
    node.stage("staging", 1).await.unwrap();
    let targets = ["alloc-1", "alloc-2"].map(|alloc| node.path("per-alloc").join(alloc).join("v1/rw"));
    for target in &targets {
        let mut place = node.place("target", 1);
        place.path.clone_from(target);
        node.targets.publish(place, &Progress::new()).await.unwrap();
    }
    targets
}

/// After a reboot nothing is mounted. What Nomad still has a folder for is mounted again; what it has not, it will never
/// ask for.
#[tokio::test]
async fn target_paths_of_allocations_that_are_gone_are_forgotten_and_others_are_not() {
    let mut node = Node::new();
    let targets = two_allocations(&node).await;
    for path in node.mounter.paths().iter().rev() {
        node.mounter.detach(path).await.unwrap();
    }
    node.mounter.kill_engine();
    std::fs::remove_dir_all(node.path("per-alloc/alloc-1")).unwrap();
    node.restart_plugin().await;
    let mounted = node.mounter.paths();
    assert!(
        !mounted.contains(&targets[0]) && mounted.contains(&targets[1]),
        "{mounted:?}"
    );
    assert!(!targets[0].exists(), "its folder is not made again");
    let record = node.record().unwrap();
    assert_eq!(record.published.keys().collect::<Vec<_>>(), [&targets[1]]);

    // Nomad's unpublish of what is forgotten still succeeds.
    node.targets
        .unpublish(&v1(), &targets[0], &Progress::new())
        .await
        .unwrap();
    node.targets
        .unpublish(&v1(), &targets[1], &Progress::new())
        .await
        .unwrap();
    node.unstage("staging").await.unwrap();
    node.assert_clean();
}

/// A disk of Nomad's that is not mounted yet looks as if everything had ended.
#[tokio::test]
async fn nothing_is_forgotten_while_nomads_own_folder_is_missing() {
    let mut node = Node::new();
    let targets = two_allocations(&node).await;
    for path in node.mounter.paths().iter().rev() {
        node.mounter.detach(path).await.unwrap();
    }
    std::fs::remove_dir_all(node.path("per-alloc")).unwrap();
    node.restart_plugin().await;
    assert_eq!(node.record().unwrap().published.len(), targets.len());
}

/// A node whose Nomad has its folders where it has them by itself; returns `data_dir`, too.
fn client() -> (Node, PathBuf) {
    let mut node = Node::new();
    let data_dir = node.dir.path().canonicalize().unwrap().join("data");
    let root = data_dir.join("client/csi/node/pannier");
    std::fs::create_dir_all(&root).unwrap();
    let folders = Folders {
        state: node.dir.path().join("state"),
        staging_root: Some(root),
    };
    node.targets = Targets::open(Arc::clone(&node.mounter) as MounterRef, folders).unwrap();
    (node, data_dir)
}

/// What Nomad does for an allocation that comes, with a folder of its own or without; returns its target path.
async fn allocation(node: &Node, data_dir: &Path, name: &str, has_folder: bool) -> PathBuf {
    if has_folder {
        std::fs::create_dir_all(data_dir.join("alloc").join(name)).unwrap();
    }
    let root = data_dir.join("client/csi/node/pannier");
    let staging = root.join("staging/default/v1/rw");
    let target = root.join("per-alloc").join(name).join("v1/rw");
    std::fs::create_dir_all(&staging).unwrap();
    for (path, is_target) in [(staging, false), (target.clone(), true)] {
        let mut place = node.place("", 1);
        place.path = path;
        let steps = Progress::new();
        match is_target {
            true => node.targets.publish(place, &steps).await.unwrap(),
            false => node.targets.stage(place, &steps).await.unwrap(),
        }
    }
    target
}

/// Nomad forgets to unpublish while the plugin's job is away. When it has collected the allocation nobody uses the target;
/// with the last one the volume goes from the node.
#[tokio::test]
async fn a_target_of_an_allocation_that_nomad_collected_is_unpublished() {
    let (node, data_dir) = client();
    let first = allocation(&node, &data_dir, "a1", true).await;
    let second = allocation(&node, &data_dir, "a2", true).await;
    node.targets.look().await;
    assert!([&first, &second].iter().all(|path| node.mounter.paths().contains(path)));
    std::fs::remove_dir(data_dir.join("alloc/a1")).unwrap();
    node.targets.look().await;
    let mounted = node.mounter.paths();
    assert!(!mounted.contains(&first) && mounted.contains(&second), "{mounted:?}");
    assert_eq!(mounted.len(), 3, "home, staging and the other target: {mounted:?}");
    std::fs::remove_dir(data_dir.join("alloc/a2")).unwrap();
    node.targets.look().await;
    node.assert_clean();
}

/// Where allocations have their folders elsewhere, or where all of them are missing, nothing is known of their end.
#[tokio::test]
async fn an_allocation_without_a_folder_that_was_seen_keeps_its_target() {
    let (node, data_dir) = client();
    let elsewhere = allocation(&node, &data_dir, "a1", false).await;
    let target = allocation(&node, &data_dir, "a2", true).await;
    node.targets.look().await;
    std::fs::remove_dir_all(data_dir.join("alloc")).unwrap();
    node.targets.look().await;
    assert!(
        [&elsewhere, &target]
            .iter()
            .all(|path| node.mounter.paths().contains(path))
    );
    assert_eq!(
        node.record().unwrap().of_allocations.iter().collect::<Vec<_>>(),
        [&target]
    );
}

/// Nomad makes two folders for each allocation and volume, and leaves them for ever.
#[tokio::test]
async fn folders_of_an_allocation_go_with_its_last_target() {
    let (node, data_dir) = client();
    let target = allocation(&node, &data_dir, "a1", true).await;
    let targets = data_dir.join("client/csi/node/pannier/per-alloc");
    let other = targets.join("a1/v2");
    std::fs::create_dir(&other).unwrap();
    let unpublish = async || node.targets.unpublish(&v1(), &target, &Progress::new()).await.unwrap();
    unpublish().await;
    assert!(!targets.join("a1/v1").exists() && other.exists());
    std::fs::remove_dir(&other).unwrap();
    let again = allocation(&node, &data_dir, "a1", true).await;
    assert_eq!(again, target);
    unpublish().await;
    assert!(!targets.join("a1").exists() && targets.exists());
}

/// Regression: of a volume that is mounted for writing and for readers besides only the first mount was repaired, at every look
/// again, and readers had a dead mount for ever.
#[tokio::test(start_paused = true)]
async fn regression_readers_beside_a_writer_have_their_mount_back_after_the_engines_death() {
    let node = Node::new();
    let mut reader = node.place("reader", 1);
    reader.right.read_only = true;
    node.targets.stage(reader, &Progress::new()).await.unwrap();
    node.stage("staging", 1).await.unwrap();
    node.mounter.kill_engine();
    node.targets.look().await;
    for name in ["staging", "reader"] {
        let answer = node.mounter.probe(&node.path(name)).await;
        assert_eq!(answer, Answer::Alive(USAGE), "{name}");
    }
}

/// Nomad forgets to unstage too where the plugin was away while the last allocation went. The time begins anew with each use.
#[tokio::test(start_paused = true)]
async fn a_volume_that_stays_staged_for_nobody_is_unstaged_after_five_minutes() {
    let node = Node::new();
    node.stage("staging", 1).await.unwrap();
    node.targets.look().await;
    tokio::time::advance(Duration::from_secs(299)).await;
    node.publish("target", 1).await.unwrap();
    node.unpublish("target").await.unwrap();
    node.targets.look().await;
    tokio::time::advance(Duration::from_secs(299)).await;
    node.targets.look().await;
    assert!(
        node.is_mounted("staging"),
        "Nomad has five minutes from the last use on"
    );
    tokio::time::advance(Duration::from_secs(1)).await;
    node.targets.look().await;
    assert!(!node.is_mounted("staging"));
    node.assert_clean();
    assert_eq!(
        node.targets.left(&v1()).unwrap(),
        Left::Nothing,
        "so its right is given back"
    );
    node.unstage("staging").await.unwrap();
    node.stage("staging", 2).await.unwrap();
    node.publish("target", 2).await.unwrap();
    node.targets.look().await;
    tokio::time::advance(Duration::from_secs(3_600)).await;
    node.targets.look().await;
    assert!(node.is_mounted("staging"), "an allocation uses it");
}
