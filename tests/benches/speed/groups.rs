//! What is measured, by groups that can run alone, with what is promised of each figure.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::stream::{self, StreamExt};
use volume::bucket::Bucket;

use crate::loads::{self, Budget};
use crate::systems::System;
use crate::table::{Limit, Metric};
use crate::{Bench, databases, mounting, small_files};

/// A group.
pub type Group = fn(&mut Bench);

/// All of them, in order.
pub const ALL: [(&str, Group); 7] = [
    ("files", small_files::group),
    ("find", find),
    ("fsync", fsync),
    ("large", large),
    ("tree", tree),
    ("mount", mounting::group),
    ("databases", databases::group),
];

/// 10 s for any load of single operations: the slowest systems do what they can in it.
const TIME_MAX: Duration = Duration::from_secs(10);

/// 20 requests at a time of the client library alone: more did not get more through.
const PLAIN_AT_ONCE: usize = 20;

const fn metric(name: &'static str, unit: &'static str, limit: Option<Limit>) -> Metric {
    Metric { name, unit, limit }
}

const fn of_ext4(share: f64) -> Option<Limit> {
    Some(Limit::ShareOf(System::Ext4, share))
}

/// Lists a tree of which nothing is in any cache.
fn find(bench: &mut Bench) {
    let names = metric("find 20,000 files, cold, names", "/s", Some(Limit::AtLeast(20_000.0)));
    let stats = metric(
        "find 20,000 files, cold, with stat",
        "/s",
        Some(Limit::AtLeast(20_000.0)),
    );
    for at in 0..bench.systems.len() {
        let (system, dir) = (bench.systems[at].system, bench.systems[at].dir.join("find"));
        let files = 5 * bench.arguments.files / system.times_fewer();
        let made = files / 10 * 10;
        for folder in 0..10 {
            // One after the other, as by tar(1) or cp(1).
            let dir = dir.join(format!("{folder}"));
            loads::prepare(&dir, 1);
            let budget = Budget {
                count: made / 10,
                time: Duration::from_secs(60),
            };
            loads::create(&dir, 1, budget);
        }
        for (metric, stat) in [(names, false), (stats, true)] {
            for _ in 0..bench.arguments.rounds {
                bench.forget(at, false);
                bench.settle(system);
                let before = bench.proxy.counts();
                let done = loads::find(&dir, stat);
                assert_eq!(done.count, made + 20);
                bench.table.note(metric, system, done.rate());
                if system == System::Pannier {
                    bench.table.note_counts(metric, bench.proxy.counts().since(&before));
                }
            }
        }
    }
}

/// Appends with fsync, by one and by many.
fn fsync(bench: &mut Bench) {
    let median = metric(
        "append 4 KiB + fsync, median",
        "ms",
        Some(Limit::TimesOfPlus(System::Plain, 1.1, 1.0)),
    );
    let rates = [
        (1, metric("append + fsync, 1", "/s", None)),
        (8, metric("append + fsync, 8", "/s", None)),
        (32, metric("append + fsync, 32", "/s", None)),
    ];
    let plain = put_median(bench).as_secs_f64() * 1e3;
    bench.table.note(median, System::Plain, plain);
    for at in 0..bench.systems.len() {
        let (system, dir) = (bench.systems[at].system, bench.systems[at].dir.join("fsync"));
        std::fs::create_dir_all(&dir).unwrap();
        for (workers, metric) in rates {
            bench.settle(system);
            let before = bench.proxy.counts();
            let budget = Budget {
                count: 100 * workers,
                time: TIME_MAX,
            };
            let (done, times) = loads::append_sync(&dir, workers, budget);
            bench.table.note(metric, system, done.rate());
            if workers == 1 {
                bench
                    .table
                    .note(median, system, times[times.len() / 2].as_secs_f64() * 1e3);
            }
            if system == System::Pannier {
                bench.table.note_counts(metric, bench.proxy.counts().since(&before));
            }
        }
        let value = |name| bench.table.value(name, system).unwrap();
        let one = value("append + fsync, 1");
        let (eight, many) = (value("append + fsync, 8") / one, value("append + fsync, 32") / one);
        bench.table.note(
            metric("fsync, 8 threads over one", "x", Some(Limit::AtLeast(6.0))),
            system,
            eight,
        );
        bench.table.note(
            metric("fsync, 32 threads over one", "x", Some(Limit::AtLeast(20.0))),
            system,
            many,
        );
    }
}

