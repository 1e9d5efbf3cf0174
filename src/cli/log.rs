//! Logging for subcommands: where lines go, how many, and in which form. `PANNIER_LOG` overrides the level, as in
//! `PANNIER_LOG=volume=debug,info`; with `PANNIER_LOG_FORMAT=json` each line is an object.

mod file;

use std::io::IsTerminal;
use std::path::Path;
use std::sync::Mutex;

use tracing_subscriber::EnvFilter;

use super::Failure;
use file::LogFile;

/// 16 MiB: some hundred thousand lines, which is weeks of a node that has nothing to complain of.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// What the AWS libraries warn of is in our own errors, in words that name the place.
const AWS: &str = "aws_config=error,aws_smithy_runtime=error";

fn filter(default: &str) -> EnvFilter {
    EnvFilter::try_from_env("PANNIER_LOG").unwrap_or_else(|_| EnvFilter::new(format!("{default},{AWS}")))
}

/// Whether lines are objects.
fn is_json() -> bool {
    #[expect(clippy::disallowed_methods, reason = "this is where the program is told how to log")]
    std::env::var_os("PANNIER_LOG_FORMAT").is_some_and(|format| format == "json")
}

/// Logs to stderr, from level `default` on.
///
/// # Errors
/// `Failure` if logging was set up before.
pub fn to_stderr(default: &str) -> Result<(), Failure> {
    let is_terminal = std::io::stderr().is_terminal();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(default))
        .with_writer(std::io::stderr)
        .with_ansi(is_terminal);
    let set_up = match is_json() {
        true => subscriber.json().flatten_event(true).try_init(),
        false => subscriber.try_init(),
    };
    set_up.map_err(|error| Failure::new(format!("cannot set up logging: {error}")))
}

/// Logs to the end of `file`, or to stderr without one. Of a file and its predecessor (`FILE.1`) at most 16 MiB each are
/// kept. What else the process says (a panic of a library) goes to the same file.
///
/// # Errors
/// `Failure` if the file cannot be opened.
pub fn to_file_or_stderr(file: Option<&Path>, default: &str) -> Result<(), Failure> {
    let Some(path) = file else { return to_stderr(default) };
    let opened = LogFile::open(path.to_owned(), LOG_BYTES_MAX).and_then(LogFile::taking_output);
    let file = opened.map_err(|error| Failure::new(format!("cannot open the log file {}: {error}", path.display())))?;
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter(default))
        .with_writer(Mutex::new(file))
        .with_ansi(false);
    let set_up = match is_json() {
        true => subscriber.json().flatten_event(true).try_init(),
        false => subscriber.try_init(),
    };
    set_up.map_err(|error| Failure::new(format!("cannot set up logging: {error}")))
}
