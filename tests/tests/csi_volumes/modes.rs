//! Who may use a volume at the same time, and what they see of each other.

use std::fs::{self, File};
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use proto::csi::v1::volume_capability::access_mode::Mode;
use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Node, Nomad, Use};

use super::{options, server, until, write};

/// Goal: readers on any node see what one writer has fsynced, within the promised time, never half of a commit, and whoever
/// is beside whom: the writer comes after the readers on a node of theirs, leaves before them, and goes on on another
/// node. Method: two plugins with engines of their own as two nodes. The writer renames whole files over one name, in
/// which each of many lines is the same number; readers must read whole files, in ascending order.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_on_every_node_follow_the_one_writer() {
    let Some(server) = server().await else { return };
    let [first, second] = Node::two(&server, "volumes").await;
    let (mut n1, mut n2) = (first.nomad.clone(), second.nomad.clone());
    n1.create("v1", 0).await;
    let reader = |alloc: &str| Use::of_mode("v1", alloc, Mode::MultiNodeSingleWriter).read_only();
    let writer = |alloc: &str| Use::of_mode("v1", alloc, Mode::MultiNodeSingleWriter);
    let (r1, r2, w1, w2) = (reader("r1"), reader("r2"), writer("w1"), writer("w2"));
    n1.start(&r1).await.expect("a reader comes first");
    n1.start(&w1).await.expect("a writer comes beside it on the same node");
    n2.start(&r2).await.expect("a reader comes on another node");
    let refused = n2.start(&w2).await.expect_err("there is one writer");
    assert!(refused.message().contains("n1"), "{refused}");
    let denied = File::create(n1.target(&r1).join("x")).expect_err("readers do not write");
    assert_eq!(denied.raw_os_error(), Some(libc::EROFS));

    let mut slowest = Duration::ZERO;
    for round in 0..20 {
        let text = format!("{round}\n").repeat(20_000);
        let dir = n1.target(&w1);
        write(&dir.join("new"), &text);
        fs::rename(dir.join("new"), dir.join("file")).expect("a rename");
        write(&dir.join(format!("mark-{round}")), "");
        let begun = Instant::now();
        for reader in [n1.target(&r1), n2.target(&r2)] {
            until("a reader sees what was fsynced", || {
                let Ok(read) = fs::read_to_string(reader.join("file")) else {
                    return false;
                };
                let line = read.lines().next().expect("no file is empty");
                assert!(
                    read == format!("{line}\n").repeat(20_000),
                    "a torn file in round {round}"
                );
                line == round.to_string() && reader.join(format!("mark-{round}")).exists()
            })
            .await;
        }
        slowest = slowest.max(begun.elapsed());
    }
    println!("the slowest of 20 fsyncs was seen on both nodes after {slowest:?}");

    // An open file that the writer deletes and overwrites space of: a read tells its content, or that it is gone.
    let open = File::open(n2.target(&r2).join("file")).expect("it is there");
    n1.unpublish(&w1).await.expect("the writer ends");
    n1.unstage(&w1).await.expect("its mount goes");
    n2.start(&w2)
        .await
        .expect("the writer goes on on the other node, while readers stay");
    write(&n2.target(&w2).join("moved"), "here");
    for reader in [n1.target(&r1), n2.target(&r2)] {
        until("readers follow the writer that moved", || {
            fs::read_to_string(reader.join("moved")).is_ok_and(|text| text == "here")
        })
        .await;
    }
    let mut start = [0; 3];
    open.read_exact_at(&mut start, 0)
        .expect("a file that is not deleted stays readable");
    assert_eq!(&start, b"19\n");
    drop(open);
    n1.stop(&r1).await.expect("a reader leaves");
    n2.unpublish(&w2).await.expect("the writer leaves");
    n2.unstage(&w2).await.expect("its mount goes");
    n2.stop(&r2).await.expect("the last one leaves");
    n1.delete("v1").await.expect("nobody has it");
    for node in [&first, &second] {
        node.assert_unmounted();
    }
}

