//! What operations on a mounted volume cost: requests, bytes and time, at the distance of a real bucket.
//!
//! MinIO stands behind a proxy that adds 20 ms to each PUT and 12 ms to each GET and counts what goes through. The limits of
//! requests hold on any machine and are asserted, by `cargo test` too. Times are printed beside the time of a bare PUT in the
//! same run. That of a synced append is asserted: of its tenth percentile always, which says what the volume itself adds, and
//! of its median with `--times`, on a machine that does nothing else.
//!
//! `cargo test -p tests --bench requests -- [--times] [--mib N]`, or `cargo bench` for the optimised program.

#![allow(clippy::disallowed_macros, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "each step of a bench must succeed")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use tests::mounted::{MountOptions, Mounted};
use tests::s3_proxy::{Counts, Delays, S3Proxy, Verb};
use tests::s3_server::{Kind, S3Server};
use tokio::runtime::Runtime;
use volume::bucket::Bucket;
use volume::head::Transport;
use volume_s3::{S3Options, S3Store};

/// Appends with fsync.
const APPENDS: usize = 100;

/// A late PUT is sent a second time, for one in twenty at most (`csi/s3/src/hedge.rs`).
const HEDGED_PUTS_MAX: u64 = APPENDS as u64 + APPENDS as u64 / 20;

/// Small files.
const FILES: usize = 1_000;

/// Bytes of an append, and of a small file.
const SMALL_BYTES: usize = 4096;

/// Who create and sync them at the same time, in the part that does.
const WRITERS: usize = 25;

/// What 1,000 files of 4 KiB and a sync may cost.
const FILES_PUTS_MAX: u64 = 10;

/// What 1 GiB may cost.
const GIB_PUTS_MAX: u64 = 140;

/// A part of the bench, as it went.
struct Row {
    name: String,
    operations: usize,
    counts: Counts,
    elapsed: Duration,
    /// Of single operations, ascending; empty where only the whole was timed.
    times: Vec<Duration>,
}

impl Row {
    fn puts(&self) -> u64 {
        self.counts.of(Verb::Put).requests
    }

    /// The time that `per_cent` of the operations did not exceed.
    fn quantile(&self, per_cent: usize) -> Duration {
        self.times[(self.times.len() - 1) * per_cent / 100]
    }

    fn print(&self) {
        println!("{}: {:.3} s", self.name, self.elapsed.as_secs_f64());
        println!("    {}", self.counts);
        let put = self.counts.of(Verb::Put);
        let of_each = |count: u64| count as f64 / self.operations as f64;
        println!(
            "    per operation: {:.3} PUT, {:.0} B up",
            of_each(put.requests),
            of_each(put.request_bytes)
        );
        if !self.times.is_empty() {
            let [p50, p90, p99] = [50, 90, 99].map(|q| self.quantile(q).as_secs_f64() * 1e3);
            println!("    times: median {p50:.2} ms, 90 % {p90:.2} ms, 99 % {p99:.2} ms");
        }
    }
}

struct Bench {
    runtime: Runtime,
    server: S3Server,
    proxy: S3Proxy,
    scratch: tempfile::TempDir,
}

impl Bench {
    fn start() -> Option<Self> {
        let runtime = Runtime::new().unwrap();
        let server = runtime.block_on(S3Server::start_in_ram(Kind::Minio))?;
        let proxy = runtime.block_on(async {
            server.bucket("bench").await;
            S3Proxy::start(server.endpoint(), Delays::REGION).await
        });
        let scratch = tempfile::Builder::new().prefix("pannier-bench-").tempdir().unwrap();
        fs::create_dir(scratch.path().join("volume")).unwrap();
        Some(Self {
            runtime,
            server,
            proxy,
            scratch,
        })
    }

    fn mount(&self, cache: &str) -> Mounted {
        let options = MountOptions {
            location: "s3://bench/volume".to_owned(),
            endpoint: self.proxy.endpoint(),
            dir: self.scratch.path().join("volume"),
            cache_dir: self.scratch.path().join(cache),
            create: true,
            read_only: false,
            transport: Transport::Classic,
            environment: Vec::new(),
        };
        Mounted::new(&options)
    }

