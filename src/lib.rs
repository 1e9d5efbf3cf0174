//! The parts of the pannier command.

pub mod try_job;
