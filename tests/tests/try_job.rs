//! `pannier try` as a person runs it: its default run, Ctrl-C in the middle of it, and files that are wrong.
//! Real Podman, FUSE and S3 wire; skipped with a printed reason where there is no root or no Podman.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::binaries::{Program, built};
use tests::bounded_command::succeeded;
use tests::environment::program;
use tests::s3_server::{installed, skip};

/// 120 s for what a real agent does within seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// A run's own state directory, on a disk where containers can live.
struct Place {
    dir: tempfile::TempDir,
}

impl Place {
    /// `None`, with the reason printed, where a container cannot run.
    fn new() -> Option<Self> {
        let missing = [
            (!nix::unistd::geteuid().is_root(), "it needs root"),
            (!Path::new("/usr/bin/podman").exists(), "podman is not installed"),
            (!Path::new("/dev/fuse").exists(), "there is no /dev/fuse"),
        ];
        if let Some((_, reason)) = missing.iter().find(|(missing, _)| *missing) {
            #[expect(clippy::disallowed_macros, reason = "a skipped test says why on its own output")]
            {
                println!("skipped: {reason}");
            }
            return None;
        }
        let dir = tempfile::Builder::new()
            .prefix("try-test-")
            .tempdir_in("/var/tmp")
            .expect("a temporary folder");
        Some(Self { dir })
    }

    fn state(&self) -> PathBuf {
        self.dir.path().join("state")
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let _ = built(Program::Binary("nomad-driver-podman"));
        let mut command = Command::new(built(Program::Binary("pannier")));
        command.arg("try").arg("--state-dir").arg(self.state()).args(arguments);
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("the program starts")
    }

    /// What must be gone after a run, whatever became of it: files, mounts, processes.
    fn assert_nothing_is_left(&self) {
        assert!(!self.state().exists(), "the state directory is gone");
        let needle = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo is readable");
        assert!(!mounts.contains(&needle), "no mount below it is left");
        for entry in std::fs::read_dir("/proc").expect("/proc is readable").flatten() {
            let pid = entry.file_name().to_string_lossy().into_owned();
            let line = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let line = String::from_utf8_lossy(&line).replace('\0', " ");
            let own = pid == std::process::id().to_string();
            assert!(own || !line.contains(&needle), "process {pid} is left: {line}");
        }
    }

    /// Volumes that are mounted below it.
    fn mounts(&self) -> Vec<PathBuf> {
        let all = std::fs::read_to_string("/proc/self/mountinfo").expect("mountinfo is readable");
        let mounted = all.lines().filter(|line| line.contains(" - fuse"));
        let paths = mounted.filter_map(|line| line.split(' ').nth(4)).map(PathBuf::from);
        paths.filter(|path| path.starts_with(self.dir.path())).collect()
    }

    /// A process of this run that is `pannier COMMAND`.
    fn process(&self, command: &str) -> Option<Pid> {
        let needle = self.dir.path().display().to_string();
        let all = std::fs::read_dir("/proc").expect("/proc is readable").flatten();
        all.filter_map(|entry| entry.file_name().to_string_lossy().parse().ok())
            .find(|pid: &i32| {
                let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
                let words: Vec<_> = line.split(|byte| *byte == 0).map(String::from_utf8_lossy).collect();
                words.get(1).is_some_and(|word| word == command) && words.iter().any(|word| word.contains(&needle))
            })
            .map(Pid::from_raw)
    }

    fn write(&self, name: &str, text: &str) -> String {
        let path = self.dir.path().join(name);
        std::fs::write(&path, text).expect("the file is written");
        path.display().to_string()
    }
}

fn text(output: &Output) -> (String, String) {
    (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    )
}

/// A small tree to unpack: the run itself is the test, not the size of its input.
fn small_tree(place: &Place) -> String {
    let tree = place.dir.path().join("tree");
    for folder in 0..5 {
        let dir = tree.join(format!("folder {folder}/deeper"));
        std::fs::create_dir_all(&dir).expect("the folder is made");
        for file in 0..20 {
            std::fs::write(
                dir.join(format!("file-{file}.txt")),
                format!("{folder} {file}\n").repeat(file * 100),
            )
            .expect("the program starts");
        }
    }
    tree.display().to_string()
}

