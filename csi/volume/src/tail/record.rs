//! One record of the tail: what changed since the record before it, in its final state, as rows and pieces of content.
//!
//! A header of a sector, then the body. Header, 64 bytes: magic 8, session 16, number 8, generation 8, length of the body 8,
//! crc32c of the body 4, zero 8, crc32c of the 60 bytes before 4. Body: number of rows, the rows as the journal writes them
//! (key with its length, 0 or 1 and the row with its length), number of pieces, of each inode, start, end and whether it
//! has content; then the content of all of them.

use bytes::Bytes;
use uuid::Uuid;

use crate::ids::{Generation, InodeNo};
use crate::row::codec::{KEY_BYTES_MAX, ROW_BYTES_MAX, decode_key, decode_pair, put_key, put_row};
use crate::row::{Key, Row};
use crate::wire::{Reader, WireError, put_bytes, put_varint};

/// Length of a record's header.
pub(super) const RECORD_HEADER_BYTES: usize = 64;

/// The first bytes of a record.
pub(super) const RECORD_MAGIC: &[u8; 8] = b"PnrTRec\n";
const SUM_AT: usize = RECORD_HEADER_BYTES - 4;

/// A range of a file as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Piece {
    /// The file.
    pub ino: InodeNo,
    /// First byte.
    pub start: u64,
    /// First byte after.
    pub end: u64,
    /// The content, in order; empty for a hole.
    pub content: Vec<Bytes>,
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Default)]
pub(crate) struct Record {
    /// Rows of inodes, entries, attributes, orphans and the totals; `None` for those that are gone.
    pub rows: Vec<(Key, Option<Row>)>,
    /// Content that came or went.
    pub pieces: Vec<Piece>,
}

/// A record with what the log needs to know of it.
#[derive(Debug)]
pub(crate) struct Batch {
    /// The commit that will contain all of it.
    pub generation: Generation,
    /// What changed.
    pub record: Record,
}

/// What the header of a record says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct RecordHeader {
    pub session: Uuid,
    pub number: u64,
    pub generation: Generation,
    pub body_bytes: u64,
    pub body_sum: u32,
}

impl RecordHeader {
    pub fn encode(&self) -> [u8; RECORD_HEADER_BYTES] {
        let mut out = [0; RECORD_HEADER_BYTES];
        out[..8].copy_from_slice(RECORD_MAGIC);
        out[8..24].copy_from_slice(self.session.as_bytes());
        out[24..32].copy_from_slice(&self.number.to_le_bytes());
        out[32..40].copy_from_slice(&self.generation.0.to_le_bytes());
        out[40..48].copy_from_slice(&self.body_bytes.to_le_bytes());
        out[48..52].copy_from_slice(&self.body_sum.to_le_bytes());
        let sum = crc32c::crc32c(&out[..SUM_AT]);
        out[SUM_AT..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The header in these bytes; `None` where there is none that is whole.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut reader = Reader::new(bytes.get(..RECORD_HEADER_BYTES)?);
        if reader.array::<8>("magic").ok()? != *RECORD_MAGIC {
            return None;
        }
        let header = Self {
            session: Uuid::from_bytes(reader.array("session").ok()?),
            number: reader.u64_le("number").ok()?,
            generation: Generation(reader.u64_le("generation").ok()?),
            body_bytes: reader.u64_le("length").ok()?,
            body_sum: reader.u32_le("checksum of the body").ok()?,
        };
        reader.array::<8>("zero").ok()?;
        let sum = reader.u32_le("checksum").ok()?;
        (sum == crc32c::crc32c(&bytes[..SUM_AT])).then_some(header)
    }
}

impl Record {
    /// True if it says nothing of what changed.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty() && self.pieces.is_empty()
    }

