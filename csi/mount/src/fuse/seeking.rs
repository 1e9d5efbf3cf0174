//! SEEK_DATA and SEEK_HOLE beside the writeback cache.
//!
//! The kernel asks us without writing its dirty pages first, so a volume would call a hole what was written a moment ago, and
//! cp(1) would skip it. So before such a question about a file that somebody has open for writing, the kernel is told to drop
//! its pages of it, which makes it write the dirty ones. That waits for writes that our own FUSE threads serve, so it happens
//! on a thread of its own, and never under a lock. Closed files need none of it: close(2) writes all their pages.
//!
//! The same thread tells the kernel of pages that direct writes have made old (`direct.rs`), and another one of a mode that changed without
//! its knowing: that waits for no pages, and what the first thread waits for may wait for that.

use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, OnceLock};

use tokio::sync::oneshot;
use volume::ids::InodeNo;

use super::OpenFlags;
use super::direct::DirectWrites;
use super::flags::writes;
use crate::session::forget_pages;

/// All pages of a file.
const ALL: Range<u64> = 0..i64::MAX as u64;

/// Makes the kernel write what it has not written yet of a file. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct Flusher {
    inner: Arc<Inner>,
    direct: Arc<DirectWrites>,
}

#[derive(Debug, Default)]
struct Inner {
    /// How many descriptors may write, by file; no entry means none. Never held across anything that waits.
    writers: Mutex<BTreeMap<InodeNo, u64>>,
    /// Programs have files open that were never told here: any of them may be written, or was read.
    inherited: AtomicBool,
    pages: OnceLock<Sender<OfPages>>,
    attributes: OnceLock<Sender<Asked>>,
}

/// Of which file, and who waits.
#[derive(Debug)]
struct Asked {
    ino: InodeNo,
    done: oneshot::Sender<()>,
}

/// What the kernel is told of pages.
#[derive(Debug)]
enum OfPages {
    /// To write all that it has of a file.
    Flush(Asked),
    /// That a direct write has made some old.
    Old(InodeNo),
}

/// Runs on a thread of its own until nobody can ask any more.
fn on_a_thread<T: Send + 'static>(name: &str, mut tell: impl FnMut(T) + Send + 'static) -> std::io::Result<Sender<T>> {
    let (sender, asked) = channel();
    std::thread::Builder::new()
        .name(name.to_owned())
        .spawn(move || asked.into_iter().for_each(&mut tell))?;
    Ok(sender)
}

/// Tells the kernel.
fn tell(device: &File, ino: InodeNo, pages: Option<Range<u64>>) {
    if let Err(error) = forget_pages(device, ino.0, pages) {
        tracing::debug!(%error, %ino, "the kernel did not forget");
    }
}

impl Asked {
    fn end(self) {
        // Nobody waits any more: nothing to tell.
        let _ = self.done.send(());
    }
}

impl Flusher {
    /// Begins to serve on a connection. Its threads end with the last clone.
    pub fn start(&self, device: File) -> std::io::Result<()> {
        let (of_attributes, direct) = (device.try_clone()?, Arc::clone(&self.direct));
        let pages = on_a_thread("fuse-flusher", move |asked| match asked {
            OfPages::Flush(asked) => {
                tell(&device, asked.ino, Some(ALL));
                asked.end();
            }
            OfPages::Old(ino) => {
                if let Some(old) = direct.take(ino) {
                    tell(&device, ino, Some(old.range.clone()));
                    old.tell_gone();
                }
            }
        })?;
        let attributes = on_a_thread("fuse-attributes", move |asked: Asked| {
            tell(&of_attributes, asked.ino, None);
            asked.end();
        })?;
        let _ = self.inner.pages.set(pages);
        let _ = self.inner.attributes.set(attributes);
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
        if self.is_inherited() || self.writers().contains_key(&ino) {
            ask(&self.inner.pages, ino, OfPages::Flush).await;
        }
    }

    /// The kernel is about to read pages for its own memory.
    pub fn reads_pages(&self, ino: InodeNo) {
        self.direct.reads_pages(ino);
    }

    /// Returns when no program reads any more what was there before a direct write; at once where many direct writes are under way, and
    /// soon after that none does.
    pub async fn written_directly(&self, ino: InodeNo, range: Range<u64>) {
        if self.is_inherited() || self.direct.may_have_pages(ino) {
            let pages = self.inner.pages.get();
            let begin = || pages.is_some_and(|pages| pages.send(OfPages::Old(ino)).is_ok());
            self.direct.add(ino, range, begin).await;
        }
    }

    /// Returns when the kernel has forgotten what it knew of the attributes.
    pub async fn forget_attributes(&self, ino: InodeNo) {
        ask(&self.inner.attributes, ino, |asked| asked).await;
    }

    fn is_inherited(&self) -> bool {
        self.inner.inherited.load(Ordering::Relaxed)
    }

    fn writers(&self) -> std::sync::MutexGuard<'_, BTreeMap<InodeNo, u64>> {
        self.inner.writers.lock().expect("nothing panics while it counts")
    }
}

async fn ask<T>(thread: &OnceLock<Sender<T>>, ino: InodeNo, what: impl FnOnce(Asked) -> T) {
    let Some(thread) = thread.get() else {
        return;
    };
    let (done, is_done) = oneshot::channel();
    if thread.send(what(Asked { ino, done })).is_ok() {
        let _ = is_done.await;
    }
}
