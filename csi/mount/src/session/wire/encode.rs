//! Answers as the kernel reads them (fuse.h, ABI 7.31 to 7.45). Pure, but for sending them.

use std::time::Duration;

use bytes::Bytes;
use nix::errno::Errno;
use volume::attr::{Attr, Entry};
use volume::clock::Timestamp;
use volume::row::FileKind;

use super::Carrier;
use crate::fuse::reply::{
    Attributes, Content, Created, Found, Listing, Offset, Opened, Refuse, Reply, Space, Written, Xattr,
};
use crate::fuse::stat::{PREFERRED_BLOCK_BYTES, STATFS_BLOCK_BYTES, statfs_blocks};

/// STATX_BASIC_STATS and STATX_BTIME: what an answer to statx has.
const STATX_MASK: u32 = 0x7ff | 0x800;

/// Length of an entry with attributes, and of the fields of a listed name.
const ENTRY_BYTES: usize = 128;
const NAME_FIELDS_BYTES: usize = 24;

/// Fields, one after another.
#[derive(Debug, Default)]
struct Fields(Vec<u8>);

impl Fields {
    fn with_room(bytes: usize) -> Self {
        Self(Vec::with_capacity(bytes))
    }

    fn u16(mut self, value: u16) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u32(mut self, value: u32) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn u64(mut self, value: u64) -> Self {
        self.0.extend_from_slice(&value.to_ne_bytes());
        self
    }

    fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }

    fn attr(self, attr: &Attr) -> Self {
        self.u64(attr.ino.0)
            .u64(attr.size)
            .u64(attr.blocks_512)
            .u64(attr.atime.seconds.cast_unsigned())
            .u64(attr.mtime.seconds.cast_unsigned())
            .u64(attr.ctime.seconds.cast_unsigned())
            .u32(attr.atime.nanos)
            .u32(attr.mtime.nanos)
            .u32(attr.ctime.nanos)
            .u32(mode_of(attr))
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u32(attr.rdev)
            .u32(PREFERRED_BLOCK_BYTES)
            .u32(0)
    }

    /// An entry; generation 0, because inode numbers are never reused.
    fn found(self, Found { attr, valid }: &Found) -> Self {
        let (seconds, nanos) = (valid.as_secs(), valid.subsec_nanos());
        let ino = attr.as_ref().map_or(0, |attr| attr.ino.0);
        let entry = self.u64(ino).u64(0).u64(seconds).u64(seconds).u32(nanos).u32(nanos);
        match attr {
            Some(attr) => entry.attr(attr),
            None => entry.zeros(88),
        }
    }

    /// The handle of every open file is 0.
    fn opened(self, flags: u32) -> Self {
        self.u64(0).u32(flags).u32(0)
    }

    fn time(self, time: Timestamp) -> Self {
        self.u64(time.seconds.cast_unsigned()).u32(time.nanos).u32(0)
    }

    fn statx(self, attr: &Attr) -> Self {
        let (major, minor) = device_numbers(attr.rdev);
        self.u32(STATX_MASK)
            .u32(PREFERRED_BLOCK_BYTES)
            .u64(0)
            .u32(attr.nlink)
            .u32(attr.uid)
            .u32(attr.gid)
            .u16(mode_of(attr) as u16)
            .u16(0)
            .u64(attr.ino.0)
            .u64(attr.size)
            .u64(attr.blocks_512)
            .u64(0)
            .time(attr.atime)
            .time(attr.btime)
            .time(attr.ctime)
            .time(attr.mtime)
            .u32(major)
            .u32(minor)
            .zeros(8 + 14 * 8)
    }
}

/// The type bits of a mode, as in inode(7).
fn type_bits(kind: FileKind) -> u32 {
    match kind {
        FileKind::Fifo => 0o010_000,
        FileKind::CharDevice => 0o020_000,
        FileKind::Directory => 0o040_000,
        FileKind::BlockDevice => 0o060_000,
        FileKind::Regular => 0o100_000,
        FileKind::Symlink => 0o120_000,
        FileKind::Socket => 0o140_000,
    }
}

