//! Numbers and byte strings as the rows and the journal write them: varints for small numbers, length-prefixed bytes.
//!
//! Invariant: reading is total. Any input gives a value or a `WireError`, never a panic, and never allocates more than
//! the input is long. Callers: `row/codec.rs` and `format/`. Absent: what the numbers mean.

/// Why bytes do not decode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum WireError {
    /// The input ends within a value.
    #[error("the input ends within {field}")]
    Truncated {
        /// What was being read.
        field: &'static str,
    },
    /// Bytes are left after the last value.
    #[error("{bytes} bytes are left after the last value")]
    Trailing {
        /// How many.
        bytes: usize,
    },
    /// A value that no writer of this version writes.
    #[error("{field} cannot be {got}")]
    Value {
        /// What was being read.
        field: &'static str,
        /// What was found.
        got: u64,
    },
    /// Written by a version that this one does not know.
    #[error("{what} has version {got}, this build reads {want}")]
    Version {
        /// What was being read.
        what: &'static str,
        /// The version found.
        got: u8,
        /// The version that this build writes and reads.
        want: u8,
    },
}

/// Appends a number, 7 bits a byte, lowest first.
pub fn put_varint(out: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        out.push(value as u8 | 0x80);
        value >>= 7;
    }
    out.push(value as u8);
}

/// Appends a signed number; small magnitudes are short.
pub fn put_signed(out: &mut Vec<u8>, value: i64) {
    put_varint(out, ((value << 1) ^ (value >> 63)) as u64);
}

/// Appends bytes after their length.
pub fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, bytes.len() as u64);
    out.extend_from_slice(bytes);
}

/// A cursor over bytes from outside.
#[derive(Debug, Clone)]
pub struct Reader<'a> {
    rest: &'a [u8],
}

impl<'a> Reader<'a> {
    /// Reads from the start of `bytes`.
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { rest: bytes }
    }

    /// The next `len` bytes.
    pub fn take(&mut self, len: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let (taken, rest) = self.rest.split_at_checked(len).ok_or(WireError::Truncated { field })?;
        self.rest = rest;
        Ok(taken)
    }

    /// The next `N` bytes.
    pub fn array<const N: usize>(&mut self, field: &'static str) -> Result<[u8; N], WireError> {
        let (taken, rest) = self
            .rest
            .split_first_chunk::<N>()
            .ok_or(WireError::Truncated { field })?;
        self.rest = rest;
        Ok(*taken)
    }

    /// One byte.
    pub fn byte(&mut self, field: &'static str) -> Result<u8, WireError> {
        Ok(self.array::<1>(field)?[0])
    }

    /// A little-endian number of 4 bytes.
    pub fn u32_le(&mut self, field: &'static str) -> Result<u32, WireError> {
        Ok(u32::from_le_bytes(self.array(field)?))
    }

    /// A little-endian number of 8 bytes.
    pub fn u64_le(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_le_bytes(self.array(field)?))
    }

    /// A big-endian number of 8 bytes, as keys hold them.
    pub fn u64_be(&mut self, field: &'static str) -> Result<u64, WireError> {
        Ok(u64::from_be_bytes(self.array(field)?))
    }

    /// What `put_varint` wrote. Longer spellings of a number are refused, so that equal values have equal bytes.
    pub fn varint(&mut self, field: &'static str) -> Result<u64, WireError> {
        let mut value = 0u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte(field)?;
            let bits = u64::from(byte & 0x7f);
            if (shift == 63 && bits > 1) || (byte == 0 && shift > 0) {
                return Err(WireError::Value {
                    field,
                    got: u64::from(byte),
                });
            }
            value |= bits << shift;
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(WireError::Value { field, got: value })
    }

    /// A varint that fits 32 bits.
    pub fn varint_u32(&mut self, field: &'static str) -> Result<u32, WireError> {
        let value = self.varint(field)?;
        u32::try_from(value).map_err(|_| WireError::Value { field, got: value })
    }

    /// What `put_signed` wrote.
    pub fn signed(&mut self, field: &'static str) -> Result<i64, WireError> {
        let value = self.varint(field)?;
        Ok((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// What `put_bytes` wrote, if it is at most `len_max` long.
    pub fn bytes(&mut self, len_max: usize, field: &'static str) -> Result<&'a [u8], WireError> {
        let len = self.varint(field)?;
        match usize::try_from(len) {
            Ok(len) if len <= len_max => self.take(len, field),
            Ok(_) | Err(_) => Err(WireError::Value { field, got: len }),
        }
    }

    /// All that is left.
    pub fn rest(&mut self) -> &'a [u8] {
        std::mem::take(&mut self.rest)
    }

    /// How many bytes are left.
    pub fn left(&self) -> usize {
        self.rest.len()
    }

    /// Refuses bytes that are left.
    pub fn end(&self) -> Result<(), WireError> {
        match self.rest.len() {
            0 => Ok(()),
            bytes => Err(WireError::Trailing { bytes }),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn numbers_and_bytes_come_back(a in any::<u64>(), shift in 0u32..64, b in any::<i64>(), bytes in any::<Vec<u8>>()) {
            let mut out = Vec::new();
            put_varint(&mut out, a >> shift);
            put_signed(&mut out, b);
            put_bytes(&mut out, &bytes);
            let mut reader = Reader::new(&out);
            prop_assert_eq!(reader.varint("a").unwrap(), a >> shift);
            prop_assert_eq!(reader.signed("b").unwrap(), b);
            prop_assert_eq!(reader.bytes(bytes.len(), "bytes").unwrap(), &bytes[..]);
            prop_assert_eq!(reader.end(), Ok(()));
        }

        #[test]
        fn a_number_has_one_spelling(bytes in prop::collection::vec(any::<u8>(), 0..12)) {
            let mut reader = Reader::new(&bytes);
            if let Ok(value) = reader.varint("number") {
                let mut out = Vec::new();
                put_varint(&mut out, value);
                prop_assert_eq!(&out[..], &bytes[..bytes.len() - reader.left()]);
            }
        }
    }

    #[test]
    fn a_length_beyond_the_input_or_the_limit_is_refused() {
        let mut out = Vec::new();
        put_bytes(&mut out, b"abc");
        assert!(Reader::new(&out).bytes(2, "name").is_err());
        assert!(Reader::new(&out[..3]).bytes(9, "name").is_err());
        assert_eq!(Reader::new(&out).bytes(3, "name"), Ok(&b"abc"[..]));
    }
}
