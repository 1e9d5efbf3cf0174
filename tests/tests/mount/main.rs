//! A mounted volume as programs see it: every operation through the kernel, then the same again from the bucket alone.
//!
//! Goal: what POSIX programs rely on holds on a mount, and survives an unmount. Method: `pannier mount` on a store inside this
//! process; each test has a volume of its own, and looks again after mounting it with an empty cache.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::Command;

use tests::aio::Aligned;
use tests::calls::{c, done, errno, fallocate, get_xattr, list_xattrs, names, pattern, rename2, seek, set_xattr};
use tests::scratch_volume::ScratchVolume;

mod io_uring;
mod memory;
mod repair;
mod transfer;

/// Runs `make` on a fresh volume, then `check` on it, and again after a clean unmount, from the bucket alone.
fn before_and_after_remount(make: impl FnOnce(&Path), check: impl Fn(&Path)) {
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    make(mounted.dir());
    check(mounted.dir());
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = fixture.mount();
    check(mounted.dir());
    assert!(mounted.unmount().success(), "a clean unmount");
}

/// What is written is read back, however it was written: at once, in parts, appended, over a hole, beyond the inline size.
#[test]
fn files_of_all_sizes_read_back_what_was_written() {
    let sizes = [0usize, 1, 4095, 4096, 4097, 131_071, 131_073, 1_048_577, 9_000_001];
    before_and_after_remount(
        |dir| {
            for size in sizes {
                fs::write(dir.join(format!("f{size}")), pattern(size, size as u64)).unwrap();
            }
            let mut log = OpenOptions::new()
                .append(true)
                .create(true)
                .open(dir.join("log"))
                .unwrap();
            for line in 0..1000 {
                writeln!(log, "line {line}").unwrap();
            }
            let holed = File::create(dir.join("holed")).unwrap();
            holed.write_all_at(b"far", 5_000_000).unwrap();
            holed.write_all_at(b"near", 3).unwrap();
            let cut = File::create(dir.join("cut")).unwrap();
            cut.write_all_at(&pattern(300_000, 7), 0).unwrap();
            cut.set_len(100_000).unwrap();
            cut.set_len(200_000).unwrap();
        },
        |dir| {
            for size in sizes {
                let file = dir.join(format!("f{size}"));
                assert_eq!(fs::metadata(&file).unwrap().len(), size as u64);
                assert!(
                    fs::read(&file).unwrap() == pattern(size, size as u64),
                    "content of {size} bytes"
                );
            }
            let log = fs::read_to_string(dir.join("log")).unwrap();
            assert_eq!(log.lines().count(), 1000);
            assert_eq!(log.lines().last(), Some("line 999"));
            let holed = fs::read(dir.join("holed")).unwrap();
            assert_eq!(holed.len(), 5_000_003);
            assert_eq!(&holed[..8], b"\0\0\0near\0");
            assert!(holed[7..5_000_000].iter().all(|byte| *byte == 0));
            assert_eq!(&holed[5_000_000..], b"far");
            let cut = fs::read(dir.join("cut")).unwrap();
            assert!(cut[..100_000] == pattern(300_000, 7)[..100_000]);
            assert!(
                cut[100_000..].iter().all(|byte| *byte == 0),
                "what was cut off does not come back"
            );
            assert_eq!(cut.len(), 200_000);
        },
    );
}