fn mode_of(attr: &Attr) -> u32 {
    type_bits(attr.kind) | u32::from(attr.mode)
}

/// Major and minor number in what the kernel packs into 32 bits.
fn device_numbers(rdev: u32) -> (u32, u32) {
    ((rdev & 0xf_ff00) >> 8, (rdev & 0xff) | ((rdev >> 12) & 0xf_ff00))
}

impl<C: Carrier> Refuse for C {
    fn refuse(self, errno: Errno) {
        self.send_error(errno);
    }
}

impl<C: Carrier> Reply<()> for C {
    fn give(self, (): ()) {
        self.send_fields(Vec::new());
    }
}

impl<C: Carrier> Reply<Found> for C {
    fn give(self, found: Found) {
        self.send_fields(Fields::with_room(ENTRY_BYTES).found(&found).0);
    }
}

impl<C: Carrier> Reply<Attributes> for C {
    fn give(self, Attributes { attr, valid }: Attributes) {
        let fields = Fields::with_room(104).u64(valid.as_secs()).u32(valid.subsec_nanos());
        self.send_fields(fields.u32(0).attr(&attr).0);
    }
}

impl<C: Carrier> Reply<Opened> for C {
    fn give(self, Opened(flags): Opened) {
        self.send_fields(Fields::with_room(16).opened(flags).0);
    }
}

impl<C: Carrier> Reply<Created> for C {
    fn give(self, Created(found, Opened(flags)): Created) {
        self.send_fields(Fields::with_room(ENTRY_BYTES + 16).found(&found).opened(flags).0);
    }
}

impl<C: Carrier> Reply<Content> for C {
    fn give(self, Content(parts): Content) {
        self.send_parts(parts);
    }
}

impl<C: Carrier> Reply<Written> for C {
    fn give(self, Written(len_bytes): Written) {
        self.send_fields(Fields::with_room(8).u32(len_bytes).u32(0).0);
    }
}

impl<C: Carrier> Reply<Offset> for C {
    fn give(self, Offset(offset): Offset) {
        self.send_fields(Fields::with_room(8).u64(offset.cast_unsigned()).0);
    }
}

impl<C: Carrier> Reply<Xattr> for C {
    fn give(self, xattr: Xattr) {
        match xattr {
            Xattr::Length(len_bytes) => self.send_fields(Fields::with_room(8).u32(len_bytes).u32(0).0),
            Xattr::Value(value) => self.send_parts(vec![value]),
        }
    }
}

impl<C: Carrier> Reply<Space> for C {
    fn give(self, Space(space): Space) {
        let (total, free) = statfs_blocks(&space);
        let fields = Fields::with_room(80)
            .u64(total)
            .u64(free)
            .u64(free)
            .u64(space.inodes.saturating_add(space.free_inodes))
            .u64(space.free_inodes)
            .u32(STATFS_BLOCK_BYTES)
            .u32(volume::limits::NAME_BYTES_MAX as u32)
            .u32(STATFS_BLOCK_BYTES);
        self.send_fields(fields.zeros(4 + 6 * 4).0);
    }
}

/// Answers statx, which has the time of creation beside the attributes.
#[derive(Debug)]
pub struct Statx<C>(pub C);

impl<C: Carrier> Refuse for Statx<C> {
    fn refuse(self, errno: Errno) {
        self.0.send_error(errno);
    }
}

impl<C: Carrier> Reply<Attributes> for Statx<C> {
    fn give(self, Attributes { attr, valid }: Attributes) {
        let fields = Fields::with_room(288).u64(valid.as_secs()).u32(valid.subsec_nanos());
        self.0.send_fields(fields.u32(0).zeros(16).statx(&attr).0);
    }
}

/// Answers the copy_file_range of ABI 7.45, which counts in 64 bits.
#[derive(Debug)]
pub struct WideWritten<C>(pub C);

impl<C: Carrier> Refuse for WideWritten<C> {
    fn refuse(self, errno: Errno) {
        self.0.send_error(errno);
    }
}

