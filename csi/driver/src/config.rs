//! The options of `pannier csi`: as they are written, and as they are used.
//!
//! Invariant: all mistakes are told at once, each by the name of its key. Callers: the command line, which fills a
//! `RawConfig` from flags, environment and file, in this order of precedence. Absent: reading any of the three.

use std::path::PathBuf;

use serde::Deserialize;
use volume::budget::MEMORY_BYTES_MIN;
use volume::volume_id::NodeId;
use volume_s3::{PutOptions, S3Location, S3Options};

use crate::mounter::engine::{EngineCommand, EngineConfig, KEEPER};
use crate::targets::Folders;

/// 107 bytes: what the kernel takes as the path of a unix socket, sun_path without its final zero.
const SOCKET_PATH_BYTES_MAX: usize = 107;

/// State, where no staging root is known.
const STATE_DIR: &str = "/var/lib/pannier/csi";

/// Name of the state folder below the staging root. Nomad makes `staging` and `per-alloc` beside it.
const STATE_BELOW_ROOT: &str = ".pannier";

/// Which services to serve.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// Creates, publishes and deletes volumes. Needs the bucket only.
    Controller,
    /// Mounts volumes on this machine.
    Node,
    /// Both.
    Monolith,
}

impl Mode {
    /// True if the controller service is served.
    pub fn has_controller(self) -> bool {
        matches!(self, Mode::Controller | Mode::Monolith)
    }

    /// True if the node service is served.
    pub fn has_node(self) -> bool {
        matches!(self, Mode::Node | Mode::Monolith)
    }
}

impl std::str::FromStr for Mode {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        match text {
            "controller" => Ok(Mode::Controller),
            "node" => Ok(Mode::Node),
            "monolith" => Ok(Mode::Monolith),
            _ => Err(wrong(
                "mode",
                format!("{text:?} is none of controller, node and monolith"),
            )),
        }
    }
}

/// The options as they are written. What is `None` was not given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RawConfig {
    /// `controller`, `node` or `monolith`. No default.
    pub mode: Option<String>,
    /// The socket to serve on: `unix:///PATH`, `unix://PATH` or a path. No default; Nomad sets CSI_ENDPOINT.
    pub endpoint: Option<String>,
    /// Id of this node, the same for as long as the machine lives. No default in the modes that mount.
    pub node_id: Option<String>,
    /// Bucket that holds the volumes. No default.
    pub bucket: Option<String>,
    /// Where in the bucket. Default: its top.
    pub prefix: Option<String>,
    /// URL of the store. Default: Amazon's.
    pub s3_endpoint: Option<String>,
    /// Region. Default: that of the environment.
    pub region: Option<String>,
    /// Whether the bucket is in the path of URLs. Default: yes with `s3_endpoint`, no without.
    pub path_style: Option<bool>,
    /// File of PEM certificates to trust besides the system's. Default: none.
    pub ca_bundle: Option<PathBuf>,
    /// Folder for state. Default: `.pannier` below `staging_root`, or `/var/lib/pannier/csi`.
    pub state_dir: Option<PathBuf>,
    /// Nomad's `stage_publish_base_dir`: dead mounts below it are cleared. Default: unknown.
    pub staging_root: Option<PathBuf>,
    /// Socket of the engine. Default: `engine.sock` in the state folder.
    pub engine_socket: Option<PathBuf>,
    /// Whether to start an engine if none listens. Default: yes.
    pub engine_start: Option<bool>,
    /// Whether a keeper starts the engine, so that mounts outlive it. Default: yes.
    pub keeper: Option<bool>,
    /// Where the plugin serves metrics: `HOST:PORT` or `unix:///PATH`. Default: nowhere.
    pub metrics: Option<String>,
    /// Where an engine that the plugin starts serves metrics. Default: nowhere.
    pub engine_metrics: Option<String>,
    /// Storage class of what is put. Default: the store's.
    pub storage_class: Option<String>,
    /// Encryption by the store: `AES256`, `aws:kms` or `aws:kms:dsse`. Default: what the bucket does by itself.
    pub sse: Option<String>,
    /// Key for `aws:kms`. Default: the account's own.
    pub sse_kms_key_id: Option<String>,
    /// Folder for cached data. Default: `cache` in the state folder.
    pub cache_dir: Option<PathBuf>,
    /// Most bytes of cached data on disk, for each volume. Default: the engine's.
    pub cache_disk_bytes: Option<u64>,
    /// Most bytes of cached data in memory, for each volume. Default: the engine's.
    pub cache_ram_bytes: Option<u64>,
    /// Most bytes of memory for all volumes of an engine that the plugin starts. Default: the engine's.
    pub memory_bytes: Option<u64>,
}

