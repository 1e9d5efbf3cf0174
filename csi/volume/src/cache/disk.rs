//! Frames on disk: survives restarts of the program, and is bounded.
//!
//! A folder of regions, files that are only ever appended to; the oldest is deleted when there are too many. What they
//! hold is found by reading the headers of their entries once after opening. Frames are checked by whoever reads them, so
//! a torn, lost or damaged entry costs a GET and nothing else. Nothing is synced: after a power failure the cache may be
//! smaller. The kernel keeps what was lately read or written of it in memory, as of any file; that is not counted here.
//! Content of large files goes past the kernel's memory (`direct.rs`).
//! A volume that a process has open twice, for writing and for reading only, has one cache.
//! Callers: `fetch.rs`, `volume/mounting.rs`. Absent: how an entry looks (`region.rs`), reading it (`stretch.rs`), and what
//! waits to be written (`waiting.rs`).

use std::collections::{BTreeMap, HashMap};
use std::fs::{File, OpenOptions, TryLockError};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use bytes::Bytes;
use tokio::sync::{Semaphore, SemaphorePermit};

use super::FrameKey;
use crate::rope::Rope;

mod buffer;
mod direct;
mod huge;
mod part;
mod places;
mod region;
mod stretch;
mod waiting;

use direct::aligned;
use part::Patience;
use region::{ENTRY_HEADER_BYTES, GAP_BYTES_MAX};
use stretch::Source;
pub(crate) use stretch::{StoredFrame, Stretch};
pub(crate) use waiting::KeptFor;
use waiting::Waiting;

/// A 16th of the cache is given up at a time, so that what stays is most of it.
const REGIONS: u64 = 16;

/// 64 KiB: a region is never shorter, so that a tiny cache still holds a frame of 4 KiB in each.
const REGION_BYTES_MIN: u64 = 64 * 1024;

/// 4 MiB: in a shorter region what lies between batches of whole blocks would take more than a sixtieth of it.
const REGION_BYTES_DIRECT_MIN: u64 = 4 * 1024 * 1024;

/// 3 large reads at a time, in the order in which they were wanted: a disk that has eight ends them all together, and nobody is told
/// anything meanwhile. With fewer it waits for the next.
const LARGE_READS_AT_ONCE: usize = 3;

/// 512 frames are written together: room for more is not looked for at once.
const BATCH_FRAMES_MAX: usize = 512;

#[derive(Debug, Clone, Copy)]
struct Location {
    region: u64,
    position: u64,
    len: u32,
    /// This process has not put it into the kernel's memory.
    past_kernel: bool,
}

#[derive(Debug)]
struct Region {
    file: Arc<File>,
    /// The same past the kernel's memory, where it can be.
    direct: Option<Arc<File>>,
    bytes: u64,
    keys: Vec<FrameKey>,
}

impl Region {
    fn of(file: Arc<File>, direct: Option<Arc<File>>) -> Self {
        Self {
            file,
            direct,
            bytes: 0,
            keys: Vec::new(),
        }
    }

    fn source(&self, past_kernel: bool) -> Source {
        Source {
            file: Arc::clone(&self.file),
            direct: self.direct.clone().filter(|_| past_kernel),
        }
    }
}

#[derive(Debug, Default)]
struct Index {
    by_key: HashMap<FrameKey, Location>,
    waiting: Waiting,
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
    /// See `LARGE_READS_AT_ONCE`.
    large_reads: Semaphore,
    patience: Patience,
}

/// Room that was reserved at the end of a region.
struct Place {
    region: u64,
    file: Arc<File>,
    /// For whole blocks, of which this room then consists.
    direct: Option<Arc<File>>,
    /// What is left free before it and behind it, so that it does.
    gaps: [Range<u64>; 2],
    position: u64,
    /// How many frames it takes.
    frames: usize,
}

