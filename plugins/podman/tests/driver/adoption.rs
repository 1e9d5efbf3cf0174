//! Tasks of the driver that users come from: the file in `plugin_dir` was swapped, and the agent recovers what it knows.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::io::Read as _;
use std::time::Duration;

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use podman_driver::podman::{Client, ContainerSpec, LogConfiguration, Podman as _};
use proto::nomad::driver::{TaskHandle, TaskState};
use rmpv::Value;

use crate::agent::{Agent, Job, list, map, msgpack};
use crate::fixture::PodmanService;

/// A container as that driver makes it: no labels of ours, and conmon writes Nomad's FIFO itself.
async fn container(service: &PodmanService, podman: &Client, job: &Job, script: &str) -> String {
    let shell = service.shell(&job.container(), script);
    let spec = ContainerSpec {
        env: [("NOMAD_ALLOC_ID".to_owned(), job.task.alloc_id.clone())].into(),
        log_configuration: Some(LogConfiguration {
            driver: "k8s-file".to_owned(),
            path: Some(job.task.stdout_path.clone()),
            ..LogConfiguration::default()
        }),
        ..shell
    };
    let created = podman.create_container(&spec).await.unwrap();
    podman.start_container(&created.id).await.unwrap();
    created.id
}

/// The state that it gave Nomad: a Go structure in msgpack, the time as Go writes it in binary.
fn state(job: &Job, container_id: &str) -> TaskHandle {
    let go_time = Value::Ext(-1, vec![0x66, 0x66, 0x66, 0x66]);
    let options = map(vec![
        ("image", "localhost/busybox:test".into()),
        ("args", list(&["-c", "true"])),
        ("entrypoint", Value::Nil),
        ("auth", map(vec![("username", "".into()), ("tls_verify", false.into())])),
        ("socket", "default".into()),
        ("oom_score_adj", 0.into()),
    ]);
    let net = map(vec![
        ("PortMap", map(vec![("http", 80.into())])),
        ("IP", "10.88.0.7".into()),
        ("AutoAdvertise", true.into()),
    ]);
    TaskHandle {
        version: 1,
        config: Some(job.config()),
        state: TaskState::Running.into(),
        driver_state: msgpack(vec![
            ("TaskConfig", options),
            ("ContainerID", container_id.into()),
            ("StartedAt", go_time),
            ("Net", net),
            ("LogStreamer", false.into()),
        ]),
    }
}

/// Goal: a task of that driver goes on under this one: the same process, its output from then on, its network, its stop and
/// its exit code; and it is removed in the end.
#[tokio::test]
async fn a_running_task_of_the_predecessor_is_adopted() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let mut job = Job::new("");
    let fifo = job.dir().join("alloc/logs/.work.stdout.fifo");
    mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
    job.task.stdout_path = fifo.display().to_string();
    let reader = std::thread::spawn(move || {
        let mut text = String::new();
        std::fs::File::open(fifo).unwrap().read_to_string(&mut text).unwrap();
        text
    });
    let script = "trap 'echo asked to end; exit 7' TERM; while :; do sleep 0.05; done";
    let id = container(&service, &podman, &job, script).await;
    let pid = podman.inspect_container(&id).await.unwrap().unwrap().state.pid;

    let agent = Agent::start(&service.socket()).await;
    agent.recover(&state(&job, &id)).await.unwrap();
    let inspected = agent.inspect(&job).await.unwrap();
    assert!(
        inspected.task.unwrap().started_at.unwrap().seconds > 0,
        "the container knows when it started"
    );
    let network = inspected.network_override.unwrap();
    assert_eq!((network.addr.as_str(), network.port_map["http"]), ("10.88.0.7", 80));
    assert_eq!(podman.inspect_container(&id).await.unwrap().unwrap().state.pid, pid);
    agent.stop(&job, Duration::from_secs(30), "").await.unwrap();
    assert_eq!(agent.exit(&job).await.exit_code, 7);
    agent.destroy(&job, true).await.unwrap();
    assert!(podman.inspect_container(&id).await.unwrap().is_none());
    let text = tokio::task::spawn_blocking(move || reader.join())
        .await
        .unwrap()
        .unwrap();
    assert!(text.ends_with("stdout F asked to end\n"), "{text:?}");
}

/// Goal: a task that ended during the swap is adopted with its true exit code, and one whose container is gone is not.
#[tokio::test]
async fn a_task_that_ended_during_the_swap_keeps_its_exit_code() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let mut job = Job::new("");
    job.task.stdout_path = "/dev/null".into();
    let id = container(&service, &podman, &job, "exit 9").await;
    podman.wait_exit(&id).await.unwrap();
    let agent = Agent::start(&service.socket()).await;
    agent.recover(&state(&job, &id)).await.unwrap();
    assert_eq!(agent.exit(&job).await.exit_code, 9);
    agent.destroy(&job, true).await.unwrap();
    let error = agent.recover(&state(&job, &id)).await.unwrap_err();
    assert!(error.message().contains("is gone"), "{}", error.message());
}
