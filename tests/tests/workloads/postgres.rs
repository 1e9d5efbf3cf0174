//! PostgreSQL: initdb, pgbench, and recovery after its own crash and after that of the mount.
//!
//! Goal: what Postgres told a client it committed is there after any crash, and its own checkers find the cluster whole.
//! Method: pgbench's transactions keep four sums equal; a run that ends says how many committed, a run that is cut off by
//! a kill may add more, never fewer. Then amcheck looks at every index, and pg_checksums at every page.

use std::os::unix::fs::chown;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tests::bounded_command::{finished, succeeded};
use tests::engine_process::{Ask, EngineProcess};
use tests::local_store::LocalStore;
use tests::s3_server::skip;
use tests::scratch_volume::ScratchVolume;

use crate::{as_user, rounds};

/// The user that Debian's package makes, because Postgres refuses to run as root.
const USER: &str = "postgres";

/// Transactions of each of 4 clients in a run that ends.
const TRANSACTIONS: u64 = 20;

/// 120 s for a recovery that takes one.
const PATIENCE: Duration = Duration::from_secs(120);

/// A server on a folder of the mount; its socket lies on the local disk.
struct Cluster {
    programs: PathBuf,
    data: PathBuf,
    sockets: PathBuf,
    server: Option<Child>,
}

/// Where the server's programs are; Debian keeps them off the PATH.
fn server_programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut folders: Vec<_> = versions
        .map(|entry| entry.expect("an entry").path().join("bin"))
        .collect();
    folders.sort();
    folders.into_iter().rfind(|folder| folder.join("initdb").exists())
}

impl Cluster {
    fn program(&self, name: &str) -> Command {
        let mut command = as_user(USER, &self.programs.join(name));
        command.current_dir(&self.sockets);
        command
    }

    fn client(&self, name: &str) -> Command {
        let mut command = self.program(name);
        command.arg("-h").arg(&self.sockets);
        command
    }

    fn start(&mut self) {
        let begun = Instant::now();
        let log = self.sockets.join("log");
        loop {
            let output = std::fs::File::options()
                .create(true)
                .append(true)
                .open(&log)
                .expect("a log");
            let errors = output.try_clone().expect("a second handle");
            let mut command = self.program("postgres");
            command
                .arg("-D")
                .arg(&self.data)
                .arg("-k")
                .arg(&self.sockets)
                .args(["-c", "listen_addresses="]);
            let mut server = command
                .stdin(Stdio::null())
                .stdout(output)
                .stderr(errors)
                .process_group(0)
                .spawn()
                .expect("setpriv is part of util-linux");
            while server.try_wait().expect("a child").is_none() {
                if finished(&mut self.client("pg_isready")).status.success() {
                    self.server = Some(server);
                    return;
                }
                assert!(begun.elapsed() < PATIENCE, "not ready: {}", said(&log));
                std::thread::park_timeout(Duration::from_millis(50));
            }
            // It ended: sessions of the killed one may still hold its memory for a moment.
            assert!(begun.elapsed() < PATIENCE, "it does not start: {}", said(&log));
            std::thread::park_timeout(Duration::from_millis(200));
        }
    }

    fn signal(&mut self, signal: Signal) {
        let mut server = self.server.take().expect("started");
        kill(Pid::from_raw(server.id() as i32), signal).expect("our child is there until it is waited for");
        let begun = Instant::now();
        while server.try_wait().expect("a child").is_none() {
            if begun.elapsed() > PATIENCE {
                drop(server.kill());
                panic!("it does not end: {}", said(&self.sockets.join("log")));
            }
            std::thread::park_timeout(Duration::from_millis(20));
        }
    }

    /// Runs pgbench until its end.
    fn load(&self) {
        let mut command = self.client("pgbench");
        let each = TRANSACTIONS.to_string();
        let said = succeeded(command.args(["--no-vacuum", "-c", "4", "-t", &each, USER]));
        assert!(said.contains("number of failed transactions: 0"), "{said}");
    }

