//! What the kernel asks, as Linux lays it out (fuse.h, ABI 7.31 to 7.45): a header, the fields of the operation, then names and content.
//! A ring has each of the three in a place of its own; from /dev/fuse they come one after another.
//!
//! Nothing that the kernel says is believed without a look: what is too short, without its end, or of values that cannot be, is
//! refused by the name of the operation. Pure. Absent: what it means, and what gets no answer (`forgets`).

use bytes::Bytes;
use volume::attr::{SetAttr, SetTime};
use volume::clock::Timestamp;
use volume::ids::InodeNo;

use crate::fuse::reply::Request;
use crate::fuse::{Making, OpenFlags};

/// A request.
#[derive(Debug)]
pub struct Asked<'a> {
    /// The kernel's number of it.
    pub unique: u64,
    /// Who asks.
    pub request: Request,
    /// Of what.
    pub ino: InodeNo,
    opcode: u32,
    fields: &'a [u8],
    content: &'a [u8],
    /// What `content` lies in, where that may be kept.
    whole: Option<&'a Bytes>,
}

/// What is asked. Names are without the zero that ends them.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(
    missing_docs,
    reason = "the variants and their fields are those of fuse.h, which documents them"
)]
pub enum Operation<'a> {
    Lookup {
        name: &'a [u8],
    },
    Getattr,
    Statx,
    Setattr {
        change: SetAttr,
        clears_suid: bool,
    },
    Readlink,
    Symlink {
        name: &'a [u8],
        target: &'a [u8],
    },
    Mknod {
        name: &'a [u8],
        making: Making,
        rdev: u32,
    },
    Mkdir {
        name: &'a [u8],
        making: Making,
    },
    Unlink {
        name: &'a [u8],
    },
    Rmdir {
        name: &'a [u8],
    },
    Rename {
        name: &'a [u8],
        new_dir: InodeNo,
        new_name: &'a [u8],
        flags: u32,
    },
    Link {
        of: InodeNo,
        name: &'a [u8],
    },
    Open {
        flags: OpenFlags,
        clears_suid: bool,
    },
    Read {
        offset: u64,
        size: u32,
        /// By O_DIRECT, not for the kernel's memory.
        direct: bool,
    },
    Write {
        offset: u64,
        data: &'a [u8],
        clears_suid: bool,
        /// By O_DIRECT, not from the kernel's memory.
        direct: bool,
    },
    Statfs,
    Release {
        flags: OpenFlags,
    },
    Fsync,
    Setxattr {
        name: &'a [u8],
        value: &'a [u8],
        flags: i32,
        clears_sgid: bool,
    },
    Getxattr {
        name: &'a [u8],
        size: u32,
    },
    Listxattr {
        size: u32,
    },
    Removexattr {
        name: &'a [u8],
    },
    Flush,
    Opendir,
    Readdir {
        offset: u64,
        size: u32,
    },
    Readdirplus {
        offset: u64,
        size: u32,
    },
    Create {
        name: &'a [u8],
        making: Making,
        flags: OpenFlags,
    },
    Tmpfile {
        making: Making,
        flags: OpenFlags,
    },
    Fallocate {
        mode: i32,
        offset: u64,
        len: u64,
    },
    Lseek {
        offset: i64,
        whence: i32,
    },
    CopyFileRange {
        range: Copied,
        wide: bool,
    },
}

/// What copy_file_range copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Copied {
    /// Where to read.
    pub from_offset: u64,
    /// Which file to write.
    pub to: InodeNo,
    /// Where.
    pub to_offset: u64,
    /// How many bytes.
    pub len_bytes: u64,
}

/// Why a request is not served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Unserved {
    /// Nobody needs it: the kernel goes on without.
    #[error("operation {0} is not served")]
    Unknown(u32),
    /// It is not as fuse.h lays it out.
    #[error("a request of operation {0} is malformed")]
    Malformed(u32),
}

/// A number of 4 bytes.
///
/// # Panics
/// If it does not lie within: callers know their lengths.
pub(in crate::session) fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_ne_bytes(bytes[at..at + 4].try_into().expect("four bytes"))
}

/// A number of 8 bytes.
///
/// # Panics
/// As `u32_at`.
pub(in crate::session) fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_ne_bytes(bytes[at..at + 8].try_into().expect("eight bytes"))
}

