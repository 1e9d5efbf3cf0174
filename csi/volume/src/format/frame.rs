//! A frame: up to `FRAME_BYTES` of a file, with a header that says whose they are and a checksum over both.
//!
//! Invariant: `open_frame` gives content only if the checksum holds and the frame is exactly the one asked for, so a
//! wrong offset, a mixed-up cache or another volume's object can never be read as this file's content.
//!
//! The content is stored as it is, or compressed (`codec.rs`); lengths of content are of what it was before.
//!
//! Header, 64 bytes: magic 4, version 1, codec 1, flags 2, key id 4, content length 4, stored length 4, zero 4,
//! volume 16, inode 8, file offset 8, zero 4, crc32c 4 over the 60 bytes before it and the stored content.

use bytes::{BufMut, Bytes};
use uuid::Uuid;

use super::codec::{Codec, Compression, pack, unpack};
use super::{FORMAT_VERSION, FormatError, check_length, check_sum, check_volume};
use crate::ids::{InodeNo, ObjectId};
use crate::rope::{PIECE_BYTES_MIN, Rope, RopeBuilder};
use crate::row::{ExtentRow, FRAME_BYTES};
use crate::wire::{Reader, WireError};

mod sums;

pub use sums::FrameSums;

/// Length of a frame's header in bytes.
pub const FRAME_HEADER_BYTES: usize = 64;

const MAGIC: [u8; 4] = *b"PnrF";

/// The content is not encrypted.
const KEY_NONE: u32 = 0;

/// Where the checksum begins: it covers what is before it.
const SUM_AT: usize = 60;

/// What a frame holds: the first byte of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameIdentity {
    /// The volume.
    pub volume: Uuid,
    /// The inode that wrote it.
    pub ino: InodeNo,
    /// Offset in that inode's file.
    pub offset: u64,
}

impl FrameIdentity {
    /// The identity of frame `index` of a run.
    pub fn of(volume: Uuid, run: &ExtentRow, index: usize) -> Self {
        Self {
            volume,
            ino: run.origin_ino,
            offset: run.origin_offset.wrapping_add(index as u64 * u64::from(FRAME_BYTES)),
        }
    }
}

/// What a header says, after its own fields were checked; the checksum covers the content and is checked with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FrameHeader {
    /// Whose content.
    pub identity: FrameIdentity,
    /// Length of the content in bytes.
    pub content_len: u32,
    /// Length of the content as stored in bytes, without this header.
    pub stored_len: u32,
    codec: Codec,
    sum: u32,
}

impl FrameHeader {
    /// Reads the header at the start of `bytes`.
    ///
    /// # Errors
    /// `Magic`, `Wire`, and `Codec` or `Key` where this build cannot read the content.
    pub fn decode(bytes: &[u8]) -> Result<Self, FormatError> {
        let mut reader = Reader::new(bytes);
        match reader.array::<4>("magic") {
            Ok(MAGIC) => {}
            Ok(_) | Err(_) => return Err(FormatError::Magic { want: "frame" }),
        }
        let version = reader.byte("version")?;
        if version != FORMAT_VERSION {
            return Err(FormatError::Wire(WireError::Version {
                what: "frame",
                got: version,
                want: FORMAT_VERSION,
            }));
        }
        let codec = reader.byte("codec")?;
        let flags = u16::from_le_bytes(reader.array("flags")?);
        let key = reader.u32_le("key id")?;
        let (content_len, stored_len) = (reader.u32_le("content length")?, reader.u32_le("stored length")?);
        reader.u32_le("zero")?;
        let identity = FrameIdentity {
            volume: Uuid::from_bytes(reader.array("volume")?),
            ino: InodeNo(reader.u64_le("inode number")?),
            offset: reader.u64_le("file offset")?,
        };
        reader.u32_le("zero")?;
        let sum = reader.u32_le("checksum")?;
        let codec = Codec::of(codec)?;
        if key != KEY_NONE {
            return Err(FormatError::Key(key));
        }
        // What is compressed is shorter, or it would not have been.
        let lengths_fit = match codec {
            Codec::NONE => stored_len == content_len,
            _ => stored_len < content_len,
        };
        if flags != 0 || content_len > FRAME_BYTES || !lengths_fit {
            return Err(FormatError::Wire(WireError::Value {
                field: "content length",
                got: u64::from(content_len),
            }));
        }
        Ok(Self {
            identity,
            content_len,
            stored_len,
            codec,
            sum,
        })
    }

