//! The Nomad task driver for Podman containers