impl Place {
    /// Writes these frames, which are as many as it takes. True if they went past the kernel's memory.
    fn write(&self, frames: &[(FrameKey, Rope)]) -> io::Result<bool> {
        let [before, behind] = &self.gaps;
        region::write_gap(&self.file, before)?;
        if let Some(direct) = &self.direct {
            match direct::write(direct, frames, self.position..behind.end) {
                Ok(()) => return Ok(true),
                // Its blocks may be larger than ours, or it may know no such writes at all.
                Err(error) => tracing::debug!(%error, "a region of the cache takes no blocks past the kernel's memory"),
            }
        }
        region::write(&self.file, frames, self.position)?;
        region::write_gap(&self.file, behind)?;
        Ok(false)
    }
}

/// Bytes that a frame takes on the disk.
fn entry_bytes(stored: &Rope) -> u64 {
    ENTRY_HEADER_BYTES as u64 + stored.len_bytes()
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
            large_reads: Semaphore::new(LARGE_READS_AT_ONCE),
            patience: Patience::default(),
        });
        let found = region::numbers(dir)?;
        // What is appended from now on goes to a region of its own, so that the search never meets it.
        let next = found.last().map_or(0, |last| last + 1);
        let first = inner.create(next)?;
        inner.lock().regions.insert(next, first);
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
            let source = region.source(location.past_kernel);
            let joined = stretches
                .last_mut()
                .is_some_and(|last| last.join(&source, location.position, frame));
            if !joined {
                stretches.push(Stretch::new(source, location.position, frame));
            }
        }
        stretches
    }

    /// Waits until it is the turn of these to be read, if that takes long; see `LARGE_READS_AT_ONCE`.
    pub async fn turn(&self, stretches: &[Stretch]) -> Option<SemaphorePermit<'_>> {
        let large = |stretch: &Stretch| stretch.is_past_kernel(u64::MAX);
        match stretches.iter().any(large) {
            // It is never closed.
            true => self.inner.large_reads.acquire().await.ok(),
            false => None,
        }
    }

    /// Reads something short, by looking so often, if that takes no longer than it takes to wait elsewhere.
    pub fn read_soon<T>(&self, look: impl Fn(usize) -> Option<T>) -> Option<T> {
        self.inner.patience.read_soon(look)
    }

    /// True if the frame is here.
    pub fn contains(&self, key: FrameKey) -> bool {
        let index = self.inner.lock();
        index.by_key.contains_key(&key) || index.waiting.has(key)
    }

    /// A frame that waits for the disk, or has just been written past the kernel's memory, as stored, for somebody who reads it.
    pub fn waiting(&self, key: FrameKey) -> Option<Bytes> {
        let waiting = self.inner.lock().waiting.read(key)?;
        // What a commit has put may lie in pieces.
        Some(waiting.to_bytes())
    }

    /// Notes that these frames were read, wherever from.
    pub fn note_read<'a>(&self, keys: impl Iterator<Item = &'a FrameKey>) {
        let mut index = self.inner.lock();
        keys.for_each(|key| index.waiting.note_read(*key));
    }

    /// True if it does.
    pub fn is_waiting(&self, key: FrameKey) -> bool {
        self.inner.lock().waiting.has(key)
    }

    /// Keeps frames, which are found from now on; false where too many wait for the disk already.
    pub fn put(&self, frames: Arc<Vec<(FrameKey, Rope)>>, kept_for: KeptFor) -> bool {
        let mut index = self.inner.lock();
        if !index.waiting.add(frames, kept_for) {
            return false;
        }
        if index.waiting.begin() {
            let inner = Arc::clone(&self.inner);
            tokio::task::spawn_blocking(move || waiting::write(&inner));
        }
        true
    }

    /// Gives up a frame that waits, because it is damaged in RAM; what is on the disk may be whole.
    pub fn drop_waiting(&self, key: FrameKey) {
        self.inner.lock().waiting.give_up(key);
    }

    /// Drops a frame that turned out to be damaged.
    pub fn remove(&self, key: FrameKey) {
        let mut index = self.inner.lock();
        index.by_key.remove(&key);
        index.waiting.give_up(key);
    }
}

