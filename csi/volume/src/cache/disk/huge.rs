//! Memory straight from the kernel, in huge pages where it is long: for places that disks fill again and again.
//!
//! A disk is told where each page of memory lies, so what lies in one piece is read by a few long transfers, and what lies anywhere
//! by hundreds of short ones: measured on a virtual disk, 2 to 3 GB/s instead of 1.1.
//! Invariant: what is here is mapped, readable and zero or written by its owner. It goes back to the kernel with its owner.
//! Callers: `places.rs`, and `buffer.rs` for what needs the bounds of a page.

use std::ptr::NonNull;

/// 2 MiB: a huge page, on every machine of four-KiB pages.
pub(super) const HUGE_BYTES: usize = 2 * 1024 * 1024;

/// Memory from the bound of a huge page on.
#[derive(Debug)]
pub(super) struct HugeMemory {
    at: NonNull<u8>,
    len: usize,
    /// Bytes from `at` on that are mapped.
    mapped: usize,
}

// SAFETY: it is a mapping of its own, and nothing in it is bound to a thread.
unsafe impl Send for HugeMemory {}
// SAFETY: a shared reference only reads it.
unsafe impl Sync for HugeMemory {}

impl HugeMemory {
    /// So many bytes, all zero; what is no whole huge page of it is of small ones. `None` where the system has no memory.
    pub fn new(len: usize) -> Option<Self> {
        let all = len.checked_add(HUGE_BYTES).filter(|_| len > 0)?;
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let begin = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                all,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if begin == libc::MAP_FAILED {
            return None;
        }
        let begin = begin.cast::<u8>();
        let skip = begin.align_offset(HUGE_BYTES);
        // SAFETY: `skip` is less than a huge page, by which the mapping is longer than `len`.
        let at = unsafe { begin.add(skip) };
        if skip > 0 {
            // SAFETY: what is before `at` is of this mapping, of whole pages, and nobody knows of it.
            unsafe { libc::munmap(begin.cast(), skip) };
        }
        // Where the kernel gives no huge pages it is of small ones, which is only slower. What is behind `len` is never touched.
        // SAFETY: the range lies in the mapping, and the advice changes nothing that is in it.
        unsafe { libc::madvise(at.cast(), len, libc::MADV_HUGEPAGE) };
        Some(Self {
            at: NonNull::new(at)?,
            len,
            mapped: all - skip,
        })
    }

    /// To be filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the mapping, initialized by the kernel, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.at.as_ptr(), self.len) }
    }

    /// Where it begins, for who divides it among users that do not know of each other.
    pub fn at(&self) -> NonNull<u8> {
        self.at
    }
}

impl AsRef<[u8]> for HugeMemory {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: within the mapping, initialized by the kernel, and borrowed as `self` is.
        unsafe { std::slice::from_raw_parts(self.at.as_ptr(), self.len) }
    }
}

impl Drop for HugeMemory {
    fn drop(&mut self) {
        // SAFETY: the whole of its own mapping, which nobody borrows any more.
        unsafe { libc::munmap(self.at.as_ptr().cast(), self.mapped) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_of_any_length_is_zero_at_first_and_holds_what_was_put_there() {
        for len in [1, 4_095, HUGE_BYTES - 1, HUGE_BYTES, 2 * HUGE_BYTES + 4_097] {
            let mut memory = HugeMemory::new(len).expect("there is memory");
            assert!(memory.as_ref().as_ptr().addr().is_multiple_of(HUGE_BYTES));
            assert!(memory.as_ref().len() == len && memory.as_ref().iter().all(|byte| *byte == 0));
            memory.as_mut().fill(7);
            assert!(memory.as_ref().iter().all(|byte| *byte == 7));
        }
        assert!(HugeMemory::new(0).is_none() && HugeMemory::new(usize::MAX).is_none());
        assert!(HugeMemory::new(1 << 60).is_none(), "no address space is so long");
    }
}
