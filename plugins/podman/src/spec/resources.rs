//! Limits of the container: CPU, memory, processes, POSIX limits, cgroup parent.

use super::{Inputs, Plan, SpecError};
use crate::podman::{CpuLimits, MemoryLimits, PidsLimit, ResourceLimits, Rlimit};
use crate::rlimit;

/// The kernel's default of cfs_period_us.
const CFS_PERIOD_US: u64 = 100_000;
/// The kernel's least cfs_quota_us.
const CFS_QUOTA_MIN_US: i64 = 1000;
/// The kernel's bounds of cpu.shares.
const CPU_SHARES: std::ops::RangeInclusive<u64> = 2..=262_144;

/// Fills all limits.
pub(super) fn fill(inputs: Inputs<'_>, plan: &mut Plan) -> Result<(), SpecError> {
    let Inputs {
        options, config, host, ..
    } = inputs;
    let limits = &options.limits;
    let memory = memory(inputs)?;
    if limits.memory_swappiness.is_some() && host.cgroup_v2 {
        plan.remarks
            .push("memory_swappiness has no effect: this host uses cgroup v2, which has no such setting".into());
    }
    plan.container.resource_limits = Some(ResourceLimits {
        cpu: Some(cpu(inputs)),
        memory: Some(memory),
        pids: pids(inputs)?,
    });
    if host.cgroup_v2 && host.systemd_cgroups {
        plan.container.cgroup_parent = Some("nomad.slice".to_owned());
    }
    plan.container.oom_score_adj = limits.oom_score_adj;
    plan.container.sysctl = limits.sysctl.clone();
    let ulimits = rlimit::effective(&limits.ulimits, &config.default_ulimits, &host.limits)?;
    plan.container.r_limits = ulimits
        .into_iter()
        .map(|(kind, limit)| Rlimit {
            kind,
            hard: limit.hard,
            soft: limit.soft,
        })
        .collect();
    Ok(())
}

/// The task's own wish, within what the operator lets tasks have.
fn pids(inputs: Inputs<'_>) -> Result<Option<PidsLimit>, SpecError> {
    let wanted = inputs.options.limits.pids_limit;
    let max = inputs.config.allowed.pids_limit;
    if let (Some(wanted), Some(max)) = (wanted, max)
        && !(1..=max).contains(&wanted)
    {
        return Err(SpecError::PidsLimit { wanted, max });
    }
    Ok(wanted.or(max).map(|limit| PidsLimit { limit }))
}

fn cpu(inputs: Inputs<'_>) -> CpuLimits {
    let Inputs {
        task, options, host, ..
    } = inputs;
    let resources = &task.resources;
    let own_cores = Some(resources.cpuset_cpus.clone()).filter(|cores| !cores.is_empty());
    let mut cpu = CpuLimits {
        cpus: own_cores.or_else(|| host.shared_cpuset.clone()),
        ..CpuLimits::default()
    };
    // Without root the cpu controller is usually not delegated, and asking for it fails the start.
    if !host.rootless && resources.cpu_shares > 0 {
        let shares = u64::try_from(resources.cpu_shares).unwrap_or(*CPU_SHARES.end());
        cpu.shares = Some(shares.clamp(*CPU_SHARES.start(), *CPU_SHARES.end()));
    }
    if options.limits.cpu_hard_limit {
        let period = options.limits.cpu_cfs_period.unwrap_or(CFS_PERIOD_US);
        let quota = resources.percent_ticks * period as f64 * f64::from(host.cpus);
        cpu.period = Some(period);
        cpu.quota = Some((quota as i64).max(CFS_QUOTA_MIN_US));
    }
    cpu
}

