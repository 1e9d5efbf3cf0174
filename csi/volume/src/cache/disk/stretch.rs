//! Frames that lie one after another in a region: read by one call, at once where the kernel has them in memory.
//!
//! Caller: `fetch.rs`. Absent: checks of what was read, which `fetch.rs` makes.

use std::fs::File;
use std::io::IoSliceMut;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use rustix::fs::Advice;
use rustix::io::ReadWriteFlags;

use super::region::ENTRY_HEADER_BYTES;
use crate::cache::FrameKey;

/// 1 MiB and what is between frames: the largest read of the kernel, so that what one reader holds stays small.
const STRETCH_BYTES_MAX: u64 = 1024 * 1024 + 64 * 1024;

/// Frames that lie one after another.
#[derive(Debug)]
pub(crate) struct Stretch {
    file: Arc<File>,
    /// Where the first frame begins.
    position: u64,
    frames: Vec<(FrameKey, u32)>,
    bytes: u64,
}

impl Stretch {
    pub(super) fn new(file: &Arc<File>, position: u64, frame: (FrameKey, u32)) -> Self {
        Self {
            file: Arc::clone(file),
            position,
            frames: vec![frame],
            bytes: u64::from(frame.1),
        }
    }

    /// Takes one more frame if it is the next one in the same file.
    pub(super) fn join(&mut self, file: &Arc<File>, position: u64, frame: (FrameKey, u32)) -> bool {
        let bytes = self.bytes + ENTRY_HEADER_BYTES as u64 + u64::from(frame.1);
        let is_next = Arc::ptr_eq(&self.file, file)
            && position == self.position + self.bytes + ENTRY_HEADER_BYTES as u64
            && bytes <= STRETCH_BYTES_MAX;
        if is_next {
            self.bytes = bytes;
            self.frames.push(frame);
        }
        is_next
    }

    /// Which frames.
    pub fn keys(&self) -> impl Iterator<Item = FrameKey> {
        self.frames.iter().map(|(key, _)| *key)
    }

    /// Reads if nothing has to wait for the disk; `None` if the kernel does not have all of it in memory.
    pub fn read_cached(&self) -> Option<Vec<(FrameKey, Bytes)>> {
        let mut buffer = BytesMut::zeroed(self.bytes as usize);
        let parts = &mut [IoSliceMut::new(&mut buffer)];
        let read = rustix::io::preadv2(&self.file, parts, self.position, ReadWriteFlags::NOWAIT);
        (read == Ok(self.bytes as usize)).then(|| self.cut(buffer.freeze()))
    }

    /// Reads. Empty if the disk fails: then nothing of it is here.
    pub fn read(&self) -> Vec<(FrameKey, Bytes)> {
        let mut buffer = BytesMut::zeroed(self.bytes as usize);
        match self.file.read_exact_at(&mut buffer, self.position) {
            Ok(()) => self.cut(buffer.freeze()),
            Err(_) => Vec::new(),
        }
    }

    /// Lets the kernel bring it into memory, beside whatever else goes on.
    pub fn bring(&self) {
        let len = std::num::NonZeroU64::new(self.bytes);
        // Advice: whoever reads it finds it, or waits for the disk.
        let _ = rustix::fs::fadvise(&self.file, self.position, len, Advice::WillNeed);
    }

    fn cut(&self, bytes: Bytes) -> Vec<(FrameKey, Bytes)> {
        let mut at = 0;
        let cut = |(key, len): &(FrameKey, u32)| {
            let stored = bytes.slice(at..at + *len as usize);
            at += *len as usize + ENTRY_HEADER_BYTES;
            (*key, stored)
        };
        self.frames.iter().map(cut).collect()
    }
}
