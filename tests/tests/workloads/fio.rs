//! fio: several jobs write at random through each of the ways into a file, and verify every block by its checksum, at once
//! and again when the volume has come back from the bucket.

use std::path::Path;
use std::process::Command;

use tests::bounded_command::succeeded;
use tests::scratch_volume::ScratchVolume;
use tests::transport::io_uring;

use crate::programs;

/// One kind of load; every block it wrote last is verified.
struct Load {
    name: &'static str,
    options: &'static [&'static str],
}

const LOADS: &[Load] = &[
    Load {
        name: "mixed",
        options: &[
            "--rw=randrw",
            "--bsrange=512-64k",
            "--ioengine=psync",
            "--fsync=64",
            "--numjobs=3",
        ],
    },
    Load {
        name: "direct",
        options: &[
            "--rw=randwrite",
            "--bs=4k",
            "--ioengine=libaio",
            "--direct=1",
            "--iodepth=8",
            "--numjobs=2",
        ],
    },
    Load {
        name: "mapped",
        options: &[
            "--rw=randwrite",
            "--bs=4k",
            "--ioengine=mmap",
            "--fsync=256",
            "--numjobs=2",
        ],
    },
];

fn run(fio: &Path, dir: &Path, load: &Load, more: &[&str]) {
    let mut command = Command::new(fio);
    // fio leaves files with its state where it works.
    command.current_dir(dir.parent().expect("a mount lies in a folder"));
    command
        .arg(format!("--name={}", load.name))
        .arg(format!("--directory={}", dir.display()));
    command.args([
        "--size=8m",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
        "--group_reporting",
    ]);
    succeeded(command.args(load.options).args(more));
}

#[test]
fn fio_verifies_every_block_it_wrote() {
    verify(ScratchVolume::new());
}

/// The same where the kernel reaches the program by io_uring.
#[test]
fn fio_verifies_every_block_it_wrote_by_io_uring() {
    if let Some(transport) = io_uring() {
        verify(ScratchVolume::on(transport));
    }
}

fn verify(mut scratch: ScratchVolume) {
    let Some([fio]) = programs(["fio"]) else { return };
    let mounted = scratch.mount();
    LOADS.iter().for_each(|load| run(&fio, mounted.dir(), load, &[]));
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    // The same seeds, so fio knows what it wrote where.
    LOADS
        .iter()
        .filter(|load| load.name != "mixed")
        .for_each(|load| run(&fio, mounted.dir(), load, &["--verify_only"]));
    scratch.end(mounted);
}
