//! How fast a volume is, beside the disk that it would replace, FUSE with nothing behind it, plain requests by the same client
//! library, and what Debian has for buckets; all in one run, with the promise about each figure.
//!
//! MinIO stands behind a proxy that adds 20 ms to each PUT and 12 ms to each GET and counts. Figures of one run may be compared,
//! never those of two. `ratio` is the figure as a share of what was promised: 1 and above where more is better, 1 and below
//! where less is, keeps the promise.
//!
//! `cargo bench --workspace --bench speed -- [GROUP ...] [--rounds N] [--files N] [--mib N] [--million N] [--no-peers] [--kept]
//! [--beside PROGRAM] [--io-uring] [--trace] [--cpu] [--strict]`, where a group is `files`, `find`, `fsync`, `large`, `tree`, `mount` or
//! `databases`. `--kept` measures a volume too that an engine with a keeper serves, `--beside` one of another build of `pannier`, both
//! turn by turn with the first; with `--io-uring` the kernel reaches volumes and the null file system by that; `--trace` tells each
//! request, `--cpu` whose processor time a load took; `--strict` fails if a promise is not kept.

#![allow(clippy::disallowed_macros, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "each step of a bench must succeed")]

mod cpu;
mod databases;
mod groups;
mod loads;
mod mounting;
mod null_fs;
mod small_files;
mod systems;
mod table;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use tests::s3_proxy::{Delays, S3Proxy, Seen};
use tests::s3_server::{Kind, S3Server};
use tokio::runtime::Runtime;
use volume::head::Transport;
use volume_s3::{S3Options, S3Store};

use cpu::Cpu;
use systems::{Place, Running, System, forget_caches};
use table::Table;

/// What was asked for.
struct Arguments {
    groups: Vec<String>,
    rounds: u64,
    files: u64,
    mib: u64,
    million: u64,
    peers: bool,
    kept: bool,
    beside: Option<PathBuf>,
    transport: Transport,
    trace: bool,
    cpu: bool,
    strict: bool,
}

impl Arguments {
    fn parse() -> Self {
        let mut parsed = Self {
            groups: Vec::new(),
            rounds: 2,
            files: 4_000,
            mib: 256,
            million: 1_000_000,
            peers: true,
            kept: false,
            beside: None,
            transport: Transport::Classic,
            trace: false,
            cpu: false,
            strict: false,
        };
        let mut given = std::env::args().skip(1);
        while let Some(argument) = given.next() {
            if argument == "--beside" {
                parsed.beside = given.next().map(PathBuf::from);
                continue;
            }
            let mut number = || given.next().and_then(|n| n.parse().ok()).expect("a number follows");
            match argument.as_str() {
                "--rounds" => parsed.rounds = number(),
                "--files" => parsed.files = number(),
                "--mib" => parsed.mib = number(),
                "--million" => parsed.million = number(),
                "--no-peers" => parsed.peers = false,
                "--kept" => parsed.kept = true,
                "--io-uring" => parsed.transport = Transport::IoUring,
                "--trace" => parsed.trace = true,
                "--cpu" => parsed.cpu = true,
                "--strict" => parsed.strict = true,
                group if !group.starts_with('-') => parsed.groups.push(group.to_owned()),
                // What cargo itself passes to a bench.
                _ => {}
            }
        }
        parsed
    }

    fn wants(&self, group: &str) -> bool {
        self.groups.is_empty() || self.groups.iter().any(|wanted| wanted == group)
    }
}

/// 7 s: rclone begins to bring what was written to the bucket 5 s later.
const WRITE_BACK: Duration = Duration::from_secs(7);

/// All that a group needs.
struct Bench {
    arguments: Arguments,
    /// Before the store in the order of ends: a volume is complete only when it has told it.
    systems: Vec<Running>,
    proxy: S3Proxy,
    server: S3Server,
    runtime: Runtime,
    _proxy_runtime: Runtime,
    place: Place,
    table: Table,
    _scratch: tempfile::TempDir,
}

