//! The `Podman` port: what the driver asks of Podman, in the driver's words. The driver, its recipes and its tests see
//! only this trait.
//!
//! Invariant: every verb but [`Podman::wait_exit`] and the streams ends within a deadline of its own. An answer that
//! lacks a field is never an error: Podman 4.3 to 5.x and rootless services leave out different ones.
//!
//! Absent: which errors a task start may be retried on is said here ([`PodmanError::is_recoverable`]), how that is told to
//! Nomad is in `grpc.rs`.

mod answers;
mod client;
mod container_spec;
mod containers;
mod events;
mod exec;
mod fake;
mod images;
mod socket;
mod system;

use std::collections::BTreeMap;
use std::fmt::Debug;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::Stream;
use tokio::io::AsyncWrite;

pub use answers::{
    ContainerConfig, ContainerInfo, ContainerListing, ContainerNetwork, ContainerNetworkSettings, ContainerState,
    ExecInfo, HostConfig, HostFacts, HostIds, HostInfo, HostPort, IdRange, ImageConfig, ImageInfo, LogConfig,
    RuntimeFacts, SecurityFacts, StoreFacts, VersionFacts,
};
pub use client::Client;
pub use container_spec::{
    AutoUserNs, BindMount, ContainerSpec, CpuLimits, DeviceCgroupRule, DeviceNode, HealthCheck, IdMap, IdMappings,
    LogConfiguration, MemoryLimits, NamedVolume, Namespace, NetworkOptions, PidsLimit, PortMapping, ResourceLimits,
    Rlimit, Secret,
};
pub use fake::{ExecScript, FakePodman};

/// One Podman service, reached through its socket.
///
/// Every method may be called at once from many tasks. Dropping a future gives its call up: the connection is closed
/// and nothing of it goes on in this process (Podman may still finish what it began).
#[async_trait]
pub trait Podman: Debug + Send + Sync + 'static {
    /// The socket path, for attributes and messages.
    fn socket_path(&self) -> &Path;

    /// Whether the service answers, and with which API version.
    ///
    /// # Errors
    /// [`PodmanError::Unreachable`] or [`PodmanError::TimedOut`] after at most two seconds.
    async fn ping(&self) -> Result<ApiVersion, PodmanError>;

    /// What the service says of its host: cgroup version, rootless, runtime, security.
    ///
    /// # Errors
    /// As [`Podman::ping`]; [`PodmanError::Protocol`] if the answer is no JSON object.
    async fn info(&self) -> Result<HostInfo, PodmanError>;

    /// Creates a container, not started.
    ///
    /// # Errors
    /// [`PodmanError::Conflict`] if the name is taken, [`PodmanError::NotFound`] if the image (or network, or volume) is
    /// not there, [`PodmanError::Refused`] with Podman's text for everything else it does not like.
    async fn create_container(&self, spec: &ContainerSpec) -> Result<CreatedContainer, PodmanError>;

    /// Makes all of a created container, mounts and networks, but for running its program.
    ///
    /// # Errors
    /// As [`Podman::start_container`].
    async fn init_container(&self, id: &str) -> Result<(), PodmanError>;

    /// Starts a container; one that runs already is a success.
    ///
    /// # Errors
    /// [`PodmanError::NotFound`], or [`PodmanError::Refused`] with the runtime's text (command not found, port in use).
    async fn start_container(&self, id: &str) -> Result<(), PodmanError>;

    /// The container with this id or name; `None` if there is none.
    ///
    /// # Errors
    /// Only of the connection: absence is `Ok(None)`.
    async fn inspect_container(&self, id_or_name: &str) -> Result<Option<ContainerInfo>, PodmanError>;

    /// All containers, also ended ones, that carry each of these labels (an empty value: the key alone must be there).
    ///
    /// # Errors
    /// Only of the connection.
    async fn list_containers(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerListing>, PodmanError>;

    /// Waits until the container has ended and says how. Lasts as long as the container runs: it outlives restarts of
    /// the Podman service, during which it waits for the service to come back. Ended containers answer at once.
    ///
    /// # Errors
    /// [`PodmanError::NotFound`] once the service says that there is no such container; nothing else.
    async fn wait_exit(&self, id: &str) -> Result<ExitStatus, PodmanError>;

    /// Sends a signal, by name (`SIGTERM`) or number (`15`), to the container's first process.
    /// A container that does not run is a success: there is nobody left to tell.
    ///
    /// # Errors
    /// [`PodmanError::NotFound`], or [`PodmanError::Refused`] for a signal that Podman does not know.
    async fn kill_container(&self, id: &str, signal: &str) -> Result<(), PodmanError>;

    /// Removes a container and its anonymous volumes. With `force`, a running one is killed first (no grace).
    /// One that is gone is a success.
    ///
    /// # Errors
    /// [`PodmanError::Conflict`] if it runs and `force` is false.
    async fn remove_container(&self, id: &str, force: bool) -> Result<(), PodmanError>;

    /// The image with this reference or id in local storage; `None` if it is not there.
    ///
    /// # Errors
    /// Only of the connection.
    async fn inspect_image(&self, reference: &str) -> Result<Option<ImageInfo>, PodmanError>;

    /// Pulls an image; returns its id. No deadline of its own: callers wrap it in theirs. Each line of progress that
    /// Podman reports is given to `progress`.
    ///
    /// # Errors
    /// [`PodmanError::Pull`], whose kind says whether another try may help.
    async fn pull_image(&self, pull: &PullRequest, progress: PullProgress<'_>) -> Result<String, PodmanError>;

    /// Loads an archive file (`podman save`'s docker or OCI format) into local storage; returns the names in it.
    ///
    /// # Errors
    /// [`PodmanError::Archive`] if the file cannot be read, [`PodmanError::Refused`] if Podman cannot load it.
    async fn load_image(&self, archive: &Path) -> Result<Vec<String>, PodmanError>;

    /// Removes an image by reference or id. One that is gone is a success.
    ///
    /// # Errors
    /// [`PodmanError::Conflict`] while a container uses it.
    async fn remove_image(&self, reference: &str) -> Result<(), PodmanError>;

    /// Whether a network of this name is configured.
    ///
    /// # Errors
    /// Only of the connection.
    async fn network_exists(&self, name: &str) -> Result<bool, PodmanError>;

    /// Prepares a command in a running container.
    ///
    /// # Errors
    /// [`PodmanError::NotFound`]; [`PodmanError::Conflict`] if the container does not run.
    async fn create_exec(&self, container: &str, spec: &ExecSpec) -> Result<ExecSession, PodmanError>;

    /// Starts a prepared command with its streams attached.
    ///
    /// # Errors
    /// [`PodmanError::Refused`] with the runtime's text if the command cannot be run.
    async fn start_exec(&self, session: &ExecSession, size: Option<TtySize>) -> Result<ExecStreams, PodmanError>;

    /// Tells a session with tty its size; false if the command does not run, or does not run yet.
    ///
    /// # Errors
    /// Only of the connection.
    async fn resize_exec(&self, session: &str, size: TtySize) -> Result<bool, PodmanError>;

    /// The state of a session; `None` if Podman has forgotten it (it keeps them five minutes after their end).
    ///
    /// # Errors
    /// Only of the connection.
    async fn inspect_exec(&self, session: &str) -> Result<Option<ExecInfo>, PodmanError>;

    /// Follows container events that match the filter, from `since` (inclusive, as Podman's clock says) or from now.
    /// The stream ends when the connection does: callers open a new one and inspect what they know.
    ///
    /// # Errors
    /// Only of the connection.
    async fn events(&self, filter: &EventFilter) -> Result<EventStream, PodmanError>;
}

/// Podman's own version and the API version that a service offers (`Libpod-API-Version`), such as 4.3.1.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion {
    /// 4 or 5.
    pub major: u32,
    /// The minor version.
    pub minor: u32,
    /// The patch version.
    pub patch: u32,
}

