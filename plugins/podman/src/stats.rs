//! What a task uses, sampled at intervals from its cgroup's files. Podman is asked once, where they are; a sample costs
//! reading a handful of open files and no call.
//!
//! Invariants: the first sample comes at once (its percentages are 0: there is nothing to compare with); the stream ends
//! when the task does, and not before. Absent: single processes, which Nomad shows for drivers without cgroups.

pub mod cgroup;
mod reader;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, stream};
use tokio::time::{Instant, Interval, MissedTickBehavior};

use crate::compute::Compute;
use crate::podman::Podman;
use cgroup::{CGROUP_ROOT, Cgroup, Reading};

pub use cgroup::MemoryReading;
pub use reader::Reader;

/// A tenth of a second: a caller that asks for less gets this, since reading memory.stat makes the kernel add up its
/// counters of all processors.
const INTERVAL_MIN: Duration = Duration::from_millis(100);

/// A second, for callers that do not say.
const INTERVAL_DEFAULT: Duration = Duration::from_secs(1);

/// What a task used at one moment and since the one before.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Sample {
    /// Processor.
    pub cpu: CpuSample,
    /// Memory.
    pub memory: MemoryReading,
}

/// Processor use. Percentages are of one core: two busy cores are 200.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct CpuSample {
    /// In total.
    pub percent: f64,
    /// In programs.
    pub user_percent: Option<f64>,
    /// In the kernel.
    pub system_percent: Option<f64>,
    /// MHz: the share of the node's capacity.
    pub total_mhz: f64,
    /// Periods in which it was held back, since it started.
    pub throttled_periods: Option<u64>,
    /// Nanoseconds for which it was held back, since it started.
    pub throttled_ns: Option<u64>,
}

/// Whose samples, how often, until when.
pub struct Sampling {
    /// The service of the container.
    pub podman: Arc<dyn Podman>,
    /// The container's id.
    pub container: String,
    /// The node's capacity.
    pub compute: Compute,
    /// Between two samples; zero: a second. The second sample may come up to half of it early or late, so that it is due
    /// together with those of other tasks.
    pub interval: Duration,
    /// Reads for all tasks.
    pub reader: Arc<Reader>,
    /// Resolves when the task has ended.
    pub ended: Pin<Box<dyn Future<Output = ()> + Send>>,
}

struct State {
    podman: Arc<dyn Podman>,
    container: String,
    ended: Pin<Box<dyn Future<Output = ()> + Send>>,
    reader: Arc<Reader>,
    interval: Duration,
    /// `None` until the first sample.
    ticks: Option<Interval>,
    cgroup: Option<Arc<Cgroup>>,
    meter: Meter,
}

/// Turns counters into use per time.
#[derive(Debug)]
struct Meter {
    compute: Compute,
    last: Option<(Instant, Reading)>,
}

/// The samples of a task.
pub fn samples(sampling: Sampling) -> impl Stream<Item = Sample> + Send {
    let asked = if sampling.interval.is_zero() {
        INTERVAL_DEFAULT
    } else {
        sampling.interval
    };
    let state = State {
        podman: sampling.podman,
        container: sampling.container,
        ended: sampling.ended,
        reader: sampling.reader,
        interval: asked.max(INTERVAL_MIN),
        ticks: None,
        cgroup: None,
        meter: Meter {
            compute: sampling.compute,
            last: None,
        },
    };
    stream::unfold(state, |mut state| async move {
        loop {
            tokio::select! {
                biased;
                () = &mut state.ended => return None,
                () = due(&mut state.ticks) => {}
            }
            if state.ticks.is_none() {
                state.ticks = Some(state.grid());
            }
            if let Some(reading) = state.read().await {
                let sample = state.meter.sample(Instant::now(), reading);
                return Some((sample, state));
            }
        }
    })
}

/// The first sample is due at once.
async fn due(ticks: &mut Option<Interval>) {
    if let Some(ticks) = ticks {
        ticks.tick().await;
    }
}

