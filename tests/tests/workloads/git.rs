//! git: a history, its clone over git's own protocol, gc and fsck, before and after the volume came from the bucket.

use std::path::Path;
use std::process::Command;

use tests::bounded_command::succeeded;
use tests::calls::pattern;
use tests::scratch_volume::ScratchVolume;

use crate::programs;

/// Commits, each of which changes a third of the files.
const COMMITS: usize = 8;

/// Files of a few KiB, in folders of ten.
const FILES: usize = 150;

fn git(program: &Path, dir: &Path, arguments: &[&str]) -> String {
    let mut command = Command::new(program);
    command.arg("-C").arg(dir);
    // Nothing of the machine's own settings; every object synced, as a careful user has it.
    command
        .env_remove("GIT_DIR")
        .env_remove("GIT_WORK_TREE")
        .env_remove("GIT_INDEX_FILE");
    command
        .env("GIT_CONFIG_NOSYSTEM", "1")
        .env("GIT_CONFIG_GLOBAL", "/dev/null");
    for setting in [
        "user.name=A",
        "user.email=a@example.org",
        "core.fsync=all",
        "safe.directory=*",
        "gc.auto=0",
    ] {
        command.args(["-c", setting]);
    }
    succeeded(command.args(arguments))
}

fn is_whole(program: &Path, dir: &Path) {
    let said = git(program, dir, &["fsck", "--full", "--strict", "--no-progress"]);
    assert!(!said.contains("error") && !said.contains("missing"), "{said}");
    assert_eq!(
        git(program, dir, &["status", "--porcelain"]),
        "",
        "the work tree is what was committed"
    );
    assert_eq!(
        git(program, dir, &["rev-list", "--count", "HEAD"]).trim(),
        COMMITS.to_string()
    );
}

#[test]
fn git_commits_clones_collects_and_finds_all_whole() {
    let Some([program]) = programs(["git"]) else { return };
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let (first, clone) = (mounted.dir().join("first"), mounted.dir().join("clone"));
    std::fs::create_dir(&first).unwrap();
    git(&program, &first, &["init", "--quiet", "--initial-branch=main"]);
    for commit in 0..COMMITS {
        for file in (0..FILES).filter(|file| commit == 0 || file % 3 == commit % 3) {
            let folder = first.join(format!("folder-{}", file / 10));
            std::fs::create_dir_all(&folder).unwrap();
            std::fs::write(
                folder.join(format!("{file}")),
                pattern(200 + file * 31, (commit * FILES + file) as u64),
            )
            .unwrap();
        }
        git(&program, &first, &["add", "--all"]);
        git(&program, &first, &["commit", "--quiet", "--message", "one more"]);
    }
    is_whole(&program, &first);
    // Not the short cut by hard links that a local clone takes.
    git(
        &program,
        mounted.dir(),
        &["clone", "--quiet", "--no-local", "first", "clone"],
    );
    git(&program, &first, &["gc", "--quiet", "--prune=now"]);
    git(&program, &clone, &["repack", "-a", "-d", "--quiet"]);
    is_whole(&program, &first);
    is_whole(&program, &clone);
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    is_whole(&program, &first);
    is_whole(&program, &clone);
    let copy = scratch.folder("local").join("copy");
    git(
        &program,
        mounted.dir(),
        &["clone", "--quiet", "--no-local", "clone", copy.to_str().expect("UTF-8")],
    );
    is_whole(&program, &copy);
    assert!(mounted.unmount().success(), "a clean unmount");
}