/// A container that was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CreatedContainer {
    /// The full 64-digit id.
    pub id: String,
    /// What Podman had to remark.
    pub warnings: Vec<String>,
}

/// How a container ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// The exit code as Podman tells it: 128 + n for a death by signal n.
    pub code: i32,
    /// The kernel killed it, or a process in it, for lack of memory.
    pub oom_killed: bool,
}

/// What to pull and how.
#[derive(Debug, Clone, Default)]
pub struct PullRequest {
    /// A reference in full, such as `docker.io/library/busybox:1.36`.
    pub reference: String,
    /// Ask the registry also if the image is there.
    pub always: bool,
    /// Whether the registry's certificate must be valid.
    pub tls_verify: Option<bool>,
    /// Who to log in as; `None`: whatever the service's own files say.
    pub auth: Option<RegistryAuth>,
    /// Another platform than the host's.
    pub platform: Platform,
}

/// A platform wish; empty fields are the host's.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Platform {
    /// Such as `arm64`.
    pub arch: Option<String>,
    /// Such as `linux`.
    pub os: Option<String>,
    /// Such as `v7`.
    pub variant: Option<String>,
}

/// Credentials for a registry. `Debug` never shows them.
#[derive(Clone, PartialEq, Eq, Hash, Default)]
pub struct RegistryAuth {
    /// The user's name; `<token>` by convention if only the token counts.
    pub username: String,
    /// The password.
    pub password: String,
    /// An identity token instead of a password.
    pub identity_token: Option<String>,
}

impl Debug for RegistryAuth {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("RegistryAuth").finish_non_exhaustive()
    }
}

/// Receives the lines of progress of a pull.
pub type PullProgress<'a> = &'a (dyn Fn(&str) + Send + Sync);

/// A command to run in a container.
#[derive(Debug, Clone, Default)]
pub struct ExecSpec {
    /// Program and arguments.
    pub command: Vec<String>,
    /// With a terminal: stdout and stderr come as one.
    pub tty: bool,
    /// Whether stdin is attached.
    pub stdin: bool,
    /// `KEY=value` additions to the container's environment.
    pub env: Vec<String>,
    /// Another user than the container's.
    pub user: Option<String>,
    /// Another directory than the container's.
    pub working_dir: Option<String>,
}

