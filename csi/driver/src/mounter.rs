//! The `Mounter` port: what the node service needs of the engine and of the kernel, in its own words.
//!
//! The engine mounts each volume once, at a place of ours; staging and publishing are bind mounts of that. So there
//! is one FUSE mount per volume on a node, whatever number of paths Nomad asks for (rule 11), and taking a path away
//! disturbs no other.
//! Callers: `targets.rs`. Implementations: `mounter/engine.rs` (real), `mounter/fake.rs` (tests).
//! Absent: what should be mounted (`targets/record.rs`), and any state.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use volume::ids::Lease;

use crate::capability::{BindFlags, Owner};
use crate::credentials::Credentials;
use crate::mountinfo::{MalformedLine, MountPoint};
use crate::opening::Opening;

pub mod engine;
pub mod fake;
mod kernel;
mod spawn;

/// What the engine is to mount, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MountSpec {
    /// The volume, and whether for writing.
    pub opening: Opening,
    /// An existing empty directory.
    pub path: PathBuf,
    /// The publication to this node, which entitles it to the volume.
    pub lease: Lease,
    /// Keys of this volume; `None` for the engine's own.
    pub credentials: Option<Credentials>,
}

/// A mount that the engine serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Served {
    /// The volume, and whether for writing.
    pub opening: Opening,
    /// Where the engine mounted it.
    pub path: PathBuf,
    /// Why no write will ever be acknowledged again; `None` while all is well.
    pub lost: Option<String>,
    /// What is wrong with the store; `None` while it answers.
    pub outage: Option<String>,
}

/// Space and inodes of a mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Usage {
    /// Capacity in bytes.
    pub total_bytes: u64,
    /// Bytes that can still be written.
    pub free_bytes: u64,
    /// Inodes that there can be.
    pub inodes: u64,
    /// Inodes that can still be made.
    pub free_inodes: u64,
}

/// What a path answered when it was asked with a limit of time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Answer {
    /// It works.
    Alive(Usage),
    /// The process that served the mount is gone. Only unmounting helps.
    Dead,
    /// No answer in time: the engine is stuck, or the machine is.
    Silent,
    /// There is nothing at the path.
    Gone,
}

/// Why a mount could not be made or ended. Each variant tells what would help.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// Another node or claim holds the volume.
    #[error("{detail}")]
    Held {
        /// The engine's words.
        detail: String,
    },
    /// The volume does not exist in the bucket.
    #[error("{detail}")]
    NoVolume {
        /// The engine's words.
        detail: String,
    },
    /// The store refuses the credentials.
    #[error("{detail}")]
    Denied {
        /// The engine's words.
        detail: String,
    },
    /// The volume is damaged, or writes were lost.
    #[error("{detail}")]
    Damaged {
        /// The engine's words.
        detail: String,
    },
    /// The store or the engine did not answer; trying again may work.
    #[error("{detail}")]
    Unavailable {
        /// The engine's words.
        detail: String,
    },
    /// It did not end in time, and goes on.
    #[error("{detail}")]
    Slow {
        /// The engine's words.
        detail: String,
    },
    /// The engine does not understand or accept the request.
    #[error("the engine refuses: {detail}")]
    Refused {
        /// The engine's words.
        detail: String,
    },
    /// No engine listens, and none could be started.
    #[error("no engine serves at {}: {detail}", socket.display())]
    NoEngine {
        /// Where it should listen.
        socket: PathBuf,
        /// What was tried.
        detail: String,
    },
    /// The kernel refused.
    #[error("cannot {act} {}: {source}", path.display())]
    Kernel {
        /// For example "bind-mount".
        act: &'static str,
        /// What was acted on.
        path: PathBuf,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The mount table cannot be understood.
    #[error(transparent)]
    Table(#[from] MalformedLine),
}

/// Engine and kernel, as the node service sees them. Every call ends within its own limit of time.
#[async_trait]
pub trait Mounter: std::fmt::Debug + Send + Sync + 'static {
    /// Has the engine mount a volume; starts an engine if none runs. Repeating it changes nothing.
    async fn mount(&self, spec: &MountSpec) -> Result<(), MountError>;

    /// Has the engine flush a volume and end all its mounts. `Ok` if it has none.
    ///
    /// # Durability
    /// `Ok` means that every write is in the bucket.
    async fn unmount(&self, opening: &Opening) -> Result<(), MountError>;

    /// Has the engine sign the requests of an open volume with these keys from now on. `Ok` if it does not serve it.
    async fn renew(&self, opening: &Opening, credentials: &Credentials) -> Result<(), MountError>;

    /// Has the engine look at the head of a volume that it serves, and returns the capacity that it enforces from now on;
    /// `None` for no limit.
    async fn look(&self, opening: &Opening) -> Result<Option<u64>, MountError>;

    /// Resolves when an engine that this plugin started has ended since the last time it resolved. One that an earlier plugin
    /// started is found by looking.
    async fn engine_ended(&self);

    /// What the engine serves; nothing if none runs. Never starts one.
    async fn served(&self) -> Result<Vec<Served>, MountError>;

    /// The kernel's mount table. Touches no mount.
    async fn table(&self) -> Result<Vec<MountPoint>, MountError>;

    /// Asks a path for its usage, and so whether it is alive.
    async fn probe(&self, path: &Path) -> Answer;

    /// Makes everything written through a mount durable, the kernel's own cache included.
    ///
    /// # Durability
    /// `Ok` means that every write before this call is in the bucket.
    async fn flush(&self, path: &Path, limit: Duration) -> Result<(), MountError>;

    /// Bind-mounts `source` at `target`.
    async fn bind(&self, source: &Path, target: &Path, flags: BindFlags) -> Result<(), MountError>;

    /// Gives the top directory of a mount to an owner, where it is not the owner's already.
    async fn own(&self, path: &Path, owner: Owner) -> Result<(), MountError>;

    /// Takes the top mount at `path` away, lazily if it is busy or dead; `Ok` if there is none.
    async fn detach(&self, path: &Path) -> Result<(), MountError>;
}

/// A mounter as it is handed around.
pub type MounterRef = Arc<dyn Mounter>;
