//! ExecTask and ExecTaskStreaming.

use std::time::Duration;

use proto::nomad::driver::{ExecTaskResponse, ExecTaskStreamingRequest, ExecTaskStreamingResponse};
use tonic::Streaming;

use super::Messages;
use crate::error::DriverError;
use crate::plugin::Plugin;

/// Runs a command to its end.
pub(super) async fn run(
    plugin: &Plugin,
    id: &str,
    _command: Vec<String>,
    _limit: Duration,
) -> Result<ExecTaskResponse, DriverError> {
    plugin.task(id)?;
    Err(DriverError::NotOffered { call: "ExecTask" })
}

/// Runs a command with its streams.
pub(super) async fn stream(
    _plugin: &Plugin,
    _input: Streaming<ExecTaskStreamingRequest>,
) -> Result<Messages<ExecTaskStreamingResponse>, DriverError> {
    Err(DriverError::NotOffered {
        call: "ExecTaskStreaming",
    })
}
