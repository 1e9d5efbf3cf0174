//! The driver as Nomad meets it: the real plugin, launched over its protocol, with a real Podman behind it.

#[path = "../fixture/mod.rs"]
mod fixture;

mod adoption;
mod agent;
mod clearing;
mod faults;
mod features;
mod hostile;
mod life;
mod options;
mod protocol;
mod recovery;
mod rootless;
mod served_mounts;
