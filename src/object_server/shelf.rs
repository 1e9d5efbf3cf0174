//! Objects on local disk: one file an object in one flat directory a bucket, and an index of them in RAM.
//!
//! A file is 16 bytes of version and then the body, written beside its place and renamed into it while the index is
//! locked: that is what makes a conditional put atomic. Callers: `s3.rs`. Absent: HTTP.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use bytes::Bytes;
use uuid::Uuid;

/// Bytes of version in front of each body.
const VERSION_BYTES: u64 = 16;

/// Longest file name of the common file systems, in bytes.
const NAME_BYTES_MAX: usize = 255;

/// Name of what is being written; a key can never encode to it.
const UNFINISHED: &str = "%unfinished-";

/// The version of an object: new with each put, so a replaced object never has an old version again.
pub type Version = Uuid;

/// What the index knows of an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Record {
    /// Version.
    pub version: Version,
    /// Length of the body in bytes.
    pub size_bytes: u64,
    /// When it was put.
    pub modified: SystemTime,
}

/// What must hold for a put.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Condition {
    /// Nothing.
    Always,
    /// The key has no object.
    Absent,
    /// The key has some object.
    Present,
    /// The key has this version.
    Is(Version),
}

/// Why the shelf refused.
#[derive(Debug, thiserror::Error)]
pub enum ShelfError {
    /// No such bucket.
    #[error("no such bucket")]
    NoBucket,
    /// No such object.
    #[error("no such object")]
    NoObject,
    /// The condition of a put does not hold.
    #[error("the condition does not hold")]
    Condition,
    /// The key's encoding is longer than a file name.
    #[error("the key is too long for this server")]
    KeyTooLong,
    /// The range begins beyond the end.
    #[error("the range begins beyond the end")]
    Range,
    /// The disk failed.
    #[error("the disk failed: {0}")]
    Disk(#[from] io::Error),
}

type Index = BTreeMap<String, BTreeMap<String, Record>>;

/// All buckets below one directory.
#[derive(Debug)]
pub struct Shelf {
    dir: PathBuf,
    /// Bucket, then key. Held only for map work and a rename, never while a body is read or written.
    index: Mutex<Index>,
}

impl Shelf {
    /// Opens a directory, making it if needed, and reads what is there.
    pub fn open(dir: &Path) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let mut index = Index::new();
        for bucket in fs::read_dir(dir)? {
            let bucket = bucket?;
            if bucket.file_type()?.is_dir() {
                let name = bucket.file_name().to_string_lossy().into_owned();
                index.insert(name, read_bucket(&bucket.path())?);
            }
        }
        Ok(Self {
            dir: dir.to_owned(),
            index: Mutex::new(index),
        })
    }

    /// Makes a bucket; nothing happens if it is there.
    pub fn make_bucket(&self, bucket: &str) -> io::Result<()> {
        fs::create_dir_all(self.dir.join(bucket))?;
        self.index().entry(bucket.to_owned()).or_default();
        Ok(())
    }

    /// Whether there is such a bucket.
    pub fn has_bucket(&self, bucket: &str) -> bool {
        self.index().contains_key(bucket)
    }

    /// Puts an object if the condition holds, atomically.
    pub fn put(&self, bucket: &str, key: &str, body: &[u8], condition: Condition) -> Result<Record, ShelfError> {
        let place = self.place(bucket, key)?;
        let version = Uuid::new_v4();
        let unfinished = self.dir.join(bucket).join(format!("{UNFINISHED}{version}"));
        let written = write_file(&unfinished, version, body).map_err(ShelfError::from);
        let result = written.and_then(|modified| {
            let mut index = self.index();
            let objects = index.get_mut(bucket).ok_or(ShelfError::NoBucket)?;
            let present = objects.get(key).map(|record| record.version);
            let holds = match condition {
                Condition::Always => true,
                Condition::Absent => present.is_none(),
                Condition::Present => present.is_some(),
                Condition::Is(wanted) => present == Some(wanted),
            };
            if !holds {
                return Err(ShelfError::Condition);
            }
            fs::rename(&unfinished, &place)?;
            let record = Record {
                version,
                size_bytes: body.len() as u64,
                modified,
            };
            objects.insert(key.to_owned(), record);
            Ok(record)
        });
        if result.is_err() {
            // It is not in the index and never will be; the next opening removes it if this does not.
            drop(fs::remove_file(&unfinished));
        }
        result
    }

