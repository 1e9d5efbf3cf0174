//! Mounts that outlive their engine: programs work on while it is killed or replaced, and see nothing but a pause.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::engine_process::{Ask, EngineProcess};
use tests::history::{Dice, Tree, carry_out};
use tests::local_store::LocalStore;

/// 8 kills here; `PANNIER_TEST_KILLS=1000` is the long run of the release notes.
const KILLS: u64 = 8;

/// 4 replacements here; `PANNIER_TEST_REPLACEMENTS=100` is the long run.
const REPLACEMENTS: u64 = 4;

/// 60 s for what takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

#[allow(
    clippy::disallowed_methods,
    reason = "tests take their length and their seed from the environment"
)]
fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[expect(clippy::disallowed_macros, reason = "a long test says how it goes on its own output")]
fn say(line: &str) {
    println!("{line}");
}

fn wait_until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < PATIENCE, "it never came that {what}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// What the programs share with who kills the engine.
#[derive(Default)]
struct Work {
    stopped: AtomicBool,
    /// Rounds of all programs together.
    rounds: AtomicU64,
    /// Calls of the one that measures.
    pulses: AtomicU64,
    /// The longest of them since somebody looked.
    longest: Mutex<Duration>,
}

impl Work {
    fn goes_on(&self) -> bool {
        self.rounds.fetch_add(1, Ordering::SeqCst);
        !self.stopped.load(Ordering::SeqCst)
    }
}

/// Makes, writes, moves, links and removes; each result is checked, and the whole tree now and then.
fn any_changes(root: &Path, mut dice: Dice, work: &Work) {
    let mut tree = Tree::default();
    let mut round = 0u64;
    while work.goes_on() {
        let steps = tree.plan(&mut dice);
        carry_out(root, &steps).unwrap_or_else(|error| {
            let before = Tree::read_from(root).is_ok_and(|found| found == tree);
            let what: String = format!("{steps:?}").chars().take(80).collect();
            panic!("{}: {what}: {error}; the tree is as before: {before}", root.display());
        });
        steps.iter().for_each(|step| tree.apply(step));
        round += 1;
        if round.is_multiple_of(50) {
            File::open(root)
                .and_then(|root| root.sync_all())
                .expect("an fsync holds");
        }
        if round.is_multiple_of(200) {
            assert!(
                Tree::read_from(root).expect("it can be read") == tree,
                "{}",
                root.display()
            );
        }
    }
    assert!(
        Tree::read_from(root).expect("it can be read") == tree,
        "{}",
        root.display()
    );
}

/// Appends lines to a log and syncs each, and reads them all at the end: none is lost, none is there twice.
fn appends(root: &Path, work: &Work) {
    let path = root.join("log");
    let mut log = OpenOptions::new()
        .create_new(true)
        .append(true)
        .open(&path)
        .expect("a log");
    let mut lines = 0u64;
    while work.goes_on() {
        writeln!(log, "line {lines}").expect("a line is appended");
        if lines.is_multiple_of(8) {
            log.sync_data().expect("a line is synced");
        }
        lines += 1;
    }
    let text = fs::read_to_string(&path).expect("the log can be read");
    let wanted: String = (0..lines).map(|line| format!("line {line}\n")).collect();
    assert!(text == wanted, "{lines} lines were appended");
}

/// A file that is open and has no name: it is written and read as if nothing were.
fn unlinked(root: &Path, work: &Work) {
    let path = root.join("gone");
    let file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(&path)
        .expect("a file");
    file.write_all_at(b"kept", 0).expect("it is written");
    fs::remove_file(&path).expect("its name goes");
    let mut number = 0u64;
    while work.goes_on() {
        let at = 4096 * (1 + number % 64);
        file.write_all_at(&number.to_le_bytes(), at).expect("it can be written");
        file.sync_all().expect("it can be synced");
        nix::fcntl::posix_fadvise(&file, 0, 0, nix::fcntl::PosixFadviseAdvice::POSIX_FADV_DONTNEED)
            .expect("the kernel forgets it");
        let mut found = [0; 8];
        file.read_exact_at(&mut found, at).expect("it can be read");
        assert_eq!(u64::from_le_bytes(found), number);
        let mut kept = [0; 4];
        file.read_exact_at(&mut kept, 0).expect("it can be read");
        assert_eq!(&kept, b"kept");
        assert_eq!(file.metadata().expect("it has attributes").nlink(), 0);
        number += 1;
    }
}

