//! A Podman service for one run of ours, on a machine that may never have run a container: with its own storage,
//! network, sockets and mount namespace, and nothing of it left afterwards.
//!
//! Two facts of small hosts without systemd stand in the way of containers: a private `/`, through which no volume
//! mounted later would reach a container, and a cgroup2 mount beside v1 hierarchies, which crun refuses. The first is
//! met by making the run's own directory a shared mount, the second inside the service's mount namespace only.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use csi_driver::mountinfo;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::process::{Child, Command};

/// 30 s: on two busy cores a service was seen to take three seconds until it listens.
const START_MAX: Duration = Duration::from_secs(30);

/// 20 s for everything that belongs to the service to end after it was told to.
const STOP_MAX: Duration = Duration::from_secs(20);

/// 20 ms between two looks.
const POLL: Duration = Duration::from_millis(20);

/// 50 bytes: the longest path that Podman takes for its run-time state, because unix sockets lie below it.
const RUNROOT_BYTES_MAX: usize = 50;

/// netavark, one at a time on this machine: it waits up to a minute for its turn.
const NETAVARK_ALONE: &str = "#!/bin/sh
for netavark in /usr/lib/podman/netavark /usr/libexec/podman/netavark; do
    [ -x \"$netavark\" ] && exec flock --close --wait 60 /run/lock/pannier-netavark \"$netavark\" \"$@\"
done
echo 'netavark is not installed; on Debian: apt-get install netavark' >&2
exit 127
";

/// Why the machine could not be prepared, and what would help.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// A program is not installed.
    #[error("{program} is not installed; on Debian: apt-get install podman crun conmon netavark iptables")]
    NotInstalled {
        /// The program.
        program: &'static str,
    },
    /// The Podman socket that was named does not answer.
    #[error(
        "no Podman service answers at {socket}: {source}; start it with `podman system service -t 0 unix://{socket}`"
    )]
    NoService {
        /// The socket.
        socket: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
    /// Our own service did not come up.
    #[error("podman system service did not come up; it says: {log}")]
    Service {
        /// Its output.
        log: String,
    },
    /// Podman refuses long paths for its run-time state.
    #[error(
        "the path {path} is too long: Podman takes at most {RUNROOT_BYTES_MAX} bytes there; use a shorter state directory"
    )]
    TooLong {
        /// The path.
        path: PathBuf,
    },
    /// A system call or file failed.
    #[error("cannot {what} {path}: {source}")]
    System {
        /// What was tried.
        what: &'static str,
        /// On what.
        path: PathBuf,
        /// The system's words.
        #[source]
        source: io::Error,
    },
}

/// A prepared machine. `undo` takes it all back.
#[derive(Debug)]
pub struct HostSetup {
    socket: PathBuf,
    service: Option<Service>,
    shared: Option<PathBuf>,
}

#[derive(Debug)]
struct Service {
    child: Child,
    dir: PathBuf,
}

impl HostSetup {
    /// Makes `state_dir` a place whose mounts reach containers, and starts a Podman service below it unless the socket of
    /// a running one is given.
    ///
    /// # Errors
    /// Each says what is missing and how to get it.
    pub async fn prepare(state_dir: &Path, socket: Option<&Path>) -> Result<Self, HostError> {
        let mut setup = Self {
            socket: PathBuf::new(),
            service: None,
            shared: None,
        };
        let result = setup.bring_up(state_dir, socket).await;
        match result {
            Ok(()) => Ok(setup),
            Err(error) => {
                setup.undo().await;
                Err(error)
            }
        }
    }

    /// The socket of the Podman service.
    pub fn podman_socket(&self) -> &Path {
        &self.socket
    }

    /// The command line that speaks to this service: program and first arguments.
    pub fn podman_command(&self) -> Vec<String> {
        [
            "podman",
            "--remote",
            "--url",
            &format!("unix://{}", self.socket.display()),
        ]
        .map(str::to_owned)
        .to_vec()
    }

