//! What a mount's process holds of the machine's memory.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::fs;
use std::io::Write as _;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tests::scratch_volume::ScratchVolume;

/// 200 MiB in one burst: far above all that is kept on purpose.
const BURST_MIB: u64 = 200;

/// 60 s, for what takes less than one on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Resident memory of a process in MiB (VmRSS of proc_pid_status(5)).
fn resident_mib(pid: Pid) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() / 1024
}

/// Goal: a node has its memory back after a burst. Method: write much, fsync, and look at the process until it has shrunk to what
/// it began with and half of the burst: allocators that keep what was freed never do.
#[test]
fn memory_of_a_burst_goes_back_to_the_system() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let before = resident_mib(mounted.pid());
    let mut file = fs::File::create(mounted.dir().join("burst")).unwrap();
    for number in 0..BURST_MIB {
        file.write_all(&vec![number as u8; 1 << 20]).unwrap();
    }
    file.sync_all().unwrap();
    let begun = Instant::now();
    while resident_mib(mounted.pid()) > before + BURST_MIB / 2 {
        let now = resident_mib(mounted.pid());
        assert!(
            begun.elapsed() < PATIENCE,
            "{now} MiB are held after {PATIENCE:?}; {before} before"
        );
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(mounted.unmount().success());
}
