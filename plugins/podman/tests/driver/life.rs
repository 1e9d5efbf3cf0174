//! The life of a task: start, wait, inspect, signal, stop, destroy.

use std::time::{Duration, Instant};

use go_plugin::Shutdown;
use podman_driver::podman::Podman as _;
use proto::nomad::driver::{ShutdownRequest, SignalTaskRequest, TaskState, WaitTaskRequest};
use tonic::Code;

use crate::agent::{Agent, Job, list, map, within};
use crate::fixture::PodmanService;

/// Goal: a task runs what the job says, and its exit code arrives. Trap 12: it stays readable until DestroyTask.
/// Method: a script that ends with 7 is waited for twice and inspected, before and after DestroyTask.
#[tokio::test]
async fn a_task_runs_and_its_exit_code_stays_until_it_is_destroyed() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let mut job = Job::new("echo \"$GREETING $1\" > /local/out; exit 7").with(
        "args",
        list(&["-c", "echo \"$GREETING $1\" > /local/out; exit 7", "sh", "you"]),
    );
    job.task.env.insert("GREETING".into(), "hello".into());
    let handle = agent.started(&job).await;
    assert!(handle.version >= 1, "Nomad takes 0 for a task of before 0.9");
    for _ in 0..2 {
        let exit = agent.exit(&job).await;
        assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (7, 0, false));
    }
    assert_eq!(job.wrote("out"), "hello you\n");
    let podman = service.client();
    assert!(podman.inspect_container(&job.container()).await.unwrap().is_some());
    agent.destroy(&job, false).await.unwrap();
    assert!(podman.inspect_container(&job.container()).await.unwrap().is_none());
    assert_eq!(agent.wait(&job).await.unwrap_err().code(), Code::NotFound);
}

/// Trap 2: Nomad cannot be told "not found", so what is gone is stopped and destroyed with success, again and again.
#[tokio::test]
async fn stopping_and_destroying_what_is_gone_succeeds() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new("true");
    for _ in 0..2 {
        agent.stop(&job, Duration::from_secs(5), "").await.unwrap();
        agent.destroy(&job, true).await.unwrap();
    }
    agent.started(&job).await;
    agent.exit(&job).await;
    agent.stop(&job, Duration::from_secs(5), "SIGTERM").await.unwrap();
    for _ in 0..2 {
        agent.destroy(&job, true).await.unwrap();
    }
}

/// Trap 7: Nomad's agent reads nested messages without looking whether they are there.
#[tokio::test]
async fn an_inspected_task_has_all_its_parts_while_it_runs_and_after() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new("echo up > /local/up; read line < /local/never || sleep 1000");
    agent.started(&job).await;
    let inspected = agent.inspect(&job).await.unwrap();
    let (task, driver) = (inspected.task.unwrap(), inspected.driver.unwrap());
    assert_eq!(
        (task.id, task.name, task.state),
        (job.id(), "work".into(), TaskState::Running.into())
    );
    assert!(
        task.started_at.unwrap().seconds > 1_600_000_000,
        "the container's own start"
    );
    assert!(task.completed_at.unwrap().seconds < 0, "year 1 is Go's word for never");
    assert_eq!(task.result.unwrap().exit_code, 0);
    assert_eq!(driver.attributes["container_name"], job.container());
    agent.stop(&job, Duration::ZERO, "").await.unwrap();
    let task = agent.inspect(&job).await.unwrap().task.unwrap();
    assert_eq!(
        (task.state, task.result.unwrap().exit_code),
        (TaskState::Exited.into(), 137)
    );
    assert!(task.completed_at.unwrap().seconds > 1_600_000_000);
    agent.destroy(&job, true).await.unwrap();
}

const TRAPPING: &str = "trap 'echo usr1 >> /local/signals; exit 42' USR1
trap 'echo hup >> /local/signals' HUP
trap 'echo term >> /local/signals' TERM
echo up > /local/up
while true; do sleep 0.05; done";

/// Goal: the job's own signal ends the task, and a task that ignores it is killed when its time is over, to the millisecond.
#[tokio::test]
async fn a_task_is_stopped_with_its_own_signal_or_killed_when_its_time_is_over() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;

    let polite = Job::new(TRAPPING);
    agent.started(&polite).await;
    polite.until_wrote("up").await;
    agent.stop(&polite, Duration::from_secs(60), "SIGUSR1").await.unwrap();
    let exit = agent.exit(&polite).await;
    assert_eq!((exit.exit_code, exit.signal), (42, 0));
    assert_eq!(polite.wrote("signals"), "usr1\n");

    let stubborn = Job::new(TRAPPING);
    agent.started(&stubborn).await;
    stubborn.until_wrote("up").await;
    let begun = Instant::now();
    agent.stop(&stubborn, Duration::from_millis(300), "").await.unwrap();
    let took = begun.elapsed();
    assert!(
        took >= Duration::from_millis(300),
        "killed after {took:?}, before its time was over"
    );
    let exit = agent.exit(&stubborn).await;
    assert_eq!((exit.exit_code, exit.signal), (137, 9));
    assert_eq!(
        stubborn.wrote("signals"),
        "term\n",
        "without a signal of the job's it is SIGTERM"
    );

    for job in [polite, stubborn] {
        agent.destroy(&job, true).await.unwrap();
    }
}

