//! From the driver's words to Nomad's messages.
//! Invariant: every nested message that the agent reads without looking is there, since a missing one crashes the agent.

use std::collections::HashMap;
use std::time::SystemTime;

use prost_types::Timestamp;
use proto::nomad::driver as wire;
use proto::nomad::driver::fingerprint_response::HealthState;
use proto::nomad::structs::{Attribute as WireAttribute, attribute::Value};

use crate::events::TaskEvent;
use crate::fingerprint::{Attribute, Fingerprint, Health};
use crate::spec::DriverNetwork;
use crate::task::{Exit, Phase, Task};

/// The zero time of Go, year 1: what "not yet" is on the wire.
const NEVER: Timestamp = Timestamp {
    seconds: -62_135_596_800,
    nanos: 0,
};

/// The state of a task, complete.
pub(super) fn inspected(task: &Task) -> wire::InspectTaskResponse {
    let handle = &task.handle;
    let (state, exit) = match task.phase() {
        Phase::Running => (wire::TaskState::Running, None),
        Phase::Ended(exit) => (wire::TaskState::Exited, Some(exit)),
    };
    let started = timestamp(&handle.started_at);
    // A container that ends at once is seen to end before Podman has said that it started: never the wrong way round.
    let finished = exit.as_ref().and_then(|exit| exit.finished_at.as_deref());
    let finished = finished.map(timestamp).map(|finished| {
        match (finished.seconds, finished.nanos) < (started.seconds, started.nanos) {
            true => started,
            false => finished,
        }
    });
    let status = wire::TaskStatus {
        id: handle.task_id.clone(),
        name: handle.task_name.clone(),
        state: state.into(),
        started_at: Some(started),
        completed_at: Some(finished.unwrap_or(NEVER)),
        result: Some(result(&exit.unwrap_or_default())),
    };
    let attributes = HashMap::from([
        ("container_id".to_owned(), handle.container_id.clone()),
        ("container_name".to_owned(), handle.container_name.clone()),
        ("socket".to_owned(), handle.socket.clone()),
    ]);
    wire::InspectTaskResponse {
        task: Some(status),
        driver: Some(wire::TaskDriverStatus { attributes }),
        network_override: handle.network.as_ref().map(network),
    }
}

/// How a task ended.
pub(super) fn waited(exit: &Exit) -> wire::WaitTaskResponse {
    wire::WaitTaskResponse {
        result: Some(result(exit)),
        err: exit.error.clone().unwrap_or_default(),
    }
}

/// The answer to a start. The configuration is given back whole, since Nomad itself reads it again.
pub(super) fn started(task: &Task, config: wire::TaskConfig) -> wire::StartTaskResponse {
    let handle = wire::TaskHandle {
        version: i32::try_from(task.handle.version).unwrap_or(i32::MAX),
        config: Some(config),
        state: wire::TaskState::Running.into(),
        driver_state: task.handle.encode(),
    };
    wire::StartTaskResponse {
        result: wire::start_task_response::Result::Success.into(),
        driver_error_msg: String::new(),
        handle: Some(handle),
        network_override: task.handle.network.as_ref().map(network),
    }
}

/// A task event.
pub(super) fn event(event: TaskEvent) -> wire::DriverTaskEvent {
    wire::DriverTaskEvent {
        task_id: event.subject.task_id,
        alloc_id: event.subject.alloc_id,
        task_name: event.subject.task_name,
        timestamp: Some(instant(event.at)),
        message: event.message,
        annotations: event.annotations.into_iter().collect(),
    }
}

/// A fingerprint.
pub(super) fn fingerprint(fingerprint: Fingerprint) -> wire::FingerprintResponse {
    let attribute = |attribute| {
        let value = match attribute {
            Attribute::Bool(flag) => Value::BoolVal(flag),
            Attribute::Text(text) => Value::StringVal(text),
        };
        WireAttribute {
            value: Some(value),
            unit: String::new(),
        }
    };
    let health = match fingerprint.health {
        Health::Undetected => HealthState::Undetected,
        Health::Unhealthy => HealthState::Unhealthy,
        Health::Healthy => HealthState::Healthy,
    };
    wire::FingerprintResponse {
        attributes: fingerprint
            .attributes
            .into_iter()
            .map(|(name, value)| (name, attribute(value)))
            .collect(),
        health: health.into(),
        health_description: fingerprint.description,
        err: String::new(),
    }
}

/// A moment of the system's clock.
pub(super) fn instant(at: SystemTime) -> Timestamp {
    Timestamp::from(at)
}

fn result(exit: &Exit) -> wire::ExitResult {
    wire::ExitResult {
        exit_code: exit.code,
        signal: exit.signal,
        oom_killed: exit.oom_killed,
    }
}

fn network(network: &DriverNetwork) -> wire::NetworkOverride {
    wire::NetworkOverride {
        port_map: network
            .port_map
            .iter()
            .map(|(label, port)| (label.clone(), i32::from(*port)))
            .collect(),
        addr: network.ip.clone(),
        auto_advertise: network.auto_advertise,
    }
}

/// A time as Podman writes it; what cannot be read is "not yet".
fn timestamp(text: &str) -> Timestamp {
    text.parse().unwrap_or(NEVER)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn podmans_times_are_read_with_their_zone() {
        assert_eq!(
            timestamp("1970-01-01T00:00:01.5Z"),
            Timestamp {
                seconds: 1,
                nanos: 500_000_000
            }
        );
        assert_eq!(
            timestamp("1970-01-01T01:00:00+01:00"),
            Timestamp { seconds: 0, nanos: 0 }
        );
        assert_eq!(timestamp("0001-01-01T00:00:00Z"), NEVER);
        assert_eq!(timestamp(""), NEVER);
    }

    /// Trap 7: an exit without a code still has its result.
    #[test]
    fn a_lost_exit_still_has_a_result() {
        let waited = waited(&Exit {
            code: 1,
            error: Some("gone".into()),
            ..Exit::default()
        });
        assert_eq!(waited.result.unwrap().exit_code, 1);
        assert_eq!(waited.err, "gone");
    }
}
