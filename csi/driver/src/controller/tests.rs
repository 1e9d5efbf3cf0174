//! The controller's rules, on a bucket in memory.

mod keys;

use std::collections::HashMap;

use proto::csi::v1::volume_capability::{AccessType, MountVolume, access_mode::Mode};
use volume::admin::NodeRecord;
use volume::bucket::memory::MemoryBucket;
use volume::clock::Timestamp;

use super::*;
use crate::cluster::fixed::FixedCluster;

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
}

struct World {
    service: ControllerService,
    clusters: ClustersRef,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let clusters: ClustersRef = Arc::new(FixedCluster::new(Arc::new(MemoryBucket::new())));
        for node in ["n1", "n2"] {
            let record = NodeRecord::new(NodeId::new(node).unwrap(), "1", 0);
            clusters
                .admin(None)
                .await
                .unwrap()
                .register_node(&record)
                .await
                .unwrap();
        }
        let service = controller(&clusters, dir.path().join("keys"));
        Self { service, clusters, dir }
    }

    async fn create(&self, name: &str) -> csi::Volume {
        let created = self.service.create_volume(Request::new(creation(name))).await.unwrap();
        created.into_inner().volume.unwrap()
    }

    async fn publish(&self, node: &str) -> Result<HashMap<String, String>, Status> {
        let published = self
            .service
            .controller_publish_volume(Request::new(publication(node)))
            .await?;
        Ok(published.into_inner().publish_context)
    }

    async fn unpublish(&self, volume: &str, node: &str) -> Result<(), Status> {
        let request = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node.into(),
            // Rule 9: Nomad sends none.
            secrets: HashMap::new(),
        };
        self.service.controller_unpublish_volume(Request::new(request)).await?;
        Ok(())
    }

    async fn delete(&self, volume: &str) -> Result<(), Status> {
        let request = csi::DeleteVolumeRequest {
            volume_id: volume.into(),
            secrets: HashMap::new(),
        };
        self.service.delete_volume(Request::new(request)).await?;
        Ok(())
    }

    async fn list(&self, max_entries: i32, token: &str) -> Result<csi::ListVolumesResponse, Status> {
        let request = csi::ListVolumesRequest {
            max_entries,
            starting_token: token.into(),
        };
        Ok(self.service.list_volumes(Request::new(request)).await?.into_inner())
    }
}

fn controller(clusters: &ClustersRef, keys: std::path::PathBuf) -> ControllerService {
    ControllerService::new(Arc::clone(clusters), Keyring::open(keys).unwrap(), Arc::new(Stopped))
}

fn capability(mode: Mode) -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(csi::volume_capability::AccessMode { mode: mode.into() }),
    }
}

fn block() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_type: Some(AccessType::Block(Default::default())),
        ..capability(Mode::SingleNodeWriter)
    }
}

fn creation(name: &str) -> csi::CreateVolumeRequest {
    csi::CreateVolumeRequest {
        name: name.into(),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        // Nomad always sends it, with empty lists.
        accessibility_requirements: Some(csi::TopologyRequirement::default()),
        ..Default::default()
    }
}

fn publication(node: &str) -> csi::ControllerPublishVolumeRequest {
    csi::ControllerPublishVolumeRequest {
        volume_id: "v1".into(),
        node_id: node.into(),
        volume_capability: Some(capability(Mode::SingleNodeWriter)),
        ..Default::default()
    }
}

/// The word of a status code, so that no code stands outside of `grpc.rs`.
fn code(status: &Status) -> String {
    format!("{:?}", status.code())
}

/// Rules 15 and 20, and quirk N12: creation is by name, repeated by retrying users, and has no topology.
#[tokio::test]
async fn ten_creations_of_one_name_are_one_volume_without_a_topology() {
    let world = World::new().await;
    let all = futures::future::join_all((0..10).map(|_| world.create("v1"))).await;
    assert!(all.iter().all(|volume| *volume == all[0]));
    assert_eq!((all[0].volume_id.as_str(), all[0].capacity_bytes), ("v1", 0));
    assert!(all[0].accessible_topology.is_empty());
    let larger = csi::CreateVolumeRequest {
        capacity_range: Some(csi::CapacityRange {
            required_bytes: 1 << 30,
            limit_bytes: 1 << 30,
        }),
        ..creation("v1")
    };
    let refused = world.service.create_volume(Request::new(larger)).await.unwrap_err();
    assert_eq!(code(&refused), "AlreadyExists", "{refused}");
}

