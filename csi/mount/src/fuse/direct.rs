//! Pages that a direct write has made old.
//!
//! The kernel drops its pages of a range before such a write, and again after one that its caller waits for, but not after one of
//! io_submit(2) or io_uring, while which somebody may have read them (Linux 6.18 and before). So it is told to. That takes half of the
//! speed of such writes, so it is done only where pages of the file were read, and once for what was written meanwhile.
//!
//! The kernel then waits for pages that it is reading or writing back, and asks us no more than a number of things at a time: if all of
//! them were writes that wait for that, what they wait for would never be asked. Invariant: no more than `WAITING_MAX` wait; the pages of
//! others go soon after they were answered. Caller: `seeking.rs`, whose thread tells the kernel.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard};

use tokio::sync::{Semaphore, oneshot};
use volume::ids::InodeNo;

/// 6: a queue of io_uring has 8 places at least, and 32 writes behind go at a time (`greeting.rs`).
const WAITING_MAX: usize = 6;

/// 65,536 bits, which is 8 KiB: as many inodes in a row are told apart.
const READ_WORDS: usize = 1_024;

/// What direct writes have made old, and of which files pages were read at all.
#[derive(Debug)]
pub(super) struct DirectWrites {
    pages_read: PagesRead,
    /// By file; no entry where the kernel was told of all. Never held across anything that waits.
    old: Mutex<BTreeMap<InodeNo, OldPages>>,
    turns: Semaphore,
}

/// Pages of a file that became old since the kernel was last told.
#[derive(Debug)]
pub(super) struct OldPages {
    /// In bytes: all of them, and what lies between.
    pub range: Range<u64>,
    waiting: Vec<oneshot::Sender<()>>,
}

impl OldPages {
    /// The kernel has them no more.
    pub fn tell_gone(self) {
        for waiting in self.waiting {
            // Nobody waits any more: nothing to tell.
            let _ = waiting.send(());
        }
    }
}

impl Default for DirectWrites {
    fn default() -> Self {
        Self {
            pages_read: PagesRead::default(),
            old: Mutex::default(),
            turns: Semaphore::new(WAITING_MAX),
        }
    }
}

impl DirectWrites {
    /// The kernel is about to read pages for its own memory.
    pub fn reads_pages(&self, ino: InodeNo) {
        self.pages_read.note(ino);
    }

    /// False if it never read any of the file.
    pub fn may_have_pages(&self, ino: InodeNo) -> bool {
        self.pages_read.has(ino)
    }

    /// A write has made a range old. `begin` sees to it that somebody takes that, where nobody is about to, and says whether it could.
    /// Returns when the pages are gone, or at once where enough wait for that.
    pub async fn add(&self, ino: InodeNo, range: Range<u64>, begin: impl FnOnce() -> bool) {
        let turn = self.turns.try_acquire().ok();
        let (done, gone) = oneshot::channel();
        if self.note(ino, range, turn.as_ref().map(|_| done)) && !begin() {
            self.take(ino);
        }
        if turn.is_some() {
            let _ = gone.await;
        }
    }

    /// True if it is the first of its file since the kernel was last told.
    fn note(&self, ino: InodeNo, range: Range<u64>, done: Option<oneshot::Sender<()>>) -> bool {
        match self.old().entry(ino) {
            Entry::Vacant(entry) => {
                let waiting = done.into_iter().collect();
                entry.insert(OldPages { range, waiting });
                true
            }
            Entry::Occupied(mut entry) => {
                let pages = entry.get_mut();
                pages.range = pages.range.start.min(range.start)..pages.range.end.max(range.end);
                pages.waiting.extend(done);
                false
            }
        }
    }

    /// What the kernel must be told of a file now.
    pub fn take(&self, ino: InodeNo) -> Option<OldPages> {
        self.old().remove(&ino)
    }

    fn old(&self) -> MutexGuard<'_, BTreeMap<InodeNo, OldPages>> {
        self.old.lock().expect("nothing panics while it notes")
    }
}

/// Inodes of which the kernel has read pages for its own memory, and perhaps others: a bit for all that have the same remainder.
#[derive(Debug)]
struct PagesRead([AtomicU64; READ_WORDS]);

impl Default for PagesRead {
    fn default() -> Self {
        Self([const { AtomicU64::new(0) }; READ_WORDS])
    }
}

impl PagesRead {
    fn place(&self, ino: InodeNo) -> (&AtomicU64, u64) {
        (&self.0[(ino.0 / 64) as usize % READ_WORDS], 1 << (ino.0 % 64))
    }

    fn note(&self, ino: InodeNo) {
        let (word, bit) = self.place(ino);
        if word.load(Ordering::Relaxed) & bit == 0 {
            word.fetch_or(bit, Ordering::SeqCst);
        }
    }

    fn has(&self, ino: InodeNo) -> bool {
        let (word, bit) = self.place(ino);
        word.load(Ordering::SeqCst) & bit != 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_inode_whose_pages_were_read_is_known() {
        let writes = DirectWrites::default();
        for ino in [1, 63, 64, 65_535] {
            assert!(!writes.may_have_pages(InodeNo(ino)));
            writes.reads_pages(InodeNo(ino));
            assert!(writes.may_have_pages(InodeNo(ino)));
        }
        assert!(!writes.may_have_pages(InodeNo(2)) && !writes.may_have_pages(InodeNo(65)));
        assert!(writes.may_have_pages(InodeNo(65_536 + 63)), "the same remainder");
    }

    /// If all waited, none of what they wait for could be asked.
    #[tokio::test]
    async fn a_few_wait_and_one_word_to_the_kernel_is_for_all() {
        let (writes, ino) = (DirectWrites::default(), InodeNo(5));
        let begun = std::cell::Cell::new(0);
        let mut adding: Vec<_> = Vec::new();
        for n in 0..WAITING_MAX as u64 + 2 {
            let mut add = Box::pin(writes.add(ino, n * 10..n * 10 + 5, || {
                begun.set(begun.get() + 1);
                true
            }));
            let waits = futures::poll!(add.as_mut()).is_pending();
            assert_eq!(waits, n < WAITING_MAX as u64, "{n}");
            if waits {
                adding.push(add);
            }
        }
        let old = writes.take(ino).expect("the kernel must be told");
        assert_eq!(old.range, 0..WAITING_MAX as u64 * 10 + 15);
        assert!(writes.take(ino).is_none());
        old.tell_gone();
        for add in adding {
            add.await;
        }
        assert_eq!(begun.get(), 1);
        writes.add(ino, 0..1, || false).await;
        assert!(writes.take(ino).is_none(), "nobody could be told");
    }
}
