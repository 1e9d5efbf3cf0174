//! Why a verb on volumes, snapshots or nodes was refused or failed.

use crate::bucket::BucketError;
use crate::head::{AccessMode, HeadError, ParameterError};
use crate::holds::HoldsError;
use crate::lineage::ANCESTORS_MAX;
use crate::open::OpenError;
use crate::probe::ProbeError;
use crate::tree::TreeError;
use crate::volume_id::{NameError, NodeId, SnapshotId, VolumeId};

/// Why a verb was refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum AdminError {
    /// The name, id or node id cannot be one.
    #[error(transparent)]
    Name(#[from] NameError),
    /// A parameter that is unknown, or cannot be changed.
    #[error("parameters: {0}")]
    Parameter(#[from] ParameterError),
    /// The range asked for is empty.
    #[error("a capacity of at least {required_bytes} and at most {limit_bytes} bytes is impossible")]
    Capacity {
        /// The lower bound.
        required_bytes: u64,
        /// The upper bound.
        limit_bytes: u64,
    },
    /// A volume never shrinks.
    #[error("volume {volume} has {capacity_bytes} bytes, more than {limit_bytes}: a volume never shrinks")]
    TooLarge {
        /// The volume.
        volume: VolumeId,
        /// Its capacity.
        capacity_bytes: u64,
        /// The upper bound asked for.
        limit_bytes: u64,
    },
    /// What a volume had room for stays welcome.
    #[error("volume {volume} may have {}, and never becomes smaller", if *has_bytes == 0 { "any number of bytes".to_owned() } else { format!("{has_bytes} bytes") })]
    Shrinks {
        /// The volume.
        volume: VolumeId,
        /// Its capacity; 0 without a limit.
        has_bytes: u64,
    },
    /// The page token is none of ours.
    #[error("{token:?} is not a page token of this list")]
    PageToken {
        /// What was given.
        token: String,
    },
    /// There is no such volume.
    #[error("volume {volume} does not exist")]
    NotFound {
        /// The id asked for.
        volume: VolumeId,
    },
    /// A volume of that name was created otherwise.
    #[error("volume {volume} exists with another {what}: it has {has}, asked was {asked}")]
    AlreadyExists {
        /// The volume.
        volume: VolumeId,
        /// What differs.
        what: &'static str,
        /// As it is.
        has: String,
        /// As asked.
        asked: String,
    },
    /// The volume is being deleted; later its name is free again.
    #[error("volume {volume} is being deleted")]
    Deleting {
        /// The volume.
        volume: VolumeId,
    },
    /// The volume is published to a node or written by one.
    #[error("volume {volume} is in use: {by}")]
    InUse {
        /// The volume.
        volume: VolumeId,
        /// By whom, and how.
        by: String,
    },
    /// Another node has it.
    #[error("volume {volume} is published to node {node_id} as {mode}")]
    PublishedElsewhere {
        /// The volume.
        volume: VolumeId,
        /// The other node.
        node_id: NodeId,
        /// How the other node has it.
        mode: AccessMode,
    },
    /// Another node writes it, and two nodes cannot yet.
    #[error(
        "volume {volume} is written on node {node_id}: multi-node-multi-writer has its writers on one node in this \
         release; writers on several nodes come with release 0.3"
    )]
    WrittenElsewhere {
        /// The volume.
        volume: VolumeId,
        /// The other node.
        node_id: NodeId,
    },
    /// No node of that id ever registered.
    #[error("node {node_id} does not exist")]
    NoNode {
        /// The id asked for.
        node_id: NodeId,
    },
    /// The object of a node is not what `register_node` writes.
    #[error("the record of node {node_id} is damaged: {source}")]
    NodeRecord {
        /// The node, as its key says.
        node_id: String,
        /// Where and what.
        source: serde_json::Error,
    },
    /// No snapshot has this id.
    #[error("snapshot {snapshot} does not exist")]
    NoSnapshot {
        /// The id asked for.
        snapshot: SnapshotId,
    },
    /// The name is taken by a snapshot of another volume, or of an earlier one of that id.
    #[error("snapshot {snapshot} exists, and is of another volume: {volume}")]
    SnapshotExists {
        /// The snapshot.
        snapshot: SnapshotId,
        /// What it is of.
        volume: VolumeId,
    },
    /// The record of a snapshot is not what `Family::snapshot` writes.
    #[error("the record of snapshot {snapshot} is damaged: {source}")]
    SnapshotRecord {
        /// The snapshot, as its key says.
        snapshot: String,
        /// Where and what.
        source: serde_json::Error,
    },
    /// Snapshots and clones lie beside their volume.
    #[error("a volume at the top of a bucket has neither snapshots nor clones: there is nothing beside it")]
    Alone,
    /// A clone of a clone, and so on.
    #[error("volume {volume} is {ANCESTORS_MAX} clones away from its origin: no more can be made of it")]
    TooDeep {
        /// The volume.
        volume: VolumeId,
    },
    /// A clone cannot have less room than its source.
    #[error("the source has a capacity of {has_bytes} bytes, {asked_bytes} are too few for it")]
    Smaller {
        /// Capacity of the source.
        has_bytes: u64,
        /// Capacity asked for.
        asked_bytes: u64,
    },
    /// The holds of the volume could not be read or changed.
    #[error(transparent)]
    Holds(#[from] HoldsError),
    /// The state of the volume could not be read.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The store must not keep volumes.
    #[error(transparent)]
    Store(#[from] ProbeError),
    /// The head of the volume could not be read or changed.
    #[error(transparent)]
    Head(HeadError),
    /// The store failed.
    #[error(transparent)]
    Bucket(#[from] BucketError),
}

impl From<TreeError> for AdminError {
    fn from(error: TreeError) -> Self {
        AdminError::Open(error.into())
    }
}

impl From<HeadError> for AdminError {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Bucket(error) => AdminError::Bucket(error),
            HeadError::Deleting { volume } => AdminError::Deleting { volume },
            error => AdminError::Head(error),
        }
    }
}
