//! Models, faulty fakes, conformance, system tests and benches

pub mod binaries;
pub mod go_module;
