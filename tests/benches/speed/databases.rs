//! Databases: SQLite with both of its journals by one client, and PostgreSQL by 32. What a transaction costs is waiting, so the
//! yardstick is what bare PUTs one after the other reach.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User};
use tests::bounded_command::{finished, succeeded};
use tests::s3_server::installed;

use crate::Bench;
use crate::groups::put_median;
use crate::systems::System;
use crate::table::{Limit, Metric};

/// Postgres refuses to run as root; this is the user of Debian's package.
const USER: &str = "postgres";

/// 32 clients, as many branches: with fewer they would wait for each other's rows.
const CLIENTS: u64 = 32;

/// 10 s of pgbench.
const PGBENCH_SECONDS: u64 = 10;

/// 5 ms that who commits waits for others: a client whose transaction has just ended comes along with its next one, instead of
/// waiting for a flush that it missed by a moment, and then for its own.
const COMMIT_DELAY_US: u64 = 5_000;

/// 120 s for the server to begin or end.
const PATIENCE: Duration = Duration::from_secs(120);

/// Measures databases.
pub fn group(bench: &mut Bench) {
    let put = put_median(bench).as_secs_f64();
    sqlite(bench, put);
    pgbench(bench, put);
}

/// A server of databases is for what has links, locks and a lasting fsync, and there is no waiting for its 500 MB on a peer.
fn serves_postgres(system: System) -> bool {
    matches!(system, System::Ext4 | System::Pannier | System::Kept | System::Other)
}

fn sqlite(bench: &mut Bench, put: f64) {
    let Some(program) = installed("sqlite3") else {
        println!("sqlite3 is not installed and is left out");
        return;
    };
    let loads = [
        ("SQLite, rollback journal, transactions", "delete", 100, 0.3),
        ("SQLite, write-ahead log, transactions", "wal", 200, 0.85),
    ];
    for (name, journal, transactions, share) in loads {
        let metric = Metric {
            name,
            unit: "/s",
            limit: Some(Limit::ShareOf(System::Plain, share)),
        };
        bench.table.note(metric, System::Plain, 1.0 / put);
        for at in 0..bench.systems.len() {
            let (system, dir) = (bench.systems[at].system, bench.systems[at].dir.clone());
            if system == System::Null {
                continue;
            }
            let transactions = if system.is_peer() {
                transactions / 5
            } else {
                transactions
            };
            let database = dir.join(format!("{journal}.db"));
            let settings = format!("pragma journal_mode={journal}; pragma synchronous=full;");
            let shell = |sql: &str| finished(Command::new(&program).arg("-batch").arg(&database).arg(sql));
            let made = shell(&format!("{settings} create table t(a integer primary key, b blob);"));
            if system.is_peer() && !made.status.success() {
                println!("{} has no {name}: {}", system.name(), made.said);
                continue;
            }
            assert!(made.status.success(), "{}", made.said);
            let inserts = "insert into t(b) values (randomblob(200)); ".repeat(transactions);
            bench.settle(system);
            let before = bench.proxy.counts();
            let begun = Instant::now();
            let inserted = shell(&format!("{settings} {inserts}"));
            assert!(inserted.status.success(), "{}: {}", system.name(), inserted.said);
            let rate = transactions as f64 / begun.elapsed().as_secs_f64();
            bench.table.note(metric, system, rate);
            if system == System::Pannier {
                bench.table.note_counts(metric, bench.proxy.counts().since(&before));
            }
        }
    }
}

