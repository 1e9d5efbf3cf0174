//! `pannier try`: Nomad's part on one machine, over the very same protocols: an S3 server, the task driver by the
//! go-plugin handshake, the CSI plugin by its socket, a job file in the order Nomad would take it, and a clean end.
//!
//! Invariant: whatever happens, error and Ctrl-C included, no container, mount or process of a run is left behind.
//! Thin on purpose: it is a tool to reproduce a job on one box, not a scheduler.

pub mod csi_plugin;
pub mod driver_config;
pub mod driver_host;
pub mod hcl_reader;
mod interrupt;
pub mod job_file;
mod leftovers;
mod nomad_agent;
mod play;
pub mod report;
pub mod sample_image;
mod stage;
pub mod task_output;
pub mod volume_file;

use std::path::PathBuf;

pub use interrupt::Interrupt;
pub use play::run;

/// The default run's files, the same that a cluster would take.
pub const WRITE_JOB: &str = include_str!("../jobs/try-write.nomad.hcl");
/// See `WRITE_JOB`.
pub const VERIFY_JOB: &str = include_str!("../jobs/try-verify.nomad.hcl");
/// See `WRITE_JOB`.
pub const VOLUME_FILE: &str = include_str!("../jobs/try-volume.hcl");

/// What to try.
#[derive(Debug, Clone)]
pub struct Options {
    /// A job file to play instead of the default two.
    pub job: Option<PathBuf>,
    /// Volume files for the volumes of `job`.
    pub volumes: Vec<PathBuf>,
    /// Leave the volume and the state directory.
    pub keep: bool,
    /// A real bucket: `s3://BUCKET/PREFIX`; otherwise the embedded server.
    pub s3: Option<String>,
    /// Endpoint of that bucket, if it is not AWS.
    pub endpoint: Option<String>,
    /// Region of that bucket.
    pub region: Option<String>,
    /// Play on a real Nomad dev agent: the `nomad` program.
    pub nomad: Option<PathBuf>,
    /// Where everything of the run lies.
    pub state_dir: PathBuf,
    /// The source tree that the default run unpacks.
    pub tree: Option<PathBuf>,
    /// This program, which is also the CSI plugin.
    pub pannier: PathBuf,
    /// The `nomad-driver-podman` program.
    pub driver: PathBuf,
    /// A Podman API socket to use; otherwise a service is found or started.
    pub podman_socket: Option<PathBuf>,
}

/// Why a run ended early. The text says what to do where there is something to do.
#[derive(Debug, thiserror::Error)]
pub enum TryError {
    /// A job or volume file is wrong.
    #[error(transparent)]
    File(#[from] hcl_reader::HclFileError),
    /// Something on local disk failed.
    #[error("{path}: {source}")]
    State {
        /// The path.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: std::io::Error,
    },
    /// A call of the protocol failed.
    #[error("{call} failed: {message}")]
    Rpc {
        /// Name of the call.
        call: &'static str,
        /// Code and words of the plugin.
        message: String,
    },
    /// A plugin process did not come up.
    #[error("{name} {what}; its log is {log}")]
    Plugin {
        /// Program.
        name: &'static str,
        /// What happened.
        what: String,
        /// Where to look.
        log: PathBuf,
    },
    /// The task driver did not come up.
    #[error("cannot launch {program}: {source}")]
    Launch {
        /// The plugin binary.
        program: PathBuf,
        /// What happened.
        #[source]
        source: go_plugin::ConnectError,
    },
    /// The task driver is not healthy.
    #[error("the task driver is not healthy: {0}")]
    Unhealthy(String),
    /// The driver answered StartTask without a handle.
    #[error("StartTask returned no handle; Nomad would lose the task")]
    NoHandle,
    /// A task did not succeed.
    #[error("task {task} failed: exit code {exit_code}, signal {signal}{}", if *oom_killed { ", out of memory" } else { "" })]
    TaskFailed {
        /// Task.
        task: String,
        /// Exit code.
        exit_code: i32,
        /// Signal or 0.
        signal: i32,
        /// Killed for its memory.
        oom_killed: bool,
    },
    /// An access mode that Nomad does not have.
    #[error(
        "access_mode {0:?} is not one of Nomad's: single-node-writer, single-node-reader-only, multi-node-reader-only, multi-node-single-writer, multi-node-multi-writer"
    )]
    AccessMode(String),
    /// A job uses a volume that no file describes.
    #[error("the job uses the volume {0:?}; give its file with --volume FILE")]
    NoVolumeFile(String),
    /// A task asks for another driver.
    #[error("task {task} wants the driver {driver:?}; `pannier try` has only {has:?}")]
    OtherDriver {
        /// Task.
        task: String,
        /// Its driver.
        driver: String,
        /// Ours.
        has: String,
    },
    /// A program of the system failed.
    #[error("{command} failed: {detail}")]
    Tool {
        /// The command line.
        command: String,
        /// What it said.
        detail: String,
    },
    /// This machine lacks something.
    #[error("{0}")]
    Machine(String),
    /// Ctrl-C or SIGTERM.
    #[error("interrupted")]
    Interrupted,
}

impl TryError {
    fn rpc(call: &'static str, status: &tonic::Status) -> Self {
        TryError::Rpc {
            call,
            message: format!("{:?}: {}", status.code(), status.message()),
        }
    }
}
