//! The Nomad task driver for Podman containers.

pub mod podman;
