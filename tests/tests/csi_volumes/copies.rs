//! What other mount namespaces keep of a volume that Nomad has unmounted: the mount at the staging path. The kernel takes mounts away
//! everywhere whose folder is removed, as the plugin does with its own and Nomad's targets; the staging path is Nomad's and stays.

use std::fs;
use std::io::{BufRead, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Nomad, Use};

use super::{server, until, write};

/// A shell in a mount namespace of its own that learns of no unmount here; ended with the value.
struct Elsewhere(Child);

impl Elsewhere {
    fn new(script: &str, file: &Path) -> Self {
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-c", script, "sh"]);
        command.arg(file).stdin(Stdio::piped()).stdout(Stdio::piped());
        Self(command.spawn().expect("unshare is there, for we are root"))
    }

    fn sees(&self, path: &Path) -> bool {
        let mounts = fs::read_to_string(format!("/proc/{}/mountinfo", self.0.id())).unwrap_or_default();
        mounts.contains(path.to_str().expect("plain letters"))
    }

    /// Has it write a line to its file, and tells whether that went well.
    fn writes(&mut self) -> bool {
        let ask = self.0.stdin.as_mut().expect("its input is ours");
        writeln!(ask, "a line").expect("it reads");
        let answer = self.0.stdout.as_mut().expect("its output is ours");
        let mut line = String::new();
        BufReader::new(answer).read_line(&mut line).expect("it answers");
        line.trim() == "written"
    }
}

impl Drop for Elsewhere {
    fn drop(&mut self) {
        // It may have ended by itself.
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

fn closings(ground: &Ground) -> usize {
    ground.logs().matches("the volume is closed").count()
}

/// Goal: a copy of a mount that nobody uses keeps no volume open: whoever makes a mount namespace copies all mounts, and where they
/// are private, the copies stay when Nomad has unmounted the volume, which could never be mounted on this node again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn regression_a_copy_in_another_mount_namespace_does_not_keep_a_volume() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 0).await;
    let (first, second) = (Use::writer("v1", "a"), Use::writer("v1", "b"));
    nomad.start(&first).await.expect("the volume is mounted");
    write(&nomad.target(&first).join("file"), "content");
    let copies = Elsewhere::new("read -r forever", Path::new("/"));
    let staging = nomad.staging(&first);
    until("the other namespace has its copies", || copies.sees(&staging)).await;
    nomad.stop(&first).await.expect("it is unmounted");
    assert!(copies.sees(&staging), "the copy is there still");
    assert_eq!(closings(&ground), 1, "{}", ground.logs());
    nomad.start(&second).await.expect("the volume is free for this node");
    let found = fs::read_to_string(nomad.target(&second).join("file")).expect("the file");
    assert_eq!(found, "content");
    nomad.stop(&second).await.expect("it is unmounted");
    nomad.delete("v1").await.expect("nobody has it");
    drop(copies);
}

/// Goal: a program that Nomad does not know, and that has a file open when the volume is unmounted, goes on until it ends, or until
/// the volume is to be mounted here again: then it is told, and the volume is mounted.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_program_that_nomad_does_not_know_goes_on_until_it_ends_or_the_volume_is_wanted() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 0).await;
    let script = r#"exec 3>>"$1"; while read -r line; do
        if echo "$line" >&3 && sync "$1"; then echo written; else echo failed; fi; done"#;
    let uses = ["a", "b", "c"].map(|alloc| Use::writer("v1", alloc));
    let mut closed = 0;
    for (n, used) in uses.iter().enumerate() {
        nomad.start(used).await.expect("the volume is mounted");
        let file = nomad.staging(used).join("file");
        let mut program = Elsewhere::new(script, &file);
        assert!(program.writes());
        nomad.stop(used).await.expect("it is unmounted");
        assert!(program.writes(), "it goes on");
        assert_eq!(closings(&ground), closed, "{}", ground.logs());
        if n == 0 {
            drop(program);
            until("the volume is closed when its last user has ended", || {
                closings(&ground) == 1
            })
            .await;
        } else {
            let next = Use::writer("v1", "next");
            nomad.start(&next).await.expect("the volume is mounted anew");
            assert!(!program.writes(), "it was cut off");
            nomad.stop(&next).await.expect("it is unmounted");
        }
        closed = closings(&ground);
    }
    let last = Use::writer("v1", "last");
    nomad.start(&last).await.expect("the volume is mounted");
    let lines = fs::read_to_string(nomad.target(&last).join("file")).expect("the file");
    assert_eq!(lines.lines().count(), 2 * uses.len(), "{lines:?}");
    nomad.stop(&last).await.expect("it is unmounted");
}
