//! `pannier volume`: what is in a bucket, whether it is sound, its snapshots and clones, and its removal.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use serde::Serialize;
use uuid::Uuid;
use volume::admin::{Admin, Led, ListedVolume, delete_at};
use volume::bucket::BucketRef;
use volume::head::settings::bytes;
use volume::head::{Head, HeadFile, HeadWriter, ParameterError};
use volume::snapshot::{Family, Snapshot};
use volume::volume_id::{NodeId, VolumeId};
use volume_mount::store::Stores;
use volume_s3::S3Location;

use super::mounts::{self, Unsent};
use super::store::StoreArgs;
use super::{Failure, say};

pub mod check;
mod expand;
mod modify;
mod release;
pub mod snapshot;
pub mod transfer;

/// Volumes in one page of a listing's requests.
const PAGE_VOLUMES: usize = 100;

/// What to do with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// List the volumes below a cluster's prefix
    Ls(LsArgs),
    /// Show one volume: who has it, how large it may be, what it was created as
    Show(ShowArgs),
    /// Verify every row, commit and frame of a volume, and print what is wrong; repair it with --repair
    Check(check::CheckArgs),
    /// Give up what a lost node had acknowledged and not put into the bucket (durability `local`)
    DropTail(DropTailArgs),
    /// Remove a volume and everything in it but what snapshots and clones need
    Rm(RmArgs),
    /// Make a volume larger; where it is mounted, the mount learns of it within a minute
    Expand(expand::ExpandArgs),
    /// Change parameters of a volume; the next mount has them
    Modify(modify::ModifyArgs),
    /// Take a volume from a node that is gone, where Nomad knows nothing of it any more
    Release(release::ReleaseArgs),
    /// Read ordinary objects into a volume as files; run again, it goes on where it ended
    Import(transfer::ImportArgs),
    /// Write the files of a volume as ordinary objects; run again, it goes on where it ended
    Export(transfer::ExportArgs),
    /// Make, list and delete snapshots
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// Make a volume that begins as another one is now, or as a snapshot
    Clone(snapshot::CloneArgs),
}

/// Arguments of `pannier volume ls`.
#[derive(Debug, Args)]
pub struct LsArgs {
    /// Bucket and prefix that `pannier csi` was given
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    cluster: S3Location,
    #[command(flatten)]
    store: StoreArgs,
    /// Socket of this node's engine: tell too how much of its volumes is not in the bucket yet
    #[arg(long, value_name = "PATH", env = "PANNIER_ENGINE_SOCKET")]
    engine_socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `pannier volume show`.
#[derive(Debug, Args)]
pub struct ShowArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    #[command(flatten)]
    store: StoreArgs,
    /// Socket of this node's engine: tell too how much of the volume is not in the bucket yet
    #[arg(long, value_name = "PATH", env = "PANNIER_ENGINE_SOCKET")]
    engine_socket: Option<PathBuf>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `pannier volume drop-tail`.
#[derive(Debug, Args)]
pub struct DropTailArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    #[command(flatten)]
    store: StoreArgs,
    /// Yes: changes for which fsync had returned are lost, and the volume goes on from what the bucket has
    #[arg(long, required = true)]
    accept_loss: bool,
}

/// Arguments of `pannier volume rm`.
#[derive(Debug, Args)]
pub struct RmArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    #[command(flatten)]
    store: StoreArgs,
    /// Also if a mount by hand did not end cleanly (it must be gone for good)
    #[arg(long)]
    force: bool,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// What `rm` has done, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Removed {
    removed: String,
}

/// Runs one of them.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(command: VolumeCommand) -> Result<(), Failure> {
    match command {
        VolumeCommand::Ls(args) => ls(args).await,
        VolumeCommand::Show(args) => show(args).await,
        VolumeCommand::Check(args) => check::run(args).await,
        VolumeCommand::DropTail(args) => drop_tail(args).await,
        VolumeCommand::Rm(args) => rm(args).await,
        VolumeCommand::Expand(args) => expand::run(args).await,
        VolumeCommand::Modify(args) => modify::run(args).await,
        VolumeCommand::Release(args) => release::run(args).await,
        VolumeCommand::Import(args) => transfer::import(args).await,
        VolumeCommand::Export(args) => transfer::export(args).await,
        VolumeCommand::Snapshot(command) => snapshot::run(command).await,
        VolumeCommand::Clone(args) => snapshot::clone(args).await,
    }
}