/// What a bare PUT of 4 KiB takes, the median of a hundred.
pub fn put_median(bench: &Bench) -> Duration {
    let bucket = bench.store(&bench.proxy.endpoint()).bucket("bench");
    let run = format!("{:?}", Instant::now());
    let mut times: Vec<Duration> = (0..100)
        .map(|n| {
            let begun = Instant::now();
            let body = Bytes::from(vec![7; loads::SMALL_BYTES]);
            let key = format!("plain/{run}/{n}");
            bench
                .runtime
                .block_on(bucket.put_if_absent(&key, body))
                .map(drop)
                .unwrap();
            begun.elapsed()
        })
        .collect();
    times.sort();
    times[times.len() / 2]
}

/// One large file.
fn large(bench: &mut Bench) {
    let mib = bench.arguments.mib;
    let write = metric(
        "write in sequence + fsync",
        "MB/s",
        Some(Limit::ShareOf(System::Plain, 0.8)),
    );
    let cold = metric(
        "read in sequence, cold",
        "MB/s",
        Some(Limit::ShareOf(System::Plain, 0.8)),
    );
    let warm = metric("read in sequence, from the disk cache", "MB/s", of_ext4(0.8));
    let random = metric("read 4 KiB at random, disk cache", "/s", of_ext4(0.5));
    let blocks: Vec<Vec<u8>> = (0..mib).map(loads::block).collect();
    let megabytes = |done: loads::Done| done.rate() / 1e6;
    for _ in 0..bench.arguments.rounds {
        plain_large(bench, &blocks, (write, cold));
        for at in 0..bench.systems.len() {
            let (system, file) = (bench.systems[at].system, bench.systems[at].dir.join("large"));
            let counted = |bench: &mut Bench, metric, load: &dyn Fn() -> f64| {
                bench.settle(system);
                let (before, cpu) = (bench.proxy.counts(), bench.cpu(Some(at)));
                let value = load();
                bench.table.note(metric, system, value);
                bench.tell_cpu(Some(at), cpu);
                if system == System::Pannier {
                    bench.table.note_counts(metric, bench.proxy.counts().since(&before));
                }
            };
            counted(bench, write, &|| megabytes(loads::write_large(&file, &blocks)));
            bench.forget(at, false);
            counted(bench, cold, &|| megabytes(loads::read_large(&file, &blocks)));
            bench.forget(at, true);
            counted(bench, warm, &|| megabytes(loads::read_large(&file, &blocks)));
            bench.forget(at, true);
            let budget = Budget {
                count: 20_000,
                time: Duration::from_secs(4),
            };
            counted(bench, random, &|| loads::read_random(&file, mib, budget).rate());
            std::fs::remove_file(&file).unwrap();
        }
    }
}

