//! The client against a real Podman service.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::fixture::{BUSYBOX, PodmanService};
use futures::StreamExt as _;
use podman_driver::podman::{
    Client, ContainerInfo, EventFilter, ExecChunk, ExecSpec, ExitStatus, Podman, PodmanError, PullFailure, PullRequest,
    TtySize,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

/// A minute: nothing here lasts longer than a second on an idle machine.
const PATIENCE: Duration = Duration::from_secs(60);

async fn inspected(podman: &dyn Podman, id: &str) -> ContainerInfo {
    podman
        .inspect_container(id)
        .await
        .unwrap()
        .expect("the container is there")
}

async fn soon<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what)
        .await
        .expect("it takes less than a minute")
}

/// Goal: the verbs of a task's life fit together. Method: one life, with the second call of each that may come twice.
#[tokio::test]
async fn a_container_lives_from_create_to_remove() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    assert_eq!(podman.ping().await.unwrap().major, podman.ping().await.unwrap().major);
    assert!(podman.info().await.unwrap().version.version.is_some());

    let mut spec = service.shell("life", "echo hello; read line < /dev/zero & sleep 0.3; exit 7");
    spec.labels.insert("test.life".to_owned(), "yes".to_owned());
    let id = podman.create_container(&spec).await.unwrap().id;
    assert_eq!(id.len(), 64);
    let taken = podman.create_container(&spec).await.unwrap_err();
    assert!(matches!(taken, PodmanError::Conflict { .. }), "{taken:?}");

    podman.start_container(&id).await.unwrap();
    podman.start_container(&id).await.unwrap();
    let info = inspected(&podman, &id).await;
    assert_eq!(info.name.as_deref(), Some("life"));
    assert_eq!(inspected(&podman, "life").await.id.as_deref(), Some(id.as_str()));

    let exit = soon(podman.wait_exit(&id)).await.unwrap();
    assert_eq!(
        exit,
        ExitStatus {
            code: 7,
            oom_killed: false
        }
    );
    assert_eq!(
        soon(podman.wait_exit(&id)).await.unwrap(),
        exit,
        "the code stays readable"
    );
    podman.kill_container(&id, "SIGTERM").await.unwrap();

    let mine = BTreeMap::from([("test.life".to_owned(), "yes".to_owned())]);
    assert_eq!(podman.list_containers(&mine).await.unwrap().len(), 1);
    podman.remove_container(&id, true).await.unwrap();
    podman.remove_container(&id, true).await.unwrap();
    assert_eq!(podman.inspect_container(&id).await.unwrap(), None);
    assert!(podman.list_containers(&mine).await.unwrap().is_empty());
    assert!(podman.wait_exit(&id).await.unwrap_err().is_not_found());
    assert!(podman.kill_container(&id, "SIGTERM").await.unwrap_err().is_not_found());
}

#[tokio::test]
async fn what_cannot_be_made_is_refused_with_the_reason() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let mut spec = service.shell("refused", "true");
    spec.image = "localhost/absent:1".to_owned();
    let error = podman.create_container(&spec).await.unwrap_err();
    assert!(error.is_not_found() && !error.is_recoverable(), "{error:?}");

    let mut spec = service.shell("refused", "true");
    spec.command = Some(vec!["/bin/absent".to_owned()]);
    let id = podman.create_container(&spec).await.unwrap().id;
    let error = podman.start_container(&id).await.unwrap_err();
    assert!(error.to_string().contains("/bin/absent"), "{error}");
    assert!(!error.is_recoverable(), "{error:?}");
    podman.remove_container(&id, false).await.unwrap();
}

#[tokio::test]
async fn a_signal_ends_a_container_with_its_number() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let id = podman
        .create_container(&service.shell("signals", "trap 'exit 5' USR1; while :; do sleep 0.05; done"))
        .await;
    let id = id.unwrap().id;
    podman.start_container(&id).await.unwrap();
    let unknown = podman.kill_container(&id, "SIGNONSENSE").await.unwrap_err();
    assert!(matches!(unknown, PodmanError::Refused { .. }), "{unknown:?}");
    assert!(matches!(
        podman.remove_container(&id, false).await.unwrap_err(),
        PodmanError::Conflict { .. }
    ));
    podman.kill_container(&id, "SIGKILL").await.unwrap();
    assert_eq!(soon(podman.wait_exit(&id)).await.unwrap().code, 137);
    podman.remove_container(&id, false).await.unwrap();
}

