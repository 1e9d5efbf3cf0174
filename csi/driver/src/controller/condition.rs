//! How a volume is, as far as its head tells: the only place where Nomad shows health is `nomad volume status`.
//!
//! Absent: what only the node knows (dirty bytes, a mount that was lost); the node service and the metrics tell that.

use proto::csi::v1::VolumeCondition;
use volume::head::{Head, HeadError};

/// The condition of a volume whose head can be read.
pub fn of_head(head: &Head) -> VolumeCondition {
    let message = match (&head.leader, head.rightful_leader()) {
        (Some(leader), Some(_)) => format!("mounted for writing on node {}", leader.node_id),
        (Some(leader), None) => format!(
            "node {} lost the volume before it had closed it: what it had not fsynced is gone",
            leader.node_id
        ),
        (None, _) if head.clean => "closed cleanly".to_owned(),
        (None, _) => "not closed; the next mount replays its journal".to_owned(),
    };
    VolumeCondition {
        abnormal: false,
        message,
    }
}

/// The condition of a volume whose head cannot be read.
pub fn unreadable(error: &HeadError) -> VolumeCondition {
    VolumeCondition {
        abnormal: true,
        message: error.to_string(),
    }
}
