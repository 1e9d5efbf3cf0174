//! `pannier volume import` and `pannier volume export`.

use std::io::{IsTerminal, Write};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use clap::{Args, value_parser};
use serde::Serialize;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;
use volume::budget::Budget;
use volume::head::Parameters;
use volume::volume::{CacheConfig, Volume};
use volume_mount::open::{Connection, OpenSpec, RootOwner, open};
use volume_mount::store::{Access, Stores};
use volume_s3::{S3Bucket, S3Location};

use crate::cli::mount::node_id;
use crate::cli::store::StoreArgs;
use crate::cli::{Failure, say};
use crate::transfer::export::{Destination, export as export_files};
use crate::transfer::import::{Owner, Source, import as import_objects};
use crate::transfer::{Progress, Report, Tell, TransferError, TransferOptions};

/// 1 s on a terminal, where a line replaces the one before; 10 s in a log.
const TELL_EVERY: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(10)];

/// Arguments of both directions.
#[derive(Debug, Args)]
struct TransferArgs {
    #[command(flatten)]
    store: StoreArgs,
    /// URL of the store of the ordinary objects, where it is not the volume's
    #[arg(long, value_name = "URL")]
    objects_endpoint: Option<String>,
    /// Region of the bucket of the ordinary objects, where it is not the volume's
    #[arg(long, value_name = "REGION")]
    objects_region: Option<String>,
    /// Replace what is at the destination and differs
    #[arg(long)]
    overwrite: bool,
    /// Objects at once
    #[arg(long, default_value_t = 16, value_parser = value_parser!(u16).range(1..=256))]
    parallel: u16,
    /// The name under which other nodes see the volume in use; the host name if not given
    #[arg(long, env = "PANNIER_NODE_ID")]
    node_id: Option<String>,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// Arguments of `pannier volume import`.
#[derive(Debug, Args)]
pub struct ImportArgs {
    /// The volume, which nobody may have mounted: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// The objects: their bucket and prefix
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    from: S3Location,
    /// Folder of the volume to put them into; it is made
    #[arg(long, value_name = "PATH", default_value = "/")]
    into: PathBuf,
    /// Make a new volume there if there is none
    #[arg(long)]
    create: bool,
    /// Owner of files beside whose objects none is written
    #[arg(long, default_value_t = 0)]
    uid: u32,
    /// Group of files beside whose objects none is written
    #[arg(long, default_value_t = 0)]
    gid: u32,
    /// Permission bits of such files
    #[arg(long, value_name = "MODE", default_value = "0644", value_parser = mode)]
    file_mode: u16,
    /// Permission bits of such directories
    #[arg(long, value_name = "MODE", default_value = "0755", value_parser = mode)]
    directory_mode: u16,
    #[command(flatten)]
    transfer: TransferArgs,
}

/// Arguments of `pannier volume export`.
#[derive(Debug, Args)]
pub struct ExportArgs {
    /// The volume, mounted or not: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    /// Where the objects go: bucket and prefix
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    to: S3Location,
    /// Folder of the volume to export
    #[arg(long, value_name = "PATH", default_value = "/")]
    from: PathBuf,
    #[command(flatten)]
    transfer: TransferArgs,
}

fn mode(text: &str) -> Result<u16, String> {
    match u16::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o7777 => Ok(mode),
        _ => Err("permission bits are an octal number up to 7777".to_owned()),
    }
}

/// What a transfer has done, as `--json` prints it.
#[derive(Debug, Serialize)]
struct Told {
    from: String,
    to: String,
    #[serde(flatten)]
    report: Report,
    stopped: bool,
}

/// Reads ordinary objects into a volume.
///
/// # Errors
/// `Failure` in words for a person; also if some objects could not become files.
pub async fn import(args: ImportArgs) -> Result<(), Failure> {
    let into = parts(&args.into)?;
    let stop = stop_on_signal()?;
    let (stores, objects) = objects(&args.transfer, (&args.volume, &args.from)).await?;
    let volume = open_volume(&args.volume, &args.transfer, (&stores, false, args.create)).await?;
    let source = Source {
        bucket: objects,
        prefix: args.from.prefix.clone(),
        into,
        files: Owner {
            uid: args.uid,
            gid: args.gid,
            mode: args.file_mode,
        },
        directory_mode: args.directory_mode,
    };
    let (options, telling) = (options(&args.transfer), Telling::start("imported"));
    let done = import_objects(volume.clone(), source, options, telling.shared(), &stop).await;
    // What came so far is kept, whatever ended it.
    let closed = volume.close().await;
    let report = telling.end();
    closed.map_err(|error| {
        Failure::new(format!(
            "volume {}: not everything is in the bucket: {error}",
            args.volume
        ))
    })?;
    told(done, (&args.from, &args.volume), report, (&stop, args.transfer.json))
}

/// Writes the files of a volume as ordinary objects.
///
/// # Errors
/// `Failure` in words for a person; also if some files could not become objects.
pub async fn export(args: ExportArgs) -> Result<(), Failure> {
    let from = parts(&args.from)?;
    let stop = stop_on_signal()?;
    let (stores, objects) = objects(&args.transfer, (&args.volume, &args.to)).await?;
    let volume = open_volume(&args.volume, &args.transfer, (&stores, true, false)).await?;
    let to = Destination {
        bucket: objects,
        prefix: args.to.prefix.clone(),
        from,
    };
    let (options, telling) = (options(&args.transfer), Telling::start("exported"));
    let done = export_files(volume.clone(), to, options, telling.shared(), &stop).await;
    let closed = volume.close().await;
    let report = telling.end();
    closed.map_err(|error| Failure::new(format!("volume {}: {error}", args.volume)))?;
    told(done, (&args.volume, &args.to), report, (&stop, args.transfer.json))
}

