//! The controller service: decode, call `volume::admin`, encode. What it promises is in the bucket, so any number of
//! controllers may run.
//!
//! Invariants: a volume is never published to a node while another one holds it (rule 8); unpublishing needs nothing
//! of the node (rule 9); a volume in use is never deleted (rule 7). Callers: the server. Absent: anything that
//! touches a mount.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use proto::csi::v1 as csi;
use proto::csi::v1::controller_server::Controller;
use tonic::{Request, Response, Status};
use uuid::Uuid;
use volume::admin::{Admin, AdminError, CapacityRange, CreateVolume, Led, ListedVolume, PublishVolume};
use volume::clock::Clock;
use volume::head::Parameters;
use volume::volume_id::{NodeId, VolumeId};

use crate::capability::Capability;
use crate::cluster::ClustersRef;
use crate::credentials::Credentials;
use crate::deadlines::{CONTROLLER_MAX, Progress, within};
use crate::error::{DriverError, Fault};
use crate::grpc::{Call, reply, volume_of};
use crate::keyring::Keyring;
use crate::publish_context;

mod changes;
mod condition;
mod snapshots;

use snapshots::source_of;

/// In front of every page token. No id holds a colon, so what somebody made up is told from a token.
const PAGE_TAG: &str = "after:";

type Reply<T> = Result<Response<T>, Status>;

/// The controller service.
#[derive(Debug, Clone)]
pub struct ControllerService {
    clusters: ClustersRef,
    keyring: Keyring,
    clock: Arc<dyn Clock>,
}

impl ControllerService {
    /// `keyring` remembers a volume's keys for the calls that Nomad makes without them.
    pub fn new(clusters: ClustersRef, keyring: Keyring, clock: Arc<dyn Clock>) -> Self {
        Self {
            clusters,
            keyring,
            clock,
        }
    }

    /// The verbs with the keys of a call, or with those that an earlier call brought for the volume.
    async fn admin(&self, volume: &VolumeId, secrets: &HashMap<String, String>) -> Result<Arc<Admin>, DriverError> {
        let given = Credentials::from_secrets(secrets)?;
        let keys = match given {
            Some(keys) => {
                self.keyring.keep(volume, &keys)?;
                Some(keys)
            }
            None => self.keyring.find(volume)?,
        };
        self.clusters.admin(keys.as_ref()).await
    }

    async fn create(&self, request: csi::CreateVolumeRequest) -> Result<csi::CreateVolumeResponse, DriverError> {
        required("name", &request.name)?;
        Capability::check_all(&request.volume_capabilities)?;
        let source = source_of(request.volume_content_source)?;
        // What may be changed later may be given at creation in either map.
        let parameters = request.parameters.into_iter().chain(request.mutable_parameters);
        let parameters: BTreeMap<_, _> = parameters.collect();
        let parameters = Parameters::from_map(&parameters)?;
        let capacity = capacity(request.capacity_range)?;
        let volume = VolumeId::of_name(&request.name).map_err(|source| DriverError::Name { field: "name", source })?;
        let admin = self.admin(&volume, &request.secrets).await?;
        let new = CreateVolume {
            name: request.name,
            uuid: Uuid::new_v4(),
            capacity,
            parameters,
            now: self.clock.now(),
        };
        let head = match source {
            None => admin.create(&new).await?,
            Some(source) => self.create_from(&admin, new, source).await?,
        };
        Ok(csi::CreateVolumeResponse {
            volume: Some(volume_of(&head)),
        })
    }

