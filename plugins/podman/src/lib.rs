//! The Nomad task driver for Podman containers.

pub mod config;
pub mod host;
pub mod logs;
pub mod msgpack;
pub mod nomad_task;
pub mod podman;
pub mod rlimit;
pub mod schema;
pub mod spec;
pub mod task_config;
pub mod units;
