//! The machine's clock as the `Clock` port of a volume. One of the few places that may read it.

use rustix::time::{ClockId, clock_gettime};
use volume::clock::{Clock, Timestamp};

/// CLOCK_REALTIME as of the last tick, by which the kernel stamps what it writes from its own memory: by a finer one, a file would be
/// made after it was written.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Timestamp {
        let now = clock_gettime(ClockId::RealtimeCoarse);
        Timestamp {
            seconds: now.tv_sec,
            nanos: u32::try_from(now.tv_nsec).unwrap_or(0),
        }
    }
}

/// Milliseconds since the Unix epoch, for people to read.
pub fn unix_ms(time: Timestamp) -> u64 {
    u64::try_from(time.seconds).unwrap_or(0) * 1_000 + u64::from(time.nanos / 1_000_000)
}
