//! Which frames hold a part of a file, which of them one GET brings, and the part out of its frames.
//!
//! Caller: `fetch.rs`. Absent: where they are cached.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::{Damage, FetchError, Frame, WantedPart};
use crate::cache::FrameKey;
use crate::piece::Piece;
use crate::row::FRAME_BYTES;

/// The frames that hold a part.
pub(super) fn frames_of(part: &WantedPart) -> impl Iterator<Item = Frame> {
    let row = &part.row;
    let start = row.skip + part.skip;
    let first = (start / u64::from(FRAME_BYTES)) as usize;
    let end = (start + part.len).div_ceil(u64::from(FRAME_BYTES)) as usize;
    let mut at = row.object_offset;
    row.frame_stored_lens.iter().enumerate().filter_map(move |(i, len)| {
        let offset = at;
        at += u64::from(*len);
        (i >= first && i < end).then_some(Frame {
            key: FrameKey {
                object: row.object,
                offset,
            },
            stored_len: *len,
            origin_ino: row.origin_ino,
            origin_offset: row.origin_offset.wrapping_add(i as u64 * u64::from(FRAME_BYTES)),
            offset: part.offset,
        })
    })
}

/// Bytes of frames that lie one after another.
pub(super) fn bytes_of(range: &[Frame]) -> u64 {
    match range {
        [first, .., last] => last.end() - first.key.offset,
        [only] => u64::from(only.stored_len),
        [] => 0,
    }
}

/// Divides frames, which are in order, into ranges of their objects, each of which one GET brings: of about so many bytes, half as
/// many more at most, and equal ones where what lies together is longer.
pub(super) fn ranges_of(frames: &[Frame], get_bytes: u64) -> impl Iterator<Item = &[Frame]> {
    let together = |one: &Frame, next: &Frame| one.key.object == next.key.object && one.end() == next.key.offset;
    frames.chunk_by(together).flat_map(move |piece| {
        let bytes = bytes_of(piece);
        let each = bytes.div_ceil(((bytes + get_bytes / 2) / get_bytes).max(1));
        let number = move |frame: &Frame| (frame.end() - 1 - piece[0].key.offset) / each.max(1);
        piece.chunk_by(move |one, next| number(one) == number(next))
    })
}

/// The bytes of a part out of its frames, in as few pieces as they lie in.
pub(super) fn cut(part: &WantedPart, found: &BTreeMap<FrameKey, Piece>) -> Result<Vec<Bytes>, FetchError> {
    let (mut skip, mut left) = ((part.row.skip + part.skip) % u64::from(FRAME_BYTES), part.len);
    let mut pieces: Vec<Piece> = Vec::new();
    for frame in frames_of(part) {
        let content = &found[&frame.key];
        let end = (skip + left).min(content.len() as u64);
        if end < skip + left && end < u64::from(FRAME_BYTES) {
            let detail = format!("a frame holds {} bytes, {} are needed", content.len(), skip + left);
            return Err(FetchError::Damaged(frame.damage(detail)));
        }
        let piece = content.part(skip as usize..end as usize);
        if !pieces.last_mut().is_some_and(|last| last.join(&piece)) {
            pieces.push(piece);
        }
        left -= end - skip;
        skip = 0;
    }
    if left > 0 {
        let detail = format!("the frames of the run end {left} bytes early");
        return Err(FetchError::Damaged(Damage {
            offset: part.offset,
            object: part.row.object,
            detail,
        }));
    }
    Ok(pieces.iter().map(Piece::bytes).collect())
}
