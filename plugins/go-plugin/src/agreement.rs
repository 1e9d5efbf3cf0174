//! What host and plugin must agree on before they speak: the cookie, the versions and the handshake line.
//! Pure: nothing here reads the environment or a pipe. `serve` prints the line, `connect` reads it.

use std::{fmt, path::PathBuf};

use crate::HandshakeError;

/// The version of the handshake itself, the first field of the line.
const CORE_VERSION: u32 = 1;

/// What a host and its plugins have in common.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Agreement {
    /// The host, as a person calls it: used in explanations only.
    pub host: &'static str,
    /// The environment variable that shows a plugin that it was launched by its host, and not by a person.
    pub cookie_name: &'static str,
    /// Its value. It is no secret and guards nothing.
    pub cookie_value: &'static str,
    /// The version of the services that the plugin offers.
    pub protocol_version: u32,
}

impl Agreement {
    /// Nomad and its plugins of every kind. Source: hashicorp/nomad, plugins/base/plugin.go.
    pub const NOMAD: Self = Self {
        host: "Nomad",
        cookie_name: "NOMAD_PLUGIN_MAGIC_COOKIE",
        cookie_value: "e4327c2e01eabfd75a8a67adb114fb34a757d57eee7728d857a8cec6e91a7255",
        protocol_version: 2,
    };
}

/// The line by which a plugin says where it listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Handshake {
    /// The version of the services.
    pub protocol_version: u32,
    /// The unix socket.
    pub socket: PathBuf,
    /// Whether the plugin multiplexes brokered connections; said only to a host that asked.
    pub multiplexes: Option<bool>,
}

impl fmt::Display for Handshake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The empty field before the last is the server's certificate.
        write!(
            f,
            "{CORE_VERSION}|{}|unix|{}|grpc|",
            self.protocol_version,
            self.socket.display()
        )?;
        match self.multiplexes {
            Some(answer) => write!(f, "|{answer}"),
            None => Ok(()),
        }
    }
}

impl Handshake {
    /// Reads a line as [`Handshake`] prints it, without its newline.
    ///
    /// # Errors
    /// [`HandshakeError`], naming the field that does not fit.
    pub fn parse(line: &str) -> Result<Self, HandshakeError> {
        let fields: Vec<&str> = line.trim().split('|').collect();
        let [core, version, network, address, rest @ ..] = fields.as_slice() else {
            return Err(HandshakeError::Fields { got: fields.len() });
        };
        if core.parse() != Ok(CORE_VERSION) {
            return Err(HandshakeError::CoreVersion {
                got: (*core).to_owned(),
            });
        }
        let protocol_version = version.parse().map_err(|_| HandshakeError::ProtocolVersion {
            got: (*version).to_owned(),
        })?;
        if *network != "unix" {
            return Err(HandshakeError::Network {
                got: (*network).to_owned(),
            });
        }
        // A plugin that leaves the transport out speaks net/rpc.
        let transport = rest.first().copied().unwrap_or("netrpc");
        if transport != "grpc" {
            return Err(HandshakeError::Transport {
                got: transport.to_owned(),
            });
        }
        if rest.get(1).is_some_and(|certificate| !certificate.is_empty()) {
            return Err(HandshakeError::Tls);
        }
        let multiplexes = rest.get(2).map(|answer| *answer == "true");
        Ok(Self {
            protocol_version,
            socket: PathBuf::from(address),
            multiplexes,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain() -> Handshake {
        Handshake {
            protocol_version: 2,
            socket: "/tmp/plugin123".into(),
            multiplexes: None,
        }
    }

    #[test]
    fn the_line_is_what_hashicorps_host_reads() {
        assert_eq!(plain().to_string(), "1|2|unix|/tmp/plugin123|grpc|");
        let asked = Handshake {
            multiplexes: Some(false),
            ..plain()
        };
        assert_eq!(asked.to_string(), "1|2|unix|/tmp/plugin123|grpc||false");
    }

    #[test]
    fn what_is_printed_is_read_back() {
        for handshake in [
            plain(),
            Handshake {
                multiplexes: Some(true),
                ..plain()
            },
        ] {
            assert_eq!(Handshake::parse(&format!("{handshake}\n")), Ok(handshake));
        }
        assert_eq!(
            Handshake::parse("1|2|unix|/tmp/plugin123|grpc"),
            Ok(plain()),
            "older plugins end here"
        );
    }

    #[test]
    fn a_line_that_does_not_fit_is_refused_by_the_field_that_does_not() {
        let refused = |line| Handshake::parse(line).unwrap_err();
        assert_eq!(refused("hello"), HandshakeError::Fields { got: 1 });
        assert_eq!(
            refused("9|2|unix|/s|grpc|"),
            HandshakeError::CoreVersion { got: "9".into() }
        );
        assert_eq!(
            refused("1|x|unix|/s|grpc|"),
            HandshakeError::ProtocolVersion { got: "x".into() }
        );
        assert_eq!(
            refused("1|2|tcp|127.0.0.1:1|grpc|"),
            HandshakeError::Network { got: "tcp".into() }
        );
        assert_eq!(
            refused("1|2|unix|/s"),
            HandshakeError::Transport { got: "netrpc".into() }
        );
        assert_eq!(refused("1|2|unix|/s|grpc|MIIB"), HandshakeError::Tls);
    }
}
