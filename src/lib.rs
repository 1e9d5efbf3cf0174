//! The parts of the pannier command.

pub mod cli;
pub mod host_setup;
pub mod memory;
pub mod metrics_server;
pub mod object_server;
pub mod transfer;
pub mod try_job;
