//! Nomad's side of CSI on one node: starts `pannier csi` as a node would, and makes the calls in Nomad's order.
//!
//! Order of a claim: ControllerPublishVolume, NodeStageVolume, NodePublishVolume; of a release: NodeUnpublishVolume,
//! NodeUnstageVolume, ControllerUnpublishVolume. Paths below the staging root are built as Nomad builds them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use proto::csi::v1 as csi;
use proto::csi::v1::controller_client::ControllerClient;
use proto::csi::v1::identity_client::IdentityClient;
use proto::csi::v1::node_client::NodeClient;
use tokio::process::{Child, Command};
use tonic::transport::{Channel, Endpoint};

use super::TryError;
use super::job_file::GroupVolume;
use super::report::Report;
use super::volume_file::{MountOptions, VolumeFile};

/// 20 s for the plugin to answer its first Probe; Nomad gives it 30 s.
const START_MAX: Duration = Duration::from_secs(20);

/// 20 ms between two looks for the plugin's socket. Nomad looks every 5 s.
const START_POLL: Duration = Duration::from_millis(20);

/// 5 s for the plugin to end after SIGTERM, as Nomad's default kill_timeout.
const STOP_MAX: Duration = Duration::from_secs(5);

/// How to start a node's plugin.
#[derive(Debug, Clone)]
pub struct PluginLaunch {
    /// The `pannier` program.
    pub program: PathBuf,
    /// `--node-id`.
    pub node_id: String,
    /// Everything of this node: socket, staging root, cache, engine.
    pub state_dir: PathBuf,
    /// The rest of the arguments: bucket, endpoint.
    pub arguments: Vec<String>,
    /// Credentials and the like.
    pub environment: Vec<(String, String)>,
}

/// A running plugin with its three services.
#[derive(Debug)]
pub struct CsiPlugin {
    /// What NodeGetInfo says.
    pub node_id: String,
    /// Below it staging and publish paths are made.
    root: PathBuf,
    child: Child,
    controller: ControllerClient<Channel>,
    node: NodeClient<Channel>,
}

/// A volume mounted for one allocation.
#[derive(Debug, Clone)]
pub struct MountedVolume {
    volume_id: String,
    staging: PathBuf,
    /// Where the task's bind mount comes from.
    pub target: PathBuf,
}

impl CsiPlugin {
    /// Starts the plugin and asks it what Nomad asks.
    ///
    /// # Errors
    /// `Plugin` if it ends or does not answer, with the place of its log.
    pub async fn start(launch: &PluginLaunch, report: &Report) -> Result<Self, TryError> {
        let root = launch.state_dir.join("csi");
        std::fs::create_dir_all(&root).map_err(|source| TryError::State {
            path: root.clone(),
            source,
        })?;
        let socket = launch.state_dir.join("csi.sock");
        let log_path = launch.state_dir.join("csi.log");
        let log = std::fs::File::create(&log_path).map_err(|source| TryError::State {
            path: log_path.clone(),
            source,
        })?;
        let mut command = Command::new(&launch.program);
        command
            .args(["csi", "--mode", "monolith", "--node-id", &launch.node_id])
            .arg("--endpoint")
            .arg(format!("unix://{}", socket.display()))
            .arg("--staging-root")
            .arg(&root)
            .args(&launch.arguments)
            .envs(launch.environment.iter().cloned())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .kill_on_drop(true);
        let mut child = command.spawn().map_err(|source| TryError::State {
            path: launch.program.clone(),
            source,
        })?;
        let channel = report
            .step("csi", format!("start pannier csi as node {}", launch.node_id), async {
                wait_ready(&mut child, &socket, &log_path).await
            })
            .await?;
        let mut node = NodeClient::new(channel.clone());
        let info = report
            .step("csi", "NodeGetInfo", node.node_get_info(csi::NodeGetInfoRequest {}))
            .await
            .map_err(|status| TryError::rpc("NodeGetInfo", &status))?
            .into_inner();
        Ok(Self {
            node_id: info.node_id,
            root,
            child,
            controller: ControllerClient::new(channel),
            node,
        })
    }

