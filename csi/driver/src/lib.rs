//! CSI identity, controller and node services as Nomad calls them
