//! The controller's calls about snapshots, and volumes that begin as something.
//!
//! A snapshot's id is made from its name, and all volumes of the cluster share one name space of snapshots, as CSI wants
//! it. Nomad sends a volume's secrets when it makes a snapshot, and only those of its command line when it lists or deletes
//! them; without any, those that the snapshot was made with are used, else the plugin's own.

use std::collections::HashMap;
use std::sync::Arc;

use proto::csi::v1 as csi;
use volume::admin::{Admin, CreateVolume};
use volume::head::Head;
use volume::lineage::Source;
use volume::snapshot::{NewClone, Snapshot};
use volume::volume_id::{SnapshotId, VolumeId};

use super::{ControllerService, PAGE_TAG, known_volume, page_after, required};
use crate::credentials::Credentials;
use crate::error::{DriverError, Fault};

impl ControllerService {
    /// The verbs, with the keys of a call that is about no volume, or the plugin's own.
    async fn admin_of_snapshots(&self, secrets: &HashMap<String, String>) -> Result<Arc<Admin>, DriverError> {
        let keys = Credentials::from_secrets(secrets)?;
        self.clusters.admin(keys.as_ref()).await
    }

    /// The verbs, with the keys of the call, of the snapshot's making, or the plugin's own.
    async fn admin_of(&self, id: &SnapshotId, secrets: &HashMap<String, String>) -> Result<Arc<Admin>, DriverError> {
        let keys = match Credentials::from_secrets(secrets)? {
            Some(keys) => Some(keys),
            None => self.keyring.find(id)?,
        };
        self.clusters.admin(keys.as_ref()).await
    }

    pub(super) async fn snapshot(
        &self,
        request: csi::CreateSnapshotRequest,
    ) -> Result<csi::CreateSnapshotResponse, DriverError> {
        required("source_volume_id", &request.source_volume_id)?;
        required("name", &request.name)?;
        if let Some(name) = request.parameters.keys().next() {
            return Err(DriverError::invalid(
                format!("parameters.{name}"),
                Fault::SnapshotParameter,
            ));
        }
        SnapshotId::of_name(&request.name).map_err(|source| DriverError::Name { field: "name", source })?;
        let volume = known_volume(&request.source_volume_id)?;
        let family = self.admin(&volume, &request.secrets).await?.family();
        let made = family
            .snapshot(volume.as_str(), &request.name, self.clock.now())
            .await?;
        if let Some(keys) = self.keyring.find(&volume)? {
            self.keyring.keep(&made.id, &keys)?;
        }
        Ok(csi::CreateSnapshotResponse {
            snapshot: Some(told(&made)),
        })
    }

    pub(super) async fn unsnapshot(
        &self,
        request: csi::DeleteSnapshotRequest,
    ) -> Result<csi::DeleteSnapshotResponse, DriverError> {
        required("snapshot_id", &request.snapshot_id)?;
        // What cannot be an id was never given out, so it is gone.
        if let Ok(id) = SnapshotId::parse(&request.snapshot_id) {
            let admin = self.admin_of(&id, &request.secrets).await?;
            admin.family().delete_snapshot(&id).await?;
            self.keyring.forget(&id)?;
        }
        Ok(csi::DeleteSnapshotResponse {})
    }

    pub(super) async fn look_at_snapshot(
        &self,
        request: csi::GetSnapshotRequest,
    ) -> Result<csi::GetSnapshotResponse, DriverError> {
        required("snapshot_id", &request.snapshot_id)?;
        let id = known_snapshot(&request.snapshot_id)?;
        let admin = self.admin_of(&id, &request.secrets).await?;
        let found = admin.family().find_snapshot(&id).await?;
        Ok(csi::GetSnapshotResponse {
            snapshot: Some(told(&found)),
        })
    }

