//! THE map from failures to status codes, and back from those of the engine. Codes appear in no other file of this
//! crate.
//!
//! Nomad gives some codes a meaning of its own (plugins/csi/client.go), which decides most choices here:
//! - INTERNAL is never used: Nomad hides its message behind "check the plugin allocation logs".
//! - FAILED_PRECONDITION of ControllerPublish makes Nomad try the claim again for 24 h (rule 8), so it is for "held
//!   elsewhere" only; what no waiting helps against has another code. Of DeleteVolume it says "in use".
//! - NOT_FOUND of an unpublish or unstage counts as done, so a bucket that is missing is not NOT_FOUND.
//! - ABORTED of a list says "bad token".

use std::sync::atomic::{AtomicU64, Ordering};

use proto::csi::v1 as csi;
use tokio::time::Instant;
use tonic::{Code, Response, Status};
use tracing::{debug, error, info, warn};
use volume::admin::AdminError;
use volume::bucket::BucketError;
use volume::head::HeadError;
use volume::holds::HoldsError;
use volume::lineage::Source;
use volume::open::OpenError;
use volume::probe::ProbeError;
use volume::tree::TreeError;

use crate::error::DriverError;
use crate::metrics;
use crate::mounter::MountError;

/// A call under way, for the log and the metrics.
#[derive(Debug)]
pub struct Call {
    rpc: &'static str,
    volume: String,
    /// Its number in the life of this process.
    request: u64,
    begun: Instant,
}

impl Call {
    /// A call that came now. `volume` is what it is about: an id, a name, or nothing.
    pub fn new(rpc: &'static str, volume: String) -> Self {
        static REQUESTS: AtomicU64 = AtomicU64::new(1);
        Self {
            rpc,
            volume,
            request: REQUESTS.fetch_add(1, Ordering::Relaxed),
            begun: Instant::now(),
        }
    }
}

/// Ends a call: its answer, or its failure as a status. Each failure is logged here, once.
///
/// # Errors
/// The status for `outcome`'s error.
pub fn reply<T>(call: Call, outcome: Result<T, DriverError>) -> Result<Response<T>, Status> {
    let Call {
        rpc,
        volume,
        request,
        begun,
    } = call;
    let code = outcome.as_ref().map_or_else(code_of, |_| Code::Ok);
    let took = begun.elapsed();
    metrics::count(rpc, format!("{code:?}"), took);
    match outcome {
        Ok(answer) => {
            info!(rpc, volume, request, took_ms = took.as_millis(), "done");
            Ok(Response::new(answer))
        }
        Err(failure) => {
            match code {
                Code::InvalidArgument | Code::NotFound | Code::Unimplemented => {
                    debug!(rpc, volume, request, ?failure, "refused")
                }
                Code::FailedPrecondition | Code::AlreadyExists | Code::Aborted | Code::OutOfRange => {
                    warn!(rpc, volume, request, ?failure, "refused: {failure}");
                }
                _ => error!(rpc, volume, request, ?failure, "failed: {failure}"),
            }
            Err(Status::new(code, failure.to_string()))
        }
    }
}

