//! SQLite, with its rollback journal and with its write-ahead log.
//!
//! Goal: a transaction that SQLite called committed is there after any crash, and the database is whole. Method: the
//! sqlite3 shell commits one row after another and says each; in the middle the mount's process is killed.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Stdio};

use tests::bounded_command::succeeded;
use tests::scratch_volume::ScratchVolume;

use crate::{programs, rounds};

/// Transactions that are said to be committed before the kill.
const COMMITS: usize = 30;

/// Far more transactions than can be committed before the kill.
const TRANSACTIONS: usize = 100_000;

fn ask(sqlite: &Path, database: &Path, sql: &str) -> String {
    succeeded(Command::new(sqlite).arg("-batch").arg(database).arg(sql))
        .trim()
        .to_owned()
}

/// Commits rows until the mount dies under it; returns the last that was said to be committed.
fn commit_until_killed(sqlite: &Path, database: &Path, settings: &str, kill: impl FnOnce()) -> u64 {
    let local = tempfile::NamedTempFile::new().expect("a file on the local disk");
    let transactions = "insert into t(b) values (randomblob(3000)); select max(a) from t;\n".repeat(TRANSACTIONS);
    std::fs::write(local.path(), format!(".bail on\n{settings}\n{transactions}")).expect("a file on the local disk");
    // A line at a time, so that what is committed is known when it is.
    let mut shell = Command::new("stdbuf");
    shell.arg("-oL").arg(sqlite).arg("-batch").arg(database);
    let mut shell = shell
        .stdin(local.reopen().expect("the script"))
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .expect("stdbuf is part of coreutils");
    let mut lines = BufReader::new(shell.stdout.take().expect("piped")).lines();
    let mut committed = 0;
    let mut note = |line: std::io::Result<String>| {
        // The answer to `pragma journal_mode` is a word.
        if let Some(row) = line.ok().and_then(|line| line.parse().ok()) {
            committed = row;
        }
    };
    for _ in 0..COMMITS {
        note(lines.next().expect("transactions are committed"));
    }
    kill();
    drop(shell.kill());
    // What it said before it died counts as well.
    lines.for_each(&mut note);
    drop(shell.wait());
    committed
}

fn commits_survive(settings: &str) {
    let Some([sqlite]) = programs(["sqlite3"]) else { return };
    let mut scratch = ScratchVolume::new();
    let mut mounted = scratch.mount();
    let database = mounted.dir().join("data.db");
    ask(
        &sqlite,
        &database,
        &format!("{settings} create table t(a integer primary key, b blob);"),
    );
    for _ in 0..rounds() {
        let before: u64 = ask(&sqlite, &database, "select count(*) from t")
            .parse()
            .expect("a number");
        let committed = commit_until_killed(&sqlite, &database, settings, || mounted.kill());
        mounted = scratch.mount();
        assert_eq!(ask(&sqlite, &database, "pragma integrity_check"), "ok");
        let after = ask(&sqlite, &database, "select count(*), max(a) from t");
        let (count, last) = after.split_once('|').expect("two numbers");
        assert_eq!(count, last, "rows come in order, so none is missing in between");
        let last: u64 = last.parse().expect("a number");
        assert!(
            last >= committed && committed > before,
            "{before}, then {committed} committed, {last} found"
        );
    }
    scratch.end(mounted);
}

/// With EXTRA, SQLite syncs the folder too after the journal is gone, which is what makes a transaction last.
#[test]
fn sqlite_keeps_what_its_rollback_journal_committed() {
    commits_survive("pragma journal_mode=delete; pragma synchronous=extra;");
}

#[test]
fn sqlite_keeps_what_its_write_ahead_log_committed() {
    commits_survive("pragma journal_mode=wal; pragma synchronous=full;");
}
