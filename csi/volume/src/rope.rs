//! Bytes in several pieces, one after another: an object as it is put, made of what was written without a copy of it.
//!
//! Invariant: a rope never changes, so every put of it sends the same bytes. A piece keeps the whole buffer alive that it is a part
//! of; who makes a rope copies what is a small part of a large one.
//! Callers: `format/` makes them, `Bucket` puts them, the caches keep parts of them. Absent: what the bytes are.

use std::ops::Range;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};

/// 32 KiB: what is shorter is copied to its neighbours. A copy of it costs less than one more piece does on its way to the store.
pub const PIECE_BYTES_MIN: usize = 32 * 1024;

/// 1 MiB: short pieces are gathered in buffers of this size, so that none is copied again because it has to grow.
const GATHERED_BYTES: usize = 1024 * 1024;

const _: () = assert!(PIECE_BYTES_MIN < GATHERED_BYTES);

/// See the module. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Rope(Shape);

#[derive(Debug, Clone)]
enum Shape {
    One(Bytes),
    /// Each with where it ends; none is empty.
    Many(Arc<[(u64, Bytes)]>),
}

impl From<Bytes> for Rope {
    fn from(bytes: Bytes) -> Self {
        Self(Shape::One(bytes))
    }
}

impl FromIterator<Bytes> for Rope {
    fn from_iter<I: IntoIterator<Item = Bytes>>(pieces: I) -> Self {
        let mut end = 0;
        let mut many: Vec<(u64, Bytes)> = Vec::new();
        for piece in pieces.into_iter().filter(|piece| !piece.is_empty()) {
            end += piece.len() as u64;
            many.push((end, piece));
        }
        match many.len() {
            0 => Self(Shape::One(Bytes::new())),
            1 => Self(Shape::One(many.remove(0).1)),
            _ => Self(Shape::Many(many.into())),
        }
    }
}

impl Rope {
    /// How many bytes.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        match &self.0 {
            Shape::One(bytes) => bytes.len() as u64,
            Shape::Many(pieces) => pieces.last().map_or(0, |(end, _)| *end),
        }
    }

    /// The pieces, in order.
    pub fn pieces(&self) -> impl Iterator<Item = &Bytes> {
        let (one, many) = match &self.0 {
            Shape::One(bytes) => (Some(bytes), &[][..]),
            Shape::Many(pieces) => (None, &pieces[..]),
        };
        one.into_iter().chain(many.iter().map(|(_, piece)| piece))
    }

    /// A part, without a copy.
    ///
    /// # Panics
    /// If it does not have it.
    #[must_use]
    pub fn slice(&self, range: Range<u64>) -> Self {
        assert!(
            range.start <= range.end && range.end <= self.len_bytes(),
            "{range:?} of {}",
            self.len_bytes()
        );
        let pieces = match &self.0 {
            Shape::One(bytes) => return bytes.slice(range.start as usize..range.end as usize).into(),
            Shape::Many(pieces) => pieces,
        };
        let first = pieces.partition_point(|(end, _)| *end <= range.start);
        let overlapping = pieces[first..].iter().take_while(|(end, piece)| {
            let start = end - piece.len() as u64;
            start < range.end
        });
        let part = |(end, piece): &(u64, Bytes)| {
            let start = end - piece.len() as u64;
            let (from, until) = (range.start.max(start) - start, range.end.min(*end) - start);
            piece.slice(from as usize..until as usize)
        };
        overlapping.map(part).collect()
    }

    /// All of it in one piece, copied only if there are several.
    #[must_use]
    pub fn to_bytes(&self) -> Bytes {
        match &self.0 {
            Shape::One(bytes) => bytes.clone(),
            Shape::Many(pieces) => {
                let mut all = BytesMut::with_capacity(self.len_bytes() as usize);
                pieces.iter().for_each(|(_, piece)| all.extend_from_slice(piece));
                all.freeze()
            }
        }
    }

    /// True if it is these bytes.
    #[must_use]
    pub fn is(&self, mut bytes: &[u8]) -> bool {
        self.len_bytes() == bytes.len() as u64
            && self.pieces().all(|piece| {
                let (here, rest) = bytes.split_at(piece.len());
                bytes = rest;
                here == piece
            })
    }
}

/// Makes a rope, from its first byte to its last; its head may be completed last.
#[derive(Debug)]
pub struct RopeBuilder {
    /// The first bytes, apart from the others as soon as there is a piece.
    head: Option<BytesMut>,
    head_bytes: usize,
    pieces: Vec<Bytes>,
    /// Bytes of what is before `gathered`.
    before: u64,
    /// What comes next, the head included as long as there is no piece.
    gathered: BytesMut,
}

impl RopeBuilder {
    /// Begins with `head`, and has room for `bytes` more in short pieces.
    #[must_use]
    pub fn new(head: &[u8], bytes: u64) -> Self {
        let room = usize::try_from(bytes).unwrap_or(usize::MAX).saturating_add(head.len());
        let mut gathered = BytesMut::with_capacity(room.min(GATHERED_BYTES).max(head.len()));
        gathered.extend_from_slice(head);
        Self {
            head: None,
            head_bytes: head.len(),
            pieces: Vec::new(),
            before: 0,
            gathered,
        }
    }

