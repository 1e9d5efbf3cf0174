//! A part of one frame's content in a region, read by way of the kernel: it reads no more of the disk than the pages that hold it. And
//! how long to wait for the disk in place.
//!
//! A fast disk answers sooner than a thread that waits for it is told so. So whoever reads looks again a few times before the wait
//! goes to such a thread: one at a time, and hardly ever where the disk was too slow for that.
//! Callers: `fetch/on_disk.rs`, `stretch.rs`. Absent: checks of what was read, which it makes.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use bytes::Bytes;
use rustix::io::{Errno, ReadWriteFlags};

/// 200 looks, of about a microsecond each where nobody else wants the CPU: a disk that takes 60 us for a page and 160 us for a frame is
/// seen, and one that takes longer is not waited for.
const LOOKS: usize = 200;

/// After 8 readers who looked in vain,
const IN_VAIN_MAX: u32 = 8;

/// only each 64th looks more than once.
const SELDOM: u32 = 64;

/// Where a part of a frame's content is read.
#[derive(Debug, Clone)]
pub(crate) struct FramePart {
    pub(super) file: Arc<File>,
    pub(super) position: u64,
    pub(super) len: usize,
}

impl FramePart {
    /// Reads if the kernel has it in memory within so many looks.
    pub fn look(&self, looks: usize) -> Option<Bytes> {
        let mut content = vec![0; self.len];
        let seen = look(&self.file, &mut [IoSliceMut::new(&mut content)], self.position, looks);
        seen.then(|| content.into())
    }

    /// Where in the region it begins.
    #[cfg(test)]
    pub fn position(&self) -> u64 {
        self.position
    }

    /// Reads; `None` if the disk fails.
    pub fn read(&self) -> Option<Bytes> {
        let mut content = vec![0; self.len];
        let read = self.file.read_exact_at(&mut content, self.position);
        read.is_ok().then(|| content.into())
    }
}

/// Fills the parts with what is in the file from `position` on, if the kernel has it in memory within so many looks. With the first it
/// begins to fetch what it does not have.
pub(super) fn look(file: &File, mut parts: &mut [IoSliceMut<'_>], mut position: u64, looks: usize) -> bool {
    for look in 0..looks {
        if look > 0 {
            std::thread::yield_now();
        }
        match rustix::io::preadv2(file, parts, position, ReadWriteFlags::NOWAIT) {
            Ok(read) if read > 0 => {
                IoSliceMut::advance_slices(&mut parts, read);
                position += read as u64;
            }
            Err(Errno::AGAIN) => {}
            Ok(_) | Err(_) => return false,
        }
        if parts.is_empty() {
            return true;
        }
    }
    false
}

/// Who may look more than once.
#[derive(Debug, Default)]
pub(super) struct Patience {
    /// Somebody does.
    taken: AtomicBool,
    /// How many in a row did so, or would have, since a disk was last fast enough.
    in_vain: AtomicU32,
}

impl Patience {
    /// Reads if that takes no longer than it takes to wait elsewhere; `look` is told how often to look.
    pub fn read_soon<T>(&self, look: impl Fn(usize) -> Option<T>) -> Option<T> {
        look(1).or_else(|| self.patiently(|| look(LOOKS)))
    }

    fn patiently<T>(&self, look: impl FnOnce() -> Option<T>) -> Option<T> {
        let in_vain = self.in_vain.load(Ordering::Relaxed);
        if in_vain >= IN_VAIN_MAX && !in_vain.is_multiple_of(SELDOM) {
            self.in_vain.store(in_vain.wrapping_add(1), Ordering::Relaxed);
            return None;
        }
        if self.taken.swap(true, Ordering::Acquire) {
            return None;
        }
        let seen = look();
        let in_vain = if seen.is_some() { 0 } else { in_vain.wrapping_add(1) };
        self.in_vain.store(in_vain, Ordering::Relaxed);
        self.taken.store(false, Ordering::Release);
        seen
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slow_disk_is_hardly_ever_waited_for_and_a_fast_one_always() {
        let patience = Patience::default();
        let mut looked = 0;
        for _ in 0..640 {
            patience.patiently(|| {
                looked += 1;
                None::<()>
            });
        }
        assert_eq!(looked, 8 + 9, "eight, and then at 64, 128 and so on");
        // It has become fast: that is seen by the next that looks, and then by all.
        let seen = (0..640).filter_map(|_| patience.patiently(|| Some(()))).count();
        assert!(seen > 640 - SELDOM as usize, "{seen}");
    }

    #[test]
    fn one_at_a_time_waits() {
        let patience = Patience::default();
        let inner = patience.patiently(|| Some(patience.patiently(|| Some(()))));
        assert_eq!(inner, Some(None));
        assert_eq!(patience.patiently(|| Some(())), Some(()));
    }
}
