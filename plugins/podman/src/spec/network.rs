//! How the container is connected: network namespace, published ports, name resolution; and what of it Nomad is told.
//! Invariant: inside the group's namespace nothing is published, since Nomad's CNI chain publishes the group's ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use super::{Inputs, Plan, SpecError};
use crate::nomad_task::IsolationMode;
use crate::podman::{ContainerInfo, Namespace, NetworkOptions, PortMapping};

/// What Nomad is told of a network that the driver made.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DriverNetwork {
    /// Label to port in the container.
    pub port_map: BTreeMap<String, u16>,
    /// The container's address.
    pub ip: String,
    /// Whether services advertise this address when they leave the choice to the driver.
    pub auto_advertise: bool,
}

/// Stands for the network that the host's containers.conf makes the default one (Podman's API, since 4.0).
const DEFAULT_NETWORK: &str = "default";

/// Fills namespace, networks, ports and name resolution.
pub(super) fn fill(inputs: Inputs<'_>, plan: &mut Plan) -> Result<(), SpecError> {
    let netns = namespace(inputs, plan)?;
    let own = owns_network(&netns);
    join_networks(inputs, plan, &netns)?;
    let ports = published_ports(inputs)?;
    if own {
        plan.container.portmappings = ports;
    } else if !ports.is_empty() && !joins_group(inputs) {
        // In the host's network the program binds the host's port itself; nothing is mapped.
        let mode = if netns.nsmode == "host" {
            "the host's network"
        } else {
            "another's network"
        };
        plan.remarks.push(format!(
            "ports are not mapped in {mode}: the task must listen on them itself"
        ));
    }
    plan.container.netns = Some(netns);
    name_resolution(inputs, plan)
}

/// What to tell Nomad of the container's network, from its inspection; None when it has none of its own.
/// An address is advertised automatically only on networks that others can be expected to reach: not on Podman's default bridge,
/// as Docker's driver does with its own.
#[must_use]
pub fn driver_network(inputs: Inputs<'_>, plan: &Plan, info: &ContainerInfo) -> Option<DriverNetwork> {
    if !plan.container.netns.as_ref().is_some_and(owns_network) {
        return None;
    }
    let settings = &info.network_settings;
    let addresses = settings
        .networks
        .values()
        .map(|network| (&network.ip_address, &network.global_ipv6_address));
    let mut addresses = std::iter::once((&settings.ip_address, &settings.global_ipv6_address)).chain(addresses);
    let given = |address: &Option<String>| address.clone().filter(|address| !address.is_empty());
    let ip = addresses.find_map(|(v4, v6)| given(v4).or_else(|| given(v6)))?;
    Some(DriverNetwork {
        port_map: port_map(inputs),
        ip,
        auto_advertise: !plan.custom_networks.is_empty(),
    })
}

/// The network namespace: the group's if there is one, else what the task says, else the default.
fn namespace(inputs: Inputs<'_>, plan: &mut Plan) -> Result<Namespace, SpecError> {
    let Inputs {
        task,
        options,
        config,
        host,
        ..
    } = inputs;
    if let Some(network) = task.network.as_ref().filter(|network| !network.path.is_empty()) {
        if host.rootless {
            return Err(SpecError::RootlessGroupNetwork);
        }
        return Ok(Namespace::with("path", network.path.clone()));
    }
    if task
        .network
        .as_ref()
        .is_some_and(|network| network.mode == IsolationMode::None)
    {
        return Ok(Namespace::of("none"));
    }
    let Some(mode) = options.network.mode.as_deref() else {
        return Ok(match &config.default_rootless_mode {
            _ if !host.rootless => Namespace::of("bridge"),
            Some(mode) => Namespace::of(mode),
            None if host.podman_major >= 5 => Namespace::of("pasta"),
            None => Namespace::of("slirp4netns"),
        });
    };
    Ok(match mode.split_once(':') {
        Some(("container", id)) => Namespace::with("container", id),
        Some(("ns", path)) => Namespace::with("path", path),
        Some(("task", name)) => Namespace::with("container", task.container_name_of(name)),
        Some(_) | None => match mode {
            "bridge" | "host" | "none" | "pasta" | "slirp4netns" => Namespace::of(mode),
            network => {
                plan.custom_networks.push(network.to_owned());
                Namespace::of("bridge")
            }
        },
    })
}

/// Whether Podman makes the network, so that it can publish ports in it.
fn owns_network(netns: &Namespace) -> bool {
    matches!(netns.nsmode.as_str(), "bridge" | "pasta" | "slirp4netns")
}

fn joins_group(inputs: Inputs<'_>) -> bool {
    inputs
        .task
        .network
        .as_ref()
        .is_some_and(|network| !network.path.is_empty())
}

