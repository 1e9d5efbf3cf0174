//! THE map from the driver's errors to gRPC. No other file of this crate names a status code.
//!
//! Facts that it rests on: Nomad reads a start failure only from a gRPC error, and tries again only when the first
//! detail of a FailedPrecondition is a RecoverableError. `Unavailable` and `Canceled` make Nomad wait three seconds to see
//! whether the plugin has died, so neither is ever used, not even for a Podman that is down.

use prost::Message;
use proto::google::rpc::Status as RpcStatus;
use proto::nomad::structs::RecoverableError;
use tonic::{Code, Status};

use crate::error::DriverError;

/// The type of the detail that Nomad looks for.
const RECOVERABLE_TYPE: &str = "type.googleapis.com/hashicorp.nomad.plugins.shared.structs.RecoverableError";

/// The status of a failed call, other than a start.
#[must_use]
pub fn status(error: &DriverError) -> Status {
    tracing::error!(error = ?error, "call failed");
    Status::new(code(error), error.to_string())
}

/// The status of a failed start: says also whether Nomad may try again.
#[must_use]
pub fn start_status(error: &DriverError) -> Status {
    tracing::error!(error = ?error, recoverable = error.is_recoverable(), "start failed");
    let message = error.to_string();
    if !error.is_recoverable() {
        return Status::new(code(error), message);
    }
    let detail = prost_types::Any {
        type_url: RECOVERABLE_TYPE.to_owned(),
        value: RecoverableError { recoverable: true }.encode_to_vec(),
    };
    let details = RpcStatus {
        code: i32::from(Code::FailedPrecondition),
        message: message.clone(),
        details: vec![detail],
    };
    Status::with_details(Code::FailedPrecondition, message, details.encode_to_vec().into())
}

#[deny(clippy::wildcard_enum_match_arm)]
fn code(error: &DriverError) -> Code {
    match error {
        DriverError::Config(_)
        | DriverError::TaskConfig(_)
        | DriverError::Spec(_)
        | DriverError::Incomplete { .. }
        | DriverError::UnknownSocket { .. }
        | DriverError::UnknownSignal { .. } => Code::InvalidArgument,
        DriverError::UnknownTask { .. } | DriverError::NoSuchNetwork { .. } => Code::NotFound,
        DriverError::Escapes { .. } => Code::PermissionDenied,
        DriverError::Starting { .. }
        | DriverError::NameTaken { .. }
        | DriverError::NoJournal { .. }
        | DriverError::Runtime { .. }
        | DriverError::UnseenMount { .. }
        | DriverError::StillRunning { .. }
        | DriverError::NotRunning { .. }
        | DriverError::Handle(_)
        | DriverError::NotRecovered { .. } => Code::FailedPrecondition,
        // Not Unavailable, see the header: Podman being down is a fact about Podman.
        DriverError::Start { .. }
        | DriverError::DeadMount { .. }
        | DriverError::Image { .. }
        | DriverError::Logs(_)
        | DriverError::NameFile { .. }
        | DriverError::Podman { .. }
        | DriverError::Exec { .. }
        | DriverError::Stats { .. }
        | DriverError::WillNotDie { .. }
        | DriverError::CutOff => Code::Internal,
        DriverError::ExecTimedOut { .. } => Code::DeadlineExceeded,
        DriverError::NotOffered { .. } => Code::Unimplemented,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::podman::{PodmanError, PullFailure};

    fn pull(kind: PullFailure) -> DriverError {
        let (reference, message) = ("busybox".to_owned(), "no".to_owned());
        DriverError::start(
            "pull the image",
            PodmanError::Pull {
                reference,
                kind,
                message,
            },
        )
    }

    /// Trap 1: what may be tried again carries the detail that Nomad looks for, and nothing else does.
    #[test]
    fn a_start_that_may_be_tried_again_says_so_in_the_first_detail() {
        let down = PodmanError::TimedOut {
            call: "GET info".into(),
            limit: Duration::from_secs(2),
        };
        for error in [DriverError::start("ask podman", down), pull(PullFailure::Registry)] {
            let status = start_status(&error);
            assert_eq!(status.code(), Code::FailedPrecondition);
            let details = RpcStatus::decode(status.details()).unwrap();
            assert_eq!((details.code, details.message.as_str()), (9, status.message()));
            assert_eq!(details.details[0].type_url, RECOVERABLE_TYPE);
            assert!(
                RecoverableError::decode(&*details.details[0].value)
                    .unwrap()
                    .recoverable
            );
        }
        for error in [
            pull(PullFailure::NoSuchImage),
            pull(PullFailure::Denied),
            DriverError::Incomplete { what: "task" },
        ] {
            assert!(start_status(&error).details().is_empty(), "{error}");
        }
    }

    #[test]
    fn no_error_makes_nomad_believe_that_the_plugin_is_gone() {
        let down = || PodmanError::TimedOut {
            call: "GET info".into(),
            limit: Duration::from_secs(2),
        };
        for error in [
            DriverError::Podman {
                step: "stop",
                source: down(),
            },
            DriverError::start("create", down()),
            DriverError::CutOff,
            DriverError::UnknownTask { id: "x".into() },
        ] {
            assert!(!matches!(status(&error).code(), Code::Unavailable | Code::Cancelled));
            assert!(!matches!(
                start_status(&error).code(),
                Code::Unavailable | Code::Cancelled
            ));
        }
    }

    #[test]
    fn a_limit_that_the_host_refuses_is_explained() {
        let message = "crun: setrlimit `RLIMIT_NOFILE`: Operation not permitted".to_owned();
        let source = PodmanError::Refused {
            call: "start".into(),
            status: 500,
            message,
        };
        let text = start_status(&DriverError::start("start the container", source))
            .message()
            .to_owned();
        assert!(
            text.contains("RLIMIT_NOFILE") && text.contains("default_ulimit"),
            "{text}"
        );
    }
}