/// Two jobs on two nodes: what the first wrote, the second reads from the bucket alone, byte for byte; and the machine is
/// as it was.
#[test]
fn the_default_run_verifies_every_byte_on_another_node_and_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    let tree = small_tree(&place);
    let output = place.run(&["--tree", &tree]);
    let (stdout, stderr) = text(&output);
    assert!(output.status.success(), "{stderr}\n{stdout}");
    assert!(stdout.contains("100 files verified of 100"), "{stdout}");
    assert!(stdout.contains("the database: ok"), "{stdout}");
    assert!(
        stdout.contains("visited by the first node") && stdout.contains("visited by the second node"),
        "{stdout}"
    );
    for step in [
        "CreateVolume",
        "ControllerPublishVolume",
        "NodeStageVolume",
        "NodePublishVolume",
        "StartTask",
    ] {
        assert!(stderr.contains(step), "the step {step} is shown: {stderr}");
    }
    place.assert_nothing_is_left();
}

/// Reads a child's standard error line by line until one contains the words, on a thread of its own for the rest.
fn wait_for_words(child: &mut Child, words: &str) -> std::thread::JoinHandle<String> {
    let mut lines = BufReader::new(child.stderr.take().expect("standard error is a pipe"));
    let mut seen = String::new();
    while !seen.contains(words) {
        assert!(
            lines.read_line(&mut seen).expect("standard error is text") > 0,
            "it ended before it said {words:?}:\n{seen}"
        );
    }
    std::thread::spawn(move || {
        lines.read_to_string(&mut seen).expect("standard error is text");
        seen
    })
}

#[test]
fn ctrl_c_while_a_task_runs_leaves_nothing() {
    let Some(place) = Place::new() else { return };
    let mut child = place.command(&[]).spawn().unwrap();
    let rest = wait_for_words(&mut child, "StartTask");
    kill(Pid::from_raw(child.id().cast_signed()), Signal::SIGINT).unwrap();
    let status = child.wait().unwrap();
    let stderr = rest.join().unwrap();
    assert!(!status.success(), "an interrupted run is no success");
    assert!(stderr.contains("interrupted"), "{stderr}");
    place.assert_nothing_is_left();
}

const JOB: &str = r#"
job "small" {
  type = "batch"
  group "g" {
    task "t" {
      driver = "podman"
      config {
        image = "localhost/none:1"
        OPTION
      }
    }
  }
}
"#;

#[test]
fn a_job_file_with_an_unknown_key_is_refused_by_name_and_line() {
    let Some(place) = Place::new() else { return };
    let job = place.write(
        "job.hcl",
        &JOB.replace("OPTION", "")
            .replace("type = \"batch\"", "tpye = \"batch\""),
    );
    let output = place.run(&["--job", &job]);
    let (_, stderr) = text(&output);
    assert!(!output.status.success());
    assert!(stderr.contains("job.hcl:3") && stderr.contains("`tpye`"), "{stderr}");
    place.assert_nothing_is_left();
}

#[test]
fn a_task_option_of_the_wrong_type_is_refused_by_name_and_line() {
    let Some(place) = Place::new() else { return };
    let job = place.write("job.hcl", &JOB.replace("OPTION", "tmpfs = true"));
    let output = place.run(&["--job", &job]);
    let (_, stderr) = text(&output);
    assert!(!output.status.success());
    assert!(
        stderr.contains("job.hcl:9") && stderr.contains("`tmpfs`") && stderr.contains("list(string)"),
        "{stderr}"
    );
    place.assert_nothing_is_left();
}

#[test]
fn an_image_that_is_not_there_fails_the_run_with_its_name() {
    let Some(place) = Place::new() else { return };
    let job = place.write("job.hcl", &JOB.replace("OPTION", ""));
    let output = place.run(&["--job", &job]);
    let (_, stderr) = text(&output);
    assert!(!output.status.success());
    assert!(
        stderr.contains("StartTask failed") && stderr.contains("localhost/none:1"),
        "{stderr}"
    );
    place.assert_nothing_is_left();
}

/// The `nomad` of NOMAD_BIN or PATH; `None`, with the reason printed, without one.
fn nomad() -> Option<String> {
    let found = program("NOMAD_BIN").or_else(|| installed("nomad"));
    if found.is_none() {
        skip("there is no `nomad`: name it with NOMAD_BIN");
    }
    found.map(|path| path.display().to_string())
}

/// An image of busybox as an archive.
fn image(dir: &Path) -> String {
    let script = r#"
        mkdir -p root/bin root/data root/tmp && cp /bin/busybox root/bin/
        for name in cat echo ls seq sh sleep sync test wc; do ln -s busybox "root/bin/$name"; done
        tar -C root -cf layer.tar .
        sum=$(sha256sum layer.tar | cut -d' ' -f1)
        echo '{"architecture":"amd64","os":"linux","config":{},"rootfs":{"type":"layers","diff_ids":["sha256:'$sum'"]}}' > config.json
        echo '[{"Config":"config.json","RepoTags":["localhost/try-test:latest"],"Layers":["layer.tar"]}]' > manifest.json
        tar -cf image.tar manifest.json config.json layer.tar
    "#;
    succeeded(Command::new("/bin/sh").args(["-euc", script]).current_dir(dir));
    format!("docker-archive:{}", dir.join("image.tar").display())
}