    /// `nomad volume create`: returns the volume's id and context.
    ///
    /// # Errors
    /// `Rpc`, with the plugin's words.
    pub async fn create(
        &mut self,
        file: &VolumeFile,
        report: &Report,
    ) -> Result<(String, HashMap<String, String>), TryError> {
        let capabilities = file
            .access_modes
            .iter()
            .map(|mode| capability(mode, &file.mount_options))
            .collect::<Result<_, _>>()?;
        let wants_capacity = file.capacity_min_bytes > 0 || file.capacity_max_bytes > 0;
        let request = csi::CreateVolumeRequest {
            name: file.name.clone(),
            capacity_range: wants_capacity.then_some(csi::CapacityRange {
                required_bytes: i64::try_from(file.capacity_min_bytes).unwrap_or(i64::MAX),
                limit_bytes: i64::try_from(file.capacity_max_bytes).unwrap_or(i64::MAX),
            }),
            volume_capabilities: capabilities,
            parameters: file.parameters.iter().cloned().collect(),
            secrets: file.secrets.iter().cloned().collect(),
            accessibility_requirements: Some(csi::TopologyRequirement::default()),
            ..Default::default()
        };
        let reply = report
            .step(
                "csi",
                format!("CreateVolume {}", file.name),
                self.controller.create_volume(request),
            )
            .await
            .map_err(|status| TryError::rpc("CreateVolume", &status))?
            .into_inner();
        let volume = reply.volume.unwrap_or_default();
        Ok((volume.volume_id, volume.volume_context))
    }

    /// `nomad volume delete`.
    ///
    /// # Errors
    /// `Rpc`, with the plugin's words.
    pub async fn delete(&mut self, volume_id: &str, report: &Report) -> Result<(), TryError> {
        let request = csi::DeleteVolumeRequest {
            volume_id: volume_id.to_owned(),
            ..Default::default()
        };
        report
            .step(
                "csi",
                format!("DeleteVolume {volume_id}"),
                self.controller.delete_volume(request),
            )
            .await
            .map_err(|status| TryError::rpc("DeleteVolume", &status))?;
        Ok(())
    }

    /// Claims and mounts a volume for an allocation, in Nomad's order.
    ///
    /// # Errors
    /// `Rpc`, with the plugin's words; what was done before the failing call stays for `release`.
    pub async fn claim(&mut self, claim: &Claim<'_>, report: &Report) -> Result<MountedVolume, TryError> {
        let Claim {
            volume,
            volume_id,
            context,
            alloc_id,
            namespace,
        } = claim;
        let capability = capability(&volume.access_mode, &volume.mount_options)?;
        let publish = csi::ControllerPublishVolumeRequest {
            volume_id: (*volume_id).to_owned(),
            node_id: self.node_id.clone(),
            volume_capability: Some(capability.clone()),
            readonly: volume.read_only,
            volume_context: (*context).clone(),
            ..Default::default()
        };
        let what = format!("ControllerPublishVolume {volume_id} -> {}", self.node_id);
        let publish_context = report
            .step("csi", what, self.controller.controller_publish_volume(publish))
            .await
            .map_err(|status| TryError::rpc("ControllerPublishVolume", &status))?
            .into_inner()
            .publish_context;
        let mounted = self.paths(volume, volume_id, alloc_id, namespace)?;
        let stage = csi::NodeStageVolumeRequest {
            volume_id: (*volume_id).to_owned(),
            publish_context: publish_context.clone(),
            staging_target_path: mounted.staging.display().to_string(),
            volume_capability: Some(capability.clone()),
            volume_context: (*context).clone(),
            ..Default::default()
        };
        report
            .step("csi", "NodeStageVolume", self.node.node_stage_volume(stage))
            .await
            .map_err(|status| TryError::rpc("NodeStageVolume", &status))?;
        let publish = csi::NodePublishVolumeRequest {
            volume_id: (*volume_id).to_owned(),
            publish_context,
            staging_target_path: mounted.staging.display().to_string(),
            target_path: mounted.target.display().to_string(),
            volume_capability: Some(capability),
            readonly: volume.read_only,
            volume_context: (*context).clone(),
            ..Default::default()
        };
        report
            .step("csi", "NodePublishVolume", self.node.node_publish_volume(publish))
            .await
            .map_err(|status| TryError::rpc("NodePublishVolume", &status))?;
        Ok(mounted)
    }

    /// Unmounts and gives the claim back, in Nomad's order. Each call is made even if the one before failed.
    ///
    /// # Errors
    /// The first failure, after all calls were made.
    pub async fn release(&mut self, mounted: &MountedVolume, report: &Report) -> Result<(), TryError> {
        let unpublish = csi::NodeUnpublishVolumeRequest {
            volume_id: mounted.volume_id.clone(),
            target_path: mounted.target.display().to_string(),
        };
        let unpublished = report
            .step("csi", "NodeUnpublishVolume", self.node.node_unpublish_volume(unpublish))
            .await
            .map_err(|status| TryError::rpc("NodeUnpublishVolume", &status));
        let unstage = csi::NodeUnstageVolumeRequest {
            volume_id: mounted.volume_id.clone(),
            staging_target_path: mounted.staging.display().to_string(),
        };
        let unstaged = report
            .step("csi", "NodeUnstageVolume", self.node.node_unstage_volume(unstage))
            .await
            .map_err(|status| TryError::rpc("NodeUnstageVolume", &status));
        let detach = csi::ControllerUnpublishVolumeRequest {
            volume_id: mounted.volume_id.clone(),
            node_id: self.node_id.clone(),
            ..Default::default()
        };
        let what = format!("ControllerUnpublishVolume {} -> {}", mounted.volume_id, self.node_id);
        let detached = report
            .step("csi", what, self.controller.controller_unpublish_volume(detach))
            .await
            .map_err(|status| TryError::rpc("ControllerUnpublishVolume", &status));
        unpublished.and(unstaged).and(detached.map(drop))
    }