fn pgbench(bench: &mut Bench, put: f64) {
    let Some(programs) = server_programs() else {
        println!("Postgres is not installed and is left out");
        return;
    };
    let Ok(Some(user)) = User::from_name(USER) else {
        println!("there is no user {USER}, so Postgres is left out");
        return;
    };
    let metric = Metric {
        name: "pgbench, 32 clients, transactions",
        unit: "/s",
        limit: Some(Limit::ShareOfLesser([System::Plain, System::Ext4], 0.5)),
    };
    let gathered = Metric {
        name: "the same, commit_delay 5 ms",
        ..metric
    };
    for metric in [metric, gathered] {
        bench.table.note(metric, System::Plain, CLIENTS as f64 / put);
    }
    let sockets = bench.place.scratch.join("sockets");
    fs::create_dir_all(&sockets).unwrap();
    fs::set_permissions(&bench.place.scratch, fs::Permissions::from_mode(0o711)).unwrap();
    for at in 0..bench.systems.len() {
        let (system, dir) = (bench.systems[at].system, bench.systems[at].dir.clone());
        if !serves_postgres(system) {
            continue;
        }
        let data = dir.join("cluster");
        fs::create_dir(&data).unwrap();
        for folder in [&data, &sockets] {
            chown(folder, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap();
        }
        let cluster = Cluster::start(&programs, &data, &sockets);
        let scale = CLIENTS.to_string();
        succeeded(
            cluster
                .client("pgbench")
                .args(["-i", "-q", "-I", "dtgp", "-s", &scale, USER]),
        );
        cluster.query("checkpoint");
        for (metric, delay_us) in [(metric, 0), (gathered, COMMIT_DELAY_US)] {
            cluster.query(&format!("alter system set commit_delay = {delay_us}"));
            cluster.query("select pg_reload_conf()");
            bench.settle(system);
            let before = bench.proxy.counts();
            bench.table.note(metric, system, transactions(&cluster));
            if system == System::Pannier {
                bench.table.note_counts(metric, bench.proxy.counts().since(&before));
            }
        }
        drop(cluster);
        fs::remove_dir_all(&data).unwrap();
    }
}

/// Runs pgbench and returns its transactions per second.
fn transactions(cluster: &Cluster) -> f64 {
    let (clients, seconds) = (CLIENTS.to_string(), PGBENCH_SECONDS.to_string());
    let arguments = ["--no-vacuum", "-j", "2", "-c", &clients, "-T", &seconds, USER];
    let said = succeeded(cluster.client("pgbench").args(arguments));
    let rate = said.lines().find_map(|line| line.strip_prefix("tps = "));
    rate.and_then(|rate| rate.split(' ').next()?.parse().ok())
        .expect("a rate")
}

/// Where the server's programs are; Debian keeps them off the PATH.
fn server_programs() -> Option<PathBuf> {
    let versions = fs::read_dir("/usr/lib/postgresql").ok()?;
    let mut folders: Vec<_> = versions.map(|entry| entry.unwrap().path().join("bin")).collect();
    folders.sort();
    folders.into_iter().rfind(|folder| folder.join("initdb").exists())
}

/// A server that runs.
struct Cluster {
    programs: PathBuf,
    sockets: PathBuf,
    server: Child,
}

fn as_user(program: &Path, dir: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args([&format!("--reuid={USER}"), &format!("--regid={USER}"), "--init-groups"]);
    command.arg(program).current_dir(dir);
    command
}

impl Cluster {
    fn start(programs: &Path, data: &Path, sockets: &Path) -> Self {
        let program = |name| as_user(&programs.join(name), sockets);
        succeeded(
            program("initdb")
                .arg("-D")
                .arg(data)
                .args(["-A", "trust", "--no-locale", "-E", "UTF8"]),
        );
        let mut command = program("postgres");
        command.arg("-D").arg(data).arg("-k").arg(sockets);
        command.args(["-c", "listen_addresses=", "-c", "max_wal_size=4GB"]);
        let server = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        let cluster = Self {
            programs: programs.to_owned(),
            sockets: sockets.to_owned(),
            server: server.spawn().unwrap(),
        };
        let begun = Instant::now();
        while !finished(&mut cluster.client("pg_isready")).status.success() {
            assert!(begun.elapsed() < PATIENCE, "Postgres does not begin");
            std::thread::park_timeout(Duration::from_millis(50));
        }
        cluster
    }

    fn client(&self, name: &str) -> Command {
        let mut command = as_user(&self.programs.join(name), &self.sockets);
        command.arg("-h").arg(&self.sockets);
        command
    }

    fn query(&self, sql: &str) {
        succeeded(self.client("psql").args(["-At", "-c", sql, USER]));
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // Fast: its sessions are ended.
        let _ = kill(Pid::from_raw(self.server.id() as i32), Signal::SIGINT);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && matches!(self.server.try_wait(), Ok(None)) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        drop(self.server.kill());
        drop(self.server.wait());
    }
}
