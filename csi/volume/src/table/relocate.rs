//! Content that was copied elsewhere: rows that still name the old place are changed to name the new one.
//!
//! Invariant: an extent is changed only if it is exactly what was copied; the file reads the same before and after.
//! Caller: `gc/repack.rs`.

use std::sync::Arc;

use super::extents::{Extent, Source};
use super::{Stop, Tables};
use crate::gc::Piece;
use crate::ids::InodeNo;
use crate::row::ExtentRow;

impl Tables {
    /// Lets the extents that are still these `pieces`, neighbours without a gap, lie in `new`, which holds the content of
    /// all of them in order. Returns the bytes that do.
    ///
    /// # Errors
    /// `Stale` if the file is gone; a need.
    pub fn relocate(&mut self, ino: InodeNo, pieces: &[Piece], new: &ExtentRow) -> Result<u64, Stop> {
        let (Some(first), Some(last)) = (pieces.first(), pieces.last()) else {
            return Ok(0);
        };
        let row = self.inode(ino)?;
        if row.inline.is_some() || row.allocated == 0 {
            return Ok(0);
        }
        let (start, end) = (first.start, last.end());
        self.need_extents(ino, start, end)?;
        let mut moved = 0;
        let mut run: Option<(u64, u64)> = None;
        for piece in pieces {
            if !self.is_stored_as(ino, piece) {
                moved += self.put_stored(ino, run.take(), (start, new));
                continue;
            }
            let from = run.map_or(piece.start, |(from, _)| from);
            run = Some((from, piece.end()));
        }
        Ok(moved + self.put_stored(ino, run, (start, new)))
    }

    fn is_stored_as(&self, ino: InodeNo, piece: &Piece) -> bool {
        let extent = self.files.get(&ino).and_then(|file| file.map.get(&piece.end()));
        extent.is_some_and(|extent| {
            extent.start == piece.start && matches!(&extent.source, Source::Stored(row) if **row == piece.row)
        })
    }

    /// Makes a range one extent, of the row that holds what begins at `start`.
    fn put_stored(&mut self, ino: InodeNo, range: Option<(u64, u64)>, (start, new): (u64, &ExtentRow)) -> u64 {
        let Some((from, until)) = range else { return 0 };
        self.cut_out(ino, from, until);
        let extent = Extent {
            start: from,
            source: Source::Stored(Arc::new(new.part(from - start, until - from))),
            changed: self.open.number,
        };
        self.put_extent(ino, until, extent);
        until - from
    }
}