/// A command that is prepared or has been started.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExecSession {
    /// Podman's id of it.
    pub id: String,
    /// With a terminal.
    pub tty: bool,
}

/// The size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TtySize {
    /// Rows.
    pub height: u16,
    /// Columns.
    pub width: u16,
}

/// The streams of a command that runs in a container.
pub struct ExecStreams {
    /// Its stdin: `shutdown` is end of file for the command, and leaves the output open.
    pub stdin: Pin<Box<dyn AsyncWrite + Send>>,
    /// Its output, apart by stream (all of it stdout with a tty). Ends when the command has ended or the service is gone:
    /// [`Podman::inspect_exec`] tells which.
    pub output: Pin<Box<dyn Stream<Item = Result<ExecChunk, PodmanError>> + Send>>,
}

impl Debug for ExecStreams {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("ExecStreams")
    }
}

/// A piece of a command's output.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExecChunk {
    /// Bytes of stdout.
    Stdout(Bytes),
    /// Bytes of stderr.
    Stderr(Bytes),
}

/// Which container events to hear of.
#[derive(Debug, Clone, Default)]
pub struct EventFilter {
    /// Labels the container must carry.
    pub labels: BTreeMap<String, String>,
    /// Event names, such as `died`; empty: all.
    pub statuses: Vec<String>,
    /// Unix seconds to begin at; `None`: now.
    pub since: Option<i64>,
}

/// Something that happened to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ContainerEvent {
    /// The container's full id.
    pub id: String,
    /// `create`, `start`, `died`, `remove`, `oom`…
    pub status: String,
    /// Unix nanoseconds.
    pub time_nanos: i64,
    /// The labels and facts that Podman sends along (`name`, `image`, `containerExitCode`…).
    pub attributes: BTreeMap<String, String>,
}

/// Events as they come.
pub type EventStream = Pin<Box<dyn Stream<Item = Result<ContainerEvent, PodmanError>> + Send>>;

/// Why a pull failed: the answer to "would another try help?".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PullFailure {
    /// The registry says that there is no such image or tag.
    NoSuchImage,
    /// The registry does not let us.
    Denied,
    /// The registry could not be reached, was busy or broke off.
    Registry,
    /// The reference cannot be a name of an image.
    BadReference,
    /// Somebody removed a layer while the image that shares it was being stored.
    Raced,
    /// Nothing we recognise.
    Other,
}

/// What can go wrong between the driver and Podman.
#[derive(Debug, thiserror::Error)]
pub enum PodmanError {
    /// Nobody listens, or the connection broke before the answer was complete.
    #[error("podman does not answer at {}: {call}", socket.display())]
    Unreachable {
        /// What was asked, `POST containers/create`.
        call: String,
        /// Whom.
        socket: PathBuf,
        /// What the connection said.
        #[source]
        source: BoxError,
    },
    /// The service took longer than the call's deadline.
    #[error("podman did not answer {call} within {limit:?}")]
    TimedOut {
        /// What was asked.
        call: String,
        /// The deadline.
        limit: Duration,
    },
    /// There is no such container, image, network, volume or session.
    #[error("{message}")]
    NotFound {
        /// What was asked.
        call: String,
        /// Podman's text.
        message: String,
    },
    /// The state of the container, or a name that is taken, stands against it.
    #[error("{message}")]
    Conflict {
        /// What was asked.
        call: String,
        /// Podman's text.
        message: String,
    },
    /// Podman understood and said no.
    #[error("{message}")]
    Refused {
        /// What was asked.
        call: String,
        /// The HTTP status.
        status: u16,
        /// Podman's text, causes included.
        message: String,
    },
    /// A pull failed.
    #[error("cannot pull {reference}: {message}")]
    Pull {
        /// The image.
        reference: String,
        /// What kind of failure.
        kind: PullFailure,
        /// Podman's text.
        message: String,
    },
    /// An archive cannot be read.
    #[error("cannot read image archive {}: {source}", path.display())]
    Archive {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The answer is not what Podman's API promises.
    #[error("podman's answer to {call} makes no sense: {detail}")]
    Protocol {
        /// What was asked.
        call: String,
        /// What is wrong with the answer.
        detail: String,
    },
}

/// A cause of any type.
pub type BoxError = Box<dyn std::error::Error + Send + Sync>;

impl PodmanError {
    /// Whether the same request may succeed later without anybody changing it.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Unreachable { .. } | Self::TimedOut { .. } | Self::Conflict { .. } => true,
            Self::Pull { kind, .. } => matches!(kind, PullFailure::Registry | PullFailure::Raced),
            Self::Refused { message, .. } => says_port_in_use(message),
            Self::NotFound { .. } | Self::Archive { .. } | Self::Protocol { .. } => false,
        }
    }

    /// Whether Podman said that the thing does not exist.
    #[must_use]
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// The port of a task that is just being stopped elsewhere on the node is free a moment later.
/// Texts of rootlessport, netavark and Podman's own reservation, which all quote the kernel.
fn says_port_in_use(message: &str) -> bool {
    message.to_ascii_lowercase().contains("address already in use")
}
