//! Programs that people run, on a real mount: each does what it does on a local disk, and finds its data again when the
//! volume comes back from the bucket, also after the process that serves it was killed.
//!
//! A program that is not installed is a skip that names it; `cargo xtask test` installs them all. The crash tests take
//! PANNIER_TEST_ROUNDS, how often to crash (1); for an hour of Postgres:
//! `PANNIER_TEST_ROUNDS=200 cargo test --test workloads postgres -- --nocapture`.

use std::path::PathBuf;
use std::process::Command;

use tests::s3_server::{installed, skip};

mod builds;
mod fio;
mod git;
mod postgres;
mod rsync;
mod sqlite;
mod stress;

/// The programs, or `None` with the first missing one named.
fn programs<const N: usize>(names: [&str; N]) -> Option<[PathBuf; N]> {
    let found = names.map(|name| installed(name).ok_or(name));
    if let Some(missing) = found.iter().find_map(|found| found.as_ref().err()) {
        skip(&format!("{missing} is not installed (`cargo xtask tools` installs it)"));
        return None;
    }
    Some(found.map(|found| found.expect("none is missing")))
}

/// How often a crash test crashes.
fn rounds() -> u64 {
    tests::environment::number("PANNIER_TEST_ROUNDS").unwrap_or(1)
}

/// `program` as another user. Its own pid, for setpriv becomes it.
fn as_user(user: &str, program: &std::path::Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={user}"), &format!("--regid={user}"), "--init-groups"]);
    command.arg(program);
    command
}
