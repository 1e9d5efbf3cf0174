//! S3 servers of others, as processes of their own on loopback: MinIO and versitygw.
//!
//! `cargo xtask tools` installs them. Where they are missing, `start` says so, and the test prints it and passes: that is
//! the only reason to skip. A server ends with its value, by its pid; its folder goes with it. Absent: clusters.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use tempfile::TempDir;
use tokio::time::Instant;
use volume::bucket::{BucketError, BucketRef};
use volume_s3::{Credentials, RetryPolicy, S3Options, S3Store};

/// 60 s: MinIO starts in one second, and in some ten on a machine that compiles at the same time.
const START_TIME_MAX: Duration = Duration::from_secs(60);

/// Another process may take the port between our look and the server's start. So often in a row it does not happen.
const STARTS_MAX: u32 = 5;

/// The one key that our servers know.
const ACCESS_KEY: &str = "pannier-tests";

/// Its secret.
const SECRET_KEY: &str = "a-secret-for-tests";

/// Which server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// MinIO.
    Minio,
    /// versitygw over its POSIX backend.
    VersityGw,
}

impl Kind {
    fn program(self) -> &'static str {
        match self {
            Kind::Minio => "minio",
            Kind::VersityGw => "versitygw",
        }
    }

    fn command(self, program: &Path, dir: &Path, address: SocketAddr) -> io::Result<Command> {
        let data = dir.join("data");
        std::fs::create_dir_all(&data)?;
        let mut command = Command::new(program);
        match self {
            Kind::Minio => {
                let address = address.to_string();
                command.args(["server", "--quiet", "--address", address.as_str(), "--certs-dir"]);
                command.arg(dir.join("certs")).arg(&data);
                command
                    .env("MINIO_ROOT_USER", ACCESS_KEY)
                    .env("MINIO_ROOT_PASSWORD", SECRET_KEY);
                // The file system of a test need not survive a power cut.
                command
                    .env("MINIO_BROWSER", "off")
                    .env("MINIO_FS_OSYNC", "off")
                    .env("HOME", dir);
            }
            Kind::VersityGw => {
                let address = address.to_string();
                command.args(["--port", &address, "--access", ACCESS_KEY, "--secret", SECRET_KEY]);
                command.args(["--quiet", "--keep-alive", "posix"]).arg(&data);
            }
        }
        Ok(command)
    }
}

/// A running server.
#[derive(Debug)]
pub struct S3Server {
    kind: Kind,
    process: Child,
    endpoint: String,
    dir: TempDir,
}

impl S3Server {
    /// Starts a server and waits until it answers. `None` where the program is not installed, after saying so.
    ///
    /// # Panics
    /// If it is installed and does not work: that is a failure of the test.
    pub async fn start(kind: Kind) -> Option<Self> {
        Self::start_below(kind, &std::env::temp_dir()).await
    }

    /// As `start`, with its objects in RAM where this host can: for benches that measure us and not the server's disk.
    pub async fn start_in_ram(kind: Kind) -> Option<Self> {
        let shared_memory = Path::new("/dev/shm");
        match shared_memory.is_dir() {
            true => Self::start_below(kind, shared_memory).await,
            false => Self::start(kind).await,
        }
    }

    /// MinIO at an `https://` endpoint, with a certificate that only the file `authority` vouches for. `None` where MinIO or
    /// openssl is not installed, after saying so.
    pub async fn start_with_tls() -> Option<Self> {
        if installed("openssl").is_none() {
            skip("openssl is not installed (apt-get install openssl)");
            return None;
        }
        Self::start_as(Kind::Minio, &std::env::temp_dir(), true).await
    }

    async fn start_below(kind: Kind, folder: &Path) -> Option<Self> {
        Self::start_as(kind, folder, false).await
    }

    async fn start_as(kind: Kind, folder: &Path, tls: bool) -> Option<Self> {
        let Some(program) = installed(kind.program()) else {
            skip(&format!(
                "{} is not installed (`cargo xtask tools` installs it)",
                kind.program()
            ));
            return None;
        };
        for _ in 0..STARTS_MAX {
            let mut server = Self::spawn(kind, &program, folder, tls);
            if server.answers().await {
                return Some(server);
            }
        }
        panic!("{} did not start {STARTS_MAX} times", program.display());
    }

    fn spawn(kind: Kind, program: &Path, folder: &Path, tls: bool) -> Self {
        let dir = tempfile::Builder::new()
            .prefix("pannier-s3-")
            .tempdir_in(folder)
            .expect("a temporary folder");
        let address = free_address();
        if tls {
            let certs = dir.path().join("certs");
            std::fs::create_dir(&certs).expect("the folder of certificates");
            certificate(&certs.join("public.crt"), &certs.join("private.key"));
        }
        let mut command = kind
            .command(program, dir.path(), address)
            .expect("the folder of a server");
        let log = std::fs::File::create(dir.path().join("log")).expect("the log of a server");
        let errors = log.try_clone().expect("a second handle of the log");
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        let process = command
            .spawn()
            .unwrap_or_else(|error| panic!("{} starts: {error}", program.display()));
        Self {
            kind,
            process,
            endpoint: format!("{}://{address}", if tls { "https" } else { "http" }),
            dir,
        }
    }