    /// True if the content is stored as it is.
    #[must_use]
    pub fn is_plain(&self) -> bool {
        self.codec == Codec::NONE
    }

    /// Checks what a frame of this header must be: with this checksum, and the one that `want` names.
    fn check(&self, sum: u32, content: &[u8], want: &FrameIdentity) -> Result<(), FormatError> {
        check_length(content.len() as u64, u64::from(self.stored_len))?;
        check_sum("the frame", sum, self.sum)?;
        check_volume(*self.identity.volume.as_bytes(), want.volume)?;
        if self.identity != *want {
            return Err(FormatError::Identity {
                ino: self.identity.ino.0,
                offset: self.identity.offset,
            });
        }
        Ok(())
    }

    /// The content out of what is stored of it.
    ///
    /// # Errors
    /// `Packed`, `Length`.
    pub fn content(&self, stored: Bytes) -> Result<Bytes, FormatError> {
        match self.codec {
            Codec::NONE => Ok(stored),
            packed => unpack(packed, &stored, self.content_len as usize).map(Bytes::from),
        }
    }
}

/// The content of a frame: `stored` is the whole frame, header included, and must be the one that `want` names.
///
/// The answer shares memory with `stored` unless it was compressed.
///
/// # Errors
/// `FormatError`: which of the checks failed.
pub fn open_frame(stored: &Bytes, want: &FrameIdentity) -> Result<Bytes, FormatError> {
    let (head, content) = stored.split_at(stored.len().min(FRAME_HEADER_BYTES));
    check_frame(head, content, want)?.content(stored.slice(FRAME_HEADER_BYTES..))
}

/// Checks that a frame is whole and the one that `want` names. `head` is its header alone, `content` its content as stored.
///
/// # Errors
/// `FormatError`: which of the checks failed.
pub fn check_frame(head: &[u8], content: &[u8], want: &FrameIdentity) -> Result<FrameHeader, FormatError> {
    let header = FrameHeader::decode(head)?;
    header.check(crc32c::crc32c_append(sum_of_header(head), content), content, want)?;
    Ok(header)
}

/// As `check_frame`, and notes what it takes to check a part of the frame by itself, if its content is stored as it is.
///
/// # Errors
/// As `check_frame`.
pub fn check_frame_and_note(
    head: &[u8],
    content: &[u8],
    want: &FrameIdentity,
) -> Result<(FrameHeader, Option<FrameSums>), FormatError> {
    let header = FrameHeader::decode(head)?;
    if !header.is_plain() {
        return Ok((check_frame(head, content, want)?, None));
    }
    let sums = FrameSums::of(sum_of_header(head), content, *want);
    header.check(sums.of_all(), content, want)?;
    Ok((header, Some(sums)))
}

/// What the checksum of a frame begins with; the header must be as long as one is.
fn sum_of_header(head: &[u8]) -> u32 {
    crc32c::crc32c(&head[..SUM_AT])
}

/// A frame that this process has just made, and so needs no check.
#[derive(Debug, Clone)]
pub struct OwnFrame {
    header: FrameHeader,
    stored: Rope,
}

impl OwnFrame {
    /// The frame in these bytes.
    ///
    /// # Errors
    /// As `open_frame`, for what is no frame of ours at all.
    pub fn of(frame: &Rope) -> Result<Self, FormatError> {
        let head = frame
            .slice(0..frame.len_bytes().min(FRAME_HEADER_BYTES as u64))
            .to_bytes();
        let header = FrameHeader::decode(&head)?;
        let stored = frame.slice(FRAME_HEADER_BYTES as u64..frame.len_bytes());
        Ok(Self { header, stored })
    }

