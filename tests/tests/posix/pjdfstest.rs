//! pjdfstest, the POSIX file system test suite, on a real mount.
//!
//! Goal: every case that this kernel and C library let it run passes; what it skips is named here with its reason. Method:
//! the suite as its authors publish it, with all its features on, as root, beside a folder on another file system.

use std::collections::BTreeSet;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use tests::bounded_command::finished;
use tests::s3_server::{installed, skip};
use tests::scratch_volume::ScratchVolume;
use tests::transport::io_uring;

/// How many cases the suite has in the version that `cargo xtask tools` installs.
const CASES: usize = 398;

/// What it cannot run on a FUSE mount: pathconf(3) of the C library answers _PC_LINK_MAX from a list of file systems that
/// it knows, and the suite skips the case where there is no answer.
const SKIPPED: &[&str] = &["link::link_count_max"];

/// Features that Linux has not, and so are not here: chflags, chflags_sf_snapshot and nfsv4_acls. The pause between two
/// changes whose times must differ is 50 ms: the kernel's own clock of file times ticks every 4 or 10 ms.
const CONFIGURATION: &str = r#"
[features]
posix_fallocate = {}
rename_ctime = {}
stat_st_birthtime = {}
utime_now = {}
utimensat = {}

[settings]
naptime = 0.05
allow_remount = ALLOW_REMOUNT

[dummy_auth]
entries = [["nobody", "nogroup"], ["daemon", "daemon"]]
"#;

/// What became of the cases.
#[derive(Debug, Default)]
struct Report {
    passed: usize,
    skipped: BTreeSet<String>,
    failed: Vec<String>,
    said: String,
}

/// The suite on one mount.
struct Suite {
    program: PathBuf,
    scratch: ScratchVolume,
}

impl Suite {
    /// `None`, with the reason said, where it cannot run.
    fn new(scratch: impl FnOnce() -> ScratchVolume) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            skip("pjdfstest needs root: it changes owners and becomes other users");
            return None;
        }
        let Some(program) = installed("pjdfstest") else {
            skip("pjdfstest is not installed (`cargo xtask tools` installs it)");
            return None;
        };
        Some(Self {
            program,
            scratch: scratch(),
        })
    }

    /// Runs the cases whose name contains `filter`, in one process.
    fn run(&self, dir: &Path, filter: &[&str], allow_remount: bool) -> Report {
        let folder = self.scratch.folder("pjdfstest");
        let configuration = folder.join("configuration.toml");
        let text = CONFIGURATION.replace("ALLOW_REMOUNT", if allow_remount { "true" } else { "false" });
        std::fs::write(&configuration, text).expect("a file on the local disk");
        let mut command = Command::new(&self.program);
        command.arg("-c").arg(configuration).arg("-p").arg(dir);
        command.arg("-s").arg(self.scratch.folder("another-file-system"));
        command
            .args(filter)
            .env("PATH", path_with_plain_mount(&folder))
            .env("NO_COLOR", "1");
        report(finished(&mut command).said)
    }
}

/// A mount(8) that asks the kernel alone, for it would run a helper program for the type of our mounts, `pannier`, which is
/// not on the PATH of a test; and that asks again for up to a minute: a file that was closed and unlinked a moment ago keeps
/// a FUSE mount from becoming read-only until its release has been answered.
const MOUNT: &str = r#"#!/bin/sh
tries=0
until said=$(/usr/bin/mount --internal-only "$@" 2>&1); do
    tries=$((tries + 1))
    [ "$tries" -lt 600 ] || { echo "$said" >&2; exit 32; }
    sleep 0.1
done
"#;

/// PATH with that mount(8) in front.
#[allow(
    clippy::disallowed_methods,
    reason = "a program under test gets our own PATH, and one folder more"
)]
fn path_with_plain_mount(folder: &Path) -> String {
    let programs = folder.join("bin");
    std::fs::create_dir_all(&programs).expect("a folder on the local disk");
    let script = programs.join("mount");
    std::fs::write(&script, MOUNT).expect("a file on the local disk");
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o755)).expect("a file of ours");
    format!("{}:{}", programs.display(), std::env::var("PATH").unwrap_or_default())
}

/// Reads what the suite prints: a line for each case, with its name and how it ended, and more lines where it failed.
fn report(said: String) -> Report {
    let mut report = Report::default();
    for line in said.lines().filter(|line| !line.starts_with(char::is_whitespace)) {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            [name, "ok"] if name.contains("::") => report.passed += 1,
            [name, "skipped"] if name.contains("::") => drop(report.skipped.insert(name.to_owned())),
            [name, "FAILED"] if name.contains("::") => report.failed.push(name.to_owned()),
            _ => {}
        }
    }
    report.said = said;
    report
}

/// A program that follows POSIX finds what POSIX promises: all cases pass, and none is left out by us.
#[test]
fn every_case_of_pjdfstest_passes() {
    every_case_passes(ScratchVolume::new);
}

/// The same where the kernel reaches the program by io_uring.
#[test]
fn every_case_of_pjdfstest_passes_by_io_uring() {
    if let Some(transport) = io_uring() {
        every_case_passes(|| ScratchVolume::on(transport));
    }
}

fn every_case_passes(scratch: impl FnOnce() -> ScratchVolume) {
    let Some(mut suite) = Suite::new(scratch) else { return };
    let mounted = suite.scratch.mount();
    // The suite itself leaves descriptors of unlinked files open, and a mount with such cannot become read-only: so those
    // cases that remount it have a process for themselves (tmpfs fails them in one process as well).
    let most = suite.run(mounted.dir(), &[], false);
    let remounting = suite.run(mounted.dir(), &["erofs"], true);
    assert_eq!(most.failed, Vec::<String>::new(), "{}", most.said);
    assert_eq!(remounting.failed, Vec::<String>::new(), "{}", remounting.said);
    let (erofs, skipped): (BTreeSet<_>, BTreeSet<_>) =
        most.skipped.into_iter().partition(|name| name.contains("erofs"));
    assert_eq!(
        skipped,
        SKIPPED.iter().map(|name| (*name).to_owned()).collect(),
        "{}",
        most.said
    );
    assert_eq!(remounting.skipped, BTreeSet::new(), "{}", remounting.said);
    assert_eq!(remounting.passed, erofs.len(), "{}", remounting.said);
    assert_eq!(most.passed + remounting.passed + skipped.len(), CASES, "{}", most.said);
    suite.scratch.end(mounted);
}