/// Writes through a map and syncs it; each page says what it should.
fn mapped(root: &Path, work: &Work) {
    const PAGES: usize = 64;
    let file = OpenOptions::new()
        .create_new(true)
        .read(true)
        .write(true)
        .open(root.join("map"))
        .expect("a file");
    let len = PAGES * 4096;
    file.set_len(len as u64).expect("it gets its length");
    let rights = libc::PROT_READ | libc::PROT_WRITE;
    // SAFETY: a new mapping at an address of the kernel's choice; the file stays as long as it is until the end.
    let map = unsafe { libc::mmap(std::ptr::null_mut(), len, rights, libc::MAP_SHARED, file.as_raw_fd(), 0) };
    assert_ne!(map, libc::MAP_FAILED, "{}", std::io::Error::last_os_error());
    let mut number = 0u64;
    while work.goes_on() {
        let page = (number % PAGES as u64) as usize;
        // SAFETY: inside of the mapping, aligned, and used by this thread alone.
        unsafe { map.cast::<u64>().add(page * 512).write_volatile(number) };
        // SAFETY: the mapping is there, with this length.
        let synced = unsafe { libc::msync(map, len, libc::MS_SYNC) };
        assert_eq!(synced, 0, "{}", std::io::Error::last_os_error());
        let mut found = [0; 8];
        file.read_exact_at(&mut found, page as u64 * 4096)
            .expect("it can be read");
        assert_eq!(u64::from_le_bytes(found), number);
        number += 1;
    }
    // SAFETY: the mapping is there, and nobody uses it any more.
    assert_eq!(unsafe { libc::munmap(map, len) }, 0);
}

/// Holds a lock all the time, walks a directory whose listing it never begins anew, and follows a file that grows.
fn holds(root: &Path, work: &Work) {
    let locked = OpenOptions::new()
        .create(true)
        .truncate(false)
        .write(true)
        .open(root.join("lock"))
        .expect("a file");
    let _lock = Flock::lock(locked, FlockArg::LockExclusiveNonblock)
        .map_err(|(_, error)| error)
        .expect("a lock");
    for number in 0..300 {
        fs::write(root.join(format!("entry-{number}")), number.to_string()).expect("an entry");
    }
    let mut grows = OpenOptions::new()
        .create_new(true)
        .append(true)
        .open(root.join("grows"))
        .expect("a file");
    let mut follows = File::open(root.join("grows")).expect("it can be followed");
    let (mut walk, mut seen) = (fs::read_dir(root).expect("a listing"), 0);
    let mut number = 0u64;
    while work.goes_on() {
        let again = File::open(root.join("lock")).expect("it can be opened");
        assert!(
            Flock::lock(again, FlockArg::LockExclusiveNonblock).is_err(),
            "the lock was lost"
        );
        writeln!(grows, "{number}").expect("it grows");
        let mut line = String::new();
        follows.read_to_string(&mut line).expect("it can be followed");
        assert_eq!(line, format!("{number}\n"));
        match walk.next() {
            Some(entry) => {
                entry.expect("an entry");
                seen += 1;
            }
            None => {
                assert_eq!(seen, 302, "a listing told each entry once");
                (walk, seen) = (fs::read_dir(root).expect("a listing"), 0);
            }
        }
        number += 1;
    }
}

/// Calls that reach the engine each time, one after another: how long the longest took.
fn pulse(root: &Path, work: &Work) {
    let mut number = 0u64;
    while work.goes_on() {
        let (path, other) = (root.join(format!("p{number}")), root.join(format!("q{number}")));
        let begun = Instant::now();
        fs::create_dir(&path).expect("a folder comes");
        fs::rename(&path, &other).expect("it is moved");
        fs::remove_dir(&other).expect("it goes");
        let took = begun.elapsed();
        let mut longest = work.longest.lock().expect("nobody panics with it");
        *longest = took.max(*longest);
        drop(longest);
        work.pulses.fetch_add(1, Ordering::SeqCst);
        number += 1;
    }
}

/// What one of them does in its folder.
type Program = fn(&Path, &Work);

