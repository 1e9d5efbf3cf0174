//! Process limits of a container: reading `ulimit` blocks, and fitting Podman's defaults to hosts that allow less.
//!
//! Podman asks for nofile 1048576 and nproc 4194304 when nobody says otherwise. Raising a hard limit needs
//! CAP_SYS_RESOURCE; on a host without it every container would die in setrlimit(2). So what nobody asked for is cut
//! to what the host has; what somebody asked for is not touched, it is refused with both numbers.
//! Absent: reading the host's limits (host.rs does).

use std::collections::BTreeMap;

/// One limit of one resource. `u64::MAX` is "unlimited".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// What a process starts with.
    pub soft: u64,
    /// How far it may raise it.
    pub hard: u64,
}

/// Why a `ulimit` cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum RlimitError {
    /// Not one of the names that setrlimit(2) knows.
    #[error("ulimit {name:?} does not exist; the names are {}", NAMES.join(", "))]
    UnknownName {
        /// What was written.
        name: String,
    },
    /// Not `soft` or `soft:hard`.
    #[error("ulimit {name} = {text:?} is malformed: write \"SOFT\" or \"SOFT:HARD\", numbers or \"unlimited\"")]
    Malformed {
        /// The resource.
        name: String,
        /// What was written.
        text: String,
    },
    /// The soft limit is above the hard one.
    #[error("ulimit {name}: the soft limit {soft} is above the hard limit {hard}")]
    SoftAboveHard {
        /// The resource.
        name: String,
        /// As written.
        soft: u64,
        /// As written.
        hard: u64,
    },
    /// The host's hard limit is lower and may not be raised.
    #[error(
        "ulimit {name} = {want} is above this host's hard limit of {host}, and raising it needs CAP_SYS_RESOURCE; \
         lower it in the task (ulimit {{ {name} = \"{host}\" }}) or raise the limit of the Podman service"
    )]
    AboveHost {
        /// The resource.
        name: String,
        /// The wanted hard limit.
        want: u64,
        /// The host's hard limit.
        host: u64,
    },
}

/// What the host lets a container have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct HostLimits {
    /// Hard limits by name, as in `NAMES`. A name that is missing is not limited.
    pub hard: BTreeMap<String, u64>,
    /// Whether hard limits may be raised (CAP_SYS_RESOURCE).
    pub may_raise: bool,
}

/// The resources of setrlimit(2), as `ulimit` blocks name them.
pub const NAMES: [&str; 16] = [
    "as",
    "core",
    "cpu",
    "data",
    "fsize",
    "locks",
    "memlock",
    "msgqueue",
    "nice",
    "nofile",
    "nproc",
    "rss",
    "rtprio",
    "rttime",
    "sigpending",
    "stack",
];

/// What Podman sets when nobody says otherwise; above the host's hard limit the container cannot start.
const PODMAN_DEFAULTS: [(&str, u64); 2] = [("nofile", 1_048_576), ("nproc", 4_194_304)];

/// Reads one `name = "soft[:hard]"`. A leading `RLIMIT_` and capitals are taken too.
///
/// # Errors
/// `UnknownName`, `Malformed` and `SoftAboveHard` as they say.
pub fn parse(name: &str, text: &str) -> Result<(String, Limit), RlimitError> {
    let lower = name.to_ascii_lowercase();
    let known = lower.strip_prefix("rlimit_").unwrap_or(&lower).to_owned();
    if !NAMES.contains(&known.as_str()) {
        return Err(RlimitError::UnknownName { name: name.to_owned() });
    }
    let malformed = || RlimitError::Malformed {
        name: known.clone(),
        text: text.to_owned(),
    };
    let (soft, hard) = text.split_once(':').unwrap_or((text, text));
    let soft = number(soft).ok_or_else(malformed)?;
    let hard = number(hard).ok_or_else(malformed)?;
    if soft > hard {
        return Err(RlimitError::SoftAboveHard {
            name: known,
            soft,
            hard,
        });
    }
    Ok((known, Limit { soft, hard }))
}

