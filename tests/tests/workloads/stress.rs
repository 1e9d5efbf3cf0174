//! stress-ng: a program for each call that a file system answers, all at once, each of which checks what it gets.

use std::fs;
use std::process::Command;

use tests::bounded_command::succeeded;
use tests::scratch_volume::ScratchVolume;
use tests::transport::io_uring;

use crate::programs;

/// Those of its class `filesystem` that check what they get and need no more than a file system.
const PROGRAMS: &[&str] = &[
    "access",
    "chdir",
    "chmod",
    "chown",
    "copy-file",
    "dentry",
    "dir",
    "dirdeep",
    "dirmany",
    "dup",
    "fallocate",
    "fcntl",
    "filename",
    "flock",
    "fpunch",
    "fsize",
    "fstat",
    "getdent",
    "hdd",
    "inotify",
    "iomix",
    "lease",
    "link",
    "locka",
    "lockf",
    "lockofd",
    "mknod",
    "open",
    "rename",
    "symlink",
    "sync-file",
    "touch",
    "utime",
    "xattr",
];

/// 16 MiB for each that fills files.
const BYTES: &[&str] = &["--hdd-bytes", "--iomix-bytes", "--fallocate-bytes", "--sync-file-bytes"];

/// 5 s.
const SECONDS: &str = "5";

#[test]
fn stress_ng_finds_no_call_that_answers_wrongly() {
    stress(ScratchVolume::new());
}

/// The same where the kernel reaches the program by io_uring.
#[test]
fn stress_ng_finds_no_call_that_answers_wrongly_by_io_uring() {
    if let Some(transport) = io_uring() {
        stress(ScratchVolume::on(transport));
    }
}

fn stress(mut scratch: ScratchVolume) {
    let Some([stress]) = programs(["stress-ng"]) else {
        return;
    };
    let mounted = scratch.mount();
    let mut command = Command::new(stress);
    for program in PROGRAMS {
        command.args([&format!("--{program}"), "1"]);
    }
    for option in BYTES {
        command.args([option, "16m"]);
    }
    command
        .args(["--verify", "--timeout", SECONDS, "--temp-path"])
        .arg(mounted.dir());
    command.current_dir(mounted.dir());
    let said = succeeded(&mut command);
    assert!(
        said.contains("successful run completed") && !said.contains("fail:"),
        "{said}"
    );
    let left: Vec<_> = fs::read_dir(mounted.dir()).expect("a listing").collect();
    assert!(left.is_empty(), "{left:?}");
    scratch.end(mounted);
}
