//! The whole plugin over its real socket, with a bucket and a node in memory.

use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::volume_capability::{AccessType, MountVolume, access_mode};
use tokio::net::UnixStream;
use tokio::task::JoinHandle;
use tonic::transport::{Channel, Endpoint, Uri};
use volume::admin::Admin;
use volume::bucket::memory::MemoryBucket;
use volume::clock::Timestamp;

use super::*;
use crate::cluster::Clusters;
use crate::cluster::fixed::FixedCluster;
use crate::credentials::Credentials;
use crate::mounter::fake::FakeMounter;

#[derive(Debug)]
struct Stopped;

impl Clock for Stopped {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
}

/// A store that never answers.
#[derive(Debug)]
struct Away;

#[async_trait]
impl Clusters for Away {
    async fn admin(&self, _: Option<&Credentials>) -> Result<Arc<Admin>, DriverError> {
        std::future::pending().await
    }
}

struct Plugin {
    parts: Parts,
    mounter: Arc<FakeMounter>,
    serving: JoinHandle<Result<(), ServeError>>,
    dir: tempfile::TempDir,
}

impl Plugin {
    async fn start(clusters: ClustersRef) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let mounter = Arc::new(FakeMounter::new());
        let root = dir.path().canonicalize().unwrap();
        let parts = Parts {
            mode: Mode::Monolith,
            endpoint: root.join("csi.sock"),
            node_id: NodeId::new("n1").unwrap(),
            folders: Folders {
                state: root.join("state"),
                staging_root: Some(root.join("nomad")),
            },
            clusters,
            mounter: Arc::clone(&mounter) as MounterRef,
            clock: Arc::new(Stopped),
        };
        let serving = tokio::spawn(serve(parts.clone()));
        let plugin = Self {
            parts,
            mounter,
            serving,
            dir,
        };
        plugin.until_it_answers().await;
        plugin
    }

    /// Ends the plugin without a word, as SIGKILL does, and starts another one at the same socket.
    async fn restart(&mut self) {
        self.serving.abort();
        let _ = (&mut self.serving).await;
        self.serving = tokio::spawn(serve(self.parts.clone()));
        self.until_it_answers().await;
    }

    async fn until_it_answers(&self) {
        let answers = async {
            let mut identity = IdentityClient::new(self.channel());
            while identity.probe(csi::ProbeRequest {}).await.is_err() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(10), answers)
            .await
            .expect("the plugin answers");
    }

    fn channel(&self) -> Channel {
        let path = self.parts.endpoint.clone();
        let connector = tower::service_fn(move |_: Uri| {
            let path = path.clone();
            async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
        });
        Endpoint::from_static("http://plugin").connect_with_connector_lazy(connector)
    }

    fn path(&self, name: &str) -> String {
        let root = self.dir.path().canonicalize().unwrap().join("nomad");
        std::fs::create_dir_all(&root).unwrap();
        root.join(name).to_string_lossy().into_owned()
    }
}

fn memory() -> ClustersRef {
    Arc::new(FixedCluster::new(Arc::new(MemoryBucket::new())))
}

fn writer() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(csi::volume_capability::AccessMode {
            mode: access_mode::Mode::SingleNodeWriter.into(),
        }),
    }
}

fn stage(plugin: &Plugin, context: &std::collections::HashMap<String, String>) -> csi::NodeStageVolumeRequest {
    csi::NodeStageVolumeRequest {
        volume_id: "v1".into(),
        publish_context: context.clone(),
        staging_target_path: plugin.path("staging"),
        volume_capability: Some(writer()),
        ..Default::default()
    }
}

fn publish(plugin: &Plugin, context: &std::collections::HashMap<String, String>) -> csi::NodePublishVolumeRequest {
    csi::NodePublishVolumeRequest {
        volume_id: "v1".into(),
        publish_context: context.clone(),
        staging_target_path: plugin.path("staging"),
        target_path: plugin.path("target"),
        volume_capability: Some(writer()),
        ..Default::default()
    }
}

async fn published(plugin: &Plugin) -> std::collections::HashMap<String, String> {
    let mut controller = ControllerClient::new(plugin.channel());
    let creation = csi::CreateVolumeRequest {
        name: "v1".into(),
        volume_capabilities: vec![writer()],
        ..Default::default()
    };
    controller.create_volume(creation).await.unwrap();
    // Waits for the node to be known, as Nomad does.
    NodeClient::new(plugin.channel())
        .node_get_info(csi::NodeGetInfoRequest {})
        .await
        .unwrap();
    let publication = csi::ControllerPublishVolumeRequest {
        volume_id: "v1".into(),
        node_id: "n1".into(),
        volume_capability: Some(writer()),
        ..Default::default()
    };
    let published = controller.controller_publish_volume(publication).await.unwrap();
    published.into_inner().publish_context
}

