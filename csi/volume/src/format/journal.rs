//! A journal object: one commit, with its rows and, unless they are large, the frames that the rows point to.
//!
//! Header, 128 bytes: magic 8, version 1, zero 3, number of segments 4, volume 16, writer 16, epoch 8, position 8,
//! offset of the rows 8, length of the rows 8, number of rows 8, length of the object 8, crc32c of the rows 4, zero 24,
//! crc32c 4 over the 124 bytes before it and the list of segments. Then the segments that the commit needs (number 8,
//! length 8 each), frames, rows, and a footer of 16 bytes: magic 8, the header's crc32c 4, crc32c 4 of those 12 bytes.
//! A row is: key with its length, 0 and nothing (deleted) or 1 and the row with its length.
//! Frames are checked when they are read, not when the journal is: a replay does not need them.

use bytes::{Bytes, BytesMut};
use uuid::Uuid;

use super::codec::Compression;
use super::frame::{FrameIdentity, put_run};
use super::{FORMAT_VERSION, FormatError, begin, check_length, check_object, check_sum, check_volume};
use crate::ids::{Epoch, InodeNo, JournalSeq, ObjectId};
use crate::rope::{Rope, RopeBuilder};
use crate::row::codec::{KEY_BYTES_MAX, ROW_BYTES_MAX, decode_key, decode_pair, put_key, put_row};
use crate::row::{ExtentRow, Key, Row};
use crate::wire::{Reader, WireError, put_varint};

/// Length of the fixed part of the header in bytes.
pub const JOURNAL_HEADER_BYTES: usize = 128;

const MAGIC: &[u8; 8] = b"PnrJrnl\n";
const FOOTER_MAGIC: &[u8; 8] = b"PnrJEnd\n";
const FOOTER_BYTES: usize = 16;
const SEGMENT_NAME_BYTES: usize = 16;
const SUM_AT: usize = JOURNAL_HEADER_BYTES - 4;

/// A segment that a commit needs: the commit stands only if it is there with this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentName {
    /// Its number in the commit's own epoch.
    pub number: u64,
    /// Length of the object in bytes.
    pub object_len: u64,
}

/// A decoded journal object.
#[derive(Debug, Clone, PartialEq)]
pub struct Journal {
    /// Epoch of the commit.
    pub epoch: Epoch,
    /// Its position in that epoch.
    pub seq: JournalSeq,
    /// The mount that wrote it.
    pub writer: Uuid,
    /// Segments that it needs.
    pub segments: Vec<SegmentName>,
    /// Where the frames lie in the object.
    pub frames: std::ops::Range<u64>,
    /// What changed; `None` deletes, `ObjectStats` are differences.
    pub changes: Vec<(Key, Option<Row>)>,
}

/// True if these bytes begin as a journal object does.
pub fn is_journal(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

/// What the header says, checked against the object's key and its own checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Header {
    writer: Uuid,
    segments: Vec<SegmentName>,
    rows: std::ops::Range<usize>,
    rows_count: u64,
    rows_sum: u32,
    sum: u32,
}

