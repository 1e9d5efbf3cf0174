//! Ten volumes, cycle after cycle, while things fail: nothing may be left behind.
//!
//! `PANNIER_TEST_CYCLES=200 cargo test --workspace --test csi_volumes soak -- --nocapture` is the long form; without it there
//! are a few cycles, one for each kind of fault.

use std::fs;
use std::path::Path;
use std::time::Duration;

use nix::unistd::Pid;
use tests::csi_plugin::{CsiPlugin, Ground};
use tests::environment::number;
use tests::nomad_calls::{Nomad, Use};
use tests::s3_proxy::{Delays, Fault, S3Proxy};
use tests::s3_server::S3Server;
use volume::bucket::ListRequest;

use super::{MIB, options, server, until, write};

/// As the goal asks.
const VOLUMES: usize = 10;

/// What goes wrong in a cycle, after all volumes were written.
const FAULTS: [&str; 5] = [
    "engine killed",
    "plugin killed",
    "nothing",
    "unstaged early",
    "store refuses",
];

/// The first of those that kill no process.
const MILD: u64 = 2;

/// A small generator, so that a run can be repeated by its seed.
struct Chance(u64);

impl Chance {
    fn below(&mut self, end: u64) -> u64 {
        // Knuth's constants of MMIX.
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) % end
    }
}

fn used(volume: usize, cycle: u64) -> Use {
    Use::writer(&format!("soak{volume}"), &format!("alloc-{volume}-{cycle}"))
}

fn text(volume: usize, cycle: u64) -> String {
    format!("volume {volume} in cycle {cycle}\n").repeat(500)
}

/// Mounts a volume, checks what the cycle before has written, and writes.
async fn begin(mut nomad: Nomad, volume: usize, cycle: u64) {
    let used = used(volume, cycle);
    let started = nomad.start(&used).await;
    started.unwrap_or_else(|status| panic!("{}: {status}", used.volume));
    tokio::task::block_in_place(|| {
        let file = nomad.target(&used).join("file");
        if cycle > 0 {
            let found = fs::read_to_string(&file).expect("what was fsynced is there");
            assert!(found == text(volume, cycle - 1), "{} in cycle {cycle}", used.volume);
        }
        write(&file, &text(volume, cycle));
    });
}

