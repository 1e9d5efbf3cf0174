//! The admin verbs on a bucket in memory: each promise from its good and its bad side.

use bytes::Bytes;

use super::*;
use crate::bucket::Bucket;
use crate::bucket::memory::MemoryBucket;
use crate::head::{AccessMode, Claim};
use crate::ids::Lease;
use crate::snapshot::abandon;
use crate::volume_id::{NameError, NodeId};

struct Cluster {
    memory: Arc<MemoryBucket>,
    admin: Admin,
}

impl Cluster {
    async fn new() -> Self {
        let memory = Arc::new(MemoryBucket::new());
        let bucket: BucketRef = memory.clone();
        let admin = Admin::new(bucket, Uuid::from_u128(1));
        for node in ["a", "b", "n1", "n2"] {
            admin
                .register_node(&NodeRecord::new(node_id(node), "1", 0))
                .await
                .unwrap();
        }
        Self { memory, admin }
    }

    fn head_file(&self, volume: &VolumeId) -> HeadFile {
        HeadFile::new(self.admin.volume_root(volume), HeadWriter::new(Uuid::from_u128(2)))
    }

    fn volume_keys(&self) -> Vec<String> {
        self.memory
            .keys()
            .into_iter()
            .filter(|key| !key.starts_with("n/"))
            .collect()
    }
}

fn node_id(text: &str) -> NodeId {
    NodeId::new(text).unwrap()
}

fn create(name: &str, required_bytes: u64, limit_bytes: u64) -> CreateVolume {
    CreateVolume {
        name: name.to_owned(),
        uuid: Uuid::from_u128(0xabc),
        capacity: CapacityRange {
            required_bytes,
            limit_bytes,
        },
        parameters: Parameters::default(),
        now: Timestamp::default(),
    }
}

fn publish(volume: &VolumeId, node: &str, read_only: bool) -> PublishVolume {
    let mode = if read_only {
        AccessMode::SingleNodeReaderOnly
    } else {
        AccessMode::SingleNodeWriter
    };
    PublishVolume {
        volume: volume.clone(),
        node_id: node_id(node),
        read_only,
        mode,
        now: Timestamp::default(),
    }
}

fn claim(node: &str, lease: Option<Lease>) -> Claim {
    Claim {
        node_id: node_id(node),
        session: Uuid::from_u128(9),
        lease,
        now: Timestamp::default(),
    }
}

#[tokio::test]
async fn creating_the_same_volume_ten_times_creates_one() {
    let cluster = Cluster::new().await;
    let first = cluster.admin.create(&create("Größe", 10, 0)).await.unwrap();
    assert_eq!(first.capacity_bytes, 10);
    for _ in 0..9 {
        let again = CreateVolume {
            uuid: Uuid::new_v4(),
            ..create("Größe", 5, 20)
        };
        assert_eq!(cluster.admin.create(&again).await.unwrap(), first);
    }
    assert_eq!(
        cluster.volume_keys(),
        [format!("v/{}/head", first.volume)],
        "and no trace of the probe"
    );
    assert_eq!(cluster.admin.get(&first.volume).await.unwrap(), first);
}

#[tokio::test]
async fn a_volume_of_another_size_under_the_same_name_is_refused() {
    let cluster = Cluster::new().await;
    cluster.admin.create(&create("v", 10, 0)).await.unwrap();
    for (required, limit) in [(11, 0), (0, 9)] {
        let error = cluster.admin.create(&create("v", required, limit)).await.unwrap_err();
        assert!(
            matches!(error, AdminError::AlreadyExists { what: "capacity", .. }),
            "{error}"
        );
    }
    let error = cluster.admin.create(&create("w", 10, 9)).await.unwrap_err();
    assert!(matches!(error, AdminError::Capacity { .. }), "{error}");
    let error = cluster.admin.create(&create("", 0, 0)).await.unwrap_err();
    assert!(matches!(error, AdminError::Name(NameError::Empty)), "{error}");
}

#[tokio::test]
async fn racing_creators_all_get_the_same_volume() {
    let cluster = Cluster::new().await;
    let creators = (0..16).map(|n| {
        let request = CreateVolume {
            uuid: Uuid::from_u128(n),
            ..create("v", 0, 0)
        };
        let admin = &cluster.admin;
        async move { admin.create(&request).await.unwrap().uuid }
    });
    let uuids = futures::future::join_all(creators).await;
    assert!(uuids.iter().all(|uuid| *uuid == uuids[0]), "{uuids:?}");
}

