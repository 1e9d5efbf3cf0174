//! The S3 server of `pannier try`, inside the test's own process: a store for tests whose clients are other processes.

use std::path::PathBuf;

use std::sync::Arc;

use pannier::object_server::ObjectServer;
use tempfile::TempDir;
use uuid::Uuid;
use volume::admin::{Admin, CapacityRange, CreateVolume};
use volume::bucket::BucketRef;
use volume::clock::Timestamp;
use volume::head::Parameters;
use volume_s3::{Credentials, S3Options, S3Store};

/// Its one bucket.
pub const BUCKET: &str = "tests";

/// A running store. What it holds goes with it.
#[derive(Debug)]
pub struct LocalStore {
    // Dropped in this order: the server ends on its runtime, and its folder goes last.
    server: Option<ObjectServer>,
    runtime: Option<tokio::runtime::Runtime>,
    dir: TempDir,
}

impl LocalStore {
    /// Starts a store on threads of its own, so that a test may block.
    ///
    /// # Panics
    /// If it does not start.
    pub fn start() -> Self {
        let dir = tempfile::Builder::new()
            .prefix("pannier-store-")
            .tempdir()
            .expect("a temporary folder");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .expect("a runtime");
        let server = runtime
            .block_on(ObjectServer::start(&dir.path().join("objects"), BUCKET))
            .expect("the object server starts");
        Self {
            server: Some(server),
            runtime: Some(runtime),
            dir,
        }
    }

    fn server(&self) -> &ObjectServer {
        self.server.as_ref().expect("there until it is dropped")
    }

    /// URL of the server.
    pub fn endpoint(&self) -> String {
        self.server().endpoint()
    }

    /// Its access key as the SDK's environment variables, for programs that are started.
    pub fn environment(&self) -> Vec<(String, String)> {
        let server = self.server();
        vec![
            ("AWS_ACCESS_KEY_ID".into(), server.access_key_id().into()),
            ("AWS_SECRET_ACCESS_KEY".into(), server.secret_access_key().into()),
            ("AWS_REGION".into(), "us-east-1".into()),
        ]
    }

    /// Runs `work` on the store's threads.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.as_ref().expect("there until it is dropped").block_on(work)
    }

    /// Its bucket, as the port that volumes are kept in.
    ///
    /// # Panics
    /// If it cannot be reached.
    pub fn bucket(&self) -> BucketRef {
        let options = S3Options {
            endpoint: Some(self.endpoint()),
            credentials: Credentials::Keys {
                id: self.server().access_key_id().to_owned(),
                secret: self.server().secret_access_key().to_owned(),
                session_token: None,
            },
            ..S3Options::default()
        };
        let store = self.block_on(S3Store::connect(options)).expect("options that work");
        Arc::new(store.bucket(BUCKET))
    }

    /// Makes an empty volume at `location(name)`; one that is there stays.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn create_volume(&self, name: &str) {
        self.make_volume(name, None, Parameters::default());
    }

    /// As `create_volume`, with a capacity.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn create_volume_with(&self, name: &str, capacity_bytes: Option<u64>) {
        self.make_volume(name, capacity_bytes, Parameters::default());
    }

    /// As `create_volume`, with parameters.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn create_volume_as(&self, name: &str, parameters: Parameters) {
        self.make_volume(name, None, parameters);
    }

    fn make_volume(&self, name: &str, capacity_bytes: Option<u64>, parameters: Parameters) {
        let admin = Admin::new(self.bucket(), Uuid::new_v4());
        let request = CreateVolume {
            name: name.to_owned(),
            uuid: Uuid::new_v4(),
            capacity: CapacityRange {
                required_bytes: capacity_bytes.unwrap_or(0),
                limit_bytes: 0,
            },
            parameters,
            now: Timestamp::default(),
        };
        self.block_on(admin.create(&request)).expect("a volume can be made");
    }

    /// A folder of its own, for mountpoints, caches and logs, that goes with the store.
    ///
    /// # Panics
    /// If it cannot be made.
    pub fn folder(&self, name: &str) -> PathBuf {
        let folder = self.dir.path().join(name);
        std::fs::create_dir_all(&folder).expect("a folder beside the objects");
        folder
    }

    /// Where a volume of this name lies.
    pub fn location(&self, name: &str) -> String {
        format!("s3://{BUCKET}/v/{name}")
    }
}

impl Drop for LocalStore {
    fn drop(&mut self) {
        drop(self.server.take());
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}
