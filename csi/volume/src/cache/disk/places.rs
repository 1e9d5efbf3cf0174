//! Memory of large reads and writes, used again: a few places in huge pages.
//!
//! Asking the kernel for a new MiB each time, cleared page by page, took longer than filling it.
//! Invariant: a place has one user at a time. Caller: `buffer.rs`. Absent: what is read, and what is done when all are in use.

use std::sync::{Mutex, OnceLock, PoisonError};

use super::direct::BLOCK_BYTES;
use super::huge::{HUGE_BYTES, HugeMemory};
use super::stretch::STRETCH_BYTES_MAX;

/// The longest stretch, wherever in its first and last block it begins and ends.
pub(super) const PLACE_BYTES: usize = (STRETCH_BYTES_MAX + 2 * BLOCK_BYTES) as usize;

/// 13 of all volumes: what the kernel has asked for ahead of three readers in sequence, or is being told.
pub(super) const PLACES: usize = 13;

/// 14 MiB of one process, for as long as it lives, as far as it has used them at a time.
const ALL_BYTES: usize = 7 * HUGE_BYTES;

const _: () = assert!(PLACES * PLACE_BYTES <= ALL_BYTES && PLACE_BYTES.is_multiple_of(BLOCK_BYTES as usize));

/// See the module.
#[derive(Debug)]
struct Places {
    memory: HugeMemory,
    /// Which ones nobody uses; the one that was used last is taken first. Held to take or give one.
    free: Mutex<Vec<usize>>,
}

static PLACES_OF_ALL: OnceLock<Option<Places>> = OnceLock::new();

impl Places {
    /// `None` where the system has no memory.
    fn new() -> Option<Self> {
        Some(Self {
            memory: HugeMemory::new(ALL_BYTES)?,
            free: Mutex::new((0..PLACES).rev().collect()),
        })
    }

    /// One that nobody uses.
    fn take(&'static self) -> Option<Place> {
        let number = self.free.lock().unwrap_or_else(PoisonError::into_inner).pop()?;
        Some(Place { of: self, number })
    }
}

/// A place and the right to use it, with anything in it. It begins where a block may.
#[derive(Debug)]
pub(super) struct Place {
    of: &'static Places,
    number: usize,
}

impl Place {
    /// One that nobody uses, of those of the process.
    pub fn take() -> Option<Self> {
        PLACES_OF_ALL.get_or_init(Places::new).as_ref()?.take()
    }

    fn at(&self) -> *mut u8 {
        // SAFETY: within the memory, which has room for `PLACES` of them.
        unsafe { self.of.memory.at().as_ptr().add(self.number * PLACE_BYTES) }
    }

    /// To be filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        // SAFETY: initialized by the kernel, never unmapped because it is in a static, and nobody else's: the number was taken
        // out of `free`. Borrowed as `self` is.
        unsafe { std::slice::from_raw_parts_mut(self.at(), PLACE_BYTES) }
    }
}

impl AsRef<[u8]> for Place {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: as in `as_mut`.
        unsafe { std::slice::from_raw_parts(self.at(), PLACE_BYTES) }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut free = self.of.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.push(self.number);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Goal: no two users ever have the same place, and each place comes back. Method: three times as many threads as places, each
    /// of which leaves its mark and looks for it after others had their chance; in places that no other test takes.
    #[test]
    fn a_place_has_one_user_at_a_time_and_comes_back() {
        let places: &'static Places = Box::leak(Box::new(Places::new().expect("there is memory")));
        let (users, had) = (AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|scope| {
            for mark in 0..3 * PLACES as u8 {
                let (users, had) = (&users, &had);
                scope.spawn(move || {
                    for _ in 0..50 {
                        let Some(mut place) = places.take() else { continue };
                        assert!(users.fetch_add(1, Ordering::SeqCst) < PLACES);
                        had.fetch_add(1, Ordering::SeqCst);
                        assert!(place.as_ref().as_ptr().addr().is_multiple_of(BLOCK_BYTES as usize));
                        place.as_mut().fill(mark);
                        std::thread::yield_now();
                        assert!(place.as_ref().iter().all(|byte| *byte == mark));
                        users.fetch_sub(1, Ordering::SeqCst);
                    }
                });
            }
        });
        assert!(had.into_inner() > PLACES, "they are used again");
        let all: Vec<Place> = std::iter::from_fn(|| places.take()).collect();
        assert_eq!(all.len(), PLACES, "each came back");
    }
}