/// Names: rename with its flags, hard and symbolic links, directories, and what each refuses.
#[test]
fn names_can_be_made_moved_exchanged_linked_and_removed() {
    before_and_after_remount(
        |dir| {
            for name in ["a", "b", "one", "two", "gone"] {
                fs::write(dir.join(name), name).unwrap();
            }
            rename2(&dir.join("one"), &dir.join("two"), libc::RENAME_EXCHANGE).unwrap();
            let refused = rename2(&dir.join("a"), &dir.join("b"), libc::RENAME_NOREPLACE);
            assert_eq!(errno(refused), libc::EEXIST);
            rename2(&dir.join("a"), &dir.join("c"), libc::RENAME_NOREPLACE).unwrap();
            fs::rename(dir.join("b"), dir.join("c")).unwrap();
            fs::hard_link(dir.join("c"), dir.join("hard")).unwrap();
            symlink("../else/where", dir.join("soft")).unwrap();
            fs::create_dir_all(dir.join("d/e/f")).unwrap();
            fs::write(dir.join("d/e/f/g"), "deep").unwrap();
            assert_eq!(errno(fs::remove_dir(dir.join("d/e"))), libc::ENOTEMPTY);
            assert_eq!(errno(fs::remove_file(dir.join("d"))), libc::EISDIR);
            assert_eq!(errno(fs::rename(dir.join("d"), dir.join("d/e/x"))), libc::EINVAL);
            assert_eq!(errno(fs::create_dir(dir.join("d"))), libc::EEXIST);
            assert_eq!(errno(fs::hard_link(dir.join("d"), dir.join("dd"))), libc::EPERM);
            fs::rename(dir.join("d/e"), dir.join("moved")).unwrap();
            fs::remove_file(dir.join("gone")).unwrap();
            assert_eq!(errno(fs::read(dir.join("gone"))), libc::ENOENT);
            assert_eq!(errno(fs::write(dir.join("x".repeat(256)), "")), libc::ENAMETOOLONG);
            fs::write(dir.join("y".repeat(255)), "").unwrap();
        },
        |dir| {
            assert_eq!(fs::read_to_string(dir.join("one")).unwrap(), "two");
            assert_eq!(fs::read_to_string(dir.join("two")).unwrap(), "one");
            assert_eq!(fs::read_to_string(dir.join("c")).unwrap(), "b");
            let (hard, c) = (
                fs::metadata(dir.join("hard")).unwrap(),
                fs::metadata(dir.join("c")).unwrap(),
            );
            assert_eq!((hard.ino(), hard.nlink()), (c.ino(), 2));
            assert_eq!(fs::read_link(dir.join("soft")).unwrap(), Path::new("../else/where"));
            assert_eq!(fs::read_to_string(dir.join("moved/f/g")).unwrap(), "deep");
            assert_eq!(fs::metadata(dir.join("moved")).unwrap().nlink(), 3);
            assert_eq!(names(&dir.join("d")), Vec::<String>::new());
            let long = "y".repeat(255);
            assert_eq!(names(dir), ["c", "d", "hard", "moved", "one", "soft", "two", &long]);
        },
    );
}

/// An open file that was unlinked goes on to live until it is closed, and its space comes back then.
#[test]
fn an_unlinked_file_lives_until_it_is_closed() {
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    let path = mounted.dir().join("temporary");
    let mut file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .unwrap();
    file.write_all(b"before").unwrap();
    fs::remove_file(&path).unwrap();
    file.write_all(b" and after").unwrap();
    file.sync_all().unwrap();
    file.seek(SeekFrom::Start(0)).unwrap();
    let mut text = String::new();
    file.read_to_string(&mut text).unwrap();
    assert_eq!(text, "before and after");
    assert_eq!(file.metadata().unwrap().nlink(), 0);
    assert!(!path.exists());
    drop(file);
    assert!(mounted.unmount().success());
    let mounted = fixture.mount();
    assert_eq!(names(mounted.dir()), Vec::<String>::new());
}

