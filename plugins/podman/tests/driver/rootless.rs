//! A Podman service of a user who is not root, beside root's.

use std::fs::Permissions;
use std::io::Read as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use proto::nomad::driver::FingerprintRequest;
use proto::nomad::driver::fingerprint_response::HealthState;
use rmpv::Value;
use tokio_stream::StreamExt as _;

use crate::agent::{Agent, Job, map, within};
use crate::fixture::PodmanService;

/// Goal: one plugin runs tasks of root's service and of a user's: the user's task has its output carried, its exit code and
/// its files, and is root only inside. When the user's service dies, root's goes on.
/// Method: both services as named sockets; a task on each, whose output is read from Nomad's FIFO.
#[tokio::test]
async fn a_rootless_service_runs_tasks_beside_the_rootful_one() {
    let (Some(root), Some(user)) = (PodmanService::shared(), PodmanService::rootless()) else {
        return;
    };
    let socket = |name: &str, service: &PodmanService| {
        let path = service.socket().display().to_string();
        map(vec![("name", name.into()), ("socket_path", path.into())])
    };
    let sockets = vec![socket("default", &root), socket("user", &user)];
    let agent = Agent::with_options(vec![("socket", Value::Array(sockets))]).await;
    let fingerprints = agent.driver.clone().fingerprint(FingerprintRequest {}).await.unwrap();
    let first = within(fingerprints.into_inner().next()).await.unwrap().unwrap();
    assert_eq!(first.health(), HealthState::Healthy, "{}", first.health_description);
    let rootless = |name: &str| format!("{:?}", first.attributes[name].value);
    assert!(rootless("driver.podman.rootless").contains("false"));
    assert!(rootless("driver.podman.user.rootless").contains("true"));

    let hidden = Job::new("true").with("socket", "user");
    std::fs::set_permissions(hidden.dir(), Permissions::from_mode(0o700)).unwrap();
    let hidden = agent.start_task(&hidden).await.unwrap_err();
    assert!(hidden.message().contains("chmod o+x"), "{}", hidden.message());

    let script = "echo out; echo in >&2; cat /proc/self/uid_map; echo kept > /alloc/data/kept; exit 7";
    for (name, inside) in [("default", None), ("user", Some(1))] {
        let mut job = Job::new(script).with("socket", name);
        // As an agent's own folders are.
        for place in [".", "alloc/data"] {
            let open = Permissions::from_mode(0o777);
            std::fs::set_permissions(job.dir().join(place), open).unwrap();
        }
        let fifo = job.dir().join("alloc/logs/.work.stdout.fifo");
        mkfifo(&fifo, Mode::S_IRUSR | Mode::S_IWUSR).unwrap();
        job.task.stdout_path = fifo.display().to_string();
        let read = tokio::task::spawn_blocking(move || {
            let mut text = String::new();
            std::fs::File::open(fifo)
                .unwrap()
                .read_to_string(&mut text)
                .map(|_| text)
        });
        agent.started(&job).await;
        assert_eq!(agent.exit(&job).await.exit_code, 7, "{name}");
        let text = within(read).await.unwrap().unwrap();
        let mut lines = text.lines();
        assert_eq!(lines.next(), Some("out"), "{name}: {text:?}");
        let ids: Vec<u32> = lines.next().unwrap().split_whitespace().flat_map(str::parse).collect();
        assert_eq!(
            ids[..2],
            [0, inside.unwrap_or(0)],
            "{name}: whom root inside is on the host"
        );
        let kept = std::fs::metadata(job.dir().join("alloc/data/kept")).unwrap();
        assert_eq!(kept.uid(), inside.unwrap_or(0), "{name}");
        agent.destroy(&job, true).await.unwrap();
        assert!(
            !job.dir().join("work/.podman-log").exists(),
            "{name}: the log goes with the task"
        );
    }

    user.kill();
    assert_eq!(agent.run(&Job::new("exit 3")).await, 3, "root's service goes on");
}
