//! The node plugin in a container, as jobs/csi-node-podman.nomad.hcl runs it, beside the engine of
//! jobs/pannier-engine.service: image, job and unit are those very files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::binaries::{Program, built};
use tests::csi_plugin::{CsiPlugin, Ground, channel, until_served};
use tests::nomad_calls::{Nomad, Use};
use tests::s3_server::{S3Server, skip};

use super::{server, until, write};

/// The image that jobs/Containerfile makes here.
const IMAGE: &str = "localhost/pannier:test";

/// What it is made from: this machine's C library and certificates, because no registry is asked.
const BASE: &str = "localhost/base:test";

/// What the program trusts stores by.
const CERTIFICATES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// A container of a test may have these on a small host, too.
const LIMITS: [&str; 4] = ["--ulimit", "nofile=1024:4096", "--ulimit", "nproc=4096:8192"];

/// Where the sources are.
fn sources() -> PathBuf {
    let tests = Path::new(env!("CARGO_MANIFEST_DIR"));
    tests.parent().expect("the workspace").to_owned()
}

/// Podman with a storage of its own. Each run of it has mounts of its own, in which crun finds control groups as it wants
/// them; all others are those of the machine, so that what a container mounts is seen outside.
struct Podman {
    dir: tempfile::TempDir,
}

impl Podman {
    fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("pnr-pod-").tempdir();
        Self {
            dir: dir.expect("a folder"),
        }
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let script = "mount --make-rprivate /sys; umount -l /sys/fs/cgroup/unified 2>/dev/null; exec podman \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "unchanged", "sh", "-c", script, "podman"]);
        for (option, place) in [("--root", "root"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            command.arg(option).arg(self.dir.path().join(place));
        }
        command.args(["--cgroup-manager", "cgroupfs"]).args(arguments);
        // conmon leaves a file named oom where it was started.
        command.current_dir(self.dir.path()).stdin(Stdio::null());
        command
    }

    fn run(&self, arguments: &[&str]) -> String {
        finished(&mut self.command(arguments))
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        let removal = self.command(&["rm", "--all", "--force", "--time", "0"]).output();
        // Else the folder's removal is refused by overlays that are still mounted.
        drop(removal);
    }
}

/// Runs a program to its end, which must be a good one, and returns its output.
fn finished(command: &mut Command) -> String {
    let output = command.output().expect("the program starts");
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {said}");
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}

/// A root file system with a shell and what the program needs, imported as an image.
fn import_base(podman: &Podman) {
    let root = podman.dir.path().join("base");
    let put = |from: &str, to: &str| {
        let to = root.join(to.trim_start_matches('/'));
        fs::create_dir_all(to.parent().expect("it has one")).expect("a folder");
        fs::copy(from, to).unwrap_or_else(|error| panic!("{from}: {error}"));
    };
    put("/bin/busybox", "/bin/busybox");
    std::os::unix::fs::symlink("busybox", root.join("bin/sh")).expect("a link");
    put(CERTIFICATES, CERTIFICATES);
    for library in finished(Command::new("ldd").arg(built(Program::Binary("pannier")))).lines() {
        if let Some(path) = library.split_whitespace().find(|word| word.starts_with('/')) {
            put(path, path);
        }
    }
    let archive = podman.dir.path().join("base.tar");
    finished(
        Command::new("tar")
            .arg("-C")
            .arg(&root)
            .arg("-cf")
            .arg(&archive)
            .arg("."),
    );
    podman.run(&["import", "--quiet", &archive.to_string_lossy(), BASE]);
}

/// The image of jobs/Containerfile.
fn build_image(podman: &Podman) {
    import_base(podman);
    let context = podman.dir.path().join("context");
    fs::create_dir(&context).expect("a folder");
    let program = context.join("pannier");
    // Symbols are half a gigabyte, which is of no use here.
    finished(
        Command::new("strip")
            .arg("-o")
            .arg(&program)
            .arg(built(Program::Binary("pannier"))),
    );
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).expect("a mode");
    let file = sources().join("jobs/Containerfile").to_string_lossy().into_owned();
    let base = format!("BASE={BASE}");
    let context = context.to_string_lossy().into_owned();
    podman.run(&[
        "build",
        "--quiet",
        "--build-arg",
        &base,
        "--file",
        &file,
        "--tag",
        IMAGE,
        &context,
    ]);
}