    /// Removes the service's containers, ends it and all that belongs to it, and unmounts.
    pub async fn undo(mut self) {
        if let Some(mut service) = self.service.take() {
            let podman = self.podman_command();
            let mut remove = Command::new(&podman[0]);
            remove
                .args(&podman[1..])
                .args(["rm", "--all", "--force", "--time", "0"]);
            remove
                .stdin(Stdio::null())
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .kill_on_drop(true);
            drop(tokio::time::timeout(STOP_MAX, remove.status()).await);
            drop(service.child.kill().await);
            end_all_of(&service.dir).await;
            drop(std::fs::remove_dir_all(&service.dir));
        }
        if let Some(dir) = self.shared.take() {
            let _ = umount2(&dir, MntFlags::MNT_DETACH);
        }
    }

    async fn bring_up(&mut self, state_dir: &Path, socket: Option<&Path>) -> Result<(), HostError> {
        if !is_shared(state_dir)? {
            share(state_dir)?;
            self.shared = Some(state_dir.to_owned());
        }
        if let Some(socket) = socket {
            std::os::unix::net::UnixStream::connect(socket).map_err(|source| HostError::NoService {
                socket: socket.to_owned(),
                source,
            })?;
            socket.clone_into(&mut self.socket);
            return Ok(());
        }
        for program in ["podman", "conmon", "crun"] {
            if !["/usr/bin", "/usr/local/bin", "/bin"]
                .iter()
                .any(|dir| Path::new(dir).join(program).exists())
            {
                return Err(HostError::NotInstalled { program });
            }
        }
        let dir = state_dir.join("podman");
        self.socket = dir.join("podman.sock");
        let runroot = dir.join("run");
        if runroot.as_os_str().len() > RUNROOT_BYTES_MAX {
            return Err(HostError::TooLong { path: runroot });
        }
        configure(&dir)?;
        let child = launch(&dir, &self.socket)?;
        self.service = Some(Service {
            child,
            dir: dir.clone(),
        });
        let deadline = tokio::time::Instant::now() + START_MAX;
        while tokio::net::UnixStream::connect(&self.socket).await.is_err() {
            let ended = self
                .service
                .as_mut()
                .is_some_and(|service| !matches!(service.child.try_wait(), Ok(None)));
            if ended || tokio::time::Instant::now() > deadline {
                let log = std::fs::read_to_string(dir.join("service.log")).unwrap_or_default();
                return Err(HostError::Service {
                    log: log.trim().to_owned(),
                });
            }
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }
}

/// Whether mounts below `dir` propagate: the mount that it lies on is in a peer group.
fn is_shared(dir: &Path) -> Result<bool, HostError> {
    let table = mountinfo::of_this_process().map_err(|source| system("read", Path::new(mountinfo::TABLE), source))?;
    let real = dir.canonicalize().map_err(|source| system("resolve", dir, source))?;
    Ok(mountinfo::holding(&table, &real).is_some_and(|mount| mount.shared))
}

/// Mounts a directory on itself, as a peer group of its own.
fn share(dir: &Path) -> Result<(), HostError> {
    let done = mount(Some(dir), dir, None::<&str>, MsFlags::MS_BIND, None::<&str>)
        .and_then(|()| mount(None::<&str>, dir, None::<&str>, MsFlags::MS_SHARED, None::<&str>));
    done.map_err(|errno| system("share the mounts of", dir, errno.into()))
}

/// The service's own configuration and network.
///
/// netavark keeps its firewall rules in chains that are named after networks, and locks them by configuration folder. A
/// network named like another service's would lose its rules when that one's last container ends, and two services that
/// change the tables at once fail each other: so the network has a name of its own, and all our services one lock.
fn configure(dir: &Path) -> Result<(), HostError> {
    let (networks, helpers) = (dir.join("networks"), dir.join("helpers"));
    for folder in [&networks, &helpers] {
        std::fs::create_dir_all(folder).map_err(|source| system("make", folder, source))?;
    }
    let write =
        |path: PathBuf, text: String| std::fs::write(&path, text).map_err(|source| system("write", &path, source));
    // 10.127.0.0/16 as 256 networks: two runs at once meet only if their process ids are equal in the last byte.
    let number = std::process::id() % 256;
    let name = format!("pannier{number}");
    let containers_conf = format!(
        "[engine]\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"file\"\nlock_type = \"file\"\n\
         helper_binaries_dir = [{:?}, \"/usr/lib/podman\", \"/usr/libexec/podman\"]\n\
         [network]\ndefault_network = \"{name}\"\n\
         [containers]\nlog_driver = \"k8s-file\"\n",
        helpers.display().to_string()
    );
    write(dir.join("containers.conf"), containers_conf)?;
    let program = helpers.join("netavark");
    write(program.clone(), NETAVARK_ALONE.to_owned())?;
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755))
        .map_err(|source| system("make executable", &program, source))?;
    let network = serde_json::json!({
        "name": name,
        "id": format!("{number:064x}"),
        "driver": "bridge",
        "network_interface": name,
        "created": "2023-01-01T00:00:00Z",
        "subnets": [{ "subnet": format!("10.127.{number}.0/24"), "gateway": format!("10.127.{number}.1") }],
        "ipv6_enabled": false,
        "internal": false,
        "dns_enabled": false,
        "ipam_options": { "driver": "host-local" },
    });
    write(networks.join(format!("{name}.json")), network.to_string())
}

