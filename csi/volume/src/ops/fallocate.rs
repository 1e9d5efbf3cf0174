//! Space: fallocate(2).
//!
//! Allocation reserves: what the capacity cannot hold is refused here, and a later write into the range never is, whatever
//! others use up meanwhile. Zeroing reserves as well. Reserved ranges without content read as zeros and are holes for
//! SEEK_HOLE, as unwritten extents are elsewhere. What is reserved are whole pages, because the kernel writes whole pages.

use std::ops::Range;

use bytes::Bytes;

use super::attributes::set_size;
use super::write::become_extents;
use crate::attr::Fallocate;
use crate::clock::Timestamp;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::FILE_BYTES_MAX;
use crate::mount::Mount;
use crate::row::INLINE_BYTES_MAX;
use crate::table::{Stop, Tables};

/// The kernel's page: what it writes of a file begins at one.
const PAGE_BYTES: u64 = 4096;

/// See `Volume::fallocate`.
pub(crate) async fn fallocate(
    mount: &Mount,
    ino: InodeNo,
    what: Fallocate,
    offset: u64,
    len_bytes: u64,
) -> Result<(), FsError> {
    if len_bytes == 0 {
        return Err(FsError::Invalid("a length of zero"));
    }
    let end = offset
        .checked_add(len_bytes)
        .filter(|end| *end <= FILE_BYTES_MAX)
        .ok_or(FsError::TooBig)?;
    mount
        .change(|tables, now| {
            let size = tables.regular(ino)?.size;
            match what {
                Fallocate::Allocate { keep_size } => {
                    let size_then = if keep_size { size } else { size.max(end) };
                    if !allocate(tables, ino, offset..end, size_then)? {
                        return Err(FsError::NotSupported("that many reserved ranges in one file").into());
                    }
                    extend(tables, ino, size_then, now)
                }
                Fallocate::PunchHole => zero(tables, ino, offset, end, now),
                Fallocate::ZeroRange { keep_size } => {
                    let size_then = if keep_size { size } else { size.max(end) };
                    if !allocate(tables, ino, offset..end, size_then)? {
                        // Then as a hole: its content is what was asked for, and only the promise of space is missing.
                        tables.free_range(ino, offset, end);
                    }
                    zero_content(tables, ino, offset..end.min(size), now);
                    extend(tables, ino, size_then, now)
                }
            }
        })
        .await
}

/// Gives the file its new length, if it is longer.
fn extend(tables: &mut Tables, ino: InodeNo, size: u64, now: Timestamp) -> Result<(), Stop> {
    if size > tables.inode(ino)?.size {
        set_size(tables, ino, size, now)
    } else {
        Ok(())
    }
}

/// Reserves a range of a file that will be `size` bytes long. False, and nothing is done, where the file has too many
/// reserved ranges for another one.
fn allocate(tables: &mut Tables, ino: InodeNo, range: Range<u64>, size: u64) -> Result<bool, Stop> {
    let row = tables.inode(ino)?;
    let inline = row.inline.as_ref().map(|inline| inline.len() as u64);
    if let Some(inline) = inline
        && size.max(range.end) <= INLINE_BYTES_MAX as u64
        && range.end <= size
    {
        // It stays in the row, and `extend` fills it up with zeros.
        tables.check_room(size.saturating_sub(inline))?;
        return Ok(true);
    }
    let has_extents = inline.is_none() && row.allocated > 0;
    let range = pages_of(range);
    if has_extents {
        tables.need_extents(ino, range.start, range.end)?;
        let more = tables.free_within(ino, range.start, range.end);
        tables.check_room(more)?;
    } else {
        let has = inline.unwrap_or(0).min(range.end).saturating_sub(range.start);
        tables.check_room(range.end - range.start - has)?;
        become_extents(tables, ino);
    }
    Ok(tables.reserve(ino, range.start, range.end))
}

fn pages_of(range: Range<u64>) -> Range<u64> {
    range.start / PAGE_BYTES * PAGE_BYTES..range.end.next_multiple_of(PAGE_BYTES).min(FILE_BYTES_MAX)
}

/// Makes a range read as zeros, and gives its space back.
fn zero(tables: &mut Tables, ino: InodeNo, start: u64, end: u64, now: Timestamp) -> Result<(), Stop> {
    let row = tables.inode(ino)?;
    if row.inline.is_none() && row.allocated > 0 {
        tables.need_extents(ino, start, end)?;
        tables.free_range(ino, start, end);
        touch(tables, ino, now);
    } else {
        let size = row.size;
        zero_content(tables, ino, start..end.min(size), now);
    }
    Ok(())
}

/// Makes a range read as zeros; what it had reserved stays so.
fn zero_content(tables: &mut Tables, ino: InodeNo, range: Range<u64>, now: Timestamp) {
    if range.is_empty() {
        return;
    }
    let inline = tables.inode(ino).ok().and_then(|row| row.inline.clone());
    match inline {
        Some(inline) => {
            let mut content = inline.to_vec();
            let stop = (range.end as usize).min(content.len());
            if (range.start as usize) < stop {
                content[range.start as usize..stop].fill(0);
            }
            tables.change_inode(ino, |row| row.inline = Some(Bytes::from(content)));
        }
        None => tables.carve(ino, range.start, range.end),
    }
    touch(tables, ino, now);
}

fn touch(tables: &mut Tables, ino: InodeNo, now: Timestamp) {
    tables.change_inode(ino, |row| {
        row.mtime = now;
        row.ctime = now;
    });
}
