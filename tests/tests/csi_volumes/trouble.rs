//! Calls that come twice, and a store that does not answer.

use std::time::{Duration, Instant};

use tests::csi_plugin::{CsiPlugin, Ground};
use tests::nomad_calls::{Nomad, Use};
use tests::s3_proxy::{Delays, Fault, S3Proxy};

use super::{options, server, write};

/// Goal: ten parallel duplicates of each call are one. Method: the whole life of a volume, each call ten times at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_duplicates_of_each_call_at_once_are_one() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let nomad = Nomad::new(&ground, &plugin);
    let v1 = Use::writer("v1", "alloc");
    let ten = |call: &'static str| {
        let all = (0..10).map(|_| {
            let (mut nomad, v1) = (nomad.clone(), v1.clone());
            async move {
                match call {
                    "create" => nomad
                        .create_with("v1", 1 << 20, &[])
                        .await
                        .map(|volume| format!("{volume:?}")),
                    "claim" => nomad.claim(&v1).await.map(|context| format!("{context:?}")),
                    "expand" => nomad.expand("v1", 1 << 21).await.map(|bytes| bytes.to_string()),
                    "start" => nomad.start(&v1).await.map(|()| String::new()),
                    "unpublish" => nomad.unpublish(&v1).await.map(|()| String::new()),
                    "unstage" => nomad.unstage(&v1).await.map(|()| String::new()),
                    "release" => nomad.release("v1", "n1").await.map(|()| String::new()),
                    "delete" => nomad.delete("v1").await.map(|()| String::new()),
                    other => unreachable!("{other}"),
                }
            }
        });
        futures::future::join_all(all)
    };
    // HashMap's order differs from value to value, so what it prints is sorted by its characters.
    let sorted = |text: String| {
        let mut letters: Vec<char> = text.chars().collect();
        letters.sort_unstable();
        letters
    };
    for call in [
        "create",
        "claim",
        "expand",
        "start",
        "unpublish",
        "unstage",
        "release",
        "delete",
    ] {
        let answers = ten(call).await.into_iter();
        let answers: Vec<_> = answers
            .map(|answer| sorted(answer.unwrap_or_else(|status| panic!("{call}: {status}\n{}", ground.logs()))))
            .collect();
        assert!(answers.iter().all(|answer| *answer == answers[0]), "{call}");
        if call == "start" {
            write(&nomad.target(&v1).join("file"), "content");
            assert_eq!(
                ground.mounts().len(),
                3,
                "home, staging and target: {:?}",
                ground.mounts()
            );
        }
    }
    assert_eq!(ground.mounts(), Vec::<std::path::PathBuf>::new(), "{}", ground.logs());
}

/// Goal: ten parallel duplicates of each call about snapshots are one, while the volume is mounted and written. Method: a
/// snapshot is made, listed, restored and deleted, each ten times at once; the restored volume is mounted and read.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_duplicates_of_each_snapshot_call_at_once_are_one() {
    let Some(server) = server().await else { return };
    let ground = Ground::new();
    let plugin = CsiPlugin::start(&ground, &server, "volumes", "n1").await;
    let mut nomad = Nomad::new(&ground, &plugin);
    let (v1, restored) = (Use::writer("v1", "a"), Use::writer("restored", "b"));
    nomad.create("v1", 1 << 20).await;
    nomad.start(&v1).await.expect("the volume is mounted");
    write(&nomad.target(&v1).join("file"), "before the snapshot");
    let ten = |call: &'static str| {
        let all = (0..10).map(|_| {
            let mut nomad = nomad.clone();
            async move {
                match call {
                    "make" => nomad.snapshot("v1", "s1").await.map(|snapshot| format!("{snapshot:?}")),
                    "list" => nomad.snapshots().await.map(|snapshots| format!("{snapshots:?}")),
                    "restore" => nomad.restore("restored", "s1").await.map(|volume| volume.volume_id),
                    "delete" => nomad.delete_snapshot("s1").await.map(|()| String::new()),
                    other => unreachable!("{other}"),
                }
            }
        });
        futures::future::join_all(all)
    };
    for call in ["make", "list", "restore", "delete"] {
        let answers: Vec<String> = ten(call)
            .await
            .into_iter()
            .map(|answer| answer.unwrap_or_else(|status| panic!("{call}: {status}\n{}", ground.logs())))
            .collect();
        assert!(
            answers.iter().all(|answer| *answer == answers[0]),
            "{call}: {answers:#?}"
        );
        if call == "list" {
            assert_eq!(answers[0].matches(" snapshot_id: ").count(), 1, "{answers:?}");
        }
        write(&nomad.target(&v1).join("file"), "after the snapshot");
    }
    assert_eq!(nomad.snapshots().await.expect("a list"), []);
    nomad.start(&restored).await.expect("the restored volume is mounted");
    let content = std::fs::read_to_string(nomad.target(&restored).join("file")).expect("its file");
    assert_eq!(content, "before the snapshot");
    for used in [&v1, &restored] {
        nomad.stop(used).await.expect("it ends");
        nomad.delete(&used.volume).await.expect("it goes");
    }
}