    /// Starts pgbench, and returns when it has committed something.
    fn load_until_killed(&self, before: u64) -> Child {
        let mut command = self.client("pgbench");
        command.args(["--no-vacuum", "-c", "4", "-T", "3600", USER]);
        let load = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let mut load = load.spawn().expect("pgbench starts");
        let begun = Instant::now();
        while self.history() < before + 20 {
            assert!(begun.elapsed() < PATIENCE, "pgbench commits nothing");
            assert!(load.try_wait().expect("a child").is_none(), "pgbench ended");
        }
        load
    }

    fn query(&self, sql: &str) -> String {
        succeeded(self.client("psql").args(["-At", "-c", sql, USER]))
            .trim()
            .to_owned()
    }

    fn history(&self) -> u64 {
        self.query("select count(*) from pgbench_history")
            .parse()
            .expect("a number")
    }

    /// Of all its files; it does not run.
    fn checksums_hold(&self) {
        succeeded(self.program("pg_checksums").arg("--check").arg("-D").arg(&self.data));
    }

    /// Each transaction added one number to four tables: their sums are one.
    fn is_whole(&self) {
        let sums = self.query(
            "select (select coalesce(sum(abalance), 0) from pgbench_accounts), \
             (select coalesce(sum(tbalance), 0) from pgbench_tellers), \
             (select coalesce(sum(bbalance), 0) from pgbench_branches), \
             (select coalesce(sum(delta), 0) from pgbench_history)",
        );
        let mut different: Vec<&str> = sums.split('|').collect();
        different.dedup();
        assert_eq!(different.len(), 1, "{sums}");
        succeeded(
            self.client("pg_amcheck")
                .args(["--install-missing", "--heapallindexed", USER]),
        );
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Some(mut server) = self.server.take() {
            // Its sessions end when they see that it is gone.
            drop(server.kill());
            drop(server.wait());
        }
    }
}

fn said(log: &Path) -> String {
    std::fs::read_to_string(log).unwrap_or_default()
}

/// A cluster on the mount at `dir`, whose server runs; `sockets` lies on the local disk.
fn running(sockets: PathBuf, dir: &Path) -> Option<Cluster> {
    let mut cluster = cluster(sockets, dir)?;
    let mut initdb = cluster.program("initdb");
    succeeded(
        initdb
            .arg("-D")
            .arg(&cluster.data)
            .args(["-A", "trust", "--data-checksums", "--no-instructions"]),
    );
    cluster.start();
    succeeded(cluster.client("pgbench").args(["--initialize", "--quiet", USER]));
    Some(cluster)
}

fn cluster(sockets: PathBuf, dir: &Path) -> Option<Cluster> {
    let Some(programs) = server_programs() else {
        skip("Postgres is not installed (`cargo xtask tools` installs it)");
        return None;
    };
    let (true, Ok(Some(user))) = (nix::unistd::geteuid().is_root(), User::from_name(USER)) else {
        skip("Postgres must run as the user postgres, which only root can become");
        return None;
    };
    let data = dir.join("cluster");
    std::fs::create_dir(&data).expect("a folder on the mount");
    for folder in [&data, &sockets] {
        chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).expect("root gives folders away");
    }
    Some(Cluster {
        programs,
        data,
        sockets,
        server: None,
    })
}

