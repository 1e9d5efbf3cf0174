//! With whose keys the controller asks the store.

use std::sync::Mutex;

use super::*;
use crate::cluster::Clusters;

/// Rule 9: keys that came with an earlier call serve for the calls without; they are in a file of the owner's alone.
#[tokio::test]
async fn keys_of_a_volume_are_kept_until_it_is_deleted() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new().await;
    let keys = [("access_key_id", "pub"), ("secret_access_key", "s3cr3t")];
    let request = csi::CreateVolumeRequest {
        secrets: keys.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..creation("v1")
    };
    world.service.create_volume(Request::new(request)).await.unwrap();
    let file = world.dir.path().join("keys/v1.json");
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);
    let another = controller(&world.clusters, world.dir.path().join("keys"));
    let kept = another.keyring.find(&VolumeId::parse("v1").unwrap()).unwrap().unwrap();
    assert_eq!(kept.secret_access_key, "s3cr3t");
    world.delete("v1").await.unwrap();
    assert!(!file.exists());
}

/// Remembers the key ids that calls were made with.
#[derive(Debug)]
struct Watched {
    clusters: ClustersRef,
    used: Mutex<Vec<Option<String>>>,
}

#[async_trait]
impl Clusters for Watched {
    async fn admin(&self, keys: Option<&Credentials>) -> Result<Arc<Admin>, DriverError> {
        let id = keys.map(|keys| keys.access_key_id.clone());
        self.used.lock().unwrap().push(id);
        self.clusters.admin(None).await
    }
}

fn secrets(id: &str) -> HashMap<String, String> {
    let keys = [("access_key_id", id), ("secret_access_key", "s3cr3t")];
    keys.map(|(name, value)| (name.to_owned(), value.to_owned())).into()
}

/// Nomad deletes a snapshot with the secrets of its command line, which are none as a rule, and maybe when the volume has gone:
/// then those that the volume had when the snapshot was made serve, also a plugin that starts anew, until the snapshot is
/// gone. Secrets that a call brings go before them.
#[tokio::test]
async fn a_snapshot_is_deleted_with_the_keys_that_it_was_made_with() {
    let world = World::new().await;
    let watched = Arc::new(Watched {
        clusters: Arc::clone(&world.clusters),
        used: Mutex::default(),
    });
    let clusters: ClustersRef = Arc::clone(&watched) as ClustersRef;
    let keys = world.dir.path().join("keys");
    let service = controller(&clusters, keys.clone());
    let created = csi::CreateVolumeRequest {
        secrets: secrets("of-volume"),
        ..creation("v1")
    };
    service.create_volume(Request::new(created)).await.unwrap();
    for name in ["s1", "s2"] {
        let snapshot = csi::CreateSnapshotRequest {
            source_volume_id: "v1".into(),
            name: name.into(),
            ..Default::default()
        };
        service.create_snapshot(Request::new(snapshot)).await.unwrap();
    }
    let deletion = csi::DeleteVolumeRequest {
        volume_id: "v1".into(),
        ..Default::default()
    };
    service.delete_volume(Request::new(deletion)).await.unwrap();
    let service = controller(&clusters, keys.clone());
    for (name, given, used) in [
        ("s1", HashMap::new(), Some("of-volume")),
        ("s2", secrets("of-caller"), Some("of-caller")),
        ("s1", HashMap::new(), None),
    ] {
        let deletion = csi::DeleteSnapshotRequest {
            snapshot_id: name.into(),
            secrets: given,
        };
        service.delete_snapshot(Request::new(deletion)).await.unwrap();
        let last = watched.used.lock().unwrap().last().unwrap().clone();
        assert_eq!(last.as_deref(), used, "{name}");
    }
    assert_eq!(
        std::fs::read_dir(&keys).unwrap().count(),
        0,
        "no key outlives what it is for"
    );
}
