//! Allocations that ended while no plugin was there to be told.

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
