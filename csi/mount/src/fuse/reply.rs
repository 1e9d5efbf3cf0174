//! What requests and replies are to the skin, whatever carries them: one vocabulary for all transports.
//!
//! A transport decodes what the kernel asks, calls a method of `Skin` with a reply of its own, and writes what that is given as
//! the kernel wants it. Invariant of each: a reply that is dropped unsent says EIO, so no request is ever left without one.
//! Implementation: `session/wire/encode.rs`.

use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use volume::attr::{Attr, Entry, StatFs};

/// Who asks, and by which number.
#[derive(Debug, Clone, Copy)]
pub struct Request {
    /// The kernel's number of it.
    pub unique: u64,
    /// Effective user.
    pub uid: u32,
    /// Effective group.
    pub gid: u32,
}

/// Takes the answer to one request.
pub trait Reply<T>: Refuse {
    /// Sends it.
    fn give(self, value: T);
}

/// A reply that can say no.
pub trait Refuse: Send + 'static {
    /// Says it.
    fn refuse(self, errno: Errno);
}

/// A reply with as many entries of a directory as it has room for.
pub trait Listing: Reply<()> {
    /// Adds one, with what the kernel may rely on for as long as `valid` where it wants attributes. True if it is full, and this one
    /// is not in it.
    fn add(&mut self, entry: &Entry, valid: Duration) -> bool;
}

/// What a name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Found {
    /// `None`: nothing, which the kernel may remember as well.
    pub attr: Option<Attr>,
    /// For how long the kernel may.
    pub valid: Duration,
}

/// Attributes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attributes {
    /// These.
    pub attr: Attr,
    /// For how long the kernel may rely on them.
    pub valid: Duration,
}

/// A file is open, with these flags for the kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Opened(pub u32);

impl Opened {
    /// FOPEN_KEEP_CACHE: what the kernel has of its content stays good.
    pub const KEEP_CACHE: u32 = 1 << 1;
    /// FOPEN_NOFLUSH: close(2) need not ask.
    pub const NO_FLUSH: u32 = 1 << 5;
}

/// A file was made, and is open.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Created(pub Found, pub Opened);

/// Bytes, in the order of the pieces.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Content(pub Vec<Bytes>);

/// How many bytes were taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Written(pub u32);

/// Where something begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Offset(pub i64);

/// Space and inodes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space(pub StatFs);

/// Extended attributes, or a list of their names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Xattr {
    /// How long it is: nobody has room for it yet.
    Length(u32),
    /// It.
    Value(Bytes),
}
