//! The bytes of the objects that hold a volume's data and history: frames, journal objects, segments, seals.
//!
//! Invariants: every object names itself (volume, epoch, number) and every frame names what it holds (volume, inode,
//! offset), under checksums that each reading checks; decoding is total. All numbers are little-endian.
//! Callers: `commit/`, `open/`, `check.rs`, and whoever reads frames. Absent: keys of objects (`ids.rs`), rows
//! (`row/codec.rs`), requests.

use uuid::Uuid;

use crate::ids::ObjectId;
use crate::wire::{Reader, WireError};

pub mod codec;
pub mod frame;
pub mod journal;
pub mod seal;
pub mod segment;

/// Version of all objects that this build writes, and the only one it reads.
pub const FORMAT_VERSION: u8 = 1;

/// Why an object of the volume is not what its key says.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    /// It does not begin as an object of its kind.
    #[error("it is no {want}")]
    Magic {
        /// The kind that it should be.
        want: &'static str,
    },
    /// Cut, or numbers that nobody writes, or another version.
    #[error(transparent)]
    Wire(#[from] WireError),
    /// A checksum does not match.
    #[error("the checksum of {what} is {got:08x}, it says {want:08x}")]
    Checksum {
        /// Which part.
        what: &'static str,
        /// Computed.
        got: u32,
        /// Stored.
        want: u32,
    },
    /// It is of another volume.
    #[error("it belongs to volume {0}")]
    Volume(Uuid),
    /// It is another object.
    #[error("it names itself {0}")]
    Object(ObjectId),
    /// Its length is not what it says.
    #[error("it has {got} bytes, it says {want}")]
    Length {
        /// Found.
        got: u64,
        /// Stored.
        want: u64,
    },
    /// A frame says that it holds something else.
    #[error("the frame holds inode {ino} at {offset}")]
    Identity {
        /// The inode it names.
        ino: u64,
        /// The file offset it names.
        offset: u64,
    },
    /// Compressed in a way that this build cannot undo.
    #[error("the frame is compressed with codec {0}, which this build does not know")]
    Codec(u8),
    /// Compressed, but not so that it can be undone: another program made it.
    #[error("the frame does not decompress with codec {codec}: {detail}")]
    Packed {
        /// As the header says.
        codec: u8,
        /// What the codec says.
        detail: String,
    },
    /// Encrypted with a key that this build does not have.
    #[error("the frame is encrypted with key {0}, which this build does not have")]
    Key(u32),
}

/// Checks `magic` and the version byte after it.
fn begin<'a>(bytes: &'a [u8], magic: &[u8; 8], want: &'static str) -> Result<Reader<'a>, FormatError> {
    let mut reader = Reader::new(bytes);
    match reader.array::<8>("magic") {
        Ok(found) if found == *magic => {}
        Ok(_) | Err(_) => return Err(FormatError::Magic { want }),
    }
    match reader.byte("version")? {
        FORMAT_VERSION => Ok(reader),
        got => Err(FormatError::Wire(WireError::Version {
            what: want,
            got,
            want: FORMAT_VERSION,
        })),
    }
}

fn check_volume(found: [u8; 16], want: Uuid) -> Result<(), FormatError> {
    match Uuid::from_bytes(found) {
        found if found == want => Ok(()),
        other => Err(FormatError::Volume(other)),
    }
}

fn check_object(found: ObjectId, want: ObjectId) -> Result<(), FormatError> {
    match found == want {
        true => Ok(()),
        false => Err(FormatError::Object(found)),
    }
}

fn check_sum(what: &'static str, got: u32, want: u32) -> Result<(), FormatError> {
    match got == want {
        true => Ok(()),
        false => Err(FormatError::Checksum { what, got, want }),
    }
}

fn check_length(got: u64, want: u64) -> Result<(), FormatError> {
    match got == want {
        true => Ok(()),
        false => Err(FormatError::Length { got, want }),
    }
}
