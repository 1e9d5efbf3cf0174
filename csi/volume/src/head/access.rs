//! How nodes may use a volume, in the words of CSI and Nomad.

use std::fmt;

use serde::{Deserialize, Serialize};

/// How a node may use a volume, in the words of CSI and Nomad.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum AccessMode {
    /// One node reads and writes.
    SingleNodeWriter,
    /// One node reads.
    SingleNodeReaderOnly,
    /// One node reads and writes, at one path.
    SingleNodeSingleWriter,
    /// One node reads and writes, at any number of paths.
    SingleNodeMultiWriter,
    /// Any number of nodes read.
    MultiNodeReaderOnly,
    /// Any number of nodes read, one of them writes.
    MultiNodeSingleWriter,
    /// Any number of nodes read, and any number of them write; for now writers must be on one node.
    MultiNodeMultiWriter,
}

impl AccessMode {
    /// All modes.
    pub const ALL: [AccessMode; 7] = [
        AccessMode::SingleNodeWriter,
        AccessMode::SingleNodeReaderOnly,
        AccessMode::SingleNodeSingleWriter,
        AccessMode::SingleNodeMultiWriter,
        AccessMode::MultiNodeReaderOnly,
        AccessMode::MultiNodeSingleWriter,
        AccessMode::MultiNodeMultiWriter,
    ];

    /// True if other nodes may use the volume beside.
    pub fn is_multi_node(self) -> bool {
        match self {
            AccessMode::SingleNodeWriter
            | AccessMode::SingleNodeReaderOnly
            | AccessMode::SingleNodeSingleWriter
            | AccessMode::SingleNodeMultiWriter => false,
            AccessMode::MultiNodeReaderOnly | AccessMode::MultiNodeSingleWriter | AccessMode::MultiNodeMultiWriter => {
                true
            }
        }
    }

    /// True if a node that is published to in this mode never writes. `read_only` is what was asked beside the mode; where
    /// one node has the volume alone it does not count, because a writer may come beside a reader at any time.
    pub fn reads_only(self, read_only: bool) -> bool {
        match self {
            AccessMode::SingleNodeReaderOnly | AccessMode::MultiNodeReaderOnly => true,
            AccessMode::MultiNodeSingleWriter | AccessMode::MultiNodeMultiWriter => read_only,
            AccessMode::SingleNodeWriter | AccessMode::SingleNodeSingleWriter | AccessMode::SingleNodeMultiWriter => {
                false
            }
        }
    }
}

impl fmt::Display for AccessMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            AccessMode::SingleNodeWriter => "single-node-writer",
            AccessMode::SingleNodeReaderOnly => "single-node-reader-only",
            AccessMode::SingleNodeSingleWriter => "single-node-single-writer",
            AccessMode::SingleNodeMultiWriter => "single-node-multi-writer",
            AccessMode::MultiNodeReaderOnly => "multi-node-reader-only",
            AccessMode::MultiNodeSingleWriter => "multi-node-single-writer",
            AccessMode::MultiNodeMultiWriter => "multi-node-multi-writer",
        })
    }
}
