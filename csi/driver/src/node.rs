//! The node service: decode, call `targets.rs`, encode.
//!
//! Invariant: every call ends within `NODE_MAX` (rule 1), and repeating it any number of times changes nothing (rule
//! 20).
//! Callers: the server. Absent: decisions about mounts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use proto::csi::v1 as csi;
use proto::csi::v1::node_server::Node;
use tonic::{Request, Response, Status};
use volume::head::AccessMode;
use volume::volume_id::{NodeId, VolumeId};

use crate::capability::{Capability, Owner};
use crate::cluster::ClustersRef;
use crate::controller::{known_volume, required};
use crate::credentials::Credentials;
use crate::deadlines::{NODE_MAX, Progress, within};
use crate::error::DriverError;
use crate::grpc::{Call, reply};
use crate::publish_context;
use crate::registry::Registry;
use crate::rights::Rights;
use crate::targets::{Left, Place, Right, Targets};

type Reply<T> = Result<Response<T>, Status>;

/// The node service.
#[derive(Debug, Clone)]
pub struct NodeService {
    node_id: NodeId,
    targets: Arc<Targets>,
    registry: Registry,
    clusters: ClustersRef,
    rights: Arc<Rights>,
}

impl NodeService {
    /// `registry` makes this node known to controllers; `clusters` is where it gives rights back, and `rights` knows
    /// those that Nomad should take back.
    pub fn new(
        node_id: NodeId,
        targets: Arc<Targets>,
        registry: Registry,
        (clusters, rights): (ClustersRef, Arc<Rights>),
    ) -> Self {
        Self {
            node_id,
            targets,
            registry,
            clusters,
            rights,
        }
    }

    async fn stage(
        &self,
        request: csi::NodeStageVolumeRequest,
        steps: Progress,
    ) -> Result<csi::NodeStageVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        required("staging_target_path", &request.staging_target_path)?;
        let capability = Capability::check(request.volume_capability.as_ref())?;
        let (lease, read_only) = publish_context::decode(&request.publish_context)?;
        let place = Place {
            volume: known_volume(&request.volume_id)?,
            path: request.staging_target_path.into(),
            flags: capability.flags,
            owner: Owner::default(),
            alone: false,
            right: Right {
                lease,
                read_only,
                credentials: Credentials::from_secrets(&request.secrets)?,
            },
        };
        self.rights
            .taken(&place.volume, !read_only, place.right.credentials.clone())?;
        self.targets.stage(place, &steps).await?;
        Ok(csi::NodeStageVolumeResponse {})
    }

    async fn publish(
        &self,
        request: csi::NodePublishVolumeRequest,
        steps: Progress,
    ) -> Result<csi::NodePublishVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        required("target_path", &request.target_path)?;
        let capability = Capability::check(request.volume_capability.as_ref())?;
        required("staging_target_path", &request.staging_target_path)?;
        let (lease, read_only) = publish_context::decode(&request.publish_context)?;
        let mut flags = capability.flags;
        flags.read_only |= request.readonly;
        let place = Place {
            volume: known_volume(&request.volume_id)?,
            path: request.target_path.into(),
            flags,
            owner: capability.owner,
            alone: capability.mode == AccessMode::SingleNodeSingleWriter,
            right: Right {
                lease,
                read_only,
                credentials: Credentials::from_secrets(&request.secrets)?,
            },
        };
        self.targets.publish(place, &steps).await?;
        Ok(csi::NodePublishVolumeResponse {})
    }

    async fn unpublish(
        &self,
        request: csi::NodeUnpublishVolumeRequest,
        steps: Progress,
    ) -> Result<csi::NodeUnpublishVolumeResponse, DriverError> {
        let (volume, path) = volume_at("target_path", &request.volume_id, &request.target_path)?;
        let left = self.targets.unpublish(&volume, &path, &steps).await?;
        self.give_back(&volume, left, &steps).await?;
        Ok(csi::NodeUnpublishVolumeResponse {})
    }

    async fn unstage(
        &self,
        request: csi::NodeUnstageVolumeRequest,
        steps: Progress,
    ) -> Result<csi::NodeUnstageVolumeResponse, DriverError> {
        let (volume, path) = volume_at("staging_target_path", &request.volume_id, &request.staging_target_path)?;
        let left = self.targets.unstage(&volume, &path, &steps).await?;
        self.give_back(&volume, left, &steps).await?;
        Ok(csi::NodeUnstageVolumeResponse {})
    }

    /// Gives the right to write back where readers stay: Nomad tells the controller of a node that left only when its last
    /// user of the volume is gone, and until then no other node could write. Where nothing stays, Nomad's word is waited for.
    async fn give_back(&self, volume: &VolumeId, left: Left, steps: &Progress) -> Result<(), DriverError> {
        if left == Left::OnlyReaders {
            steps.at("giving the right to write back");
            let keys = self.targets.credentials(volume)?;
            let admin = self.clusters.admin(keys.as_ref()).await?;
            admin.narrow(volume, &self.node_id).await?;
        }
        self.rights.left(volume, left)
    }

    async fn stats(
        &self,
        request: csi::NodeGetVolumeStatsRequest,
        steps: Progress,
    ) -> Result<csi::NodeGetVolumeStatsResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        required("volume_path", &request.volume_path)?;
        let volume = known_volume(&request.volume_id)?;
        steps.at("asking the mount for its usage");
        let path = Path::new(&request.volume_path);
        let usage = self.targets.usage(&volume, path).await?;
        steps.at("asking the engine for the mount's condition");
        let trouble = self.targets.trouble(&volume, path).await?;
        let row = |unit: csi::volume_usage::Unit, total: u64, free: u64| csi::VolumeUsage {
            available: signed(free),
            total: signed(total),
            used: signed(total.saturating_sub(free)),
            unit: unit.into(),
        };
        Ok(csi::NodeGetVolumeStatsResponse {
            usage: vec![
                row(csi::volume_usage::Unit::Bytes, usage.total_bytes, usage.free_bytes),
                row(csi::volume_usage::Unit::Inodes, usage.inodes, usage.free_inodes),
            ],
            volume_condition: Some(csi::VolumeCondition {
                abnormal: trouble.is_some(),
                message: trouble.unwrap_or_else(|| "all is well".to_owned()),
            }),
        })
    }

    /// A mount learns of a new capacity within a minute; this call makes it look at once.
    async fn expand(
        &self,
        request: csi::NodeExpandVolumeRequest,
        steps: Progress,
    ) -> Result<csi::NodeExpandVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        required("volume_path", &request.volume_path)?;
        let volume = known_volume(&request.volume_id)?;
        steps.at("having the engine read the volume's head");
        let capacity = self
            .targets
            .learn_capacity(&volume, Path::new(&request.volume_path))
            .await?;
        let asked = request.capacity_range.unwrap_or_default().required_bytes;
        if let Some(capacity_bytes) = capacity
            && signed(capacity_bytes) < asked
        {
            return Err(DriverError::NotExpanded {
                volume: volume.to_string(),
                capacity_bytes,
            });
        }
        let capacity_bytes = capacity.map_or(asked, signed);
        Ok(csi::NodeExpandVolumeResponse { capacity_bytes })
    }
}