/// Goal: where a keeper holds the mounts, readers outlive the engine as writers do: an open file goes on, in a mount that is the
/// same, and what the writer fsyncs afterwards is seen. Method: a reader beside a writer, and an engine that is killed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn readers_beside_a_writer_outlive_the_engine_as_the_writer_does() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let mut options = options(&server);
    options.push(("PANNIER_KEEPER".into(), "true".into()));
    let plugin = CsiPlugin::start_with(&ground, "n1", options).await;
    let mut nomad = Nomad::new(&ground, &plugin);
    nomad.create("v1", 0).await;
    let writer = Use::of_mode("v1", "writer", Mode::MultiNodeSingleWriter);
    let reader = Use::of_mode("v1", "reader", Mode::MultiNodeSingleWriter).read_only();
    nomad.start(&writer).await.expect("the writer's mount");
    nomad.start(&reader).await.expect("the reader's mount");
    write(&nomad.target(&writer).join("file"), "before");
    let seen = nomad.target(&reader).join("file");
    until("the reader sees the file", || {
        fs::read_to_string(&seen).is_ok_and(|text| text == "before")
    })
    .await;
    let open = File::open(&seen).expect("it is there");
    let device = |path: &Path| fs::metadata(path).map(|meta| meta.dev());
    let before = device(&seen).expect("a mount");

    assert_eq!(plugin.kill_only_engine(), 1);
    let mut content = [0; 6];
    open.read_exact_at(&mut content, 0).expect("an open file goes on");
    assert_eq!(&content, b"before");
    write(&nomad.target(&writer).join("file"), "after!");
    until("the reader sees what was written afterwards", || {
        fs::read_to_string(&seen).expect("no error is seen") == "after!"
    })
    .await;
    assert_eq!(device(&seen).expect("a mount"), before, "it is the same mount");
    nomad.stop(&reader).await.expect("the reader leaves");
    nomad.stop(&writer).await.expect("the writer leaves");
    nomad.delete("v1").await.expect("nobody has it");
    assert_eq!(ground.mounts(), Vec::<PathBuf>::new(), "{}", ground.logs());
}

/// Goal: the other modes. Any number of nodes read a multi-node-reader-only volume; a multi-node-multi-writer volume has
/// many writers on one node, and a second node is told which release brings it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_nodes_read_and_many_tasks_of_a_node_write() {
    let Some(server) = server().await else { return };
    let [first, second] = Node::two(&server, "volumes").await;
    let (mut n1, mut n2) = (first.nomad.clone(), second.nomad.clone());
    n1.create("v1", 0).await;
    let writers = ["a", "b", "c"].map(|alloc| Use::of_mode("v1", alloc, Mode::MultiNodeMultiWriter));
    for used in &writers {
        n1.start(used).await.expect("many writers on one node");
        write(&n1.target(used).join(&used.alloc), &used.alloc);
    }
    for used in &writers {
        for alloc in ["a", "b", "c"] {
            let text = fs::read_to_string(n1.target(used).join(alloc)).expect("each sees what the others wrote");
            assert_eq!(text, alloc);
        }
    }
    let refused = n2.claim(&writers[0]).await.expect_err("writers are on one node");
    assert!(refused.message().contains("release"), "{refused}");
    for used in &writers {
        n1.unpublish(used).await.expect("a writer ends");
    }
    n1.stop(&writers[0]).await.expect("the last writer ends");
    let readers = ["d", "e"].map(|alloc| Use::of_mode("v1", alloc, Mode::MultiNodeReaderOnly).read_only());
    for (nomad, used) in [(&mut n1, &readers[0]), (&mut n2, &readers[1])] {
        nomad.start(used).await.expect("any node may read");
        let text = fs::read_to_string(nomad.target(used).join("b")).expect("what was written is there");
        assert_eq!(text, "b");
    }
    for (nomad, used) in [(&mut n1, &readers[0]), (&mut n2, &readers[1])] {
        nomad.stop(used).await.expect("a reader ends");
    }
    for node in [&first, &second] {
        node.assert_unmounted();
    }
}