/// The networks of Podman's that the container joins, and how. Fixed addresses and the MAC are those in the first one.
fn join_networks(inputs: Inputs<'_>, plan: &mut Plan, netns: &Namespace) -> Result<(), SpecError> {
    let options = &inputs.options.network;
    let needs = [
        ("static_mac", options.static_mac.is_some()),
        ("static_ips", !options.static_ips.is_empty()),
        ("networks", !options.networks.is_empty()),
        ("network_aliases", !options.aliases.is_empty()),
    ];
    if let Some((option, _)) = needs.into_iter().find(|(_, needed)| *needed) {
        if joins_group(inputs) && option.starts_with("network") {
            let with = "the group's network".to_owned();
            return Err(SpecError::NoNetworksHere { option, with });
        }
        if netns.nsmode != "bridge" {
            return Err(SpecError::NotInThisNetwork {
                option,
                mode: netns.nsmode.clone(),
            });
        }
    }
    for name in &options.networks {
        if !plan.custom_networks.contains(name) {
            plan.custom_networks.push(name.clone());
        }
    }
    let first = NetworkOptions {
        static_ips: options.static_ips.iter().map(IpAddr::to_string).collect(),
        static_mac: options.static_mac.clone(),
        aliases: options.aliases.clone(),
        ..NetworkOptions::default()
    };
    let further = NetworkOptions {
        aliases: options.aliases.clone(),
        ..NetworkOptions::default()
    };
    if plan.custom_networks.is_empty() && first != NetworkOptions::default() {
        plan.container.networks.insert(DEFAULT_NETWORK.to_owned(), first);
        return Ok(());
    }
    for (index, name) in plan.custom_networks.iter().enumerate() {
        let wishes = if index == 0 { first.clone() } else { further.clone() };
        plan.container.networks.insert(name.clone(), wishes);
    }
    Ok(())
}

/// Ports to publish, each for TCP and UDP, since Nomad's port labels do not say which.
fn published_ports(inputs: Inputs<'_>) -> Result<Vec<PortMapping>, SpecError> {
    let Inputs { task, options, .. } = inputs;
    let network = &options.network;
    let group = task.resources.ports.as_deref().filter(|ports| !ports.is_empty());
    if group.is_some() && !network.ports.is_empty() && !network.port_map.is_empty() {
        return Err(SpecError::PortsAndPortMap);
    }
    let mut mappings = Vec::new();
    let mut publish = |host_ip: &str, host_port: u16, container_port: u16| {
        for protocol in ["tcp", "udp"] {
            let (host_ip, protocol) = (host_ip.to_owned(), protocol.to_owned());
            mappings.push(PortMapping {
                host_ip,
                container_port,
                host_port,
                protocol,
            });
        }
    };
    if !network.ports.is_empty() {
        let group = group.ok_or(SpecError::NoGroupPorts)?;
        for label in &network.ports {
            let port = group.iter().find(|port| port.label == *label);
            let port = port.ok_or_else(|| SpecError::NoSuchPort { label: label.clone() })?;
            publish(
                &port.host_ip,
                port.value,
                if port.to == 0 { port.value } else { port.to },
            );
        }
    } else if !network.port_map.is_empty() {
        let given = task.resources.networks.first().ok_or(SpecError::NoTaskNetwork)?;
        for (label, value) in &given.ports {
            publish(
                &given.ip,
                *value,
                network.port_map.get(label).copied().unwrap_or(*value),
            );
        }
    }
    Ok(mappings)
}

/// Label to port in the container, for services.
fn port_map(inputs: Inputs<'_>) -> BTreeMap<String, u16> {
    let Inputs { task, options, .. } = inputs;
    let mut map = options.network.port_map.clone();
    for port in task.resources.ports.iter().flatten() {
        if options.network.ports.contains(&port.label) {
            map.insert(port.label.clone(), if port.to == 0 { port.value } else { port.to });
        }
    }
    map
}

/// resolv.conf and /etc/hosts: the group's `dns` block, else the plugin's servers, else the host's.
fn name_resolution(inputs: Inputs<'_>, plan: &mut Plan) -> Result<(), SpecError> {
    let Inputs {
        task, options, config, ..
    } = inputs;
    let spec = &mut plan.container;
    let netns = spec.netns.clone().unwrap_or_default();
    if let Some(dns) = &task.dns {
        for text in &dns.servers {
            let server = text
                .parse::<IpAddr>()
                .map_err(|_| SpecError::DnsServer { text: text.clone() })?;
            spec.dns_server.push(server.to_string());
        }
        spec.dns_search = dns.searches.clone();
        spec.dns_option = dns.options.clone();
    } else {
        spec.dns_server = config.dns_servers.iter().map(IpAddr::to_string).collect();
    }
    let group = task.network.as_ref().and_then(|network| network.hosts.as_ref());
    if let Some(group) = group.filter(|group| !group.hostname.is_empty() && !group.address.is_empty()) {
        spec.hostadd.push(format!("{}:{}", group.hostname, group.address));
    }
    spec.hostadd.extend(options.network.extra_hosts.iter().cloned());
    // Podman refuses hosts for a container that shares another's network, forgets its name servers, and writes no
    // resolv.conf for one that has no network: files of the task's own fulfil these wishes.
    match netns.nsmode.as_str() {
        "container" => {
            own_hosts(plan, netns.value);
            own_resolv(plan);
        }
        "none" => own_resolv(plan),
        _ => {}
    }
    Ok(())
}

fn own_hosts(plan: &mut Plan, of: String) {
    let line = |entry: String| match entry.split_once(':') {
        Some((host, ip)) => format!("{ip}\t{host}"),
        None => entry,
    };
    plan.name_files.hosts_of = Some(of);
    plan.name_files.hosts = std::mem::take(&mut plan.container.hostadd)
        .into_iter()
        .map(line)
        .collect();
}

fn own_resolv(plan: &mut Plan) {
    let spec = &mut plan.container;
    let servers = std::mem::take(&mut spec.dns_server);
    let (search, options) = (
        std::mem::take(&mut spec.dns_search),
        std::mem::take(&mut spec.dns_option),
    );
    let resolv = &mut plan.name_files.resolv;
    resolv.extend(servers.iter().map(|server| format!("nameserver {server}")));
    if !search.is_empty() {
        resolv.push(format!("search {}", search.join(" ")));
    }
    if !options.is_empty() {
        resolv.push(format!("options {}", options.join(" ")));
    }
}

#[cfg(test)]
mod tests;
