//! Volumes as mounts: the FUSE skin over `volume`, and the engine process that serves all volumes of a node.
//!
//! The straight path of a request is `fuse.rs` -> `volume` -> reply. Around it: `mountpoint.rs` (the kernel's side of a
//! mount), `session.rs` (the connection), `open.rs` and `store.rs` (the bucket's side), `engine.rs` (many of them in a
//! process of its own), `keeper.rs` (what outlives the engine) and `foreground.rs` (one of them, by hand).

pub mod clock;
pub mod engine;
mod errno;
pub mod foreground;
mod fuse;
pub mod keeper;
pub mod mountpoint;
pub mod open;
pub mod session;
pub mod store;
