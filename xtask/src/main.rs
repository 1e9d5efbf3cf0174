//! The two commands of the README: `cargo xtask try` and `cargo xtask test`. Each installs what is missing and says so.
//!
//! Absent: knowledge of what is tested (that is cargo's and the tests' own) and of how a job runs (`pannier try`).
//! No dependency but the standard library, so that the first command of a newcomer compiles in a second.

#![allow(
    clippy::disallowed_macros,
    clippy::disallowed_methods,
    reason = "this is a command: it reads its environment and prints"
)]

mod go;
mod packages;
mod step;

use std::path::Path;
use std::process::ExitCode;

use step::{Step, StepError, workspace_root};

const USAGE: &str = "\
usage: cargo xtask <command> [arguments]

  try [arguments]    install what is missing, build, and run a job with a volume on this machine;
                     the arguments go to `pannier try` (see `cargo xtask try --help`)
  test [filter]      install what is missing, check form and lints, and run every test; with a filter,
                     which goes to `cargo test`, only those
  tools              only install what the tests need
";

/// Debian packages that running a Podman task on a FUSE volume needs: (package, a file that shows it is there).
const TRY_PACKAGES: &[packages::Package] = &[
    packages::Package::new("podman", "/usr/bin/podman"),
    packages::Package::new("crun", "/usr/bin/crun"),
    packages::Package::new("conmon", "/usr/bin/conmon"),
    packages::Package::new("netavark", "/usr/lib/podman/netavark"),
    packages::Package::new("aardvark-dns", "/usr/lib/podman/aardvark-dns"),
    packages::Package::new("iptables", "/usr/sbin/iptables"),
    packages::Package::new("iproute2", "/usr/sbin/ip"),
    packages::Package::new("fuse3", "/usr/bin/fusermount3"),
    packages::Package::new("busybox-static", "/bin/busybox"),
    packages::Package::new("sqlite3", "/usr/bin/sqlite3"),
    packages::Package::new("ca-certificates", "/etc/ssl/certs/ca-certificates.crt"),
];

/// What the tests need on top.
const TEST_PACKAGES: &[packages::Package] = &[
    packages::Package::new("git", "/usr/bin/git"),
    packages::Package::new("fio", "/usr/bin/fio"),
    packages::Package::new("stress-ng", "/usr/bin/stress-ng"),
    packages::Package::new("attr", "/usr/bin/setfattr"),
    packages::Package::new("acl", "/usr/bin/setfacl"),
    packages::Package::new("procps", "/usr/bin/ps"),
    packages::Package::new("rsync", "/usr/bin/rsync"),
    packages::Package::new("make", "/usr/bin/make"),
    packages::Package::new("openssl", "/usr/bin/openssl"),
    packages::Package::new("slirp4netns", "/usr/bin/slirp4netns"),
    packages::Package::new("uidmap", "/usr/bin/newuidmap"),
    POSTGRES,
];

/// A server that the tests start themselves, on a volume.
const POSTGRES: packages::Package = packages::Package::new("postgresql-15", "/usr/lib/postgresql/15/bin/initdb");

/// Keeps Debian's package from starting a server of its own on this machine; (file, content).
const POSTGRES_SETTINGS: (&str, &str) = (
    "/etc/postgresql-common/createcluster.d/tests.conf",
    "create_main_cluster = false\n",
);

fn main() -> ExitCode {
    let mut arguments = std::env::args().skip(1);
    let command = arguments.next();
    let rest: Vec<String> = arguments.collect();
    let result = match command.as_deref() {
        Some("try") => try_out(&rest),
        Some("test") => test(&rest),
        Some("tools") => tools(),
        Some("help" | "--help" | "-h") => {
            print!("{USAGE}");
            return ExitCode::SUCCESS;
        }
        _ => {
            eprint!("{USAGE}");
            return ExitCode::from(2);
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error}");
            ExitCode::FAILURE
        }
    }
}

fn try_out(arguments: &[String]) -> Result<(), StepError> {
    packages::install_missing(TRY_PACKAGES)?;
    build_binaries()?;
    // Cargo puts what it builds beside us, wherever its target folder is.
    let xtask = std::env::current_exe().map_err(|error| StepError::Failed {
        what: "find the folder of programs that were built".into(),
        detail: error.to_string(),
    })?;
    Step::new("run the job", xtask.with_file_name("pannier"))
        .arg("try")
        .args(arguments)
        .exec()
}

fn test(filter: &[String]) -> Result<(), StepError> {
    tools()?;
    if filter.is_empty() {
        lints()?;
    }
    // The tests start these two as the processes they are: build them first, so that they are never stale.
    build_binaries()?;
    Step::cargo("run every test")
        .args(["test", "--workspace", "--no-fail-fast"])
        .args(filter)
        .env("PATH", go::path_with_tools())
        .run()
}

/// Form and lints, as rust-toolchain.toml's components judge them.
fn lints() -> Result<(), StepError> {
    Step::cargo("check the form of the source (`cargo fmt --all` mends it)")
        .args(["fmt", "--all", "--check"])
        .run()?;
    Step::cargo("check the source for lints")
        .args([
            "clippy",
            "--quiet",
            "--workspace",
            "--all-targets",
            "--",
            "--deny",
            "warnings",
        ])
        .run()
}

fn tools() -> Result<(), StepError> {
    packages::install_missing(TRY_PACKAGES)?;
    if POSTGRES.is_missing() {
        let (file, text) = POSTGRES_SETTINGS;
        packages::settle(Path::new(file), text)?;
    }
    packages::install_missing(TEST_PACKAGES)?;
    go::install_tools()?;
    install_pjdfstest()
}

/// As the tests build them, so that nothing is compiled twice with other features.
fn build_binaries() -> Result<(), StepError> {
    Step::cargo("build pannier and nomad-driver-podman")
        .args([
            "build",
            "--workspace",
            "--bin",
            "pannier",
            "--bin",
            "nomad-driver-podman",
        ])
        .run()
}

/// The POSIX test suite, from its registry, into the same folder as the Go tools.
fn install_pjdfstest() -> Result<(), StepError> {
    let root = go::tools_root();
    if root.join("bin/pjdfstest").exists() {
        return Ok(());
    }
    Step::cargo("install pjdfstest 0.2.2")
        .args([
            "install",
            "--quiet",
            "--locked",
            "--version",
            "0.2.2",
            "pjdfstest",
            "--root",
        ])
        .arg(root)
        // Its own target folder must not be the workspace's: cargo would take our lints and profiles for it.
        .env("CARGO_TARGET_DIR", workspace_root().join("target/tools/build"))
        .run()
}
