//! A seal: put where a commit or one of its segments would have been, it ends the reign of the writer who missed it.
//!
//! Bytes: magic 8, version 1, kind of the key 1, zero 6, volume 16, writer 16, epoch and number of the key 8 + 8,
//! the epoch that follows 8, owner with its length, crc32c 4 over all before it. Seals are never deleted.

use bytes::Bytes;
use uuid::Uuid;

use super::{FORMAT_VERSION, FormatError, begin, check_object, check_sum, check_volume};
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::wire::{WireError, put_bytes};

const MAGIC: &[u8; 8] = b"PnrSeal\n";

const KIND_JOURNAL: u8 = 1;
const KIND_SEGMENT: u8 = 2;

/// Longest owner in bytes; a longer one is cut.
const OWNER_BYTES_MAX: usize = 256;

/// What a seal says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seal {
    /// The volume.
    pub volume: Uuid,
    /// The key it was put at.
    pub object: ObjectId,
    /// The epoch whose journal follows, from its first commit on.
    pub next_epoch: Epoch,
    /// The mount that put it.
    pub writer: Uuid,
    /// The node of that mount.
    pub owner: String,
}

/// True if these bytes begin as a seal does.
pub fn is_seal(bytes: &[u8]) -> bool {
    bytes.starts_with(MAGIC)
}

impl Seal {
    /// The bytes of this seal.
    pub fn encode(&self) -> Bytes {
        let (kind, epoch, number) = match self.object {
            ObjectId::Journal(epoch, seq) => (KIND_JOURNAL, epoch.0, seq.0),
            ObjectId::Segment(epoch, number) => (KIND_SEGMENT, epoch.0, number),
        };
        let mut out = MAGIC.to_vec();
        out.extend_from_slice(&[FORMAT_VERSION, kind, 0, 0, 0, 0, 0, 0]);
        out.extend_from_slice(self.volume.as_bytes());
        out.extend_from_slice(self.writer.as_bytes());
        for number in [epoch, number, self.next_epoch.0] {
            out.extend_from_slice(&number.to_le_bytes());
        }
        let owner = &self.owner[..self.owner.floor_char_boundary(OWNER_BYTES_MAX)];
        put_bytes(&mut out, owner.as_bytes());
        let sum = crc32c::crc32c(&out);
        out.extend_from_slice(&sum.to_le_bytes());
        out.into()
    }

    /// The seal of these bytes, found at the key of `object`.
    ///
    /// # Errors
    /// `FormatError`: it is no seal of this key and volume.
    pub fn decode(bytes: &[u8], volume: Uuid, object: ObjectId) -> Result<Self, FormatError> {
        let mut reader = begin(bytes, MAGIC, "seal")?;
        let kind = reader.byte("kind")?;
        reader.array::<6>("zero")?;
        let found_volume = reader.array::<16>("volume")?;
        let writer = Uuid::from_bytes(reader.array("writer")?);
        let (epoch, number) = (Epoch(reader.u64_le("epoch")?), reader.u64_le("number")?);
        let next_epoch = Epoch(reader.u64_le("next epoch")?);
        let owner = reader.bytes(OWNER_BYTES_MAX, "owner")?;
        let summed = bytes.len() - reader.left();
        let sum = reader.u32_le("checksum")?;
        reader.end()?;
        check_sum("the seal", crc32c::crc32c(&bytes[..summed]), sum)?;
        check_volume(found_volume, volume)?;
        let found = match kind {
            KIND_JOURNAL => ObjectId::Journal(epoch, JournalSeq(number)),
            KIND_SEGMENT => ObjectId::Segment(epoch, number),
            other => return Err(invalid("kind of a seal", u64::from(other))),
        };
        check_object(found, object)?;
        if next_epoch <= epoch {
            return Err(invalid("next epoch", next_epoch.0));
        }
        Ok(Self {
            volume,
            object,
            next_epoch,
            writer,
            owner: String::from_utf8_lossy(owner).into_owned(),
        })
    }
}

fn invalid(field: &'static str, got: u64) -> FormatError {
    FormatError::Wire(WireError::Value { field, got })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn seal(object: ObjectId, owner: &str) -> Seal {
        Seal {
            volume: Uuid::from_u128(7),
            object,
            next_epoch: Epoch(5),
            writer: Uuid::from_u128(1),
            owner: owner.to_owned(),
        }
    }

    #[test]
    fn a_seal_comes_back_at_its_own_key_only() {
        let (journal, segment) = (
            ObjectId::Journal(Epoch(4), JournalSeq(9)),
            ObjectId::Segment(Epoch(4), 9),
        );
        let put = seal(journal, "node-7");
        let bytes = put.encode();
        assert!(is_seal(&bytes));
        assert_eq!(Seal::decode(&bytes, put.volume, journal), Ok(put.clone()));
        assert_eq!(
            Seal::decode(&bytes, put.volume, segment),
            Err(FormatError::Object(journal))
        );
        assert!(Seal::decode(&bytes, Uuid::nil(), journal).is_err());
    }

    #[test]
    fn a_seal_that_leads_back_is_refused() {
        let object = ObjectId::Journal(Epoch(5), JournalSeq(1));
        let bytes = seal(object, "").encode();
        assert!(Seal::decode(&bytes, Uuid::from_u128(7), object).is_err());
    }

    proptest! {
        #[test]
        fn any_owner_comes_back_or_is_cut(owner in ".{0,300}", at in any::<prop::sample::Index>(), bit in 0..8u32) {
            let object = ObjectId::Segment(Epoch(4), 1);
            let put = seal(object, &owner);
            let bytes = put.encode();
            let back = Seal::decode(&bytes, put.volume, object).unwrap();
            prop_assert!(owner.starts_with(&back.owner) && back.owner.len() <= OWNER_BYTES_MAX);
            let mut bytes = bytes.to_vec();
            let at = at.index(bytes.len());
            bytes[at] ^= 1u8 << bit;
            prop_assert!(Seal::decode(&bytes, put.volume, object).is_err());
        }

        #[test]
        fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let object = ObjectId::Segment(Epoch(4), 1);
            let _ = Seal::decode(&bytes, Uuid::nil(), object);
            bytes.splice(0..0, MAGIC.iter().copied().chain([FORMAT_VERSION, KIND_SEGMENT]));
            let _ = Seal::decode(&bytes, Uuid::nil(), object);
        }
    }
}