/// A mistake in the options.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    /// A required option was not given.
    #[error("{key} is missing: give --{}, PANNIER_{}, or {key} in the file", key.replace('_', "-"), key.to_uppercase())]
    Missing {
        /// Name of the key, as in a file.
        key: &'static str,
    },
    /// An option has a value that cannot be.
    #[error("{key}: {detail}")]
    Wrong {
        /// Name of the key, as in a file.
        key: &'static str,
        /// What is wrong.
        detail: String,
    },
}

/// The options, checked.
#[derive(Debug, Clone)]
pub struct Config {
    /// Which services to serve.
    pub mode: Mode,
    /// The socket.
    pub endpoint: PathBuf,
    /// This node.
    pub node_id: NodeId,
    /// Where state is kept.
    pub folders: Folders,
    /// The cluster's prefix of the bucket.
    pub location: S3Location,
    /// How the store is reached.
    pub store: S3Options,
    /// How the engine is reached.
    pub engine: EngineConfig,
    /// Where the plugin serves metrics.
    pub metrics: Option<String>,
}

impl RawConfig {
    /// These options, and those of `lower` where these say nothing.
    #[must_use]
    pub fn over(self, lower: RawConfig) -> RawConfig {
        RawConfig {
            mode: self.mode.or(lower.mode),
            endpoint: self.endpoint.or(lower.endpoint),
            node_id: self.node_id.or(lower.node_id),
            bucket: self.bucket.or(lower.bucket),
            prefix: self.prefix.or(lower.prefix),
            s3_endpoint: self.s3_endpoint.or(lower.s3_endpoint),
            region: self.region.or(lower.region),
            path_style: self.path_style.or(lower.path_style),
            ca_bundle: self.ca_bundle.or(lower.ca_bundle),
            state_dir: self.state_dir.or(lower.state_dir),
            staging_root: self.staging_root.or(lower.staging_root),
            engine_socket: self.engine_socket.or(lower.engine_socket),
            engine_start: self.engine_start.or(lower.engine_start),
            keeper: self.keeper.or(lower.keeper),
            metrics: self.metrics.or(lower.metrics),
            engine_metrics: self.engine_metrics.or(lower.engine_metrics),
            storage_class: self.storage_class.or(lower.storage_class),
            sse: self.sse.or(lower.sse),
            sse_kms_key_id: self.sse_kms_key_id.or(lower.sse_kms_key_id),
            cache_dir: self.cache_dir.or(lower.cache_dir),
            cache_disk_bytes: self.cache_disk_bytes.or(lower.cache_disk_bytes),
            cache_ram_bytes: self.cache_ram_bytes.or(lower.cache_ram_bytes),
            memory_bytes: self.memory_bytes.or(lower.memory_bytes),
        }
    }

    /// An empty text is as good as none: job files pass a variable on whether it is set or not.
    fn without_empty(mut self) -> RawConfig {
        let texts = [
            &mut self.mode,
            &mut self.endpoint,
            &mut self.node_id,
            &mut self.bucket,
            &mut self.prefix,
            &mut self.s3_endpoint,
            &mut self.region,
            &mut self.metrics,
            &mut self.engine_metrics,
            &mut self.storage_class,
            &mut self.sse,
            &mut self.sse_kms_key_id,
        ];
        for text in texts {
            *text = text.take().filter(|text| !text.is_empty());
        }
        let paths = [
            &mut self.ca_bundle,
            &mut self.state_dir,
            &mut self.staging_root,
            &mut self.engine_socket,
            &mut self.cache_dir,
        ];
        for path in paths {
            *path = path.take().filter(|path| !path.as_os_str().is_empty());
        }
        self
    }
}

