//! Random operations on a few files of a mount, each compared with the same on bytes in memory: through read and write, at
//! the end (O_APPEND), past the page cache (O_DIRECT), through mappings, and with everything that gives or takes space.
//!
//! Goal: whatever order programs use these in, a byte read is the byte written last. Method: one seed is one list of
//! operations; between any two of them the volume may be unmounted, or its process killed after a sync, and comes back from
//! the bucket with an empty cache. The long form, with a seed to begin from:
//! `PANNIER_TEST_SEED=1 PANNIER_TEST_OPERATIONS=100000 cargo test --test posix exerciser -- --nocapture`.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use tests::calls::{Mapping, copy_range, drop_pages, fallocate, seek};
use tests::history::Dice;
use tests::mounted::Mounted;
use tests::scratch_volume::ScratchVolume;
use tests::transport::io_uring;

use tests::environment::{number, say};

/// 2,500 operations: some ten seconds, with about ten remounts.
const OPERATIONS: u64 = 2_500;

/// Files, so that content can be copied between them, and so that one is dirty while another is looked at.
const FILES: u64 = 3;

/// 1 MiB: large enough for several extents and requests, small enough to be compared as a whole.
const FILE_BYTES_MAX: u64 = 1024 * 1024;

/// What is told of the past when something is wrong.
const STORY_LINES: usize = 60;

/// A file and what it must contain.
struct Subject {
    path: PathBuf,
    expected: Vec<u8>,
    open: Option<Open>,
}

/// The ways into a file.
struct Open {
    plain: File,
    append: File,
    direct: File,
}

impl Open {
    fn new(path: &Path) -> Self {
        let way = |change: fn(&mut OpenOptions) -> &mut OpenOptions| {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(false);
            change(&mut options).open(path).expect("the file opens")
        };
        Self {
            plain: way(|options| options),
            append: way(|options| options.append(true)),
            direct: way(|options| options.custom_flags(libc::O_DIRECT)),
        }
    }
}

impl Subject {
    fn ways(&self) -> &Open {
        self.open.as_ref().expect("open between remounts")
    }

    fn len(&self) -> u64 {
        self.expected.len() as u64
    }

    /// What a write at `at` makes of the bytes.
    fn put(&mut self, at: u64, bytes: &[u8]) {
        let (at, end) = (at as usize, at as usize + bytes.len());
        if bytes.is_empty() {
            return;
        }
        if self.expected.len() < end {
            self.expected.resize(end, 0);
        }
        self.expected[at..end].copy_from_slice(bytes);
    }

    fn zero(&mut self, start: u64, end: u64) {
        let end = end.min(self.len()) as usize;
        if (start as usize) < end {
            self.expected[start as usize..end].fill(0);
        }
    }
}

struct Exerciser {
    scratch: ScratchVolume,
    mounted: Option<Mounted>,
    subjects: Vec<Subject>,
    dice: Dice,
    story: VecDeque<String>,
    seed: u64,
    steps: u64,
}

impl Exerciser {
    fn new(seed: u64, mut scratch: ScratchVolume) -> Self {
        let mounted = scratch.mount();
        let subject = |count| Subject {
            path: mounted.dir().join(format!("file-{count}")),
            expected: Vec::new(),
            open: None,
        };
        let subjects = (0..FILES).map(subject).collect();
        let mut exerciser = Self {
            scratch,
            mounted: Some(mounted),
            subjects,
            dice: Dice::new(seed),
            story: VecDeque::new(),
            seed,
            steps: 0,
        };
        exerciser.open_all();
        exerciser
    }

    fn open_all(&mut self) {
        for subject in &mut self.subjects {
            subject.open = Some(Open::new(&subject.path));
        }
    }

    fn tell(&mut self, line: String) {
        if self.story.len() == STORY_LINES {
            self.story.pop_front();
        }
        self.story.push_back(format!("{}: {line}", self.steps));
    }

    /// Ends the test with everything that is needed to do it again.
    fn fail(&self, what: &str) -> ! {
        let story: Vec<&str> = self.story.iter().map(String::as_str).collect();
        panic!("{what}\nPANNIER_TEST_SEED={}, after\n{}", self.seed, story.join("\n"));
    }

