//! Entries by whole blocks, past the kernel's memory: content of large files is written once and read back rarely, while the
//! kernel has it as content of the file already. A second copy there costs more than the disk's own, and pushes others out.
//!
//! Invariant: memory, position and length of each write and read are multiples of a block. Callers: `disk.rs` and `stretch.rs`,
//! which write and read by way of the kernel where this fails.

use std::fs::{File, OpenOptions};
use std::io;
use std::ops::Range;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::OFlags;

use super::buffer::Buffer;
use super::region::{ENTRY_HEADER_BYTES, encode, gap_header};
use crate::cache::FrameKey;
use crate::rope::Rope;

/// 4 KiB: the blocks of file systems, and no less than those of disks.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// 1 MiB by one write: twice as much was no faster, a quarter was slower.
const WRITE_BYTES: usize = 1024 * 1024;

/// Opens a file for such reads, and for writes if it `writes`; `None` where its file system knows none.
pub(super) fn open(path: &Path, writes: bool) -> Option<Arc<File>> {
    let flags = i32::try_from(OFlags::DIRECT.bits()).ok()?;
    let opened = OpenOptions::new()
        .read(true)
        .write(writes)
        .custom_flags(flags)
        .open(path);
    opened.ok().map(Arc::new)
}

/// The first bound of a block from `at` on that is at `at` or leaves room for a header before it.
pub(super) fn aligned(at: u64) -> u64 {
    match at.is_multiple_of(BLOCK_BYTES) {
        true => at,
        false => (at + ENTRY_HEADER_BYTES as u64).next_multiple_of(BLOCK_BYTES),
    }
}

/// Writes entries one after another from the beginning of `blocks` on, and leaves free what they do not fill.
pub(super) fn write(file: &File, frames: &[(FrameKey, Rope)], blocks: Range<u64>) -> io::Result<()> {
    let mut writer = Writer::new(file, blocks.start);
    for (key, stored) in frames {
        writer.push(&encode(*key, stored.len_bytes()))?;
        stored.pieces().try_for_each(|piece| writer.push(piece))?;
    }
    let gap = writer.end()..blocks.end;
    if !gap.is_empty() {
        writer.push(&gap_header(&gap))?;
        writer.fill(blocks.end - writer.end())?;
    }
    writer.finish()
}

/// Reads `range`, no longer than a stretch. Waits for the disk.
pub(super) fn read(file: &File, range: &Range<u64>) -> io::Result<Bytes> {
    let begin = range.start - range.start % BLOCK_BYTES;
    let end = range.end.next_multiple_of(BLOCK_BYTES);
    let place = |from: u64| (from - begin) as usize;
    let mut buffer = Buffer::of(place(end));
    let mut filled = 0;
    // A last block that the file does not fill comes short.
    while filled < place(range.end) {
        match file.read_at(&mut buffer.as_mut()[filled..], begin + filled as u64) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(read) => filled += read,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(buffer.filled().slice(place(range.start)..place(range.end)))
}

/// Gathers bytes into blocks.
struct Writer<'a> {
    file: &'a File,
    /// A block more than is written at once, so that as much begins at a bound.
    memory: Buffer,
    skip: usize,
    /// Bytes gathered.
    len: usize,
    /// Where they go.
    position: u64,
}

impl<'a> Writer<'a> {
    fn new(file: &'a File, position: u64) -> Self {
        let mut memory = Buffer::of(WRITE_BYTES + BLOCK_BYTES as usize);
        let skip = memory.as_mut().as_ptr().align_offset(BLOCK_BYTES as usize);
        Self {
            file,
            memory,
            skip,
            len: 0,
            position,
        }
    }

    fn end(&self) -> u64 {
        self.position + self.len as u64
    }

    fn push(&mut self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(WRITE_BYTES - self.len));
            let at = self.skip + self.len;
            self.memory.as_mut()[at..at + now.len()].copy_from_slice(now);
            self.len += now.len();
            bytes = later;
            if self.len == WRITE_BYTES {
                self.finish()?;
            }
        }
        Ok(())
    }

    /// Less than a block of zeros.
    fn fill(&mut self, bytes: u64) -> io::Result<()> {
        self.push(&[0; BLOCK_BYTES as usize][..bytes as usize])
    }

    fn finish(&mut self) -> io::Result<()> {
        let gathered = &self.memory.as_mut()[self.skip..self.skip + self.len];
        self.file.write_all_at(gathered, self.position)?;
        self.position += self.len as u64;
        self.len = 0;
        Ok(())
    }
}
