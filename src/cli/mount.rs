//! `pannier mount`: one volume in the foreground, for benches, backups and rescue.

use std::path::PathBuf;

use clap::Args;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use volume::budget::MEMORY_BYTES_MAX;
use volume::head::{Durability, Parameters, Transport};
use volume::volume::CacheConfig;
use volume::volume_id::NodeId;
use volume_mount::foreground::{ForegroundMount, Ready, mount_foreground};
use volume_mount::mountpoint;
use volume_mount::open::{OpenSpec, RootOwner};
use volume_s3::S3Location;

use super::store::StoreArgs;
use super::{Failure, say};
use crate::memory::keep_large_blocks;

/// Arguments of `pannier mount`.
#[derive(Debug, Args)]
pub struct MountArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    pub volume: S3Location,
    /// An existing, empty folder
    #[arg(value_name = "DIR")]
    pub mountpoint: PathBuf,
    #[command(flatten)]
    store: StoreArgs,
    /// Make a new volume there if there is none
    #[arg(long)]
    pub create: bool,
    /// When fsync returns in a volume that is made: remote, local or relaxed
    #[arg(long, value_name = "MODE", requires = "create")]
    durability: Option<Durability>,
    /// Mount for reading only; takes nothing over
    #[arg(long, conflicts_with_all = ["create", "take_over"])]
    pub read_only: bool,
    /// Take the volume although another node has it; that node's writes fail from then on
    #[arg(long)]
    pub take_over: bool,
    /// Folder on a local disk that keeps what was read
    #[arg(long, value_name = "DIR")]
    pub cache_dir: Option<PathBuf>,
    /// Most bytes in that folder
    #[arg(long, value_name = "BYTES", requires = "cache_dir")]
    pub cache_bytes: Option<u64>,
    /// Folder on a disk that survives a reboot, for what fsync leaves there in volumes of durability `local`; without it
    /// their fsync waits for the bucket
    #[arg(long, value_name = "DIR")]
    pub state_dir: Option<PathBuf>,
    /// How the kernel reaches this program: classic, or io_uring (Linux 6.14), which is faster. As the volume says if not given
    #[arg(long, value_name = "TRANSPORT")]
    transport: Option<Transport>,
    /// The name under which other nodes see this mount; the host name if not given
    #[arg(long, env = "PANNIER_NODE_ID")]
    pub node_id: Option<String>,
}

/// Mounts, and returns when the mount has ended.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(args: MountArgs) -> Result<(), Failure> {
    keep_large_blocks(MEMORY_BYTES_MAX);
    let signals = Signals::new()?;
    let (mounted, place) = oneshot::channel();
    let request = ForegroundMount {
        open: spec(&args)?,
        mountpoint: args.mountpoint,
    };
    let volume = args.volume;
    let ready = |ready: Ready| {
        let how = if ready.info.read_only {
            "read-only".to_owned()
        } else {
            format!("epoch {}", ready.info.epoch)
        };
        let _ = say(format_args!(
            "{volume} is mounted at {} ({how}, {})",
            ready.mountpoint.display(),
            ready.transport
        ));
        let _ = mounted.send(ready.mountpoint);
    };
    mount_foreground(request, ready, signals.first(place)).await?;
    Ok(())
}

fn spec(args: &MountArgs) -> Result<OpenSpec, Failure> {
    let mut cache = CacheConfig {
        dir: args.cache_dir.clone(),
        ..CacheConfig::default()
    };
    if let Some(bytes) = args.cache_bytes {
        cache.disk_bytes = bytes;
    }
    Ok(OpenSpec {
        location: args.volume.clone(),
        access: args.store.access(),
        node_id: node_id(args.node_id.as_deref())?,
        read_only: args.read_only,
        lease: None,
        take_over: args.take_over,
        create: args.create.then(|| Parameters {
            durability: args.durability.unwrap_or_default(),
            ..Parameters::default()
        }),
        cache,
        state_dir: args.state_dir.clone(),
        root: RootOwner::default(),
        transport: args.transport,
    })
}

/// The name of this node, or that of the host.
///
/// # Errors
/// `Failure` for a name that no node can have.
pub(crate) fn node_id(given: Option<&str>) -> Result<NodeId, Failure> {
    let name = match given {
        Some(name) => name.to_owned(),
        None => nix::unistd::gethostname()?.to_string_lossy().into_owned(),
    };
    NodeId::new(&name).map_err(|error| Failure::new(format!("node id {name:?}: {error}")))
}

/// The first signal asks for a clean end, the second for any end.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn new() -> Result<Self, Failure> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    async fn next(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }

    /// Returns at the first signal; from then on the next one ends the process.
    async fn first(mut self, place: oneshot::Receiver<PathBuf>) {
        self.next().await;
        tokio::spawn(async move {
            self.next().await;
            if let Ok(path) = place.await {
                // Leaves no dead mountpoint behind; there is nothing to do if that fails.
                let _ = mountpoint::detach(&path);
            }
            let _ = Failure::new("ended by a second signal before everything was in the bucket").tell();
            std::process::exit(1);
        });
    }
}