/// Waits until what was written can be read, and unmounts.
async fn end(mut nomad: Nomad, volume: usize, cycle: u64) {
    let used = used(volume, cycle);
    let file = nomad.target(&used).join("file");
    until("what was fsynced is there after the fault", || {
        fs::read_to_string(&file).is_ok_and(|found| found == text(volume, cycle))
    })
    .await;
    // Nomad tries again in the background where a call fails.
    let mut tries = 0;
    while let Err(status) = nomad.stop(&used).await {
        tries += 1;
        assert!(tries < 30, "{}: {status}", used.volume);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// What goes wrong in a cycle: each once, then any; and nothing that kills a process in the last half of a long run, so that
/// growth is seen.
fn fault(chance: &mut Chance, cycle: u64, cycles: u64) -> &'static str {
    let kinds = FAULTS.len() as u64;
    let drawn = match cycle {
        early if early < kinds => early,
        late if late >= cycles / 2 => MILD + chance.below(kinds - MILD),
        _ => chance.below(kinds),
    };
    FAULTS[usize::try_from(drawn).expect("few faults")]
}

/// The plugin and its engine, by name.
fn sizes(plugin: &CsiPlugin) -> [(&'static str, (u64, usize)); 2] {
    let engines = plugin.engines();
    assert_eq!(engines.len(), 1, "one engine serves a node");
    [("plugin", size(plugin.pid())), ("engine", size(engines[0]))]
}

fn tell(when: &str, sizes: [(&'static str, (u64, usize)); 2]) {
    for (name, (kib, descriptors)) in sizes {
        println!("{when} the {name} has {kib} KiB and {descriptors} descriptors");
    }
}

/// Memory of its own in KiB, the pages of its program left out, which are read as it is used; and open descriptors of a process.
fn size(process: Pid) -> (u64, usize) {
    let status = fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let kib = status.lines().find_map(|line| line.strip_prefix("RssAnon:"));
    let kib = kib.and_then(|line| line.trim().trim_end_matches(" kB").parse().ok());
    let open = fs::read_dir(format!("/proc/{process}/fd")).map_or(0, Iterator::count);
    (kib.unwrap_or(0), open)
}

/// Goal: no cycle of ten volumes leaves anything behind, whatever process dies and however often the store refuses: no
/// mount, record, key, lease, descriptor or object; and nothing that was fsynced is lost.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn soak_of_ten_volumes_and_random_faults_leaves_nothing() {
    let Some(server) = server().await else { return };
    let cycles = number("PANNIER_TEST_CYCLES").unwrap_or(FAULTS.len() as u64);
    let seed = number("PANNIER_TEST_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    println!("{cycles} cycles, PANNIER_TEST_SEED={seed}");
    let mut chance = Chance(seed);
    let proxy = S3Proxy::start(server.endpoint(), Delays::default()).await;
    let ground = Ground::new();
    let mut options = options(&server);
    options.retain(|(name, _)| name != "PANNIER_S3_ENDPOINT");
    options.push(("PANNIER_S3_ENDPOINT".into(), proxy.endpoint()));
    // The least, so that caches are full early and what grows afterwards is no cache.
    options.push(("PANNIER_MEMORY_BYTES".into(), (64 * MIB).to_string()));
    let mut plugin = CsiPlugin::start_with(&ground, "n1", options.clone()).await;
    let mut nomad = Nomad::new(&ground, &plugin);
    for volume in 0..VOLUMES {
        nomad.create(&format!("soak{volume}"), 0).await;
    }
    let (mut early, mut before) = (None, Vec::new());
    for cycle in 0..cycles {
        futures::future::join_all((0..VOLUMES).map(|volume| begin(nomad.clone(), volume, cycle))).await;
        match fault(&mut chance, cycle, cycles) {
            "engine killed" => assert_eq!(plugin.kill_only_engine(), 1),
            "plugin killed" => {
                plugin.kill_only_plugin();
                let next = CsiPlugin::start_with(&ground, "n1", options.clone()).await;
                // Dropping a plugin ends its engine, which is to go on.
                before.push(std::mem::replace(&mut plugin, next));
                nomad = Nomad::new(&ground, &plugin);
            }
            "unstaged early" => {
                let used = used(0, cycle);
                nomad
                    .unstage(&used)
                    .await
                    .expect("rule 3: the mount stays for its users");
            }
            "store refuses" => {
                let mut draw = Chance(seed ^ cycle);
                proxy.set_rule(move |_| (draw.below(4) == 0).then_some(Fault::Status(503)));
            }
            _ => {}
        }
        futures::future::join_all((0..VOLUMES).map(|volume| end(nomad.clone(), volume, cycle))).await;
        proxy.clear_rule();
        assert_eq!(
            ground.mounts(),
            Vec::<std::path::PathBuf>::new(),
            "cycle {cycle}: {}",
            ground.logs()
        );
        if cycle == cycles / 2 + cycles / 20 {
            early = Some(sizes(&plugin));
        }
        if cycle % 20 == 0 {
            tell(&format!("after cycle {cycle}"), sizes(&plugin));
        }
    }
    let (early, late) = (early.expect("it was measured"), sizes(&plugin));
    tell("at the end", late);
    for ((name, early), (_, late)) in early.into_iter().zip(late) {
        assert!(
            late.0 < early.0 * 5 / 4 + 16 * 1024 && late.1 <= early.1 + 32,
            "the {name} grows: {early:?} to {late:?}"
        );
    }
    for volume in 0..VOLUMES {
        nomad.delete(&format!("soak{volume}")).await.expect("nobody has it");
    }
    assert_nothing_left(&ground, &server).await;
}

/// No record, key, folder or object of a volume is left.
async fn assert_nothing_left(ground: &Ground, server: &S3Server) {
    for folder in ["state/volumes", "state/keys", "state/mounts"] {
        let left: Vec<_> = fs::read_dir(ground.path(folder))
            .expect("it is there")
            .flatten()
            .collect();
        assert!(left.is_empty(), "{folder}: {left:?}");
    }
    let root: &Path = &ground.path("nomad/per-alloc");
    let left = fs::read_dir(root).expect("allocations").flatten();
    for alloc in left {
        let targets: Vec<_> = walk(&alloc.path());
        assert!(
            targets
                .iter()
                .all(|path| !path.ends_with("rw-file-system-single-node-writer")),
            "{targets:?}"
        );
    }
    let bucket = server.bucket("volumes").await;
    let request = ListRequest {
        prefix: "cluster/v/".into(),
        ..Default::default()
    };
    let left = bucket.list(&request).await.expect("the store answers").objects;
    assert!(left.is_empty(), "objects were left: {left:?}");
}

fn walk(folder: &Path) -> Vec<std::path::PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten().flatten();
    let below = entries.map(|entry| entry.path());
    below
        .flat_map(|path| [vec![path.clone()], walk(&path)].concat())
        .collect()
}
