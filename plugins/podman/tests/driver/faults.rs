//! Faults that a real Podman cannot be told to have, at the recipes themselves.
//!
//! Fault model: any one call may fail before it has an effect, or after, or not answer until the test lets it.

#![allow(clippy::unwrap_used, reason = "a helper that cannot go on has failed its test")]

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use podman_driver::config::Config;
use podman_driver::error::DriverError;
use podman_driver::events::Subject;
use podman_driver::grpc;
use podman_driver::logs::RelayProgram;
use podman_driver::nomad_task::NomadTask;
use podman_driver::plugin::{Connect, Plugin};
use podman_driver::podman::{
    ApiVersion, ContainerInfo, ContainerListing, ContainerSpec, CreatedContainer, EventFilter, EventStream, ExecInfo,
    ExecSession, ExecSpec, ExecStreams, ExitStatus, FakePodman, HostInfo, ImageInfo, Podman, PodmanError, PullProgress,
    PullRequest, TtySize,
};
use podman_driver::task::Phase;
use podman_driver::{recover, start, stop};
use tokio::sync::Semaphore;

use crate::agent::{msgpack, within};

/// What happens to a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    /// It fails and nothing has happened.
    Before,
    /// It happens, and its answer is lost.
    After,
    /// It waits for the gate, then goes on.
    Gate,
}

/// A Podman in memory with faults by call.
#[derive(Debug)]
struct Faulty {
    inner: FakePodman,
    faults: Mutex<BTreeMap<&'static str, Fault>>,
    gate: Semaphore,
}

impl Faulty {
    fn new() -> Arc<Self> {
        let inner = FakePodman::new();
        let image = ImageInfo {
            id: Some("sha256:1".into()),
            ..ImageInfo::default()
        };
        inner.add_image("busybox", image.clone());
        inner.add_image("docker.io/library/busybox:latest", image.clone());
        inner.add_image("sha256:1", image);
        Arc::new(Self {
            inner,
            faults: Mutex::default(),
            gate: Semaphore::new(0),
        })
    }

    fn set(&self, call: &'static str, fault: Fault) {
        self.faults.lock().unwrap().insert(call, fault);
    }

    fn heal(&self) {
        self.faults.lock().unwrap().clear();
        self.gate.add_permits(1000);
    }

    async fn call<T>(
        &self,
        name: &'static str,
        effect: impl Future<Output = Result<T, PodmanError>>,
    ) -> Result<T, PodmanError> {
        let fault = self.faults.lock().unwrap().get(name).copied();
        let lost = || PodmanError::TimedOut {
            call: name.to_owned(),
            limit: Duration::from_secs(1),
        };
        match fault {
            Some(Fault::Before) => Err(lost()),
            Some(Fault::After) => effect.await.and_then(|_| Err(lost())),
            Some(Fault::Gate) => {
                self.gate.acquire().await.unwrap().forget();
                effect.await
            }
            None => effect.await,
        }
    }
}

#[async_trait]
impl Podman for Faulty {
    fn socket_path(&self) -> &Path {
        self.inner.socket_path()
    }
    async fn ping(&self) -> Result<ApiVersion, PodmanError> {
        self.call("ping", self.inner.ping()).await
    }
    async fn info(&self) -> Result<HostInfo, PodmanError> {
        self.call("info", self.inner.info()).await
    }
    async fn create_container(&self, spec: &ContainerSpec) -> Result<CreatedContainer, PodmanError> {
        self.call("create", self.inner.create_container(spec)).await
    }
    async fn init_container(&self, id: &str) -> Result<(), PodmanError> {
        self.call("init", self.inner.init_container(id)).await
    }
    async fn start_container(&self, id: &str) -> Result<(), PodmanError> {
        self.call("start", self.inner.start_container(id)).await
    }
    async fn inspect_container(&self, id: &str) -> Result<Option<ContainerInfo>, PodmanError> {
        self.call("inspect", self.inner.inspect_container(id)).await
    }
    async fn list_containers(&self, labels: &BTreeMap<String, String>) -> Result<Vec<ContainerListing>, PodmanError> {
        self.call("list", self.inner.list_containers(labels)).await
    }
    async fn wait_exit(&self, id: &str) -> Result<ExitStatus, PodmanError> {
        self.call("wait", self.inner.wait_exit(id)).await
    }
    async fn kill_container(&self, id: &str, signal: &str) -> Result<(), PodmanError> {
        self.call("kill", self.inner.kill_container(id, signal)).await
    }
    async fn remove_container(&self, id: &str, force: bool) -> Result<(), PodmanError> {
        self.call("remove", self.inner.remove_container(id, force)).await
    }
    async fn inspect_image(&self, reference: &str) -> Result<Option<ImageInfo>, PodmanError> {
        self.call("image", self.inner.inspect_image(reference)).await
    }
    async fn pull_image(&self, pull: &PullRequest, progress: PullProgress<'_>) -> Result<String, PodmanError> {
        self.call("pull", self.inner.pull_image(pull, progress)).await
    }
    async fn load_image(&self, archive: &Path) -> Result<Vec<String>, PodmanError> {
        self.inner.load_image(archive).await
    }
    async fn remove_image(&self, reference: &str) -> Result<(), PodmanError> {
        self.inner.remove_image(reference).await
    }
    async fn network_exists(&self, name: &str) -> Result<bool, PodmanError> {
        self.call("network", self.inner.network_exists(name)).await
    }
    async fn create_exec(&self, container: &str, spec: &ExecSpec) -> Result<ExecSession, PodmanError> {
        self.inner.create_exec(container, spec).await
    }
    async fn start_exec(&self, session: &ExecSession, size: Option<TtySize>) -> Result<ExecStreams, PodmanError> {
        self.inner.start_exec(session, size).await
    }
    async fn resize_exec(&self, session: &str, size: TtySize) -> Result<bool, PodmanError> {
        self.inner.resize_exec(session, size).await
    }
    async fn inspect_exec(&self, session: &str) -> Result<Option<ExecInfo>, PodmanError> {
        self.inner.inspect_exec(session).await
    }
    async fn events(&self, filter: &EventFilter) -> Result<EventStream, PodmanError> {
        self.inner.events(filter).await
    }
}