/// Goal: a task's end is learned though Podman was away, when it ended or before. Method: the service is killed under
/// two waits; one container ends while it is away, the other after it came back.
#[tokio::test]
async fn waiting_outlives_the_service() {
    let Some(service) = PodmanService::start() else { return };
    let podman = std::sync::Arc::new(service.client());
    let gate = service.dir().join("gate");
    nix::unistd::mkfifo(&gate, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let mut waits = Vec::new();
    for (name, script) in [
        ("early", "sleep 0.7; exit 3"),
        ("late", "read line < /gate/gate; exit 4"),
    ] {
        let mut spec = service.shell(name, script);
        spec.mounts.push(podman_driver::podman::BindMount {
            destination: "/gate".to_owned(),
            kind: "bind".to_owned(),
            source: service.dir().display().to_string(),
            options: vec!["rbind".to_owned()],
        });
        let id = podman.create_container(&spec).await.unwrap().id;
        podman.start_container(&id).await.unwrap();
        let (podman, awaited) = (podman.clone(), id.clone());
        waits.push((id, tokio::spawn(async move { podman.wait_exit(&awaited).await })));
    }
    let pid = inspected(&*podman, &waits[0].0).await.state.pid.unwrap();
    service.kill();
    let unreachable = podman.ping().await.unwrap_err();
    assert!(
        matches!(unreachable, PodmanError::Unreachable { .. }) && unreachable.is_recoverable(),
        "{unreachable:?}"
    );
    soon(async {
        while std::path::Path::new(&format!("/proc/{pid}")).exists() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    })
    .await;
    service.launch();
    let (_, early) = waits.remove(0);
    assert_eq!(soon(early).await.unwrap().unwrap().code, 3);
    tokio::fs::write(&gate, "go\n").await.unwrap();
    let (_, late) = waits.remove(0);
    assert_eq!(soon(late).await.unwrap().unwrap().code, 4);
}

#[tokio::test]
async fn events_tell_of_start_and_death() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let mut spec = service.shell("events", "exit 9");
    spec.labels.insert("test.events".to_owned(), "1".to_owned());
    let filter = EventFilter {
        labels: spec.labels.clone(),
        statuses: vec!["start".into(), "died".into()],
        since: None,
    };
    let mut events = soon(podman.events(&filter)).await.unwrap();
    let id = podman.create_container(&spec).await.unwrap().id;
    podman.start_container(&id).await.unwrap();
    for expected in ["start", "died"] {
        let event = soon(events.next()).await.unwrap().unwrap();
        assert_eq!((event.id.as_str(), event.status.as_str()), (id.as_str(), expected));
    }
    podman.remove_container(&id, true).await.unwrap();
}

/// Goal: both streams apart, stdin with its end, the exit code. Method: a command that does all three, without and
/// with a terminal.
#[tokio::test]
async fn a_command_gets_stdin_and_its_end_and_gives_both_streams() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let id = podman
        .create_container(&service.shell("exec", "sleep 60"))
        .await
        .unwrap()
        .id;
    podman.start_container(&id).await.unwrap();
    for tty in [false, true] {
        let script = "echo error >&2; cat; stty size 2>/dev/null; exit 3";
        let command = vec!["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        let spec = ExecSpec {
            command,
            tty,
            stdin: true,
            ..ExecSpec::default()
        };
        let session = podman.create_exec(&id, &spec).await.unwrap();
        let size = tty.then_some(TtySize { height: 11, width: 44 });
        let mut streams = soon(podman.start_exec(&session, size)).await.unwrap();
        streams
            .stdin
            .write_all(if tty { b"in\n\x04" } else { b"in\n" })
            .await
            .unwrap();
        streams.stdin.shutdown().await.unwrap();
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        while let Some(chunk) = soon(streams.output.next()).await {
            match chunk.unwrap() {
                ExecChunk::Stdout(bytes) => stdout.extend_from_slice(&bytes),
                ExecChunk::Stderr(bytes) => stderr.extend_from_slice(&bytes),
            }
        }
        let stdout = String::from_utf8(stdout).unwrap();
        if tty {
            assert!(
                stdout.contains("error\r\n") && stdout.ends_with("11 44\r\n"),
                "{stdout:?}"
            );
            assert!(stderr.is_empty());
        } else {
            assert_eq!((stdout.as_str(), stderr.as_slice()), ("in\n", b"error\n".as_slice()));
        }
        let ended = podman.inspect_exec(&session.id).await.unwrap().unwrap();
        assert_eq!((ended.running, ended.exit_code), (Some(false), Some(3)));
        let size = TtySize { height: 1, width: 1 };
        assert!(!podman.resize_exec(&session.id, size).await.unwrap(), "it has ended");
    }
    podman.remove_container(&id, true).await.unwrap();
    assert!(
        podman
            .create_exec(&id, &ExecSpec::default())
            .await
            .unwrap_err()
            .is_not_found()
    );
}

#[tokio::test]
async fn images_come_from_archives_and_unreachable_registries_say_so() {
    let Some(service) = PodmanService::shared() else { return };
    let podman = service.client();
    let id = podman
        .import_image(service.busybox_tar().into(), "localhost/imported:1")
        .await
        .unwrap();
    let image = podman.inspect_image("localhost/imported:1").await.unwrap().unwrap();
    assert!(id.ends_with(image.id.as_deref().unwrap()), "{id} {image:?}");
    assert!(podman.inspect_image(BUSYBOX).await.unwrap().is_some());
    podman.remove_image("localhost/imported:1").await.unwrap();
    assert_eq!(podman.inspect_image("localhost/imported:1").await.unwrap(), None);
    podman.remove_image("localhost/imported:1").await.unwrap();

    let pull = PullRequest {
        reference: "127.0.0.1:9/a:1".into(),
        tls_verify: Some(false),
        ..PullRequest::default()
    };
    let error = soon(podman.pull_image(&pull, &|_| {})).await.unwrap_err();
    assert!(
        matches!(
            error,
            PodmanError::Pull {
                kind: PullFailure::Registry,
                ..
            }
        ),
        "{error:?}"
    );
    assert!(error.is_recoverable());
}