    fn same(&self, what: &str, at: u64, found: &[u8], expected: &[u8]) {
        if found.len() != expected.len() {
            self.fail(&format!(
                "{what}: {} bytes at {at}, expected {}",
                found.len(),
                expected.len()
            ));
        }
        if let Some(first) = found
            .iter()
            .zip(expected)
            .position(|(found, expected)| found != expected)
        {
            let differing = found
                .iter()
                .zip(expected)
                .filter(|(found, expected)| found != expected)
                .count();
            self.fail(&format!(
                "{what}: {differing} bytes differ, the first at {}: {:#x}, expected {:#x}",
                at + first as u64,
                found[first],
                expected[first]
            ));
        }
    }

    /// A range that begins within the largest file.
    fn range(&mut self) -> (u64, u64) {
        let longest = match self.dice.below(8) {
            0 => 300_000,
            1..4 => 40_000,
            _ => 6_000,
        };
        let start = match self.dice.below(3) {
            0 => self.dice.below(12_000),
            _ => self.dice.below(FILE_BYTES_MAX - 1),
        };
        // Pages are where mistakes like to be.
        let start = if self.dice.below(4) == 0 { start & !4095 } else { start };
        let len = 1 + self.dice.below(longest);
        (start, len.min(FILE_BYTES_MAX - start))
    }

    fn step(&mut self) {
        self.steps += 1;
        let number = self.dice.below(FILES) as usize;
        match self.dice.below(100) {
            0..18 => self.write(number),
            18..28 => self.read(number),
            28..35 => self.append(number),
            35..43 => self.map_write(number),
            43..48 => self.map_read(number),
            48..56 => self.truncate(number),
            56..72 => self.space(number),
            72..80 => self.copy(number),
            80..84 => self.holes(number),
            84..88 => self.sync(number),
            88..92 => self.reopen(number),
            _ => self.whole(number),
        }
        if self.dice.below(250) == 0 {
            self.remount();
        }
    }

    fn write(&mut self, number: usize) {
        let (at, len) = self.range();
        let (bytes, direct) = (self.dice.bytes(len), self.dice.below(5) == 0);
        self.tell(format!(
            "file {number}: write {at}+{len}{}",
            if direct { " direct" } else { "" }
        ));
        let ways = self.subjects[number].ways();
        let file = if direct { &ways.direct } else { &ways.plain };
        file.write_all_at(&bytes, at)
            .unwrap_or_else(|error| self.fail(&format!("write: {error}")));
        self.subjects[number].put(at, &bytes);
    }

    fn read(&mut self, number: usize) {
        let (at, len) = self.range();
        let direct = self.dice.below(4) == 0;
        self.tell(format!(
            "file {number}: read {at}+{len}{}",
            if direct { " direct" } else { "" }
        ));
        let subject = &self.subjects[number];
        let file = if direct {
            &subject.ways().direct
        } else {
            &subject.ways().plain
        };
        let end = (at + len).min(subject.len());
        let expected = &subject.expected[at.min(end) as usize..end as usize];
        let mut found = vec![0xEE; len as usize];
        let mut filled = 0;
        while filled < found.len() {
            match file.read_at(&mut found[filled..], at + filled as u64) {
                Ok(0) => break,
                Ok(more) => filled += more,
                Err(error) => self.fail(&format!("read: {error}")),
            }
        }
        self.same("read", at, &found[..filled], expected);
    }

    fn append(&mut self, number: usize) {
        let len = 1 + self.dice.below(9_000);
        let end = self.subjects[number].len();
        if end + len > FILE_BYTES_MAX {
            return self.truncate(number);
        }
        let bytes = self.dice.bytes(len);
        self.tell(format!("file {number}: append {len} at {end}"));
        (&self.subjects[number].ways().append)
            .write_all(&bytes)
            .unwrap_or_else(|error| self.fail(&format!("append: {error}")));
        self.subjects[number].put(end, &bytes);
    }

    fn map_write(&mut self, number: usize) {
        let (at, len) = self.range();
        let len = len.min(self.subjects[number].len().saturating_sub(at));
        if len == 0 {
            return;
        }
        let (bytes, sync) = (self.dice.bytes(len), self.dice.below(3) == 0);
        self.tell(format!(
            "file {number}: map and write {at}+{len}{}",
            if sync { ", msync" } else { "" }
        ));
        let mut mapping = Mapping::new(&self.subjects[number].ways().plain, at, len as usize);
        mapping.bytes().copy_from_slice(&bytes);
        if sync {
            mapping.sync();
        }
        drop(mapping);
        self.subjects[number].put(at, &bytes);
    }

