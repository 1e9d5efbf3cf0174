//! A Nomad job file, as far as `pannier try` plays it: job, group, volume, task, config, env, resources, volume_mount.
//!
//! Invariant: a key is played, or it means nothing on a single machine and is listed here as such, or the file is
//! refused by name. Nothing is silently ignored.

use std::path::Path;
use std::time::Duration;

use hcl::Body;
use hcl::eval::Context;

use super::hcl_reader::{BodyReader, HclFileError, Source};
use super::volume_file::MountOptions;

/// Keys of a job that only a scheduler with many nodes acts on.
const SCHEDULING: &[&str] = &[
    "all_at_once",
    "affinity",
    "constraint",
    "datacenters",
    "disconnect",
    "ephemeral_disk",
    "max_client_disconnect",
    "migrate",
    "node_pool",
    "priority",
    "region",
    "reschedule",
    "restart",
    "shutdown_delay",
    "spread",
    "stop_after_client_disconnect",
    "ui",
    "update",
];

/// Keys that change what a task sees, and that only Nomad provides.
const NOT_PLAYED: &[&str] = &[
    "action",
    "artifact",
    "connect",
    "consul",
    "csi_plugin",
    "dispatch_payload",
    "identity",
    "multiregion",
    "parameterized",
    "periodic",
    "scaling",
    "schedule",
    "secret",
    "service",
    "template",
    "vault",
];

const NOT_PLAYED_WHY: &str = "it needs a Nomad agent";

/// A job to play.
#[derive(Debug)]
pub struct Job {
    /// Label of the job block.
    pub id: String,
    /// `namespace`, "default" if the file says none.
    pub namespace: String,
    /// Its groups in the file's order.
    pub groups: Vec<Group>,
}

/// A task group.
#[derive(Debug)]
pub struct Group {
    /// Label of the group block.
    pub name: String,
    /// Volumes by their label.
    pub volumes: Vec<GroupVolume>,
    /// Its tasks in the file's order.
    pub tasks: Vec<Task>,
}

/// A volume block of a group.
#[derive(Debug, Clone)]
pub struct GroupVolume {
    /// Label, which `volume_mount` refers to.
    pub name: String,
    /// Id of the registered volume.
    pub source: String,
    /// Claimed for reading only.
    pub read_only: bool,
    /// For example `single-node-writer`.
    pub access_mode: String,
    /// `mount_options`.
    pub mount_options: MountOptions,
}

/// A task.
#[derive(Debug)]
pub struct Task {
    /// Label of the task block.
    pub name: String,
    /// `driver`.
    pub driver: String,
    /// `user`.
    pub user: String,
    /// The body of `config`, which the driver's own schema reads.
    pub config: Body,
    /// `env`.
    pub env: Vec<(String, String)>,
    /// `resources.cpu` in MHz.
    pub cpu_mhz: u64,
    /// `resources.memory` in MiB.
    pub memory_mb: u64,
    /// `resources.memory_max` in MiB; 0 if not given.
    pub memory_max_mb: u64,
    /// `volume_mount` blocks.
    pub mounts: Vec<VolumeMount>,
    /// `kill_signal`; empty leaves it to the image.
    pub kill_signal: String,
    /// `kill_timeout`.
    pub kill_timeout: Duration,
}

/// A volume_mount block of a task.
#[derive(Debug, Clone)]
pub struct VolumeMount {
    /// Label of the group's volume.
    pub volume: String,
    /// Path in the task.
    pub destination: String,
    /// Mounted for reading only.
    pub read_only: bool,
    /// `propagation_mode`, "private" if the file says none.
    pub propagation_mode: String,
}

/// Variables that a job file may use: what Nomad sets for every task, by the paths inside the container.
pub fn task_context() -> Context<'static> {
    let mut context = Context::new();
    context.declare_var("NOMAD_ALLOC_DIR", "/alloc");
    context.declare_var("NOMAD_TASK_DIR", "/local");
    context.declare_var("NOMAD_SECRETS_DIR", "/secrets");
    context
}

/// Reads a job file.
///
/// # Errors
/// Each names the file, the line and the key.
pub fn read(file: &Path) -> Result<(Job, Source), HclFileError> {
    let source = Source::read(file)?;
    let job = parse(&source)?;
    Ok((job, source))
}

