//! HashiCorp's plugin protocol over tonic: be a plugin, or host one.
//!
//! A host launches a plugin as a child process, the plugin prints one line that says where it listens, and from then on
//! they speak gRPC over a unix socket. [`run`] is a plugin's whole `main`; [`Launch`] is the host's side.
//! What may never happen here: knowing what a plugin does. Drivers, devices and their types live with those who serve them.
//! Absent: TLS between the two (Nomad does not ask for it), the older net/rpc transport, multiplexed brokered connections.

mod agreement;
mod connect;
mod environment;
mod error;
mod log;
mod serve;

pub use agreement::{Agreement, Handshake};
pub use connect::{Exit, Host, Launch, LogLine, LogReader, Reattach, Shutdown};
pub use environment::{HostEnvironment, helper_command, scrub};
pub use error::{ConnectError, HandshakeError, ServeError};
pub use serve::{Plugin, run};

/// 64 MiB: what a plugin must be ready to decode in one message. Nomad itself sends up to 2 GiB, and tonic's own limit
/// of 4 MiB is reached by a task with large templates in its environment. Every service that a plugin adds to its
/// routes needs `.max_decoding_message_size(MESSAGE_BYTES_MAX)`, or such a task fails to start.
pub const MESSAGE_BYTES_MAX: usize = 64 * 1024 * 1024;