/// Goal: a volume's life over the wire, with the plugin killed and replaced in its middle. Method: Nomad's order of
/// calls. Rules 4 and 17: the new plugin removes the old one's socket, adopts, and nothing was unmounted.
#[tokio::test]
async fn a_volume_lives_on_over_a_restart_of_the_plugin() {
    let mut plugin = Plugin::start(memory()).await;
    let context = published(&plugin).await;
    let mut node = NodeClient::new(plugin.channel());
    node.node_stage_volume(stage(&plugin, &context)).await.unwrap();
    node.node_publish_volume(publish(&plugin, &context)).await.unwrap();
    let mounted = plugin.mounter.paths();
    plugin.restart().await;
    assert_eq!(plugin.mounter.paths(), mounted);
    let stats = csi::NodeGetVolumeStatsRequest {
        volume_id: "v1".into(),
        volume_path: plugin.path("target"),
        ..Default::default()
    };
    let mut node = NodeClient::new(plugin.channel());
    let usage = node.node_get_volume_stats(stats).await.unwrap().into_inner().usage;
    assert_eq!((usage.len(), usage[0].total, usage[0].used), (2, 1 << 30, 1 << 29));
    let unpublish = csi::NodeUnpublishVolumeRequest {
        volume_id: "v1".into(),
        target_path: plugin.path("target"),
    };
    node.node_unpublish_volume(unpublish).await.unwrap();
    let unstage = csi::NodeUnstageVolumeRequest {
        volume_id: "v1".into(),
        staging_target_path: plugin.path("staging"),
    };
    node.node_unstage_volume(unstage).await.unwrap();
    assert!(plugin.mounter.paths().is_empty());
}

/// Rule 9: what was published before a restart is known after it, and the node gets no second right by an old lease.
#[tokio::test]
async fn a_stage_without_the_context_of_a_publish_is_refused_by_the_key() {
    let plugin = Plugin::start(memory()).await;
    let refused = NodeClient::new(plugin.channel())
        .node_stage_volume(stage(&plugin, &Default::default()))
        .await
        .unwrap_err();
    assert!(refused.message().contains("publish_context.lease"), "{refused}");
    assert!(plugin.mounter.mounts().is_empty());
}

/// Probe and NodeGetInfo answer while the store is away: otherwise Nomad restarts the plugin in a loop.
#[tokio::test]
async fn the_plugin_is_healthy_while_the_store_is_away() {
    let plugin = Plugin::start(Arc::new(Away)).await;
    let mut identity = IdentityClient::new(plugin.channel());
    let ready = identity.probe(csi::ProbeRequest {}).await.unwrap().into_inner().ready;
    assert_eq!(ready, Some(true));
    // Rule 16: the name is forever.
    let info = identity
        .get_plugin_info(csi::GetPluginInfoRequest {})
        .await
        .unwrap()
        .into_inner();
    assert_eq!(info.name, "pannier.csi");
    let asked = NodeClient::new(plugin.channel())
        .node_get_info(csi::NodeGetInfoRequest {})
        .await;
    assert_eq!(asked.unwrap().into_inner().node_id, "n1");
}

#[tokio::test]
async fn each_mode_serves_its_own_services() {
    let plugin = Plugin::start(memory()).await;
    for (mode, controller, node) in [(Mode::Controller, true, false), (Mode::Node, false, true)] {
        let mut parts = plugin.parts.clone();
        parts.mode = mode;
        parts.endpoint = plugin.dir.path().join(format!("{mode:?}.sock"));
        let serving = tokio::spawn(serve(parts.clone()));
        let other = Plugin {
            parts,
            serving,
            mounter: Arc::clone(&plugin.mounter),
            dir: tempfile::tempdir().unwrap(),
        };
        other.until_it_answers().await;
        let asked = ControllerClient::new(other.channel())
            .controller_get_capabilities(csi::ControllerGetCapabilitiesRequest {})
            .await;
        assert_eq!(asked.is_ok(), controller, "{mode:?}");
        let asked = NodeClient::new(other.channel())
            .node_get_capabilities(csi::NodeGetCapabilitiesRequest {})
            .await;
        assert_eq!(asked.is_ok(), node, "{mode:?}");
        other.serving.abort();
    }
}

#[tokio::test]
async fn a_file_at_the_place_of_the_socket_is_not_removed() {
    let plugin = Plugin::start(memory()).await;
    let mut parts = plugin.parts.clone();
    parts.endpoint = plugin.dir.path().join("precious");
    std::fs::write(&parts.endpoint, b"data").unwrap();
    let refused = serve(parts.clone()).await.unwrap_err().to_string();
    assert!(
        refused.contains("precious") && refused.contains("no socket"),
        "{refused}"
    );
    assert_eq!(std::fs::read(&parts.endpoint).unwrap(), b"data");
}