fn plugin(podman: &Arc<Faulty>) -> Plugin {
    let podman: Arc<dyn Podman> = Arc::clone(podman) as Arc<dyn Podman>;
    let connect: Connect = Arc::new(move |_: &Path, _: Option<Duration>| Arc::clone(&podman));
    Plugin::new(Config::default_for(0), connect, RelayProgram::default(), || {
        SystemTime::UNIX_EPOCH
    })
}

fn task(id: &str) -> NomadTask {
    NomadTask {
        id: id.into(),
        name: "web".into(),
        alloc_id: "alloc".into(),
        alloc_dir: PathBuf::from("/nowhere"),
        stdout_path: "/dev/null".into(),
        stderr_path: "/dev/null".into(),
        ..NomadTask::default()
    }
}

fn options() -> Vec<u8> {
    msgpack(vec![("image", "busybox".into())])
}

async fn started(plugin: &Plugin, id: &str) -> Arc<podman_driver::task::Task> {
    within(start::start(plugin.clone(), task(id), options())).await.unwrap()
}

/// Goal: whichever step of a start fails, before or after its effect, nothing is left, Nomad may try again, and the next
/// try succeeds.
#[tokio::test]
async fn a_start_that_fails_at_any_step_leaves_nothing_and_may_be_tried_again() {
    for (call, fault) in [
        ("info", Fault::Before),
        ("inspect", Fault::Before),
        ("image", Fault::Before),
        ("create", Fault::Before),
        ("create", Fault::After),
        ("init", Fault::Before),
        ("init", Fault::After),
        ("start", Fault::Before),
        ("start", Fault::After),
    ] {
        let podman = Faulty::new();
        let plugin = plugin(&podman);
        podman.set(call, fault);
        let error = within(start::start(plugin.clone(), task("a"), options()))
            .await
            .unwrap_err();
        assert!(error.is_recoverable(), "{call} {fault:?}: {error}");
        assert!(!grpc::start_status(&error).details().is_empty());
        podman.heal();
        let left = podman.inspect_container("web-alloc").await.unwrap();
        // A create whose answer was lost leaves a container that nobody knows the id of: the next start replaces it.
        assert!(
            left.is_none() || (call, fault) == ("create", Fault::After),
            "{call} {fault:?} left a container"
        );
        assert!(plugin.roster.get("a").is_none());
        let task = started(&plugin, "a").await;
        assert_eq!(task.phase(), Phase::Running, "{call} {fault:?}");
    }
}

/// Goal: a start whose container cannot be removed again reports its own failure, and the next one replaces the container.
#[tokio::test]
async fn a_failed_start_that_cannot_clean_up_is_cleaned_up_by_the_next() {
    let podman = Faulty::new();
    let plugin = plugin(&podman);
    podman.set("start", Fault::After);
    podman.set("remove", Fault::Before);
    let error = within(start::start(plugin.clone(), task("a"), options()))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("start the container"), "{error}");
    podman.heal();
    let left = podman.inspect_container("web-alloc").await.unwrap().unwrap().id;
    let task = started(&plugin, "b").await;
    assert_ne!(Some(task.handle.container_id.clone()), left);
}

