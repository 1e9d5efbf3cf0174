//! The files of a tail: filled with zeros before they are used, and used again when the bucket has what they hold, so that
//! syncing a record writes nothing but the record.
//!
//! A file begins with a block of its own: magic 8, version 1, zero 7, volume 16, session 16, epoch 8, number of the file 8,
//! number of its first record 8, crc32c of the 72 bytes before 4. Records follow: in version 1 each at a block, in version 2,
//! which is a spill's, each at a multiple of 64 bytes and with the answers of calls before what changed.
//! Callers: `log.rs` and `spill.rs` write, `read.rs` reads.

use std::collections::VecDeque;
use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use uuid::Uuid;

use super::record::{RECORD_HEADER_BYTES, Record, RecordHeader};
use super::{TailError, TailName, io_error, sync_folder};
use crate::ids::{Epoch, Generation};
use crate::wire::Reader;

/// 4 KiB: records begin at multiples of it, so that no write of one touches the block of an acknowledged one.
pub(super) const BLOCK_BYTES: u64 = 4096;

/// 8 MiB: some thousand small records, and a quick pause to make. A longer record gets a file as long as itself.
const FILE_BYTES: u64 = 8 * 1024 * 1024;

/// 256 MiB in all files of a tail. Above it an fsync waits for the bucket, until that has caught up.
const TAIL_BYTES_MAX: u64 = 256 * 1024 * 1024;

/// 512 MiB in all files of a spill: five times what may be dirty, because what is written again and again is in it each time.
/// Above it a change waits for the bucket.
const SPILL_BYTES_MAX: u64 = 512 * 1024 * 1024;

/// 16 MiB more for answers alone: their calls wait for the bucket, so there are no more of them than programs that wait, and
/// without its answer a call that the bucket has would be done again.
const ANSWERS_BYTES_MAX: u64 = 16 * 1024 * 1024;

/// 64 bytes: no write of a process that dies touches the record before, so a spill need not waste a block for each.
const SPILL_ALIGN_BYTES: u64 = 64;

/// 1 MiB is gathered for one write.
const GATHER_BYTES: usize = 1024 * 1024;

const _: () = assert!(FILE_BYTES.is_multiple_of(BLOCK_BYTES) && FILE_BYTES <= TAIL_BYTES_MAX / 8);
const _: () = assert!(
    ANSWERS_BYTES_MAX >= 2 * FILE_BYTES,
    "one is written to while the other waits"
);

const MAGIC: &[u8; 8] = b"PnrTail\n";
const HEADER_BYTES: usize = 76;

/// What a log is kept against.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Against {
    /// The end of the machine: each record is synced.
    PowerLoss,
    /// The end of the process: the kernel has it, that is enough.
    ProcessDeath,
}

impl Against {
    fn version(self) -> u8 {
        match self {
            Self::PowerLoss => 1,
            Self::ProcessDeath => 2,
        }
    }

    fn of_version(version: u8) -> Option<Self> {
        match version {
            1 => Some(Self::PowerLoss),
            2 => Some(Self::ProcessDeath),
            _ => None,
        }
    }

    /// Records begin at multiples of it.
    pub(super) fn align(self) -> u64 {
        match self {
            Self::PowerLoss => BLOCK_BYTES,
            Self::ProcessDeath => SPILL_ALIGN_BYTES,
        }
    }

    fn bytes_max(self) -> u64 {
        match self {
            Self::PowerLoss => TAIL_BYTES_MAX,
            Self::ProcessDeath => SPILL_BYTES_MAX,
        }
    }

    fn sync(self, file: &File) -> io::Result<()> {
        match self {
            Self::PowerLoss => file.sync_data(),
            Self::ProcessDeath => Ok(()),
        }
    }
}

/// What the first block of a file says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileHeader {
    pub against: Against,
    pub name: TailName,
    /// Files are numbered as they are begun, also when one is used again.
    pub number: u64,
    pub first_record: u64,
}

