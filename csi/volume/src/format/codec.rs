//! How the content of frames is compressed: a byte in each frame's header says which way, so that frames of one volume may
//! differ and a volume may change its mind.
//!
//! Invariant: `unpack(pack(content)) == content`; foreign bytes make an error, never a panic and never more content than
//! was announced. Callers: `frame.rs`. Absent: checksums, which cover the stored bytes and are checked before.

use serde::{Deserialize, Serialize};

use super::FormatError;

/// 256 bytes: shorter content saves less than it costs to look at it again at each read.
const CONTENT_BYTES_MIN: usize = 256;

/// A sixteenth of the content must be saved; otherwise it is stored as it is, and read back without any work.
const SAVED_MIN_DIVISOR: usize = 16;

/// 32 KiB: of shorter content the samples are too large a part.
const SAMPLED_BYTES_MIN: usize = 32 * 1024;

/// 4 KiB from three places tell what the whole would become: less than a tenth of the work for a full frame.
const SAMPLE_BYTES: usize = 4 * 1024;

/// A thirty-second of one sample: the whole may get shorter where a sample of it hardly does, which lacks what came before.
const SAMPLE_SAVED_MIN_DIVISOR: usize = 32;

const _: () = assert!(SAMPLED_BYTES_MIN >= 2 * SAMPLE_BYTES);

/// Level 3 of zstd, its own default: higher ones cost writers more than an S3 request saves.
const ZSTD_LEVEL: i32 = 3;

/// The content is stored as it is.
const STORED: u8 = 0;
/// An LZ4 block.
const LZ4: u8 = 1;
/// A zstd frame.
const ZSTD: u8 = 2;

/// How new content of a volume is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    /// Not at all.
    None,
    /// LZ4: half the bytes of text and tables, at about the speed of memory.
    #[default]
    Lz4,
    /// Zstandard, level 3: a third fewer bytes than LZ4, for some five times its processor time.
    Zstd,
}

/// How the content of one frame is stored: the codec byte of its header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Codec(u8);

impl Codec {
    /// As it is.
    pub const NONE: Self = Self(STORED);

    /// Reads the codec byte.
    ///
    /// # Errors
    /// `Codec` for one that this build does not know.
    pub fn of(byte: u8) -> Result<Self, FormatError> {
        match byte {
            STORED | LZ4 | ZSTD => Ok(Self(byte)),
            unknown => Err(FormatError::Codec(unknown)),
        }
    }

    /// The codec byte.
    #[must_use]
    pub fn byte(self) -> u8 {
        self.0
    }
}

/// Compresses `content`; `None` where that does not pay: then it is stored as it is.
#[must_use]
pub fn pack(content: &[u8], compression: Compression) -> Option<(Codec, Vec<u8>)> {
    if content.len() < CONTENT_BYTES_MIN || !samples_shrink(content, compression) {
        return None;
    }
    let (codec, packed) = compress(content, compression)?;
    (packed.len() + content.len() / SAVED_MIN_DIVISOR <= content.len()).then_some((Codec(codec), packed))
}

fn compress(content: &[u8], compression: Compression) -> Option<(u8, Vec<u8>)> {
    match compression {
        Compression::None => None,
        Compression::Lz4 => Some((LZ4, lz4_flex::block::compress(content))),
        // It fails for want of memory only; uncompressed is always possible.
        Compression::Zstd => Some((ZSTD, zstd::bulk::compress(content, ZSTD_LEVEL).ok()?)),
    }
}

/// False for content of which the beginning, the middle and the end hardly get shorter, as of pictures and archives: to find that
/// out from all of it cost a fifth of what an engine did for it.
fn samples_shrink(content: &[u8], compression: Compression) -> bool {
    if content.len() < SAMPLED_BYTES_MIN {
        return true;
    }
    let (middle, end) = (content.len() / 2, content.len() - SAMPLE_BYTES);
    let shrinks = |start: usize| {
        let sample = &content[start..start + SAMPLE_BYTES];
        let packed = compress(sample, compression);
        packed.is_some_and(|(_, packed)| packed.len() + SAMPLE_BYTES / SAMPLE_SAVED_MIN_DIVISOR <= SAMPLE_BYTES)
    };
    [0, middle, end].into_iter().any(shrinks)
}

