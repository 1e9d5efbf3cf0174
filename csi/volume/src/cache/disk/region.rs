//! One file of the cache on disk: entries one after another, never changed once they are written.
//!
//! An entry: magic 4, kind of the object 1, zero 3, its two numbers 8 + 8, offset 8, length 4, crc32c 4 over the 36 bytes
//! before, then the frame as stored. Where the next entry begins with a block, an entry of no object is before it, whose
//! content means nothing. Caller: `disk.rs`. Absent: which entries are wanted, and what is in a frame.

use std::fs::{File, OpenOptions};
use std::io::{self, IoSlice};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::BufMut;

use super::direct::BLOCK_BYTES;
use crate::cache::FrameKey;
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::rope::Rope;

/// 1,024 parts: as many as the kernel takes in one call (IOV_MAX).
const PARTS_MAX: usize = 1024;

const MAGIC: &[u8; 4] = b"PnrC";
const KIND_GAP: u8 = 0;
const KIND_JOURNAL: u8 = 1;
const KIND_SEGMENT: u8 = 2;

/// Length of what is before each frame.
pub(super) const ENTRY_HEADER_BYTES: usize = 40;

/// A gap is as long as its header at least, and then up to the next block.
pub(super) const GAP_BYTES_MAX: u64 = BLOCK_BYTES + ENTRY_HEADER_BYTES as u64;

pub(super) type EntryHeader = [u8; ENTRY_HEADER_BYTES];

/// The file of a region.
pub(super) fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("region-{number:016x}"))
}

/// Makes an empty region.
pub(super) fn create(dir: &Path, number: u64) -> io::Result<Arc<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path_of(dir, number))?;
    Ok(Arc::new(file))
}

/// The regions in a folder, ascending.
pub(super) fn numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("region-"));
        numbers.extend(number.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

/// What a region holds: where it ends, and each frame with its place and length.
pub(super) type Found = (u64, Vec<(FrameKey, u64, u32)>);

/// The entries of a region up to the first that is not whole.
pub(super) fn entries(file: &File) -> io::Result<Found> {
    let bytes = file.metadata()?.len();
    let (mut at, mut found) = (0, Vec::new());
    let mut header = [0; ENTRY_HEADER_BYTES];
    while at + ENTRY_HEADER_BYTES as u64 <= bytes && file.read_exact_at(&mut header, at).is_ok() {
        let Some((key, len)) = decode(&header) else { break };
        let position = at + ENTRY_HEADER_BYTES as u64;
        match key {
            // The file may end within it.
            None => {}
            Some(_) if position + u64::from(len) > bytes => break,
            Some(key) => found.push((key, position, len)),
        }
        at = position + u64::from(len);
    }
    Ok((at, found))
}

/// Writes entries one after another, with as few calls as the kernel takes and without a copy.
pub(super) fn write(file: &File, frames: &[(FrameKey, Rope)], position: u64) -> io::Result<()> {
    let headers: Vec<EntryHeader> = frames
        .iter()
        .map(|(key, stored)| encode(*key, stored.len_bytes()))
        .collect();
    let entries = headers.iter().zip(frames);
    let mut parts: Vec<IoSlice<'_>> = entries
        .flat_map(|(header, (_, stored))| {
            let pieces = stored.pieces().map(|piece| IoSlice::new(piece));
            std::iter::once(IoSlice::new(header)).chain(pieces)
        })
        .collect();
    let (mut left, mut position) = (&mut parts[..], position);
    while !left.is_empty() {
        let at_once = left.len().min(PARTS_MAX);
        let written = rustix::io::pwritev(file, &left[..at_once], position)?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        IoSlice::advance_slices(&mut left, written);
        position += written as u64;
    }
    Ok(())
}

/// Leaves this free, unless it is empty.
pub(super) fn write_gap(file: &File, gap: &Range<u64>) -> io::Result<()> {
    match gap.is_empty() {
        true => Ok(()),
        false => file.write_all_at(&gap_header(gap), gap.start),
    }
}

/// The header of a gap, which is long enough for it.
pub(super) fn gap_header(gap: &Range<u64>) -> EntryHeader {
    let len = (gap.end - gap.start) as usize - ENTRY_HEADER_BYTES;
    encode_numbers((KIND_GAP, 0, 0, 0), len)
}

pub(super) fn encode(key: FrameKey, stored_len: u64) -> EntryHeader {
    let (kind, first, second) = match key.object {
        ObjectId::Journal(epoch, seq) => (KIND_JOURNAL, epoch.0, seq.0),
        ObjectId::Segment(epoch, number) => (KIND_SEGMENT, epoch.0, number),
    };
    encode_numbers((kind, first, second, key.offset), stored_len as usize)
}

fn encode_numbers((kind, first, second, offset): (u8, u64, u64, u64), len: usize) -> EntryHeader {
    let mut header = [0; ENTRY_HEADER_BYTES];
    let mut rest = &mut header[..];
    rest.put_slice(MAGIC);
    rest.put_slice(&[kind, 0, 0, 0]);
    rest.put_u64_le(first);
    rest.put_u64_le(second);
    rest.put_u64_le(offset);
    rest.put_u32_le(len as u32);
    let sum = crc32c::crc32c(&header[..36]);
    header[36..].copy_from_slice(&sum.to_le_bytes());
    header
}

/// Whose entry, if it is any frame's, and how much follows the header.
fn decode(header: &EntryHeader) -> Option<(Option<FrameKey>, u32)> {
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let short = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if &header[..4] != MAGIC || short(36) != crc32c::crc32c(&header[..36]) {
        return None;
    }
    let object = match header[4] {
        KIND_GAP => return Some((None, short(32))),
        KIND_JOURNAL => ObjectId::Journal(Epoch(number(8)), JournalSeq(number(16))),
        KIND_SEGMENT => ObjectId::Segment(Epoch(number(8)), number(16)),
        _ => return None,
    };
    let offset = number(24);
    Some((Some(FrameKey { object, offset }), short(32)))
}
