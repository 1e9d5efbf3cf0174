//! The plugin's options: the `config { .. }` of the agent's `plugin "nomad-driver-podman"` block.
//!
//! Same names, types and defaults as the driver that users come from; the options that it does not have allow and keep by
//! default what it allowed and kept. All mistakes are told at once, since a wrong option stops
//! the agent and every fix costs a restart. Absent: talking to Podman; a SetConfig only reads.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::log_choice::{LogChoice, LogChoiceError};
use crate::msgpack::{Block, MsgpackError};
use crate::rlimit::{self, Limit, RlimitError};
use crate::units::{self, UnitError};

/// The checked options.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Config {
    /// A docker-style `config.json` with registry credentials.
    pub auth_file: Option<PathBuf>,
    /// The `<helper>` of a `docker-credential-<helper>` program.
    pub auth_helper: Option<String>,
    /// Whether tasks may mount host paths outside of their allocation.
    pub volumes_enabled: bool,
    /// SELinux label option (`z` or `Z`) of mounted directories.
    pub volumes_selinux_label: Option<String>,
    /// What is cleared away, and when.
    pub gc: Gc,
    /// What tasks may ask for.
    pub allowed: Allowed,
    /// Where the output of tasks goes that say nothing of it.
    pub logging: LogChoice,
    /// A pull of which nothing is heard for this long is given up; zero: none is.
    pub pull_activity_timeout: Duration,
    /// Whether a stopped container is started again when its task is recovered.
    pub recover_stopped: bool,
    /// Globs that choose additional labels.
    pub extra_labels: Vec<String>,
    /// The network mode of rootless containers that say nothing; None: what this Podman version does best.
    pub default_rootless_mode: Option<String>,
    /// Podman services by name; "default" is always there.
    pub sockets: BTreeMap<String, Socket>,
    /// Containers write no logs for Nomad.
    pub disable_log_collection: bool,
    /// Deadline of one call to Podman that is no wait, pull or stream; None: the client's own.
    pub call_timeout: Option<Duration>,
    /// Name servers of containers whose group has no `dns` block.
    pub dns_servers: Vec<IpAddr>,
    /// Limits of containers whose task has no `ulimit` of that name.
    pub default_ulimits: BTreeMap<String, Limit>,
}

/// One Podman service.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Socket {
    /// The socket's path.
    pub path: PathBuf,
    /// The name as configured; it is "default" under another key when the only or first socket stands in for it.
    pub name: String,
}

/// What is cleared away, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gc {
    /// Whether a container is removed once Nomad is done with its task.
    pub container: bool,
    /// Whether an image that the driver pulled is removed once no container needs it.
    pub image: bool,
    /// How long such an image is kept after its last task.
    pub image_delay: Duration,
    /// Containers of this node that no task is known of.
    pub dangling: Dangling,
}

/// What becomes of containers of this node's tasks that nobody knows any more.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Dangling {
    /// Whether they are looked for.
    pub enabled: bool,
    /// Between two looks.
    pub period: Duration,
    /// Younger ones are left alone: their start may still be under way.
    pub creation_grace: Duration,
    /// Only say what would be removed.
    pub dry_run: bool,
}

/// What tasks may ask for. The defaults allow what the driver that users come from allowed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Allowed {
    /// `privileged`, and the host's or a stranger's namespaces of processes and of IPC.
    pub privileged: bool,
    /// Capabilities that `cap_add` may name, without `CAP_`; None: all.
    pub caps: Option<BTreeSet<String>>,
    /// Runtimes that `runtime` may name.
    pub runtimes: BTreeSet<String>,
    /// Processes a task may have, and has if it says nothing.
    pub pids_limit: Option<i64>,
}

/// 3 min, so that a task that is moved or restarted finds its image.
const IMAGE_DELAY: Duration = Duration::from_secs(180);
/// 5 min between looks for containers without a task.
const DANGLING_PERIOD: Duration = Duration::from_secs(300);
/// 5 min: the longest a start was seen to take between creating its container and being known.
const DANGLING_GRACE: Duration = Duration::from_secs(300);
/// Never by default: Podman tells of a layer once, so a large one may rightly be silent for as long as it takes.
const PULL_ACTIVITY_TIMEOUT: Duration = Duration::ZERO;
/// The runtimes that Podman is packaged with. Others run what the operator has not looked at with root's rights.
const RUNTIMES: [&str; 2] = ["crun", "runc"];

