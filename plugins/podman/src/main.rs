//! The nomad-driver-podman plugin binary.
fn main() {}
