//! Network modes, ports and name resolution, as tables.

use super::*;
use crate::nomad_task::{Dns, GroupHost, NetworkIsolation, Port, TaskNetwork};
use crate::podman::{ContainerNetwork, ContainerNetworkSettings};
use crate::spec::fixture::Case;

fn group(mode: IsolationMode, path: &str) -> NetworkIsolation {
    NetworkIsolation {
        mode,
        path: path.into(),
        hosts: None,
    }
}

fn netns(case: &Case) -> (String, String) {
    let netns = case.container().netns.unwrap();
    (netns.nsmode, netns.value)
}

#[test]
fn network_modes_become_namespaces() {
    for (mode, nsmode, value) in [
        ("bridge", "bridge", ""),
        ("host", "host", ""),
        ("none", "none", ""),
        ("pasta", "pasta", ""),
        ("slirp4netns", "slirp4netns", ""),
        ("container:abc", "container", "abc"),
        ("ns:/run/netns/x", "path", "/run/netns/x"),
        ("task:db", "container", "db-alloc1"),
        ("mynet", "bridge", ""),
    ] {
        let mut case = Case::new();
        case.options.network.mode = Some(mode.into());
        assert_eq!(netns(&case), (nsmode.into(), value.into()), "{mode}");
    }
}

#[test]
fn without_a_mode_root_gets_a_bridge_and_others_what_their_podman_does_best() {
    let mut case = Case::new();
    assert_eq!(netns(&case).0, "bridge");
    case.host.rootless = true;
    assert_eq!(netns(&case).0, "pasta");
    case.host.podman_major = 4;
    assert_eq!(netns(&case).0, "slirp4netns");
    case.config.default_rootless_mode = Some("host".into());
    assert_eq!(netns(&case).0, "host");
}

#[test]
fn the_groups_namespace_wins_over_the_tasks_mode() {
    let mut case = Case::new();
    case.options.network.mode = Some("host".into());
    case.task.network = Some(group(IsolationMode::Group, "/var/run/netns/alloc1"));
    assert_eq!(netns(&case), ("path".into(), "/var/run/netns/alloc1".into()));
    case.host.rootless = true;
    assert!(case.error().contains("rootless"));
}

#[test]
fn a_group_in_the_hosts_network_leaves_the_choice_to_the_task() {
    let mut case = Case::new();
    case.task.network = Some(group(IsolationMode::Host, ""));
    assert_eq!(netns(&case).0, "bridge");
    case.options.network.mode = Some("host".into());
    assert_eq!(netns(&case).0, "host");
    case.options.network.mode = None;
    case.task.network = Some(group(IsolationMode::None, ""));
    assert_eq!(netns(&case).0, "none");
}

fn with_ports() -> Case {
    let mut case = Case::new();
    let port = |label: &str, value, to| Port {
        label: label.into(),
        value,
        to,
        host_ip: "10.0.0.1".into(),
    };
    case.task.resources.ports = Some(vec![port("http", 20_000, 80), port("admin", 20_001, 0)]);
    case.options.network.ports = vec!["http".into(), "admin".into()];
    case
}

#[test]
fn ports_are_published_for_tcp_and_udp() {
    let published: Vec<_> = with_ports()
        .container()
        .portmappings
        .into_iter()
        .map(|port| (port.host_ip, port.host_port, port.container_port, port.protocol))
        .collect();
    let want = |host, container, protocol: &str| ("10.0.0.1".to_owned(), host, container, protocol.to_owned());
    assert_eq!(
        published,
        [
            want(20_000, 80, "tcp"),
            want(20_000, 80, "udp"),
            want(20_001, 20_001, "tcp"),
            want(20_001, 20_001, "udp")
        ]
    );
}

