//! Our plugins against HashiCorp's own go-plugin client, as a Nomad agent uses it: see `tests/go`.
#![expect(
    clippy::disallowed_macros,
    reason = "what the Go program prints is the test's own output"
)]

use std::path::{Path, PathBuf};
use std::process::Command;

use tests::binaries::{Program, built};
use tests::go_module;

/// The Go program, or `None`, with the reason on stdout, where it cannot be built.
fn conformance() -> Option<PathBuf> {
    let Some(go) = go_module::go() else {
        println!("skipped: the Go tool chain is not installed (https://go.dev/doc/install)");
        return None;
    };
    Some(go_module::build(&go, Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("the Go module builds"))
}

fn run(command: &mut Command) {
    let output = command.output().expect("the Go program starts");
    println!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{command:?}: {}", output.status);
}

/// Goal: what we call the plugin protocol is what HashiCorp's client calls it. Method: launch, dispense, call every service, kill
/// and reattach the example driver with that client.
#[test]
fn the_protocol_is_the_one_that_hashicorps_client_speaks() {
    let Some(conformance) = conformance() else { return };
    run(Command::new(conformance)
        .arg("protocol")
        .arg("-plugin")
        .arg(built(Program::Example("timer"))));
}
