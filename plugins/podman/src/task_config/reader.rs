//! Reading a task's options: one getter a line, every mistake kept, no option skipped.
//! Absent: what the options are (task_config.rs), `mount` blocks (mounts.rs).

mod mounts;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use rmpv::Value;

use super::{
    ImageOptions, LimitOptions, NetworkOptions, SecurityOptions, StorageOptions, TaskAuth, TaskConfig, TaskConfigError,
    TaskConfigErrors,
};
use crate::config::DEFAULT_SOCKET;
use crate::log_choice::LogChoice;
use crate::msgpack::{self, Block, MsgpackError};
use crate::{rlimit, units};

/// 5 min, the default of users' present driver.
const PULL_TIMEOUT: Duration = Duration::from_secs(300);

/// The kernel's bound of cfs_period_us: 1 s.
const CFS_PERIOD_MAX_US: i64 = 1_000_000;
/// The kernel's other bound of cfs_period_us: 1 ms. Less is raised to it, as users' present driver does.
const CFS_PERIOD_MIN_US: i64 = 1000;

/// Reads option by option and keeps each mistake.
pub(super) struct Reader {
    pub(super) block: Block,
    pub(super) errors: Vec<TaskConfigError>,
}

impl Reader {
    /// Of the outermost block.
    pub(super) fn new(block: Block) -> Self {
        Self {
            block,
            errors: Vec::new(),
        }
    }

    /// All options, or all mistakes.
    pub(super) fn read(mut self) -> Result<TaskConfig, TaskConfigErrors> {
        let task = TaskConfig {
            image: self.image(),
            command: self.command(),
            entrypoint: self.entrypoint(),
            working_dir: self.text("working_dir"),
            hostname: self.text("hostname"),
            init: self.flag("init"),
            init_path: self.text("init_path"),
            tty: self.flag("tty"),
            interactive: self.flag("interactive"),
            timezone: self.text("timezone"),
            healthchecks: self.healthchecks(),
            annotations: self.keep(|block| block.string_map("annotations")).unwrap_or_default(),
            logging: self.logging(),
            labels: self.keep(|block| block.string_map("labels")).unwrap_or_default(),
            socket: self.text("socket").unwrap_or_else(|| DEFAULT_SOCKET.to_owned()),
            storage: self.storage(),
            network: self.network(),
            limits: self.limits(),
            security: self.security(),
        };
        for key in self.block.unknown() {
            tracing::debug!(key, "unknown task option");
        }
        if self.errors.is_empty() {
            Ok(task)
        } else {
            Err(TaskConfigErrors(self.errors))
        }
    }

    pub(super) fn keep<T>(&mut self, get: impl FnOnce(&mut Block) -> Result<T, MsgpackError>) -> Option<T> {
        get(&mut self.block)
            .map_err(|error| self.errors.push(error.into()))
            .ok()
    }

    /// A string; empty counts as absent, since HCL cannot unset an interpolated attribute otherwise.
    fn text(&mut self, key: &str) -> Option<String> {
        self.keep(|block| block.string(key))
            .flatten()
            .filter(|text| !text.is_empty())
    }

    fn flag(&mut self, key: &str) -> bool {
        self.keep(|block| block.bool(key)).flatten().unwrap_or(false)
    }

    fn list(&mut self, key: &str) -> Vec<String> {
        self.keep(|block| block.strings(key)).unwrap_or_default()
    }

    fn size(&mut self, key: &'static str) -> Option<i64> {
        let text = self.text(key)?;
        units::bytes(&text)
            .map_err(|source| self.errors.push(TaskConfigError::Unit { key, source }))
            .ok()
    }

    fn number(&mut self, key: &str, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        let value = self.keep(|block| block.integer(key)).flatten()?;
        self.in_range(key, value, range)
    }

    fn in_range(&mut self, key: &str, value: i64, range: std::ops::RangeInclusive<i64>) -> Option<i64> {
        if range.contains(&value) {
            return Some(value);
        }
        let (min, max) = (*range.start(), *range.end());
        self.errors.push(TaskConfigError::Range {
            key: key.to_owned(),
            value,
            min,
            max,
        });
        None
    }

