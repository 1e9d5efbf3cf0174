//! The parts of the pannier command.

pub mod host_setup;
pub mod try_job;