#[test]
fn ports_are_not_published_where_nomad_or_nobody_maps_them() {
    let mut case = with_ports();
    case.task.network = Some(group(IsolationMode::Group, "/var/run/netns/alloc1"));
    let plan = case.plan().unwrap();
    assert!(plan.container.portmappings.is_empty() && plan.remarks.is_empty());
    case.task.network = None;
    case.options.network.mode = Some("host".into());
    let plan = case.plan().unwrap();
    assert!(plan.container.portmappings.is_empty());
    assert!(plan.remarks[0].contains("ports are not mapped"));
}

#[test]
fn wrong_port_declarations_are_refused() {
    let mut case = with_ports();
    case.options.network.ports.push("nope".into());
    assert_eq!(case.error(), "Port \"nope\" not found, check network stanza");
    let mut case = with_ports();
    case.options.network.port_map.insert("http".into(), 80);
    assert!(case.error().contains("use of port_map and ports"));
    let mut case = with_ports();
    case.task.resources.ports = None;
    assert!(case.error().contains("No ports defined in network stanza"));
    let mut case = Case::new();
    case.options.network.port_map.insert("http".into(), 80);
    assert!(case.error().contains("no network interface is available"));
}

#[test]
fn the_old_port_map_maps_what_it_names_and_leaves_the_rest() {
    let mut case = Case::new();
    let ports = vec![("http".into(), 20_000), ("other".into(), 20_001)];
    case.task.resources.networks = vec![TaskNetwork {
        ip: "10.0.0.1".into(),
        ports,
    }];
    case.options.network.port_map.insert("http".into(), 80);
    let published: Vec<_> = case
        .container()
        .portmappings
        .iter()
        .map(|port| (port.host_port, port.container_port))
        .collect();
    assert_eq!(
        published,
        [(20_000, 80), (20_000, 80), (20_001, 20_001), (20_001, 20_001)]
    );
}

#[test]
fn fixed_addresses_need_a_bridge() {
    let mut case = Case::new();
    case.options.network.static_ips = vec!["10.88.0.9".parse().unwrap()];
    case.options.network.static_mac = Some("92:d0:c6:0a:29:33".into());
    let networks = case.container().networks;
    assert_eq!(networks["default"].static_ips, ["10.88.0.9"]);
    assert_eq!(networks["default"].static_mac.as_deref(), Some("92:d0:c6:0a:29:33"));
    case.options.network.mode = Some("mynet".into());
    assert!(case.container().networks.contains_key("mynet"));
    case.options.network.mode = Some("host".into());
    assert!(
        case.error()
            .contains("static_mac cannot be used with network_mode \"host\"")
    );
}

#[test]
fn names_are_resolved_as_the_group_else_the_plugin_says() {
    let mut case = Case::new();
    case.config.dns_servers = vec!["9.9.9.9".parse().unwrap()];
    assert_eq!(case.container().dns_server, ["9.9.9.9"]);
    case.task.dns = Some(Dns {
        servers: vec!["1.1.1.1".into()],
        searches: vec!["svc.local".into()],
        options: vec!["ndots:2".into()],
    });
    let spec = case.container();
    assert_eq!(
        (spec.dns_server, spec.dns_search),
        (vec!["1.1.1.1".into()], vec!["svc.local".into()])
    );
    assert_eq!(spec.dns_option, ["ndots:2"]);
    case.task.dns.as_mut().unwrap().servers = vec!["resolver".into()];
    assert_eq!(case.error(), "Invalid dns server address, dns=resolver");
}

#[test]
fn hosts_are_the_groups_and_the_tasks() {
    let mut case = Case::new();
    let hosts = GroupHost {
        hostname: "alloc1".into(),
        address: "172.26.64.3".into(),
    };
    case.task.network = Some(NetworkIsolation {
        hosts: Some(hosts),
        ..group(IsolationMode::Group, "/ns")
    });
    case.options.network.extra_hosts = vec!["db:10.0.0.1".into()];
    assert_eq!(case.container().hostadd, ["alloc1:172.26.64.3", "db:10.0.0.1"]);
}

