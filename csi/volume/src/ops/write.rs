//! Writing content. What is short lives in its inode's row; the rest in extents.
//!
//! A write replaces exactly the bytes it names: nothing is read, whatever lies around it.

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::FILE_BYTES_MAX;
use crate::mount::Mount;
use crate::row::INLINE_WRITTEN_BYTES_MAX;
use crate::table::{Stop, Tables};

/// See `Volume::write`.
pub(crate) async fn write(mount: &Mount, ino: InodeNo, offset: u64, data: Bytes) -> Result<(), FsError> {
    mount.change(|tables, now| put(tables, ino, (offset, &data), now)).await
}

/// Writes `data` at an offset.
pub(super) fn put(tables: &mut Tables, ino: InodeNo, at: (u64, &Bytes), now: Timestamp) -> Result<(), Stop> {
    let (offset, data) = at;
    let row = tables.regular(ino)?;
    if data.is_empty() {
        return Ok(());
    }
    let end = offset
        .checked_add(data.len() as u64)
        .filter(|end| *end <= FILE_BYTES_MAX)
        .ok_or(FsError::TooBig)?;
    let size = row.size.max(end);
    let has_extents = row.inline.is_none() && row.allocated > 0;
    if !has_extents && size <= INLINE_WRITTEN_BYTES_MAX as u64 {
        return put_inline(tables, ino, at, now);
    }
    let more = if has_extents {
        tables.need_extents(ino, offset, end)?;
        tables.free_within(ino, offset, end)
    } else {
        let inline = row.inline.as_ref().map_or(0, Bytes::len) as u64;
        end - offset - inline.min(end).saturating_sub(offset)
    };
    tables.check_room(more)?;
    if !has_extents {
        become_extents(tables, ino);
    }
    tables.carve(ino, offset, end);
    tables.put_content(ino, offset, data.clone());
    tables.change_allocated(ino, more, 0);
    tables.change_inode(ino, |row| {
        row.size = size;
        row.mtime = now;
        row.ctime = now;
    });
    Ok(())
}

fn put_inline(tables: &mut Tables, ino: InodeNo, at: (u64, &Bytes), now: Timestamp) -> Result<(), Stop> {
    let (offset, data) = (at.0 as usize, at.1);
    let row = tables.inode(ino)?;
    let before = row.inline.as_ref().map_or(0, Bytes::len);
    let length = (row.size as usize).max(offset + data.len());
    let content = if data.len() == length {
        // All of it is new: kept as it came, without a copy.
        data.clone()
    } else {
        let mut content = Vec::with_capacity(length);
        content.extend_from_slice(row.inline.as_deref().unwrap_or_default());
        content.resize(length, 0);
        content[offset..offset + data.len()].copy_from_slice(data);
        content.into()
    };
    tables.check_room((length as u64).saturating_sub(before as u64))?;
    tables.change_allocated(ino, length as u64, before as u64);
    tables.change_inode(ino, |row| {
        row.inline = Some(content);
        row.size = length as u64;
        row.mtime = now;
        row.ctime = now;
    });
    Ok(())
}

/// Moves the content of a file out of its row, if it is there. The file must not have extents.
pub(super) fn become_extents(tables: &mut Tables, ino: InodeNo) {
    tables.know_no_extents(ino);
    if let Some(content) = tables.change_inode(ino, |row| row.inline.take()) {
        tables.put_content(ino, 0, content);
    }
}