impl FileHeader {
    fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        out[..8].copy_from_slice(MAGIC);
        out[8] = self.against.version();
        out[16..32].copy_from_slice(self.name.volume.as_bytes());
        out[32..48].copy_from_slice(self.name.session.as_bytes());
        out[48..56].copy_from_slice(&self.name.epoch.0.to_le_bytes());
        out[56..64].copy_from_slice(&self.number.to_le_bytes());
        out[64..72].copy_from_slice(&self.first_record.to_le_bytes());
        let sum = crc32c::crc32c(&out[..72]);
        out[72..].copy_from_slice(&sum.to_le_bytes());
        out
    }

    /// The header at the start of `file`; `None` where there is none that is whole and of this version.
    pub fn read(file: &File) -> io::Result<Option<Self>> {
        let mut bytes = [0; HEADER_BYTES];
        match file.read_exact_at(&mut bytes, 0) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            done => done?,
        }
        Ok(Self::decode(&bytes))
    }

    fn decode(bytes: &[u8; HEADER_BYTES]) -> Option<Self> {
        let mut reader = Reader::new(bytes);
        let magic = reader.array::<8>("magic").ok()?;
        let against = Against::of_version(reader.byte("version").ok()?)?;
        reader.array::<7>("zero").ok()?;
        let volume = Uuid::from_bytes(reader.array("volume").ok()?);
        let session = Uuid::from_bytes(reader.array("session").ok()?);
        let epoch = Epoch(reader.u64_le("epoch").ok()?);
        let header = Self {
            against,
            name: TailName { volume, epoch, session },
            number: reader.u64_le("number").ok()?,
            first_record: reader.u64_le("first record").ok()?,
        };
        let sum = reader.u32_le("checksum").ok()?;
        (magic == *MAGIC && sum == crc32c::crc32c(&bytes[..72])).then_some(header)
    }
}

/// A file that records are or were written to.
#[derive(Debug)]
struct LogFile {
    path: PathBuf,
    file: File,
    len: u64,
    /// The last commit that any of its records waits for.
    newest: Generation,
    /// The last record in it.
    last_record: u64,
}

impl LogFile {
    /// True if nobody needs any of its records.
    fn is_free(&self, needs: &Needs) -> bool {
        self.newest <= needs.durable && self.last_record < needs.first_record
    }
}

/// What must stay in a log: everything that is younger than a commit, and everything from a record on.
#[derive(Debug, Clone, Copy)]
pub(super) struct Needs {
    /// The last commit that the bucket has.
    pub durable: Generation,
    /// The first record that is needed whatever the bucket has.
    pub first_record: u64,
}

impl Needs {
    /// Of a log whose records tell nothing but what changed.
    pub fn after(durable: Generation) -> Self {
        Self {
            durable,
            first_record: u64::MAX,
        }
    }
}

/// A record to be written.
#[derive(Debug)]
pub(super) struct Entry<'a> {
    /// The commit that will contain what it says.
    pub generation: Generation,
    /// What comes before what changed.
    pub prefix: &'a [u8],
    /// What changed.
    pub record: &'a Record,
}

/// The files of the tail that this mount writes.
#[derive(Debug)]
pub(crate) struct LogFiles {
    against: Against,
    dir: PathBuf,
    name: TailName,
    /// Oldest first; the last one is written to.
    files: VecDeque<LogFile>,
    /// Where the next record goes in the last file.
    position: u64,
    next_record: u64,
    next_file: u64,
    /// Bytes of all files together.
    bytes_max: u64,
}

/// Why a record is not in the log.
#[derive(Debug)]
pub(super) enum Refused {
    /// The bucket must catch up first.
    Full,
    /// The disk.
    Disk(TailError),
}

impl From<TailError> for Refused {
    fn from(error: TailError) -> Self {
        Refused::Disk(error)
    }
}

