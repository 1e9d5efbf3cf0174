//! The driver state: the bytes that Nomad keeps for each task and gives back after a restart of agent or plugin.
//!
//! Invariant: a task is recovered from these bytes alone. After an agent's restart nothing else of the task's
//! configuration is there, so whatever stop, logs, stats and inspection need later must be in here from the start.
//! Format: a JSON object whose first field is `version`. A change that older plugins cannot read raises the version;
//! new fields with a default do not. States of the driver that users come from (msgpack) are read too.

use serde::{Deserialize, Serialize};

use crate::compute::Compute;
use crate::config::DEFAULT_SOCKET;
use crate::events::Subject;
use crate::logs::LogPlan;
use crate::msgpack::Block;
use crate::spec::DriverNetwork;

/// The version this plugin writes, and the latest that it reads.
pub const VERSION: u32 = 1;

/// What there is to know of a started task.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Handle {
    /// [`VERSION`] of the plugin that wrote it.
    pub version: u32,
    /// Nomad's id of this run of the task.
    pub task_id: String,
    /// The task's name.
    pub task_name: String,
    /// The allocation.
    pub alloc_id: String,
    /// The full id of the container.
    pub container_id: String,
    /// The name of the container.
    pub container_name: String,
    /// The name of the Podman service in the plugin's options.
    pub socket: String,
    /// RFC 3339, as Podman says it.
    pub started_at: String,
    /// What asks the program to end, when the job does not say: the image's own signal.
    pub stop_signal: String,
    /// Where its output goes; None: nowhere.
    #[serde(default)]
    pub logs: Option<LogPlan>,
    /// What Nomad was told of its network.
    #[serde(default)]
    pub network: Option<DriverNetwork>,
    /// Whether the container is removed at the end.
    pub remove_container: bool,
    /// The node's compute capacity when the task started: a reattached plugin is not told again.
    #[serde(default)]
    pub compute: Compute,
    /// Whether it was read from a state of the driver that users come from.
    #[serde(skip)]
    pub predecessor: bool,
}

/// Why a driver state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HandleError {
    /// There is none.
    #[error("the task has no driver state")]
    Empty,
    /// It is neither ours nor the predecessor's.
    #[error("the driver state is damaged: {0}")]
    Damaged(#[source] serde_json::Error),
    /// It names no container.
    #[error("the driver state names no container")]
    NoContainer,
    /// A newer plugin wrote it.
    #[error("the driver state has version {got}, this plugin reads up to {VERSION}: it was started by a newer plugin")]
    TooNew {
        /// Its version.
        got: u32,
    },
}

impl Handle {
    /// The bytes for Nomad.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        serde_json::to_vec(self).expect("strings, numbers and paths from UTF-8 are JSON")
    }

    /// Reads the bytes back. `of` is whom Nomad says they belong to, for states that do not say it themselves.
    ///
    /// # Errors
    /// All variants of [`HandleError`], as they say.
    pub fn decode(bytes: &[u8], of: &Subject) -> Result<Self, HandleError> {
        /// The one field that every version has.
        #[derive(Deserialize)]
        struct Versioned {
            version: u32,
        }
        match bytes.first() {
            None => return Err(HandleError::Empty),
            Some(b'{') => {}
            Some(_) => return Self::decode_predecessor(bytes, of),
        }
        let Versioned { version } = serde_json::from_slice(bytes).map_err(HandleError::Damaged)?;
        if version > VERSION {
            return Err(HandleError::TooNew { got: version });
        }
        let handle: Self = serde_json::from_slice(bytes).map_err(HandleError::Damaged)?;
        if handle.container_id.is_empty() {
            return Err(HandleError::NoContainer);
        }
        Ok(handle)
    }

    /// Whom events of the task concern.
    #[must_use]
    pub fn subject(&self) -> Subject {
        Subject {
            task_id: self.task_id.clone(),
            task_name: self.task_name.clone(),
            alloc_id: self.alloc_id.clone(),
        }
    }

    /// A state of the driver that users come from: a msgpack map with ContainerID, Net and the task's options. Its
    /// containers write to the FIFOs themselves, so no log process is needed for them.
    fn decode_predecessor(bytes: &[u8], of: &Subject) -> Result<Self, HandleError> {
        let damaged = |error: crate::msgpack::MsgpackError| {
            HandleError::Damaged(<serde_json::Error as serde::de::Error>::custom(error))
        };
        let mut state = Block::decode(bytes).map_err(damaged)?;
        let container_id = state.string("ContainerID").map_err(damaged)?.unwrap_or_default();
        if container_id.is_empty() {
            return Err(HandleError::NoContainer);
        }
        let mut options = state.block("TaskConfig").map_err(damaged)?.unwrap_or_default();
        let socket = options
            .string("socket")
            .map_err(damaged)?
            .filter(|name| !name.is_empty());
        let mut net = state.block("Net").map_err(damaged)?.unwrap_or_default();
        let ip = net.string("IP").map_err(damaged)?.filter(|ip| !ip.is_empty());
        let ports = net.integer_map("PortMap").map_err(damaged)?;
        let port = |(label, port): (String, i64)| Some((label, u16::try_from(port).ok()?));
        let port_map = ports.into_iter().filter_map(port).collect();
        let auto_advertise = net.bool("AutoAdvertise").map_err(damaged)?.unwrap_or(true);
        Ok(Self {
            version: VERSION,
            task_id: of.task_id.clone(),
            task_name: of.task_name.clone(),
            alloc_id: of.alloc_id.clone(),
            container_id,
            container_name: format!("{}-{}", of.task_name, of.alloc_id),
            socket: socket.unwrap_or_else(|| DEFAULT_SOCKET.to_owned()),
            network: ip.map(|ip| DriverNetwork {
                port_map,
                ip,
                auto_advertise,
            }),
            remove_container: true,
            predecessor: true,
            ..Self::default()
        })
    }
}