/// A volume as `--json` prints it. Field names are part of the command's interface.
#[derive(Debug, Serialize)]
struct Told {
    id: String,
    location: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    head: Option<Head>,
    /// Only of one volume; a list leaves them out.
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshots: Option<Vec<Snapshot>>,
    /// Only of volumes that the engine asked has open.
    #[serde(skip_serializing_if = "Option::is_none")]
    unsent: Option<Unsent>,
}

async fn ls(args: LsArgs) -> Result<(), Failure> {
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.cluster.bucket).verify().await?;
    let admin = Admin::new(store.open(&args.cluster), Uuid::new_v4());
    let mut unsent = unsent_at(args.engine_socket.as_deref()).await?;
    let mut token = None;
    let mut all = Vec::new();
    loop {
        let page = admin.list(token.as_deref(), PAGE_VOLUMES).await?;
        all.extend(
            page.volumes
                .into_iter()
                .map(|listed| told(&args.cluster, listed, &mut unsent)),
        );
        token = page.next;
        if token.is_none() {
            break;
        }
    }
    if args.json {
        return say(serde_json::to_string_pretty(&all)?);
    }
    say(format_args!(
        "{:<40} {:>16} {:>6} {:>14}  USED BY",
        "VOLUME", "CAPACITY", "EPOCH", "DIRTY BYTES"
    ))?;
    for volume in &all {
        match &volume.head {
            Some(head) => {
                let capacity = capacity(head.capacity_bytes);
                say(format_args!(
                    "{:<40} {capacity:>16} {:>6} {:>14}  {}",
                    volume.id,
                    head.epoch,
                    dirty(volume.unsent.as_ref()),
                    used_by(head)
                ))?;
            }
            None => say(format_args!(
                "{:<40} {}",
                volume.id,
                volume.error.as_deref().unwrap_or("unreadable")
            ))?,
        }
    }
    Ok(())
}

/// What this node's engine has open; nothing where none was named.
async fn unsent_at(socket: Option<&Path>) -> Result<BTreeMap<String, Unsent>, Failure> {
    match socket {
        Some(socket) => mounts::unsent(socket).await,
        None => Ok(BTreeMap::new()),
    }
}

/// Other nodes know what they have not sent yet, the bucket does not.
fn dirty(unsent: Option<&Unsent>) -> String {
    unsent.map_or_else(|| "-".to_owned(), |unsent| unsent.dirty_bytes.to_string())
}

fn told(cluster: &S3Location, listed: ListedVolume, unsent: &mut BTreeMap<String, Unsent>) -> Told {
    let id = listed.volume.to_string();
    let location = cluster.join(&format!("v/{id}"));
    let unsent = unsent.remove(&location);
    match listed.head {
        Ok(head) => Told {
            id,
            location,
            error: None,
            head: Some(head),
            snapshots: None,
            unsent,
        },
        Err(error) => Told {
            id,
            location,
            error: Some(error.to_string()),
            head: None,
            snapshots: None,
            unsent,
        },
    }
}

async fn show(args: ShowArgs) -> Result<(), Failure> {
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let file = HeadFile::new(store.open(&args.volume), HeadWriter::new(Uuid::new_v4()));
    let head = file
        .read()
        .await
        .map_err(|error| Failure::new(format!("volume {}: {error}", args.volume)))?;
    let snapshots = snapshots_of(&store.open(&args.volume)).await?;
    let mut unsent = unsent_at(args.engine_socket.as_deref()).await?;
    let unsent = unsent.remove(args.volume.to_string().trim_end_matches('/'));
    if args.json {
        let id = head.volume.to_string();
        return say(serde_json::to_string_pretty(&Told {
            id,
            location: args.volume.to_string(),
            error: None,
            head: Some(head),
            snapshots: Some(snapshots),
            unsent,
        })?);
    }
    say_head(&head, &args.volume)?;
    if let Some(unsent) = &unsent {
        say(format_args!(
            "dirty       {} bytes on this node are not in the bucket yet",
            unsent.dirty_bytes
        ))?;
        if !unsent.outage.is_empty() {
            say(format_args!("trouble     the store is in trouble {}", unsent.outage))?;
        }
    }
    for snapshot in &snapshots {
        let made = utc(snapshot.created_unix_ms);
        say(format_args!("snapshot    {} of {made}", snapshot.name))?;
    }
    Ok(())
}

