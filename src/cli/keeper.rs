//! `pannier keeper`: the process that holds the mounts of a node while engines come and go.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use volume_mount::keeper::{
    ABORT_AFTER, EngineCommand, KeeperConfig, ServiceManager, replace_engine, run_keeper, socket_beside,
};

use super::Failure;

/// Arguments of `pannier keeper`.
#[derive(Debug, Args)]
pub struct KeeperArgs {
    /// Socket of the engine; the keeper's own lies beside it
    #[arg(long, value_name = "PATH", env = "PANNIER_ENGINE_SOCKET")]
    pub socket: PathBuf,
    /// How many seconds programs wait for their files while no engine runs; then they get errors
    #[arg(long, value_name = "SECONDS", default_value_t = ABORT_AFTER.as_secs(), value_parser = clap::value_parser!(u64).range(1..))]
    pub abort_after: u64,
    /// Let the keeper that runs there start an engine of this program, which takes over from the one that serves
    #[arg(long)]
    pub replace_engine: bool,
    /// What a service manager says: where it listens
    #[arg(long, env = "NOTIFY_SOCKET", hide = true)]
    pub notify_socket: Option<String>,
    /// What a service manager says: to whom it hands descriptors on
    #[arg(long, env = "LISTEN_PID", hide = true)]
    pub listen_pid: Option<u32>,
    /// What a service manager says: how many
    #[arg(long, env = "LISTEN_FDS", hide = true, default_value_t = 0)]
    pub listen_fds: u32,
    /// What a service manager says: what they are called
    #[arg(long, env = "LISTEN_FDNAMES", hide = true, default_value = "")]
    pub listen_fdnames: String,
    /// Arguments of `pannier engine`
    #[arg(last = true, value_name = "ENGINE ARGUMENTS")]
    pub engine: Vec<OsString>,
}

/// Runs until the engine has ended and nothing is kept any more; or asks the keeper for another engine.
///
/// # Errors
/// `Failure` in words for a person.
pub fn run(args: KeeperArgs) -> Result<(), Failure> {
    let program = std::env::current_exe()?;
    let words = [OsString::from("engine")].into_iter().chain(args.engine).collect();
    if args.replace_engine {
        return Ok(replace_engine(&socket_beside(&args.socket), program, words)?);
    }
    Ok(run_keeper(KeeperConfig {
        engine_socket: args.socket,
        command: EngineCommand { program, args: words },
        abort_after: Duration::from_secs(args.abort_after),
        service_manager: ServiceManager {
            notify_socket: args.notify_socket,
            listen_pid: args.listen_pid,
            listen_fds: args.listen_fds,
            listen_fdnames: args.listen_fdnames,
        },
    })?)
}