impl Inner {
    fn lock(&self) -> MutexGuard<'_, Index> {
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes an empty region.
    fn create(&self, number: u64) -> io::Result<Region> {
        let file = region::create(&self.dir, number)?;
        Ok(Region::of(file, self.direct(number, true)))
    }

    /// A region's file past the kernel's memory, where that can be.
    fn direct(&self, number: u64, writes: bool) -> Option<Arc<File>> {
        let open = || direct::open(&region::path_of(&self.dir, number), writes);
        (self.region_bytes >= REGION_BYTES_DIRECT_MIN).then(open).flatten()
    }

    /// Writes frames that are not here yet; `direct` past the kernel's memory, where that can be.
    fn append(&self, frames: &[(FrameKey, Rope)], direct: bool) -> io::Result<()> {
        for frames in frames.chunks(BATCH_FRAMES_MAX) {
            let mut left = {
                let index = self.lock();
                let fits = |stored: &Rope| entry_bytes(stored) <= self.region_bytes;
                let fresh = frames
                    .iter()
                    .filter(|(key, stored)| !index.by_key.contains_key(key) && fits(stored));
                fresh.cloned().collect::<Vec<_>>()
            };
            while !left.is_empty() {
                let Some(place) = self.reserve(&left, direct)? else {
                    return Ok(());
                };
                let rest = left.split_off(place.frames);
                let past_kernel = place.write(&left)?;
                self.index(&left, &place, past_kernel);
                left = rest;
            }
        }
        Ok(())
    }

    /// Room for the first of these frames, for as many as one region takes; `None` once the cache is closed.
    fn reserve(&self, frames: &[(FrameKey, Rope)], direct: bool) -> io::Result<Option<Place>> {
        let mut index = self.lock();
        if index.closed {
            return Ok(None);
        }
        let direct = direct && self.region_bytes >= REGION_BYTES_DIRECT_MIN;
        // What is between batches of whole blocks has room too.
        let spare = if direct { 2 * GAP_BYTES_MAX } else { 0 };
        let last = index.regions.last_entry();
        let mut last = last.expect("there is always a region to append to");
        let (number, region) = (*last.key(), last.get_mut());
        if region.bytes + entry_bytes(&frames[0].1) + spare > self.region_bytes {
            let empty = self.create(number + 1)?;
            index.regions.insert(number + 1, empty);
            self.drop_oldest(&mut index);
        }
        let mut last = index
            .regions
            .last_entry()
            .expect("there is always a region to append to");
        let (number, region) = (*last.key(), last.get_mut());
        let direct = region.direct.clone().filter(|_| direct);
        let whole_blocks = |at: u64| if direct.is_some() { aligned(at) } else { at };
        let (begun, position) = (region.bytes, whole_blocks(region.bytes));
        let (mut end, mut count) = (position, 0);
        for (_, stored) in frames {
            if end + entry_bytes(stored) + spare / 2 > self.region_bytes {
                break;
            }
            end += entry_bytes(stored);
            count += 1;
        }
        region.bytes = whole_blocks(end);
        Ok(Some(Place {
            region: number,
            file: Arc::clone(&region.file),
            gaps: [begun..position, end..region.bytes],
            direct,
            position,
            frames: count,
        }))
    }

    /// Lets frames that were written be found.
    fn index(&self, frames: &[(FrameKey, Rope)], place: &Place, past_kernel: bool) {
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
                len: stored.len_bytes() as u32,
                past_kernel,
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
                    let direct = self.direct(number, false);
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
                            past_kernel: true,
                        });
                        keys.push(key);
                    }
                    index.regions.insert(
                        number,
                        Region {
                            bytes,
                            keys,
                            ..Region::of(Arc::new(file), direct)
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
