//! What is known of a frame on disk that was checked as a whole: enough to check a part of it by itself.
//!
//! Callers: `cache.rs`, which keeps it, and `fetch/on_disk.rs`, which reads by it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::format::frame::FrameSums;

/// No read ends there: none was made yet.
const NOWHERE: u64 = u64::MAX;

/// A frame that was whole when it was last read whole.
#[derive(Debug)]
pub(crate) struct KnownFrame {
    sums: FrameSums,
    /// Where the last read of a part ended.
    read_to: AtomicU64,
}

/// How a part is best read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum PartRead {
    /// With all of its frame: what follows is wanted next.
    WithAll,
    /// By itself.
    Alone,
    /// By itself, and then the kernel may bring the rest into its memory, beside whatever else goes on.
    AloneFirst,
}

impl KnownFrame {
    pub fn new(sums: FrameSums) -> Self {
        Self {
            sums,
            read_to: AtomicU64::new(NOWHERE),
        }
    }

    pub fn sums(&self) -> &FrameSums {
        &self.sums
    }

    /// Notes that these bytes of the content are wanted, and says how to read them.
    pub fn want(&self, bytes: &Range<u64>) -> PartRead {
        let before = self.read_to.swap(bytes.end, Ordering::Relaxed);
        match before {
            NOWHERE => PartRead::AloneFirst,
            _ if before == bytes.start => PartRead::WithAll,
            // If the kernel gave up what it was to bring, it has no room for it.
            _ => PartRead::Alone,
        }
    }
}

#[cfg(test)]
pub(super) mod tests {
    use uuid::Uuid;

    use super::*;
    use crate::format::codec::Compression;
    use crate::format::frame::{FRAME_HEADER_BYTES, FrameIdentity, check_frame_and_note, put_run};
    use crate::ids::{Epoch, InodeNo, ObjectId};
    use crate::rope::RopeBuilder;

    /// What is noted of a frame of 100,000 bytes.
    pub fn sums() -> FrameSums {
        let identity = FrameIdentity {
            volume: Uuid::from_u128(7),
            ino: InodeNo(42),
            offset: 0,
        };
        let mut out = RopeBuilder::new(b"", 0);
        let (object, content) = (ObjectId::Segment(Epoch(1), 1), [vec![7; 100_000].into()]);
        put_run(&mut out, object, identity, &content, Compression::None);
        let frame = out.finish().to_bytes();
        let (head, content) = frame.split_at(FRAME_HEADER_BYTES);
        check_frame_and_note(head, content, &identity).unwrap().1.unwrap()
    }

    #[test]
    fn what_is_read_in_sequence_is_read_with_all_of_its_frame() {
        let known = KnownFrame::new(sums());
        for (bytes, how) in [
            (0..4096, PartRead::AloneFirst),
            (40_960..45_056, PartRead::Alone),
            (8192..12_288, PartRead::Alone),
            (12_288..16_384, PartRead::WithAll),
            (4096..8192, PartRead::Alone),
            (0..4096, PartRead::Alone),
        ] {
            assert_eq!(known.want(&bytes), how, "{bytes:?}");
        }
    }
}
