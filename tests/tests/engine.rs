//! The engine process: what it keeps when it is killed, when another node takes a volume, and when a store is away.

use std::fs::{self, File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use tests::engine_process::{Ask, EngineProcess};
use tests::environment::{number, say};
use tests::history::{Dice, Step, Tree, carry_out, matches};
use tests::local_store::LocalStore;
use tests::s3_proxy::{Delays, S3Proxy};
use tonic::Code;
use volume::head::{Durability, Parameters};

/// 8 kills here; `PANNIER_TEST_KILLS=50` is the bounded run of the release notes.
const KILLS: u64 = 8;

/// Programs that work at the same time, each in a folder of its own.
const WORKERS: usize = 3;

/// One program's history since the last crash.
#[derive(Default)]
struct Worker {
    start: Mutex<Tree>,
    steps: Mutex<Vec<Step>>,
    /// Steps whose calls have returned.
    done: AtomicUsize,
    /// Steps that an fsync, of whichever program, has made durable.
    durable: AtomicUsize,
}

/// All of them, on one mount.
struct Load {
    workers: Vec<Worker>,
    stopped: AtomicBool,
    total: AtomicU64,
    syncs: AtomicU64,
}

impl Load {
    fn new() -> Self {
        Self {
            workers: (0..WORKERS).map(|_| Worker::default()).collect(),
            stopped: AtomicBool::new(false),
            total: AtomicU64::new(0),
            syncs: AtomicU64::new(0),
        }
    }

    /// Works until a call fails, which it must not before `stopped`.
    fn work(&self, number: usize, root: &Path, mut dice: Dice) {
        let worker = &self.workers[number];
        let mut tree = worker.start.lock().expect("no worker panics with it").clone();
        loop {
            let done = if dice.below(12) == 0 {
                self.sync(root)
            } else {
                let steps = tree.plan(&mut dice);
                steps.iter().for_each(|step| tree.apply(step));
                let count = {
                    let mut all = worker.steps.lock().expect("no worker panics with it");
                    all.extend(steps.iter().cloned());
                    all.len()
                };
                carry_out(root, &steps).map(|()| worker.done.store(count, Ordering::SeqCst))
            };
            self.total.fetch_add(1, Ordering::SeqCst);
            if let Err(error) = done {
                assert!(
                    self.stopped.load(Ordering::SeqCst),
                    "worker {number} before the kill: {error}"
                );
                return;
            }
        }
    }

    /// An fsync of anything makes durable what everybody had done before it.
    fn sync(&self, root: &Path) -> std::io::Result<()> {
        let before: Vec<usize> = self
            .workers
            .iter()
            .map(|worker| worker.done.load(Ordering::SeqCst))
            .collect();
        File::open(root)?.sync_all()?;
        for (worker, done) in self.workers.iter().zip(before) {
            worker.durable.fetch_max(done, Ordering::SeqCst);
        }
        self.syncs.fetch_add(1, Ordering::SeqCst);
        Ok(())
    }

    /// Compares what is found after a crash with what was done, and begins anew from there.
    fn verify(&mut self, mnt: &Path, context: &str) {
        for (number, worker) in self.workers.iter_mut().enumerate() {
            let found = Tree::read_from(&mnt.join(format!("w{number}"))).expect("the tree can be read");
            let (start, steps) = (
                worker.start.get_mut().expect("no worker panicked"),
                worker.steps.get_mut().expect("no worker panicked"),
            );
            let durable = worker.durable.load(Ordering::SeqCst);
            let after = matches(start, steps, durable, &found);
            assert!(
                after.is_some(),
                "{context}: worker {number} is at no point of its history from step {durable} of {} on; {}",
                steps.len(),
                match matches(start, steps, 0, &found) {
                    Some(earlier) => format!("it is back at step {earlier}: synced work is lost"),
                    None => "it is at none at all".to_owned(),
                }
            );
            *start = found;
            steps.clear();
            worker.done.store(0, Ordering::SeqCst);
            worker.durable.store(0, Ordering::SeqCst);
        }
        *self.stopped.get_mut() = false;
        *self.total.get_mut() = 0;
    }
}

/// kill -9 of the engine at any moment loses nothing that an fsync had returned for, and leaves no half of anything: the tree is
/// one that existed, at or after the last fsync.
#[test]
fn a_killed_engine_leaves_a_prefix_of_history_at_or_past_the_last_fsync() {
    kill_and_verify(Durability::Remote);
}

/// The same where fsync returns when this node's disk has it. The store is so slow that much of what was acknowledged is on
/// the disk only.
#[test]
fn a_killed_engine_finds_on_its_disk_what_a_local_fsync_had_returned_for() {
    kill_and_verify(Durability::Local);
}

fn kill_and_verify(durability: Durability) {
    let kills = number("PANNIER_TEST_KILLS").unwrap_or(KILLS);
    let seed = number("PANNIER_TEST_SEED").unwrap_or_else(|| uuid::Uuid::new_v4().as_u64_pair().0 >> 16);
    say(&format!(
        "PANNIER_TEST_SEED={seed} PANNIER_TEST_KILLS={kills}, durability {durability}"
    ));
    let mut dice = Dice::new(seed);
    let store = LocalStore::start();
    let proxy = store.block_on(S3Proxy::start(&store.endpoint(), slow_puts(durability)));
    store.create_volume_as(
        "volume",
        Parameters {
            durability,
            ..Parameters::default()
        },
    );
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut load = Load::new();
    let mut syncs = 0;
    for round in 0..=kills {
        let context = format!("seed {seed}, durability {durability}, after kill {round}");
        let mut engine = EngineProcess::start(&store, &folder);
        let ask = Ask {
            endpoint: Some(proxy.endpoint()),
            create: false,
            ..Ask::new("volume", &mnt)
        };
        engine.mount(&store, &ask).expect("the volume is mounted again");
        if round == 0 {
            (0..WORKERS).for_each(|n| fs::create_dir(mnt.join(format!("w{n}"))).expect("a folder for each"));
            let synced = File::open(&mnt).and_then(|root| root.sync_all());
            synced.expect("the folders are synced");
        } else {
            load.verify(&mnt, &context);
        }
        if round == kills {
            assert!(engine.shut_down().expect("a clean end").success());
            break;
        }
        run_until_killed(&load, &mut engine, &mnt, &mut dice);
        syncs += load.syncs.swap(0, Ordering::SeqCst);
    }
    assert!(
        syncs >= kills,
        "only {syncs} fsyncs in {kills} rounds: this tested little"
    );
}

fn slow_puts(durability: Durability) -> Delays {
    match durability {
        Durability::Local => Delays {
            write: Duration::from_millis(150),
            ..Delays::default()
        },
        Durability::Remote | Durability::Relaxed => Delays::default(),
    }
}

fn run_until_killed(load: &Load, engine: &mut EngineProcess, mnt: &Path, dice: &mut Dice) {
    let (calls, grace) = (20 + dice.below(400), Duration::from_micros(dice.below(20_000)));
    std::thread::scope(|scope| {
        for number in 0..WORKERS {
            let (root, dice) = (mnt.join(format!("w{number}")), Dice::new(dice.roll()));
            scope.spawn(move || load.work(number, &root, dice));
        }
        wait_until("the programs work", || load.total.load(Ordering::SeqCst) >= calls);
        // Any point in the engine's own work, not only just after a call.
        let begun = Instant::now();
        while begun.elapsed() < grace {
            std::thread::yield_now();
        }
        load.stopped.store(true, Ordering::SeqCst);
        engine.signal(Signal::SIGKILL);
        engine.wait();
    });
}

/// Two writers of one volume: once the newer one has it, the older one never gets another acknowledgement, and what it had
/// acknowledged is all there.
#[test]
fn a_writer_that_lost_its_volume_acknowledges_nothing_more() {
    let store = LocalStore::start();
    let (old_mnt, new_mnt) = (store.folder("old"), store.folder("new"));
    let mut old = EngineProcess::start(&store, &store.folder("engine-1"));
    let mut new = EngineProcess::start(&store, &store.folder("engine-2"));
    old.mount(&store, &Ask::new("volume", &old_mnt)).unwrap();
    let acknowledged = Arc::new(AtomicU64::new(0));
    let writer = {
        let (path, acknowledged) = (old_mnt.join("counter"), Arc::clone(&acknowledged));
        std::thread::spawn(move || count_up(&path, &acknowledged))
    };
    wait_until("the old writer writes", || acknowledged.load(Ordering::SeqCst) > 20);
    let other_node = Ask {
        node_id: "node-2".into(),
        ..Ask::new("volume", &new_mnt)
    };
    let polite = new.mount(&store, &other_node).unwrap_err();
    assert_eq!(polite.code(), Code::FailedPrecondition, "{polite}");
    assert!(polite.message().contains("node-1"), "{polite}");
    let forced = Ask {
        take_over: true,
        ..other_node
    };
    let mounted = new.mount(&store, &forced).unwrap();
    assert_eq!(mounted.epoch, 2);
    let last_seen = read_counter(&new_mnt.join("counter"));
    let error = writer.join().unwrap();
    let last_acknowledged = acknowledged.load(Ordering::SeqCst);
    assert!(
        last_acknowledged <= last_seen,
        "{last_acknowledged} was acknowledged, {last_seen} is there"
    );
    assert!(
        [Some(libc::EIO), Some(libc::EROFS)].contains(&error.raw_os_error()),
        "{error}"
    );
    for _ in 0..3 {
        let again = OpenOptions::new()
            .write(true)
            .open(old_mnt.join("counter"))
            .and_then(|file| {
                file.write_all_at(&u64::MAX.to_le_bytes(), 0)?;
                file.sync_all()
            });
        assert!(again.is_err(), "the old writer is told so each time");
    }
    let lost = &old.mounts()[0].lost;
    assert!(lost.contains("node-2"), "the old engine names the new owner: {lost:?}");
    fs::write(new_mnt.join("mine"), "now").unwrap();
    File::open(&new_mnt).unwrap().sync_all().unwrap();
    assert_eq!(read_counter(&new_mnt.join("counter")), last_seen);
    let told = old
        .unmount(&old_mnt, Duration::from_secs(30))
        .expect("a lost mount can be taken off");
    assert!(told.lost.contains("node-2"), "{told:?}");
}

fn count_up(path: &Path, acknowledged: &AtomicU64) -> std::io::Error {
    let file = match OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path)
    {
        Ok(file) => file,
        Err(error) => return error,
    };
    for number in 1u64.. {
        let written = file
            .write_all_at(&number.to_le_bytes(), 0)
            .and_then(|()| file.sync_all());
        if let Err(error) = written {
            return error;
        }
        acknowledged.store(number, Ordering::SeqCst);
    }
    unreachable!("a u64 does not end")
}