/// Eight programs on a mount, until `interrupt` has done its part.
fn at_work(mnt: &Path, dice: &mut Dice, interrupt: impl FnOnce(&Work)) {
    let work = Arc::new(Work::default());
    let folder = |name: &str| -> PathBuf {
        let path = mnt.join(name);
        fs::create_dir(&path).expect("a folder for each");
        path
    };
    std::thread::scope(|scope| {
        let ends = EndsWith(&work);
        for number in 0..3 {
            let (root, dice, work) = (folder(&format!("any-{number}")), Dice::new(dice.roll()), &work);
            scope.spawn(move || any_changes(&root, dice, work));
        }
        let programs: [(&str, Program); 5] = [
            ("append", appends),
            ("unlinked", unlinked),
            ("mapped", mapped),
            ("holds", holds),
            ("pulse", pulse),
        ];
        for (name, program) in programs {
            let (root, work) = (folder(name), &work);
            scope.spawn(move || program(&root, work));
        }
        interrupt(&work);
        drop(ends);
    });
}

/// Ends the programs also where a check fails: a test that waits for them must end.
struct EndsWith<'a>(&'a Work);

impl Drop for EndsWith<'_> {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::SeqCst);
    }
}

/// Waits until the programs go on behind `engine`, and tells how long the longest call took meanwhile.
fn recovered(engine: &EngineProcess, work: &Work, before: Pid) -> Duration {
    let is_new = || engine.kept_engine().is_some_and(|now| now != before);
    wait_until("another engine runs", is_new);
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

fn seed() -> u64 {
    from_environment("PANNIER_TEST_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16)
}

/// kill -9 of the engine under programs that make, move and remove files, append, write through maps, sync and lock: no call fails,
/// nothing is lost or done twice, open files, unlinked ones, locks, listings and maps go on. At the end nothing is left behind.
#[test]
#[ignore = "not sure yet: one call of some hundred runs was refused that should not have been, see docs/survival.md"]
fn programs_see_no_more_than_a_pause_when_the_engine_is_killed() {
    let (kills, seed) = (from_environment("PANNIER_TEST_KILLS").unwrap_or(KILLS), seed());
    say(&format!("PANNIER_TEST_SEED={seed} PANNIER_TEST_KILLS={kills}"));
    let mut dice = Dice::new(seed);
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start_kept(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
    let mut pauses = Vec::new();
    at_work(&mnt, &mut dice.clone(), |work| {
        for _ in 0..kills {
            let until = work.rounds.load(Ordering::SeqCst) + 20 + dice.below(400);
            wait_until("programs work", || work.rounds.load(Ordering::SeqCst) >= until);
            let before = engine.kept_engine().expect("an engine runs");
            kill(before, Signal::SIGKILL).expect("it is there");
            pauses.push(recovered(&engine, work, before));
        }
    });
    tell_pauses("kills", pauses);
    assert_eq!(engine.mounts().len(), 1, "the last engine knows the mount");
    ends_without_a_trace(engine, &folder, &mnt);
}

/// An engine is replaced by another one under the same programs: the new one is there before the old one goes.
#[test]
#[ignore = "not sure yet: one call of some hundred runs was refused that should not have been, see docs/survival.md"]
fn programs_see_no_more_than_a_pause_when_the_engine_is_replaced() {
    let (replacements, seed) = (
        from_environment("PANNIER_TEST_REPLACEMENTS").unwrap_or(REPLACEMENTS),
        seed(),
    );
    say(&format!(
        "PANNIER_TEST_SEED={seed} PANNIER_TEST_REPLACEMENTS={replacements}"
    ));
    let mut dice = Dice::new(seed);
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start_kept(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
    let mut pauses = Vec::new();
    at_work(&mnt, &mut dice, |work| {
        for _ in 0..replacements {
            let before = engine.kept_engine().expect("an engine runs");
            engine.replace_engine(&[]);
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
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start_kept(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
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
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start_kept_for(&store, &folder, 2);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
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
    assert!(
        [Some(libc::ENOTCONN), Some(libc::ECONNABORTED)].contains(&error.raw_os_error()),
        "{error}"
    );
    engine.wait();
    drop(engine);
    fs::remove_dir(&log).expect("the folder goes");
    let mut engine = EngineProcess::start_kept(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
    assert_eq!(fs::read_to_string(&path).expect("it is there"), "told");
    ends_without_a_trace(engine, &folder, &mnt);
}

/// A keeper that dies takes nothing with it: the engine serves on, and unmounts.
#[test]
fn a_killed_keeper_leaves_a_mount_that_serves() {
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start_kept(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
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
