//! What the driver for Podman costs, beside Podman by itself in the same run: see `tests/go/bench.go`. A short form runs with the
//! tests; this is the long one, whose goals are asserted, for a machine that does nothing else.
//!
//! `cargo test --workspace --bench driver`, as root. (`cargo bench` would build all of it a second time, for releases.)

#![allow(clippy::disallowed_macros, reason = "a bench says why it does not run")]

#[path = "../../plugins/podman/tests/fixture/mod.rs"]
mod fixture;

use std::path::Path;
use std::process::{Command, ExitCode};

use fixture::{BUSYBOX, PodmanService};
use tests::binaries::{Program, built};
use tests::go_module;

fn main() -> ExitCode {
    let Some(go) = go_module::go() else {
        println!("skipped: the Go tool chain is not installed (https://go.dev/doc/install)");
        return ExitCode::SUCCESS;
    };
    let conformance = go_module::build(&go, Path::new(env!("CARGO_TARGET_TMPDIR"))).expect("the Go module builds");
    let Some(podman) = PodmanService::start() else {
        return ExitCode::SUCCESS;
    };
    let status = Command::new(conformance)
        .args(["bench", "-long", "-plugin"])
        .arg(built(Program::Binary("nomad-driver-podman")))
        .arg("-socket")
        .arg(podman.socket())
        .args(["-image", BUSYBOX])
        .status()
        .expect("the Go program starts");
    if status.success() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    }
}
