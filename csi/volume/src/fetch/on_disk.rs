//! Frames that the cache on disk has: whole ones, and short parts of those that are known to be whole.
//!
//! A random read of 4 KiB would bring and check a frame of 128 KiB otherwise. Whatever is not as it must be with a part is left to
//! the reading of whole frames, which tells it and mends it.
//! Caller: `fetch.rs`. Absent: where on the disk they are (`cache/disk.rs`), and what a part must be (`FrameSums`).

use std::collections::BTreeMap;

use bytes::Bytes;
use tokio::task::spawn_blocking;

use super::{Fetcher, Frame, WantedPart, content_of};
use crate::cache::FrameKey;
use crate::cache::disk::{DiskCache, StoredFrame, Stretch};
use crate::cache::known::{KnownFrame, PartRead};
use crate::format::frame::check_frame_and_note;
use crate::piece::Piece;
use crate::row::FRAME_BYTES;

/// 32 KiB: of more, a whole frame takes the disk hardly longer, and what follows is likely wanted too.
const SHORT_BYTES_MAX: u64 = 32 * 1024;

/// 64 KiB: of a shorter frame, all is read as fast as a part.
const NOTED_BYTES_MIN: usize = 64 * 1024;

/// A frame from the disk, and its content if it is whole.
type Opened = (StoredFrame, Result<Piece, String>);

impl Fetcher {
    /// Reads frames that are on the disk, and checks them: in place what the kernel has in memory, and the rest where waiting holds
    /// nobody up.
    pub(super) async fn read_disk(&self, disk: &DiskCache, wanted: &BTreeMap<FrameKey, Frame>) -> Vec<Opened> {
        let (mut read, mut later) = (Vec::new(), Vec::new());
        for stretch in disk.locate(wanted.keys().copied()) {
            let frames = match wanted.len() == 1 {
                true => disk.read_soon(|looks| stretch.look(looks)),
                false => stretch.look(1),
            };
            match frames {
                Some(frames) => read.extend(frames.into_iter().map(|stored| self.check(wanted, stored))),
                None => later.push(stretch),
            }
        }
        if !later.is_empty() {
            let keys = later.iter().flat_map(Stretch::keys);
            let wanted: BTreeMap<FrameKey, Frame> = keys.map(|key| (key, wanted[&key])).collect();
            let fetcher = self.clone();
            let _turn = disk.turn(&later).await;
            let reading = spawn_blocking(move || {
                let frames = later.iter().flat_map(Stretch::read);
                frames.map(|stored| fetcher.check(&wanted, stored)).collect::<Vec<_>>()
            });
            // Not read at the end of the runtime, which nobody waits for.
            read.extend(reading.await.unwrap_or_default());
        }
        read
    }

    /// Checks a frame that was read from the disk, and notes what it takes to read a part of it alone.
    fn check(&self, wanted: &BTreeMap<FrameKey, Frame>, stored: StoredFrame) -> Opened {
        let (frame, content) = (&wanted[&stored.key], &stored.content);
        if content.len() < NOTED_BYTES_MIN || self.inner.ram.knows(stored.key) {
            let opened = self.open_parts(frame, stored.head.as_slice(), content);
            return (stored, opened);
        }
        let checked = check_frame_and_note(stored.head.as_slice(), content.as_slice(), &self.identity(frame));
        let opened = checked.and_then(|(header, sums)| {
            if let Some(sums) = sums {
                self.inner.ram.put_known(stored.key, KnownFrame::new(sums));
            }
            content_of(&header, content)
        });
        let opened = opened.map_err(|error| error.to_string());
        (stored, opened)
    }

    /// Reads a part that lies within this one frame; `None` if that is better done with all of the frame.
    pub(super) async fn read_blocks(&self, part: &WantedPart, frame: &Frame) -> Option<Bytes> {
        let disk = self.inner.disk.as_ref().filter(|_| part.len <= SHORT_BYTES_MAX)?;
        let known = self.inner.ram.known(frame.key)?;
        let skip = (part.row.skip + part.skip) % u64::from(FRAME_BYTES);
        let wanted = skip..skip + part.len;
        let blocks = known.sums().part_around(&wanted)?;
        let how = known.want(&wanted);
        if how == PartRead::WithAll {
            return None;
        }
        let stretch = disk.locate(std::iter::once(frame.key)).pop()?;
        let place = stretch.part_of_content(&blocks)?;
        let content = match disk.read_soon(|looks| place.look(looks)) {
            Some(content) => content,
            None => spawn_blocking(move || place.read()).await.ok()??,
        };
        if let Err(error) = known.sums().check(&blocks, &content, &self.identity(frame)) {
            tracing::debug!(object = %frame.key.object, offset = frame.key.offset, %error, "a part of a frame on disk is not what it was");
            return None;
        }
        if how == PartRead::AloneFirst {
            // Nobody waits for it.
            drop(spawn_blocking(move || stretch.bring()));
        }
        Some(content.slice((wanted.start - blocks.start) as usize..(wanted.end - blocks.start) as usize))
    }
}
