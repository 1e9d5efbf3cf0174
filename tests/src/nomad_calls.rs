//! Nomad's part of the conversation with a CSI plugin: its calls, in its order, with its paths.
//!
//! What is sent is what Nomad 2.0 sends (plugin, arguments, order), and what it never sends is not sent here either:
//! ControllerUnpublishVolume comes without secrets, for example.

use std::collections::HashMap;
use std::path::PathBuf;

use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::node_client::NodeClient;
use proto::csi::v1::volume_capability::{AccessType, MountVolume, access_mode::Mode};
use tonic::transport::Channel;
use tonic::{Code, Status};

use crate::csi_plugin::{CsiPlugin, Ground};
use crate::s3_server::S3Server;

/// One allocation's use of a volume, as its job says.
#[derive(Debug, Clone)]
pub struct Use {
    /// The volume: here name and id are the same.
    pub volume: String,
    /// The allocation.
    pub alloc: String,
    /// `access_mode` of the job.
    pub mode: Mode,
    /// `read_only` of the job.
    pub read_only: bool,
    /// `mount_options.mount_flags` of the job.
    pub mount_flags: Vec<String>,
    /// Keys of the volume.
    pub secrets: HashMap<String, String>,
}

impl Use {
    /// The one writer of a volume.
    pub fn writer(volume: &str, alloc: &str) -> Self {
        Self::of_mode(volume, alloc, Mode::SingleNodeWriter)
    }

    /// A use in any mode; for writing.
    pub fn of_mode(volume: &str, alloc: &str, mode: Mode) -> Self {
        Self {
            volume: volume.to_owned(),
            alloc: alloc.to_owned(),
            mode,
            read_only: false,
            mount_flags: Vec::new(),
            secrets: HashMap::new(),
        }
    }

    /// The same, with `read_only = true`.
    #[must_use]
    pub fn read_only(mut self) -> Self {
        self.read_only = true;
        self
    }

    /// The same, with mount flags.
    #[must_use]
    pub fn with_flags(mut self, flags: &[&str]) -> Self {
        self.mount_flags = flags.iter().map(|flag| (*flag).to_owned()).collect();
        self
    }

    fn capability(&self) -> csi::VolumeCapability {
        csi::VolumeCapability {
            access_type: Some(AccessType::Mount(MountVolume {
                mount_flags: self.mount_flags.clone(),
                ..Default::default()
            })),
            access_mode: Some(csi::volume_capability::AccessMode { mode: self.mode.into() }),
        }
    }

    /// Nomad's name for a way of use; staging paths end in it (rule 11).
    fn usage(&self) -> String {
        let access = if self.read_only { "ro" } else { "rw" };
        let mode = self.mode.as_str_name().to_lowercase().replace('_', "-");
        format!("{access}-file-system-{mode}")
    }
}

/// Nomad, speaking to one plugin.
#[derive(Debug, Clone)]
pub struct Nomad {
    root: PathBuf,
    /// The controller service.
    pub controller: ControllerClient<Channel>,
    /// The node service.
    pub node: NodeClient<Channel>,
}

impl Nomad {
    /// With its folders on the ground of the plugin.
    pub fn new(ground: &Ground, plugin: &CsiPlugin) -> Self {
        Self {
            root: ground.path("nomad"),
            controller: ControllerClient::new(plugin.channel()),
            node: NodeClient::new(plugin.channel()),
        }
    }

    /// With its folders somewhere else, and the node service of another process.
    #[must_use]
    pub fn with_node(self, root: PathBuf, node: Channel) -> Self {
        Self {
            root,
            controller: self.controller,
            node: NodeClient::new(node),
        }
    }

    /// Where a use is staged.
    pub fn staging(&self, used: &Use) -> PathBuf {
        let base = self.root.join("staging/default").join(&used.volume);
        base.join(used.usage())
    }

    /// Where a use is published.
    pub fn target(&self, used: &Use) -> PathBuf {
        let base = self.root.join("per-alloc").join(&used.alloc);
        base.join(&used.volume).join(used.usage())
    }

    /// `nomad volume create` with `capacity_min` (0 for none).
    ///
    /// # Panics
    /// If it fails.
    pub async fn create(&mut self, name: &str, capacity_bytes: i64) -> csi::Volume {
        let created = self.create_with(name, capacity_bytes, &[]).await;
        created.expect("CreateVolume")
    }

