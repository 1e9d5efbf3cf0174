//! SlateDB's errors in our words. Nothing else reads them.

use std::error::Error;

use slatedb::{CloseReason, ErrorKind};

use crate::tree::TreeError;
use crate::tree::object_store::DamagedObject;

/// The object that does not hold what was put, if that is why.
fn damaged_object(error: &slatedb::Error) -> Option<&DamagedObject> {
    let mut cause: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(error) = cause {
        if let Some(damaged) = error.downcast_ref() {
            return Some(damaged);
        }
        cause = error.source();
    }
    None
}

/// SlateDB's error in our words.
pub(in crate::tree) fn outward(error: slatedb::Error) -> TreeError {
    if let Some(damaged) = damaged_object(&error) {
        return TreeError::Corrupt {
            place: "the tree's files".to_owned(),
            detail: damaged.to_string(),
        };
    }
    let detail = error.to_string();
    match error.kind() {
        ErrorKind::Closed(CloseReason::Fenced) => TreeError::Fenced,
        ErrorKind::Closed(CloseReason::Clean) => TreeError::Closed,
        ErrorKind::Unavailable => TreeError::Unavailable { detail },
        ErrorKind::Data => TreeError::Corrupt {
            place: "the tree's files".to_owned(),
            detail,
        },
        // The rest cannot come from outside: our settings and calls are fixed. `ErrorKind` may grow.
        _ => TreeError::Failed { detail },
    }
}
