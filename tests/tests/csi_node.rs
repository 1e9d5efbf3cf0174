//! The real plugin with the real engine on MinIO, while processes die under it.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use csi_driver::config::{Config, RawConfig};
use csi_driver::mounter::engine::EngineMounter;
use tests::binaries::{Program, built};
use tests::csi_plugin::{CsiPlugin, Ground, unable_to_mount};
use tests::environment::{number, say};
use tests::nomad_calls::{Nomad, Use};
use tests::s3_server::{Kind, S3Server, skip};

/// 60 s: the plugin looks every 10 s; a machine that compiles at the same time needs longer.
const REPAIR_MAX: Duration = Duration::from_secs(60);

/// 3 plugins here; `PANNIER_TEST_KILLS=50` is the long run.
const PLUGIN_KILLS: u64 = 3;

/// 200 ms of calls between the end of a plugin and the start of the next, as many with one.
const BETWEEN_PLUGINS: Duration = Duration::from_millis(200);

/// 2 s, of a promise of 50 ms on an idle machine: a call that waits for a plugin waits for seconds.
const PLUGIN_PAUSE_MAX: Duration = Duration::from_secs(2);

fn write_durably(path: &Path, text: &str) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}

fn read(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.read_to_string(&mut text)?;
    Ok(text)
}

async fn until_read(path: &Path, text: &str) {
    let seen = async {
        while read(path).ok().as_deref() != Some(text) {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    let waited = tokio::time::timeout(REPAIR_MAX, seen).await;
    waited.unwrap_or_else(|_| panic!("{}: {:?}", path.display(), read(path)));
}

/// A volume that a plugin on a store has mounted for a task. `None`, which says why, where that is impossible.
async fn published() -> Option<(S3Server, Ground, CsiPlugin, Use, Nomad)> {
    if let Some(reason) = unable_to_mount() {
        skip(reason);
        return None;
    }
    let server = S3Server::start(Kind::Minio).await?;
    server.bucket("volumes").await;
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let v1 = Use::writer("v1", "alloc");
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 0).await;
    nomad.start(&v1).await.expect("the volume is mounted");
    Some((server, ground, plugin, v1, nomad))
}

/// Goal: what was fsynced through a target is there whatever process dies, and the volume moves to another node with
/// all of it. Method: kill -9 of the plugin (mounts go on without it), kill -9 of the engine (the plugin mounts again
/// at Nomad's paths), then a second plugin with another node id and no state in common but the bucket.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_published_volume_outlives_plugin_engine_and_node() {
    let Some((server, ground, mut plugin, v1, nomad)) = published().await else {
        return;
    };
    let elsewhere = Ground::new();
    let target = nomad.target(&v1);
    write_durably(&target.join("one"), "before").expect("a write");

    plugin.kill_only_plugin();
    write_durably(&target.join("two"), "without a plugin").expect("mounts go on without the plugin (rule 17)");
    let engines = plugin.engines();
    let mut plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    assert_eq!(
        (engines.len(), plugin.engines()),
        (1, engines),
        "the new plugin uses the engine that runs"
    );

    assert_eq!(plugin.kill_only_engine(), 1);
    until_read(&target.join("two"), "without a plugin").await;
    until_read(&nomad.staging(&v1).join("one"), "before").await;
    write_durably(&target.join("three"), "after").expect("the volume is written again");

    let second = CsiPlugin::start(&elsewhere, &server, "volumes", "n2").await;
    let mut other = Nomad::new(&elsewhere, &second);
    let refused = other.claim(&v1).await.expect_err("n1 still has it (rule 8)");
    assert!(refused.message().contains("n1"), "{refused}");
    Nomad::new(&ground, &plugin).stop(&v1).await.expect("n1 lets go");
    assert_eq!(ground.mounts(), Vec::<std::path::PathBuf>::new(), "{}", ground.logs());
    other.start(&v1).await.expect("n1 has let go");
    let target = other.target(&v1);
    for (name, text) in [("one", "before"), ("two", "without a plugin"), ("three", "after")] {
        assert_eq!(read(&target.join(name)).expect("it is there"), text);
    }
    other.stop(&v1).await.expect("n2 lets go");
    plugin.kill_only_plugin();
}

/// Calls of a program that writes, reads and lists, one after another.
struct Calls {
    stopped: Arc<AtomicBool>,
    longest: Arc<Mutex<Duration>>,
    program: JoinHandle<u64>,
}

