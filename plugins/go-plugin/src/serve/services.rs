//! The services that every plugin has beside its own: health, broker, stdio and controller.

use std::{future, time::Duration};

use futures::{Stream, StreamExt, stream::BoxStream};
use proto::goplugin::{
    ConnInfo, Empty, StdioData,
    grpc_broker_server::{GrpcBroker, GrpcBrokerServer},
    grpc_controller_server::{GrpcController, GrpcControllerServer},
    grpc_stdio_server::{GrpcStdio, GrpcStdioServer},
};
use tokio_util::sync::CancellationToken;
use tonic::{Request, Response, Status, Streaming, service::Routes};
use tonic_health::ServingStatus;

use super::connection::ConnectionClosed;

/// The name under which go-plugin asks for a plugin's health.
const HEALTH_NAME: &str = "plugin";

/// 500 ms: how long the process waits for the host to close after it was answered. The host kills after 2 s.
const CLOSE_LIMIT: Duration = Duration::from_millis(500);

/// Adds the services to a plugin's routes. `exit` is cancelled when the host asked for the end and has its answer.
pub(super) async fn add_own(routes: Routes, exit: &CancellationToken) -> Routes {
    let (reporter, health) = tonic_health::server::health_reporter();
    reporter.set_service_status(HEALTH_NAME, ServingStatus::Serving).await;
    routes
        .add_service(health)
        .add_service(GrpcBrokerServer::new(Broker))
        .add_service(GrpcStdioServer::new(Stdio))
        .add_service(GrpcControllerServer::new(Controller { exit: exit.clone() }))
}

/// Open for as long as the host likes, and silent: this plugin brokers no further connections.
struct Broker;

#[tonic::async_trait]
impl GrpcBroker for Broker {
    type StartStreamStream = BoxStream<'static, Result<ConnInfo, Status>>;

    async fn start_stream(
        &self,
        request: Request<Streaming<ConnInfo>>,
    ) -> Result<Response<Self::StartStreamStream>, Status> {
        // Read to its end, so that the host's announcements do not pile up.
        Ok(Response::new(silent(request.into_inner()).boxed()))
    }
}

/// A stream that takes everything, gives nothing, and ends with what it takes from.
fn silent<T: 'static>(incoming: Streaming<T>) -> impl Stream<Item = Result<T, Status>> {
    incoming.filter_map(|_| future::ready(None))
}

/// Open for as long as the host likes, and silent: this plugin prints nothing.
struct Stdio;

#[tonic::async_trait]
impl GrpcStdio for Stdio {
    type StreamStdioStream = futures::stream::Pending<Result<StdioData, Status>>;

    async fn stream_stdio(&self, _request: Request<()>) -> Result<Response<Self::StreamStdioStream>, Status> {
        Ok(Response::new(futures::stream::pending()))
    }
}

/// Ends the process.
struct Controller {
    exit: CancellationToken,
}

#[tonic::async_trait]
impl GrpcController for Controller {
    async fn shutdown(&self, request: Request<Empty>) -> Result<Response<Empty>, Status> {
        let closed = request.extensions().get::<ConnectionClosed>().cloned();
        let exit = self.exit.clone();
        tokio::spawn(async move {
            let closed = async {
                match closed {
                    Some(ConnectionClosed(closed)) => closed.cancelled().await,
                    None => future::pending().await,
                }
            };
            // A host that does not close in time has its answer all the same.
            let _ = tokio::time::timeout(CLOSE_LIMIT, closed).await;
            exit.cancel();
        });
        Ok(Response::new(Empty {}))
    }
}
