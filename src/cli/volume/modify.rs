//! `pannier volume modify`.

use std::collections::BTreeMap;

use clap::Args;
use uuid::Uuid;
use volume::admin::modify_at;
use volume::head::HeadWriter;
use volume_mount::store::Stores;
use volume_s3::S3Location;

use crate::cli::store::StoreArgs;
use crate::cli::{Failure, say};

/// Arguments of `pannier volume modify`.
#[derive(Debug, Args)]
pub struct ModifyArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// Parameters as in a volume file, for example durability=local cache_disk=16GiB; what is not named stays
    #[arg(value_name = "NAME=VALUE", required = true, value_parser = pair)]
    changes: Vec<(String, String)>,
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

fn pair(text: &str) -> Result<(String, String), String> {
    let (name, value) = text
        .split_once('=')
        .ok_or_else(|| "it is not NAME=VALUE, as durability=local is".to_owned())?;
    Ok((name.to_owned(), value.to_owned()))
}

/// Changes parameters of a volume.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(args: ModifyArgs) -> Result<(), Failure> {
    let changes: BTreeMap<_, _> = args.changes.iter().cloned().collect();
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let writer = HeadWriter::new(Uuid::new_v4());
    let head = modify_at(&store.open(&args.volume), &writer, &changes).await?;
    if args.json {
        return say(serde_json::to_string_pretty(&head)?);
    }
    let changes: Vec<_> = changes.iter().map(|(name, value)| format!("{name}={value}")).collect();
    say(format_args!(
        "the next mount of {} has {}",
        args.volume,
        changes.join(" ")
    ))
}
