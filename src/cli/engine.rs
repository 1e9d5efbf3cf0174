//! `pannier engine`: the process that serves the mounts of a node.

use std::path::PathBuf;

use clap::Args;
use volume::volume::CacheConfig;
use volume_mount::engine::process::{EngineConfig, run_engine};

use super::Failure;

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
    /// Most bytes of each volume in that folder
    #[arg(long, value_name = "BYTES")]
    pub cache_bytes: Option<u64>,
    /// Folder on a disk that survives a reboot, for what fsync leaves there in volumes of durability `local`; without it
    /// their fsync waits for the bucket
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
}

/// Runs until told to end.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(args: EngineArgs) -> Result<(), Failure> {
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
        state_dir: args.state_dir,
        version: env!("CARGO_PKG_VERSION"),
    };
    let socket = config.socket.display().to_string();
    run_engine(config, || {
        tracing::info!(socket, pid = std::process::id(), "the engine serves")
    })
    .await?;
    Ok(())
}
