//! A second request beside one that takes longer than nineteen of twenty do: the answer that comes first counts.
//!
//! One slow answer in twenty makes a read of twenty pieces slow nearly always, and one in a hundred makes the commits of a
//! database wait. What is usual is measured for each kind and size of request, so that a far store is not asked twice.
//! Invariants: at most one more request for each, and no more than one in twenty over time (`EARNED_PER_MILLE`); none while
//! connections are scarce. What a put means when its second request finds the object there is judged in `bucket.rs`.
//! Caller: `bucket.rs`. Absent: repeats of what has failed (`retry.rs`).

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use crate::counters::Operation;

/// 50 of a thousand: each request earns so much of a second one. All that a hedge costs is a twentieth of the requests.
const EARNED_PER_MILLE: i64 = 50;

/// 10 second requests saved up at most, so that a store that turns slow as a whole is not asked twice for long.
const SAVED_MAX: i64 = 10 * PRICE;

/// What a second request costs.
const PRICE: i64 = 1_000;

/// 64 requests must have been seen before what is usual is known.
const SAMPLES_MIN: u32 = 64;

/// 2,048 requests: then all counts are halved, so that what was usual an hour ago weighs little.
const SAMPLES_MAX: u32 = 2_048;

/// 2 ms: nobody gains by a second request that is sent sooner.
const WAIT_MIN: Duration = Duration::from_millis(2);

/// Four times the median is slow in any case, also where more than one in twenty is.
const MEDIANS: u32 = 4;

/// 12 MiB of a GET, the most that reading ahead asks for at a time, 4 MiB of a PUT: a second request for more would cost bandwidth that
/// the first one needs.
const GET_BYTES_MAX: u64 = 12 * 1024 * 1024;
const PUT_BYTES_MAX: u64 = 4 * 1024 * 1024;

/// Sizes: up to 16 KiB, 128 KiB, 1 MiB, and more.
const SIZES: [u64; 3] = [16 * 1024, 128 * 1024, 1024 * 1024];

/// Bounds of the counts grow by an eighth each: from 0.5 ms to 40 s.
const BOUNDS: usize = 96;
const BOUND_FIRST_MS: f64 = 0.5;
const BOUND_FACTOR: f64 = 1.125;

/// How long requests of one kind and size took.
#[derive(Debug, Clone)]
struct Usual {
    counts: [u32; BOUNDS],
    total: u32,
}

impl Usual {
    const NONE: Usual = Usual {
        counts: [0; BOUNDS],
        total: 0,
    };

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "the number is clamped to the bounds before"
    )]
    fn add(&mut self, took: Duration) {
        let steps = (took.as_secs_f64() * 1_000.0 / BOUND_FIRST_MS).max(1.0).ln() / BOUND_FACTOR.ln();
        let at = steps.ceil().clamp(0.0, (BOUNDS - 1) as f64) as usize;
        self.counts[at] += 1;
        self.total += 1;
        if self.total >= SAMPLES_MAX {
            self.counts.iter_mut().for_each(|count| *count /= 2);
            self.total = self.counts.iter().sum();
        }
    }

    /// The time within which `percent` of the requests were answered.
    fn within(&self, percent: u32) -> Duration {
        let wanted = u64::from(self.total) * u64::from(percent);
        let mut below = 0;
        let at = self.counts.iter().position(|count| {
            below += u64::from(*count) * 100;
            below >= wanted
        });
        let steps = i32::try_from(at.unwrap_or(BOUNDS - 1)).unwrap_or(0);
        Duration::from_secs_f64(BOUND_FIRST_MS * BOUND_FACTOR.powi(steps) / 1_000.0)
    }
}

/// What is usual at a store, and how many second requests may be sent.
#[derive(Debug)]
pub(crate) struct Hedging {
    /// Reads and writes by size. Held for a moment, never across an await.
    usual: Mutex<[[Usual; SIZES.len() + 1]; 2]>,
    /// Thousandths of second requests that may be sent.
    saved: AtomicI64,
}

impl Hedging {
    pub fn new() -> Self {
        Self {
            usual: Mutex::new([const { [Usual::NONE; SIZES.len() + 1] }; 2]),
            saved: AtomicI64::new(0),
        }
    }