impl Config {
    /// Checks all options. `program` is what runs the engine, by way of its keeper.
    ///
    /// # Errors
    /// Every mistake there is, in the order of the options.
    pub fn check(raw: RawConfig, program: PathBuf) -> Result<Self, Vec<ConfigError>> {
        let raw = raw.without_empty();
        let mut mistakes = Mistakes::default();
        let mode = mistakes.keep(given("mode", raw.mode.as_deref()).and_then(str::parse));
        let endpoint = mistakes.keep(given("endpoint", raw.endpoint.as_deref()).and_then(socket_of));
        let node_id = mistakes.keep(node_id(raw.node_id.as_deref(), mode));
        let location = mistakes.keep(location(raw.bucket.as_deref(), raw.prefix.as_deref()));
        mistakes.keep(url(raw.s3_endpoint.as_deref()));
        let put = mistakes.keep(put_options(&raw));
        mistakes.keep(memory(raw.memory_bytes));
        let folders = mistakes.keep(folders(raw.state_dir, raw.staging_root));
        let state = folders
            .as_ref()
            .map(|folders| folders.state.clone())
            .unwrap_or_default();
        let engine_socket = raw.engine_socket.unwrap_or_else(|| state.join("engine.sock"));
        let engine_socket = mistakes.keep(short_enough("engine_socket", engine_socket));
        let (Some(mode), Some(endpoint), Some(node_id), Some(location), Some(folders), Some(engine_socket), []) = (
            mode,
            endpoint,
            node_id,
            location,
            folders,
            engine_socket,
            &mistakes.0[..],
        ) else {
            return Err(mistakes.0);
        };
        let mut more = Vec::new();
        if let Some(address) = raw.engine_metrics {
            more.extend(["--metrics".into(), address]);
        }
        if let Some(bytes) = raw.memory_bytes {
            more.extend(["--memory-bytes".into(), bytes.to_string()]);
        }
        let by_keeper = raw.keeper.unwrap_or(true);
        let command = EngineCommand::new((program, &engine_socket), (&state, &more), by_keeper);
        let put = put.expect("a mistake there has returned above");
        let path_style = raw.path_style.unwrap_or(raw.s3_endpoint.is_some());
        Ok(Self {
            mode,
            endpoint,
            metrics: raw.metrics,
            engine: EngineConfig {
                socket: engine_socket,
                command: raw.engine_start.unwrap_or(true).then_some(command),
                node_id: node_id.to_string(),
                bucket: location.bucket.clone(),
                prefix: location.prefix.clone(),
                s3_endpoint: raw.s3_endpoint.clone(),
                region: raw.region.clone(),
                path_style,
                put: put.clone(),
                ca_bundle: raw.ca_bundle.clone(),
                cache_dir: Some(raw.cache_dir.unwrap_or_else(|| state.join("cache"))),
                cache_disk_bytes: raw.cache_disk_bytes.unwrap_or(0),
                cache_ram_bytes: raw.cache_ram_bytes.unwrap_or(0),
            },
            node_id,
            folders,
            location,
            store: S3Options {
                endpoint: raw.s3_endpoint,
                region: raw.region,
                path_style: Some(path_style),
                ca_bundle: raw.ca_bundle,
                put,
                ..S3Options::default()
            },
        })
    }
}

#[derive(Debug, Default)]
struct Mistakes(Vec<ConfigError>);

impl Mistakes {
    fn keep<T>(&mut self, checked: Result<T, ConfigError>) -> Option<T> {
        checked.map_err(|mistake| self.0.push(mistake)).ok()
    }
}

fn wrong(key: &'static str, detail: String) -> ConfigError {
    ConfigError::Wrong { key, detail }
}

