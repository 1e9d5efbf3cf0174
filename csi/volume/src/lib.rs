//! The file system: inodes, extents, journal, segments, cache, garbage collection.
//!
//! Deliberately absent: FUSE, gRPC, an S3 SDK, the environment, and a clock of its own. All of them come in as arguments.

pub mod admin;
pub mod attr;
pub mod bucket;
pub mod budget;
mod cache;
pub mod calls;
pub mod check;
pub mod clock;
pub mod commit;
mod dirent;
pub mod error;
mod fetch;
pub mod format;
mod gc;
pub mod head;
pub mod holds;
pub mod ids;
pub mod limits;
pub mod lineage;
pub mod metrics;
mod mount;
mod neighbours;
pub mod open;
mod ops;
pub mod outage;
mod piece;
pub mod probe;
mod purge;
pub mod ranges;
mod readahead;
pub mod rope;
pub mod row;
pub mod snapshot;
mod table;
pub mod tail;
pub mod tree;
pub mod volume;
pub mod volume_id;
pub mod wire;
