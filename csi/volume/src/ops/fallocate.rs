//! Space: fallocate(2).
//!
//! Allocation extends the file and refuses what the capacity cannot hold now; it does not reserve: a later write into the
//! range may still meet `NoSpace` if others used the space up. Freed and zeroed ranges become holes.

use bytes::Bytes;

use super::attributes::set_size;
use crate::attr::Fallocate;
use crate::clock::Timestamp;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::FILE_BYTES_MAX;
use crate::mount::Mount;
use crate::table::{Stop, Tables};

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
                    check_allocation(tables, ino, offset, end)?;
                    if keep_size {
                        Ok(())
                    } else {
                        extend(tables, ino, size, end, now)
                    }
                }
                Fallocate::PunchHole => zero(tables, ino, offset, end.min(size), now),
                Fallocate::ZeroRange { keep_size } => {
                    zero(tables, ino, offset, end.min(size), now)?;
                    if keep_size {
                        Ok(())
                    } else {
                        extend(tables, ino, size, end, now)
                    }
                }
            }
        })
        .await
}

fn extend(tables: &mut Tables, ino: InodeNo, size: u64, end: u64, now: Timestamp) -> Result<(), Stop> {
    if end > size {
        set_size(tables, ino, end, now)
    } else {
        Ok(())
    }
}

fn check_allocation(tables: &mut Tables, ino: InodeNo, offset: u64, end: u64) -> Result<(), Stop> {
    if tables.capacity_bytes().is_none() {
        return Ok(());
    }
    let row = tables.inode(ino)?;
    let allocated = match &row.inline {
        Some(inline) => (inline.len() as u64).min(end).saturating_sub(offset),
        None if row.allocated == 0 => 0,
        None => {
            tables.need_extents(ino, offset, end)?;
            tables.content_bytes(ino, offset, end)
        }
    };
    Ok(tables.check_room(end - offset - allocated)?)
}

/// Makes a range within the file read as zeros.
fn zero(tables: &mut Tables, ino: InodeNo, start: u64, end: u64, now: Timestamp) -> Result<(), Stop> {
    if start >= end {
        return Ok(());
    }
    let row = tables.inode(ino)?;
    let has_extents = row.inline.is_none() && row.allocated > 0;
    if let Some(inline) = &row.inline {
        let mut content = inline.to_vec();
        let stop = (end as usize).min(content.len());
        if (start as usize) < stop {
            content[start as usize..stop].fill(0);
        }
        tables.change_inode(ino, |row| row.inline = Some(Bytes::from(content)));
    } else if has_extents {
        tables.need_extents(ino, start, end)?;
        let bytes = tables.content_bytes(ino, start, end);
        tables.carve(ino, start, end);
        tables.change_allocated(ino, 0, bytes);
    }
    tables.change_inode(ino, |row| {
        row.mtime = now;
        row.ctime = now;
    });
    Ok(())
}
