//! The `k8s-file` format of conmon, and how one stream is taken out of it byte by byte.
//!
//! A record is one line: `2026-11-21T08:19:12.473433929+00:00 stdout F text\n`. The tag says whether the container wrote
//! the newline (`F`, full) or conmon ended the record without one (`P`, partial): for lines longer than its buffer, and
//! for what a container wrote last without a newline. Payload bytes are the container's own, whatever they are: a
//! payload cannot contain a newline, and nothing else is special. (Probed with conmon 2.1.6.)
//!
//! Invariant: every byte of output knows which byte of the file comes after it, so that a delivery that was cut anywhere
//! goes on at the very next byte. Pure: no IO.

use std::collections::VecDeque;

use serde::{Deserialize, Serialize};

/// 256 bytes: time, stream and tag take some 50. What has no header within this is no record.
const HEADER_BYTES_MAX: usize = 256;

/// One of a container's two outputs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    /// Its stdout, and all output with a terminal.
    Stdout,
    /// Its stderr.
    Stderr,
}

/// A place in the log file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Cursor {
    /// The next byte to look at.
    pub offset: u64,
    /// What that byte belongs to.
    pub within: Within,
}

/// What a byte of the log file belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Within {
    /// It is the first of a record.
    #[default]
    Start,
    /// It is payload of ours, or the newline after it, which is ours too.
    Full,
    /// It is payload of ours, or the newline after it, which is conmon's.
    Partial,
    /// It is of no interest up to and with the next newline.
    Other,
}

/// Takes one stream out of the records.
#[derive(Debug)]
pub struct Splitter {
    stream: Stream,
    cursor: Cursor,
    /// Payload not yet delivered.
    pending: VecDeque<u8>,
    /// Where the pending bytes came from, in order.
    spans: VecDeque<Span>,
}

/// A run of pending bytes that are neighbours in the file.
#[derive(Debug, Clone, Copy)]
struct Span {
    at: Cursor,
    len: usize,
    in_file: bool,
}

impl Splitter {
    /// Begins, or goes on, at a cursor.
    #[must_use]
    pub fn new(stream: Stream, cursor: Cursor) -> Self {
        Self {
            stream,
            cursor,
            pending: VecDeque::new(),
            spans: VecDeque::new(),
        }
    }

    /// Where the next byte of the file must come from.
    #[must_use]
    pub fn reads_at(&self) -> u64 {
        self.cursor.offset
    }

    /// Where to go on if nothing pending gets delivered: at the first byte that was not.
    #[must_use]
    pub fn resume_at(&self) -> Cursor {
        self.spans.front().map_or(self.cursor, |span| span.at)
    }

    /// Bytes to be delivered, a first run of them.
    #[must_use]
    pub fn pending(&self) -> &[u8] {
        let (first, second) = self.pending.as_slices();
        if first.is_empty() { second } else { first }
    }

    /// All bytes to be delivered in one run.
    pub fn pending_whole(&mut self) -> &[u8] {
        self.pending.make_contiguous()
    }

    /// Takes `bytes`, which stand in the file at [`Splitter::reads_at`]. A header that is cut by their end stays unread
    /// and comes again with the next call; returns whether anything was read.
    pub fn feed(&mut self, bytes: &[u8]) -> bool {
        let before = self.cursor;
        let mut rest = bytes;
        while !rest.is_empty() {
            let taken = if self.cursor.within == Within::Start {
                let Some(taken) = self.take_header(rest) else { break };
                taken
            } else {
                self.take_payload(rest)
            };
            rest = &rest[taken..];
        }
        self.cursor != before
    }

    /// Forgets the first `len` pending bytes: they have been delivered.
    pub fn delivered(&mut self, len: usize) {
        assert!(len <= self.pending.len(), "only what is pending can be delivered");
        self.pending.drain(..len);
        let mut left = len;
        while left > 0 {
            let span = self.spans.front_mut().expect("spans cover every pending byte");
            let step = left.min(span.len);
            left -= step;
            span.len -= step;
            if span.in_file {
                span.at.offset += step as u64;
            }
            if span.len == 0 {
                self.spans.pop_front();
            }
        }
    }

    /// Goes on somewhere else, with a remark to the reader in place of what is left out, pending bytes included.
    pub fn skip_to(&mut self, cursor: Cursor, remark: &str) {
        self.pending.clear();
        self.spans.clear();
        self.pending.extend(remark.as_bytes());
        self.cursor = cursor;
        if !remark.is_empty() {
            // The remark stands at no place of the file: until all of it is delivered, it begins again at the new one.
            self.spans.push_back(Span {
                at: cursor,
                len: remark.len(),
                in_file: false,
            });
        }
    }

    /// Reads `<time> <stream> <tag> `; `None` if it may go on behind the end of `bytes`.
    fn take_header(&mut self, bytes: &[u8]) -> Option<usize> {
        let window = &bytes[..bytes.len().min(HEADER_BYTES_MAX)];
        let mut spaces = window
            .iter()
            .enumerate()
            .filter(|(_, byte)| **byte == b' ')
            .map(|(at, _)| at);
        let newline = window.iter().position(|byte| *byte == b'\n');
        let ends = (spaces.next(), spaces.next(), spaces.next());
        let (Some(time), Some(stream), Some(tag)) = ends else {
            if newline.is_none() && window.len() < HEADER_BYTES_MAX {
                return None;
            }
            // A line that is no record. Its newline is left for take_payload.
            self.cursor.within = Within::Other;
            return Some(0);
        };
        if newline.is_some_and(|newline| newline < tag) {
            self.cursor.within = Within::Other;
            return Some(0);
        }
        let ours: &[u8] = match self.stream {
            Stream::Stdout => b"stdout",
            Stream::Stderr => b"stderr",
        };
        // Tags may be followed by more, separated by colons (the CRI format says so; conmon writes none).
        self.cursor.within = match bytes[stream + 1..tag].first() {
            _ if bytes[time + 1..stream] != *ours => Within::Other,
            Some(b'F') => Within::Full,
            Some(b'P') => Within::Partial,
            _ => Within::Other,
        };
        self.cursor.offset += tag as u64 + 1;
        Some(tag + 1)
    }

