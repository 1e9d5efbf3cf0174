//! Frames on disk: survives restarts of the program, and is bounded.
//!
//! A folder of regions, files that are only ever appended to; the oldest is deleted when there are too many. What they
//! hold is found by reading the headers of their entries once after opening. Frames are checked by whoever reads them, so
//! a torn, lost or damaged entry costs a GET and nothing else. Nothing is synced: after a power failure the cache may be
//! smaller. The kernel keeps what was lately read or written of it in memory, as of any file; that is not counted here.
//! A volume that a process has open twice, for writing and for reading only, has one cache.
//! Callers: `fetch.rs`, `volume/mounting.rs`. Absent: how an entry looks (`region.rs`), and reading it (`stretch.rs`).

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::Semaphore;

use super::FrameKey;

mod buffer;
mod region;
mod stretch;

use region::ENTRY_HEADER_BYTES;
pub(crate) use stretch::{StoredFrame, Stretch};

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

/// 512 frames are written by one call: with their headers as many parts as the kernel takes (IOV_MAX).
const BATCH_FRAMES_MAX: usize = 512;

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
    /// What waits for the disk, at most `WRITING_BYTES_MAX`.
    writing: HashMap<FrameKey, Bytes>,
    /// By their number, which is that of their file; the last one is appended to.
    regions: BTreeMap<u64, Region>,
    /// Nothing on disk is changed any more.
    closed: bool,
}

#[derive(Debug)]
struct Inner {
    dir: PathBuf,
    region_bytes: u64,
    /// Held for a look-up, never while the disk reads or writes.
    index: Mutex<Index>,
    writes: Arc<Semaphore>,
}

/// Room that was reserved at the end of a region.
struct Place {
    region: u64,
    file: Arc<File>,
    position: u64,
    /// How many frames it takes.
    frames: usize,
}

/// Bytes that a frame takes on the disk.
fn entry_bytes(stored: &Bytes) -> u64 {
    (ENTRY_HEADER_BYTES + stored.len()) as u64
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
    guard: Arc<Guard>,
}

/// The caches on disk that this process has open. Cheap to clone: all clones know the same ones.
#[derive(Debug, Clone, Default)]
pub(crate) struct OpenCaches {
    /// Held while one is opened, never while one is used.
    by_dir: Arc<Mutex<BTreeMap<PathBuf, Weak<Guard>>>>,
}