    pub(super) async fn snapshots(
        &self,
        request: csi::ListSnapshotsRequest,
    ) -> Result<csi::ListSnapshotsResponse, DriverError> {
        let entries_max =
            usize::try_from(request.max_entries).map_err(|_| DriverError::invalid("max_entries", Fault::Negative))?;
        let after = match page_after(&request.starting_token)? {
            Some(id) => Some(SnapshotId::parse(id).map_err(|_| bad_token(&request.starting_token))?),
            None => None,
        };
        let none = csi::ListSnapshotsResponse::default();
        // CSI: an unknown volume or snapshot has an empty list.
        let of = match request.source_volume_id.as_str() {
            "" => None,
            id => match VolumeId::parse(id) {
                Ok(volume) => Some(volume),
                Err(_) => return Ok(none),
            },
        };
        let family = self.admin_of_snapshots(&request.secrets).await?.family();
        if !request.snapshot_id.is_empty() {
            let Ok(id) = SnapshotId::parse(&request.snapshot_id) else {
                return Ok(none);
            };
            let found = family.look_up_snapshot(&id).await?;
            let found = found.filter(|found| of.as_ref().is_none_or(|of| *of == found.volume));
            return Ok(csi::ListSnapshotsResponse {
                entries: found.iter().map(entry).collect(),
                next_token: String::new(),
            });
        }
        let page = family.snapshots(after.as_ref(), entries_max, of.as_ref()).await?;
        Ok(csi::ListSnapshotsResponse {
            entries: page.snapshots.iter().map(entry).collect(),
            next_token: page.next.map(|id| format!("{PAGE_TAG}{id}")).unwrap_or_default(),
        })
    }

    /// Makes a volume that begins as `source`.
    pub(super) async fn create_from(
        &self,
        admin: &Admin,
        volume: CreateVolume,
        source: Source,
    ) -> Result<Head, DriverError> {
        let folder = VolumeId::of_name(&volume.name).map_err(|source| DriverError::Name { field: "name", source })?;
        let new = NewClone {
            volume,
            folder: folder.to_string(),
            source,
        };
        Ok(admin.family().clone_volume(&new).await?)
    }
}

/// What a volume is to begin as.
pub(super) fn source_of(source: Option<csi::VolumeContentSource>) -> Result<Option<Source>, DriverError> {
    use csi::volume_content_source::Type;
    let Some(source) = source else { return Ok(None) };
    match source.r#type {
        Some(Type::Snapshot(snapshot)) => {
            required("volume_content_source.snapshot_id", &snapshot.snapshot_id)?;
            Ok(Some(Source::Snapshot(known_snapshot(&snapshot.snapshot_id)?)))
        }
        Some(Type::Volume(volume)) => {
            required("volume_content_source.volume_id", &volume.volume_id)?;
            Ok(Some(Source::Volume(known_volume(&volume.volume_id)?)))
        }
        None => Err(DriverError::Missing {
            field: "volume_content_source.type",
        }),
    }
}

fn known_snapshot(id: &str) -> Result<SnapshotId, DriverError> {
    SnapshotId::parse(id).map_err(|_| DriverError::NoSnapshot {
        snapshot: id.to_owned(),
    })
}

fn bad_token(token: &str) -> DriverError {
    DriverError::Admin(volume::admin::AdminError::PageToken {
        token: token.to_owned(),
    })
}

fn entry(snapshot: &Snapshot) -> csi::list_snapshots_response::Entry {
    csi::list_snapshots_response::Entry {
        snapshot: Some(told(snapshot)),
    }
}

/// What a CSI caller is told of a snapshot.
fn told(snapshot: &Snapshot) -> csi::Snapshot {
    let ms = snapshot.created_unix_ms;
    csi::Snapshot {
        // The least that a volume of it must have: 0, unknown, where the volume has no limit.
        size_bytes: i64::try_from(snapshot.capacity_bytes).unwrap_or(i64::MAX),
        snapshot_id: snapshot.id.to_string(),
        source_volume_id: snapshot.volume.to_string(),
        creation_time: Some(prost_types::Timestamp {
            seconds: ms.div_euclid(1_000),
            nanos: i32::try_from(ms.rem_euclid(1_000)).unwrap_or_default() * 1_000_000,
        }),
        ready_to_use: true,
        group_snapshot_id: String::new(),
    }
}
