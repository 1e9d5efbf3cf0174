//! SEEK_DATA and SEEK_HOLE beside the writeback cache.
//!
//! The kernel asks us without writing its dirty pages first, so a volume would call a hole what was written a moment ago, and
//! cp(1) would skip it. So before such a question about a file that somebody has open for writing, the kernel is told to drop
//! its pages of it, which makes it write the dirty ones. That waits for writes that our own FUSE threads serve, so it happens
//! on a thread of its own, and never under a lock. Closed files need none of it: close(2) writes all their pages.
//!
//! The same thread tells the kernel of a mode that changed without its knowing.

use std::collections::BTreeMap;
use std::fs::File;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::oneshot;
use volume::ids::InodeNo;

use super::OpenFlags;
use super::flags::writes;
use crate::session::forget_pages;

/// The offset that stands for no page at all.
const ATTRIBUTES: i64 = -1;

/// Makes the kernel write what it has not written yet of a file. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Flusher {
    inner: Arc<Inner>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How many descriptors may write, by file; no entry means none. Never held across anything that waits.
    writers: Mutex<BTreeMap<InodeNo, u64>>,
    /// Programs have files open that were never told here: any of them may be written.
    inherited: AtomicBool,
    requests: OnceLock<Sender<FlushRequest>>,
}

#[derive(Debug)]
struct FlushRequest {
    ino: InodeNo,
    /// From where on: 0 for all pages and the attributes, `ATTRIBUTES` for these alone.
    offset: i64,
    done: oneshot::Sender<()>,
}

impl Flusher {
    /// Begins to serve on a connection. The thread ends with the last clone.
    pub fn start(&self, device: File) -> std::io::Result<()> {
        let (sender, requests) = channel::<FlushRequest>();
        std::thread::Builder::new().name("fuse-flusher".into()).spawn(move || {
            for FlushRequest { ino, offset, done } in requests {
                if let Err(error) = forget_pages(&device, ino.0, offset) {
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
            self.ask(ino, 0).await;
        }
    }

    /// Returns when the kernel has forgotten what it knew of the attributes.
    pub async fn forget_attributes(&self, ino: InodeNo) {
        self.ask(ino, ATTRIBUTES).await;
    }

    async fn ask(&self, ino: InodeNo, offset: i64) {
        let Some(requests) = self.inner.requests.get() else {
            return;
        };
        let (done, flushed) = oneshot::channel();
        if requests.send(FlushRequest { ino, offset, done }).is_ok() {
            let _ = flushed.await;
        }
    }

    fn writers(&self) -> std::sync::MutexGuard<'_, BTreeMap<InodeNo, u64>> {
        self.inner.writers.lock().expect("nothing panics while it counts")
    }
}
