//! The bytes of keys and rows, in the tree and in the journal.
//!
//! Invariants: encoded keys compare as `Key` does; every value has one encoding; decoding is total (any bytes give a
//! value or an error). Decoded names and contents are copies, so that a row in RAM never keeps a whole journal object.
//! Callers: `tree/`, `format/journal.rs`. Absent: which row belongs under which key is checked by `decode_pair` alone.
//!
//! Versions: the first byte of a key is its kind, of which a new layout would be a new number; the first byte of a row
//! is `ROW_VERSION`.

use bytes::Bytes;

use super::{
    Applied, Counters, DirentRow, ExtentRow, FRAME_BYTES, FRAMES_PER_RUN_MAX, FileKind, InodeRow, Key, ObjectStats,
    RESERVED_RANGES_MAX, RUN_BYTES_MAX, Row,
};
use crate::clock::Timestamp;
use crate::ids::{DirCookie, Epoch, InodeNo, JournalSeq, ObjectId};
use crate::ranges::RangeSet;
use crate::wire::{Reader, WireError, put_signed, put_varint};

/// Version of all rows written by this build; another one is refused.
pub const ROW_VERSION: u8 = 1;

/// Longest encoded key in bytes: a directory entry with a name of 255 bytes, and room.
pub const KEY_BYTES_MAX: usize = 512;

/// Longest encoded row in bytes: an xattr of 64 KiB, and room. Longer ones are refused at reading.
pub const ROW_BYTES_MAX: usize = 80 * 1024;

/// Longest name of a directory entry or an xattr in bytes.
const NAME_BYTES_MAX: usize = 255;

const KEY_COUNTERS: u8 = 0x01;
const KEY_APPLIED: u8 = 0x02;
const KEY_INODE: u8 = 0x10;
const KEY_DIRENT: u8 = 0x20;
const KEY_EXTENT: u8 = 0x30;
const KEY_XATTR: u8 = 0x40;
const KEY_STATS: u8 = 0x50;
const KEY_ORPHAN: u8 = 0x60;

const OBJECT_JOURNAL: u8 = 1;
const OBJECT_SEGMENT: u8 = 2;

const INODE_HAS_XATTRS: u8 = 1;
const INODE_INLINE: u8 = 2;
const INODE_RESERVED: u8 = 4;

/// The bytes of a key.
pub fn encode_key(key: &Key) -> Vec<u8> {
    let mut out = Vec::with_capacity(32);
    put_key(&mut out, key);
    out
}

/// Appends the bytes of a key.
pub fn put_key(out: &mut Vec<u8>, key: &Key) {
    match key {
        Key::Counters => out.push(KEY_COUNTERS),
        Key::Applied => out.push(KEY_APPLIED),
        Key::Inode(ino) => put_tagged(out, KEY_INODE, ino.0),
        Key::Dirent { dir, cookie, name } => {
            put_tagged(out, KEY_DIRENT, dir.0);
            out.extend_from_slice(&cookie.0.to_be_bytes());
            out.extend_from_slice(name);
        }
        Key::Extent { ino, end } => {
            put_tagged(out, KEY_EXTENT, ino.0);
            out.extend_from_slice(&end.to_be_bytes());
        }
        Key::Xattr { ino, name } => {
            put_tagged(out, KEY_XATTR, ino.0);
            out.extend_from_slice(name);
        }
        Key::ObjectStats(object) => {
            let (kind, epoch, number) = parts_of(*object);
            out.extend_from_slice(&[KEY_STATS, kind]);
            out.extend_from_slice(&epoch.to_be_bytes());
            out.extend_from_slice(&number.to_be_bytes());
        }
        Key::Orphan(ino) => put_tagged(out, KEY_ORPHAN, ino.0),
    }
}

fn put_tagged(out: &mut Vec<u8>, kind: u8, number: u64) {
    out.push(kind);
    out.extend_from_slice(&number.to_be_bytes());
}

