//! Who is measured: the disk below, a file system that does nothing, a volume, and what Debian has for a bucket.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use tests::binaries::{Program, built};
use tests::engine_process::{Ask, EngineProcess};
use tests::mounted::{MountOptions, Mounted};
use tests::s3_server::{S3Server, installed};
use volume::head::Transport;

/// 30 s for a mount to appear or to end.
const PATIENCE: Duration = Duration::from_secs(30);

/// 40 times fewer files of a tree for those that have a request for each: to make 20,000, s3fs would take half an hour.
const PEERS_TIMES_FEWER: u64 = 40;

/// A system.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum System {
    /// The disk that all caches are on.
    Ext4,
    /// FUSE with nothing behind it.
    Null,
    /// The client library without a file system.
    Plain,
    /// A volume.
    Pannier,
    /// A volume as the plugin mounts it: by an engine that its keeper holds, with every change on this node's disk as well.
    Kept,
    /// A volume of another build of the program, for what a change brings.
    Other,
    /// s3fs of Debian.
    S3fs,
    /// rclone of Debian.
    Rclone,
}

impl System {
    /// All, as the table has them.
    pub const ALL: [System; 8] = [
        System::Ext4,
        System::Null,
        System::Plain,
        System::Pannier,
        System::Kept,
        System::Other,
        System::S3fs,
        System::Rclone,
    ];

    /// Another file system on a bucket, which has a request for each file: loads of thousands of files are cut short for it.
    pub fn is_peer(self) -> bool {
        matches!(self, System::S3fs | System::Rclone)
    }

    /// How many times fewer files of a tree it gets.
    pub fn times_fewer(self) -> u64 {
        if self.is_peer() { PEERS_TIMES_FEWER } else { 1 }
    }

    /// As the table says it.
    pub fn name(self) -> &'static str {
        match self {
            System::Ext4 => "ext4",
            System::Null => "null FUSE",
            System::Plain => "plain S3",
            System::Pannier => "pannier",
            System::Kept => "kept",
            System::Other => "other",
            System::S3fs => "s3fs",
            System::Rclone => "rclone",
        }
    }
}

/// Where mounts are made, and of what.
#[derive(Debug, Clone)]
pub struct Place {
    /// A folder of the bench's own.
    pub scratch: PathBuf,
    /// The store, at the distance of a real one.
    pub endpoint: String,
    /// Whether a volume that a keeper holds is measured too.
    pub kept: bool,
    /// Another build of the program.
    pub other: Option<PathBuf>,
    /// How the kernel reaches volumes, and FUSE with nothing behind it.
    pub transport: Transport,
}

/// A system that runs.
#[derive(Debug)]
pub struct Running {
    /// Which.
    pub system: System,
    /// Where its files are.
    pub dir: PathBuf,
    place: Place,
    volume: Option<Mounted>,
    engine: Option<EngineProcess>,
    process: Option<Child>,
}

impl Running {
    /// Starts a system. `None` where its program is not installed.
    pub fn start(system: System, place: &Place) -> Option<Self> {
        let dir = place.scratch.join(format!("{system:?}").to_lowercase());
        fs::create_dir_all(&dir).unwrap();
        let mut running = Self {
            system,
            dir,
            place: place.clone(),
            volume: None,
            engine: None,
            process: None,
        };
        running.mount().then_some(running)
    }

    fn cache(&self) -> PathBuf {
        match self.system {
            // Where an engine of its folder has it.
            System::Kept => self.engine_folder().join("cache"),
            system => self.place.scratch.join(format!("cache-{system:?}").to_lowercase()),
        }
    }

    fn engine_folder(&self) -> PathBuf {
        self.place.scratch.join("kept-engine")
    }

    /// By a keeper and an engine. The volume is made by a mount of its own.
    fn mount_kept(&mut self) -> bool {
        let folder = self.engine_folder();
        if fs::create_dir_all(&folder).is_ok() && !folder.join("engine.log").exists() {
            self.mount_volume(&built(Program::Binary("pannier")));
            let made = self.volume.take().map(Mounted::unmount);
            assert!(made.is_some_and(|status| status.success()), "the volume is made");
        }
        let environment = S3Server::environment().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let mut engine = EngineProcess::start_kept_from(&environment, &folder);
        let ask = Ask {
            bucket: "bench".to_owned(),
            create: false,
            ..Ask::new("kept", &self.dir)
        };
        engine.mount_from(&self.place.endpoint, &ask).unwrap();
        self.engine = Some(engine);
        true
    }

    fn mount_volume(&mut self, program: &Path) -> bool {
        let mounted = Mounted::start_by(
            program,
            &MountOptions {
                location: format!("s3://bench/v/{:?}", self.system).to_lowercase(),
                endpoint: self.place.endpoint.clone(),
                dir: self.dir.clone(),
                cache_dir: self.cache(),
                create: true,
                read_only: false,
                transport: self.place.transport,
                environment: Vec::new(),
            },
        );
        self.volume = Some(mounted.unwrap_or_else(|(status, said)| panic!("the mount ended with {status}:\n{said}")));
        true
    }

    fn mount(&mut self) -> bool {
        match self.system {
            System::Ext4 => true,
            System::Plain => false,
            System::Null => {
                let program = std::env::current_exe().unwrap();
                let mut command = Command::new(program);
                command
                    .arg("--serve-null")
                    .arg(&self.dir)
                    .arg(self.place.transport.to_string());
                self.spawn(&mut command)
            }
            System::Pannier => self.mount_volume(&built(Program::Binary("pannier"))),
            System::Kept => self.place.kept && self.mount_kept(),
            System::Other => match self.place.other.clone() {
                Some(program) => self.mount_volume(&program),
                None => false,
            },
            System::S3fs => self.mount_s3fs(),
            System::Rclone => self.mount_rclone(),
        }
    }