/// A volume and a batch job that does `script` with it at /data, both for an access mode.
fn of_mode(place: &Place, image: &str, (mode, script): (&str, &str)) -> (String, String) {
    let read_only = mode.ends_with("reader-only");
    let volume = format!(
        r#"
id = "try"
name = "try"
type = "csi"
plugin_id = "pannier"
capability {{
  access_mode = "{mode}"
  attachment_mode = "file-system"
}}
"#
    );
    let job = format!(
        r#"
job "uses" {{
  type = "batch"
  group "g" {{
    restart {{
      attempts = 0
      mode = "fail"
    }}
    volume "data" {{
      type = "csi"
      source = "try"
      access_mode = "{mode}"
      attachment_mode = "file-system"
      read_only = {read_only}
    }}
    task "t" {{
      driver = "podman"
      config {{
        image = "{image}"
        command = "/bin/sh"
        args = ["-euc", {script:?}]
      }}
      volume_mount {{
        volume = "data"
        destination = "/data"
        read_only = {read_only}
      }}
      resources {{
        cpu = 100
        memory = 64
      }}
    }}
  }}
}}
"#
    );
    (place.write("volume.hcl", &volume), place.write("job.hcl", &job))
}

const WRITES: &str = "echo text > /data/file; sync /data/file; test \"$(cat /data/file)\" = text";
const READS: &str = "ls /data; if echo text > /data/file; then exit 1; fi";

/// A real agent plays every access mode: it creates the volume, runs a task that uses it, stops it, and deletes the volume again.
#[test]
fn a_real_nomad_plays_every_access_mode_and_leaves_nothing() {
    let (Some(place), Some(nomad)) = (Place::new(), nomad()) else {
        return;
    };
    let image = image(place.dir.path());
    for of in [
        ("single-node-writer", WRITES),
        ("single-node-reader-only", READS),
        ("multi-node-single-writer", WRITES),
        ("multi-node-reader-only", READS),
        ("multi-node-multi-writer", WRITES),
    ] {
        let (volume, job) = of_mode(&place, &image, of);
        let output = place.run(&["--nomad", &nomad, "--job", &job, "--volume", &volume]);
        let (stdout, stderr) = text(&output);
        assert!(output.status.success(), "{of:?}: {stderr}\n{stdout}");
        place.assert_nothing_is_left();
    }
}

/// 200 lines, each synced, over at least ten seconds.
const GOES_ON: &str =
    "for n in $(seq 200); do echo $n >> /data/log; sync /data/log; sleep 0.05; done; test $(wc -l < /data/log) = 200";

/// A real agent's task goes on while the plugin and the engine under it are killed, and Nomad stops it and deletes its volume.
#[test]
fn a_task_of_a_real_nomad_goes_on_while_plugin_and_engine_are_killed() {
    let (Some(place), Some(nomad)) = (Place::new(), nomad()) else {
        return;
    };
    let image = image(place.dir.path());
    let (volume, job) = of_mode(&place, &image, ("single-node-writer", GOES_ON));
    let arguments = ["--nomad", &nomad, "--job", &job, "--volume", &volume];
    let mut child = place.command(&arguments).spawn().unwrap();
    let rest = wait_for_words(&mut child, "job run uses");
    let begun = Instant::now();
    while !place.mounts().iter().any(|mounted| mounted.join("log").exists()) {
        assert!(begun.elapsed() < PATIENCE, "the task does not write");
        assert!(child.try_wait().unwrap().is_none(), "{}", rest.join().unwrap());
        std::thread::park_timeout(Duration::from_millis(50));
    }
    for command in ["engine", "csi", "engine", "csi"] {
        let begun = Instant::now();
        let victim = loop {
            if let Some(found) = place.process(command) {
                break found;
            }
            assert!(begun.elapsed() < PATIENCE, "no process `pannier {command}`");
            assert!(child.try_wait().unwrap().is_none(), "{}", rest.join().unwrap());
            std::thread::park_timeout(Duration::from_millis(50));
        };
        kill(victim, Signal::SIGKILL).unwrap();
        let gone = || place.process(command) != Some(victim);
        while !gone() {
            assert!(begun.elapsed() < PATIENCE, "`pannier {command}` does not end");
            std::thread::park_timeout(Duration::from_millis(50));
        }
    }
    let status = child.wait().unwrap();
    let stderr = rest.join().unwrap();
    assert!(status.success(), "{stderr}");
    place.assert_nothing_is_left();
}