    fn map_read(&mut self, number: usize) {
        let (at, len) = self.range();
        let len = len.min(self.subjects[number].len().saturating_sub(at));
        if len == 0 {
            return;
        }
        self.tell(format!("file {number}: map and read {at}+{len}"));
        let subject = &self.subjects[number];
        let mut mapping = Mapping::new(&subject.ways().plain, at, len as usize);
        let expected = &subject.expected[at as usize..(at + len) as usize];
        self.same("mapping", at, mapping.bytes(), expected);
    }

    fn truncate(&mut self, number: usize) {
        let len = match self.dice.below(4) {
            0 => self.dice.below(5_000),
            1 => 0,
            _ => self.dice.below(FILE_BYTES_MAX),
        };
        self.tell(format!(
            "file {number}: truncate {} to {len}",
            self.subjects[number].len()
        ));
        let done = match self.dice.below(3) {
            0 if len == 0 => File::create(&self.subjects[number].path).map(drop),
            _ => self.subjects[number].ways().plain.set_len(len),
        };
        done.unwrap_or_else(|error| self.fail(&format!("truncate: {error}")));
        self.subjects[number].expected.resize(len as usize, 0);
    }

    /// fallocate(2) in all its ways.
    fn space(&mut self, number: usize) {
        let (at, len) = self.range();
        let (keep, punch, zero) = (
            libc::FALLOC_FL_KEEP_SIZE,
            libc::FALLOC_FL_PUNCH_HOLE,
            libc::FALLOC_FL_ZERO_RANGE,
        );
        let mode = [0, keep, keep | punch, keep | punch, zero, zero | keep][self.dice.below(6) as usize];
        self.tell(format!("file {number}: fallocate {at}+{len}, mode {mode:#x}"));
        fallocate(
            self.subjects[number].ways().plain.as_raw_fd(),
            mode,
            at as i64,
            len as i64,
        )
        .unwrap_or_else(|error| self.fail(&format!("fallocate: {error}")));
        let subject = &mut self.subjects[number];
        if mode & (punch | zero) != 0 {
            subject.zero(at, at + len);
        }
        if mode & keep == 0 && at + len > subject.len() {
            subject.expected.resize((at + len) as usize, 0);
        }
    }

    fn copy(&mut self, to: usize) {
        let from = self.dice.below(FILES) as usize;
        let ((from_at, len), (to_at, _)) = (self.range(), self.range());
        let len = len
            .min(FILE_BYTES_MAX - to_at)
            .min(self.subjects[from].len().saturating_sub(from_at));
        if len == 0 || (from == to && from_at < to_at + len && to_at < from_at + len) {
            return;
        }
        self.tell(format!(
            "copy {len} from file {from} at {from_at} to file {to} at {to_at}"
        ));
        let mut copied = 0;
        while copied < len {
            let (source, target) = (&self.subjects[from].ways().plain, &self.subjects[to].ways().plain);
            match copy_range(
                (source, from_at + copied),
                (target, to_at + copied),
                (len - copied) as usize,
            ) {
                Ok(0) => self.fail(&format!("copy_file_range ended after {copied}")),
                Ok(more) => copied += more as u64,
                Err(error) => self.fail(&format!("copy_file_range: {error}")),
            }
        }
        let bytes = self.subjects[from].expected[from_at as usize..(from_at + len) as usize].to_vec();
        self.subjects[to].put(to_at, &bytes);
    }

    /// What SEEK_HOLE calls a hole reads as zeros, and SEEK_DATA leaves no byte out that is not zero.
    fn holes(&mut self, number: usize) {
        self.tell(format!("file {number}: seek holes"));
        let subject = &self.subjects[number];
        let (file, len) = (&subject.ways().plain, subject.len());
        let mut at = 0;
        while at < len {
            let data = match seek(file, at as i64, libc::SEEK_DATA) {
                Ok(data) => data as u64,
                Err(error) if error.raw_os_error() == Some(libc::ENXIO) => len,
                Err(error) => self.fail(&format!("SEEK_DATA: {error}")),
            };
            if data < at
                || data > len
                || subject.expected[at as usize..data as usize]
                    .iter()
                    .any(|byte| *byte != 0)
            {
                self.fail(&format!("SEEK_DATA from {at} skips data: {data} of {len}"));
            }
            if data == len {
                break;
            }
            at = match seek(file, data as i64, libc::SEEK_HOLE) {
                Ok(hole) if hole as u64 > data && hole as u64 <= len => hole as u64,
                other => self.fail(&format!("SEEK_HOLE from {data} of {len}: {other:?}")),
            };
        }
    }

