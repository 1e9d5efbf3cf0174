//! Calls that change a volume: its capacity and its parameters; and how much room there is for volumes.
//!
//! Nomad sends ControllerExpandVolume when a volume file is registered again with a larger `capacity_min`, and again with
//! the same range after something else went wrong (quirk N15): so a size that is reached already is a success.

use std::collections::BTreeMap;

use proto::csi::v1 as csi;
use volume::admin::CapacityRange;
use volume::head::Parameters;
use volume::limits::CAPACITY_BYTES_UNLIMITED;

use super::{ControllerService, capacity, known_volume, required};
use crate::capability::Capability;
use crate::error::DriverError;

/// 2^60 bytes: what `df` tells of a volume without a limit, so no larger one can be asked for.
const VOLUME_BYTES_MAX: i64 = CAPACITY_BYTES_UNLIMITED as i64;

impl ControllerService {
    pub(super) async fn expand(
        &self,
        request: csi::ControllerExpandVolumeRequest,
    ) -> Result<csi::ControllerExpandVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        let asked = capacity(request.capacity_range)?;
        if asked == CapacityRange::default() {
            return Err(DriverError::Missing {
                field: "capacity_range",
            });
        }
        if request.volume_capability.is_some() {
            Capability::check(request.volume_capability.as_ref())?;
        }
        let volume = known_volume(&request.volume_id)?;
        let admin = self.admin(&volume, &request.secrets).await?;
        let head = admin.expand(&volume, asked).await?;
        // A volume without a limit has room for whatever was asked; 0 would read as "unknown".
        let bytes = if head.capacity_bytes == 0 {
            asked.required_bytes.max(1)
        } else {
            head.capacity_bytes
        };
        Ok(csi::ControllerExpandVolumeResponse {
            capacity_bytes: i64::try_from(bytes).unwrap_or(i64::MAX),
            // A mount looks at the head by itself, so no node has to be asked (quirk N15).
            node_expansion_required: false,
        })
    }

    pub(super) async fn modify(
        &self,
        request: csi::ControllerModifyVolumeRequest,
    ) -> Result<csi::ControllerModifyVolumeResponse, DriverError> {
        required("volume_id", &request.volume_id)?;
        let changes: BTreeMap<_, _> = request.mutable_parameters.into_iter().collect();
        // A parameter that cannot be is told also where the volume does not exist.
        Parameters::default().changed(&changes)?;
        let volume = known_volume(&request.volume_id)?;
        let admin = self.admin(&volume, &request.secrets).await?;
        admin.modify(&volume, &changes).await?;
        Ok(csi::ControllerModifyVolumeResponse {})
    }

    pub(super) async fn capacity(
        &self,
        request: csi::GetCapacityRequest,
    ) -> Result<csi::GetCapacityResponse, DriverError> {
        if !request.volume_capabilities.is_empty() {
            Capability::check_all(&request.volume_capabilities)?;
        }
        let parameters: BTreeMap<_, _> = request.parameters.into_iter().collect();
        Parameters::from_map(&parameters)?;
        // A bucket has no end that anybody could ask for; what limits a volume is the number that a capacity can be.
        Ok(csi::GetCapacityResponse {
            available_capacity: VOLUME_BYTES_MAX,
            maximum_volume_size: Some(VOLUME_BYTES_MAX),
            minimum_volume_size: Some(1),
        })
    }
}
