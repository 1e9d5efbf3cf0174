//! What programs do to a file system, as tight native loops that never wait for anything but it.
//!
//! A load stops at its budget of time, so that a slow system costs a bench seconds and not hours; its rate is of what it did.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::time::{Duration, Instant};

use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::lstat;

/// Bytes of a small file.
pub const SMALL_BYTES: usize = 4096;

/// How much of a load was done, and in what time.
#[derive(Debug, Clone, Copy)]
pub struct Done {
    /// Operations, files or bytes.
    pub count: u64,
    /// What each of the workers has done at least, times their number: so many have been done to files numbered alike.
    pub by_all: u64,
    /// From the first to the last.
    pub elapsed: Duration,
}

impl Done {
    /// What one worker did since `begun`.
    fn by_one(count: u64, begun: Instant) -> Self {
        Self {
            count,
            by_all: count,
            elapsed: begun.elapsed(),
        }
    }

    /// Counts per second.
    pub fn rate(&self) -> f64 {
        self.count as f64 / self.elapsed.as_secs_f64().max(1e-9)
    }
}

/// Where and how long a load runs.
#[derive(Debug, Clone, Copy)]
pub struct Budget {
    /// At most so many operations, all workers together.
    pub count: u64,
    /// At most so long.
    pub time: Duration,
}

/// Runs `act(worker, n)` for each `n` below a worker's share, in as many threads as there are workers, each with a table of
/// descriptors of its own, as processes have them.
pub fn each(workers: u64, budget: Budget, act: impl Fn(u64, u64) + Sync) -> Done {
    let share = budget.count / workers;
    let begun = Instant::now();
    let work = |worker| {
        if workers > 1 {
            unshare(CloneFlags::CLONE_FILES).expect("a thread may have descriptors of its own");
        }
        let mut done = 0;
        while done < share && begun.elapsed() < budget.time {
            act(worker, done);
            done += 1;
        }
        done
    };
    if workers == 1 {
        return Done::by_one(work(0), begun);
    }
    let work = &work;
    let counts: Vec<u64> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("a worker does not panic"))
            .collect()
    });
    Done {
        count: counts.iter().sum(),
        by_all: counts.iter().min().expect("there are workers") * workers,
        elapsed: begun.elapsed(),
    }
}

fn path(dir: &Path, worker: u64, n: u64) -> std::path::PathBuf {
    dir.join(format!("w{worker}")).join(format!("file-{n:06}"))
}

/// Makes the folders that the loads of small files work in.
pub fn prepare(dir: &Path, workers: u64) {
    for worker in 0..workers {
        fs::create_dir_all(dir.join(format!("w{worker}"))).unwrap();
    }
}

/// Creates files, writes 4 KiB to each and closes them.
pub fn create(dir: &Path, workers: u64, budget: Budget) -> Done {
    let content = [7u8; SMALL_BYTES];
    each(workers, budget, |worker, n| {
        let mut file = File::create_new(path(dir, worker, n)).unwrap();
        file.write_all(&content).unwrap();
    })
}

/// Asks for the attributes of each file, as ls(1) and find(1) do: not for the time of birth, which costs a request more.
pub fn stat(dir: &Path, workers: u64, budget: Budget) -> Done {
    each(workers, budget, |worker, n| {
        assert_eq!(lstat(&path(dir, worker, n)).unwrap().st_size, SMALL_BYTES as i64);
    })
}

/// Opens, reads and closes each file.
pub fn open_read(dir: &Path, workers: u64, budget: Budget) -> Done {
    each(workers, budget, |worker, n| {
        let mut content = [0u8; SMALL_BYTES];
        let mut file = File::open(path(dir, worker, n)).unwrap();
        file.read_exact(&mut content).unwrap();
        assert_eq!(content[17], 7);
    })
}

/// Renames each file within its folder.
pub fn rename(dir: &Path, workers: u64, budget: Budget) -> Done {
    each(workers, budget, |worker, n| {
        let from = path(dir, worker, n);
        fs::rename(&from, from.with_extension("renamed")).unwrap();
    })
}

/// Removes each renamed file.
pub fn unlink(dir: &Path, workers: u64, budget: Budget) -> Done {
    each(workers, budget, |worker, n| {
        fs::remove_file(path(dir, worker, n).with_extension("renamed")).unwrap();
    })
}

/// Lists a tree of folders; with `stat`, asks for the attributes of each entry too. Counts entries.
pub fn find(dir: &Path, stat: bool) -> Done {
    let begun = Instant::now();
    let mut count = 0;
    let mut left = vec![dir.to_owned()];
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            count += 1;
            if stat {
                assert!(lstat(&entry.path()).unwrap().st_ino > 0);
            }
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            }
        }
    }
    Done::by_one(count, begun)
}

