//! What can go wrong on either side, one enum for each.

use std::{io, path::PathBuf, process::ExitStatus};

/// Why a plugin does not serve. Printed for a person, on standard error, before the process exits with 1.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The cookie is missing or wrong: a person started the program.
    #[error(
        "{plugin} is a plugin of {host} and does nothing by itself: {host} starts it.\n\
         Put it into the plugin directory of the {host} agent and name it in the agent's configuration."
    )]
    NotLaunchedByHost {
        /// The plugin's name.
        plugin: &'static str,
        /// The host it belongs to.
        host: &'static str,
    },
    /// The host wants TLS.
    #[error(
        "the host asks for TLS on the plugin's socket (PLUGIN_CLIENT_CERT is set), which {plugin} does not speak; {host} does not ask for it"
    )]
    TlsRequested {
        /// The plugin's name.
        plugin: &'static str,
        /// The host it belongs to.
        host: &'static str,
    },
    /// The host speaks other versions.
    #[error("the host speaks versions {offered} of the plugin services, {plugin} speaks {ours}")]
    ProtocolVersion {
        /// The plugin's name.
        plugin: &'static str,
        /// PLUGIN_PROTOCOL_VERSIONS as it was given.
        offered: String,
        /// What this plugin speaks.
        ours: u32,
    },
    /// The kernel would cut the socket's path.
    #[error(
        "the socket's path {path} is {got} bytes, a unix socket takes {max}: set PLUGIN_UNIX_SOCKET_DIR or TMPDIR to a shorter one"
    )]
    SocketPathLength {
        /// The path.
        path: PathBuf,
        /// Its length.
        got: usize,
        /// The kernel's limit.
        max: usize,
    },
    /// No place for the socket.
    #[error("cannot make a directory for the socket in {folder}")]
    SocketFolder {
        /// Where.
        folder: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The group that shall reach the socket is unknown.
    #[error("PLUGIN_UNIX_SOCKET_GROUP is {group}, which is neither a group of this machine nor a number")]
    SocketGroup {
        /// What was given.
        group: String,
    },
    /// The socket cannot be made.
    #[error("cannot listen on {path}")]
    Listen {
        /// Where.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The host is gone before it was told where to connect.
    #[error("cannot print the handshake")]
    Handshake(#[source] io::Error),
    /// Standard input, output or error cannot be pointed elsewhere.
    #[error("cannot redirect the standard streams")]
    Streams(#[source] io::Error),
    /// No runtime, or no signal handlers.
    #[error("cannot start the runtime")]
    Runtime(#[source] io::Error),
    /// The plugin itself does not come up.
    #[error("cannot start the services")]
    Services(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The server ended.
    #[error("the server ended")]
    Serve(#[source] tonic::transport::Error),
}

/// Why a handshake line is not one.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum HandshakeError {
    /// Too few fields.
    #[error("{got} fields, at least 4 are needed")]
    Fields {
        /// How many there are.
        got: usize,
    },
    /// Another handshake.
    #[error("version {got} of the handshake, only 1 is known")]
    CoreVersion {
        /// What it says.
        got: String,
    },
    /// Not a version.
    #[error("{got} is not a version of the services")]
    ProtocolVersion {
        /// What it says.
        got: String,
    },
    /// Not a unix socket.
    #[error("it listens on {got}, only unix is supported")]
    Network {
        /// What it says.
        got: String,
    },
    /// Not gRPC.
    #[error("it speaks {got}, only grpc is supported")]
    Transport {
        /// What it says.
        got: String,
    },
    /// It sent a certificate.
    #[error("it wants TLS, which was not asked for")]
    Tls,
}

/// Why a plugin cannot be hosted.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// It does not start.
    #[error("cannot start {program}")]
    Spawn {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It ended before it said where it listens.
    #[error("{program} ended with {status} before its handshake; it said:\n{stderr}")]
    ExitedBeforeHandshake {
        /// The program.
        program: PathBuf,
        /// How it ended.
        status: ExitStatus,
        /// The end of what it printed on standard error.
        stderr: String,
    },
    /// It never said where it listens.
    #[error("{program} did not print its handshake within {limit_secs} s; it said:\n{stderr}")]
    HandshakeTimeout {
        /// The program.
        program: PathBuf,
        /// How long it had.
        limit_secs: u64,
        /// The end of what it printed on standard error.
        stderr: String,
    },
    /// It said something else.
    #[error("{program} printed {line:?} where its handshake belongs")]
    Handshake {
        /// The program.
        program: PathBuf,
        /// What it printed.
        line: String,
        /// What is wrong with it.
        #[source]
        source: HandshakeError,
    },
    /// It speaks another version.
    #[error("{program} speaks version {got} of the services, {want} was asked for")]
    ProtocolVersion {
        /// The program.
        program: PathBuf,
        /// Its version.
        got: u32,
        /// Ours.
        want: u32,
    },
    /// Its pipes broke, or it cannot be waited for.
    #[error("lost {program}")]
    Process {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Nobody listens.
    #[error("cannot connect to the plugin at {socket}")]
    Dial {
        /// The socket.
        socket: PathBuf,
        /// Why.
        #[source]
        source: tonic::transport::Error,
    },
    /// The process to reattach to is gone.
    #[error("no process {pid} to reattach to")]
    Gone {
        /// Its id.
        pid: u32,
    },
}