    /// Waits until nothing has been asked of the store for a second: what follows is then not the cost of what was before.
    fn settle(&self) {
        let begun = Instant::now();
        let (mut seen, mut since) = (self.proxy.counts(), Instant::now());
        while since.elapsed() < Duration::from_secs(1) {
            assert!(
                begun.elapsed() < Duration::from_secs(60),
                "the volume does not come to rest: {seen}"
            );
            std::thread::park_timeout(Duration::from_millis(50));
            let now = self.proxy.counts();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }

    /// Runs a part and counts what it costs; `part` returns the times of its operations.
    fn row(&self, name: &str, operations: usize, part: impl FnOnce() -> Vec<Duration>) -> Row {
        self.settle();
        let (before, begun) = (self.proxy.counts(), Instant::now());
        let mut times = part();
        let elapsed = begun.elapsed();
        times.sort();
        let counts = self.proxy.counts().since(&before);
        let row = Row {
            name: name.to_owned(),
            operations,
            counts,
            elapsed,
            times,
        };
        row.print();
        row
    }

    /// The yardstick: the same PUT by our client, without a volume.
    fn bare_puts(&self) -> Row {
        let endpoint = Some(self.proxy.endpoint());
        let options = S3Options {
            endpoint,
            credentials: S3Server::credentials(),
            ..S3Options::default()
        };
        let store: Arc<S3Store> = self.runtime.block_on(S3Store::connect(options)).unwrap();
        let bucket = store.bucket("bench");
        let put = |n: usize| {
            let body = Bytes::from(vec![7; SMALL_BYTES]);
            timed(|| {
                self.runtime
                    .block_on(bucket.put_if_absent(&format!("bare/{n}"), body))
                    .map(drop)
                    .unwrap()
            })
        };
        put(APPENDS);
        self.row("a bare PUT of 4 KiB", APPENDS, || (0..APPENDS).map(put).collect())
    }
}

fn timed(act: impl FnOnce()) -> Duration {
    let begun = Instant::now();
    act();
    begun.elapsed()
}

fn append_and_sync(dir: &Path) -> Vec<Duration> {
    let mut file = File::options().create(true).append(true).open(dir.join("log")).unwrap();
    let block = [1; SMALL_BYTES];
    let append = |_| {
        timed(|| {
            file.write_all(&block).unwrap();
            file.sync_data().unwrap();
        })
    };
    (0..APPENDS).map(append).collect()
}

fn create_files_and_sync(dir: &Path) -> Vec<Duration> {
    let folder = dir.join("files");
    fs::create_dir(&folder).unwrap();
    let create = |n| timed(|| fs::write(folder.join(format!("{n:04}")), [n as u8; SMALL_BYTES]).unwrap());
    let times = (0..FILES).map(create).collect();
    // sync(2) makes the kernel hand over what it holds; it does not tell a FUSE server to make it durable. The fsync does,
    // and of anything in the volume, because the journal is one order.
    let root = File::open(dir).unwrap();
    nix::unistd::syncfs(&root).unwrap();
    root.sync_all().unwrap();
    times
}

/// Each writer makes its own files durable, one by one, as many small databases would.
fn create_files_and_sync_each(dir: &Path) -> Vec<Duration> {
    let folder = dir.join("synced");
    fs::create_dir(&folder).unwrap();
    let create = |writer: usize, n: usize| {
        timed(|| {
            let mut file = File::create_new(folder.join(format!("{writer}-{n}"))).unwrap();
            file.write_all(&[n as u8; SMALL_BYTES]).unwrap();
            file.sync_all().unwrap();
        })
    };
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|writer| scope.spawn(move || (0..FILES / WRITERS).map(|n| create(writer, n)).collect::<Vec<_>>()))
            .collect();
        writers.into_iter().flat_map(|writer| writer.join().unwrap()).collect()
    })
}

/// Bytes that do not compress and are not equal at any two places, without a random number for each.
fn block(number: u64) -> Vec<u8> {
    let mut state = number.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()
    };
    (0..(1 << 20) / 8).flat_map(|_| next()).collect()
}

fn write_in_sequence(dir: &Path, mib: u64) -> Vec<Duration> {
    let mut file = File::create(dir.join("large")).unwrap();
    for number in 0..mib {
        file.write_all(&block(number)).unwrap();
    }
    file.sync_all().unwrap();
    Vec::new()
}