/// Times keep their nanoseconds, also before 1970; modes, owners and device numbers stay.
#[test]
fn attributes_keep_every_bit() {
    let before_1970 = libc::timespec {
        tv_sec: -2,
        tv_nsec: 800_000_000,
    };
    let later = libc::timespec {
        tv_sec: 4_102_444_800,
        tv_nsec: 123_456_789,
    };
    before_and_after_remount(
        |dir| {
            let file = dir.join("file");
            fs::write(&file, "x").unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o4751)).unwrap();
            std::os::unix::fs::chown(&file, Some(1234), Some(4321)).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o6751)).unwrap();
            // SAFETY: the path ends in NUL and the two times are two times.
            done(i64::from(unsafe {
                libc::utimensat(libc::AT_FDCWD, c(&file).as_ptr(), [before_1970, later].as_ptr(), 0)
            }))
            .unwrap();
            let (fifo, device) = (c(&dir.join("fifo")), c(&dir.join("device")));
            // SAFETY: both paths end in NUL and live through the calls.
            unsafe {
                done(i64::from(libc::mkfifo(fifo.as_ptr(), 0o640))).unwrap();
                let number = libc::makedev(250, 7);
                done(i64::from(libc::mknod(device.as_ptr(), libc::S_IFCHR | 0o600, number))).unwrap();
            }
        },
        |dir| {
            let file = fs::metadata(dir.join("file")).unwrap();
            assert_eq!(file.mode() & 0o7777, 0o6751);
            assert_eq!((file.uid(), file.gid()), (1234, 4321));
            assert_eq!((file.atime(), file.atime_nsec()), (-2, 800_000_000));
            assert_eq!((file.mtime(), file.mtime_nsec()), (4_102_444_800, 123_456_789));
            assert_eq!(
                fs::metadata(dir.join("fifo")).unwrap().mode() & 0o170_000,
                libc::S_IFIFO
            );
            let device = fs::metadata(dir.join("device")).unwrap();
            assert_eq!(device.mode() & 0o170_000, libc::S_IFCHR);
            assert_eq!(device.rdev(), libc::makedev(250, 7));
        },
    );
}

/// Extended attributes with their flags and limits, and POSIX ACLs as setfacl(1) writes them.
#[test]
fn extended_attributes_and_acls_are_kept() {
    before_and_after_remount(
        |dir| {
            let file = dir.join("file");
            fs::write(&file, "x").unwrap();
            set_xattr(&file, "user.one", b"1", 0).unwrap();
            set_xattr(&file, "user.large", &pattern(60_000, 3), libc::XATTR_CREATE).unwrap();
            set_xattr(&file, "user.empty", b"", 0).unwrap();
            assert_eq!(
                errno(set_xattr(&file, "user.one", b"2", libc::XATTR_CREATE)),
                libc::EEXIST
            );
            assert_eq!(
                errno(set_xattr(&file, "user.none", b"2", libc::XATTR_REPLACE)),
                libc::ENODATA
            );
            set_xattr(&file, "user.one", b"two", libc::XATTR_REPLACE).unwrap();
            set_xattr(&file, "user.gone", b"x", 0).unwrap();
            let (path, name) = (c(&file), std::ffi::CString::new("user.gone").unwrap());
            // SAFETY: both strings end in NUL and live through the call.
            done(i64::from(unsafe { libc::lremovexattr(path.as_ptr(), name.as_ptr()) })).unwrap();
            set_acl(&["-m", "u:1234:rwx"], &file);
            fs::create_dir(dir.join("passes-on")).unwrap();
            set_acl(&["-d", "-m", "u:1234:rw,g::r,o::-"], &dir.join("passes-on"));
            fs::write(dir.join("passes-on/new"), "").unwrap();
            fs::create_dir(dir.join("passes-on/below")).unwrap();
            fs::write(dir.join("chmodded"), "").unwrap();
            set_acl(&["-m", "u:1234:rwx"], &dir.join("chmodded"));
            fs::set_permissions(dir.join("chmodded"), fs::Permissions::from_mode(0o640)).unwrap();
        },
        |dir| {
            let file = dir.join("file");
            assert_eq!(get_xattr(&file, "user.one").unwrap(), b"two");
            assert!(get_xattr(&file, "user.large").unwrap() == pattern(60_000, 3));
            assert_eq!(get_xattr(&file, "user.empty").unwrap(), b"");
            assert_eq!(errno(get_xattr(&file, "user.gone")), libc::ENODATA);
            let listed = list_xattrs(&file);
            assert_eq!(
                listed,
                ["system.posix_acl_access", "user.empty", "user.large", "user.one"]
            );
            let acl = acl_of(&file);
            assert!(acl.contains("user:1234:rwx") && acl.contains("mask::rwx"), "{acl}");
            let acl = acl_of(&dir.join("passes-on/new"));
            assert!(acl.contains("user:1234:rw-") && acl.contains("other::---"), "{acl}");
            let acl = acl_of(&dir.join("passes-on/below"));
            assert!(acl.contains("default:user:1234:rw-"), "{acl}");
            let acl = acl_of(&dir.join("chmodded"));
            assert!(acl.contains("user:1234:rwx") && acl.contains("mask::r--"), "{acl}");
            // The mask is what stat shows as the group's bits.
            assert_eq!(fs::metadata(&file).unwrap().mode() & 0o070, 0o070);
        },
    );
}