#[test]
fn postgres_keeps_what_it_committed_through_crashes() {
    let mut scratch = ScratchVolume::new();
    let mut mounted = scratch.mount();
    let Some(mut cluster) = running(scratch.folder("postgres"), mounted.dir()) else {
        return;
    };
    for _ in 0..rounds() {
        let before = cluster.history();
        cluster.load();
        assert_eq!(cluster.history(), before + 4 * TRANSACTIONS);

        let mut load = cluster.load_until_killed(before);
        let committed = cluster.history();
        cluster.signal(Signal::SIGKILL);
        drop(load.wait());
        cluster.start();
        assert!(cluster.history() >= committed, "the server's own crash");
        cluster.is_whole();

        let mut load = cluster.load_until_killed(cluster.history());
        let committed = cluster.history();
        mounted.kill();
        drop(load.kill());
        drop(load.wait());
        cluster.signal(Signal::SIGKILL);
        mounted = scratch.mount();
        cluster.start();
        assert!(cluster.history() >= committed, "the mount's crash");
        cluster.is_whole();
    }
    cluster.signal(Signal::SIGINT);
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    cluster.checksums_hold();
    scratch.end(mounted);
}

/// What happens to an engine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Event {
    Killed,
    Replaced,
}

/// kill -9 of the engine and upgrades of it under pgbench: no client is told an error, and Postgres' own checks pass. 3 kills and 1 upgrade
/// here; `PANNIER_TEST_KILLS=20 PANNIER_TEST_REPLACEMENTS=5` is the long run.
#[test]
fn postgres_clients_notice_no_kill_and_no_upgrade_of_the_engine() {
    let store = LocalStore::start();
    let (folder, mnt) = (store.folder("engine"), store.folder("mnt"));
    let mut engine = EngineProcess::start_kept(&store, &folder);
    engine.mount(&store, &Ask::new("volume", &mnt)).expect("a mount");
    let Some(mut cluster) = running(store.folder("postgres"), &mnt) else {
        return;
    };
    let of = |name: &str, few: u64| tests::environment::number(name).unwrap_or(few);
    let events = std::iter::repeat_n(Event::Killed, of("PANNIER_TEST_KILLS", 3) as usize).chain(std::iter::repeat_n(
        Event::Replaced,
        of("PANNIER_TEST_REPLACEMENTS", 1) as usize,
    ));
    let (mut load, mut begun) = (Load::start(&cluster), 0);
    for event in events {
        let seen = cluster.history();
        while cluster.history() < seen + 5 {
            begun += load.renew(&cluster);
        }
        let before = engine.kept_engine().expect("an engine runs");
        match event {
            Event::Killed => kill(before, Signal::SIGKILL).expect("it is there"),
            Event::Replaced => engine.replace_engine(&[]),
        }
        engine.kept_engine_after(before);
        let since = Instant::now();
        while kill(before, None).is_ok() {
            assert!(since.elapsed() < PATIENCE, "the engine before stays after {event:?}");
            std::thread::park_timeout(Duration::from_millis(5));
        }
    }
    load.ends_well();
    assert_eq!(
        cluster.history(),
        (begun + 1) * 4 * TRANSACTIONS,
        "each transaction is there once"
    );
    cluster.is_whole();
    cluster.signal(Signal::SIGINT);
    cluster.checksums_hold();
    engine.unmount(&mnt, PATIENCE).expect("it is unmounted");
    assert!(engine.shut_down().expect("a clean end").success());
}

/// pgbench of 4 clients that runs beside the test.
struct Load(Child);

impl Load {
    fn start(cluster: &Cluster) -> Self {
        let mut command = cluster.client("pgbench");
        command.args(["--no-vacuum", "-c", "4", "-t", &TRANSACTIONS.to_string(), USER]);
        let command = command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self(command.spawn().expect("pgbench starts"))
    }

    /// Starts another one if this one has ended, and returns how many ended.
    fn renew(&mut self, cluster: &Cluster) -> u64 {
        if self.0.try_wait().expect("a child").is_none() {
            std::thread::park_timeout(Duration::from_millis(10));
            return 0;
        }
        std::mem::replace(self, Self::start(cluster)).ends_well();
        1
    }

    /// Waits for its end, which is one without an error.
    fn ends_well(self) {
        let output = self.0.wait_with_output().expect("pgbench ends");
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned());
        assert!(
            output.status.success() && said[0].contains("number of failed transactions: 0"),
            "{said:?}"
        );
    }
}
