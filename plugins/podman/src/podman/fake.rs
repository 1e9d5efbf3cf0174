//! [`FakePodman`]: a Podman in memory that behaves. Containers run until a test ends them; nothing fails by itself (see
//! the tests crate for one that does). For unit tests of the driver's recipes.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::{broadcast, watch};

use super::{
    ApiVersion, ContainerConfig, ContainerEvent, ContainerInfo, ContainerListing, ContainerSpec, ContainerState,
    CreatedContainer, EventFilter, EventStream, ExecChunk, ExecInfo, ExecSession, ExecSpec, ExecStreams, ExitStatus,
    HostConfig, HostFacts, HostInfo, ImageInfo, LogConfig, Podman, PodmanError, PullFailure, PullProgress, PullRequest,
    SecurityFacts, TtySize, VersionFacts,
};

/// 64 events: tests read them as they happen.
const EVENTS_MAX: usize = 64;

/// What a command in a container does, as a test wants it.
#[derive(Debug, Clone, Default)]
pub struct ExecScript {
    /// Its output.
    pub stdout: Bytes,
    /// Its other output.
    pub stderr: Bytes,
    /// Its exit code.
    pub exit_code: i32,
}

/// A Podman in memory.
#[derive(Debug)]
pub struct FakePodman {
    socket_path: PathBuf,
    /// Never held across an await.
    world: Mutex<World>,
    events: broadcast::Sender<ContainerEvent>,
    pulls_held: watch::Sender<bool>,
}

#[derive(Debug, Default)]
struct World {
    next_id: u64,
    containers: BTreeMap<String, FakeContainer>,
    /// Images in local storage.
    images: BTreeMap<String, ImageInfo>,
    /// Images that a pull finds.
    registry: BTreeMap<String, ImageInfo>,
    networks: Vec<String>,
    scripts: BTreeMap<Vec<String>, ExecScript>,
    sessions: BTreeMap<String, ExecScript>,
    signals: Vec<(String, String)>,
    pulls: Vec<PullRequest>,
    pulls_given_up: usize,
}

#[derive(Debug)]
struct FakeContainer {
    spec: ContainerSpec,
    state: watch::Sender<FakeState>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum FakeState {
    Created,
    Running,
    Ended(ExitStatus),
    Removed,
}

impl Default for FakePodman {
    fn default() -> Self {
        Self::new()
    }
}

impl FakePodman {
    /// An empty one.
    #[must_use]
    pub fn new() -> Self {
        Self {
            socket_path: PathBuf::from("/run/podman/fake.sock"),
            world: Mutex::new(World::default()),
            events: broadcast::Sender::new(EVENTS_MAX),
            pulls_held: watch::Sender::new(false),
        }
    }

    /// Puts an image into local storage.
    pub fn add_image(&self, reference: &str, image: ImageInfo) {
        self.world().images.insert(reference.to_owned(), image);
    }

    /// Puts an image where a pull finds it.
    pub fn add_registry_image(&self, reference: &str, image: ImageInfo) {
        self.world().registry.insert(reference.to_owned(), image);
    }

    /// Adds a network.
    pub fn add_network(&self, name: &str) {
        self.world().networks.push(name.to_owned());
    }

    /// Says what a command does; commands without a script end with 127, as a shell would say.
    pub fn add_exec(&self, command: &[&str], script: ExecScript) {
        let command = command.iter().map(|word| (*word).to_owned()).collect();
        self.world().scripts.insert(command, script);
    }

    /// Ends a running container from within.
    ///
    /// # Panics
    /// If there is no such container: the test is wrong.
    pub fn end(&self, id_or_name: &str, status: ExitStatus) {
        let world = self.world();
        let id = world.find(id_or_name).expect("the test names a container it made");
        world.containers[&id].state.send_replace(FakeState::Ended(status));
        drop(world);
        self.tell(&id, "died");
    }

    /// What a container was created from.
    #[must_use]
    pub fn spec(&self, id_or_name: &str) -> Option<ContainerSpec> {
        let world = self.world();
        let id = world.find(id_or_name)?;
        Some(world.containers[&id].spec.clone())
    }

    /// The signals that were sent, with the ids they were sent to.
    #[must_use]
    pub fn signals(&self) -> Vec<(String, String)> {
        self.world().signals.clone()
    }