/// The status code of a failure.
#[deny(clippy::wildcard_enum_match_arm)]
pub fn code_of(failure: &DriverError) -> Code {
    match failure {
        DriverError::Missing { .. }
        | DriverError::Invalid { .. }
        | DriverError::Parameter(_)
        | DriverError::Name { .. }
        | DriverError::PublishContext { .. } => Code::InvalidArgument,
        DriverError::NoVolume { .. }
        | DriverError::NoSnapshot { .. }
        | DriverError::NoNode { .. }
        | DriverError::NoPath { .. } => Code::NotFound,
        DriverError::PublishedOtherwise { .. } => Code::AlreadyExists,
        DriverError::NotStaged { .. } | DriverError::PublishedOnce { .. } | DriverError::ForeignMount { .. } => {
            Code::FailedPrecondition
        }
        DriverError::NotExpanded { .. } => Code::OutOfRange,
        DriverError::Deadline { .. } => Code::DeadlineExceeded,
        // A full disk or a state file that is damaged: a person repairs it, then the same call works.
        DriverError::Silent { .. }
        | DriverError::Stopping
        | DriverError::File { .. }
        | DriverError::Record { .. }
        | DriverError::Connect(_) => Code::Unavailable,
        DriverError::Mount { source, .. } => mount_code(source),
        DriverError::Admin(source) => admin_code(source),
        DriverError::Bucket(source) => bucket_code(source),
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn mount_code(failure: &MountError) -> Code {
    match failure {
        MountError::Held { .. } => Code::FailedPrecondition,
        MountError::NoVolume { .. } => Code::NotFound,
        MountError::Denied { .. } => Code::PermissionDenied,
        MountError::Damaged { .. } => Code::DataLoss,
        MountError::Slow { .. } => Code::DeadlineExceeded,
        MountError::Refused { .. } => Code::InvalidArgument,
        // Trying again is right for all of these: the engine may come up, the store or the kernel may recover.
        MountError::Unavailable { .. }
        | MountError::NoEngine { .. }
        | MountError::Kernel { .. }
        | MountError::Table(_) => Code::Unavailable,
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn admin_code(failure: &AdminError) -> Code {
    match failure {
        AdminError::Name(_) | AdminError::Parameter(_) | AdminError::Capacity { .. } => Code::InvalidArgument,
        AdminError::TooLarge { .. } | AdminError::Shrinks { .. } => Code::OutOfRange,
        AdminError::PageToken { .. } => Code::Aborted,
        AdminError::NotFound { .. } | AdminError::NoNode { .. } | AdminError::NoSnapshot { .. } => Code::NotFound,
        AdminError::AlreadyExists { .. } | AdminError::SnapshotExists { .. } => Code::AlreadyExists,
        AdminError::Smaller { .. } => Code::OutOfRange,
        // No waiting helps.
        AdminError::Alone | AdminError::TooDeep { .. } => Code::ResourceExhausted,
        AdminError::SnapshotRecord { .. } => Code::DataLoss,
        AdminError::Holds(source) => holds_code(source),
        AdminError::Open(source) => open_code(source),
        // CSI: "operation pending for volume".
        AdminError::Deleting { .. } => Code::Aborted,
        AdminError::InUse { .. } | AdminError::PublishedElsewhere { .. } | AdminError::WrittenElsewhere { .. } => {
            Code::FailedPrecondition
        }
        AdminError::NodeRecord { .. } => Code::DataLoss,
        AdminError::Store(ProbeError::Bucket(source)) | AdminError::Bucket(source) => bucket_code(source),
        AdminError::Store(ProbeError::Unfit { .. }) => Code::Unimplemented,
        AdminError::Head(source) => head_code(source),
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn holds_code(failure: &HoldsError) -> Code {
    match failure {
        HoldsError::Abandoned => Code::NotFound,
        HoldsError::TooMany => Code::ResourceExhausted,
        HoldsError::Format { .. } => Code::Unimplemented,
        HoldsError::Corrupt { .. } => Code::DataLoss,
        HoldsError::Contended => Code::Aborted,
        HoldsError::Bucket(source) => bucket_code(source),
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn open_code(failure: &OpenError) -> Code {
    match failure {
        OpenError::Head(source) => head_code(source),
        OpenError::Bucket(source) => bucket_code(source),
        OpenError::Tree(TreeError::Corrupt { .. }) | OpenError::Damaged { .. } => Code::DataLoss,
        OpenError::Tree(
            TreeError::Fenced
            | TreeError::Unavailable { .. }
            | TreeError::Failed { .. }
            | TreeError::ReadOnly
            | TreeError::Closed,
        ) => Code::Unavailable,
        OpenError::Fenced { .. } => Code::Aborted,
        // Of a mount's own disk, which no controller opens.
        OpenError::Tail(_) | OpenError::Lost(_) | OpenError::Replay(_) => Code::Unavailable,
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn head_code(failure: &HeadError) -> Code {
    match failure {
        HeadError::Missing => Code::NotFound,
        HeadError::Exists => Code::AlreadyExists,
        // No waiting helps, only a newer program: so not FAILED_PRECONDITION.
        HeadError::Format { .. } => Code::Unimplemented,
        HeadError::Corrupt { .. } => Code::DataLoss,
        HeadError::TooLong { .. } => Code::InvalidArgument,
        HeadError::Apart { .. } => Code::InvalidArgument,
        HeadError::Deleting { .. } | HeadError::Contended => Code::Aborted,
        HeadError::NoLease { .. }
        | HeadError::Published { .. }
        | HeadError::Fenced { .. }
        | HeadError::TailElsewhere { .. } => Code::FailedPrecondition,
        HeadError::Bucket(source) => bucket_code(source),
    }
}

#[deny(clippy::wildcard_enum_match_arm)]
fn bucket_code(failure: &BucketError) -> Code {
    match failure {
        BucketError::Denied { .. } | BucketError::NoCredentials { .. } => Code::PermissionDenied,
        BucketError::Unsupported { .. } => Code::Unimplemented,
        BucketError::Precondition { .. } => Code::Aborted,
        BucketError::NotFound { .. }
        | BucketError::NoBucket { .. }
        | BucketError::Unavailable { .. }
        | BucketError::Unexpected { .. } => Code::Unavailable,
    }
}

/// What a status of the engine means to us (see proto/pannier/engine.proto for its codes).
#[deny(clippy::wildcard_enum_match_arm)]
pub fn from_engine(status: &Status) -> MountError {
    let detail = status.message().to_owned();
    match status.code() {
        Code::NotFound => MountError::NoVolume { detail },
        Code::FailedPrecondition => MountError::Held { detail },
        Code::PermissionDenied | Code::Unauthenticated => MountError::Denied { detail },
        Code::DataLoss => MountError::Damaged { detail },
        Code::DeadlineExceeded | Code::Cancelled => MountError::Slow { detail },
        Code::InvalidArgument | Code::AlreadyExists | Code::OutOfRange | Code::Unimplemented => {
            MountError::Refused { detail }
        }
        Code::Ok | Code::Unknown | Code::ResourceExhausted | Code::Aborted | Code::Internal | Code::Unavailable => {
            MountError::Unavailable { detail }
        }
    }
}

fn source_told(source: &Source) -> csi::VolumeContentSource {
    use csi::volume_content_source::{SnapshotSource, Type, VolumeSource};
    csi::VolumeContentSource {
        r#type: Some(match source {
            Source::Volume(volume) => Type::Volume(VolumeSource {
                volume_id: volume.to_string(),
            }),
            Source::Snapshot(snapshot) => Type::Snapshot(SnapshotSource {
                snapshot_id: snapshot.to_string(),
            }),
        }),
    }
}

/// What a volume's head tells a CSI caller.
pub(crate) fn volume_of(head: &volume::head::Head) -> csi::Volume {
    csi::Volume {
        capacity_bytes: i64::try_from(head.capacity_bytes).unwrap_or(i64::MAX),
        volume_id: head.volume.to_string(),
        // The name is for people who read `nomad volume status`; no call depends on it. No topology: S3 is everywhere
        // (rule 15).
        volume_context: [("name".to_owned(), head.name.clone())].into(),
        content_source: head.branch.as_ref().map(|branch| source_told(&branch.source)),
        accessible_topology: Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_unavailable() -> BucketError {
        BucketError::Unavailable {
            key: "head".into(),
            detail: "no route".into(),
        }
    }

    #[test]
    fn a_missing_bucket_never_counts_as_a_volume_that_is_gone() {
        let no_bucket = BucketError::NoBucket { bucket: "b".into() };
        assert_eq!(code_of(&no_bucket.into()), Code::Unavailable);
        assert_eq!(
            code_of(&AdminError::Bucket(all_unavailable()).into()),
            Code::Unavailable
        );
    }

    /// Rule 8: only what ends by waiting makes Nomad wait.
    #[test]
    fn only_a_volume_held_elsewhere_makes_nomad_wait() {
        let held = AdminError::PublishedElsewhere {
            volume: volume::volume_id::VolumeId::parse("v1").unwrap(),
            node_id: volume::volume_id::NodeId::new("n2").unwrap(),
            mode: volume::head::AccessMode::SingleNodeWriter,
        };
        assert_eq!(code_of(&held.into()), Code::FailedPrecondition);
        let denied = BucketError::Denied {
            key: "head".into(),
            detail: "bad key".into(),
        };
        assert_eq!(code_of(&denied.into()), Code::PermissionDenied);
    }

    #[test]
    fn a_failure_says_what_and_where() {
        let status = reply::<()>(Call::new("NodeStageVolume", "v1".into()), Err(all_unavailable().into())).unwrap_err();
        assert_eq!(status.code(), Code::Unavailable);
        assert!(status.message().contains("head") && status.message().contains("no route"));
    }
}
