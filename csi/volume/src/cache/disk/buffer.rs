//! Memory of one read or write: a place that is used again where it is large and one is free, else its own.
//!
//! Invariants: what an earlier read left in a buffer is never seen, because a buffer is given on only when it was filled; large ones
//! begin where a block may. Who wants one never waits: who holds them all may be waiting for somebody else.
//! Callers: `stretch.rs`, `direct.rs`, which writes only what it has put there.

use bytes::Bytes;

use super::huge::HugeMemory;
use super::places::{PLACE_BYTES, Place};

/// 256 KiB: shorter reads take memory as anybody does, so that a short answer never keeps a large buffer.
pub(super) const LARGE_BYTES: usize = 256 * 1024;

#[derive(Debug)]
enum Memory {
    Place(Place),
    Huge(HugeMemory),
    Short(Vec<u8>),
}

/// Memory for one read.
#[derive(Debug)]
pub(super) struct Buffer {
    memory: Memory,
    len: usize,
}

impl Buffer {
    /// Memory for `len` bytes, with anything in it.
    pub fn of(len: usize) -> Self {
        let place = || (len <= PLACE_BYTES).then(Place::take).flatten().map(Memory::Place);
        let large = || place().or_else(|| HugeMemory::new(len).map(Memory::Huge));
        let memory = (len >= LARGE_BYTES).then(large).flatten();
        Self {
            memory: memory.unwrap_or_else(|| Memory::Short(vec![0; len])),
            len,
        }
    }

    /// To be filled.
    pub fn as_mut(&mut self) -> &mut [u8] {
        let memory = match &mut self.memory {
            Memory::Place(place) => place.as_mut(),
            Memory::Huge(memory) => memory.as_mut(),
            Memory::Short(memory) => memory,
        };
        &mut memory[..self.len]
    }

    /// What it was filled with. A place comes back when nobody has any of it any more.
    pub fn filled(self) -> Bytes {
        Bytes::from_owner(self)
    }
}

impl AsRef<[u8]> for Buffer {
    fn as_ref(&self) -> &[u8] {
        let memory = match &self.memory {
            Memory::Place(place) => place.as_ref(),
            Memory::Huge(memory) => memory.as_ref(),
            Memory::Short(memory) => memory,
        };
        &memory[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::super::direct::BLOCK_BYTES;
    use super::super::places::PLACES;
    use super::*;

    #[test]
    fn there_are_buffers_for_all_and_large_ones_begin_where_a_block_may() {
        let buffers: Vec<Bytes> = (0..2 * PLACES)
            .map(|n| {
                let mut buffer = Buffer::of(PLACE_BYTES - 7);
                buffer.as_mut().fill(n as u8);
                buffer.filled()
            })
            .collect();
        for (n, buffer) in buffers.iter().enumerate() {
            assert!(buffer.as_ptr().addr().is_multiple_of(BLOCK_BYTES as usize));
            assert_eq!(buffer.len(), PLACE_BYTES - 7);
            assert!(
                buffer.iter().all(|byte| *byte == n as u8),
                "buffer {n} is nobody else's"
            );
        }
        assert_eq!(Buffer::of(100).filled().len(), 100);
        assert_eq!(Buffer::of(2 * PLACE_BYTES).as_mut().len(), 2 * PLACE_BYTES);
    }
}