    /// Its content, which is not copied where it is stored as it is.
    ///
    /// # Errors
    /// As `FrameHeader::content`.
    pub fn content(&self) -> Result<Rope, FormatError> {
        match self.header.is_plain() {
            true => Ok(self.stored.clone()),
            false => self.header.content(self.stored.to_bytes()).map(Rope::from),
        }
    }
}

/// Appends a run as frames and tells where it lies: `out` must be the object from its first byte on. Content that is stored as it
/// is stays where it is, if it lies in one piece.
///
/// Panics on an empty run: there is nothing to place.
pub fn put_run(
    out: &mut RopeBuilder,
    object: ObjectId,
    first: FrameIdentity,
    data: &[Bytes],
    compression: Compression,
) -> ExtentRow {
    let len: u64 = data.iter().map(|part| part.len() as u64).sum();
    assert!(len > 0, "an empty run of inode {} at {}", first.ino, first.offset);
    let mut row = ExtentRow {
        len,
        object,
        object_offset: out.len_bytes(),
        skip: 0,
        frame_stored_lens: Vec::with_capacity(len.div_ceil(u64::from(FRAME_BYTES)) as usize),
        origin_ino: first.ino,
        origin_offset: first.offset,
    };
    let mut parts = Parts { of: data, at: 0 };
    let mut done = 0;
    while done < len {
        let content_len = (len - done).min(u64::from(FRAME_BYTES)) as u32;
        let identity = FrameIdentity {
            offset: first.offset + done,
            ..first
        };
        let stored_len = put_frame(out, identity, &mut parts, content_len, compression);
        row.frame_stored_lens.push(FRAME_HEADER_BYTES as u32 + stored_len);
        done += u64::from(content_len);
    }
    row
}

/// What is left of the parts of a run.
struct Parts<'a> {
    of: &'a [Bytes],
    /// Bytes of the first one that were taken.
    at: usize,
}

impl Parts<'_> {
    /// The next `len` bytes as they lie, if they are worth a piece of their own and are in one.
    fn take_whole(&mut self, len: usize) -> Option<Bytes> {
        while self.of.first().is_some_and(|part| part.len() == self.at) {
            (self.of, self.at) = (&self.of[1..], 0);
        }
        let part = self.of.first()?;
        if len < PIECE_BYTES_MIN || part.len() - self.at < len {
            return None;
        }
        self.at += len;
        Some(part.slice(self.at - len..self.at))
    }

    /// Appends the next `len` bytes to `out`.
    fn take(&mut self, mut len: usize, mut out: impl FnMut(&[u8])) {
        while len > 0 {
            let (part, later) = self.of.split_first().expect("the parts are as long as their sum");
            let now = (part.len() - self.at).min(len);
            out(&part[self.at..self.at + now]);
            (self.at, len) = (self.at + now, len - now);
            if self.at == part.len() {
                (self.of, self.at) = (later, 0);
            }
        }
    }
}

/// Appends one frame and returns how many bytes its content takes.
fn put_frame(
    out: &mut RopeBuilder,
    identity: FrameIdentity,
    parts: &mut Parts<'_>,
    content_len: u32,
    compression: Compression,
) -> u32 {
    match parts.take_whole(content_len as usize) {
        Some(content) => put_whole(out, identity, content, compression),
        None => put_gathered(out, identity, (parts, content_len), compression),
    }
}

/// A frame of content that lies in one piece.
fn put_whole(out: &mut RopeBuilder, identity: FrameIdentity, content: Bytes, compression: Compression) -> u32 {
    let content_len = content.len() as u32;
    match pack(&content, compression) {
        None => {
            let header = header_of(identity, Codec::NONE, content_len, &content);
            out.gathered(FRAME_HEADER_BYTES).extend_from_slice(&header);
            out.push(content);
            content_len
        }
        Some((codec, packed)) => {
            let header = header_of(identity, codec, content_len, &packed);
            let gathered = out.gathered(FRAME_HEADER_BYTES + packed.len());
            gathered.extend_from_slice(&header);
            // Copied: it lies in a buffer that is as long as it might have become.
            gathered.extend_from_slice(&packed);
            packed.len() as u32
        }
    }
}

