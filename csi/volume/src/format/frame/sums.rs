//! Checksums of a frame up to each block of its content, so that a part of it can be checked by itself.
//!
//! They are made while the frame is checked as a whole, and its own checksum is the last of them: whatever differs from what was
//! checked then is told, as by the checksum itself. Callers: `frame.rs`, and `fetch/on_disk.rs`, which reads parts. Never stored.

use std::ops::Range;

use super::super::{FormatError, check_length, check_sum};
use super::FrameIdentity;

/// 4 KiB: what databases and the kernel read at least. 33 sums for a whole frame.
const BLOCK_BYTES: u64 = 4096;

/// What a part of a frame must be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FrameSums {
    identity: FrameIdentity,
    content_len: u64,
    /// Of the header, then up to the end of each block.
    sums: Box<[u32]>,
}

impl FrameSums {
    /// Of a frame whose header has this sum.
    pub(super) fn of(header: u32, content: &[u8], identity: FrameIdentity) -> Self {
        let mut sum = header;
        let blocks = content.chunks(BLOCK_BYTES as usize);
        let ends = blocks.map(|block| {
            sum = crc32c::crc32c_append(sum, block);
            sum
        });
        Self {
            identity,
            content_len: content.len() as u64,
            sums: std::iter::once(header).chain(ends).collect(),
        }
    }

    /// Of the whole frame.
    pub(super) fn of_all(&self) -> u32 {
        self.sums[self.sums.len() - 1]
    }

    /// What they take in memory, in bytes.
    #[must_use]
    pub fn memory_bytes(&self) -> u64 {
        (size_of::<Self>() + size_of_val(&*self.sums)) as u64
    }

    /// The least part with these bytes of the content that can be checked; `None` if the content does not have them, or nothing is
    /// wanted.
    #[must_use]
    pub fn part_around(&self, wanted: &Range<u64>) -> Option<Range<u64>> {
        let has_them = wanted.start < wanted.end && wanted.end <= self.content_len;
        let start = wanted.start / BLOCK_BYTES * BLOCK_BYTES;
        let end = wanted.end.next_multiple_of(BLOCK_BYTES).min(self.content_len);
        has_them.then_some(start..end)
    }

    /// Checks what was read of a part, which `part_around` has named, of the frame that `want` names.
    ///
    /// # Errors
    /// `FormatError`: which of the checks failed.
    pub fn check(&self, part: &Range<u64>, content: &[u8], want: &FrameIdentity) -> Result<(), FormatError> {
        if self.identity != *want {
            return Err(FormatError::Identity {
                ino: self.identity.ino.0,
                offset: self.identity.offset,
            });
        }
        check_length(content.len() as u64, part.end - part.start)?;
        let sum_up_to = |end: u64| {
            let sum = self.sums.get(end.div_ceil(BLOCK_BYTES) as usize);
            sum.copied().ok_or(FormatError::Length {
                got: end,
                want: self.content_len,
            })
        };
        let sum = crc32c::crc32c_append(sum_up_to(part.start)?, content);
        check_sum("a part of the frame", sum, sum_up_to(part.end)?)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use uuid::Uuid;

    use super::*;
    use crate::ids::InodeNo;

    const WHO: FrameIdentity = FrameIdentity {
        volume: Uuid::from_u128(7),
        ino: InodeNo(42),
        offset: 1 << 40,
    };

    fn content(len: usize) -> Vec<u8> {
        (0..len).map(|i| (i % 251) as u8).collect()
    }

    #[test]
    fn the_last_sum_is_that_of_the_whole_frame() {
        for len in [0, 1, 4095, 4096, 4097, 131_072] {
            let sums = FrameSums::of(77, &content(len), WHO);
            assert_eq!(sums.of_all(), crc32c::crc32c_append(77, &content(len)), "{len}");
        }
    }

    proptest! {
        /// Goal: a part is accepted exactly if it is what was there, and anybody else's never.
        #[test]
        fn a_part_with_any_bit_flipped_or_of_another_frame_is_refused(
            (len, start, end) in (1u64..20_000).prop_flat_map(|len| (Just(len), 0..len)).prop_flat_map(|(len, start)| (Just(len), Just(start), start + 1..=len)),
            bit in any::<prop::sample::Index>(),
        ) {
            let content = content(len as usize);
            let sums = FrameSums::of(5, &content, WHO);
            let part = sums.part_around(&(start..end)).unwrap();
            prop_assert!(part.start <= start && end <= part.end && part.end <= len);
            prop_assert!(part.end - part.start < end - start + 2 * BLOCK_BYTES);
            let mut read = content[part.start as usize..part.end as usize].to_vec();
            prop_assert_eq!(sums.check(&part, &read, &WHO), Ok(()));
            let other = FrameIdentity { offset: 0, ..WHO };
            prop_assert!(sums.check(&part, &read, &other).is_err());
            prop_assert!(sums.check(&part, &read[1..], &WHO).is_err());
            let bit = bit.index(read.len() * 8);
            read[bit / 8] ^= 1 << (bit % 8);
            prop_assert!(sums.check(&part, &read, &WHO).is_err());
        }

        #[test]
        fn what_the_content_does_not_have_is_no_part(len in 0u64..20_000, start in 0u64..20_000, more in 1u64..20_000) {
            let sums = FrameSums::of(5, &content(len as usize), WHO);
            prop_assert_eq!(sums.part_around(&(start..len + more)), None);
            prop_assert_eq!(sums.part_around(&(start..start)), None);
        }
    }
}