fn decode_header(bytes: &[u8], volume: Uuid, epoch: Epoch, seq: JournalSeq) -> Result<Header, FormatError> {
    let mut reader = begin(bytes, MAGIC, "journal object")?;
    reader.array::<3>("zero")?;
    let segments_count = reader.u32_le("number of segments")?;
    let found_volume = reader.array::<16>("volume")?;
    let writer = Uuid::from_bytes(reader.array("writer")?);
    let found = ObjectId::Journal(Epoch(reader.u64_le("epoch")?), JournalSeq(reader.u64_le("position")?));
    let (rows_offset, rows_len) = (reader.u64_le("offset of rows")?, reader.u64_le("length of rows")?);
    let rows_count = reader.u64_le("number of rows")?;
    let object_len = reader.u64_le("length")?;
    let rows_sum = reader.u32_le("checksum of rows")?;
    reader.array::<24>("zero")?;
    let sum = reader.u32_le("checksum")?;
    let list_len = (segments_count as usize)
        .checked_mul(SEGMENT_NAME_BYTES)
        .ok_or(WireError::Truncated { field: "segments" })?;
    let list = reader.take(list_len, "segments")?;
    let got = crc32c::crc32c_append(crc32c::crc32c(&bytes[..SUM_AT]), list);
    check_sum("the journal object's header", got, sum)?;
    check_volume(found_volume, volume)?;
    check_object(found, ObjectId::Journal(epoch, seq))?;
    check_length(bytes.len() as u64, object_len)?;

    let (start, end) = (
        JOURNAL_HEADER_BYTES + list_len,
        bytes.len().saturating_sub(FOOTER_BYTES),
    );
    let rows_end = rows_offset.checked_add(rows_len);
    if rows_offset < start as u64 || rows_end != Some(end as u64) {
        return Err(FormatError::Wire(WireError::Value {
            field: "offset of rows",
            got: rows_offset,
        }));
    }
    let mut list = Reader::new(list);
    let mut segments = Vec::with_capacity(segments_count as usize);
    for _ in 0..segments_count {
        segments.push(SegmentName {
            number: list.u64_le("number of segment")?,
            object_len: list.u64_le("length of segment")?,
        });
    }
    Ok(Header {
        writer,
        segments,
        rows: rows_offset as usize..end,
        rows_count,
        rows_sum,
        sum,
    })
}

/// The journal object of these bytes, found at the key of (`epoch`, `seq`).
///
/// # Errors
/// `FormatError`: it is not that object, or not whole, or holds what this build cannot read.
pub fn decode(bytes: &[u8], volume: Uuid, epoch: Epoch, seq: JournalSeq) -> Result<Journal, FormatError> {
    let header = decode_header(bytes, volume, epoch, seq)?;
    let footer = &bytes[header.rows.end..];
    let mut reader = Reader::new(footer);
    if reader.array::<8>("footer")? != *FOOTER_MAGIC {
        return Err(FormatError::Magic { want: "journal footer" });
    }
    check_sum(
        "the journal object's header",
        header.sum,
        reader.u32_le("checksum of header")?,
    )?;
    check_sum("the footer", crc32c::crc32c(&footer[..12]), reader.u32_le("checksum")?)?;
    let rows = &bytes[header.rows.clone()];
    check_sum("the rows", crc32c::crc32c(rows), header.rows_sum)?;
    let changes = decode_changes(rows, header.rows_count)?;
    let start = JOURNAL_HEADER_BYTES + header.segments.len() * SEGMENT_NAME_BYTES;
    Ok(Journal {
        epoch,
        seq,
        writer: header.writer,
        segments: header.segments,
        frames: start as u64..header.rows.start as u64,
        changes,
    })
}

/// Who wrote the journal object of these bytes, without looking at its rows.
///
/// # Errors
/// `FormatError`: it is not the object of this key.
pub fn decode_writer(bytes: &[u8], volume: Uuid, epoch: Epoch, seq: JournalSeq) -> Result<Uuid, FormatError> {
    Ok(decode_header(bytes, volume, epoch, seq)?.writer)
}

fn decode_changes(rows: &[u8], count: u64) -> Result<Vec<(Key, Option<Row>)>, FormatError> {
    let mut reader = Reader::new(rows);
    // A row takes three bytes at least, so a wrong number cannot make this allocate more than the rows do.
    let mut changes = Vec::with_capacity((count as usize).min(rows.len() / 3));
    for _ in 0..count {
        let key = reader.bytes(KEY_BYTES_MAX, "key")?;
        let change = match reader.byte("kind of change")? {
            0 => (decode_key(key)?, None),
            1 => {
                let (key, row) = decode_pair(key, reader.bytes(ROW_BYTES_MAX, "row")?)?;
                (key, Some(row))
            }
            other => {
                return Err(FormatError::Wire(WireError::Value {
                    field: "kind of change",
                    got: u64::from(other),
                }));
            }
        };
        changes.push(change);
    }
    reader.end()?;
    Ok(changes)
}

/// Builds one journal object.
#[derive(Debug)]
pub struct JournalBuilder {
    volume: Uuid,
    object: ObjectId,
    out: RopeBuilder,
}

