//! The control service of engine.proto: decode, call `Engine`, encode.
//!
//! A call goes on when its caller hangs up: a mount half made would help nobody, and the next call finds it done.

use std::future::Future;
use std::path::{Path, PathBuf};
use std::time::Duration;

use proto::engine::v1 as wire;
use proto::engine::v1::engine_server::{Engine as EngineService, EngineServer};
use proto::engine::v1::unmount_request::Which;
use tokio::sync::watch;
use tokio::time::Instant;
use tonic::{Request, Response, Status};
use volume::head::Transport;
use volume::ids::Lease;
use volume::volume::CacheConfig;
use volume::volume_id::NodeId;
use volume_s3::{PutOptions, S3Location};

use super::process::EngineConfig;
use super::status::status_of;
use super::{Engine, EngineError, MountInfo, MountSpec};
use crate::open::{OpenSpec, RootOwner};
use crate::store::{Access, Keys};

/// 60 s where a caller names no deadline: Nomad's own patience with a node plugin.
const DEADLINE_DEFAULT: Duration = Duration::from_secs(60);

/// The service, over one engine.
#[derive(Debug)]
pub struct Service {
    engine: Engine,
    cache: CacheConfig,
    state_dir: Option<PathBuf>,
    version: &'static str,
    since_unix_ms: u64,
    stop: watch::Sender<bool>,
}

impl Service {
    /// `stop` is set to true once `Shutdown` has unmounted everything.
    pub fn new(engine: Engine, config: &EngineConfig, since_unix_ms: u64, stop: watch::Sender<bool>) -> Self {
        Self {
            engine,
            cache: config.cache.clone(),
            state_dir: config.state_dir.clone(),
            version: config.version,
            since_unix_ms,
            stop,
        }
    }

    /// As a gRPC service.
    pub fn into_server(self) -> EngineServer<Self> {
        EngineServer::new(self)
    }

    fn spec(&self, mut request: wire::MountRequest) -> Result<MountSpec, Status> {
        let cache = self.cache_of(request.cache.take().unwrap_or_default());
        let mut spec = spec_of(request)?;
        spec.open.cache = cache;
        spec.open.state_dir = self.state_dir.clone();
        Ok(spec)
    }

    fn cache_of(&self, asked: wire::CacheSettings) -> CacheConfig {
        let or = |asked: u64, default: u64| if asked == 0 { default } else { asked };
        CacheConfig {
            dir: if asked.dir.is_empty() {
                self.cache.dir.clone()
            } else {
                Some(PathBuf::from(asked.dir))
            },
            ram_bytes: or(asked.ram_bytes, self.cache.ram_bytes),
            disk_bytes: or(asked.disk_bytes, self.cache.disk_bytes),
        }
    }
}

/// What a request says by itself.
pub(super) fn spec_of(request: wire::MountRequest) -> Result<MountSpec, Status> {
    if request.volume_id.is_empty() || request.volume_id.chars().any(char::is_control) {
        return Err(Status::invalid_argument(
            "volume_id is empty or holds control characters",
        ));
    }
    let mountpoint = PathBuf::from(&request.mountpoint);
    if !mountpoint.is_absolute() {
        return Err(Status::invalid_argument(format!(
            "mountpoint {:?} is not an absolute path",
            request.mountpoint
        )));
    }
    let place = request
        .location
        .ok_or_else(|| Status::invalid_argument("location is missing"))?;
    let options = request.options.unwrap_or_default();
    let node_id =
        NodeId::new(&request.node_id).map_err(|error| Status::invalid_argument(format!("node_id: {error}")))?;
    let cache = request.cache.unwrap_or_default();
    let open = OpenSpec {
        location: location(&place)?,
        access: access(&place, request.credentials)?,
        node_id,
        read_only: request.read_only,
        lease: (request.lease != 0).then_some(Lease(request.lease)),
        take_over: request.take_over,
        create: None,
        cache: CacheConfig {
            dir: (!cache.dir.is_empty()).then(|| PathBuf::from(cache.dir)),
            ram_bytes: cache.ram_bytes,
            disk_bytes: cache.disk_bytes,
        },
        state_dir: None,
        root: root_owner(&options)?,
        transport: transport_asked(&options)?,
    };
    let (noexec, nosuid) = (options.noexec, options.nosuid);
    Ok(MountSpec {
        volume_id: request.volume_id,
        open,
        mountpoint,
        noexec,
        nosuid,
    })
}

