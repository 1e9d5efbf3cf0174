//! How this process keeps memory: what it no longer uses goes back.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;

mod shelf;

use shelf::{Shelf, rounded};

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

static SHELF: Shelf = Shelf::new();

/// A sixth of what the volumes may have together: with 256 MiB what one reader in sequence has under way, five of the largest GETs.
const KEPT_SHARE: u64 = 6;

/// Keeps large blocks that were freed for the next ones of their size, up to a share of `memory_bytes`, and for a second or two.
/// For processes that content goes through; before it is called nothing is kept.
pub fn keep_large_blocks(memory_bytes: u64) {
    let bytes_max = usize::try_from(memory_bytes / KEPT_SHARE).unwrap_or(usize::MAX);
    if !SHELF.keep(bytes_max) {
        tracing::warn!("no thread for the memory that was freed: large blocks are asked for anew each time");
    }
}

/// The layout that a block has at the system: a little more than was asked for, where it may be kept.
fn own(layout: Layout) -> (Layout, bool) {
    rounded(layout).map_or((layout, false), |rounded| (rounded, true))
}

/// The system's memory, but for large blocks that were freed: these are used again (`shelf.rs`).
#[derive(Debug, Clone, Copy, Default)]
pub struct Memory;

// SAFETY: every block is the system's, of the layout that `own` gives, which is at least as long and as aligned as what was asked
// for, and always the same for the same question; one that was kept has had no owner since it was freed.
unsafe impl GlobalAlloc for Memory {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let (own, may_be_kept) = own(layout);
        match may_be_kept.then(|| SHELF.take(own)).flatten() {
            Some(block) => block.as_ptr(),
            // SAFETY: the caller promises that the layout is not empty, and this one is not shorter.
            None => unsafe { System.alloc(own) },
        }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        let (own, may_be_kept) = own(layout);
        match NonNull::new(block).filter(|_| may_be_kept) {
            // SAFETY: the caller is done with the block, which is the system's, of this layout.
            Some(block) => unsafe { SHELF.put(block, own) },
            // SAFETY: as above.
            None => unsafe { System.dealloc(block, own) },
        }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        let (own, may_be_kept) = own(layout);
        if let Some(block) = may_be_kept.then(|| SHELF.take(own)).flatten() {
            // SAFETY: the block is ours alone, and at least so long.
            unsafe { block.write_bytes(0, layout.size()) };
            return block.as_ptr();
        }
        // SAFETY: the caller promises that the layout is not empty, and this one is not shorter.
        unsafe { System.alloc_zeroed(own) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        let Ok(wanted) = Layout::from_size_align(size, layout.align()) else {
            return std::ptr::null_mut();
        };
        let ((before, _), (after, _)) = (own(layout), own(wanted));
        match before.size() == after.size() {
            true => block,
            // The system moves large blocks without a copy.
            // SAFETY: the block is the system's, of the layout before; the caller promises that the new size is not 0.
            false => unsafe { System.realloc(block, before, after.size()) },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Goal: whatever was there before, a block has what its owner put there, and zeros where it asked for them. Method: blocks of
    /// all sizes are made, grown, shrunk and freed in an order that makes the kept ones come back.
    #[test]
    fn blocks_keep_what_is_in_them_and_new_ones_have_zeros_where_asked() {
        keep_large_blocks(64 * 1024 * 1024);
        let layout = |size| Layout::from_size_align(size, 1).unwrap();
        for round in 0..200usize {
            let size = 60_000 + round * 7_919 % 300_000;
            // SAFETY: the layouts are not empty, each block has the layout that it was made or last changed with, and all that is
            // read of it was written.
            unsafe {
                let zeros = Memory.alloc_zeroed(layout(size));
                assert!(std::slice::from_raw_parts(zeros, size).iter().all(|byte| *byte == 0));
                zeros.write_bytes(7, size);
                let (grown, shrunk) = (size * 2, size / 3);
                let block = Memory.realloc(zeros, layout(size), grown);
                assert!(std::slice::from_raw_parts(block, size).iter().all(|byte| *byte == 7));
                block.write_bytes(9, grown);
                let block = Memory.realloc(block, layout(grown), shrunk);
                assert!(std::slice::from_raw_parts(block, shrunk).iter().all(|byte| *byte == 9));
                let other = Memory.alloc(layout(size));
                other.write_bytes(8, size);
                assert!(std::slice::from_raw_parts(block, shrunk).iter().all(|byte| *byte == 9));
                Memory.dealloc(other, layout(size));
                Memory.dealloc(block, layout(shrunk));
            }
        }
    }
}