fn read_in_sequence(dir: &Path, mib: u64) -> Vec<Duration> {
    let mut file = File::open(dir.join("large")).unwrap();
    let mut buffer = vec![0; 1 << 20];
    for number in 0..mib {
        file.read_exact(&mut buffer).unwrap();
        assert!(buffer == block(number), "MiB {number} is not what was written");
    }
    assert_eq!(file.read(&mut buffer).unwrap(), 0, "the file ends where it did");
    Vec::new()
}

fn read_files(dir: &Path) -> Vec<Duration> {
    let mut names: Vec<_> = fs::read_dir(dir.join("files"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .collect();
    names.sort();
    assert_eq!(names.len(), FILES);
    let read = |(n, path): (usize, &std::path::PathBuf)| {
        timed(|| assert_eq!(fs::read(path).unwrap(), [n as u8; SMALL_BYTES], "{}", path.display()))
    };
    names.iter().enumerate().map(read).collect()
}

struct Arguments {
    times: bool,
    mib: u64,
}

fn arguments() -> Arguments {
    let mut parsed = Arguments {
        times: false,
        mib: 1024,
    };
    let mut given = std::env::args().skip(1);
    while let Some(argument) = given.next() {
        match argument.as_str() {
            "--times" => parsed.times = true,
            "--mib" => {
                parsed.mib = given
                    .next()
                    .and_then(|mib| mib.parse().ok())
                    .expect("--mib needs a number")
            }
            // What cargo itself passes to a bench or test.
            _ => {}
        }
    }
    parsed
}

fn main() {
    let arguments = arguments();
    let Some(bench) = Bench::start() else { return };
    println!("MinIO at {}, behind {:?}", bench.server.endpoint(), Delays::REGION);
    let bare = bench.bare_puts();
    let mounted = bench.mount("cache-one");
    let dir = mounted.dir().to_owned();

    let appends = bench.row("append 4 KiB and fsync", APPENDS, || append_and_sync(&dir));
    assert!(
        (APPENDS as u64..=HEDGED_PUTS_MAX).contains(&appends.puts()),
        "an append with fsync is one PUT, and one in twenty may be sent again: {} PUTs",
        appends.puts()
    );
    let files = bench.row("create 1,000 files of 4 KiB, then sync", FILES, || {
        create_files_and_sync(&dir)
    });
    assert!(files.puts() <= FILES_PUTS_MAX, "1,000 files cost {} PUTs", files.puts());
    let synced = bench.row("create 1,000 files with an fsync each, 25 writers", FILES, || {
        create_files_and_sync_each(&dir)
    });
    assert!(
        synced.puts() < FILES as u64 / 2,
        "commits of many writers go together: {} PUTs",
        synced.puts()
    );
    let mib = arguments.mib;
    let large = bench.row(
        &format!("write {mib} MiB in sequence, then fsync"),
        mib as usize,
        || write_in_sequence(&dir, mib),
    );
    // A smaller trial must not cost a larger share; its own few extra PUTs are what the last 12 of 140 are for.
    let puts_max = (GIB_PUTS_MAX - 12) * mib / 1024 + 12;
    assert!(
        large.puts() <= puts_max,
        "{mib} MiB cost {} PUTs, at most {puts_max} are allowed",
        large.puts()
    );

    assert!(mounted.unmount().success(), "SIGTERM flushes and unmounts");
    let mounted = bench.mount("cache-two");
    bench.row("read 1,000 files of 4 KiB, cold", FILES, || read_files(&dir));
    bench.row(&format!("read {mib} MiB in sequence, cold"), mib as usize, || {
        read_in_sequence(&dir, mib)
    });
    assert!(mounted.unmount().success(), "SIGTERM unmounts");

    let limit = Delays::REGION.write.mul_f64(1.2) + Duration::from_millis(2);
    let (best, median, bare) = (appends.quantile(10), appends.quantile(50), bare.quantile(50));
    println!("append and fsync: median {median:.1?}, 10 % {best:.1?}, limit {limit:.1?}; a bare PUT {bare:.1?}");
    let judged = if arguments.times { median } else { best };
    assert!(
        judged <= limit,
        "an append with fsync takes {judged:?}, at most {limit:?} is allowed"
    );
    println!("1 passed, 0 failed");
}