/// Which journal object to build.
#[derive(Debug, Clone, Copy)]
pub struct JournalName {
    /// The volume.
    pub volume: Uuid,
    /// The mount that writes it.
    pub writer: Uuid,
    /// Its epoch.
    pub epoch: Epoch,
    /// Its position.
    pub seq: JournalSeq,
}

impl JournalBuilder {
    /// `capacity_bytes` is what will be copied of the frames, and what the rows will take, about, so that little is copied twice.
    pub fn new(name: JournalName, segments: &[SegmentName], capacity_bytes: u64) -> Self {
        let mut head = BytesMut::with_capacity(JOURNAL_HEADER_BYTES + segments.len() * SEGMENT_NAME_BYTES);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&[FORMAT_VERSION, 0, 0, 0]);
        head.extend_from_slice(&(segments.len() as u32).to_le_bytes());
        head.extend_from_slice(name.volume.as_bytes());
        head.extend_from_slice(name.writer.as_bytes());
        head.extend_from_slice(&name.epoch.0.to_le_bytes());
        head.extend_from_slice(&name.seq.0.to_le_bytes());
        head.resize(JOURNAL_HEADER_BYTES, 0);
        for segment in segments {
            head.extend_from_slice(&segment.number.to_le_bytes());
            head.extend_from_slice(&segment.object_len.to_le_bytes());
        }
        Self {
            volume: name.volume,
            object: ObjectId::Journal(name.epoch, name.seq),
            out: RopeBuilder::new(&head, capacity_bytes + FOOTER_BYTES as u64),
        }
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

    /// The object, with these rows, and how many bytes the rows take.
    ///
    /// Panics on a row that is longer than a reader accepts.
    pub fn finish(mut self, changes: &[(Key, Option<Row>)]) -> (Rope, u64) {
        let rows_at = self.out.len_bytes();
        let (mut key_bytes, mut row_bytes) = (Vec::with_capacity(64), Vec::with_capacity(256));
        let (mut change, mut rows_sum) = (Vec::with_capacity(320), 0);
        for (key, row) in changes {
            change.clear();
            key_bytes.clear();
            put_key(&mut key_bytes, key);
            put_prefixed(&mut change, &key_bytes, KEY_BYTES_MAX);
            match row {
                None => change.push(0),
                Some(row) => {
                    row_bytes.clear();
                    put_row(&mut row_bytes, row);
                    change.push(1);
                    put_prefixed(&mut change, &row_bytes, ROW_BYTES_MAX);
                }
            }
            rows_sum = crc32c::crc32c_append(rows_sum, &change);
            self.out.gathered(change.len()).extend_from_slice(&change);
        }
        let rows_len = self.out.len_bytes() - rows_at;
        let numbers = [
            rows_at,
            rows_len,
            changes.len() as u64,
            rows_at + rows_len + FOOTER_BYTES as u64,
        ];
        let head = self.out.head();
        for (i, number) in numbers.into_iter().enumerate() {
            head[64 + 8 * i..72 + 8 * i].copy_from_slice(&number.to_le_bytes());
        }
        head[96..100].copy_from_slice(&rows_sum.to_le_bytes());
        let sum = crc32c::crc32c_append(crc32c::crc32c(&head[..SUM_AT]), &head[JOURNAL_HEADER_BYTES..]);
        head[SUM_AT..JOURNAL_HEADER_BYTES].copy_from_slice(&sum.to_le_bytes());
        self.out.gathered(FOOTER_BYTES).extend_from_slice(&footer(sum));
        (self.out.finish(), rows_len)
    }
}