    /// How long to wait for an answer before a second request is sent; `None` where none will be.
    pub fn wait(&self, operation: Operation, bytes: u64) -> Option<Duration> {
        self.earn();
        let bytes_max = match operation {
            Operation::Get => GET_BYTES_MAX,
            _ => PUT_BYTES_MAX,
        };
        if bytes > bytes_max {
            return None;
        }
        let usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
        let usual = &usual[way(operation)?][size(bytes)];
        if usual.total < SAMPLES_MIN {
            return None;
        }
        let wait = usual.within(95).min(usual.within(50) * MEDIANS);
        Some(wait.max(WAIT_MIN))
    }

    /// Notes how long a request took.
    pub fn took(&self, operation: Operation, bytes: u64, took: Duration) {
        if let Some(way) = way(operation) {
            let mut usual = self.usual.lock().unwrap_or_else(PoisonError::into_inner);
            usual[way][size(bytes)].add(took);
        }
    }

    /// True if a second request may be sent now.
    pub fn spend(&self) -> bool {
        let spent = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
            (saved >= PRICE).then_some(saved - PRICE)
        });
        spent.is_ok()
    }

    fn earn(&self) {
        let _ = self.saved.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |saved| {
            Some((saved + EARNED_PER_MILLE).min(SAVED_MAX))
        });
    }
}

/// Reads, writes, or what is never asked for twice at a time.
fn way(operation: Operation) -> Option<usize> {
    match operation {
        Operation::Get => Some(0),
        Operation::PutIfAbsent | Operation::PutIfMatch => Some(1),
        Operation::Head | Operation::Delete | Operation::List | Operation::Put | Operation::Upload => None,
    }
}

fn size(bytes: u64) -> usize {
    SIZES.iter().position(|size| bytes <= *size).unwrap_or(SIZES.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    #[test]
    fn the_wait_is_what_nineteen_of_twenty_take_and_unknown_at_first() {
        let hedging = Hedging::new();
        for n in 0..SAMPLES_MIN - 1 {
            hedging.took(Operation::Get, 4_096, ms(10 + u64::from(n % 3)));
            assert_eq!(hedging.wait(Operation::Get, 4_096), None);
        }
        hedging.took(Operation::Get, 4_096, ms(10));
        let wait = hedging.wait(Operation::Get, 4_096).unwrap();
        assert!(wait >= ms(12) && wait <= ms(16), "{wait:?}");
        // Neither another size, nor another kind, nor what is large is known by it.
        assert_eq!(hedging.wait(Operation::Get, 1 << 20), None);
        assert_eq!(hedging.wait(Operation::PutIfAbsent, 4_096), None);
        assert_eq!(hedging.wait(Operation::Get, GET_BYTES_MAX + 1), None);
        assert_eq!(hedging.wait(Operation::Delete, 0), None);
    }

    #[test]
    fn many_slow_answers_do_not_become_usual() {
        let hedging = Hedging::new();
        for n in 0..1_000 {
            let took = if n % 10 == 0 { ms(2_000) } else { ms(10) };
            hedging.took(Operation::PutIfAbsent, 100, took);
        }
        let wait = hedging.wait(Operation::PutIfAbsent, 100).unwrap();
        assert!(wait < ms(60), "{wait:?}");
        // A store that is slow as a whole is: nothing is sent twice for what is usual.
        for _ in 0..4_000 {
            hedging.took(Operation::PutIfAbsent, 100, ms(2_000));
        }
        assert!(hedging.wait(Operation::PutIfAbsent, 100).unwrap() >= ms(1_900));
    }

    #[test]
    fn second_requests_are_a_twentieth_of_the_first_at_most() {
        let hedging = Hedging::new();
        let mut sent: i64 = 0;
        for n in 1..=10_000 {
            hedging.wait(Operation::Get, 0);
            sent += i64::from(hedging.spend());
            assert!(sent <= n * EARNED_PER_MILLE / 1_000 + 1);
        }
        assert!(sent >= 490, "{sent}");
        // Saved up while nothing was slow, but not without end.
        for _ in 0..100_000 {
            hedging.wait(Operation::Get, 0);
        }
        let burst = std::iter::repeat_with(|| hedging.spend())
            .take_while(|sent| *sent)
            .count();
        assert_eq!(burst, 10);
    }
}
