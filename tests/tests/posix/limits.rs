//! How much of everything fits, and what is said when it does not: names, depth, attributes, lengths, space.

use std::ffi::OsStr;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, chown, symlink};
use std::process::Command;

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};
use tests::bounded_command::succeeded;
use tests::calls::{errno, fallocate, get_xattr, names, pattern, set_xattr};
use tests::scratch_volume::ScratchVolume;

/// Names are bytes: all but NUL and '/', up to 255 of them, a hundred levels deep.
#[test]
fn names_are_any_255_bytes_at_any_depth() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let every_byte: Vec<u8> = (1..=255).filter(|byte| *byte != b'/').collect();
    let odd = mounted.dir().join(OsStr::from_bytes(&every_byte));
    fs::write(&odd, "odd").unwrap();
    let refused = fs::write(mounted.dir().join("x".repeat(256)), "");
    assert_eq!(errno(refused), libc::ENAMETOOLONG);

    // Deeper than a path can be long, as rm -r and tar find their way: from folder to folder.
    let (level, flags) = ("d".repeat(255), OFlag::O_DIRECTORY | OFlag::O_CLOEXEC);
    let top = || -> OwnedFd { File::open(mounted.dir()).expect("the mount").into() };
    let down = |dir: OwnedFd| openat(&dir, level.as_str(), flags, Mode::empty()).expect("a level");
    let bottom = (0..100).fold(top(), |dir, _| {
        mkdirat(&dir, level.as_str(), Mode::S_IRWXU).unwrap();
        down(dir)
    });
    let write = OFlag::O_CREAT | OFlag::O_WRONLY | OFlag::O_CLOEXEC;
    File::from(openat(&bottom, "deep", write, Mode::S_IRWXU).unwrap())
        .write_all(b"down")
        .unwrap();
    drop(bottom);
    assert!(mounted.unmount().success(), "a clean unmount");

    let mounted = scratch.mount();
    assert_eq!(fs::read(&odd).unwrap(), b"odd");
    let top: OwnedFd = File::open(mounted.dir()).unwrap().into();
    let bottom = (0..100).fold(top, |dir, _| down(dir));
    let deep = File::from(openat(&bottom, "deep", OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()).unwrap());
    assert_eq!(deep.metadata().unwrap().len(), 4);
    drop((bottom, deep));
    fs::remove_dir_all(mounted.dir().join(&level)).unwrap();
    fs::remove_file(&odd).unwrap();
    assert_eq!(names(mounted.dir()), Vec::<String>::new());
}

/// xattr(7): values of 64 KiB, names of 255 bytes, 64 KiB of names for each file; files, folders and links.
#[test]
fn extended_attributes_go_up_to_what_linux_allows() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let (file, folder, link) = (
        mounted.dir().join("f"),
        mounted.dir().join("d"),
        mounted.dir().join("l"),
    );
    fs::write(&file, "").unwrap();
    fs::create_dir(&folder).unwrap();
    symlink("nowhere", &link).unwrap();
    let name = |number: usize| format!("user.{number:0>250}");
    set_xattr(&file, &name(0), &pattern(65_536, 1), 0).unwrap();
    assert_eq!(errno(set_xattr(&file, &name(0), &pattern(65_537, 1), 0)), libc::E2BIG);
    assert_eq!(errno(set_xattr(&file, &format!("{}x", name(0)), b"", 0)), libc::ERANGE);
    for number in 1..256 {
        set_xattr(&file, &name(number), b"", 0).unwrap();
    }
    assert_eq!(errno(set_xattr(&file, &name(256), b"", 0)), libc::ENOSPC);
    set_xattr(&folder, "user.of", b"a folder", 0).unwrap();
    set_xattr(&link, "trusted.of", b"a link", 0).unwrap();
    assert_eq!(errno(set_xattr(&link, "user.of", b"a link", 0)), libc::EPERM);
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    assert!(get_xattr(&file, &name(0)).unwrap() == pattern(65_536, 1));
    assert_eq!(get_xattr(&file, &name(255)).unwrap(), b"");
    assert_eq!(get_xattr(&folder, "user.of").unwrap(), b"a folder");
    assert_eq!(get_xattr(&link, "trusted.of").unwrap(), b"a link");
    let listed = Command::new("getfattr")
        .args(["-h", "-m", "."])
        .arg(&file)
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&listed.stdout)
            .lines()
            .filter(|line| line.starts_with("user."))
            .count(),
        256
    );
    scratch.end(mounted);
}