/// Length of a request's header, and of the place where the fields of its operation are.
pub(in crate::session) const HEADER_BYTES: usize = 40;
pub(in crate::session) const FIELDS_BYTES: usize = 128;

/// How long the fields of an operation are, as we have agreed with the kernel; operations that are not served have none.
fn fields_bytes(opcode: u32, rest: &[u8]) -> usize {
    match opcode {
        // With FUSE_SETXATTR_EXT, on which a predecessor may not have agreed; else a name follows at once, which begins with a letter.
        21 if rest.get(8).is_some_and(|first| *first < b' ') => 16,
        9 | 12 | 13 | 14 | 21..=23 | 27 => 8,
        3 | 8 | 20 | 30 | 35 | 45 | 51 => 16,
        18 | 25 | 46 | 52 => 24,
        43 => 32,
        15 | 16 | 28 | 44 => 40,
        47 | 53 => 56,
        4 => 88,
        _ => 0,
    }
}

/// Bits of the flags of setattr: which field is there.
mod valid {
    pub const MODE: u32 = 1;
    pub const UID: u32 = 1 << 1;
    pub const GID: u32 = 1 << 2;
    pub const SIZE: u32 = 1 << 3;
    pub const ATIME: u32 = 1 << 4;
    pub const MTIME: u32 = 1 << 5;
    pub const ATIME_NOW: u32 = 1 << 7;
    pub const MTIME_NOW: u32 = 1 << 8;
    pub const CTIME: u32 = 1 << 10;
    pub const KILL_SUIDGID: u32 = 1 << 11;
}

/// FUSE_FORGET, FUSE_BATCH_FORGET, FUSE_DESTROY.
const FORGET: u32 = 2;
const BATCH_FORGET: u32 = 42;
const DESTROY: u32 = 38;

/// FUSE_WRITE_CACHE: from the kernel's memory, by whoever has the file open.
const WRITE_CACHE: u32 = 1;
/// FUSE_WRITE_KILL_SUIDGID, FUSE_OPEN_KILL_SUIDGID and FUSE_SETXATTR_ACL_KILL_SGID.
const WRITE_KILL_SUIDGID: u32 = 1 << 2;
const OPEN_KILL_SUIDGID: u32 = 1;
const SETXATTR_ACL_KILL_SGID: u32 = 1;

/// One second in nanoseconds: no field has as many.
const SECOND_NANOS: u32 = 1_000_000_000;

impl<'a> Asked<'a> {
    /// A request as it lies in a ring.
    ///
    /// # Panics
    /// If header and fields are not as long as the ring has them.
    pub fn new(header: &'a [u8], fields: &'a [u8], content: &'a [u8]) -> Self {
        assert!(
            header.len() == HEADER_BYTES && fields.len() == FIELDS_BYTES,
            "places of a ring"
        );
        let unique = u64_at(header, 8);
        Self {
            unique,
            request: Request {
                unique,
                uid: u32_at(header, 24),
                gid: u32_at(header, 28),
            },
            ino: InodeNo(u64_at(header, 16)),
            opcode: u32_at(header, 4),
            fields,
            content,
            whole: None,
        }
    }

    /// A request as it was read from /dev/fuse; `fields` is room for those of its operation. `None` if it is shorter than it must be.
    pub fn flat(message: &'a [u8], whole: Option<&'a Bytes>, fields: &'a mut [u8; FIELDS_BYTES]) -> Option<Self> {
        let (header, rest) = message.split_at_checked(HEADER_BYTES)?;
        let (told, content) = rest.split_at_checked(fields_bytes(u32_at(header, 4), rest))?;
        fields[..told.len()].copy_from_slice(told);
        fields[told.len()..].fill(0);
        Some(Self {
            whole,
            ..Self::new(header, fields, content)
        })
    }

    /// A part of the content, for longer than the request is there: a copy only where it must be.
    pub fn keep(&self, part: &[u8]) -> Bytes {
        match self.whole {
            Some(whole) => whole.slice_ref(part),
            None => Bytes::copy_from_slice(part),
        }
    }

