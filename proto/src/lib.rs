//! Generated gRPC types: Nomad plugins, go-plugin services, CSI, and the engine's own control service