/// The request that asks for this again, with what the engine has added to it, but for its state folder.
pub(super) fn request_of(spec: &MountSpec) -> wire::MountRequest {
    let open = &spec.open;
    let mountpoint = spec.mountpoint.to_string_lossy().into_owned();
    let folder = |path: &Option<PathBuf>| {
        path.as_deref()
            .map(Path::to_string_lossy)
            .unwrap_or_default()
            .into_owned()
    };
    wire::MountRequest {
        volume_id: spec.volume_id.clone(),
        location: Some(place_of(&open.location, &open.access)),
        credentials: open.access.keys.clone().map(|keys| wire::Credentials {
            access_key_id: keys.id,
            secret_access_key: keys.secret,
            session_token: keys.session_token.unwrap_or_default(),
        }),
        mountpoint,
        read_only: open.read_only,
        node_id: open.node_id.to_string(),
        lease: open.lease.map_or(0, |lease| lease.0),
        take_over: open.take_over,
        cache: Some(wire::CacheSettings {
            dir: folder(&open.cache.dir),
            disk_bytes: open.cache.disk_bytes,
            ram_bytes: open.cache.ram_bytes,
        }),
        options: Some(wire::MountOptions {
            uid: open.root.uid,
            gid: open.root.gid,
            mode: open.root.mode.map(u32::from),
            noexec: spec.noexec,
            nosuid: spec.nosuid,
            transport: open
                .transport
                .map_or(wire::Transport::Unspecified, wire_transport)
                .into(),
        }),
    }
}

fn place_of(location: &S3Location, access: &Access) -> wire::VolumeLocation {
    let put = &access.put;
    let text = |given: &Option<String>| given.clone().unwrap_or_default();
    wire::VolumeLocation {
        bucket: location.bucket.clone(),
        prefix: location.prefix.trim_end_matches('/').to_owned(),
        endpoint: text(&access.endpoint),
        region: text(&access.region),
        path_style: access.path_style.unwrap_or(false),
        storage_class: text(&put.storage_class),
        sse: text(&put.sse),
        sse_kms_key_id: text(&put.sse_kms_key_id),
        ca_bundle: access
            .ca_bundle
            .as_deref()
            .map(Path::to_string_lossy)
            .unwrap_or_default()
            .into_owned(),
    }
}

fn location(place: &wire::VolumeLocation) -> Result<S3Location, Status> {
    let url = format!("s3://{}/{}", place.bucket, place.prefix);
    url.parse()
        .map_err(|error| Status::invalid_argument(format!("location: {error}")))
}

fn access(place: &wire::VolumeLocation, credentials: Option<wire::Credentials>) -> Result<Access, Status> {
    let given = |text: &String| (!text.is_empty()).then(|| text.clone());
    let put = PutOptions {
        storage_class: given(&place.storage_class),
        sse: given(&place.sse),
        sse_kms_key_id: given(&place.sse_kms_key_id),
    };
    put.check()
        .map_err(|error| Status::invalid_argument(format!("location: {error}")))?;
    Ok(Access {
        put,
        endpoint: given(&place.endpoint),
        region: given(&place.region),
        path_style: place.path_style.then_some(true),
        ca_bundle: given(&place.ca_bundle).map(PathBuf::from),
        keys: credentials.map(keys).transpose()?,
    })
}

fn keys(credentials: wire::Credentials) -> Result<Keys, Status> {
    if credentials.access_key_id.is_empty() || credentials.secret_access_key.is_empty() {
        return Err(Status::invalid_argument(
            "credentials lack access_key_id or secret_access_key",
        ));
    }
    let session_token = (!credentials.session_token.is_empty()).then_some(credentials.session_token);
    Ok(Keys {
        id: credentials.access_key_id,
        secret: credentials.secret_access_key,
        session_token,
    })
}

