//! The plugin's options as SetConfig brings them.

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

fn decode(entries: Vec<(&str, Value)>) -> Result<Config, ConfigErrors> {
    let mut bytes = Vec::new();
    rmpv::encode::write_value(&mut bytes, &map(entries)).unwrap();
    Config::decode(&bytes, 0)
}

fn list(values: Vec<Value>) -> Value {
    Value::Array(values)
}

#[test]
fn nothing_configured_means_the_documented_defaults() {
    let config = Config::default_for(0);
    assert_eq!(
        config.sockets[DEFAULT_SOCKET].path,
        Path::new("/run/podman/podman.sock")
    );
    assert!(config.volumes_enabled && config.gc.container && !config.recover_stopped);
    assert_eq!(config.call_timeout, None);
    assert!(config.allowed.privileged && config.allowed.caps.is_none() && config.allowed.pids_limit.is_none());
    assert!(!config.gc.image && config.gc.dangling.enabled && !config.gc.dangling.dry_run);
    assert_eq!(config.gc.dangling.period, Duration::from_secs(300));
    assert_eq!(config.pull_activity_timeout, Duration::ZERO);
    let user = Config::default_for(1000);
    assert_eq!(
        user.sockets[DEFAULT_SOCKET].path,
        Path::new("/run/user/1000/podman/podman.sock")
    );
}

#[test]
fn every_option_is_read() {
    let config = decode(vec![
        (
            "auth",
            map(vec![("config", "/etc/auth.json".into()), ("helper", "ecr".into())]),
        ),
        (
            "volumes",
            map(vec![("enabled", false.into()), ("selinuxlabel", "z".into())]),
        ),
        ("gc", map(vec![("container", false.into())])),
        ("recover_stopped", true.into()),
        ("extra_labels", list(vec!["job_*".into()])),
        (
            "logging",
            map(vec![("driver", "nomad".into()), ("options", map(vec![]))]),
        ),
        ("networking", map(vec![("default_rootless_mode", "pasta".into())])),
        ("socket_path", "unix:///run/p.sock".into()),
        ("disable_log_collection", true.into()),
        ("client_http_timeout", "5s".into()),
        ("dns_servers", list(vec!["1.1.1.1".into()])),
        ("default_ulimit", list(vec![map(vec![("nofile", "10:20".into())])])),
    ])
    .unwrap();
    assert_eq!(config.auth_file.as_deref(), Some(Path::new("/etc/auth.json")));
    assert_eq!(config.auth_helper.as_deref(), Some("ecr"));
    assert!(!config.volumes_enabled && !config.gc.container && config.recover_stopped);
    assert_eq!(config.volumes_selinux_label.as_deref(), Some("z"));
    assert_eq!(config.default_rootless_mode.as_deref(), Some("pasta"));
    assert_eq!(config.sockets[DEFAULT_SOCKET].path, Path::new("/run/p.sock"));
    assert!(config.disable_log_collection);
    assert_eq!(config.call_timeout, Some(Duration::from_secs(5)));
    assert_eq!(config.default_ulimits["nofile"], Limit { soft: 10, hard: 20 });
}

#[test]
fn a_named_socket_stands_in_for_the_default_one() {
    let socket = |name: &str, path: &str| map(vec![("name", name.into()), ("socket_path", path.into())]);
    let config = decode(vec![(
        "socket",
        list(vec![socket("app", "/a.sock"), socket("other", "/b.sock")]),
    )])
    .unwrap();
    assert_eq!(config.sockets[DEFAULT_SOCKET], config.sockets["app"]);
    let config = decode(vec![(
        "socket",
        list(vec![socket("app", "/a.sock"), socket("", "/b.sock")]),
    )])
    .unwrap();
    assert_eq!(config.sockets[DEFAULT_SOCKET].path, Path::new("/b.sock"));
    let twice = decode(vec![("socket", list(vec![socket("x", "/a"), socket("x", "/b")]))]).unwrap_err();
    assert!(twice.to_string().contains("configured twice"), "{twice}");
}

#[test]
fn all_mistakes_are_told_at_once_and_by_name() {
    let errors = decode(vec![
        ("client_http_timeout", "soon".into()),
        ("dns_servers", list(vec!["resolver".into()])),
        ("gc", map(vec![("container", "maybe".into())])),
        ("logging", map(vec![("driver", "syslog".into())])),
        ("socket_path", "tcp://1.2.3.4".into()),
        ("default_ulimit", list(vec![map(vec![("nofile", "x".into())])])),
    ])
    .unwrap_err();
    let text = errors.to_string();
    for key in [
        "client_http_timeout",
        "dns_servers",
        "gc.container",
        "\"syslog\"",
        "socket_path",
        "default_ulimit",
    ] {
        assert!(text.contains(key), "{key} is missing in: {text}");
    }
    assert_eq!(errors.0.len(), 6);
}

#[test]
fn what_tasks_may_do_is_read() {
    let config = decode(vec![
        ("allow_privileged", false.into()),
        ("allow_caps", list(vec!["cap_net_admin".into(), "SYS_TIME".into()])),
        ("allow_runtimes", list(vec!["kata".into()])),
        ("pids_limit", 100.into()),
    ])
    .unwrap();
    assert!(!config.allowed.privileged);
    assert_eq!(
        config.allowed.caps,
        Some(["NET_ADMIN".to_owned(), "SYS_TIME".to_owned()].into())
    );
    assert_eq!(config.allowed.runtimes, ["kata".to_owned()].into());
    assert_eq!(config.allowed.pids_limit, Some(100));
    let all = decode(vec![("allow_caps", list(vec!["all".into()]))]).unwrap();
    assert_eq!(all.allowed.caps, None);
    assert!(
        decode(vec![("pids_limit", (-1).into())])
            .unwrap_err()
            .to_string()
            .contains("pids_limit")
    );
}

#[test]
fn what_is_cleared_away_is_read() {
    let gc = |dangling: Vec<(&str, Value)>| {
        let options = vec![
            ("image", true.into()),
            ("image_delay", "1h".into()),
            ("dangling_containers", map(dangling)),
        ];
        decode(vec![("gc", map(options))])
    };
    let config = gc(vec![
        ("enabled", false.into()),
        ("period", "10s".into()),
        ("creation_grace", "0".into()),
        ("dry_run", true.into()),
    ])
    .unwrap();
    assert!(config.gc.container && config.gc.image);
    assert_eq!(config.gc.image_delay, Duration::from_secs(3600));
    let want = Dangling {
        enabled: false,
        period: Duration::from_secs(10),
        creation_grace: Duration::ZERO,
        dry_run: true,
    };
    assert_eq!(config.gc.dangling, want);
    let never = gc(vec![("period", "0".into())]).unwrap_err().to_string();
    assert!(never.contains("gc.dangling_containers.period"), "{never}");
}