    /// How many bytes are there.
    #[must_use]
    pub fn len_bytes(&self) -> u64 {
        self.before + self.gathered.len() as u64
    }

    /// The buffer that short pieces are gathered in, with room for `bytes`: what is appended to it is at the end of the rope.
    pub fn gathered(&mut self, bytes: usize) -> &mut BytesMut {
        if !self.gathered.is_empty() && self.gathered.len() + bytes > GATHERED_BYTES {
            self.close();
            self.gathered = BytesMut::with_capacity(GATHERED_BYTES.max(bytes));
        }
        &mut self.gathered
    }

    /// Appends bytes: as they are, or copied where they are few.
    pub fn push(&mut self, bytes: Bytes) {
        if bytes.len() < PIECE_BYTES_MIN {
            return self.gathered(bytes.len()).extend_from_slice(&bytes);
        }
        self.close();
        self.before += bytes.len() as u64;
        self.pieces.push(bytes);
    }

    /// What was gathered becomes a piece. The rest of its room is for what comes.
    fn close(&mut self) {
        if self.head.is_none() {
            self.head = Some(self.gathered.split_to(self.head_bytes));
            self.before = self.head_bytes as u64;
        }
        if !self.gathered.is_empty() {
            let piece = self.gathered.split().freeze();
            self.before += piece.len() as u64;
            self.pieces.push(piece);
        }
    }

    /// The first bytes, which may be changed until the end.
    pub fn head(&mut self) -> &mut [u8] {
        match &mut self.head {
            Some(head) => head,
            None => &mut self.gathered[..self.head_bytes],
        }
    }

    /// The rope.
    #[must_use]
    pub fn finish(mut self) -> Rope {
        if self.head.is_none() {
            return self.gathered.freeze().into();
        }
        self.close();
        let head = self.head.map(BytesMut::freeze);
        head.into_iter().chain(self.pieces).collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn rope(pieces: &[Vec<u8>]) -> (Rope, Vec<u8>) {
        (pieces.iter().cloned().map(Bytes::from).collect(), pieces.concat())
    }

    #[test]
    fn short_pieces_are_gathered_and_long_ones_stay_where_they_are() {
        let long = Bytes::from(vec![7; PIECE_BYTES_MIN]);
        let mut builder = RopeBuilder::new(b"head", 0);
        builder.push(Bytes::from_static(b"short"));
        builder.gathered(1).extend_from_slice(b"!");
        builder.push(long.clone());
        builder.push(Bytes::from_static(b"end"));
        let len = builder.len_bytes();
        builder.head().copy_from_slice(b"HEAD");
        let rope = builder.finish();
        assert_eq!(rope.len_bytes(), len);
        assert!(rope.is(&[b"HEADshort!", &long[..], b"end"].concat()));
        assert!(rope.pieces().any(|piece| piece.as_ptr() == long.as_ptr()));
        assert_eq!(rope.pieces().count(), 4);
    }

    #[test]
    fn what_is_short_as_a_whole_is_one_piece() {
        let mut builder = RopeBuilder::new(b"head", 0);
        builder.push(Bytes::from_static(b"rest"));
        builder.head()[0] = b'H';
        let rope = builder.finish();
        assert_eq!(rope.pieces().count(), 1);
        assert_eq!(rope.to_bytes(), "Headrest");
    }

    #[test]
    fn much_that_is_short_is_gathered_in_buffers_of_a_bounded_size() {
        let mut builder = RopeBuilder::new(b"", 0);
        let mut all = Vec::new();
        for n in 0..400u32 {
            let short = vec![n as u8; 10_000];
            builder.push(Bytes::from(short.clone()));
            all.extend(short);
        }
        let rope = builder.finish();
        assert!(rope.is(&all));
        assert!(rope.pieces().all(|piece| piece.len() <= GATHERED_BYTES));
    }

    proptest! {
        #[test]
        fn any_part_of_a_rope_is_that_part_of_its_bytes(
            pieces in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..9), 0..9),
            ends in any::<[prop::sample::Index; 2]>(),
        ) {
            let (rope, all) = rope(&pieces);
            let [one, other] = ends.map(|end| end.index(all.len() + 1));
            let (start, end) = (one.min(other), one.max(other));
            let part = rope.slice(start as u64..end as u64);
            prop_assert!(part.is(&all[start..end]));
            prop_assert_eq!(part.to_bytes(), &all[start..end]);
            prop_assert_eq!(part.len_bytes(), (end - start) as u64);
            if start < end {
                prop_assert!(!part.is(&all[start..end - 1]));
                let mut changed = all[start..end].to_vec();
                changed[0] ^= 1;
                prop_assert!(!part.is(&changed));
            }
        }
    }
}