/// A frame of content that is short, or lies in several pieces.
fn put_gathered(
    out: &mut RopeBuilder,
    identity: FrameIdentity,
    (parts, content_len): (&mut Parts<'_>, u32),
    compression: Compression,
) -> u32 {
    let out = out.gathered(FRAME_HEADER_BYTES + content_len as usize);
    let start = out.len();
    let content_at = start + FRAME_HEADER_BYTES;
    out.resize(content_at, 0);
    parts.take(content_len as usize, |bytes| out.extend_from_slice(bytes));
    let codec = match pack(&out[content_at..], compression) {
        None => Codec::NONE,
        Some((codec, packed)) => {
            out.truncate(content_at);
            out.extend_from_slice(&packed);
            codec
        }
    };
    let (head, stored) = out[start..].split_at_mut(FRAME_HEADER_BYTES);
    head.copy_from_slice(&header_of(identity, codec, content_len, stored));
    stored.len() as u32
}

/// Bytes that a run of `len` bytes takes in an object at most, headers included.
pub fn stored_bytes(len: u64) -> u64 {
    len + len.div_ceil(u64::from(FRAME_BYTES)) * FRAME_HEADER_BYTES as u64
}

/// The header of a frame that stores `stored` of `content_len` bytes.
fn header_of(identity: FrameIdentity, codec: Codec, content_len: u32, stored: &[u8]) -> [u8; FRAME_HEADER_BYTES] {
    let mut header = [0; FRAME_HEADER_BYTES];
    let mut rest = &mut header[..];
    rest.put_slice(&MAGIC);
    rest.put_slice(&[FORMAT_VERSION, codec.byte(), 0, 0]);
    rest.put_u32_le(KEY_NONE);
    rest.put_u32_le(content_len);
    rest.put_u32_le(stored.len() as u32);
    rest.put_u32_le(0);
    rest.put_slice(identity.volume.as_bytes());
    rest.put_u64_le(identity.ino.0);
    rest.put_u64_le(identity.offset);
    let sum = crc32c::crc32c_append(crc32c::crc32c(&header[..SUM_AT]), stored);
    header[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
    header
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::ids::Epoch;

    const FIRST: FrameIdentity = FrameIdentity {
        volume: Uuid::from_u128(7),
        ino: InodeNo(42),
        offset: 1 << 40,
    };

    const OBJECT: ObjectId = ObjectId::Segment(Epoch(1), 1);

    /// The frames of a row within the object that holds them.
    fn frames(object: &Bytes, row: &ExtentRow) -> Vec<Bytes> {
        let mut at = row.object_offset as usize;
        let slice = |len: &u32| {
            let frame = object.slice(at..at + *len as usize);
            at += *len as usize;
            frame
        };
        row.frame_stored_lens.iter().map(slice).collect()
    }

    fn one_frame(content: &'static [u8]) -> Bytes {
        let mut out = RopeBuilder::new(b"", 0);
        put_run(
            &mut out,
            OBJECT,
            FIRST,
            &[Bytes::from_static(content)],
            Compression::None,
        );
        out.finish().to_bytes()
    }

    /// Goal: any division into parts comes back, compressed or not. Method: one in which no part ends where a frame does.
    #[test]
    fn a_run_of_many_parts_comes_back_frame_by_frame() {
        let lens = [0, 1, FRAME_BYTES as usize - 2, 0, 5, 3 * FRAME_BYTES as usize, 77];
        let whole: Vec<u8> = (0..lens.iter().sum::<usize>()).map(|i| (i % 251) as u8).collect();
        let mut at = 0;
        let mut parts = Vec::new();
        for len in lens {
            parts.push(Bytes::copy_from_slice(&whole[at..at + len]));
            at += len;
        }
        for compression in [Compression::None, Compression::Lz4, Compression::Zstd] {
            let mut out = RopeBuilder::new(b"what is before", 0);
            let row = put_run(&mut out, OBJECT, FIRST, &parts, compression);
            assert_eq!(row.object_offset, 14);
            assert_eq!(
                (row.len, row.stored_bytes()),
                (whole.len() as u64, out.len_bytes() - 14)
            );
            match compression {
                Compression::None => assert_eq!(row.stored_bytes(), stored_bytes(row.len)),
                Compression::Lz4 | Compression::Zstd => assert!(row.stored_bytes() * 10 < row.len),
            }
            let (mut content, object) = (Vec::new(), out.finish());
            for (index, frame) in frames(&object.to_bytes(), &row).iter().enumerate() {
                let opened = open_frame(frame, &FrameIdentity::of(FIRST.volume, &row, index)).unwrap();
                let own = OwnFrame::of(&Rope::from(frame.clone())).unwrap();
                assert!(own.content().unwrap().is(&opened));
                content.extend_from_slice(&opened);
            }
            assert!(content == whole, "{compression:?}");
        }
    }

    /// What is written in long pieces is put from where it is: neither the frames nor the object are a copy of it.
    #[test]
    fn content_that_does_not_shrink_is_not_copied() {
        let noise = |len: usize| -> Bytes {
            let mut state = 1u64;
            let next = || {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            };
            std::iter::repeat_with(next).take(len).collect()
        };
        let frame = FRAME_BYTES as usize;
        let parts = [noise(2 * frame), noise(frame + 1), noise(frame)];
        let mut out = RopeBuilder::new(b"", 0);
        let row = put_run(&mut out, OBJECT, FIRST, &parts, Compression::Lz4);
        let object = out.finish();
        assert_eq!(row.stored_bytes(), stored_bytes(row.len));
        let within = |piece: &Bytes, part: &Bytes| part.as_ptr_range().contains(&piece.as_ptr());
        let as_it_was: Vec<usize> = object
            .pieces()
            .filter(|piece| parts.iter().any(|part| within(piece, part)))
            .map(Bytes::len)
            .collect();
        // The fourth frame lies in two pieces.
        assert_eq!(as_it_was, [frame, frame, frame]);
        let mut content = Vec::new();
        for (index, frame) in frames(&object.to_bytes(), &row).iter().enumerate() {
            content.extend_from_slice(&open_frame(frame, &FrameIdentity::of(FIRST.volume, &row, index)).unwrap());
        }
        assert!(content == parts.concat());
    }

    #[test]
    fn a_frame_is_only_opened_as_what_it_is() {
        let frame = one_frame(b"content");
        assert_eq!(open_frame(&frame, &FIRST).unwrap(), "content");
        let other = FrameIdentity {
            ino: InodeNo(43),
            ..FIRST
        };
        assert_eq!(
            open_frame(&frame, &other),
            Err(FormatError::Identity {
                ino: 42,
                offset: 1 << 40
            })
        );
        let volume = Uuid::from_u128(8);
        assert_eq!(
            open_frame(&frame, &FrameIdentity { volume, ..FIRST }),
            Err(FormatError::Volume(FIRST.volume))
        );
        assert_eq!(
            open_frame(&frame.slice(..frame.len() - 1), &FIRST),
            Err(FormatError::Length { got: 6, want: 7 })
        );
    }

    #[test]
    fn an_unknown_codec_or_key_is_refused_by_its_name() {
        let mut frame = one_frame(b"content").to_vec();
        frame[5] = 3;
        assert_eq!(open_frame(&frame.clone().into(), &FIRST), Err(FormatError::Codec(3)));
        frame[5] = 0;
        frame[8] = 9;
        assert_eq!(open_frame(&frame.into(), &FIRST), Err(FormatError::Key(9)));
    }

    proptest! {
        #[test]
        fn a_changed_bit_never_goes_unnoticed(at in 0..(64 + 7) * 8usize) {
            let mut frame = one_frame(b"content").to_vec();
            frame[at / 8] ^= 1 << (at % 8);
            prop_assert!(open_frame(&frame.into(), &FIRST).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = open_frame(&bytes.clone().into(), &FIRST);
            if bytes.len() > 5 {
                bytes[..6].copy_from_slice(&[b'P', b'n', b'r', b'F', FORMAT_VERSION, 0]);
            }
            let _ = open_frame(&bytes.into(), &FIRST);
        }
    }
}
