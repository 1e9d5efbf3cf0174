//! Fingerprint: whether Podman answers, and what jobs may constrain on.
//!
//! Invariants: a stream's first message comes at once, later ones only when something changed, and it never ends: Nomad opens
//! an ended one again without a pause, and writes each change to its raft log. Attribute names are those that jobs
//! constrain on today. A service that stops answering makes the driver unhealthy; its attributes stay.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use futures::Stream;
use tokio::sync::watch;

use crate::plugin::{Plugin, Service, Settings};
use crate::podman::{HostInfo, PodmanError};

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Attribute {
    /// true or false.
    Bool(bool),
    /// Text.
    Text(String),
}

/// How well the driver is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Health {
    /// No Podman was ever seen.
    Undetected,
    /// Some service does not answer.
    Unhealthy,
    /// All services answer.
    Healthy,
}

/// One message of the stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Fingerprint {
    /// By full name.
    pub attributes: BTreeMap<String, Attribute>,
    /// For the scheduler.
    pub health: Health,
    /// For a person.
    pub description: String,
}

/// 30 s between looks at healthy services, as users' present driver has it.
const PERIOD: Duration = Duration::from_secs(30);

/// 3 s while a service does not answer, so that a Podman that comes up late at boot is seen soon.
const PERIOD_UNHEALTHY: Duration = Duration::from_secs(3);

/// 4 s for one service to answer: Nomad's own start waits for the first fingerprint.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(4);

/// The current fingerprint of this process, kept up to date in the background from the first subscription on.
#[derive(Debug, Default)]
pub struct Fingerprinter {
    current: OnceLock<watch::Receiver<Option<Fingerprint>>>,
}

impl Fingerprinter {
    /// The fingerprint of now as soon as there is one, then each change. Never ends. Must be called inside a runtime.
    pub fn subscribe(&self, plugin: &Plugin) -> impl Stream<Item = Fingerprint> + Send + use<> {
        let current = self.current.get_or_init(|| {
            let (sender, receiver) = watch::channel(None);
            tokio::spawn(keep_current(plugin.clone(), sender));
            receiver
        });
        let mut changes = current.clone();
        changes.mark_changed();
        futures::stream::unfold(changes, |mut changes| async move {
            loop {
                if changes.changed().await.is_err() {
                    // The background task ends only with the process; an end of this stream would start a hot loop.
                    std::future::pending::<()>().await;
                }
                let fingerprint = changes.borrow_and_update().clone();
                if let Some(fingerprint) = fingerprint {
                    return Some((fingerprint, changes));
                }
            }
        })
    }
}

async fn keep_current(plugin: Plugin, sender: watch::Sender<Option<Fingerprint>>) {
    loop {
        let settings = plugin.settings();
        let seen = look(&settings).await;
        let mut healthy = false;
        sender.send_if_modified(|current| {
            let next = describe(&seen, current.as_ref());
            healthy = next.health == Health::Healthy;
            let changed = current.as_ref() != Some(&next);
            if changed {
                tracing::info!(health = ?next.health, description = next.description, "fingerprint");
                *current = Some(next);
            }
            changed
        });
        tokio::time::sleep(if healthy { PERIOD } else { PERIOD_UNHEALTHY }).await;
    }
}

/// What was seen of one service.
#[derive(Debug)]
struct Seen {
    /// The name under which tasks find it.
    name: String,
    /// Where it listens.
    socket: String,
    /// Whether it is the one for tasks that name none.
    default: bool,
    /// Its facts; None: no answer.
    info: Option<Arc<HostInfo>>,
}

async fn look(settings: &Settings) -> Vec<Seen> {
    let mut seen: Vec<Seen> = Vec::new();
    for (name, service) in &settings.services {
        let default = name == crate::config::DEFAULT_SOCKET;
        let socket = &settings.config.sockets[name];
        // A named socket that stands in for the default one is told once, as the default.
        let stands_in = settings.config.sockets.get(crate::config::DEFAULT_SOCKET);
        if !default && stands_in.is_some_and(|stand_in| stand_in.name == *name) {
            continue;
        }
        let info = match ask(service).await {
            Ok(info) => Some(info),
            Err(error) => {
                tracing::warn!(socket = service.name, error = ?error, "podman does not answer");
                None
            }
        };
        seen.push(Seen {
            name: socket.name.clone(),
            socket: socket.path.to_string_lossy().into_owned(),
            default,
            info,
        });
    }
    seen
}

async fn ask(service: &Service) -> Result<Arc<HostInfo>, PodmanError> {
    let late = |_| PodmanError::TimedOut {
        call: "GET info".to_owned(),
        limit: ANSWER_TIMEOUT,
    };
    tokio::time::timeout(ANSWER_TIMEOUT, service.refresh())
        .await
        .map_err(late)?
}