/// A data_dir of Nomad, shared as a client's must be.
struct DataDir(PathBuf);

impl DataDir {
    fn new(path: PathBuf) -> Self {
        fs::create_dir_all(path.join("client/csi/node/pannier/.pannier")).expect("folders");
        let none = None::<&str>;
        mount(Some(&path), &path, none, MsFlags::MS_BIND, none).expect("a bind mount");
        let data_dir = Self(path);
        mount(none, &data_dir.0, none, MsFlags::MS_SHARED, none).expect("a shared mount");
        data_dir
    }

    /// `stage_publish_base_dir` of the job.
    fn root(&self) -> PathBuf {
        self.0.join("client/csi/node/pannier")
    }
}

impl Drop for DataDir {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

/// The engine, as the unit runs it.
struct Engine(Child);

impl Engine {
    fn start(root: &Path) -> Self {
        let unit = fs::read_to_string(sources().join("jobs/pannier-engine.service")).expect("the unit");
        let line = unit.lines().find_map(|line| line.strip_prefix("ExecStart="));
        let state = root.join(".pannier").to_string_lossy().into_owned();
        let line = line.expect("it starts something").replace("${STATE}", &state);
        let mut words = line.split_whitespace();
        assert_eq!(words.next(), Some("/usr/local/bin/pannier"));
        let mut command = Command::new(built(Program::Binary("pannier")));
        command.args(words).envs(S3Server::environment()).stdin(Stdio::null());
        Self(command.stdout(Stdio::null()).spawn().expect("the engine starts"))
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = kill(Pid::from_raw(self.0.id().cast_signed()), Signal::SIGTERM);
        let _ = self.0.wait();
    }
}

/// The job file, read as far as a container needs it: lines of `name = value`.
struct Job {
    text: String,
    data_dir: PathBuf,
    endpoint: String,
}

impl Job {
    fn value(&self, name: &str) -> String {
        let mut found = self.text.lines().filter_map(|line| {
            let (left, right) = line.split_once('=')?;
            (left.trim() == name).then(|| right.trim().to_owned())
        });
        let value = found.next().unwrap_or_else(|| panic!("{name} is not in the job"));
        let value = value.replace("${var.data_dir}", &self.data_dir.to_string_lossy());
        match value.as_str() {
            "\"${node.unique.id}\"" => "n1".to_owned(),
            "var.bucket" => "volumes".to_owned(),
            "var.prefix" => "cluster".to_owned(),
            "var.s3_endpoint" => self.endpoint.clone(),
            literal => literal.trim_matches('"').to_owned(),
        }
    }

    /// The names of `env`.
    fn variables(&self) -> Vec<&str> {
        let names = self
            .text
            .lines()
            .filter_map(|line| line.split_once('=').map(|(name, _)| name.trim()));
        names.filter(|name| name.starts_with("PANNIER_")).collect()
    }

