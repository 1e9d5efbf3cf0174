//! Frames on disk: survives restarts of the program, and is bounded.
//!
//! A folder of regions, files that are only ever appended to; the oldest is deleted when there are too many. What they
//! hold is found by reading the headers of their entries once after opening. Frames are checked by whoever reads them, so
//! a torn, lost or damaged entry costs a GET and nothing else. Nothing is synced: after a power failure the cache may be
//! smaller.
//!
//! An entry: magic 4, kind of the object 1, zero 3, its two numbers 8 + 8, offset 8, length 4, crc32c 4 over the 36 bytes
//! before, then the frame as stored.

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::{BufMut, Bytes, BytesMut};
use tokio::sync::Semaphore;

use super::FrameKey;
use crate::ids::{Epoch, JournalSeq, ObjectId};

const MAGIC: &[u8; 4] = b"PnrC";
const ENTRY_HEADER_BYTES: usize = 40;
const KIND_JOURNAL: u8 = 1;
const KIND_SEGMENT: u8 = 2;

/// A 16th of the cache is given up at a time, so that what stays is most of it.
const REGIONS: u64 = 16;

/// 64 KiB: a region is never shorter, so that a tiny cache still holds a frame of 4 KiB in each.
const REGION_BYTES_MIN: u64 = 64 * 1024;

/// 32 MiB wait for the disk at most. More is not cached: neither reading nor a commit must wait for a slow disk.
const WRITING_BYTES_MAX: u64 = 32 * 1024 * 1024;

/// 64 KiB: what waiting bytes are counted in.
const WRITING_UNIT_BYTES: u64 = 64 * 1024;

/// As many units.
const WRITING_UNITS_MAX: u32 = (WRITING_BYTES_MAX / WRITING_UNIT_BYTES) as u32;

#[derive(Debug, Clone, Copy)]
struct Location {
    region: u64,
    position: u64,
    len: u32,
}

#[derive(Debug)]
struct Region {
    file: Arc<File>,
    bytes: u64,
    keys: Vec<FrameKey>,
}

#[derive(Debug, Default)]
struct Index {
    by_key: HashMap<FrameKey, Location>,
    /// By their number, which is that of their file; the last one is appended to.
    regions: BTreeMap<u64, Region>,
    /// Nothing on disk is changed any more.
    closed: bool,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    region_bytes: u64,
    /// Held for a look-up or an append of a few frames, never across an await.
    index: Mutex<Index>,
    writes: Arc<Semaphore>,
}

/// Keeps a second program out, and ends the background work with the last handle, so that the folder can be opened anew
/// at once.
#[derive(Debug)]
struct Guard {
    inner: Arc<Inner>,
    _lock: File,
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.inner.lock().closed = true;
    }
}

/// The cache on disk of one volume.
#[derive(Debug, Clone)]
pub(crate) struct DiskCache {
    inner: Arc<Inner>,
    _guard: Arc<Guard>,
}