/// capabilities(7): a changed program has none of the rights that its old content was given.
#[test]
fn what_gives_rights_to_a_file_goes_when_it_changes() {
    // Revision 2, effective, with CAP_NET_RAW.
    let mut rights = 0x0200_0001u32.to_le_bytes().to_vec();
    rights.extend_from_slice(&(1u32 << 13).to_le_bytes());
    rights.resize(20, 0);
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let file = |name: &str| {
        let path = mounted.dir().join(name);
        fs::write(&path, "#!/bin/sh").expect("a file");
        set_xattr(&path, "security.capability", &rights, 0).expect("root gives capabilities");
        assert_eq!(get_xattr(&path, "security.capability").expect("just set").len(), 20);
        path
    };
    let (written, cut, given) = (file("written"), file("cut"), file("given"));
    OpenOptions::new()
        .append(true)
        .open(&written)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    OpenOptions::new().write(true).open(&cut).unwrap().set_len(3).unwrap();
    chown(&given, Some(1), Some(1)).unwrap();
    for path in [written, cut, given] {
        assert_eq!(
            errno(get_xattr(&path, "security.capability")),
            libc::ENODATA,
            "{}",
            path.display()
        );
    }
    let allocated = mounted.dir().join("allocated");
    fs::write(&allocated, "#!/bin/sh").unwrap();
    chown(&allocated, Some(65534), Some(65534)).unwrap();
    fs::set_permissions(&allocated, fs::Permissions::from_mode(0o6777)).unwrap();
    let nobody = [
        "--reuid=65534",
        "--regid=65534",
        "--clear-groups",
        "fallocate",
        "-l",
        "100",
    ];
    succeeded(Command::new("setpriv").args(nobody).arg(&allocated));
    assert_eq!(fs::metadata(&allocated).unwrap().mode() & 0o7777, 0o777);
}

/// Reading changes no access time, as with the mount option noatime: it would cost a commit. Setting it is kept.
#[test]
fn reading_leaves_access_times_alone() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let path = mounted.dir().join("file");
    fs::write(&path, pattern(10_000, 1)).unwrap();
    succeeded(
        Command::new("touch")
            .args(["-a", "-d", "2001-02-03 04:05:06.789 UTC"])
            .arg(&path),
    );
    let stamp = |path: &std::path::Path| {
        let metadata = fs::metadata(path).expect("a file");
        (metadata.atime(), metadata.atime_nsec())
    };
    assert_eq!(stamp(&path), (981_173_106, 789_000_000));
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    assert!(fs::read(&path).unwrap() == pattern(10_000, 1));
    fs::read_dir(mounted.dir()).unwrap().for_each(drop);
    assert_eq!(stamp(&path), (981_173_106, 789_000_000));
    assert!(mounted.unmount().success(), "a clean unmount");
}

/// A full volume says so: fallocate(2) at once, a write at the latest by fsync(2); what was reserved is there all the same,
/// and what is deleted can be used again.
#[test]
fn a_full_volume_refuses_what_was_not_reserved() {
    const MIB: u64 = 1 << 20;
    let mut scratch = ScratchVolume::with_capacity(8 * MIB);
    let mounted = scratch.mount();
    let (reserved, other) = (
        File::create(mounted.dir().join("reserved")).unwrap(),
        File::create(mounted.dir().join("other")).unwrap(),
    );
    assert_eq!(
        errno(fallocate(reserved.as_raw_fd(), 0, 0, 9 * MIB as i64)),
        libc::ENOSPC
    );
    assert_eq!(reserved.metadata().unwrap().len(), 0, "a refused call changes nothing");
    fallocate(reserved.as_raw_fd(), 0, 0, 5 * MIB as i64).unwrap();
    assert_eq!(reserved.metadata().unwrap().blocks() * 512, 5 * MIB);
    let space = nix::sys::statvfs::statvfs(mounted.dir()).unwrap();
    assert_eq!(space.blocks_available() * space.block_size(), 3 * MIB);
    let too_much = other
        .write_all_at(&pattern(4 * MIB as usize, 1), 0)
        .and_then(|()| other.sync_all());
    assert_eq!(errno(too_much), libc::ENOSPC);
    reserved.write_all_at(&pattern(5 * MIB as usize, 2), 0).unwrap();
    reserved.sync_all().unwrap();
    drop((reserved, other));
    fs::remove_file(mounted.dir().join("other")).unwrap();
    let free = || {
        let space = nix::sys::statvfs::statvfs(mounted.dir()).expect("a mount");
        space.blocks_available() * space.block_size()
    };
    // The kernel forgets an unlinked file a moment after it is closed.
    let begun = std::time::Instant::now();
    while free() < 3 * MIB {
        assert!(begun.elapsed().as_secs() < 60, "{} bytes are free", free());
        std::thread::park_timeout(std::time::Duration::from_millis(10));
    }
    let again = File::create(mounted.dir().join("again")).unwrap();
    again.write_all_at(&pattern(3 * MIB as usize, 3), 0).unwrap();
    again.sync_all().unwrap();
    drop(again);
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    assert!(fs::read(mounted.dir().join("reserved")).unwrap() == pattern(5 * MIB as usize, 2));
    assert!(fs::read(mounted.dir().join("again")).unwrap() == pattern(3 * MIB as usize, 3));
    scratch.end(mounted);
}
