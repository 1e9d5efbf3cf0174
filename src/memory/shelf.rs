//! Large blocks that were freed, kept for a moment for the next ones of their size.
//!
//! Content travels in blocks of 128 KiB to 20 MiB, each of which is used once. Given back to the kernel and asked for anew they
//! cost more than what is done with them: measured, some 60 % of the processor time of reads from the disk cache went into
//! clearing pages and taking them away.
//!
//! Invariants: a block is handed out to one owner at a time; what is kept is never more than was allowed, and nothing is kept for
//! longer than it takes to see that nobody wants it (`KEPT_FOR`). Nothing here allocates: the allocator itself calls it.
//! Caller: `memory.rs`. Absent: small blocks, which the system's allocator is good at.

use std::alloc::{GlobalAlloc, Layout, System};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::Thread;
use std::time::Duration;

/// 64 KiB: from here on the system maps blocks one by one (see `give_back_large_blocks`).
const BYTES_MIN: usize = 64 * 1024;

/// 24 MiB: a segment with its headers, the largest block that comes again and again.
const BYTES_MAX: usize = 24 * 1024 * 1024;

/// 256 blocks: 32 MiB of frames, the smallest blocks of which there are many.
const BLOCKS_MAX: usize = 256;

/// Sizes between two powers of two: a block is an eighth longer than was asked for at most, in pages that nobody touches.
const SIZES: usize = 8;

/// 16 bytes: what every block of the system's allocator is aligned to. More is wanted of small blocks only.
const ALIGN_MAX: usize = 16;

/// 1 s between two looks for what nobody wants: what was there at the last one goes.
const KEPT_FOR: Duration = Duration::from_secs(1);

/// The layout of a block that may be kept, a little longer than what was asked for; `None` for all others.
pub(super) fn rounded(layout: Layout) -> Option<Layout> {
    let size = layout.size();
    if !(BYTES_MIN..=BYTES_MAX).contains(&size) || layout.align() > ALIGN_MAX {
        return None;
    }
    let step = (1 << size.ilog2()) / SIZES;
    Layout::from_size_align(size.next_multiple_of(step), ALIGN_MAX).ok()
}

/// A block that nobody uses, of the layout that `rounded` gave.
#[derive(Debug, Clone, Copy)]
struct Block {
    at: NonNull<u8>,
    layout: Layout,
    /// At which look it was put here.
    look: u64,
}

// SAFETY: the shelf owns its blocks; nobody else has their addresses.
unsafe impl Send for Block {}

#[derive(Debug)]
struct Blocks {
    /// The oldest first; those from `len` on are none.
    blocks: [Option<Block>; BLOCKS_MAX],
    len: usize,
    bytes: usize,
    bytes_max: usize,
    look: u64,
}

impl Blocks {
    const fn new() -> Self {
        Self {
            blocks: [None; BLOCKS_MAX],
            len: 0,
            bytes: 0,
            bytes_max: 0,
            look: 0,
        }
    }

    fn remove(&mut self, at: usize) -> Option<Block> {
        let block = self.blocks[at].take()?;
        self.blocks.copy_within(at + 1..self.len, at);
        self.len -= 1;
        self.blocks[self.len] = None;
        self.bytes -= block.layout.size();
        Some(block)
    }

    /// The youngest of this size, whose pages are most likely in the processor's caches.
    fn take(&mut self, layout: Layout) -> Option<Block> {
        let fits = |block: &Option<Block>| block.is_some_and(|block| block.layout.size() == layout.size());
        let at = self.blocks[..self.len].iter().rposition(fits)?;
        self.remove(at)
    }

    fn is_full_for(&self, layout: Layout) -> bool {
        self.len == BLOCKS_MAX || self.bytes + layout.size() > self.bytes_max
    }

    fn put(&mut self, at: NonNull<u8>, layout: Layout) {
        let look = self.look;
        self.blocks[self.len] = Some(Block { at, layout, look });
        self.len += 1;
        self.bytes += layout.size();
    }

    /// The oldest, if it was here at the last look already.
    fn remove_unwanted(&mut self) -> Option<Block> {
        let oldest = self.blocks[0]?;
        (oldest.look < self.look).then(|| self.remove(0)).flatten()
    }
}

/// Where freed blocks are kept.
#[derive(Debug)]
pub(super) struct Shelf {
    /// Held for a look-up, never while the system gives or takes memory.
    blocks: Mutex<Blocks>,
    /// Gives back what nobody wants; it sleeps while there is nothing.
    sweeper: OnceLock<Thread>,
}

impl Shelf {
    /// One that keeps nothing yet.
    pub const fn new() -> Self {
        Self {
            blocks: Mutex::new(Blocks::new()),
            sweeper: OnceLock::new(),
        }
    }

    fn blocks(&self) -> MutexGuard<'_, Blocks> {
        self.blocks.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps at most so many bytes from now on. False where nobody could give back what is not wanted; then nothing is kept.
    pub fn keep(&'static self, bytes_max: usize) -> bool {
        if self.sweeper.get().is_none() {
            let sweeper = std::thread::Builder::new()
                .name("memory".to_owned())
                .spawn(|| self.sweep());
            let Ok(sweeper) = sweeper else { return false };
            let _ = self.sweeper.set(sweeper.thread().clone());
        }
        self.blocks().bytes_max = bytes_max;
        true
    }

