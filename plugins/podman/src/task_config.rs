//! The task's options: the `config { .. }` of a task with `driver = "podman"`.
//!
//! Same names, types and defaults as the driver that users come from. Everything that can be judged without a host is
//! judged here, all mistakes at once, each with its key and the way out. An option that is not acted on is an error,
//! never silence. Absent: what the options become (spec/*).

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use rmpv::Value;

use crate::config::DEFAULT_SOCKET;
use crate::msgpack::{self, Block, MsgpackError};
use crate::rlimit::{self, Limit, RlimitError};
use crate::units::{self, UnitError};

/// The checked options of one task.
#[derive(Clone, Default, PartialEq)]
pub struct TaskConfig {
    /// What to run: a reference, or an archive with `docker-archive:` or `oci-archive:`.
    pub image: ImageOptions,
    /// Program and arguments; empty: the image's.
    pub command: Vec<String>,
    /// Replaces the image's entrypoint.
    pub entrypoint: Option<Vec<String>>,
    /// Directory the program starts in.
    pub working_dir: Option<String>,
    /// Host name.
    pub hostname: Option<String>,
    /// Run an init as pid 1.
    pub init: bool,
    /// The init's path on the host.
    pub init_path: Option<String>,
    /// With a terminal.
    pub tty: bool,
    /// Labels of the container.
    pub labels: BTreeMap<String, String>,
    /// Name of the Podman service.
    pub socket: String,
    /// Volumes and tmpfs.
    pub storage: StorageOptions,
    /// Network.
    pub network: NetworkOptions,
    /// Limits.
    pub limits: LimitOptions,
    /// Privileges and namespaces.
    pub security: SecurityOptions,
}

/// The image and how to come by it.
#[derive(Clone, Default, PartialEq)]
pub struct ImageOptions {
    /// As written in the job.
    pub reference: String,
    /// Ask the registry even if the image is there.
    pub force_pull: bool,
    /// Deadline of the pull.
    pub pull_timeout: Duration,
    /// Another architecture than the host's.
    pub arch: Option<String>,
    /// Another operating system than the host's.
    pub os: Option<String>,
    /// A variant of the architecture.
    pub variant: Option<String>,
    /// Credentials.
    pub auth: Option<TaskAuth>,
    /// Whether the registry's certificate must be valid; None: as Podman is configured.
    pub tls_verify: Option<bool>,
    /// Pull without credentials when those given cannot be had.
    pub auth_soft_fail: bool,
}

/// Credentials in the job.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct TaskAuth {
    /// The user.
    pub username: String,
    /// The password.
    pub password: String,
}

/// What is mounted.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct StorageOptions {
    /// `src:dst[:options]`.
    pub volumes: Vec<String>,
    /// `dst[:options]`.
    pub tmpfs: Vec<String>,
    /// `src[:dst[:perm]]` or a CDI name.
    pub devices: Vec<String>,
    /// Bytes of /dev/shm.
    pub shm_size: Option<i64>,
    /// Root file system read-only.
    pub readonly_rootfs: bool,
}

/// How the task is reached and reaches others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NetworkOptions {
    /// `bridge`, `host`, `none`, a network's name, …
    pub mode: Option<String>,
    /// Labels of the group's ports to publish.
    pub ports: Vec<String>,
    /// Old style: label to port in the container.
    pub port_map: BTreeMap<String, u16>,
    /// Fixed addresses.
    pub static_ips: Vec<IpAddr>,
    /// Fixed MAC address.
    pub static_mac: Option<String>,
    /// `host:ip` lines for /etc/hosts.
    pub extra_hosts: Vec<String>,
}

/// What the task may use.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LimitOptions {
    /// CPU is cut off at the reservation instead of weighted.
    pub cpu_hard_limit: bool,
    /// Microseconds of one CPU period.
    pub cpu_cfs_period: Option<u64>,
    /// Bytes kept under memory pressure.
    pub memory_reservation: Option<i64>,
    /// Bytes of memory and swap together.
    pub memory_swap: Option<i64>,
    /// 0 to 100, cgroup v1 only.
    pub memory_swappiness: Option<u64>,
    /// Processes.
    pub pids_limit: Option<i64>,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// POSIX limits by name.
    pub ulimits: BTreeMap<String, Limit>,
    /// Kernel parameters.
    pub sysctl: BTreeMap<String, String>,
}

/// What the task is allowed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct SecurityOptions {
    /// All privileges.
    pub privileged: bool,
    /// Capabilities added.
    pub cap_add: Vec<String>,
    /// Capabilities taken away.
    pub cap_drop: Vec<String>,
    /// `no-new-privileges`, `label=…`, …
    pub security_opt: Vec<String>,
    /// SELinux label options.
    pub selinux_opts: Vec<String>,
    /// AppArmor profile.
    pub apparmor_profile: Option<String>,
    /// `host`, `private`, `task:NAME`, …
    pub ipc_mode: Option<String>,
    /// `auto`, `keep-id`, …
    pub userns: Option<String>,
}