fn put_prefixed(out: &mut Vec<u8>, bytes: &[u8], len_max: usize) {
    assert!(
        bytes.len() <= len_max,
        "{} bytes where {len_max} can be read",
        bytes.len()
    );
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

fn footer(header_sum: u32) -> Vec<u8> {
    let mut footer = FOOTER_MAGIC.to_vec();
    footer.extend_from_slice(&header_sum.to_le_bytes());
    let sum = crc32c::crc32c(&footer);
    footer.extend_from_slice(&sum.to_le_bytes());
    footer
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::frame::open_frame;
    use super::*;
    use crate::row::codec::tests::{any_key, any_row};

    const NAME: JournalName = JournalName {
        volume: Uuid::from_u128(7),
        writer: Uuid::from_u128(1),
        epoch: Epoch(2),
        seq: JournalSeq(3),
    };

    fn decoded(bytes: &[u8]) -> Result<Journal, FormatError> {
        decode(bytes, NAME.volume, NAME.epoch, NAME.seq)
    }

    fn any_changes() -> impl Strategy<Value = Vec<(Key, Option<Row>)>> {
        let change = (any_key(), prop::option::of(any_row()));
        // A row under a key of another kind is refused, so draw until they belong together.
        let belongs = |(key, row): &(Key, Option<Row>)| match row {
            None => true,
            Some(row) => {
                let (key, row) = (crate::row::codec::encode_key(key), crate::row::codec::encode_row(row));
                decode_pair(&key, &row).is_ok()
            }
        };
        prop::collection::vec(change, 0..20).prop_map(move |all| all.into_iter().filter(belongs).collect())
    }

    fn sample() -> Bytes {
        let mut builder = JournalBuilder::new(NAME, &[], 100);
        let row = builder.put_run(InodeNo(9), 5, &[Bytes::from_static(b"data")], Compression::Lz4);
        let key = Key::Extent {
            ino: InodeNo(9),
            end: 9,
        };
        let (body, _) = builder.finish(&[(key, Some(Row::Extent(row))), (Key::Orphan(InodeNo(1)), None)]);
        body.to_bytes()
    }

    #[test]
    fn frames_in_a_journal_object_are_found_by_their_row() {
        let body = sample();
        let journal = decoded(&body).unwrap();
        assert_eq!(journal.writer, NAME.writer);
        let (_, Some(Row::Extent(row))) = &journal.changes[0] else {
            panic!("{journal:?}");
        };
        let frames = journal.frames.start as usize..journal.frames.end as usize;
        assert_eq!(row.object_offset as usize, frames.start);
        let want = FrameIdentity::of(NAME.volume, row, 0);
        assert_eq!(open_frame(&body.slice(frames), &want).unwrap(), "data");
        assert_eq!(decode_writer(&body, NAME.volume, NAME.epoch, NAME.seq), Ok(NAME.writer));
    }

    #[test]
    fn a_journal_object_at_another_place_is_refused() {
        let body = sample();
        let found = FormatError::Object(ObjectId::Journal(Epoch(2), JournalSeq(3)));
        assert_eq!(decode(&body, NAME.volume, Epoch(2), JournalSeq(4)), Err(found));
        let foreign = decode(&body, Uuid::nil(), NAME.epoch, NAME.seq);
        assert_eq!(foreign, Err(FormatError::Volume(NAME.volume)));
    }

    #[test]
    fn every_cut_and_every_changed_bit_outside_the_frames_is_noticed() {
        let body = sample();
        let frames = decoded(&body).unwrap().frames;
        for len in 0..body.len() {
            assert!(decoded(&body[..len]).is_err(), "cut to {len}");
        }
        for at in (0..body.len()).filter(|at| !frames.contains(&(*at as u64))) {
            for bit in 0..8 {
                let mut bytes = body.to_vec();
                bytes[at] ^= 1 << bit;
                assert!(decoded(&bytes).is_err(), "bit {bit} of byte {at}");
            }
        }
    }

    proptest! {
        #[test]
        fn commits_come_back(changes in any_changes(), segments in prop::collection::vec(any::<[u64; 2]>(), 0..4)) {
            let names: Vec<SegmentName> = segments
                .iter()
                .map(|[number, object_len]| SegmentName { number: *number, object_len: *object_len })
                .collect();
            let (body, _) = JournalBuilder::new(NAME, &names, 0).finish(&changes);
            let journal = decoded(&body.to_bytes()).unwrap();
            prop_assert_eq!((journal.changes, journal.segments), (changes, names));
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..400), rows in 0u64..50) {
            let _ = (decoded(&bytes), decode_changes(&bytes, rows));
            bytes.splice(0..0, MAGIC.iter().copied().chain([FORMAT_VERSION]));
            let _ = decoded(&bytes);
        }
    }
}
