//! Options that Docker's driver has too: mounts, namespaces, gates, networks and logging, seen from inside the container.

use futures::StreamExt as _;
use podman_driver::podman::Podman as _;
use proto::nomad::driver::fingerprint_response::HealthState;
use proto::nomad::driver::{DnsConfig, FingerprintRequest};
use proto::nomad::structs::attribute::Value as AttributeValue;
use rmpv::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use crate::agent::{Agent, Job, list, map, pairs, within};
use crate::fixture::{BUSYBOX, PodmanService};

fn options(service: &PodmanService, more: Vec<(&'static str, Value)>) -> Vec<(&'static str, Value)> {
    let socket = service.socket().display().to_string();
    let mut options = vec![("socket_path", Value::from(socket))];
    options.extend(more);
    options
}

fn mount(entries: Vec<(&str, Value)>) -> Value {
    map(entries)
}

/// Goal: mount blocks, groups, time zone and namespaces are as the job says.
#[tokio::test]
async fn mounts_groups_and_namespaces_are_as_the_job_says() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let script = "exec > /local/out
echo groups=$(id -G)
echo uts=$(readlink /proc/self/ns/uts)
echo pid=$(readlink /proc/self/ns/pid)
echo bind=$(cat /etc/app/conf):$(touch /etc/app/new 2>/dev/null && echo rw || echo ro)
echo tmpfs=$(grep ' /scratch ' /proc/mounts | grep -c 'size=4096k.*mode=700')
echo volume=$(touch /data/kept && echo rw)
echo clock=$(date +%Z)";
    let volume = format!("features-{}", std::process::id());
    let bind = mount(vec![
        ("type", "bind".into()),
        ("source", "local/conf".into()),
        ("target", "/etc/app".into()),
        ("readonly", true.into()),
    ]);
    let named = mount(vec![("source", volume.clone().into()), ("target", "/data".into())]);
    let memory = mount(vec![
        ("type", "tmpfs".into()),
        ("target", "/scratch".into()),
        (
            "tmpfs_options",
            map(vec![("size", (4 << 20).into()), ("mode", 0o700.into())]),
        ),
    ]);
    let job = Job::new(script)
        .with("group_add", list(&["4242"]))
        .with("uts_mode", "host")
        .with("pid_mode", "host")
        .with("timezone", "local")
        .with("annotations", map(vec![("org.example.team", "blue".into())]))
        .with("mount", Value::Array(vec![bind, named.clone(), memory]));
    std::fs::create_dir(job.local("conf")).unwrap();
    std::fs::write(job.local("conf/conf"), "from-the-host").unwrap();
    assert_eq!(agent.run(&job).await, 0);
    let out = job.wrote("out");
    let found = pairs(&out);
    assert!(found["groups"].split(' ').any(|group| group == "4242"), "{out}");
    let ours = |namespace: &str| std::fs::read_link(format!("/proc/self/ns/{namespace}")).unwrap();
    assert_eq!(found["uts"], ours("uts").to_str().unwrap());
    assert_eq!(found["pid"], ours("pid").to_str().unwrap());
    for (name, want) in [("bind", "from-the-host:ro"), ("tmpfs", "1"), ("volume", "rw")] {
        assert_eq!(found.get(name), Some(&want), "{name} in:\n{out}");
    }
    // The volume outlives the task, and belongs to the next one that names it.
    let next = Job::new("[ -e /data/kept ]").with("mount", Value::Array(vec![named]));
    assert_eq!(agent.run(&next).await, 0);
    service.run(&["volume", "rm", &volume]);
}