    async fn delete(&self, request: csi::DeleteVolumeRequest) -> Result<csi::DeleteVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        // What cannot be an id was never given out, so it is gone.
        if let Ok(volume) = VolumeId::parse(&request.volume_id) {
            let admin = self.admin(&volume, &request.secrets).await?;
            admin.delete(&volume, Led::Keep).await?;
            self.keyring.forget(&volume)?;
        }
        Ok(csi::DeleteVolumeResponse {})
    }

    async fn publish(
        &self,
        request: csi::ControllerPublishVolumeRequest,
    ) -> Result<csi::ControllerPublishVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        required("node_id", &request.node_id)?;
        let capability = Capability::check(request.volume_capability.as_ref())?;
        let volume = known_volume(&request.volume_id)?;
        let node_id = NodeId::new(&request.node_id).map_err(|_| DriverError::NoNode {
            node: request.node_id.clone(),
        })?;
        // Of a volume that one node has alone, a reader gets a read-only bind mount of the writer's own, so both may come
        // and go (rule 12).
        let read_only = capability.mode.reads_only(request.readonly);
        let admin = self.admin(&volume, &request.secrets).await?;
        let lease = admin
            .publish(&PublishVolume {
                volume,
                node_id,
                read_only,
                mode: capability.mode,
                now: self.clock.now(),
            })
            .await?;
        Ok(csi::ControllerPublishVolumeResponse {
            publish_context: publish_context::encode(lease, read_only),
        })
    }

    async fn unpublish(
        &self,
        request: csi::ControllerUnpublishVolumeRequest,
    ) -> Result<csi::ControllerUnpublishVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        if let Ok(volume) = VolumeId::parse(&request.volume_id) {
            let admin = self.admin(&volume, &request.secrets).await?;
            // CSI: no node means every node. A node id that cannot be one has nothing published.
            if request.node_id.is_empty() {
                admin.unpublish_all(&volume).await?;
            } else if let Ok(node_id) = NodeId::new(&request.node_id) {
                admin.unpublish(&volume, &node_id).await?;
            }
        }
        Ok(csi::ControllerUnpublishVolumeResponse {})
    }

    async fn validate(
        &self,
        request: csi::ValidateVolumeCapabilitiesRequest,
    ) -> Result<csi::ValidateVolumeCapabilitiesResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        let checked = Capability::check_all(&request.volume_capabilities);
        if let Err(missing @ DriverError::Missing { .. }) = checked {
            return Err(missing);
        }
        let volume = known_volume(&request.volume_id)?;
        self.admin(&volume, &request.secrets).await?.get(&volume).await?;
        // An error, and not an answer without `confirmed`: Nomad would take that as a yes.
        checked?;
        let parameters: BTreeMap<_, _> = request.parameters.clone().into_iter().collect();
        Parameters::from_map(&parameters)?;
        // Nomad compares it with what it sent, so it gets back exactly that.
        Ok(csi::ValidateVolumeCapabilitiesResponse {
            confirmed: Some(csi::validate_volume_capabilities_response::Confirmed {
                volume_context: request.volume_context,
                volume_capabilities: request.volume_capabilities,
                parameters: request.parameters,
                mutable_parameters: request.mutable_parameters,
            }),
            message: String::new(),
        })
    }

    async fn list(&self, request: csi::ListVolumesRequest) -> Result<csi::ListVolumesResponse, DriverError> {
        let entries_max =
            usize::try_from(request.max_entries).map_err(|_| DriverError::invalid("max_entries", Fault::Negative))?;
        let after = page_after(&request.starting_token)?;
        let page = self.clusters.admin(None).await?.list(after, entries_max).await?;
        Ok(csi::ListVolumesResponse {
            entries: page.volumes.iter().map(entry).collect(),
            next_token: page.next.map(|id| format!("{PAGE_TAG}{id}")).unwrap_or_default(),
        })
    }

    async fn get(
        &self,
        request: csi::ControllerGetVolumeRequest,
    ) -> Result<csi::ControllerGetVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        let volume = known_volume(&request.volume_id)?;
        let head = self.admin(&volume, &HashMap::new()).await?.get(&volume).await?;
        Ok(csi::ControllerGetVolumeResponse {
            volume: Some(volume_of(&head)),
            status: Some(csi::controller_get_volume_response::VolumeStatus {
                published_node_ids: published(&head),
                volume_condition: Some(condition::of_head(&head)),
            }),
        })
    }
}

fn entry(listed: &ListedVolume) -> csi::list_volumes_response::Entry {
    use csi::list_volumes_response::{Entry, VolumeStatus};
    match &listed.head {
        Ok(head) => Entry {
            volume: Some(volume_of(head)),
            status: Some(VolumeStatus {
                published_node_ids: published(head),
                volume_condition: Some(condition::of_head(head)),
            }),
        },
        // `nomad volume status` is the only place where Nomad shows that a volume is ill.
        Err(error) => Entry {
            volume: Some(csi::Volume {
                volume_id: listed.volume.to_string(),
                ..Default::default()
            }),
            status: Some(VolumeStatus {
                published_node_ids: Vec::new(),
                volume_condition: Some(condition::unreadable(error)),
            }),
        },
    }
}

