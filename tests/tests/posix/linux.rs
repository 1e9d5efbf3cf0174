//! Calls of Linux that POSIX does not have, on both transports.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::process::Command;
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use tests::bounded_command::succeeded;
use tests::calls::{errno, names, pattern};
use tests::file_handle::FileHandle;
use tests::s3_server::skip;
use tests::scratch_volume::ScratchVolume;
use tests::transport::each_transport;

/// open(2), O_TMPFILE: a file without a name can be read and written, linkat(2) may give it one once, and without one it is gone with its
/// last descriptor, or with a crash.
#[test]
fn a_temporary_file_without_a_name_can_be_given_one() {
    for transport in each_transport() {
        let mut scratch = ScratchVolume::on(transport);
        let mounted = scratch.mount();
        let dir = mounted.dir().to_path_buf();
        let open = |more: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).custom_flags(libc::O_TMPFILE | more);
            let mut file = options.open(&dir).expect("a file without a name");
            file.write_all(&pattern(100_000, 3)).expect("a write");
            file
        };
        let link = |file: &File, name: &str| {
            let from = format!("/proc/self/fd/{}", file.as_raw_fd());
            linkat(
                AT_FDCWD,
                from.as_str(),
                AT_FDCWD,
                &dir.join(name),
                AtFlags::AT_SYMLINK_FOLLOW,
            )
        };
        let (named, lost, exclusive) = (open(0), open(0), open(libc::O_EXCL));
        assert_eq!(names(&dir), Vec::<String>::new());
        assert_eq!(named.metadata().expect("it is open").nlink(), 0);
        link(&named, "named").expect("it gets a name");
        assert_eq!(link(&exclusive, "exclusive"), Err(Errno::ENOENT), "O_EXCL: never");
        assert_eq!(named.metadata().expect("it is open").nlink(), 1);
        named.sync_all().and_then(|()| lost.sync_all()).expect("an fsync");
        mounted.kill();
        drop((named, lost, exclusive));
        let mounted = scratch.mount();
        assert_eq!(names(&dir), ["named"]);
        assert!(fs::read(dir.join("named")).expect("it is there") == pattern(100_000, 3));
        // The one that was lost goes in the background; a check of the volume finds all in order before and after.
        scratch.end(mounted);
    }
}

/// statx(2), STATX_BTIME: when a file was made, whatever happened to it since.
#[test]
fn the_time_of_birth_is_told() {
    for transport in each_transport() {
        let mut scratch = ScratchVolume::on(transport);
        let mounted = scratch.mount();
        let path = mounted.dir().join("file");
        fs::write(&path, "first").expect("a file");
        let born = fs::metadata(&path)
            .and_then(|metadata| metadata.created())
            .expect("statx tells it");
        fs::write(&path, "second").expect("a write");
        File::options()
            .write(true)
            .open(&path)
            .and_then(|file| file.set_modified(UNIX_EPOCH))
            .expect("a time");
        assert!(mounted.unmount().success(), "a clean unmount");
        let mounted = scratch.mount();
        let metadata = fs::metadata(&path).expect("it is there");
        assert_eq!(metadata.created().expect("statx tells it"), born);
        assert!(born > UNIX_EPOCH && metadata.modified().expect("a time") == UNIX_EPOCH);
        assert!(mounted.unmount().success(), "a clean unmount");
    }
}

/// The kernel stamps what it writes from its own memory by its own clock, which ticks; a file is not made after it was written.
#[test]
fn a_file_is_born_before_it_is_written() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    for n in 0..50 {
        let path = mounted.dir().join(format!("f{n}"));
        fs::write(&path, "x").expect("a file");
        let metadata = fs::metadata(&path).expect("it is there");
        let (born, written) = (metadata.created().expect("statx"), metadata.modified().expect("a time"));
        assert!(born <= written, "{born:?} is after {written:?}");
    }
    assert!(mounted.unmount().success(), "a clean unmount");
}

/// open_by_handle_at(2), which NFS servers use: a handle stands for its file as long as that has a name, whatever the kernel remembers.
#[test]
fn a_handle_stands_for_its_file_through_mounts() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let dir = mounted.dir().to_path_buf();
    fs::create_dir(dir.join("d")).expect("a folder");
    fs::write(dir.join("d/file"), pattern(100_000, 1)).expect("a file");
    let [file, folder] = ["d/file", "d"].map(|name| FileHandle::of(&dir.join(name)));
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    let root = File::open(&dir).expect("the root");
    fs::rename(dir.join("d"), dir.join("e")).expect("another name");
    match file.open(&root) {
        Err(error) if error.kind() == std::io::ErrorKind::PermissionDenied => {
            skip("open_by_handle_at(2) wants CAP_DAC_READ_SEARCH, which these tests do not have here");
            return assert!(mounted.unmount().success(), "a clean unmount");
        }
        opened => {
            let mut content = Vec::new();
            opened
                .and_then(|mut file| file.read_to_end(&mut content))
                .expect("the file");
            assert!(content == pattern(100_000, 1));
        }
    }
    let listed = folder.open(&root).expect("the folder");
    assert_eq!(
        names(format!("/proc/self/fd/{}", listed.as_raw_fd()).as_ref()),
        ["file"]
    );
    fs::remove_file(dir.join("e/file")).expect("it goes");
    assert_eq!(errno(file.open(&root)), libc::ESTALE);
    drop((root, listed));
    assert!(mounted.unmount().success(), "a clean unmount");
}

/// acl(5): who gives an access list to a file of a group that is not his takes the set-group-id bit from it, as chmod(2) by him does.
#[test]
fn an_access_list_by_others_takes_the_set_group_id_bit() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let path = mounted.dir().join("file");
    fs::write(&path, "x").expect("a file");
    for (group, left) in [(65534, 0o2757), (0, 0o757)] {
        chown(&path, Some(65534), Some(group)).expect("another owner");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o2777)).expect("a mode");
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
        let list = ["setfacl", "-m", "u::rwx,g::rx,o::rwx"];
        succeeded(Command::new("setpriv").args(nobody).args(list).arg(&path));
        let mode = fs::metadata(&path).expect("it is there").mode() & 0o7777;
        assert_eq!(mode, left, "group {group}: {mode:o}");
    }
    assert!(mounted.unmount().success(), "a clean unmount");
}
