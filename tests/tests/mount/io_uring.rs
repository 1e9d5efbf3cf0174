//! Mounts that the kernel reaches by io_uring: what is different about them. That they do what others do is for the suites in
//! `posix` and `workloads`, which run on both.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use proto::engine::v1 as wire;
use tests::binaries::{Program, built};
use tests::calls::{names, pattern};
use tests::engine_process::{Ask, EngineProcess};
use tests::local_store::LocalStore;
use tests::scratch_volume::ScratchVolume;
use tests::transport::io_uring;

/// 60 s for what takes a moment on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// More than a machine of two CPUs has requests in flight on one of them.
const WRITERS: usize = 80;

fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let begun = Instant::now();
    while !condition() {
        assert!(begun.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

/// How many threads of a process serve rings.
fn ring_threads(pid: Pid) -> usize {
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else {
        return 0;
    };
    threads
        .filter_map(|thread| fs::read_to_string(thread.ok()?.path().join("comm")).ok())
        .filter(|name| name.starts_with("fuse-ring"))
        .count()
}

/// More programs wait for the store at a time than a CPU has places for requests, and all get what they asked for; large and small
/// requests come and go; umount(8) ends it, and everything is in the bucket.
#[test]
fn many_programs_at_once_are_served_by_io_uring() {
    let Some(transport) = io_uring() else { return };
    let mut scratch = ScratchVolume::on(transport);
    let mounted = scratch.mount();
    assert!(ring_threads(mounted.pid()) > 0, "{}", mounted.said());
    let (dir, done) = (mounted.dir().to_path_buf(), AtomicBool::new(false));
    std::thread::scope(|scope| {
        let writers: Vec<_> = (0..WRITERS)
            .map(|n| {
                let dir = &dir;
                scope.spawn(move || {
                    let mut file = File::create(dir.join(format!("f{n}"))).expect("a file");
                    for part in 0..3 {
                        file.write_all(&pattern(40_000 * (n % 3) + 100, part)).expect("a write");
                        file.sync_all().expect("an fsync");
                    }
                })
            })
            .collect();
        let looks = scope.spawn(|| {
            let mut looks = 0;
            while !done.load(Ordering::Relaxed) {
                fs::metadata(&dir).expect("the root answers");
                fs::read_dir(&dir).expect("a listing").for_each(drop);
                looks += 1;
            }
            looks
        });
        for writer in writers {
            writer.join().expect("a writer ends well");
        }
        done.store(true, Ordering::Relaxed);
        assert!(looks.join().expect("who looks ends well") > 0);
    });
    fs::write(dir.join("large"), pattern(30_000_001, 5)).expect("a large file");
    let direct = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_DIRECT)
        .open(dir.join("large"));
    drop(direct.expect("it opens"));
    let umount = Command::new("umount").arg(&dir).status().expect("umount starts");
    assert!(umount.success());
    assert!(mounted.wait_for_end().success(), "pannier mount ends by itself");
    let mounted = scratch.mount();
    assert_eq!(names(&dir).len(), WRITERS + 1);
    assert!(fs::read(dir.join("large")).expect("it is there") == pattern(30_000_001, 5));
    for n in 0..WRITERS {
        let expected: Vec<u8> = (0..3).flat_map(|part| pattern(40_000 * (n % 3) + 100, part)).collect();
        assert!(
            fs::read(dir.join(format!("f{n}"))).expect("it is there") == expected,
            "f{n}"
        );
    }
    scratch.end(mounted);
}

/// The end of the process is the end of the mount: programs get errors, none of them hangs, and what was fsynced is there after the
/// next mount.
#[test]
fn a_killed_mount_by_io_uring_gives_errors_and_no_silence() {
    let Some(transport) = io_uring() else { return };
    let mut scratch = ScratchVolume::on(transport);
    let mounted = scratch.mount();
    let dir = mounted.dir().to_path_buf();
    let mut file = File::create(dir.join("synced")).expect("a file");
    file.write_all(b"told")
        .and_then(|()| file.sync_all())
        .expect("an fsync");
    let (mut written, dir_of_writer) = (0, dir.clone());
    let writer = std::thread::spawn(move || {
        // Until it fails.
        while fs::write(dir_of_writer.join("busy"), pattern(100_000, written)).is_ok() {
            written += 1;
        }
    });
    kill(mounted.pid(), Signal::SIGKILL).expect("it is there");
    writer.join().expect("it gets an error");
    // What was on its way is told ECONNABORTED or ECANCELED; what comes after the end is told this.
    wait_until("programs are told", || {
        let error = fs::create_dir(dir.join("asks")).expect_err("nobody answers");
        error.raw_os_error() == Some(libc::ENOTCONN)
    });
    drop(file);
    mounted.kill();
    let mounted = scratch.mount();
    assert_eq!(fs::read_to_string(dir.join("synced")).expect("it is there"), "told");
    scratch.end(mounted);
}

/// An engine says how each mount is reached, has no thread of one that is gone, and does not leave it to the next engine: there the
/// volume is mounted anew.
#[test]
fn an_engine_has_mounts_by_io_uring_beside_others_and_does_not_leave_them() {
    if io_uring().is_none() {
        return;
    }
    let store = LocalStore::start();
    let folder = store.folder("engine");
    let (fast, slow) = (store.folder("fast"), store.folder("slow"));
    let mut engine = EngineProcess::start_kept(&store, &folder);
    let mut ask = Ask::new("fast", &fast);
    ask.transport = wire::Transport::IoUring;
    let mount = engine.mount(&store, &ask).expect("a mount");
    assert_eq!(mount.transport(), wire::Transport::IoUring, "{}", engine.said());
    let other = engine.mount(&store, &Ask::new("slow", &slow)).expect("a mount");
    assert_eq!(
        (other.transport(), other.transport_asked()),
        (wire::Transport::Classic, wire::Transport::Classic)
    );
    let first = engine.kept_engine().expect("an engine");
    assert!(ring_threads(first) > 0);
    engine.unmount(&fast, PATIENCE).expect("an unmount");
    wait_until("its threads end", || ring_threads(first) == 0);

    engine.mount(&store, &ask).expect("a mount");
    for dir in [&fast, &slow] {
        let mut file = File::create(dir.join("file")).expect("a file");
        file.write_all(b"told")
            .and_then(|()| file.sync_all())
            .expect("an fsync");
    }
    assert!(
        engine.said().contains("it does not outlive this engine"),
        "{}",
        engine.said()
    );
    kill(first, Signal::SIGKILL).expect("it is there");
    engine.kept_engine_after(first);
    assert_eq!(fs::read_to_string(slow.join("file")).expect("it waits"), "told");
    // The next engine has taken the dead mount off, or is about to.
    let listed: Vec<_> = engine.mounts().into_iter().map(|mount| mount.volume_id).collect();
    assert_eq!(listed, ["slow"]);
    let again = engine.mount(&store, &ask).expect("it is mounted anew");
    assert_eq!(again.transport(), wire::Transport::IoUring);
    assert_eq!(fs::read_to_string(fast.join("file")).expect("it is there"), "told");
    for dir in [&fast, &slow] {
        engine.unmount(dir, PATIENCE).expect("an unmount");
    }
}

/// Where the kernel has no io_uring for FUSE, the mount is a classic one, and says why.
#[test]
fn a_mount_falls_back_where_the_kernel_cannot() {
    if io_uring().is_none() {
        return;
    }
    let scratch = ScratchVolume::new();
    let options = &scratch.options;
    let log = scratch.folder("said").join("log");
    // In a mount namespace of its own the kernel's parameters are hidden, as on a kernel that has none.
    let hides = "mount -t tmpfs none /sys/module/fuse/parameters && exec \"$0\" \"$@\"";
    let mut command = Command::new("unshare");
    command.args(["--mount", "--propagation", "slave", "sh", "-c", hides]);
    command
        .arg(built(Program::Binary("pannier")))
        .arg("mount")
        .arg(&options.location);
    command
        .arg(&options.dir)
        .args(["--create", "--transport", "io_uring", "--endpoint", &options.endpoint]);
    command.envs(options.environment.iter().cloned());
    let output = File::create(&log).expect("a log");
    command
        .stdin(Stdio::null())
        .stdout(output.try_clone().expect("a handle"))
        .stderr(output);
    let mut process = command.spawn().expect("unshare starts");
    let said = || {
        let mut text = String::new();
        File::open(&log)
            .and_then(|mut log| log.read_to_string(&mut text))
            .expect("a log");
        text
    };
    wait_until("it is mounted", || said().contains("is mounted at"));
    let pid = Pid::from_raw(process.id().try_into().expect("a pid is positive"));
    let inside = Path::new("/proc").join(pid.to_string()).join("root");
    let dir = inside.join(options.dir.strip_prefix("/").expect("an absolute path"));
    fs::write(dir.join("file"), "classic").expect("it serves");
    kill(pid, Signal::SIGTERM).expect("it is there");
    assert!(process.wait().expect("it ends").success(), "{}", said());
    assert!(
        said().contains(", classic)") && said().contains("Linux 6.14"),
        "{}",
        said()
    );
}
