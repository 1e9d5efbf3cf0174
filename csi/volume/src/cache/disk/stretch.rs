//! Frames that lie one after another in a region: read by one call, at once where the kernel has them in memory.
//!
//! What went to the disk past the kernel's memory is read back past it, if much of it is wanted at once: it is wanted once, and
//! the kernel is about to have it as content of the file.
//!
//! Caller: `fetch.rs`. Absent: checks of what was read, which `fetch.rs` makes.

use std::fs::File;
use std::io::IoSliceMut;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use rustix::fs::Advice;
use rustix::io::Errno;

use super::buffer::{Buffer, LARGE_BYTES};
use super::direct;
use super::part::{FramePart, look};
use super::region::ENTRY_HEADER_BYTES;
use crate::cache::FrameKey;
use crate::format::frame::FRAME_HEADER_BYTES;
use crate::piece::Piece;

/// 1 MiB and what is between frames: the largest read of the kernel, so that what one reader holds stays small.
pub(super) const STRETCH_BYTES_MAX: u64 = 1024 * 1024 + 64 * 1024;

/// 512 frames: with their headers as many parts as the kernel takes (IOV_MAX).
const STRETCH_FRAMES_MAX: usize = 512;

/// Where frames of a region are read.
#[derive(Debug, Clone)]
pub(super) struct Source {
    /// Its file.
    pub file: Arc<File>,
    /// The same past the kernel's memory, for frames that are not there.
    pub direct: Option<Arc<File>>,
}

impl Source {
    fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.file, &other.file) && self.direct.is_some() == other.direct.is_some()
    }
}

/// Frames that lie one after another.
#[derive(Debug)]
pub(crate) struct Stretch {
    pub(super) source: Source,
    /// Where the first frame begins.
    position: u64,
    frames: Vec<(FrameKey, u32)>,
    bytes: u64,
}

impl Stretch {
    pub(super) fn new(source: Source, position: u64, frame: (FrameKey, u32)) -> Self {
        Self {
            source,
            position,
            frames: vec![frame],
            bytes: u64::from(frame.1),
        }
    }

    /// Takes one more frame if it is the next one in the same file.
    pub(super) fn join(&mut self, source: &Source, position: u64, frame: (FrameKey, u32)) -> bool {
        let bytes = self.bytes + ENTRY_HEADER_BYTES as u64 + u64::from(frame.1);
        let is_next = self.source.is(source)
            && self.frames.len() < STRETCH_FRAMES_MAX
            && position == self.position + self.bytes + ENTRY_HEADER_BYTES as u64
            && bytes <= STRETCH_BYTES_MAX;
        if is_next {
            self.bytes = bytes;
            self.frames.push(frame);
        }
        is_next
    }

    /// Which frames.
    pub fn keys(&self) -> impl Iterator<Item = FrameKey> {
        self.frames.iter().map(|(key, _)| *key)
    }

    /// Where a part of the first frame's content as stored lies; `None` if it has no such part.
    pub fn part_of_content(&self, range: &Range<u64>) -> Option<FramePart> {
        let (_, stored_len) = self.frames[0];
        let content_bytes = u64::from(stored_len).saturating_sub(FRAME_HEADER_BYTES as u64);
        (range.start <= range.end && range.end <= content_bytes).then(|| FramePart {
            file: Arc::clone(&self.source.file),
            position: self.position + FRAME_HEADER_BYTES as u64 + range.start,
            len: (range.end - range.start) as usize,
        })
    }

    /// Reads if nothing has to wait for the disk; `None` if the kernel does not have all of it in memory within so many looks.
    pub fn look(&self, looks: usize) -> Option<Vec<StoredFrame>> {
        if self.is_past_kernel(self.bytes) {
            return None;
        }
        let mut buffer = Buffer::of(self.bytes as usize);
        let parts = &mut self.layout().slices(buffer.as_mut());
        let seen = look(&self.source.file, parts, self.position, looks);
        seen.then(|| self.cut(&buffer.filled(), self.layout().places()))
    }

    /// Reads. Empty if the disk fails: then nothing of it is here.
    pub fn read(&self) -> Vec<StoredFrame> {
        let direct = self.source.direct.as_deref();
        if let Some(direct) = direct.filter(|_| self.is_past_kernel(self.bytes)) {
            match direct::read(direct, &(self.position..self.position + self.bytes)) {
                Ok(stored) => return self.cut(&stored, self.as_stored()),
                Err(error) => tracing::debug!(%error, "the disk gives no blocks past the kernel's memory"),
            }
        }
        let mut buffer = Buffer::of(self.bytes as usize);
        match self.read_by_kernel(&mut buffer) {
            true => self.cut(&buffer.filled(), self.layout().places()),
            false => Vec::new(),
        }
    }

