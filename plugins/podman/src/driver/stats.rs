//! TaskStats: the messages of a task's use of the node. What is measured, and how, is in `crate::stats`.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use proto::nomad::driver::{
    CpuUsage, MemoryUsage, TaskResourceUsage, TaskStats, TaskStatsResponse, cpu_usage, memory_usage,
};

use super::Messages;
use crate::error::DriverError;
use crate::plugin::Plugin;
use crate::stats::{CpuSample, MemoryReading, Sample, Sampling, samples};

/// Samples until the task ends.
pub(super) fn stream(
    plugin: &Plugin,
    id: &str,
    interval: Duration,
) -> Result<Messages<TaskStatsResponse>, DriverError> {
    let task = plugin.task(id)?;
    let (id, clock) = (id.to_owned(), plugin.clock);
    let sampling = Sampling {
        podman: task.podman.clone(),
        container: task.handle.container_id.clone(),
        compute: task.handle.compute,
        interval,
        reader: Arc::clone(&plugin.reader),
        ended: Box::pin(async move {
            task.ended().await;
        }),
    };
    Ok(samples(sampling)
        .map(move |sample| Ok(message(&id, clock().into(), &sample)))
        .boxed())
}

/// Every nested message is there: the agent reads them without looking.
fn message(id: &str, timestamp: prost_types::Timestamp, sample: &Sample) -> TaskStatsResponse {
    let usage = TaskResourceUsage {
        cpu: Some(cpu(&sample.cpu)),
        memory: Some(memory(&sample.memory)),
    };
    TaskStatsResponse {
        stats: Some(TaskStats {
            id: id.to_owned(),
            timestamp: Some(timestamp),
            agg_resource_usage: Some(usage),
            ..Default::default()
        }),
    }
}

/// Only what was measured is announced as such: Nomad shows the rest as unknown, not as zero.
fn cpu(sample: &CpuSample) -> CpuUsage {
    use cpu_usage::Fields;

    let measured = [
        (Fields::SystemMode, sample.system_percent.is_some()),
        (Fields::UserMode, sample.user_percent.is_some()),
        (Fields::TotalTicks, true),
        (Fields::ThrottledPeriods, sample.throttled_periods.is_some()),
        (Fields::ThrottledTime, sample.throttled_ns.is_some()),
        (Fields::Percent, true),
    ];
    CpuUsage {
        system_mode: sample.system_percent.unwrap_or_default(),
        user_mode: sample.user_percent.unwrap_or_default(),
        total_ticks: sample.total_mhz,
        throttled_periods: sample.throttled_periods.unwrap_or_default(),
        throttled_time: sample.throttled_ns.unwrap_or_default(),
        percent: sample.percent,
        measured_fields: measured
            .into_iter()
            .filter(|(_, was)| *was)
            .map(|(field, _)| field.into())
            .collect(),
    }
}

fn memory(reading: &MemoryReading) -> MemoryUsage {
    use memory_usage::Fields;

    let measured = [
        (Fields::Rss, reading.rss),
        (Fields::Cache, reading.cache),
        (Fields::MaxUsage, reading.max_usage),
        (Fields::KernelUsage, reading.kernel),
        (Fields::KernelMaxUsage, reading.kernel_max),
        (Fields::Usage, reading.usage),
        (Fields::Swap, reading.swap),
    ];
    MemoryUsage {
        rss: reading.rss.unwrap_or_default(),
        cache: reading.cache.unwrap_or_default(),
        max_usage: reading.max_usage.unwrap_or_default(),
        kernel_usage: reading.kernel.unwrap_or_default(),
        kernel_max_usage: reading.kernel_max.unwrap_or_default(),
        usage: reading.usage.unwrap_or_default(),
        swap: reading.swap.unwrap_or_default(),
        measured_fields: measured
            .into_iter()
            .filter(|(_, was)| was.is_some())
            .map(|(field, _)| field.into())
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Trap 7: a sample without one of its messages crashes the agent.
    #[test]
    fn an_empty_sample_has_all_its_messages_and_announces_what_it_measured() {
        let stats = message("t", prost_types::Timestamp::default(), &Sample::default())
            .stats
            .unwrap();
        let usage = stats.agg_resource_usage.unwrap();
        assert!(stats.timestamp.is_some() && usage.memory.unwrap().measured_fields.is_empty());
        let always = [cpu_usage::Fields::TotalTicks, cpu_usage::Fields::Percent].map(i32::from);
        assert_eq!(usage.cpu.unwrap().measured_fields, always);
    }
}