    /// True once it answers; false if it ended instead.
    async fn answers(&mut self) -> bool {
        let retry = RetryPolicy {
            total: Duration::ZERO,
            ..RetryPolicy::default()
        };
        let store = S3Store::connect(S3Options {
            retry,
            ..self.options()
        })
        .await
        .expect("options that work");
        let begun = Instant::now();
        while begun.elapsed() < START_TIME_MAX {
            match store.bucket("none-of-this-name").verify().await {
                Ok(()) | Err(BucketError::NoBucket { .. }) => return true,
                Err(_) => {}
            }
            if self.process.try_wait().expect("a child can be waited for").is_some() {
                return false;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let log = std::fs::read_to_string(self.dir.path().join("log")).unwrap_or_default();
        panic!("{:?} did not answer in {START_TIME_MAX:?}; its log:\n{log}", self.kind);
    }

    /// URL of the server.
    pub fn endpoint(&self) -> &str {
        &self.endpoint
    }

    /// How to reach it.
    pub fn options(&self) -> S3Options {
        S3Options {
            endpoint: Some(self.endpoint.clone()),
            credentials: Self::credentials(),
            ca_bundle: self.authority(),
            ..S3Options::default()
        }
    }

    /// The file that vouches for its certificate; `None` without TLS.
    pub fn authority(&self) -> Option<PathBuf> {
        Some(self.dir.path().join("certs/public.crt")).filter(|file| file.exists())
    }

    /// Its access key.
    pub fn credentials() -> Credentials {
        Credentials::Keys {
            id: ACCESS_KEY.to_owned(),
            secret: SECRET_KEY.to_owned(),
            session_token: None,
        }
    }

    /// Its access key as the SDK's environment variables, for programs that are started.
    pub fn environment() -> [(&'static str, &'static str); 3] {
        [
            ("AWS_ACCESS_KEY_ID", ACCESS_KEY),
            ("AWS_SECRET_ACCESS_KEY", SECRET_KEY),
            ("AWS_REGION", "us-east-1"),
        ]
    }

    /// Our client of it.
    pub async fn store(&self) -> Arc<S3Store> {
        S3Store::connect(self.options()).await.expect("options that work")
    }

    /// A fresh bucket in it.
    pub async fn bucket(&self, name: &str) -> BucketRef {
        let store = self.store().await;
        store.create_bucket(name).await.expect("a bucket can be created");
        Arc::new(store.bucket(name))
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.id()
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        // It may have ended by itself; then there is nothing to end.
        drop(self.process.kill());
        drop(self.process.wait());
    }
}

/// Says why a test does not run. The harness shows it with `--nocapture`, and in any case when the test fails.
pub fn skip(reason: &str) {
    tracing::warn!(reason, "skipped");
    let mut out = io::stderr().lock();
    // Where standard error is closed, nobody would have read it.
    drop(io::Write::write_all(
        &mut out,
        format!("skipped: {reason}\n").as_bytes(),
    ));
}

/// Finds a program on PATH, among the tools of this workspace, or where Go installs.
#[allow(clippy::disallowed_methods, reason = "tests find their tools by PATH")]
pub fn installed(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let home = std::env::var_os("HOME").map(PathBuf::from).unwrap_or_default();
    let tools = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/tools/bin");
    let mut folders: Vec<PathBuf> = std::env::split_paths(&path).collect();
    folders.extend([tools, home.join("go/bin")]);
    folders
        .into_iter()
        .map(|folder| folder.join(program))
        .find(|program| program.is_file())
}

/// A certificate for loopback that signs itself, by openssl(1).
///
/// # Panics
/// If openssl fails, with what it said.
pub fn certificate(public: &Path, private: &Path) {
    let mut command = Command::new("openssl");
    command.args(["req", "-x509", "-nodes", "-days", "2", "-subj", "/CN=pannier tests"]);
    command.args(["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1"]);
    command.args(["-addext", "subjectAltName=IP:127.0.0.1,DNS:localhost"]);
    // A certificate that is its own authority and a server's at once is refused unless it says that it is no authority.
    command.args(["-addext", "basicConstraints=critical,CA:FALSE"]);
    command.arg("-keyout").arg(private).arg("-out").arg(public);
    let output = command.output().expect("openssl starts");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

fn free_address() -> SocketAddr {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("loopback has a free port");
    listener.local_addr().expect("a listener has an address")
}