fn told(
    done: Result<(), TransferError>,
    (from, to): (&S3Location, &S3Location),
    report: Report,
    (stop, json): (&CancellationToken, bool),
) -> Result<(), Failure> {
    let stopped = stop.is_cancelled();
    let Report {
        done: moved,
        bytes,
        skipped,
        failed,
    } = report;
    if json {
        say(serde_json::to_string_pretty(&Told {
            from: from.to_string(),
            to: to.to_string(),
            report,
            stopped,
        })?)?;
    } else {
        say(format_args!(
            "{from} to {to}: {moved} transferred ({bytes} bytes), {skipped} were there already, {failed} failed"
        ))?;
    }
    if let Err(error) = done {
        return Err(Failure::new(format!(
            "ended early: {error}; run the same command again to go on"
        )));
    }
    if stopped {
        return Err(Failure::new("stopped by a signal; run the same command again to go on"));
    }
    match failed {
        0 => Ok(()),
        _ => Err(Failure::new(format!(
            "{failed} of {} failed, each is named above",
            moved + skipped + failed
        ))),
    }
}

fn options(args: &TransferArgs) -> TransferOptions {
    TransferOptions {
        parallel: usize::from(args.parallel),
        overwrite: args.overwrite,
    }
}

/// The names of a path in a volume.
fn parts(path: &std::path::Path) -> Result<Vec<String>, Failure> {
    let Some(text) = path.to_str() else {
        return Err(Failure::new(format!("{} is not UTF-8", path.display())));
    };
    match text.trim_matches('/') {
        "" => Ok(Vec::new()),
        inner => match crate::transfer::names(inner) {
            Ok(names) => Ok(names),
            Err(why) => Err(Failure::new(format!("{text} cannot be a path in a volume: it {why}"))),
        },
    }
}

async fn objects(
    args: &TransferArgs,
    (volume, objects): (&S3Location, &S3Location),
) -> Result<(Stores, S3Bucket), Failure> {
    let own = args.store.access();
    let elsewhere = args.objects_endpoint.is_some() && args.objects_endpoint != own.endpoint;
    let inside = volume.prefix.starts_with(&objects.prefix) || objects.prefix.starts_with(&volume.prefix);
    if !elsewhere && volume.bucket == objects.bucket && inside {
        return Err(Failure::new(format!(
            "{objects} and the volume {volume} lie in each other: the objects of a volume are no files of it"
        )));
    }
    let access = Access {
        endpoint: args.objects_endpoint.clone().or(own.endpoint.clone()),
        region: args.objects_region.clone().or(own.region.clone()),
        ..own
    };
    let stores = Stores::default();
    let bucket = stores.store(&access).await?.bucket(&objects.bucket);
    bucket.verify().await?;
    Ok((stores, bucket))
}

async fn open_volume(
    location: &S3Location,
    args: &TransferArgs,
    (stores, read_only, create): (&Stores, bool, bool),
) -> Result<Volume, Failure> {
    let spec = OpenSpec {
        location: location.clone(),
        access: args.store.access(),
        node_id: node_id(args.node_id.as_deref())?,
        read_only,
        lease: None,
        take_over: false,
        create: create.then(Parameters::default),
        cache: CacheConfig::default(),
        state_dir: None,
        root: RootOwner::default(),
        transport: None,
    };
    Ok(open(&spec, Connection::begin(false), (stores, &Budget::default()))
        .await?
        .volume)
}

/// The first signal asks for an end between two objects; the second ends the process.
fn stop_on_signal() -> Result<CancellationToken, Failure> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let asked = stop.clone();
    tokio::spawn(async move {
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        asked.cancel();
        tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
        let _ = Failure::new("ended by a second signal").tell();
        std::process::exit(1);
    });
    Ok(stop)
}

/// Tells on stderr how far a transfer is, until it is dropped.
struct Telling {
    progress: Arc<Progress>,
    task: tokio::task::JoinHandle<()>,
    is_terminal: bool,
}

impl Telling {
    fn start(what: &'static str) -> Self {
        let (progress, is_terminal) = (Arc::new(Progress::default()), std::io::stderr().is_terminal());
        let told = Arc::clone(&progress);
        let task = tokio::spawn(async move {
            let every = TELL_EVERY[usize::from(!is_terminal)];
            let mut before = 0;
            loop {
                tokio::time::sleep(every).await;
                let now = told.report();
                let mib_per_s = (now.bytes - before) as f64 / every.as_secs_f64() / f64::from(1 << 20);
                before = now.bytes;
                let (start, end) = if is_terminal { ("\r", "   ") } else { ("", "\n") };
                // Nobody is left to tell that stderr is gone.
                let _ = write!(
                    std::io::stderr().lock(),
                    "{start}{what} {} ({} MiB, {mib_per_s:.0} MiB/s), {} skipped, {} failed{end}",
                    now.done,
                    now.bytes >> 20,
                    now.skipped,
                    now.failed
                );
            }
        });
        Self {
            progress,
            task,
            is_terminal,
        }
    }

    fn shared(&self) -> (Arc<Progress>, Arc<Tell>) {
        let start = if self.is_terminal { "\r" } else { "" };
        let tell = move |what: &str, why: &str| {
            let _ = writeln!(std::io::stderr().lock(), "{start}pannier: {what:?}: {why}");
        };
        (Arc::clone(&self.progress), Arc::new(tell))
    }

    fn end(self) -> Report {
        self.task.abort();
        if self.is_terminal {
            let _ = writeln!(std::io::stderr().lock());
        }
        self.progress.report()
    }
}
