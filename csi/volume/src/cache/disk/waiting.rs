//! What waits for the disk, in the order in which it came, and what has just got there past the kernel's memory: both are
//! found here meanwhile. What is there and was read is forgotten at once, so that who reads in sequence uses little memory again and
//! again.
//!
//! Invariant: never more than `WAITING_BYTES_MAX`. One thread writes at a time, and only while there is something to write.
//! Caller: `disk.rs`. Absent: where it goes.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Inner;
use crate::cache::FrameKey;
use crate::rope::Rope;

/// 48 MiB wait at most: what one reader in sequence has under way, and half as much that the disk has not taken yet. More is not
/// cached: neither reading nor a commit must wait for a slow disk.
const WAITING_BYTES_MAX: u64 = 48 * 1024 * 1024;

/// 16 MiB: with more than that behind a batch, the disk does not keep up, and the kernel's memory takes the batch in.
const BEHIND_BYTES: u64 = 16 * 1024 * 1024;

/// 256 KiB: shorter batches are written by way of the kernel's memory, which gathers them.
const DIRECT_BYTES_MIN: u64 = 256 * 1024;

/// 32 KiB in the mean: shorter frames are of small files, which are read one by one out of what one GET has brought.
const DIRECT_FRAME_BYTES_MIN: u64 = 32 * 1024;

/// 2 s: who reads a file in sequence has read by then what was fetched ahead of it, or has stopped.
const FRESH_FOR: Duration = Duration::from_secs(2);

/// What frames are kept for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum KeptFor {
    /// They were asked for, or were fetched ahead of somebody who reads.
    Reading,
    /// The kernel has their content, as content of the files that were written.
    Later,
}

type Frames = Arc<Vec<(FrameKey, Rope)>>;

/// Frames that came together.
#[derive(Debug)]
pub(super) struct Batch {
    number: u64,
    frames: Frames,
    bytes: u64,
    kept_for: KeptFor,
}

impl Batch {
    fn is_direct(&self) -> bool {
        let large = self.kept_for == KeptFor::Later || self.bytes >= self.frames.len() as u64 * DIRECT_FRAME_BYTES_MIN;
        large && self.bytes >= DIRECT_BYTES_MIN
    }
}

/// A frame that is found.
#[derive(Debug)]
struct Found {
    stored: Rope,
    /// Its batch.
    batch: u64,
    was_read: bool,
}

impl Found {
    /// Its batch, if this is the first time: that has one less to wait for.
    fn mark_read(&mut self) -> Option<u64> {
        (!std::mem::replace(&mut self.was_read, true)).then_some(self.batch)
    }
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    by_key: HashMap<FrameKey, Found>,
    /// How many frames of each batch are found here and were not read yet.
    unread: HashMap<u64, usize>,
    batches: u64,
    queue: VecDeque<Batch>,
    queue_bytes: u64,
    /// Written already, but only just, and not read: whoever reads in sequence is about to ask for it. In the order of their numbers.
    fresh: VecDeque<(Instant, Batch)>,
    /// Of all of them, that which is being written included.
    bytes: u64,
    /// A thread writes.
    writing: bool,
    /// A task forgets what is not fresh any more.
    aging: bool,
}

impl Waiting {
    /// True if a frame is here.
    pub fn has(&self, key: FrameKey) -> bool {
        self.by_key.contains_key(&key)
    }

    /// A frame as stored, if it is here, for somebody who reads it.
    pub fn read(&mut self, key: FrameKey) -> Option<Rope> {
        let found = self.by_key.get_mut(&key)?;
        let (stored, batch) = (found.stored.clone(), found.mark_read());
        if let Some(batch) = batch {
            self.one_less(batch);
        }
        Some(stored)
    }

    /// Notes that a frame was read, if it is here.
    pub fn note_read(&mut self, key: FrameKey) {
        if let Some(batch) = self.by_key.get_mut(&key).and_then(Found::mark_read) {
            self.one_less(batch);
        }
    }

    /// Forgets a frame, which is damaged.
    pub fn give_up(&mut self, key: FrameKey) {
        if let Some(batch) = self.by_key.remove(&key).and_then(|mut found| found.mark_read()) {
            self.one_less(batch);
        }
    }

