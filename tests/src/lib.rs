//! Models, faulty fakes, conformance, system tests and benches

pub mod aio;
pub mod binaries;
pub mod bounded_command;
pub mod calls;
pub mod counting_bucket;
pub mod csi_plugin;
pub mod engine_process;
pub mod environment;
pub mod fake_cloud;
pub mod faulty_bucket;
pub mod file_handle;
pub mod go_module;
pub mod history;
pub mod local_store;
pub mod model;
pub mod mounted;
pub mod nomad_calls;
pub mod s3_proxy;
pub mod s3_server;
pub mod scratch_volume;
pub mod transport;
pub mod volume_store;