/// The hard limit is `memory_max` or `memory`; the soft one is what was reserved, once the two differ.
fn memory(inputs: Inputs<'_>) -> Result<MemoryLimits, SpecError> {
    let Inputs {
        task, options, host, ..
    } = inputs;
    let reserved = task.resources.memory_mb.saturating_mul(1 << 20);
    let wanted = options.limits.memory_reservation;
    let (limit, reservation) = match task.resources.memory_max_mb {
        max if max < 0 => (None, Some(wanted.map_or(reserved, |wanted| wanted.min(reserved)))),
        0 => (Some(reserved).filter(|bytes| *bytes > 0), wanted),
        max => (
            Some(max.saturating_mul(1 << 20)),
            Some(wanted.map_or(reserved, |wanted| wanted.min(reserved))),
        ),
    };
    let swap = match (options.limits.memory_swap, limit) {
        (Some(swap), Some(limit)) if swap < limit => return Err(SpecError::SwapBelowMemory { swap, limit }),
        (Some(swap), _) => Some(swap),
        // Podman's API would add as much swap again. A task that was given memory was not given swap.
        (None, limit) => limit,
    };
    Ok(MemoryLimits {
        limit,
        reservation: reservation.filter(|bytes| *bytes > 0),
        swap,
        swappiness: options.limits.memory_swappiness.filter(|_| !host.cgroup_v2),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rlimit::Limit;
    use crate::spec::fixture::Case;

    const MIB: i64 = 1 << 20;

    fn limits(case: &Case) -> ResourceLimits {
        case.container().resource_limits.unwrap()
    }

    #[test]
    fn memory_limits_follow_memory_and_memory_max() {
        // memory, memory_max, memory_reservation -> hard, soft
        for (memory, max, wanted, hard, soft) in [
            (256, 0, None, Some(256), None),
            (256, 0, Some(100), Some(256), Some(100)),
            (256, 512, None, Some(512), Some(256)),
            (256, 512, Some(100), Some(512), Some(100)),
            (256, 512, Some(300), Some(512), Some(256)),
            (256, -1, None, None, Some(256)),
            (256, -1, Some(100), None, Some(100)),
            (0, 0, None, None, None),
        ] {
            let mut case = Case::new();
            case.task.resources.memory_mb = memory;
            case.task.resources.memory_max_mb = max;
            case.options.limits.memory_reservation = wanted.map(|mib| mib * MIB);
            let got = limits(&case).memory.unwrap();
            let want = (hard.map(|mib| mib * MIB), soft.map(|mib| mib * MIB));
            assert_eq!((got.limit, got.reservation), want, "{memory} {max} {wanted:?}");
            assert_eq!(got.swap, got.limit, "no swap unless asked for");
        }
    }

    #[test]
    fn swap_is_what_the_task_asks_for_and_never_below_memory() {
        let mut case = Case::new();
        case.task.resources.memory_mb = 256;
        case.options.limits.memory_swap = Some(512 * MIB);
        assert_eq!(limits(&case).memory.unwrap().swap, Some(512 * MIB));
        case.options.limits.memory_swap = Some(MIB);
        assert!(case.error().contains("memory_swap"));
    }

    #[test]
    fn swappiness_is_for_cgroup_v1_and_said_to_be_useless_on_v2() {
        let mut case = Case::new();
        case.options.limits.memory_swappiness = Some(60);
        let plan = case.plan().unwrap();
        assert_eq!(plan.container.resource_limits.unwrap().memory.unwrap().swappiness, None);
        assert!(plan.remarks[0].contains("memory_swappiness"));
        case.host.cgroup_v2 = false;
        assert_eq!(limits(&case).memory.unwrap().swappiness, Some(60));
    }

    #[test]
    fn cpu_is_weighted_and_only_limited_when_asked() {
        let mut case = Case::new();
        case.task.resources.cpu_shares = 500;
        case.task.resources.percent_ticks = 0.125;
        let cpu = limits(&case).cpu.unwrap();
        assert_eq!((cpu.shares, cpu.quota, cpu.period), (Some(500), None, None));
        case.options.limits.cpu_hard_limit = true;
        let cpu = limits(&case).cpu.unwrap();
        assert_eq!((cpu.quota, cpu.period), (Some(50_000), Some(100_000)));
        case.options.limits.cpu_cfs_period = Some(1000);
        assert_eq!(limits(&case).cpu.unwrap().quota, Some(1000), "the kernel takes no less");
        case.host.rootless = true;
        assert_eq!(limits(&case).cpu.unwrap().shares, None);
        case.host.rootless = false;
        for (shares, want) in [(1, 2), (1_000_000, 262_144)] {
            case.task.resources.cpu_shares = shares;
            assert_eq!(limits(&case).cpu.unwrap().shares, Some(want));
        }
    }

    #[test]
    fn cores_are_the_tasks_own_else_those_nobody_reserved() {
        let mut case = Case::new();
        assert_eq!(limits(&case).cpu.unwrap().cpus, None);
        case.host.shared_cpuset = Some("0-1".into());
        assert_eq!(limits(&case).cpu.unwrap().cpus.as_deref(), Some("0-1"));
        case.task.resources.cpuset_cpus = "3".into();
        assert_eq!(limits(&case).cpu.unwrap().cpus.as_deref(), Some("3"));
    }

    #[test]
    fn the_slice_is_only_for_systemd_on_cgroup_v2() {
        for (v2, systemd, want) in [
            (true, true, Some("nomad.slice")),
            (true, false, None),
            (false, true, None),
            (false, false, None),
        ] {
            let mut case = Case::new();
            (case.host.cgroup_v2, case.host.systemd_cgroups) = (v2, systemd);
            assert_eq!(case.container().cgroup_parent.as_deref(), want);
        }
    }

    #[test]
    fn posix_limits_are_the_tasks_then_the_plugins() {
        let mut case = Case::new();
        assert!(case.container().r_limits.is_empty());
        case.config
            .default_ulimits
            .insert("nproc".into(), Limit { soft: 1, hard: 2 });
        case.options
            .limits
            .ulimits
            .insert("nofile".into(), Limit { soft: 3, hard: 4 });
        let got: Vec<_> = case
            .container()
            .r_limits
            .into_iter()
            .map(|l| (l.kind, l.soft, l.hard))
            .collect();
        assert_eq!(got, [("nofile".to_owned(), 3, 4), ("nproc".to_owned(), 1, 2)]);
    }

    #[test]
    fn the_operators_limit_of_processes_is_the_default_and_the_most() {
        let mut case = Case::new();
        case.config.allowed.pids_limit = Some(100);
        assert_eq!(limits(&case).pids, Some(PidsLimit { limit: 100 }));
        case.options.limits.pids_limit = Some(7);
        assert_eq!(limits(&case).pids, Some(PidsLimit { limit: 7 }));
        for greedy in [101, -1] {
            case.options.limits.pids_limit = Some(greedy);
            assert!(case.error().contains("pids_limit = 100"), "{greedy}");
        }
    }

    #[test]
    fn pids_oom_score_and_sysctl_are_passed_on() {
        let mut case = Case::new();
        case.options.limits.pids_limit = Some(6);
        case.options.limits.oom_score_adj = Some(100);
        case.options
            .limits
            .sysctl
            .insert("net.core.somaxconn".into(), "12345".into());
        assert_eq!(limits(&case).pids, Some(PidsLimit { limit: 6 }));
        let spec = case.container();
        assert_eq!(spec.oom_score_adj, Some(100));
        assert_eq!(spec.sysctl["net.core.somaxconn"], "12345");
    }
}