impl OpenCaches {
    /// The cache in `dir`: the one that is open, or else as `DiskCache::open`.
    ///
    /// # Errors
    /// The disk's.
    pub fn open(&self, dir: &Path, bytes_max: u64) -> io::Result<Option<DiskCache>> {
        let mut by_dir = self.by_dir.lock().unwrap_or_else(PoisonError::into_inner);
        by_dir.retain(|_, guard| guard.strong_count() > 0);
        if let Some(guard) = by_dir.get(dir).and_then(Weak::upgrade) {
            return Ok(Some(DiskCache {
                inner: Arc::clone(&guard.inner),
                guard,
            }));
        }
        let opened = DiskCache::open(dir, bytes_max)?;
        if let Some(cache) = &opened {
            by_dir.insert(dir.to_owned(), Arc::downgrade(&cache.guard));
        }
        Ok(opened)
    }
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
        let found = region::numbers(dir)?;
        // What is appended from now on goes to a region of its own, so that the search never meets it.
        let next = found.last().map_or(0, |last| last + 1);
        inner.lock().regions.insert(
            next,
            Region {
                file: region::create(dir, next)?,
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
            guard: Arc::new(guard),
        }))
    }

    /// Where those of the frames that are here can be read.
    pub fn locate(&self, keys: impl Iterator<Item = FrameKey>) -> Vec<Stretch> {
        let index = self.inner.lock();
        let mut stretches: Vec<Stretch> = Vec::new();
        for key in keys {
            let Some(location) = index.by_key.get(&key) else {
                continue;
            };
            let Some(region) = index.regions.get(&location.region) else {
                continue;
            };
            let frame = (key, location.len);
            let joined = stretches
                .last_mut()
                .is_some_and(|last| last.join(&region.file, location.position, frame));
            if !joined {
                stretches.push(Stretch::new(&region.file, location.position, frame));
            }
        }
        stretches
    }

    /// True if the frame is here.
    pub fn contains(&self, key: FrameKey) -> bool {
        let index = self.inner.lock();
        index.by_key.contains_key(&key) || index.writing.contains_key(&key)
    }

    /// A frame that waits for the disk, as stored.
    pub fn waiting(&self, key: FrameKey) -> Option<Bytes> {
        self.inner.lock().writing.get(&key).cloned()
    }

    /// Keeps frames, which are found from now on; false where too many wait for the disk already.
    pub fn put(&self, frames: Arc<Vec<(FrameKey, Bytes)>>) -> bool {
        let bytes: u64 = frames.iter().map(|(_, stored)| stored.len() as u64).sum();
        let units = u32::try_from(bytes.div_ceil(WRITING_UNIT_BYTES)).unwrap_or(u32::MAX);
        let units = units.clamp(1, WRITING_UNITS_MAX);
        let Ok(permit) = Arc::clone(&self.inner.writes).try_acquire_many_owned(units) else {
            return false;
        };
        {
            let mut index = self.inner.lock();
            for (key, stored) in frames.iter() {
                index.writing.insert(*key, stored.clone());
            }
        }
        let inner = Arc::clone(&self.inner);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = inner.append(&frames) {
                tracing::warn!(%error, dir = %inner.dir.display(), "frames could not be cached on disk");
            }
            let mut index = inner.lock();
            for (key, _) in frames.iter() {
                index.writing.remove(key);
            }
            drop(permit);
        });
        true
    }

    /// Gives up a frame that waits, because it is damaged in RAM; what is on the disk may be whole.
    pub fn drop_waiting(&self, key: FrameKey) {
        self.inner.lock().writing.remove(&key);
    }

    /// Drops a frame that turned out to be damaged.
    pub fn remove(&self, key: FrameKey) {
        let mut index = self.inner.lock();
        index.by_key.remove(&key);
        index.writing.remove(&key);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes frames that are not here yet. Those that are being written are not here: at worst they are written twice.
    fn append(&self, frames: &[(FrameKey, Bytes)]) -> io::Result<()> {
        for frames in frames.chunks(BATCH_FRAMES_MAX) {
            let mut left = {
                let index = self.lock();
                let fits = |stored: &Bytes| entry_bytes(stored) <= self.region_bytes;
                let fresh = frames
                    .iter()
                    .filter(|(key, stored)| !index.by_key.contains_key(key) && fits(stored));
                fresh.cloned().collect::<Vec<_>>()
            };
            while !left.is_empty() {
                let Some(place) = self.reserve(&left)? else {
                    return Ok(());
                };
                let rest = left.split_off(place.frames);
                region::write(&place.file, &left, place.position)?;
                self.index(&left, &place);
                left = rest;
            }
        }
        Ok(())
    }

    /// Room for the first of these frames, for as many as one region takes; `None` once the cache is closed.
    fn reserve(&self, frames: &[(FrameKey, Bytes)]) -> io::Result<Option<Place>> {
        let mut index = self.lock();
        if index.closed {
            return Ok(None);
        }
        let last = index.regions.last_key_value();
        let (&number, region) = last.expect("there is always a region to append to");
        if region.bytes + entry_bytes(&frames[0].1) > self.region_bytes {
            let file = region::create(&self.dir, number + 1)?;
            let empty = Region {
                file,
                bytes: 0,
                keys: Vec::new(),
            };
            index.regions.insert(number + 1, empty);
            self.drop_oldest(&mut index);
        }
        let mut last = index
            .regions
            .last_entry()
            .expect("there is always a region to append to");
        let (number, region) = (*last.key(), last.get_mut());
        let position = region.bytes;
        let mut count = 0;
        for (_, stored) in frames {
            if region.bytes + entry_bytes(stored) > self.region_bytes {
                break;
            }
            region.bytes += entry_bytes(stored);
            count += 1;
        }
        Ok(Some(Place {
            region: number,
            file: Arc::clone(&region.file),
            position,
            frames: count,
        }))
    }

    /// Lets frames that were written be found.
    fn index(&self, frames: &[(FrameKey, Bytes)], place: &Place) {
        let mut index = self.lock();
        let index = &mut *index;
        // It may have been the oldest by now.
        let Some(region) = index.regions.get_mut(&place.region) else {
            return;
        };
        let mut position = place.position;
        for (key, stored) in frames {
            let location = Location {
                region: place.region,
                position: position + ENTRY_HEADER_BYTES as u64,
                len: stored.len() as u32,
            };
            position += entry_bytes(stored);
            region.keys.push(*key);
            index.by_key.insert(*key, location);
        }
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
            if let Err(error) = std::fs::remove_file(region::path_of(&self.dir, number)) {
                tracing::warn!(%error, dir = %self.dir.display(), number, "an old region of the cache could not be deleted");
            }
        }
    }

    /// Reads the headers of regions that an earlier program has left, the newest first.
    fn find(&self, numbers: Vec<u64>) {
        for number in numbers.into_iter().rev() {
            let opened = File::open(region::path_of(&self.dir, number));
            let found = opened.and_then(|file| region::entries(&file).map(|(bytes, entries)| (file, bytes, entries)));
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

#[cfg(test)]
mod tests;