#[tokio::test]
async fn what_a_volume_cannot_be_created_as_is_named() {
    let world = World::new().await;
    let with = |change: fn(&mut csi::CreateVolumeRequest)| {
        let mut request = creation("v1");
        change(&mut request);
        request
    };
    for (request, word) in [
        (with(|r| r.name.clear()), "name"),
        (with(|r| r.name = "x".repeat(129)), "name"),
        (with(|r| r.volume_capabilities.clear()), "volume_capabilities"),
        (with(|r| r.volume_capabilities = vec![block()]), "block-device"),
        (
            with(|r| drop(r.parameters.insert("durabilty".into(), "remote".into()))),
            "durabilty",
        ),
        (
            with(|r| drop(r.parameters.insert("durability".into(), "none".into()))),
            "durability",
        ),
        (
            with(|r| drop(r.secrets.insert("key".into(), "s3cr3t".into()))),
            "secrets.key",
        ),
        (
            with(|r| r.volume_content_source = Some(Default::default())),
            "volume_content_source",
        ),
        (
            with(|r| {
                r.capacity_range = Some(csi::CapacityRange {
                    required_bytes: -1,
                    limit_bytes: 0,
                })
            }),
            "required_bytes",
        ),
        (
            with(|r| {
                r.capacity_range = Some(csi::CapacityRange {
                    required_bytes: 2,
                    limit_bytes: 1,
                })
            }),
            "capacity",
        ),
    ] {
        let refused = world.service.create_volume(Request::new(request)).await.unwrap_err();
        assert_eq!(code(&refused), "InvalidArgument", "{refused}");
        assert!(refused.message().contains(word), "{word} in {refused}");
        assert!(!refused.message().contains("s3cr3t"));
    }
    assert!(world.list(0, "").await.unwrap().entries.is_empty());
}

/// Rule 8: publishing is the only place to fence, and FAILED_PRECONDITION makes Nomad wait for the other node to let
/// go.
#[tokio::test]
async fn a_volume_is_published_to_one_node_at_a_time() {
    let world = World::new().await;
    world.create("v1").await;
    let first = world.publish("n1").await.unwrap();
    let refused = world.publish("n2").await.unwrap_err();
    assert_eq!(code(&refused), "FailedPrecondition");
    assert!(refused.message().contains("n1"), "it names the holder: {refused}");
    // Rule 20: again is the same.
    for _ in 0..10 {
        assert_eq!(world.publish("n1").await.unwrap(), first);
    }
    world.unpublish("v1", "n1").await.unwrap();
    let second = world.publish("n2").await.unwrap();
    assert_ne!(second["lease"], first["lease"], "a lease is never given twice");
}

/// Rule 12: Nomad mixes readers and writers of one node; none of them meets ALREADY_EXISTS.
#[tokio::test]
async fn readers_and_writers_of_one_node_share_its_lease() {
    let world = World::new().await;
    world.create("v1").await;
    let writer = world.publish("n1").await.unwrap();
    let reader = csi::ControllerPublishVolumeRequest {
        readonly: true,
        ..publication("n1")
    };
    let reader = world
        .service
        .controller_publish_volume(Request::new(reader))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(reader.publish_context, writer);
    let other_mode = csi::ControllerPublishVolumeRequest {
        volume_capability: Some(capability(Mode::SingleNodeReaderOnly)),
        ..publication("n1")
    };
    let other_mode = world
        .service
        .controller_publish_volume(Request::new(other_mode))
        .await
        .unwrap()
        .into_inner();
    assert_eq!(other_mode.publish_context["access"], "read-only");
    assert_eq!(other_mode.publish_context["lease"], writer["lease"]);
    let offered = world
        .service
        .controller_get_capabilities(Request::new(Default::default()))
        .await
        .unwrap();
    assert!(!format!("{offered:?}").contains("PublishReadonly"));
}

/// Rule 9: unpublishing has no secrets, may come first, twice, for a dead node or for nothing at all; it always
/// converges.
#[tokio::test]
async fn unpublishing_always_converges() {
    let world = World::new().await;
    world.create("v1").await;
    world.publish("n1").await.unwrap();
    for (volume, node) in [
        ("v1", "n2"),
        ("v1", "never-heard-of"),
        ("none", "n1"),
        ("Not/An/Id", "n1"),
        ("v1", "n1"),
        ("v1", "n1"),
    ] {
        world.unpublish(volume, node).await.unwrap();
    }
    world.publish("n2").await.unwrap();
    // CSI: without a node, from all nodes.
    world.unpublish("v1", "").await.unwrap();
    world.publish("n1").await.unwrap();
}

/// Rule 7: `nomad volume delete` asks us before it looks at its own claims.
#[tokio::test]
async fn a_volume_in_use_is_not_deleted() {
    let world = World::new().await;
    world.create("v1").await;
    world.publish("n1").await.unwrap();
    let refused = world.delete("v1").await.unwrap_err();
    assert_eq!(code(&refused), "FailedPrecondition");
    assert!(refused.message().contains("n1"), "{refused}");
    world.unpublish("v1", "n1").await.unwrap();
    for volume in ["v1", "v1", "none", "Not/An/Id"] {
        world.delete(volume).await.unwrap();
    }
    assert!(world.list(0, "").await.unwrap().entries.is_empty());
}

