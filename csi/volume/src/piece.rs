//! Bytes that know which buffer they are a part of, so that neighbours become one again without a copy.
//!
//! Callers: `fetch.rs` and `cache/disk/stretch.rs`, which read many frames into one buffer. Absent: what the bytes are.

use std::ops::Range;

use bytes::Bytes;

/// A part of a buffer, which it keeps alive.
#[derive(Debug, Clone)]
pub(crate) struct Piece {
    buffer: Bytes,
    range: Range<usize>,
}

impl From<Bytes> for Piece {
    fn from(buffer: Bytes) -> Self {
        let range = 0..buffer.len();
        Self { buffer, range }
    }
}

impl Piece {
    /// These bytes of a buffer.
    ///
    /// # Panics
    /// If it does not have them.
    pub fn new(buffer: &Bytes, range: Range<usize>) -> Self {
        assert!(
            range.start <= range.end && range.end <= buffer.len(),
            "{range:?} of {}",
            buffer.len()
        );
        Self {
            buffer: buffer.clone(),
            range,
        }
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.buffer[self.range.clone()]
    }

    /// The bytes, shared.
    pub fn bytes(&self) -> Bytes {
        self.buffer.slice(self.range.clone())
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    /// A part of it.
    ///
    /// # Panics
    /// If it does not have it.
    pub fn part(&self, range: Range<usize>) -> Self {
        assert!(range.end <= self.len(), "{range:?} of {}", self.len());
        Self::new(
            &self.buffer,
            self.range.start + range.start..self.range.start + range.end,
        )
    }

    /// Takes what follows it in the same buffer; false, and nothing changes, if `next` is not that.
    pub fn join(&mut self, next: &Self) -> bool {
        let is_next = self.range.end == next.range.start
            && self.buffer.as_ptr() == next.buffer.as_ptr()
            && self.buffer.len() == next.buffer.len();
        if is_next {
            self.range.end = next.range.end;
        }
        is_next
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn neighbours_of_one_buffer_join_and_others_do_not() {
        let buffer = Bytes::from(b"0123456789".to_vec());
        let mut piece = Piece::new(&buffer, 2..4);
        assert!(!piece.join(&Piece::new(&buffer, 5..6)), "a byte is between them");
        assert!(!piece.join(&Piece::new(&buffer, 0..2)), "it is before");
        assert!(
            !piece.join(&Piece::new(&Bytes::from(b"0123456789".to_vec()), 4..6)),
            "another buffer"
        );
        assert!(piece.join(&Piece::new(&buffer, 4..10)));
        assert_eq!(piece.bytes(), "23456789");
        assert_eq!(piece.part(1..3).as_slice(), b"34");
        assert_eq!(piece.len(), 8);
    }
}
