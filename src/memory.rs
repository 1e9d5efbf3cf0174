//! How this process keeps memory: what it no longer uses goes back, and what requests of the kernel are read into is there before.

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

/// A sixteenth of what the volumes may have together: with 256 MiB four of the largest GETs, or 120 frames. An eighth would not fit
/// beside what four busy volumes have at their height.
const KEPT_SHARE: u64 = 16;

/// Keeps large blocks that were freed for the next ones of their size, up to a share of `memory_bytes`, and for a second or two.
/// For processes that content goes through; before it is called nothing is kept.
pub fn keep_large_blocks(memory_bytes: u64) {
    let bytes_max = usize::try_from(memory_bytes / KEPT_SHARE).unwrap_or(usize::MAX);
    if !SHELF.keep(bytes_max) {
        tracing::warn!("no thread for the memory that was freed: large blocks are asked for anew each time");
    }
}

/// 16 MiB and a page: the block that fuser reads requests into, one for each of its threads.
const REQUEST_BLOCK_BYTES: usize = 16 * 1024 * 1024 + 4096;

/// 1 MiB and two pages of it: the longest request, with its header wherever it begins.
const REQUEST_BYTES: usize = 1024 * 1024 + 8192;

const _: () = assert!(REQUEST_BYTES < REQUEST_BLOCK_BYTES);

/// The layout that a block has at the system: a little more than was asked for, where it may be kept.
fn own(layout: Layout) -> (Layout, bool) {
    // That one is locked in memory, and must go with its lock.
    let may_be_kept = rounded(layout).filter(|_| layout.size() != REQUEST_BLOCK_BYTES);
    may_be_kept.map_or((layout, false), |rounded| (rounded, true))
}

/// The system's memory, but for two kinds of blocks.
///
/// Large ones that were freed are used again (`shelf.rs`). And the one that requests are read into: a page of it that was never
/// used is put there only while the kernel copies a request to it, and where this process is killed in that moment, the kernel
/// cannot, and tells the program that asked EIO. So the part that requests are read into is there from the start, and stays.
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
        let block = unsafe { System.alloc_zeroed(own) };
        if layout.size() == REQUEST_BLOCK_BYTES && !block.is_null() {
            // SAFETY: the range lies in the block, which was made just now. Where it cannot be locked nothing is different.
            unsafe { libc::mlock(block.cast(), REQUEST_BYTES) };
        }
        block
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

    #[test]
    fn the_block_that_requests_are_read_into_is_there_before_it_is_used() {
        let layout = Layout::from_size_align(REQUEST_BLOCK_BYTES, 1).unwrap();
        // SAFETY: the layout is not empty.
        let block = unsafe { Memory.alloc_zeroed(layout) };
        assert!(!block.is_null());
        let page = 4096;
        let start = (block as usize).next_multiple_of(page);
        let mut there = vec![0u8; REQUEST_BYTES / page - 1];
        // SAFETY: the range is inside of the block, and there is a byte for each of its pages.
        let asked = unsafe { libc::mincore(start as *mut libc::c_void, there.len() * page, there.as_mut_ptr()) };
        assert_eq!(asked, 0);
        assert!(there.iter().all(|page| page & 1 == 1));
        // SAFETY: it was made above with this layout.
        unsafe { Memory.dealloc(block, layout) };
    }

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
