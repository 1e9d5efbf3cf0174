//! The task's options as the container sees them. Each test looks from inside.

use proto::nomad::driver::network_isolation_spec::NetworkIsolationMode;
use proto::nomad::driver::{Device, DnsConfig, Mount, NetworkIsolationSpec, PortMapping};

use crate::agent::{Agent, Job, list, map, pairs};
use crate::fixture::PodmanService;

/// Goal: what a job says of its process is what the process finds.
#[tokio::test]
async fn a_process_finds_what_its_job_says() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let script = "exec > /local/out
echo user=$(id -u):$(id -g)
echo dir=$(pwd)
echo host=$(hostname)
echo nofile=$(ulimit -Sn):$(ulimit -Hn)
echo caps=$(grep CapEff /proc/self/status | cut -f2)
echo privs=$(grep NoNewPrivs /proc/self/status | cut -f2)
echo tmpfs=$(grep ' /scratch ' /proc/mounts | cut -d' ' -f1)
echo root=$(touch /new 2>/dev/null && echo writable || echo readonly)
echo dns=$(grep -c 'nameserver 192.0.2.1' /etc/resolv.conf):$(grep -c 'search example.test' /etc/resolv.conf)
echo hosts=$(grep -c '192.0.2.9.*db' /etc/hosts)
echo shm=$(df -k /dev/shm | tail -1 | tr -s ' ' | cut -d' ' -f2)
echo null=$([ -c /dev/extra ] && echo device)";
    let mut job = Job::new(script)
        .with("working_dir", "/tmp")
        .with("hostname", "inside")
        .with("ulimit", map(vec![("nofile", "512:1024".into())]))
        .with("cap_drop", list(&["ALL"]))
        .with("security_opt", list(&["no-new-privileges"]))
        .with("tmpfs", list(&["/scratch:size=1m"]))
        .with("readonly_rootfs", true)
        .with("extra_hosts", list(&["db:192.0.2.9"]))
        .with("shm_size", "2m");
    job.task.user = "65534:65534".into();
    let (servers, searches) = (vec!["192.0.2.1".into()], vec!["example.test".into()]);
    job.task.dns = Some(DnsConfig {
        servers,
        searches,
        options: Vec::new(),
    });
    job.task.devices.push(Device {
        task_path: "/dev/extra".into(),
        host_path: "/dev/null".into(),
        cgroup_permissions: "rwm".into(),
    });
    std::fs::set_permissions(job.local(""), std::os::unix::fs::PermissionsExt::from_mode(0o777)).unwrap();
    assert_eq!(agent.run(&job).await, 0);
    let out = job.wrote("out");
    let found = pairs(&out);
    for (name, want) in [
        ("user", "65534:65534"),
        ("dir", "/tmp"),
        ("host", "inside"),
        ("nofile", "512:1024"),
        ("caps", "0000000000000000"),
        ("privs", "1"),
        ("tmpfs", "tmpfs"),
        ("root", "readonly"),
        ("dns", "1:1"),
        ("hosts", "1"),
        ("shm", "2048"),
        ("null", "device"),
    ] {
        assert_eq!(found.get(name), Some(&want), "{name} in:\n{out}");
    }
}

/// Goal: a task that says nothing of limits starts on a host whose hard limits are below Podman's defaults, and one that
/// asks for more than the host has is told both numbers.
#[tokio::test]
async fn limits_fit_the_host_by_themselves() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new("ulimit -Hn > /local/out");
    assert_eq!(agent.run(&job).await, 0);
    let hard: u64 = job.wrote("out").trim().parse().unwrap();
    assert!(hard >= 1024);

    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("CapEff:"))
        .unwrap()
        .trim();
    if u64::from_str_radix(mask, 16).unwrap() & (1 << 24) == 0 {
        let greedy = Job::new("true").with("ulimit", map(vec![("nofile", "99999999".into())]));
        let error = agent.start_task(&greedy).await.unwrap_err();
        assert!(
            error.message().contains("99999999") && error.message().contains("nofile"),
            "{error}"
        );
    }
    let socket = service.socket();
    let limits = map(vec![("nofile", "256:512".into())]);
    let agent = Agent::with_options(vec![
        ("socket_path", socket.to_str().unwrap().into()),
        ("default_ulimit", rmpv::Value::Array(vec![limits])),
    ])
    .await;
    let job = Job::new("ulimit -Hn > /local/out");
    assert_eq!(agent.run(&job).await, 0);
    assert_eq!(job.wrote("out").trim(), "512");
}

