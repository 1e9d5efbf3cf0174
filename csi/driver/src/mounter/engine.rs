//! The real mounter: `pannier engine` over its unix socket, and the kernel.
//!
//! Invariant: an engine is started, by way of a keeper, only when none listens and no keeper lives, and only to mount. Asking what
//! is served, or unmounting, finds "nothing" where neither runs; where a keeper lives its next engine is waited for, because
//! its mounts live too. Callers: `targets.rs` through the port. Absent: status codes (`grpc.rs`) and
//! how the process is made (`spawn.rs`).

use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use hyper_util::rt::TokioIo;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use proto::engine::v1 as wire;
use tokio::net::UnixStream;
use tokio::sync::{Mutex, Notify};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint, Uri};
use tonic::{Request, Status};
use volume_s3::PutOptions;
use wire::engine_client::EngineClient;

use super::kernel::Kernel;
pub use super::spawn::EngineCommand;
use super::{Answer, MountError, MountSpec, Mounter, Served, spawn};
use crate::capability::{BindFlags, Owner};
use crate::credentials::Credentials;
use crate::grpc;
use crate::mountinfo::MountPoint;
use crate::opening::Opening;

/// 15 s: a process start, and reading what the engine needs before it listens. A loaded node may take seconds.
const START_MAX: Duration = Duration::from_secs(15);

/// 20 ms between looks for the socket of a new engine; it usually listens at the first or second.
const START_LOOK: Duration = Duration::from_millis(20);

/// 40 s: opening a volume that was not closed replays its journal. Above it the call says so, and the next one finds
/// it done or under way.
const MOUNT_MAX: Duration = Duration::from_secs(40);

/// 45 s: what is dirty has this long to reach the bucket. It leaves room within the 60 s of a node call for the rest.
const UNMOUNT_MAX: Duration = Duration::from_secs(45);

/// 30 s: one small GET, with what its store client does against trouble.
const LOOK_MAX: Duration = Duration::from_secs(30);

/// 3 s: what an engine answers from memory.
const ASK_MAX: Duration = Duration::from_secs(3);

/// What the name of a keeper's socket has behind that of its engine's.
pub(crate) const KEEPER: &str = ".keeper";

const _: () = assert!(
    START_MAX.as_secs() + MOUNT_MAX.as_secs() < crate::deadlines::NODE_MAX.as_secs(),
    "starting and mounting must end within a node call"
);

/// Where volumes lie and how the engine is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineConfig {
    /// The engine's socket.
    pub socket: PathBuf,
    /// How to start one if none listens; `None` where another job runs it.
    pub command: Option<EngineCommand>,
    /// This node, as it stands in leases.
    pub node_id: String,
    /// Name of the bucket.
    pub bucket: String,
    /// Prefix of the cluster in it: empty, or ending in a slash.
    pub prefix: String,
    /// URL of the store; `None` for AWS.
    pub s3_endpoint: Option<String>,
    /// Region; `None` for what the environment says.
    pub region: Option<String>,
    /// Address the bucket in the path.
    pub path_style: bool,
    /// How objects are put.
    pub put: PutOptions,
    /// File of PEM certificates to trust besides the system's.
    pub ca_bundle: Option<PathBuf>,
    /// Folder for the disk cache; `None` for none.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of each volume there; 0 leaves it to the engine.
    pub cache_disk_bytes: u64,
    /// Most bytes of each volume in memory; 0 leaves it to the engine.
    pub cache_ram_bytes: u64,
}

/// The engine and the kernel of this node.
#[derive(Debug)]
pub struct EngineMounter {
    config: EngineConfig,
    kernel: Kernel,
    /// Held while an engine is looked for and started: two calls at once start one.
    client: Mutex<Option<EngineClient<Channel>>>,
    /// Told when an engine that we started ends.
    ended: Arc<Notify>,
}

