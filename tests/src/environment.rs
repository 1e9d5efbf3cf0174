//! What a person may tell a test by the environment, its length and its seed, and what a test tells him.

use std::path::PathBuf;

/// A number that a variable holds, if it is set.
///
/// # Panics
/// If it holds something else.
#[allow(
    clippy::disallowed_methods,
    reason = "tests take their length and their seed from the environment"
)]
pub fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

/// A program that a variable names, if it is set.
#[allow(
    clippy::disallowed_methods,
    reason = "tests are told by the environment which programs of others to use"
)]
pub fn program(name: &str) -> Option<PathBuf> {
    std::env::var_os(name).map(PathBuf::from)
}

/// Says a line, whether the harness captures output or not.
pub fn say(line: &str) {
    let mut stderr = std::io::stderr().lock();
    // Where standard error is closed, nobody would have read it.
    drop(std::io::Write::write_all(&mut stderr, format!("{line}\n").as_bytes()));
}
