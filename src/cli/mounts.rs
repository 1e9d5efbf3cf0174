//! `pannier mounts`: what this node's engine serves, and how much of it is not in the bucket yet.
//!
//! Answered from the engine's memory: it works while the store is away. Absent: other nodes; `pannier volume ls` says who has
//! which volume.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use clap::Args;
use hyper_util::rt::TokioIo;
use proto::engine::v1 as wire;
use proto::engine::v1::engine_client::EngineClient;
use serde::Serialize;
use tokio::net::UnixStream;
use tonic::transport::Endpoint;
use volume::head::Transport;

use super::{Failure, say};

/// 5 s for what an engine answers from memory.
const ASK_MAX: Duration = Duration::from_secs(5);

/// Arguments of `pannier mounts`.
#[derive(Debug, Args)]
pub struct MountsArgs {
    /// Socket of the engine: `engine.sock` in the state folder of `pannier csi`
    #[arg(long, value_name = "PATH", env = "PANNIER_ENGINE_SOCKET")]
    engine_socket: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// A mount as `--json` prints it. Field names are part of the command's interface.
#[derive(Debug, Serialize)]
struct Told {
    volume: String,
    mountpoint: String,
    read_only: bool,
    dirty_bytes: u64,
    capacity_bytes: u64,
    epoch: u64,
    since_unix_ms: u64,
    #[serde(skip_serializing_if = "String::is_empty")]
    lost: String,
    /// What is wrong with the store; empty while it answers.
    outage: String,
    /// How the kernel reaches the engine.
    transport: Transport,
    /// How it was asked to.
    transport_asked: Transport,
}

impl From<wire::MountInfo> for Told {
    fn from(mount: wire::MountInfo) -> Self {
        Self {
            transport: transport(mount.transport()),
            transport_asked: transport(mount.transport_asked()),
            volume: mount.volume_id,
            mountpoint: mount.mountpoint,
            read_only: mount.read_only,
            dirty_bytes: mount.dirty_bytes,
            capacity_bytes: mount.capacity_bytes,
            epoch: mount.epoch,
            since_unix_ms: mount.since_unix_ms,
            lost: mount.lost,
            outage: mount.outage,
        }
    }
}

/// An engine that does not say is one that knows no other.
fn transport(told: wire::Transport) -> Transport {
    match told {
        wire::Transport::Unspecified | wire::Transport::Classic => Transport::Classic,
        wire::Transport::IoUring => Transport::IoUring,
    }
}

/// Lists the mounts.
///
/// # Errors
/// `Failure` if no engine answers.
pub async fn run(args: MountsArgs) -> Result<(), Failure> {
    let mounts = ask(&args.engine_socket).await?;
    if args.json {
        return say(serde_json::to_string_pretty(&mounts)?);
    }
    say(format_args!(
        "{:<40} {:<6} {:<9} {:>14}  {:<24} MOUNTPOINT",
        "VOLUME", "ACCESS", "TRANSPORT", "DIRTY BYTES", "STATE"
    ))?;
    for mount in &mounts {
        let access = if mount.read_only { "ro" } else { "rw" };
        let state = match (mount.lost.as_str(), mount.outage.as_str()) {
            ("", "") if mount.transport != mount.transport_asked => format!("ok, asked for {}", mount.transport_asked),
            ("", "") => "ok".to_owned(),
            ("", outage) => format!("store in trouble {outage}"),
            (lost, _) => lost.to_owned(),
        };
        say(format_args!(
            "{:<40} {access:<6} {:<9} {:>14}  {state:<24} {}",
            mount.volume,
            mount.transport.to_string(),
            mount.dirty_bytes,
            mount.mountpoint
        ))?;
    }
    Ok(())
}

/// What an engine on this node has of a volume that is not in the bucket yet.
#[derive(Debug, Clone, Serialize)]
pub struct Unsent {
    /// Bytes that are not in the bucket yet.
    pub dirty_bytes: u64,
    /// What is wrong with the store; empty while it answers.
    pub outage: String,
}

/// The volumes that this node's engine has open, by their places.
///
/// # Errors
/// `Failure` if no engine answers.
pub async fn unsent(socket: &Path) -> Result<BTreeMap<String, Unsent>, Failure> {
    let mut all: BTreeMap<String, Unsent> = BTreeMap::new();
    for mount in list(socket).await? {
        let Some(place) = mount.location else { continue };
        let place = format!("s3://{}/{}", place.bucket, place.prefix);
        // Readers beside a writer have nothing to send.
        let known = all.entry(place).or_insert(Unsent {
            dirty_bytes: 0,
            outage: String::new(),
        });
        known.dirty_bytes = known.dirty_bytes.max(mount.dirty_bytes);
        if !mount.outage.is_empty() {
            known.outage = mount.outage;
        }
    }
    Ok(all)
}

async fn ask(socket: &Path) -> Result<Vec<Told>, Failure> {
    Ok(list(socket).await?.into_iter().map(Told::from).collect())
}

async fn list(socket: &Path) -> Result<Vec<wire::MountInfo>, Failure> {
    let refused = |why: String| Failure::new(format!("no engine answers at {}: {why}", socket.display()));
    let path = socket.to_owned();
    let connector = tower::service_fn(move |_| {
        let path = path.clone();
        async move { Ok::<_, io::Error>(TokioIo::new(UnixStream::connect(path).await?)) }
    });
    // The address is never used: the connector knows the socket.
    let endpoint = Endpoint::from_static("http://engine");
    let channel = tokio::time::timeout(ASK_MAX, endpoint.connect_with_connector(connector)).await;
    let channel = channel.map_err(|_| refused("it is silent".into()))?;
    let channel = channel.map_err(|error| {
        let cause = std::error::Error::source(&error).map_or_else(|| error.to_string(), ToString::to_string);
        refused(cause)
    })?;
    let mut engine = EngineClient::new(channel);
    let asked = tokio::time::timeout(ASK_MAX, engine.list_mounts(wire::ListMountsRequest {})).await;
    let answer = asked.map_err(|_| refused("it is silent".into()))?;
    let answer = answer.map_err(|status| refused(status.message().to_owned()))?;
    Ok(answer.into_inner().mounts)
}