impl EngineMounter {
    /// Connects to nothing yet.
    pub fn new(config: EngineConfig) -> Self {
        Self {
            config,
            kernel: Kernel::default(),
            client: Mutex::new(None),
            ended: Arc::new(Notify::new()),
        }
    }

    /// Lets the keeper of an engine that is not of this version replace it by this program's own, which takes its mounts over; the
    /// old one serves until then. Returns the old one's version if there was one to replace. Nothing is done to an engine
    /// without a keeper, whose end would be the end of its mounts.
    ///
    /// # Errors
    /// `NoEngine` if the keeper refuses; `Slow`.
    pub async fn bring_up_to_date(&self, version: &str) -> Result<Option<String>, MountError> {
        let (Some(command), Some(mut engine)) = (&self.config.command, self.running().await?) else {
            return Ok(None);
        };
        let health = answered(
            engine.health(timed(wire::HealthRequest {}, ASK_MAX)),
            ASK_MAX,
            "tell its version",
        )
        .await?;
        if health.version == version || !keeper_listens(&self.config.socket) {
            return Ok(None);
        }
        let program = command.program.display();
        match spawn::replaced(command).await {
            Ok(()) => Ok(Some(health.version)),
            Err(error) => Err(MountError::NoEngine {
                socket: self.config.socket.clone(),
                detail: format!(
                    "version {} goes on, {program} does not take over from it: {error}",
                    health.version
                ),
            }),
        }
    }

    /// A client of the engine that listens; `None` if there is none.
    async fn running(&self) -> Result<Option<EngineClient<Channel>>, MountError> {
        let mut client = self.client.lock().await;
        if let Some(found) = self.find(&mut client).await {
            return Ok(Some(found));
        }
        let until = Instant::now() + START_MAX;
        while keeper_listens(&self.config.socket) {
            if Instant::now() > until {
                return Err(MountError::NoEngine {
                    socket: self.config.socket.clone(),
                    detail: "its keeper lives and has no engine that listens".into(),
                });
            }
            tokio::time::sleep(START_LOOK).await;
            if let Some(found) = self.find(&mut client).await {
                return Ok(Some(found));
            }
        }
        // It may have begun to listen just when its keeper ended.
        Ok(self.find(&mut client).await)
    }

    /// A client of an engine, which is started if need be.
    async fn started(&self) -> Result<EngineClient<Channel>, MountError> {
        if let Some(found) = self.running().await? {
            return Ok(found);
        }
        let mut client = self.client.lock().await;
        if let Some(found) = self.find(&mut client).await {
            return Ok(found);
        }
        let failed = |detail: String| MountError::NoEngine {
            socket: self.config.socket.clone(),
            detail,
        };
        let Some(command) = &self.config.command else {
            return Err(failed("it is run by another job".into()));
        };
        let ended = Arc::clone(&self.ended);
        let pid = spawn::detached(command, move || ended.notify_one())
            .map_err(|error| failed(format!("{} cannot be run: {error}", command.program.display())))?;
        let until = Instant::now() + START_MAX;
        while Instant::now() < until {
            tokio::time::sleep(START_LOOK).await;
            if let Some(found) = self.find(&mut client).await {
                return Ok(found);
            }
        }
        let log = command.log.display();
        Err(failed(format!(
            "process {pid} was started and does not listen; its log is {log}"
        )))
    }

    /// Looks whether somebody listens. The channel connects anew by itself, so it is made once.
    async fn find(&self, client: &mut Option<EngineClient<Channel>>) -> Option<EngineClient<Channel>> {
        UnixStream::connect(&self.config.socket).await.ok()?;
        let found = client.get_or_insert_with(|| EngineClient::new(channel(self.config.socket.clone())));
        Some(found.clone())
    }

