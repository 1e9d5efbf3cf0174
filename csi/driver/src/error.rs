//! Why a call failed, as facts. `grpc.rs` is the only place that turns them into status codes.

use std::path::PathBuf;
use std::time::Duration;

use volume::admin::AdminError;
use volume::bucket::BucketError;
use volume::head::ParameterError;
use volume::volume_id::NameError;
use volume_s3::ConnectError;

use crate::mounter::MountError;

/// The failure of a call. Its text is what an operator reads in `nomad alloc status`, so it names what and where.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// A required field is empty.
    #[error("{field} is missing")]
    Missing {
        /// Name of the field, in CSI's words.
        field: &'static str,
    },
    /// A field has a value that cannot be.
    #[error("{field} {fault}")]
    Invalid {
        /// Name of the field, in the words of a volume file.
        field: String,
        /// What is wrong with it.
        fault: Fault,
    },
    /// A volume parameter that is not acted on.
    #[error("parameters: {0}")]
    Parameter(#[from] ParameterError),
    /// A name that cannot be one.
    #[error("{field}: {source}")]
    Name {
        /// Which field held it.
        field: &'static str,
        /// Why not.
        source: NameError,
    },
    /// The id is of no volume.
    #[error("volume {volume:?} does not exist")]
    NoVolume {
        /// As given.
        volume: String,
    },
    /// The id is of no snapshot.
    #[error("snapshot {snapshot:?} does not exist")]
    NoSnapshot {
        /// As given.
        snapshot: String,
    },
    /// The id is of no node.
    #[error("node {node:?} does not exist")]
    NoNode {
        /// As given.
        node: String,
    },
    /// The volume is not at that path.
    #[error("volume {volume} is not mounted at {}", path.display())]
    NoPath {
        /// The volume.
        volume: String,
        /// As given.
        path: PathBuf,
    },
    /// A node call came without what ControllerPublishVolume returned.
    #[error("publish_context.{key} is missing or wrong: it comes from ControllerPublishVolume")]
    PublishContext {
        /// Which entry.
        key: &'static str,
    },
    /// A publish came before the stage.
    #[error("volume {volume} is not staged on this node: NodeStageVolume comes first")]
    NotStaged {
        /// The volume.
        volume: String,
    },
    /// The volume is at that path otherwise.
    #[error("volume {volume} is at {} already, with other options", path.display())]
    PublishedOtherwise {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
    },
    /// A second path was asked for of a volume that is for one writer at one path.
    #[error("volume {volume} is published at {} already, and single-node-single-writer allows one path", path.display())]
    PublishedOnce {
        /// The volume.
        volume: String,
        /// Where it is.
        path: PathBuf,
    },
    /// Something that is not ours is mounted at the path.
    #[error("{} is a mount of {source_name} ({fs_type}), not of volume {volume}", path.display())]
    ForeignMount {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
        /// File system type found.
        fs_type: String,
        /// Source found.
        source_name: String,
    },
    /// The volume is smaller than what the node is to show.
    #[error("volume {volume} has {capacity_bytes} bytes: ControllerExpandVolume comes first")]
    NotExpanded {
        /// The volume.
        volume: String,
        /// As its head says.
        capacity_bytes: u64,
    },
    /// The mount is there and does not answer.
    #[error("the mount of volume {volume} at {} does not answer", path.display())]
    Silent {
        /// The volume.
        volume: String,
        /// The path.
        path: PathBuf,
    },
    /// The limit of the call passed.
    #[error("{rpc} did not end within {} s: it was {step}", limit.as_secs())]
    Deadline {
        /// Name of the call.
        rpc: &'static str,
        /// Its limit.
        limit: Duration,
        /// What it was doing.
        step: String,
    },
    /// The plugin is ending.
    #[error("the plugin is stopping")]
    Stopping,
    /// A file or directory of the node could not be read or written.
    #[error("cannot {act} {}: {source}", path.display())]
    File {
        /// For example "write".
        act: &'static str,
        /// Which.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The state file of a volume cannot be understood.
    #[error("state file {} is damaged: {source}", path.display())]
    Record {
        /// Which.
        path: PathBuf,
        /// What is wrong.
        source: serde_json::Error,
    },
    /// Engine or kernel.
    #[error("volume {volume}: {source}")]
    Mount {
        /// The volume.
        volume: String,
        /// Why.
        source: MountError,
    },
    /// The cluster's prefix in the bucket.
    #[error(transparent)]
    Admin(#[from] AdminError),
    /// No client for the store can be made.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The store failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

/// What is wrong with a field, as the rest of a sentence that begins with its name; holds no secret.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// Another file system.
    #[error("cannot be {fs_type:?}: leave it out, or give \"pannier\"")]
    FsType {
        /// As given.
        fs_type: String,
    },
    /// A volume is no device.
    #[error("cannot be block-device: Pannier's volumes are file systems, use file-system")]
    Block,
    /// An access mode that CSI does not have, or not yet.
    #[error("cannot be number {number}: Nomad's five modes are known")]
    Mode {
        /// As given.
        number: i32,
    },
    /// A mount flag that is not acted on.
    #[error("cannot hold {flag:?}; known are ro, rw, noexec, nosuid, nodev, noatime, uid=, gid= and mode=")]
    Flag {
        /// As given.
        flag: String,
    },
    /// A secret that is not used.
    #[error("is unknown; known are access_key_id, secret_access_key and session_token")]
    Secret,
    /// One half of a pair of keys.
    #[error("is missing beside its other half")]
    HalfKeys,
    /// A number below zero.
    #[error("is negative")]
    Negative,
    /// Snapshots have no parameters.
    #[error("is unknown: a snapshot has none")]
    SnapshotParameter,
    /// A path that could mean another place than it says.
    #[error("must be absolute, without . and .., and not the root")]
    Path,
}

impl DriverError {
    /// An `Invalid` error.
    pub fn invalid(field: impl Into<String>, fault: Fault) -> Self {
        let field = field.into();
        DriverError::Invalid { field, fault }
    }

    /// Turns a failure of the mounter into one of a volume.
    pub fn mount(volume: &impl ToString) -> impl FnOnce(MountError) -> Self {
        let volume = volume.to_string();
        |source| DriverError::Mount { volume, source }
    }

    /// Turns a failure of the file system into one of a path.
    pub fn file(act: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.into();
        move |source| DriverError::File { act, path, source }
    }
}
