//! Starts an engine process that outlives this plugin.
//!
//! Invariant: nothing that ends the plugin ends the engine. It gets a session of its own, no terminal or pipe of
//! ours, and it leaves the plugin's control group, because Nomad kills that group as a whole when the plugin's task
//! stops.
//! Callers: `engine.rs`. Absent: talking to it, and ending it.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use tracing::{info, warn};

/// How to start an engine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineCommand {
    /// The program, for example this very one.
    pub program: PathBuf,
    /// Its arguments; they name the socket.
    pub args: Vec<String>,
    /// Where its output goes. Created with mode 0600, appended to.
    pub log: PathBuf,
}

/// Where the control group of engines lies below the root of a version 2 hierarchy, or of the freezer of version 1.
/// Not below Nomad's slice: what lies there ends with a task.
const CGROUP: &str = "pannier-engine";

/// Starts the engine and returns its process id. It runs on when the caller ends.
///
/// # Errors
/// If the log cannot be opened or the program cannot be run.
pub(super) fn detached(command: &EngineCommand) -> io::Result<u32> {
    let log = open_log(&command.log)?;
    let mut process = Command::new(&command.program);
    process
        .args(&command.args)
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::from(log.try_clone()?))
        .stderr(Stdio::from(log))
        // The address of our own socket is not the engine's business.
        .env_remove("CSI_ENDPOINT");
    // SAFETY: between fork and exec only setsid(2) is called, which is async-signal-safe, allocates nothing and takes
    // no lock.
    unsafe {
        process.pre_exec(|| nix::unistd::setsid().map(drop).map_err(io::Error::from));
    }
    let mut child = process.spawn()?;
    let pid = child.id();
    leave_group(pid);
    info!(pid, program = %command.program.display(), log = %command.log.display(), "started an engine");
    // Collected when it ends, so that no dead entry stays in the process table while this plugin lives.
    std::thread::Builder::new()
        .name("engine-reaper".into())
        .spawn(move || match child.wait() {
            Ok(status) => warn!(pid, %status, "the engine ended"),
            Err(error) => warn!(pid, %error, "the engine cannot be waited for"),
        })?;
    Ok(pid)
}

fn open_log(path: &Path) -> io::Result<File> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent)?;
    }
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

/// Best effort: without the right to move it the engine still runs, and ends with the plugin's task.
fn leave_group(pid: u32) {
    for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/freezer"] {
        if !Path::new(root).join("cgroup.procs").exists() {
            continue;
        }
        let group = Path::new(root).join(CGROUP);
        let moved = fs::create_dir_all(&group).and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
        if let Err(error) = moved {
            warn!(pid, group = %group.display(), %error, "the engine stays in the plugin's control group and may end with it");
        }
    }
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
            log: log.clone(),
        };
        let pid = detached(&command).unwrap();
        let until = std::time::Instant::now() + std::time::Duration::from_secs(10);
        while !done.exists() {
            assert!(std::time::Instant::now() < until, "the shell wrote nothing");
            std::thread::yield_now();
        }
        let text = fs::read_to_string(&log).unwrap();
        assert!(text.contains("oops"), "{text}");
        // Field 6 of stat(5) is the session; field 2 is a name without spaces here.
        let session = text.split(' ').nth(5).unwrap();
        assert_eq!(session, pid.to_string());
        use std::os::unix::fs::PermissionsExt;
        assert_eq!(fs::metadata(&log).unwrap().permissions().mode() & 0o777, 0o600);
    }
}