/// Goal: signals reach the task, unknown ones are refused by name, and nobody signals a task that has ended.
#[tokio::test]
async fn signals_reach_the_task() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new(TRAPPING);
    agent.started(&job).await;
    job.until_wrote("up").await;
    let signal = async |name: &str| {
        let request = SignalTaskRequest {
            task_id: job.id(),
            signal: name.to_owned(),
        };
        within(agent.driver.clone().signal_task(request)).await.map(|_| ())
    };
    signal("SIGHUP").await.unwrap();
    assert_eq!(job.until_wrote("signals").await, "hup\n");
    let error = signal("SIGNOPE").await.unwrap_err();
    assert!(error.message().contains("SIGNOPE"), "{error}");
    agent.stop(&job, Duration::ZERO, "").await.unwrap();
    let error = signal("SIGHUP").await.unwrap_err();
    assert!(error.message().contains("is not running"), "{error}");
    agent.destroy(&job, true).await.unwrap();
}

/// Goal: DestroyTask of a running task needs force, and whoever waits learns how it ended.
#[tokio::test]
async fn destroying_a_running_task_needs_force_and_tells_who_waits() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new(TRAPPING);
    agent.started(&job).await;
    let error = agent.destroy(&job, false).await.unwrap_err();
    assert!(error.message().contains("use force"), "{error}");
    let (exit, destroyed) = tokio::join!(agent.exit(&job), agent.destroy(&job, true));
    destroyed.unwrap();
    assert_eq!((exit.exit_code, exit.signal), (137, 9));
}

/// Goal: a program that does not exist fails the start for good, names itself, and leaves no container.
#[tokio::test]
async fn a_start_that_fails_leaves_nothing_behind() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new("").with("command", "/bin/absent");
    let error = agent.start_task(&job).await.unwrap_err();
    assert!(
        error.message().contains("/bin/absent") && error.details().is_empty(),
        "{error:?}"
    );
    let podman = service.client();
    assert!(podman.inspect_container(&job.container()).await.unwrap().is_none());
    assert_eq!(
        agent.run(&job.with("command", "/bin/true")).await,
        0,
        "the same task can be started afterwards"
    );
}

/// Goal: a container left by a start whose plugin died is replaced, even while it runs; a stranger's is not touched.
#[tokio::test]
async fn a_leftover_of_the_same_task_is_replaced_and_a_stranger_is_not() {
    let Some(service) = PodmanService::shared() else { return };
    let first = Agent::start(&service.socket()).await;
    let mut job = Job::new("echo x >> /local/starts; [ $(wc -l < /local/starts) = 2 ] || sleep 1000");
    first.started(&job).await;
    job.until_wrote("starts").await;
    first.kill().await;
    let agent = Agent::start(&service.socket()).await;
    job.task.id.push_str("-again");
    assert_eq!(agent.run(&job).await, 0);
    assert_eq!(job.wrote("starts"), "x\nx\n");

    let podman = service.client();
    let stranger = Job::new("true");
    let spec = service.shell(&stranger.container(), "sleep 1000");
    let id = podman.create_container(&spec).await.unwrap().id;
    let error = agent.start_task(&stranger).await.unwrap_err();
    assert!(error.message().contains("podman rm"), "{error}");
    podman.remove_container(&id, true).await.unwrap();
}

/// Goal: with `gc { container = false }` the container stays for a person to look at, and labels are as the plugin says.
#[tokio::test]
async fn containers_are_kept_and_labelled_as_the_plugin_says() {
    let Some(service) = PodmanService::shared() else { return };
    let socket = service.socket();
    let options = vec![
        ("socket_path", socket.to_str().unwrap().into()),
        ("gc", map(vec![("container", false.into())])),
        ("extra_labels", list(&["job_*", "task_name"])),
    ];
    let agent = Agent::with_options(options).await;
    let job = Job::new("true").with("labels", map(vec![("team", "blue".into())]));
    assert_eq!(agent.run(&job).await, 0);
    let podman = service.client();
    let info = podman.inspect_container(&job.container()).await.unwrap().expect("kept");
    let labels = info.config.labels;
    for (label, want) in [
        ("team", "blue"),
        ("com.hashicorp.nomad.job_name", "tests"),
        ("com.hashicorp.nomad.task_name", "work"),
        ("nomad.podman.task_id", &job.id()),
    ] {
        assert_eq!(labels.get(label).map(String::as_str), Some(want), "{label}");
    }
    assert!(!labels.contains_key("com.hashicorp.nomad.namespace"));
    podman.remove_container(&job.container(), true).await.unwrap();
}

/// Goal: the agent's Shutdown ends the plugin within its two seconds, and leaves the task alone.
#[tokio::test]
async fn a_shutdown_leaves_tasks_running() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new(TRAPPING);
    let handle = agent.started(&job).await;
    let mut waiting = agent.driver.clone();
    let id = job.id();
    let wait = tokio::spawn(async move { waiting.wait_task(WaitTaskRequest { task_id: id }).await });
    agent.driver.clone().shutdown(ShutdownRequest {}).await.unwrap();
    let Agent { host, base, driver } = agent;
    drop((base, driver));
    assert!(matches!(within(host.shutdown()).await, Shutdown::Graceful(exit) if exit.pipes_closed));
    assert!(wait.await.unwrap().is_err());
    let agent = Agent::start(&service.socket()).await;
    agent.recover(&handle).await.unwrap();
    agent.stop(&job, Duration::from_secs(30), "SIGUSR1").await.unwrap();
    assert_eq!(agent.exit(&job).await.exit_code, 42);
    agent.destroy(&job, true).await.unwrap();
}