#[tokio::test]
async fn a_list_has_every_volume_once_whatever_its_pages() {
    let cluster = Cluster::new().await;
    // '.' and '-' sort before '/', '0' after it: the places where a start inside a folder could go wrong.
    let names = ["a", "a.b", "a-b", "a0", "a00", "ab", "b", "Ü"];
    let mut ids = Vec::new();
    for name in names {
        ids.push(cluster.admin.create(&create(name, 0, 0)).await.unwrap().volume);
    }
    ids.sort_by_key(|id| format!("{id}/"));
    for page_max in [0, 1, 2, 3, 7, 8, 9] {
        let (mut listed, mut token) = (Vec::new(), None);
        loop {
            let page = cluster.admin.list(token.as_deref(), page_max).await.unwrap();
            assert!(page_max == 0 || page.volumes.len() <= page_max);
            listed.extend(page.volumes.into_iter().map(|row| row.volume));
            token = page.next;
            if token.is_none() {
                break;
            }
        }
        assert_eq!(listed, ids, "pages of {page_max}");
    }
    let error = cluster.admin.list(Some("../x"), 0).await.unwrap_err();
    assert!(matches!(error, AdminError::PageToken { .. }), "{error}");
}

#[tokio::test]
async fn a_damaged_head_is_listed_as_such_and_hides_no_other() {
    let cluster = Cluster::new().await;
    cluster.admin.create(&create("b", 0, 0)).await.unwrap();
    cluster
        .memory
        .put_if_absent("v/a/head", Bytes::from_static(b"rubbish"))
        .await
        .unwrap();
    cluster
        .memory
        .put_if_absent("v/c/x", Bytes::from_static(b"no head"))
        .await
        .unwrap();
    let page = cluster.admin.list(None, 0).await.unwrap();
    let rows: Vec<_> = page
        .volumes
        .iter()
        .map(|row| (row.volume.as_str(), row.head.is_ok()))
        .collect();
    assert_eq!(rows, [("a", false), ("b", true)]);
}

