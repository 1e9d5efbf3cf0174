//! Which way the kernel reaches the mounts of a test, and the one place that says whether this machine knows another than the
//! classic one.
//!
//! Suites that pay run on both. All of the others run on io_uring too by
//! `PANNIER_TEST_TRANSPORT=io_uring cargo test --workspace --test posix --test mount --test workloads`.

use volume::head::Transport;
use volume_mount::session::uring::available;

use crate::s3_server::skip;

/// The way of a mount of which a test does not say more.
///
/// # Panics
/// If the variable names none, or one that this machine does not know.
#[allow(
    clippy::disallowed_methods,
    reason = "tests are told by the environment which transport to use"
)]
pub fn usual() -> Transport {
    let Ok(name) = std::env::var("PANNIER_TEST_TRANSPORT") else {
        return Transport::Classic;
    };
    let transport = name.parse().expect("PANNIER_TEST_TRANSPORT names a transport");
    if transport == Transport::IoUring {
        available().expect("this machine knows io_uring");
    }
    transport
}

/// io_uring; `None`, with the reason said, where this machine or this user cannot.
pub fn io_uring() -> Option<Transport> {
    if !nix::unistd::geteuid().is_root() {
        skip("FUSE over io_uring is switched on by root");
        return None;
    }
    match available() {
        Ok(()) => Some(Transport::IoUring),
        Err(why) => {
            skip(&why.to_string());
            None
        }
    }
}

/// Each way that the kernel has to a mount here.
pub fn each_transport() -> impl Iterator<Item = Transport> {
    [Some(Transport::Classic), io_uring()].into_iter().flatten()
}