/// Goal: what the operator does not allow is refused before anything is made, in words that name the option of both sides,
/// and is not tried again; what is allowed works.
#[tokio::test]
async fn what_the_operator_does_not_allow_is_refused_by_name() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::with_options(options(
        &service,
        vec![
            ("allow_privileged", false.into()),
            ("allow_caps", list(&["net_raw"])),
            ("pids_limit", 64.into()),
            ("volumes", map(vec![("enabled", false.into())])),
        ],
    ))
    .await;
    let etc = mount(vec![
        ("type", "bind".into()),
        ("source", "/etc".into()),
        ("target", "/host".into()),
    ]);
    let refused: [(&'static str, Value, &str); 7] = [
        ("privileged", true.into(), "allow_privileged"),
        ("pid_mode", "host".into(), "allow_privileged"),
        ("ipc_mode", "host".into(), "allow_privileged"),
        ("cap_add", list(&["SYS_ADMIN"]), "allow_caps"),
        ("pids_limit", 65.into(), "pids_limit = 64"),
        ("runtime", "/bin/sh".into(), "allow_runtimes"),
        ("mount", Value::Array(vec![etc]), "volumes are not enabled"),
    ];
    for (option, value, want) in refused {
        let job = Job::new("true").with(option, value);
        let error = agent.start_task(&job).await.unwrap_err();
        assert!(error.message().contains(want), "{option}: {}", error.message());
        assert!(error.details().is_empty(), "{option}: nobody need try again");
    }
    let script = "cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max > /local/pids 2>/dev/null
grep CapEff /proc/self/status > /local/caps";
    let job = Job::new(script).with("cap_add", list(&["CAP_NET_RAW"]));
    agent.run(&job).await;
    assert_eq!(job.wrote("pids").trim(), "64");
    let caps = job.wrote("caps");
    let caps = u64::from_str_radix(caps.split_whitespace().last().unwrap(), 16).unwrap();
    assert_ne!(caps & (1 << 13), 0, "CAP_NET_RAW is bit 13: {caps:x}");
}

/// Goal: hosts and name servers reach a task also where Podman gives it another's files, or none.
#[tokio::test]
async fn names_are_resolved_in_every_network_mode() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let holder = Job::new("sleep 1000")
        .with("network_mode", "bridge")
        .with("extra_hosts", list(&["theirs:192.0.2.7"]));
    agent.started(&holder).await;
    let script = "exec > /local/out
echo host=$(hostname)
echo ours=$(grep -c '192.0.2.9.*db' /etc/hosts)
echo theirs=$(grep -c '192.0.2.7.*theirs' /etc/hosts)
echo dns=$(grep -c 'nameserver 192.0.2.1' /etc/resolv.conf):$(grep -c 'search example.test' /etc/resolv.conf)";
    let joined = format!("container:{}", holder.container());
    for (mode, theirs) in [("bridge", "0"), ("host", "0"), ("none", "0"), (joined.as_str(), "1")] {
        let mut job = Job::new(script)
            .with("network_mode", mode)
            .with("hostname", "inside")
            .with("extra_hosts", list(&["db:192.0.2.9"]));
        let (servers, searches) = (vec!["192.0.2.1".into()], vec!["example.test".into()]);
        job.task.dns = Some(DnsConfig {
            servers,
            searches,
            options: Vec::new(),
        });
        assert_eq!(agent.run(&job).await, 0, "{mode}");
        let out = job.wrote("out");
        let found = pairs(&out);
        for (name, want) in [("host", "inside"), ("ours", "1"), ("theirs", theirs), ("dns", "1:1")] {
            assert_eq!(found.get(name), Some(&want), "{name} with {mode}:\n{out}");
        }
    }
    agent.destroy(&holder, true).await.unwrap();
}

/// Goal: output goes where the job says. Where there is no journald, a job that wants it is told so before it starts.
#[tokio::test]
async fn output_goes_where_the_job_says() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let logging = |driver: &str, options: Vec<(&str, Value)>| {
        map(vec![
            ("driver", driver.into()),
            ("options", Value::Array(vec![map(options)])),
        ])
    };
    let job = Job::new("echo to-a-file");
    let path = job.local("podman.log").display().to_string();
    let job = job.with("logging", logging("k8s-file", vec![("path", path.into())]));
    assert_eq!(agent.run(&job).await, 0);
    assert!(job.wrote("podman.log").ends_with("stdout F to-a-file\n"));
    let job = Job::new("echo to-nobody").with("logging", logging("none", vec![]));
    assert_eq!(agent.run(&job).await, 0);
    let job = Job::new("echo to-the-journal").with("logging", logging("journald", vec![]));
    if std::path::Path::new(podman_driver::logs::JOURNAL_SOCKET).exists() {
        assert_eq!(agent.run(&job).await, 0);
    } else {
        let error = agent.start_task(&job).await.unwrap_err();
        assert!(error.message().contains("no journald"), "{}", error.message());
        assert!(error.details().is_empty());
    }
}

