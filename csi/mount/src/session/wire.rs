//! Requests and answers as the kernel lays them out, whichever way they travel.
//!
//! A transport (`device.rs`, `uring/ring.rs`) brings a request as `Asked`, and a `Carrier` for its answer; what serves the mount is a
//! `Serve`. Invariant of each carrier: dropped unsent it says EIO, so no request is ever left without an answer.

use bytes::Bytes;
use nix::errno::Errno;
use volume::ids::InodeNo;

pub use crate::fuse::reply::{Attributes, Content, Created, Found, Listing, Opened, Reply, Written};

mod decode;
mod encode;
mod serve;

pub use decode::{Asked, Operation};
pub(super) use decode::{FIELDS_BYTES, Kind, forgets, kind_of, u32_at, u64_at};
pub use encode::Names;

/// Takes one answer to the kernel.
pub trait Carrier: Send + 'static {
    /// No, and why.
    fn send_error(self, errno: Errno);

    /// These bytes.
    fn send_fields(self, fields: Vec<u8>);

    /// These pieces, one after another.
    fn send_parts(self, parts: Vec<Bytes>);
}

/// Answers requests. Called on the thread that received one: what takes long goes elsewhere with the reply.
pub trait Serve: Send + Sync + 'static {
    /// Has the request answered, now or later.
    fn serve(&self, asked: &Asked<'_>, reply: impl Carrier);

    /// Takes references of the kernel back.
    fn forget(&self, ino: InodeNo, count: u64);
}