#[cfg(test)]
mod tests {
    use rmpv::Value;

    use super::*;

    fn subject() -> Subject {
        Subject {
            task_id: "a/web/1".into(),
            task_name: "web".into(),
            alloc_id: "a".into(),
        }
    }

    fn handle() -> Handle {
        Handle {
            version: VERSION,
            task_id: "a/web/1".into(),
            container_id: "c0ffee".into(),
            socket: "default".into(),
            started_at: "2026-01-02T03:04:05.6Z".into(),
            stop_signal: "15".into(),
            logs: Some(LogPlan {
                dir: "/l".into(),
                stdout: "/o".into(),
                stderr: "/e".into(),
                ..LogPlan::default()
            }),
            remove_container: true,
            ..Handle::default()
        }
    }

    #[test]
    fn a_handle_comes_back_as_it_was() {
        assert_eq!(
            Handle::decode(&handle().encode(), &Subject::default()).unwrap(),
            handle()
        );
        assert!(
            handle().encode().starts_with(b"{\"version\":1,"),
            "the version comes first"
        );
    }

    #[test]
    fn a_state_of_the_first_version_is_read_for_ever() {
        let bytes =
            br#"{"version":1,"task_id":"t","task_name":"n","alloc_id":"a","container_id":"c","container_name":"n-a",
            "socket":"default","started_at":"2026-01-02T03:04:05Z","stop_signal":"SIGTERM","remove_container":true,
            "something_new":1}"#;
        let handle = Handle::decode(bytes, &Subject::default()).unwrap();
        assert_eq!(
            (handle.container_id.as_str(), handle.stop_signal.as_str()),
            ("c", "SIGTERM")
        );
    }

    #[test]
    fn states_that_cannot_be_read_say_why() {
        let of = Subject::default();
        assert!(matches!(Handle::decode(&[], &of), Err(HandleError::Empty)));
        assert!(matches!(Handle::decode(b"{", &of), Err(HandleError::Damaged(_))));
        assert!(matches!(
            Handle::decode(b"{\"version\":99}", &of),
            Err(HandleError::TooNew { got: 99 })
        ));
        assert!(matches!(Handle::decode(&[0x80], &of), Err(HandleError::NoContainer)));
    }

    #[test]
    fn a_predecessors_state_is_understood() {
        let map = |entries: Vec<(&str, Value)>| {
            Value::Map(
                entries
                    .into_iter()
                    .map(|(key, value)| (Value::from(key), value))
                    .collect(),
            )
        };
        let state = map(vec![
            ("ContainerID", "c0ffee".into()),
            ("TaskConfig", map(vec![("socket", "app".into()), ("image", "x".into())])),
            ("Net", map(vec![("IP", "10.88.0.2".into())])),
            ("LogStreamer", false.into()),
        ]);
        let mut bytes = Vec::new();
        rmpv::encode::write_value(&mut bytes, &state).unwrap();
        let handle = Handle::decode(&bytes, &subject()).unwrap();
        assert_eq!(
            (handle.container_id.as_str(), handle.task_id.as_str()),
            ("c0ffee", "a/web/1")
        );
        assert_eq!(
            (handle.socket.as_str(), handle.container_name.as_str()),
            ("app", "web-a")
        );
        assert!(handle.logs.is_none() && handle.network.unwrap().auto_advertise);
    }
}