impl LogFiles {
    /// A new tail in `dir`, with room for the first records.
    pub(super) fn create(dir: PathBuf, name: TailName, against: Against) -> Result<Self, TailError> {
        fs::create_dir_all(&dir).map_err(io_error("make", &dir))?;
        let mut files = Self {
            against,
            dir,
            name,
            files: VecDeque::new(),
            position: BLOCK_BYTES,
            next_record: 1,
            next_file: 1,
            bytes_max: against.bytes_max(),
        };
        files.add(FILE_BYTES)?;
        Ok(files)
    }

    /// Writes a record, and syncs it where that is what the log is for. Returns its number.
    ///
    /// # Durability
    /// After `Ok` the record is found after a crash of this machine, or of this process.
    pub(super) fn append(&mut self, entry: &Entry<'_>, needs: Needs) -> Result<u64, Refused> {
        let mut head = entry.prefix.to_vec();
        entry.record.encode_into(&mut head);
        let content_bytes: u64 = entry.record.content().map(|part| part.len() as u64).sum();
        let body_bytes = head.len() as u64 + content_bytes;
        let sum = entry
            .record
            .content()
            .fold(crc32c::crc32c(&head), |sum, part| crc32c::crc32c_append(sum, part));
        let len = (RECORD_HEADER_BYTES as u64 + body_bytes).next_multiple_of(self.against.align());
        let bytes_max = match entry.record.is_empty() {
            true => self.bytes_max + ANSWERS_BYTES_MAX,
            false => self.bytes_max,
        };
        self.make_room(len, (needs, bytes_max))?;
        let number = self.next_record;
        let header = RecordHeader {
            session: self.name.session,
            number,
            generation: entry.generation,
            body_bytes,
            body_sum: sum,
        };
        let last = self.files.back_mut().expect("there is always a file");
        let header = header.encode();
        let parts = [&header[..], &head].into_iter();
        write_parts(
            &last.file,
            self.position,
            parts.chain(entry.record.content().map(|part| &part[..])),
        )
        .and_then(|()| self.against.sync(&last.file))
        .map_err(io_error("write", &last.path))?;
        last.newest = entry.generation;
        last.last_record = number;
        self.position += len;
        self.next_record += 1;
        Ok(number)
    }