/// Appends 4 KiB and syncs, each worker to a file of its own; returns what the single ones took as well, ascending.
pub fn append_sync(dir: &Path, workers: u64, budget: Budget) -> (Done, Vec<Duration>) {
    let files: Vec<File> = (0..workers)
        .map(|worker| {
            let path = dir.join(format!("log-{worker}"));
            File::options().create(true).append(true).open(path).unwrap()
        })
        .collect();
    let block = [3u8; SMALL_BYTES];
    let times = std::sync::Mutex::new(Vec::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for mut file in &files {
            let (times, block) = (&times, &block);
            scope.spawn(move || {
                let mut own = Vec::new();
                while (own.len() as u64) < budget.count / workers && begun.elapsed() < budget.time {
                    let begun = Instant::now();
                    file.write_all(block).unwrap();
                    file.sync_data().unwrap();
                    own.push(begun.elapsed());
                }
                times.lock().expect("no worker panics").extend(own);
            });
        }
    });
    let elapsed = begun.elapsed();
    let mut times = times.into_inner().expect("no worker panics");
    times.sort();
    let count = times.len() as u64;
    let done = Done {
        count,
        by_all: count,
        elapsed,
    };
    (done, times)
}

/// 1 MiB that does not compress and is like no other.
pub fn block(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..(1 << 20) / 8).flat_map(|_| next()).collect()
}

/// Writes a file of `blocks` in sequence, then syncs it. Counts bytes.
pub fn write_large(file: &Path, blocks: &[Vec<u8>]) -> Done {
    let begun = Instant::now();
    let mut file = File::create(file).unwrap();
    for block in blocks {
        file.write_all(block).unwrap();
    }
    file.sync_all().unwrap();
    Done::by_one(blocks.iter().map(|block| block.len() as u64).sum(), begun)
}

/// Reads it in sequence, and checks it by its first and last bytes of each MiB.
pub fn read_large(file: &Path, blocks: &[Vec<u8>]) -> Done {
    let begun = Instant::now();
    let mut file = File::open(file).unwrap();
    let mut buffer = vec![0; 1 << 20];
    for block in blocks {
        file.read_exact(&mut buffer).unwrap();
        assert!(buffer[..64] == block[..64] && buffer[(1 << 20) - 64..] == block[(1 << 20) - 64..]);
    }
    Done::by_one(blocks.len() as u64 * (1 << 20), begun)
}

/// Reads 4 KiB at places that have no order, without the kernel's read-ahead or page cache.
pub fn read_random(file: &Path, mib: u64, budget: Budget) -> Done {
    let file = File::options()
        .read(true)
        .custom_flags(nix::libc::O_DIRECT)
        .open(file)
        .unwrap();
    let pages = mib * 256;
    // O_DIRECT wants memory at the bounds of a block.
    let memory = vec![0u8; 8192];
    let skip = memory.as_ptr().align_offset(4096);
    let memory = std::sync::Mutex::new(memory);
    each(1, budget, |_, n| {
        let page = n.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        let mut memory = memory.lock().expect("one worker");
        file.read_exact_at(&mut memory[skip..skip + 4096], page % pages * 4096)
            .unwrap();
    })
}

/// The shape of a source tree: files of 1 to 40 KiB, 10 KiB in the mean, 20 to a folder.
pub fn unpack(dir: &Path, files: u64) -> Done {
    let content = block(99);
    let begun = Instant::now();
    for n in 0..files {
        let folder = dir.join(format!("d{}", n / 400)).join(format!("d{}", n / 20));
        if n % 20 == 0 {
            fs::create_dir_all(&folder).unwrap();
        }
        let bytes = 1024 + (n * n * 7_919 % 19_000) as usize;
        let file = folder.join(format!("source-{n}.rs"));
        let mut written = File::options()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&file)
            .unwrap();
        written.write_all(&content[n as usize..n as usize + bytes]).unwrap();
        // As tar(1) does: the time and the mode that the archive says.
        written
            .set_modified(std::time::UNIX_EPOCH + Duration::from_secs(1_700_000_000))
            .unwrap();
        written
            .set_permissions(std::os::unix::fs::PermissionsExt::from_mode(0o644))
            .unwrap();
    }
    Done::by_one(files, begun)
}

/// Reads everything below a folder. Counts files.
pub fn read_tree(dir: &Path) -> Done {
    let begun = Instant::now();
    let (mut count, mut left) = (0, vec![dir.to_owned()]);
    while let Some(dir) = left.pop() {
        for entry in fs::read_dir(&dir).unwrap() {
            let entry = entry.unwrap();
            if entry.file_type().unwrap().is_dir() {
                left.push(entry.path());
            } else {
                assert!(fs::read(entry.path()).unwrap().len() >= 1024);
                count += 1;
            }
        }
    }
    Done::by_one(count, begun)
}

/// Removes everything below a folder, and it.
pub fn remove_tree(dir: &Path) -> Done {
    let begun = Instant::now();
    fs::remove_dir_all(dir).unwrap();
    Done::by_one(1, begun)
}

/// Makes everything that was done below a folder durable.
pub fn sync(dir: &Path) -> Done {
    let begun = Instant::now();
    let folder = File::open(dir).unwrap();
    nix::unistd::syncfs(&folder).unwrap();
    folder.sync_all().unwrap();
    Done::by_one(1, begun)
}
