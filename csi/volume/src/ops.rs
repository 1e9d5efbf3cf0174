//! What each operation means: one file for each family, plain functions on the RAM tables inside.
//!
//! Every operation first finds all that it needs, then changes it; see `mount.rs`. Permissions are the kernel's work.

mod acl;
pub(crate) mod attributes;
pub(crate) mod copy;
pub(crate) mod fallocate;
pub(crate) mod link;
pub(crate) mod lookup;
pub(crate) mod make;
pub(crate) mod open;
pub(crate) mod read;
pub(crate) mod readdir;
pub(crate) mod rename;
pub(crate) mod seek;
pub(crate) mod statfs;
pub(crate) mod sync;
pub(crate) mod unlink;
pub(crate) mod write;
pub(crate) mod xattr;

#[cfg(test)]
pub(crate) mod tests;
