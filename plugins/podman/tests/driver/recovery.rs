//! Recovery: the plugin dies, the agent restarts, Podman restarts; the task does not notice.

use std::time::Duration;

use podman_driver::podman::Podman as _;

use crate::agent::{Agent, Job, within};
use crate::fixture::PodmanService;

const UNTIL_TOLD: &str = "echo up > /local/up; until [ -e /local/go ]; do sleep 0.05; done; exit 7";

/// Trap 6: after an agent's restart the driver state is all there is.
/// Method: kill -9 the plugin, recover in a new one from a handle whose options and environment are gone, stop the task
/// with its own signal.
#[tokio::test]
async fn a_running_task_is_recovered_from_its_state_alone() {
    let Some(service) = PodmanService::shared() else { return };
    let first = Agent::start(&service.socket()).await;
    let job = Job::new(UNTIL_TOLD);
    let handle = first.started(&job).await;
    job.until_wrote("up").await;
    let pid = service
        .client()
        .inspect_container(&job.container())
        .await
        .unwrap()
        .unwrap()
        .state
        .pid;
    first.kill().await;

    let agent = Agent::start(&service.socket()).await;
    assert!(agent.wait(&job).await.is_err(), "a new plugin knows nothing yet");
    agent.recover(&handle).await.unwrap();
    agent.recover(&handle).await.expect("recovering twice changes nothing");
    let now = service
        .client()
        .inspect_container(&job.container())
        .await
        .unwrap()
        .unwrap()
        .state
        .pid;
    assert_eq!(now, pid, "the task was restarted");
    std::fs::write(job.local("go"), "").unwrap();
    assert_eq!(agent.exit(&job).await.exit_code, 7);
    agent.destroy(&job, true).await.unwrap();
}

/// Goal: a task that ended while no plugin was there is recovered with its true exit code.
#[tokio::test]
async fn a_task_that_ended_unseen_is_recovered_with_its_true_exit_code() {
    let Some(service) = PodmanService::shared() else { return };
    let first = Agent::start(&service.socket()).await;
    let job = Job::new(UNTIL_TOLD);
    let handle = first.started(&job).await;
    first.kill().await;
    std::fs::write(job.local("go"), "").unwrap();
    let podman = service.client();
    let ended = async {
        while podman
            .inspect_container(&job.container())
            .await
            .unwrap()
            .unwrap()
            .is_running()
        {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    within(ended).await;

    let agent = Agent::start(&service.socket()).await;
    agent.recover(&handle).await.unwrap();
    assert_eq!(agent.exit(&job).await.exit_code, 7);
    agent.destroy(&job, true).await.unwrap();
    assert!(podman.inspect_container(&job.container()).await.unwrap().is_none());
}

/// Goal: a task whose container is gone is not recovered, and the destroy that Nomad sends then succeeds; a task that is
/// not taken over is destroyed by its label.
#[tokio::test]
async fn a_task_that_cannot_be_recovered_is_cleaned_up() {
    let Some(service) = PodmanService::shared() else { return };
    let first = Agent::start(&service.socket()).await;
    let (gone, left) = (Job::new(UNTIL_TOLD), Job::new(UNTIL_TOLD));
    let handle = first.started(&gone).await;
    first.started(&left).await;
    first.kill().await;
    let podman = service.client();
    podman.remove_container(&gone.container(), true).await.unwrap();

    let agent = Agent::start(&service.socket()).await;
    let error = agent.recover(&handle).await.unwrap_err();
    assert!(error.message().contains("is gone"), "{error}");
    agent.destroy(&gone, true).await.unwrap();
    agent.destroy(&left, true).await.unwrap();
    assert!(
        podman.inspect_container(&left.container()).await.unwrap().is_none(),
        "found by its label"
    );
}

/// Trap 3: an error of WaitTask is a failed task. Podman's service dies and comes back; the task ends right all the same.
#[tokio::test]
async fn a_restart_of_podman_is_not_the_end_of_a_task() {
    let Some(service) = PodmanService::start() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new(UNTIL_TOLD);
    let handle = agent.started(&job).await;
    job.until_wrote("up").await;
    let waiting = agent.exit(&job);
    tokio::pin!(waiting);
    service.kill();
    assert!(
        tokio::time::timeout(Duration::from_millis(500), &mut waiting)
            .await
            .is_err(),
        "the task is still there"
    );

    // An agent that restarts just now must not lose the task either.
    let second = Agent::start(&service.socket()).await;
    second
        .recover(&handle)
        .await
        .expect("a Podman that is down does not make a running task a failed one");
    std::fs::write(job.local("go"), "").unwrap();
    service.launch();
    assert_eq!(within(waiting).await.exit_code, 7);
    assert_eq!(second.exit(&job).await.exit_code, 7);
    agent.destroy(&job, true).await.unwrap();
    second.destroy(&job, true).await.unwrap();
}

/// Goal: with `recover_stopped` an ended container is started again when its task is recovered.
#[tokio::test]
async fn an_ended_container_is_started_again_if_the_plugin_is_told_to() {
    let Some(service) = PodmanService::shared() else { return };
    let first = Agent::start(&service.socket()).await;
    let job = Job::new("echo x >> /local/starts; exit $(wc -l < /local/starts)");
    let handle = first.started(&job).await;
    assert_eq!(first.exit(&job).await.exit_code, 1);
    first.kill().await;
    let socket = service.socket();
    let options = vec![
        ("socket_path", socket.to_str().unwrap().into()),
        ("recover_stopped", true.into()),
    ];
    let agent = Agent::with_options(options).await;
    agent.recover(&handle).await.unwrap();
    assert_eq!(agent.exit(&job).await.exit_code, 2);
    agent.destroy(&job, true).await.unwrap();
}