    fn request(&self, spec: &MountSpec) -> wire::MountRequest {
        let config = &self.config;
        wire::MountRequest {
            volume_id: spec.opening.to_string(),
            location: Some(wire::VolumeLocation {
                bucket: config.bucket.clone(),
                prefix: config.prefix.clone() + &volume::admin::volume_prefix(&spec.opening.volume),
                endpoint: config.s3_endpoint.clone().unwrap_or_default(),
                region: config.region.clone().unwrap_or_default(),
                path_style: config.path_style,
                storage_class: config.put.storage_class.clone().unwrap_or_default(),
                sse: config.put.sse.clone().unwrap_or_default(),
                sse_kms_key_id: config.put.sse_kms_key_id.clone().unwrap_or_default(),
                ca_bundle: config
                    .ca_bundle
                    .as_ref()
                    .map(|path| path.to_string_lossy().into_owned())
                    .unwrap_or_default(),
            }),
            credentials: spec.credentials.as_ref().map(wire_credentials),
            mountpoint: spec.path.to_string_lossy().into_owned(),
            read_only: spec.opening.read_only,
            node_id: config.node_id.clone(),
            lease: spec.lease.0,
            take_over: false,
            cache: Some(wire::CacheSettings {
                dir: config
                    .cache_dir
                    .as_ref()
                    .map(|dir| dir.to_string_lossy().into_owned())
                    .unwrap_or_default(),
                disk_bytes: config.cache_disk_bytes,
                ram_bytes: config.cache_ram_bytes,
            }),
            options: None,
        }
    }
}

#[async_trait]
impl Mounter for EngineMounter {
    async fn engine_ended(&self) {
        self.ended.notified().await;
    }

    async fn mount(&self, spec: &MountSpec) -> Result<(), MountError> {
        let mut engine = self.started().await?;
        let request = timed(self.request(spec), MOUNT_MAX);
        answered(engine.mount(request), MOUNT_MAX, "mount the volume").await?;
        Ok(())
    }

