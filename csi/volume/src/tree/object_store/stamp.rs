//! What ends an object of the tree that must be won: the id of the put that made it, and a checksum over all of it.
//!
//! SlateDB checks its SSTs itself, but believes what its manifests say, so a bit that the store loses must be noticed here.
//! The end: the id, its length in one byte, crc32c over everything before it in four, and four that say so. Earlier builds
//! wrote it without the sum; those objects are read as they are. Caller: `object_store.rs`.

use bytes::{Bytes, BytesMut};
use object_store::PutPayload;

/// Ends a stamp with a checksum. In two bits different from the one without, so that no single bit makes one of the other.
const MAGIC: &[u8; 4] = b"pnr2";

/// Ends a stamp without one.
const MAGIC_WITHOUT_SUM: &[u8; 4] = b"pnr1";

/// An object that is not what was put.
#[derive(Debug, thiserror::Error)]
#[error("{key} is damaged: {detail}")]
pub(in crate::tree) struct DamagedObject {
    pub key: String,
    pub detail: &'static str,
}

/// A payload with its stamp.
pub(super) fn stamp(payload: PutPayload, put_id: &str) -> Bytes {
    let mut body = BytesMut::with_capacity(payload.content_length() + put_id.len() + 9);
    for part in payload.iter() {
        body.extend_from_slice(part);
    }
    // A ULID has 26 letters; a longer id would only be cut, never be taken for another's.
    let id = &put_id.as_bytes()[..put_id.len().min(usize::from(u8::MAX))];
    body.extend_from_slice(id);
    body.extend_from_slice(&[id.len() as u8]);
    let sum = crc32c::crc32c(&body);
    body.extend_from_slice(&sum.to_le_bytes());
    body.extend_from_slice(MAGIC);
    body.freeze()
}

/// The payload and the id of the put, if it had one.
///
/// # Errors
/// What is wrong with the object.
pub(super) fn unstamp(body: &Bytes) -> Result<(Bytes, Option<String>), &'static str> {
    let rest = match (body.strip_suffix(MAGIC), body.strip_suffix(MAGIC_WITHOUT_SUM)) {
        (Some(rest), _) => {
            let (rest, sum) = rest.split_last_chunk().ok_or("the object ends within its checksum")?;
            match crc32c::crc32c(rest) == u32::from_le_bytes(*sum) {
                true => rest,
                false => return Err("the checksum of the object does not match"),
            }
        }
        (None, Some(rest)) => rest,
        (None, None) => return Err("the object does not end in a put id"),
    };
    let (len, rest) = rest.split_last().ok_or("the object ends within its put id")?;
    let start = rest
        .len()
        .checked_sub(usize::from(*len))
        .ok_or("the put id is longer than the object")?;
    let put_id = String::from_utf8(rest[start..].to_vec()).map_err(|_| "the put id is no text")?;
    Ok((body.slice(..start), (!put_id.is_empty()).then_some(put_id)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_ends_are_refused() {
        for bytes in [
            &b""[..],
            b"pnr1",
            b"\x09pnr1",
            b"abc",
            b"\xff\x01pnr1",
            b"pnr2",
            b"abcpnr2",
            b"\x00\x00\x00\x00pnr2",
        ] {
            assert!(unstamp(&Bytes::copy_from_slice(bytes)).is_err(), "{bytes:?}");
        }
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let stamped = stamp(PutPayload::from_static(b"a manifest"), "an id");
        let (body, put_id) = unstamp(&stamped).expect("as it was made");
        assert_eq!((&body[..], put_id.as_deref()), (&b"a manifest"[..], Some("an id")));
        for bit in 0..stamped.len() * 8 {
            let mut flipped = stamped.to_vec();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert!(unstamp(&flipped.into()).is_err(), "bit {bit}");
        }
    }

    #[test]
    fn what_earlier_builds_wrote_is_read() {
        let (body, put_id) = unstamp(&Bytes::from_static(b"a manifestan id\x05pnr1")).expect("as they made it");
        assert_eq!((&body[..], put_id.as_deref()), (&b"a manifest"[..], Some("an id")));
    }
}