    /// The pulls that were asked for.
    #[must_use]
    pub fn pulls(&self) -> Vec<PullRequest> {
        self.world().pulls.clone()
    }

    /// Makes pulls wait, as a slow registry would, until this is called again with false.
    pub fn hold_pulls(&self, hold: bool) {
        self.pulls_held.send_replace(hold);
    }

    /// How many pulls nobody waited for to the end.
    #[must_use]
    pub fn pulls_given_up(&self) -> usize {
        self.world().pulls_given_up
    }

    fn world(&self) -> std::sync::MutexGuard<'_, World> {
        self.world
            .lock()
            .expect("a test that panicked while holding the world has failed already")
    }

    fn tell(&self, id: &str, status: &str) {
        let event = ContainerEvent {
            id: id.to_owned(),
            status: status.to_owned(),
            time_nanos: 0,
            attributes: BTreeMap::new(),
        };
        // Nobody listening is fine.
        let _ = self.events.send(event);
    }
}

impl World {
    fn find(&self, id_or_name: &str) -> Option<String> {
        let named = |(id, container): &(&String, &FakeContainer)| {
            id.as_str() == id_or_name || container.spec.name == id_or_name
        };
        self.containers.iter().find(named).map(|(id, _)| id.clone())
    }

    fn known(&self, id_or_name: &str) -> Result<String, PodmanError> {
        self.find(id_or_name)
            .ok_or_else(|| absent(&format!("no container with name or ID {id_or_name:?} found")))
    }

    fn state(&self, id: &str) -> FakeState {
        *self.containers[id].state.borrow()
    }
}

fn absent(message: &str) -> PodmanError {
    PodmanError::NotFound {
        call: "fake".to_owned(),
        message: message.to_owned(),
    }
}

fn conflict(message: String) -> PodmanError {
    PodmanError::Conflict {
        call: "fake".to_owned(),
        message,
    }
}

fn info_of(id: &str, container: &FakeContainer) -> ContainerInfo {
    let (status, exit) = match *container.state.borrow() {
        FakeState::Created => ("created", None),
        FakeState::Running => ("running", None),
        FakeState::Ended(exit) => ("exited", Some(exit)),
        FakeState::Removed => ("removing", None),
    };
    let spec = &container.spec;
    ContainerInfo {
        id: Some(id.to_owned()),
        name: Some(spec.name.clone()),
        image: Some(spec.image.clone()),
        image_name: Some(spec.image.clone()),
        state: ContainerState {
            status: Some(status.to_owned()),
            running: Some(status == "running"),
            pid: Some(if status == "running" { 1 } else { 0 }),
            exit_code: Some(exit.map_or(0, |exit| exit.code)),
            oom_killed: Some(exit.is_some_and(|exit| exit.oom_killed)),
            ..ContainerState::default()
        },
        config: ContainerConfig {
            labels: spec.labels.clone(),
            ..ContainerConfig::default()
        },
        host_config: HostConfig {
            log_config: LogConfig {
                driver: spec.log_configuration.as_ref().map(|log| log.driver.clone()),
                path: spec.log_configuration.as_ref().and_then(|log| log.path.clone()),
            },
            ..HostConfig::default()
        },
        ..ContainerInfo::default()
    }
}

#[async_trait]
impl Podman for FakePodman {
    fn socket_path(&self) -> &Path {
        &self.socket_path
    }

    async fn ping(&self) -> Result<ApiVersion, PodmanError> {
        Ok(ApiVersion {
            major: 5,
            minor: 4,
            patch: 0,
        })
    }

    async fn info(&self) -> Result<HostInfo, PodmanError> {
        Ok(HostInfo {
            host: HostFacts {
                cgroup_version: Some("v2".to_owned()),
                cgroup_manager: Some("systemd".to_owned()),
                security: SecurityFacts {
                    rootless: Some(false),
                    ..SecurityFacts::default()
                },
                ..HostFacts::default()
            },
            version: VersionFacts {
                version: Some("5.4.0".to_owned()),
                api_version: Some("5.4.0".to_owned()),
            },
            ..HostInfo::default()
        })
    }

