//! The job block, option by option: what is read, what is refused and with which words.

use rmpv::Value;

use super::*;

fn map(entries: Vec<(&str, Value)>) -> Value {
    Value::Map(
        entries
            .into_iter()
            .map(|(key, value)| (Value::from(key), value))
            .collect(),
    )
}

fn list(items: &[&str]) -> Value {
    Value::Array(items.iter().map(|item| Value::from(*item)).collect())
}

fn decode(mut entries: Vec<(&str, Value)>) -> Result<TaskConfig, TaskConfigErrors> {
    if !entries.iter().any(|(key, _)| *key == "image") {
        entries.push(("image", "busybox".into()));
    }
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &map(entries)).unwrap();
    TaskConfig::decode(&bytes)
}

fn error(entries: Vec<(&str, Value)>) -> String {
    decode(entries).expect_err("should be refused").to_string()
}

#[test]
fn an_image_alone_is_a_task() {
    let task = decode(vec![]).unwrap();
    assert_eq!(task.image.reference, "busybox");
    assert_eq!(task.image.pull_timeout, Duration::from_secs(300));
    assert_eq!((task.socket.as_str(), task.image.tls_verify), ("default", None));
    assert!(task.command.is_empty() && task.entrypoint.is_none());
}

#[test]
fn a_task_without_an_image_is_refused() {
    assert!(error(vec![("image", Value::Nil)]).contains("image name required"));
    assert!(error(vec![("image", "".into())]).contains("image name required"));
}

#[test]
fn command_and_args_follow_each_other() {
    let task = decode(vec![("command", "sh".into()), ("args", list(&["-c", "true"]))]).unwrap();
    assert_eq!(task.command, ["sh", "-c", "true"]);
    assert_eq!(decode(vec![("args", list(&["x"]))]).unwrap().command, ["x"]);
}

#[test]
fn an_entrypoint_may_be_a_string_or_a_list() {
    assert_eq!(
        decode(vec![("entrypoint", "sh".into())]).unwrap().entrypoint.unwrap(),
        ["sh"]
    );
    assert_eq!(
        decode(vec![("entrypoint", list(&["sh", "-c"]))])
            .unwrap()
            .entrypoint
            .unwrap(),
        ["sh", "-c"]
    );
    assert_eq!(decode(vec![("entrypoint", list(&[]))]).unwrap().entrypoint, None);
    assert!(error(vec![("entrypoint", map(vec![]))]).contains("entrypoint: want a string"));
}

#[test]
fn sizes_take_units_and_bare_numbers() {
    let task = decode(vec![
        ("memory_reservation", "100m".into()),
        ("memory_swap", 1024.into()),
    ])
    .unwrap();
    assert_eq!(task.limits.memory_reservation, Some(100 << 20));
    assert_eq!(task.limits.memory_swap, Some(1024));
    assert!(error(vec![("shm_size", "lots".into())]).starts_with("shm_size:"));
}

#[test]
fn numbers_are_kept_in_their_ranges() {
    let task = decode(vec![("cpu_cfs_period", 10.into()), ("oom_score_adj", (-5).into())]).unwrap();
    assert_eq!(task.limits.cpu_cfs_period, Some(1000));
    assert_eq!(task.limits.oom_score_adj, Some(-5));
    for (key, value) in [
        ("cpu_cfs_period", 1_000_001),
        ("oom_score_adj", 1001),
        ("memory_swappiness", 101),
    ] {
        assert!(error(vec![(key, value.into())]).contains(&format!("{key} = {value} is out of range")));
    }
    assert_eq!(decode(vec![("pids_limit", 0.into())]).unwrap().limits.pids_limit, None);
}

#[test]
fn ulimits_are_read_and_bad_ones_refused() {
    let task = decode(vec![(
        "ulimit",
        Value::Array(vec![map(vec![("nofile", "1024:4096".into())])]),
    )])
    .unwrap();
    assert_eq!(task.limits.ulimits["nofile"], Limit { soft: 1024, hard: 4096 });
    assert!(error(vec![("ulimit", map(vec![("nofile", "abc".into())]))]).contains("ulimit nofile"));
}

#[test]
fn addresses_that_are_none_are_refused_rather_than_dropped() {
    let task = decode(vec![
        ("ipv4_address", "10.0.0.5".into()),
        ("static_ips", list(&["fd00::5"])),
    ])
    .unwrap();
    assert_eq!(task.network.static_ips.len(), 2);
    assert!(error(vec![("ipv4_address", "fd00::5".into())]).contains("ipv4_address"));
    assert!(error(vec![("static_ips", list(&["ten"]))]).contains("static_ips"));
    assert!(error(vec![("static_mac", "92:d0".into())]).contains("static_mac"));
}

