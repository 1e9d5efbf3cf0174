//! Generated gRPC types: Nomad plugins, go-plugin services, CSI, and the engine's own control service.
//! The .proto files beside `src` are written from the wire facts (packages, names, field numbers), and compiled by `build.rs`;
//! a new file needs a line here only if its package is new. Absent: any code by hand.

/// HashiCorp Nomad's plugin protocol.
pub mod nomad {
    pub use super::wire::hashicorp::nomad::plugins::base::proto as base;
    pub use super::wire::hashicorp::nomad::plugins::drivers::proto as driver;
    pub use super::wire::hashicorp::nomad::plugins::shared::{hclspec, structs};
}

/// The services of go-plugin itself: broker, stdio and controller.
pub mod goplugin {
    pub use super::wire::plugin::*;
}

/// The Container Storage Interface.
pub mod csi {
    pub use super::wire::csi::v1;
}

/// The control service of our own engine process.
pub mod engine {
    pub use super::wire::pannier::engine::v1;
}

/// Google's messages about gRPC itself.
pub mod google {
    pub use super::wire::google::rpc;
}

/// All .proto files, compiled, with their imports: a serialized `google.protobuf.FileDescriptorSet`.
/// It is what a code generator for another language, or gRPC reflection, starts from.
pub const DESCRIPTORS: &[u8] = include_bytes!(concat!(env!("OUT_DIR"), "/descriptors.bin"));

#[allow(
    missing_docs,
    clippy::all,
    clippy::allow_attributes_without_reason,
    clippy::too_many_lines,
    reason = "generated: its documentation is the comments of the .proto files, its shape is the generator's"
)]
mod wire {
    include!(concat!(env!("OUT_DIR"), "/wire.rs"));
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use prost::Message;

    /// Goal: a file that is forgotten, or a package that is misspelt, is seen here and not first by a Nomad agent.
    /// Method: count the calls of each service in the compiled descriptors.
    #[test]
    fn every_service_is_there_under_its_full_name() {
        let descriptors = prost_types::FileDescriptorSet::decode(super::DESCRIPTORS).unwrap();
        let mut calls = BTreeMap::new();
        for file in &descriptors.file {
            for service in &file.service {
                calls.insert(format!("{}.{}", file.package(), service.name()), service.method.len());
            }
        }
        for (service, count) in [
            ("hashicorp.nomad.plugins.base.proto.BasePlugin", 3),
            ("hashicorp.nomad.plugins.drivers.proto.Driver", 18),
            ("plugin.GRPCBroker", 1),
            ("plugin.GRPCStdio", 1),
            ("plugin.GRPCController", 1),
            ("csi.v1.Identity", 3),
            ("csi.v1.Controller", 15),
            ("csi.v1.GroupController", 4),
            ("csi.v1.Node", 8),
            ("pannier.engine.v1.Engine", 10),
        ] {
            assert_eq!(calls.get(service), Some(&count), "{service}");
        }
    }
}
