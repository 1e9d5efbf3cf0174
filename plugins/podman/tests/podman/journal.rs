//! The journal as a second reader of a task's output: a socket that takes what journald would.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::time::Duration;

use podman_driver::logs::{JournalPlan, LogPlan, RelayProgram, TaskLogs, log_dir};
use tempfile::TempDir;

/// A minute, on machines that do much else.
const PATIENCE: Duration = Duration::from_secs(60);

fn plan(dir: &TempDir, socket: PathBuf) -> LogPlan {
    let journal = JournalPlan {
        socket,
        ..JournalPlan::new("0123456789abcdef", "web-1", Some("shop"))
    };
    LogPlan {
        dir: log_dir(dir.path(), "web"),
        stdout: "/dev/null".into(),
        stderr: "/dev/null".into(),
        writer: None,
        journal: Some(journal),
    }
}

/// The log as conmon has it open. A log that nobody has open is one that has ended.
fn conmon(plan: &LogPlan) -> File {
    std::fs::OpenOptions::new()
        .append(true)
        .open(plan.container_log())
        .unwrap()
}

fn write(log: &mut File, records: &[(&str, char, &[u8])]) {
    for (stream, tag, payload) in records {
        let head = format!("2026-11-21T08:19:12.473433929+00:00 {stream} {tag} ");
        log.write_all(&[head.as_bytes(), payload, b"\n"].concat()).unwrap();
    }
}

/// The fields of one entry, all of them with their length.
fn fields(entry: &[u8]) -> BTreeMap<String, Vec<u8>> {
    let (mut fields, mut rest) = (BTreeMap::new(), entry);
    while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
        let name = String::from_utf8(rest[..end].to_vec()).unwrap();
        let length = u64::from_le_bytes(rest[end + 1..end + 9].try_into().unwrap());
        let value = &rest[end + 9..][..usize::try_from(length).unwrap()];
        fields.insert(name, value.to_vec());
        rest = &rest[end + 9 + value.len() + 1..];
    }
    fields
}

fn receive(socket: &UnixDatagram) -> BTreeMap<String, Vec<u8>> {
    let mut entry = vec![0; 256 << 10];
    let len = socket.recv(&mut entry).expect("an entry comes");
    fields(&entry[..len])
}

fn listen(path: &Path) -> UnixDatagram {
    let socket = UnixDatagram::bind(path).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

fn program() -> RelayProgram {
    RelayProgram::new(env!("CARGO_BIN_EXE_nomad-driver-podman"))
}

/// Goal: each line is one entry with the container's fields, whatever bytes it has; the last one also without a newline.
#[tokio::test]
async fn lines_become_entries_with_the_containers_fields() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let socket = listen(&dir.path().join("journal"));
    let plan = plan(&dir, dir.path().join("journal"));
    let logs = TaskLogs::start(plan.clone(), &program()).await.unwrap();
    let records: [(&str, char, &[u8]); 4] = [
        ("stdout", 'F', b"hello"),
        ("stderr", 'F', b"bad \xff\0=\x01"),
        ("stdout", 'P', b"no new"),
        ("stdout", 'P', b"line"),
    ];
    let mut log = conmon(&plan);
    write(&mut log, &records);
    drop(log);
    let draining = logs.drain(PATIENCE);
    let entries = tokio::task::spawn_blocking(move || [receive(&socket), receive(&socket), receive(&socket)]);
    let (drained, entries) = tokio::join!(draining, entries);
    assert!(drained);
    let mut entries = entries.unwrap().to_vec();
    entries.sort_by(|one, two| one["MESSAGE"].cmp(&two["MESSAGE"]));
    let seen: Vec<_> = entries
        .iter()
        .map(|entry| (entry["MESSAGE"].as_slice(), entry["PRIORITY"].as_slice()))
        .collect();
    let want: [(&[u8], &[u8]); 3] = [(b"bad \xff\0=\x01", b"3"), (b"hello", b"6"), (b"no newline", b"6")];
    assert_eq!(seen, want);
    for entry in &entries {
        assert_eq!(entry["CONTAINER_NAME"], b"web-1");
        assert_eq!(entry["CONTAINER_ID"], b"0123456789ab");
        assert_eq!(entry["CONTAINER_TAG"], b"shop");
        let partial = entry.contains_key("CONTAINER_PARTIAL_MESSAGE");
        assert_eq!(partial, entry["MESSAGE"] == b"no newline");
    }
    logs.remove().await.unwrap();
}

/// Goal: a journald that comes late, or goes and comes again, gets every entry once, and Nomad never waits for it.
/// Method: the socket is made after the first line, removed, and made again.
#[tokio::test]
async fn a_journal_that_was_away_gets_what_it_missed() {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("journal");
    let plan = plan(&dir, path.clone());
    let logs = TaskLogs::start(plan.clone(), &program()).await.unwrap();
    let lines = |from: u32, to: u32| -> Vec<String> { (from..to).map(|number| format!("line {number}")).collect() };
    let mut log = conmon(&plan);
    let mut put = |lines: &[String]| {
        let records: Vec<(&str, char, &[u8])> = lines.iter().map(|line| ("stdout", 'F', line.as_bytes())).collect();
        write(&mut log, &records);
    };
    put(&lines(0, 300));
    let message = |socket: &UnixDatagram| String::from_utf8(receive(socket)["MESSAGE"].clone()).unwrap();
    let first = listen(&path);
    let seen: Vec<String> = (0..300).map(|_| message(&first)).collect();
    assert_eq!(seen, lines(0, 300));
    drop(first);
    std::fs::remove_file(&path).unwrap();
    put(&lines(300, 320));
    let second = listen(&path);
    let seen: Vec<String> = (300..320).map(|_| message(&second)).collect();
    assert_eq!(seen, lines(300, 320));
    drop(log);
    assert!(logs.drain(PATIENCE).await);
    logs.remove().await.unwrap();
}
