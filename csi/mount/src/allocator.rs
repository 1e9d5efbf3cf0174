//! How this process keeps memory that it has freed: hardly at all.
//!
//! Content comes and goes in pieces of a MiB and objects of sixteen. Without this, glibc learns to keep such pieces for
//! later, and the process stays as large as its busiest moment. Callers: `engine/process.rs`, `foreground.rs`.

/// 256 KiB: larger pieces are mapped, and returned when they are freed. Frames, of half that, stay in the heap.
#[cfg(target_env = "gnu")]
const MAPPED_FROM_BYTES: libc::c_int = 256 * 1024;

/// 4 heaps at most: threads that come and go would else leave one each, partly used.
#[cfg(target_env = "gnu")]
const HEAPS_MAX: libc::c_int = 4;

/// Returns memory to the system as soon as it is freed, as far as the C library can be told so.
pub(crate) fn return_what_is_freed() {
    #[cfg(target_env = "gnu")]
    // SAFETY: mallopt takes two numbers and locks the allocator itself; an unknown parameter is refused, which is no harm.
    unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, MAPPED_FROM_BYTES);
        libc::mallopt(libc::M_ARENA_MAX, HEAPS_MAX);
    }
}
