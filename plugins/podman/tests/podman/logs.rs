//! The logs of a task, with the real log process: what the container wrote is what Nomad's reader gets.

use std::fs::{File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::fixture::PodmanService;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, mkfifo};
use podman_driver::logs::{LogPlan, RelayProgram, TaskLogs, log_configuration, log_dir};
use podman_driver::podman::{BindMount, Client, ContainerSpec, Podman as _};
use tempfile::TempDir;

/// A minute: nothing here lasts longer than two seconds on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// Names the directory for which [`plugin_stand_in`] is to be a plugin.
const STAND_IN_DIR: &str = "PODMAN_DRIVER_TEST_LOG_DIR";

/// A task's directories and FIFOs as Nomad makes them, and a conmon that the test plays.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        for name in ["stdout.fifo", "stderr.fifo"] {
            mkfifo(
                &dir.path().join(name),
                nix::sys::stat::Mode::S_IRUSR | nix::sys::stat::Mode::S_IWUSR,
            )
            .unwrap();
        }
        Self { dir }
    }

    fn fifo(&self, stream: &str) -> PathBuf {
        self.dir.path().join(format!("{stream}.fifo"))
    }

    fn plan(&self) -> LogPlan {
        let dir = log_dir(self.dir.path(), "web");
        LogPlan {
            dir,
            stdout: self.fifo("stdout"),
            stderr: self.fifo("stderr"),
            ..LogPlan::default()
        }
    }

    async fn start(&self) -> TaskLogs {
        TaskLogs::start(self.plan(), &program()).await.unwrap()
    }

    /// Reads a stream to its end, as Nomad does.
    fn reader(&self, stream: &str) -> JoinHandle<Vec<u8>> {
        let path = self.fifo(stream);
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            File::open(path).unwrap().read_to_end(&mut bytes).unwrap();
            bytes
        })
    }

    /// The log as conmon opens it.
    fn conmon(&self) -> File {
        OpenOptions::new()
            .append(true)
            .open(self.plan().container_log())
            .unwrap()
    }

    fn relay_pid(&self) -> Option<Pid> {
        let text = std::fs::read_to_string(self.plan().dir.join("lock")).ok()?;
        let pid = text.trim().parse().ok()?;
        Path::new(&format!("/proc/{pid}/exe"))
            .exists()
            .then(|| Pid::from_raw(pid))
    }

    async fn new_relay_pid(&self, old: Option<Pid>) -> Pid {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(pid) = self.relay_pid().filter(|pid| Some(*pid) != old) {
                return pid;
            }
            assert!(Instant::now() < deadline, "a log process comes");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

/// A process that was killed and not yet waited for has no program any more.
fn lives(pid: Pid) -> bool {
    Path::new(&format!("/proc/{pid}/exe")).exists()
}

fn program() -> RelayProgram {
    RelayProgram::new(env!("CARGO_BIN_EXE_nomad-driver-podman"))
}

fn record(stream: &str, tag: char, payload: &[u8]) -> Vec<u8> {
    let head = format!("2026-11-21T08:19:12.473433929+00:00 {stream} {tag} ");
    [head.as_bytes(), payload, b"\n"].concat()
}

async fn read_by(reader: JoinHandle<Vec<u8>>) -> Vec<u8> {
    let bytes = tokio::task::spawn_blocking(move || reader.join().unwrap());
    tokio::time::timeout(PATIENCE, bytes)
        .await
        .expect("the reader sees the end")
        .unwrap()
}

/// Goal: both streams arrive apart, binary and without added newlines, and the files go away. Method: a conmon that
/// the test plays; the end is learned from it alone, nobody tells the log process.
#[tokio::test]
async fn output_arrives_as_it_was_written_and_the_process_ends_with_conmon() {
    let bench = Bench::new();
    let logs = bench.start().await;
    let (stdout, stderr) = (bench.reader("stdout"), bench.reader("stderr"));
    let mut conmon = bench.conmon();
    let mode = conmon.metadata().unwrap().mode();
    assert_eq!(mode & 0o777, 0o600, "the log is nobody else's");
    let binary: Vec<u8> = (0..=255).filter(|byte| *byte != b'\n').collect();
    let mut expected = Vec::new();
    for turn in 0..200 {
        conmon.write_all(&record("stdout", 'P', &binary)).unwrap();
        conmon
            .write_all(&record("stderr", 'F', format!("error {turn}").as_bytes()))
            .unwrap();
        expected.extend_from_slice(&binary);
    }
    conmon
        .write_all(&record("stdout", 'P', b"no newline at the end"))
        .unwrap();
    expected.extend_from_slice(b"no newline at the end");
    let pid = bench.new_relay_pid(None).await;
    drop(conmon);
    assert_eq!(read_by(stdout).await, expected);
    let lines: String = (0..200).map(|turn| format!("error {turn}\n")).collect();
    assert_eq!(read_by(stderr).await, lines.as_bytes());
    assert!(logs.drain(PATIENCE).await);
    assert!(!lives(pid), "the log process is gone");
    logs.remove().await.unwrap();
    assert!(!bench.plan().dir.exists());
}

/// Trap 4: a process that holds the plugin's stdout or stderr keeps Nomad from seeing the plugin's end.
#[tokio::test]
async fn the_log_process_inherits_nothing() {
    let bench = Bench::new();
    // A descriptor that a careless host of the plugin left open over exec.
    let careless = File::open("/proc/self/status").unwrap();
    nix::fcntl::fcntl(&careless, nix::fcntl::FcntlArg::F_SETFD(nix::fcntl::FdFlag::empty())).unwrap();
    let logs = bench.start().await;
    let pid = bench.new_relay_pid(None).await;
    let fds: Vec<(String, PathBuf)> = std::fs::read_dir(format!("/proc/{pid}/fd"))
        .unwrap()
        .map(|entry| entry.unwrap())
        .filter_map(|entry| {
            Some((
                entry.file_name().into_string().unwrap(),
                std::fs::read_link(entry.path()).ok()?,
            ))
        })
        .collect();
    let own = |path: &Path| path.starts_with(bench.dir.path()) || path.to_string_lossy().contains("inotify");
    for (fd, path) in &fds {
        let standard = ["0", "1", "2"].contains(&fd.as_str());
        assert_eq!(standard, path == Path::new("/dev/null"), "{fds:?}");
        assert!(standard || own(path), "{fds:?}");
    }
    assert_eq!(
        nix::unistd::getsid(Some(pid)).unwrap(),
        pid,
        "it leads a session of its own"
    );
    let environment = std::fs::read(format!("/proc/{pid}/environ")).unwrap();
    assert!(environment.is_empty(), "{}", String::from_utf8_lossy(&environment));
    logs.remove().await.unwrap();
    assert!(!lives(pid));
}

/// Goal: Nomad's reader may be restarted at any time (an agent's upgrade) and misses nothing. Method: readers that
/// read a part and go, while output goes on, with and without a reader there.
#[tokio::test]
async fn a_reader_that_goes_and_comes_back_misses_nothing() {
    let bench = Bench::new();
    let logs = bench.start().await;
    let mut conmon = bench.conmon();
    let mut got = Vec::new();
    let mut written = 0;
    for turn in 0..5 {
        let path = bench.fifo("stdout");
        let part = tokio::task::spawn_blocking(move || {
            let mut fifo = File::open(path).unwrap();
            let mut bytes = vec![0; 1234];
            fifo.read_exact(&mut bytes).unwrap();
            bytes
        });
        for line in written..written + 20_000 {
            conmon
                .write_all(&record("stdout", 'F', format!("line {line}").as_bytes()))
                .unwrap();
        }
        written += 20_000;
        got.extend(
            tokio::time::timeout(PATIENCE, part)
                .await
                .expect("a reader gets its bytes")
                .unwrap(),
        );
        assert_eq!(got.len(), 1234 * (turn + 1));
    }
    let (stdout, stderr) = (bench.reader("stdout"), bench.reader("stderr"));
    drop(conmon);
    got.extend(read_by(stdout).await);
    let expected: String = (0..written).map(|line| format!("line {line}\n")).collect();
    assert!(got == expected.as_bytes(), "{} bytes of {}", got.len(), expected.len());
    assert!(logs.drain(PATIENCE).await);
    assert!(read_by(stderr).await.is_empty());
    logs.remove().await.unwrap();
}

/// Goal: the log process itself may die. Method: it is killed between outputs (nothing may be lost or doubled) and
/// during them (nothing may be lost; the piece that was on its way may come twice), and no reader sees an end of file.
#[tokio::test]
async fn a_killed_log_process_is_replaced_where_it_stood() {
    let bench = Bench::new();
    let logs = bench.start().await;
    let path = bench.fifo("stdout");
    let (sender, mut lines) = tokio::sync::mpsc::unbounded_channel();
    let stdout = std::thread::spawn(move || {
        let mut text = std::io::BufReader::new(File::open(path).unwrap());
        let mut line = String::new();
        while std::io::BufRead::read_line(&mut text, &mut line).unwrap() > 0 {
            sender.send(std::mem::take(&mut line)).unwrap();
        }
    });
    let stderr = bench.reader("stderr");
    let mut conmon = bench.conmon();
    held_twice(&bench.fifo("stdout")).await;
    let mut pid = None;
    for calm in 0..3 {
        conmon
            .write_all(&record("stdout", 'F', format!("calm {calm}").as_bytes()))
            .unwrap();
        let line = tokio::time::timeout(PATIENCE, lines.recv()).await.unwrap().unwrap();
        assert_eq!(line, format!("calm {calm}\n"));
        // The position is written after the FIFO: it is there once the process sleeps again.
        let current = bench.new_relay_pid(pid).await;
        asleep(current).await;
        kill(current, Signal::SIGKILL).unwrap();
        pid = Some(current);
    }
    pid = Some(bench.new_relay_pid(pid).await);
    let pad = "x".repeat(100);
    let kills = 3;
    for turn in 0..kills {
        for line in 0..10_000 {
            conmon
                .write_all(&record(
                    "stdout",
                    'F',
                    format!("{:06} {pad}", turn * 10_000 + line).as_bytes(),
                ))
                .unwrap();
        }
        kill(pid.unwrap(), Signal::SIGKILL).unwrap();
        pid = Some(bench.new_relay_pid(pid).await);
    }
    drop(conmon);
    assert!(logs.drain(PATIENCE).await);
    stdout.join().unwrap();
    assert!(read_by(stderr).await.is_empty());
    let (mut next, mut doubled) = (0, 0);
    while let Some(line) = lines.recv().await {
        let whole = line
            .split_whitespace()
            .next()
            .and_then(|number| number.parse::<usize>().ok());
        match whole {
            Some(number) if number == next && line.trim_end().ends_with(&pad) => next += 1,
            _ => doubled += line.len(),
        }
    }
    assert_eq!(next, kills * 10_000);
    assert!(doubled <= kills * (128 << 10), "{doubled} bytes came twice");
    logs.remove().await.unwrap();
}

/// Waits until this process has the FIFO open as reader (the test) and as writer (the plugin).
async fn held_twice(fifo: &Path) {
    let deadline = Instant::now() + PATIENCE;
    let holds = || {
        let fds = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
        fds.filter(|entry| std::fs::read_link(entry.path()).is_ok_and(|path| path == fifo))
            .count()
    };
    while holds() < 2 {
        assert!(Instant::now() < deadline, "the plugin holds the FIFO open too");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

async fn asleep(pid: Pid) {
    let deadline = Instant::now() + PATIENCE;
    let state = || std::fs::read_to_string(format!("/proc/{pid}/wchan")).unwrap_or_default();
    while !state().contains("poll") {
        assert!(
            Instant::now() < deadline,
            "the log process waits in poll, it is in {:?}",
            state()
        );
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

/// The process that trap 10 kills: a plugin as far as logs go. Not a test of its own.
#[tokio::test]
#[ignore = "started by kill_of_the_plugin_keeps_logs_flowing"]
async fn plugin_stand_in() {
    #[expect(
        clippy::disallowed_methods,
        reason = "the environment is how a test speaks to its own second process"
    )]
    let Some(dir) = std::env::var_os(STAND_IN_DIR).map(PathBuf::from) else {
        return;
    };
    let plan = LogPlan {
        dir: log_dir(&dir, "web"),
        stdout: dir.join("stdout.fifo"),
        stderr: dir.join("stderr.fifo"),
        ..LogPlan::default()
    };
    let _logs = TaskLogs::start(plan, &program()).await.unwrap();
    std::future::pending::<()>().await;
}

fn start_stand_in(bench: &Bench) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "logs::plugin_stand_in", "--ignored"])
        .env(STAND_IN_DIR, bench.dir.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap()
}

/// Traps 10 and 4: the plugin is killed, the reader sees no end of file and all further output, a new plugin takes the
/// log process over, and the dead plugin's stdout is at its end at once.
#[tokio::test]
async fn kill_of_the_plugin_keeps_logs_flowing() {
    let bench = Bench::new();
    let mut plugin = start_stand_in(&bench);
    let (stdout, stderr) = (bench.reader("stdout"), bench.reader("stderr"));
    let relay = bench.new_relay_pid(None).await;
    let mut conmon = bench.conmon();
    conmon.write_all(&record("stdout", 'F', b"before")).unwrap();
    plugin.kill().unwrap();
    let mut plugin_stdout = plugin.stdout.take().unwrap();
    let at_end = tokio::task::spawn_blocking(move || plugin_stdout.read_to_end(&mut Vec::new()));
    tokio::time::timeout(PATIENCE, at_end)
        .await
        .expect("nobody else holds the plugin's stdout")
        .unwrap()
        .unwrap();
    plugin.wait().unwrap();
    conmon.write_all(&record("stdout", 'F', b"while it was dead")).unwrap();
    let logs = TaskLogs::resume(&bench.plan().dir, &program()).unwrap();
    conmon.write_all(&record("stdout", 'F', b"after")).unwrap();
    assert_eq!(bench.relay_pid(), Some(relay), "the log process is the same");
    drop(conmon);
    assert_eq!(
        String::from_utf8(read_by(stdout).await).unwrap(),
        "before\nwhile it was dead\nafter\n"
    );
    assert!(read_by(stderr).await.is_empty());
    assert!(logs.drain(PATIENCE).await);
    logs.remove().await.unwrap();
}

/// Goal: a task may be destroyed at any time. Method: nobody reads, the log is full, and it is removed all the same.
#[tokio::test]
async fn logs_that_nobody_reads_are_removed_with_the_task() {
    let bench = Bench::new();
    let logs = bench.start().await;
    let pid = bench.new_relay_pid(None).await;
    bench.conmon().write_all(&record("stdout", 'F', b"unread")).unwrap();
    assert!(!logs.drain(Duration::from_millis(200)).await, "it is not read");
    assert!(logs.is_supervised());
    logs.remove().await.unwrap();
    assert!(!bench.plan().dir.exists());
    assert!(!lives(pid));
    TaskLogs::remove_dir(&bench.plan().dir).await.unwrap();
    assert!(TaskLogs::resume(&bench.plan().dir, &program()).is_err());
}

/// A task of the bench in a real container, its output in `/out` of the container as files too.
async fn run_container(service: &PodmanService, bench: &Bench, name: &str, script: &str) -> (Client, String) {
    let podman = service.client();
    let spec = ContainerSpec {
        mounts: vec![BindMount {
            destination: "/out".to_owned(),
            kind: "bind".to_owned(),
            source: bench.dir.path().display().to_string(),
            options: vec!["rbind".to_owned()],
        }],
        log_configuration: Some(log_configuration(&bench.plan().dir)),
        ..service.shell(name, script)
    };
    let id = podman.create_container(&spec).await.unwrap().id;
    podman.start_container(&id).await.unwrap();
    (podman, id)
}

/// Goal: a flood, long lines without newline, binary data and both streams at once come out of a real container byte
/// by byte, and the disk is given back meanwhile. Method: the container writes 20 MB twice, to its stdout and into a file.
#[tokio::test]
async fn a_flood_of_twenty_megabytes_arrives_byte_by_byte() {
    let Some(service) = PodmanService::shared() else { return };
    let bench = Bench::new();
    let logs = bench.start().await;
    let (stdout, stderr) = (bench.reader("stdout"), bench.reader("stderr"));
    let script = "head -c 4000000 /dev/urandom | tee /out/random; \
        head -c 16000000 /dev/zero | tr '\\0' 'a' | tee /out/long & \
        i=0; while [ $i -lt 2000 ]; do echo error $i >&2; i=$((i+1)); done; wait";
    let (podman, id) = run_container(&service, &bench, "flood", script).await;
    assert_eq!(podman.wait_exit(&id).await.unwrap().code, 0);
    let log = File::open(bench.plan().container_log()).unwrap();
    assert!(logs.drain(PATIENCE).await);
    let expected = [
        std::fs::read(bench.dir.path().join("random")).unwrap(),
        std::fs::read(bench.dir.path().join("long")).unwrap(),
    ]
    .concat();
    let got = read_by(stdout).await;
    assert_eq!(got.len(), expected.len());
    assert!(got == expected, "the bytes are the same");
    let lines: String = (0..2000).map(|line| format!("error {line}\n")).collect();
    assert_eq!(read_by(stderr).await, lines.as_bytes());
    let log = log.metadata().unwrap();
    assert!(
        log.len() > 20_000_000 && log.blocks() * 512 < 4 << 20,
        "{} bytes take {} blocks",
        log.len(),
        log.blocks()
    );
    podman.remove_container(&id, true).await.unwrap();
    logs.remove().await.unwrap();
}

/// Goal: conmon's log is not a FIFO, so a start never waits for a reader, and a container that ends before anybody
/// reads keeps its last words. Method: the reader comes only after the container has ended.
#[tokio::test]
async fn output_of_a_container_that_has_ended_waits_for_its_reader() {
    let Some(service) = PodmanService::shared() else { return };
    let bench = Bench::new();
    let logs = bench.start().await;
    let (podman, id) = run_container(&service, &bench, "late-reader", "printf last; printf words >&2").await;
    podman.wait_exit(&id).await.unwrap();
    podman.remove_container(&id, true).await.unwrap();
    assert!(!logs.drain(Duration::from_millis(100)).await);
    let (stdout, stderr) = (bench.reader("stdout"), bench.reader("stderr"));
    assert_eq!(read_by(stdout).await, b"last");
    assert_eq!(read_by(stderr).await, b"words");
    assert!(logs.drain(PATIENCE).await);
    logs.remove().await.unwrap();
}

/// Goal: with log collection off, Nomad names /dev/null for both streams. Method: the same way, no reader anywhere.
#[tokio::test]
async fn output_may_go_to_dev_null() {
    let bench = Bench::new();
    let null = PathBuf::from("/dev/null");
    let plan = LogPlan {
        stdout: null.clone(),
        stderr: null,
        ..bench.plan()
    };
    let logs = TaskLogs::start(plan, &program()).await.unwrap();
    bench
        .conmon()
        .write_all(&record("stdout", 'F', b"nobody cares"))
        .unwrap();
    assert!(logs.drain(PATIENCE).await);
    logs.remove().await.unwrap();
    let mut options = OpenOptions::new();
    assert!(
        options
            .write(true)
            .custom_flags(nix::libc::O_NONBLOCK)
            .open(bench.fifo("stdout"))
            .is_err(),
        "no reader"
    );
}

/// Goal: a container that is started again after its end (recover_stopped) goes on logging. Method: an end that was
/// delivered to the last byte, then another conmon on the same file.
#[tokio::test]
async fn a_container_that_runs_again_goes_on_logging() {
    let bench = Bench::new();
    let logs = bench.start().await;
    for (line, restarted) in [("first life", false), ("second life", true)] {
        let (stdout, stderr) = (bench.reader("stdout"), bench.reader("stderr"));
        let mut conmon = bench.conmon();
        let again = restarted.then(|| {
            TaskLogs::reopen(&bench.plan().dir).unwrap();
            TaskLogs::resume(&bench.plan().dir, &program()).unwrap()
        });
        conmon.write_all(&record("stdout", 'F', line.as_bytes())).unwrap();
        drop(conmon);
        assert_eq!(read_by(stdout).await, format!("{line}\n").as_bytes());
        assert!(read_by(stderr).await.is_empty());
        assert!(again.as_ref().unwrap_or(&logs).drain(PATIENCE).await);
    }
    logs.remove().await.unwrap();
}