/// The key of these bytes.
///
/// # Errors
/// Any `WireError`, where the bytes are not those of a key.
pub fn decode_key(bytes: &[u8]) -> Result<Key, WireError> {
    let mut reader = Reader::new(bytes);
    let key = match reader.byte("key kind")? {
        KEY_COUNTERS => Key::Counters,
        KEY_APPLIED => Key::Applied,
        KEY_INODE => Key::Inode(InodeNo(reader.u64_be("inode number")?)),
        KEY_DIRENT => Key::Dirent {
            dir: InodeNo(reader.u64_be("directory")?),
            cookie: DirCookie(reader.u64_be("cookie")?),
            name: name(&mut reader)?,
        },
        KEY_EXTENT => Key::Extent {
            ino: InodeNo(reader.u64_be("inode number")?),
            end: reader.u64_be("end of extent")?,
        },
        KEY_XATTR => Key::Xattr {
            ino: InodeNo(reader.u64_be("inode number")?),
            name: name(&mut reader)?,
        },
        KEY_STATS => {
            let kind = reader.byte("object kind")?;
            Key::ObjectStats(object_of(
                kind,
                reader.u64_be("epoch")?,
                reader.u64_be("object number")?,
            )?)
        }
        KEY_ORPHAN => Key::Orphan(InodeNo(reader.u64_be("inode number")?)),
        other => return Err(value("key kind", u64::from(other))),
    };
    reader.end()?;
    Ok(key)
}

/// Empty names are no entries, but bounds of scans.
fn name(reader: &mut Reader<'_>) -> Result<Bytes, WireError> {
    match reader.rest() {
        name if name.len() <= NAME_BYTES_MAX => Ok(Bytes::copy_from_slice(name)),
        long => Err(value("length of name", long.len() as u64)),
    }
}

fn value(field: &'static str, got: u64) -> WireError {
    WireError::Value { field, got }
}

fn parts_of(object: ObjectId) -> (u8, u64, u64) {
    match object {
        ObjectId::Journal(epoch, seq) => (OBJECT_JOURNAL, epoch.0, seq.0),
        ObjectId::Segment(epoch, number) => (OBJECT_SEGMENT, epoch.0, number),
    }
}

fn object_of(kind: u8, epoch: u64, number: u64) -> Result<ObjectId, WireError> {
    match kind {
        OBJECT_JOURNAL => Ok(ObjectId::Journal(Epoch(epoch), JournalSeq(number))),
        OBJECT_SEGMENT => Ok(ObjectId::Segment(Epoch(epoch), number)),
        other => Err(value("object kind", u64::from(other))),
    }
}

/// The bytes of a row.
///
/// Panics on an extent row whose frames cannot hold it: such a row would be refused at every later reading.
pub fn encode_row(row: &Row) -> Vec<u8> {
    let mut out = Vec::with_capacity(64);
    put_row(&mut out, row);
    out
}

/// Appends the bytes of a row.
pub fn put_row(out: &mut Vec<u8>, row: &Row) {
    out.push(ROW_VERSION);
    out.push(kind_of(row));
    match row {
        Row::Counters(counters) => {
            put_varint(out, counters.next_ino);
            put_varint(out, counters.used_bytes);
            put_varint(out, counters.inodes);
        }
        Row::Applied(applied) => {
            put_varint(out, applied.epoch.0);
            put_varint(out, applied.seq.0);
        }
        Row::Inode(inode) => put_inode(out, inode),
        Row::Dirent(dirent) => {
            put_varint(out, dirent.ino.0);
            out.push(dirent.kind as u8);
        }
        Row::Extent(extent) => put_extent(out, extent),
        Row::Xattr(value) => out.extend_from_slice(value),
        Row::ObjectStats(stats) => {
            put_signed(out, stats.live_bytes);
            put_signed(out, stats.total_bytes);
        }
        Row::Orphan => {}
    }
}

/// The kind byte of a row is that of the key that it belongs under.
fn kind_of(row: &Row) -> u8 {
    match row {
        Row::Counters(_) => KEY_COUNTERS,
        Row::Applied(_) => KEY_APPLIED,
        Row::Inode(_) => KEY_INODE,
        Row::Dirent(_) => KEY_DIRENT,
        Row::Extent(_) => KEY_EXTENT,
        Row::Xattr(_) => KEY_XATTR,
        Row::ObjectStats(_) => KEY_STATS,
        Row::Orphan => KEY_ORPHAN,
    }
}

