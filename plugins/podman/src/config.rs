//! The plugin's options: the `config { .. }` of the agent's `plugin "nomad-driver-podman"` block.
//!
//! Same names, types and defaults as the driver that users come from; `default_ulimit` is ours. All mistakes are told at once, since a wrong option stops
//! the agent and every fix costs a restart. Absent: talking to Podman; a SetConfig only reads.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;

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
    /// Whether a container is removed once Nomad is done with its task.
    pub gc_container: bool,
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
    /// A value that this version does not act on, so that it is refused rather than ignored.
    #[error("{key} = {value:?} is not supported yet: {way_out}")]
    Unsupported {
        /// The option.
        key: &'static str,
        /// What was written.
        value: String,
        /// What to write instead.
        way_out: &'static str,
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
            gc_container: self.gc(),
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
        self.logging();
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

    fn gc(&mut self) -> bool {
        let Some(Some(mut block)) = self.keep(|block| block.block("gc")) else {
            return true;
        };
        block
            .bool("container")
            .map_err(|error| self.errors.push(error.into()))
            .ok()
            .flatten()
            .unwrap_or(true)
    }

    fn networking(&mut self) -> Option<String> {
        let Some(Some(mut block)) = self.keep(|block| block.block("networking")) else {
            return None;
        };
        self.nested(&mut block, "default_rootless_mode")
    }

    fn logging(&mut self) {
        let Some(Some(mut block)) = self.keep(|block| block.block("logging")) else {
            return;
        };
        let driver = self.nested(&mut block, "driver").unwrap_or_else(|| "nomad".to_owned());
        if driver != "nomad" {
            self.errors.push(ConfigError::Unsupported {
                key: "logging.driver",
                value: driver,
                way_out: "write \"nomad\", or leave it out",
            });
        }
        match block.string_map("options") {
            Err(error) => self.errors.push(error.into()),
            Ok(options) => {
                if let Some((key, _)) = options.first_key_value() {
                    self.errors.push(ConfigError::Unsupported {
                        key: "logging.options",
                        value: key.clone(),
                        way_out: "the driver \"nomad\" has no options; use the task's logs block for rotation",
                    });
                }
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

/// Where Podman's own units make it listen.
fn default_socket(uid: u32) -> PathBuf {
    if uid == 0 {
        PathBuf::from("/run/podman/podman.sock")
    } else {
        PathBuf::from(format!("/run/user/{uid}/podman/podman.sock"))
    }
}

#[cfg(test)]
mod tests {
    use rmpv::Value;

    use super::*;

    fn map(entries: Vec<(&str, Value)>) -> Value {
        Value::Map(
            entries
                .into_iter()
                .map(|(key, value)| (Value::from(key), value))
                .collect(),
        )
    }

    fn decode(entries: Vec<(&str, Value)>) -> Result<Config, ConfigErrors> {
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &map(entries)).unwrap();
        Config::decode(&bytes, 0)
    }

    fn list(values: Vec<Value>) -> Value {
        Value::Array(values)
    }

    #[test]
    fn nothing_configured_means_the_documented_defaults() {
        let config = Config::default_for(0);
        assert_eq!(
            config.sockets[DEFAULT_SOCKET].path,
            Path::new("/run/podman/podman.sock")
        );
        assert!(config.volumes_enabled && config.gc_container && !config.recover_stopped);
        assert_eq!(config.call_timeout, None);
        let user = Config::default_for(1000);
        assert_eq!(
            user.sockets[DEFAULT_SOCKET].path,
            Path::new("/run/user/1000/podman/podman.sock")
        );
    }

    #[test]
    fn every_option_is_read() {
        let config = decode(vec![
            (
                "auth",
                map(vec![("config", "/etc/auth.json".into()), ("helper", "ecr".into())]),
            ),
            (
                "volumes",
                map(vec![("enabled", false.into()), ("selinuxlabel", "z".into())]),
            ),
            ("gc", map(vec![("container", false.into())])),
            ("recover_stopped", true.into()),
            ("extra_labels", list(vec!["job_*".into()])),
            (
                "logging",
                map(vec![("driver", "nomad".into()), ("options", map(vec![]))]),
            ),
            ("networking", map(vec![("default_rootless_mode", "pasta".into())])),
            ("socket_path", "unix:///run/p.sock".into()),
            ("disable_log_collection", true.into()),
            ("client_http_timeout", "5s".into()),
            ("dns_servers", list(vec!["1.1.1.1".into()])),
            ("default_ulimit", list(vec![map(vec![("nofile", "10:20".into())])])),
        ])
        .unwrap();
        assert_eq!(config.auth_file.as_deref(), Some(Path::new("/etc/auth.json")));
        assert_eq!(config.auth_helper.as_deref(), Some("ecr"));
        assert!(!config.volumes_enabled && !config.gc_container && config.recover_stopped);
        assert_eq!(config.volumes_selinux_label.as_deref(), Some("z"));
        assert_eq!(config.default_rootless_mode.as_deref(), Some("pasta"));
        assert_eq!(config.sockets[DEFAULT_SOCKET].path, Path::new("/run/p.sock"));
        assert!(config.disable_log_collection);
        assert_eq!(config.call_timeout, Some(Duration::from_secs(5)));
        assert_eq!(config.default_ulimits["nofile"], Limit { soft: 10, hard: 20 });
    }

    #[test]
    fn a_named_socket_stands_in_for_the_default_one() {
        let socket = |name: &str, path: &str| map(vec![("name", name.into()), ("socket_path", path.into())]);
        let config = decode(vec![(
            "socket",
            list(vec![socket("app", "/a.sock"), socket("other", "/b.sock")]),
        )])
        .unwrap();
        assert_eq!(config.sockets[DEFAULT_SOCKET], config.sockets["app"]);
        let config = decode(vec![(
            "socket",
            list(vec![socket("app", "/a.sock"), socket("", "/b.sock")]),
        )])
        .unwrap();
        assert_eq!(config.sockets[DEFAULT_SOCKET].path, Path::new("/b.sock"));
        let twice = decode(vec![("socket", list(vec![socket("x", "/a"), socket("x", "/b")]))]).unwrap_err();
        assert!(twice.to_string().contains("configured twice"), "{twice}");
    }

    #[test]
    fn all_mistakes_are_told_at_once_and_by_name() {
        let errors = decode(vec![
            ("client_http_timeout", "soon".into()),
            ("dns_servers", list(vec!["resolver".into()])),
            ("gc", map(vec![("container", "maybe".into())])),
            ("logging", map(vec![("driver", "journald".into())])),
            ("socket_path", "tcp://1.2.3.4".into()),
            ("default_ulimit", list(vec![map(vec![("nofile", "x".into())])])),
        ])
        .unwrap_err();
        let text = errors.to_string();
        for key in [
            "client_http_timeout",
            "dns_servers",
            "gc.container",
            "logging.driver",
            "socket_path",
            "default_ulimit",
        ] {
            assert!(text.contains(key), "{key} is missing in: {text}");
        }
        assert_eq!(errors.0.len(), 6);
    }
}