/// Goal: a store that never answers for one volume gives each of its calls a bounded, named error, and delays no other
/// volume. Method: a proxy holds every request for one volume while another one goes through its whole life.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stuck_volume_ends_in_time_and_delays_no_other() {
    let Some(server) = server().await else { return };
    let proxy = S3Proxy::start(server.endpoint(), Delays::default()).await;
    let ground = Ground::new();
    let mut options = options(&server);
    options.retain(|(name, _)| name != "PANNIER_S3_ENDPOINT");
    options.push(("PANNIER_S3_ENDPOINT".into(), proxy.endpoint()));
    let plugin = CsiPlugin::start_with(&ground, "n1", options).await;
    let mut nomad = Nomad::new(&ground, &plugin);
    let (stuck, other) = (Use::writer("stuck", "a"), Use::writer("other", "b"));
    for name in ["stuck", "other"] {
        nomad.create(name, 0).await;
    }
    let context = nomad.claim(&stuck).await.expect("all is well yet");
    proxy.set_rule(|seen| {
        let of_it = seen.target.contains("/v/stuck/") || seen.target.contains("v%2Fstuck%2F");
        of_it.then_some(Fault::Hang)
    });
    let begun = Instant::now();
    let waiting = {
        let (mut nomad, stuck) = (nomad.clone(), stuck.clone());
        tokio::spawn(async move { nomad.mount(&stuck, &context).await })
    };
    let claiming = {
        let (mut nomad, stuck) = (nomad.clone(), stuck.clone());
        tokio::spawn(async move { nomad.claim(&stuck).await })
    };
    nomad.start(&other).await.expect("another volume is not delayed");
    write(&nomad.target(&other).join("file"), "content");
    nomad.stop(&other).await.expect("another volume is not delayed");
    assert!(
        !waiting.is_finished(),
        "the other volume was quicker than the stuck one's limit"
    );
    let failed = waiting.await.expect("no panic").expect_err("the store does not answer");
    assert!(
        begun.elapsed() < Duration::from_secs(75),
        "60 s are the limit of a node's call"
    );
    assert!(failed.message().contains("stuck"), "it names the volume: {failed}");
    let failed = claiming
        .await
        .expect("no panic")
        .expect_err("the store does not answer");
    assert!(
        begun.elapsed() < Duration::from_secs(125),
        "110 s are the limit of a controller's call"
    );
    println!("stuck: after {:?}: {failed}", begun.elapsed());
    proxy.clear_rule();
    nomad
        .start(&stuck)
        .await
        .expect("the same calls work when the store answers again");
    nomad.stop(&stuck).await.expect("it ends");
    assert_eq!(ground.mounts(), Vec::<std::path::PathBuf>::new(), "{}", ground.logs());
}