fn memory(bytes: Option<u64>) -> Result<(), ConfigError> {
    match bytes {
        Some(bytes) if bytes < MEMORY_BYTES_MIN => Err(wrong(
            "memory_bytes",
            format!("{bytes} is too few for volumes to work, the least is {MEMORY_BYTES_MIN}"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn given<'a>(key: &'static str, value: Option<&'a str>) -> Result<&'a str, ConfigError> {
    value.ok_or(ConfigError::Missing { key })
}

fn socket_of(endpoint: &str) -> Result<PathBuf, ConfigError> {
    let path = endpoint
        .strip_prefix("unix://")
        .or_else(|| endpoint.strip_prefix("unix:"));
    let path = PathBuf::from(path.unwrap_or(endpoint));
    if !path.is_absolute() {
        return Err(wrong(
            "endpoint",
            format!("{endpoint:?} is not unix:// with an absolute path"),
        ));
    }
    short_enough("endpoint", path)
}

fn short_enough(key: &'static str, path: PathBuf) -> Result<PathBuf, ConfigError> {
    // Its keeper's lies beside it, with a longer name.
    let bytes = path.as_os_str().len() + if key == "engine_socket" { KEEPER.len() } else { 0 };
    if bytes > SOCKET_PATH_BYTES_MAX {
        let detail = format!(
            "{} has {bytes} bytes, a socket can have {SOCKET_PATH_BYTES_MAX}",
            path.display()
        );
        return Err(wrong(key, detail));
    }
    Ok(path)
}

fn node_id(given_id: Option<&str>, mode: Option<Mode>) -> Result<NodeId, ConfigError> {
    let id = match (given("node_id", given_id), mode) {
        (Ok(id), _) => id,
        // A controller is nobody's node, and never tells the id.
        (Err(_), Some(Mode::Controller)) => "controller",
        (Err(missing), _) => return Err(missing),
    };
    NodeId::new(id).map_err(|error| wrong("node_id", error.to_string()))
}

fn put_options(raw: &RawConfig) -> Result<PutOptions, ConfigError> {
    let put = PutOptions {
        storage_class: raw.storage_class.clone(),
        sse: raw.sse.clone(),
        sse_kms_key_id: raw.sse_kms_key_id.clone(),
    };
    put.check().map_err(|error| wrong(error.key, error.detail))?;
    Ok(put)
}

fn location(bucket: Option<&str>, prefix: Option<&str>) -> Result<S3Location, ConfigError> {
    let bucket = given("bucket", bucket)?;
    let prefix = prefix.unwrap_or_default();
    let url = format!("s3://{bucket}/{prefix}");
    url.parse().map_err(|error: volume_s3::LocationError| match error {
        volume_s3::LocationError::Prefix { .. } => wrong("prefix", error.to_string()),
        volume_s3::LocationError::Scheme { .. } | volume_s3::LocationError::Bucket { .. } => {
            wrong("bucket", error.to_string())
        }
    })
}

fn url(endpoint: Option<&str>) -> Result<(), ConfigError> {
    match endpoint {
        Some(url) if !url.starts_with("http://") && !url.starts_with("https://") => Err(wrong(
            "s3_endpoint",
            format!("{url:?} is not an http:// or https:// URL"),
        )),
        Some(_) | None => Ok(()),
    }
}

fn folders(state: Option<PathBuf>, staging_root: Option<PathBuf>) -> Result<Folders, ConfigError> {
    for (key, path) in [("staging_root", &staging_root), ("state_dir", &state)] {
        if let Some(path) = path.as_ref().filter(|path| !path.is_absolute()) {
            return Err(wrong(key, format!("{} is not absolute", path.display())));
        }
    }
    let below_root = || staging_root.as_ref().map(|root| root.join(STATE_BELOW_ROOT));
    let state = state.or_else(below_root).unwrap_or_else(|| STATE_DIR.into());
    Ok(Folders { state, staging_root })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole() -> RawConfig {
        RawConfig {
            mode: Some("monolith".into()),
            endpoint: Some("unix:///run/csi.sock".into()),
            node_id: Some("n1".into()),
            bucket: Some("data".into()),
            prefix: Some("cluster".into()),
            s3_endpoint: Some("http://127.0.0.1:9000".into()),
            staging_root: Some("/nomad/csi".into()),
            ..RawConfig::default()
        }
    }

    fn mistakes(raw: RawConfig) -> Vec<String> {
        let mistakes = Config::check(raw, "/bin/pannier".into()).unwrap_err();
        mistakes.iter().map(ConfigError::to_string).collect()
    }

    #[test]
    fn state_lies_below_the_staging_root_unless_told_otherwise() {
        let config = Config::check(whole(), "/bin/pannier".into()).unwrap();
        assert_eq!(config.endpoint, PathBuf::from("/run/csi.sock"));
        assert_eq!(config.folders.state, PathBuf::from("/nomad/csi/.pannier"));
        assert_eq!(config.engine.socket, PathBuf::from("/nomad/csi/.pannier/engine.sock"));
        assert_eq!(
            (config.location.prefix.as_str(), config.engine.path_style),
            ("cluster/", true)
        );
        let without = RawConfig {
            staging_root: None,
            ..whole()
        };
        let config = Config::check(without, "/bin/pannier".into()).unwrap();
        assert_eq!(config.folders.state, PathBuf::from(STATE_DIR));
    }

    #[test]
    fn all_mistakes_are_told_at_once_by_their_keys() {
        let told = mistakes(RawConfig::default()).join("\n");
        for key in ["mode is missing", "PANNIER_ENDPOINT", "--node-id", "bucket is missing"] {
            assert!(told.contains(key), "{key} in {told}");
        }
        for (raw, key) in [
            (
                RawConfig {
                    mode: Some("both".into()),
                    ..whole()
                },
                "mode",
            ),
            (
                RawConfig {
                    endpoint: Some("tcp://0.0.0.0:1".into()),
                    ..whole()
                },
                "endpoint",
            ),
            (
                RawConfig {
                    endpoint: Some(format!("unix:///{}", "x".repeat(108))),
                    ..whole()
                },
                "endpoint",
            ),
            (
                RawConfig {
                    node_id: Some("a\u{1}".into()),
                    ..whole()
                },
                "node_id",
            ),
            (
                RawConfig {
                    bucket: Some("No".into()),
                    ..whole()
                },
                "bucket",
            ),
            (
                RawConfig {
                    prefix: Some("a/../b".into()),
                    ..whole()
                },
                "prefix",
            ),
            (
                RawConfig {
                    s3_endpoint: Some("minio:9000".into()),
                    ..whole()
                },
                "s3_endpoint",
            ),
            (
                RawConfig {
                    state_dir: Some("state".into()),
                    ..whole()
                },
                "state_dir",
            ),
            (
                RawConfig {
                    memory_bytes: Some(1 << 20),
                    ..whole()
                },
                "memory_bytes",
            ),
        ] {
            let told = mistakes(raw);
            assert!(told.len() == 1 && told[0].starts_with(key), "{key}: {told:?}");
        }
    }

    #[test]
    fn the_engine_is_started_with_the_memory_that_it_may_have() {
        let args = |memory_bytes| {
            let raw = RawConfig {
                memory_bytes,
                ..whole()
            };
            let config = Config::check(raw, "/bin/pannier".into()).unwrap();
            config.engine.command.unwrap().args.join(" ")
        };
        assert!(args(Some(512 << 20)).contains("--memory-bytes 536870912"));
        assert!(!args(None).contains("--memory-bytes"), "its own default");
    }

    #[test]
    fn an_empty_text_is_as_good_as_none() {
        let raw = RawConfig {
            s3_endpoint: Some(String::new()),
            region: Some(String::new()),
            ..whole()
        };
        let config = Config::check(raw, "/bin/pannier".into()).unwrap();
        assert_eq!((config.store.endpoint, config.store.region), (None, None));
        let told = mistakes(RawConfig {
            bucket: Some(String::new()),
            ..whole()
        });
        assert!(told[0].contains("bucket is missing"), "{told:?}");
    }

    #[test]
    fn a_controller_needs_no_node_id() {
        let raw = RawConfig {
            mode: Some("controller".into()),
            node_id: None,
            ..whole()
        };
        assert!(!Config::check(raw, "/bin/pannier".into()).unwrap().mode.has_node());
    }

    #[test]
    fn what_is_given_first_wins() {
        let lower = RawConfig {
            bucket: Some("other".into()),
            region: Some("eu-1".into()),
            ..RawConfig::default()
        };
        let both = whole().over(lower);
        assert_eq!(
            (both.bucket.as_deref(), both.region.as_deref()),
            (Some("data"), Some("eu-1"))
        );
    }
}
