//! `pannier volume expand`.

use clap::Args;
use uuid::Uuid;
use volume::head::{HeadFile, HeadWriter};
use volume_mount::store::Stores;
use volume_s3::S3Location;

use super::capacity;
use crate::cli::store::StoreArgs;
use crate::cli::{Failure, say};

/// Arguments of `pannier volume expand`.
#[derive(Debug, Args)]
pub struct ExpandArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// Bytes that its files may take from now on; 0 for no limit. It never becomes less than it was
    #[arg(long, value_name = "BYTES")]
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
    let file = HeadFile::new(store.open(&args.volume), HeadWriter::new(Uuid::new_v4()));
    let asked = args.capacity;
    let change = |head: &mut volume::head::Head| {
        let has = head.capacity_bytes;
        if head.deleting {
            return Err(Refused::Deleting);
        }
        if asked > 0 && (has == 0 || asked < has) {
            return Err(Refused::Smaller { has });
        }
        head.capacity_bytes = asked;
        Ok(())
    };
    let (head, ()) = file
        .update(change)
        .await
        .map_err(|error| Failure::new(format!("volume {}: {error}", args.volume)))?;
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

/// Why a volume was not changed.
#[derive(Debug, thiserror::Error)]
enum Refused {
    /// Somebody removes it.
    #[error("it is being deleted")]
    Deleting,
    /// What a volume had room for stays welcome.
    #[error("it may have {} already, and never becomes smaller", if *has == 0 { "any number of bytes".to_owned() } else { format!("{has} bytes") })]
    Smaller {
        /// What it may have, in bytes; 0 without a limit.
        has: u64,
    },
    /// The head.
    #[error(transparent)]
    Head(#[from] volume::head::HeadError),
}
