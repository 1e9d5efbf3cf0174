//! The plugin's numbers: its calls, by what they were and how they ended.
//!
//! One set for the process, because every call of every service ends in the one place that counts (`grpc.rs`). Absent: what
//! the engine knows of mounts; it serves numbers of its own.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use volume::metrics::{Exposition, Histogram, Kind};

/// Calls of one kind.
#[derive(Debug, Default)]
struct Calls {
    seconds: Histogram,
    /// By the word of the status code.
    outcomes: BTreeMap<String, u64>,
}

/// Held to count one call, or to copy all.
static CALLS: Mutex<BTreeMap<&'static str, Calls>> = Mutex::new(BTreeMap::new());

fn calls() -> MutexGuard<'static, BTreeMap<&'static str, Calls>> {
    CALLS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Counts a call that has ended.
pub(crate) fn count(rpc: &'static str, outcome: String, time: Duration) {
    let mut calls = calls();
    let of_rpc = calls.entry(rpc).or_default();
    of_rpc.seconds.observe(time);
    *of_rpc.outcomes.entry(outcome).or_default() += 1;
}

/// All numbers of now.
#[expect(clippy::cast_precision_loss, reason = "Prometheus knows 64-bit floats only")]
pub fn metrics(version: &str) -> String {
    let mut text = Exposition::default();
    text.begin("pannier_csi_info", Kind::Gauge, "The CSI plugin.");
    text.sample(&[("version", version)], 1.0);
    let calls = calls();
    text.begin(
        "pannier_csi_calls_total",
        Kind::Counter,
        "Calls that have ended, by their status code.",
    );
    for (rpc, of_rpc) in calls.iter() {
        for (code, count) in &of_rpc.outcomes {
            text.sample(&[("rpc", rpc), ("code", code)], *count as f64);
        }
    }
    text.begin("pannier_csi_call_seconds", Kind::Histogram, "How long calls took.");
    for (rpc, of_rpc) in calls.iter() {
        text.histogram(&[("rpc", rpc)], &of_rpc.seconds.snapshot());
    }
    text.finish()
}