/// The fields of a call that takes something away. A volume whose id cannot be one is nowhere: `NoVolume`, which
/// Nomad counts as done.
fn volume_at(field: &'static str, volume: &str, path: &str) -> Result<(VolumeId, PathBuf), DriverError> {
    required("volume_id", volume)?;
    required(field, path)?;
    Ok((known_volume(volume)?, path.into()))
}

fn signed(number: u64) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

/// Runs a call of `NodeService` under its deadline, and turns its outcome into a reply.
macro_rules! call {
    ($self:ident, $rpc:literal, $method:ident, $request:expr) => {{
        let (service, request) = ($self.clone(), $request.into_inner());
        let call = Call::new($rpc, request.volume_id.clone());
        let work = |steps: Progress| async move { service.$method(request, steps).await };
        reply(call, within($rpc, NODE_MAX, work).await)
    }};
}

#[async_trait]
impl Node for NodeService {
    async fn node_stage_volume(
        &self,
        request: Request<csi::NodeStageVolumeRequest>,
    ) -> Reply<csi::NodeStageVolumeResponse> {
        call!(self, "NodeStageVolume", stage, request)
    }

    async fn node_unstage_volume(
        &self,
        request: Request<csi::NodeUnstageVolumeRequest>,
    ) -> Reply<csi::NodeUnstageVolumeResponse> {
        call!(self, "NodeUnstageVolume", unstage, request)
    }

    async fn node_publish_volume(
        &self,
        request: Request<csi::NodePublishVolumeRequest>,
    ) -> Reply<csi::NodePublishVolumeResponse> {
        call!(self, "NodePublishVolume", publish, request)
    }

    async fn node_unpublish_volume(
        &self,
        request: Request<csi::NodeUnpublishVolumeRequest>,
    ) -> Reply<csi::NodeUnpublishVolumeResponse> {
        call!(self, "NodeUnpublishVolume", unpublish, request)
    }

    async fn node_get_volume_stats(
        &self,
        request: Request<csi::NodeGetVolumeStatsRequest>,
    ) -> Reply<csi::NodeGetVolumeStatsResponse> {
        call!(self, "NodeGetVolumeStats", stats, request)
    }

    async fn node_get_info(&self, _: Request<csi::NodeGetInfoRequest>) -> Reply<csi::NodeGetInfoResponse> {
        // Whoever asks for the node's id is about to publish to it. But an answer must come while the store is away,
        // too.
        self.registry.settled().await;
        Ok(Response::new(csi::NodeGetInfoResponse {
            node_id: self.node_id.to_string(),
            // No limit of ours.
            max_volumes_per_node: 0,
            // S3 is everywhere (rule 15).
            accessible_topology: None,
        }))
    }

    async fn node_get_capabilities(
        &self,
        _: Request<csi::NodeGetCapabilitiesRequest>,
    ) -> Reply<csi::NodeGetCapabilitiesResponse> {
        use csi::node_service_capability::{Rpc, Type, rpc};
        let capability = |kind: rpc::Type| csi::NodeServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        let offered = [
            rpc::Type::StageUnstageVolume,
            rpc::Type::GetVolumeStats,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::VolumeMountGroup,
            rpc::Type::VolumeCondition,
        ];
        Ok(Response::new(csi::NodeGetCapabilitiesResponse {
            capabilities: offered.into_iter().map(capability).collect(),
        }))
    }

    async fn node_expand_volume(
        &self,
        request: Request<csi::NodeExpandVolumeRequest>,
    ) -> Reply<csi::NodeExpandVolumeResponse> {
        call!(self, "NodeExpandVolume", expand, request)
    }
}