/// Reads a job from text that is already there.
///
/// # Errors
/// Each names the file, the line and the key.
pub fn parse(source: &Source) -> Result<Job, HclFileError> {
    let body = source.parse()?;
    let context = task_context();
    let mut reader = BodyReader::new(source, &context, String::new(), &body);
    reader.refuse(&["variable", "locals"], "variables are Nomad's own")?;
    let block = reader.block("job")?.ok_or_else(|| reader.missing("job"))?;
    let mut job = reader.inside(block);
    reader.finish()?;

    job.refuse(NOT_PLAYED, NOT_PLAYED_WHY)?;
    job.pass_over(SCHEDULING);
    job.pass_over(&["meta", "name", "id"]);
    if let Some(kind) = job.string("type")?
        && !matches!(kind.as_str(), "batch" | "service")
    {
        return Err(job.wrong("type", "\"batch\" or \"service\"", &kind.into()));
    }
    let namespace = job.string("namespace")?.unwrap_or_else(|| "default".to_owned());
    let blocks = job.blocks("group");
    if blocks.is_empty() {
        return Err(job.missing("group"));
    }
    let mut groups = Vec::new();
    for block in blocks {
        groups.push(group(label(block), job.inside(block))?);
    }
    job.finish()?;
    Ok(Job {
        id: label(block_of(&body)),
        namespace,
        groups,
    })
}

fn block_of(body: &Body) -> &hcl::Block {
    body.blocks()
        .find(|block| block.identifier() == "job")
        .expect("the job block was found before")
}

fn label(block: &hcl::Block) -> String {
    block
        .labels()
        .first()
        .map_or_else(String::new, |label| label.as_str().to_owned())
}

fn group(name: String, mut reader: BodyReader<'_>) -> Result<Group, HclFileError> {
    reader.refuse(NOT_PLAYED, NOT_PLAYED_WHY)?;
    reader.refuse(
        &["network"],
        "tasks run without a group network; use network_mode in config",
    )?;
    reader.pass_over(SCHEDULING);
    reader.pass_over(&["meta"]);
    if let Some(count) = reader.count("count")?
        && count != 1
    {
        return Err(reader.wrong("count", "1: one machine runs one of each group", &count.into()));
    }
    let mut volumes = Vec::new();
    for block in reader.blocks("volume") {
        volumes.push(group_volume(label(block), reader.inside(block))?);
    }
    let blocks = reader.blocks("task");
    if blocks.is_empty() {
        return Err(reader.missing("task"));
    }
    let mut tasks = Vec::new();
    for block in blocks {
        tasks.push(task(label(block), &volumes, reader.inside(block))?);
    }
    reader.finish()?;
    Ok(Group { name, volumes, tasks })
}

fn group_volume(name: String, mut reader: BodyReader<'_>) -> Result<GroupVolume, HclFileError> {
    let kind = reader.required_string("type")?;
    if kind != "csi" {
        return Err(reader.wrong("type", "\"csi\"", &kind.into()));
    }
    if let Some(mode) = reader.string("attachment_mode")?
        && mode != "file-system"
    {
        return Err(reader.wrong("attachment_mode", "\"file-system\"", &mode.into()));
    }
    reader.pass_over(&["per_alloc", "sticky"]);
    let volume = GroupVolume {
        name,
        source: reader.required_string("source")?,
        read_only: reader.boolean("read_only")?.unwrap_or(false),
        access_mode: reader.required_string("access_mode")?,
        mount_options: MountOptions::of(&mut reader)?,
    };
    reader.finish()?;
    Ok(volume)
}

fn task(name: String, volumes: &[GroupVolume], mut reader: BodyReader<'_>) -> Result<Task, HclFileError> {
    reader.refuse(NOT_PLAYED, NOT_PLAYED_WHY)?;
    reader.refuse(&["lifecycle"], "tasks of a group run one after another")?;
    reader.pass_over(SCHEDULING);
    reader.pass_over(&["leader", "logs", "meta", "kind"]);
    let mut mounts = Vec::new();
    for block in reader.blocks("volume_mount") {
        mounts.push(volume_mount(volumes, reader.inside(block))?);
    }
    let config = match reader.block("config")? {
        Some(block) => block.body().clone(),
        None => Body::default(),
    };
    let mut task = Task {
        name,
        driver: reader.required_string("driver")?,
        user: reader.string("user")?.unwrap_or_default(),
        config,
        env: reader.string_map("env")?,
        cpu_mhz: 100,
        memory_mb: 300,
        memory_max_mb: 0,
        mounts,
        kill_signal: reader.string("kill_signal")?.unwrap_or_default(),
        kill_timeout: reader.duration("kill_timeout")?.unwrap_or(Duration::from_secs(5)),
    };
    if let Some(block) = reader.block("resources")? {
        let mut resources = reader.inside(block);
        resources.refuse(
            &["cores", "device", "numa", "network"],
            "cores and devices are Nomad's to give",
        )?;
        task.cpu_mhz = resources.count("cpu")?.unwrap_or(task.cpu_mhz);
        task.memory_mb = resources.count("memory")?.unwrap_or(task.memory_mb);
        task.memory_max_mb = resources.count("memory_max")?.unwrap_or(0);
        resources.finish()?;
    }
    reader.finish()?;
    Ok(task)
}