impl Bench {
    fn start(arguments: Arguments) -> Option<Self> {
        let (runtime, proxy_runtime) = (runtime(cpu::CLIENT_THREADS), runtime(cpu::PROXY_THREADS));
        let server = runtime.block_on(S3Server::start_in_ram(Kind::Minio))?;
        runtime.block_on(async {
            for bucket in ["bench", "peer-s3fs", "peer-rclone"] {
                server.bucket(bucket).await;
            }
        });
        let proxy = proxy_runtime.block_on(S3Proxy::start(server.endpoint(), Delays::REGION));
        if arguments.trace {
            let begun = Instant::now();
            proxy.set_rule(
                move |Seen {
                          verb, target, range, ..
                      }| {
                    println!(
                        "    {:>10.1} ms {verb:?} {target} {range}",
                        begun.elapsed().as_secs_f64() * 1e3
                    );
                    None
                },
            );
        }
        let scratch = tempfile::Builder::new().prefix("pannier-speed-").tempdir().unwrap();
        let place = Place {
            scratch: scratch.path().to_owned(),
            endpoint: proxy.endpoint(),
            kept: arguments.kept,
            other: arguments.beside.clone(),
            transport: arguments.transport,
        };
        let wanted = |system: &System| arguments.peers || !system.is_peer();
        let systems = System::ALL
            .iter()
            .copied()
            .filter(wanted)
            .filter_map(|system| Running::start(system, &place))
            .collect();
        Some(Self {
            arguments,
            runtime,
            _proxy_runtime: proxy_runtime,
            server,
            proxy,
            place,
            systems,
            table: Table::default(),
            _scratch: scratch,
        })
    }

    /// Waits until nothing was asked of the store for half a second: what follows is not the cost of what was before.
    fn settle(&self, system: System) {
        if system != System::Ext4 && system != System::Null {
            self.settle_for(Duration::from_millis(500));
        }
    }

    /// Makes a system forget all that is not in its bucket or on its disk, and the kernel what it knows of it.
    fn forget(&mut self, at: usize, keep_cache: bool) {
        if self.systems[at].system == System::Rclone {
            self.settle_for(WRITE_BACK);
        }
        self.systems[at].remount(keep_cache);
        forget_caches(&self.systems[at].dir);
    }

    fn settle_for(&self, quiet: Duration) {
        let begun = Instant::now();
        let (mut seen, mut since) = (self.proxy.counts(), Instant::now());
        while since.elapsed() < quiet && begun.elapsed() < Duration::from_secs(30) {
            std::thread::park_timeout(Duration::from_millis(20));
            let now = self.proxy.counts();
            if now != seen {
                (seen, since) = (now, Instant::now());
            }
        }
    }

    /// Processor time up to now, with that of one of the systems.
    fn cpu(&self, at: Option<usize>) -> Cpu {
        Cpu::now(self.server.pid(), at.and_then(|at| self.systems[at].pid()))
    }

    /// Tells what was taken of it since, if that was asked for.
    fn tell_cpu(&self, at: Option<usize>, before: Cpu) {
        if self.arguments.cpu {
            println!("    {}", self.cpu(at).since(before));
        }
    }

    /// Our client of the store.
    fn store(&self, endpoint: &str) -> Arc<S3Store> {
        let options = S3Options {
            endpoint: Some(endpoint.to_owned()),
            credentials: S3Server::credentials(),
            ..S3Options::default()
        };
        self.runtime.block_on(S3Store::connect(options)).unwrap()
    }
}

fn runtime(threads: &str) -> Runtime {
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    builder.enable_all().thread_name(threads).build().unwrap()
}

fn main() {
    let mut given = std::env::args().skip(1);
    if given.next().as_deref() == Some("--serve-null") {
        let dir = given.next().expect("a folder follows");
        let transport = given.next().expect("a transport follows").parse().unwrap();
        return null_fs::serve(Path::new(&dir), transport).unwrap();
    }
    let arguments = Arguments::parse();
    let strict = arguments.strict;
    let Some(mut bench) = Bench::start(arguments) else {
        return;
    };
    println!("MinIO at {}, behind {:?}", bench.server.endpoint(), Delays::REGION);
    for (name, group) in groups::ALL {
        if bench.arguments.wants(name) {
            let begun = Instant::now();
            group(&mut bench);
            println!("{name}: {:.1} s", begun.elapsed().as_secs_f64());
        }
    }
    let missed = bench.table.print();
    println!("{missed} promises not kept");
    assert!(!strict || missed == 0, "--strict");
}