fn say_head(head: &Head, location: &S3Location) -> Result<(), Failure> {
    say(format_args!("volume      {}", head.volume))?;
    say(format_args!("name        {}", head.name))?;
    say(format_args!("location    {}", location))?;
    say(format_args!("uuid        {}", head.uuid))?;
    say(format_args!("created     {}", utc(head.created_unix_ms)))?;
    say(format_args!("capacity    {}", capacity(head.capacity_bytes)))?;
    say(format_args!(
        "epoch       {}{}",
        head.epoch,
        if head.clean { " (closed cleanly)" } else { "" }
    ))?;
    say(format_args!("durability  {}", head.parameters.durability))?;
    say(format_args!(
        "compression {}",
        serde_json::to_string(&head.parameters.compression)?.trim_matches('"')
    ))?;
    say(format_args!(
        "transport   {}",
        head.parameters.settings.transport.unwrap_or_default()
    ))?;
    if let Some(leader) = &head.leader {
        say(format_args!(
            "mounted     on {} since {}",
            leader.node_id,
            utc(leader.since_unix_ms)
        ))?;
    }
    if let Some(tail) = &head.tail {
        say(format_args!(
            "tail        on {} from epoch {}: it may hold what is not in the bucket",
            tail.node_id, tail.epoch
        ))?;
    }
    for publication in &head.publications {
        let since = utc(publication.published_unix_ms);
        say(format_args!(
            "published   to {} as {} since {since}",
            publication.node_id, publication.mode
        ))?;
    }
    if let Some(branch) = &head.branch {
        say(format_args!("made of     {}", branch.source))?;
        for ancestor in branch.ancestors.iter().rev() {
            let (epoch, seq) = (ancestor.until.epoch, ancestor.until.seq);
            say(format_args!(
                "reads       {}/{} up to {epoch}/{seq}",
                ancestor.folder, ancestor.uuid
            ))?;
        }
    }
    if head.deleting {
        say("deleting    yes")?;
    }
    Ok(())
}

/// The snapshots of the volume at `root`; none where nothing can be beside it.
async fn snapshots_of(root: &BucketRef) -> Result<Vec<Snapshot>, Failure> {
    let Ok((family, folder)) = Family::of(root, HeadWriter::new(Uuid::new_v4())) else {
        return Ok(Vec::new());
    };
    match VolumeId::parse(&folder) {
        Ok(volume) => snapshot::all_of(&family, Some(&volume)).await,
        Err(_) => Ok(Vec::new()),
    }
}

async fn drop_tail(args: DropTailArgs) -> Result<(), Failure> {
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let file = HeadFile::new(store.open(&args.volume), HeadWriter::new(Uuid::new_v4()));
    let dropped = file.drop_tail().await;
    match dropped.map_err(|error| Failure::new(format!("volume {}: {error}", args.volume)))? {
        Some(tail) => say(format_args!(
            "gave up what node {} had acknowledged in epoch {} and not put into the bucket",
            tail.node_id, tail.epoch
        )),
        None => say("no node holds anything that is not in the bucket"),
    }
}

async fn rm(args: RmArgs) -> Result<(), Failure> {
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let root = store.open(&args.volume);
    let led = if args.force { Led::Ignore } else { Led::Keep };
    let existed = delete_at(&root, &HeadWriter::new(Uuid::new_v4()), led).await?;
    match existed {
        true if args.json => say(serde_json::to_string_pretty(&Removed {
            removed: args.volume.to_string(),
        })?),
        true => say(format_args!("removed {}", args.volume)),
        false => Err(Failure::new(format!("there is no volume at {}", args.volume))),
    }
}

/// A capacity as people write it; 0 for none.
fn size(text: &str) -> Result<u64, ParameterError> {
    if text == "0" { Ok(0) } else { bytes("capacity", text) }
}