    fn image(&mut self) -> ImageOptions {
        let reference = self.text("image").unwrap_or_default();
        if reference.is_empty() {
            self.errors.push(TaskConfigError::NoImage);
        }
        let key = "image_pull_timeout";
        let pull_timeout = self.text(key).map_or(Ok(PULL_TIMEOUT), |text| units::duration(&text));
        let pull_timeout = pull_timeout.unwrap_or_else(|source| {
            self.errors.push(TaskConfigError::Unit { key, source });
            PULL_TIMEOUT
        });
        let (auth, tls_verify) = self.auth();
        ImageOptions {
            reference,
            force_pull: self.flag("force_pull"),
            pull_timeout,
            arch: self.text("arch"),
            os: self.text("os"),
            variant: self.text("variant"),
            auth,
            tls_verify,
            auth_soft_fail: self.flag("auth_soft_fail"),
        }
    }

    fn auth(&mut self) -> (Option<TaskAuth>, Option<bool>) {
        let Some(Some(mut block)) = self.keep(|block| block.block("auth")) else {
            return (None, None);
        };
        let mut text = |key: &str| match block.string(key) {
            Ok(text) => text.unwrap_or_default(),
            Err(error) => {
                self.errors.push(error.into());
                String::new()
            }
        };
        let auth = TaskAuth {
            username: text("username"),
            password: text("password"),
        };
        let tls_verify = block
            .bool("tls_verify")
            .map_err(|error| self.errors.push(error.into()))
            .ok()
            .flatten();
        let given = !auth.username.is_empty() || !auth.password.is_empty();
        // Only an explicit "false" is told to Podman: "true" is its default, and telling it would override
        // a registry that the host's registries.conf marks as insecure.
        (given.then_some(auth), tls_verify.filter(|verify| !verify))
    }

    fn command(&mut self) -> Vec<String> {
        let mut command: Vec<String> = self.text("command").into_iter().collect();
        command.extend(self.list("args"));
        command
    }

    fn entrypoint(&mut self) -> Option<Vec<String>> {
        let parsed = match self.block.value("entrypoint")? {
            Value::Array(items) => items
                .iter()
                .map(|item| msgpack::as_string("entrypoint", item))
                .collect(),
            single => msgpack::as_string("entrypoint", &single).map(|text| vec![text]),
        };
        let entrypoint: Vec<String> = parsed.map_err(|error| self.errors.push(error.into())).ok()?;
        (!entrypoint.is_empty()).then_some(entrypoint)
    }

    fn storage(&mut self) -> StorageOptions {
        StorageOptions {
            volumes: self.list("volumes"),
            tmpfs: self.list("tmpfs"),
            mounts: mounts::read(self),
            storage_opt: self.keep(|block| block.string_map("storage_opt")).unwrap_or_default(),
            devices: self.list("devices"),
            shm_size: self.size("shm_size"),
            readonly_rootfs: self.flag("readonly_rootfs"),
        }
    }

