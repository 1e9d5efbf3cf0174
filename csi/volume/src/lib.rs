//! The file system: inodes, extents, journal, segments, cache, garbage collection.
//!
//! Deliberately absent: FUSE, gRPC, an S3 SDK, the environment, and a clock of its own. All of them come in as arguments.

pub mod attr;
pub mod bucket;
pub mod clock;
pub mod commit;
pub mod error;
pub mod ids;
pub mod row;
pub mod tree;
pub mod wire;
