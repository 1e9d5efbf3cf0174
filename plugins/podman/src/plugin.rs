//! What all calls share: options, Podman services, tasks, events. Cheap to clone; nothing in it needs to survive the process.
//! Invariant: setting options talks to nobody. Nomad launches the plugin twice only to ask questions.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use tokio::time::Instant;

use crate::clearing::Clearing;
use crate::compute::Compute;
use crate::config::Config;
use crate::error::DriverError;
use crate::events::{Clock, Events};
use crate::images::Images;
use crate::images::credentials::AuthSources;
use crate::logs::RelayProgram;
use crate::podman::{HostInfo, Podman};
use crate::roster::Roster;
use crate::stats::Reader;
use crate::task::Task;

/// Makes the client of a Podman service from its socket and the deadline of short calls. Must not connect.
pub type Connect = Arc<dyn Fn(&Path, Option<Duration>) -> Arc<dyn Podman> + Send + Sync>;

/// The driver's state.
#[derive(Debug, Clone)]
pub struct Plugin {
    /// Tasks of this process.
    pub roster: Arc<Roster>,
    /// Task events.
    pub events: Arc<Events>,
    /// The program that carries the output of tasks.
    pub relay: RelayProgram,
    /// Where the time comes from.
    pub clock: Clock,
    /// The work in the background.
    pub clearing: Arc<Clearing>,
    /// Reads what tasks use.
    pub reader: Arc<Reader>,
    node_id: Arc<RwLock<Option<String>>>,
    settings: Arc<RwLock<Arc<Settings>>>,
    connect: Connector,
}

/// What SetConfig decides.
#[derive(Debug)]
pub struct Settings {
    /// The plugin's options.
    pub config: Config,
    /// The node's compute capacity.
    pub compute: Compute,
    /// The services by the names that tasks use.
    pub services: BTreeMap<String, Arc<Service>>,
}

/// One Podman service.
#[derive(Debug)]
pub struct Service {
    /// Its name in the plugin's options.
    pub name: String,
    /// The client.
    pub podman: Arc<dyn Podman>,
    /// Its images.
    pub images: Images,
    info: RwLock<Option<Arc<HostInfo>>>,
    /// When it was last found not to answer in time.
    silent: RwLock<Option<Instant>>,
}

/// Ten seconds for which a service that did not answer is not asked again by those who cannot wait.
const SILENCE_BELIEVED: Duration = Duration::from_secs(10);

#[derive(Clone)]
struct Connector(Connect);

impl std::fmt::Debug for Connector {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Connector")
    }
}

impl Plugin {
    /// A plugin without tasks.
    #[must_use]
    pub fn new(config: Config, connect: Connect, relay: RelayProgram, clock: Clock) -> Self {
        let connect = Connector(connect);
        let settings = Settings::new(config, Compute::default(), &connect);
        Self {
            roster: Arc::new(Roster::default()),
            events: Arc::new(Events::new(clock)),
            relay,
            clock,
            clearing: Arc::default(),
            reader: Arc::default(),
            node_id: Arc::default(),
            settings: Arc::new(RwLock::new(Arc::new(settings))),
            connect,
        }
    }

    /// Takes new options over. Calls under way go on with the old ones.
    pub fn configure(&self, config: Config, compute: Compute) {
        let settings = Arc::new(Settings::new(config, compute, &self.connect));
        *self.settings.write().unwrap_or_else(PoisonError::into_inner) = settings;
    }

    /// The options of this moment.
    #[must_use]
    pub fn settings(&self) -> Arc<Settings> {
        Arc::clone(&self.settings.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes which node this is: Nomad says it with each task only.
    pub fn runs_on(&self, node_id: &str) {
        if !node_id.is_empty() && self.node_id().as_deref() != Some(node_id) {
            *self.node_id.write().unwrap_or_else(PoisonError::into_inner) = Some(node_id.to_owned());
        }
    }

    /// The node, once a task has told.
    #[must_use]
    pub fn node_id(&self) -> Option<String> {
        self.node_id.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// The task of this id.
    ///
    /// # Errors
    /// `UnknownTask`.
    pub fn task(&self, id: &str) -> Result<Arc<Task>, DriverError> {
        self.roster
            .get(id)
            .ok_or_else(|| DriverError::UnknownTask { id: id.to_owned() })
    }
}

impl Settings {
    fn new(config: Config, compute: Compute, connect: &Connector) -> Self {
        let mut services = BTreeMap::new();
        let mut by_path: BTreeMap<&Path, Arc<Service>> = BTreeMap::new();
        for (name, socket) in &config.sockets {
            // One client per socket, also when "default" is a second name of it.
            let service = by_path.entry(&socket.path).or_insert_with(|| {
                let podman = (connect.0)(&socket.path, config.call_timeout);
                Arc::new(Service {
                    name: socket.name.clone(),
                    podman,
                    images: Images::new(
                        AuthSources {
                            file: config.auth_file.clone(),
                            helper: config.auth_helper.clone(),
                        },
                        config.pull_activity_timeout,
                    ),
                    info: RwLock::new(None),
                    silent: RwLock::new(None),
                })
            });
            services.insert(name.clone(), Arc::clone(service));
        }
        drop(by_path);
        Self {
            config,
            compute,
            services,
        }
    }

    /// The service of this name.
    ///
    /// # Errors
    /// `UnknownSocket`.
    pub fn service(&self, name: &str) -> Result<&Arc<Service>, DriverError> {
        self.services.get(name).ok_or_else(|| {
            let known = self.services.keys().map(String::as_str).collect::<Vec<_>>().join(", ");
            DriverError::UnknownSocket {
                name: name.to_owned(),
                known,
            }
        })
    }
}

impl Settings {
    /// Each service once, also if it has two names.
    pub fn distinct_services(&self) -> impl Iterator<Item = &Arc<Service>> {
        let is_second = |index: usize, service: &Arc<Service>| {
            self.services
                .values()
                .take(index)
                .any(|earlier| Arc::ptr_eq(earlier, service))
        };
        let services = self.services.values().enumerate();
        services
            .filter(move |(index, service)| !is_second(*index, service))
            .map(|(_, service)| service)
    }
}

impl Service {
    /// What the service says of its host, asked once and then remembered: it changes only with a restart of Podman,
    /// after which the fingerprint refreshes it.
    ///
    /// # Errors
    /// Podman's.
    pub async fn info(&self) -> Result<Arc<HostInfo>, crate::podman::PodmanError> {
        let known = self.info.read().unwrap_or_else(PoisonError::into_inner).clone();
        match known {
            Some(info) => Ok(info),
            None => self.refresh().await,
        }
    }

    /// What `call` answers if that takes no longer than `limit`; None otherwise, and at once if the service was found silent a
    /// moment ago. For calls that the agent's start waits for, one after the other.
    pub async fn within<T>(&self, limit: Duration, call: impl Future<Output = T>) -> Option<T> {
        let silent = *self.silent.read().unwrap_or_else(PoisonError::into_inner);
        if silent.is_some_and(|since| since.elapsed() < SILENCE_BELIEVED) {
            return None;
        }
        let answer = tokio::time::timeout(limit, call).await.ok();
        if answer.is_none() {
            self.found_silent();
        }
        answer
    }

    /// Notes that it did not answer just now.
    pub fn found_silent(&self) {
        *self.silent.write().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
    }

    /// Asks again.
    ///
    /// # Errors
    /// Podman's.
    pub async fn refresh(&self) -> Result<Arc<HostInfo>, crate::podman::PodmanError> {
        let info = Arc::new(self.podman.info().await?);
        *self.info.write().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&info));
        Ok(info)
    }
}
