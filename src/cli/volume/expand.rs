//! `pannier volume expand`.

use clap::Args;
use uuid::Uuid;
use volume::admin::expand_at;
use volume::head::HeadWriter;
use volume_mount::store::Stores;
use volume_s3::S3Location;

use super::{capacity, size};
use crate::cli::store::StoreArgs;
use crate::cli::{Failure, say};

/// Arguments of `pannier volume expand`.
#[derive(Debug, Args)]
pub struct ExpandArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// Bytes that its files may take from now on, or a number with KiB, MiB, GiB or TiB; 0 for no limit. It never becomes
    /// less than it was
    #[arg(long, value_name = "BYTES", value_parser = size)]
    capacity: u64,
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Makes a volume larger.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(args: ExpandArgs) -> Result<(), Failure> {
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let writer = HeadWriter::new(Uuid::new_v4());
    let head = expand_at(&store.open(&args.volume), &writer, args.capacity).await?;
    match args.json {
        true => say(serde_json::to_string_pretty(&head)?),
        false => say(format_args!(
            "volume {} may have {}",
            args.volume,
            match head.capacity_bytes {
                0 => capacity(0),
                bytes => format!("{bytes} bytes"),
            }
        )),
    }
}