fn root_owner(options: &wire::MountOptions) -> Result<RootOwner, Status> {
    let mode = match options.mode {
        Some(mode) if mode > 0o7777 => {
            return Err(Status::invalid_argument(format!(
                "options.mode {mode:o} has more than permission bits"
            )));
        }
        mode => mode.map(|mode| mode as u16),
    };
    Ok(RootOwner {
        uid: options.uid,
        gid: options.gid,
        mode,
    })
}

fn info(mount: MountInfo) -> wire::MountInfo {
    wire::MountInfo {
        volume_id: mount.volume_id,
        mountpoint: mount.mountpoint.to_string_lossy().into_owned(),
        read_only: mount.read_only,
        volume_uuid: mount.volume.uuid.to_string(),
        epoch: mount.volume.epoch.0,
        dirty_bytes: mount.dirty_bytes,
        lost: mount.lost.map(|lost| lost.to_string()).unwrap_or_default(),
        outage: mount.outage.map(|outage| outage.to_string()).unwrap_or_default(),
        since_unix_ms: mount.since_unix_ms,
        capacity_bytes: mount.volume.capacity_bytes.unwrap_or(0),
        location: Some(place_of(&mount.location, &mount.access)),
        node_id: mount.node_id.to_string(),
        lease: mount.lease.map_or(0, |lease| lease.0),
        transport: wire_transport(mount.transport.by).into(),
        transport_asked: wire_transport(mount.transport.asked).into(),
    }
}

fn wire_transport(transport: Transport) -> wire::Transport {
    match transport {
        Transport::Classic => wire::Transport::Classic,
        Transport::IoUring => wire::Transport::IoUring,
    }
}

fn transport_asked(options: &wire::MountOptions) -> Result<Option<Transport>, Status> {
    match wire::Transport::try_from(options.transport) {
        Ok(wire::Transport::Unspecified) => Ok(None),
        Ok(wire::Transport::Classic) => Ok(Some(Transport::Classic)),
        Ok(wire::Transport::IoUring) => Ok(Some(Transport::IoUring)),
        Err(_) => Err(Status::invalid_argument(format!(
            "options.transport {} is none of TRANSPORT_CLASSIC and TRANSPORT_IO_URING",
            options.transport
        ))),
    }
}

fn until(deadline_ms: u64) -> Instant {
    let asked = Duration::from_millis(deadline_ms);
    Instant::now() + if asked.is_zero() { DEADLINE_DEFAULT } else { asked }
}

/// Runs `work` to its end, whether the caller waits or not.
async fn to_the_end<T: Send + 'static>(
    work: impl Future<Output = Result<T, EngineError>> + Send + 'static,
) -> Result<T, Status> {
    match tokio::spawn(work).await {
        Ok(done) => done.map_err(|error| status_of(&error)),
        Err(panic) => Err(Status::internal(format!("the engine has an error of its own: {panic}"))),
    }
}

#[tonic::async_trait]
impl EngineService for Service {
    async fn mount(&self, request: Request<wire::MountRequest>) -> Result<Response<wire::MountResponse>, Status> {
        let spec = self.spec(request.into_inner())?;
        let engine = self.engine.clone();
        let mount = to_the_end(async move { engine.mount(spec).await }).await?;
        Ok(Response::new(wire::MountResponse {
            mount: Some(info(mount)),
        }))
    }

    async fn unmount(&self, request: Request<wire::UnmountRequest>) -> Result<Response<wire::UnmountResponse>, Status> {
        let wire::UnmountRequest {
            which,
            deadline_ms,
            detach_busy,
        } = request.into_inner();
        let which = which.ok_or_else(|| Status::invalid_argument("neither mountpoint nor volume_id is given"))?;
        let (engine, until) = (self.engine.clone(), until(deadline_ms));
        let unmounted = to_the_end(async move {
            match which {
                Which::Mountpoint(path) => engine.unmount(Path::new(&path), until, detach_busy).await,
                Which::VolumeId(volume_id) => engine.unmount_volume(&volume_id, until, detach_busy).await,
            }
        })
        .await?;
        let lost = unmounted.lost.map(|lost| lost.to_string()).unwrap_or_default();
        Ok(Response::new(wire::UnmountResponse {
            unmounted: unmounted.count,
            lost,
        }))
    }

