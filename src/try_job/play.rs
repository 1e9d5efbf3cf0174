//! The run itself, as a story: prepare the machine, open a bucket, bring the driver up, play jobs on nodes, clear up.

use std::path::{Path, PathBuf};

use super::csi_plugin::PluginLaunch;
use super::driver_host::{DriverHost, DriverLaunch};
use super::hcl_reader::Source;
use super::job_file::{self, Job};
use super::leftovers;
use super::nomad_agent;
use super::report::{Report, short};
use super::sample_image;
use super::stage::Stage;
use super::volume_file::{self, VolumeFile};
use super::{Interrupt, Options, TryError, VERIFY_JOB, VOLUME_FILE, WRITE_JOB};
use crate::host_setup::HostSetup;
use crate::object_server::ObjectServer;

/// Bucket of the embedded server.
const BUCKET: &str = "pannier-try";

/// Where volumes live when they are on the embedded server.
const PREFIX: &str = "volumes";

/// What the CSI plugin must know of the store.
#[derive(Debug, Clone)]
pub struct Store {
    /// `http://…` or `None` for AWS.
    pub endpoint: Option<String>,
    /// Bucket.
    pub bucket: String,
    /// Prefix in it, without slashes at its ends.
    pub prefix: String,
    /// Region, if one was given.
    pub region: Option<String>,
    /// Credentials, if they are not the SDK's own to find.
    pub environment: Vec<(String, String)>,
}

/// Plays what the options say, and leaves the machine as it was.
///
/// # Errors
/// The first failure; what the run had made is gone by then.
pub async fn run(options: &Options) -> Result<(), TryError> {
    let interrupt = Interrupt::listen()?;
    let report = Report::start();
    if !nix::unistd::geteuid().is_root() {
        return Err(TryError::Machine(
            "mounting a volume for a container needs root; run it as root or with sudo".to_owned(),
        ));
    }
    for program in [&options.pannier, &options.driver] {
        if !program.exists() {
            return Err(TryError::Machine(format!(
                "there is no program {}; build it first",
                program.display()
            )));
        }
    }
    // Before anything is started: a file that is wrong costs no time.
    let plan = options
        .job
        .as_deref()
        .map(|file| Plan::read(file, &options.volumes))
        .transpose()?;
    leftovers::sweep(&options.state_dir).await?;
    std::fs::create_dir_all(&options.state_dir).map_err(|source| TryError::State {
        path: options.state_dir.clone(),
        source,
    })?;

    report.chapter("This machine");
    let host = report
        .step("host", "cgroups, mount propagation, a Podman service", prepare(options))
        .await?;
    let mut run = Run {
        options,
        plan,
        report,
        interrupt,
        host,
    };
    let result = run.with_store().await;
    let Run { host, .. } = run;
    host.undo().await;
    if !options.keep {
        leftovers::sweep(&options.state_dir).await?;
    }
    result?;
    report.chapter(format!("Done in {}.", short(report.elapsed())));
    if options.keep {
        report.note(format!("kept: {}", options.state_dir.display()));
    } else {
        report.note("nothing is left: no container, no mount, no process, no file");
    }
    Ok(())
}

async fn prepare(options: &Options) -> Result<HostSetup, TryError> {
    HostSetup::prepare(&options.state_dir, options.podman_socket.as_deref())
        .await
        .map_err(|error| TryError::Machine(error.to_string()))
}

/// A job file of the user's, with its volumes.
struct Plan {
    job: Job,
    source: Source,
    volumes: Vec<VolumeFile>,
}

impl Plan {
    fn read(file: &Path, volumes: &[PathBuf]) -> Result<Self, TryError> {
        let (job, source) = job_file::read(file)?;
        let volumes: Vec<VolumeFile> = volumes
            .iter()
            .map(|file| volume_file::read(file))
            .collect::<Result<_, _>>()?;
        let mut wanted = job.groups.iter().flat_map(|group| &group.volumes);
        if let Some(missing) = wanted.find(|wanted| !volumes.iter().any(|volume| volume.id == wanted.source)) {
            return Err(TryError::NoVolumeFile(missing.source.clone()));
        }
        Ok(Self { job, source, volumes })
    }
}

struct Run<'a> {
    options: &'a Options,
    plan: Option<Plan>,
    report: Report,
    interrupt: Interrupt,
    host: HostSetup,
}

