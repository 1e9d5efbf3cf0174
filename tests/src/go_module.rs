//! Builds the Go program in `tests/go`, which drives our plugins with HashiCorp's own client. Its messages are generated
//! from our .proto files each time they change: the compiled descriptors go to the Go modules' own generators, as protoc would
//! hand them over. Nothing generated is committed, and nothing is written into the source tree.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use prost::Message;
use prost_types::FileDescriptorSet;
use prost_types::compiler::{CodeGeneratorRequest, CodeGeneratorResponse};

/// The module's name in its go.mod.
const MODULE: &str = "pannier.example/conformance";

/// The .proto files that the program speaks, and the Go package of each.
const FILES: [(&str, &str); 4] = [
    ("nomad/hclspec.proto", "hclspec"),
    ("nomad/structs.proto", "structs"),
    ("nomad/base.proto", "base"),
    ("nomad/driver.proto", "driver"),
];

/// The generators, by their modules' tool names: messages, and services.
const GENERATORS: [&str; 2] = ["protoc-gen-go", "protoc-gen-go-grpc"];

/// Finds the Go tool chain: on PATH, or where its own installer puts it.
#[must_use]
pub fn go() -> Option<PathBuf> {
    let works = |go: &PathBuf| {
        Command::new(go)
            .arg("version")
            .output()
            .is_ok_and(|output| output.status.success())
    };
    [PathBuf::from("go"), PathBuf::from("/usr/local/go/bin/go")]
        .into_iter()
        .find(works)
}

/// Builds the program in a folder below `target` and returns where it is. Tests that run at the same time take turns.
///
/// # Errors
/// What the file system, the generators or the Go compiler complain about.
pub fn build(go: &Path, target: &Path) -> io::Result<PathBuf> {
    let folder = target.join("go-conformance");
    fs::create_dir_all(&folder)?;
    let lock = File::create(folder.join("lock"))?;
    lock.lock()?;
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("go");
    for entry in fs::read_dir(&folder)? {
        let entry = entry?;
        // The compiler would take a file that is gone from the sources for one of the program.
        if entry.path().extension().is_some_and(|ending| ending == "go") && !sources.join(entry.file_name()).exists() {
            fs::remove_file(entry.path())?;
        }
    }
    for entry in fs::read_dir(&sources)? {
        let entry = entry?;
        write_if_changed(&folder.join(entry.file_name()), &fs::read(entry.path())?)?;
    }
    let descriptors = FileDescriptorSet::decode(proto::DESCRIPTORS).map_err(io::Error::other)?;
    for generator in GENERATORS {
        for (name, content) in generate(go, &folder, generator, &descriptors)? {
            write_if_changed(&folder.join(name), content.as_bytes())?;
        }
    }
    let program = folder.join("conformance");
    run(Command::new(go)
        .args(["build", "-o"])
        .arg(&program)
        .arg(".")
        .current_dir(&folder))?;
    Ok(program)
}

/// Runs one generator of the Go module on our files; returns names and contents of what it makes.
fn generate(
    go: &Path,
    folder: &Path,
    generator: &str,
    descriptors: &FileDescriptorSet,
) -> io::Result<Vec<(String, String)>> {
    let mut parameters = vec![format!("module={MODULE}")];
    parameters.extend(FILES.map(|(file, package)| format!("M{file}={MODULE}/wire/{package}")));
    let request = CodeGeneratorRequest {
        file_to_generate: FILES.map(|(file, _)| file.to_owned()).to_vec(),
        parameter: Some(parameters.join(",")),
        proto_file: descriptors.file.clone(),
        compiler_version: None,
    };
    let mut child = Command::new(go)
        .args(["tool", generator])
        .current_dir(folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()?;
    let mut stdin = child.stdin.take().expect("stdin is piped");
    // A generator reads all before it writes, so the pipes cannot wait for each other.
    stdin.write_all(&request.encode_to_vec())?;
    drop(stdin);
    let output = child.wait_with_output()?;
    if !output.status.success() {
        return Err(io::Error::other(format!("{generator}: {}", output.status)));
    }
    let response = CodeGeneratorResponse::decode(output.stdout.as_slice()).map_err(io::Error::other)?;
    if let Some(error) = response.error {
        return Err(io::Error::other(format!("{generator}: {error}")));
    }
    Ok(response
        .file
        .into_iter()
        .map(|file| (file.name().to_owned(), file.content().to_owned()))
        .collect())
}

/// Leaves a file that is as it should be, so that Go's cache sees no change.
fn write_if_changed(path: &Path, content: &[u8]) -> io::Result<()> {
    if fs::read(path).is_ok_and(|present| present == content) {
        return Ok(());
    }
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    fs::write(path, content)
}

fn run(command: &mut Command) -> io::Result<()> {
    let status = command.status()?;
    if status.success() {
        Ok(())
    } else {
        Err(io::Error::other(format!("{command:?}: {status}")))
    }
}