fn told(case: &Case, settings: ContainerNetworkSettings) -> Option<DriverNetwork> {
    let info = ContainerInfo {
        network_settings: settings,
        ..ContainerInfo::default()
    };
    let Case {
        task,
        options,
        config,
        host,
    } = case;
    driver_network(
        Inputs {
            task,
            options,
            config,
            host,
            logs: None,
        },
        &case.plan().unwrap(),
        &info,
    )
}

#[test]
fn only_addresses_outside_of_the_default_bridge_advertise_themselves() {
    let default = ContainerNetworkSettings {
        ip_address: Some("10.88.0.2".into()),
        ..Default::default()
    };
    let network = told(&with_ports(), default.clone()).unwrap();
    assert_eq!((network.ip.as_str(), network.auto_advertise), ("10.88.0.2", false));
    assert_eq!(
        network.port_map,
        BTreeMap::from([("admin".into(), 20_001), ("http".into(), 80)])
    );
    let mut case = Case::new();
    case.options.network.mode = Some("mynet".into());
    let mynet = ContainerNetwork {
        ip_address: Some("10.9.0.2".into()),
        ..ContainerNetwork::default()
    };
    let networks = BTreeMap::from([("mynet".to_owned(), mynet)]);
    let custom = told(
        &case,
        ContainerNetworkSettings {
            networks,
            ..Default::default()
        },
    )
    .unwrap();
    assert_eq!((custom.ip.as_str(), custom.auto_advertise), ("10.9.0.2", true));
    case.options.network.mode = Some("host".into());
    assert_eq!(told(&case, default), None);
}

#[test]
fn networks_are_joined_with_their_aliases_and_the_first_has_the_address() {
    let mut case = Case::new();
    case.options.network.mode = Some("front".into());
    case.options.network.networks = vec!["front".into(), "back".into()];
    case.options.network.aliases = vec!["db".into()];
    case.options.network.static_ips = vec!["10.9.0.2".parse().unwrap()];
    let plan = case.plan().unwrap();
    assert_eq!(plan.custom_networks, ["front", "back"]);
    let networks = plan.container.networks;
    assert_eq!(networks["front"].static_ips, ["10.9.0.2"]);
    assert!(networks["back"].static_ips.is_empty());
    assert!(networks.values().all(|network| network.aliases == ["db"]));
    case.options.network.mode = Some("host".into());
    assert!(case.error().contains("network_mode \"host\""));
    case.options.network.mode = None;
    case.task.network = Some(group(IsolationMode::Group, "/run/netns/a"));
    case.options.network.static_ips.clear();
    assert!(case.error().contains("the group's network"));
}

#[test]
fn names_are_files_of_the_tasks_own_where_podman_makes_none() {
    let mut case = Case::new();
    case.options.network.extra_hosts = vec!["db:192.0.2.9".into(), "v6:2001:db8::1".into()];
    case.config.dns_servers = vec!["192.0.2.1".parse().unwrap()];
    case.options.network.mode = Some("task:proxy".into());
    let plan = case.plan().unwrap();
    assert_eq!(plan.name_files.hosts_of.as_deref(), Some("proxy-alloc1"));
    assert_eq!(plan.name_files.hosts, ["192.0.2.9\tdb", "2001:db8::1\tv6"]);
    assert_eq!(plan.name_files.resolv, ["nameserver 192.0.2.1"]);
    assert!(plan.container.hostadd.is_empty() && plan.container.dns_server.is_empty());
    case.options.network.mode = Some("none".into());
    let plan = case.plan().unwrap();
    assert_eq!(plan.name_files.resolv, ["nameserver 192.0.2.1"]);
    assert!(plan.name_files.hosts.is_empty() && plan.container.hostadd.len() == 2);
    case.options.network.mode = Some("bridge".into());
    assert_eq!(case.plan().unwrap().name_files, crate::spec::NameFiles::default());
}
