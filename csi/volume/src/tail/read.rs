//! Reading a tail back after a crash, record by record.
//!
//! Invariant: what was acknowledged is told or is an error. Only the very last record may be less than whole, as a crash
//! leaves it: it was not acknowledged. (Where the last acknowledged record itself is damaged, that looks the same: a disk
//! that changes what it has synced is told only where something follows.)

use std::fs::{self, File};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use bytes::{Bytes, BytesMut};

use super::answers::Answers;
use super::file::{Against, BLOCK_BYTES, FILE_PREFIX, FileHeader};
use super::record::{RECORD_HEADER_BYTES, RECORD_MAGIC, Record, RecordHeader};
use super::{TailError, TailName, io_error};
use crate::ids::Generation;
use crate::wire::WireError;

#[derive(Debug)]
struct Found {
    path: PathBuf,
    file: File,
    len: u64,
    header: FileHeader,
}

/// A record as it was found.
#[derive(Debug, PartialEq)]
pub(crate) struct Logged {
    /// Its number.
    pub number: u64,
    /// The commit that contains it.
    pub generation: Generation,
    /// Which calls it answers; empty but for a spill.
    pub answers: Answers,
    /// What changed.
    pub record: Record,
}

/// A tail that is read from its oldest record on.
#[derive(Debug)]
pub(crate) struct TailReader {
    name: TailName,
    against: Against,
    /// In the order in which they were begun.
    files: Vec<Found>,
    at: usize,
    position: u64,
    next_record: u64,
    /// Where a record cannot be read, look whether another one follows.
    looks: bool,
}

/// 1 MiB at a time, a multiple of what records are aligned to.
const LOOK_BYTES: usize = 1024 * 1024;

impl TailReader {
    /// The tail in `folder`.
    ///
    /// # Errors
    /// `Damaged` where a file is missing or is not one of this tail; `Io`.
    pub(super) fn open(folder: &Path, name: TailName) -> Result<Self, TailError> {
        let mut files = found_in(folder)?;
        files.sort_by_key(|found| found.header.number);
        let damaged = |found: &Found, detail: &str| TailError::Damaged {
            path: found.path.clone(),
            offset: 0,
            detail: detail.to_owned(),
        };
        if let Some(other) = files.iter().find(|found| found.header.name != name) {
            return Err(damaged(other, "it belongs to another tail"));
        }
        if let Some(pair) = files
            .windows(2)
            .find(|pair| pair[1].header.number != pair[0].header.number + 1)
        {
            return Err(damaged(&pair[1], "the file before it is missing"));
        }
        let Some(first) = files.first() else {
            return Err(TailError::Damaged {
                path: folder.to_path_buf(),
                offset: 0,
                detail: "its files are missing".to_owned(),
            });
        };
        let against = first.header.against;
        if let Some(other) = files.iter().find(|found| found.header.against != against) {
            return Err(damaged(other, "it is of another kind than the files before it"));
        }
        Ok(Self {
            name,
            against,
            next_record: first.header.first_record,
            files,
            at: 0,
            position: BLOCK_BYTES,
            // No power is lost between the records of a spill: what cannot be read is the last one, which its writer did not finish.
            looks: against == Against::PowerLoss,
        })
    }

    /// The same, for one that must be whole whatever it was written against: a disk may change what it has.
    pub fn doubting(mut self) -> Self {
        self.looks = true;
        self
    }

    /// The next record that a commit after `durable` would contain.
    ///
    /// # Errors
    /// `Damaged`, `Io`.
    pub fn next(&mut self, durable: Generation) -> Result<Option<Logged>, TailError> {
        loop {
            let Some(header) = self.header_at(self.at, self.position)? else {
                match self.files.get(self.at + 1) {
                    Some(next) if next.header.first_record == self.next_record => {
                        self.at += 1;
                        self.position = BLOCK_BYTES;
                        continue;
                    }
                    Some(_) => return Err(self.damaged("a record is missing")),
                    None => return self.end("the header of a record cannot be read"),
                }
            };
            let position = self.position;
            if header.generation > durable {
                let (answers, record) = match self.body(&header, position)? {
                    Ok(body) => body,
                    Err(detail) => return self.end(&detail),
                };
                self.pass(&header);
                return Ok(Some(Logged {
                    number: header.number,
                    generation: header.generation,
                    answers,
                    record,
                }));
            }
            self.pass(&header);
        }
    }

    fn pass(&mut self, header: &RecordHeader) {
        self.position += (RECORD_HEADER_BYTES as u64 + header.body_bytes).next_multiple_of(self.against.align());
        self.next_record += 1;
    }

    /// The header of the next record, if it is there.
    fn header_at(&self, at: usize, position: u64) -> Result<Option<RecordHeader>, TailError> {
        let header = self.any_header_at(at, position)?;
        Ok(header.filter(|header| header.number == self.next_record))
    }

