//! `pannier volume release`.

use clap::Args;
use serde::Serialize;
use uuid::Uuid;
use volume::admin::release_at;
use volume::head::HeadWriter;
use volume::volume_id::NodeId;
use volume_mount::store::Stores;
use volume_s3::S3Location;

use crate::cli::store::StoreArgs;
use crate::cli::{Failure, say};

/// Arguments of `pannier volume release`.
#[derive(Debug, Args)]
pub struct ReleaseArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// The node that is gone, as `pannier volume show` names it
    #[arg(long, required_unless_present = "all", conflicts_with = "all")]
    node: Option<String>,
    /// All nodes: the cluster that they were of is gone
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What it has done, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Released {
    released: Vec<NodeId>,
}

/// Takes a volume from nodes that are gone, where no Nomad does.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(args: ReleaseArgs) -> Result<(), Failure> {
    let node = args.node.as_deref().map(NodeId::new).transpose()?;
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let writer = HeadWriter::new(Uuid::new_v4());
    let released = release_at(&store.open(&args.volume), &writer, node.as_ref()).await?;
    if args.json {
        return say(serde_json::to_string_pretty(&Released { released })?);
    }
    if released.is_empty() {
        return say(format_args!("{} was published to no such node", args.volume));
    }
    let nodes: Vec<_> = released.iter().map(NodeId::to_string).collect();
    say(format_args!(
        "{} is published to {} no more",
        args.volume,
        nodes.join(", ")
    ))
}
