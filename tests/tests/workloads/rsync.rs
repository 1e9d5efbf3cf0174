//! rsync -aHAXS: a tree with all that a file system can keep goes to the volume, comes back from the bucket, and is the same.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tests::bounded_command::succeeded;
use tests::calls::{c, done, pattern, set_xattr};
use tests::scratch_volume::ScratchVolume;

use crate::programs;

/// Everything that rsync knows how to keep.
const KEEP_ALL: &[&str] = &["-aHAXS", "--numeric-ids", "--delete"];

/// A tree with hard and symbolic links, owners, modes, times before 1970 and with nanoseconds, attributes, lists, holes,
/// pipes and devices.
fn make_tree(dir: &Path) {
    for number in 0..60usize {
        let folder = dir.join(format!("folder-{}", number / 20));
        fs::create_dir_all(&folder).expect("a folder");
        fs::write(
            folder.join(format!("{number}")),
            pattern(number * number * 40, number as u64),
        )
        .expect("a file");
    }
    let file = |name: &str| dir.join("folder-1").join(name);
    fs::hard_link(file("20"), dir.join("hard")).expect("a link");
    symlink("folder-1/21", dir.join("soft")).expect("a link");
    symlink("nowhere", dir.join("dangling")).expect("a link");
    std::os::unix::fs::chown(file("22"), Some(1234), Some(5678)).expect("root gives files away");
    fs::set_permissions(file("23"), fs::Permissions::from_mode(0o6751)).expect("a mode");
    set_xattr(&file("24"), "user.note", &pattern(3_000, 1), 0).expect("an attribute");
    set_xattr(&file("24"), "trusted.note", b"of root", 0).expect("an attribute");
    let holed = File::create(file("holed")).expect("a file");
    holed.write_all_at(b"far", 30_000_000).expect("written");
    for (path, sec, nsec) in [(file("25"), -5, 250_000_000), (file("26"), 1_700_000_000, 123_456_789)] {
        let time = libc::timespec {
            tv_sec: sec,
            tv_nsec: nsec,
        };
        // SAFETY: the path ends in NUL and the two times are two times.
        done(i64::from(unsafe {
            libc::utimensat(libc::AT_FDCWD, c(&path).as_ptr(), [time, time].as_ptr(), 0)
        }))
        .expect("times");
    }
    let (pipe, device) = (c(&dir.join("pipe")), c(&dir.join("device")));
    // SAFETY: both paths end in NUL and live through the calls.
    unsafe {
        done(i64::from(libc::mkfifo(pipe.as_ptr(), 0o640))).expect("a pipe");
        done(i64::from(libc::mknod(
            device.as_ptr(),
            libc::S_IFCHR | 0o600,
            libc::makedev(250, 9),
        )))
        .expect("a device");
    }
    succeeded(Command::new("setfacl").args(["-m", "u:1234:rw,g:77:r"]).arg(file("27")));
    succeeded(
        Command::new("setfacl")
            .args(["-d", "-m", "u:1234:rwx"])
            .arg(dir.join("folder-2")),
    );
    fs::write(file(&"n".repeat(255)), "a long name").expect("a file");
}

/// Nothing of `from` would have to be copied to `to`, by content and by everything else.
fn is_same(rsync: &Path, from: &Path, to: &Path) {
    let mut command = Command::new(rsync);
    command
        .args(KEEP_ALL)
        .args(["--checksum", "--dry-run", "--itemize-changes"]);
    let differs = succeeded(command.arg(format!("{}/", from.display())).arg(to));
    assert_eq!(
        differs,
        "",
        "what differs between {} and {}",
        from.display(),
        to.display()
    );
}

fn copy(rsync: &Path, from: &Path, to: &Path) {
    succeeded(
        Command::new(rsync)
            .args(KEEP_ALL)
            .arg(format!("{}/", from.display()))
            .arg(to),
    );
}

#[test]
fn rsync_brings_back_what_it_brought() {
    let Some([rsync, _, _]) = programs(["rsync", "setfacl", "setfattr"]) else {
        return;
    };
    if !nix::unistd::geteuid().is_root() {
        return tests::s3_server::skip("only root gives files away and makes devices");
    }
    let mut scratch = ScratchVolume::new();
    let (source, back) = (scratch.folder("source"), scratch.folder("back"));
    make_tree(&source);
    let mounted = scratch.mount();
    let volume = mounted.dir().join("tree");
    copy(&rsync, &source, &volume);
    is_same(&rsync, &source, &volume);
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    is_same(&rsync, &source, &volume);
    copy(&rsync, &volume, &back);
    is_same(&rsync, &source, &back);
    assert!(mounted.unmount().success(), "a clean unmount");
}
