//! `containers/…`: the life of a container.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;

use super::client::Client;
use super::socket::{Call, percent_encoded};
use super::{ContainerInfo, ContainerListing, ContainerSpec, CreatedContainer, ExitStatus, PodmanError};

/// Two minutes: creating copies image content into volumes, starting waits for the network and for the runtime, and
/// removing unmounts; on a busy disk each was seen to take most of a minute.
const LIFE_CYCLE_LIMIT: Duration = Duration::from_secs(120);

/// Five seconds between looks at a service that does not answer while a container is being waited for.
const WAIT_BACK_OFF_MAX: Duration = Duration::from_secs(5);

/// Three quarters of a second in all between tries to remove a container whose files are in use: Podman's own clean-up of a
/// container that has just ended unmounts them at the same time, and takes a fraction of that.
const REMOVE_PAUSES_MS: [u64; 4] = [50, 100, 200, 400];

/// A sixth of a second in all between looks at a container that ends meanwhile: Podman 4 reads the cgroup of its first
/// process, finds that process gone and answers 500; a moment later it knows that the container has ended.
const INSPECT_PAUSES_MS: [u64; 4] = [10, 20, 40, 100];

/// Where the back-off of [`wait_exit`] begins.
const WAIT_BACK_OFF_MIN: Duration = Duration::from_millis(100);

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Created {
    id: String,
    warnings: Option<Vec<String>>,
}

pub(super) async fn create(client: &Client, spec: &ContainerSpec) -> Result<CreatedContainer, PodmanError> {
    let call = Call::post(client.target("containers/create").await?)
        .json(spec)
        .limit(Some(LIFE_CYCLE_LIMIT));
    let created: Created = client.socket.send(&call).await?.json()?;
    Ok(CreatedContainer {
        id: created.id,
        warnings: created.warnings.unwrap_or_default(),
    })
}

pub(super) async fn init(client: &Client, id: &str) -> Result<(), PodmanError> {
    advance(client, id, "/init").await
}

pub(super) async fn start(client: &Client, id: &str) -> Result<(), PodmanError> {
    advance(client, id, "/start").await
}

/// Brings a container to a state. One that is there already is answered with 304, so the call may be repeated. 4.3 answers a second
/// start with 500 "container state improper" while the container is just being started.
async fn advance(client: &Client, id: &str, verb: &str) -> Result<(), PodmanError> {
    let call = Call::post(client.target_of("containers", id, verb).await?);
    client
        .socket
        .send(&call.repeatable().limit(Some(LIFE_CYCLE_LIMIT)))
        .await?
        .ok()?;
    Ok(())
}

pub(super) async fn inspect(client: &Client, id_or_name: &str) -> Result<Option<ContainerInfo>, PodmanError> {
    let call = Call::get(client.target_of("containers", id_or_name, "/json").await?);
    for pause_ms in INSPECT_PAUSES_MS {
        match client.socket.send(&call).await?.json_if_found() {
            Err(PodmanError::Refused {
                status: 500, message, ..
            }) if message.contains("no such process") => {}
            answer => return answer,
        }
        tokio::time::sleep(Duration::from_millis(pause_ms)).await;
    }
    client.socket.send(&call).await?.json_if_found()
}

pub(super) async fn list(
    client: &Client,
    labels: &BTreeMap<String, String>,
) -> Result<Vec<ContainerListing>, PodmanError> {
    let wanted: Vec<String> = labels.iter().map(|(key, value)| label_filter(key, value)).collect();
    let filters = serde_json::json!({ "label": wanted }).to_string();
    let target = client
        .target(&format!(
            "containers/json?all=true&filters={}",
            percent_encoded(&filters)
        ))
        .await?;
    client.socket.send(&Call::get(target)).await?.json()
}

/// How Podman's label filters are written: `key=value`, or `key` for any value.
pub(super) fn label_filter(key: &str, value: &str) -> String {
    if value.is_empty() {
        key.to_owned()
    } else {
        format!("{key}={value}")
    }
}

pub(super) async fn kill(client: &Client, id: &str, signal: &str) -> Result<(), PodmanError> {
    let verb = format!("/kill?signal={}", percent_encoded(signal));
    let call = Call::post(client.target_of("containers", id, &verb).await?);
    match client.socket.send(&call).await?.ok() {
        // 409, and 500 with 4.3: it does not run.
        Ok(_) | Err(PodmanError::Conflict { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

pub(super) async fn remove(client: &Client, id: &str, force: bool) -> Result<(), PodmanError> {
    let mut pauses = REMOVE_PAUSES_MS.map(Duration::from_millis).into_iter();
    loop {
        match remove_once(client, id, force).await {
            Err(error) if is_in_use(&error) => match pauses.next() {
                Some(pause) => tokio::time::sleep(pause).await,
                None => return Err(error),
            },
            done => return done,
        }
    }
}

async fn remove_once(client: &Client, id: &str, force: bool) -> Result<(), PodmanError> {
    // `timeout=0`: force means now; the grace a task has was given by its stop.
    let verb = format!("?force={force}&v=true&timeout=0");
    let call = Call::delete(client.target_of("containers", id, &verb).await?).limit(Some(LIFE_CYCLE_LIMIT));
    match client.socket.send(&call).await?.ok() {
        Ok(_) | Err(PodmanError::NotFound { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// Whether a removal failed at a mount that somebody else holds, in the kernel's words.
fn is_in_use(error: &PodmanError) -> bool {
    matches!(error, PodmanError::Refused { message, .. } if message.contains("device or resource busy"))
}

/// Podman's `wait` alone does not do: it answers 0 at once for a container that was never started (4.3), its connection
/// breaks when the service restarts, and it knows nothing of OOM. So the state is what counts, and `wait` is only the
/// bell that says when to look.
pub(super) async fn wait_exit(client: &Client, id: &str) -> Result<ExitStatus, PodmanError> {
    let mut pause = WAIT_BACK_OFF_MIN;
    loop {
        match look(client, id).await {
            Ok(Look::Ended(status)) => return Ok(status),
            Ok(Look::Running) => {
                pause = WAIT_BACK_OFF_MIN;
                if ring(client, id).await.is_ok() {
                    continue;
                }
            }
            Ok(Look::NotYet) => {}
            Err(error) if error.is_not_found() => return Err(error),
            Err(error) => {
                tracing::debug!(container = id, %error, "podman does not answer; waiting for it to come back")
            }
        }
        client.forget_version();
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(WAIT_BACK_OFF_MAX);
    }
}

/// What a look at a container that is being waited for shows.
enum Look {
    Ended(ExitStatus),
    Running,
    /// Created but not started, or just being removed.
    NotYet,
}

async fn look(client: &Client, id: &str) -> Result<Look, PodmanError> {
    let Some(info) = inspect(client, id).await? else {
        let message = format!("no such container: {id}");
        return Err(PodmanError::NotFound {
            call: format!("waiting for {id}"),
            message,
        });
    };
    if info.has_ended() {
        let code = info.state.exit_code.unwrap_or(0);
        return Ok(Look::Ended(ExitStatus {
            code,
            oom_killed: info.state.oom_killed.unwrap_or(false),
        }));
    }
    Ok(if info.is_running() { Look::Running } else { Look::NotYet })
}

/// Returns when Podman says that the container has stopped. Its answer, the exit code, is left to [`look`].
async fn ring(client: &Client, id: &str) -> Result<(), PodmanError> {
    let call = Call::post(
        client
            .target_of("containers", id, "/wait?condition=stopped&condition=exited")
            .await?,
    );
    client.socket.send(&call.limit(None)).await?.ok()?;
    Ok(())
}
