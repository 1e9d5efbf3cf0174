//! The tree's time: what the node's clock said at the opening, but never behind what an earlier writer has left.
//!
//! SlateDB stamps commits and files, and refuses a stamp older than the newest that is there: a node whose clock is behind
//! that of the writer before could not write. Here such a node goes on from the newest stamp instead. Nothing else is decided by this time than
//! how old a file is that compaction has replaced. Invariant: it never goes back. Caller: `slate.rs`.

use std::pin::Pin;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use chrono::{DateTime, TimeDelta, Utc};
use slatedb::VersionedCompactions;
use slatedb::manifest::VersionedManifest;
use slatedb_common::{SystemClock, SystemClockTicker};
use tokio::time::Instant;

use crate::clock::Timestamp;

/// The newest stamp that a tree holds, in milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub(super) struct Stamp(pub i64);

/// The newest stamp of a manifest: of a commit, or in the name of a file.
pub(super) fn newest_stamp(manifest: &VersionedManifest) -> Stamp {
    let named = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    let files = manifest
        .all_sst_views()
        .flat_map(|view| [view.id.timestamp_ms(), view.sst.id.value().timestamp_ms()]);
    let compacted = manifest.last_compacted_l0_sst_view_id().map(|id| id.timestamp_ms());
    let newest = files.chain(compacted).map(named).max().unwrap_or_default();
    Stamp(newest.max(manifest.last_l0_clock_tick()))
}

/// The newest stamp of the compactions that a tree knows: a compaction that was begun has a stamp, though no file of it may
/// be in the manifest yet, and whoever goes on with it must not be behind that.
pub(super) fn newest_compaction(compactions: &VersionedCompactions) -> Stamp {
    let stamps = compactions.recent_compactions().flat_map(|compaction| {
        let outputs = compaction.output_ssts().into_iter().map(|sst| sst.id.value());
        std::iter::once(compaction.id()).chain(outputs.collect::<Vec<_>>())
    });
    let named = |ms: u64| i64::try_from(ms).unwrap_or(i64::MAX);
    Stamp(stamps.map(|id| named(id.timestamp_ms())).max().unwrap_or_default())
}

/// A clock that begins at a given time, and can be put forward.
#[derive(Debug)]
pub(super) struct TreeClock {
    begun: Instant,
    /// What it shows is this and the time since `begun`.
    begun_ms: AtomicI64,
}

impl TreeClock {
    /// Shows `now`, or `newest` where that is later.
    pub fn new(now: Timestamp, newest: Stamp) -> Self {
        let now_ms = now
            .seconds
            .saturating_mul(1_000)
            .saturating_add(i64::from(now.nanos / 1_000_000));
        Self {
            begun: Instant::now(),
            // File names cannot hold a time before 1970.
            begun_ms: AtomicI64::new(now_ms.max(newest.0).max(0)),
        }
    }

    /// Goes forward to a stamp that it is behind of.
    pub fn reach(&self, newest: Stamp) {
        self.begun_ms
            .fetch_max(newest.0.saturating_sub(self.elapsed_ms()), Ordering::SeqCst);
    }

    fn elapsed_ms(&self) -> i64 {
        i64::try_from(self.begun.elapsed().as_millis()).unwrap_or(i64::MAX)
    }
}

impl SystemClock for TreeClock {
    fn now(&self) -> DateTime<Utc> {
        let ms = self.begun_ms.load(Ordering::SeqCst).saturating_add(self.elapsed_ms());
        DateTime::UNIX_EPOCH
            .checked_add_signed(TimeDelta::milliseconds(ms))
            .unwrap_or(DateTime::<Utc>::MAX_UTC)
    }

    fn sleep<'a>(&'a self, duration: Duration) -> Pin<Box<dyn Future<Output = ()> + Send + 'a>> {
        Box::pin(tokio::time::sleep(duration))
    }

    fn ticker<'a>(&'a self, duration: Duration) -> SystemClockTicker<'a> {
        SystemClockTicker::new(self, duration)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn it_is_never_behind_what_is_there_and_never_goes_back() {
        let clock = TreeClock::new(
            Timestamp {
                seconds: 100,
                nanos: 7_000_000,
            },
            Stamp(50_000),
        );
        assert_eq!(clock.now().timestamp_millis(), 100_007);
        clock.reach(Stamp(90_000));
        assert_eq!(clock.now().timestamp_millis(), 100_007);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(clock.now().timestamp_millis(), 101_007);
        clock.reach(Stamp(3_600_000));
        assert_eq!(clock.now().timestamp_millis(), 3_600_000);
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(clock.now().timestamp_millis(), 3_601_000);
        let behind = TreeClock::new(Timestamp { seconds: -5, nanos: 0 }, Stamp(i64::MIN));
        assert_eq!(behind.now().timestamp_millis(), 0);
    }
}
