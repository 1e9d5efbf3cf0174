//! What a mount's process holds of the machine's memory.

#![allow(clippy::unwrap_used, reason = "each step of a test must succeed")]

use std::fs;
use std::io::Write as _;
use std::path::Path;
use std::time::{Duration, Instant};

use nix::unistd::Pid;
use tests::engine_process::{Ask, EngineProcess};
use tests::environment::{number, say};
use tests::local_store::LocalStore;
use tests::scratch_volume::ScratchVolume;
use volume::budget::{MEMORY_BYTES_MAX, MEMORY_BYTES_MIN};

/// 200 MiB in one burst: far above all that is kept on purpose.
const BURST_MIB: u64 = 200;

/// 40 MiB with one idle volume, and 6 more for each other.
const IDLE_MIB_MAX: u64 = 40;
const VOLUME_MIB_MAX: u64 = 6;

/// What each of four volumes is given to do.
const BUSY_MIB: u64 = 64;
const BUSY_FILES: u32 = 200;

/// 100 mounts, one after another, looked at after each 20.
const SHORT_MOUNTS: u64 = 100;
const LOOK_EVERY_MOUNTS: u64 = 20;

/// 7 MiB that an engine may grow by from the first look on: the blocks of trees that it keeps have 4 at the least budget, and fill
/// slowly. Of 400 mounts the last 80 added nothing (39,468 to 39,508 KiB; 35,052 at the first look).
const GROWTH_KIB_MAX: u64 = 7 * 1024;

/// 60 s, for what takes less than one on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Goal: a node has its memory back after a burst. Method: write much, fsync, and look at the process until it has shrunk to what
/// it began with and half of the burst: allocators that keep what was freed never do.
#[test]
fn memory_of_a_burst_goes_back_to_the_system() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let before = status_mib(mounted.pid(), "VmRSS");
    let mut file = fs::File::create(mounted.dir().join("burst")).unwrap();
    for number in 0..BURST_MIB {
        file.write_all(&vec![number as u8; 1 << 20]).unwrap();
    }
    file.sync_all().unwrap();
    let begun = Instant::now();
    while status_mib(mounted.pid(), "VmRSS") > before + BURST_MIB / 2 {
        let now = status_mib(mounted.pid(), "VmRSS");
        assert!(
            begun.elapsed() < PATIENCE,
            "{now} MiB are held after {PATIENCE:?}; {before} before"
        );
        std::thread::park_timeout(Duration::from_millis(50));
    }
    assert!(mounted.unmount().success());
}

/// What a status file of a process says under `name`, in MiB.
fn status_mib(pid: Pid, name: &str) -> u64 {
    status_kib(pid, name) / 1024
}

/// What a status file of a process says under `name`, in KiB (proc_pid_status(5)).
fn status_kib(pid: Pid, name: &str) -> u64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(name)).unwrap();
    line.trim_start_matches(':')
        .trim()
        .trim_end_matches(" kB")
        .parse()
        .unwrap()
}

/// Goal: all volumes of an engine share one budget of memory. Method: ten idle volumes, then four that are written and read at
/// full speed; the kernel keeps the highest that the process ever had.
#[test]
fn an_engine_of_many_volumes_stays_within_its_memory() {
    let store = LocalStore::start();
    let mut engine = EngineProcess::start(&store, &store.folder("engine"));
    let mut mounted = Vec::new();
    let mut idle = Vec::new();
    for n in 0..10 {
        let mnt = store.folder(&format!("mnt-{n}"));
        engine.mount(&store, &Ask::new(&format!("volume-{n}"), &mnt)).unwrap();
        mounted.push(mnt);
        idle.push(status_mib(engine.pid(), "VmRSS"));
    }
    std::thread::scope(|scope| {
        for (n, mnt) in mounted.iter().take(4).enumerate() {
            scope.spawn(move || work(n, mnt));
        }
    });
    let highest = status_mib(engine.pid(), "VmHWM");
    let mut stderr = std::io::stderr().lock();
    writeln!(
        stderr,
        "idle with 1 to 10 volumes: {idle:?} MiB; with 4 busy ones at most {highest} MiB"
    )
    .unwrap();
    assert!(idle[0] <= IDLE_MIB_MAX, "{} MiB with one idle volume", idle[0]);
    assert!(
        idle[9] - idle[0] <= 9 * VOLUME_MIB_MAX,
        "{idle:?} MiB with 1 to 10 idle volumes"
    );
    assert!(highest <= MEMORY_BYTES_MAX >> 20, "{highest} MiB under load");
    assert!(engine.shut_down().unwrap().success());
}

/// Much content, many names, all of it read back.
fn work(number: usize, mnt: &Path) {
    let block: Vec<u8> = (0..1u32 << 20)
        .map(|n| (n.wrapping_mul(2_654_435_761) >> (number + 8)) as u8)
        .collect();
    let mut file = fs::File::create(mnt.join("large")).unwrap();
    for _ in 0..BUSY_MIB {
        file.write_all(&block).unwrap();
    }
    file.sync_all().unwrap();
    for n in 0..BUSY_FILES {
        fs::write(mnt.join(format!("f{n}")), &block[..3_000]).unwrap();
    }
    assert_eq!(fs::read(mnt.join("large")).unwrap().len(), (BUSY_MIB << 20) as usize);
    fs::File::open(mnt).unwrap().sync_all().unwrap();
}

/// Goal: a volume that was unmounted leaves nothing in its engine's memory, however often volumes are mounted. Method: an engine with
/// the least memory mounts a volume, writes a file and unmounts, again and again, and has what it had and its caches.
#[test]
fn an_engine_that_mounts_again_and_again_does_not_grow() {
    let cycles = number("PANNIER_TEST_CYCLES").unwrap_or(SHORT_MOUNTS);
    let store = LocalStore::start();
    let memory = MEMORY_BYTES_MIN.to_string();
    let folder = store.folder("engine");
    let mut engine = EngineProcess::start_as(&store.environment(), &folder, &["engine", "--memory-bytes", &memory]);
    let mnt = store.folder("mnt");
    let mut sizes = Vec::new();
    for cycle in 0..cycles {
        let ask = Ask::new(&format!("volume-{}", cycle % 10), &mnt);
        engine.mount(&store, &ask).unwrap();
        fs::write(mnt.join("file"), format!("cycle {cycle}\n").repeat(500)).unwrap();
        fs::read_dir(&mnt).unwrap().for_each(drop);
        engine.unmount(&mnt, PATIENCE).unwrap();
        if cycle % LOOK_EVERY_MOUNTS == LOOK_EVERY_MOUNTS - 1 {
            sizes.push(status_kib(engine.pid(), "VmRSS"));
        }
    }
    say(&format!(
        "KiB after each {LOOK_EVERY_MOUNTS} of {cycles} mounts: {sizes:?}"
    ));
    let (first, last) = (sizes[0], *sizes.last().unwrap());
    assert!(last <= first + GROWTH_KIB_MAX, "{sizes:?} KiB");
    assert!(engine.mounts().is_empty());
    assert!(engine.shut_down().unwrap().success());
}
