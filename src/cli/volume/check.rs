//! `pannier volume check`: whether all of a volume is there and sound, and with `--repair` what can be done about it.
//!
//! A check reads only, and may run beside a mount. A repair shows its plan unless told to apply it. Absent: the findings
//! themselves (`volume::check`).

use clap::Args;
use serde::Serialize;
use uuid::Uuid;
use volume::check::repair::{Finding, Remedy, RepairOptions, repair};
use volume::check::{CheckOptions, Damage, check};
use volume::clock::Clock;
use volume::volume_id::NodeId;
use volume_mount::clock::SystemClock;
use volume_mount::store::Stores;
use volume_s3::S3Location;

use crate::cli::store::StoreArgs;
use crate::cli::{Failure, say};

/// Arguments of `pannier volume check`.
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// The volume: bucket and the volume's own prefix in it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    volume: S3Location,
    #[command(flatten)]
    store: StoreArgs,
    /// Leave out the content of files: read rows and commits only
    #[arg(long)]
    no_content: bool,
    /// Show what a repair would do; nothing is changed without --apply
    #[arg(long)]
    repair: bool,
    /// Do what the plan shows. No node may have the volume mounted
    #[arg(long, requires = "repair")]
    apply: bool,
    /// Give up what cannot be saved: damaged ranges become holes, a damaged journal ends before the damage
    #[arg(long, requires = "repair")]
    accept_loss: bool,
    /// Also if a mount by hand did not end cleanly (it must be gone for good)
    #[arg(long, requires = "repair")]
    force: bool,
    /// Print JSON, one object a line
    #[arg(long)]
    json: bool,
}

/// A line of `--json`.
#[derive(Debug, Serialize)]
struct Line<'a> {
    object: &'a str,
    place: &'a str,
    detail: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    remedy: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    action: Option<&'a str>,
}

/// Checks, or repairs.
///
/// # Errors
/// `Failure` where something is wrong and stays so, and where the volume cannot be read.
pub async fn run(args: CheckArgs) -> Result<(), Failure> {
    if args.repair {
        repair_volume(args).await
    } else {
        check_volume(args).await
    }
}

async fn check_volume(args: CheckArgs) -> Result<(), Failure> {
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let options = CheckOptions {
        content: !args.no_content,
        ..CheckOptions::default()
    };
    let (location, json) = (args.volume, args.json);
    let mut tell = |damage: Damage| {
        // Where stdout is closed, the count and the exit code still tell.
        let _ = match json {
            true => say(line(&damage, None)),
            false => say(format_args!(
                "damaged: {} at {}: {}",
                damage.object, damage.place, damage.detail
            )),
        };
    };
    let report = check(store.open(&location), options, &mut tell).await;
    let report = report.map_err(|error| Failure::new(format!("volume {location}: {error}")))?;
    if !json {
        say(format_args!(
            "checked {location}: {} inodes, {} names, {} extents, {} objects, {} frames ({} bytes), {} snapshots",
            report.inodes,
            report.names,
            report.extents,
            report.objects,
            report.frames,
            report.content_bytes,
            report.snapshots
        ))?;
    }
    match report.damages {
        0 if json => Ok(()),
        0 => say("no damage found"),
        damages => Err(Failure::new(format!(
            "volume {location} has {damages} damages; `--repair` shows what can be done"
        ))),
    }
}

async fn repair_volume(args: CheckArgs) -> Result<(), Failure> {
    let store = Stores::default().store(&args.store.access()).await?;
    store.bucket(&args.volume.bucket).verify().await?;
    let node_id = NodeId::new(&format!("repair-{}", &Uuid::new_v4().simple().to_string()[..8]));
    let options = RepairOptions {
        apply: args.apply,
        accept_loss: args.accept_loss,
        force: args.force,
        content: !args.no_content,
        ..RepairOptions::plan(
            node_id.map_err(|error| Failure::new(error.to_string()))?,
            SystemClock.now(),
        )
    };
    let (location, json, apply) = (args.volume, args.json, args.apply);
    let mut tell = |finding: Finding| {
        let _ = match json {
            true => say(line(&finding.damage, Some(&finding))),
            false => say(in_words(&finding, apply)),
        };
    };
    let report = repair(store.open(&location), options, &mut tell).await;
    let report = report.map_err(|error| Failure::new(format!("volume {location}: {error}")))?;
    if !json {
        let (done, given_up) = if apply {
            ("mended", "given up")
        } else {
            ("can be mended", "would be given up")
        };
        say(format_args!(
            "{location}: {} {done}, {} {given_up}, {} left as they are",
            report.mended, report.given_up, report.left
        ))?;
    }
    if report.left > 0 {
        return Err(Failure::new(format!(
            "volume {location} has {} damages that only `--accept-loss` ends",
            report.left
        )));
    }
    if !apply && !json && report.mended + report.given_up > 0 {
        say("nothing was changed: `--apply` does it")?;
    }
    Ok(())
}

fn in_words(finding: &Finding, apply: bool) -> String {
    let Damage { object, place, detail } = &finding.damage;
    let action = &finding.action;
    let end = match (finding.remedy, apply) {
        (Remedy::NeedsConsent, _) => format!("left; with --accept-loss {action}"),
        (Remedy::Mended | Remedy::GivenUp, true) => action.clone(),
        (Remedy::Mended | Remedy::GivenUp, false) => format!("with --apply {action}"),
    };
    format!("{object} at {place}: {detail}: {end}")
}

fn line(damage: &Damage, finding: Option<&Finding>) -> String {
    let line = Line {
        object: &damage.object,
        place: &damage.place,
        detail: &damage.detail,
        remedy: finding.map(|finding| match finding.remedy {
            Remedy::Mended => "mended",
            Remedy::GivenUp => "given-up",
            Remedy::NeedsConsent => "needs-consent",
        }),
        action: finding.map(|finding| finding.action.as_str()),
    };
    serde_json::to_string(&line).unwrap_or_default()
}
