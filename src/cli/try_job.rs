//! `pannier try`: a job and its volume on this machine, over Nomad's own protocols.

use std::path::{Path, PathBuf};

use clap::Args;

use super::Failure;
use crate::try_job::{self, Options};

/// Arguments of `pannier try`. Without any, it unpacks a source tree into a volume on one node, and verifies it on another.
#[derive(Debug, Args)]
pub struct TryArgs {
    /// Play this Nomad job file instead
    #[arg(long, value_name = "FILE")]
    job: Option<PathBuf>,
    /// A Nomad volume file for a volume of that job; may be given several times
    #[arg(long, value_name = "FILE", requires = "job")]
    volume: Vec<PathBuf>,
    /// Leave the volume and the state directory when done
    #[arg(long)]
    keep: bool,
    /// Keep the volume in this bucket instead of an S3 server of our own; credentials as the AWS tools find them
    #[arg(long, value_name = "s3://BUCKET/PREFIX")]
    s3: Option<String>,
    /// Endpoint of that bucket, if it is not AWS
    #[arg(long, value_name = "URL", requires = "s3")]
    endpoint: Option<String>,
    /// Region of that bucket
    #[arg(long, requires = "s3")]
    region: Option<String>,
    /// Play on a real Nomad agent, started for this run: the `nomad` of NOMAD_BIN or PATH, or the one given
    #[arg(long, value_name = "PROGRAM", num_args = 0..=1, default_missing_value = "")]
    nomad: Option<PathBuf>,
    /// Unpack this tree instead of the sources that cargo keeps
    #[arg(long, value_name = "DIR", conflicts_with = "job")]
    tree: Option<PathBuf>,
    /// Use the Podman service behind this socket instead of one of our own
    #[arg(long, value_name = "PATH")]
    podman_socket: Option<PathBuf>,
    /// Where the run keeps everything; emptied before and after
    #[arg(long, value_name = "DIR", default_value = "/var/tmp/pannier-try")]
    state_dir: PathBuf,
    /// The task driver to launch; beside this program if not given
    #[arg(long, value_name = "PROGRAM")]
    driver: Option<PathBuf>,
}

/// Plays, and returns when everything is cleared up.
///
/// # Errors
/// `Failure` in words for a person.
pub async fn run(args: TryArgs) -> Result<(), Failure> {
    let pannier = std::env::current_exe()?;
    let beside = pannier.with_file_name("nomad-driver-podman");
    let options = Options {
        job: args.job,
        volumes: args.volume,
        keep: args.keep,
        s3: args.s3,
        endpoint: args.endpoint,
        region: args.region,
        nomad: args.nomad.map(find_nomad).transpose()?,
        state_dir: args.state_dir,
        tree: args.tree,
        driver: args.driver.unwrap_or(beside),
        pannier,
        podman_socket: args.podman_socket,
    };
    Ok(try_job::run(&options).await?)
}

/// The program that was named, else NOMAD_BIN, else the first `nomad` in PATH.
#[expect(
    clippy::disallowed_methods,
    reason = "this is the command's edge: the environment says where programs are"
)]
fn find_nomad(named: PathBuf) -> Result<PathBuf, Failure> {
    if !named.as_os_str().is_empty() {
        return Ok(named);
    }
    if let Some(path) = std::env::var_os("NOMAD_BIN") {
        return Ok(path.into());
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .map(|dir| dir.join("nomad"))
        .find(|program| Path::exists(program));
    found.ok_or_else(|| Failure::new("there is no `nomad` in PATH; name it with --nomad PROGRAM or NOMAD_BIN"))
}
