//! When a commit leaves: the whole policy of group commit, as one plain function.
//!
//! Invariant: whoever waits is served at once if nothing is under way, and within an eighth of a put's time otherwise;
//! a change that nobody waits for leaves within `cut_after`. Callers: `run.rs`. Absent: clocks and requests.

use std::time::Duration;

use tokio::time::Instant;

use super::CommitLimits;

/// 20 ms: what a put takes, until one was measured.
const PUT_TIME_FIRST: Duration = Duration::from_millis(20);

/// 250 us to 50 ms between commits that somebody waits for, however fast or slow puts are.
const SPACING: (Duration, Duration) = (Duration::from_micros(250), Duration::from_millis(50));

/// How long puts take, as a moving average.
#[derive(Debug, Clone, Copy)]
pub(super) struct PutTime(Duration);

impl PutTime {
    pub fn new() -> Self {
        Self(PUT_TIME_FIRST)
    }

    /// Takes one more into the average, with a weight of a fifth.
    pub fn add(&mut self, took: Duration) {
        self.0 = (self.0 * 4 + took) / 5;
    }

    /// Time between two commits, so that `in_flight_max` of them fill the time of one put.
    pub fn spacing(self, in_flight_max: usize) -> Duration {
        (self.0 / in_flight_max.max(1) as u32).clamp(SPACING.0, SPACING.1)
    }
}

/// What the loop knows when it decides.
#[derive(Debug, Clone, Copy)]
pub(super) struct Situation {
    pub now: Instant,
    /// Commits under way.
    pub in_flight: usize,
    /// So much waits for the tree that nothing more may be sent.
    pub tree_behind: bool,
    /// Somebody waits for what is not cut yet.
    pub wanted: bool,
    /// Bytes not cut yet.
    pub unsealed_bytes: u64,
    /// Since when something is.
    pub dirty_since: Option<Instant>,
    /// When the last commit left.
    pub last_dispatch: Option<Instant>,
    /// Time to keep between commits.
    pub spacing: Duration,
}

/// What to do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Decision {
    /// Cut and send now.
    Dispatch,
    /// Decide again then, or when something changes.
    At(Instant),
    /// Decide again when something changes.
    Wait,
}

pub(super) fn decide(limits: &CommitLimits, situation: &Situation) -> Decision {
    let Situation { now, in_flight, .. } = *situation;
    if in_flight >= limits.in_flight_max || situation.tree_behind {
        return Decision::Wait;
    }
    let at = |then: Instant| match then <= now {
        true => Decision::Dispatch,
        false => Decision::At(then),
    };
    if situation.wanted {
        return match situation.last_dispatch {
            Some(last) if in_flight > 0 => at(last + situation.spacing),
            Some(_) | None => Decision::Dispatch,
        };
    }
    let enough = match in_flight {
        0 => limits.cut_bytes,
        _ => limits.cut_bytes_busy,
    };
    match situation.dirty_since {
        _ if situation.unsealed_bytes >= enough => Decision::Dispatch,
        Some(since) => at(since + limits.cut_after),
        None => Decision::Wait,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn idle(now: Instant) -> Situation {
        Situation {
            now,
            in_flight: 0,
            tree_behind: false,
            wanted: false,
            unsealed_bytes: 0,
            dirty_since: None,
            last_dispatch: None,
            spacing: Duration::from_millis(5),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn who_waits_is_served_at_once_or_after_the_spacing() {
        let (limits, now) = (CommitLimits::default(), Instant::now());
        let wanted = Situation {
            wanted: true,
            ..idle(now)
        };
        assert_eq!(decide(&limits, &wanted), Decision::Dispatch);
        let busy = Situation {
            in_flight: 1,
            last_dispatch: Some(now),
            ..wanted
        };
        assert_eq!(decide(&limits, &busy), Decision::At(now + wanted.spacing));
        let later = Situation {
            now: now + wanted.spacing,
            ..busy
        };
        assert_eq!(decide(&limits, &later), Decision::Dispatch);
        let full = Situation {
            in_flight: limits.in_flight_max,
            ..later
        };
        assert_eq!(decide(&limits, &full), Decision::Wait);
        assert_eq!(
            decide(
                &limits,
                &Situation {
                    tree_behind: true,
                    ..wanted
                }
            ),
            Decision::Wait
        );
    }

    #[tokio::test(start_paused = true)]
    async fn what_nobody_waits_for_leaves_by_age_or_by_size() {
        let (limits, now) = (CommitLimits::default(), Instant::now());
        assert_eq!(decide(&limits, &idle(now)), Decision::Wait);
        let dirty = Situation {
            dirty_since: Some(now),
            unsealed_bytes: 1,
            ..idle(now)
        };
        assert_eq!(decide(&limits, &dirty), Decision::At(now + limits.cut_after));
        let old = Situation {
            now: now + limits.cut_after,
            ..dirty
        };
        assert_eq!(decide(&limits, &old), Decision::Dispatch);
        let large = Situation {
            unsealed_bytes: limits.cut_bytes,
            ..dirty
        };
        assert_eq!(decide(&limits, &large), Decision::Dispatch);
        let busy = Situation { in_flight: 1, ..large };
        assert_eq!(decide(&limits, &busy), Decision::At(now + limits.cut_after));
        let larger = Situation {
            unsealed_bytes: limits.cut_bytes_busy,
            ..busy
        };
        assert_eq!(decide(&limits, &larger), Decision::Dispatch);
    }

    #[test]
    fn spacing_follows_the_time_of_puts_within_bounds() {
        let mut time = PutTime::new();
        assert_eq!(time.spacing(8), PUT_TIME_FIRST / 8);
        for _ in 0..100 {
            time.add(Duration::from_millis(80));
        }
        let spacing = time.spacing(8);
        assert!(
            spacing > Duration::from_millis(9) && spacing <= Duration::from_millis(10),
            "{spacing:?}"
        );
        time.add(Duration::from_secs(1_000));
        assert_eq!(time.spacing(8), SPACING.1);
    }
}