/// Goal: a caller that goes away in the middle of a start leaves no half-made container: the start goes on to its end.
#[tokio::test]
async fn a_start_goes_on_when_its_caller_goes_away() {
    let podman = Faulty::new();
    let plugin = plugin(&podman);
    podman.set("start", Fault::Gate);
    let caller = start::start(plugin.clone(), task("a"), options());
    assert!(tokio::time::timeout(Duration::from_millis(100), caller).await.is_err());
    let second = within(start::start(plugin.clone(), task("a"), options()))
        .await
        .unwrap_err();
    assert!(
        matches!(second, DriverError::Starting { .. }) && second.is_recoverable(),
        "{second}"
    );
    podman.heal();
    let known = async {
        while plugin.roster.get("a").is_none() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    within(known).await;
    let again = started(&plugin, "a").await;
    assert_eq!(
        Some(&again.handle.container_id),
        podman
            .inspect_container("web-alloc")
            .await
            .unwrap()
            .unwrap()
            .id
            .as_ref()
    );
}

/// Trap 3 and 12: a container that somebody removed ends its task with a text, not with an error of the call.
#[tokio::test]
async fn a_container_that_vanishes_ends_its_task_as_failed() {
    let podman = Faulty::new();
    let plugin = plugin(&podman);
    let task = started(&plugin, "a").await;
    podman.remove_container(&task.handle.container_id, true).await.unwrap();
    let exit = within(task.ended()).await;
    assert_ne!(exit.code, 0);
    assert!(exit.error.unwrap().contains("removed by somebody else"));
    within(stop::stop(&plugin, "a", Duration::from_secs(5), ""))
        .await
        .unwrap();
    within(stop::destroy(&plugin, "a", false)).await.unwrap();
}

/// Goal: giving up waiting loses nothing, and many may wait.
#[tokio::test]
async fn many_may_wait_and_giving_up_loses_nothing() {
    let podman = Faulty::new();
    let plugin = plugin(&podman);
    let task = started(&plugin, "a").await;
    for _ in 0..10 {
        assert!(
            tokio::time::timeout(Duration::from_millis(1), task.ended())
                .await
                .is_err()
        );
    }
    let waiting = futures::future::join_all((0..10).map(|_| task.ended()));
    podman.inner.end(
        "web-alloc",
        ExitStatus {
            code: 3,
            oom_killed: false,
        },
    );
    for exit in within(waiting).await {
        assert_eq!(exit.code, 3);
    }
}

/// Goal: recovery does not need Podman to answer, and a Podman that says the container never ran is believed.
#[tokio::test]
async fn recovery_trusts_the_state_until_podman_says_otherwise() {
    let podman = Faulty::new();
    let first = plugin(&podman);
    let state = started(&first, "a").await.handle.encode();
    let of = Subject {
        task_id: "a".into(),
        ..Subject::default()
    };
    podman.set("inspect", Fault::Before);
    let second = plugin(&podman);
    let task = within(recover::recover(&second, &of, &state)).await.unwrap();
    podman.heal();
    podman.inner.end(
        "web-alloc",
        ExitStatus {
            code: 9,
            oom_killed: false,
        },
    );
    assert_eq!(within(task.ended()).await.code, 9);

    let third = plugin(&podman);
    let error = within(recover::recover(&third, &of, b"{\"version\":99}"))
        .await
        .unwrap_err();
    assert!(error.to_string().contains("newer plugin"), "{error}");
    assert!(third.roster.get("a").is_none());
}

/// Goal: a stop whose signal cannot be delivered is an error that Nomad repeats; the task is still known.
#[tokio::test]
async fn a_stop_that_fails_can_be_repeated() {
    let podman = Faulty::new();
    let plugin = plugin(&podman);
    started(&plugin, "a").await;
    podman.set("kill", Fault::Before);
    let error = within(stop::stop(&plugin, "a", Duration::from_secs(1), "SIGINT"))
        .await
        .unwrap_err();
    assert!(matches!(error, DriverError::Podman { .. }), "{error}");
    podman.heal();
    within(stop::stop(&plugin, "a", Duration::from_millis(20), "SIGINT"))
        .await
        .unwrap();
    within(stop::destroy(&plugin, "a", false)).await.unwrap();
    assert!(podman.inspect_container("web-alloc").await.unwrap().is_none());
}

/// Goal: a destroy of a task that nobody knows is quick and succeeds also when Podman does not answer.
#[tokio::test]
async fn destroying_the_unknown_succeeds_without_podman() {
    let podman = Faulty::new();
    let plugin = plugin(&podman);
    podman.set("list", Fault::Before);
    within(stop::destroy(&plugin, "a", true)).await.unwrap();
}

/// Goal: an agent's start is not held up by a Podman that hangs, however many tasks there are: the first recovery waits a
/// moment, the others do not. Method: inspection never answers; fifty tasks are recovered one after the other.
#[tokio::test]
async fn a_hanging_podman_does_not_hold_up_the_agents_start() {
    let podman = Faulty::new();
    let first = plugin(&podman);
    let state = started(&first, "a").await.handle.encode();
    podman.set("inspect", Fault::Gate);
    let second = plugin(&podman);
    let tasks: Vec<String> = (0..50).map(|number| format!("task-{number}")).collect();
    let recovering = async {
        for id in &tasks {
            let of = Subject {
                task_id: id.clone(),
                ..Subject::default()
            };
            recover::recover(&second, &of, &state).await.unwrap();
        }
    };
    within(recovering).await;
    podman.heal();
    let status = ExitStatus {
        code: 4,
        oom_killed: false,
    };
    podman.inner.end("web-alloc", status);
    for id in &tasks {
        let task = second.roster.get(id).unwrap();
        assert_eq!(within(task.ended()).await.code, 4, "{id}");
    }
}
