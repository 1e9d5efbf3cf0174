//! What the SDK's errors mean in the words of the port. Nothing else reads HTTP statuses and S3's error codes.
//!
//! Unknown answers are `Unexpected`, never guessed to be harmless. Source of the codes: Amazon S3 API Reference, "Error
//! responses"; those of other servers were seen.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_smithy_runtime_api::client::orchestrator::HttpResponse;
use volume::bucket::BucketError;

use crate::counters::Operation;
use crate::keys::KeySource;
use crate::retry::Failure;

/// What was asked for, for the words of an error.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Asked<'a> {
    pub(crate) operation: Operation,
    pub(crate) endpoint: &'a str,
    pub(crate) bucket: &'a str,
    pub(crate) key: &'a str,
    pub(crate) keys: &'a KeySource,
}

impl Asked<'_> {
    fn place(&self) -> String {
        format!("s3://{}/{}", self.bucket, self.key)
    }

    pub(crate) fn unexpected(&self, detail: impl Into<String>) -> BucketError {
        BucketError::Unexpected {
            key: self.place(),
            detail: self.at(detail.into()),
        }
    }

    pub(crate) fn precondition(&self) -> BucketError {
        BucketError::Precondition {
            key: self.key.to_owned(),
        }
    }

    /// No answer, or a part of one.
    pub(crate) fn cut(&self, detail: impl Into<String>) -> Failure {
        self.passing(detail.into(), false, false)
    }

    fn passing(&self, detail: String, throttled: bool, refused: bool) -> Failure {
        let error = BucketError::Unavailable {
            key: self.place(),
            detail: self.at(detail),
        };
        Failure::Passing {
            error,
            throttled,
            refused,
        }
    }

    fn denied(&self, detail: String) -> Failure {
        Failure::Final(BucketError::Denied {
            key: self.place(),
            detail: format!("{}; {}", self.at(detail), self.keys.described()),
        })
    }

    fn at(&self, detail: String) -> String {
        format!("{detail}, at {}", self.endpoint)
    }
}

/// Translates the failure of one request.
pub(crate) fn failure<E>(asked: &Asked<'_>, error: SdkError<E, HttpResponse>) -> Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    if let Some(credentials) = find::<CredentialsError>(&error) {
        return credentials_failure(asked, credentials);
    }
    match &error {
        SdkError::ServiceError(answer) => {
            let meta = answer.err().meta();
            service_failure(
                asked,
                answer.raw().status().as_u16(),
                meta.code().unwrap_or(""),
                meta.message(),
            )
        }
        // The answer began and could not be understood to its end: much of it may have been lost on the way.
        SdkError::ResponseError(answer) => {
            let status = answer.raw().status().as_u16();
            asked.cut(format!("an answer {status} that cannot be read: {}", causes(&error)))
        }
        SdkError::TimeoutError(_) => asked.cut("no answer in time"),
        SdkError::DispatchFailure(failure) if failure.is_user() => Failure::Final(asked.unexpected(causes(&error))),
        SdkError::DispatchFailure(_) => asked.cut(causes(&error)),
        _ => Failure::Final(asked.unexpected(causes(&error))),
    }
}

fn credentials_failure(asked: &Asked<'_>, error: &CredentialsError) -> Failure {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => Failure::Final(BucketError::NoCredentials {
            key: asked.place(),
            detail: asked.keys.described(),
        }),
        CredentialsError::InvalidConfiguration(_) | CredentialsError::Unhandled(_) => {
            asked.denied(format!("the credentials cannot be used: {}", causes(error)))
        }
        // A metadata or token service that is away may come back.
        _ => asked.passing(format!("no credentials: {}", causes(error)), false, true),
    }
}

fn service_failure(asked: &Asked<'_>, status: u16, code: &str, message: Option<&str>) -> Failure {
    let detail = match (code, message) {
        ("", None) => format!("answer {status}"),
        (code, message) => format!("answer {status} {code}: {}", message.unwrap_or("no message")),
    };
    match (status, code) {
        (_, "NoSuchBucket") => Failure::Final(no_bucket(asked)),
        // Before the 404s: versitygw answers an unknown access key so.
        (_, "InvalidAccessKeyId" | "SignatureDoesNotMatch" | "AccessDenied" | "XAdminUserNotFound") => {
            asked.denied(detail)
        }
        (404, "" | "NoSuchKey" | "NotFound") => Failure::Final(not_found(asked)),
        (412, _) => Failure::Final(asked.precondition()),
        // Another writer of the same key is in the middle of its own request: neither of both is decided.
        (409, "ConditionalRequestConflict" | "OperationAborted") => asked.passing(detail, false, true),
        (416, _) => Failure::Final(asked.unexpected("the range begins past the end of the object")),
        (429, _) | (503, "SlowDown" | "SlowDownRead" | "SlowDownWrite") => asked.passing(detail, true, true),
        (503, _) => asked.passing(detail, true, false),
        (500 | 502 | 504 | 408, _) => asked.cut(detail),
        // The body was damaged or cut on its way to the store, which noticed.
        (400, "RequestTimeout" | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch") => {
            asked.passing(detail, false, true)
        }
        (_, "RequestTimeTooSkewed") => asked.denied(format!(
            "{detail} (this host's clock and the store's are too far apart: set the clock)"
        )),
        (401 | 403, _) | (400, "ExpiredToken" | "InvalidToken" | "AuthorizationHeaderMalformed") => {
            asked.denied(detail)
        }
        (501, _) | (400, "NotImplemented") => Failure::Final(BucketError::Unsupported {
            feature: feature(asked.operation),
            detail: asked.at(detail),
        }),
        (301 | 307, _) => Failure::Final(asked.unexpected(format!("{detail}: the bucket is in another region"))),
        _ => Failure::Final(asked.unexpected(detail)),
    }
}

fn no_bucket(asked: &Asked<'_>) -> BucketError {
    BucketError::NoBucket {
        bucket: format!("s3://{} (at {})", asked.bucket, asked.endpoint),
    }
}

fn not_found(asked: &Asked<'_>) -> BucketError {
    match asked.operation {
        // A 404 with its own code: an upload that is gone.
        Operation::Get | Operation::Head | Operation::Delete | Operation::Upload => BucketError::NotFound {
            key: asked.key.to_owned(),
        },
        // S3 answers a condition on an object that is gone with 404, others with 412.
        Operation::PutIfMatch => asked.precondition(),
        Operation::PutIfAbsent | Operation::Put | Operation::List => no_bucket(asked),
    }
}

fn feature(operation: Operation) -> &'static str {
    match operation {
        Operation::PutIfAbsent => "conditional put (If-None-Match)",
        Operation::PutIfMatch => "conditional put (If-Match)",
        Operation::Get => "get",
        Operation::Head => "head",
        Operation::Delete => "delete",
        Operation::List => "list (version 2)",
        Operation::Put => "put",
        Operation::Upload => "upload in parts",
    }
}

pub(crate) fn find<'a, T: Error + 'static>(error: &'a (dyn Error + 'static)) -> Option<&'a T> {
    std::iter::successors(Some(error), |&error| error.source()).find_map(|error| error.downcast_ref::<T>())
}

/// The messages of an error's causes, without the SDK's own words and without repetitions.
pub(crate) fn causes(error: &(dyn Error + 'static)) -> String {
    let mut text = String::new();
    for cause in std::iter::successors(error.source().or(Some(error)), |&cause| cause.source()) {
        let message = cause.to_string();
        if !text.contains(&message) {
            text += if text.is_empty() { "" } else { ": " };
            text += &message;
        }
    }
    text
}