    /// True if so many bytes of it at a time are read past the kernel's memory.
    pub fn is_past_kernel(&self, bytes_at_once: u64) -> bool {
        self.source.direct.is_some() && bytes_at_once.min(self.bytes) >= LARGE_BYTES as u64
    }

    fn read_by_kernel(&self, buffer: &mut Buffer) -> bool {
        let mut parts = self.layout().slices(buffer.as_mut());
        let (mut left, mut position) = (&mut parts[..], self.position);
        while !left.is_empty() {
            match rustix::io::preadv(&self.source.file, left, position) {
                Ok(0) => return false,
                Ok(read) => {
                    IoSliceMut::advance_slices(&mut left, read);
                    position += read as u64;
                }
                Err(Errno::INTR) => {}
                Err(_) => return false,
            }
        }
        true
    }

    /// Lets the kernel bring it into memory, beside whatever else goes on.
    pub fn bring(&self) {
        let len = std::num::NonZeroU64::new(self.bytes);
        // Advice: whoever reads it finds it, or waits for the disk.
        let _ = rustix::fs::fadvise(&self.source.file, self.position, len, Advice::WillNeed);
    }

    fn layout(&self) -> Layout<'_> {
        Layout { frames: &self.frames }
    }

    /// Where the frames are in what was read in one piece.
    fn as_stored(&self) -> Vec<Place> {
        let mut at = 0;
        let places = self.frames.iter().map(|(_, stored_len)| {
            let end = at + *stored_len as usize;
            let content_at = end.min(at + FRAME_HEADER_BYTES);
            let place = Place {
                head: at..content_at,
                content: content_at..end,
            };
            at = end + ENTRY_HEADER_BYTES;
            place
        });
        places.collect()
    }

    fn cut(&self, buffer: &Bytes, places: Vec<Place>) -> Vec<StoredFrame> {
        let frames = self.frames.iter().zip(places);
        let cut = frames.map(|((key, _), Place { head, content })| StoredFrame {
            key: *key,
            head: Piece::new(buffer, head.end - head.len().min(FRAME_HEADER_BYTES)..head.end),
            content: Piece::new(buffer, content),
        });
        cut.collect()
    }
}

/// A frame as stored, its header apart from its content.
#[derive(Debug)]
pub(crate) struct StoredFrame {
    /// Which one.
    pub key: FrameKey,
    /// Its header.
    pub head: Piece,
    /// Its content as stored. By way of the kernel, that of the next frame of a stretch follows it.
    pub content: Piece,
}

impl StoredFrame {
    /// All of it in one piece, which only a stretch of one frame has.
    pub fn whole(&self) -> Option<Bytes> {
        let mut whole = self.head.clone();
        whole.join(&self.content).then(|| whole.bytes())
    }
}

/// Where a frame goes in a buffer.
struct Place {
    /// Its header, behind those bytes of its entry that lie between it and the frame before.
    head: Range<usize>,
    content: Range<usize>,
}

/// Where what is read goes: all headers first, then the contents one after another, so that those that are stored as they are
/// become one answer without a copy.
struct Layout<'a> {
    frames: &'a [(FrameKey, u32)],
}

impl Layout<'_> {
    fn places(&self) -> Vec<Place> {
        let head_bytes = |(n, (_, stored_len)): (usize, &(FrameKey, u32))| {
            let between = if n == 0 { 0 } else { ENTRY_HEADER_BYTES };
            between + FRAME_HEADER_BYTES.min(*stored_len as usize)
        };
        let heads = self.frames.iter().enumerate().map(head_bytes);
        let (mut head_at, mut content_at) = (0, heads.clone().sum::<usize>());
        let places = heads.zip(self.frames).map(|(head_bytes, (_, stored_len))| {
            let content_bytes = (*stored_len as usize).saturating_sub(FRAME_HEADER_BYTES);
            let place = Place {
                head: head_at..head_at + head_bytes,
                content: content_at..content_at + content_bytes,
            };
            (head_at, content_at) = (place.head.end, place.content.end);
            place
        });
        places.collect()
    }

    /// The places within `buffer`, in the order of the file.
    fn slices<'b>(&self, buffer: &'b mut [u8]) -> Vec<IoSliceMut<'b>> {
        let places = self.places();
        let heads_end = places.last().map_or(0, |last| last.head.end);
        let (mut heads, mut contents) = buffer.split_at_mut(heads_end);
        let mut slices = Vec::with_capacity(2 * places.len());
        for Place { head, content } in places {
            let (now, later) = heads.split_at_mut(head.len());
            slices.push(IoSliceMut::new(now));
            heads = later;
            let (now, later) = contents.split_at_mut(content.len());
            slices.push(IoSliceMut::new(now));
            contents = later;
        }
        slices
    }
}