/// The name of the socket that tasks use when they say nothing.
pub const DEFAULT_SOCKET: &str = "default";

/// A mistake in the plugin's options: which key, what is wrong, what to write instead.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A value of the wrong type.
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
    /// A duration that is none.
    #[error("{key}: {source}")]
    Duration {
        /// The option.
        key: &'static str,
        /// Why.
        source: UnitError,
    },
    /// A limit that is none.
    #[error("default_ulimit: {0}")]
    Ulimit(#[from] RlimitError),
    /// A name server that is no address.
    #[error("dns_servers: {text:?} is not an IP address")]
    DnsServer {
        /// What was written.
        text: String,
    },
    /// Both ways to name a socket.
    #[error("socket_path and socket blocks exclude each other: move {path:?} into a socket {{ }} block")]
    SocketAndPath {
        /// The path of `socket_path`.
        path: String,
    },
    /// A socket without a path.
    #[error("socket {name:?}: socket_path is missing")]
    SocketWithoutPath {
        /// The socket's name.
        name: String,
    },
    /// Two sockets of one name.
    #[error("socket {name:?} is configured twice: give each socket its own name")]
    SocketTwice {
        /// The name.
        name: String,
    },
    /// A socket elsewhere than on this host.
    #[error("{key}: {text:?} is not a unix socket: write unix:// and an absolute path, or the path alone")]
    SocketPath {
        /// The option.
        key: &'static str,
        /// What was written.
        text: String,
    },
    /// Output that is to go where it cannot.
    #[error("logging: {0}")]
    Logging(#[from] LogChoiceError),
    /// A number outside of what is allowed.
    #[error("{key} = {value} is out of range: {want}")]
    Range {
        /// The option.
        key: &'static str,
        /// What was written.
        value: i64,
        /// What would be in it.
        want: &'static str,
    },
}

/// All mistakes of one configuration.
#[derive(Debug)]
pub struct ConfigErrors(pub Vec<ConfigError>);

impl std::fmt::Display for ConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for ConfigErrors {}

impl Config {
    /// Reads what SetConfig brings. `uid` is the plugin's own, which decides where Podman listens by default.
    ///
    /// # Errors
    /// All mistakes found, each naming its option.
    pub fn decode(msgpack: &[u8], uid: u32) -> Result<Self, ConfigErrors> {
        let block = Block::decode(msgpack).map_err(|error| ConfigErrors(vec![error.into()]))?;
        Reader {
            block,
            errors: Vec::new(),
        }
        .read(uid)
    }

    /// The configuration of a plugin that nobody configured.
    #[must_use]
    pub fn default_for(uid: u32) -> Self {
        Self::decode(&[], uid).expect("an empty configuration has no mistakes")
    }
}

/// Reads option by option and keeps each mistake.
struct Reader {
    block: Block,
    errors: Vec<ConfigError>,
}

impl Reader {
    fn read(mut self, uid: u32) -> Result<Config, ConfigErrors> {
        let (auth_file, auth_helper) = self.auth();
        let (volumes_enabled, volumes_selinux_label) = self.volumes();
        let config = Config {
            auth_file,
            auth_helper,
            volumes_enabled,
            volumes_selinux_label,
            gc: self.gc(),
            allowed: self.allowed(),
            logging: self.logging(),
            pull_activity_timeout: self.duration("pull_activity_timeout", PULL_ACTIVITY_TIMEOUT),
            recover_stopped: self
                .keep(|block| block.bool("recover_stopped"))
                .flatten()
                .unwrap_or(false),
            extra_labels: self.keep(|block| block.strings("extra_labels")).unwrap_or_default(),
            default_rootless_mode: self.networking(),
            sockets: self.sockets(uid),
            disable_log_collection: self
                .keep(|block| block.bool("disable_log_collection"))
                .flatten()
                .unwrap_or(false),
            call_timeout: self.call_timeout(),
            dns_servers: self.dns_servers(),
            default_ulimits: self.default_ulimits(),
        };
        for key in self.block.unknown() {
            tracing::debug!(key, "unknown plugin option");
        }
        if self.errors.is_empty() {
            Ok(config)
        } else {
            Err(ConfigErrors(self.errors))
        }
    }

    fn keep<T>(&mut self, get: impl FnOnce(&mut Block) -> Result<T, MsgpackError>) -> Option<T> {
        get(&mut self.block)
            .map_err(|error| self.errors.push(error.into()))
            .ok()
    }

    /// A string in a nested block; empty counts as absent.
    fn nested(&mut self, block: &mut Block, key: &str) -> Option<String> {
        let text = block
            .string(key)
            .map_err(|error| self.errors.push(error.into()))
            .ok()
            .flatten();
        text.filter(|text| !text.is_empty())
    }

    fn auth(&mut self) -> (Option<PathBuf>, Option<String>) {
        let Some(Some(mut block)) = self.keep(|block| block.block("auth")) else {
            return (None, None);
        };
        (
            self.nested(&mut block, "config").map(PathBuf::from),
            self.nested(&mut block, "helper"),
        )
    }

    fn volumes(&mut self) -> (bool, Option<String>) {
        let Some(Some(mut block)) = self.keep(|block| block.block("volumes")) else {
            return (true, None);
        };
        let enabled = block
            .bool("enabled")
            .map_err(|error| self.errors.push(error.into()))
            .ok()
            .flatten();
        (enabled.unwrap_or(true), self.nested(&mut block, "selinuxlabel"))
    }

    /// A flag in a nested block.
    fn nested_flag(&mut self, block: &mut Block, key: &str, default: bool) -> bool {
        let flag = block.bool(key).map_err(|error| self.errors.push(error.into())).ok();
        flag.flatten().unwrap_or(default)
    }

    /// A duration in a nested block.
    fn nested_duration(&mut self, block: &mut Block, key: &'static str, default: Duration) -> Duration {
        let last = key.rsplit('.').next().unwrap_or(key);
        let text = self.nested(block, last);
        self.parsed_duration(key, text, default)
    }

    fn duration(&mut self, key: &'static str, default: Duration) -> Duration {
        let text = self.keep(|block| block.string(key)).flatten();
        self.parsed_duration(key, text.filter(|text| !text.is_empty()), default)
    }

    fn parsed_duration(&mut self, key: &'static str, text: Option<String>, default: Duration) -> Duration {
        let parsed = text.map_or(Ok(default), |text| units::duration(&text));
        parsed.unwrap_or_else(|source| {
            self.errors.push(ConfigError::Duration { key, source });
            default
        })
    }

    fn gc(&mut self) -> Gc {
        let mut block = self.keep(|block| block.block("gc")).flatten().unwrap_or_default();
        let mut dangling = block
            .block("dangling_containers")
            .map_err(|error| self.errors.push(error.into()))
            .ok()
            .flatten()
            .unwrap_or_default();
        let period = self.nested_duration(&mut dangling, "gc.dangling_containers.period", DANGLING_PERIOD);
        if period.is_zero() {
            self.errors.push(ConfigError::Range {
                key: "gc.dangling_containers.period",
                value: 0,
                want: "more than nothing, as in \"5m\"; enabled = false turns it off",
            });
        }
        Gc {
            container: self.nested_flag(&mut block, "container", true),
            image: self.nested_flag(&mut block, "image", false),
            image_delay: self.nested_duration(&mut block, "gc.image_delay", IMAGE_DELAY),
            dangling: Dangling {
                enabled: self.nested_flag(&mut dangling, "enabled", true),
                period,
                creation_grace: self.nested_duration(
                    &mut dangling,
                    "gc.dangling_containers.creation_grace",
                    DANGLING_GRACE,
                ),
                dry_run: self.nested_flag(&mut dangling, "dry_run", false),
            },
        }
    }

    fn allowed(&mut self) -> Allowed {
        let privileged = self.keep(|block| block.bool("allow_privileged")).flatten();
        let caps = self.keep(|block| block.strings("allow_caps")).unwrap_or_default();
        let caps: BTreeSet<String> = caps.iter().map(|name| capability(name)).collect();
        let runtimes = self.keep(|block| block.strings("allow_runtimes")).unwrap_or_default();
        let pids_limit = self.keep(|block| block.integer("pids_limit")).flatten();
        if let Some(value) = pids_limit.filter(|limit| *limit < 0) {
            let (key, want) = ("pids_limit", "1 or more; 0 or nothing for no limit");
            self.errors.push(ConfigError::Range { key, value, want });
        }
        Allowed {
            privileged: privileged.unwrap_or(true),
            caps: (!caps.is_empty() && !caps.contains("ALL")).then_some(caps),
            runtimes: if runtimes.is_empty() {
                RUNTIMES.map(str::to_owned).into()
            } else {
                runtimes.into_iter().collect()
            },
            pids_limit: pids_limit.filter(|limit| *limit > 0),
        }
    }

    fn networking(&mut self) -> Option<String> {
        let Some(Some(mut block)) = self.keep(|block| block.block("networking")) else {
            return None;
        };
        self.nested(&mut block, "default_rootless_mode")
    }

    fn logging(&mut self) -> LogChoice {
        let Some(Some(mut block)) = self.keep(|block| block.block("logging")) else {
            return LogChoice::Nomad;
        };
        match LogChoice::read(&mut block) {
            Ok(choice) => choice.unwrap_or_default(),
            Err(error) => {
                self.errors.push(error.into());
                LogChoice::Nomad
            }
        }
    }

    fn call_timeout(&mut self) -> Option<Duration> {
        let key = "client_http_timeout";
        let text = self.keep(|block| block.string("client_http_timeout")).flatten();
        match units::duration(&text.filter(|text| !text.is_empty())?) {
            Ok(limit) => Some(limit).filter(|limit| !limit.is_zero()),
            Err(source) => {
                self.errors.push(ConfigError::Duration { key, source });
                None
            }
        }
    }

    fn dns_servers(&mut self) -> Vec<IpAddr> {
        let mut servers = Vec::new();
        for text in self.keep(|block| block.strings("dns_servers")).unwrap_or_default() {
            match text.parse() {
                Ok(server) => servers.push(server),
                Err(_) => self.errors.push(ConfigError::DnsServer { text }),
            }
        }
        servers
    }

    fn default_ulimits(&mut self) -> BTreeMap<String, Limit> {
        let mut limits = BTreeMap::new();
        for (name, text) in self
            .keep(|block| block.string_map("default_ulimit"))
            .unwrap_or_default()
        {
            match rlimit::parse(&name, &text) {
                Ok((name, limit)) => {
                    limits.insert(name, limit);
                }
                Err(error) => self.errors.push(error.into()),
            }
        }
        limits
    }

    fn sockets(&mut self, uid: u32) -> BTreeMap<String, Socket> {
        let blocks = self.keep(|block| block.blocks("socket")).unwrap_or_default();
        let single = self
            .keep(|block| block.string("socket_path"))
            .flatten()
            .filter(|text| !text.is_empty());
        if let (Some(path), false) = (&single, blocks.is_empty()) {
            self.errors.push(ConfigError::SocketAndPath { path: path.clone() });
        }
        let mut sockets = BTreeMap::new();
        let mut first = None;
        for mut block in blocks {
            let name = self
                .nested(&mut block, "name")
                .unwrap_or_else(|| DEFAULT_SOCKET.to_owned());
            let Some(text) = self.nested(&mut block, "socket_path") else {
                self.errors.push(ConfigError::SocketWithoutPath { name });
                continue;
            };
            let socket = Socket {
                path: self.socket_path("socket.socket_path", &text),
                name: name.clone(),
            };
            first.get_or_insert_with(|| socket.clone());
            if sockets.insert(name.clone(), socket).is_some() {
                self.errors.push(ConfigError::SocketTwice { name });
            }
        }
        if !sockets.contains_key(DEFAULT_SOCKET) {
            let fallback = first.unwrap_or_else(|| Socket {
                path: single.map_or_else(|| default_socket(uid), |text| self.socket_path("socket_path", &text)),
                name: DEFAULT_SOCKET.to_owned(),
            });
            sockets.insert(DEFAULT_SOCKET.to_owned(), fallback);
        }
        sockets
    }

    fn socket_path(&mut self, key: &'static str, text: &str) -> PathBuf {
        let path = text
            .strip_prefix("unix://")
            .or_else(|| text.strip_prefix("unix:"))
            .unwrap_or(text);
        if !Path::new(path).is_absolute() {
            self.errors.push(ConfigError::SocketPath {
                key,
                text: text.to_owned(),
            });
        }
        PathBuf::from(path)
    }
}

/// A capability's name as it is compared: in capitals, without `CAP_`.
#[must_use]
pub fn capability(name: &str) -> String {
    let upper = name.trim().to_ascii_uppercase();
    upper.strip_prefix("CAP_").map(str::to_owned).unwrap_or(upper)
}

/// Where Podman's own units make it listen.
fn default_socket(uid: u32) -> PathBuf {
    if uid == 0 {
        PathBuf::from("/run/podman/podman.sock")
    } else {
        PathBuf::from(format!("/run/user/{uid}/podman/podman.sock"))
    }
}

#[cfg(test)]
mod tests;