fn set_acl(arguments: &[&str], path: &Path) {
    let set = Command::new("setfacl").args(arguments).arg(path).status();
    assert!(set.expect("setfacl is installed (package acl)").success());
}

fn acl_of(path: &Path) -> String {
    let acl = Command::new("getfacl").args(["-cn"]).arg(path).output();
    String::from_utf8(acl.expect("getfacl is installed (package acl)").stdout).expect("names and numbers")
}

/// fallocate, holes, and what SEEK_DATA says of them, also while the kernel has not written anything yet.
#[test]
fn space_can_be_reserved_punched_and_found() {
    let keep_and_punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    let fresh = |dir: &Path| {
        OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(dir.join("fresh"))
    };
    before_and_after_remount(
        |dir| {
            let fresh = fresh(dir).unwrap();
            fresh.write_all_at(&pattern(8192, 1), 1 << 20).unwrap();
            // Not synced: the kernel holds the only copy when it asks.
            assert_eq!(seek(&fresh, 0, libc::SEEK_DATA).unwrap(), 1 << 20);
            assert_eq!(seek(&fresh, 1 << 20, libc::SEEK_HOLE).unwrap(), (1 << 20) + 8192);
            let file = File::create(dir.join("file")).unwrap();
            fallocate(file.as_raw_fd(), 0, 0, 1 << 20).unwrap();
            assert_eq!(file.metadata().unwrap().len(), 1 << 20);
            file.write_all_at(&pattern(1 << 20, 2), 0).unwrap();
            fallocate(file.as_raw_fd(), keep_and_punch, 262_144, 262_144).unwrap();
            fallocate(file.as_raw_fd(), libc::FALLOC_FL_ZERO_RANGE, 100, 200).unwrap();
            fallocate(file.as_raw_fd(), libc::FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
            let refused = fallocate(file.as_raw_fd(), libc::FALLOC_FL_COLLAPSE_RANGE, 0, 4096);
            assert_eq!(errno(refused), libc::EOPNOTSUPP);
        },
        |dir| {
            let file = File::open(dir.join("file")).unwrap();
            let mut content = vec![0u8; 1 << 20];
            file.read_exact_at(&mut content, 0).unwrap();
            let mut expected = pattern(1 << 20, 2);
            expected[262_144..524_288].fill(0);
            expected[100..300].fill(0);
            assert!(content == expected);
            assert_eq!(file.metadata().unwrap().len(), 1 << 20);
            // What was zeroed is a hole as well, as on file systems that keep unwritten extents.
            assert_eq!(seek(&file, 0, libc::SEEK_HOLE).unwrap(), 100);
            assert_eq!(seek(&file, 100, libc::SEEK_DATA).unwrap(), 300);
            assert_eq!(seek(&file, 300, libc::SEEK_HOLE).unwrap(), 262_144);
            assert_eq!(seek(&file, 262_144, libc::SEEK_DATA).unwrap(), 524_288);
            assert_eq!(errno(seek(&file, 1 << 20, libc::SEEK_DATA)), libc::ENXIO);
            let fresh = File::open(dir.join("fresh")).unwrap();
            assert_eq!(seek(&fresh, 0, libc::SEEK_DATA).unwrap(), 1 << 20);
        },
    );
}

/// A file in the 1 TiB range costs what is written, not what lies before it.
#[test]
fn a_sparse_file_of_a_tebibyte_works() {
    before_and_after_remount(
        |dir| {
            let file = File::create(dir.join("huge")).unwrap();
            file.write_all_at(b"end", 1 << 40).unwrap();
        },
        |dir| {
            let file = File::open(dir.join("huge")).unwrap();
            let metadata = file.metadata().unwrap();
            assert_eq!(metadata.len(), (1 << 40) + 3);
            assert!(metadata.blocks() * 512 < 1 << 20, "{} blocks", metadata.blocks());
            let mut bytes = [9u8; 5];
            file.read_exact_at(&mut bytes, (1 << 40) - 2).unwrap();
            assert_eq!(&bytes, b"\0\0end");
        },
    );
}

/// Shared mappings write through to the file, and readers see writes of others at once.
#[test]
fn a_shared_mapping_is_the_file() {
    let len = 100_000usize;
    before_and_after_remount(
        |dir| {
            let file = OpenOptions::new()
                .read(true)
                .write(true)
                .create_new(true)
                .open(dir.join("mapped"))
                .unwrap();
            file.set_len(len as u64).unwrap();
            // SAFETY: a fresh shared mapping of a file of this length; it is unmapped below and not used after.
            unsafe {
                let protection = libc::PROT_READ | libc::PROT_WRITE;
                let map = libc::mmap(
                    std::ptr::null_mut(),
                    len,
                    protection,
                    libc::MAP_SHARED,
                    file.as_raw_fd(),
                    0,
                );
                assert_ne!(map, libc::MAP_FAILED);
                let bytes = std::slice::from_raw_parts_mut(map.cast::<u8>(), len);
                bytes.copy_from_slice(&pattern(len, 5));
                file.write_all_at(b"by write", 50_000).unwrap();
                assert_eq!(&bytes[50_000..50_008], b"by write");
                assert_eq!(libc::msync(map, len, libc::MS_SYNC), 0);
                assert_eq!(libc::munmap(map, len), 0);
            }
        },
        |dir| {
            let mut expected = pattern(len, 5);
            expected[50_000..50_008].copy_from_slice(b"by write");
            assert!(fs::read(dir.join("mapped")).unwrap() == expected);
        },
    );
}

/// Locks keep others out: flock(2) between descriptors, fcntl(2) between processes.
#[test]
fn locks_exclude_each_other() {
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    let path = mounted.dir().join("lock");
    let (first, second) = (File::create(&path).unwrap(), File::open(&path).unwrap());
    first.lock().unwrap();
    assert!(matches!(second.try_lock(), Err(fs::TryLockError::WouldBlock)));
    let other = Command::new("flock")
        .args(["-n"])
        .arg(&path)
        .arg("true")
        .status()
        .unwrap();
    assert!(!other.success(), "another process does not get it either");
    first.unlock().unwrap();
    second.try_lock().unwrap();
}

/// Directories of thousands of entries list each exactly once, also while they shrink.
#[test]
fn a_large_directory_lists_every_entry_once() {
    let count = 3_000;
    before_and_after_remount(
        |dir| {
            fs::create_dir(dir.join("large")).unwrap();
            (0..count).for_each(|n| drop(File::create(dir.join(format!("large/entry-{n}"))).unwrap()));
        },
        |dir| {
            let listed = names(&dir.join("large"));
            assert_eq!(listed.len(), count);
            let mut expected: Vec<_> = (0..count).map(|n| format!("entry-{n}")).collect();
            expected.sort();
            assert_eq!(listed, expected);
        },
    );
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    fs::create_dir(mounted.dir().join("d")).unwrap();
    (0..count).for_each(|n| drop(File::create(mounted.dir().join(format!("d/{n}"))).unwrap()));
    fs::remove_dir_all(mounted.dir().join("d")).unwrap();
    assert_eq!(names(mounted.dir()), Vec::<String>::new());
}

/// The set-user-id bit goes when somebody else than root writes or truncates, and when the owner changes.
#[test]
fn a_write_by_others_takes_the_set_user_id_bit() {
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    let (written, cut, given) = (
        mounted.dir().join("w"),
        mounted.dir().join("t"),
        mounted.dir().join("g"),
    );
    for path in [&written, &cut, &given] {
        fs::write(path, "#!/bin/sh").unwrap();
        std::os::unix::fs::chown(path, Some(65534), Some(65534)).unwrap();
        fs::set_permissions(path, fs::Permissions::from_mode(0o6777)).unwrap();
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o6777);
    }
    let as_nobody = |script: String| {
        let status = Command::new("setpriv")
            .args(["--reuid=65534", "--regid=65534", "--clear-groups", "sh", "-c", &script])
            .status();
        assert!(status.unwrap().success(), "{script}");
    };
    as_nobody(format!("echo more >> {}", written.display()));
    as_nobody(format!(": > {}", cut.display()));
    std::os::unix::fs::chown(&given, Some(1), Some(1)).unwrap();
    for path in [&written, &cut, &given] {
        assert_eq!(fs::metadata(path).unwrap().mode() & 0o7777, 0o777, "{}", path.display());
    }
}

