//! The environment as the host made it, and as children of a plugin may see it.
//! The only file of this crate that reads environment variables.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::PathBuf,
    process::{Command, Stdio},
};

use crate::{Agreement, ServeError};

/// What the host says through environment variables.
#[derive(Clone, Debug, Default)]
pub struct HostEnvironment {
    /// The cookie.
    pub cookie: Option<OsString>,
    /// PLUGIN_PROTOCOL_VERSIONS: the versions of the services that the host speaks, by commas.
    pub versions: Option<String>,
    /// PLUGIN_CLIENT_CERT: set when the host wants TLS.
    pub client_certificate: Option<OsString>,
    /// PLUGIN_MULTIPLEX_GRPC: set when the host asks whether the plugin multiplexes.
    pub asks_multiplexing: bool,
    /// Where the socket goes: PLUGIN_UNIX_SOCKET_DIR, else the machine's temporary folder.
    pub socket_folder: PathBuf,
    /// PLUGIN_UNIX_SOCKET_GROUP: a group, by name or number, that may connect.
    pub socket_group: Option<String>,
}

impl HostEnvironment {
    /// Reads the variables of this process. Empty ones count as absent.
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the adapter that reads the environment"
    )]
    pub fn read(agreement: &Agreement) -> Self {
        let variable = |name: &str| env::var_os(name).filter(|value| !value.is_empty());
        let text = |name: &str| variable(name).map(|value| value.to_string_lossy().into_owned());
        Self {
            cookie: variable(agreement.cookie_name),
            versions: text("PLUGIN_PROTOCOL_VERSIONS"),
            client_certificate: variable("PLUGIN_CLIENT_CERT"),
            asks_multiplexing: variable("PLUGIN_MULTIPLEX_GRPC").is_some(),
            socket_folder: variable("PLUGIN_UNIX_SOCKET_DIR").map_or_else(env::temp_dir, PathBuf::from),
            socket_group: text("PLUGIN_UNIX_SOCKET_GROUP"),
        }
    }

    /// Whether `plugin` can serve the host that made this environment.
    ///
    /// # Errors
    /// [`ServeError::NotLaunchedByHost`] without the right cookie, [`ServeError::TlsRequested`] if the host wants TLS,
    /// [`ServeError::ProtocolVersion`] if it speaks none of our versions.
    pub fn check(&self, plugin: &'static str, agreement: &Agreement) -> Result<(), ServeError> {
        let host = agreement.host;
        if self.cookie.as_deref() != Some(OsStr::new(agreement.cookie_value)) {
            return Err(ServeError::NotLaunchedByHost { plugin, host });
        }
        if self.client_certificate.is_some() {
            return Err(ServeError::TlsRequested { plugin, host });
        }
        let Some(offered) = &self.versions else { return Ok(()) };
        let ours = agreement.protocol_version;
        if offered.split(',').any(|version| version.trim().parse() == Ok(ours)) {
            return Ok(());
        }
        Err(ServeError::ProtocolVersion {
            plugin,
            offered: offered.clone(),
            ours,
        })
    }
}

/// Takes out of a child's environment what is between this process and its host or its service manager: a child that
/// finds the cookie takes itself for a plugin, one that finds NOTIFY_SOCKET speaks for the agent.
pub fn scrub(command: &mut Command) -> &mut Command {
    for (name, _) in env::vars_os() {
        if is_the_hosts(&name) {
            command.env_remove(name);
        }
    }
    command
}

/// A command for a child of a plugin: scrubbed, and with null standard streams. A child that inherited the plugin's
/// standard error would keep the host from ever seeing the plugin's end.
pub fn helper_command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    scrub(&mut command)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Whether a variable is between this process and whoever launched it.
fn is_the_hosts(name: &OsStr) -> bool {
    let name = name.to_string_lossy();
    name == "NOTIFY_SOCKET"
        || ["NOMAD_PLUGIN_", "PLUGIN_", "LISTEN_"]
            .iter()
            .any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nomads() -> HostEnvironment {
        HostEnvironment {
            cookie: Some(Agreement::NOMAD.cookie_value.into()),
            versions: Some("2".into()),
            ..HostEnvironment::default()
        }
    }

    #[test]
    fn nomads_environment_is_accepted() {
        assert!(nomads().check("x", &Agreement::NOMAD).is_ok());
        let several = HostEnvironment {
            versions: Some("1, 2".into()),
            ..nomads()
        };
        assert!(several.check("x", &Agreement::NOMAD).is_ok());
        let silent = HostEnvironment {
            versions: None,
            ..nomads()
        };
        assert!(silent.check("x", &Agreement::NOMAD).is_ok());
    }

    #[test]
    fn anything_else_is_refused_in_words_for_a_person() {
        let refused = |environment: HostEnvironment| environment.check("x", &Agreement::NOMAD).unwrap_err().to_string();
        let by_hand = refused(HostEnvironment::default());
        assert!(by_hand.contains("x is a plugin of Nomad"), "{by_hand}");
        assert_eq!(
            refused(HostEnvironment {
                cookie: Some("wrong".into()),
                ..nomads()
            }),
            by_hand
        );
        let tls = refused(HostEnvironment {
            client_certificate: Some("PEM".into()),
            ..nomads()
        });
        assert!(tls.contains("PLUGIN_CLIENT_CERT"), "{tls}");
        let newer = refused(HostEnvironment {
            versions: Some("3,4".into()),
            ..nomads()
        });
        assert!(newer.contains("3,4") && newer.contains("speaks 2"), "{newer}");
    }

    #[test]
    fn the_hosts_variables_are_told_from_the_users() {
        for name in [
            "NOMAD_PLUGIN_MAGIC_COOKIE",
            "PLUGIN_MIN_PORT",
            "NOTIFY_SOCKET",
            "LISTEN_FDS",
        ] {
            assert!(is_the_hosts(OsStr::new(name)), "{name}");
        }
        for name in ["PATH", "NOMAD_ADDR", "HOME", "MY_PLUGIN_DIR"] {
            assert!(!is_the_hosts(OsStr::new(name)), "{name}");
        }
    }
}
