//! What Nomad's agent relies on in the protocol itself. Most of these need no Podman.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use futures::StreamExt;
use go_plugin::{Agreement, Launch};
use prost::Message;
use proto::google::rpc;
use proto::nomad::base::{ConfigSchemaRequest, PluginInfoRequest, PluginType, SetConfigRequest};
use proto::nomad::driver::fingerprint_response::HealthState;
use proto::nomad::driver::{FingerprintRequest, TaskEventsRequest};
use proto::nomad::structs::attribute::Value as AttributeValue;
use tonic::Code;

use crate::agent::{Agent, Job, PLUGIN, list, map, msgpack, within};
use crate::fixture::PodmanService;

/// A Podman that is not there.
const NOWHERE: &str = "/var/tmp/no-podman-listens-here.sock";

#[tokio::test]
async fn the_plugin_says_who_it_is_and_what_it_takes() {
    let mut agent = Agent::launch().await;
    let info = agent.base.plugin_info(PluginInfoRequest {}).await.unwrap().into_inner();
    assert_eq!((info.name.as_str(), info.r#type), ("podman", PluginType::Driver.into()));
    assert!(info.plugin_api_versions.contains(&"v0.1.0".to_owned()));
    assert!(
        agent
            .base
            .config_schema(ConfigSchemaRequest {})
            .await
            .unwrap()
            .into_inner()
            .spec
            .is_some()
    );
}

/// Trap 9: the plugin is launched twice only to ask questions; it must be fast and touch nothing.
/// Method: its Podman socket is ours, and counts who comes.
#[tokio::test]
async fn questions_and_options_touch_no_podman() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podman.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let visitors = Arc::new(AtomicUsize::new(0));
    let seen = Arc::clone(&visitors);
    tokio::spawn(async move {
        while listener.accept().await.is_ok() {
            seen.fetch_add(1, Ordering::Relaxed);
        }
    });
    let mut agent = Agent::launch().await;
    agent.base.plugin_info(PluginInfoRequest {}).await.unwrap();
    agent.base.config_schema(ConfigSchemaRequest {}).await.unwrap();
    for _ in 0..2 {
        let msgpack_config = msgpack(vec![("socket_path", socket.to_str().unwrap().into())]);
        agent
            .base
            .set_config(SetConfigRequest {
                msgpack_config,
                ..Default::default()
            })
            .await
            .unwrap();
    }
    assert_eq!(visitors.load(Ordering::Relaxed), 0);
    assert!(std::fs::read_dir(dir.path()).unwrap().count() == 1);
}

#[tokio::test]
async fn mistakes_in_the_options_are_told_by_name() {
    let mut agent = Agent::launch().await;
    let msgpack_config = msgpack(vec![
        ("client_http_timeout", "soon".into()),
        ("dns_servers", list(&["x"])),
    ]);
    let error = agent
        .base
        .set_config(SetConfigRequest {
            msgpack_config,
            ..Default::default()
        })
        .await
        .unwrap_err();
    assert!(
        error.message().contains("client_http_timeout") && error.message().contains("dns_servers"),
        "{error}"
    );
}

/// Trap 1: a failed start is an error of the call, and only one that may be tried again says so.
#[tokio::test]
async fn a_start_that_fails_is_an_error_and_says_whether_to_try_again() {
    let agent = Agent::with_options(vec![("socket_path", NOWHERE.into())]).await;
    let error = agent.start_task(&Job::new("true")).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    let details = rpc::Status::decode(error.details()).unwrap();
    assert!(
        details.details[0]
            .type_url
            .ends_with("hashicorp.nomad.plugins.shared.structs.RecoverableError")
    );

    let bad = Job::new("true")
        .with("volumes", list(&["nonsense"]))
        .with("tty", "maybe")
        .with("image", "");
    let error = agent.start_task(&bad).await.unwrap_err();
    assert!(error.details().is_empty());
    assert!(
        error.message().contains("image name required") && error.message().contains("tty"),
        "{error}"
    );
    let auth = map(vec![("username", "me".into()), ("password", "hush".into())]);
    let error = agent
        .start_task(&Job::new("true").with("auth", auth).with("socket", "other"))
        .await
        .unwrap_err();
    assert!(
        error.message().contains("\"other\" was not found") && !error.message().contains("hush"),
        "{error}"
    );
}

/// Trap 5: these streams never end, with a Podman that is down as well.
#[tokio::test]
async fn fingerprint_and_events_begin_at_once_and_never_end() {
    let agent = Agent::with_options(vec![("socket_path", NOWHERE.into())]).await;
    let begun = Instant::now();
    let mut fingerprints = agent
        .driver
        .clone()
        .fingerprint(FingerprintRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = within(fingerprints.next()).await.unwrap().unwrap();
    assert!(
        begun.elapsed() < Duration::from_secs(10),
        "Nomad's own start waits for it"
    );
    assert_eq!(first.health(), HealthState::Undetected);
    let mut events = agent
        .driver
        .clone()
        .task_events(TaskEventsRequest {})
        .await
        .unwrap()
        .into_inner();
    let ends = async {
        tokio::select! { _ = fingerprints.next() => (), _ = events.next() => () }
    };
    assert!(
        tokio::time::timeout(Duration::from_secs(1), ends).await.is_err(),
        "a stream ended or repeated itself"
    );
}

#[tokio::test]
async fn a_podman_that_answers_is_fingerprinted() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let mut fingerprints = agent
        .driver
        .clone()
        .fingerprint(FingerprintRequest {})
        .await
        .unwrap()
        .into_inner();
    let first = within(fingerprints.next()).await.unwrap().unwrap();
    assert_eq!(first.health(), HealthState::Healthy, "{}", first.health_description);
    let text = |name: &str| match first.attributes[name].value.clone().unwrap() {
        AttributeValue::StringVal(text) => text,
        other => format!("{other:?}"),
    };
    assert!(text("driver.podman.version").starts_with(['4', '5']));
    assert!(text("driver.podman.cgroupVersion").starts_with('v'));
    assert!(text("driver.podman.ociRuntime").contains("crun"));
    assert_eq!(text("driver.podman"), "BoolVal(true)");
    assert_eq!(text("driver.podman.rootless"), "BoolVal(false)");
}

/// Trap 11: each task holds streams open for its whole life, and an environment may be large.
/// Method: 300 streams at once, then a call that must still get through, then a start with 8 MiB of environment.
#[tokio::test]
async fn three_hundred_open_streams_and_a_large_environment_are_no_limit() {
    let agent = Agent::with_options(vec![("socket_path", NOWHERE.into())]).await;
    let mut open = Vec::new();
    for _ in 0..300 {
        open.push(
            within(agent.driver.clone().task_events(TaskEventsRequest {}))
                .await
                .unwrap()
                .into_inner(),
        );
    }
    agent.stop(&Job::new("true"), Duration::from_secs(1), "").await.unwrap();
    let mut large = Job::new("true").with("image", "");
    large.task.env.insert("LARGE".into(), "x".repeat(8 << 20));
    let error = agent.start_task(&large).await.unwrap_err();
    assert!(error.message().contains("image name required"), "{error}");
    drop(open);
}

/// Goal: nothing that a job keeps secret is in the plugin's log, at any level.
#[tokio::test]
async fn secrets_are_not_logged() {
    let lines = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&lines);
    let mut launch = Launch::new(Agreement::NOMAD, PLUGIN);
    launch.variables.push(("RUST_LOG".into(), "trace".into()));
    launch.log = Arc::new(move |line| seen.lock().unwrap().push(format!("{line:?}")));
    let mut agent = Agent::of(launch).await;
    let msgpack_config = msgpack(vec![("socket_path", NOWHERE.into())]);
    let request = SetConfigRequest {
        msgpack_config,
        ..Default::default()
    };
    agent.base.set_config(request).await.unwrap();
    let auth = map(vec![("username", "me".into()), ("password", "hush-password".into())]);
    let mut job = Job::new("echo hush-argument").with("auth", auth);
    job.task.env.insert("TOKEN".into(), "hush-environment".into());
    agent.start_task(&job).await.unwrap_err();
    agent.host.shutdown().await;
    let lines = lines.lock().unwrap();
    assert!(lines.iter().any(|line| line.contains("start failed")), "{lines:?}");
    assert!(!lines.iter().any(|line| line.contains("hush")), "{lines:?}");
}

/// Goal: `client_http_timeout` is the deadline of a call to a Podman that has stopped answering, and the start may be
/// tried again.
/// Method: a socket that takes connections and never answers.
#[tokio::test]
async fn a_podman_that_does_not_answer_in_time_is_given_up_on() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podman.sock");
    let _silent = tokio::net::UnixListener::bind(&socket).unwrap();
    let options = vec![
        ("socket_path", socket.to_str().unwrap().into()),
        ("client_http_timeout", "100ms".into()),
    ];
    let agent = Agent::with_options(options).await;
    let begun = Instant::now();
    let error = agent.start_task(&Job::new("true")).await.unwrap_err();
    assert!(begun.elapsed() < Duration::from_secs(20), "took {:?}", begun.elapsed());
    assert_eq!(error.code(), Code::FailedPrecondition, "{error}");
    assert!(!error.details().is_empty(), "{error}");
}