    async fn create_container(&self, spec: &ContainerSpec) -> Result<CreatedContainer, PodmanError> {
        let mut world = self.world();
        if world.find(&spec.name).is_some() {
            return Err(conflict(format!(
                "the container name {:?} is already in use",
                spec.name
            )));
        }
        let by_id = world
            .images
            .values()
            .any(|image| image.id.as_deref() == Some(spec.image.as_str()));
        if !by_id && !world.images.contains_key(&spec.image) {
            return Err(absent(&format!("{}: no such image", spec.image)));
        }
        world.next_id += 1;
        let id = format!("{:064x}", world.next_id);
        let container = FakeContainer {
            spec: spec.clone(),
            state: watch::Sender::new(FakeState::Created),
        };
        world.containers.insert(id.clone(), container);
        drop(world);
        self.tell(&id, "create");
        Ok(CreatedContainer {
            id,
            warnings: Vec::new(),
        })
    }

    async fn init_container(&self, id: &str) -> Result<(), PodmanError> {
        self.world().known(id).map(drop)
    }

    async fn start_container(&self, id: &str) -> Result<(), PodmanError> {
        let id = {
            let world = self.world();
            let id = world.known(id)?;
            world.containers[&id].state.send_replace(FakeState::Running);
            id
        };
        self.tell(&id, "start");
        Ok(())
    }

    async fn inspect_container(&self, id_or_name: &str) -> Result<Option<ContainerInfo>, PodmanError> {
        let world = self.world();
        Ok(world.find(id_or_name).map(|id| info_of(&id, &world.containers[&id])))
    }

