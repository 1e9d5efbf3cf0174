//! Starts an engine process that outlives this plugin.
//!
//! Invariant: nothing that ends the plugin ends the engine. It gets a session of its own, no terminal or pipe of
//! ours, and it leaves the plugin's control groups, because Nomad kills what is in them when the plugin's task stops, and
//! their limits are meant for the plugin.
//! Callers: `engine.rs`. Absent: talking to it, and ending it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use tracing::{info, warn};

use crate::mountinfo::{self, MountPoint};

/// How to start an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineCommand {
    /// The program, for example this very one.
    pub program: PathBuf,
    /// Its arguments; they name the socket.
    pub args: Vec<String>,
    /// The arguments that let a keeper do the same in place of the engine that it has; empty for an engine without.
    pub replacing: Vec<String>,
    /// Where its output goes. Created with mode 0600, appended to.
    pub log: PathBuf,
}

impl EngineCommand {
    /// What starts an engine of `program` that listens at `socket` and keeps its state at `state`, with `more` arguments of its own, by
    /// way of a keeper or not.
    pub fn new((program, socket): (PathBuf, &Path), (state, more): (&Path, &[String]), by_keeper: bool) -> Self {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let log = state.join("engine.log");
        let options = [("--socket", socket), ("--log-file", &log), ("--state-dir", state)];
        let options = options.into_iter().flat_map(|(name, path)| [name.into(), text(path)]);
        let options: Vec<String> = options.chain(more.iter().cloned()).collect();
        let by = |words: &[&str]| [words.iter().map(|word| (*word).to_owned()).collect(), options.clone()].concat();
        let socket = text(socket);
        let (args, replacing) = match by_keeper {
            true => (
                by(&["keeper", "--socket", &socket, "--"]),
                by(&["keeper", "--socket", &socket, "--replace-engine", "--"]),
            ),
            false => (by(&["engine"]), Vec::new()),
        };
        Self {
            program,
            args,
            replacing,
            log,
        }
    }
}

/// 10 s for a keeper to start an engine; it is not waited for until that one serves.
const REPLACED_MAX: Duration = Duration::from_secs(10);

/// Where the control group of engines lies below the root of a version 2 hierarchy.
const CGROUP: &str = "pannier-engine";