/// Goal: volumes and Nomad's mounts are there, read-only where said, and a later mount on the host reaches a task that
/// asked for propagation.
#[tokio::test]
async fn volumes_and_mounts_are_there() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let script = "exec > /local/out
echo volume=$(cat /vol/file)
echo relative=$(cat /rel/file)
echo mount=$(cat /data/file)
echo readonly=$(touch /data/new 2>/dev/null && echo no || echo yes)
echo slave=$(grep ' /slave ' /proc/self/mountinfo | grep -c 'master:')
echo secrets=$(cat /secrets/token)";
    let mut job = Job::new(script);
    let host = tempfile::Builder::new()
        .prefix("volume-")
        .tempdir_in("/var/tmp")
        .unwrap();
    std::fs::write(host.path().join("file"), "from-host").unwrap();
    std::fs::create_dir(job.local("sub")).unwrap();
    std::fs::write(job.local("sub/file"), "from-task").unwrap();
    std::fs::write(job.dir().join("work/secrets/token"), "secret").unwrap();
    let source = host.path().display().to_string();
    let mount = |task_path: &str, readonly, mode: &str| Mount {
        task_path: task_path.into(),
        host_path: source.clone(),
        readonly,
        propagation_mode: mode.into(),
        ..Mount::default()
    };
    job.task.mounts = vec![mount("/data", true, "private"), mount("/slave", false, "host-to-task")];
    let volumes = list(&[&format!("{source}:/vol"), "local/sub:/rel:ro"]);
    assert_eq!(agent.run(&job).await, 0, "without volumes");
    let job = job.with("volumes", volumes);
    assert_eq!(agent.run(&job).await, 0);
    let out = job.wrote("out");
    let found = pairs(&out);
    for (name, want) in [
        ("volume", "from-host"),
        ("relative", "from-task"),
        ("mount", "from-host"),
        ("readonly", "yes"),
        ("secrets", "secret"),
    ] {
        assert_eq!(found.get(name), Some(&want), "{name} in:\n{out}");
    }

    let socket = service.socket();
    let closed = map(vec![("enabled", false.into())]);
    let agent = Agent::with_options(vec![
        ("socket_path", socket.to_str().unwrap().into()),
        ("volumes", closed),
    ])
    .await;
    let error = agent.start_task(&job).await.unwrap_err();
    assert!(error.message().contains("volumes are not enabled"), "{error}");
    std::os::unix::fs::symlink("/etc", job.local("out-of-here")).unwrap();
    let sneaky = job.with("volumes", list(&["local/out-of-here:/etc2"]));
    let error = agent.start_task(&sneaky).await.unwrap_err();
    assert!(error.message().contains("leads out of the allocation"), "{error}");
}

/// Goal: a task of a group with a network of its own joins that namespace, and nothing is published twice.
#[tokio::test]
async fn a_task_joins_the_network_of_its_group() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let mut holder = std::process::Command::new("unshare")
        .args(["-n", "sleep", "1000"])
        .spawn()
        .unwrap();
    let path = format!("/proc/{}/ns/net", holder.id());
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    let mut group = host.clone();
    while group == host {
        group = std::fs::read_link(&path).unwrap();
        tokio::task::yield_now().await;
    }
    let mut job = Job::new("readlink /proc/self/ns/net > /local/out").with("ports", list(&["http"]));
    job.options.retain(|(key, _)| *key != "network_mode");
    let resources = job.task.resources.as_mut().unwrap();
    resources.ports = vec![PortMapping {
        label: "http".into(),
        value: 1,
        to: 80,
        host_ip: "127.0.0.1".into(),
    }];
    let mode = NetworkIsolationMode::Group.into();
    job.task.network_isolation_spec = Some(NetworkIsolationSpec {
        mode,
        path,
        ..Default::default()
    });
    let code = agent.run(&job).await;
    holder.kill().unwrap();
    holder.wait().unwrap();
    assert_eq!(code, 0);
    assert_eq!(job.wrote("out").trim(), group.to_str().unwrap());
}