/// As `size` reads it, in the largest unit that leaves no rest.
fn capacity(bytes: u64) -> String {
    let units = [(40, "TiB"), (30, "GiB"), (20, "MiB"), (10, "KiB")];
    match units.into_iter().find(|(shift, _)| bytes.is_multiple_of(1 << shift)) {
        _ if bytes == 0 => "no limit".to_owned(),
        Some((shift, unit)) => format!("{}{unit}", bytes >> shift),
        None => bytes.to_string(),
    }
}

/// The nodes that a volume is published to, and how; and one that has it without being told to.
fn used_by(head: &Head) -> String {
    let leader = head.leader.as_ref().map(|leader| &leader.node_id);
    let published = head.publications.iter().map(|publication| {
        let node_id = &publication.node_id;
        match publication.read_only {
            _ if leader == Some(node_id) => format!("{node_id} (mounted)"),
            true => format!("{node_id} (reads)"),
            false => node_id.to_string(),
        }
    });
    let is_published = |node_id: &NodeId| head.publications.iter().any(|known| known.node_id == *node_id);
    let by_hand = leader.filter(|node_id| !is_published(node_id));
    let by_hand = by_hand.map(|node_id| format!("{node_id} (mounted, not published)"));
    let all: Vec<_> = published.chain(by_hand).collect();
    if all.is_empty() { "-".to_owned() } else { all.join(", ") }
}

/// A time for people, in UTC. The days are counted as in Howard Hinnant's "chrono-compatible low-level date algorithms".
fn utc(unix_ms: i64) -> String {
    let seconds = unix_ms.div_euclid(1_000);
    let (days, second) = (seconds.div_euclid(86_400) + 719_468, seconds.rem_euclid(86_400));
    let (era, day_of_era) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year_of_era = (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = year_of_era + era * 400 + i64::from(month <= 2);
    let (hour, minute, second) = (second / 3_600, second / 60 % 60, second % 60);
    format!("{year:04}-{month:02}-{day:02} {hour:02}:{minute:02}:{second:02} UTC")
}

#[cfg(test)]
mod tests {
    use volume::clock::Timestamp;
    use volume::head::{AccessMode, Leader, NewHead, Parameters, Publication};
    use volume::ids::Lease;

    use super::*;

    #[test]
    fn each_node_of_a_volume_is_told_once_with_what_it_does() {
        let mut head = Head::new(NewHead {
            name: "v".to_owned(),
            volume: VolumeId::parse("v").unwrap(),
            uuid: Uuid::nil(),
            capacity_bytes: 0,
            parameters: Parameters::default(),
            now: Timestamp::default(),
        });
        assert_eq!(used_by(&head), "-");
        let node_id = |name| NodeId::new(name).unwrap();
        head.leader = Some(Leader {
            node_id: node_id("n1"),
            session: Uuid::nil(),
            lease: None,
            since_unix_ms: 0,
        });
        assert_eq!(used_by(&head), "n1 (mounted, not published)");
        let publication = |name, read_only| Publication {
            node_id: node_id(name),
            lease: Lease(1),
            read_only,
            mode: AccessMode::MultiNodeSingleWriter,
            published_unix_ms: 0,
        };
        head.publications = vec![publication("n1", false), publication("n2", true)];
        assert_eq!(used_by(&head), "n1 (mounted), n2 (reads)");
        head.leader = None;
        assert_eq!(used_by(&head), "n1, n2 (reads)");
    }

    #[test]
    fn a_capacity_is_written_as_it_can_be_given() {
        assert_eq!(capacity(0), "no limit");
        for (bytes, text) in [
            (1_000, "1000"),
            (1 << 27, "128MiB"),
            (3 << 29, "1536MiB"),
            (5 << 40, "5TiB"),
        ] {
            assert_eq!(capacity(bytes), text);
            assert_eq!(size(text).ok(), Some(bytes));
        }
    }

    #[test]
    fn a_time_is_written_as_people_read_it() {
        assert_eq!(utc(0), "1970-01-01 00:00:00 UTC");
        assert_eq!(utc(951_782_400_000), "2000-02-29 00:00:00 UTC");
        assert_eq!(utc(1_795_250_587_123), "2026-11-21 08:43:07 UTC");
        assert_eq!(utc(-1), "1969-12-31 23:59:59 UTC");
    }
}
