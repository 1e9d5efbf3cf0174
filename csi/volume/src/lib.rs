//! The file system: inodes, extents, journal, segments, cache, garbage collection.
//!
//! Deliberately absent: FUSE, gRPC, an S3 SDK, the environment, and a clock of its own. All of them come in as arguments.

pub mod bucket;
pub mod clock;
