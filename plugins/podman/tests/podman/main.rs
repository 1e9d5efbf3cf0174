//! The parts of the driver that speak to Podman, and to the kernel, against the real ones. One binary: linking costs more
//! than running.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../fixture/mod.rs"]
mod fixture;

mod client;
mod exec;
mod images;
mod journal;
mod logs;
mod stats;
