//! The Driver service: each of Nomad's calls is decoded, handed on, and its answer encoded. No decision is made here.
//! Who decides: start.rs, recover.rs, stop.rs, exec.rs, stats.rs, fingerprint.rs. How errors are told: grpc.rs.

mod decode;
mod encode;
mod exec;
mod stats;

use std::sync::Arc;

use futures::StreamExt;
use futures::stream::BoxStream;
use proto::nomad::driver::driver_capabilities::{FsIsolation, MountConfigs};
use proto::nomad::driver::driver_server::Driver;
use proto::nomad::driver::network_isolation_spec::NetworkIsolationMode;
use proto::nomad::driver::{
    CapabilitiesRequest, CapabilitiesResponse, CreateNetworkRequest, CreateNetworkResponse, DestroyNetworkRequest,
    DestroyNetworkResponse, DestroyTaskRequest, DestroyTaskResponse, DriverCapabilities, DriverTaskEvent,
    ExecTaskRequest, ExecTaskResponse, ExecTaskStreamingRequest, ExecTaskStreamingResponse, FingerprintRequest,
    FingerprintResponse, InitRequest, InitResponse, InspectTaskRequest, InspectTaskResponse, RecoverTaskRequest,
    RecoverTaskResponse, ShutdownRequest, ShutdownResponse, SignalTaskRequest, SignalTaskResponse, StartTaskRequest,
    StartTaskResponse, StopTaskRequest, StopTaskResponse, TaskConfigSchemaRequest, TaskConfigSchemaResponse,
    TaskEventsRequest, TaskStatsRequest, TaskStatsResponse, WaitTaskRequest, WaitTaskResponse,
};
use tonic::{Request, Response, Status, Streaming};

use crate::error::DriverError;
use crate::events::Subject;
use crate::fingerprint::Fingerprinter;
use crate::plugin::Plugin;
use crate::{grpc, recover, schema, start, stop};

/// The service.
#[derive(Debug, Clone)]
pub struct DriverService {
    plugin: Plugin,
    fingerprinter: Arc<Fingerprinter>,
}

/// Messages to Nomad for as long as it listens.
type Messages<T> = BoxStream<'static, Result<T, Status>>;

impl DriverService {
    /// For a plugin.
    #[must_use]
    pub fn new(plugin: Plugin) -> Self {
        Self {
            plugin,
            fingerprinter: Arc::default(),
        }
    }

    fn capabilities(&self) -> DriverCapabilities {
        let modes = [
            NetworkIsolationMode::Host,
            NetworkIsolationMode::Group,
            NetworkIsolationMode::Task,
        ];
        DriverCapabilities {
            send_signals: true,
            exec: true,
            fs_isolation: FsIsolation::Image.into(),
            network_isolation_modes: modes.into_iter().map(i32::from).collect(),
            must_create_network: false,
            mount_configs: MountConfigs::UnknownMounts.into(),
            disable_log_collection: self.plugin.settings().config.disable_log_collection,
            dynamic_workload_users: false,
        }
    }
}

/// An answer, or the status of its error.
fn answer<T>(result: Result<T, DriverError>) -> Result<Response<T>, Status> {
    result.map(Response::new).map_err(|error| grpc::status(&error))
}

#[tonic::async_trait]
impl Driver for DriverService {
    type FingerprintStream = Messages<FingerprintResponse>;
    type TaskStatsStream = Messages<TaskStatsResponse>;
    type TaskEventsStream = Messages<DriverTaskEvent>;
    type ExecTaskStreamingStream = Messages<ExecTaskStreamingResponse>;

    async fn init(&self, _: Request<InitRequest>) -> Result<Response<InitResponse>, Status> {
        self.plugin.clearing.begin(&self.plugin);
        Ok(Response::new(InitResponse {}))
    }

    async fn task_config_schema(
        &self,
        _: Request<TaskConfigSchemaRequest>,
    ) -> Result<Response<TaskConfigSchemaResponse>, Status> {
        Ok(Response::new(TaskConfigSchemaResponse {
            spec: Some(schema::task()),
        }))
    }

    async fn capabilities(&self, _: Request<CapabilitiesRequest>) -> Result<Response<CapabilitiesResponse>, Status> {
        Ok(Response::new(CapabilitiesResponse {
            capabilities: Some(Self::capabilities(self)),
        }))
    }

    async fn fingerprint(&self, _: Request<FingerprintRequest>) -> Result<Response<Self::FingerprintStream>, Status> {
        let fingerprints = self.fingerprinter.subscribe(&self.plugin);
        Ok(Response::new(
            fingerprints.map(|one| Ok(encode::fingerprint(one))).boxed(),
        ))
    }

