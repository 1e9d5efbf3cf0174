//! How this process keeps memory: what it no longer uses goes back, and what requests of the kernel are read into is there before.

use std::alloc::{GlobalAlloc, Layout, System};

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

/// 16 MiB and a page: the block that fuser reads requests into, one for each of its threads.
const REQUEST_BLOCK_BYTES: usize = 16 * 1024 * 1024 + 4096;

/// 1 MiB and two pages of it: the longest request, with its header wherever it begins.
const REQUEST_BYTES: usize = 1024 * 1024 + 8192;

const _: () = assert!(REQUEST_BYTES < REQUEST_BLOCK_BYTES);

/// The system's memory, but for one kind of block: a page of it that was never used is put there only while the kernel copies a
/// request to it, and where this process is killed in that moment, the kernel cannot, and tells the program that asked EIO. So
/// the part that requests are read into is there from the start, and stays.
#[derive(Debug, Clone, Copy, Default)]
pub struct RequestsStay;

// SAFETY: every block is the system's, with its layout unchanged; what is done to some of them changes none of their bytes.
unsafe impl GlobalAlloc for RequestsStay {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise is the same, and the block is the system's.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promise is the same.
        let block = unsafe { System.alloc_zeroed(layout) };
        if layout.size() == REQUEST_BLOCK_BYTES && !block.is_null() {
            // SAFETY: the range lies in the block, which was made just now. Where it cannot be locked nothing is different.
            unsafe { libc::mlock(block.cast(), REQUEST_BYTES) };
        }
        block
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        // SAFETY: the caller's promise is the same, and the block is the system's.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_block_that_requests_are_read_into_is_there_before_it_is_used() {
        let layout = Layout::from_size_align(REQUEST_BLOCK_BYTES, 1).unwrap();
        // SAFETY: the layout is not empty.
        let block = unsafe { RequestsStay.alloc_zeroed(layout) };
        assert!(!block.is_null());
        let page = 4096;
        let start = (block as usize).next_multiple_of(page);
        let mut there = vec![0u8; REQUEST_BYTES / page - 1];
        // SAFETY: the range is inside of the block, and there is a byte for each of its pages.
        let asked = unsafe { libc::mincore(start as *mut libc::c_void, there.len() * page, there.as_mut_ptr()) };
        assert_eq!(asked, 0);
        assert!(there.iter().all(|page| page & 1 == 1));
        // SAFETY: it was made above with this layout.
        unsafe { RequestsStay.dealloc(block, layout) };
    }
}
