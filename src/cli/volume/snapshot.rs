//! `pannier volume snapshot` and `pannier volume clone`.

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;
use volume::admin::{CapacityRange, CreateVolume};
use volume::bucket::BucketRef;
use volume::clock::Clock;
use volume::head::{HeadFile, HeadWriter};
use volume::lineage::Source;
use volume::snapshot::{Family, NewClone, Snapshot};
use volume::volume_id::{SnapshotId, VolumeId};
use volume_mount::clock::SystemClock;
use volume_mount::store::Stores;
use volume_s3::S3Location;

use super::{size, utc};
use crate::cli::store::StoreArgs;
use crate::cli::{Failure, say};

/// Snapshots in one page of a listing's requests.
const PAGE_SNAPSHOTS: usize = 100;

/// What to do with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Keep the volume as it is now, mounted or not
    Create(SnapshotArgs),
    /// List the snapshots of a volume
    Ls(LsArgs),
    /// Delete a snapshot; volumes that were made of it stay
    Rm(SnapshotArgs),
}

/// Arguments of `pannier volume snapshot create` and `rm`.
#[derive(Debug, Args)]
pub struct SnapshotArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// Name of the snapshot; the volumes beside this one have none of the same name
    name: String,
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `pannier volume snapshot ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// The volume, which may be gone already
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    #[command(flatten)]
    store: StoreArgs,
    /// Also those of the volumes beside it
    #[arg(long)]
    all: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `pannier volume clone`.
#[derive(Debug, Args)]
pub struct CloneArgs {
    /// The volume to begin as, mounted or not; with --snapshot it may be gone already
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// Name of the new volume, which will lie beside it
    name: String,
    /// Begin as this snapshot instead of as the volume is now
    #[arg(long, value_name = "NAME")]
    snapshot: Option<String>,
    /// Capacity of the new volume in bytes, or a number with KiB, MiB, GiB or TiB; that of its source if not given
    #[arg(long, value_name = "BYTES", default_value = "0", value_parser = size)]
    capacity: u64,
    #[command(flatten)]
    store: StoreArgs,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Where a volume lies among its relatives.
struct Place {
    root: BucketRef,
    family: Family,
    folder: String,
}

impl Place {
    /// A snapshot of the volume here.
    async fn snapshot(&self, name: &str) -> Result<Snapshot, Failure> {
        let found = self.family.find_snapshot(&SnapshotId::of_name(name)?).await?;
        if found.folder == self.folder {
            return Ok(found);
        }
        let (volume, folder) = (found.volume, &self.folder);
        Err(Failure::new(format!(
            "snapshot {name} is of volume {volume}, not of {folder}"
        )))
    }
}

async fn place(volume: &S3Location, store: &StoreArgs) -> Result<Place, Failure> {
    let store = Stores::default().store(&store.access()).await?;
    store.bucket(&volume.bucket).verify().await?;
    let root = store.open(volume);
    let (family, folder) = Family::of(&root, HeadWriter::new(Uuid::new_v4()))?;
    Ok(Place { root, family, folder })
}

/// Runs one of them.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(command: SnapshotCommand) -> Result<(), Failure> {
    match command {
        SnapshotCommand::Create(args) => create(args).await,
        SnapshotCommand::Ls(args) => ls(args).await,
        SnapshotCommand::Rm(args) => rm(args).await,
    }
}

async fn create(args: SnapshotArgs) -> Result<(), Failure> {
    let Place { family, folder, .. } = place(&args.volume, &args.store).await?;
    let made = family.snapshot(&folder, &args.name, SystemClock.now()).await?;
    if args.json {
        return say(serde_json::to_string_pretty(&made)?);
    }
    say(format_args!("snapshot {} of {} is made", made.name, args.volume))
}

async fn ls(args: LsArgs) -> Result<(), Failure> {
    let Place { family, folder, .. } = place(&args.volume, &args.store).await?;
    let of = match args.all {
        true => None,
        false => Some(VolumeId::parse(&folder)?),
    };
    let all = all_of(&family, of.as_ref()).await?;
    if args.json {
        return say(serde_json::to_string_pretty(&all)?);
    }
    say(format_args!("{:<40} {:<30} MADE", "SNAPSHOT", "VOLUME"))?;
    for snapshot in &all {
        let made = utc(snapshot.created_unix_ms);
        say(format_args!("{:<40} {:<30} {made}", snapshot.name, snapshot.volume))?;
    }
    Ok(())
}

/// All snapshots of a volume, or of all volumes of a family.
pub(super) async fn all_of(family: &Family, of: Option<&VolumeId>) -> Result<Vec<Snapshot>, Failure> {
    let (mut all, mut after) = (Vec::new(), None);
    loop {
        let page = family.snapshots(after.as_ref(), PAGE_SNAPSHOTS, of).await?;
        all.extend(page.snapshots);
        after = page.next;
        if after.is_none() {
            return Ok(all);
        }
    }
}

/// What `rm` has done, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Removed {
    removed: SnapshotId,
}

async fn rm(args: SnapshotArgs) -> Result<(), Failure> {
    let place = place(&args.volume, &args.store).await?;
    let id = place.snapshot(&args.name).await?.id;
    place.family.delete_snapshot(&id).await?;
    match args.json {
        true => say(serde_json::to_string_pretty(&Removed { removed: id })?),
        false => say(format_args!("removed snapshot {}", args.name)),
    }
}

/// Makes a volume that begins as another one, or as a snapshot.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn clone(args: CloneArgs) -> Result<(), Failure> {
    let place = place(&args.volume, &args.store).await?;
    let (source, parameters) = match &args.snapshot {
        Some(name) => {
            let found = place.snapshot(name).await?;
            (Source::Snapshot(found.id), found.parameters)
        }
        None => {
            let file = HeadFile::new(place.root, HeadWriter::new(Uuid::new_v4()));
            (
                Source::Volume(VolumeId::parse(&place.folder)?),
                file.read().await?.parameters,
            )
        }
    };
    let new = NewClone {
        folder: VolumeId::of_name(&args.name)?.to_string(),
        volume: CreateVolume {
            name: args.name,
            uuid: Uuid::new_v4(),
            capacity: CapacityRange {
                required_bytes: args.capacity,
                limit_bytes: 0,
            },
            parameters,
            now: SystemClock.now(),
        },
        source,
    };
    let head = place.family.clone_volume(&new).await?;
    if args.json {
        return say(serde_json::to_string_pretty(&head)?);
    }
    say(format_args!("volume {} begins as {}", head.volume, new.source))
}