/// Goal: a task never runs with another runtime than the one it asks for. Method: one that is not there; Podman before 5
/// forgets the wish, later ones refuse it.
#[tokio::test]
async fn a_runtime_that_cannot_be_had_is_no_silent_default() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::with_options(options(&service, vec![("allow_runtimes", list(&["crun", "kata"]))])).await;
    let job = Job::new("echo > /local/ran").with("runtime", "kata");
    let error = agent.start_task(&job).await.unwrap_err();
    assert!(error.message().contains("kata"), "{}", error.message());
    assert!(!job.local("ran").exists(), "its program ran");
    let left = service.client().inspect_container(&job.container()).await.unwrap();
    assert!(left.is_none(), "{left:?}");
    let job = Job::new("true").with("runtime", "crun");
    assert_eq!(agent.run(&job).await, 0);
}

/// Goal: an image archive that a job names by URL is fetched and run, and leaves no file behind.
#[tokio::test]
async fn an_archive_at_a_url_is_fetched_and_run() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let archive = service.dir().join(format!("archive-{}.tar", std::process::id()));
    service.run(&["save", "-q", "-o", archive.to_str().unwrap(), BUSYBOX]);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/image.tar", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            // Closing a connection with an unread request would break the answer off.
            let mut request = [0; 4096];
            let _ = stream.read(&mut request).await;
            let bytes = std::fs::read(&archive).unwrap();
            let head = format!(
                "HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n",
                bytes.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&bytes).await.unwrap();
        }
    });
    let job = Job::new("true").with("image", format!("docker-archive:{url}"));
    agent.started(&job).await;
    assert_eq!(agent.exit(&job).await.exit_code, 0);
    let left = std::fs::read_dir(job.local("..")).unwrap().flatten();
    let left: Vec<_> = left
        .map(|entry| entry.file_name())
        .filter(|name| name.to_string_lossy().starts_with(".podman-image"))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    agent.destroy(&job, true).await.unwrap();
    let absent = Job::new("true").with("image", "docker-archive:http://127.0.0.1:1/x.tar");
    let error = agent.start_task(&absent).await.unwrap_err();
    assert!(error.message().contains("127.0.0.1:1") && !error.details().is_empty());
}

/// Goal: each of several services has its own health, and one that is away takes nothing from the others.
#[tokio::test]
async fn each_socket_has_its_own_health() {
    let Some(service) = PodmanService::shared() else { return };
    let socket = |name: &str, path: &str| map(vec![("name", name.into()), ("socket_path", path.into())]);
    let here = service.socket().display().to_string();
    let sockets = vec![
        socket("app-1", &here),
        socket("gone", "/var/tmp/nobody-listens-here.sock"),
    ];
    let agent = Agent::with_options(vec![("socket", Value::Array(sockets))]).await;
    let fingerprints = agent.driver.clone().fingerprint(FingerprintRequest {}).await.unwrap();
    let first = within(fingerprints.into_inner().next()).await.unwrap().unwrap();
    assert_eq!(first.health(), HealthState::Unhealthy);
    assert!(
        first.health_description.ends_with(": gone"),
        "{}",
        first.health_description
    );
    let text = |name: &str| match first.attributes.get(name).and_then(|attribute| attribute.value.clone()) {
        Some(AttributeValue::StringVal(text)) => text,
        other => panic!("{name}: {other:?}"),
    };
    assert_eq!(text("driver.podman.health"), "healthy");
    assert_eq!(text("driver.podman.socketName"), "app-1");
    assert_eq!(text("driver.podman.gone.health"), "unhealthy");
    for name in ["default", "app-1"] {
        assert_eq!(agent.run(&Job::new("exit 3").with("socket", name)).await, 3);
    }
    let away = agent
        .start_task(&Job::new("true").with("socket", "gone"))
        .await
        .unwrap_err();
    assert!(away.message().contains("nobody-listens-here"), "{}", away.message());
    assert!(!away.details().is_empty(), "it may be back soon");
    let unknown = agent
        .start_task(&Job::new("true").with("socket", "other"))
        .await
        .unwrap_err();
    assert!(unknown.message().contains("app-1, default, gone") && unknown.details().is_empty());
}
