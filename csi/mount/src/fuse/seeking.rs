//! SEEK_DATA and SEEK_HOLE beside the writeback cache.
//!
//! The kernel asks us without writing its dirty pages first, so a volume would call a hole what was written a moment ago, and
//! cp(1) would skip it. So before such a question about a file that somebody has open for writing, the kernel is told to drop
//! its pages of it, which makes it write the dirty ones. That waits for writes that our own FUSE threads serve, so it happens
//! on a thread of its own, and never under a lock. Closed files need none of it: close(2) writes all their pages.
//!
//! The same thread tells the kernel of a mode that changed without its knowing, and of pages that a direct write has made old: it drops
//! them itself before such a write, and again after one that it waits for, but not after one of io_submit(2) or io_uring, while which
//! somebody may have read them (Linux 6.18 and before). That takes a direct write a third of its speed or more, so it is done only where
//! pages of the file were read.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::oneshot;
use volume::ids::InodeNo;

use super::OpenFlags;
use super::flags::writes;
use crate::session::forget_pages;

/// All pages of a file.
const ALL: Range<u64> = 0..i64::MAX as u64;

/// 65,536 bits, which is 8 KiB: as many inodes in a row are told apart.
const READ_WORDS: usize = 1_024;

/// Makes the kernel write what it has not written yet of a file. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Flusher {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    pages_read: PagesRead,
    /// How many descriptors may write, by file; no entry means none. Never held across anything that waits.
    writers: Mutex<BTreeMap<InodeNo, u64>>,
    /// Programs have files open that were never told here: any of them may be written, or was read.
    inherited: AtomicBool,
    requests: OnceLock<Sender<FlushRequest>>,
}

#[derive(Debug)]
struct FlushRequest {
    ino: InodeNo,
    /// Which pages besides the attributes.
    pages: Option<Range<u64>>,
    done: oneshot::Sender<()>,
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

impl Flusher {
    /// Begins to serve on a connection. The thread ends with the last clone.
    pub fn start(&self, device: File) -> std::io::Result<()> {
        let (sender, requests) = channel::<FlushRequest>();
        std::thread::Builder::new().name("fuse-flusher".into()).spawn(move || {
            for FlushRequest { ino, pages, done } in requests {
                if let Err(error) = forget_pages(&device, ino.0, pages) {
                    tracing::debug!(%error, %ino, "the kernel did not flush");
                }
                // Nobody waits any more: nothing to tell.
                let _ = done.send(());
            }
        })?;
        let _ = self.inner.requests.set(sender);
        Ok(())
    }

    /// This process goes on with a connection of another.
    pub fn inherit(&self) {
        self.inner.inherited.store(true, Ordering::Relaxed);
    }

    /// A descriptor was opened.
    pub fn opened(&self, ino: InodeNo, flags: OpenFlags) {
        if writes(flags) {
            *self.writers().entry(ino).or_default() += 1;
        }
    }

    /// A descriptor was closed for the last time.
    pub fn released(&self, ino: InodeNo, flags: OpenFlags) {
        if !writes(flags) {
            return;
        }
        let mut writers = self.writers();
        if let Some(count) = writers.get_mut(&ino) {
            *count -= 1;
            if *count == 0 {
                writers.remove(&ino);
            }
        }
    }

    /// Returns when everything that programs wrote to the file before has reached the volume.
    pub async fn flush(&self, ino: InodeNo) {
        if self.inner.inherited.load(Ordering::Relaxed) || self.writers().contains_key(&ino) {
            self.ask(ino, Some(ALL)).await;
        }
    }

    /// The kernel is about to read pages for its own memory.
    pub fn reads_pages(&self, ino: InodeNo) {
        self.inner.pages_read.note(ino);
    }

    /// Returns when no program reads any more what was there before a direct write.
    pub async fn written_directly(&self, ino: InodeNo, range: Range<u64>) {
        if self.inner.inherited.load(Ordering::Relaxed) || self.inner.pages_read.has(ino) {
            self.ask(ino, Some(range)).await;
        }
    }

    /// Returns when the kernel has forgotten what it knew of the attributes.
    pub async fn forget_attributes(&self, ino: InodeNo) {
        self.ask(ino, None).await;
    }

    async fn ask(&self, ino: InodeNo, pages: Option<Range<u64>>) {
        let Some(requests) = self.inner.requests.get() else {
            return;
        };
        let (done, flushed) = oneshot::channel();
        if requests.send(FlushRequest { ino, pages, done }).is_ok() {
            let _ = flushed.await;
        }
    }

    fn writers(&self) -> std::sync::MutexGuard<'_, BTreeMap<InodeNo, u64>> {
        self.inner.writers.lock().expect("nothing panics while it counts")
    }
}