impl Calls {
    fn start(folder: PathBuf) -> Self {
        let (stopped, longest) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::default()));
        let (is_stopped, noted) = (Arc::clone(&stopped), Arc::clone(&longest));
        let program = std::thread::spawn(move || {
            let mut round = 0u64;
            while !is_stopped.load(Ordering::SeqCst) {
                let (path, begun) = (folder.join(format!("call-{}", round % 16)), Instant::now());
                fs::write(&path, round.to_string()).expect("a write");
                assert_eq!(read(&path).expect("a read"), round.to_string());
                fs::read_dir(&folder).expect("a listing").for_each(drop);
                let mut longest: MutexGuard<'_, Duration> = noted.lock().expect("nobody panics with it");
                *longest = longest.max(begun.elapsed());
                round += 1;
            }
            round
        });
        Self {
            stopped,
            longest,
            program,
        }
    }

    /// The longest since the last question.
    fn longest(&self) -> Duration {
        std::mem::take(&mut *self.longest.lock().expect("nobody panics with it"))
    }

    fn end(self) -> u64 {
        self.stopped.store(true, Ordering::SeqCst);
        self.program.join().expect("no call failed")
    }
}

/// Goal: programs do not wait for a plugin that is away. Method: kill -9 and a new start of the plugin under a program that makes calls
/// all the time; the longest of them is told, beside the longest while a plugin ran.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn programs_notice_nothing_of_a_plugin_that_is_killed_and_started_again() {
    let Some((server, ground, mut plugin, v1, nomad)) = published().await else {
        return;
    };
    let calls = Calls::start(nomad.target(&v1));
    let (mut without, mut starting, mut with, mut ended) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for _ in 0..number("PANNIER_TEST_KILLS").unwrap_or(PLUGIN_KILLS) {
        tokio::time::sleep(BETWEEN_PLUGINS).await;
        with.push(calls.longest());
        plugin.kill_only_plugin();
        tokio::time::sleep(BETWEEN_PLUGINS).await;
        without.push(calls.longest());
        // With the one before would go its engine.
        ended.push(plugin);
        plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
        starting.push(calls.longest());
    }
    let rounds = calls.end();
    let told = |of: Vec<Duration>| of.into_iter().max().unwrap_or_default();
    let (without, starting, with) = (told(without), told(starting), told(with));
    say(&format!(
        "{rounds} rounds of calls; the longest with a plugin {with:?}, without {without:?}, while one starts {starting:?}"
    ));
    assert!(
        without.max(starting) < PLUGIN_PAUSE_MAX,
        "programs waited for the plugin"
    );
    Nomad::new(&ground, &plugin).stop(&v1).await.expect("the node lets go");
    assert_eq!(ground.mounts(), Vec::<std::path::PathBuf>::new(), "{}", ground.logs());
}

/// Goal: a plugin of another version brings its engine, and programs notice nothing. Method: a mounter that believes to be of another
/// version than the engine that serves, and one of the same.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_of_another_version_replaces_the_engine_under_its_mounts() {
    let Some((_server, ground, plugin, v1, mut nomad)) = published().await else {
        return;
    };
    let target = nomad.target(&v1);
    let mut open = File::create(target.join("open")).expect("a file");
    let (keepers, engines) = (plugin.keepers(), plugin.engines());

    let raw = RawConfig {
        mode: Some("node".into()),
        endpoint: Some("unix:///nowhere".into()),
        node_id: Some("n1".into()),
        bucket: Some("volumes".into()),
        state_dir: Some(ground.path("state")),
        ..RawConfig::default()
    };
    let config = Config::check(raw, built(Program::Binary("pannier"))).expect("options of a node");
    let mounter = EngineMounter::new(config.engine);
    let version = env!("CARGO_PKG_VERSION");
    let before = mounter.bring_up_to_date(version).await.expect("an answer");
    assert_eq!((before, plugin.engines()), (None, engines.clone()));
    let before = mounter.bring_up_to_date("0.0.0").await.expect("an answer");
    assert_eq!(before.as_deref(), Some(version));
    let replaced = async {
        while plugin.engines().iter().any(|engine| engines.contains(engine)) {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    let waited = tokio::time::timeout(REPAIR_MAX, replaced).await;
    waited.unwrap_or_else(|_| panic!("the old engine stays: {}", ground.logs()));
    open.write_all(b"written before and after")
        .expect("the file is still open");
    open.sync_all().expect("it is synced");
    assert_eq!(
        read(&target.join("open")).expect("it is there"),
        "written before and after"
    );
    assert_eq!(plugin.keepers(), keepers, "the same keeper holds the mounts");
    drop(open);
    nomad.stop(&v1).await.expect("the node lets go");
    assert_eq!(ground.mounts(), Vec::<std::path::PathBuf>::new(), "{}", ground.logs());
}
