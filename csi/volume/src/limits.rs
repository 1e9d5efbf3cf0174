//! How much of everything a volume may hold in RAM, and what happens above it.
//!
//! Invariant: pressure makes writers wait; it never fails them, and no number here is exceeded by more than one request.
//! Callers: `table.rs` (what is dirty, what is kept), `cache.rs` (frames), `fetch.rs` (readahead), `gc.rs` (rounds).

use std::time::Duration;

use crate::budget::Budget;
use crate::row::RUN_BYTES_MAX;

/// 255 bytes: what Linux allows. A longer name is `NameTooLong`.
pub const NAME_BYTES_MAX: usize = 255;

/// 4,095 bytes and a NUL make a PATH_MAX. A longer target of a symlink is `NameTooLong`.
pub const SYMLINK_BYTES_MAX: usize = 4_095;

/// 64 KiB: what Linux allows (XATTR_SIZE_MAX). A larger value is `AttributeTooLarge`.
pub const XATTR_BYTES_MAX: usize = 64 * 1024;

/// 64 KiB: what Linux allows for all names of a file together, each with a NUL (XATTR_LIST_MAX). Above it a new attribute
/// is `NoSpace`.
pub const XATTR_LIST_BYTES_MAX: usize = 64 * 1024;

/// 2^63-1 bytes less a run, so that no sum of an offset and a length of ours overflows a signed 64-bit number, which is
/// what off_t is. Beyond it writes are `TooBig`.
pub const FILE_BYTES_MAX: u64 = i64::MAX as u64 - RUN_BYTES_MAX;

/// 2^31-1 names of one inode. One more link is `TooManyLinks`.
pub const LINKS_MAX: u32 = i32::MAX as u32;

/// 2^60 bytes: the capacity that a volume without a limit has and statfs tells, less than what would overflow in `df`.
pub const CAPACITY_BYTES_UNLIMITED: u64 = 1 << 60;

/// 2^40 inodes: what statfs tells as the number that can still be made; inode numbers have 64 bits and never run out.
pub const INODES_TOLD: u64 = 1 << 40;

/// 96 MiB: content and rows that are not durable yet. Above it writers wait. Six runs of 16 MiB: four in flight and two
/// being filled.
pub const DIRTY_BYTES_MAX: u64 = 96 * 1024 * 1024;

/// 32 MiB: rows kept in RAM, among them the content of small files. Above it clean rows are dropped, oldest first; dirty
/// ones stay, so while much is dirty the tables may be larger by what `DIRTY_BYTES_MAX` allows.
pub const TABLE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// 32 MiB: frames kept in RAM, as stored. Above it the least recently used ones go (to disk, where they are already).
pub const FRAME_CACHE_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// 8 GiB: frames kept on disk, if there is a cache folder. Above it the oldest region is dropped.
pub const DISK_CACHE_BYTES_MAX: u64 = 8 * 1024 * 1024 * 1024;

const _: () = assert!(4 * RUN_BYTES_MAX <= DIRTY_BYTES_MAX);

/// 5 s between rounds of the collector of garbage. A round with nothing new to look at makes no request at all.
pub const COLLECT_EVERY: Duration = Duration::from_secs(5);

/// 30 s from the end of a pass that moves content to the next one: what it has emptied is dead by then.
pub const REPACK_EVERY: Duration = Duration::from_secs(30);

/// 8 MiB of garbage, half a segment, that is never worth a request.
pub const GARBAGE_SLACK_BYTES: u64 = 8 * 1024 * 1024;

/// 5 minutes between looks for a snapshot or clone that was deleted, while one holds garbage: a fifth of a request a minute.
pub const HOLDS_EVERY: Duration = Duration::from_secs(300);

/// 512 objects of some KiB make a segment or less; gathering them costs a few requests where each of them cost one.
pub const SMALL_OBJECTS_MAX: usize = 512;

/// When garbage is collected, and content moved to make more of it.
#[derive(Debug, Clone)]
pub struct CollectLimits {
    /// See `COLLECT_EVERY`.
    pub every: Duration,
    /// See `REPACK_EVERY`.
    pub repack_every: Duration,
    /// See `GARBAGE_SLACK_BYTES`.
    pub slack_bytes: u64,
    /// Small objects that may lie about before they are gathered: see `SMALL_OBJECTS_MAX`.
    pub small_objects_max: usize,
    /// See `HOLDS_EVERY`.
    pub holds_every: Duration,
}

impl Default for CollectLimits {
    fn default() -> Self {
        Self {
            every: COLLECT_EVERY,
            repack_every: REPACK_EVERY,
            slack_bytes: GARBAGE_SLACK_BYTES,
            small_objects_max: SMALL_OBJECTS_MAX,
            holds_every: HOLDS_EVERY,
        }
    }
}

/// The limits of one mount.
#[derive(Debug, Clone)]
pub struct Limits {
    /// See `DIRTY_BYTES_MAX`.
    pub dirty_bytes_max: u64,
    /// See `TABLE_BYTES_MAX`.
    pub table_bytes_max: u64,
    /// When garbage goes.
    pub collect: CollectLimits,
    /// What all volumes of the process have together; the limits here are what one of them may have at most.
    pub budget: Budget,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            dirty_bytes_max: DIRTY_BYTES_MAX,
            table_bytes_max: TABLE_BYTES_MAX,
            collect: CollectLimits::default(),
            budget: Budget::default(),
        }
    }
}