    /// Reads up to the end of the record, or of `bytes`.
    fn take_payload(&mut self, bytes: &[u8]) -> usize {
        let newline = bytes.iter().position(|byte| *byte == b'\n');
        let payload = newline.unwrap_or(bytes.len());
        let ours = match self.cursor.within {
            Within::Full => payload + usize::from(newline.is_some()),
            Within::Partial => payload,
            Within::Start | Within::Other => 0,
        };
        if ours > 0 {
            self.pending.extend(&bytes[..ours]);
            self.spans.push_back(Span {
                at: self.cursor,
                len: ours,
                in_file: true,
            });
        }
        let taken = payload + usize::from(newline.is_some());
        self.cursor.offset += taken as u64;
        if newline.is_some() {
            self.cursor.within = Within::Start;
        }
        taken
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LOG: &[u8] = b"2026-11-21T08:19:12.473433929+00:00 stdout F out\n\
        2026-11-21T08:19:12.473433929+00:00 stderr P err\n\
        2026-11-21T08:19:12.473433929+00:00 stdout P no \xff\0new\n\
        2026-11-21T08:19:12.473433929+00:00 stderr F or stdout F\n\
        2026-11-21T08:19:12.473433929+00:00 stdout F line\n\
        2026-11-21T08:19:12.473433929+00:00 stdout F \n\
        not a record\n\
        2026-11-21T08:19:12.473433929+00:00 stdout P end\n";

    fn taken(splitter: &mut Splitter) -> Vec<u8> {
        let mut bytes = Vec::new();
        while !splitter.pending().is_empty() {
            let run = splitter.pending().to_vec();
            splitter.delivered(run.len());
            bytes.extend(run);
        }
        bytes
    }

    #[test]
    fn each_stream_comes_out_as_the_container_wrote_it() {
        for (stream, expected) in [
            (Stream::Stdout, &b"out\nno \xff\0newline\n\nend"[..]),
            (Stream::Stderr, &b"error stdout F\n"[..]),
        ] {
            let mut splitter = Splitter::new(stream, Cursor::default());
            assert!(splitter.feed(LOG));
            assert_eq!(taken(&mut splitter), expected);
            assert_eq!(splitter.reads_at(), LOG.len() as u64);
        }
    }

    #[test]
    fn a_cut_header_waits_for_its_rest() {
        let mut splitter = Splitter::new(Stream::Stdout, Cursor::default());
        assert!(!splitter.feed(&LOG[..20]));
        assert_eq!(splitter.reads_at(), 0);
        assert!(
            splitter.feed(&LOG[..46]),
            "the header ends, and a part of the payload is there"
        );
        assert_eq!(taken(&mut splitter), b"o");
    }

    #[test]
    fn garbage_without_end_is_passed_over() {
        let mut splitter = Splitter::new(Stream::Stdout, Cursor::default());
        let mut log = vec![0_u8; 5000];
        log.push(b'\n');
        log.extend_from_slice(LOG);
        assert!(splitter.feed(&log));
        assert!(taken(&mut splitter).starts_with(b"out\n"));
    }

    proptest! {
        /// Goal: nothing is lost or doubled wherever reading, delivering and the process itself are cut. Method: random
        /// pieces are fed and delivered, and at random times a new splitter goes on from the cursor of the old one.
        #[test]
        fn delivery_goes_on_at_the_next_byte(
            steps in prop::collection::vec((1_usize..80, 0_usize..40, any::<bool>()), 1..400),
        ) {
            for stream in [Stream::Stdout, Stream::Stderr] {
                let mut whole = Splitter::new(stream, Cursor::default());
                whole.feed(LOG);
                let expected = taken(&mut whole);
                let mut got = Vec::new();
                let mut splitter = Splitter::new(stream, Cursor::default());
                let everything = [(LOG.len(), usize::MAX, false), (LOG.len(), usize::MAX, false)];
                for (read, deliver, crash) in steps.iter().copied().chain(everything) {
                    let at = usize::try_from(splitter.reads_at()).unwrap();
                    splitter.feed(&LOG[at..(at + read).min(LOG.len())]);
                    // A header is fed again until it is whole, as the tail of the file is read again.
                    while splitter.pending().is_empty() && splitter.reads_at() < LOG.len() as u64 {
                        let at = usize::try_from(splitter.reads_at()).unwrap();
                        splitter.feed(&LOG[at..(at + 60).min(LOG.len())]);
                    }
                    let mut left = deliver;
                    while left > 0 && !splitter.pending().is_empty() {
                        let len = splitter.pending().len().min(left);
                        got.extend_from_slice(&splitter.pending()[..len]);
                        splitter.delivered(len);
                        left -= len;
                    }
                    if crash {
                        splitter = Splitter::new(stream, splitter.resume_at());
                    }
                }
                prop_assert_eq!(got, expected);
            }
        }
    }
}
