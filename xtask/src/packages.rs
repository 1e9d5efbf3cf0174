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
}

/// Installs those of `packages` whose file is absent.
pub fn install_missing(packages: &[Package]) -> Result<(), StepError> {
    let missing: Vec<&str> = packages
        .iter()
        .filter(|package| !Path::new(package.shows).exists())
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

/// apt-get as root, or through sudo.
fn apt(what: &str, arguments: &[&str]) -> Result<(), StepError> {
    let step = if is_root() {
        Step::new(what, "apt-get")
    } else if Path::new("/usr/bin/sudo").exists() {
        Step::new(what, "sudo")
            .arg("--preserve-env=DEBIAN_FRONTEND")
            .arg("apt-get")
    } else {
        return Err(StepError::Missing(format!(
            "could not {what}: that needs root, and there is no sudo; run as root: apt-get {}",
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
