//! Debian packages: which are missing, and how they get here. Asks apt only when a file is not there.

use std::path::Path;

use crate::step::{Step, StepError};

/// A Debian package and a file that shows it is installed (by whatever means).
#[derive(Debug)]
pub struct Package {
    name: &'static str,
    shows: &'static str,
}

impl Package {
    /// `shows` is an absolute path.
    pub const fn new(name: &'static str, shows: &'static str) -> Self {
        Self { name, shows }
    }

    /// True if it is not installed.
    pub fn is_missing(&self) -> bool {
        !Path::new(self.shows).exists()
    }
}

/// Installs those of `packages` whose file is absent.
pub fn install_missing(packages: &[Package]) -> Result<(), StepError> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| package.is_missing())
        .map(|package| package.name)
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if !Path::new("/usr/bin/apt-get").exists() {
        return Err(StepError::Missing(format!(
            "this machine lacks {} and has no apt-get; install the equivalent packages and run the command again",
            missing.join(", ")
        )));
    }
    apt("refresh the package lists", &["update", "-qq"])?;
    let mut arguments = vec!["install", "-qq", "--yes", "--no-install-recommends"];
    arguments.extend(&missing);
    apt(&format!("install {}", missing.join(", ")), &arguments)
}

/// Puts a file of settings in place before a package is installed that reads it. One that is there stays.
pub fn settle(file: &Path, text: &str) -> Result<(), StepError> {
    if file.exists() {
        return Ok(());
    }
    let name = file.display().to_string();
    let what = format!("write {name}");
    let script = "mkdir -p \"$(dirname \"$1\")\" && printf '%s' \"$2\" > \"$1\"";
    as_root(&what, "sh", &["-c", script, "sh", &name, text])
}

fn apt(what: &str, arguments: &[&str]) -> Result<(), StepError> {
    as_root(what, "apt-get", arguments)
}

/// A command as root, or through sudo.
fn as_root(what: &str, program: &str, arguments: &[&str]) -> Result<(), StepError> {
    let step = if is_root() {
        Step::new(what, program)
    } else if Path::new("/usr/bin/sudo").exists() {
        Step::new(what, "sudo")
            .arg("--preserve-env=DEBIAN_FRONTEND")
            .arg(program)
    } else {
        return Err(StepError::Missing(format!(
            "could not {what}: that needs root, and there is no sudo; run as root: {program} {}",
            arguments.join(" ")
        )));
    };
    step.args(arguments).env("DEBIAN_FRONTEND", "noninteractive").run()
}

/// True for the superuser: /proc/self belongs to the effective user.
fn is_root() -> bool {
    use std::os::unix::fs::MetadataExt as _;
    std::fs::metadata("/proc/self").is_ok_and(|meta| meta.uid() == 0)
}