impl State {
    fn grid(&self) -> Interval {
        let next = self.reader.next_due(Instant::now(), self.interval);
        let mut ticks = tokio::time::interval_at(next, self.interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        ticks
    }

    /// Reads the cgroup; `None` if that is not possible now: the container is about to be declared ended, or Podman is
    /// away.
    async fn read(&mut self) -> Option<Reading> {
        if self.cgroup.is_none() {
            self.cgroup = self.find().await;
        }
        match self.reader.read(self.cgroup.as_ref()?).await {
            Ok(reading) => Some(reading),
            Err(_) => {
                self.cgroup = None;
                None
            }
        }
    }

    async fn find(&mut self) -> Option<Arc<Cgroup>> {
        let info = match self.podman.inspect_container(&self.container).await {
            Ok(info) => info?,
            Err(error) => {
                tracing::debug!(container = self.container, %error, "cannot ask for the container's cgroup");
                return None;
            }
        };
        let path = info.state.cgroup_path?;
        let root = PathBuf::from(CGROUP_ROOT);
        tokio::task::spawn_blocking(move || Cgroup::open(&root, &path))
            .await
            .ok()
            .flatten()
            .map(Arc::new)
    }
}

impl Meter {
    fn sample(&mut self, now: Instant, reading: Reading) -> Sample {
        let last = self.last.replace((now, reading));
        let percent = |used: fn(&Reading) -> Option<u64>| {
            let used_ns = used(&reading)?;
            let Some((then, before)) = &last else { return Some(0.0) };
            let wall_ns = now.duration_since(*then).as_nanos();
            // Counters of a container that was started again begin anew.
            let used_ns = used_ns.saturating_sub(used(before)?);
            #[expect(clippy::cast_precision_loss, reason = "a percentage needs no more than 52 bits")]
            (wall_ns > 0)
                .then(|| used_ns as f64 / wall_ns as f64 * 100.0)
                .or(Some(0.0))
        };
        let total = percent(|reading| Some(reading.cpu_ns)).unwrap_or(0.0);
        Sample {
            cpu: CpuSample {
                percent: total,
                user_percent: percent(|reading| reading.cpu_user_ns),
                system_percent: percent(|reading| reading.cpu_system_ns),
                total_mhz: total / 100.0 * self.core_mhz(),
                throttled_periods: reading.throttled_periods,
                throttled_ns: reading.throttled_ns,
            },
            memory: reading.memory,
        }
    }

    /// What one core counts for; 0 as long as nobody said.
    fn core_mhz(&self) -> f64 {
        if self.compute.cores == 0 {
            return 0.0;
        }
        #[expect(clippy::cast_precision_loss, reason = "no node has 2^52 MHz")]
        let total = self.compute.total_mhz as f64;
        total / f64::from(self.compute.cores)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_are_of_one_core_and_mhz_of_the_node() {
        let mut meter = Meter {
            compute: Compute {
                total_mhz: 8000,
                cores: 4,
            },
            last: None,
        };
        let begin = Instant::now();
        let reading = |cpu_ns, user_ns| Reading {
            cpu_ns,
            cpu_user_ns: Some(user_ns),
            ..Reading::default()
        };
        let first = meter.sample(begin, reading(5_000_000_000, 1_000_000_000));
        assert_eq!(
            (first.cpu.percent, first.cpu.user_percent, first.cpu.total_mhz),
            (0.0, Some(0.0), 0.0)
        );
        assert_eq!(first.cpu.system_percent, None, "what was not measured is not told");
        let second = meter.sample(begin + Duration::from_secs(2), reading(8_000_000_000, 2_000_000_000));
        assert_eq!((second.cpu.percent, second.cpu.user_percent), (150.0, Some(50.0)));
        assert_eq!(second.cpu.total_mhz, 3000.0);
        let anew = meter.sample(begin + Duration::from_secs(3), reading(1, 1));
        assert_eq!(anew.cpu.percent, 0.0);
    }
}
