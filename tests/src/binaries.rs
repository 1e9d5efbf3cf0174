//! The programs under test, built from the sources as they are now. A test of another package's binary is not rebuilt with it
//! by cargo, and a test that passes on a stale binary is worse than one that fails.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

/// A program of this workspace.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Program {
    /// A binary, by its name.
    Binary(&'static str),
    /// An example, by its name.
    Example(&'static str),
}

/// Builds a program if its sources changed, and returns where it is. Cargo is asked once for each program in the life of a test
/// process.
///
/// # Panics
/// If it does not build; cargo has said why on standard error.
#[must_use]
pub fn built(program: Program) -> PathBuf {
    static BUILT: Mutex<BTreeMap<Program, PathBuf>> = Mutex::new(BTreeMap::new());
    // Held while cargo runs: a second test that wants the program waits for the first one's build.
    let mut built = BUILT.lock().unwrap_or_else(PoisonError::into_inner);
    built.entry(program).or_insert_with(|| build(program)).clone()
}

/// The profile that the calling program was built with, by the folder that cargo has put it in.
fn profile() -> &'static str {
    let program = std::env::current_exe().expect("a running program has a path");
    // target/release/deps/speed-0123, for example.
    let folder = program.ancestors().nth(2).and_then(std::path::Path::file_name);
    match folder.is_some_and(|name| name == "release") {
        true => "bench",
        false => "dev",
    }
}

fn build(program: Program) -> PathBuf {
    let (option, name) = match program {
        Program::Binary(name) => ("--bin", name),
        Program::Example(name) => ("--example", name),
    };
    let mut command = Command::new(env!("CARGO"));
    // The whole workspace, so that features are united as in the build that this test came from and nothing is built twice.
    command.args([
        "build",
        "--quiet",
        "--workspace",
        option,
        name,
        "--message-format=json-render-diagnostics",
    ]);
    // A bench measures what its own profile makes of the program.
    command.args(["--profile", profile()]);
    // What cargo told this test about its own package would make build scripts believe that their world has changed
    // (ring's asks for CARGO_PKG_NAME), and then that script and all above it are built anew, here and at the next test.
    for (name, _) in std::env::vars_os() {
        let told = |prefix: &str| name.to_string_lossy().starts_with(prefix);
        if told("CARGO_PKG_") || told("CARGO_MANIFEST_") {
            command.env_remove(&name);
        }
    }
    command
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .stderr(std::process::Stdio::inherit());
    let output = command.output().expect("cargo runs, for it built this");
    assert!(
        output.status.success(),
        "cargo build {option} {name}: {}",
        output.status
    );
    let messages = String::from_utf8_lossy(&output.stdout);
    let executable = |line| {
        let message: serde_json::Value = serde_json::from_str(line).ok()?;
        let ours = message["target"]["name"] == name;
        message["executable"].as_str().filter(|_| ours).map(PathBuf::from)
    };
    messages
        .lines()
        .find_map(executable)
        .expect("cargo names what it built")
}
