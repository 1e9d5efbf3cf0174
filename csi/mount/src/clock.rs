//! The machine's clock as the `Clock` port of a volume. One of the few places that may read it.

use std::time::{SystemTime, UNIX_EPOCH};

use volume::clock::{Clock, Timestamp};

/// CLOCK_REALTIME.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    #[expect(
        clippy::disallowed_methods,
        reason = "this is the adapter through which everybody else reads the clock"
    )]
    fn now(&self) -> Timestamp {
        match SystemTime::now().duration_since(UNIX_EPOCH) {
            Ok(since) => Timestamp {
                seconds: i64::try_from(since.as_secs()).unwrap_or(i64::MAX),
                nanos: since.subsec_nanos(),
            },
            // A machine that believes to be before 1970 gets a valid stamp, not a panic.
            Err(_) => Timestamp::default(),
        }
    }
}

/// Milliseconds since the Unix epoch, for people to read.
pub fn unix_ms(time: Timestamp) -> u64 {
    u64::try_from(time.seconds).unwrap_or(0) * 1_000 + u64::from(time.nanos / 1_000_000)
}
