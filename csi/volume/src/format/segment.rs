//! A segment: an object that holds frames only.
//!
//! Header, 96 bytes: magic 8, version 1, zero 7, volume 16, writer 16, epoch 8, number 8, length of the object 8,
//! zero 20, crc32c 4 over the 92 bytes before it. Frames follow to the end.

use bytes::{BufMut, Bytes};
use uuid::Uuid;

use super::codec::Compression;
use super::frame::{FrameIdentity, put_run};
use super::{FORMAT_VERSION, FormatError, begin, check_length, check_object, check_sum, check_volume};
use crate::ids::{Epoch, InodeNo, ObjectId};
use crate::rope::{Rope, RopeBuilder};
use crate::row::ExtentRow;

/// Length of a segment's header in bytes: what a look at whether a segment is there has to fetch.
pub const SEGMENT_HEADER_BYTES: usize = 96;

const MAGIC: &[u8; 8] = b"PnrSegm\n";

const LENGTH_AT: usize = 64;
const SUM_AT: usize = SEGMENT_HEADER_BYTES - 4;

/// What the header of a segment says beyond what was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    /// The mount that wrote it.
    pub writer: Uuid,
    /// Length of the whole object in bytes.
    pub object_len: u64,
}

/// True if these bytes begin as a segment does.
pub fn is_segment(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// Reads the header at the start of `bytes`, of an object that should be segment `object` and is `object_len` long.
///
/// # Errors
/// `FormatError`: it is not that segment, or not whole.
pub fn decode_header(
    bytes: &[u8],
    object_len: u64,
    volume: Uuid,
    object: ObjectId,
) -> Result<SegmentHeader, FormatError> {
    let mut reader = begin(bytes, MAGIC, "segment")?;
    reader.array::<7>("zero")?;
    let found_volume = reader.array::<16>("volume")?;
    let writer = Uuid::from_bytes(reader.array("writer")?);
    let found = ObjectId::Segment(Epoch(reader.u64_le("epoch")?), reader.u64_le("number")?);
    let said = reader.u64_le("length")?;
    reader.array::<20>("zero")?;
    let sum = reader.u32_le("checksum")?;
    check_sum("the segment's header", crc32c::crc32c(&bytes[..SUM_AT]), sum)?;
    check_volume(found_volume, volume)?;
    check_object(found, object)?;
    check_length(object_len, said)?;
    Ok(SegmentHeader {
        writer,
        object_len: said,
    })
}

/// Builds one segment.
#[derive(Debug)]
pub struct SegmentBuilder {
    volume: Uuid,
    object: ObjectId,
    out: RopeBuilder,
}

impl SegmentBuilder {
    /// `capacity_bytes` is what will be copied of the frames, about, so that nothing is copied twice.
    ///
    /// Panics unless `object` is a segment.
    pub fn new(volume: Uuid, writer: Uuid, object: ObjectId, capacity_bytes: u64) -> Self {
        let ObjectId::Segment(epoch, number) = object else {
            panic!("{object} is no segment");
        };
        let mut header = [0; SEGMENT_HEADER_BYTES];
        let mut rest = &mut header[..];
        rest.put_slice(MAGIC);
        rest.put_slice(&[FORMAT_VERSION, 0, 0, 0, 0, 0, 0, 0]);
        rest.put_slice(volume.as_bytes());
        rest.put_slice(writer.as_bytes());
        rest.put_u64_le(epoch.0);
        rest.put_u64_le(number);
        let out = RopeBuilder::new(&header, capacity_bytes);
        Self { volume, object, out }
    }

    /// Appends content of a file and tells where it lies.
    pub fn put_run(&mut self, ino: InodeNo, offset: u64, data: &[Bytes], compression: Compression) -> ExtentRow {
        let first = FrameIdentity {
            volume: self.volume,
            ino,
            offset,
        };
        put_run(&mut self.out, self.object, first, data, compression)
    }

    /// Appends frames as they are stored in another object, and tells where they begin. They keep their identity.
    pub fn put_frames(&mut self, frames: &[u8]) -> u64 {
        let start = self.out.len_bytes();
        self.out.gathered(frames.len()).extend_from_slice(frames);
        start
    }

    /// Length of the object so far, in bytes.
    pub fn len_bytes(&self) -> u64 {
        self.out.len_bytes()
    }

    /// The object.
    pub fn finish(mut self) -> Rope {
        let len = self.out.len_bytes();
        let header = self.out.head();
        header[LENGTH_AT..LENGTH_AT + 8].copy_from_slice(&len.to_le_bytes());
        let sum = crc32c::crc32c(&header[..SUM_AT]);
        header[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        self.out.finish()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::open_frame;
    use super::*;

    const VOLUME: Uuid = Uuid::from_u128(7);
    const OBJECT: ObjectId = ObjectId::Segment(Epoch(3), 9);

    fn segment() -> (Bytes, ExtentRow) {
        let mut builder = SegmentBuilder::new(VOLUME, Uuid::from_u128(1), OBJECT, 100);
        let row = builder.put_run(InodeNo(4), 100, &[Bytes::from_static(b"hello")], Compression::Lz4);
        (builder.finish().to_bytes(), row)
    }

    #[test]
    fn a_segment_says_what_it_is_and_holds_its_frames() {
        let (body, row) = segment();
        let header = decode_header(&body, body.len() as u64, VOLUME, OBJECT).unwrap();
        assert_eq!(
            (header.writer, header.object_len),
            (Uuid::from_u128(1), body.len() as u64)
        );
        let frame = body.slice(row.object_offset as usize..);
        assert_eq!(
            open_frame(&frame, &FrameIdentity::of(VOLUME, &row, 0)).unwrap(),
            "hello"
        );
    }

    #[test]
    fn another_volume_number_or_length_is_refused() {
        let (body, _) = segment();
        let len = body.len() as u64;
        let other = ObjectId::Segment(Epoch(3), 8);
        assert_eq!(
            decode_header(&body, len, VOLUME, other),
            Err(FormatError::Object(OBJECT))
        );
        assert!(decode_header(&body, len, Uuid::nil(), OBJECT).is_err());
        assert!(decode_header(&body, len - 1, VOLUME, OBJECT).is_err());
    }

    proptest! {
        #[test]
        fn a_changed_bit_of_the_header_never_goes_unnoticed(at in 0..SEGMENT_HEADER_BYTES * 8) {
            let (body, _) = segment();
            let mut bytes = body.to_vec();
            bytes[at / 8] ^= 1 << (at % 8);
            prop_assert!(decode_header(&bytes, body.len() as u64, VOLUME, OBJECT).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode_header(&bytes, 1, VOLUME, OBJECT);
            bytes.splice(0..0, MAGIC.iter().copied().chain([FORMAT_VERSION]));
            let _ = decode_header(&bytes, 1, VOLUME, OBJECT);
        }
    }
}