/// copy_file_range copies inside the volume.
#[test]
fn ranges_can_be_copied_between_files() {
    before_and_after_remount(
        |dir| {
            fs::write(dir.join("from"), pattern(3_000_000, 11)).unwrap();
            let (from, to) = (
                File::open(dir.join("from")).unwrap(),
                File::create(dir.join("to")).unwrap(),
            );
            let (mut at, mut copied) = (1_000i64, 0);
            while copied < 2_500_000 {
                // SAFETY: both descriptors are open, and `at` lives through the call.
                let now = done(unsafe {
                    libc::copy_file_range(
                        from.as_raw_fd(),
                        &mut at,
                        to.as_raw_fd(),
                        std::ptr::null_mut(),
                        2_500_000 - copied,
                        0,
                    ) as i64
                })
                .unwrap();
                assert!(now > 0);
                copied += now as usize;
            }
        },
        |dir| assert!(fs::read(dir.join("to")).unwrap() == pattern(3_000_000, 11)[1_000..2_501_000]),
    );
}

/// A read-only mount reads all and writes nothing, and takes the volume from nobody.
#[test]
fn a_read_only_mount_refuses_every_write() {
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    fs::write(mounted.dir().join("file"), "content").unwrap();
    assert!(mounted.unmount().success());
    fixture.options.read_only = true;
    fixture.options.create = false;
    let mounted = fixture.mount();
    assert_eq!(fs::read_to_string(mounted.dir().join("file")).unwrap(), "content");
    assert_eq!(errno(fs::write(mounted.dir().join("other"), "x")), libc::EROFS);
    assert_eq!(errno(fs::remove_file(mounted.dir().join("file"))), libc::EROFS);
    assert!(mounted.unmount().success());
}