#[tokio::test]
async fn an_unknown_volume_or_node_is_not_found() {
    let world = World::new().await;
    let missing = world.publish("n1").await.unwrap_err();
    assert_eq!(code(&missing), "NotFound");
    world.create("v1").await;
    for node in ["n3", "bad\u{1}node"] {
        let missing = world.publish(node).await.unwrap_err();
        assert_eq!(code(&missing), "NotFound", "{missing}");
    }
    let validation = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: "none".into(),
        volume_capabilities: vec![capability(Mode::SingleNodeWriter)],
        ..Default::default()
    };
    let missing = world
        .service
        .validate_volume_capabilities(Request::new(validation))
        .await
        .unwrap_err();
    assert_eq!(code(&missing), "NotFound");
}

/// Rule 13: Nomad takes an answer without `confirmed` for a yes, so a volume that cannot be is refused outright.
#[tokio::test]
async fn validation_echoes_what_holds_and_refuses_what_does_not() {
    let world = World::new().await;
    world.create("v1").await;
    let request = csi::ValidateVolumeCapabilitiesRequest {
        volume_id: "v1".into(),
        volume_context: [("name".to_owned(), "v1".to_owned())].into(),
        volume_capabilities: vec![
            capability(Mode::SingleNodeWriter),
            capability(Mode::SingleNodeReaderOnly),
        ],
        ..Default::default()
    };
    let answer = world
        .service
        .validate_volume_capabilities(Request::new(request.clone()))
        .await
        .unwrap();
    let confirmed = answer.into_inner().confirmed.unwrap();
    assert_eq!(confirmed.volume_capabilities, request.volume_capabilities);
    assert_eq!(confirmed.volume_context, request.volume_context);
    let device = csi::ValidateVolumeCapabilitiesRequest {
        volume_capabilities: vec![block()],
        ..request
    };
    let refused = world
        .service
        .validate_volume_capabilities(Request::new(device))
        .await
        .unwrap_err();
    assert!(refused.message().contains("block-device"), "{refused}");
}

#[tokio::test]
async fn volumes_are_listed_by_pages_with_their_nodes() {
    let world = World::new().await;
    for name in ["v1", "v2", "v3"] {
        world.create(name).await;
    }
    world.publish("n1").await.unwrap();
    let first = world.list(2, "").await.unwrap();
    assert_eq!(first.entries.len(), 2);
    assert_eq!(first.entries[0].status.as_ref().unwrap().published_node_ids, ["n1"]);
    let rest = world.list(2, &first.next_token).await.unwrap();
    assert_eq!((rest.entries.len(), rest.next_token.as_str()), (1, ""));
    // A word that could be a volume's id is still no token.
    let refused = world.list(0, "invalid-token").await.unwrap_err();
    assert_eq!(code(&refused), "Aborted");
    assert!(world.list(-1, "").await.is_err());
}

fn expansion(required_bytes: i64, limit_bytes: i64) -> csi::ControllerExpandVolumeRequest {
    csi::ControllerExpandVolumeRequest {
        volume_id: "v1".into(),
        capacity_range: Some(csi::CapacityRange {
            required_bytes,
            limit_bytes,
        }),
        ..Default::default()
    }
}

/// Quirk N15: Nomad sends an expansion again whose node step failed, and then sees the size that there is.
#[tokio::test]
async fn a_volume_grows_to_what_is_asked_once_and_never_shrinks() {
    let world = World::new().await;
    let sized = csi::CreateVolumeRequest {
        capacity_range: Some(csi::CapacityRange {
            required_bytes: 1 << 20,
            limit_bytes: 0,
        }),
        ..creation("v1")
    };
    world.service.create_volume(Request::new(sized)).await.unwrap();
    let expand = async |required, limit| {
        let request = Request::new(expansion(required, limit));
        world.service.controller_expand_volume(request).await
    };
    let same = futures::future::join_all((0..10).map(|_| expand(3 << 20, 0))).await;
    for answer in same {
        let answer = answer.unwrap().into_inner();
        assert_eq!(
            (answer.capacity_bytes, answer.node_expansion_required),
            (3 << 20, false)
        );
    }
    let smaller = expand(2 << 20, 0).await.unwrap().into_inner();
    assert_eq!(smaller.capacity_bytes, 3 << 20, "it never shrinks");
    assert_eq!(code(&expand(1 << 20, 2 << 20).await.unwrap_err()), "OutOfRange");
    assert_eq!(code(&expand(0, 0).await.unwrap_err()), "InvalidArgument");
    let missing = csi::ControllerExpandVolumeRequest {
        volume_id: "v2".into(),
        ..expansion(1, 0)
    };
    let missing = world.service.controller_expand_volume(Request::new(missing)).await;
    assert_eq!(code(&missing.unwrap_err()), "NotFound");
    let listed = world.list(0, "").await.unwrap();
    assert_eq!(listed.entries[0].volume.as_ref().unwrap().capacity_bytes, 3 << 20);
}