    /// The same with `parameters`.
    ///
    /// # Errors
    /// What the plugin says.
    ///
    /// # Panics
    /// If an answer has no volume.
    pub async fn create_with(
        &mut self,
        name: &str,
        capacity_bytes: i64,
        parameters: &[(&str, &str)],
    ) -> Result<csi::Volume, Status> {
        let parameters = parameters
            .iter()
            .map(|(key, value)| (key.to_string(), value.to_string()));
        let creation = csi::CreateVolumeRequest {
            name: name.into(),
            volume_capabilities: vec![Use::writer(name, "").capability()],
            capacity_range: (capacity_bytes > 0).then_some(csi::CapacityRange {
                required_bytes: capacity_bytes,
                limit_bytes: 0,
            }),
            parameters: parameters.collect(),
            accessibility_requirements: Some(csi::TopologyRequirement::default()),
            ..Default::default()
        };
        let created = self.controller.create_volume(creation).await?.into_inner();
        Ok(created.volume.expect("an answer describes the volume"))
    }

    /// `nomad volume register` with a larger `capacity_min`: only the controller is asked.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn expand(&mut self, name: &str, capacity_bytes: i64) -> Result<i64, Status> {
        let expansion = csi::ControllerExpandVolumeRequest {
            volume_id: name.into(),
            capacity_range: Some(csi::CapacityRange {
                required_bytes: capacity_bytes,
                limit_bytes: 0,
            }),
            ..Default::default()
        };
        let expanded = self.controller.controller_expand_volume(expansion).await?;
        Ok(expanded.into_inner().capacity_bytes)
    }

    /// `nomad volume delete`.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn delete(&mut self, name: &str) -> Result<(), Status> {
        let deletion = csi::DeleteVolumeRequest {
            volume_id: name.into(),
            ..Default::default()
        };
        self.controller.delete_volume(deletion).await.map(drop)
    }

    /// `nomad volume snapshot create`.
    ///
    /// # Errors
    /// What the plugin says.
    ///
    /// # Panics
    /// If an answer has no snapshot.
    pub async fn snapshot(&mut self, volume: &str, name: &str) -> Result<csi::Snapshot, Status> {
        let creation = csi::CreateSnapshotRequest {
            source_volume_id: volume.into(),
            name: name.into(),
            ..Default::default()
        };
        let created = self.controller.create_snapshot(creation).await?.into_inner();
        Ok(created.snapshot.expect("an answer describes the snapshot"))
    }

    /// `nomad volume snapshot list`.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn snapshots(&mut self) -> Result<Vec<csi::Snapshot>, Status> {
        let listed = self
            .controller
            .list_snapshots(csi::ListSnapshotsRequest::default())
            .await?;
        let entries = listed.into_inner().entries;
        Ok(entries.into_iter().filter_map(|entry| entry.snapshot).collect())
    }

    /// `nomad volume snapshot delete`.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn delete_snapshot(&mut self, id: &str) -> Result<(), Status> {
        let deletion = csi::DeleteSnapshotRequest {
            snapshot_id: id.into(),
            ..Default::default()
        };
        self.controller.delete_snapshot(deletion).await.map(drop)
    }

    /// `nomad volume create` of a file with `snapshot_id`.
    ///
    /// # Errors
    /// What the plugin says.
    ///
    /// # Panics
    /// If an answer has no volume.
    pub async fn restore(&mut self, name: &str, snapshot_id: &str) -> Result<csi::Volume, Status> {
        use csi::volume_content_source::{SnapshotSource, Type};
        let source = Type::Snapshot(SnapshotSource {
            snapshot_id: snapshot_id.into(),
        });
        let creation = csi::CreateVolumeRequest {
            name: name.into(),
            volume_capabilities: vec![Use::writer(name, "").capability()],
            volume_content_source: Some(csi::VolumeContentSource { r#type: Some(source) }),
            ..Default::default()
        };
        let created = self.controller.create_volume(creation).await?.into_inner();
        Ok(created.volume.expect("an answer describes the volume"))
    }

    /// A claim: ControllerPublishVolume; returns the publish context.
    ///
    /// # Errors
    /// What the plugin says.
    pub async fn claim(&mut self, used: &Use) -> Result<HashMap<String, String>, Status> {
        let info = self.node.node_get_info(csi::NodeGetInfoRequest {}).await?.into_inner();
        let publication = csi::ControllerPublishVolumeRequest {
            volume_id: used.volume.clone(),
            node_id: info.node_id,
            volume_capability: Some(used.capability()),
            readonly: used.read_only,
            secrets: used.secrets.clone(),
            ..Default::default()
        };
        let published = self.controller.controller_publish_volume(publication).await?;
        Ok(published.into_inner().publish_context)
    }

    /// NodeStageVolume, unless it is a mount already, and NodePublishVolume.
    ///
    /// # Errors
    /// What the plugin says.
    ///
    /// # Panics
    /// If Nomad's own folders cannot be made.
    pub async fn mount(&mut self, used: &Use, context: &HashMap<String, String>) -> Result<(), Status> {
        let (staging, target) = (self.staging(used), self.target(used));
        std::fs::create_dir_all(&staging).expect("Nomad makes the staging path");
        std::fs::create_dir_all(target.parent().expect("it has one")).expect("Nomad makes the target's parent");
        let stage = csi::NodeStageVolumeRequest {
            volume_id: used.volume.clone(),
            publish_context: context.clone(),
            staging_target_path: staging.to_string_lossy().into_owned(),
            volume_capability: Some(used.capability()),
            secrets: used.secrets.clone(),
            ..Default::default()
        };
        self.node.node_stage_volume(stage).await?;
        let publish = csi::NodePublishVolumeRequest {
            volume_id: used.volume.clone(),
            publish_context: context.clone(),
            staging_target_path: staging.to_string_lossy().into_owned(),
            target_path: target.to_string_lossy().into_owned(),
            volume_capability: Some(used.capability()),
            readonly: used.read_only,
            secrets: used.secrets.clone(),
            ..Default::default()
        };
        self.node.node_publish_volume(publish).await.map(drop)
    }

    /// All that comes before an allocation's tasks.
    ///
    /// # Errors
    /// What the plugin says first.
    pub async fn start(&mut self, used: &Use) -> Result<(), Status> {
        let context = self.claim(used).await?;
        self.mount(used, &context).await
    }

    /// NodeUnpublishVolume.
    ///
    /// # Errors
    /// What the plugin says; NOT_FOUND counts as done.
    pub async fn unpublish(&mut self, used: &Use) -> Result<(), Status> {
        let unpublish = csi::NodeUnpublishVolumeRequest {
            volume_id: used.volume.clone(),
            target_path: self.target(used).to_string_lossy().into_owned(),
        };
        known(self.node.node_unpublish_volume(unpublish).await.map(drop))
    }

    /// NodeUnstageVolume.
    ///
    /// # Errors
    /// What the plugin says; NOT_FOUND counts as done.
    pub async fn unstage(&mut self, used: &Use) -> Result<(), Status> {
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id: used.volume.clone(),
            staging_target_path: self.staging(used).to_string_lossy().into_owned(),
        };
        known(self.node.node_unstage_volume(unstage).await.map(drop))
    }

    /// ControllerUnpublishVolume for a node, dead or alive; without secrets, as Nomad sends it.
    ///
    /// # Errors
    /// What the plugin says; NOT_FOUND counts as done.
    pub async fn release(&mut self, volume: &str, node_id: &str) -> Result<(), Status> {
        let unpublish = csi::ControllerUnpublishVolumeRequest {
            volume_id: volume.into(),
            node_id: node_id.into(),
            ..Default::default()
        };
        let released = self.controller.controller_unpublish_volume(unpublish).await;
        known(released.map(drop))
    }

    /// All that comes after an allocation's tasks, where it was the last one of the volume on the node.
    ///
    /// # Errors
    /// What the plugin says first.
    pub async fn stop(&mut self, used: &Use) -> Result<(), Status> {
        self.unpublish(used).await?;
        self.unstage(used).await?;
        let info = self.node.node_get_info(csi::NodeGetInfoRequest {}).await?.into_inner();
        self.release(&used.volume, &info.node_id).await
    }
}

