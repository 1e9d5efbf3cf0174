//! The `pannier` command: reads its arguments, sets up logging and a runtime, and runs one subcommand.

use std::process::ExitCode;

use clap::{Parser, Subcommand};
use pannier::cli::{Failure, csi, doctor, engine, keeper, log, mount, mounts, try_job, volume};

#[global_allocator]
static MEMORY: pannier::memory::Memory = pannier::memory::Memory;

/// Volumes in S3, mounted as POSIX file systems.
#[derive(Parser)]
#[command(name = "pannier", version, about, max_term_width = 100)]
struct Pannier {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Mount one volume in the foreground
    Mount(mount::MountArgs),
    /// List what this node's engine serves, and how much of it is not in the bucket yet
    Mounts(mounts::MountsArgs),
    /// Look at the volumes of a bucket, check and remove them
    #[command(subcommand)]
    Volume(volume::VolumeCommand),
    /// Serve the CSI plugin that Nomad runs: identity, and controller, node or both
    Csi(Box<csi::CsiArgs>),
    /// Serve the mounts of a node (started by `pannier keeper`)
    Engine(engine::EngineArgs),
    /// Hold the mounts of a node while engines come and go (started by `pannier csi`)
    Keeper(keeper::KeeperArgs),
    /// Look whether this node can run Pannier, and say what to do where it cannot
    Doctor(doctor::DoctorArgs),
    /// Run a Nomad job and its volume on this machine, over Nomad's own protocols
    Try(try_job::TryArgs),
}

fn main() -> ExitCode {
    pannier::memory::give_back_large_blocks();
    let Pannier { command } = Pannier::parse();
    match run(command) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.tell(),
    }
}

fn run(command: Command) -> Result<(), Failure> {
    match command {
        Command::Mount(args) => {
            log::to_stderr("warn")?;
            on_runtime(mount::run(args))
        }
        Command::Volume(command) => {
            log::to_stderr("warn")?;
            on_runtime(volume::run(command))
        }
        Command::Csi(args) => {
            log::to_stderr("info")?;
            on_runtime(csi::run(*args))
        }
        Command::Engine(args) => {
            log::to_file_or_stderr(args.log_file.as_deref(), "info,slatedb=warn")?;
            on_runtime(engine::run(args))
        }
        Command::Keeper(args) => {
            log::to_stderr("info")?;
            keeper::run(args)
        }
        Command::Mounts(args) => {
            log::to_stderr("error")?;
            on_runtime(mounts::run(args))
        }
        Command::Doctor(args) => {
            log::to_stderr("error")?;
            on_runtime(doctor::run(args))
        }
        Command::Try(args) => {
            log::to_stderr("warn")?;
            on_runtime(try_job::run(args))
        }
    }
}

fn on_runtime(work: impl Future<Output = Result<(), Failure>>) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let runtime = runtime.map_err(|error| Failure::new(format!("cannot start the runtime: {error}")))?;
    let done = runtime.block_on(work);
    // What still waits for a store or a kernel must not keep us.
    runtime.shutdown_background();
    done
}
