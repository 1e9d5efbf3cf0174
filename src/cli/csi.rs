//! `pannier csi`: the CSI plugin that Nomad runs.
//!
//! Options come from flags, the environment (`PANNIER_…`, and Nomad's `CSI_ENDPOINT`) and a file in HCL, in this
//! order of precedence. Ending it, by SIGTERM or otherwise, unmounts nothing: the engine is a process of its own, and
//! the next plugin adopts its mounts.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use csi_driver::cluster::S3Clusters;
use csi_driver::config::{Config, ConfigError, RawConfig};
use csi_driver::mounter::engine::EngineMounter;
use csi_driver::server::{Parts, ServeError, serve};
use tokio::signal::unix::{SignalKind, signal};
use volume_mount::clock::SystemClock;

use super::Failure;
use crate::metrics_server::{AddressError, process_metrics, serve_metrics};

/// Serve the CSI plugin: identity, and controller, node or both.
#[derive(Debug, Clone, Args)]
pub struct CsiArgs {
    /// File of options in HCL, with the names of the flags below and `_` for `-`, for example `bucket = "data"`.
    #[arg(long, env = "PANNIER_CONFIG")]
    config: Option<PathBuf>,
    /// controller, node or monolith.
    #[arg(long, env = "PANNIER_MODE")]
    mode: Option<String>,
    /// Socket to serve on: unix:///PATH. Nomad gives it as CSI_ENDPOINT.
    #[arg(long, env = "PANNIER_ENDPOINT")]
    endpoint: Option<String>,
    /// As Nomad sets it; behind --endpoint and PANNIER_ENDPOINT, before the file.
    #[arg(long, env = "CSI_ENDPOINT", hide = true)]
    csi_endpoint: Option<String>,
    /// Id of this node, the same for as long as the machine lives.
    #[arg(long, env = "PANNIER_NODE_ID")]
    node_id: Option<String>,
    /// Bucket that holds the volumes.
    #[arg(long, env = "PANNIER_BUCKET")]
    bucket: Option<String>,
    /// Where in the bucket; its top if not given.
    #[arg(long, env = "PANNIER_PREFIX")]
    prefix: Option<String>,
    /// URL of the store; Amazon's if not given.
    #[arg(long, env = "PANNIER_S3_ENDPOINT")]
    s3_endpoint: Option<String>,
    /// Region; that of the AWS environment if not given.
    #[arg(long, env = "PANNIER_REGION")]
    region: Option<String>,
    /// Whether the bucket is in the path of URLs; yes if --s3-endpoint is given.
    #[arg(long, env = "PANNIER_PATH_STYLE", value_name = "true|false")]
    path_style: Option<bool>,
    /// File of PEM certificates to trust besides the system's.
    #[arg(long, env = "PANNIER_CA_BUNDLE")]
    ca_bundle: Option<PathBuf>,
    /// As AWS's own programs read it; behind --ca-bundle and PANNIER_CA_BUNDLE, before the file.
    #[arg(long, env = "AWS_CA_BUNDLE", hide = true)]
    aws_ca_bundle: Option<PathBuf>,
    /// Folder for state; `.pannier` below --staging-root, or /var/lib/pannier/csi.
    #[arg(long, env = "PANNIER_STATE_DIR")]
    state_dir: Option<PathBuf>,
    /// stage_publish_base_dir of the Nomad job: dead mounts below it are cleared.
    #[arg(long, env = "PANNIER_STAGING_ROOT")]
    staging_root: Option<PathBuf>,
    /// Socket of the engine; `engine.sock` in the state folder.
    #[arg(long, env = "PANNIER_ENGINE_SOCKET")]
    engine_socket: Option<PathBuf>,
    /// Whether to start an engine if none listens; yes.
    #[arg(long, env = "PANNIER_ENGINE_START", value_name = "true|false")]
    engine_start: Option<bool>,
    /// Whether a keeper starts the engine, so that mounts outlive it; yes.
    #[arg(long, env = "PANNIER_KEEPER", value_name = "true|false")]
    keeper: Option<bool>,
    /// Where to serve metrics over HTTP: an address with a port, or unix:///PATH; nowhere if not given.
    #[arg(long, env = "PANNIER_METRICS")]
    metrics: Option<String>,
    /// The same for the engine, if this plugin starts it.
    #[arg(long, env = "PANNIER_ENGINE_METRICS")]
    engine_metrics: Option<String>,
    /// Storage class of what is put; the store's own if not given.
    #[arg(long, env = "PANNIER_STORAGE_CLASS")]
    storage_class: Option<String>,
    /// Encryption by the store: AES256, aws:kms or aws:kms:dsse; what the bucket does by itself if not given.
    #[arg(long, env = "PANNIER_SSE")]
    sse: Option<String>,
    /// Key for aws:kms; the account's own if not given.
    #[arg(long, env = "PANNIER_SSE_KMS_KEY_ID")]
    sse_kms_key_id: Option<String>,
    /// Folder for cached data; `cache` in the state folder.
    #[arg(long, env = "PANNIER_CACHE_DIR")]
    cache_dir: Option<PathBuf>,
    /// Most bytes of cached data on disk, for each volume.
    #[arg(long, env = "PANNIER_CACHE_DISK_BYTES")]
    cache_disk_bytes: Option<u64>,
    /// Most bytes of cached data in memory, for each volume.
    #[arg(long, env = "PANNIER_CACHE_RAM_BYTES")]
    cache_ram_bytes: Option<u64>,
    /// Most bytes of memory for all volumes of the engine, if this plugin starts it.
    #[arg(long, env = "PANNIER_MEMORY_BYTES")]
    memory_bytes: Option<u64>,
}