impl DiskCache {
    /// Opens or makes the cache in `dir`; finds what is in it in the background. `None` if another program uses it.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(dir: &Path, bytes_max: u64) -> io::Result<Option<Self>> {
        std::fs::create_dir_all(dir)?;
        let lock = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(dir.join("lock"))?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => return Ok(None),
            Err(TryLockError::Error(error)) => return Err(error),
        }
        let inner = Arc::new(Inner {
            dir: dir.to_owned(),
            region_bytes: (bytes_max / REGIONS).max(REGION_BYTES_MIN),
            index: Mutex::default(),
            writes: Arc::new(Semaphore::new(WRITING_UNITS_MAX as usize)),
        });
        let found = region_numbers(dir)?;
        // What is appended from now on goes to a region of its own, so that the search never meets it.
        let next = found.last().map_or(0, |last| last + 1);
        inner.lock().regions.insert(
            next,
            Region {
                file: create(dir, next)?,
                bytes: 0,
                keys: Vec::new(),
            },
        );
        let searcher = Arc::clone(&inner);
        tokio::task::spawn_blocking(move || searcher.find(found));
        let guard = Guard {
            inner: Arc::clone(&inner),
            _lock: lock,
        };
        Ok(Some(Self {
            inner,
            _guard: Arc::new(guard),
        }))
    }

    /// Those of the frames that are here, as stored. A frame that cannot be read is not here.
    pub async fn get(&self, keys: Vec<FrameKey>) -> Vec<(FrameKey, Bytes)> {
        let located: Vec<(FrameKey, Arc<File>, Location)> = {
            let index = self.inner.lock();
            let locate = |key: FrameKey| {
                let location = *index.by_key.get(&key)?;
                Some((key, Arc::clone(&index.regions.get(&location.region)?.file), location))
            };
            keys.into_iter().filter_map(locate).collect()
        };
        if located.is_empty() {
            return Vec::new();
        }
        let read = move || {
            let read_one = |(key, file, location): (FrameKey, Arc<File>, Location)| {
                let mut frame = BytesMut::zeroed(location.len as usize);
                file.read_exact_at(&mut frame, location.position).ok()?;
                Some((key, frame.freeze()))
            };
            located.into_iter().filter_map(read_one).collect()
        };
        tokio::task::spawn_blocking(read).await.unwrap_or_default()
    }

    /// True if the frame is here.
    pub fn contains(&self, key: FrameKey) -> bool {
        self.inner.lock().by_key.contains_key(&key)
    }

    /// Keeps frames, if the disk is quick enough.
    pub fn put(&self, frames: Arc<Vec<(FrameKey, Bytes)>>) {
        let bytes: u64 = frames.iter().map(|(_, stored)| stored.len() as u64).sum();
        let units = u32::try_from(bytes.div_ceil(WRITING_UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.clamp(1, WRITING_UNITS_MAX);
        let Ok(permit) = Arc::clone(&self.inner.writes).try_acquire_many_owned(units) else {
            return;
        };
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            for (key, stored) in frames.iter() {
                if let Err(error) = inner.append(*key, stored) {
                    tracing::warn!(%error, dir = %inner.dir.display(), "a frame could not be cached on disk");
                    break;
                }
            }
            drop(permit);
        });
    }

    /// Drops a frame that turned out to be damaged.
    pub fn remove(&self, key: FrameKey) {
        self.inner.lock().by_key.remove(&key);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn append(&self, key: FrameKey, stored: &Bytes) -> io::Result<()> {
        let entry = encode(key, stored);
        let mut index = self.lock();
        if index.closed || index.by_key.contains_key(&key) || entry.len() as u64 > self.region_bytes {
            return Ok(());
        }
        let (&number, region) = index
            .regions
            .last_key_value()
            .expect("there is always a region to append to");
        if region.bytes + entry.len() as u64 > self.region_bytes {
            let file = create(&self.dir, number + 1)?;
            index.regions.insert(
                number + 1,
                Region {
                    file,
                    bytes: 0,
                    keys: Vec::new(),
                },
            );
            self.drop_oldest(&mut index);
        }
        let index = &mut *index;
        let mut last = index
            .regions
            .last_entry()
            .expect("there is always a region to append to");
        let (number, position) = (*last.key(), last.get().bytes);
        last.get().file.write_all_at(&entry, position)?;
        last.get_mut().bytes += entry.len() as u64;
        last.get_mut().keys.push(key);
        let position = position + ENTRY_HEADER_BYTES as u64;
        index.by_key.insert(
            key,
            Location {
                region: number,
                position,
                len: stored.len() as u32,
            },
        );
        Ok(())
    }

    fn drop_oldest(&self, index: &mut Index) {
        while index.regions.len() as u64 > REGIONS {
            let Some((number, region)) = index.regions.pop_first() else {
                return;
            };
            for key in region.keys {
                if index.by_key.get(&key).is_some_and(|location| location.region == number) {
                    index.by_key.remove(&key);
                }
            }
            if let Err(error) = std::fs::remove_file(path_of(&self.dir, number)) {
                tracing::warn!(%error, dir = %self.dir.display(), number, "an old region of the cache could not be deleted");
            }
        }
    }

    /// Reads the headers of regions that an earlier program has left, the newest first.
    fn find(&self, numbers: Vec<u64>) {
        for number in numbers.into_iter().rev() {
            let found = match OpenOptions::new().read(true).open(path_of(&self.dir, number)) {
                Ok(file) => entries(file),
                Err(error) => Err(error),
            };
            match found {
                Ok((file, bytes, entries)) => {
                    let mut index = self.lock();
                    if index.closed {
                        return;
                    }
                    let mut keys = Vec::with_capacity(entries.len());
                    for (key, position, len) in entries {
                        index.by_key.entry(key).or_insert(Location {
                            region: number,
                            position,
                            len,
                        });
                        keys.push(key);
                    }
                    index.regions.insert(
                        number,
                        Region {
                            file: Arc::new(file),
                            bytes,
                            keys,
                        },
                    );
                    self.drop_oldest(&mut index);
                }
                Err(error) => {
                    tracing::warn!(%error, dir = %self.dir.display(), number, "a region of the cache cannot be read");
                }
            }
        }
    }
}

