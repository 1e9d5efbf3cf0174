//! A volume on a store of its own inside the test's process, to be mounted again and again by `pannier mount`.
//!
//! Each mount gets a cache that knows nothing, so what it shows comes from the bucket alone.

use std::path::PathBuf;
use std::process::Command;

use volume::head::Transport;

use crate::local_store::LocalStore;
use crate::mounted::{MountOptions, Mounted};
use crate::transport;

/// A volume and its store. Both go with the value.
#[derive(Debug)]
pub struct ScratchVolume {
    store: LocalStore,
    /// How the next mount is made; its cache is replaced by `mount`.
    pub options: MountOptions,
    mounts: u32,
}

impl ScratchVolume {
    /// Starts a store; the first mount creates the volume.
    ///
    /// # Panics
    /// If the store does not start.
    #[expect(clippy::new_without_default, reason = "it starts a server")]
    pub fn new() -> Self {
        let store = LocalStore::start();
        let options = MountOptions {
            location: store.location("volume"),
            endpoint: store.endpoint(),
            dir: store.folder("mnt"),
            cache_dir: store.folder("cache-0"),
            create: true,
            read_only: false,
            transport: transport::usual(),
            environment: store.environment(),
        };
        Self {
            store,
            options,
            mounts: 0,
        }
    }

    /// One whose mounts are reached by this transport.
    ///
    /// # Panics
    /// As `new`.
    pub fn on(transport: Transport) -> Self {
        let mut scratch = Self::new();
        scratch.options.transport = transport;
        scratch
    }

    /// A volume whose files may take `capacity_bytes`.
    ///
    /// # Panics
    /// As `new`, and if the volume cannot be made.
    pub fn with_capacity(capacity_bytes: u64) -> Self {
        let mut scratch = Self::new();
        scratch.store.create_volume_with("volume", Some(capacity_bytes));
        scratch.options.create = false;
        scratch
    }

    /// Mounts it with a cache that knows nothing.
    ///
    /// # Panics
    /// If it does not mount, with what the program said.
    pub fn mount(&mut self) -> Mounted {
        self.mounts += 1;
        self.options.cache_dir = self.store.folder(&format!("cache-{}", self.mounts));
        Mounted::new(&self.options)
    }

    /// Ends a mount of it, which must leave everything in the bucket, and nothing wrong there.
    ///
    /// # Panics
    /// If it does not.
    pub fn end(&self, mounted: Mounted) {
        assert!(mounted.unmount().success(), "a clean unmount");
        self.check();
    }

    /// A folder beside the volume, on the local disk.
    pub fn folder(&self, name: &str) -> PathBuf {
        self.store.folder(name)
    }

    /// `pannier volume check` of it, which must find nothing wrong.
    ///
    /// # Panics
    /// If it does, with what it found.
    pub fn check(&self) {
        let mut command = Command::new(crate::binaries::built(crate::binaries::Program::Binary("pannier")));
        command.args([
            "volume",
            "check",
            &self.options.location,
            "--endpoint",
            &self.options.endpoint,
        ]);
        command.envs(self.options.environment.iter().cloned());
        let output = command.output().expect("pannier starts");
        assert!(
            output.status.success(),
            "the volume is damaged: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
    }
}
