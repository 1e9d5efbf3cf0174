//! The content of a run between its cut and the bucket, held once: first as it was written, then as part of the object that
//! is being put.
//!
//! Invariant: the content is the same all the time. Callers: the tables, which read from it; `encode.rs`, which moves it.

use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::format::frame::OwnFrame;
use crate::rope::Rope;
use crate::row::{ExtentRow, FRAME_BYTES};

/// The content of a run, until it is given up.
#[derive(Debug, Default)]
pub struct HeldContent {
    /// Pieces by their offset in the run. Held for a look-up, and taken under no other lock but that of the tables.
    pieces: Mutex<Option<Vec<(u64, Piece)>>>,
}

#[derive(Debug)]
enum Piece {
    Content(Bytes),
    /// A frame, and how long its content is. It may be compressed: then each look at it undoes that, so that nothing is in RAM
    /// twice while it is on its way.
    Frame(OwnFrame, u64),
}

impl Piece {
    fn len(&self) -> u64 {
        match self {
            Self::Content(content) => content.len() as u64,
            Self::Frame(_, len) => *len,
        }
    }

    fn content(&self) -> Rope {
        match self {
            Self::Content(content) => content.clone().into(),
            Self::Frame(frame, _) => frame.content().expect("this process has just made the frame"),
        }
    }
}

impl HeldContent {
    /// Holds these pieces, by their offset, without gaps.
    pub fn new(pieces: Vec<(u64, Bytes)>) -> Self {
        Self {
            pieces: Mutex::new(Some(
                pieces
                    .into_iter()
                    .map(|(at, piece)| (at, Piece::Content(piece)))
                    .collect(),
            )),
        }
    }

    fn lock(&self) -> MutexGuard<'_, Option<Vec<(u64, Piece)>>> {
        self.pieces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives the content up: it is in the bucket.
    pub fn give_up(&self) {
        *self.lock() = None;
    }

    /// Holds the frames of `body`, an object, in place of what was written: `row` says where in it they lie.
    pub(super) fn move_into(&self, body: &Rope, row: &ExtentRow) {
        let mut pieces = Vec::with_capacity(row.frame_stored_lens.len());
        let mut at = row.object_offset;
        for (index, len) in row.frame_stored_lens.iter().enumerate() {
            let start = index as u64 * u64::from(FRAME_BYTES);
            let content_len = (row.len - start).min(u64::from(FRAME_BYTES));
            let end = at + u64::from(*len);
            let frame = OwnFrame::of(&body.slice(at..end)).expect("this process has just made the frame");
            pieces.push((start, Piece::Frame(frame, content_len)));
            at = end;
        }
        let mut held = self.lock();
        if held.is_some() {
            *held = Some(pieces);
        }
    }

    /// The content of a part, piece by piece; false if it was given up.
    pub fn slice(&self, skip: u64, len: u64, mut give: impl FnMut(Bytes)) -> bool {
        let held = self.lock();
        let Some(pieces) = held.as_ref() else { return false };
        let end = skip + len;
        let first = pieces.partition_point(|(at, piece)| at + piece.len() <= skip);
        for (at, piece) in pieces[first..].iter().take_while(|(at, _)| *at < end) {
            let from = skip.max(*at) - at;
            let until = end.min(at + piece.len()) - at;
            piece.content().slice(from..until).pieces().cloned().for_each(&mut give);
        }
        true
    }
}
