//! Mounts that outlive their engine: programs work on while it is killed or replaced, and see nothing but a pause.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::binaries::{Program, built};
use tests::engine_process::{Ask, EngineProcess};
use tests::environment::{number, program, say};
use tests::history::Dice;
use tests::local_store::LocalStore;
use volume::head::{Durability, Parameters};

mod programs;
mod service_manager;
mod versions;

use programs::{Work, at_work};

/// 8 kills here; `PANNIER_TEST_KILLS=1000` is the long run of the release notes.
const KILLS: u64 = 8;

/// 4 replacements here; `PANNIER_TEST_REPLACEMENTS=100` is the long run.
const REPLACEMENTS: u64 = 4;

/// 5 mounts here; `PANNIER_TEST_CYCLES=1000` is the long run.
const CYCLES: u64 = 5;

/// 8 connections more to the store than after the first mount: fewer than the cycles of the long run.
const CONNECTIONS_MORE: usize = 8;

/// 3 MiB, with the pages of its program.
const KEEPER_KIB_MAX: u64 = 3 * 1024;

/// 20 engines, of which one is caught before it serves.
const ENGINES_STOPPED: usize = 20;

/// 60 s for what takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "it never came that {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Waits until the programs go on behind `engine`, and tells how long the longest call took meanwhile.
fn recovered(engine: &EngineProcess, work: &Work, before: Pid) -> Duration {
    engine.kept_engine_after(before);
    let pulses = work.pulses.load(Ordering::SeqCst);
    // The first may have begun before.
    wait_until("programs go on", || work.pulses.load(Ordering::SeqCst) >= pulses + 2);
    std::mem::take(&mut *work.longest.lock().expect("nobody panics with it"))
}

fn tell_pauses(what: &str, mut pauses: Vec<Duration>) {
    pauses.sort();
    let at = |part: usize| pauses[(pauses.len() - 1) * part / 100].as_millis();
    say(&format!(
        "{} {what}: pauses of {} ms (median), {} ms (99 of 100), {} ms (longest)",
        pauses.len(),
        at(50),
        at(99),
        at(100)
    ));
}

/// A store, the folder of an engine, and a volume that this engine has mounted at the place that comes next.
fn kept_mount(
    start: impl FnOnce(&LocalStore, &Path) -> EngineProcess,
) -> (LocalStore, PathBuf, PathBuf, EngineProcess) {
    kept_mount_of(Durability::default(), start)
}

/// The same, of a volume of this durability.
fn kept_mount_of(
    durability: Durability,
    start: impl FnOnce(&LocalStore, &Path) -> EngineProcess,
) -> (LocalStore, PathBuf, PathBuf, EngineProcess) {
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let parameters = Parameters {
        durability,
        ..Parameters::default()
    };
    store.create_volume_as("volume", parameters);
    let mut engine = start(&store, &folder);
    let ask = Ask {
        create: false,
        ..Ask::new("volume", &mnt)
    };
    engine.mount(&store, &ask).expect("a mount");
    (store, folder, mnt, engine)
}

fn is_of_a_dead_mount(error: &std::io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOTCONN | libc::ECONNABORTED))
}

/// How many descriptors a process has.
fn descriptors(process: Pid) -> usize {
    let all = fs::read_dir(format!("/proc/{process}/fd")).expect("the process lives");
    all.count()
}

