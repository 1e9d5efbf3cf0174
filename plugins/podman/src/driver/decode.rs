//! From Nomad's messages to the driver's own words. Nothing is judged here: a field that is missing is empty.

use std::time::Duration;

use proto::nomad::driver as wire;
use proto::nomad::driver::network_isolation_spec::NetworkIsolationMode;

use crate::nomad_task::{
    Device, Dns, GroupHost, IsolationMode, Mount, NetworkIsolation, NomadTask, Port, Resources, TaskNetwork,
};

/// A task, without the driver's options, which have a schema of their own.
pub(super) fn task(task: &wire::TaskConfig) -> NomadTask {
    NomadTask {
        id: task.id.clone(),
        name: task.name.clone(),
        alloc_id: task.alloc_id.clone(),
        job_id: task.job_id.clone(),
        job_name: task.job_name.clone(),
        group: task.task_group_name.clone(),
        namespace: task.namespace.clone(),
        node_id: task.node_id.clone(),
        node_name: task.node_name.clone(),
        env: task
            .env
            .iter()
            .map(|(name, value)| (name.clone(), value.clone()))
            .collect(),
        user: task.user.clone(),
        alloc_dir: task.alloc_dir.clone().into(),
        stdout_path: task.stdout_path.clone().into(),
        stderr_path: task.stderr_path.clone().into(),
        resources: task.resources.as_ref().map(resources).unwrap_or_default(),
        mounts: task.mounts.iter().map(mount).collect(),
        devices: task.devices.iter().map(device).collect(),
        network: task.network_isolation_spec.as_ref().map(network),
        dns: task.dns.as_ref().map(dns),
    }
}

/// A duration; a negative one is none at all.
pub(super) fn duration(duration: Option<prost_types::Duration>) -> Duration {
    duration
        .and_then(|duration| duration.try_into().ok())
        .unwrap_or_default()
}

fn resources(resources: &wire::Resources) -> Resources {
    let allocated = resources.allocated_resources.as_ref();
    let memory = allocated.and_then(|allocated| allocated.memory).unwrap_or_default();
    let linux = resources.linux_resources.clone().unwrap_or_default();
    let networks = allocated
        .map(|allocated| allocated.networks.as_slice())
        .unwrap_or_default();
    Resources {
        memory_mb: memory.memory_mb,
        memory_max_mb: memory.memory_max_mb,
        cpu_shares: linux.cpu_shares,
        percent_ticks: linux.percent_ticks,
        cpuset_cpus: linux.cpuset_cpus,
        cpuset_cgroup: linux.cpuset_cgroup,
        // Absent and empty are the same on the wire; both mean a group without ports.
        ports: (!resources.ports.is_empty()).then(|| resources.ports.iter().map(group_port).collect()),
        networks: networks.iter().map(task_network).collect(),
    }
}

fn group_port(port: &wire::PortMapping) -> Port {
    Port {
        label: port.label.clone(),
        value: number(port.value),
        to: number(port.to),
        host_ip: port.host_ip.clone(),
    }
}

fn task_network(network: &wire::NetworkResource) -> TaskNetwork {
    let ports = network.reserved_ports.iter().chain(&network.dynamic_ports);
    TaskNetwork {
        ip: network.ip.clone(),
        ports: ports.map(|port| (port.label.clone(), number(port.value))).collect(),
    }
}

/// A port number. Nomad never sends one outside of 16 bits; -1 ("same as the host's") counts as 0.
fn number(port: i32) -> u16 {
    u16::try_from(port).unwrap_or(0)
}

fn mount(mount: &wire::Mount) -> Mount {
    Mount {
        task_path: mount.task_path.clone(),
        host_path: mount.host_path.clone(),
        readonly: mount.readonly,
        propagation_mode: mount.propagation_mode.clone(),
        selinux_label: mount.selinux_label.clone(),
    }
}

fn device(device: &wire::Device) -> Device {
    Device {
        task_path: device.task_path.clone(),
        host_path: device.host_path.clone(),
        permissions: device.cgroup_permissions.clone(),
    }
}

fn network(spec: &wire::NetworkIsolationSpec) -> NetworkIsolation {
    let host = |host: &wire::HostsConfig| GroupHost {
        hostname: host.hostname.clone(),
        address: host.address.clone(),
    };
    NetworkIsolation {
        mode: match spec.mode() {
            NetworkIsolationMode::Host => IsolationMode::Host,
            NetworkIsolationMode::Group => IsolationMode::Group,
            NetworkIsolationMode::Task => IsolationMode::Task,
            NetworkIsolationMode::None => IsolationMode::None,
        },
        path: spec.path.clone(),
        hosts: spec.hosts_config.as_ref().map(host),
    }
}

fn dns(dns: &wire::DnsConfig) -> Dns {
    Dns {
        servers: dns.servers.clone(),
        searches: dns.searches.clone(),
        options: dns.options.clone(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_is_taken_over_field_by_field() {
        let wire = wire::TaskConfig {
            id: "a/web/1".into(),
            alloc_dir: "/nomad/a".into(),
            env: [("A".to_owned(), "b".to_owned())].into(),
            resources: Some(wire::Resources {
                allocated_resources: Some(wire::AllocatedTaskResources {
                    memory: Some(wire::AllocatedMemoryResources {
                        memory_mb: 64,
                        memory_max_mb: -1,
                    }),
                    networks: vec![wire::NetworkResource {
                        ip: "10.0.0.1".into(),
                        reserved_ports: vec![wire::NetworkPort {
                            label: "http".into(),
                            value: 80,
                        }],
                        ..Default::default()
                    }],
                    ..Default::default()
                }),
                linux_resources: Some(wire::LinuxResources {
                    cpu_shares: 500,
                    ..Default::default()
                }),
                ports: vec![wire::PortMapping {
                    label: "db".into(),
                    value: 5432,
                    to: -1,
                    host_ip: "::".into(),
                }],
            }),
            network_isolation_spec: Some(wire::NetworkIsolationSpec {
                mode: NetworkIsolationMode::Group.into(),
                path: "/var/run/netns/a".into(),
                hosts_config: Some(wire::HostsConfig {
                    hostname: "a".into(),
                    address: "10.1.1.1".into(),
                }),
                ..Default::default()
            }),
            ..Default::default()
        };
        let task = task(&wire);
        assert_eq!(
            (task.env["A"].as_str(), task.alloc_dir.to_str()),
            ("b", Some("/nomad/a"))
        );
        assert_eq!(
            (
                task.resources.memory_mb,
                task.resources.memory_max_mb,
                task.resources.cpu_shares
            ),
            (64, -1, 500)
        );
        assert_eq!(task.resources.networks[0].ports, [("http".to_owned(), 80)]);
        let port = &task.resources.ports.unwrap()[0];
        assert_eq!((port.value, port.to), (5432, 0));
        let network = task.network.unwrap();
        assert_eq!(
            (network.mode, network.hosts.unwrap().address.as_str()),
            (IsolationMode::Group, "10.1.1.1")
        );
    }

    #[test]
    fn what_is_missing_is_empty() {
        assert_eq!(task(&wire::TaskConfig::default()), NomadTask::default());
        assert_eq!(duration(None), Duration::ZERO);
        assert_eq!(
            duration(Some(prost_types::Duration { seconds: -1, nanos: 0 })),
            Duration::ZERO
        );
        assert_eq!(
            duration(Some(prost_types::Duration {
                seconds: 0,
                nanos: 5_000_000
            })),
            Duration::from_millis(5)
        );
    }
}
