//! Numbers of a running program, in Prometheus' text format: histograms that many threads add to, and the writer of the text.
//!
//! Names follow Prometheus' conventions: base units, `_total` for what only grows. Counters are independent of each other: a
//! text written while work goes on may be one event apart. Callers: the volume, the store, the engine and the plugin.
//! Absent: serving the text (`src/metrics_server.rs`), and any state of its own.

use std::fmt::Write;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds of the buckets, in milliseconds: from a request in the same rack to what only a store in trouble needs.
pub const BOUNDS_MS: [u64; 12] = [1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000, 30_000];

/// Durations, by how long they were.
#[derive(Debug, Default)]
pub struct Histogram {
    /// One more for what is longer than the last bound. Not cumulative; the text is.
    buckets: [AtomicU64; BOUNDS_MS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn observe(&self, time: Duration) {
        let ms = time.as_millis();
        let bucket = BOUNDS_MS.iter().position(|bound| ms <= u128::from(*bound));
        self.buckets[bucket.unwrap_or(BOUNDS_MS.len())].fetch_add(1, Ordering::Relaxed);
        let us = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.sum_us.fetch_add(us, Ordering::Relaxed);
    }

    /// What was counted so far.
    pub fn snapshot(&self) -> HistogramSnapshot {
        let mut snapshot = HistogramSnapshot {
            sum_us: self.sum_us.load(Ordering::Relaxed),
            ..Default::default()
        };
        for (count, bucket) in snapshot.buckets.iter_mut().zip(&self.buckets) {
            *count = bucket.load(Ordering::Relaxed);
        }
        snapshot
    }
}

/// A histogram at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HistogramSnapshot {
    buckets: [u64; BOUNDS_MS.len() + 1],
    sum_us: u64,
}

impl HistogramSnapshot {
    /// How many were counted.
    pub fn count(&self) -> u64 {
        self.buckets.iter().sum()
    }
}

/// Kinds of a metric.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// It only grows while the process lives.
    Counter,
    /// It goes up and down.
    Gauge,
    /// Durations in seconds.
    Histogram,
}

/// Labels of a sample: names and values.
pub type Labels<'a> = &'a [(&'a str, &'a str)];

/// A text in the format that Prometheus reads (version 0.0.4). Samples of one name must follow each other.
#[derive(Debug, Default)]
pub struct Exposition {
    text: String,
    name: &'static str,
}

impl Exposition {
    /// Begins a metric; its samples follow.
    pub fn begin(&mut self, name: &'static str, kind: Kind, help: &str) {
        let kind = match kind {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram => "histogram",
        };
        self.name = name;
        let _ = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    /// One sample of the metric begun last.
    pub fn sample(&mut self, labels: Labels<'_>, value: f64) {
        let _ = writeln!(self.text, "{}{} {value}", self.name, braces(labels, None));
    }

    /// The samples of a histogram with these labels.
    pub fn histogram(&mut self, labels: Labels<'_>, histogram: &HistogramSnapshot) {
        let mut below = 0;
        for (count, bound) in histogram.buckets.iter().zip(BOUNDS_MS) {
            below += count;
            let bound = seconds(Duration::from_millis(bound)).to_string();
            let _ = writeln!(
                self.text,
                "{}_bucket{} {below}",
                self.name,
                braces(labels, Some(&bound))
            );
        }
        let (count, sum) = (histogram.count(), seconds(Duration::from_micros(histogram.sum_us)));
        let _ = writeln!(
            self.text,
            "{}_bucket{} {count}",
            self.name,
            braces(labels, Some("+Inf"))
        );
        let _ = writeln!(self.text, "{}_sum{} {sum}", self.name, braces(labels, None));
        let _ = writeln!(self.text, "{}_count{} {count}", self.name, braces(labels, None));
    }

    /// The whole text.
    pub fn finish(self) -> String {
        self.text
    }
}

/// A duration in Prometheus' unit.
pub fn seconds(time: Duration) -> f64 {
    time.as_secs_f64()
}

fn braces(labels: Labels<'_>, bound: Option<&str>) -> String {
    let all = labels.iter().copied().chain(bound.map(|bound| ("le", bound)));
    let written: Vec<_> = all
        .map(|(name, value)| format!("{name}=\"{}\"", escaped(value)))
        .collect();
    if written.is_empty() {
        String::new()
    } else {
        format!("{{{}}}", written.join(","))
    }
}

fn escaped(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_as_prometheus_reads_it() {
        let mut text = Exposition::default();
        text.begin("pannier_things_total", Kind::Counter, "Things seen.");
        text.sample(&[], 3.0);
        text.sample(&[("volume", "a\"b\\c")], 0.5);
        let told = text.finish();
        assert_eq!(
            told,
            "# HELP pannier_things_total Things seen.\n# TYPE pannier_things_total counter\npannier_things_total 3\n\
             pannier_things_total{volume=\"a\\\"b\\\\c\"} 0.5\n"
        );
    }

    #[test]
    fn a_histogram_counts_everything_below_each_bound() {
        let histogram = Histogram::default();
        for ms in [1, 3, 3, 700, 60_000] {
            histogram.observe(Duration::from_millis(ms));
        }
        let mut text = Exposition::default();
        text.begin("pannier_wait_seconds", Kind::Histogram, "Waits.");
        text.histogram(&[("rpc", "x")], &histogram.snapshot());
        let told = text.finish();
        for line in [
            "pannier_wait_seconds_bucket{rpc=\"x\",le=\"0.001\"} 1",
            "pannier_wait_seconds_bucket{rpc=\"x\",le=\"0.005\"} 3",
            "pannier_wait_seconds_bucket{rpc=\"x\",le=\"1\"} 4",
            "pannier_wait_seconds_bucket{rpc=\"x\",le=\"+Inf\"} 5",
            "pannier_wait_seconds_sum{rpc=\"x\"} 60.707",
            "pannier_wait_seconds_count{rpc=\"x\"} 5",
        ] {
            assert!(told.lines().any(|told| told == line), "{line} in {told}");
        }
    }
}