    fn network(&mut self) -> NetworkOptions {
        let mut static_ips = Vec::new();
        let mut texts: Vec<(&'static str, String)> = Vec::new();
        texts.extend(self.text("ipv4_address").map(|text| ("ipv4_address", text)));
        texts.extend(self.text("ipv6_address").map(|text| ("ipv6_address", text)));
        texts.extend(self.list("static_ips").into_iter().map(|text| ("static_ips", text)));
        for (key, text) in texts {
            match text.parse::<IpAddr>() {
                Ok(ip) if !(key == "ipv4_address" && ip.is_ipv6() || key == "ipv6_address" && ip.is_ipv4()) => {
                    static_ips.push(ip);
                }
                _ => self.errors.push(TaskConfigError::Malformed {
                    key,
                    text,
                    want: "an IP address of that family",
                }),
            }
        }
        let static_mac = self.text("static_mac");
        if let Some(text) = static_mac.clone().filter(|text| !is_mac(text)) {
            let want = "six bytes in hexadecimal, as in \"92:d0:c6:0a:29:33\"";
            self.errors.push(TaskConfigError::Malformed {
                key: "static_mac",
                text,
                want,
            });
        }
        NetworkOptions {
            mode: self.text("network_mode"),
            networks: self.list("networks"),
            aliases: self.list("network_aliases"),
            ports: self.list("ports"),
            port_map: self.port_map(),
            static_ips,
            static_mac,
            extra_hosts: self.extra_hosts(),
        }
    }

    fn port_map(&mut self) -> BTreeMap<String, u16> {
        let ports = self.keep(|block| block.integer_map("port_map")).unwrap_or_default();
        let in_range = |(label, port): (String, i64)| {
            let port = self.in_range(&format!("port_map.{label}"), port, 1..=i64::from(u16::MAX))?;
            Some((label, u16::try_from(port).ok()?))
        };
        ports.into_iter().filter_map(in_range).collect()
    }

    fn extra_hosts(&mut self) -> Vec<String> {
        let hosts = self.list("extra_hosts");
        for text in &hosts {
            if !text
                .split_once(':')
                .is_some_and(|(host, ip)| !host.is_empty() && !ip.is_empty())
            {
                let (key, want) = ("extra_hosts", "host:ip");
                self.errors.push(TaskConfigError::Malformed {
                    key,
                    text: text.clone(),
                    want,
                });
            }
        }
        hosts
    }

    fn limits(&mut self) -> LimitOptions {
        let mut ulimits = BTreeMap::new();
        for (name, text) in self.keep(|block| block.string_map("ulimit")).unwrap_or_default() {
            match rlimit::parse(&name, &text) {
                Ok((name, limit)) => {
                    ulimits.insert(name, limit);
                }
                Err(error) => self.errors.push(error.into()),
            }
        }
        let period = self.number("cpu_cfs_period", 0..=CFS_PERIOD_MAX_US);
        let unsigned = |number: i64| u64::try_from(number).unwrap_or_default();
        LimitOptions {
            cpu_hard_limit: self.flag("cpu_hard_limit"),
            cpu_cfs_period: period
                .filter(|period| *period > 0)
                .map(|period| unsigned(period.max(CFS_PERIOD_MIN_US))),
            memory_reservation: self.size("memory_reservation"),
            memory_swap: self.size("memory_swap"),
            memory_swappiness: self.number("memory_swappiness", 0..=100).map(unsigned),
            pids_limit: self.number("pids_limit", -1..=i64::MAX).filter(|limit| *limit != 0),
            oom_score_adj: self
                .number("oom_score_adj", -1000..=1000)
                .and_then(|score| i32::try_from(score).ok()),
            ulimits,
            sysctl: self.keep(|block| block.string_map("sysctl")).unwrap_or_default(),
        }
    }

    fn security(&mut self) -> SecurityOptions {
        SecurityOptions {
            privileged: self.flag("privileged"),
            cap_add: self.list("cap_add"),
            cap_drop: self.list("cap_drop"),
            security_opt: self.list("security_opt"),
            selinux_opts: self.list("selinux_opts"),
            apparmor_profile: self.text("apparmor_profile"),
            ipc_mode: self.text("ipc_mode"),
            userns: self.text("userns"),
            pid_mode: self.text("pid_mode"),
            uts_mode: self.text("uts_mode"),
            cgroupns: self.text("cgroupns"),
            group_add: self.list("group_add"),
            runtime: self.text("runtime"),
        }
    }

    fn logging(&mut self) -> Option<LogChoice> {
        let mut block = self.keep(|block| block.block("logging")).flatten()?;
        LogChoice::read(&mut block)
            .map_err(|error| self.errors.push(error.into()))
            .ok()
            .flatten()
    }

    /// The image's own check would run on timers that nobody reads, so it is off unless the job asks for it.
    fn healthchecks(&mut self) -> bool {
        let Some(Some(mut block)) = self.keep(|block| block.block("healthchecks")) else {
            return false;
        };
        let disabled = block.bool("disable").map_err(|error| self.errors.push(error.into()));
        !disabled.ok().flatten().unwrap_or(false)
    }
}

fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    bytes.len() == 6
        && bytes
            .iter()
            .all(|byte| byte.len() == 2 && byte.chars().all(|c| c.is_ascii_hexdigit()))
}
