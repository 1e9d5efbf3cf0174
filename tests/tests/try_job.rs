//! `pannier try` as a person runs it: its default run, Ctrl-C in the middle of it, and files that are wrong.
//! Real Podman, FUSE and S3 wire; skipped with a printed reason where there is no root or no Podman.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tests::binaries::{Program, built};

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