    /// `podman run` with what our driver makes of the job, and what Nomad adds for a CSI plugin.
    fn start(&self, podman: &Podman, plugin_dir: &Path) -> String {
        assert_eq!(self.value("privileged"), "true");
        let root = self.value("stage_publish_base_dir");
        let mut arguments: Vec<String> = ["run", "--detach", "--privileged", "--network", "host"]
            .map(Into::into)
            .to_vec();
        arguments.extend(LIMITS.map(Into::into));
        let mount_dir = self.value("mount_dir");
        for bind in [
            format!("{}:{mount_dir}:rshared", plugin_dir.display()),
            format!("{root}:{root}:rshared"),
            "/dev:/dev".to_owned(),
        ] {
            arguments.extend(["--volume".to_owned(), bind]);
        }
        let ours = self.variables().into_iter().map(|name| (name, self.value(name)));
        let keys = S3Server::environment().map(|(name, value)| (name, value.to_owned()));
        let socket = ("CSI_ENDPOINT", format!("unix://{mount_dir}/csi.sock"));
        for (name, value) in ours.chain(keys).chain([socket]) {
            arguments.extend(["--env".to_owned(), format!("{name}={value}")]);
        }
        arguments.push(IMAGE.to_owned());
        let words = self.value("args");
        arguments.extend(
            words
                .trim_matches(['[', ']'])
                .split(", ")
                .map(|word| word.trim_matches('"').to_owned()),
        );
        podman.run(&arguments.iter().map(String::as_str).collect::<Vec<_>>())
    }
}

/// Why no container can be run here, if none can.
fn unable() -> Option<String> {
    let places = ["/usr/bin", "/bin", "/usr/local/bin"];
    let missing = ["podman", "crun", "conmon", "unshare", "strip", "busybox", "ldd"]
        .into_iter()
        .find(|program| !places.iter().any(|place| Path::new(place).join(program).exists()));
    match missing {
        Some(program) => Some(format!("{program} is not installed")),
        None if !Path::new(CERTIFICATES).exists() => Some("ca-certificates is not installed".to_owned()),
        None => None,
    }
}

/// Goal: a client whose plugin runs in a container has volumes as any other: what the plugin mounts there is seen by host and
/// tasks, goes on when the container is gone, and is taken over by the next one. Method: the image is built by
/// jobs/Containerfile, the plugin is run as the job says, the engine as the unit does; the controller is on the host.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_in_a_container_mounts_volumes_for_the_host() {
    let Some(server) = server().await else { return };
    if let Some(reason) = unable() {
        return skip(&reason);
    }
    let ground = Ground::new();
    let controller = CsiPlugin::start(&ground, &server, "volumes", "controller").await;
    let data_dir = DataDir::new(ground.path("data"));
    let (root, plugin_dir) = (data_dir.root(), ground.path("plugin"));
    fs::create_dir(&plugin_dir).expect("a folder");
    let engine = Engine::start(&root);
    let podman = Podman::new();
    tokio::task::block_in_place(|| build_image(&podman));
    let job = Job {
        text: fs::read_to_string(sources().join("jobs/csi-node-podman.nomad.hcl")).expect("the job"),
        data_dir: data_dir.0.clone(),
        endpoint: server.endpoint().to_owned(),
    };
    let container = tokio::task::block_in_place(|| job.start(&podman, &plugin_dir));
    let socket = plugin_dir.join("csi.sock");
    until_served(&socket).await;
    let mut nomad = Nomad::new(&ground, &controller).with_node(root.clone(), channel(&socket));
    let used = Use::writer("v1", "alloc");
    nomad.create("v1", 0).await;
    let started = nomad.start(&used).await;
    started.unwrap_or_else(|status| panic!("{status}\n{}", podman.run(&["logs", &container])));
    let target = nomad.target(&used);
    write(&target.join("file"), "from the host");
    let mounted = |path: &Path| ground.mounts().iter().filter(|mounted| *mounted == path).count();
    assert_eq!(mounted(&target), 1, "{:?}", ground.mounts());

    tokio::task::block_in_place(|| podman.run(&["kill", &container]));
    write(&target.join("other"), "without a plugin");
    fs::remove_file(&socket).expect("Nomad removes the socket of a plugin that is gone");
    let next = tokio::task::block_in_place(|| job.start(&podman, &plugin_dir));
    until_served(&socket).await;
    assert_eq!(mounted(&target), 1, "it is taken over, not mounted again");
    let text = tokio::task::block_in_place(|| {
        let bind = format!("{}:/data:ro", target.display());
        let mut arguments = vec![
            "run",
            "--rm",
            "--network",
            "host",
            "--volume",
            &bind,
            "--entrypoint",
            "/bin/sh",
        ];
        arguments.extend(LIMITS);
        arguments.extend([IMAGE, "-c", "busybox cat /data/file /data/other"]);
        podman.run(&arguments)
    });
    assert_eq!(text, "from the hostwithout a plugin", "a task reads it");
    nomad.stop(&used).await.expect("the volume is let go");
    let homes = root.join(".pannier/mounts");
    until("nothing is mounted", || {
        !ground
            .mounts()
            .iter()
            .any(|path| path.starts_with(&homes) || path == &target)
    })
    .await;
    nomad.delete("v1").await.expect("nobody has it");
    tokio::task::block_in_place(|| podman.run(&["rm", "--force", "--time", "0", &next]));
    drop((podman, engine));
}