/// The id that a page token stands for; none for the first page.
fn page_after(token: &str) -> Result<Option<&str>, DriverError> {
    if token.is_empty() {
        return Ok(None);
    }
    let id = token.strip_prefix(PAGE_TAG);
    let refused = || AdminError::PageToken {
        token: token.to_owned(),
    };
    Ok(Some(id.ok_or_else(refused)?))
}

fn published(head: &volume::head::Head) -> Vec<String> {
    let nodes = head
        .publications
        .iter()
        .map(|publication| publication.node_id.to_string());
    nodes.collect()
}

pub(crate) fn required(field: &'static str, value: &str) -> Result<(), DriverError> {
    if value.is_empty() {
        return Err(DriverError::Missing { field });
    }
    Ok(())
}

/// An id that cannot be one is of no volume.
pub(crate) fn known_volume(id: &str) -> Result<VolumeId, DriverError> {
    VolumeId::parse(id).map_err(|_| DriverError::NoVolume { volume: id.to_owned() })
}

fn capacity(range: Option<csi::CapacityRange>) -> Result<CapacityRange, DriverError> {
    let range = range.unwrap_or_default();
    let bytes = |field: &str, value: i64| {
        u64::try_from(value).map_err(|_| DriverError::invalid(format!("capacity_range.{field}"), Fault::Negative))
    };
    Ok(CapacityRange {
        required_bytes: bytes("required_bytes", range.required_bytes)?,
        limit_bytes: bytes("limit_bytes", range.limit_bytes)?,
    })
}

/// Runs a call of `ControllerService` under its deadline, and turns its outcome into a reply.
macro_rules! call {
    ($self:ident, $rpc:literal, $about:expr, $method:ident, $request:expr) => {{
        let (service, request) = ($self.clone(), $request.into_inner());
        let call = Call::new($rpc, $about(&request));
        let work = |steps: Progress| async move {
            steps.at("waiting for the bucket");
            service.$method(request).await
        };
        reply(call, within($rpc, CONTROLLER_MAX, work).await)
    }};
}

#[async_trait]
impl Controller for ControllerService {
    async fn create_volume(&self, request: Request<csi::CreateVolumeRequest>) -> Reply<csi::CreateVolumeResponse> {
        let about = |r: &csi::CreateVolumeRequest| r.name.clone();
        call!(self, "CreateVolume", about, create, request)
    }

    async fn delete_volume(&self, request: Request<csi::DeleteVolumeRequest>) -> Reply<csi::DeleteVolumeResponse> {
        let about = |r: &csi::DeleteVolumeRequest| r.volume_id.clone();
        call!(self, "DeleteVolume", about, delete, request)
    }

    async fn controller_publish_volume(
        &self,
        request: Request<csi::ControllerPublishVolumeRequest>,
    ) -> Reply<csi::ControllerPublishVolumeResponse> {
        let about = |r: &csi::ControllerPublishVolumeRequest| r.volume_id.clone();
        call!(self, "ControllerPublishVolume", about, publish, request)
    }

    async fn controller_unpublish_volume(
        &self,
        request: Request<csi::ControllerUnpublishVolumeRequest>,
    ) -> Reply<csi::ControllerUnpublishVolumeResponse> {
        let about = |r: &csi::ControllerUnpublishVolumeRequest| r.volume_id.clone();
        call!(self, "ControllerUnpublishVolume", about, unpublish, request)
    }

    async fn validate_volume_capabilities(
        &self,
        request: Request<csi::ValidateVolumeCapabilitiesRequest>,
    ) -> Reply<csi::ValidateVolumeCapabilitiesResponse> {
        let about = |r: &csi::ValidateVolumeCapabilitiesRequest| r.volume_id.clone();
        call!(self, "ValidateVolumeCapabilities", about, validate, request)
    }

