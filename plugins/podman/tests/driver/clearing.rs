//! Containers of this node that no task is known of: found by label, given their grace, removed; and nobody else's.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use podman_driver::clearing::Strays;
use podman_driver::config::Config;
use podman_driver::logs::RelayProgram;
use podman_driver::plugin::{Connect, Plugin};
use podman_driver::podman::{Client, ContainerSpec, FakePodman, ImageInfo, Podman};
use proto::nomad::driver::TaskEventsRequest;
use rmpv::Value;

use crate::agent::{Agent, Job, map, within};
use crate::fixture::PodmanService;

async fn stray(service: &PodmanService, podman: &Client, name: &str, labels: &[(&str, &str)]) {
    let labels = labels
        .iter()
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
    let mut spec = service.shell(name, "sleep 1000");
    spec.labels = labels.collect::<BTreeMap<_, _>>();
    let created = podman.create_container(&spec).await.unwrap();
    podman.start_container(&created.id).await.unwrap();
}

async fn is_there(podman: &Client, name: &str) -> bool {
    podman.inspect_container(name).await.unwrap().is_some()
}

fn options(service: &PodmanService) -> Vec<(&'static str, Value)> {
    let dangling = map(vec![("period", "1s".into()), ("creation_grace", "1s".into())]);
    vec![
        ("socket_path", service.socket().display().to_string().into()),
        ("gc", map(vec![("dangling_containers", dangling)])),
    ]
}

/// Goal: what this node's tasks left behind goes away; another node's, somebody's own and a task that runs stay. Method: one
/// container of each kind; once the stray is gone, the others have been looked at as well.
#[tokio::test]
async fn only_this_nodes_containers_without_a_task_are_removed() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let node = format!("node-{}", uuid::Uuid::new_v4());
    let name = |what: &str| format!("{what}-{node}");
    let of = |node: &'static str| ("nomad.podman.node_id", node);
    let ours = ("nomad.podman.driver", "podman");
    let gone = ("nomad.podman.task_id", "gone");
    let node_label: &'static str = Box::leak(node.clone().into_boxed_str());
    stray(&service, &podman, &name("stray"), &[ours, gone, of(node_label)]).await;
    stray(&service, &podman, &name("other"), &[ours, gone, of("another-node")]).await;
    stray(
        &service,
        &podman,
        &name("own"),
        &[("nomad.podman.task_id", "gone"), of(node_label)],
    )
    .await;

    // A task that the plugin below is never told of: it is a stray too.
    let earlier = Agent::start(&service.socket()).await;
    let mut job = Job::new("sleep 1000");
    job.task.node_id.clone_from(&node);
    earlier.started(&job).await;
    earlier.kill().await;

    let mut agent = Agent::with_options(options(&service)).await;
    // What an agent does first of all; without a listener nothing is ever removed.
    agent.driver.init(proto::nomad::driver::InitRequest {}).await.unwrap();
    let _events = agent.driver.task_events(TaskEventsRequest {}).await.unwrap();
    let mut again = Job::new("sleep 1000");
    again.task.node_id.clone_from(&node);
    agent.started(&again).await;
    within(async {
        while is_there(&podman, &name("stray")).await || is_there(&podman, &job.container()).await {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    })
    .await;
    for kept in [name("other"), name("own"), again.container()] {
        assert!(is_there(&podman, &kept).await, "{kept} was removed");
    }
    agent.destroy(&again, true).await.unwrap();
    for kept in [name("other"), name("own")] {
        podman.remove_container(&kept, true).await.unwrap();
    }
}

/// A plugin over a Podman in memory with one stray of the node "n1".
async fn with_stray(dangling: Vec<(&str, Value)>) -> (Plugin, Arc<FakePodman>) {
    let podman = Arc::new(FakePodman::new());
    let image = ImageInfo {
        id: Some("1".into()),
        ..ImageInfo::default()
    };
    podman.add_image("a", image);
    let labels = [
        ("nomad.podman.driver", "podman"),
        ("nomad.podman.node_id", "n1"),
        ("nomad.podman.task_id", "gone"),
    ];
    let spec = ContainerSpec {
        name: "stray".into(),
        image: "a".into(),
        labels: labels.map(|(name, value)| (name.to_owned(), value.to_owned())).into(),
        ..ContainerSpec::default()
    };
    podman.create_container(&spec).await.unwrap();
    podman.start_container("stray").await.unwrap();
    let service: Arc<dyn Podman> = Arc::clone(&podman) as Arc<dyn Podman>;
    let connect: Connect = Arc::new(move |_: &Path, _: Option<Duration>| Arc::clone(&service));
    let options = crate::agent::msgpack(vec![("gc", map(vec![("dangling_containers", map(dangling))]))]);
    let config = Config::decode(&options, 0).unwrap();
    let plugin = Plugin::new(config, connect, RelayProgram::default(), || SystemTime::UNIX_EPOCH);
    (plugin, podman)
}

/// Goal: nothing is removed in a dry run, within the grace, before the node is known, or while no agent is connected.
#[tokio::test]
async fn a_stray_is_left_alone_until_everything_speaks_against_it() {
    let is_left = async |dangling, node: &str, heard: bool| {
        let (plugin, podman) = with_stray(dangling).await;
        plugin.runs_on(node);
        let _agent = heard.then(|| plugin.events.subscribe());
        let mut strays = Strays::default();
        for _look in 0..3 {
            strays.look(&plugin, &plugin.settings()).await;
        }
        podman.inspect_container("stray").await.unwrap().is_some()
    };
    let at_once = || ("creation_grace", Value::from("0"));
    assert!(!is_left(vec![at_once()], "n1", true).await);
    assert!(is_left(vec![at_once(), ("dry_run", true.into())], "n1", true).await);
    assert!(is_left(vec![("creation_grace", "1h".into())], "n1", true).await);
    assert!(is_left(vec![at_once()], "", true).await);
    assert!(is_left(vec![at_once()], "n2", true).await);
    assert!(is_left(vec![at_once()], "n1", false).await);
}

/// Goal: a container that was kept after its end on purpose is no stray, one that runs is.
#[tokio::test]
async fn containers_that_are_kept_after_their_end_stay() {
    for (ended, left) in [(true, true), (false, false)] {
        let (plugin, podman) = with_stray(vec![("creation_grace", "0".into())]).await;
        let mut config = plugin.settings().config.clone();
        config.gc.container = false;
        plugin.configure(config, podman_driver::compute::Compute::default());
        plugin.runs_on("n1");
        let _agent = plugin.events.subscribe();
        if ended {
            let status = podman_driver::podman::ExitStatus {
                code: 0,
                oom_killed: false,
            };
            podman.end("stray", status);
        }
        Strays::default().look(&plugin, &plugin.settings()).await;
        assert_eq!(podman.inspect_container("stray").await.unwrap().is_some(), left);
    }
}
