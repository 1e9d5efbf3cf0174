//! The Nomad task driver for Podman containers.
//!
//! The life of one task start: Nomad -> [`driver`] (decode, call, encode) -> [`start`] (a recipe of named steps with undo) ->
//! [`spec`] (pure: the task becomes a container) -> [`podman`] (the port to Podman, one file per endpoint family) ->
//! [`handle`] (what recovery needs). Errors are facts in [`error`], told to Nomad by [`grpc`] alone.

pub mod base_plugin;
pub mod clearing;
pub mod compute;
pub mod config;
pub mod driver;
pub mod error;
pub mod events;
pub mod exec;
pub mod fingerprint;
pub mod grpc;
pub mod handle;
pub mod host;
pub mod images;
pub mod log_choice;
pub mod logs;
pub mod msgpack;
pub mod nomad_task;
pub mod oom;
pub mod pidfd;
pub mod plugin;
pub mod podman;
pub mod recover;
pub mod rlimit;
pub mod roster;
pub mod schema;
pub mod served_mounts;
pub mod spec;
pub mod start;
pub mod stats;
pub mod stop;
pub mod task;
pub mod task_config;
pub mod units;
