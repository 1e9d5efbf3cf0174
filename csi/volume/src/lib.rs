//! The file system: inodes, extents, journal, segments, cache, garbage collection.
//!
//! Deliberately absent: FUSE, gRPC, an S3 SDK, the environment, and a clock of its own. All of them come in as arguments.

pub mod admin;
pub mod attr;
pub mod bucket;
pub mod clock;
pub mod commit;
pub mod error;
pub mod format;
pub mod head;
pub mod ids;
pub mod limits;
pub mod open;
pub mod probe;
pub mod row;
pub mod tree;
pub mod volume;
pub mod volume_id;
pub mod wire;