    /// What it asks.
    ///
    /// # Errors
    /// `Unserved`.
    pub fn operation(&self) -> Result<Operation<'a>, Unserved> {
        match self.opcode {
            1 | 5 | 6 | 8..=13 | 35 | 45 | 51 => self.of_names(),
            3 | 4 | 17 | 21..=24 | 52 => self.of_attributes(),
            14..=16 | 18 | 20 | 25 | 27..=30 | 43 | 44 | 46 | 47 | 53 => self.of_content(),
            other => Err(Unserved::Unknown(other)),
        }
        .and_then(|operation| operation.ok_or(Unserved::Malformed(self.opcode)))
    }

    fn of_names(&self) -> Result<Option<Operation<'a>>, Unserved> {
        Ok(match self.opcode {
            1 => self.name().map(|name| Operation::Lookup { name }),
            5 => Some(Operation::Readlink),
            6 => self
                .two_names()
                .map(|(name, target)| Operation::Symlink { name, target }),
            8 => self.name().map(|name| Operation::Mknod {
                name,
                making: self.making(0, 8),
                rdev: self.u32(4),
            }),
            9 => self.name().map(|name| Operation::Mkdir {
                name,
                making: self.making(0, 4),
            }),
            10 => self.name().map(|name| Operation::Unlink { name }),
            11 => self.name().map(|name| Operation::Rmdir { name }),
            12 => self.rename(0),
            45 => self.rename(self.u32(8)),
            13 => self.name().map(|name| Operation::Link {
                of: InodeNo(self.u64(0)),
                name,
            }),
            35 => self.name().map(|name| Operation::Create {
                name,
                making: self.making(4, 8),
                flags: self.open_flags(0),
            }),
            // The name that comes with it is nobody's.
            51 => Some(Operation::Tmpfile {
                making: self.making(4, 8),
                flags: self.open_flags(0),
            }),
            other => return Err(Unserved::Unknown(other)),
        })
    }

    fn of_attributes(&self) -> Result<Option<Operation<'a>>, Unserved> {
        Ok(match self.opcode {
            3 => Some(Operation::Getattr),
            4 => self.setattr(),
            17 => Some(Operation::Statfs),
            21 => self.setxattr(),
            22 => self.name().map(|name| Operation::Getxattr {
                name,
                size: self.u32(0),
            }),
            23 => Some(Operation::Listxattr { size: self.u32(0) }),
            24 => self.name().map(|name| Operation::Removexattr { name }),
            52 => Some(Operation::Statx),
            other => return Err(Unserved::Unknown(other)),
        })
    }

    fn of_content(&self) -> Result<Option<Operation<'a>>, Unserved> {
        let (offset, size) = (self.u64(8), self.u32(16));
        Ok(Some(match self.opcode {
            14 => Operation::Open {
                flags: self.open_flags(0),
                clears_suid: self.u32(4) & OPEN_KILL_SUIDGID != 0,
            },
            15 => Operation::Read {
                offset,
                size,
                direct: self.is_direct(),
            },
            16 => return Ok(self.write((offset, size))),
            18 => Operation::Release {
                flags: self.open_flags(8),
            },
            // Of a file, and of a folder.
            20 | 30 => Operation::Fsync,
            25 => Operation::Flush,
            27 => Operation::Opendir,
            28 => Operation::Readdir { offset, size },
            44 => Operation::Readdirplus { offset, size },
            43 => Operation::Fallocate {
                offset,
                len: self.u64(16),
                mode: self.u32(24).cast_signed(),
            },
            46 => Operation::Lseek {
                offset: offset.cast_signed(),
                whence: size.cast_signed(),
            },
            47 | 53 => Operation::CopyFileRange {
                range: Copied {
                    from_offset: offset,
                    to: InodeNo(self.u64(16)),
                    to_offset: self.u64(32),
                    len_bytes: self.u64(40),
                },
                wide: self.opcode == 53,
            },
            other => return Err(Unserved::Unknown(other)),
        }))
    }

    fn u32(&self, at: usize) -> u32 {
        u32_at(self.fields, at)
    }

    fn u64(&self, at: usize) -> u64 {
        u64_at(self.fields, at)
    }

    fn making(&self, mode_at: usize, umask_at: usize) -> Making {
        Making {
            mode: self.u32(mode_at),
            umask: self.u32(umask_at),
        }
    }

    fn open_flags(&self, at: usize) -> OpenFlags {
        OpenFlags(self.u32(at).cast_signed())
    }

    fn name(&self) -> Option<&'a [u8]> {
        Some(name_in(self.content)?.0)
    }

    fn two_names(&self) -> Option<(&'a [u8], &'a [u8])> {
        let (first, rest) = name_in(self.content)?;
        Some((first, name_in(rest)?.0))
    }

    fn rename(&self, flags: u32) -> Option<Operation<'a>> {
        let (name, new_name) = self.two_names()?;
        Some(Operation::Rename {
            name,
            new_dir: InodeNo(self.u64(0)),
            new_name,
            flags,
        })
    }

    fn write(&self, (offset, size): (u64, u32)) -> Option<Operation<'a>> {
        Some(Operation::Write {
            offset,
            data: self.content.get(..size as usize)?,
            clears_suid: self.u32(20) & WRITE_KILL_SUIDGID != 0,
            direct: self.u32(20) & WRITE_CACHE == 0 && self.is_direct(),
        })
    }

    /// Of a read or a write: what it goes by was opened so, or became so.
    fn is_direct(&self) -> bool {
        self.u32(32).cast_signed() & libc::O_DIRECT != 0
    }

    fn setxattr(&self) -> Option<Operation<'a>> {
        let (name, rest) = name_in(self.content)?;
        Some(Operation::Setxattr {
            name,
            value: rest.get(..self.u32(0) as usize)?,
            flags: self.u32(4).cast_signed(),
            clears_sgid: self.u32(8) & SETXATTR_ACL_KILL_SGID != 0,
        })
    }

    fn setattr(&self) -> Option<Operation<'a>> {
        let has = |bit| self.u32(0) & bit != 0;
        let set_time = |(is_there, is_now), at, nanos_at| match (has(is_there), has(is_now)) {
            (false, _) => Some(None),
            (true, true) => Some(Some(SetTime::Now)),
            (true, false) => Some(Some(SetTime::At(self.time(at, nanos_at)?))),
        };
        let change = SetAttr {
            mode: has(valid::MODE).then(|| (self.u32(68) & 0o7777) as u16),
            uid: has(valid::UID).then(|| self.u32(76)),
            gid: has(valid::GID).then(|| self.u32(80)),
            size: has(valid::SIZE).then(|| self.u64(16)),
            atime: set_time((valid::ATIME, valid::ATIME_NOW), 32, 56)?,
            mtime: set_time((valid::MTIME, valid::MTIME_NOW), 40, 60)?,
            ctime: match has(valid::CTIME) {
                true => Some(self.time(48, 64)?),
                false => None,
            },
        };
        let clears_suid = has(valid::SIZE) && has(valid::KILL_SUIDGID);
        Some(Operation::Setattr { change, clears_suid })
    }

    fn time(&self, at: usize, nanos_at: usize) -> Option<Timestamp> {
        let (seconds, nanos) = (self.u64(at).cast_signed(), self.u32(nanos_at));
        (nanos < SECOND_NANOS).then_some(Timestamp { seconds, nanos })
    }
}