fn launch(dir: &Path, socket: &Path) -> Result<Child, HostError> {
    let log_path = dir.join("service.log");
    let log = std::fs::File::create(&log_path).map_err(|source| system("make", &log_path, source))?;
    let log_too = log.try_clone().map_err(|source| system("share", &log_path, source))?;
    let mut command = std::process::Command::new("podman");
    for (option, place) in [
        ("--root", "root"),
        ("--runroot", "run"),
        ("--tmpdir", "tmp"),
        ("--network-config-dir", "networks"),
    ] {
        command.arg(option).arg(dir.join(place));
    }
    command
        .args(["system", "service", "-t", "0"])
        .arg(format!("unix://{}", socket.display()))
        .env("CONTAINERS_CONF", dir.join("containers.conf"))
        .stdin(Stdio::null())
        .stdout(log)
        .stderr(log_too)
        // Ctrl-C at our terminal must not reach it: its containers are stopped first, in order.
        .process_group(0);
    let hybrid = Path::new("/sys/fs/cgroup/unified/cgroup.controllers").exists();
    // SAFETY: between fork and exec only system calls are made, with constant arguments; nothing is allocated.
    unsafe {
        command.pre_exec(move || own_mounts(hybrid));
    }
    let mut command = Command::from(command);
    command
        .kill_on_drop(true)
        .spawn()
        .map_err(|source| system("run", Path::new("podman"), source))
}

/// A mount namespace that sees what is mounted in ours later, and in which crun finds cgroups as it wants them.
fn own_mounts(hybrid: bool) -> io::Result<()> {
    unshare(CloneFlags::CLONE_NEWNS)?;
    mount(
        None::<&str>,
        "/",
        None::<&str>,
        MsFlags::MS_REC | MsFlags::MS_SLAVE,
        None::<&str>,
    )?;
    if hybrid {
        umount2("/sys/fs/cgroup/unified", MntFlags::MNT_DETACH)?;
    }
    Ok(())
}

/// Ends each process whose command line names the service's directory: conmons and their clean-ups.
async fn end_all_of(dir: &Path) {
    let needle = dir.display().to_string();
    let deadline = tokio::time::Instant::now() + STOP_MAX;
    loop {
        let pids = processes_naming(&needle);
        if pids.is_empty() || tokio::time::Instant::now() > deadline {
            return;
        }
        for pid in pids {
            let _ = kill(pid, Signal::SIGKILL);
        }
        tokio::time::sleep(POLL).await;
    }
}

fn processes_naming(needle: &str) -> Vec<Pid> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok())
        .filter(|pid| *pid != std::process::id().cast_signed())
        .filter(|pid| {
            std::fs::read(format!("/proc/{pid}/cmdline"))
                .is_ok_and(|line| String::from_utf8_lossy(&line).contains(needle))
        })
        .map(Pid::from_raw)
        .collect()
}

fn system(what: &'static str, path: &Path, source: io::Error) -> HostError {
    HostError::System {
        what,
        path: path.to_owned(),
        source,
    }
}
