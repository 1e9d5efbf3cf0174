//! Who goes first to the bucket: reads that somebody waits for. Upkeep reads in passing and gives way to them, but never for long:
//! space must come back also from a volume that is read all the time.
//!
//! Caller: `fetch.rs`.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

use super::GETS_AT_ONCE;

/// 500 ms: who reads a tree of small files finds many of them in a cache before the next GET.
const QUIET: Duration = Duration::from_millis(500);

/// 100 ms for each GET: beside readers without a pause upkeep makes 40 GETs a second, more than writes with fsync make objects.
const PATIENCE: Duration = Duration::from_millis(100);

/// 4 GETs in passing at a time.
const PASSING_AT_ONCE: usize = 4;

/// For whom something is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Urgency {
    /// Somebody waits, or soon will.
    Awaited,
    /// Nobody waits.
    InPassing,
}

impl Urgency {
    /// GETs of one read at a time.
    pub fn gets_at_once(self) -> usize {
        match self {
            Urgency::Awaited => GETS_AT_ONCE,
            Urgency::InPassing => PASSING_AT_ONCE,
        }
    }
}

#[derive(Debug, Default)]
struct State {
    /// Reads that wait for the bucket.
    awaited: usize,
    /// When the last one of them ended.
    ended: Option<Instant>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Precedence {
    /// Held to count, never across an await.
    state: Mutex<State>,
}

/// A read waits for the bucket as long as this lives.
#[derive(Debug)]
pub(super) struct Awaited<'a> {
    of: &'a Precedence,
}

impl Precedence {
    fn with<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        change(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Notes a read that waits for the bucket.
    pub fn begin(&self, urgency: Urgency) -> Option<Awaited<'_>> {
        let awaited = || {
            self.with(|state| state.awaited += 1);
            Awaited { of: self }
        };
        (urgency == Urgency::Awaited).then(awaited)
    }

    /// Returns when it is the turn of one GET: at once for who is waited for, else when nobody else has waited for `QUIET`, or
    /// after `PATIENCE`.
    pub async fn turn(&self, urgency: Urgency) {
        if urgency == Urgency::Awaited {
            return;
        }
        let latest = Instant::now() + PATIENCE;
        loop {
            let now = Instant::now();
            let quiet_at = self.with(|state| match (state.awaited, state.ended) {
                (0, None) => now,
                (0, Some(ended)) => ended + QUIET,
                (_, _) => now + QUIET,
            });
            if now >= quiet_at.min(latest) {
                return;
            }
            sleep_until(quiet_at.min(latest)).await;
        }
    }
}

impl Drop for Awaited<'_> {
    fn drop(&mut self) {
        self.of.with(|state| {
            state.awaited -= 1;
            state.ended = Some(Instant::now());
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Milliseconds until a GET in passing had its turn.
    async fn waited(precedence: &Precedence) -> u128 {
        let began = Instant::now();
        precedence.turn(Urgency::InPassing).await;
        began.elapsed().as_millis()
    }

    #[tokio::test(start_paused = true)]
    async fn upkeep_waits_while_somebody_reads_and_a_little_after_but_never_for_long() {
        let precedence = Precedence::default();
        assert_eq!(waited(&precedence).await, 0, "nobody has read");
        let reader = precedence.begin(Urgency::Awaited);
        let other = precedence.begin(Urgency::Awaited);
        assert_eq!(waited(&precedence).await, PATIENCE.as_millis(), "while two read");
        drop(other);
        assert_eq!(waited(&precedence).await, PATIENCE.as_millis(), "while one reads");
        drop(reader);
        let mut in_all = 0;
        while in_all < QUIET.as_millis() {
            assert_eq!(
                waited(&precedence).await,
                PATIENCE.as_millis(),
                "one has read {in_all} ms ago"
            );
            in_all += PATIENCE.as_millis();
        }
        assert_eq!(waited(&precedence).await, 0, "nobody reads any more");
        assert!(precedence.begin(Urgency::InPassing).is_none());
        assert_eq!(waited(&precedence).await, 0, "upkeep does not wait for itself");
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_waited_for_never_waits_for_a_turn() {
        let precedence = Precedence::default();
        let _reader = precedence.begin(Urgency::Awaited);
        let began = Instant::now();
        precedence.turn(Urgency::Awaited).await;
        assert_eq!(began.elapsed(), Duration::ZERO);
    }
}