    async fn flush(&self, request: Request<wire::FlushRequest>) -> Result<Response<wire::FlushResponse>, Status> {
        let wire::FlushRequest {
            mountpoint,
            deadline_ms,
        } = request.into_inner();
        let (engine, until) = (self.engine.clone(), until(deadline_ms));
        let lost = to_the_end(async move { engine.flush(Path::new(&mountpoint), until).await }).await?;
        let lost = lost.map(|lost| lost.to_string()).unwrap_or_default();
        Ok(Response::new(wire::FlushResponse { lost }))
    }

    async fn list_mounts(
        &self,
        _request: Request<wire::ListMountsRequest>,
    ) -> Result<Response<wire::ListMountsResponse>, Status> {
        let mounts = self.engine.mounts().into_iter().map(info).collect();
        Ok(Response::new(wire::ListMountsResponse { mounts }))
    }

    async fn mount_stats(
        &self,
        request: Request<wire::MountStatsRequest>,
    ) -> Result<Response<wire::MountStatsResponse>, Status> {
        let path = PathBuf::from(request.into_inner().mountpoint);
        let (mount, space) = self.engine.stats(&path).map_err(|error| status_of(&error))?;
        Ok(Response::new(wire::MountStatsResponse {
            mount: Some(info(mount)),
            total_bytes: space.total_bytes,
            free_bytes: space.free_bytes,
            inodes: space.inodes,
            free_inodes: space.free_inodes,
        }))
    }

    async fn set_capacity(
        &self,
        request: Request<wire::SetCapacityRequest>,
    ) -> Result<Response<wire::SetCapacityResponse>, Status> {
        let wire::SetCapacityRequest {
            volume_id,
            capacity_bytes,
        } = request.into_inner();
        let capacity = (capacity_bytes != 0).then_some(capacity_bytes);
        self.engine
            .set_capacity(&volume_id, capacity)
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(wire::SetCapacityResponse {}))
    }

    async fn look(&self, request: Request<wire::LookRequest>) -> Result<Response<wire::LookResponse>, Status> {
        let volume_id = request.into_inner().volume_id;
        let capacity = self.engine.look(&volume_id).await;
        Ok(Response::new(wire::LookResponse {
            capacity_bytes: capacity.map_err(|error| status_of(&error))?.unwrap_or(0),
        }))
    }

    async fn set_credentials(
        &self,
        request: Request<wire::SetCredentialsRequest>,
    ) -> Result<Response<wire::SetCredentialsResponse>, Status> {
        let wire::SetCredentialsRequest { volume_id, credentials } = request.into_inner();
        let keys = credentials.map(keys).transpose()?;
        self.engine
            .set_credentials(&volume_id, keys)
            .await
            .map_err(|error| status_of(&error))?;
        Ok(Response::new(wire::SetCredentialsResponse {}))
    }

    async fn health(&self, _request: Request<wire::HealthRequest>) -> Result<Response<wire::HealthResponse>, Status> {
        Ok(Response::new(wire::HealthResponse {
            version: self.version.to_owned(),
            pid: i64::from(std::process::id()),
            mounts: u32::try_from(self.engine.mounts().len()).unwrap_or(u32::MAX),
            since_unix_ms: self.since_unix_ms,
        }))
    }

    async fn shutdown(
        &self,
        request: Request<wire::ShutdownRequest>,
    ) -> Result<Response<wire::ShutdownResponse>, Status> {
        let (engine, until) = (self.engine.clone(), until(request.into_inner().deadline_ms));
        to_the_end(async move { engine.unmount_all(until).await }).await?;
        self.stop.send_replace(true);
        Ok(Response::new(wire::ShutdownResponse {}))
    }
}