/// The row of these bytes.
///
/// # Errors
/// Any `WireError`, where the bytes are not those of a row of this version.
pub fn decode_row(bytes: &[u8]) -> Result<Row, WireError> {
    let mut reader = Reader::new(bytes);
    match reader.byte("row version")? {
        ROW_VERSION => {}
        got => {
            return Err(WireError::Version {
                what: "row",
                got,
                want: ROW_VERSION,
            });
        }
    }
    let row = match reader.byte("row kind")? {
        KEY_COUNTERS => Row::Counters(Counters {
            next_ino: reader.varint("next inode number")?,
            used_bytes: reader.varint("used bytes")?,
            inodes: reader.varint("number of inodes")?,
        }),
        KEY_APPLIED => Row::Applied(Applied {
            epoch: Epoch(reader.varint("epoch")?),
            seq: JournalSeq(reader.varint("journal position")?),
        }),
        KEY_INODE => Row::Inode(inode(&mut reader)?),
        KEY_DIRENT => Row::Dirent(DirentRow {
            ino: InodeNo(reader.varint("inode number")?),
            kind: file_kind(&mut reader)?,
        }),
        KEY_EXTENT => Row::Extent(extent(&mut reader)?),
        KEY_XATTR => Row::Xattr(Bytes::copy_from_slice(reader.rest())),
        KEY_STATS => Row::ObjectStats(ObjectStats {
            live_bytes: reader.signed("live bytes")?,
            total_bytes: reader.signed("total bytes")?,
        }),
        KEY_ORPHAN => Row::Orphan,
        other => return Err(value("row kind", u64::from(other))),
    };
    reader.end()?;
    Ok(row)
}

/// A key and its row, and that they belong together.
///
/// # Errors
/// Any `WireError`; `Value` where the row is not of the key's kind.
pub fn decode_pair(key: &[u8], row: &[u8]) -> Result<(Key, Row), WireError> {
    let (decoded_key, decoded_row) = (decode_key(key)?, decode_row(row)?);
    let kind = kind_of(&decoded_row);
    if key.first() != Some(&kind) {
        return Err(value("kind of the row under this key", u64::from(kind)));
    }
    Ok((decoded_key, decoded_row))
}

fn put_time(out: &mut Vec<u8>, time: Timestamp) {
    put_signed(out, time.seconds);
    put_varint(out, u64::from(time.nanos));
}

fn time(reader: &mut Reader<'_>) -> Result<Timestamp, WireError> {
    let (seconds, nanos) = (reader.signed("seconds")?, reader.varint_u32("nanoseconds")?);
    if nanos >= 1_000_000_000 {
        return Err(value("nanoseconds", u64::from(nanos)));
    }
    Ok(Timestamp { seconds, nanos })
}

fn file_kind(reader: &mut Reader<'_>) -> Result<FileKind, WireError> {
    Ok(match reader.byte("file kind")? {
        1 => FileKind::Regular,
        2 => FileKind::Directory,
        3 => FileKind::Symlink,
        4 => FileKind::Fifo,
        5 => FileKind::Socket,
        6 => FileKind::CharDevice,
        7 => FileKind::BlockDevice,
        other => return Err(value("file kind", u64::from(other))),
    })
}

fn put_inode(out: &mut Vec<u8>, inode: &InodeRow) {
    let mut flags = 0;
    if inode.has_xattrs {
        flags |= INODE_HAS_XATTRS;
    }
    if inode.inline.is_some() {
        flags |= INODE_INLINE;
    }
    if !inode.reserved.is_empty() {
        flags |= INODE_RESERVED;
    }
    out.extend_from_slice(&[inode.kind as u8, flags]);
    out.extend_from_slice(&inode.mode.to_le_bytes());
    for number in [inode.uid, inode.gid, inode.rdev, inode.nlink] {
        put_varint(out, u64::from(number));
    }
    for number in [inode.size, inode.allocated, inode.parent.0, inode.entries] {
        put_varint(out, number);
    }
    for time in [inode.atime, inode.mtime, inode.ctime, inode.btime] {
        put_time(out, time);
    }
    if !inode.reserved.is_empty() {
        put_reserved(out, &inode.reserved);
    }
    if let Some(inline) = &inode.inline {
        out.extend_from_slice(inline);
    }
}

/// Each range by its distance from the one before and its length.
fn put_reserved(out: &mut Vec<u8>, reserved: &RangeSet) {
    put_varint(out, reserved.len() as u64);
    let mut last = 0;
    for (start, end) in reserved.iter() {
        put_varint(out, start - last);
        put_varint(out, end - start);
        last = end;
    }
}

fn reserved(reader: &mut Reader<'_>) -> Result<RangeSet, WireError> {
    let count = reader.varint("number of reserved ranges")?;
    if count == 0 || count > RESERVED_RANGES_MAX as u64 {
        return Err(value("number of reserved ranges", count));
    }
    let mut ranges = RangeSet::default();
    let mut last = 0u64;
    for index in 0..count {
        let (distance, len) = (
            reader.varint("reserved range")?,
            reader.varint("length of reserved range")?,
        );
        let start = last.checked_add(distance);
        let end = start.and_then(|start| start.checked_add(len));
        match (start, end) {
            (Some(start), Some(end)) if len > 0 && (distance > 0 || index == 0) => ranges.insert(start, end),
            _ => return Err(value("length of reserved range", len)),
        }
        last += distance + len;
    }
    Ok(ranges)
}

