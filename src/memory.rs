//! How this process keeps memory that it no longer uses.

/// 64 KiB: blocks of this size and more are mapped one by one. Content travels in larger ones, rows and messages in smaller.
const MAPPED_FROM_BYTES: libc::c_int = 64 * 1024;

/// Makes large blocks go back to the system when they are freed. Left alone, glibc raises the size from which it maps blocks
/// with each one that is freed, up to 32 MiB, and keeps what lies below: an engine that took in a few hundred MiB once held on
/// to 570 MiB for good, and to 110 MiB with this. Call it first in `main`, before there are threads.
pub fn give_back_large_blocks() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt only sets a number of the allocator; it is not safe beside other threads' allocations, and none
    // has been started.
    unsafe {
        // It fails for numbers out of range only; then memory is kept as before, which is no reason to stop.
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
    }
}