impl Run<'_> {
    /// Opens the store, plays on it, closes it.
    async fn with_store(&mut self) -> Result<(), TryError> {
        if let Some(url) = &self.options.s3 {
            let (bucket, prefix) = parse_url(url)?;
            let store = Store {
                endpoint: self.options.endpoint.clone(),
                bucket,
                prefix,
                region: self.options.region.clone(),
                environment: Vec::new(),
            };
            return self.with_image(&store).await;
        }
        let dir = self.options.state_dir.join("s3");
        let server = self
            .report
            .step("s3", "start an S3 server that keeps its objects on local disk", async {
                ObjectServer::start(&dir, BUCKET)
                    .await
                    .map_err(|error| TryError::Machine(error.to_string()))
            })
            .await?;
        let store = Store {
            endpoint: Some(server.endpoint()),
            bucket: BUCKET.to_owned(),
            prefix: PREFIX.to_owned(),
            region: None,
            environment: vec![
                ("AWS_ACCESS_KEY_ID".to_owned(), server.access_key_id().to_owned()),
                (
                    "AWS_SECRET_ACCESS_KEY".to_owned(),
                    server.secret_access_key().to_owned(),
                ),
                ("AWS_REGION".to_owned(), "us-east-1".to_owned()),
            ],
        };
        let result = self.with_image(&store).await;
        server.stop().await;
        result
    }

    /// Builds the image of the default run, plays, and takes the image away again.
    async fn with_image(&mut self, store: &Store) -> Result<(), TryError> {
        self.interrupt.check()?;
        if self.plan.is_some() {
            return self.with_driver(store).await;
        }
        let tree = self
            .options
            .tree
            .clone()
            .or_else(|| sample_image::default_tree(cargo_home()))
            .ok_or_else(|| {
                TryError::Machine("there is no source tree to unpack; name one with --tree DIR".to_owned())
            })?;
        let work = self.options.state_dir.join("image");
        let podman = self.host.podman_command();
        let what = format!("import {} from this machine's packages", sample_image::IMAGE);
        let built = self
            .report
            .step("podman", what, sample_image::build(&work, &tree, &podman))
            .await?;
        self.report.note(format!(
            "with {} files, {} MiB, of {}",
            built.files,
            built.bytes >> 20,
            tree.display()
        ));
        let result = self.with_driver(store).await;
        sample_image::remove(&podman).await;
        result
    }

    async fn with_driver(&mut self, store: &Store) -> Result<(), TryError> {
        if let Some(nomad) = &self.options.nomad {
            return nomad_agent::play(nomad, self.options, store, &self.host, (&self.report, &self.interrupt)).await;
        }
        self.interrupt.check()?;
        self.report.chapter("The task driver, as an agent starts it");
        let config = format!("socket_path = \"unix://{}\"\n", self.host.podman_socket().display());
        let launch = DriverLaunch {
            program: self.options.driver.clone(),
            config: Source::from_text("plugin \"nomad-driver-podman\"", config),
            environment: Vec::new(),
            log: self.options.state_dir.join("driver.log"),
        };
        let driver = DriverHost::start(&launch, &self.report).await?;
        let mut stage = Stage::new(self.report, self.interrupt.clone(), self.options.state_dir.clone());
        stage.set_driver(driver);
        let result = match &self.plan {
            Some(plan) => self.play_file(&mut stage, store, plan).await,
            None => self.play_default(&mut stage, store).await,
        };
        if matches!(result, Err(TryError::Interrupted)) {
            self.report.chapter("Interrupted: cleaning up");
        }
        stage.clear().await;
        result
    }

    /// Two jobs, two nodes, one volume.
    async fn play_default(&self, stage: &mut Stage, store: &Store) -> Result<(), TryError> {
        let volume = volume_file::parse(&Source::from_text("jobs/try-volume.hcl", VOLUME_FILE))?;

        self.report.chapter("Node one: jobs/try-write.nomad.hcl");
        stage.enter_node(&self.node(store, "try-node-1")).await?;
        stage.create_volume(&volume).await?;
        let (job, source) = parse_job("jobs/try-write.nomad.hcl", WRITE_JOB)?;
        stage.play(&job, &source).await?;
        stage.leave_node().await?;

        self.report
            .chapter("Node two, which has only the bucket: jobs/try-verify.nomad.hcl");
        stage.enter_node(&self.node(store, "try-node-2")).await?;
        let (job, source) = parse_job("jobs/try-verify.nomad.hcl", VERIFY_JOB)?;
        stage.play(&job, &source).await?;
        self.finish(stage).await
    }

    /// One job file on one node, with the volumes that files describe.
    async fn play_file(&self, stage: &mut Stage, store: &Store, plan: &Plan) -> Result<(), TryError> {
        self.report.chapter(format!("Node one: {}", plan.source.file.display()));
        stage.enter_node(&self.node(store, "try-node-1")).await?;
        for volume in &plan.volumes {
            stage.create_volume(volume).await?;
        }
        stage.play(&plan.job, &plan.source).await?;
        self.finish(stage).await
    }

    async fn finish(&self, stage: &mut Stage) -> Result<(), TryError> {
        if self.options.keep {
            self.report.note("the volume stays: --keep");
        } else {
            stage.delete_volumes().await?;
        }
        stage.leave_node().await
    }

    fn node(&self, store: &Store, node_id: &str) -> PluginLaunch {
        let dir = self.options.state_dir.join(node_id);
        let mut arguments = vec![
            "--bucket".to_owned(),
            store.bucket.clone(),
            "--prefix".to_owned(),
            store.prefix.clone(),
            "--engine-socket".to_owned(),
            leftovers::engine_socket(&dir).display().to_string(),
        ];
        let optional = [("--s3-endpoint", &store.endpoint), ("--region", &store.region)];
        for (flag, value) in optional {
            if let Some(value) = value {
                arguments.extend([flag.to_owned(), value.clone()]);
            }
        }
        PluginLaunch {
            program: self.options.pannier.clone(),
            node_id: node_id.to_owned(),
            state_dir: dir,
            arguments,
            environment: store.environment.clone(),
        }
    }
}

fn parse_job(name: &str, text: &str) -> Result<(Job, Source), TryError> {
    let source = Source::from_text(name, text);
    let job = job_file::parse(&source)?;
    Ok((job, source))
}

/// `s3://BUCKET/PREFIX` as its two parts; the prefix may be empty.
fn parse_url(url: &str) -> Result<(String, String), TryError> {
    let wrong = || TryError::Machine(format!("{url:?} is not of the form s3://BUCKET/PREFIX"));
    let rest = url.strip_prefix("s3://").ok_or_else(wrong)?;
    let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
    if bucket.is_empty() {
        return Err(wrong());
    }
    Ok((bucket.to_owned(), prefix.trim_matches('/').to_owned()))
}

/// Where cargo keeps its sources, as cargo itself decides.
#[expect(
    clippy::disallowed_methods,
    reason = "cargo's home is told by the environment; this is the command's own edge"
)]
fn cargo_home() -> Option<PathBuf> {
    let home = std::env::var_os("CARGO_HOME").map(PathBuf::from);
    home.or_else(|| std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cargo")))
}
