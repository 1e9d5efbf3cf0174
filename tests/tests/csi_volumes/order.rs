//! Nomad's order of calls, and what comes between them: plugins that restart, calls that come too early or for nothing, a node
//! that is lost.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;

use nix::sys::signal::{Signal, kill};
use proto::csi::v1::volume_capability::access_mode::Mode;
use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Node, Nomad, Use};

use super::{options, server, until, write};

/// Goal: in each access mode the calls of an allocation's life do what they should although another plugin answers each of
/// them. Method: the plugin is killed after every call, and a new one is started on the same ground.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_plugin_may_restart_between_any_two_calls() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let mut plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 0).await;
    let mut before = Vec::new();
    for (mode, read_only) in [
        (Mode::SingleNodeWriter, false),
        (Mode::MultiNodeSingleWriter, false),
        (Mode::MultiNodeSingleWriter, true),
        (Mode::MultiNodeMultiWriter, false),
        (Mode::MultiNodeReaderOnly, true),
        (Mode::SingleNodeReaderOnly, true),
    ] {
        let mut used = Use::of_mode("v1", "alloc", mode);
        used.read_only = read_only;
        let mut context = None;
        for call in ["claim", "mount", "mount again", "unpublish", "unstage", "release"] {
            plugin.kill_only_plugin();
            let next = CsiPlugin::start_with(&ground, "n1", options(&server)).await;
            // Dropping a plugin ends its engine, which is to go on.
            before.push(std::mem::replace(&mut plugin, next));
            nomad = Nomad::new(&ground, &plugin);
            let done = match call {
                "claim" => nomad.claim(&used).await.map(|given| context = Some(given)),
                "mount" | "mount again" => nomad.mount(&used, context.as_ref().expect("it was claimed")).await,
                "unpublish" => nomad.unpublish(&used).await,
                "unstage" => nomad.unstage(&used).await,
                _ => nomad.release("v1", "n1").await,
            };
            done.unwrap_or_else(|status| panic!("{call} of {mode:?}: {status}\n{}", ground.logs()));
            let file = nomad.target(&used).join("file");
            match (call, read_only) {
                ("mount", false) => write(&file, mode.as_str_name()),
                ("mount again", false) => {
                    let text = fs::read_to_string(&file).expect("a restarted plugin disturbs no mount");
                    assert_eq!(text, mode.as_str_name());
                }
                ("mount", true) => assert!(fs::read_to_string(&file).is_ok_and(|text| !text.is_empty())),
                _ => {}
            }
        }
        assert_eq!(ground.mounts(), Vec::<PathBuf>::new(), "{mode:?}: {}", ground.logs());
    }
    nomad.delete("v1").await.expect("nobody has it");
}

/// Goal: what Nomad does in the wrong order harms nothing: unpublishing what was never published (quirk N13), unstaging
/// while others use the volume (rule 3), deleting what is in use (rule 7), releasing what is still mounted (quirk N9).
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn calls_in_the_wrong_order_harm_nothing() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 0).await;
    let (first, second) = (Use::writer("v1", "first"), Use::writer("v1", "second"));
    nomad.stop(&first).await.expect("nothing was published");
    nomad
        .mount(&first, &Default::default())
        .await
        .expect_err("no claim was made");
    nomad.start(&first).await.expect("it is mounted");
    let context = nomad.claim(&second).await.expect("the same node may have it again");
    nomad.mount(&second, &context).await.expect("it is mounted twice");
    nomad.unpublish(&first).await.expect("one ends");
    nomad.unstage(&first).await.expect("Nomad unstages too early");
    write(&nomad.target(&second).join("file"), "still here");
    let refused = nomad.delete("v1").await.expect_err("it is in use");
    assert!(refused.message().contains("n1"), "{refused}");
    nomad
        .release("v1", "n1")
        .await
        .expect("the claim goes although it is mounted");
    write(&nomad.target(&second).join("other"), "and here");
    let context = nomad.claim(&first).await.expect("a new claim");
    nomad
        .mount(&first, &context)
        .await
        .expect("mounted anew under the new claim");
    for used in [&first, &second] {
        let text = fs::read_to_string(nomad.target(used).join("other")).expect("nothing is lost");
        assert_eq!(text, "and here");
    }
    nomad.unpublish(&first).await.expect("it ends");
    nomad.stop(&second).await.expect("it ends");
    nomad.delete("v1").await.expect("nobody has it");
    assert_eq!(ground.mounts(), Vec::<PathBuf>::new(), "{}", ground.logs());
}

/// Goal: a node that is lost loses its volume to another one, and what it does when it comes back reaches nobody: no byte
/// of the new writer is overwritten, and the old one is told. Method: its engine is stopped in the middle of its life, not
/// killed, so that it comes back with everything that it had not sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lost_node_that_comes_back_overwrites_nothing() {
    let Some(server) = server().await else { return };
    let [first, second] = Node::two(&server, "volumes").await;
    let (mut n1, mut n2) = (first.nomad.clone(), second.nomad.clone());
    n1.create("v1", 0).await;
    let used = Use::writer("v1", "alloc");
    n1.start(&used).await.expect("the first node has it");
    write(&n1.target(&used).join("file"), "of the first node");
    let mut late = File::create(n1.target(&used).join("late")).expect("a file");
    let engines = first.plugin.engines();
    for engine in &engines {
        kill(*engine, Signal::SIGSTOP).expect("our engine");
    }
    n2.claim(&used).await.expect_err("the first node still has it");
    n2.release("v1", "n1").await.expect("Nomad gives the lost node up");
    n2.start(&used).await.expect("the second node has it");
    let file = n2.target(&used).join("file");
    assert_eq!(fs::read_to_string(&file).expect("it was fsynced"), "of the first node");
    write(&file, "of the second node");
    for engine in &engines {
        kill(*engine, Signal::SIGCONT).expect("our engine");
    }
    let told = tokio::task::spawn_blocking(move || {
        late.write_all(b"of a node that was lost")?;
        late.sync_all()
    });
    let told = told.await.expect("no panic").expect_err("a lost node is told");
    assert_eq!(told.raw_os_error(), Some(libc::EIO));
    n1.stop(&used).await.expect("a mount that is lost can be unmounted");
    until("the first node has let go", || first.ground.mounts().is_empty()).await;
    assert_eq!(fs::read_to_string(&file).expect("it is there"), "of the second node");
    assert!(
        !n2.target(&used).join("late").exists()
            || fs::metadata(n2.target(&used).join("late")).is_ok_and(|m| m.len() == 0)
    );
    // What the first node's late release took away: it names n1, so n2 keeps its right.
    write(&file, "still of the second node");
    n2.stop(&used).await.expect("it ends");
    second.assert_unmounted();
}
