//! The BasePlugin service: who we are, which options we take, and taking them.
//! Invariant: a mistake in the options is told in words for the person who starts the agent, since it stops the agent.

use proto::nomad::base::base_plugin_server::BasePlugin;
use proto::nomad::base::{
    ClientTopology, ConfigSchemaRequest, ConfigSchemaResponse, PluginInfoRequest, PluginInfoResponse, PluginType,
    SetConfigRequest, SetConfigResponse,
};
use tonic::{Request, Response, Status};

use crate::compute::{Compute, Core};
use crate::config::Config;
use crate::grpc;
use crate::plugin::Plugin;
use crate::schema;

/// The driver's name in jobs. Nomad's Connect integration looks for exactly this one.
pub const DRIVER_NAME: &str = "podman";

/// The plugin API that Nomad 0.9 and later speak.
const PLUGIN_API_VERSION: &str = "v0.1.0";

/// The service.
#[derive(Debug, Clone)]
pub struct BasePluginService {
    plugin: Plugin,
    uid: u32,
}

impl BasePluginService {
    /// For a plugin that runs as `uid`.
    #[must_use]
    pub fn new(plugin: Plugin, uid: u32) -> Self {
        Self { plugin, uid }
    }
}

#[tonic::async_trait]
impl BasePlugin for BasePluginService {
    async fn plugin_info(&self, _: Request<PluginInfoRequest>) -> Result<Response<PluginInfoResponse>, Status> {
        Ok(Response::new(PluginInfoResponse {
            r#type: PluginType::Driver.into(),
            plugin_api_versions: vec![PLUGIN_API_VERSION.to_owned()],
            plugin_version: env!("CARGO_PKG_VERSION").to_owned(),
            name: DRIVER_NAME.to_owned(),
        }))
    }

    async fn config_schema(&self, _: Request<ConfigSchemaRequest>) -> Result<Response<ConfigSchemaResponse>, Status> {
        Ok(Response::new(ConfigSchemaResponse {
            spec: Some(schema::plugin()),
        }))
    }

    async fn set_config(&self, request: Request<SetConfigRequest>) -> Result<Response<SetConfigResponse>, Status> {
        let request = request.into_inner();
        let config = Config::decode(&request.msgpack_config, self.uid).map_err(|error| grpc::status(&error.into()))?;
        if config.recover_stopped {
            tracing::warn!("recover_stopped starts ended containers again whenever the agent restarts");
        }
        let topology = request
            .nomad_config
            .and_then(|nomad| nomad.driver)
            .and_then(|driver| driver.topology);
        self.plugin.configure(config, topology.map(compute).unwrap_or_default());
        Ok(Response::new(SetConfigResponse {}))
    }
}

fn compute(topology: ClientTopology) -> Compute {
    let core = |core: &proto::nomad::base::ClientTopologyCore| Core {
        base_mhz: core.base_speed,
        max_mhz: core.max_speed,
        guess_mhz: core.guess_speed,
    };
    let cores: Vec<Core> = topology.cores.iter().map(core).collect();
    Compute::of(&cores, topology.override_total_compute)
}