fn inode(reader: &mut Reader<'_>) -> Result<InodeRow, WireError> {
    let kind = file_kind(reader)?;
    let flags = reader.byte("inode flags")?;
    let (has_inline, has_reserved) = (flags & INODE_INLINE != 0, flags & INODE_RESERVED != 0);
    if flags & !(INODE_HAS_XATTRS | INODE_INLINE | INODE_RESERVED) != 0 || has_inline && has_reserved {
        return Err(value("inode flags", u64::from(flags)));
    }
    Ok(InodeRow {
        kind,
        mode: u16::from_le_bytes(reader.array("mode")?),
        uid: reader.varint_u32("uid")?,
        gid: reader.varint_u32("gid")?,
        rdev: reader.varint_u32("device number")?,
        nlink: reader.varint_u32("nlink")?,
        size: reader.varint("size")?,
        allocated: reader.varint("allocated bytes")?,
        parent: InodeNo(reader.varint("parent")?),
        entries: reader.varint("number of entries")?,
        atime: time(reader)?,
        mtime: time(reader)?,
        ctime: time(reader)?,
        btime: time(reader)?,
        has_xattrs: flags & INODE_HAS_XATTRS != 0,
        reserved: if has_reserved {
            reserved(reader)?
        } else {
            RangeSet::default()
        },
        inline: has_inline.then(|| Bytes::copy_from_slice(reader.rest())),
    })
}

fn put_extent(out: &mut Vec<u8>, extent: &ExtentRow) {
    assert!(fits(extent), "an extent row does not fit its frames: {extent:?}");
    let (kind, epoch, number) = parts_of(extent.object);
    put_varint(out, extent.len);
    out.push(kind);
    for number in [epoch, number, extent.object_offset, extent.skip] {
        put_varint(out, number);
    }
    put_varint(out, extent.origin_ino.0);
    put_varint(out, extent.origin_offset);
    // Equal neighbours as (count, length): without compression that is all frames but the last.
    for equal in extent.frame_stored_lens.chunk_by(|a, b| a == b) {
        put_varint(out, equal.len() as u64);
        put_varint(out, u64::from(equal[0]));
    }
}

fn extent(reader: &mut Reader<'_>) -> Result<ExtentRow, WireError> {
    let len = reader.varint("length of run")?;
    let kind = reader.byte("object kind")?;
    let object = object_of(kind, reader.varint("epoch")?, reader.varint("object number")?)?;
    let mut extent = ExtentRow {
        len,
        object,
        object_offset: reader.varint("offset in the object")?,
        skip: reader.varint("bytes to skip")?,
        origin_ino: InodeNo(reader.varint("origin inode")?),
        origin_offset: reader.varint("origin offset")?,
        frame_stored_lens: Vec::new(),
    };
    let mut last = None;
    while reader.left() > 0 {
        let count = reader.varint("number of equal frames")?;
        let stored = reader.varint_u32("stored length of frame")?;
        let frames = extent.frame_stored_lens.len();
        let count_max = (FRAMES_PER_RUN_MAX - frames) as u64;
        if count == 0 || count > count_max || last == Some(stored) {
            return Err(value("number of equal frames", count));
        }
        extent.frame_stored_lens.resize(frames + count as usize, stored);
        last = Some(stored);
    }
    match fits(&extent) {
        true => Ok(extent),
        false => Err(value("length of run", extent.len)),
    }
}

/// What every later computation on an extent row relies on: no sum below overflows, and the frames cover the run.
fn fits(extent: &ExtentRow) -> bool {
    let frames = extent.frame_stored_lens.len();
    let stored: u64 = extent.frame_stored_lens.iter().map(|len| u64::from(*len)).sum();
    (1..=RUN_BYTES_MAX).contains(&extent.len)
        && frames <= FRAMES_PER_RUN_MAX
        && extent.skip < u64::from(FRAME_BYTES)
        && extent.skip + extent.len <= frames as u64 * u64::from(FRAME_BYTES)
        && extent.object_offset.checked_add(stored).is_some()
        && extent.origin_offset.checked_add(extent.skip + extent.len).is_some()
}

#[cfg(test)]
pub(crate) mod tests;
