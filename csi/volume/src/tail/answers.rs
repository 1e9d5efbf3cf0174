//! The answers that a record of a spill holds: what a change that is in the record has told, or was about to tell, the program
//! that asked for it.
//!
//! A program's call reaches a successor again if its writer died before it answered. The call and its change are one
//! record, so that either both or neither are found. Caller: `spill.rs`, `read.rs`.
//! Before what changed: the first record with a call that may still wait for its answer, the number of calls, and of each its
//! number and the inode of the answer (0 for none).

use bytes::{Buf, Bytes};

use crate::ids::InodeNo;
use crate::wire::{Reader, WireError, put_varint};

/// One call that was done.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Answer {
    /// What its caller calls it; never used for another call of the same connection.
    pub call: u64,
    /// The inode that it has made or named; 0 where the answer names none.
    pub ino: InodeNo,
}

/// What a record says of calls.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Answers {
    /// No call in a record before this one waits for its answer.
    pub first_open: u64,
    /// The calls that this record holds.
    pub done: Vec<Answer>,
}

impl Answers {
    /// The bytes before what changed.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(12 + 16 * self.done.len());
        put_varint(&mut out, self.first_open);
        put_varint(&mut out, self.done.len() as u64);
        for answer in &self.done {
            put_varint(&mut out, answer.call);
            put_varint(&mut out, answer.ino.0);
        }
        out
    }

    /// Takes them off the front of a body.
    ///
    /// # Errors
    /// `WireError`: no build of this version writes that.
    pub fn decode_front(body: &mut Bytes) -> Result<Self, WireError> {
        let mut reader = Reader::new(body);
        let first_open = reader.varint("first open record")?;
        let count = reader.varint("number of answers")?;
        let mut done = Vec::new();
        for _ in 0..count {
            done.push(Answer {
                call: reader.varint("call")?,
                ino: InodeNo(reader.varint("inode of an answer")?),
            });
        }
        let taken = body.len() - reader.left();
        body.advance(taken);
        Ok(Self { first_open, done })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_read_as_they_were_written_and_leave_what_follows() {
        let answers = Answers {
            first_open: 300,
            done: vec![
                Answer {
                    call: u64::MAX >> 1,
                    ino: InodeNo(7),
                },
                Answer {
                    call: 4,
                    ino: InodeNo(0),
                },
            ],
        };
        let mut encoded = answers.encode();
        encoded.extend_from_slice(b"rest");
        let mut body = Bytes::from(encoded.clone());
        assert_eq!(Answers::decode_front(&mut body).unwrap(), answers);
        assert_eq!(&body[..], b"rest");
        for len in 0..encoded.len() - 4 {
            let mut part = Bytes::copy_from_slice(&encoded[..len]);
            assert!(Answers::decode_front(&mut part).is_err(), "{len} bytes");
        }
    }
}
