//! What a GET brings, in one piece.
//!
//! Long bodies come into memory that others have just left: an allocator gets it from the kernel each time, and its pages, fresh
//! and cleared one by one, took as long as all that is copied there.
//! Invariants: a body is never longer than the store has said it is; memory that nobody uses is little, and goes back to the system
//! soon. Caller: `bucket.rs`. Absent: huge pages, which are seldom at hand: clearing them took as long.

use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::runtime::Handle;
use tokio::time::Instant;

/// 1 MiB: shorter bodies are of readers that do not read in sequence.
const LONG_BYTES_MIN: usize = 1024 * 1024;

/// 32 MiB wait for the next bodies: what one reader in sequence has under way.
const FREE_BYTES_MAX: usize = 32 * 1024 * 1024;

/// 2 s: who reads in sequence wants it again within some milliseconds.
const FREE_FOR: Duration = Duration::from_secs(2);

/// 1 MiB: lengths are rounded up to it, so that memory of one body fits the next.
const LENGTHS: usize = 1024 * 1024;

/// A body on its way, and then who keeps its memory.
#[derive(Debug)]
pub(crate) struct Received {
    memory: Vec<u8>,
    len_max: usize,
    /// Where what is given back grows old; `None` where it is given back at once.
    runtime: Option<Handle>,
}

impl Received {
    /// Room for a body of `len` bytes.
    pub fn with_capacity(len: usize) -> Self {
        let runtime = Handle::try_current().ok().filter(|_| len >= LONG_BYTES_MIN);
        let memory = match runtime {
            Some(_) => lock().take(len).unwrap_or_else(|| Vec::with_capacity(rounded(len))),
            None => Vec::with_capacity(len),
        };
        Self {
            memory,
            len_max: len,
            runtime,
        }
    }

    /// Bytes received.
    pub fn len(&self) -> usize {
        self.memory.len()
    }

    /// Takes the next bytes; false if there is no room for them.
    pub fn push(&mut self, piece: &[u8]) -> bool {
        let fits = piece.len() <= self.len_max - self.memory.len();
        if fits {
            self.memory.extend_from_slice(piece);
        }
        fits
    }

    /// What was received.
    pub fn finish(mut self) -> Bytes {
        match self.runtime {
            Some(_) => Bytes::from_owner(self),
            None => std::mem::take(&mut self.memory).into(),
        }
    }
}

impl AsRef<[u8]> for Received {
    fn as_ref(&self) -> &[u8] {
        &self.memory
    }
}

impl Drop for Received {
    fn drop(&mut self) {
        let Some(runtime) = &self.runtime else { return };
        let mut free = lock();
        if free.give(std::mem::take(&mut self.memory)) && !std::mem::replace(&mut free.aging, true) {
            drop(free);
            let aging = Aging;
            runtime.spawn(async move { aging.run().await });
        }
    }
}

fn rounded(len: usize) -> usize {
    len.checked_next_multiple_of(LENGTHS).unwrap_or(len)
}

/// Memory that nobody uses.
#[derive(Debug)]
struct Free {
    /// Since when; the one that was left last is last, and taken first.
    memory: Vec<(Instant, Vec<u8>)>,
    bytes: usize,
    /// A task gives back what is old.
    aging: bool,
}

/// Of all stores of a process. Held for a look-up, or to give some back.
static FREE: Mutex<Free> = Mutex::new(Free::NONE);

fn lock() -> MutexGuard<'static, Free> {
    FREE.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Free {
    const NONE: Free = Free {
        memory: Vec::new(),
        bytes: 0,
        aging: false,
    };

    /// Empty memory for `len` bytes, and not for many more.
    fn take(&mut self, len: usize) -> Option<Vec<u8>> {
        let most = rounded(len).saturating_mul(2);
        let fits = |memory: &Vec<u8>| (len..=most).contains(&memory.capacity());
        let at = self.memory.iter().rposition(|(_, memory)| fits(memory))?;
        let (_, mut memory) = self.memory.remove(at);
        self.bytes -= memory.capacity();
        memory.clear();
        Some(memory)
    }

    /// Keeps it; false where enough is here.
    fn give(&mut self, memory: Vec<u8>) -> bool {
        let fits = self.bytes + memory.capacity() <= FREE_BYTES_MAX;
        if fits {
            self.bytes += memory.capacity();
            self.memory.push((Instant::now(), memory));
        }
        fits
    }

    /// Gives back what nobody has wanted for long; returns when to look again, if anything is left.
    fn age(&mut self) -> Option<Instant> {
        let now = Instant::now();
        let old = self.memory.partition_point(|(since, _)| *since + FREE_FOR <= now);
        let given_back: usize = self.memory.drain(..old).map(|(_, memory)| memory.capacity()).sum();
        self.bytes -= given_back;
        self.memory.first().map(|(since, _)| *since + FREE_FOR)
    }
}

/// Gives back what is old, and all that is left when its runtime ends.
struct Aging;

impl Aging {
    async fn run(self) {
        loop {
            let next = lock().age();
            let Some(next) = next else { break };
            tokio::time::sleep_until(next).await;
        }
    }
}

impl Drop for Aging {
    fn drop(&mut self) {
        let mut free = lock();
        *free = Free::NONE;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: usize = 1024 * 1024;

    /// Method: bodies of all kinds, the later ones in memory that the earlier ones have left.
    #[tokio::test]
    async fn a_body_is_what_came_and_no_more_than_was_said() {
        for len in [0, 1, 100_000, 2 * MIB, 6 * MIB + 5, 4 * MIB, 2 * MIB + 1] {
            let sent: Vec<u8> = (0..len).map(|at| (at % 251) as u8).collect();
            let mut body = Received::with_capacity(len);
            assert!(sent.chunks(70_001).all(|piece| body.push(piece)));
            assert!(body.len() == len && !body.push(&[1; 64]), "{len}");
            assert!(body.finish() == sent, "{len}");
            let mut cut = Received::with_capacity(len);
            assert!(cut.push(&sent[..len / 2]));
            assert!(cut.finish() == sent[..len / 2], "{len}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn memory_that_nobody_uses_is_little_fits_and_goes_back_soon() {
        let mut free = Free::NONE;
        let given = (0..12).filter(|_| free.give(Vec::with_capacity(8 * MIB))).count();
        assert_eq!((given, free.bytes), (4, FREE_BYTES_MAX));
        assert!(free.take(2 * MIB).is_none(), "it would be too much");
        assert!(free.take(8 * MIB + 1).is_none(), "it would not be enough");
        assert_eq!(free.take(6 * MIB).map(|memory| memory.capacity()), Some(8 * MIB));
        tokio::time::advance(FREE_FOR / 2).await;
        assert!(free.give(Vec::with_capacity(2 * MIB)) && free.age().is_some());
        assert_eq!(free.memory.len(), 4);
        tokio::time::advance(FREE_FOR / 2).await;
        assert!(free.age().is_some());
        assert_eq!(
            (free.memory.len(), free.bytes),
            (1, 2 * MIB),
            "the others were there for too long"
        );
        tokio::time::advance(FREE_FOR).await;
        assert!(free.age().is_none() && free.bytes == 0);
    }

    /// Goal: memory is kept only as long as somebody will give it back. Method: a body that outlives its runtime, and one without.
    #[test]
    fn without_a_runtime_nothing_is_kept() {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        let body = runtime.block_on(async { Received::with_capacity(7 * MIB) });
        assert!(body.runtime.is_some());
        drop(runtime);
        drop(body);
        assert!(lock().take(7 * MIB).is_none());
        assert!(Received::with_capacity(7 * MIB).runtime.is_none());
    }
}