    /// The header of a record of this tail, whichever it is.
    fn any_header_at(&self, at: usize, position: u64) -> Result<Option<RecordHeader>, TailError> {
        let found = &self.files[at];
        if position + RECORD_HEADER_BYTES as u64 > found.len {
            return Ok(None);
        }
        let mut bytes = [0; RECORD_HEADER_BYTES];
        let read = found.file.read_exact_at(&mut bytes, position);
        read.map_err(io_error("read", &found.path))?;
        let fits = |header: &RecordHeader| {
            let end = position.checked_add(RECORD_HEADER_BYTES as u64 + header.body_bytes.min(found.len));
            header.session == self.name.session && end.is_some_and(|end| end <= found.len)
        };
        Ok(RecordHeader::decode(&bytes).filter(fits))
    }

    /// The record of a header, or what is wrong with it.
    fn body(&self, header: &RecordHeader, position: u64) -> Result<Result<(Answers, Record), String>, TailError> {
        let found = &self.files[self.at];
        let mut body = BytesMut::zeroed(header.body_bytes as usize);
        let read = found
            .file
            .read_exact_at(&mut body, position + RECORD_HEADER_BYTES as u64);
        read.map_err(io_error("read", &found.path))?;
        let sum = crc32c::crc32c(&body);
        if sum != header.body_sum {
            return Ok(Err(format!(
                "the checksum of record {} is {sum:08x}, it says {:08x}",
                header.number, header.body_sum
            )));
        }
        let record = self.decode(body.freeze());
        // Whole, and yet nothing that this program writes: no crash does that.
        record.map(Ok).map_err(|error| self.damaged(&error.to_string()))
    }

    fn decode(&self, mut body: Bytes) -> Result<(Answers, Record), WireError> {
        let answers = match self.against {
            Against::PowerLoss => Answers::default(),
            Against::ProcessDeath => Answers::decode_front(&mut body)?,
        };
        Ok((answers, Record::decode(&body)?))
    }

    /// Here the tail ends, unless anything follows that was written later.
    fn end(&self, detail: &str) -> Result<Option<Logged>, TailError> {
        let later = self.at + 1 < self.files.len() || (self.looks && self.is_followed()?);
        match later {
            true => Err(self.damaged(detail)),
            false => Ok(None),
        }
    }

    /// True if a record that was written later lies in the rest of the file.
    fn is_followed(&self) -> Result<bool, TailError> {
        let (found, align) = (&self.files[self.at], self.against.align());
        let mut position = self.position + align;
        let mut chunk = vec![0; LOOK_BYTES];
        while position < found.len {
            let len = usize::try_from(found.len - position).map_or(LOOK_BYTES, |left| left.min(LOOK_BYTES));
            let read = found.file.read_exact_at(&mut chunk[..len], position);
            read.map_err(io_error("read", &found.path))?;
            let may_begin = |at: &u64| chunk[..len][*at as usize..].starts_with(RECORD_MAGIC);
            for at in (0..len as u64).step_by(align as usize).filter(may_begin) {
                let header = self.any_header_at(self.at, position + at)?;
                if header.is_some_and(|header| header.number > self.next_record) {
                    return Ok(true);
                }
            }
            position += LOOK_BYTES as u64;
        }
        Ok(false)
    }

    fn damaged(&self, detail: &str) -> TailError {
        TailError::Damaged {
            path: self.files[self.at].path.clone(),
            offset: self.position,
            detail: detail.to_owned(),
        }
    }
}

fn found_in(folder: &Path) -> Result<Vec<Found>, TailError> {
    let mut files = Vec::new();
    for entry in fs::read_dir(folder).map_err(io_error("list", folder))? {
        let path = entry.map_err(io_error("list", folder))?.path();
        let ours = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(FILE_PREFIX));
        if !ours {
            continue;
        }
        let file = File::open(&path).map_err(io_error("open", &path))?;
        let len = file.metadata().map_err(io_error("read", &path))?.len();
        match FileHeader::read(&file).map_err(io_error("read", &path))? {
            Some(header) => files.push(Found {
                path,
                file,
                len,
                header,
            }),
            None => {
                return Err(TailError::Damaged {
                    path,
                    offset: 0,
                    detail: "its header cannot be read".to_owned(),
                });
            }
        }
    }
    Ok(files)
}

/// True if a tail may hold anything: where that cannot be told, it may.
pub(super) fn has_records(folder: &Path) -> bool {
    let Ok(files) = found_in(folder) else { return true };
    let Some(name) = files.first().map(|found| found.header.name) else {
        return false;
    };
    match TailReader::open(folder, name) {
        Ok(mut reader) => !matches!(reader.next(Generation(0)), Ok(None)),
        Err(_) => true,
    }
}
