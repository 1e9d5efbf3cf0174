//! `pannier engine`: the process that serves the mounts of a node.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::Args;
use volume::budget::{MEMORY_BYTES_MAX, MEMORY_BYTES_MIN};
use volume::volume::CacheConfig;
use volume_mount::engine::LOOK_EVERY;
use volume_mount::engine::process::{EngineConfig, run_engine};

use super::Failure;
use crate::memory::keep_large_blocks;
use crate::metrics_server::{MetricsAddress, process_metrics, serve_metrics};

/// Arguments of `pannier engine`.
#[derive(Debug, Args)]
pub struct EngineArgs {
    /// Where to listen for `pannier csi` and operators
    #[arg(long, value_name = "PATH", env = "PANNIER_ENGINE_SOCKET")]
    pub socket: PathBuf,
    /// File to log to, instead of stderr
    #[arg(long, value_name = "FILE")]
    pub log_file: Option<PathBuf>,
    /// Folder on a local disk that keeps what was read, for mounts that name none
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Where to serve metrics over HTTP: an address with a port, or unix:///PATH; nowhere if not given
    #[arg(long, value_name = "ADDRESS", env = "PANNIER_ENGINE_METRICS")]
    pub metrics: Option<MetricsAddress>,
    /// How many seconds may pass until a mount knows that its volume was expanded
    #[arg(long, value_name = "SECONDS", env = "PANNIER_ENGINE_LOOK_EVERY", default_value_t = LOOK_EVERY.as_secs())]
    pub look_every: u64,
    /// Most bytes of each volume in that folder
    #[arg(long, value_name = "BYTES")]
    pub cache_bytes: Option<u64>,
    /// Most bytes of memory for all volumes together; above it writers wait and caches shrink
    #[arg(long, value_name = "BYTES", default_value_t = MEMORY_BYTES_MAX, value_parser = clap::value_parser!(u64).range(MEMORY_BYTES_MIN..))]
    pub memory_bytes: u64,
    /// Folder on a disk that survives a reboot, for what fsync leaves there in volumes of durability `local`; without it
    /// their fsync waits for the bucket
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// Where the keeper listens that has started this engine
    #[arg(long, value_name = "PATH", hide = true)]
    pub keeper: Option<PathBuf>,
    /// Let mounts outlive this engine as on a kernel before Linux 6.9, which cannot send again what nobody has answered: slower, for
    /// trying it on a newer kernel
    #[arg(long, hide = true)]
    pub relay: bool,
}

/// Runs until told to end.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(args: EngineArgs) -> Result<(), Failure> {
    keep_large_blocks(args.memory_bytes);
    let mut cache = CacheConfig {
        dir: args.cache_dir,
        ..CacheConfig::default()
    };
    if let Some(bytes) = args.cache_bytes {
        cache.disk_bytes = bytes;
    }
    let config = EngineConfig {
        socket: args.socket,
        cache,
        memory_bytes: args.memory_bytes,
        state_dir: args.state_dir,
        keeper: args.keeper,
        relays: args.relay,
        look_every: Duration::from_secs(args.look_every.max(1)),
        version: env!("CARGO_PKG_VERSION"),
    };
    let socket = config.socket.display().to_string();
    run_engine(config, |engine| {
        tracing::info!(socket, pid = std::process::id(), "the engine serves");
        if let Some(address) = args.metrics {
            tokio::spawn(serve_metrics(
                address,
                Arc::new(move || engine.metrics(env!("CARGO_PKG_VERSION")) + &process_metrics()),
            ));
        }
    })
    .await?;
    Ok(())
}