    async fn list_volumes(&self, request: Request<csi::ListVolumesRequest>) -> Reply<csi::ListVolumesResponse> {
        let about = |_: &csi::ListVolumesRequest| String::new();
        call!(self, "ListVolumes", about, list, request)
    }

    async fn controller_get_volume(
        &self,
        request: Request<csi::ControllerGetVolumeRequest>,
    ) -> Reply<csi::ControllerGetVolumeResponse> {
        let about = |r: &csi::ControllerGetVolumeRequest| r.volume_id.clone();
        call!(self, "ControllerGetVolume", about, get, request)
    }

    async fn controller_get_capabilities(
        &self,
        _: Request<csi::ControllerGetCapabilitiesRequest>,
    ) -> Reply<csi::ControllerGetCapabilitiesResponse> {
        use csi::controller_service_capability::{Rpc, Type, rpc};
        // Not PUBLISH_READONLY (rule 12).
        let offered = [
            rpc::Type::CreateDeleteVolume,
            rpc::Type::PublishUnpublishVolume,
            rpc::Type::ListVolumes,
            rpc::Type::ListVolumesPublishedNodes,
            rpc::Type::GetVolume,
            rpc::Type::VolumeCondition,
            rpc::Type::GetCapacity,
            rpc::Type::ExpandVolume,
            rpc::Type::SingleNodeMultiWriter,
            rpc::Type::ModifyVolume,
            rpc::Type::CreateDeleteSnapshot,
            rpc::Type::ListSnapshots,
            rpc::Type::GetSnapshot,
            rpc::Type::CloneVolume,
        ];
        let capability = |kind: rpc::Type| csi::ControllerServiceCapability {
            r#type: Some(Type::Rpc(Rpc { r#type: kind.into() })),
        };
        Ok(Response::new(csi::ControllerGetCapabilitiesResponse {
            capabilities: offered.into_iter().map(capability).collect(),
        }))
    }

    async fn get_capacity(&self, request: Request<csi::GetCapacityRequest>) -> Reply<csi::GetCapacityResponse> {
        let about = |_: &csi::GetCapacityRequest| String::new();
        call!(self, "GetCapacity", about, capacity, request)
    }

    async fn create_snapshot(
        &self,
        request: Request<csi::CreateSnapshotRequest>,
    ) -> Reply<csi::CreateSnapshotResponse> {
        let about = |r: &csi::CreateSnapshotRequest| r.source_volume_id.clone();
        call!(self, "CreateSnapshot", about, snapshot, request)
    }

    async fn delete_snapshot(
        &self,
        request: Request<csi::DeleteSnapshotRequest>,
    ) -> Reply<csi::DeleteSnapshotResponse> {
        let about = |r: &csi::DeleteSnapshotRequest| r.snapshot_id.clone();
        call!(self, "DeleteSnapshot", about, unsnapshot, request)
    }

    async fn list_snapshots(&self, request: Request<csi::ListSnapshotsRequest>) -> Reply<csi::ListSnapshotsResponse> {
        let about = |r: &csi::ListSnapshotsRequest| r.source_volume_id.clone();
        call!(self, "ListSnapshots", about, snapshots, request)
    }

    async fn get_snapshot(&self, request: Request<csi::GetSnapshotRequest>) -> Reply<csi::GetSnapshotResponse> {
        let about = |r: &csi::GetSnapshotRequest| r.snapshot_id.clone();
        call!(self, "GetSnapshot", about, look_at_snapshot, request)
    }

    async fn controller_expand_volume(
        &self,
        request: Request<csi::ControllerExpandVolumeRequest>,
    ) -> Reply<csi::ControllerExpandVolumeResponse> {
        let about = |r: &csi::ControllerExpandVolumeRequest| r.volume_id.clone();
        call!(self, "ControllerExpandVolume", about, expand, request)
    }

    async fn controller_modify_volume(
        &self,
        request: Request<csi::ControllerModifyVolumeRequest>,
    ) -> Reply<csi::ControllerModifyVolumeResponse> {
        let about = |r: &csi::ControllerModifyVolumeRequest| r.volume_id.clone();
        call!(self, "ControllerModifyVolume", about, modify, request)
    }
}

#[cfg(test)]
mod tests;
