//! The numbers that must not mix. Each is a type; none is ever a bare `u64` in an interface.

use std::fmt;

use serde::{Deserialize, Serialize};

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The number after this one. Panics at the end of u64, which no volume reaches.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0.checked_add(1).expect("a counter of a volume never reaches 2^64"))
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// An inode number: FUSE's nodeid as well. 1 is the root; a number is never used twice in a volume's durable history.
    InodeNo
}
number! {
    /// A term of one writer. Each taking of the volume gets a greater one.
    Epoch
}
number! {
    /// The right of one node to mount the volume: it comes with a publication and ends with it. Never given out twice.
    Lease
}
number! {
    /// Position of a commit in the journal of one epoch, from 1 without holes.
    JournalSeq
}
number! {
    /// Number of a sealed set of changes of one mount, from 1: the n-th commit that this mount makes.
    Generation
}
number! {
    /// Position in a directory listing: 63 bits, 1 and 2 are "." and "..", stable while the entry exists.
    DirCookie
}

impl InodeNo {
    /// The root directory.
    pub const ROOT: InodeNo = InodeNo(1);

    /// No inode at all.
    pub const NONE: InodeNo = InodeNo(0);
}

/// An immutable object of the volume that holds frames. Unique by (epoch, counter): a writer that lost its epoch can
/// leave garbage, never overwrite.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ObjectId {
    /// `j/<epoch>/<seq>`: data and rows of one commit.
    Journal(Epoch, JournalSeq),
    /// `s/<shard>/<epoch>-<number>`: data only.
    Segment(Epoch, u64),
}

impl ObjectId {
    /// The key under the volume's prefix. Numbers are 16 hex digits, so that keys sort as numbers do; segments are
    /// spread over 256 shards, because S3 limits requests per key prefix.
    pub fn key(&self) -> String {
        match self {
            ObjectId::Journal(epoch, seq) => format!("j/{:016x}/{:016x}", epoch.0, seq.0),
            ObjectId::Segment(epoch, number) => {
                let shard = crc32c::crc32c(&[epoch.0.to_be_bytes(), number.to_be_bytes()].concat()) & 0xff;
                format!("s/{shard:02x}/{:016x}-{number:016x}", epoch.0)
            }
        }
    }
}

impl ObjectId {
    /// The epoch of the writer that made it.
    pub fn epoch(&self) -> Epoch {
        match self {
            ObjectId::Journal(epoch, _) | ObjectId::Segment(epoch, _) => *epoch,
        }
    }

    /// The object whose key this is, if it is one.
    pub fn parse(key: &str) -> Option<Self> {
        let number = |digits: &str| {
            let plain = digits.len() == 16 && digits.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
            plain.then(|| u64::from_str_radix(digits, 16).ok())?
        };
        let (kind, rest) = key.split_once('/')?;
        let (first, second) = rest.split_once('/')?;
        let object = match kind {
            "j" => ObjectId::Journal(Epoch(number(first)?), JournalSeq(number(second)?)),
            "s" => {
                let (epoch, segment) = second.split_once('-')?;
                ObjectId::Segment(Epoch(number(epoch)?), number(segment)?)
            }
            _ => return None,
        };
        (object.key() == key).then_some(object)
    }
}

impl fmt::Display for ObjectId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.key())
    }
}