#[tokio::test]
async fn a_published_volume_is_kept_until_it_is_unpublished() {
    let cluster = Cluster::new().await;
    let volume = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
    cluster.admin.publish(&publish(&volume, "a", false)).await.unwrap();
    let error = cluster.admin.delete(&volume, Led::Ignore).await.unwrap_err();
    assert!(
        matches!(&error, AdminError::InUse { by, .. } if by.contains("node a")),
        "{error}"
    );
    for _ in 0..10 {
        cluster.admin.unpublish(&volume, &node_id("a")).await.unwrap();
    }
    for _ in 0..10 {
        cluster.admin.delete(&volume, Led::Keep).await.unwrap();
    }
    assert_eq!(cluster.volume_keys(), Vec::<String>::new());
    cluster.admin.unpublish(&volume, &node_id("a")).await.unwrap();
    let error = cluster.admin.get(&volume).await.unwrap_err();
    assert!(matches!(error, AdminError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_second_node_is_refused_by_the_name_of_the_first() {
    let cluster = Cluster::new().await;
    let volume = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
    let first = cluster.admin.publish(&publish(&volume, "a", false)).await.unwrap();
    let error = cluster.admin.publish(&publish(&volume, "b", true)).await.unwrap_err();
    assert!(
        matches!(&error, AdminError::PublishedElsewhere { node_id, .. } if node_id.as_str() == "a"),
        "{error}"
    );

    cluster.admin.unpublish(&volume, &node_id("b")).await.unwrap();
    assert_eq!(
        cluster.admin.publish(&publish(&volume, "a", false)).await.unwrap(),
        first,
        "publishing is idempotent"
    );
    cluster.admin.unpublish(&volume, &node_id("a")).await.unwrap();
    let second = cluster.admin.publish(&publish(&volume, "b", false)).await.unwrap();
    assert!(second > first, "a lease is never given twice");
}

#[tokio::test]
async fn a_node_keeps_its_lease_and_its_widest_right() {
    let cluster = Cluster::new().await;
    let volume = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
    let lease = cluster.admin.publish(&publish(&volume, "a", true)).await.unwrap();
    for (asked, kept) in [(true, true), (false, false), (true, false)] {
        assert_eq!(
            cluster.admin.publish(&publish(&volume, "a", asked)).await.unwrap(),
            lease
        );
        let head = cluster.admin.get(&volume).await.unwrap();
        assert_eq!(head.publication(&node_id("a")).unwrap().read_only, kept);
        assert_eq!(head.publications.len(), 1);
    }
}

#[tokio::test]
async fn nothing_is_published_to_an_unknown_node_or_from_an_unknown_volume() {
    let cluster = Cluster::new().await;
    let volume = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
    let error = cluster
        .admin
        .publish(&publish(&volume, "nobody", false))
        .await
        .unwrap_err();
    assert!(matches!(error, AdminError::NoNode { .. }), "{error}");
    let unknown = VolumeId::parse("unknown").unwrap();
    let error = cluster
        .admin
        .publish(&publish(&unknown, "nobody", false))
        .await
        .unwrap_err();
    assert!(matches!(error, AdminError::NotFound { .. }), "{error}");
    let error = cluster.admin.set_capacity(&unknown, 1).await.unwrap_err();
    assert!(matches!(error, AdminError::NotFound { .. }), "{error}");
}

#[tokio::test]
async fn a_revoked_node_cannot_take_the_volume_back() {
    let cluster = Cluster::new().await;
    let volume = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
    let lease = cluster.admin.publish(&publish(&volume, "a", false)).await.unwrap();
    let head = cluster.head_file(&volume);
    head.take_over(&claim("a", Some(lease))).await.unwrap();
    cluster.admin.unpublish(&volume, &node_id("a")).await.unwrap();
    let error = head.take_over(&claim("a", Some(lease))).await.unwrap_err();
    assert!(matches!(error, HeadError::NoLease { .. }), "{error}");
    // The node died without closing: its lease is gone, so the volume may be deleted.
    cluster.admin.delete(&volume, Led::Keep).await.unwrap();
}

#[tokio::test]
async fn a_volume_mounted_by_hand_is_deleted_only_on_demand() {
    let cluster = Cluster::new().await;
    let volume = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
    cluster.head_file(&volume).take_over(&claim("a", None)).await.unwrap();
    let error = cluster.admin.delete(&volume, Led::Keep).await.unwrap_err();
    assert!(
        matches!(&error, AdminError::InUse { by, .. } if by.contains("by hand")),
        "{error}"
    );
    cluster.admin.delete(&volume, Led::Ignore).await.unwrap();
}

/// Goal: a deletion that stopped anywhere is finished by the next. Method: stop it after its first step by hand.
#[tokio::test]
async fn a_deletion_that_stopped_half_way_is_finished_and_blocks_the_name_until_then() {
    let cluster = Cluster::new().await;
    let head = cluster.admin.create(&create("v", 0, 0)).await.unwrap();
    let root = cluster.admin.volume_root(&head.volume);
    for n in 0..40 {
        root.put_if_absent(&format!("{}j/1/{n}", head.data_prefix()), Bytes::from_static(b"x"))
            .await
            .unwrap();
    }
    let tombstone = |head: &mut Head| {
        head.deleting = true;
        Ok::<_, HeadError>(())
    };
    cluster.head_file(&head.volume).update(tombstone).await.unwrap();
    let error = cluster.admin.create(&create("v", 0, 0)).await.unwrap_err();
    assert!(matches!(error, AdminError::Deleting { .. }), "{error}");
    assert!(cluster.admin.list(None, 0).await.unwrap().volumes.is_empty());
    let error = cluster
        .head_file(&head.volume)
        .take_over(&claim("a", None))
        .await
        .unwrap_err();
    assert!(matches!(error, HeadError::Deleting { .. }), "{error}");

    cluster.admin.delete(&head.volume, Led::Keep).await.unwrap();
    assert_eq!(cluster.volume_keys(), Vec::<String>::new());
}

/// Goal: a deletion that is still running somewhere never reaches the next volume of the same name.
#[tokio::test]
async fn a_late_deletion_leaves_the_next_volume_of_the_name_alone() {
    let cluster = Cluster::new().await;
    let old = cluster.admin.create(&create("v", 0, 0)).await.unwrap();
    let file = cluster.head_file(&old.volume);
    let tombstone = |head: &mut Head| {
        head.deleting = true;
        Ok::<_, HeadError>(())
    };
    let (late, ()) = file.update(tombstone).await.unwrap();
    cluster.admin.delete(&old.volume, Led::Keep).await.unwrap();
    let new = cluster
        .admin
        .create(&CreateVolume {
            uuid: Uuid::from_u128(0xdef),
            ..create("v", 0, 0)
        })
        .await
        .unwrap();
    let root = cluster.admin.volume_root(&new.volume);
    root.put_if_absent(&format!("{}j/1/1", new.data_prefix()), Bytes::from_static(b"x"))
        .await
        .unwrap();

    abandon(&root, &HeadWriter::new(Uuid::from_u128(9)), &late)
        .await
        .unwrap();
    assert!(matches!(file.delete(&late).await, Err(HeadError::Contended)));
    assert_eq!(cluster.admin.get(&new.volume).await.unwrap().uuid, new.uuid);
    assert_eq!(cluster.volume_keys().len(), 2, "head and data are there");
}

#[tokio::test]
async fn a_node_registers_once_and_is_forgotten_on_demand() {
    let cluster = Cluster::new().await;
    cluster
        .admin
        .register_node(&NodeRecord::new(node_id("a"), "1", 99))
        .await
        .unwrap();
    assert_eq!(
        cluster.admin.node(&node_id("a")).await.unwrap().registered_unix_ms,
        0,
        "nothing changed"
    );
    cluster
        .admin
        .register_node(&NodeRecord::new(node_id("a"), "2", 99))
        .await
        .unwrap();
    assert_eq!(cluster.admin.node(&node_id("a")).await.unwrap().version, "2");
    assert_eq!(cluster.admin.nodes().await.unwrap().len(), 4);
    cluster.admin.forget_node(&node_id("a")).await.unwrap();
    let error = cluster.admin.node(&node_id("a")).await.unwrap_err();
    assert!(matches!(error, AdminError::NoNode { .. }), "{error}");
}

fn in_mode(volume: &VolumeId, node: &str, mode: AccessMode, read_only: bool) -> PublishVolume {
    PublishVolume {
        mode,
        read_only: mode.reads_only(read_only),
        ..publish(volume, node, false)
    }
}

/// Every mode that Nomad has: how many nodes may have it, and what the next one is told.
#[tokio::test]
async fn each_access_mode_lets_in_as_many_nodes_as_it_says() {
    use AccessMode::*;
    for (mode, first_reads, second_reads, allowed) in [
        (SingleNodeWriter, false, false, false),
        (SingleNodeWriter, true, true, false),
        (SingleNodeReaderOnly, true, true, false),
        (MultiNodeReaderOnly, true, true, true),
        (MultiNodeSingleWriter, false, true, true),
        (MultiNodeSingleWriter, true, false, true),
        (MultiNodeSingleWriter, false, false, false),
        (MultiNodeMultiWriter, false, true, true),
        (MultiNodeMultiWriter, false, false, false),
    ] {
        let cluster = Cluster::new().await;
        let v = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
        cluster
            .admin
            .publish(&in_mode(&v, "n1", mode, first_reads))
            .await
            .unwrap();
        let second = cluster.admin.publish(&in_mode(&v, "n2", mode, second_reads)).await;
        let case = format!("{mode} {first_reads} {second_reads}");
        match second {
            Ok(_) => assert!(allowed, "{case}"),
            Err(error @ AdminError::WrittenElsewhere { .. }) => {
                assert!(mode == MultiNodeMultiWriter && !allowed, "{case}: {error}");
                assert!(
                    error.to_string().contains("n1") && error.to_string().contains("release"),
                    "{error}"
                );
            }
            Err(error) => assert!(
                !allowed && matches!(error, AdminError::PublishedElsewhere { .. }),
                "{case}: {error}"
            ),
        }
        for _ in 0..2 {
            let again = cluster.admin.publish(&in_mode(&v, "n1", mode, first_reads)).await;
            again.unwrap_or_else(|error| panic!("{case}: the same node may publish again: {error}"));
        }
    }
}

/// A writer that moves away from a node whose readers stay: the node gives its right back, and the lease that it had
/// takes nothing over any more.
#[tokio::test]
async fn a_node_that_goes_on_reading_gives_the_right_to_write_back() {
    let cluster = Cluster::new().await;
    let v = cluster.admin.create(&create("v", 0, 0)).await.unwrap().volume;
    let writes = |node: &str| in_mode(&v, node, AccessMode::MultiNodeSingleWriter, false);
    let lease = cluster.admin.publish(&writes("n1")).await.unwrap();
    assert!(cluster.admin.publish(&writes("n2")).await.is_err());
    for _ in 0..2 {
        cluster.admin.narrow(&v, &node_id("n1")).await.unwrap();
    }
    let late = cluster.head_file(&v).take_over(&claim("n1", Some(lease))).await;
    assert!(matches!(late, Err(HeadError::NoLease { .. })), "{late:?}");
    let second = cluster.admin.publish(&writes("n2")).await.unwrap();
    cluster
        .head_file(&v)
        .take_over(&claim("n2", Some(second)))
        .await
        .unwrap();
    assert!(cluster.admin.publish(&writes("n1")).await.is_err(), "n2 writes now");
    assert_eq!(
        cluster.admin.get(&v).await.unwrap().publications.len(),
        2,
        "n1 still reads"
    );
    cluster.admin.narrow(&v, &node_id("n2")).await.unwrap();
    let head = cluster.admin.get(&v).await.unwrap();
    assert!(!head.publications[1].read_only, "who has it mounted keeps its right");
}