    fn sweep(&self) {
        loop {
            // Let go before it sleeps: the lock is held to the end of a `match` on what it guards.
            let is_empty = self.blocks().len == 0;
            match is_empty {
                true => std::thread::park(),
                false => std::thread::park_timeout(KEPT_FOR),
            }
            self.give_back_unwanted();
        }
    }

    /// Gives back what was here at the last look.
    fn give_back_unwanted(&self) {
        loop {
            let unwanted = self.blocks().remove_unwanted();
            let Some(block) = unwanted else { break };
            give_back(block);
        }
        self.blocks().look += 1;
    }

    /// A kept block of this layout, which `rounded` gave. What is in it is what its last owner left.
    pub fn take(&self, layout: Layout) -> Option<NonNull<u8>> {
        let block = self.blocks().take(layout);
        block.map(|block| block.at)
    }

    /// Keeps a block, or gives it back; older ones make room for it.
    ///
    /// # Safety
    /// The block is the system's, of this layout, which `rounded` gave, and its owner is done with it.
    pub unsafe fn put(&self, at: NonNull<u8>, layout: Layout) {
        loop {
            let mut blocks = self.blocks();
            if layout.size() > blocks.bytes_max {
                break;
            }
            if !blocks.is_full_for(layout) {
                let first = blocks.len == 0;
                blocks.put(at, layout);
                drop(blocks);
                if let (true, Some(sweeper)) = (first, self.sweeper.get()) {
                    sweeper.unpark();
                }
                return;
            }
            let oldest = blocks.remove(0);
            drop(blocks);
            oldest.into_iter().for_each(give_back);
        }
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(at.as_ptr(), layout) }
    }
}

fn give_back(block: Block) {
    // SAFETY: `put` was promised that it is the system's, of this layout, and it has been nobody's since.
    unsafe { System.dealloc(block.at.as_ptr(), block.layout) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(size: usize) -> Layout {
        rounded(Layout::from_size_align(size, 1).unwrap()).unwrap()
    }

    fn allocated(layout: Layout) -> NonNull<u8> {
        // SAFETY: the layout is not empty.
        NonNull::new(unsafe { System.alloc(layout) }).unwrap()
    }

    fn shelf(bytes_max: usize) -> Shelf {
        let shelf = Shelf::new();
        shelf.blocks().bytes_max = bytes_max;
        shelf
    }

    fn put(shelf: &Shelf, size: usize) -> NonNull<u8> {
        let block = allocated(layout(size));
        // SAFETY: it was made just now with this layout.
        unsafe { shelf.put(block, layout(size)) };
        block
    }

    #[test]
    fn only_large_blocks_are_kept_and_little_longer_than_asked() {
        let of = |size, align| rounded(Layout::from_size_align(size, align).unwrap());
        for none in [of(BYTES_MIN - 1, 1), of(BYTES_MAX + 1, 1), of(BYTES_MIN, 4096)] {
            assert_eq!(none, None);
        }
        for size in (BYTES_MIN..BYTES_MAX).step_by(10_007) {
            let rounded = layout(size).size();
            assert!(
                rounded >= size && rounded <= size + size / SIZES,
                "{rounded} for {size}"
            );
            assert_eq!(layout(rounded).size(), rounded, "a rounded size stays");
        }
    }

    #[test]
    fn a_block_comes_back_for_its_size_and_once() {
        let shelf = shelf(1 << 20);
        let block = put(&shelf, 100_000);
        assert_eq!(shelf.take(layout(200_000)), None);
        assert_eq!(shelf.take(layout(100_000)), Some(block));
        assert_eq!(shelf.take(layout(100_000)), None, "it has an owner");
        // SAFETY: it was made with this layout and taken by us.
        unsafe { System.dealloc(block.as_ptr(), layout(100_000)) };
    }

    #[test]
    fn what_is_kept_is_bounded_and_the_oldest_goes_first() {
        let shelf = shelf(10 * layout(100_000).size());
        let first = put(&shelf, 100_000);
        let blocks: Vec<_> = (0..10).map(|_| put(&shelf, 100_000)).collect();
        assert!(shelf.blocks().bytes <= 10 * layout(100_000).size());
        put(&shelf, 2 << 20);
        assert_eq!(
            shelf.blocks().len,
            10,
            "what is larger than all that may be kept pushes nothing out"
        );
        let taken: Vec<_> = std::iter::from_fn(|| shelf.take(layout(100_000))).collect();
        assert_eq!(taken.len(), 10);
        assert!(blocks.iter().all(|block| taken.contains(block)) || taken.contains(&first));
        for block in taken {
            // SAFETY: it was made with this layout and taken by us.
            unsafe { System.dealloc(block.as_ptr(), layout(100_000)) };
        }
    }

    #[test]
    fn what_nobody_wants_is_given_back_at_the_second_look() {
        let shelf = shelf(1 << 20);
        put(&shelf, 100_000);
        put(&shelf, 70_000);
        shelf.give_back_unwanted();
        assert_eq!(shelf.blocks().len, 2, "they may be wanted in a moment");
        let wanted = shelf.take(layout(70_000)).unwrap();
        // SAFETY: it was made with this layout and taken by us.
        unsafe { shelf.put(wanted, layout(70_000)) };
        shelf.give_back_unwanted();
        assert_eq!(shelf.blocks().len, 1, "one was used meanwhile");
        shelf.give_back_unwanted();
        let blocks = shelf.blocks();
        assert_eq!((blocks.len, blocks.bytes), (0, 0));
    }
}