impl<C: Carrier> Reply<Written> for WideWritten<C> {
    fn give(self, Written(len_bytes): Written) {
        self.0.send_fields(Fields::with_room(8).u64(u64::from(len_bytes)).0);
    }
}

/// Answers a listing, with as much as was asked for.
#[derive(Debug)]
pub struct Names<C> {
    reply: C,
    fields: Fields,
    bytes_max: usize,
    with_attributes: bool,
}

impl<C> Names<C> {
    /// At most `bytes_max`.
    pub fn new(reply: C, bytes_max: u32, with_attributes: bool) -> Self {
        Self {
            reply,
            fields: Fields::default(),
            bytes_max: bytes_max as usize,
            with_attributes,
        }
    }
}

impl<C: Carrier> Refuse for Names<C> {
    fn refuse(self, errno: Errno) {
        self.reply.send_error(errno);
    }
}

impl<C: Carrier> Reply<()> for Names<C> {
    fn give(self, (): ()) {
        self.reply.send_parts(vec![Bytes::from(self.fields.0)]);
    }
}

impl<C: Carrier> Listing for Names<C> {
    fn add(&mut self, entry: &Entry, valid: Duration) -> bool {
        let name_bytes = entry.name.len();
        let attributes = if self.with_attributes { ENTRY_BYTES } else { 0 };
        let padded = (NAME_FIELDS_BYTES + name_bytes).next_multiple_of(8);
        if self.fields.0.len() + attributes + padded > self.bytes_max {
            return true;
        }
        let mut fields = std::mem::take(&mut self.fields);
        if self.with_attributes {
            let attr = entry.attr.clone();
            fields = fields.found(&Found { attr, valid });
        }
        fields = fields
            .u64(entry.ino.0)
            .u64(entry.cookie.0)
            .u32(u32::try_from(name_bytes).expect("a name has 255 bytes at most"))
            .u32(type_bits(entry.kind) >> 12);
        fields.0.extend_from_slice(&entry.name);
        self.fields = fields.zeros(padded - NAME_FIELDS_BYTES - name_bytes);
        false
    }
}

#[cfg(test)]
mod tests {
    use volume::ids::InodeNo;

    use super::*;

    fn attr() -> Attr {
        let time = |seconds| Timestamp { seconds, nanos: 9 };
        Attr {
            ino: InodeNo(5),
            kind: FileKind::Directory,
            mode: 0o755,
            nlink: 2,
            uid: 3,
            gid: 4,
            rdev: 0,
            size: 6,
            blocks_512: 8,
            atime: time(-1),
            mtime: time(2),
            ctime: time(3),
            btime: time(4),
        }
    }

    #[test]
    fn answers_are_as_long_as_fuse_h_has_them() {
        let found = Found {
            attr: Some(attr()),
            valid: Duration::new(1, 2),
        };
        let entry = Fields::default().found(&found).0;
        assert_eq!(entry.len(), ENTRY_BYTES);
        assert_eq!(entry[..8], 5u64.to_ne_bytes());
        assert_eq!(entry[40 + 60..40 + 64], 0o040_755u32.to_ne_bytes());
        let none = Found { attr: None, ..found };
        assert_eq!(Fields::default().found(&none).0.len(), ENTRY_BYTES);
        let statx = Fields::default().statx(&attr()).0;
        assert_eq!(statx.len(), 256);
        assert_eq!(statx[64..72], (-1i64).to_ne_bytes(), "atime");
        assert_eq!(statx[80..88], 4i64.to_ne_bytes(), "btime");
    }

    #[test]
    fn numbers_of_devices_are_unpacked_as_linux_packs_them() {
        assert_eq!(device_numbers(0x0801), (8, 1));
        // makedev(259, 70,000) in the kernel's own packing.
        let packed = (70_000 & 0xff) | (259 << 8) | ((70_000 & !0xff) << 12);
        assert_eq!(device_numbers(packed), (259, 70_000));
    }
}
