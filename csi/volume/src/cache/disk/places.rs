//! Memory that the disk reads into past the kernel's: a few places in huge pages, used again and again.
//!
//! A disk is told where each page of memory lies, so what lies in one piece is read by a few long transfers, and what lies
//! anywhere by hundreds of short ones: measured on a virtual disk, 2 to 3 GB/s instead of 1.1. And pages that were used before
//! need not be cleared.
//! Invariant: a place has one user at a time. Caller: `direct.rs`. Absent: what is read.

use std::ptr::NonNull;
use std::sync::{Condvar, Mutex, OnceLock, PoisonError};

use super::direct::BLOCK_BYTES;
use super::stretch::STRETCH_BYTES_MAX;

/// The longest stretch, wherever in its first and last block it begins and ends.
pub(super) const PLACE_BYTES: usize = (STRETCH_BYTES_MAX + 2 * BLOCK_BYTES) as usize;

/// 5 reads at a time of all volumes: two were enough for the fastest disk at hand, and the kernel has asked for four of a reader at
/// most. Who comes when all are in use waits for as long as the disk takes.
const PLACES: usize = 5;

/// 2 MiB: a huge page, on every machine of four-KiB pages.
const HUGE_BYTES: usize = 2 * 1024 * 1024;

/// 6 MiB of one process, for as long as it lives, once it has read something large from its disk.
const ALL_BYTES: usize = 3 * HUGE_BYTES;

const _: () = assert!(PLACES * PLACE_BYTES <= ALL_BYTES && PLACE_BYTES.is_multiple_of(BLOCK_BYTES as usize));

/// See the module.
#[derive(Debug)]
struct Places {
    /// `ALL_BYTES`, from the bound of a huge page on.
    at: NonNull<u8>,
    /// Which ones nobody uses. Held to take or give one.
    free: Mutex<Vec<usize>>,
    /// Told for each that is given back.
    freed: Condvar,
}

// SAFETY: the memory is its own, and each part of it is handed to one user at a time by `free`.
unsafe impl Send for Places {}
// SAFETY: as above.
unsafe impl Sync for Places {}

static PLACES_OF_ALL: OnceLock<Option<Places>> = OnceLock::new();

impl Places {
    /// `None` where the system has no memory.
    fn new() -> Option<Self> {
        // SAFETY: a new mapping at an address of the kernel's choice touches no memory of ours.
        let at = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                ALL_BYTES + HUGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE,
                -1,
                0,
            )
        };
        if at == libc::MAP_FAILED {
            return None;
        }
        let skip = at.cast::<u8>().align_offset(HUGE_BYTES);
        // SAFETY: `skip` is less than a huge page, and the mapping is that much longer; it is never unmapped.
        let at = unsafe { at.cast::<u8>().add(skip) };
        // Where the kernel gives no huge pages, the places are of small ones, which is only slower.
        // SAFETY: the range lies in the mapping, and the advice changes nothing that is in it.
        unsafe { libc::madvise(at.cast(), ALL_BYTES, libc::MADV_HUGEPAGE) };
        Some(Self {
            at: NonNull::new(at)?,
            free: Mutex::new((0..PLACES).collect()),
            freed: Condvar::new(),
        })
    }

    fn take(&self) -> Place<'_> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        loop {
            match free.pop() {
                Some(number) => return Place { of: self, number },
                None => free = self.freed.wait(free).unwrap_or_else(PoisonError::into_inner),
            }
        }
    }
}

/// A place and the right to use it.
struct Place<'a> {
    of: &'a Places,
    number: usize,
}

impl Place<'_> {
    fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: within the mapping, zeroed by the kernel at first, and nobody else's: the number was taken out of `free`.
        unsafe { std::slice::from_raw_parts_mut(self.of.at.as_ptr().add(self.number * PLACE_BYTES), PLACE_BYTES) }
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut free = self.of.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(self.number);
        drop(free);
        self.of.freed.notify_one();
    }
}

/// Lets `act` use a place, with anything in it, which begins where a block may. Waits for one; `None` if there are none.
pub(super) fn with<T>(act: impl FnOnce(&mut [u8]) -> T) -> Option<T> {
    let places = PLACES_OF_ALL.get_or_init(Places::new).as_ref()?;
    Some(act(places.take().as_mut()))
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Goal: no two users ever have the same place, and all come to their turn. Method: three times as many threads as places,
    /// each of which leaves its mark and looks for it after others had their chance.
    #[test]
    fn a_place_has_one_user_at_a_time_and_nobody_waits_for_ever() {
        let users = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for mark in 0..3 * PLACES as u8 {
                let users = &users;
                scope.spawn(move || {
                    for _ in 0..50 {
                        let whole = with(|place| {
                            assert!(users.fetch_add(1, Ordering::SeqCst) < PLACES);
                            assert!(place.as_ptr().addr().is_multiple_of(BLOCK_BYTES as usize));
                            place.fill(mark);
                            std::thread::yield_now();
                            let whole = place.iter().all(|byte| *byte == mark);
                            users.fetch_sub(1, Ordering::SeqCst);
                            whole
                        });
                        assert_eq!(whole, Some(true));
                    }
                });
            }
        });
    }
}