fn volume_mount(volumes: &[GroupVolume], mut reader: BodyReader<'_>) -> Result<VolumeMount, HclFileError> {
    let volume = reader.required_string("volume")?;
    if !volumes.iter().any(|known| known.name == volume) {
        return Err(reader.wrong("volume", "the label of a volume block of the group", &volume.into()));
    }
    reader.pass_over(&["selinux_label"]);
    let mount = VolumeMount {
        volume,
        destination: reader.required_string("destination")?,
        read_only: reader.boolean("read_only")?.unwrap_or(false),
        propagation_mode: reader
            .string("propagation_mode")?
            .unwrap_or_else(|| "private".to_owned()),
    };
    reader.finish()?;
    Ok(mount)
}

#[cfg(test)]
mod tests {
    use super::*;

    const JOB: &str = r#"
job "web" {
  datacenters = ["*"]
  type        = "batch"
  group "one" {
    volume "data" {
      type            = "csi"
      source          = "files"
      access_mode     = "single-node-writer"
      attachment_mode = "file-system"
    }
    task "unpack" {
      driver = "podman"
      config {
        image   = "localhost/x"
        command = "sh"
        args    = ["-c", "ls ${NOMAD_TASK_DIR}"]
      }
      env {
        A = "b"
        N = 3
      }
      resources {
        cpu    = 500
        memory = 128
      }
      volume_mount {
        volume      = "data"
        destination = "/data"
      }
      kill_timeout = "20s"
    }
  }
}
"#;

    fn parse_text(text: &str) -> Result<Job, HclFileError> {
        parse(&Source::from_text("web.nomad.hcl", text))
    }

    #[test]
    fn a_job_file_gives_its_groups_volumes_and_tasks() {
        let job = parse_text(JOB).unwrap();
        assert_eq!((job.id.as_str(), job.namespace.as_str()), ("web", "default"));
        let group = &job.groups[0];
        assert_eq!(group.volumes[0].source, "files");
        let task = &group.tasks[0];
        assert_eq!((task.name.as_str(), task.cpu_mhz, task.memory_mb), ("unpack", 500, 128));
        assert_eq!(
            task.env,
            [("A".to_owned(), "b".to_owned()), ("N".to_owned(), "3".to_owned())]
        );
        assert_eq!(task.mounts[0].destination, "/data");
        assert_eq!(task.kill_timeout, Duration::from_secs(20));
        assert_eq!(task.config.attributes().count(), 3);
    }

    #[test]
    fn an_unknown_key_is_named_with_its_line_and_place() {
        let text = JOB.replace("kill_timeout = \"20s\"", "kill_tiemout = \"20s\"");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("web.nomad.hcl:31"), "{error}");
        assert!(
            error.contains("`kill_tiemout` in job \"web\" > group \"one\" > task \"unpack\""),
            "{error}"
        );
        assert!(
            error.contains("kill_timeout"),
            "the message lists what could stand there: {error}"
        );
    }

    #[test]
    fn an_unknown_block_is_named_as_well() {
        let error = parse_text(&JOB.replace("resources {", "resource {"))
            .unwrap_err()
            .to_string();
        assert!(error.contains("unknown key `resource`"), "{error}");
    }

    #[test]
    fn what_only_nomad_can_do_is_refused_by_name() {
        let text = JOB.replace(
            "driver = \"podman\"",
            "driver = \"podman\"\n template {\n data = \"x\"\n }",
        );
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("`template`") && error.contains("not played"), "{error}");
    }

    #[test]
    fn a_mount_of_a_volume_that_the_group_lacks_is_refused() {
        let error = parse_text(&JOB.replace("volume      = \"data\"", "volume = \"dta\""))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("label of a volume block") && error.contains("dta"),
            "{error}"
        );
    }

    #[test]
    fn a_value_of_the_wrong_type_says_what_it_must_be() {
        let error = parse_text(&JOB.replace("cpu    = 500", "cpu = \"much\""))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("`cpu`") && error.contains("whole number") && error.contains("much"),
            "{error}"
        );
    }

    #[test]
    fn a_file_that_is_not_hcl_gives_the_line() {
        let error = parse_text("job \"x\" {\n  group = = 3\n}").unwrap_err().to_string();
        assert!(error.contains("not valid HCL") && error.contains('2'), "{error}");
    }
}
