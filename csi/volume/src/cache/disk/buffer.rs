//! Memory of large reads and writes, used again: asking the kernel for a new MiB each time, cleared page by page, took longer than
//! filling it.
//!
//! Invariant: what an earlier read left in a buffer is never seen, because a buffer is given on only when it was filled.
//! Callers: `stretch.rs`, `direct.rs`, which writes only what it has put there.

use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::stretch::STRETCH_BYTES_MAX;

/// 1 MiB and what is between its frames.
const BUFFER_BYTES: usize = STRETCH_BYTES_MAX as usize;

/// 256 KiB: shorter reads take memory as anybody does, so that a short answer never keeps a large buffer.
pub(super) const LARGE_BYTES: usize = 256 * 1024;

/// 8 wait for the next read, whatever volume it is of: some 8 MiB. As many are in use by one reader in sequence: what the kernel has
/// asked for ahead of it, and what the disk has brought meanwhile.
const FREE_MAX: usize = 8;

/// Held to take or give one.
static FREE: Mutex<Vec<Vec<u8>>> = Mutex::new(Vec::new());

/// Memory for one read.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Vec<u8>,
    len: usize,
}

impl Buffer {
    /// Memory for `len` bytes, with anything in it.
    pub fn of(len: usize) -> Self {
        let large = (LARGE_BYTES..=BUFFER_BYTES).contains(&len);
        let free = || FREE.lock().unwrap_or_else(PoisonError::into_inner).pop();
        let memory = match large {
            true => free().unwrap_or_else(|| vec![0; BUFFER_BYTES]),
            false => vec![0; len],
        };
        Self { memory, len }
    }

    /// To be filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        &mut self.memory[..self.len]
    }

    /// What it was filled with. The memory comes back when nobody has any of it any more.
    pub fn filled(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        &self.memory[..self.len]
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        if self.memory.len() != BUFFER_BYTES {
            return;
        }
        let mut free = FREE.lock().unwrap_or_else(PoisonError::into_inner);
        if free.len() < FREE_MAX {
            free.push(std::mem::take(&mut self.memory));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn large_buffers_come_back_and_few_of_them_stay() {
        let free = || FREE.lock().unwrap().len();
        let buffers: Vec<Bytes> = (0..3 * FREE_MAX)
            .map(|_| Buffer::of(BUFFER_BYTES - 7).filled())
            .collect();
        let parts: Vec<Bytes> = buffers.iter().map(|buffer| buffer.slice(5..10)).collect();
        drop(buffers);
        assert_eq!(parts[0].len(), 5);
        drop(parts);
        assert!(free() <= FREE_MAX, "{}", free());
        assert_eq!(Buffer::of(100).filled().len(), 100);
        assert_eq!(Buffer::of(2 * BUFFER_BYTES).as_mut().len(), 2 * BUFFER_BYTES);
    }
}