/// Goal: a container whose files Podman's own clean-up still holds is removed all the same, by asking again; one that stays in
/// use is an error after a while. Method: a service that answers as 4.3.1 was seen to.
#[tokio::test]
async fn regression_a_removal_that_meets_podmans_own_cleanup_is_tried_again() {
    for (busy, removed) in [(2, true), (usize::MAX, false)] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("podman.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let service = tokio::spawn(failing_at_first(listener, busy, BUSY));
        let answer = soon(Client::new(socket).remove_container("c", true)).await;
        assert_eq!(answer.is_ok(), removed, "{answer:?}");
        service.abort();
    }
}

/// Goal: a container that ends while Podman looks at it is looked at again, for a while. Method: as before.
#[tokio::test]
async fn regression_an_inspection_that_meets_the_end_of_a_container_is_tried_again() {
    for (gone, told) in [(2, true), (usize::MAX, false)] {
        let dir = tempfile::tempdir().unwrap();
        let socket = dir.path().join("podman.sock");
        let listener = tokio::net::UnixListener::bind(&socket).unwrap();
        let service = tokio::spawn(failing_at_first(listener, gone, GONE));
        let answer = soon(Client::new(socket).inspect_container("c")).await;
        assert_eq!(answer.is_ok(), told, "{answer:?}");
        service.abort();
    }
}

/// What a service fails at, how, and what it says when it does not.
struct Failing {
    request: &'static str,
    failure: &'static str,
    success: &'static str,
}

const BUSY: Failing = Failing {
    request: "DELETE ",
    failure: r#"{"cause":"device or resource busy","message":"removing container c root filesystem: unlinkat /userdata/shm: device or resource busy","response":500}"#,
    success: "[]",
};

const GONE: Failing = Failing {
    request: "/containers/c/json",
    failure: r#"{"cause":"no such process","message":"read /proc/13588/cgroup: no such process","response":500}"#,
    success: r#"{"Id":"c","Name":"c","Image":"i","State":{"Status":"exited"},"Config":{}}"#,
};

/// Answers such requests with a failure as many times, then with success.
async fn failing_at_first(listener: tokio::net::UnixListener, mut times: usize, failing: Failing) {
    while let Ok((mut connection, _)) = listener.accept().await {
        let mut request = Vec::new();
        while !request.ends_with(b"\r\n\r\n") {
            request.push(connection.read_u8().await.unwrap());
        }
        let asked = String::from_utf8_lossy(&request).contains(failing.request);
        let (status, body) = match asked {
            true if times > 0 => ("500 Internal Server Error", failing.failure),
            true => ("200 OK", failing.success),
            false => ("200 OK", "OK"),
        };
        if asked {
            times = times.saturating_sub(1);
        }
        let answer = format!(
            "HTTP/1.1 {status}\r\nLibpod-API-Version: 4.3.1\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        connection.write_all(answer.as_bytes()).await.unwrap();
    }
}

/// Goal: a hundred starts at once do not drown Podman, whose locks would let most wait until their deadlines. Method: a service
/// that answers nobody until eight wait, and sees whether a ninth comes.
#[tokio::test]
async fn regression_no_more_than_eight_calls_change_containers_at_a_time() {
    const CALLS: usize = 20;
    const AT_ONCE: usize = 8;
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("podman.sock");
    let listener = tokio::net::UnixListener::bind(&socket).unwrap();
    let client = Client::new(socket);
    let calls = futures::future::join_all((0..CALLS).map(|n| {
        let (client, name) = (&client, format!("c{n}"));
        async move { client.remove_container(&name, true).await.unwrap() }
    }));
    let service = async {
        let (mut waiting, mut left) = (Vec::new(), CALLS);
        while left > 0 {
            let (mut connection, _) = listener.accept().await.unwrap();
            let mut request = Vec::new();
            while !request.ends_with(b"\r\n\r\n") {
                request.push(connection.read_u8().await.unwrap());
            }
            if !request.starts_with(b"DELETE") {
                answer_ok(&mut connection).await;
                continue;
            }
            waiting.push(connection);
            if waiting.len() == AT_ONCE {
                let ninth = tokio::time::timeout(Duration::from_millis(100), listener.accept()).await;
                assert!(ninth.is_err(), "a ninth call came");
            }
            while !waiting.is_empty() && waiting.len() >= left.min(AT_ONCE) {
                answer_ok(&mut waiting.remove(0)).await;
                left -= 1;
            }
        }
    };
    soon(async { tokio::join!(calls, service) }).await;
}

async fn answer_ok(connection: &mut tokio::net::UnixStream) {
    let answer = "HTTP/1.1 200 OK\r\nLibpod-API-Version: 4.3.1\r\nContent-Length: 2\r\nConnection: close\r\n\r\n[]";
    connection.write_all(answer.as_bytes()).await.unwrap();
}