/// Never prints credentials.
impl std::fmt::Debug for TaskConfig {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TaskConfig")
            .field("image", &self.image.reference)
            .finish_non_exhaustive()
    }
}

/// 5 min, the default of users' present driver.
const PULL_TIMEOUT: Duration = Duration::from_secs(300);

/// The kernel's bound of cfs_period_us: 1 s.
const CFS_PERIOD_MAX_US: i64 = 1_000_000;
/// The kernel's other bound of cfs_period_us: 1 ms. Less is raised to it, as users' present driver does.
const CFS_PERIOD_MIN_US: i64 = 1000;

/// A mistake in the task's options.
#[derive(Debug, thiserror::Error)]
pub enum TaskConfigError {
    /// A value of the wrong type.
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
    /// A required option is not there.
    #[error("image name required: set image in the task's config")]
    NoImage,
    /// A duration or size that is none.
    #[error("{key}: {source}")]
    Unit {
        /// The option.
        key: &'static str,
        /// Why.
        source: UnitError,
    },
    /// A limit that is none.
    #[error(transparent)]
    Ulimit(#[from] RlimitError),
    /// A number outside of what is allowed.
    #[error("{key} = {value} is out of range: {min} to {max}")]
    Range {
        /// The option.
        key: String,
        /// What was written.
        value: i64,
        /// The least.
        min: i64,
        /// The most.
        max: i64,
    },
    /// A text that does not have the option's form.
    #[error("{key}: {text:?} is malformed, write {want}")]
    Malformed {
        /// The option.
        key: &'static str,
        /// What was written.
        text: String,
        /// The form.
        want: &'static str,
    },
    /// A value that this version does not act on.
    #[error("{key} = {value:?} is not supported yet: {way_out}")]
    Unsupported {
        /// The option.
        key: &'static str,
        /// What was written.
        value: String,
        /// What to write instead.
        way_out: &'static str,
    },
}

/// All mistakes of one task's options.
#[derive(Debug)]
pub struct TaskConfigErrors(pub Vec<TaskConfigError>);

impl std::fmt::Display for TaskConfigErrors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (index, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if index == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

impl std::error::Error for TaskConfigErrors {}

impl TaskConfig {
    /// Reads the options as StartTask brings them.
    ///
    /// # Errors
    /// All mistakes found.
    pub fn decode(msgpack: &[u8]) -> Result<Self, TaskConfigErrors> {
        let block = Block::decode(msgpack).map_err(|error| TaskConfigErrors(vec![error.into()]))?;
        Reader {
            block,
            errors: Vec::new(),
        }
        .read()
    }
}

/// Reads option by option and keeps each mistake.
struct Reader {
    block: Block,
    errors: Vec<TaskConfigError>,
}

impl Reader {
    fn read(mut self) -> Result<TaskConfig, TaskConfigErrors> {
        let task = TaskConfig {
            image: self.image(),
            command: self.command(),
            entrypoint: self.entrypoint(),
            working_dir: self.text("working_dir"),
            hostname: self.text("hostname"),
            init: self.flag("init"),
            init_path: self.text("init_path"),
            tty: self.flag("tty"),
            labels: self.keep(|block| block.string_map("labels")).unwrap_or_default(),
            socket: self.text("socket").unwrap_or_else(|| DEFAULT_SOCKET.to_owned()),
            storage: self.storage(),
            network: self.network(),
            limits: self.limits(),
            security: self.security(),
        };
        self.logging();
        for key in self.block.unknown() {
            tracing::debug!(key, "unknown task option");
        }
        if self.errors.is_empty() {
            Ok(task)
        } else {
            Err(TaskConfigErrors(self.errors))
        }
    }

    fn keep<T>(&mut self, get: impl FnOnce(&mut Block) -> Result<T, MsgpackError>) -> Option<T> {
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
        }
    }

    fn logging(&mut self) {
        let Some(Some(mut block)) = self.keep(|block| block.block("logging")) else {
            return;
        };
        let driver = block
            .string("driver")
            .map_err(|error| self.errors.push(error.into()))
            .ok()
            .flatten();
        let driver = driver
            .filter(|driver| !driver.is_empty())
            .unwrap_or_else(|| "nomad".to_owned());
        if driver != "nomad" {
            let way_out = "write \"nomad\", or leave it out";
            self.errors.push(TaskConfigError::Unsupported {
                key: "logging.driver",
                value: driver,
                way_out,
            });
        }
        let options = block
            .string_map("options")
            .map_err(|error| self.errors.push(error.into()))
            .unwrap_or_default();
        if let Some((option, _)) = options.into_iter().next() {
            let way_out = "the driver \"nomad\" has no options; use the task's logs block for rotation";
            self.errors.push(TaskConfigError::Unsupported {
                key: "logging.options",
                value: option,
                way_out,
            });
        }
    }
}

fn is_mac(text: &str) -> bool {
    let bytes: Vec<&str> = text.split([':', '-']).collect();
    bytes.len() == 6
        && bytes
            .iter()
            .all(|byte| byte.len() == 2 && byte.chars().all(|c| c.is_ascii_hexdigit()))
}

#[cfg(test)]
mod tests;
