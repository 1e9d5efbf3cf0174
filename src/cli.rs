//! The subcommands of `pannier`, one file each. Only they and `main.rs` print, and only they read arguments.

use std::error::Error;
use std::fmt;
use std::io::Write;
use std::process::ExitCode;

pub mod csi;
pub mod doctor;
pub mod engine;
pub mod keeper;
pub mod log;
pub mod mount;
pub mod mounts;
pub mod store;
pub mod try_job;
pub mod volume;

/// Why a subcommand ended without success, in words for a person.
#[derive(Debug)]
pub struct Failure {
    message: String,
    causes: Vec<String>,
}

impl Failure {
    /// A failure with its own words.
    pub fn new(message: impl Into<String>) -> Self {
        Self {
            message: message.into(),
            causes: Vec::new(),
        }
    }

    /// Prints it to stderr: the message, then what lies below it where that says more.
    pub fn tell(&self) -> ExitCode {
        let mut stderr = std::io::stderr().lock();
        // Nobody is left to tell that stderr is gone.
        let _ = writeln!(stderr, "pannier: {self}");
        ExitCode::FAILURE
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)?;
        self.causes
            .iter()
            .try_for_each(|cause| write!(f, "\n  because: {cause}"))
    }
}

impl<E: Error> From<E> for Failure {
    fn from(error: E) -> Self {
        let message = error.to_string();
        let mut causes = Vec::new();
        let mut next = error.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            // Most of our errors say their cause in their own message already.
            if !message.contains(&text) {
                causes.push(text);
            }
            next = cause.source();
        }
        Self { message, causes }
    }
}

/// Prints one line to stdout.
///
/// # Errors
/// `Failure` if stdout is closed.
pub(crate) fn say(line: impl fmt::Display) -> Result<(), Failure> {
    writeln!(std::io::stdout().lock(), "{line}")
        .map_err(|error| Failure::new(format!("cannot write to stdout: {error}")))
}