/// Why the plugin does not run.
#[derive(Debug, thiserror::Error)]
pub enum CsiError {
    /// The file of options cannot be read.
    #[error("the file of options {} cannot be read: {source}", path.display())]
    ReadFile {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// The file of options does not say what it may.
    #[error("the file of options {}: {source}", path.display())]
    ParseFile {
        /// Which.
        path: PathBuf,
        /// Which key, or which line.
        source: Box<hcl::Error>,
    },
    /// Options are missing or wrong.
    #[error("{}", list(.0))]
    Options(Vec<ConfigError>),
    /// This program does not know where it lies, so it cannot start an engine.
    #[error("the path of this program is unknown: {0}")]
    Program(std::io::Error),
    /// The system refused a signal handler.
    #[error("signals cannot be awaited: {0}")]
    Start(std::io::Error),
    /// Metrics cannot be served where they were asked for.
    #[error("metrics: {0}")]
    Metrics(#[from] AddressError),
    /// Serving failed.
    #[error(transparent)]
    Serve(#[from] ServeError),
}

fn list(mistakes: &[ConfigError]) -> String {
    let lines = mistakes.iter().map(|mistake| format!("\n  {mistake}"));
    format!("options are missing or wrong:{}", lines.collect::<String>())
}

/// Runs the plugin until a signal ends it.
///
/// # Errors
/// `Failure` before anything is served, or when serving fails.
pub async fn run(args: CsiArgs) -> Result<(), Failure> {
    Ok(until_told(args.check()?).await?)
}

async fn until_told(config: Config) -> Result<(), CsiError> {
    let mut term = signal(SignalKind::terminate()).map_err(CsiError::Start)?;
    let mut interrupt = signal(SignalKind::interrupt()).map_err(CsiError::Start)?;
    if let Some(address) = &config.metrics {
        let text = || csi_driver::metrics::metrics(env!("CARGO_PKG_VERSION")) + &process_metrics();
        tokio::spawn(serve_metrics(address.parse()?, Arc::new(text)));
    }
    let mounter = Arc::new(EngineMounter::new(config.engine));
    let parts = Parts {
        mode: config.mode,
        endpoint: config.endpoint,
        node_id: config.node_id,
        folders: config.folders,
        clusters: Arc::new(S3Clusters::new(config.store, config.location)),
        mounter: mounter.clone(),
        clock: Arc::new(SystemClock),
    };
    if config.mode.has_node() {
        tokio::spawn(async move { bring_up_to_date(&mounter).await });
    }
    tokio::select! {
        outcome = serve(parts) => outcome?,
        _ = term.recv() => tracing::info!("SIGTERM: ending; mounts stay"),
        _ = interrupt.recv() => tracing::info!("SIGINT: ending; mounts stay"),
    }
    Ok(())
}

/// An engine of another version is replaced under its mounts. Failing changes nothing: it serves on.
async fn bring_up_to_date(mounter: &EngineMounter) {
    match mounter.bring_up_to_date(env!("CARGO_PKG_VERSION")).await {
        Ok(None) => {}
        Ok(Some(before)) => tracing::info!(before, "the engine is being replaced by this version's"),
        Err(error) => tracing::warn!(%error, "the engine is not of this version, and stays"),
    }
}

impl CsiArgs {
    fn check(self) -> Result<Config, CsiError> {
        let file = match &self.config {
            Some(path) => read_file(path)?,
            None => RawConfig::default(),
        };
        let program = std::env::current_exe().map_err(CsiError::Program)?;
        Config::check(self.raw().over(file), program).map_err(CsiError::Options)
    }

    fn raw(self) -> RawConfig {
        RawConfig {
            mode: self.mode,
            endpoint: self.endpoint.or(self.csi_endpoint),
            node_id: self.node_id,
            bucket: self.bucket,
            prefix: self.prefix,
            s3_endpoint: self.s3_endpoint,
            region: self.region,
            path_style: self.path_style,
            ca_bundle: self.ca_bundle.or(self.aws_ca_bundle),
            state_dir: self.state_dir,
            staging_root: self.staging_root,
            engine_socket: self.engine_socket,
            engine_start: self.engine_start,
            keeper: self.keeper,
            metrics: self.metrics,
            engine_metrics: self.engine_metrics,
            storage_class: self.storage_class,
            sse: self.sse,
            sse_kms_key_id: self.sse_kms_key_id,
            cache_dir: self.cache_dir,
            cache_disk_bytes: self.cache_disk_bytes,
            cache_ram_bytes: self.cache_ram_bytes,
            memory_bytes: self.memory_bytes,
        }
    }
}

fn read_file(path: &Path) -> Result<RawConfig, CsiError> {
    let text = std::fs::read_to_string(path).map_err(|source| CsiError::ReadFile {
        path: path.to_owned(),
        source,
    })?;
    hcl::from_str(&text).map_err(|source| CsiError::ParseFile {
        path: path.to_owned(),
        source: Box::new(source),
    })
}

#[cfg(test)]
mod errors;

#[cfg(test)]
mod page;

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Line {
        #[command(flatten)]
        args: CsiArgs,
    }

    fn check(line: &[&str], file: &str) -> Result<Config, CsiError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("csi.hcl");
        std::fs::write(&path, file).unwrap();
        let path = path.to_string_lossy().into_owned();
        let words = ["csi", "--config", &path].into_iter().chain(line.iter().copied());
        Line::parse_from(words).args.check()
    }

    const FILE: &str = r#"
        mode        = "node"
        endpoint    = "unix:///run/file.sock"
        node_id     = "n1"
        bucket      = "from-file"
        state_dir   = "/var/lib/pannier"
        s3_endpoint = "http://127.0.0.1:9000"
    "#;

    #[test]
    fn a_flag_wins_over_the_file() {
        let config = check(&["--bucket", "from-flag", "--cache-ram-bytes", "5"], FILE).unwrap();
        assert_eq!(config.location.bucket, "from-flag");
        assert_eq!(config.endpoint, Path::new("/run/file.sock"));
        assert_eq!(config.engine.cache_ram_bytes, 5);
    }

    /// Nomad tells its plugins by CSI_ENDPOINT where to serve; clap reads it as this option.
    #[test]
    fn the_endpoint_that_nomad_gives_wins_over_the_file_but_not_over_ours() {
        let nomad = ["--csi-endpoint", "unix:///csi/csi.sock"];
        assert_eq!(check(&nomad, FILE).unwrap().endpoint, Path::new("/csi/csi.sock"));
        let both = [&nomad[..], &["--endpoint", "unix:///run/ours.sock"]].concat();
        assert_eq!(check(&both, FILE).unwrap().endpoint, Path::new("/run/ours.sock"));
    }

    /// The job files of `jobs/` set options by environment; one that is misspelt there would be ignored in silence.
    #[test]
    fn every_variable_of_the_job_files_is_an_option() {
        use clap::CommandFactory;
        let command = Line::command();
        let known: Vec<_> = command
            .get_arguments()
            .filter_map(|arg| arg.get_env()?.to_str())
            .collect();
        let files = [
            "csi-controller.nomad.hcl",
            "csi-node.nomad.hcl",
            "csi-monolith.nomad.hcl",
            "csi-node-podman.nomad.hcl",
        ];
        for file in files {
            let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs").join(file);
            let text = std::fs::read_to_string(&path).unwrap();
            hcl::parse(&text).unwrap_or_else(|error| panic!("{file}: {error}"));
            let words = text.split(|c: char| !c.is_ascii_uppercase() && !c.is_ascii_digit() && c != '_');
            let used: Vec<_> = words.filter(|word| word.starts_with("PANNIER_")).collect();
            assert!(used.len() >= 5, "{file} sets {used:?}");
            for word in used {
                assert!(known.contains(&word), "{file}: {word} is none of {known:?}");
            }
        }
    }

    /// Goal: what jobs/pannier-engine.service runs is a command of ours, and systemd takes the unit. Method: clap parses its
    /// line; `systemd-analyze verify` reads it where that is installed.
    #[test]
    fn the_unit_of_the_engine_runs_what_there_is() {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs/pannier-engine.service");
        let text = std::fs::read_to_string(&path).unwrap();
        let line = text
            .lines()
            .find_map(|line| line.strip_prefix("ExecStart=/usr/local/bin/pannier "))
            .unwrap();
        #[derive(Debug, Parser)]
        struct Keeper {
            #[command(flatten)]
            args: crate::cli::keeper::KeeperArgs,
        }
        #[derive(Debug, Parser)]
        struct Engine {
            #[command(flatten)]
            args: crate::cli::engine::EngineArgs,
        }
        let keeper = Keeper::try_parse_from(line.split(' ')).unwrap().args;
        let words = std::iter::once("engine".into()).chain(keeper.engine);
        let engine = Engine::try_parse_from(words).unwrap().args;
        assert!(engine.socket == keeper.socket && engine.socket.ends_with("engine.sock"));
        assert!(engine.cache_dir.is_some() && engine.state_dir.is_some());
        let dir = tempfile::tempdir().unwrap();
        let here = text.replace("/usr/local/bin/pannier", "/bin/true");
        let unit = dir.path().join("pannier-engine.service");
        std::fs::write(&unit, here).unwrap();
        let Ok(verified) = std::process::Command::new("systemd-analyze")
            .arg("verify")
            .arg(&unit)
            .output()
        else {
            return;
        };
        let said = String::from_utf8_lossy(&verified.stderr);
        assert!(!said.contains("pannier-engine.service:"), "{said}");
    }

    #[test]
    fn a_mistake_in_the_file_is_named_by_its_key() {
        for (line, word) in [("buckt = \"x\"", "buckt"), ("cache_ram_bytes = \"many\"", "many")] {
            let error = check(&[], &format!("{FILE}\n{line}\n")).unwrap_err().to_string();
            assert!(error.contains(word) && error.contains("csi.hcl"), "{error}");
        }
        let error = check(&[], "mode = \"node\"").unwrap_err().to_string();
        assert!(
            error.contains("bucket is missing") && error.contains("PANNIER_NODE_ID"),
            "{error}"
        );
    }
}
