//! Eight programs at work on a mount, each of which checks every result: what they see of the end of an engine is a pause.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::fcntl::{Flock, FlockArg};
use tests::history::{Dice, Tree, carry_out};

/// What the programs share with who kills the engine.
#[derive(Default)]
pub struct Work {
    stopped: AtomicBool,
    /// Rounds of all programs together.
    pub rounds: AtomicU64,
    /// Calls of the one that measures.
    pub pulses: AtomicU64,
    /// The longest of them since somebody looked.
    pub longest: Mutex<Duration>,
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

/// Files that are made without a name (O_TMPFILE), and get one when they are whole, as installers do: each is there as it was written.
fn nameless(root: &Path, work: &Work) {
    let (mut number, named) = (0u64, root.join("named"));
    while work.goes_on() {
        let file = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_TMPFILE)
            .open(root)
            .expect("a file without a name");
        file.write_all_at(&number.to_le_bytes(), 0).expect("it is written");
        let from = format!("/proc/self/fd/{}", file.as_raw_fd());
        let follow = nix::fcntl::AtFlags::AT_SYMLINK_FOLLOW;
        nix::unistd::linkat(
            nix::fcntl::AT_FDCWD,
            from.as_str(),
            nix::fcntl::AT_FDCWD,
            &named,
            follow,
        )
        .expect("it gets a name");
        assert_eq!(fs::read(&named).expect("it can be read"), number.to_le_bytes());
        fs::remove_file(&named).expect("its name goes");
        number += 1;
    }
    assert_eq!(fs::read_dir(root).expect("a listing").count(), 0);
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

/// Nine programs on a mount, until `interrupt` has done its part.
pub fn at_work(mnt: &Path, dice: &mut Dice, interrupt: impl FnOnce(&Work)) {
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
        let programs: [(&str, Program); 6] = [
            ("append", appends),
            ("unlinked", unlinked),
            ("nameless", nameless),
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
