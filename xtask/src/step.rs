//! One external command: announced, run, and named in the error when it fails.

use std::ffi::OsStr;
use std::fmt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// Why a command of ours ended early.
#[derive(Debug)]
pub enum StepError {
    /// A program ran and failed, or could not be started.
    Failed {
        /// What was being done.
        what: String,
        /// The command line, or the system's words.
        detail: String,
    },
    /// Something that this machine lacks and that we may not install ourselves.
    Missing(String),
}

impl fmt::Display for StepError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            StepError::Failed { what, detail } => write!(f, "could not {what}: {detail}"),
            StepError::Missing(text) => f.write_str(text),
        }
    }
}

/// The folder of the workspace's Cargo.toml.
pub fn workspace_root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .expect("xtask lies in the workspace")
        .to_path_buf()
}

/// A command with a purpose.
#[derive(Debug)]
pub struct Step {
    what: String,
    command: Command,
}

impl Step {
    /// `what` completes the sentence "could not …".
    pub fn new(what: &str, program: impl AsRef<OsStr>) -> Self {
        let mut command = Command::new(program);
        command.current_dir(workspace_root());
        Self {
            what: what.to_owned(),
            command,
        }
    }

    /// The cargo that runs us.
    pub fn cargo(what: &str) -> Self {
        Self::new(what, std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
    }

    /// Adds one argument.
    pub fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub fn args(mut self, arguments: impl IntoIterator<Item = impl AsRef<OsStr>>) -> Self {
        self.command.args(arguments);
        self
    }

    /// Sets a variable of the command's environment.
    pub fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Says what is done, does it, and fails with the command line if it fails.
    pub fn run(mut self) -> Result<(), StepError> {
        eprintln!("==> {}", self.what);
        let status = self.command.status().map_err(|error| self.failed(error))?;
        if status.success() {
            return Ok(());
        }
        Err(self.failed(status))
    }

    /// Becomes the command, so that signals and the exit code are its own.
    pub fn exec(mut self) -> Result<(), StepError> {
        use std::os::unix::process::CommandExt as _;
        eprintln!("==> {}", self.what);
        let error = self.command.exec();
        Err(self.failed(error))
    }

    fn failed(&self, cause: impl fmt::Display) -> StepError {
        let mut line = self.command.get_program().to_string_lossy().into_owned();
        for argument in self.command.get_args() {
            line.push(' ');
            line.push_str(&argument.to_string_lossy());
        }
        StepError::Failed {
            what: self.what.clone(),
            detail: format!("`{line}`: {cause}"),
        }
    }
}