fn describe(seen: &[Seen], before: Option<&Fingerprint>) -> Fingerprint {
    let mut attributes = before.map(|before| before.attributes.clone()).unwrap_or_default();
    let detected_before = before.is_some_and(|before| before.health != Health::Undetected);
    let silent: Vec<&str> = seen
        .iter()
        .filter(|one| one.info.is_none())
        .map(|one| one.name.as_str())
        .collect();
    for one in seen {
        describe_service(one, &mut attributes);
    }
    let any = silent.len() < seen.len();
    let (health, description) = if silent.is_empty() {
        (Health::Healthy, "All Podman sockets are responding.".to_owned())
    } else if any || detected_before {
        (
            Health::Unhealthy,
            format!("Podman sockets are not responding: {}", silent.join(", ")),
        )
    } else {
        (Health::Undetected, "Cannot connect to any Podman socket.".to_owned())
    };
    attributes.insert(
        "driver.podman".to_owned(),
        Attribute::Bool(health != Health::Undetected),
    );
    Fingerprint {
        attributes,
        health,
        description,
    }
}

fn describe_service(one: &Seen, attributes: &mut BTreeMap<String, Attribute>) {
    let prefix = match one.default {
        true => "driver.podman".to_owned(),
        false => format!("driver.podman.{}", clean(&one.name)),
    };
    let mut put = |name: &str, value: Attribute| attributes.insert(format!("{prefix}.{name}"), value);
    let health = if one.info.is_some() { "healthy" } else { "unhealthy" };
    put("health", Attribute::Text(health.to_owned()));
    let Some(info) = &one.info else { return };
    put("defaultPodman", Attribute::Bool(one.default));
    put("socketName", Attribute::Text(one.name.clone()));
    put("socket", Attribute::Text(one.socket.clone()));
    let (host, security) = (&info.host, &info.host.security);
    for (name, text) in [
        ("version", &info.version.version),
        ("cgroupVersion", &host.cgroup_version),
        ("capabilities", &security.capabilities),
        ("ociRuntime", &host.oci_runtime.path),
    ] {
        if let Some(text) = text {
            put(name, Attribute::Text(text.clone()));
        }
    }
    for (name, flag) in [
        ("rootless", security.rootless),
        ("appArmor", security.apparmor_enabled),
        ("seccompEnabled", security.seccomp_enabled),
        ("selinuxEnabled", security.selinux_enabled),
    ] {
        if let Some(flag) = flag {
            put(name, Attribute::Bool(flag));
        }
    }
}

/// A socket's name as part of an attribute's name.
fn clean(name: &str) -> String {
    name.chars()
        .map(|c| if c.is_ascii_alphanumeric() { c } else { '_' })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::podman::{HostFacts, SecurityFacts, VersionFacts};

    fn seen(name: &str, answers: bool) -> Seen {
        let info = HostInfo {
            host: HostFacts {
                cgroup_version: Some("v2".into()),
                security: SecurityFacts {
                    rootless: Some(false),
                    ..SecurityFacts::default()
                },
                ..HostFacts::default()
            },
            version: VersionFacts {
                version: Some("5.1.0".into()),
                ..VersionFacts::default()
            },
            ..HostInfo::default()
        };
        let info = answers.then(|| Arc::new(info));
        Seen {
            name: name.into(),
            socket: format!("/run/{name}.sock"),
            default: name == "default",
            info,
        }
    }

    fn text(fingerprint: &Fingerprint, name: &str) -> String {
        match &fingerprint.attributes[name] {
            Attribute::Text(text) => text.clone(),
            Attribute::Bool(flag) => flag.to_string(),
        }
    }

    #[test]
    fn all_sockets_answer() {
        let fingerprint = describe(&[seen("default", true), seen("app-1", true)], None);
        assert_eq!(fingerprint.health, Health::Healthy);
        assert_eq!(fingerprint.description, "All Podman sockets are responding.");
        for (name, want) in [
            ("driver.podman", "true"),
            ("driver.podman.version", "5.1.0"),
            ("driver.podman.cgroupVersion", "v2"),
            ("driver.podman.rootless", "false"),
            ("driver.podman.defaultPodman", "true"),
            ("driver.podman.app_1.socketName", "app-1"),
            ("driver.podman.app_1.defaultPodman", "false"),
        ] {
            assert_eq!(text(&fingerprint, name), want, "{name}");
        }
    }

    #[test]
    fn a_silent_socket_makes_the_driver_unhealthy_and_keeps_its_attributes() {
        let before = describe(&[seen("default", true), seen("app", true)], None);
        let after = describe(&[seen("default", true), seen("app", false)], Some(&before));
        assert_eq!(after.health, Health::Unhealthy);
        assert!(after.description.ends_with(": app"));
        assert_eq!(text(&after, "driver.podman.app.version"), "5.1.0");
        assert_eq!(text(&after, "driver.podman.app.health"), "unhealthy");
    }

    #[test]
    fn a_podman_that_was_never_there_is_undetected_and_one_that_went_is_unhealthy() {
        let never = describe(&[seen("default", false)], None);
        assert_eq!(
            (never.health, text(&never, "driver.podman").as_str()),
            (Health::Undetected, "false")
        );
        let before = describe(&[seen("default", true)], Some(&never));
        let gone = describe(&[seen("default", false)], Some(&before));
        assert_eq!(
            (gone.health, text(&gone, "driver.podman").as_str()),
            (Health::Unhealthy, "true")
        );
    }
}