#[test]
fn extra_hosts_need_both_sides() {
    assert!(decode(vec![("extra_hosts", list(&["db:10.0.0.1", "v6:::1"]))]).is_ok());
    for bad in ["db", ":10.0.0.1", "db:"] {
        assert!(error(vec![("extra_hosts", list(&[bad]))]).contains("host:ip"), "{bad}");
    }
}

#[test]
fn auth_is_never_printed() {
    let auth = map(vec![
        ("username", "me".into()),
        ("password", "hush".into()),
        ("tls_verify", false.into()),
    ]);
    let task = decode(vec![("auth", auth)]).unwrap();
    assert_eq!(task.image.auth.as_ref().unwrap().password, "hush");
    assert_eq!(task.image.tls_verify, Some(false));
    assert!(!format!("{task:?}").contains("hush"));
}

#[test]
fn logging_that_does_not_exist_is_refused_by_name() {
    let logging = |driver: &str| map(vec![("driver", driver.into()), ("options", Value::Nil)]);
    assert_eq!(
        decode(vec![("logging", logging("nomad"))]).unwrap().logging,
        Some(LogChoice::Nomad)
    );
    assert_eq!(decode(vec![("logging", logging(""))]).unwrap().logging, None);
    assert!(error(vec![("logging", logging("syslog"))]).contains("logging: driver = \"syslog\""));
}

#[test]
fn health_checks_are_off_unless_asked_for() {
    let of = |options: Vec<(&str, Value)>| decode(options).unwrap().healthchecks;
    assert!(!of(vec![]));
    assert!(!of(vec![("healthchecks", map(vec![("disable", true.into())]))]));
    assert!(of(vec![("healthchecks", map(vec![("disable", false.into())]))]));
    assert!(of(vec![("healthchecks", map(vec![("disable", Value::Nil)]))]));
}

#[test]
fn mount_blocks_have_a_type_and_only_its_options() {
    let mounts = |entries: Vec<(&str, Value)>| decode(vec![("mount", Value::Array(vec![map(entries)]))]);
    let bind = mounts(vec![
        ("type", "bind".into()),
        ("source", "local/x".into()),
        ("target", "/x".into()),
        ("readonly", true.into()),
        ("bind_options", map(vec![("propagation", "rslave".into())])),
        ("tmpfs_options", Value::Nil),
    ]);
    let want = MountOptions {
        kind: MountKind::Bind {
            source: "local/x".into(),
            propagation: Some("rslave".into()),
            selinux: None,
        },
        target: "/x".into(),
        readonly: true,
    };
    assert_eq!(bind.unwrap().storage.mounts, [want]);
    let volume = mounts(vec![("source", "data".into()), ("target", "/x".into())]).unwrap();
    let (name, no_copy) = ("data".to_owned(), false);
    assert_eq!(volume.storage.mounts[0].kind, MountKind::Volume { name, no_copy });
    let memory = mounts(vec![
        ("type", "tmpfs".into()),
        ("target", "/x".into()),
        (
            "tmpfs_options",
            map(vec![("size", 1024.into()), ("mode", 0o700.into())]),
        ),
    ]);
    let (size, mode) = (Some(1024), Some(0o700));
    assert_eq!(memory.unwrap().storage.mounts[0].kind, MountKind::Tmpfs { size, mode });

    for (entries, want) in [
        (vec![("source", "data".into())], "mount.target"),
        (vec![("target", "x".into()), ("source", "data".into())], "mount.target"),
        (vec![("target", "/x".into())], "mount.source"),
        (vec![("target", "/x".into()), ("source", "/etc".into())], "mount.source"),
        (vec![("target", "/x".into()), ("type", "nfs".into())], "mount.type"),
        (vec![("target", "/x".into()), ("type", "bind".into())], "mount.source"),
        (
            vec![
                ("target", "/x".into()),
                ("type", "tmpfs".into()),
                ("bind_options", map(vec![])),
            ],
            "mount.bind_options",
        ),
        (
            vec![
                ("target", "/x".into()),
                ("type", "bind".into()),
                ("source", "/a".into()),
                ("bind_options", map(vec![("propagation", "sideways".into())])),
            ],
            "sideways",
        ),
        (
            vec![
                ("target", "/x".into()),
                ("type", "tmpfs".into()),
                ("tmpfs_options", map(vec![("mode", 99999.into())])),
            ],
            "mount.tmpfs_options.mode",
        ),
    ] {
        let error = mounts(entries).expect_err("should be refused").to_string();
        assert!(error.contains(want), "{error}");
    }
}

#[test]
fn all_mistakes_are_told_at_once() {
    let errors = decode(vec![("tty", "maybe".into()), ("image_pull_timeout", "soon".into())]).unwrap_err();
    assert_eq!(errors.0.len(), 2);
    let text = errors.to_string();
    assert!(
        text.contains("tty: want a bool") && text.contains("image_pull_timeout"),
        "{text}"
    );
}
