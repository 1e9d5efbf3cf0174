//! Which frames hold a part of a file, and which of them one GET brings.
//!
//! Caller: `fetch.rs`. Absent: where they are cached.

use super::{Frame, WantedPart};
use crate::cache::FrameKey;
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
