//! The ends of a tree's files: a filter, and behind it an index. SlateDB asks for one after the other before it reads the first
//! block of a file; here the answer to the first question has the other one as well.
//!
//! Invariant: there is little of what is kept. Caller: `parts.rs`.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;

use crate::bucket::Object;

/// 128 KiB behind a filter: the index of a file of 16 MiB has some 50 KiB.
const BEHIND_BYTES: u64 = 128 * 1024;

/// 16 ends, some 70 KiB each, are kept for the second question, which several readers may ask at once: those of all files of a
/// tree that `slate.rs` brings together.
pub(crate) const ENDS_MAX: usize = 16;

/// 4,096 files are remembered by where their filter begins; with more, they begin anew.
const FILES_MAX: usize = 4_096;

/// What is known of the ends of files.
#[derive(Debug, Default)]
pub(super) struct Ends(Mutex<Known>);

#[derive(Debug, Default)]
struct Known {
    /// Where the first read of a file began: at its filter.
    filters: HashMap<String, u64>,
    kept: VecDeque<End>,
}

#[derive(Debug)]
struct End {
    key: String,
    start: u64,
    object: Object,
}

impl Ends {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// This part of a file, if it came with an earlier one.
    pub fn get(&self, key: &str, range: &Range<u64>) -> Option<Object> {
        let known = self.known();
        let within = |end: &&End| {
            end.key == key && end.start <= range.start && range.end <= end.start + end.object.body.len() as u64
        };
        let End { start, object, .. } = known.kept.iter().find(within)?;
        let part = (range.start - start) as usize..(range.end - start) as usize;
        // Copied: SlateDB keeps what it gets for as long as it likes.
        let body = Bytes::copy_from_slice(&object.body[part]);
        Some(Object { body, ..object.clone() })
    }

    /// How far to read instead, where what is behind is wanted next.
    pub fn widened(&self, key: &str, range: &Range<u64>) -> u64 {
        let filters = &mut self.known().filters;
        if filters.len() >= FILES_MAX && !filters.contains_key(key) {
            filters.clear();
        }
        let filter = *filters.entry(key.to_owned()).or_insert(range.start);
        match filter == range.start {
            true => range.end + BEHIND_BYTES,
            false => range.end,
        }
    }

    /// Keeps what came behind the part that was asked for.
    pub fn keep(&self, key: &str, start: u64, object: Object) {
        let kept = &mut self.known().kept;
        kept.retain(|end| end.key != key);
        if kept.len() >= ENDS_MAX {
            kept.pop_front();
        }
        let key = key.to_owned();
        kept.push_back(End { key, start, object });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bucket::ETag;

    fn object(len: usize) -> Object {
        Object {
            body: Bytes::from(vec![7; len]),
            etag: ETag("e".to_owned()),
            size_bytes: 1_000,
        }
    }

    #[test]
    fn what_lies_behind_a_filter_comes_with_it() {
        let ends = Ends::default();
        assert_eq!(ends.widened("a.sst", &(100..200)), 200 + BEHIND_BYTES);
        ends.keep("a.sst", 200, object(50));
        assert!(ends.get("b.sst", &(200..240)).is_none(), "another file");
        assert!(ends.get("a.sst", &(240..260)).is_none(), "more than came");
        assert_eq!(ends.get("a.sst", &(205..240)).unwrap().body.len(), 35);
        assert_eq!(
            ends.get("a.sst", &(205..240)).unwrap().body.len(),
            35,
            "a second reader"
        );
        assert_eq!(ends.widened("a.sst", &(0..100)), 100, "a block");
        assert_eq!(ends.widened("a.sst", &(100..200)), 200 + BEHIND_BYTES, "asked for anew");
    }

    #[test]
    fn only_a_few_ends_are_kept() {
        let ends = Ends::default();
        for n in 0..10 * FILES_MAX as u64 {
            let key = format!("{n}.sst");
            ends.widened(&key, &(n..n + 1));
            ends.keep(&key, n + 1, object(10));
        }
        let known = ends.known();
        assert!(known.kept.len() <= ENDS_MAX && known.filters.len() <= FILES_MAX);
    }
}