/// A node: its folders, its plugin with an engine of its own, and Nomad, which speaks to it.
#[derive(Debug)]
pub struct Node {
    /// Nomad; a clone of it speaks to the same plugin.
    pub nomad: Nomad,
    /// The plugin. It ends before its ground does.
    pub plugin: CsiPlugin,
    /// The folders.
    pub ground: Ground,
}

impl Node {
    /// A node that knows nothing of others but the bucket.
    ///
    /// # Panics
    /// If the plugin does not start.
    pub async fn start(server: &S3Server, bucket: &str, node_id: &str) -> Self {
        let ground = Ground::new();
        let plugin = CsiPlugin::start(&ground, server, bucket, node_id).await;
        Self {
            nomad: Nomad::new(&ground, &plugin),
            plugin,
            ground,
        }
    }

    /// Nodes `n1` and `n2`.
    ///
    /// # Panics
    /// If one of them does not start.
    pub async fn two(server: &S3Server, bucket: &str) -> [Self; 2] {
        [
            Self::start(server, bucket, "n1").await,
            Self::start(server, bucket, "n2").await,
        ]
    }

    /// Nothing of the node's is mounted any more.
    ///
    /// # Panics
    /// If something is.
    pub fn assert_unmounted(&self) {
        assert_eq!(self.ground.mounts(), Vec::<PathBuf>::new(), "{}", self.ground.logs());
    }
}

fn known(done: Result<(), Status>) -> Result<(), Status> {
    match done {
        Err(status) if status.code() == Code::NotFound => Ok(()),
        done => done,
    }
}