    /// What the index knows of a key.
    pub fn record(&self, bucket: &str, key: &str) -> Result<Record, ShelfError> {
        let index = self.index();
        let objects = index.get(bucket).ok_or(ShelfError::NoBucket)?;
        objects.get(key).copied().ok_or(ShelfError::NoObject)
    }

    /// Reads a range of an object, chosen by its length. What is returned belongs to one version.
    pub fn get(
        &self,
        bucket: &str,
        key: &str,
        choose: impl FnOnce(u64) -> Option<Range<u64>>,
    ) -> Result<(Record, Range<u64>, Bytes), ShelfError> {
        self.record(bucket, key)?;
        let mut file = match File::open(self.place(bucket, key)?) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(ShelfError::NoObject),
            Err(error) => return Err(error.into()),
        };
        let record = read_record(&mut file)?;
        let range = choose(record.size_bytes).ok_or(ShelfError::Range)?;
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut body = vec![0; length];
        file.seek(SeekFrom::Start(VERSION_BYTES + range.start))?;
        file.read_exact(&mut body)?;
        Ok((record, range, body.into()))
    }

    /// Deletes an object; nothing happens if it is not there.
    pub fn delete(&self, bucket: &str, key: &str) -> Result<(), ShelfError> {
        let place = self.place(bucket, key)?;
        let mut index = self.index();
        let objects = index.get_mut(bucket).ok_or(ShelfError::NoBucket)?;
        if objects.remove(key).is_some() {
            fs::remove_file(place)?;
        }
        Ok(())
    }

    /// Keys after `after` that begin with `prefix`, in order, for as long as `take` wants more.
    pub fn walk(
        &self,
        bucket: &str,
        prefix: &str,
        after: &str,
        mut take: impl FnMut(&str, &Record) -> bool,
    ) -> Result<(), ShelfError> {
        use std::ops::Bound::{Excluded, Included, Unbounded};
        let index = self.index();
        let objects = index.get(bucket).ok_or(ShelfError::NoBucket)?;
        let from = if after >= prefix {
            Excluded(after)
        } else {
            Included(prefix)
        };
        for (key, record) in objects.range::<str, _>((from, Unbounded)) {
            if !key.starts_with(prefix) || !take(key, record) {
                break;
            }
        }
        Ok(())
    }

    fn index(&self) -> MutexGuard<'_, Index> {
        // The index is only ever changed by one insert or remove: a panic in between leaves it whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn place(&self, bucket: &str, key: &str) -> Result<PathBuf, ShelfError> {
        if !self.has_bucket(bucket) {
            return Err(ShelfError::NoBucket);
        }
        let name = encode(key);
        if name.len() > NAME_BYTES_MAX {
            return Err(ShelfError::KeyTooLong);
        }
        Ok(self.dir.join(bucket).join(name))
    }
}

/// A key as a file name: letters, digits, `-`, `_` and `.` stay, but for a leading dot; the rest as `%XX`.
fn encode(key: &str) -> String {
    let mut name = String::with_capacity(key.len() + 8);
    for (at, byte) in key.bytes().enumerate() {
        let stays = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_') || (byte == b'.' && at > 0);
        if stays {
            name.push(char::from(byte));
        } else {
            name.push_str(&format!("%{byte:02X}"));
        }
    }
    name
}

/// The key of a file name; `None` if no key encodes to it.
fn decode(name: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(name.len());
    let mut rest = name.as_bytes();
    while let [first, tail @ ..] = rest {
        if *first == b'%' {
            let digits = std::str::from_utf8(tail.get(..2)?).ok()?;
            bytes.push(u8::from_str_radix(digits, 16).ok()?);
            rest = &tail[2..];
        } else {
            bytes.push(*first);
            rest = tail;
        }
    }
    String::from_utf8(bytes).ok()
}

fn read_bucket(dir: &Path) -> io::Result<BTreeMap<String, Record>> {
    let mut objects = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        if name.starts_with(UNFINISHED) {
            fs::remove_file(entry.path())?;
        } else if let Some(key) = decode(&name) {
            objects.insert(key, read_record(&mut File::open(entry.path())?)?);
        }
    }
    Ok(objects)
}

