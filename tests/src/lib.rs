//! Models, faulty fakes, conformance, system tests and benches