/// Starts the engine and returns its process id. It runs on when the caller ends; `ended` is called if it ends before.
///
/// # Errors
/// If the log cannot be opened or the program cannot be run.
pub(super) fn detached(command: &EngineCommand, ended: impl FnOnce() + Send + 'static) -> io::Result<u32> {
    let log = open_log(&command.log)?;
    let mut process = Command::new(&command.program);
    process
        .args(&command.args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        // The address of our own socket is not the engine's business, nor is what a service manager has said to Nomad.
        .env_remove("CSI_ENDPOINT")
        .env_remove("NOTIFY_SOCKET");
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe, allocates nothing and takes
    // no lock.
    unsafe {
        process.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
    let mut child = process.spawn()?;
    let pid = child.id();
    match mountinfo::of_this_process() {
        Ok(table) => leave_groups(pid, &hierarchies(&table)),
        Err(error) => warn!(pid, %error, "the engine stays in the plugin's control groups"),
    }
    info!(pid, program = %command.program.display(), log = %command.log.display(), "started an engine");
    // Collected when it ends, so that no dead entry stays in the process table while this plugin lives.
    std::thread::Builder::new()
        .name("engine-reaper".into())
        .spawn(move || {
            match child.wait() {
                Ok(status) => warn!(pid, %status, "the engine ended"),
                Err(error) => warn!(pid, %error, "the engine cannot be waited for"),
            }
            ended();
        })?;
    Ok(pid)
}

/// Asks the keeper for an engine of this command in place of the one that serves. Returns when it is started, or refused.
///
/// # Errors
/// `Unsupported` for a command without a keeper; `Other` with the words of one that refuses, `TimedOut`.
pub(super) async fn replaced(command: &EngineCommand) -> io::Result<()> {
    if command.replacing.is_empty() {
        let detail = "this plugin's engines have no keeper";
        return Err(io::Error::new(io::ErrorKind::Unsupported, detail));
    }
    let asked = tokio::process::Command::new(&command.program)
        .args(&command.replacing)
        .current_dir("/")
        .stdin(Stdio::null())
        .kill_on_drop(true)
        .output();
    let output = tokio::time::timeout(REPLACED_MAX, asked)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    match output.status.success() {
        true => Ok(()),
        false => Err(io::Error::other(
            String::from_utf8_lossy(&output.stderr).trim().to_owned(),
        )),
    }
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Moves the process out of the plugin's control groups: all of them, since each holds something that must not be the
/// engine's: the freezer's is killed as a whole, memory's limit is the plugin's, and so is the processor's.
///
/// Best effort: without the right to move it the engine still runs, and may end with the plugin's task.
fn leave_groups(pid: u32, hierarchies: &[Hierarchy]) {
    for hierarchy in hierarchies {
        let (Hierarchy::One(root) | Hierarchy::Two(root)) = hierarchy;
        let moved = hierarchy.engines_group().and_then(|group| move_to(pid, &group));
        if let Err(error) = moved {
            warn!(pid, hierarchy = %root.display(), %error, "the engine stays in the plugin's control group: its limits are the engine's, and it may end with it");
        }
    }
}

fn move_to(pid: u32, group: &Path) -> io::Result<()> {
    fs::write(group.join("cgroup.procs"), pid.to_string())
}

/// A mounted hierarchy of control groups, by its root.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Hierarchy {
    /// Version 1: a set of controllers.
    One(PathBuf),
    /// Version 2.
    Two(PathBuf),
}

impl Hierarchy {
    /// Where engines belong: the root in version 1 (a new group there would need its processors and memory nodes set first), a
    /// group of their own, without limits, in version 2. Not below Nomad's slice: what lies there ends with a task.
    fn engines_group(&self) -> io::Result<PathBuf> {
        match self {
            Self::One(root) => Ok(root.clone()),
            Self::Two(root) => {
                let group = root.join(CGROUP);
                fs::create_dir_all(&group)?;
                Ok(group)
            }
        }
    }
}

/// The hierarchies among what is mounted. Of one that is mounted twice both are named: moving a
/// process twice changes nothing.
fn hierarchies(table: &[MountPoint]) -> Vec<Hierarchy> {
    let of_mount = |mount: &MountPoint| match mount.fs_type.as_str() {
        "cgroup" => Some(Hierarchy::One(mount.path.clone())),
        "cgroup2" => Some(Hierarchy::Two(mount.path.clone())),
        _ => None,
    };
    table.iter().filter_map(of_mount).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: the engine's session is its own and its output goes to its log. Method: a shell plays the engine.
    #[test]
    fn an_engine_runs_in_a_session_of_its_own_and_writes_its_own_log() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log/engine.log");
        let done = dir.path().join("done");
        let script = format!("cat /proc/self/stat; echo oops >&2; : > {}", done.display());
        let command = EngineCommand {
            program: "/bin/sh".into(),
            args: vec!["-c".into(), script],
            replacing: Vec::new(),
            log: log.clone(),
        };
        let (told, heard) = std::sync::mpsc::channel();
        let pid = detached(&command, move || told.send(()).unwrap()).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !done.exists() {
            assert!(std::time::Instant::now() < until, "the shell wrote nothing");
            std::thread::yield_now();
        }
        heard
            .recv_timeout(std::time::Duration::from_secs(10))
            .expect("its end is told");
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("oops"), "{text}");
        // Field 6 of stat(5) is the session; field 2 is a name without spaces here.
        let session = text.split(' ').nth(5).unwrap();
        assert_eq!(session, pid.to_string());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    }
    #[test]
    fn hierarchies_of_both_versions_are_found_and_nothing_else() {
        let table = b"31 23 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755\n\
                      35 31 0:32 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw\n\
                      42 31 0:39 / /mnt/cgroup rw - ext4 /dev/sda rw\n";
        let found = hierarchies(&mountinfo::parse(table).unwrap());
        let one = Hierarchy::One("/sys/fs/cgroup/memory".into());
        let two = Hierarchy::Two("/sys/fs/cgroup/unified".into());
        assert_eq!(found, [one, two]);
    }

    /// Goal: an engine has no limit of the plugin's task. Method: a process in a group of its own with a limit, in each
    /// hierarchy where this test may make one, is moved as an engine is.
    #[test]
    fn an_engine_leaves_every_control_group_of_the_plugin() {
        let all = hierarchies(&mountinfo::of_this_process().unwrap());
        let name = format!("pannier-test-{}", std::process::id());
        let limited = |root: &Path| (root.ends_with("memory") || root.ends_with("freezer")).then(|| root.join(&name));
        let mut groups = Vec::new();
        for hierarchy in &all {
            let (Hierarchy::One(root) | Hierarchy::Two(root)) = hierarchy;
            let group = match hierarchy {
                Hierarchy::One(root) => limited(root),
                Hierarchy::Two(root) => Some(root.join(&name)),
            };
            if let Some(group) = group.filter(|group| fs::create_dir(group).is_ok()) {
                groups.push((root.clone(), group));
            }
        }
        if groups.is_empty() {
            #[expect(clippy::disallowed_macros, reason = "a skipped test says why on its own output")]
            {
                println!("skipped: no control group can be made here (it needs root)");
            }
            return;
        }
        let mut child = Command::new("/bin/sh")
            .args(["-c", "read line"])
            .stdin(Stdio::piped())
            .spawn()
            .unwrap();
        let placed: Vec<_> = groups
            .iter()
            .filter(|(_, group)| move_to(child.id(), group).is_ok())
            .collect();
        leave_groups(child.id(), &all);
        let left: Vec<String> = placed
            .iter()
            .map(|(_, group)| fs::read_to_string(group.join("cgroup.procs")).unwrap())
            .collect();
        drop(child.stdin.take());
        child.wait().unwrap();
        for (_, group) in &groups {
            fs::remove_dir(group).unwrap();
        }
        assert!(!placed.is_empty(), "root may move a process of its own");
        assert!(left.iter().all(String::is_empty), "still there: {left:?}");
    }
}
