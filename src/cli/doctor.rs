//! `pannier doctor`: whether this node can do what Pannier needs of it, and what to do where it cannot.
//!
//! Invariant: it changes nothing. In the bucket it leaves nothing behind, and everything else it only looks at. Each finding
//! names what was found, and where it is not well, the next step. Absent: repairing anything.

mod node;
mod store;

use std::path::PathBuf;

use clap::Args;
use serde::Serialize;
use volume_s3::S3Location;

use super::store::StoreArgs;
use super::{Failure, say};

/// Arguments of `pannier doctor`.
#[derive(Debug, Args)]
pub struct DoctorArgs {
    /// Bucket and prefix that `pannier csi` is given; the store is not looked at without it
    #[arg(value_name = "s3://BUCKET/PREFIX")]
    cluster: Option<S3Location>,
    #[command(flatten)]
    store: StoreArgs,
    /// Socket of the Podman service that runs the tasks
    #[arg(long, value_name = "PATH", default_value = "/run/podman/podman.sock")]
    podman_socket: PathBuf,
    /// stage_publish_base_dir of the Nomad job, or where else volumes are mounted
    #[arg(long, value_name = "DIR", default_value = "/")]
    staging_root: PathBuf,
    /// Folder for cached data
    #[arg(long, value_name = "DIR", default_value = "/var/lib/pannier")]
    cache_dir: PathBuf,
    /// Print JSON
    #[arg(long)]
    json: bool,
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and something will be missed.
    Warning,
    /// Volumes cannot be mounted, or would not be safe.
    Failure,
}

/// What one check found. Field names are part of the command's interface.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
struct Finding {
    check: &'static str,
    outcome: Outcome,
    found: String,
    /// What to do; empty where all is well.
    #[serde(skip_serializing_if = "String::is_empty")]
    advice: String,
}

impl Finding {
    fn ok(check: &'static str, found: impl Into<String>) -> Self {
        Self {
            check,
            outcome: Outcome::Ok,
            found: found.into(),
            advice: String::new(),
        }
    }

    fn warning(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Warning,
            advice: advice.into(),
            ..Self::ok(check, found)
        }
    }

    fn failure(check: &'static str, found: impl Into<String>, advice: impl Into<String>) -> Self {
        Self {
            outcome: Outcome::Failure,
            ..Self::warning(check, found, advice)
        }
    }
}

/// Looks at everything and prints what was found.
///
/// # Errors
/// `Failure` if a check failed: the exit code tells a script.
pub async fn run(args: DoctorArgs) -> Result<(), Failure> {
    let mut findings = vec![
        node::rights(),
        node::fuse(),
        node::io_uring(),
        node::request_timeout(),
        node::propagation(&args.staging_root),
        node::podman(&args.podman_socket),
        node::descriptors(),
        node::control_groups(),
        node::cache_space(&args.cache_dir),
    ];
    match &args.cluster {
        Some(cluster) => findings.extend(store::findings(cluster, &args.store.access()).await),
        None => findings.push(Finding::warning(
            "store",
            "not looked at",
            "name the cluster's place: pannier doctor s3://BUCKET/PREFIX",
        )),
    }
    if args.json {
        say(serde_json::to_string_pretty(&findings)?)?;
    } else {
        for finding in &findings {
            let word = match finding.outcome {
                Outcome::Ok => "ok",
                Outcome::Warning => "warning",
                Outcome::Failure => "FAILURE",
            };
            say(format_args!("{word:<8} {:<16} {}", finding.check, finding.found))?;
            if !finding.advice.is_empty() {
                say(format_args!("{:<25} -> {}", "", finding.advice))?;
            }
        }
    }
    let failed = findings.iter().filter(|finding| finding.outcome == Outcome::Failure);
    match failed.count() {
        0 => Ok(()),
        count => Err(Failure::new(format!("{count} of {} checks failed", findings.len()))),
    }
}