    /// Forgets all records: the bucket has them. What may be wrong with the files goes with them.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn reset(&mut self) -> Result<(), TailError> {
        let old: Vec<PathBuf> = self.files.iter().map(|file| file.path.clone()).collect();
        self.add(FILE_BYTES)?;
        for path in old {
            match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(io_error("remove", &path)(error)),
                _ => {}
            }
            self.files.pop_front();
        }
        sync_folder(&self.dir)
    }

    /// Forgets all records, with one file left that holds none: the bucket has them, and nothing more comes.
    ///
    /// # Errors
    /// `Io`.
    pub(super) fn clear(&mut self) -> Result<(), TailError> {
        while self.files.len() > 1 {
            let oldest = self.files.pop_front().expect("there are several");
            fs::remove_file(&oldest.path).map_err(io_error("remove", &oldest.path))?;
        }
        self.use_again()?;
        sync_folder(&self.dir)
    }

    /// Lets all files together be this long.
    #[cfg(test)]
    pub(super) fn bound(&mut self, bytes_max: u64) {
        self.bytes_max = bytes_max;
    }

    /// How many files there are.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.files.len()
    }

    /// Lets the last file have `len` bytes of room.
    fn make_room(&mut self, len: u64, (needs, bytes_max): (Needs, u64)) -> Result<(), Refused> {
        let room = self
            .files
            .back()
            .map_or(0, |last| last.len.saturating_sub(self.position));
        if room >= len {
            return Ok(());
        }
        let wanted = (BLOCK_BYTES + len).max(FILE_BYTES);
        // The last one as well: where all of it is in the bucket, nothing is lost with it.
        match self.files.front() {
            Some(oldest) if oldest.is_free(&needs) && oldest.len >= wanted => Ok(self.use_again()?),
            Some(_) | None => {
                self.drop_drained(needs)?;
                let all: u64 = self.files.iter().map(|file| file.len).sum();
                if all + wanted > bytes_max {
                    return Err(Refused::Full);
                }
                Ok(self.add(wanted)?)
            }
        }
    }

    /// Removes long files that the bucket has all of: others of the usual length are used again.
    fn drop_drained(&mut self, needs: Needs) -> Result<(), TailError> {
        while self.files.len() > 1 && self.files.front().is_some_and(|file| file.is_free(&needs)) {
            let file = self.files.pop_front().expect("looked at above");
            fs::remove_file(&file.path).map_err(io_error("remove", &file.path))?;
        }
        Ok(())
    }

    fn use_again(&mut self) -> Result<(), TailError> {
        let header = self.next_header();
        let oldest = self.files.front_mut().expect("the caller has looked");
        let begun = oldest
            .file
            .write_all_at(&header.encode(), 0)
            .and_then(|()| self.against.sync(&oldest.file));
        begun.map_err(io_error("write", &oldest.path))?;
        oldest.newest = Generation(0);
        oldest.last_record = 0;
        self.files.rotate_left(1);
        self.next_file += 1;
        self.position = BLOCK_BYTES;
        Ok(())
    }

    fn next_header(&self) -> FileHeader {
        FileHeader {
            against: self.against,
            name: self.name,
            number: self.next_file,
            first_record: self.next_record,
        }
    }

    /// Makes a file whose blocks exist on the disk. It gets its name when it is whole.
    fn add(&mut self, len: u64) -> Result<(), TailError> {
        let header = self.next_header();
        let path = self.dir.join(format!("{FILE_PREFIX}{:016x}", self.next_file));
        let new = self.dir.join("new");
        let file = make_file(&new, &header, len).map_err(io_error("make", &new))?;
        fs::rename(&new, &path).map_err(io_error("rename", &new))?;
        if self.against == Against::PowerLoss {
            sync_folder(&self.dir)?;
        }
        self.files.push_back(LogFile {
            path,
            file,
            len,
            newest: Generation(0),
            last_record: 0,
        });
        self.next_file += 1;
        self.position = BLOCK_BYTES;
        Ok(())
    }
}

/// What the name of a file begins with.
pub(super) const FILE_PREFIX: &str = "log-";

fn make_file(path: &Path, header: &FileHeader, len: u64) -> io::Result<File> {
    let mut options = OpenOptions::new();
    let file = options.create(true).truncate(true).read(true).write(true).open(path)?;
    if header.against == Against::ProcessDeath {
        file.set_len(len)?;
        file.write_all_at(&header.encode(), 0)?;
        return Ok(file);
    }
    let zeros = vec![0; GATHER_BYTES];
    let mut at = 0;
    while at < len {
        let part = (len - at).min(zeros.len() as u64);
        file.write_all_at(&zeros[..part as usize], at)?;
        at += part;
    }
    file.write_all_at(&header.encode(), 0)?;
    file.sync_all()?;
    Ok(file)
}

/// Writes parts one behind the other, small ones together.
fn write_parts<'a>(file: &File, position: u64, parts: impl Iterator<Item = &'a [u8]>) -> io::Result<()> {
    let mut at = position;
    let mut gathered: Vec<u8> = Vec::with_capacity(16 * 1024);
    for part in parts {
        if gathered.len() + part.len() > GATHER_BYTES {
            file.write_all_at(&gathered, at)?;
            at += gathered.len() as u64;
            gathered.clear();
        }
        if part.len() > GATHER_BYTES {
            file.write_all_at(part, at)?;
            at += part.len() as u64;
        } else {
            gathered.extend_from_slice(part);
        }
    }
    file.write_all_at(&gathered, at)
}