/// The content that was packed: exactly `content_len` bytes.
///
/// # Errors
/// `Packed`.
pub fn unpack(codec: Codec, packed: &[u8], content_len: usize) -> Result<Vec<u8>, FormatError> {
    let content = match codec.0 {
        LZ4 => lz4_flex::block::decompress(packed, content_len).map_err(|error| error.to_string()),
        ZSTD => zstd::bulk::decompress(packed, content_len).map_err(|error| error.to_string()),
        _ => Ok(packed.to_vec()),
    };
    match content {
        Ok(content) if content.len() == content_len => Ok(content),
        Ok(content) => Err(FormatError::Length {
            got: content.len() as u64,
            want: content_len as u64,
        }),
        Err(detail) => Err(FormatError::Packed { codec: codec.0, detail }),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

    use proptest::prelude::*;

    use super::*;

    fn noise(len: usize) -> Vec<u8> {
        let mut state = 1u64;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(len)
        .collect()
    }

    #[test]
    fn what_does_not_shrink_is_stored_as_it_is() {
        let noise = noise(128 * 1024);
        let text = b"the same words again ".repeat(6_000);
        for compression in [Compression::Lz4, Compression::Zstd] {
            assert!(pack(&noise, compression).is_none());
            assert!(pack(&text[..CONTENT_BYTES_MIN - 1], compression).is_none());
            let (codec, packed) = pack(&text, compression).unwrap();
            assert!(packed.len() * 10 < text.len(), "{compression:?}: {}", packed.len());
            assert_eq!(unpack(codec, &packed, text.len()).unwrap(), text);
        }
        assert!(pack(&text, Compression::None).is_none());
    }

    /// Goal: content that is compressible in one part only is found to be. Method: noise with text in one of the places.
    #[test]
    fn what_shrinks_at_one_end_or_in_the_middle_is_compressed() {
        let text = b"the same words again ".repeat(2_000);
        let noise = noise(128 * 1024);
        for compression in [Compression::Lz4, Compression::Zstd] {
            for at in [0, noise.len() / 2, noise.len() - text.len()] {
                let mut content = noise.clone();
                content[at..at + text.len()].copy_from_slice(&text);
                let (codec, packed) = pack(&content, compression).expect("a third of it shrinks");
                assert_eq!(
                    unpack(codec, &packed, content.len()).unwrap(),
                    content,
                    "{compression:?} {at}"
                );
            }
        }
    }

    #[test]
    fn content_of_another_length_than_announced_is_an_error() {
        let text = b"the same words again ".repeat(600);
        for compression in [Compression::Lz4, Compression::Zstd] {
            let (codec, packed) = pack(&text, compression).unwrap();
            for wrong in [0, text.len() - 1, text.len() + 1] {
                assert!(unpack(codec, &packed, wrong).is_err(), "{compression:?} {wrong}");
            }
        }
    }

    proptest! {
        #[test]
        fn packed_content_comes_back(
            words in prop::collection::vec("[a-d]{1,12}", 0..4_000),
            compression in prop_oneof![Just(Compression::Lz4), Just(Compression::Zstd)],
        ) {
            let content = words.concat().into_bytes();
            if let Some((codec, packed)) = pack(&content, compression) {
                prop_assert!(packed.len() < content.len());
                prop_assert_eq!(unpack(Codec::of(codec.byte()).unwrap(), &packed, content.len()).unwrap(), content);
            }
        }

        #[test]
        fn foreign_bytes_never_panic(bytes in prop::collection::vec(any::<u8>(), 0..2_000), codec in 0..=2u8, len in 0..200_000usize) {
            if let Ok(content) = unpack(Codec::of(codec).unwrap(), &bytes, len) {
                prop_assert_eq!(content.len(), len);
            }
        }
    }
}
