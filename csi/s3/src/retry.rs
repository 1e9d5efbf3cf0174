//! When a request is sent again, and how long all of it may take.
//!
//! This is the only place that repeats requests: the SDK's retries are off. Everything is bounded by time, not by a
//! count, because callers care how long they wait. Absent: any knowledge of what a failure means (see `error.rs`).

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;
use volume::bucket::BucketError;

/// How long a call on the bucket may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetryPolicy {
    /// No request is begun later than this after the call. The last one may still run for its own time.
    pub total: Duration,
    /// How long one request may take without its body.
    pub attempt: Duration,
    /// How fast bodies are at least, in bytes a second: a request may take that much longer.
    pub body_bytes_per_s_min: u64,
}

impl Default for RetryPolicy {
    /// 30 s in all: a restarting server is waited for, and a controller's call of 110 s holds three. 10 s a request: the
    /// slowest of a hundred thousand takes some 2 s on S3. 1 MiB/s: a segment of 64 MiB may take 74 s, one over a good
    /// line takes one.
    fn default() -> Self {
        Self {
            total: Duration::from_secs(30),
            attempt: Duration::from_secs(10),
            body_bytes_per_s_min: 1 << 20,
        }
    }
}

/// 50 ms, doubled with each try: the usual round trip, so that one lost packet or dropped connection costs little.
const WAIT_FIRST: Duration = Duration::from_millis(50);

/// 500 ms for a store that asks us to slow down: shorter waits would keep it busy with refusing.
const WAIT_FIRST_THROTTLED: Duration = Duration::from_millis(500);

/// 5 s: a store that comes back is noticed soon after.
const WAIT_MAX: Duration = Duration::from_secs(5);

/// How a single request failed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// Sending it again would not help.
    Final(BucketError),
    /// It may help.
    Passing {
        /// What to tell when time is up.
        error: BucketError,
        /// The store asked for patience.
        throttled: bool,
        /// False where the request may have had its effect without our learning of it.
        refused: bool,
    },
}

impl Failure {
    /// The failure of two requests for the same: sure to have had no effect only if both are, and final only if both are.
    pub(crate) fn beside(self, other: Failure) -> Failure {
        match (self, other) {
            (
                Failure::Passing {
                    error,
                    throttled,
                    refused,
                },
                Failure::Passing {
                    throttled: also_throttled,
                    refused: also_refused,
                    ..
                },
            ) => Failure::Passing {
                error,
                throttled: throttled || also_throttled,
                refused: refused && also_refused,
            },
            (passing @ Failure::Passing { .. }, Failure::Final(_))
            | (Failure::Final(_), passing @ Failure::Passing { .. }) => passing,
            (last, Failure::Final(_)) => last,
        }
    }
}

/// How a call failed.
#[derive(Debug)]
pub(crate) struct Failed {
    pub(crate) error: BucketError,
    /// True if an earlier request of the call may have had its effect.
    pub(crate) maybe_done: bool,
}

impl RetryPolicy {
    /// How long one request may take that moves `body_bytes`.
    pub(crate) fn attempt_time(&self, body_bytes: u64) -> Duration {
        self.attempt + Duration::from_millis(body_bytes * 1_000 / self.body_bytes_per_s_min.max(1))
    }

    /// Sends requests until one succeeds, fails for good, or time is up. `send` gets the number of the try, from 0.
    pub(crate) async fn run<T, F>(&self, chance: &Chance, mut send: impl FnMut(u32) -> F) -> Result<T, Failed>
    where
        F: Future<Output = Result<T, Failure>>,
    {
        let begun = Instant::now();
        let mut maybe_done = false;
        for attempt in 0.. {
            let (error, throttled) = match send(attempt).await {
                Ok(answer) => return Ok(answer),
                Err(Failure::Final(error)) => return Err(Failed { error, maybe_done }),
                Err(Failure::Passing {
                    error,
                    throttled,
                    refused,
                }) => {
                    maybe_done |= !refused;
                    (error, throttled)
                }
            };
            let wait = chance.part_of(longest_wait(attempt, throttled));
            if begun.elapsed() + wait > self.total {
                return Err(Failed {
                    error: with_tries(error, attempt + 1, begun.elapsed()),
                    maybe_done,
                });
            }
            tracing::debug!(%error, attempt, wait_ms = wait.as_millis(), "sending the request again");
            tokio::time::sleep(wait).await;
        }
        unreachable!("the loop above has no end of its own");
    }
}

fn longest_wait(attempt: u32, throttled: bool) -> Duration {
    let first = if throttled { WAIT_FIRST_THROTTLED } else { WAIT_FIRST };
    first.saturating_mul(1 << attempt.min(10)).min(WAIT_MAX)
}

fn with_tries(error: BucketError, tries: u32, elapsed: Duration) -> BucketError {
    match error {
        BucketError::Unavailable { key, detail } => {
            let detail = format!("{detail} ({tries} tries in {:.1} s)", elapsed.as_secs_f32());
            BucketError::Unavailable { key, detail }
        }
        error => error,
    }
}

/// Chance for waits, so that many waiters do not come back at the same moment.
#[derive(Debug)]
pub(crate) struct Chance(AtomicU64);

impl Chance {
    pub(crate) fn new(seed: u64) -> Self {
        Self(AtomicU64::new(seed))
    }

    /// Between a quarter of `longest` and all of it.
    fn part_of(&self, longest: Duration) -> Duration {
        // SplitMix64: one addition for each draw, so that it needs no lock.
        let mut z = self.0.fetch_add(0x9e37_79b9_7f4a_7c15, Ordering::Relaxed);
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        let quarter = longest / 4;
        quarter + (longest - quarter).mul_f64((z >> 11) as f64 / (1u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn passing(throttled: bool, refused: bool) -> Failure {
        let error = BucketError::Unavailable {
            key: "k".to_owned(),
            detail: "503".to_owned(),
        };
        Failure::Passing {
            error,
            throttled,
            refused,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_call_ends_in_time_and_tells_how_often_it_tried() {
        let policy = RetryPolicy::default();
        let begun = Instant::now();
        let failed = policy
            .run::<(), _>(&Chance::new(1), |_| async { Err(passing(false, false)) })
            .await
            .unwrap_err();
        assert!(begun.elapsed() <= policy.total);
        assert!(
            begun.elapsed() + WAIT_MAX >= policy.total,
            "it gave up early, after {:?}",
            begun.elapsed()
        );
        assert!(
            failed.maybe_done && failed.error.to_string().contains("tries in"),
            "{}",
            failed.error
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_refused_request_has_surely_not_had_its_effect() {
        let answers = |attempt: u32| async move {
            match attempt {
                0 => Err(passing(true, true)),
                _ => Err(Failure::Final(BucketError::Precondition { key: "k".to_owned() })),
            }
        };
        let failed = RetryPolicy::default()
            .run::<(), _>(&Chance::new(1), answers)
            .await
            .unwrap_err();
        assert!(!failed.maybe_done);
    }

    #[test]
    fn waits_grow_to_their_bound_and_differ() {
        let chance = Chance::new(7);
        for attempt in 0..40 {
            for throttled in [false, true] {
                let longest = longest_wait(attempt, throttled);
                let wait = chance.part_of(longest);
                assert!(wait >= longest / 4 && wait <= longest && longest <= WAIT_MAX);
            }
        }
        assert_ne!(chance.part_of(WAIT_MAX), chance.part_of(WAIT_MAX));
    }
}