/// What the client library reaches with 8 MiB PUTs and 8 MiB ranged GETs.
fn plain_large(bench: &mut Bench, blocks: &[Vec<u8>], (write, read): (Metric, Metric)) {
    bench.settle(System::Pannier);
    let bucket = bench.store(&bench.proxy.endpoint()).bucket("bench");
    let bodies: Vec<Bytes> = blocks.chunks(8).map(|chunk| chunk.concat().into()).collect();
    let megabytes = blocks.len() as f64 * 1.048_576;
    let folder = format!("plain/{:?}", Instant::now());
    let (begun, cpu) = (Instant::now(), bench.cpu(None));
    bench.runtime.block_on(async {
        let puts = bodies
            .iter()
            .enumerate()
            .map(|(n, body)| bucket.put_if_absent_at(&folder, n, body.clone()));
        stream::iter(puts)
            .buffer_unordered(PLAIN_AT_ONCE)
            .collect::<Vec<()>>()
            .await;
    });
    bench
        .table
        .note(write, System::Plain, megabytes / begun.elapsed().as_secs_f64());
    bench.tell_cpu(None, cpu);
    let (begun, cpu) = (Instant::now(), bench.cpu(None));
    bench.runtime.block_on(async {
        let gets = (0..bodies.len()).map(|n| bucket.get_at(&folder, n));
        let bytes: Vec<usize> = stream::iter(gets).buffer_unordered(PLAIN_AT_ONCE).collect().await;
        assert_eq!(bytes.iter().sum::<usize>(), blocks.len() << 20);
    });
    bench
        .table
        .note(read, System::Plain, megabytes / begun.elapsed().as_secs_f64());
    bench.tell_cpu(None, cpu);
}

/// Numbered objects of the yardstick.
trait Numbered {
    async fn put_if_absent_at(&self, folder: &str, n: usize, body: Bytes);
    async fn get_at(&self, folder: &str, n: usize) -> usize;
}

impl<B: Bucket> Numbered for B {
    async fn put_if_absent_at(&self, folder: &str, n: usize, body: Bytes) {
        self.put_if_absent(&format!("{folder}/{n}"), body)
            .await
            .map(drop)
            .unwrap();
    }

    async fn get_at(&self, folder: &str, n: usize) -> usize {
        let range = Some(0..8 << 20);
        self.get(&format!("{folder}/{n}"), range).await.unwrap().body.len()
    }
}

/// A source tree: unpacked, synced, read cold, removed.
fn tree(bench: &mut Bench) {
    let unpack = metric(
        "unpack 4,000 files of 40 MB",
        "s",
        Some(Limit::TimesOf(System::Ext4, 2.0)),
    );
    let sync = metric("then sync", "s", Some(Limit::AtMost(1.0)));
    let puts = metric("PUTs of both", "PUT", Some(Limit::AtMost(30.0)));
    let read = metric("read it all, cold", "s", Some(Limit::AtMost(1.5)));
    let remove = metric("remove it all", "s", Some(Limit::AtMost(1.0)));
    for round in 0..bench.arguments.rounds {
        for at in 0..bench.systems.len() {
            let (system, dir) = (
                bench.systems[at].system,
                bench.systems[at].dir.join(format!("tree-{round}")),
            );
            let fewer = system.times_fewer();
            let files = 4_000 / fewer;
            let seconds = |done: loads::Done| done.elapsed.as_secs_f64() * fewer as f64;
            std::fs::create_dir(&dir).unwrap();
            bench.settle(system);
            let (before, cpu) = (bench.proxy.counts(), bench.cpu(Some(at)));
            let unpacked = loads::unpack(&dir, files);
            bench.tell_cpu(Some(at), cpu);
            let synced = loads::sync(&dir);
            let cost = bench.proxy.counts().since(&before);
            bench.table.note(unpack, system, seconds(unpacked));
            bench.table.note(sync, system, synced.elapsed.as_secs_f64());
            if system == System::Pannier {
                bench
                    .table
                    .note(puts, system, cost.of(tests::s3_proxy::Verb::Put).requests as f64);
                bench.table.note_counts(unpack, cost);
            }
            bench.forget(at, false);
            bench.settle(system);
            let before = bench.proxy.counts();
            let done = loads::read_tree(&dir);
            assert_eq!(done.count, files);
            bench.table.note(read, system, seconds(done));
            if system == System::Pannier {
                bench.table.note_counts(read, bench.proxy.counts().since(&before));
            }
            let before = bench.proxy.counts();
            let removed = loads::remove_tree(&dir);
            bench.table.note(remove, system, seconds(removed));
            if system == System::Pannier {
                bench.table.note_counts(remove, bench.proxy.counts().since(&before));
            }
        }
    }
}