    fn mount_s3fs(&mut self) -> bool {
        let Some(program) = installed("s3fs") else { return false };
        let mut command = Command::new(program);
        command.arg("peer-s3fs").arg(&self.dir).arg("-f");
        command.arg("-o").arg(format!(
            "url={},use_path_request_style,use_cache={},enable_noobj_cache",
            self.place.endpoint,
            self.cache().display()
        ));
        command.envs(S3Server::environment());
        for (name, value) in S3Server::environment() {
            command.env(
                name.replace("AWS_ACCESS_KEY_ID", "AWSACCESSKEYID")
                    .replace("AWS_SECRET_ACCESS_KEY", "AWSSECRETACCESSKEY"),
                value,
            );
        }
        self.spawn(&mut command)
    }

    fn mount_rclone(&mut self) -> bool {
        let Some(program) = installed("rclone") else {
            return false;
        };
        let mut command = Command::new(program);
        command.args(["mount", "peer:peer-rclone"]).arg(&self.dir);
        command.args(["--vfs-cache-mode", "full", "--config", "/dev/null", "--cache-dir"]);
        command.arg(self.cache());
        command.envs(S3Server::environment());
        command.env("RCLONE_CONFIG_PEER_TYPE", "s3");
        command.env("RCLONE_CONFIG_PEER_PROVIDER", "Minio");
        command.env("RCLONE_CONFIG_PEER_ENV_AUTH", "true");
        command.env("RCLONE_CONFIG_PEER_ENDPOINT", &self.place.endpoint);
        // Its version in Debian does not start with it.
        command.env_remove("AWS_CA_BUNDLE");
        self.spawn(&mut command)
    }

    /// Starts a process that mounts, and waits for the mount.
    fn spawn(&mut self, command: &mut Command) -> bool {
        let outside = device(&self.dir);
        let log = File::create(self.place.scratch.join(format!("{:?}.log", self.system))).unwrap();
        let errors = log.try_clone().unwrap();
        let mut process = command.stdin(Stdio::null()).stdout(log).stderr(errors).spawn().unwrap();
        let begun = Instant::now();
        while device(&self.dir).is_none_or(|now| Some(now) == outside) {
            if begun.elapsed() > PATIENCE || process.try_wait().unwrap().is_some() {
                println!("{} did not mount and is left out", self.system.name());
                drop(process.kill());
                drop(process.wait());
                return false;
            }
            std::thread::park_timeout(Duration::from_millis(10));
        }
        self.process = Some(process);
        true
    }

    /// The process that answers, if there is one.
    pub fn pid(&self) -> Option<u32> {
        let engine = || self.engine.as_ref()?.kept_engine();
        let pid = self.volume.as_ref().map(Mounted::pid).or_else(engine);
        let pid = pid.and_then(|pid| u32::try_from(pid.as_raw()).ok());
        pid.or_else(|| Some(self.process.as_ref()?.id()))
    }

    /// Mounts what is in a bucket again, which leaves nothing of it in RAM, with its cache on disk or without one. Does nothing to the
    /// others.
    pub fn remount(&mut self, keep_cache: bool) {
        if !self.end() {
            return;
        }
        if !keep_cache {
            let _ = fs::remove_dir_all(self.cache());
        }
        assert!(self.mount(), "{} mounts again", self.system.name());
    }

    /// Ends what has a bucket mounted. False if nothing has.
    fn end(&mut self) -> bool {
        let volume = self.volume.take().map(Mounted::unmount);
        assert!(
            volume.is_none_or(|status| status.success()),
            "SIGTERM flushes and unmounts"
        );
        let engine = self.engine.take().map(|engine| give_back(engine, &self.dir));
        volume.is_some() || engine.is_some() || (self.system.is_peer() && self.end_process())
    }

    /// Unmounts what a process of its own serves, which then ends. False if there is none.
    fn end_process(&mut self) -> bool {
        let Some(mut process) = self.process.take() else {
            return false;
        };
        let _ = umount2(&self.dir, MntFlags::MNT_DETACH);
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE && matches!(process.try_wait(), Ok(None)) {
            std::thread::park_timeout(Duration::from_millis(20));
        }
        drop(process.kill());
        drop(process.wait());
        true
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(volume) = self.volume.take() {
            let _ = volume.unmount();
        }
        drop(self.engine.take());
        self.end_process();
        if self.system == System::Ext4 {
            let _ = fs::remove_dir_all(&self.dir);
        }
    }
}

/// Unmounts, which flushes, and ends engine and keeper.
fn give_back(mut engine: EngineProcess, dir: &Path) {
    let told = engine.unmount(dir, PATIENCE);
    assert!(told.is_ok(), "{told:?}");
}

/// Makes the kernel forget pages, names and attributes, of all file systems; first those that it has to write, which are of the
/// caches on disk too.
pub fn forget_caches(dir: &Path) {
    let folder = File::open(dir).unwrap();
    nix::unistd::syncfs(&folder).unwrap_or_else(|error| panic!("syncfs of {}: {error}", dir.display()));
    nix::unistd::sync();
    fs::write("/proc/sys/vm/drop_caches", "3").expect("root may drop caches");
}

fn device(dir: &Path) -> Option<u64> {
    use std::os::unix::fs::MetadataExt;
    fs::metadata(dir).ok().map(|metadata| metadata.dev())
}