/// What a request says before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// References are taken back; nobody waits for an answer.
    Forget,
    /// The kernel lets go of the file system.
    Destroy,
    /// An operation.
    Operation,
}

/// Which kind of request it is, and its number; `None` if it is shorter than a header.
pub fn kind_of(message: &[u8]) -> Option<(Kind, u64)> {
    let header = message.get(..HEADER_BYTES)?;
    let kind = match u32_at(header, 4) {
        FORGET | BATCH_FORGET => Kind::Forget,
        DESTROY => Kind::Destroy,
        _ => Kind::Operation,
    };
    Some((kind, u64_at(header, 8)))
}

/// References that are taken back: of which inode, and how many.
pub fn forgets(message: &[u8]) -> impl Iterator<Item = (InodeNo, u64)> {
    let (header, rest) = message.split_at_checked(HEADER_BYTES).unwrap_or_default();
    let is_batch = header.get(4..8).is_some_and(|opcode| u32_at(opcode, 0) == BATCH_FORGET);
    // One: its inode is in the header, and the number follows. Many: how many there are, then an inode and a number of each.
    let one = (!is_batch && rest.len() >= 8).then(|| (InodeNo(u64_at(header, 16)), u64_at(rest, 0)));
    let many = rest.get(8..).filter(|_| is_batch).unwrap_or_default();
    let count = if many.is_empty() { 0 } else { u32_at(rest, 0) as usize };
    let of = |pair: &[u8]| (InodeNo(u64_at(pair, 0)), u64_at(pair, 8));
    one.into_iter().chain(many.chunks_exact(16).take(count).map(of))
}

/// A name, and what follows the zero that ends it.
fn name_in(content: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = content.iter().position(|byte| *byte == 0)?;
    Some((&content[..end], &content[end + 1..]))
}

#[cfg(test)]
mod tests;