/// umount(8) ends the process cleanly: what was written without any sync is in the bucket.
#[test]
fn umount_from_outside_flushes_and_ends_the_process() {
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    fs::write(mounted.dir().join("file"), pattern(5_000_000, 9)).unwrap();
    let (umount, dir) = (
        Command::new("umount").arg(mounted.dir()).status().unwrap(),
        mounted.dir().to_path_buf(),
    );
    assert!(umount.success());
    assert!(mounted.wait_for_end().success(), "pannier mount ends by itself");
    assert_eq!(names(&dir), Vec::<String>::new(), "nothing is mounted there");
    let mounted = fixture.mount();
    assert!(fs::read(mounted.dir().join("file")).unwrap() == pattern(5_000_000, 9));
}

/// Direct I/O works beside the page cache.
#[test]
fn direct_io_reads_and_writes() {
    let mut fixture = ScratchVolume::new();
    let mounted = fixture.mount();
    let path = mounted.dir().join("direct");
    fs::write(&path, pattern(65_536, 4)).unwrap();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let mut page = Aligned::new(4096);
    page.fill(7);
    file.write_all_at(&page, 8192).unwrap();
    file.read_exact_at(&mut page, 4096).unwrap();
    assert!(page[..] == pattern(65_536, 4)[4096..8192]);
    let content = fs::read(&path).unwrap();
    assert!(content[8192..12_288].iter().all(|byte| *byte == 7));
    assert!(content[12_288..] == pattern(65_536, 4)[12_288..]);
}