/// Goal: a task with a network of its own publishes its ports, and Nomad is told its address without advertising it.
#[tokio::test]
async fn a_bridged_task_publishes_its_ports() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let port = std::net::TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port();
    let mut job = Job::new("echo up > /local/up; echo hello | nc -l -p 80")
        .with("network_mode", "bridge")
        .with("ports", list(&["http"]));
    let mapping = PortMapping {
        label: "http".into(),
        value: port.into(),
        to: 80,
        host_ip: "127.0.0.1".into(),
    };
    job.task.resources.as_mut().unwrap().ports = vec![mapping];
    let started = agent.start_task(&job).await.unwrap();
    let network = started.network_override.unwrap();
    assert_eq!(network.port_map["http"], 80);
    assert!(
        network.addr.starts_with("10.") && !network.auto_advertise,
        "{network:?}"
    );
    assert_eq!(
        agent.inspect(&job).await.unwrap().network_override.unwrap().addr,
        network.addr
    );
    job.until_wrote("up").await;
    let answer = tokio::task::spawn_blocking(move || {
        use std::io::Read as _;
        let mut answer = String::new();
        loop {
            let stream = std::net::TcpStream::connect(("127.0.0.1", port));
            if stream.is_ok_and(|mut stream| stream.read_to_string(&mut answer).is_ok() && !answer.is_empty()) {
                return answer;
            }
        }
    });
    assert_eq!(crate::agent::within(answer).await.unwrap(), "hello\n");
    agent.destroy(&job, true).await.unwrap();
}

/// Goal: memory is limited, and a task that takes too much is said to be out of memory.
#[tokio::test]
async fn a_task_that_takes_too_much_memory_is_said_to_be() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let script = "until [ -e /local/go ]; do sleep 0.05; done; exec tail -c 200m /dev/zero";
    let mut job = Job::new(script);
    let memory = job
        .task
        .resources
        .as_mut()
        .unwrap()
        .allocated_resources
        .as_mut()
        .unwrap();
    memory.memory.as_mut().unwrap().memory_mb = 16;
    agent.started(&job).await;
    std::fs::write(job.local("go"), "").unwrap();
    let exit = agent.exit(&job).await;
    assert_eq!((exit.exit_code, exit.signal, exit.oom_killed), (137, 9, true));
    agent.destroy(&job, true).await.unwrap();
}

/// Goal: a task that is killed is not said to be out of memory.
#[tokio::test]
async fn a_task_that_is_killed_is_not_out_of_memory() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let job = Job::new("sleep 1000");
    agent.started(&job).await;
    agent.stop(&job, std::time::Duration::ZERO, "").await.unwrap();
    let exit = agent.exit(&job).await;
    assert_eq!((exit.exit_code, exit.oom_killed), (137, false));
    agent.destroy(&job, true).await.unwrap();
}

/// Goal: the limits of the job are the limits of its cgroup, and swap is not given beside memory.
/// Method: on cgroup v1, where the files of the container's own cgroup can be read from the host.
#[tokio::test]
async fn limits_of_the_job_are_those_of_its_cgroup() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let mut job = Job::new("echo up > /local/up; sleep 1000")
        .with("memory_reservation", "8m")
        .with("pids_limit", 37)
        .with("cpu_hard_limit", true)
        .with("cpu_cfs_period", 50_000);
    let resources = job.task.resources.as_mut().unwrap();
    let linux = resources.linux_resources.as_mut().unwrap();
    (linux.cpu_shares, linux.percent_ticks) = (512, 0.5);
    agent.started(&job).await;
    job.until_wrote("up").await;
    let podman = service.client();
    let info = podman_driver::podman::Podman::inspect_container(&podman, &job.container())
        .await
        .unwrap()
        .unwrap();
    let cgroups = std::fs::read_to_string(format!("/proc/{}/cgroup", info.state.pid.unwrap())).unwrap();
    let read = |controller: &str, file: &str| {
        let line = cgroups
            .lines()
            .find(|line| line.split(':').nth(1) == Some(controller))?;
        let path = format!("/sys/fs/cgroup/{controller}{}/{file}", line.splitn(3, ':').nth(2)?);
        Some(std::fs::read_to_string(path).ok()?.trim().to_owned())
    };
    let cpus = std::thread::available_parallelism().unwrap().get();
    for (controller, file, want) in [
        ("memory", "memory.limit_in_bytes", (64 << 20).to_string()),
        ("memory", "memory.soft_limit_in_bytes", (8 << 20).to_string()),
        ("memory", "memory.memsw.limit_in_bytes", (64 << 20).to_string()),
        ("pids", "pids.max", "37".to_owned()),
        ("cpu", "cpu.shares", "512".to_owned()),
        ("cpu", "cpu.cfs_period_us", "50000".to_owned()),
        ("cpu", "cpu.cfs_quota_us", (25_000 * cpus).to_string()),
    ] {
        // Absent with cgroup v2, and where swap is not counted.
        if let Some(found) = read(controller, file) {
            assert_eq!(found, want, "{file}");
        }
    }
    agent.destroy(&job, true).await.unwrap();
}

