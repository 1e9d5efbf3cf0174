//! What ControllerPublish hands to the node calls through Nomad: the lease, and whether it is for reading only.
//!
//! Nomad carries it from one to the other and does not keep it. Callers: `controller.rs` writes it, `node.rs` reads it.

use std::collections::HashMap;

use volume::ids::Lease;

use crate::error::DriverError;

const LEASE: &str = "lease";
const ACCESS: &str = "access";
const READ_WRITE: &str = "read-write";
const READ_ONLY: &str = "read-only";

/// Writes it.
pub fn encode(lease: Lease, read_only: bool) -> HashMap<String, String> {
    let access = if read_only { READ_ONLY } else { READ_WRITE };
    [
        (LEASE.to_owned(), lease.to_string()),
        (ACCESS.to_owned(), access.to_owned()),
    ]
    .into()
}

/// Reads it: the lease, and true if it is for reading only.
///
/// # Errors
/// `PublishContext` naming the entry that is missing or is not what `encode` writes.
pub fn decode(context: &HashMap<String, String>) -> Result<(Lease, bool), DriverError> {
    let lease = context.get(LEASE).and_then(|lease| lease.parse().ok());
    let lease = lease.ok_or(DriverError::PublishContext { key: LEASE })?;
    match context.get(ACCESS).map(String::as_str) {
        Some(READ_ONLY) => Ok((Lease(lease), true)),
        Some(READ_WRITE) => Ok((Lease(lease), false)),
        Some(_) | None => Err(DriverError::PublishContext { key: ACCESS }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lease_comes_back_and_anything_else_is_named() {
        for read_only in [true, false] {
            assert_eq!(decode(&encode(Lease(9), read_only)).unwrap(), (Lease(9), read_only));
        }
        let error = decode(&HashMap::new()).unwrap_err().to_string();
        assert!(
            error.contains("publish_context.lease") && error.contains("ControllerPublishVolume"),
            "{error}"
        );
        let mut odd = encode(Lease(9), true);
        odd.insert(ACCESS.into(), "exclusive".into());
        assert!(decode(&odd).unwrap_err().to_string().contains("publish_context.access"));
    }
}