fn path_of(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("region-{number:016x}"))
}

fn create(dir: &Path, number: u64) -> io::Result<Arc<File>> {
    let file = OpenOptions::new()
        .create(true)
        .truncate(true)
        .read(true)
        .write(true)
        .open(path_of(dir, number))?;
    Ok(Arc::new(file))
}

fn region_numbers(dir: &Path) -> io::Result<Vec<u64>> {
    let mut numbers = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_prefix("region-"));
        numbers.extend(number.and_then(|digits| u64::from_str_radix(digits, 16).ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

type Found = (File, u64, Vec<(FrameKey, u64, u32)>);

/// The entries of a region up to the first that is not whole.
fn entries(file: File) -> io::Result<Found> {
    let bytes = file.metadata()?.len();
    let (mut at, mut found) = (0, Vec::new());
    let mut header = [0; ENTRY_HEADER_BYTES];
    while at + ENTRY_HEADER_BYTES as u64 <= bytes && file.read_exact_at(&mut header, at).is_ok() {
        let Some((key, len)) = decode(&header) else { break };
        let position = at + ENTRY_HEADER_BYTES as u64;
        if position + u64::from(len) > bytes {
            break;
        }
        found.push((key, position, len));
        at = position + u64::from(len);
    }
    Ok((file, at, found))
}

fn encode(key: FrameKey, stored: &[u8]) -> Bytes {
    let (kind, first, second) = match key.object {
        ObjectId::Journal(epoch, seq) => (KIND_JOURNAL, epoch.0, seq.0),
        ObjectId::Segment(epoch, number) => (KIND_SEGMENT, epoch.0, number),
    };
    let mut entry = BytesMut::with_capacity(ENTRY_HEADER_BYTES + stored.len());
    entry.put_slice(MAGIC);
    entry.put_slice(&[kind, 0, 0, 0]);
    entry.put_u64_le(first);
    entry.put_u64_le(second);
    entry.put_u64_le(key.offset);
    entry.put_u32_le(stored.len() as u32);
    entry.put_u32_le(crc32c::crc32c(&entry));
    entry.put_slice(stored);
    entry.freeze()
}

fn decode(header: &[u8; ENTRY_HEADER_BYTES]) -> Option<(FrameKey, u32)> {
    let number = |at: usize| u64::from_le_bytes(header[at..at + 8].try_into().expect("eight bytes"));
    let short = |at: usize| u32::from_le_bytes(header[at..at + 4].try_into().expect("four bytes"));
    if &header[..4] != MAGIC || short(36) != crc32c::crc32c(&header[..36]) {
        return None;
    }
    let object = match header[4] {
        KIND_JOURNAL => ObjectId::Journal(Epoch(number(8)), JournalSeq(number(16))),
        KIND_SEGMENT => ObjectId::Segment(Epoch(number(8)), number(16)),
        _ => return None,
    };
    Some((
        FrameKey {
            object,
            offset: number(24),
        },
        short(32),
    ))
}

#[cfg(test)]
mod tests;