/// Goal: a task joins the network and the IPC namespace of another task of its allocation, by that task's name.
#[tokio::test]
async fn a_task_joins_another_task_of_its_allocation() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let look = "readlink /proc/self/ns/net > /local/net; readlink /proc/self/ns/ipc > /local/ipc; echo up > /local/up";
    let first = Job::new(&format!("{look}; sleep 1000"))
        .with("network_mode", "none")
        .with("ipc_mode", "shareable");
    agent.started(&first).await;
    first.until_wrote("up").await;
    let mut second = Job::new(look)
        .with("network_mode", "task:work")
        .with("ipc_mode", "task:work");
    second.task.alloc_id.clone_from(&first.task.alloc_id);
    second.task.name = "side".into();
    for place in ["local", "secrets", "private"] {
        std::fs::create_dir_all(second.dir().join("side").join(place)).unwrap();
    }
    assert_eq!(agent.run(&second).await, 0);
    let side = |file: &str| std::fs::read_to_string(second.dir().join("side/local").join(file)).unwrap();
    assert_eq!(side("net"), first.wrote("net"));
    assert_eq!(side("ipc"), first.wrote("ipc"));
    let absent = Job::new("true").with("network_mode", "task:nobody");
    let error = agent.start_task(&absent).await.unwrap_err();
    assert!(error.message().contains("nobody-"), "{error}");
    let absent = Job::new("true").with("network_mode", "no-such-network");
    let error = agent.start_task(&absent).await.unwrap_err();
    assert!(
        error.message().contains("no-such-network") && error.details().is_empty(),
        "{error}"
    );
    agent.destroy(&first, true).await.unwrap();
}

/// Goal: privileges are given and taken as the job says; the default is Podman's own small set.
#[tokio::test]
async fn privileges_are_what_the_job_says() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let script = "exec > /local/out
echo caps=$(grep CapEff /proc/self/status | cut -f2)
echo somaxconn=$(cat /proc/sys/net/core/somaxconn)
echo terminal=$([ -t 0 ] && echo yes || echo no)";
    let mut seen = Vec::new();
    for job in [
        Job::new(script),
        Job::new(script)
            .with("cap_add", list(&["SYS_TIME"]))
            .with("network_mode", "none")
            .with("sysctl", map(vec![("net.core.somaxconn", "12345".into())]))
            .with("tty", true),
        Job::new(script).with("privileged", true),
    ] {
        assert_eq!(agent.run(&job).await, 0);
        let out = job.wrote("out");
        let found = pairs(&out);
        let caps = u64::from_str_radix(found["caps"], 16).unwrap();
        seen.push((caps, found["somaxconn"] == "12345", found["terminal"].to_owned()));
    }
    let sys_time = 1 << 25;
    assert_eq!((seen[0].0 & sys_time, seen[0].1, seen[0].2.as_str()), (0, false, "no"));
    assert_eq!(
        (seen[1].0 & sys_time, seen[1].1, seen[1].2.as_str()),
        (sys_time, true, "yes")
    );
    assert!(
        seen[2].0.count_ones() > seen[1].0.count_ones(),
        "privileged has more than one capability more"
    );
}

/// Goal: a mount that shall carry later mounts into the task does, where the host's side is shared; where it is not, the
/// start says so and how to help.
#[tokio::test]
async fn propagation_that_the_host_cannot_give_is_explained() {
    let Some(service) = PodmanService::shared() else { return };
    let agent = Agent::start(&service.socket()).await;
    let mut job = Job::new("true");
    let host = tempfile::Builder::new()
        .prefix("private-")
        .tempdir_in("/var/tmp")
        .unwrap();
    job.task.mounts.push(Mount {
        task_path: "/data".into(),
        host_path: host.path().display().to_string(),
        propagation_mode: "bidirectional".into(),
        ..Mount::default()
    });
    match agent.start_task(&job).await {
        // The root of this host is shared.
        Ok(_) => agent.destroy(&job, true).await.unwrap(),
        Err(error) => assert!(error.message().contains("mount --make-rshared"), "{error}"),
    }
}
