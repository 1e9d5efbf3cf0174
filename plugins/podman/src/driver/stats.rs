//! TaskStats.

use std::time::Duration;

use proto::nomad::driver::TaskStatsResponse;

use super::Messages;
use crate::error::DriverError;
use crate::plugin::Plugin;

/// Samples until the task ends.
pub(super) fn stream(
    plugin: &Plugin,
    id: &str,
    _interval: Duration,
) -> Result<Messages<TaskStatsResponse>, DriverError> {
    plugin.task(id)?;
    Err(DriverError::NotOffered { call: "TaskStats" })
}