fn read_counter(path: &Path) -> u64 {
    u64::from_le_bytes(fs::read(path).expect("a file of ours").try_into().expect("eight bytes"))
}

/// One volume at several places is one mount; each call may be repeated; the last unmount gives the volume back.
#[test]
fn a_volume_is_opened_once_and_shown_at_each_mountpoint() {
    let store = LocalStore::start();
    let mut engine = EngineProcess::start(&store, &store.folder("engine"));
    let (first, second, third) = (store.folder("first"), store.folder("second"), store.folder("third"));
    let made = engine.mount(&store, &Ask::new("volume", &first)).unwrap();
    let again = engine.mount(&store, &Ask::new("volume", &first)).unwrap();
    assert_eq!(
        (made.epoch, made.since_unix_ms),
        (again.epoch, again.since_unix_ms),
        "repeating changes nothing"
    );
    let shown = engine.mount(&store, &Ask::new("volume", &second)).unwrap();
    assert_eq!(shown.epoch, made.epoch, "it is not taken over from itself");
    let read_only = Ask {
        read_only: true,
        ..Ask::new("volume", &third)
    };
    assert!(engine.mount(&store, &read_only).unwrap().read_only);
    fs::write(first.join("file"), "content").unwrap();
    assert_eq!(fs::read_to_string(second.join("file")).unwrap(), "content");
    assert_eq!(fs::read_to_string(third.join("file")).unwrap(), "content");
    assert_eq!(
        fs::write(third.join("file"), "x").unwrap_err().raw_os_error(),
        Some(libc::EROFS)
    );
    let other = engine.mount(&store, &Ask::new("another", &first)).unwrap_err();
    assert_eq!(other.code(), Code::AlreadyExists, "{other}");

    let deadline = Duration::from_secs(30);
    assert_eq!(engine.unmount(&first, deadline).unwrap().unmounted, 1);
    assert_eq!(
        engine.unmount(&first, deadline).unwrap().unmounted,
        0,
        "unmounting nothing succeeds"
    );
    assert_eq!(
        fs::read_to_string(second.join("file")).unwrap(),
        "content",
        "the others stay"
    );
    let busy = File::open(second.join("file")).unwrap();
    let refused = engine.unmount(&second, deadline).unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    drop(busy);
    engine.unmount(&second, deadline).unwrap();
    engine.unmount(&third, deadline).unwrap();
    assert!(engine.mounts().is_empty());
    let next = engine.mount(&store, &Ask::new("volume", &first)).unwrap();
    assert_eq!(next.epoch, made.epoch + 1, "it was closed, and is opened anew");
    assert!(engine.shut_down().unwrap().success());
    assert!(fs::read_dir(&first).unwrap().next().is_none(), "Shutdown unmounts");
}