    /// Ends the plugin as Nomad does: SIGTERM, then SIGKILL. Mounts that it made stay: they are the engine's.
    pub async fn stop(mut self) {
        if let Some(pid) = self.child.id() {
            let pid = nix::unistd::Pid::from_raw(i32::try_from(pid).expect("a pid fits i32"));
            let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        }
        if tokio::time::timeout(STOP_MAX, self.child.wait()).await.is_err() {
            drop(self.child.kill().await);
        }
    }

    /// The paths as Nomad builds them; makes the directories that Nomad makes.
    fn paths(
        &self,
        volume: &GroupVolume,
        volume_id: &str,
        alloc_id: &str,
        namespace: &str,
    ) -> Result<MountedVolume, TryError> {
        let usage = format!(
            "{}-file-system-{}",
            if volume.read_only { "ro" } else { "rw" },
            volume.access_mode
        );
        let staging = self
            .root
            .join("staging")
            .join(namespace)
            .join(&volume.source)
            .join(&usage);
        let target = self
            .root
            .join("per-alloc")
            .join(alloc_id)
            .join(&volume.source)
            .join(&usage);
        let parent = target.parent().expect("the target has a parent").to_path_buf();
        for path in [&staging, &parent] {
            std::fs::create_dir_all(path).map_err(|source| TryError::State {
                path: path.clone(),
                source,
            })?;
        }
        Ok(MountedVolume {
            volume_id: volume_id.to_owned(),
            staging,
            target,
        })
    }
}

/// What to claim, for whom.
#[derive(Debug)]
pub struct Claim<'a> {
    /// The group's volume block.
    pub volume: &'a GroupVolume,
    /// The plugin's id of the volume.
    pub volume_id: &'a str,
    /// The context that CreateVolume returned.
    pub context: &'a HashMap<String, String>,
    /// The allocation.
    pub alloc_id: &'a str,
    /// The job's namespace.
    pub namespace: &'a str,
}

/// Waits until the socket is there and Probe says ready, or the process ends.
async fn wait_ready(child: &mut Child, socket: &Path, log: &Path) -> Result<Channel, TryError> {
    let deadline = tokio::time::Instant::now() + START_MAX;
    let failed = |what: String| TryError::Plugin {
        name: "pannier csi",
        what,
        log: log.to_owned(),
    };
    loop {
        if let Ok(Some(status)) = child.try_wait() {
            return Err(failed(format!("ended at once: {status}")));
        }
        if tokio::time::Instant::now() > deadline {
            return Err(failed(format!("is not ready after {} s", START_MAX.as_secs())));
        }
        if socket.exists() {
            let endpoint = Endpoint::from_shared(format!("unix:{}", socket.display()))
                .map_err(|error| failed(format!("has a socket path that cannot be dialled: {error}")))?;
            if let Ok(channel) = endpoint.connect().await {
                let probe = IdentityClient::new(channel.clone()).probe(csi::ProbeRequest {}).await;
                if probe.is_ok_and(|reply| reply.into_inner().ready.unwrap_or(true)) {
                    return Ok(channel);
                }
            }
        }
        tokio::time::sleep(START_POLL).await;
    }
}

/// Nomad's access mode as a CSI capability.
fn capability(mode: &str, options: &MountOptions) -> Result<csi::VolumeCapability, TryError> {
    use csi::volume_capability::access_mode::Mode;
    let mode = match mode {
        "single-node-writer" => Mode::SingleNodeWriter,
        "single-node-reader-only" => Mode::SingleNodeReaderOnly,
        "multi-node-reader-only" => Mode::MultiNodeReaderOnly,
        "multi-node-single-writer" => Mode::MultiNodeSingleWriter,
        "multi-node-multi-writer" => Mode::MultiNodeMultiWriter,
        other => return Err(TryError::AccessMode(other.to_owned())),
    };
    Ok(csi::VolumeCapability {
        access_mode: Some(csi::volume_capability::AccessMode { mode: mode.into() }),
        access_type: Some(csi::volume_capability::AccessType::Mount(
            csi::volume_capability::MountVolume {
                fs_type: options.fs_type.clone(),
                mount_flags: options.mount_flags.clone(),
                ..Default::default()
            },
        )),
    })
}