fn seed() -> u64 {
    number("PANNIER_TEST_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16)
}

/// kill -9 of the engine under programs that make, move and remove files, append, write through maps, sync and lock: no call fails,
/// nothing is lost or done twice, open files, unlinked ones, locks, listings and maps go on. At the end nothing is left behind.
#[test]
fn programs_see_no_more_than_a_pause_when_the_engine_is_killed() {
    kills_under_programs("kills", Durability::Remote, EngineProcess::start_kept);
}

/// The same on a volume of durability `local`, of which only what was synced would be in its tail.
#[test]
fn programs_see_no_more_than_a_pause_on_a_local_volume() {
    kills_under_programs("kills on a local volume", Durability::Local, EngineProcess::start_kept);
}

/// The same where the kernel cannot send again what nobody has answered.
#[test]
fn programs_see_no_more_than_a_pause_on_a_kernel_before_linux_6_9() {
    let said = kills_under_programs("kills as on an older kernel", Durability::Remote, |store, folder| {
        EngineProcess::start_kept_with(store, folder, &["--relay"])
    });
    assert!(said.contains("the mount's requests are kept by this program"), "{said}");
}

/// Returns what engine and keeper said.
fn kills_under_programs(
    what: &str,
    durability: Durability,
    start: impl FnOnce(&LocalStore, &Path) -> EngineProcess,
) -> String {
    let (kills, seed) = (number("PANNIER_TEST_KILLS").unwrap_or(KILLS), seed());
    say(&format!("PANNIER_TEST_SEED={seed} PANNIER_TEST_KILLS={kills}"));
    let mut dice = Dice::new(seed);
    let (_store, folder, mnt, mut engine) = kept_mount_of(durability, start);
    let mut pauses = Vec::new();
    let held = descriptors(engine.pid());
    at_work(&mnt, &mut dice.clone(), |work| {
        for _ in 0..kills {
            let until = work.rounds.load(Ordering::SeqCst) + 20 + dice.below(400);
            wait_until("programs work", || work.rounds.load(Ordering::SeqCst) >= until);
            let before = engine.kept_engine().expect("an engine runs");
            kill(before, Signal::SIGKILL).expect("it is there");
            pauses.push(recovered(&engine, work, before));
        }
    });
    tell_pauses(what, pauses);
    assert_eq!(engine.mounts().len(), 1, "the last engine knows the mount");
    wait_until("the keeper holds no more than before", || {
        descriptors(engine.pid()) <= held && engine.kept_engines() == 1
    });
    let said = engine.said();
    ends_without_a_trace(engine, &folder, &mnt);
    said
}

/// An engine is replaced by another one under the same programs: the new one is there before the old one goes. An engine of another
/// version takes turns with ours if PANNIER_TEST_OTHER names its program.
#[test]
fn programs_see_no_more_than_a_pause_when_the_engine_is_replaced() {
    let (replacements, seed) = (number("PANNIER_TEST_REPLACEMENTS").unwrap_or(REPLACEMENTS), seed());
    say(&format!(
        "PANNIER_TEST_SEED={seed} PANNIER_TEST_REPLACEMENTS={replacements}"
    ));
    let mut dice = Dice::new(seed);
    let (_store, folder, mnt, engine) = kept_mount(EngineProcess::start_kept);
    let (mut pauses, other) = (Vec::new(), program("PANNIER_TEST_OTHER"));
    at_work(&mnt, &mut dice, |work| {
        for round in 0..replacements {
            let before = engine.kept_engine().expect("an engine runs");
            match other.as_ref().filter(|_| round.is_multiple_of(2)) {
                Some(other) => engine.replace_engine_by(other, &[]),
                None => engine.replace_engine(&[]),
            }
            wait_until("the old one goes", || kill(before, None).is_err());
            pauses.push(recovered(&engine, work, before));
        }
    });
    tell_pauses("replacements", pauses);
    ends_without_a_trace(engine, &folder, &mnt);
}

/// A new engine that ends before it is ready changes nothing: the old one goes on, and is not even asked.
#[test]
fn an_engine_that_does_not_get_ready_leaves_the_old_one_serving() {
    let (_store, folder, mnt, mut engine) = kept_mount(EngineProcess::start_kept);
    let serving = engine.health().expect("it answers").pid;
    engine.replace_engine(&["--memory-bytes", "1"]);
    wait_until("the keeper says so", || {
        engine.said().contains("the new engine ended before it was ready")
    });
    fs::write(mnt.join("file"), "served").expect("it is served");
    assert_eq!(engine.health().expect("it answers").pid, serving);
    ends_without_a_trace(engine, &folder, &mnt);
}

/// Where no engine can be started for too long, programs get errors and do not hang; what they were told is there at the next mount
/// of this node.
#[test]
fn without_an_engine_programs_get_errors_and_the_next_mount_finds_everything() {
    let (store, folder, mnt, mut engine) = kept_mount(|store, folder| EngineProcess::start_kept_for(store, folder, 2));
    let path = mnt.join("file");
    nix::unistd::close(
        File::create(&path)
            .and_then(|mut file| file.write_all(b"told").map(|()| file))
            .expect("a file"),
    )
    .expect("it is closed");
    // No engine starts whose log cannot be opened.
    let log = folder.join("engine.log");
    fs::rename(&log, folder.join("engine.old.log")).expect("a log");
    fs::create_dir(&log).expect("a folder");
    kill(engine.kept_engine().expect("an engine"), Signal::SIGKILL).expect("it is there");
    let error = fs::create_dir(mnt.join("asks")).expect_err("nobody answers");
    assert!(is_of_a_dead_mount(&error), "{error}");
    engine.wait();
    drop(engine);
    fs::remove_dir(&log).expect("the folder goes");
    let mut engine = EngineProcess::start_kept(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "told");
    ends_without_a_trace(engine, &folder, &mnt);
}

/// An engine that has the mounts and neither serves them nor says that it will is ended in the same time.
#[test]
fn an_engine_that_does_not_get_on_is_ended_and_programs_get_errors() {
    let (store, folder, mnt, mut engine) = kept_mount(|store, folder| EngineProcess::start_kept_for(store, folder, 2));
    fs::write(mnt.join("file"), "told").expect("a file");
    // Some are stopped before they serve, and some after: those would be waited for.
    for _ in 0..ENGINES_STOPPED {
        let before = engine.kept_engine().expect("an engine");
        let serves = || engine.said().matches("is served again").count();
        let served = serves();
        kill(before, Signal::SIGKILL).expect("it is there");
        let next = engine.kept_engine_after(before);
        // Before that it is a copy of the keeper, which waits for it.
        wait_until("it is an engine", || {
            fs::read(format!("/proc/{next}/cmdline"))
                .is_ok_and(|line| line.split(|byte| *byte == 0).nth(1) == Some(b"engine"))
        });
        kill(next, Signal::SIGSTOP).expect("it is there");
        if serves() > served {
            kill(next, Signal::SIGCONT).expect("it is there");
            continue;
        }
        let error = fs::create_dir(mnt.join("asks")).expect_err("nobody answers");
        assert!(is_of_a_dead_mount(&error), "{error}");
        engine.wait();
        drop(engine);
        let mut engine = EngineProcess::start_kept(&store, &folder);
        engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
        assert_eq!(fs::read_to_string(mnt.join("file")).expect("it is there"), "told");
        return ends_without_a_trace(engine, &folder, &mnt);
    }
    panic!("every engine of {ENGINES_STOPPED} served before it could be stopped");
}

/// The program of an engine may be gone when the next one is to be started: a job brings its program, and takes it along.
#[test]
fn an_engine_starts_again_though_its_program_was_deleted() {
    let (_store, folder, mnt, engine) = kept_mount(EngineProcess::start_kept);
    let before = engine.kept_engine().expect("an engine runs");
    let brought = folder.join("pannier");
    fs::copy(built(Program::Binary("pannier")), &brought).expect("a copy of the program");
    engine.replace_engine_by(&brought, &[]);
    wait_until("the old one goes", || kill(before, None).is_err());
    fs::remove_file(&brought).expect("the job takes it along");
    for round in ["one", "two"] {
        fs::write(mnt.join(round), "served").expect("it is served");
        let before = engine.kept_engine().expect("an engine runs");
        kill(before, Signal::SIGKILL).expect("it is there");
        engine.kept_engine_after(before);
        assert_eq!(fs::read_to_string(mnt.join(round)).expect("it is served"), "served");
    }
    ends_without_a_trace(engine, &folder, &mnt);
}

/// Mounts that come and go leave nothing with keeper or engine.
#[test]
fn mounts_that_come_and_go_leave_no_descriptor_behind() {
    let cycles = number("PANNIER_TEST_CYCLES").unwrap_or(CYCLES);
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start_kept(&store, &folder);
    let mut after_first = None;
    for cycle in 0..=cycles {
        engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
        fs::write(mnt.join("file"), cycle.to_string()).expect("a file");
        engine.unmount(&mnt, PATIENCE).expect("it is unmounted");
        if cycle == 0 {
            let serving = engine.kept_engine().expect("an engine");
            after_first = Some((descriptors(engine.pid()), descriptors(serving)));
        }
    }
    let (of_keeper, of_engine) = after_first.expect("there was a first cycle");
    let serving = engine.kept_engine().expect("an engine");
    wait_until("keeper and engine hold no more than after the first", || {
        // Connections to the store that were opened meanwhile stay for a while.
        descriptors(engine.pid()) <= of_keeper && descriptors(serving) <= of_engine + CONNECTIONS_MORE
    });
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
    let text = fs::read_to_string(mnt.join("file")).expect("it is there");
    assert_eq!(text, cycles.to_string());
    ends_without_a_trace(engine, &folder, &mnt);
}

/// A keeper is on every node for as long as that runs, and waits nearly all the time.
#[test]
fn a_keeper_that_waits_has_less_than_3_mib() {
    let (_store, folder, mnt, engine) = kept_mount(EngineProcess::start_kept);
    let resident_kib = || {
        let status = fs::read_to_string(format!("/proc/{}/status", engine.pid())).expect("it lives");
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
        let words = line.and_then(|line| line.split_whitespace().next());
        words.expect("a size").parse::<u64>().expect("a number")
    };
    wait_until("it is small", || resident_kib() < KEEPER_KIB_MAX);
    say(&format!("a keeper that waits has {} KiB", resident_kib()));
    ends_without_a_trace(engine, &folder, &mnt);
}

/// A keeper that dies takes nothing with it: the engine serves on, and unmounts.
#[test]
fn a_killed_keeper_leaves_a_mount_that_serves() {
    let (_store, _folder, mnt, mut engine) = kept_mount(EngineProcess::start_kept);
    let serving = engine.kept_engine().expect("an engine");
    engine.signal(Signal::SIGKILL);
    engine.wait();
    fs::write(mnt.join("file"), "served").expect("it is served");
    engine.unmount(&mnt, PATIENCE).expect("it is unmounted");
    kill(serving, Signal::SIGTERM).expect("it is there");
    wait_until("the engine has ended", || kill(serving, None).is_err());
}

fn ends_without_a_trace(mut engine: EngineProcess, folder: &Path, mnt: &Path) {
    engine.unmount(mnt, PATIENCE).expect("it is unmounted");
    let status = engine.shut_down().expect("a clean end");
    assert!(status.success(), "{status}: {}", engine.said());
    assert!(fs::read_dir(mnt).expect("the folder is there").next().is_none());
    assert!(!folder.join("engine.sock").exists() && !folder.join("engine.sock.keeper").exists());
    for volume in fs::read_dir(folder.join("state/tails")).expect("the state folder is there") {
        let left: Vec<_> = fs::read_dir(volume.expect("an entry").path())
            .expect("a volume's folder")
            .map(|entry| entry.expect("an entry").file_name())
            .filter(|name| name != "lock")
            .collect();
        assert!(left.is_empty(), "{left:?} is left");
    }
}