    async fn list_containers(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerListing>, PodmanError> {
        let world = self.world();
        let carries = |container: &&FakeContainer| {
            labels.iter().all(|(key, value)| {
                container
                    .spec
                    .labels
                    .get(key)
                    .is_some_and(|found| value.is_empty() || found == value)
            })
        };
        let listing = |(id, container): (&String, &FakeContainer)| {
            let info = info_of(id, container);
            ContainerListing {
                id: info.id,
                names: info.name.into_iter().collect(),
                state: info.state.status,
                labels: info.config.labels,
                image_id: info.image,
            }
        };
        Ok(world
            .containers
            .iter()
            .filter(|(_, container)| carries(container))
            .map(listing)
            .collect())
    }

    async fn wait_exit(&self, id: &str) -> Result<ExitStatus, PodmanError> {
        let mut state = {
            let world = self.world();
            let id = world.known(id)?;
            world.containers[&id].state.subscribe()
        };
        let over = |state: &FakeState| matches!(state, FakeState::Ended(_) | FakeState::Removed);
        let last = state.wait_for(over).await.map(|state| *state);
        match last {
            Ok(FakeState::Ended(status)) => Ok(status),
            _ => Err(absent("no such container")),
        }
    }

    async fn kill_container(&self, id: &str, signal: &str) -> Result<(), PodmanError> {
        let id = {
            let mut world = self.world();
            let id = world.known(id)?;
            world.signals.push((id.clone(), signal.to_owned()));
            if world.state(&id) != FakeState::Running || !matches!(signal, "SIGKILL" | "KILL" | "9") {
                return Ok(());
            }
            id
        };
        self.end(
            &id,
            ExitStatus {
                code: 137,
                oom_killed: false,
            },
        );
        Ok(())
    }

    async fn remove_container(&self, id: &str, force: bool) -> Result<(), PodmanError> {
        let id = {
            let mut world = self.world();
            let Some(id) = world.find(id) else { return Ok(()) };
            if world.state(&id) == FakeState::Running && !force {
                return Err(conflict(format!("cannot remove container {id} as it is running")));
            }
            if let Some(container) = world.containers.remove(&id) {
                container.state.send_replace(FakeState::Removed);
            }
            id
        };
        self.tell(&id, "remove");
        Ok(())
    }

    async fn inspect_image(&self, reference: &str) -> Result<Option<ImageInfo>, PodmanError> {
        let world = self.world();
        let by_id = || {
            world
                .images
                .values()
                .find(|image| image.id.as_deref() == Some(reference))
        };
        Ok(world.images.get(reference).or_else(by_id).cloned())
    }

    async fn pull_image(&self, pull: &PullRequest, progress: PullProgress<'_>) -> Result<String, PodmanError> {
        progress(&format!("Trying to pull {}...", pull.reference));
        {
            let mut world = self.world();
            world.pulls.push(pull.clone());
            world.pulls_given_up += 1;
        }
        // Counted as given up until it comes back here.
        let _ = self.pulls_held.subscribe().wait_for(|held| !*held).await;
        let mut world = self.world();
        world.pulls_given_up -= 1;
        let Some(image) = world.registry.get(&pull.reference).cloned() else {
            return Err(PodmanError::Pull {
                reference: pull.reference.clone(),
                kind: PullFailure::NoSuchImage,
                message: "manifest unknown".to_owned(),
            });
        };
        let id = image.id.clone().unwrap_or_default();
        world.images.insert(pull.reference.clone(), image);
        Ok(id)
    }

    async fn load_image(&self, archive: &Path) -> Result<Vec<String>, PodmanError> {
        std::fs::metadata(archive).map_err(|source| PodmanError::Archive {
            path: archive.to_owned(),
            source,
        })?;
        let name = format!(
            "localhost/{}:latest",
            archive.file_stem().unwrap_or_default().to_string_lossy()
        );
        self.world().images.insert(
            name.clone(),
            ImageInfo {
                id: Some(name.clone()),
                ..ImageInfo::default()
            },
        );
        Ok(vec![name])
    }

    async fn remove_image(&self, reference: &str) -> Result<(), PodmanError> {
        let mut world = self.world();
        if world
            .containers
            .values()
            .any(|container| container.spec.image == reference)
        {
            return Err(conflict(format!("image {reference} is in use by a container")));
        }
        world.images.remove(reference);
        Ok(())
    }

    async fn network_exists(&self, name: &str) -> Result<bool, PodmanError> {
        Ok(self.world().networks.iter().any(|network| network == name))
    }

    async fn create_exec(&self, container: &str, spec: &ExecSpec) -> Result<ExecSession, PodmanError> {
        let mut world = self.world();
        let container = world.known(container)?;
        if world.state(&container) != FakeState::Running {
            return Err(conflict("container state improper".to_owned()));
        }
        let unknown = ExecScript {
            stderr: Bytes::from_static(b"not found\n"),
            exit_code: 127,
            ..ExecScript::default()
        };
        let script = world.scripts.get(&spec.command).cloned().unwrap_or(unknown);
        world.next_id += 1;
        let id = format!("exec{}", world.next_id);
        world.sessions.insert(id.clone(), script);
        Ok(ExecSession { id, tty: spec.tty })
    }

    async fn start_exec(&self, session: &ExecSession, _size: Option<TtySize>) -> Result<ExecStreams, PodmanError> {
        let world = self.world();
        let script = world
            .sessions
            .get(&session.id)
            .cloned()
            .ok_or_else(|| absent("no such exec session"))?;
        let mut chunks = vec![ExecChunk::Stdout(script.stdout)];
        chunks.push(if session.tty {
            ExecChunk::Stdout(script.stderr)
        } else {
            ExecChunk::Stderr(script.stderr)
        });
        Ok(ExecStreams {
            stdin: Box::pin(tokio::io::sink()),
            output: Box::pin(stream::iter(chunks).map(Ok)),
        })
    }

    async fn resize_exec(&self, _session: &str, _size: TtySize) -> Result<bool, PodmanError> {
        Ok(true)
    }

    async fn inspect_exec(&self, session: &str) -> Result<Option<ExecInfo>, PodmanError> {
        let ended = |script: &ExecScript| ExecInfo {
            running: Some(false),
            exit_code: Some(script.exit_code),
            pid: Some(0),
        };
        Ok(self.world().sessions.get(session).map(ended))
    }

    async fn events(&self, filter: &EventFilter) -> Result<EventStream, PodmanError> {
        let statuses = filter.statuses.clone();
        let events = tokio_stream::wrappers::BroadcastStream::new(self.events.subscribe());
        let wanted = move |event: &ContainerEvent| statuses.is_empty() || statuses.contains(&event.status);
        Ok(Box::pin(events.filter_map(move |event| {
            let event = event.ok().filter(&wanted).map(Ok);
            async move { event }
        })))
    }
}
