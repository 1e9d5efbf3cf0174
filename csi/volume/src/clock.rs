//! The `Clock` port: wall time for timestamps, nothing else. Never used for safety: fencing needs no clock.

use std::fmt::Debug;

/// Wall-clock time since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Timestamp {
    /// Whole seconds; negative before 1970.
    pub seconds: i64,
    /// 0 to 999,999,999.
    pub nanos: u32,
}

/// Where a volume learns what time it is.
pub trait Clock: Debug + Send + Sync + 'static {
    /// The time now, as `clock_gettime(CLOCK_REALTIME_COARSE)` tells it.
    fn now(&self) -> Timestamp;
}
