//! How the kernel reaches the process that serves a mount: a choice between speed and mounts that outlive that process.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::ParameterError;

/// The way of requests and replies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// By /dev/fuse, on every kernel. The mount outlives the process.
    #[default]
    Classic,
    /// By rings of io_uring, one queue for each CPU (Linux 6.14). Faster; the mount ends with the process.
    IoUring,
}

impl fmt::Display for Transport {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Classic => "classic",
            Transport::IoUring => "io_uring",
        })
    }
}

impl FromStr for Transport {
    type Err = ParameterError;

    fn from_str(value: &str) -> Result<Self, ParameterError> {
        match value {
            "classic" => Ok(Transport::Classic),
            "io_uring" => Ok(Transport::IoUring),
            _ => Err(ParameterError::Value {
                name: "transport",
                value: value.to_owned(),
                known: "classic or io_uring",
            }),
        }
    }
}