/// With the store away an unmount ends at its deadline with the mount still there; it succeeds once the store is back.
#[test]
fn an_unmount_that_cannot_flush_in_time_keeps_the_mount() {
    let store = LocalStore::start();
    let proxy = store.block_on(S3Proxy::start(&store.endpoint(), Delays::default()));
    let mut engine = EngineProcess::start(&store, &store.folder("engine"));
    let mnt = store.folder("mnt");
    let ask = Ask {
        endpoint: Some(proxy.endpoint()),
        ..Ask::new("volume", &mnt)
    };
    engine.mount(&store, &ask).unwrap();
    fs::write(mnt.join("file"), "content").unwrap();
    proxy.pause();
    fs::write(mnt.join("other"), "more").unwrap();
    let late = engine.unmount(&mnt, Duration::from_millis(500)).unwrap_err();
    assert_eq!(late.code(), Code::DeadlineExceeded, "{late}");
    assert_eq!(
        fs::read_to_string(mnt.join("other")).unwrap(),
        "more",
        "it goes on serving"
    );
    assert!(engine.mounts()[0].dirty_bytes > 0);
    proxy.resume();
    engine.unmount(&mnt, Duration::from_secs(60)).unwrap();
    engine.mount(&store, &Ask::new("volume", &mnt)).unwrap();
    assert_eq!(fs::read_to_string(mnt.join("other")).unwrap(), "more");
}

