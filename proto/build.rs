//! Compiles every .proto file under this folder: into Rust for the crate, and into one descriptor set for other languages.
//! Absent: protoc. The compiler is protox, so that a Rust toolchain is all that a build needs.

use std::{
    env, fs, io,
    path::{Path, PathBuf},
};

#[expect(
    clippy::disallowed_methods,
    clippy::disallowed_macros,
    reason = "a build script is told where to write by its environment, and speaks to cargo by printing"
)]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = PathBuf::from(env::var_os("CARGO_MANIFEST_DIR").ok_or("cargo sets CARGO_MANIFEST_DIR")?);
    let out = PathBuf::from(env::var_os("OUT_DIR").ok_or("cargo sets OUT_DIR")?);

    let mut files = Vec::new();
    collect(&root, &mut files)?;
    // A stable order, so that the same sources give the same bytes.
    files.sort();
    for entry in fs::read_dir(&root)? {
        println!("cargo:rerun-if-changed={}", entry?.path().display());
    }

    let descriptors = protox::compile(&files, [&root])?;
    fs::write(out.join("descriptors.bin"), prost::Message::encode_to_vec(&descriptors))?;
    tonic_prost_build::configure()
        .include_file("wire.rs")
        .compile_fds(descriptors)?;
    Ok(())
}

/// Adds every .proto file below `folder` to `files`.
fn collect(folder: &Path, files: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            collect(&path, files)?;
        } else if path.extension().is_some_and(|extension| extension == "proto") {
            files.push(path);
        }
    }
    Ok(())
}
