//! Writes past the kernel's memory (O_DIRECT), on both transports.

use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt, PermissionsExt, chown};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};

use tests::aio::{Aio, Aligned};
use tests::bounded_command::succeeded;
use tests::scratch_volume::ScratchVolume;
use tests::transport::each_transport;

/// As much as xfstests' generic/451 takes, which found it.
const FILE_BYTES: usize = 640 * 1024;

/// 150 writes: without the word to the kernel, one of the first ten is not seen.
const WRITES: u8 = 150;

/// io_submit(2): whoever reads after the end of a write finds what it wrote, although others have read what was there before meanwhile.
#[test]
fn a_direct_write_that_nobody_waited_for_is_seen_by_every_later_read() {
    for transport in each_transport() {
        let mut scratch = ScratchVolume::on(transport);
        let mounted = scratch.mount();
        let path = mounted.dir().join("file");
        fs::write(&path, vec![0; FILE_BYTES]).expect("a file");
        let done = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    let mut content = vec![0; FILE_BYTES];
                    while !done.load(Ordering::Relaxed) {
                        let mut file = File::open(&path).expect("it is there");
                        file.read_exact(&mut content).expect("a read");
                    }
                });
            }
            let seen = write_and_look(&path);
            done.store(true, Ordering::Relaxed);
            assert_eq!(
                seen,
                Ok(()),
                "{transport:?}: the number of a write, and of the first byte that is another one's"
            );
        });
        assert!(mounted.unmount().success(), "a clean unmount");
    }
}

fn write_and_look(path: &std::path::Path) -> Result<(), (u8, usize)> {
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_DIRECT).open(path);
    let (direct, reader) = (direct.expect("it opens"), File::open(path).expect("it opens"));
    let (aio, mut bytes, mut content) = (Aio::default(), Aligned::new(FILE_BYTES), vec![0; FILE_BYTES]);
    for number in 1..=WRITES {
        bytes.fill(number);
        assert_eq!(aio.write(&direct, &bytes, 0).expect("a write"), FILE_BYTES);
        reader.read_exact_at(&mut content, 0).expect("a read");
        if let Some(at) = content.iter().position(|byte| *byte != number) {
            return Err((number, at));
        }
    }
    Ok(())
}

/// capabilities(7), CAP_FSETID: the kernel does not know by itself that such a write takes the bits away, and is told. What is no program's
/// keeps set-group-id only for its own group.
#[test]
fn a_direct_write_by_others_takes_the_set_user_id_bit() {
    for transport in each_transport() {
        let mut scratch = ScratchVolume::on(transport);
        let mounted = scratch.mount();
        for (group, before, after) in [(65534, 0o6666, 0o2666), (0, 0o6666, 0o666), (65534, 0o6777, 0o777)] {
            let path = mounted.dir().join("file");
            fs::write(&path, vec![1; 8192]).expect("a file");
            chown(&path, Some(65534), Some(group)).expect("another owner");
            fs::set_permissions(&path, fs::Permissions::from_mode(before)).expect("a mode");
            let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups"];
            let dd = [
                "dd",
                "if=/dev/zero",
                "bs=4096",
                "count=1",
                "oflag=direct",
                "conv=notrunc",
                "status=none",
            ];
            succeeded(
                Command::new("setpriv")
                    .args(nobody)
                    .args(dd)
                    .arg(format!("of={}", path.display())),
            );
            let mode = fs::metadata(&path).expect("it is there").mode() & 0o7777;
            assert_eq!(mode, after, "{before:o} of group {group}: {mode:o}");
            fs::remove_file(&path).expect("it goes");
        }
        assert!(mounted.unmount().success(), "a clean unmount");
    }
}
