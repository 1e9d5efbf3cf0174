//! `_ping`, `info`, `networks`: what the service and its host are.

use std::time::Duration;

use super::client::Client;
use super::socket::Call;
use super::{ApiVersion, HostInfo, PodmanError};

/// Two seconds: the first fingerprint must leave within the agent's restore window, also when Podman hangs.
const PING_LIMIT: Duration = Duration::from_secs(2);

/// Answers at once or not at all: a sick service is a fact to be told, not to be waited out.
pub(super) async fn ping(client: &Client) -> Result<ApiVersion, PodmanError> {
    version_by(client, &Call::get("/libpod/_ping").limit(Some(PING_LIMIT))).await
}

/// As [`ping`], but with the patience of the call that needs to know.
pub(super) async fn version(client: &Client) -> Result<ApiVersion, PodmanError> {
    version_by(client, &Call::get("/libpod/_ping")).await
}

async fn version_by(client: &Client, call: &Call) -> Result<ApiVersion, PodmanError> {
    let answer = client.socket.send(call).await?.ok()?;
    let header = answer
        .header("libpod-api-version")
        .ok_or_else(|| call.protocol("it has no Libpod-API-Version"))?;
    ApiVersion::parse(header).ok_or_else(|| call.protocol(format!("{header:?} is no version")))
}

pub(super) async fn info(client: &Client) -> Result<HostInfo, PodmanError> {
    client
        .socket
        .send(&Call::get(client.target("info").await?))
        .await?
        .json()
}

pub(super) async fn network_exists(client: &Client, name: &str) -> Result<bool, PodmanError> {
    let call = Call::get(client.target_of("networks", name, "/exists").await?);
    match client.socket.send(&call).await?.ok() {
        Ok(_) => Ok(true),
        Err(PodmanError::NotFound { .. }) => Ok(false),
        Err(error) => Err(error),
    }
}

impl ApiVersion {
    /// Reads `4.3.1` and `5.0.0-dev`; `None` if it is no version.
    fn parse(text: &str) -> Option<Self> {
        let mut parts = text.trim().split(['.', '-', '+']);
        let mut number = || parts.next()?.parse().ok();
        Some(Self {
            major: number()?,
            minor: number()?,
            patch: number().unwrap_or(0),
        })
    }
}

impl std::fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_of_releases_and_of_development_builds_are_read() {
        let version = |major, minor, patch| Some(ApiVersion { major, minor, patch });
        assert_eq!(ApiVersion::parse("4.3.1"), version(4, 3, 1));
        assert_eq!(ApiVersion::parse("6.0.0-dev"), version(6, 0, 0));
        assert_eq!(ApiVersion::parse("5.8"), version(5, 8, 0));
        assert_eq!(ApiVersion::parse("five"), None);
    }
}
