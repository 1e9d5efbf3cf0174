//! The `Bucket` port over the AWS SDK.
//!
//! An `S3Store` is one endpoint with one set of credentials, one pool of connections and one set of counters; a process
//! has one for all its volumes. Its buckets keep the port's promises: `tests/s3_servers.rs` proves them on each server that
//! we know. Retries live in `retry.rs` alone (the SDK's own are off), and `error.rs` is the only place that reads HTTP
//! statuses and error codes. `bucket/plain.rs` alone reads and writes objects that are no
//! part of a volume. Absent: caching.

mod body;
mod bucket;
mod counters;
mod error;
mod hedge;
mod keys;
mod location;
mod put_options;
mod retry;
mod store;
mod trust;

pub use bucket::{Metadata, PARTS_MAX, Part, S3Bucket, Upload};
pub use counters::{Counters, CountersSnapshot, Operation, OperationCount};
pub use keys::Credentials;
pub use location::{LocationError, S3Location};
pub use put_options::{PutOptionError, PutOptions};
pub use retry::RetryPolicy;
pub use store::{ConnectError, S3Options, S3Store};
pub use trust::TrustError;