/// SIGTERM flushes and unmounts everything. A second engine at the same socket is refused while the first lives.
#[test]
fn sigterm_ends_the_engine_with_everything_in_the_bucket() {
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).unwrap();
    fs::write(mnt.join("file"), vec![5u8; 3_000_000]).unwrap();
    let second = std::process::Command::new(tests::binaries::built(tests::binaries::Program::Binary("pannier")))
        .args(["engine", "--socket"])
        .arg(engine.socket())
        .output()
        .unwrap();
    let said = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(!second.status.success() && said.contains("another engine"), "{said}");
    assert_eq!(
        nix::unistd::getsid(Some(engine.pid())).unwrap(),
        engine.pid(),
        "it leads a session of its own"
    );
    engine.signal(Signal::SIGTERM);
    assert!(engine.wait().success());
    assert!(fs::read_dir(&mnt).unwrap().next().is_none());
    assert!(!engine.socket().exists());
    let mut engine = EngineProcess::start(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).unwrap();
    assert_eq!(fs::read(mnt.join("file")).unwrap(), vec![5u8; 3_000_000]);
}

/// What cannot be mounted is refused with its reason, by code and by name, and nothing is left behind.
#[test]
fn a_mount_that_cannot_be_is_refused_by_its_reason() {
    let store = LocalStore::start();
    let mut engine = EngineProcess::start(&store, &store.folder("engine"));
    let mnt = store.folder("mnt");
    let mut refused = |ask: Ask, code: Code, words: &[&str]| {
        let status = engine.mount(&store, &ask).unwrap_err();
        assert_eq!(status.code(), code, "{status}");
        for word in words {
            assert!(
                status.message().contains(word),
                "{word} is not in: {}",
                status.message()
            );
        }
    };
    let absent = PathBuf::from("/nonexistent/mnt");
    refused(
        Ask::new("volume", &absent),
        Code::InvalidArgument,
        &["/nonexistent/mnt", "does not exist"],
    );
    let full = store.folder("full");
    fs::write(full.join("x"), "").unwrap();
    refused(
        Ask::new("volume", &full),
        Code::FailedPrecondition,
        &["full", "not empty"],
    );
    refused(
        Ask {
            create: false,
            ..Ask::new("none", &mnt)
        },
        Code::NotFound,
        &["v/none", "no volume"],
    );
    refused(
        Ask {
            node_id: String::new(),
            ..Ask::new("volume", &mnt)
        },
        Code::InvalidArgument,
        &["node_id"],
    );
    let wrong_key = Some(("nobody".to_owned(), "wrong".to_owned()));
    refused(
        Ask {
            keys: wrong_key,
            ..Ask::new("volume", &mnt)
        },
        Code::PermissionDenied,
        &["v/volume", "denied"],
    );
    let no_bucket = Ask {
        bucket: "no-such-bucket".into(),
        ..Ask::new("volume", &mnt)
    };
    refused(no_bucket, Code::NotFound, &["no-such-bucket"]);
    assert!(engine.mounts().is_empty());
    assert!(fs::read_dir(&mnt).unwrap().next().is_none());
}

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(
            begun.elapsed() < Duration::from_secs(60),
            "waited too long until {what}"
        );
        std::thread::park_timeout(Duration::from_millis(1));
    }
}

