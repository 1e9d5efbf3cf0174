//! What an fsync takes in each mode of durability, beside the local file system that holds the tail, in one run.
//!
//! The store stands behind a proxy that adds 20 ms to each PUT. Rounds of all take turns, so that whatever else the
//! machine does meets each of them. The engine has a keeper, so that each change is in a spill as well; one volume is mounted by an
//! engine without.
//!
//! `cargo bench -p tests --bench durability -- [--times]`; with `--times` a `local` fsync may take at most twice what the local
//! file system takes, in the median: on a machine that does nothing else.

#![allow(clippy::disallowed_macros, reason = "a bench prints its table")]
#![allow(clippy::unwrap_used, reason = "each step of a bench must succeed")]

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::time::{Duration, Instant};

use tests::engine_process::{Ask, EngineProcess};
use tests::local_store::LocalStore;
use tests::s3_proxy::{Delays, S3Proxy};
use volume::head::{Durability, Parameters};

/// Rounds, each of as many appends in each place.
const ROUNDS: usize = 20;
const APPENDS: usize = 25;

/// Bytes of an append.
const SMALL_BYTES: usize = 4096;

/// A `local` fsync beside one of the local file system.
const RATIO_MAX: f64 = 2.0;

struct Place {
    name: String,
    file: File,
    times: Vec<Duration>,
}

impl Place {
    fn new(name: String, dir: &Path) -> Self {
        Self {
            name,
            file: File::create(dir.join("appended")).unwrap(),
            times: Vec::new(),
        }
    }

    fn append(&mut self) {
        for n in 0..APPENDS {
            let begun = Instant::now();
            self.file.write_all(&[n as u8; SMALL_BYTES]).unwrap();
            self.file.sync_all().unwrap();
            self.times.push(begun.elapsed());
        }
    }

    fn quantile(&mut self, per_cent: usize) -> f64 {
        self.times.sort_unstable();
        self.times[(self.times.len() - 1) * per_cent / 100].as_secs_f64() * 1e6
    }
}

fn main() {
    let strict = std::env::args().any(|argument| argument == "--times");
    let store = LocalStore::start();
    let proxy = store.block_on(S3Proxy::start(&store.endpoint(), Delays::REGION));
    let mut engine = EngineProcess::start_kept(&store, &store.folder("engine"));
    let mut alone = EngineProcess::start(&store, &store.folder("alone"));
    let mut places = vec![Place::new("local file system".to_owned(), &store.folder("plain"))];
    for (durability, is_kept) in [
        (Durability::Local, true),
        (Durability::Local, false),
        (Durability::Relaxed, true),
        (Durability::Remote, true),
    ] {
        let (engine, more) = match is_kept {
            true => (&mut engine, ""),
            false => (&mut alone, "-alone"),
        };
        let name = format!("{durability}{more}");
        let parameters = Parameters {
            durability,
            ..Parameters::default()
        };
        store.create_volume_as(&name, parameters);
        let ask = Ask {
            endpoint: Some(proxy.endpoint()),
            create: false,
            ..Ask::new(&name, &store.folder(&format!("mnt-{name}")))
        };
        engine.mount(&store, &ask).unwrap();
        places.push(Place::new(name, &ask.mountpoint));
    }
    for _ in 0..ROUNDS {
        places.iter_mut().for_each(Place::append);
    }
    let mut medians = Vec::new();
    for place in &mut places {
        let [p10, p50, p90] = [10, 50, 90].map(|q| place.quantile(q));
        println!(
            "{:<18} 10 % {p10:>7.0} us, median {p50:>7.0} us, 90 % {p90:>7.0} us",
            place.name
        );
        medians.push(p50);
    }
    let ratio = medians[1] / medians[0];
    println!("local beside the local file system: {ratio:.2}");
    drop(places);
    for engine in [&mut engine, &mut alone] {
        assert!(engine.shut_down().unwrap().success());
    }
    assert!(!strict || ratio <= RATIO_MAX, "{ratio:.2} is more than {RATIO_MAX}");
}
