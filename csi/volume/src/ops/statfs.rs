//! Space and inodes of the volume.

use crate::attr::StatFs;
use crate::limits::{CAPACITY_BYTES_UNLIMITED, INODES_TOLD};
use crate::mount::Mount;

/// See `Volume::statfs`.
pub(crate) fn statfs(mount: &Mount) -> StatFs {
    let tables = mount.lock();
    let counters = tables.counters();
    let total_bytes = tables.capacity_bytes().unwrap_or(CAPACITY_BYTES_UNLIMITED);
    StatFs {
        total_bytes,
        free_bytes: total_bytes.saturating_sub(counters.used_bytes),
        inodes: counters.inodes,
        free_inodes: INODES_TOLD,
    }
}