    fn sync(&mut self, number: usize) {
        let data_only = self.dice.below(2) == 0;
        self.tell(format!("file {number}: sync, and drop its pages"));
        let file = &self.subjects[number].ways().plain;
        let done = if data_only { file.sync_data() } else { file.sync_all() };
        done.unwrap_or_else(|error| self.fail(&format!("sync: {error}")));
        drop_pages(&self.subjects[number].ways().plain);
    }

    fn reopen(&mut self, number: usize) {
        self.tell(format!("file {number}: close and open"));
        let subject = &mut self.subjects[number];
        subject.open = None;
        subject.open = Some(Open::new(&subject.path));
    }

    /// Length, blocks and content of the whole file.
    fn whole(&mut self, number: usize) {
        self.tell(format!("file {number}: read all"));
        let subject = &self.subjects[number];
        let metadata = fs::metadata(&subject.path).unwrap_or_else(|error| self.fail(&format!("stat: {error}")));
        if metadata.len() != subject.len() {
            self.fail(&format!("{} bytes long, expected {}", metadata.len(), subject.len()));
        }
        let found = fs::read(&subject.path).unwrap_or_else(|error| self.fail(&format!("read all: {error}")));
        self.same("all", 0, &found, &subject.expected);
    }

    /// From the bucket alone: after a clean unmount, or after a sync and a kill.
    fn remount(&mut self) {
        let kill = self.dice.below(2) == 0;
        self.tell(
            if kill {
                "sync, kill and mount"
            } else {
                "unmount and mount"
            }
            .to_owned(),
        );
        if kill {
            // One sync is enough for all of the files only once the kernel has written all their pages.
            for subject in &self.subjects {
                subject.ways().plain.sync_all().expect("a sync");
            }
        }
        self.subjects.iter_mut().for_each(|subject| subject.open = None);
        let mounted = self.mounted.take().expect("mounted between remounts");
        if kill {
            mounted.kill();
            // A dead mount stays until somebody takes it off.
            let _ = nix::mount::umount2(&self.scratch.options.dir, nix::mount::MntFlags::MNT_DETACH);
        } else {
            assert!(mounted.unmount().success(), "a clean unmount");
        }
        self.mounted = Some(self.scratch.mount());
        self.open_all();
        (0..self.subjects.len()).for_each(|number| self.whole(number));
    }
}

#[test]
fn exerciser_reads_what_it_wrote_last() {
    exercise(ScratchVolume::new(), OPERATIONS);
}

/// The same where the kernel reaches the program by io_uring.
#[test]
fn exerciser_reads_what_it_wrote_last_by_io_uring() {
    if let Some(transport) = io_uring() {
        exercise(ScratchVolume::on(transport), OPERATIONS / 2);
    }
}

fn exercise(scratch: ScratchVolume, operations: u64) {
    let operations = number("PANNIER_TEST_OPERATIONS").unwrap_or(operations);
    let seed = number("PANNIER_TEST_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16);
    say(&format!(
        "PANNIER_TEST_SEED={seed} PANNIER_TEST_OPERATIONS={operations}"
    ));
    let mut exerciser = Exerciser::new(seed, scratch);
    (0..operations).for_each(|_| exerciser.step());
    exerciser.remount();
    (0..exerciser.subjects.len()).for_each(|number| exerciser.holes(number));
    exerciser.subjects.iter_mut().for_each(|subject| subject.open = None);
    let mounted = exerciser.mounted.take().expect("mounted between remounts");
    let blocks: u64 = exerciser
        .subjects
        .iter()
        .map(|subject| fs::metadata(&subject.path).expect("a file").blocks())
        .sum();
    assert!(blocks * 512 <= FILES * (FILE_BYTES_MAX + 4096), "{blocks} blocks");
    exerciser.scratch.end(mounted);
}