/// Goal: a volume that is mounted is known to be. Found by a soak (PANNIER_TEST_SEED=70622, cycle 215): a list that had read the kernel's
/// table before the mount forgot the mountpoint after it, and the mount failed. Method: lists without end beside mounts.
#[test]
fn regression_a_list_beside_a_mount_does_not_forget_it() {
    let store = LocalStore::start();
    let mut engine = EngineProcess::start(&store, &store.folder("engine"));
    let (first, second) = (store.folder("first"), store.folder("second"));
    engine.mount(&store, &Ask::new("v1", &first)).unwrap();
    // The more there is to look through, the longer a list takes, and waits for another one.
    for n in 0..60 {
        let place = store.folder(&format!("place-{n}"));
        engine.mount(&store, &Ask::new("v1", &place)).unwrap();
    }
    let done = Arc::new(AtomicBool::new(false));
    let listing = [(); 4].map(|()| engine.list_until(Arc::clone(&done)));
    for _ in 0..300 {
        engine.mount(&store, &Ask::new("v1", &second)).unwrap();
        engine.unmount(&second, Duration::from_secs(30)).unwrap();
    }
    assert!(
        listing.iter().all(|listing| !listing.is_finished()),
        "all were answered"
    );
    done.store(true, Ordering::Relaxed);
    assert_eq!(engine.mounts().len(), 61);
    assert!(engine.shut_down().unwrap().success());
}
