//! The one table from the engine's errors to gRPC statuses, as engine.proto promises them.
//!
//! The message is what the caller can act on; the chain of causes goes to the log, once, here.

use tonic::Status;
use volume::bucket::BucketError;
use volume::head::HeadError;
use volume::open::OpenError;
use volume::tail::TailError;
use volume::tree::TreeError;

use super::EngineError;
use crate::mountpoint::MountpointError;
use crate::open::Refusal;

/// The status of a failure, which is logged.
pub fn status_of(error: &EngineError) -> Status {
    tracing::error!(error = ?error, "refused or failed: {error}");
    let text = error.to_string();
    match error {
        EngineError::Mountpoint(error) => of_mountpoint(error, text),
        EngineError::Open(failed) => of_refusal(&failed.refusal, text),
        EngineError::Session(error) => match error {
            crate::session::SessionError::Mountpoint(error) => of_mountpoint(error, text),
            crate::session::SessionError::Greeting { .. }
            | crate::session::SessionError::Rings { .. }
            | crate::session::SessionError::Thread { .. } => Status::internal(text),
        },
        EngineError::Connect(_) => Status::invalid_argument(text),
        EngineError::OtherVolume { .. } => Status::already_exists(text),
        EngineError::NotMounted { .. } => Status::not_found(text),
        EngineError::StillUsed { .. } | EngineError::IsLost { .. } => Status::failed_precondition(text),
        EngineError::Head { source, .. } => of_head(source, text),
        EngineError::Deadline { .. } => Status::deadline_exceeded(text),
        // It may succeed later: whatever can never succeed is `Lost`, which is no error of an unmount.
        EngineError::Flush { .. } => Status::unavailable(text),
    }
}

fn of_mountpoint(error: &MountpointError, text: String) -> Status {
    match error {
        MountpointError::Absent { .. } | MountpointError::NotDirectory { .. } => Status::invalid_argument(text),
        MountpointError::NotEmpty { .. } | MountpointError::Busy { .. } | MountpointError::Dead { .. } => {
            Status::failed_precondition(text)
        }
        MountpointError::Taken { .. } => Status::already_exists(text),
        MountpointError::Kernel { .. } | MountpointError::Fusermount { .. } => Status::internal(text),
    }
}

fn of_refusal(refusal: &Refusal, text: String) -> Status {
    match refusal {
        Refusal::Connect(_) | Refusal::Name(_) => Status::invalid_argument(text),
        Refusal::Bucket(error) => of_bucket(error, text),
        Refusal::Store(_) => Status::failed_precondition(text),
        Refusal::Missing => Status::not_found(text),
        Refusal::Head(error) => of_head(error, text),
        Refusal::Led { .. } => Status::failed_precondition(text),
        Refusal::Open(error) => of_open(error, text),
        Refusal::Root(_) => Status::unavailable(text),
    }
}

fn of_head(error: &HeadError, text: String) -> Status {
    match error {
        HeadError::Missing => Status::not_found(text),
        HeadError::Corrupt { .. } => Status::data_loss(text),
        HeadError::Exists
        | HeadError::Format { .. }
        | HeadError::TooLong { .. }
        | HeadError::Apart { .. }
        | HeadError::Deleting { .. } => Status::failed_precondition(text),
        HeadError::NoLease { .. }
        | HeadError::Published { .. }
        | HeadError::Fenced { .. }
        | HeadError::TailElsewhere { .. } => Status::failed_precondition(text),
        HeadError::Contended => Status::unavailable(text),
        HeadError::Bucket(error) => of_bucket(error, text),
    }
}

fn of_bucket(error: &BucketError, text: String) -> Status {
    match error {
        BucketError::NoBucket { .. } => Status::not_found(text),
        BucketError::Denied { .. } | BucketError::NoCredentials { .. } => Status::permission_denied(text),
        BucketError::Unsupported { .. } | BucketError::Precondition { .. } => Status::failed_precondition(text),
        BucketError::Unavailable { .. } => Status::unavailable(text),
        BucketError::NotFound { .. } => Status::data_loss(text),
        BucketError::Unexpected { .. } => Status::internal(text),
    }
}

fn of_open(error: &OpenError, text: String) -> Status {
    match error {
        OpenError::Head(error) => of_head(error, text),
        OpenError::Bucket(error) => of_bucket(error, text),
        OpenError::Tree(error) => of_tree(error, text),
        OpenError::Fenced { .. } => Status::failed_precondition(text),
        OpenError::Damaged { .. } => Status::data_loss(text),
        OpenError::Lost(_) | OpenError::Replay(_) => Status::internal(text),
        OpenError::Tail(error) => match error {
            TailError::Missing { .. } | TailError::NoFolder { .. } => Status::failed_precondition(text),
            TailError::Busy { .. } | TailError::Io { .. } => Status::unavailable(text),
            TailError::Damaged { .. } => Status::data_loss(text),
        },
    }
}

fn of_tree(error: &TreeError, text: String) -> Status {
    match error {
        TreeError::Fenced | TreeError::ReadOnly => Status::failed_precondition(text),
        TreeError::Unavailable { .. } => Status::unavailable(text),
        TreeError::Corrupt { .. } => Status::data_loss(text),
        TreeError::Failed { .. } | TreeError::Closed => Status::internal(text),
    }
}
