//! [`Client`]: the [`Podman`](super::Podman) port over a real service. Here is only the choice of the API version; what
//! is asked is in the file of each endpoint family.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::socket::{Socket, percent_encoded};
use super::{
    ApiVersion, ContainerInfo, ContainerListing, ContainerSpec, CreatedContainer, EventFilter, EventStream, ExecInfo,
    ExecSession, ExecSpec, ExecStreams, ExitStatus, HostInfo, ImageInfo, Podman, PodmanError, PullProgress,
    PullRequest, TtySize, containers, events, exec, images, system,
};

/// Eight containers being made, started or removed at a time. Podman does little of it in parallel, for storage, network and
/// cgroups have locks; of a hundred calls at once most waited for those until their deadlines (seen on two cores). Here they
/// wait before the deadline begins.
const LIFE_CYCLE_CALLS_MAX: usize = 8;

/// A Podman service behind a unix socket.
#[derive(Debug)]
pub struct Client {
    /// Turns of the calls that change containers.
    turns: Semaphore,
    pub(super) socket: Socket,
    /// What the service said last; forgotten when it does not answer, since an upgrade may be why. Never held across an await.
    version: Mutex<Option<ApiVersion>>,
}

impl Client {
    /// A client for the service that listens at this path. Nothing is sent yet.
    #[must_use]
    pub fn new(socket_path: impl Into<PathBuf>) -> Self {
        Self {
            turns: Semaphore::new(LIFE_CYCLE_CALLS_MAX),
            socket: Socket::new(socket_path),
            version: Mutex::new(None),
        }
    }

    /// The same client with another deadline for its calls: that of creating, starting, removing and asking. Waiting,
    /// pulling and following have none in any case.
    #[must_use]
    pub fn with_call_limit(mut self, limit: Option<Duration>) -> Self {
        self.socket.limit = limit;
        self
    }

    /// Makes an image of a root file system (a tar stream, as `podman import`); returns its id.
    ///
    /// # Errors
    /// [`PodmanError::Refused`] if Podman cannot read the archive, or an error of the connection.
    pub async fn import_image(&self, root_tar: bytes::Bytes, reference: &str) -> Result<String, PodmanError> {
        images::import(self, root_tar, reference).await
    }

    /// The address of an endpoint, with the newest version prefix that the service and we both know.
    pub(super) async fn target(&self, endpoint: &str) -> Result<String, PodmanError> {
        let known = *self.version.lock().expect("nobody panics while holding the version");
        let version = match known {
            Some(version) => version,
            None => self.negotiate().await?,
        };
        // Podman answers in the shape of the prefix's major version: below 5 that of 4.x.
        let major = version.major.clamp(4, 5);
        Ok(format!("/v{major}.0.0/libpod/{endpoint}"))
    }

    /// The address of an endpoint about one named thing, `containers/{name}/json`.
    pub(super) async fn target_of(&self, family: &str, name: &str, verb: &str) -> Result<String, PodmanError> {
        self.target(&format!("{family}/{}{verb}", percent_encoded(name))).await
    }

    /// Asks for the version again before the next call.
    pub(super) fn forget_version(&self) {
        *self.version.lock().expect("nobody panics while holding the version") = None;
    }

    /// Waits for a turn among the calls that change containers.
    async fn turn(&self) -> SemaphorePermit<'_> {
        self.turns.acquire().await.expect("nobody closes the semaphore")
    }

    async fn negotiate(&self) -> Result<ApiVersion, PodmanError> {
        let version = system::version(self).await?;
        *self.version.lock().expect("nobody panics while holding the version") = Some(version);
        Ok(version)
    }
}

#[async_trait]
impl Podman for Client {
    fn socket_path(&self) -> &Path {
        self.socket.path()
    }

    async fn ping(&self) -> Result<ApiVersion, PodmanError> {
        self.forget_version();
        let version = system::ping(self).await?;
        *self.version.lock().expect("nobody panics while holding the version") = Some(version);
        Ok(version)
    }

    async fn info(&self) -> Result<HostInfo, PodmanError> {
        system::info(self).await
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<CreatedContainer, PodmanError> {
        let _turn = self.turn().await;
        containers::create(self, spec).await
    }

    async fn init_container(&self, id: &str) -> Result<(), PodmanError> {
        containers::init(self, id).await
    }

    async fn start_container(&self, id: &str) -> Result<(), PodmanError> {
        let _turn = self.turn().await;
        containers::start(self, id).await
    }

    async fn inspect_container(&self, id_or_name: &str) -> Result<Option<ContainerInfo>, PodmanError> {
        containers::inspect(self, id_or_name).await
    }

    async fn list_containers(
        &self,
        labels: &std::collections::BTreeMap<String, String>,
    ) -> Result<Vec<ContainerListing>, PodmanError> {
        containers::list(self, labels).await
    }

    async fn wait_exit(&self, id: &str) -> Result<ExitStatus, PodmanError> {
        containers::wait_exit(self, id).await
    }

    async fn kill_container(&self, id: &str, signal: &str) -> Result<(), PodmanError> {
        containers::kill(self, id, signal).await
    }

    async fn remove_container(&self, id: &str, force: bool) -> Result<(), PodmanError> {
        let _turn = self.turn().await;
        containers::remove(self, id, force).await
    }

    async fn inspect_image(&self, reference: &str) -> Result<Option<ImageInfo>, PodmanError> {
        images::inspect(self, reference).await
    }

    async fn pull_image(&self, pull: &PullRequest, progress: PullProgress<'_>) -> Result<String, PodmanError> {
        images::pull(self, pull, progress).await
    }

    async fn load_image(&self, archive: &Path) -> Result<Vec<String>, PodmanError> {
        images::load(self, archive).await
    }

    async fn remove_image(&self, reference: &str) -> Result<(), PodmanError> {
        images::remove(self, reference).await
    }

    async fn network_exists(&self, name: &str) -> Result<bool, PodmanError> {
        system::network_exists(self, name).await
    }

    async fn create_exec(&self, container: &str, spec: &ExecSpec) -> Result<ExecSession, PodmanError> {
        exec::create(self, container, spec).await
    }

    async fn start_exec(&self, session: &ExecSession, size: Option<TtySize>) -> Result<ExecStreams, PodmanError> {
        exec::start(self, session, size).await
    }

    async fn resize_exec(&self, session: &str, size: TtySize) -> Result<bool, PodmanError> {
        exec::resize(self, session, size).await
    }

    async fn inspect_exec(&self, session: &str) -> Result<Option<ExecInfo>, PodmanError> {
        exec::inspect(self, session).await
    }

    async fn events(&self, filter: &EventFilter) -> Result<EventStream, PodmanError> {
        events::follow(self, filter).await
    }
}