    /// One frame of a batch is not waited for any more; if it was the last, and the disk has them, so is none.
    fn one_less(&mut self, batch: u64) {
        let Some(unread) = self.unread.get_mut(&batch) else {
            return;
        };
        *unread -= 1;
        if *unread > 0 {
            return;
        }
        if let Ok(at) = self.fresh.binary_search_by_key(&batch, |(_, batch)| batch.number)
            && let Some((_, batch)) = self.fresh.remove(at)
        {
            self.forget(&batch);
        }
    }

    /// Takes frames; false where too many are here.
    pub fn add(&mut self, frames: Frames, kept_for: KeptFor) -> bool {
        let bytes: u64 = frames.iter().map(|(_, stored)| stored.len_bytes()).sum();
        while self.bytes + bytes > WAITING_BYTES_MAX {
            match self.fresh.pop_front() {
                Some((_, oldest)) => self.forget(&oldest),
                None => return false,
            }
        }
        let number = self.batches;
        self.batches += 1;
        self.unread.insert(number, frames.len());
        for (key, stored) in frames.iter() {
            // It may be here already; then the earlier batch is not waited for because of it.
            self.give_up(*key);
            let found = Found {
                stored: stored.clone(),
                batch: number,
                was_read: false,
            };
            self.by_key.insert(*key, found);
        }
        self.bytes += bytes;
        self.queue_bytes += bytes;
        self.queue.push_back(Batch {
            number,
            frames,
            bytes,
            kept_for,
        });
        true
    }

    /// True for who has to write from now on, because nobody does.
    pub fn begin(&mut self) -> bool {
        !std::mem::replace(&mut self.writing, true)
    }

    /// What is to be written next, and whether past the kernel's memory; `None` ends the writing.
    pub fn next(&mut self) -> Option<(Batch, bool)> {
        let Some(batch) = self.queue.pop_front() else {
            self.writing = false;
            return None;
        };
        self.queue_bytes -= batch.bytes;
        let direct = batch.is_direct() && self.queue_bytes <= BEHIND_BYTES;
        Some((batch, direct))
    }

    /// Notes that a batch is on the disk, and whether it went past the kernel's memory.
    pub fn written(&mut self, batch: Batch, direct: bool) {
        let is_read = self.unread.get(&batch.number) == Some(&0);
        match direct && batch.kept_for == KeptFor::Reading && !is_read {
            true => self.fresh.push_back((Instant::now(), batch)),
            false => self.forget(&batch),
        }
    }

    fn forget(&mut self, batch: &Batch) {
        for (key, _) in batch.frames.iter() {
            // It may have come again, and wait again.
            if self.by_key.get(key).is_some_and(|found| found.batch == batch.number) {
                self.by_key.remove(key);
            }
        }
        self.unread.remove(&batch.number);
        self.bytes -= batch.bytes;
    }

    /// True if nothing is here, and nothing is remembered of what was.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.bytes == 0 && self.by_key.is_empty() && self.unread.is_empty() && self.fresh.is_empty()
    }

    /// Forgets what is not fresh any more; returns when to look again, if anything is left.
    fn age(&mut self) -> Option<Instant> {
        let now = Instant::now();
        while let Some((since, _)) = self.fresh.front() {
            if now < *since + FRESH_FOR {
                return Some(*since + FRESH_FOR);
            }
            if let Some((_, oldest)) = self.fresh.pop_front() {
                self.forget(&oldest);
            }
        }
        self.aging = false;
        None
    }

    /// True for who has to see to that from now on, because nobody does.
    fn begin_aging(&mut self) -> bool {
        !self.fresh.is_empty() && !std::mem::replace(&mut self.aging, true)
    }
}

/// Writes what waits, on a thread that may wait for the disk.
pub(super) fn write(inner: &Arc<Inner>) {
    loop {
        let next = inner.lock().waiting.next();
        let Some((batch, direct)) = next else { break };
        if let Err(error) = inner.append(&batch.frames, direct) {
            tracing::warn!(%error, dir = %inner.dir.display(), "frames could not be cached on disk");
        }
        let mut index = inner.lock();
        index.waiting.written(batch, direct);
        if index.waiting.begin_aging() {
            tokio::spawn(age(Arc::clone(inner)));
        }
    }
}

async fn age(inner: Arc<Inner>) {
    loop {
        let next = inner.lock().waiting.age();
        let Some(next) = next else { break };
        tokio::time::sleep_until(next).await;
    }
}
