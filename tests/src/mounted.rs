//! A volume mounted by `pannier mount`, as a process of its own: what an operator has on his machine.
//!
//! It is ended by SIGTERM, which must flush and unmount; by `kill`, which must lose nothing that was synced; or by dropping
//! the value, which cleans up after a test that failed.

use std::fs::File;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use volume::head::Transport;

use crate::binaries::{Program, built};
use crate::s3_server::S3Server;

/// 60 s for what takes one on an idle machine: mounting, and flushing at the end.
const PATIENCE: Duration = Duration::from_secs(60);

/// How to mount.
#[derive(Debug, Clone)]
pub struct MountOptions {
    /// `s3://BUCKET/PREFIX`.
    pub location: String,
    /// URL of the store.
    pub endpoint: String,
    /// Where to; it exists and is empty.
    pub dir: PathBuf,
    /// The local cache.
    pub cache_dir: PathBuf,
    /// Create the volume if it is not there.
    pub create: bool,
    /// Mount for reading only.
    pub read_only: bool,
    /// How the kernel reaches the program.
    pub transport: Transport,
    /// Environment beside the keys of `S3Server`.
    pub environment: Vec<(String, String)>,
}

/// A mount.
#[derive(Debug)]
pub struct Mounted {
    process: Child,
    dir: PathBuf,
    log: PathBuf,
}

impl Mounted {
    /// Starts `pannier mount` and waits until the volume is there.
    ///
    /// # Panics
    /// If the process ends instead, with what it said.
    pub fn new(options: &MountOptions) -> Self {
        Self::start(options).unwrap_or_else(|(status, said)| panic!("pannier mount ended with {status}:\n{said}"))
    }

    /// As `new`, but returns how the process ended, and what it said, if it did not mount.
    pub fn start(options: &MountOptions) -> Result<Self, (ExitStatus, String)> {
        Self::start_by(&built(Program::Binary("pannier")), options)
    }

    /// As `start`, by this build of the program.
    pub fn start_by(program: &Path, options: &MountOptions) -> Result<Self, (ExitStatus, String)> {
        let log = options.cache_dir.with_extension("log");
        let output = File::options()
            .create(true)
            .append(true)
            .open(&log)
            .expect("the log of a mount");
        let errors = output.try_clone().expect("a second handle of the log");
        let mut command = Command::new(program);
        command
            .arg("mount")
            .arg(&options.location)
            .arg(&options.dir)
            .arg("--endpoint")
            .arg(&options.endpoint);
        command.arg("--cache-dir").arg(&options.cache_dir);
        command.args(["--transport", &options.transport.to_string()]);
        for (flag, wanted) in [("--create", options.create), ("--read-only", options.read_only)] {
            if wanted {
                command.arg(flag);
            }
        }
        command
            .envs(S3Server::environment())
            .envs(options.environment.iter().cloned());
        command.stdin(Stdio::null()).stdout(output).stderr(errors);
        let outside = device(&options.dir);
        let process = command.spawn().expect("pannier starts");
        let mut mounted = Self {
            process,
            dir: options.dir.clone(),
            log,
        };
        let begun = Instant::now();
        while device(&mounted.dir).is_none_or(|now| Some(now) == outside) {
            if let Some(status) = mounted.process.try_wait().expect("a child can be waited for") {
                return Err((status, mounted.said()));
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "not mounted after {PATIENCE:?}; it said:\n{}",
                mounted.said()
            );
            pause();
        }
        while options.transport == Transport::IoUring && !mounted.said().contains(", io_uring)") {
            assert!(
                begun.elapsed() < PATIENCE,
                "not by io_uring; it said:\n{}",
                mounted.said()
            );
            pause();
        }
        Ok(mounted)
    }

    /// Where the volume is.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.id().try_into().expect("a pid is positive"))
    }

    /// What the process wrote so far.
    pub fn said(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Ends it as an operator does, and waits until everything is in the bucket.
    pub fn unmount(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        self.wait()
    }

    /// Waits until it ends by itself, as it does when somebody unmounts it.
    pub fn wait_for_end(mut self) -> ExitStatus {
        self.wait()
    }

    /// Ends it without warning, and removes what is left of the mount.
    pub fn kill(mut self) {
        self.signal(Signal::SIGKILL);
        self.wait();
    }

    fn signal(&self, signal: Signal) {
        kill(self.pid(), signal).expect("our child is there until it is waited for");
    }

    fn wait(&mut self) -> ExitStatus {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.process.try_wait().expect("a child can be waited for") {
                return status;
            }
            assert!(
                begun.elapsed() < PATIENCE,
                "it did not end in {PATIENCE:?}; it said:\n{}",
                self.said()
            );
            pause();
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // Both fail where the test has ended it already.
        drop(self.process.kill());
        drop(self.process.wait());
        let _ = nix::mount::umount2(&self.dir, nix::mount::MntFlags::MNT_DETACH);
    }
}

/// The device that a folder is on; `None` while the folder cannot be asked, as that of a mount that is about to come.
fn device(dir: &Path) -> Option<u64> {
    std::fs::metadata(dir).ok().map(|metadata| metadata.dev())
}

/// Lets a condition be looked at fifty times a second, without taking a core from what is waited for.
fn pause() {
    std::thread::park_timeout(Duration::from_millis(20));
}