    async fn unmount(&self, opening: &Opening) -> Result<(), MountError> {
        let Some(mut engine) = self.running().await? else {
            return Ok(());
        };
        let request = wire::UnmountRequest {
            which: Some(wire::unmount_request::Which::VolumeId(opening.to_string())),
            deadline_ms: u64::try_from(UNMOUNT_MAX.as_millis()).expect("45 s are few milliseconds"),
            detach_busy: true,
        };
        // The engine ends by its own limit, and then says how much is left; ours is only for an engine that is stuck.
        let limit = UNMOUNT_MAX + ASK_MAX;
        match answered(
            engine.unmount(timed(request, limit)),
            limit,
            "flush and unmount the volume",
        )
        .await
        {
            Ok(_) | Err(MountError::NoVolume { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn renew(&self, opening: &Opening, credentials: &Credentials) -> Result<(), MountError> {
        let Some(mut engine) = self.running().await? else {
            return Ok(());
        };
        let request = wire::SetCredentialsRequest {
            volume_id: opening.to_string(),
            credentials: Some(wire_credentials(credentials)),
        };
        match answered(
            engine.set_credentials(timed(request, ASK_MAX)),
            ASK_MAX,
            "take new credentials",
        )
        .await
        {
            Ok(_) | Err(MountError::NoVolume { .. }) => Ok(()),
            Err(error) => Err(error),
        }
    }

    async fn look(&self, opening: &Opening) -> Result<Option<u64>, MountError> {
        let Some(mut engine) = self.running().await? else {
            let detail = format!("no engine serves volume {opening}");
            return Err(MountError::NoVolume { detail });
        };
        let request = wire::LookRequest {
            volume_id: opening.to_string(),
        };
        let looked = answered(
            engine.look(timed(request, LOOK_MAX)),
            LOOK_MAX,
            "read the volume's head",
        )
        .await?;
        Ok((looked.capacity_bytes > 0).then_some(looked.capacity_bytes))
    }

    async fn served(&self) -> Result<Vec<Served>, MountError> {
        let Some(mut engine) = self.running().await? else {
            return Ok(Vec::new());
        };
        let request = timed(wire::ListMountsRequest {}, ASK_MAX);
        let list = answered(engine.list_mounts(request), ASK_MAX, "list its mounts").await?;
        // Mounts that somebody made by hand may have names of another kind; they are not ours.
        let ours = list.mounts.into_iter().filter_map(|mount| {
            Some(Served {
                opening: Opening::parse(&mount.volume_id).ok()?,
                path: mount.mountpoint.into(),
                lost: Some(mount.lost).filter(|why| !why.is_empty()),
                outage: Some(mount.outage).filter(|why| !why.is_empty()),
            })
        });
        Ok(ours.collect())
    }

    async fn table(&self) -> Result<Vec<MountPoint>, MountError> {
        self.kernel.table().await
    }

    async fn probe(&self, path: &Path) -> Answer {
        self.kernel.probe(path).await
    }

    async fn flush(&self, path: &Path, limit: Duration) -> Result<(), MountError> {
        let Some(mut engine) = self.running().await? else {
            return self.kernel.flush(path, limit).await;
        };
        // Not an fsync: what that promises is the volume's own choice, and this is for the next node.
        let request = wire::FlushRequest {
            mountpoint: path.to_string_lossy().into_owned(),
            deadline_ms: u64::try_from(limit.as_millis()).unwrap_or(u64::MAX),
        };
        let limit = limit + ASK_MAX;
        match answered(engine.flush(timed(request, limit)), limit, "flush the volume").await {
            // An engine that came after the one that mounted it: the kernel's mount is dead, and tells so.
            Err(MountError::NoVolume { .. }) => self.kernel.flush(path, limit).await,
            done => done.map(drop),
        }
    }

    async fn bind(&self, source: &Path, target: &Path, flags: BindFlags) -> Result<(), MountError> {
        self.kernel.bind(source, target, flags).await
    }

    async fn own(&self, path: &Path, owner: Owner) -> Result<(), MountError> {
        self.kernel.own(path, owner).await
    }

    async fn detach(&self, path: &Path) -> Result<(), MountError> {
        self.kernel.detach(path).await
    }
}

/// True if a keeper lives beside the engine's socket. It listens with packets, so a connection says so; it is ended at once.
fn keeper_listens(engine_socket: &Path) -> bool {
    let mut path = engine_socket.as_os_str().to_owned();
    path.push(KEEPER);
    let tried = UnixAddr::new(Path::new(&path)).and_then(|address| {
        let socket = socket(AddressFamily::Unix, SockType::SeqPacket, SockFlag::SOCK_CLOEXEC, None)?;
        connect(socket.as_raw_fd(), &address)
    });
    tried.is_ok()
}

fn wire_credentials(keys: &Credentials) -> wire::Credentials {
    wire::Credentials {
        access_key_id: keys.access_key_id.clone(),
        secret_access_key: keys.secret_access_key.clone(),
        session_token: keys.session_token.clone().unwrap_or_default(),
    }
}

fn channel(socket: PathBuf) -> Channel {
    // The address is never used: the connector knows the socket.
    let connector = tower::service_fn(move |_: Uri| {
        let socket = socket.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(socket).await?)) }
    });
    Endpoint::from_static("http://engine").connect_with_connector_lazy(connector)
}

fn timed<T>(message: T, limit: Duration) -> Request<T> {
    let mut request = Request::new(message);
    request.set_timeout(limit);
    request
}

async fn answered<T>(
    call: impl Future<Output = Result<tonic::Response<T>, Status>>,
    limit: Duration,
    what: &str,
) -> Result<T, MountError> {
    match tokio::time::timeout(limit, call).await {
        Ok(Ok(answer)) => Ok(answer.into_inner()),
        Ok(Err(status)) => Err(grpc::from_engine(&status)),
        Err(_) => Err(MountError::Slow {
            detail: format!("the engine did not {what} within {} s", limit.as_secs()),
        }),
    }
}
