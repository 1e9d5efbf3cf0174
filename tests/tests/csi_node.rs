//! The real plugin with the real engine on MinIO, while processes die under it.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;
use std::time::Duration;

use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::volume_capability::{AccessType, MountVolume, access_mode};
use tests::csi_plugin::{CsiPlugin, Ground, unable_to_mount};
use tests::s3_server::{Kind, S3Server, skip};
use tonic::transport::Channel;

/// 60 s: the plugin looks every 10 s; a machine that compiles at the same time needs longer.
const REPAIR_MAX: Duration = Duration::from_secs(60);

fn writer() -> csi::VolumeCapability {
    csi::VolumeCapability {
        access_type: Some(AccessType::Mount(MountVolume::default())),
        access_mode: Some(csi::volume_capability::AccessMode {
            mode: access_mode::Mode::SingleNodeWriter.into(),
        }),
    }
}

/// Nomad, with the paths that it would use on this ground.
struct Nomad<'a> {
    ground: &'a Ground,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

impl<'a> Nomad<'a> {
    fn new(ground: &'a Ground, plugin: &CsiPlugin) -> Self {
        Self {
            ground,
            controller: ControllerClient::new(plugin.channel()),
            node: NodeClient::new(plugin.channel()),
        }
    }

    fn path(&self, name: &str) -> String {
        let path = self.ground.path("nomad").join(name);
        std::fs::create_dir_all(path.parent().expect("it has one")).expect("Nomad's folders");
        path.to_string_lossy().into_owned()
    }

    async fn create(&mut self) {
        let creation = csi::CreateVolumeRequest {
            name: "v1".into(),
            volume_capabilities: vec![writer()],
            ..Default::default()
        };
        self.controller.create_volume(creation).await.expect("CreateVolume");
    }

    async fn publish(&mut self) -> Result<HashMap<String, String>, tonic::Status> {
        let info = self.node.node_get_info(csi::NodeGetInfoRequest {}).await?.into_inner();
        let publication = csi::ControllerPublishVolumeRequest {
            volume_id: "v1".into(),
            node_id: info.node_id,
            volume_capability: Some(writer()),
            ..Default::default()
        };
        let published = self.controller.controller_publish_volume(publication).await?;
        Ok(published.into_inner().publish_context)
    }

    async fn mount(&mut self, context: &HashMap<String, String>) {
        let staging = self.path("staging");
        std::fs::create_dir_all(&staging).expect("Nomad makes the staging path");
        let stage = csi::NodeStageVolumeRequest {
            volume_id: "v1".into(),
            publish_context: context.clone(),
            staging_target_path: staging.clone(),
            volume_capability: Some(writer()),
            ..Default::default()
        };
        self.node.node_stage_volume(stage).await.expect("NodeStageVolume");
        let publish = csi::NodePublishVolumeRequest {
            volume_id: "v1".into(),
            publish_context: context.clone(),
            staging_target_path: staging,
            target_path: self.path("target"),
            volume_capability: Some(writer()),
            ..Default::default()
        };
        self.node.node_publish_volume(publish).await.expect("NodePublishVolume");
    }

    async fn unmount(&mut self, node_id: &str) {
        let unpublish = csi::NodeUnpublishVolumeRequest {
            volume_id: "v1".into(),
            target_path: self.path("target"),
        };
        self.node
            .node_unpublish_volume(unpublish)
            .await
            .expect("NodeUnpublishVolume");
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id: "v1".into(),
            staging_target_path: self.path("staging"),
        };
        self.node.node_unstage_volume(unstage).await.expect("NodeUnstageVolume");
        let unpublish = csi::ControllerUnpublishVolumeRequest {
            volume_id: "v1".into(),
            node_id: node_id.into(),
            ..Default::default()
        };
        let unpublished = self.controller.controller_unpublish_volume(unpublish).await;
        unpublished.expect("ControllerUnpublishVolume");
    }
}

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

async fn until_read(path: &Path, text: &str) {
    let seen = async {
        while read(path).ok().as_deref() != Some(text) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(REPAIR_MAX, seen).await;
    waited.unwrap_or_else(|_| panic!("{}: {:?}", path.display(), read(path)));
}

/// Goal: what was fsynced through a target is there whatever process dies, and the volume moves to another node with
/// all of it. Method: kill -9 of the plugin (mounts go on without it), kill -9 of the engine (the plugin mounts again
/// at Nomad's paths), then a second plugin with another node id and no state in common but the bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_volume_outlives_plugin_engine_and_node() {
    if let Some(reason) = unable_to_mount() {
        return skip(reason);
    }
    let Some(server) = S3Server::start(Kind::Minio).await else {
        return;
    };
    server.bucket("volumes").await;
    let (ground, elsewhere) = (Ground::new(), Ground::new());
    let mut plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create().await;
    let context = nomad.publish().await.expect("ControllerPublishVolume");
    nomad.mount(&context).await;
    let target = ground.path("nomad/target");
    write_durably(&target.join("one"), "before").expect("a write");

    plugin.kill_only_plugin();
    write_durably(&target.join("two"), "without a plugin").expect("mounts go on without the plugin (rule 17)");
    let engines = plugin.engines();
    let mut plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    assert_eq!(
        (engines.len(), plugin.engines()),
        (1, engines),
        "the new plugin uses the engine that runs"
    );

    assert_eq!(plugin.kill_only_engine(), 1);
    until_read(&target.join("two"), "without a plugin").await;
    until_read(&ground.path("nomad/staging/one"), "before").await;
    write_durably(&target.join("three"), "after").expect("the volume is written again");

    let second = CsiPlugin::start(&elsewhere, &server, "volumes", "n2").await;
    let mut other = Nomad::new(&elsewhere, &second);
    let refused = other.publish().await.expect_err("n1 still has it (rule 8)");
    assert!(refused.message().contains("n1"), "{refused}");
    Nomad::new(&ground, &plugin).unmount("n1").await;
    assert_eq!(ground.mounts(), Vec::<std::path::PathBuf>::new(), "{}", ground.logs());
    let context = other.publish().await.expect("n1 has let go");
    other.mount(&context).await;
    let target = elsewhere.path("nomad/target");
    for (name, text) in [("one", "before"), ("two", "without a plugin"), ("three", "after")] {
        assert_eq!(read(&target.join(name)).expect("it is there"), text);
    }
    other.unmount("n2").await;
    plugin.kill_only_plugin();
}