    async fn recover_task(
        &self,
        request: Request<RecoverTaskRequest>,
    ) -> Result<Response<RecoverTaskResponse>, Status> {
        let request = request.into_inner();
        let handle = request.handle.unwrap_or_default();
        // Nomad never sets the request's own task_id; after an agent restart the handle's config has little more than ids.
        let config = handle.config.unwrap_or_default();
        self.plugin.runs_on(&config.node_id);
        let subject = Subject {
            task_id: config.id,
            task_name: config.name,
            alloc_id: config.alloc_id,
        };
        let recovered = recover::recover(&self.plugin, &subject, &handle.driver_state).await;
        answer(recovered.map(|_| RecoverTaskResponse {}))
    }

    async fn start_task(&self, request: Request<StartTaskRequest>) -> Result<Response<StartTaskResponse>, Status> {
        let Some(config) = request.into_inner().task else {
            return Err(grpc::start_status(&DriverError::Incomplete { what: "task" }));
        };
        self.plugin.runs_on(&config.node_id);
        let options = config.msgpack_driver_config.clone();
        match start::start(self.plugin.clone(), decode::task(&config), options).await {
            Ok(task) => Ok(Response::new(encode::started(&task, config))),
            Err(error) => Err(grpc::start_status(&error)),
        }
    }

    async fn wait_task(&self, request: Request<WaitTaskRequest>) -> Result<Response<WaitTaskResponse>, Status> {
        // An error of this call means to Nomad that the task has failed, so there is none for a task that we know.
        let task = self
            .plugin
            .task(&request.into_inner().task_id)
            .map_err(|error| grpc::status(&error))?;
        Ok(Response::new(encode::waited(&task.ended().await)))
    }

    async fn stop_task(&self, request: Request<StopTaskRequest>) -> Result<Response<StopTaskResponse>, Status> {
        let request = request.into_inner();
        let timeout = decode::duration(request.timeout);
        let stopped = stop::stop(&self.plugin, &request.task_id, timeout, &request.signal).await;
        answer(stopped.map(|()| StopTaskResponse {}))
    }

    async fn destroy_task(
        &self,
        request: Request<DestroyTaskRequest>,
    ) -> Result<Response<DestroyTaskResponse>, Status> {
        let request = request.into_inner();
        let destroyed = stop::destroy(&self.plugin, &request.task_id, request.force).await;
        answer(destroyed.map(|()| DestroyTaskResponse {}))
    }

    async fn inspect_task(
        &self,
        request: Request<InspectTaskRequest>,
    ) -> Result<Response<InspectTaskResponse>, Status> {
        answer(
            self.plugin
                .task(&request.into_inner().task_id)
                .map(|task| encode::inspected(&task)),
        )
    }

    async fn task_stats(&self, request: Request<TaskStatsRequest>) -> Result<Response<Self::TaskStatsStream>, Status> {
        let request = request.into_inner();
        let interval = decode::duration(request.collection_interval);
        answer(stats::stream(&self.plugin, &request.task_id, interval))
    }

    async fn task_events(&self, _: Request<TaskEventsRequest>) -> Result<Response<Self::TaskEventsStream>, Status> {
        Ok(Response::new(
            self.plugin
                .events
                .subscribe()
                .map(|event| Ok(encode::event(event)))
                .boxed(),
        ))
    }

    async fn shutdown(&self, _: Request<ShutdownRequest>) -> Result<Response<ShutdownResponse>, Status> {
        // The process ends by the controller's Shutdown that follows. Containers keep running: the agent restarts.
        Ok(Response::new(ShutdownResponse {}))
    }

    async fn signal_task(&self, request: Request<SignalTaskRequest>) -> Result<Response<SignalTaskResponse>, Status> {
        let request = request.into_inner();
        let signalled = stop::signal(&self.plugin, &request.task_id, &request.signal).await;
        answer(signalled.map(|()| SignalTaskResponse {}))
    }

    async fn exec_task(&self, request: Request<ExecTaskRequest>) -> Result<Response<ExecTaskResponse>, Status> {
        let request = request.into_inner();
        let limit = decode::duration(request.timeout);
        answer(exec::run(&self.plugin, &request.task_id, request.command, limit).await)
    }

    async fn exec_task_streaming(
        &self,
        request: Request<Streaming<ExecTaskStreamingRequest>>,
    ) -> Result<Response<Self::ExecTaskStreamingStream>, Status> {
        answer(exec::stream(&self.plugin, request.into_inner()).await)
    }

    async fn create_network(
        &self,
        _: Request<CreateNetworkRequest>,
    ) -> Result<Response<CreateNetworkResponse>, Status> {
        answer(Err(DriverError::NotOffered { call: "CreateNetwork" }))
    }

    async fn destroy_network(
        &self,
        _: Request<DestroyNetworkRequest>,
    ) -> Result<Response<DestroyNetworkResponse>, Status> {
        answer(Err(DriverError::NotOffered { call: "DestroyNetwork" }))
    }
}
