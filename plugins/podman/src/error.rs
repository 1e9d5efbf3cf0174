//! What can go wrong in the driver, as facts. How each is told to Nomad is in grpc.rs, and nowhere else.

use std::path::PathBuf;

use crate::config::ConfigErrors;
use crate::handle::HandleError;
use crate::logs::LogError;
use crate::podman::PodmanError;
use crate::spec::SpecError;
use crate::task_config::TaskConfigErrors;

/// A failure of one of Nomad's calls.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// The plugin's options have mistakes.
    #[error("plugin config: {0}")]
    Config(#[from] ConfigErrors),
    /// The task's options have mistakes.
    #[error("task config: {0}")]
    TaskConfig(#[from] TaskConfigErrors),
    /// The task cannot become a container.
    #[error("task config: {0}")]
    Spec(#[from] SpecError),
    /// The request lacks what Nomad always sends.
    #[error("the request has no {what}")]
    Incomplete {
        /// What is missing.
        what: &'static str,
    },
    /// The task names a Podman service that the plugin's options do not have.
    #[error("podman client with name {name:?} was not found, check your podman driver config (known: {known})")]
    UnknownSocket {
        /// As written in the task.
        name: String,
        /// The names there are.
        known: String,
    },
    /// Nobody started or recovered a task with this id.
    #[error("task not found for given id: {id}")]
    UnknownTask {
        /// The id.
        id: String,
    },
    /// The same id is being started by another call.
    #[error("task with ID {id:?} is being started already")]
    Starting {
        /// The id.
        id: String,
    },
    /// The network of `network_mode` does not exist.
    #[error("network {name:?} not found, verify with: podman network ls")]
    NoSuchNetwork {
        /// Its name.
        name: String,
    },
    /// A volume leads out of the allocation by a symlink.
    #[error("volumes are not enabled; {} leads out of the allocation to {}", path.display(), target.display())]
    Escapes {
        /// The volume's source.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
    },
    /// Somebody else's container has the name.
    #[error("a container named {name:?} exists that this driver did not make; remove it with: podman rm -f {name}")]
    NameTaken {
        /// The name.
        name: String,
    },
    /// Output for a journal that is not there.
    #[error(
        "logging: this host has no journald (nobody listens at {socket}): use driver = \"nomad\", \"k8s-file\" or \"none\""
    )]
    NoJournal {
        /// Where it would listen.
        socket: &'static str,
    },
    /// Podman does not use the runtime that the task wants.
    #[error(
        "runtime = {wanted:?}: this Podman made the container with {got:?}; name the runtime in its containers.conf, or give it a \
         socket of its own"
    )]
    Runtime {
        /// What was written.
        wanted: String,
        /// What it is.
        got: String,
    },
    /// The task's own /etc/hosts or /etc/resolv.conf cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    NameFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// A step of a start failed at Podman.
    #[error("failed to {step}: {source}{hint}")]
    Start {
        /// The step.
        step: &'static str,
        /// Podman's answer.
        source: PodmanError,
        /// What a person may do about it; empty, or begins with a separator.
        hint: String,
    },
    /// What a task's mount is bound from does not work.
    #[error("the mount at {} does not work: {source}; what serves it must mount it again (is it a CSI volume? look at its node plugin)", path.display())]
    DeadMount {
        /// The mount on the host.
        path: PathBuf,
        /// What looking at it gave.
        source: std::io::Error,
    },
    /// The Podman service bound something else than the mount.
    #[error(
        "the Podman service at {} does not see the mount at {}: it runs in a mount namespace that later mounts do not reach, and the \
         task would use the empty folder below; start it without PrivateMounts= or the like, with shared propagation of /",
        socket.display(), path.display()
    )]
    UnseenMount {
        /// The mount on the host.
        path: PathBuf,
        /// The service.
        socket: PathBuf,
    },
    /// The image cannot be had.
    #[error("failed to get image {reference}: {message}")]
    Image {
        /// The image as the task names it.
        reference: String,
        /// Why.
        message: String,
        /// Whether another try may help.
        recoverable: bool,
    },
    /// The log process cannot be had.
    #[error("failed to collect logs: {0}")]
    Logs(#[from] LogError),
    /// Podman failed outside of a start.
    #[error("failed to {step}: {source}")]
    Podman {
        /// What was tried.
        step: &'static str,
        /// Podman's answer.
        source: PodmanError,
    },
    /// The driver state cannot be read.
    #[error("cannot recover the task: {0}")]
    Handle(#[from] HandleError),
    /// The container of a task to recover never ran, or is gone.
    #[error("cannot recover the task: container {container} {state}")]
    NotRecovered {
        /// Its id.
        container: String,
        /// What became of it.
        state: String,
    },
    /// The container outlived SIGKILL.
    #[error("container {container} did not end within {seconds} s of SIGKILL")]
    WillNotDie {
        /// Its id.
        container: String,
        /// How long was waited.
        seconds: u64,
    },
    /// DestroyTask without force on a running task.
    #[error("cannot destroy running task {id}: stop it first or use force")]
    StillRunning {
        /// The task.
        id: String,
    },
    /// The task has ended, so that nothing can be done in it.
    #[error("task {id} is not running")]
    NotRunning {
        /// The task.
        id: String,
    },
    /// No such signal.
    #[error("invalid signal {name:?}: use a name such as SIGHUP or a number from 1 to 64")]
    UnknownSignal {
        /// As given.
        name: String,
    },
    /// A command in a task failed to run.
    #[error("failed to run the command: {message}")]
    Exec {
        /// Why.
        message: String,
    },
    /// The command took too long.
    #[error("the command did not end within {seconds:.1} s")]
    ExecTimedOut {
        /// The limit.
        seconds: f64,
    },
    /// The task's usage cannot be measured.
    #[error("cannot measure the task: {message}")]
    Stats {
        /// Why.
        message: String,
    },
    /// A call that this driver announces not to have.
    #[error("{call} is not part of this driver: it announces must_create_network = false")]
    NotOffered {
        /// The call.
        call: &'static str,
    },
    /// A start was cut off, which happens only when the process ends.
    #[error("the start of the task was cut off")]
    CutOff,
}

impl DriverError {
    /// A Podman failure in a step of a start, with the way out where we know one.
    #[must_use]
    pub fn start(step: &'static str, source: PodmanError) -> Self {
        let text = source.to_string();
        let hint = if text.contains("setrlimit") || text.contains("RLIMIT_") {
            "; this host allows less: set ulimit in the task or default_ulimit in the plugin's config, for example \
             ulimit { nofile = \"1024:4096\" nproc = \"4096:8192\" }"
        } else if text.contains("broken pipe") {
            // What crun says when conmon is gone: it could not open its log file, or a mount of the allocation.
            "; conmon ended at once: does the Podman service see the allocation's directory, in its own mount namespace?"
        } else if text.contains("statfs") && text.contains("permission denied") {
            "; the user of a rootless service must be able to pass through each folder above the allocation: chmod o+x \
             Nomad's data_dir and those above it"
        } else if text.contains("not a shared") {
            "; the host must share the mount: mount --make-rshared / (systemd does so by itself), or use propagation_mode \
             = \"private\""
        } else {
            ""
        };
        Self::Start {
            step,
            source,
            hint: hint.to_owned(),
        }
    }

    /// Whether Nomad may try the same start again.
    #[must_use]
    pub fn is_recoverable(&self) -> bool {
        match self {
            Self::Start { source, .. } | Self::Podman { source, .. } => source.is_recoverable(),
            Self::Image { recoverable, .. } => *recoverable,
            // The start that is under way will end; the log process is started anew by the next try.
            // A dead mount is mounted again by who serves it, within seconds.
            Self::Starting { .. }
            | Self::DeadMount { .. }
            | Self::Logs(_)
            | Self::NameFile { .. }
            | Self::WillNotDie { .. }
            | Self::CutOff => true,
            Self::Config(_)
            | Self::TaskConfig(_)
            | Self::Spec(_)
            | Self::Incomplete { .. }
            | Self::UnknownSocket { .. }
            | Self::UnknownTask { .. }
            | Self::NoSuchNetwork { .. }
            | Self::Escapes { .. }
            | Self::NameTaken { .. }
            | Self::NoJournal { .. }
            | Self::Runtime { .. }
            | Self::UnseenMount { .. }
            | Self::Handle(_)
            | Self::NotRecovered { .. }
            | Self::StillRunning { .. }
            | Self::NotRunning { .. }
            | Self::UnknownSignal { .. }
            | Self::Exec { .. }
            | Self::ExecTimedOut { .. }
            | Self::Stats { .. }
            | Self::NotOffered { .. } => false,
        }
    }
}
