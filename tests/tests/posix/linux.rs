//! Calls of Linux that POSIX does not have, on both transports.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::time::UNIX_EPOCH;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;
use tests::calls::{names, pattern};
use tests::scratch_volume::ScratchVolume;
use tests::transport::io_uring;
use volume::head::Transport;

/// Each way that the kernel has to a mount here.
fn both() -> impl Iterator<Item = Transport> {
    [Some(Transport::Classic), io_uring()].into_iter().flatten()
}

/// open(2), O_TMPFILE: a file without a name can be read and written, linkat(2) may give it one once, and without one it is gone with its
/// last descriptor, or with a crash.
#[test]
fn a_temporary_file_without_a_name_can_be_given_one() {
    for transport in both() {
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
    for transport in both() {
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
