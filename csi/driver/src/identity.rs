//! The identity service: who this plugin is and what it offers.
//!
//! Invariant: everything is answered from memory. Nomad restarts a plugin that does not answer Probe in time, so a
//! store that is away must not show here.

use async_trait::async_trait;
use proto::csi::v1 as csi;
use proto::csi::v1::identity_server::Identity;
use tonic::{Request, Response, Status};

/// What Nomad stores as the plugin's identity. It may never change (rule 16): volumes of a plugin of another name
/// cannot be updated.
pub const PLUGIN_NAME: &str = "pannier.csi";

/// The identity service.
#[derive(Debug)]
pub struct IdentityService;

#[async_trait]
impl Identity for IdentityService {
    async fn get_plugin_info(
        &self,
        _: Request<csi::GetPluginInfoRequest>,
    ) -> Result<Response<csi::GetPluginInfoResponse>, Status> {
        Ok(Response::new(csi::GetPluginInfoResponse {
            name: PLUGIN_NAME.to_owned(),
            vendor_version: env!("CARGO_PKG_VERSION").to_owned(),
            manifest: Default::default(),
        }))
    }

    async fn get_plugin_capabilities(
        &self,
        _: Request<csi::GetPluginCapabilitiesRequest>,
    ) -> Result<Response<csi::GetPluginCapabilitiesResponse>, Status> {
        use csi::plugin_capability::{Service, Type, service};
        // Also where this process is only a node: what Nomad reads from it is that volumes need a controller somewhere.
        let controller = csi::PluginCapability {
            r#type: Some(Type::Service(Service {
                r#type: service::Type::ControllerService.into(),
            })),
        };
        Ok(Response::new(csi::GetPluginCapabilitiesResponse {
            capabilities: vec![controller],
        }))
    }

    async fn probe(&self, _: Request<csi::ProbeRequest>) -> Result<Response<csi::ProbeResponse>, Status> {
        Ok(Response::new(csi::ProbeResponse { ready: Some(true) }))
    }
}
