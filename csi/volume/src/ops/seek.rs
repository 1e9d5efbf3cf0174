//! SEEK_DATA and SEEK_HOLE. POSIX.1-2024 lseek(): the end of a file counts as a hole.

use crate::attr::SeekKind;
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::table::{Need, Stop, Tables};

/// See `Volume::seek`.
pub(crate) async fn seek(mount: &Mount, ino: InodeNo, offset: u64, kind: SeekKind) -> Result<u64, FsError> {
    mount
        .look(|tables| {
            let row = tables.regular(ino)?;
            let size = row.size;
            if offset >= size {
                return Err(FsError::NoSuchOffset.into());
            }
            let (inline, empty) = (row.inline.is_some(), row.allocated == 0);
            match kind {
                SeekKind::Data if inline => Ok(offset),
                SeekKind::Hole if inline => Ok(size),
                SeekKind::Data if empty => Err(FsError::NoSuchOffset.into()),
                SeekKind::Hole if empty => Ok(offset),
                SeekKind::Data => data_from(tables, ino, offset, size),
                SeekKind::Hole => hole_from(tables, ino, offset, size),
            }
        })
        .await
}

fn data_from(tables: &Tables, ino: InodeNo, offset: u64, size: u64) -> Result<u64, Stop> {
    let known = tables.known_until(ino, offset);
    match tables.next_content(ino, offset, known.min(size)) {
        Some(at) => Ok(at),
        None if known >= size => Err(FsError::NoSuchOffset.into()),
        None => Err(Stop::Need(Need::Extents { ino, at: known })),
    }
}

fn hole_from(tables: &Tables, ino: InodeNo, offset: u64, size: u64) -> Result<u64, Stop> {
    let known = tables.known_until(ino, offset);
    match tables.next_hole(ino, offset, known) {
        Some(at) => Ok(at.min(size)),
        None if known >= size => Ok(size),
        None => Err(Stop::Need(Need::Extents { ino, at: known })),
    }
}
