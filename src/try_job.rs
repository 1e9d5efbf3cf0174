//! `pannier try`: Nomad's part on one machine, over the very same protocols.

pub mod driver_config;
pub mod hcl_reader;
pub mod job_file;
pub mod volume_file;