/// The limits to send: the plugin's defaults overridden by the task's, completed so that Podman adds nothing that
/// this host refuses.
///
/// # Errors
/// `AboveHost` when the task or the plugin asks for more than the host may give.
pub fn effective(
    task: &BTreeMap<String, Limit>,
    plugin: &BTreeMap<String, Limit>,
    host: &HostLimits,
) -> Result<BTreeMap<String, Limit>, RlimitError> {
    let mut limits = plugin.clone();
    limits.extend(task.iter().map(|(name, limit)| (name.clone(), *limit)));
    if host.may_raise {
        return Ok(limits);
    }
    for (name, limit) in &limits {
        let allowed = host.hard.get(name).copied().unwrap_or(u64::MAX);
        if limit.hard > allowed {
            return Err(RlimitError::AboveHost {
                name: name.clone(),
                want: limit.hard,
                host: allowed,
            });
        }
    }
    for (name, default) in PODMAN_DEFAULTS {
        let allowed = host.hard.get(name).copied().unwrap_or(u64::MAX).min(default);
        limits.entry(name.to_owned()).or_insert(Limit {
            soft: allowed,
            hard: allowed,
        });
    }
    Ok(limits)
}

fn number(text: &str) -> Option<u64> {
    match text.trim() {
        "unlimited" | "-1" => Some(u64::MAX),
        digits => digits.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn low_host() -> HostLimits {
        HostLimits {
            hard: BTreeMap::from([("nofile".into(), 20_000), ("nproc".into(), 8192)]),
            may_raise: false,
        }
    }

    #[test]
    fn ulimits_are_soft_or_soft_and_hard() {
        assert_eq!(
            parse("nofile", "1024").unwrap(),
            ("nofile".into(), Limit { soft: 1024, hard: 1024 })
        );
        assert_eq!(
            parse("RLIMIT_NPROC", "1:2").unwrap(),
            ("nproc".into(), Limit { soft: 1, hard: 2 })
        );
        assert_eq!(parse("core", "unlimited").unwrap().1.hard, u64::MAX);
        assert!(matches!(parse("nofile", ""), Err(RlimitError::Malformed { .. })));
        assert!(matches!(parse("nofile", "1:x"), Err(RlimitError::Malformed { .. })));
        assert!(matches!(parse("nofile", "2:1"), Err(RlimitError::SoftAboveHard { .. })));
        assert!(matches!(parse("files", "1"), Err(RlimitError::UnknownName { .. })));
    }

    #[test]
    fn defaults_are_cut_to_what_a_low_host_has() {
        let limits = effective(&BTreeMap::new(), &BTreeMap::new(), &low_host()).unwrap();
        assert_eq!(
            limits["nofile"],
            Limit {
                soft: 20_000,
                hard: 20_000
            }
        );
        assert_eq!(limits["nproc"], Limit { soft: 8192, hard: 8192 });
    }

    #[test]
    fn a_host_that_may_raise_limits_is_left_to_podman() {
        let host = HostLimits {
            may_raise: true,
            ..low_host()
        };
        assert!(effective(&BTreeMap::new(), &BTreeMap::new(), &host).unwrap().is_empty());
        let asked = BTreeMap::from([("nofile".to_owned(), Limit { soft: 1, hard: 1 << 30 })]);
        assert_eq!(effective(&asked, &BTreeMap::new(), &host).unwrap(), asked);
    }

    #[test]
    fn the_task_wins_over_the_plugin_and_neither_over_the_host() {
        let plugin = BTreeMap::from([("nofile".to_owned(), Limit { soft: 10, hard: 20 })]);
        let task = BTreeMap::from([("nofile".to_owned(), Limit { soft: 30, hard: 40 })]);
        assert_eq!(effective(&task, &plugin, &low_host()).unwrap()["nofile"].hard, 40);
        let greedy = BTreeMap::from([("nofile".to_owned(), Limit { soft: 1, hard: 30_000 })]);
        let error = effective(&greedy, &plugin, &low_host()).unwrap_err().to_string();
        assert!(
            error.contains("30000") && error.contains("20000") && error.contains("CAP_SYS_RESOURCE"),
            "{error}"
        );
    }
}