fn read_record(file: &mut File) -> io::Result<Record> {
    let mut version = [0; VERSION_BYTES as usize];
    file.read_exact(&mut version)?;
    let meta = file.metadata()?;
    Ok(Record {
        version: Uuid::from_bytes(version),
        size_bytes: meta.len() - VERSION_BYTES,
        modified: meta.modified()?,
    })
}

fn write_file(path: &Path, version: Version, body: &[u8]) -> io::Result<SystemTime> {
    let mut file = File::create_new(path)?;
    file.write_all(version.as_bytes())?;
    file.write_all(body)?;
    file.metadata()?.modified()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shelf() -> (tempfile::TempDir, Shelf) {
        let dir = tempfile::tempdir().unwrap();
        let shelf = Shelf::open(dir.path()).unwrap();
        shelf.make_bucket("b").unwrap();
        (dir, shelf)
    }

    fn keys(shelf: &Shelf, prefix: &str, after: &str) -> Vec<String> {
        let mut keys = Vec::new();
        shelf
            .walk("b", prefix, after, |key, _| {
                keys.push(key.to_owned());
                true
            })
            .unwrap();
        keys
    }

    #[test]
    fn of_racing_creators_exactly_one_wins() {
        let (_dir, shelf) = shelf();
        let won: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..32)
                .map(|n: u8| {
                    let shelf = &shelf;
                    scope.spawn(move || usize::from(shelf.put("b", "k", &[n], Condition::Absent).is_ok()))
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
        assert_eq!(
            fs::read_dir(_dir.path().join("b")).unwrap().count(),
            1,
            "losers leave no files"
        );
    }

    #[test]
    fn of_racing_replacers_of_one_version_exactly_one_wins() {
        let (_dir, shelf) = shelf();
        let first = shelf.put("b", "k", b"0", Condition::Absent).unwrap();
        let won: usize = std::thread::scope(|scope| {
            let racers: Vec<_> = (0..32)
                .map(|n: u8| {
                    let shelf = &shelf;
                    scope.spawn(move || usize::from(shelf.put("b", "k", &[n], Condition::Is(first.version)).is_ok()))
                })
                .collect();
            racers.into_iter().map(|racer| racer.join().unwrap()).sum()
        });
        assert_eq!(won, 1);
        assert!(matches!(
            shelf.put("b", "k", b"x", Condition::Is(first.version)),
            Err(ShelfError::Condition)
        ));
        assert!(matches!(
            shelf.put("b", "gone", b"x", Condition::Is(first.version)),
            Err(ShelfError::Condition)
        ));
    }

    #[test]
    fn a_reopened_shelf_has_the_same_objects_and_versions_and_no_unfinished_ones() {
        let (dir, shelf) = shelf();
        let record = shelf.put("b", "v/a b/ü.x", b"body", Condition::Always).unwrap();
        fs::write(dir.path().join("b").join(format!("{UNFINISHED}x")), b"half").unwrap();
        drop(shelf);
        let shelf = Shelf::open(dir.path()).unwrap();
        assert_eq!(keys(&shelf, "", ""), ["v/a b/ü.x"]);
        let (found, _, body) = shelf.get("b", "v/a b/ü.x", |size| Some(0..size)).unwrap();
        assert_eq!((found.version, body.as_ref()), (record.version, b"body".as_ref()));
        assert_eq!(fs::read_dir(dir.path().join("b")).unwrap().count(), 1);
    }

    #[test]
    fn a_walk_is_in_order_and_starts_strictly_after_the_given_key() {
        let (_dir, shelf) = shelf();
        for key in ["a", "p/1", "p/2", "p/3", "q"] {
            shelf.put("b", key, b"", Condition::Always).unwrap();
        }
        assert_eq!(keys(&shelf, "p/", ""), ["p/1", "p/2", "p/3"]);
        assert_eq!(keys(&shelf, "p/", "p/1"), ["p/2", "p/3"]);
        assert_eq!(keys(&shelf, "p/", "z"), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_there_is_said_so() {
        let (_dir, shelf) = shelf();
        assert!(matches!(shelf.record("b", "k"), Err(ShelfError::NoObject)));
        assert!(matches!(shelf.record("c", "k"), Err(ShelfError::NoBucket)));
        assert!(matches!(
            shelf.put("b", &"k".repeat(300), b"", Condition::Always),
            Err(ShelfError::KeyTooLong)
        ));
        shelf.delete("b", "k").unwrap();
    }
}