    /// Adds the body but for the content that follows it.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        out.reserve(64 + 256 * self.rows.len() + 32 * self.pieces.len());
        let mut buffer = Vec::with_capacity(256);
        put_varint(out, self.rows.len() as u64);
        for (key, row) in &self.rows {
            buffer.clear();
            put_key(&mut buffer, key);
            put_bytes(out, &buffer);
            match row {
                None => out.push(0),
                Some(row) => {
                    buffer.clear();
                    put_row(&mut buffer, row);
                    out.push(1);
                    put_bytes(out, &buffer);
                }
            }
        }
        put_varint(out, self.pieces.len() as u64);
        for piece in &self.pieces {
            put_varint(out, piece.ino.0);
            put_varint(out, piece.start);
            put_varint(out, piece.end);
            out.push(u8::from(!piece.content.is_empty()));
        }
    }

    /// The content of all pieces, in order.
    pub fn content(&self) -> impl Iterator<Item = &Bytes> {
        self.pieces.iter().flat_map(|piece| &piece.content)
    }

    /// The record of a body. Content refers to `body`, it is not copied.
    ///
    /// # Errors
    /// `WireError`: no build of this version writes that.
    pub fn decode(body: &Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let rows_count = reader.varint("number of rows")?;
        let mut rows = Vec::new();
        for _ in 0..rows_count {
            let key = reader.bytes(KEY_BYTES_MAX, "key")?;
            rows.push(match reader.byte("kind of change")? {
                0 => (decode_key(key)?, None),
                1 => {
                    let (key, row) = decode_pair(key, reader.bytes(ROW_BYTES_MAX, "row")?)?;
                    (key, Some(row))
                }
                got => {
                    return Err(WireError::Value {
                        field: "kind of change",
                        got: u64::from(got),
                    });
                }
            });
        }
        let pieces_count = reader.varint("number of pieces")?;
        let mut heads = Vec::new();
        for _ in 0..pieces_count {
            let ino = InodeNo(reader.varint("inode of a piece")?);
            let (start, end) = (reader.varint("start of a piece")?, reader.varint("end of a piece")?);
            if start >= end {
                return Err(WireError::Value {
                    field: "end of a piece",
                    got: end,
                });
            }
            heads.push((ino, start, end, reader.byte("kind of a piece")? != 0));
        }
        let mut pieces = Vec::with_capacity(heads.len());
        for (ino, start, end, has_content) in heads {
            let mut content = Vec::new();
            if has_content {
                let len = usize::try_from(end - start).unwrap_or(usize::MAX);
                content.push(body.slice_ref(reader.take(len, "content")?));
            }
            pieces.push(Piece {
                ino,
                start,
                end,
                content,
            });
        }
        reader.end()?;
        Ok(Self { rows, pieces })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::row::Counters;

    fn record() -> Record {
        let counters = Counters {
            next_ino: 9,
            used_bytes: 5,
            inodes: 3,
        };
        let piece = |start, end, content: Vec<Bytes>| Piece {
            ino: InodeNo(7),
            start,
            end,
            content,
        };
        Record {
            rows: vec![
                (Key::Counters, Some(Row::Counters(counters))),
                (Key::Inode(InodeNo(8)), None),
                (Key::Orphan(InodeNo(8)), Some(Row::Orphan)),
            ],
            pieces: vec![
                piece(0, 5, vec![Bytes::from_static(b"first")]),
                piece(5, u64::MAX, Vec::new()),
            ],
        }
    }

    fn body(record: &Record) -> Bytes {
        let mut body = Vec::new();
        record.encode_into(&mut body);
        record.content().for_each(|bytes| body.extend_from_slice(bytes));
        body.into()
    }

    #[test]
    fn a_record_reads_as_it_was_written_and_any_part_of_one_is_refused() {
        let (record, body) = (record(), body(&record()));
        assert_eq!(Record::decode(&body).unwrap(), record);
        for len in 0..body.len() {
            assert!(Record::decode(&body.slice(..len)).is_err(), "{len} of {}", body.len());
        }
    }

    #[test]
    fn a_header_with_any_bit_flipped_is_none() {
        let header = RecordHeader {
            session: Uuid::from_u128(5),
            number: 3,
            generation: Generation(2),
            body_bytes: 100,
            body_sum: 7,
        };
        let bytes = header.encode();
        assert_eq!(RecordHeader::decode(&bytes), Some(header));
        for bit in 0..bytes.len() * 8 {
            let mut flipped = bytes;
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(RecordHeader::decode(&flipped), None, "bit {bit}");
        }
    }
}
