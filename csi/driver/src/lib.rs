//! The CSI driver: identity, controller and node services as Nomad calls them.
//!
//! The life of one mount: Nomad -> `node.rs` -> `targets.rs` (what is mounted, who uses it) -> `mounter.rs` -> the
//! engine. The life of one claim: Nomad -> `controller.rs` -> `volume::admin` -> the head of the volume in the
//! bucket.
//! Deliberately absent: the file system (`volume`), FUSE and the engine (`volume-mount`), and any state but files
//! below the state folder.

pub mod capability;
pub mod cluster;
pub mod config;
pub mod controller;
pub mod credentials;
pub mod deadlines;
pub mod error;
pub mod grpc;
pub mod identity;
pub mod keyring;
pub mod metrics;
pub mod mounter;
pub mod mountinfo;
pub mod node;
pub mod opening;
pub mod publish_context;
pub mod registry;
pub mod rights;
pub mod server;
mod state_file;
pub mod targets;
