//! Content from the bucket: from the cache in RAM, the cache on disk, or by ranged GETs.
//!
//! Invariants: every frame is checked (checksum, volume, inode, offset) each time it is read, whichever tier it comes
//! from; a damaged one is dropped and fetched anew, and only what is damaged in the bucket itself is an error. One frame is
//! fetched once however many readers wait for it.
//! Callers: `ops/read.rs`. Absent: which bytes of a file are where (`table/extents.rs`).

use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::future::{BoxFuture, FutureExt, Shared, WeakShared};
use futures::stream::{self, StreamExt, TryStreamExt};
use tokio::task::spawn_blocking;
use tokio::time::timeout;

use crate::bucket::{BucketError, BucketRef};
use crate::budget::AheadRoom;
use crate::cache::disk::{DiskCache, KeptFor, Stretch};
use crate::cache::{FrameKey, RamCache};
use crate::commit::KeepFrames;
use crate::error::FsError;
use crate::format::FormatError;
use crate::format::frame::{FRAME_HEADER_BYTES, FrameHeader, FrameIdentity, check_frame};
use crate::ids::{InodeNo, ObjectId};
use crate::lineage::Lineage;
use crate::piece::Piece;
use crate::rope::Rope;
use crate::row::ExtentRow;

mod on_disk;
mod precedence;
mod ranges;

use precedence::{Precedence, Urgency};
use ranges::{bytes_of, cut, frames_of, ranges_of};

/// 2 MiB, about: one GET that somebody waits for. Long enough that its latency hardly counts, short enough that several share the
/// bandwidth.
const GET_BYTES: u64 = 2 * 1024 * 1024;

/// 1 MiB: what a larger commit has brought is kept on disk only, where there is a cache on disk: it would push out what is
/// read again, and the kernel has what was just written in memory.
const KEPT_BYTES_MAX: u64 = 1024 * 1024;

/// 1 s for room to fetch ahead: by then the reader has come itself to what was to be fetched for it.
const AHEAD_PATIENCE: Duration = Duration::from_secs(1);

/// 8 GETs of one read at a time, where somebody waits for it.
const GETS_AT_ONCE: usize = 8;

/// A part of a file that is in the bucket.
#[derive(Debug, Clone)]
pub(crate) struct WantedPart {
    /// Where in the file, for messages.
    pub offset: u64,
    /// Where its content lies.
    pub row: Arc<ExtentRow>,
    /// Bytes of the row to skip.
    pub skip: u64,
    /// Bytes wanted.
    pub len: u64,
}

/// Why content could not be had.
#[derive(Debug, Clone)]
pub(crate) enum FetchError {
    /// The object is not there: it was given up, or lost.
    Missing(Damage),
    /// The bytes in the bucket are not what was written.
    Damaged(Damage),
    /// The bucket failed.
    Bucket(Arc<BucketError>),
}

/// What is wrong, and where.
#[derive(Debug, Clone)]
pub(crate) struct Damage {
    /// File offset.
    pub offset: u64,
    /// The object.
    pub object: ObjectId,
    /// What is wrong.
    pub detail: String,
}

impl FetchError {
    /// The operation's error; damage is logged here, once for each read that meets it.
    pub fn into_fs(self, ino: InodeNo) -> FsError {
        match self {
            FetchError::Missing(damage) | FetchError::Damaged(damage) => {
                tracing::error!(%ino, offset = damage.offset, object = %damage.object, detail = damage.detail, "content is damaged");
                FsError::Damaged {
                    ino,
                    offset: damage.offset,
                    object: damage.object,
                    detail: damage.detail,
                }
            }
            FetchError::Bucket(error) => FsError::Bucket(error),
        }
    }
}

/// How somebody reads, for whom content is fetched ahead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pace {
    /// Bytes of one read.
    pub read_bytes: u64,
    /// Bytes of one GET, about, where so many lie in one piece.
    pub get_bytes: u64,
}

/// A frame that a read needs.
#[derive(Debug, Clone, Copy)]
struct Frame {
    key: FrameKey,
    stored_len: u32,
    origin_ino: InodeNo,
    origin_offset: u64,
    /// File offset, for messages.
    offset: u64,
}

impl Frame {
    fn end(&self) -> u64 {
        self.key.offset + u64::from(self.stored_len)
    }

    fn damage(&self, detail: String) -> Damage {
        Damage {
            offset: self.offset,
            object: self.key.object,
            detail,
        }
    }
}

type Fetched = Result<Arc<Vec<(FrameKey, Bytes)>>, FetchError>;
type Flight = Shared<BoxFuture<'static, Fetched>>;
type WeakFlight = WeakShared<BoxFuture<'static, Fetched>>;

/// Where frames came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrameCounts {
    /// From memory.
    pub in_ram: u64,
    /// From the cache on disk.
    pub on_disk: u64,
    /// From the bucket.
    pub missing: u64,
}

/// Places in `Inner::counts`.
const IN_RAM: usize = 0;
/// See `IN_RAM`.
const ON_DISK: usize = 1;
/// See `IN_RAM`.
const MISSING: usize = 2;

/// Where frames are kept, and how much may be on its way there that nobody has asked for.
#[derive(Debug)]
pub(crate) struct Tiers {
    pub ram: RamCache,
    pub disk: Option<DiskCache>,
    /// See `Budget::ahead`.
    pub ahead: Arc<AheadRoom>,
}

/// Reads frames.
#[derive(Debug, Clone)]
pub(crate) struct Fetcher {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    bucket: BucketRef,
    lineage: Lineage,
    ram: RamCache,
    disk: Option<DiskCache>,
    ahead: Arc<AheadRoom>,
    precedence: Precedence,
    /// Frames found in RAM, found on disk, and asked of the bucket.
    counts: [AtomicU64; 3],
    /// GETs under way, by each frame that they bring. Held for a look-up, never across an await.
    flights: Mutex<HashMap<FrameKey, WeakFlight>>,
}

impl Inner {
    fn flights(&self) -> MutexGuard<'_, HashMap<FrameKey, WeakFlight>> {
        self.flights.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A frame as stored, from the cache in RAM or on its way to the disk.
    fn in_ram(&self, key: FrameKey) -> Option<Bytes> {
        let waiting = || self.disk.as_ref()?.waiting(key);
        self.ram.get(key).or_else(waiting)
    }

    fn waits(&self, key: FrameKey) -> bool {
        self.disk.as_ref().is_some_and(|disk| disk.is_waiting(key))
    }

    /// Keeps frames on disk; false where that cannot be.
    fn keep_on_disk(&self, frames: Vec<(FrameKey, Rope)>, kept_for: KeptFor) -> bool {
        let put = |disk: &DiskCache| disk.put(Arc::new(frames), kept_for);
        self.disk.as_ref().is_some_and(put)
    }

    /// Keeps frames in RAM, copied, so that one that stays does not keep the others' bytes.
    fn keep_copies(&self, frames: &[(FrameKey, Rope)]) {
        for (key, stored) in frames {
            let mut copy = BytesMut::with_capacity(stored.len_bytes() as usize);
            stored.pieces().for_each(|piece| copy.extend_from_slice(piece));
            self.ram.put(*key, copy.freeze());
        }
    }
}

impl Fetcher {
    /// `bucket` is rooted where the objects of the volume are.
    pub fn new(bucket: BucketRef, lineage: impl Into<Lineage>, tiers: Tiers) -> Self {
        let Tiers { ram, disk, ahead } = tiers;
        let inner = Inner {
            bucket,
            lineage: lineage.into(),
            ram,
            disk,
            ahead,
            precedence: Precedence::default(),
            counts: Default::default(),
            flights: Mutex::default(),
        };
        Self { inner: Arc::new(inner) }
    }

    /// Reads parts; the answer has the bytes of each part in order.
    ///
    /// # Errors
    /// `FetchError`, for the first part that fails.
    pub async fn read(&self, parts: Vec<WantedPart>) -> Result<Vec<Vec<Bytes>>, FetchError> {
        self.read_as(Urgency::Awaited, parts).await
    }

    /// As `read`, for upkeep: gives way to readers that wait for the bucket.
    ///
    /// # Errors
    /// As `read`.
    pub async fn read_in_passing(&self, parts: Vec<WantedPart>) -> Result<Vec<Vec<Bytes>>, FetchError> {
        self.read_as(Urgency::InPassing, parts).await
    }

    async fn read_as(&self, urgency: Urgency, parts: Vec<WantedPart>) -> Result<Vec<Vec<Bytes>>, FetchError> {
        let mut found: BTreeMap<FrameKey, Piece> = BTreeMap::new();
        let mut missing: BTreeMap<FrameKey, Frame> = BTreeMap::new();
        for frame in parts.iter().flat_map(frames_of) {
            match self.cached(&frame) {
                Some(content) => drop(found.insert(frame.key, content)),
                None => drop(missing.insert(frame.key, frame)),
            }
        }
        if let ([part], true, Some((_, frame))) = (
            &parts[..],
            missing.len() == 1 && found.is_empty(),
            missing.first_key_value(),
        ) && let Some(content) = self.read_blocks(part, frame).await
        {
            self.count(ON_DISK, 1);
            return Ok(vec![vec![content]]);
        }
        self.count(IN_RAM, found.len());
        if !missing.is_empty() {
            self.fetch(urgency, &missing, &mut found).await?;
        }
        parts.iter().map(|part| cut(part, &found)).collect()
    }

    /// Where frames came from so far, those that were read ahead included.
    pub fn counts(&self) -> FrameCounts {
        let [in_ram, on_disk, missing] = &self.inner.counts;
        FrameCounts {
            in_ram: in_ram.load(Ordering::Relaxed),
            on_disk: on_disk.load(Ordering::Relaxed),
            missing: missing.load(Ordering::Relaxed),
        }
    }

    fn count(&self, tier: usize, frames: usize) {
        self.inner.counts[tier].fetch_add(frames as u64, Ordering::Relaxed);
    }

    /// How much may be on its way ahead of readers: half of all room where only RAM keeps it until it is read.
    pub fn ahead_bytes(&self) -> u64 {
        let all = self.inner.ahead.bytes();
        if self.has_disk() { all } else { all / 2 }
    }

    /// True if there is a cache on disk.
    pub fn has_disk(&self) -> bool {
        self.inner.disk.is_some()
    }

    /// True if no request is needed for these parts.
    pub fn holds(&self, parts: &[WantedPart]) -> bool {
        let on_disk = |key| self.inner.disk.as_ref().is_some_and(|disk| disk.contains(key));
        let mut frames = parts.iter().flat_map(frames_of);
        frames.all(|frame| self.inner.ram.contains(frame.key) || on_disk(frame.key))
    }

    fn open(&self, frame: &Frame, stored: &Bytes) -> Result<Piece, String> {
        let header_bytes = stored.len().min(FRAME_HEADER_BYTES);
        let content = Piece::new(stored, header_bytes..stored.len());
        self.open_parts(frame, &stored[..header_bytes], &content)
    }

    /// The content of a frame, checked: from its header and what is stored of it.
    fn open_parts(&self, frame: &Frame, head: &[u8], content: &Piece) -> Result<Piece, String> {
        let checked = check_frame(head, content.as_slice(), &self.identity(frame));
        checked
            .and_then(|header| content_of(&header, content))
            .map_err(|error| error.to_string())
    }

    /// What a frame must be.
    fn identity(&self, frame: &Frame) -> FrameIdentity {
        FrameIdentity {
            volume: self.inner.lineage.uuid_of(frame.key.object.epoch()),
            ino: frame.origin_ino,
            offset: frame.origin_offset,
        }
    }

    fn cached(&self, frame: &Frame) -> Option<Piece> {
        let stored = self.inner.in_ram(frame.key)?;
        match self.open(frame, &stored) {
            Ok(content) => Some(content),
            Err(detail) => {
                tracing::warn!(object = %frame.key.object, offset = frame.key.offset, detail, "a frame in RAM is damaged: dropped");
                self.inner.ram.remove(frame.key);
                if let Some(disk) = &self.inner.disk {
                    disk.drop_waiting(frame.key);
                }
                None
            }
        }
    }

    /// Brings frames from the disk or the bucket, and checks them.
    async fn fetch(
        &self,
        urgency: Urgency,
        missing: &BTreeMap<FrameKey, Frame>,
        found: &mut BTreeMap<FrameKey, Piece>,
    ) -> Result<(), FetchError> {
        let mut left: BTreeMap<FrameKey, Frame> = missing.clone();
        if let Some(disk) = &self.inner.disk {
            for (stored, opened) in self.read_disk(disk, &left).await {
                let key = stored.key;
                match opened {
                    Ok(content) => {
                        // Many were read in one piece, which one of them would keep alive; the kernel has them too.
                        if let (1, Some(whole)) = (missing.len(), stored.whole()) {
                            self.inner.ram.put(key, whole);
                        }
                        left.remove(&key);
                        found.insert(key, content);
                    }
                    Err(detail) => {
                        tracing::warn!(object = %key.object, offset = key.offset, detail, "a frame on disk is damaged: fetched anew");
                        disk.remove(key);
                    }
                }
            }
        }
        self.count(ON_DISK, missing.len() - left.len());
        self.count(MISSING, left.len());
        // The second try is for bytes that were damaged on their way.
        for last_try in [false, true] {
            if left.is_empty() {
                break;
            }
            let _awaited = self.inner.precedence.begin(urgency);
            let flights = self.flights(left.values(), GET_BYTES).into_iter();
            let flights = flights.map(|flight| in_turn(Arc::clone(&self.inner), urgency, flight));
            let answers: Vec<Arc<Vec<(FrameKey, Bytes)>>> = stream::iter(flights.collect::<Vec<_>>())
                .buffer_unordered(urgency.gets_at_once())
                .try_collect()
                .await?;
            for (key, stored) in answers.iter().flat_map(|answer| answer.iter()) {
                let Some(frame) = left.get(key) else { continue };
                match self.open(frame, stored) {
                    Ok(content) => {
                        left.remove(key);
                        found.insert(*key, content);
                    }
                    Err(detail) if last_try => return Err(FetchError::Damaged(frame.damage(detail))),
                    Err(_) => self.drop_cached(*key),
                }
            }
            if let Some(disk) = &self.inner.disk {
                disk.note_read(found.keys());
            }
        }
        Ok(())
    }

    /// Fetches a range that nobody has asked for, if there is room for it soon.
    async fn fetch_ahead(&self, range: &[Frame]) {
        let Ok(_room) = timeout(AHEAD_PATIENCE, self.inner.ahead.take(bytes_of(range))).await else {
            return;
        };
        // Whoever reads may have come here first.
        let here =
            |key| self.inner.ram.contains(key) || self.inner.disk.as_ref().is_some_and(|disk| disk.contains(key));
        let missing = range.iter().filter(|frame| !here(frame.key));
        let _awaited = self.inner.precedence.begin(Urgency::Awaited);
        for flight in self.flights(missing, u64::MAX) {
            drop(flight.await);
        }
    }

    fn drop_cached(&self, key: FrameKey) {
        self.inner.ram.remove(key);
        if let Some(disk) = &self.inner.disk {
            disk.remove(key);
        }
    }

    /// The GETs that bring these frames, which are in order: those under way, and new ones for the rest.
    fn flights<'a>(&self, frames: impl Iterator<Item = &'a Frame>, get_bytes: u64) -> Vec<Flight> {
        let mut under_way = self.inner.flights();
        let mut flights: Vec<Flight> = Vec::new();
        let mut left: Vec<Frame> = Vec::new();
        for frame in frames {
            if let Some(flight) = under_way.get(&frame.key).and_then(WeakShared::upgrade)
                && flight.peek().is_none()
            {
                if !flights.iter().any(|other| other.ptr_eq(&flight)) {
                    flights.push(flight);
                }
                continue;
            }
            left.push(*frame);
        }
        for range in ranges_of(&left, get_bytes).map(<[Frame]>::to_vec) {
            let keys: Vec<FrameKey> = range.iter().map(|frame| frame.key).collect();
            let flight = get(Arc::clone(&self.inner), range).boxed().shared();
            if let Some(weak) = flight.downgrade() {
                keys.into_iter()
                    .for_each(|key| drop(under_way.insert(key, weak.clone())));
            }
            flights.push(flight);
        }
        flights
    }

    /// Brings what of these parts is not in RAM nearer, without giving it to anyone: for reading ahead of who reads at this pace.
    /// Whoever reads it checks it, and meets an error again.
    pub async fn warm(&self, parts: Vec<WantedPart>, pace: Pace) {
        let frames = parts
            .iter()
            .flat_map(frames_of)
            .filter(|frame| !self.inner.ram.contains(frame.key) && !self.inner.waits(frame.key));
        let mut missing: BTreeMap<FrameKey, Frame> = frames.map(|frame| (frame.key, frame)).collect();
        let mut bringing = None;
        if let Some(disk) = &self.inner.disk {
            let mut stretches = disk.locate(missing.keys().copied());
            for key in stretches.iter().flat_map(Stretch::keys) {
                missing.remove(&key);
            }
            stretches.retain(|stretch| !stretch.is_past_kernel(pace.read_bytes));
            if !stretches.is_empty() {
                // The kernel may make its caller wait for a busy disk.
                bringing = Some(spawn_blocking(move || stretches.iter().for_each(Stretch::bring)));
            }
        }
        self.count(MISSING, missing.len());
        let missing: Vec<Frame> = missing.into_values().collect();
        stream::iter(ranges_of(&missing, pace.get_bytes))
            .for_each_concurrent(GETS_AT_ONCE, |range| self.fetch_ahead(range))
            .await;
        if let Some(bringing) = bringing {
            drop(bringing.await);
        }
    }
}

impl KeepFrames for Fetcher {
    fn keep(&self, body: &Rope, rows: &[ExtentRow]) {
        let mut frames = Vec::new();
        for row in rows {
            let mut at = row.object_offset;
            for len in &row.frame_stored_lens {
                let key = FrameKey {
                    object: row.object,
                    offset: at,
                };
                let end = at + u64::from(*len);
                frames.push((key, body.slice(at..end)));
                at = end;
            }
        }
        let few = body.len_bytes() <= KEPT_BYTES_MAX;
        if !self.inner.keep_on_disk(frames.clone(), KeptFor::Later) || few {
            self.inner.keep_copies(&frames);
        }
    }
}

/// The content of a frame that was checked.
fn content_of(header: &FrameHeader, stored: &Piece) -> Result<Piece, FormatError> {
    match header.is_plain() {
        true => Ok(stored.clone()),
        false => header.content(stored.bytes()).map(Piece::from),
    }
}

/// A GET, as soon as it may be made.
async fn in_turn(inner: Arc<Inner>, urgency: Urgency, flight: Flight) -> Fetched {
    inner.precedence.turn(urgency).await;
    flight.await
}

/// One ranged GET; puts what it brings into the caches.
async fn get(inner: Arc<Inner>, frames: Vec<Frame>) -> Fetched {
    let first = frames[0];
    let range = first.key.offset..frames[frames.len() - 1].end();
    let answer = inner.bucket.get(&first.key.object.key(), Some(range.clone())).await;
    let stored = match answer {
        Ok(object) if object.body.len() as u64 == range.end - range.start => Ok(object.body),
        Ok(object) => Err(FetchError::Damaged(first.damage(format!(
            "{} bytes came for the range {range:?}, the object has {}",
            object.body.len(),
            object.size_bytes
        )))),
        Err(BucketError::NotFound { key }) => Err(FetchError::Missing(
            first.damage(format!("object {key} does not exist")),
        )),
        Err(BucketError::Unexpected { detail, .. }) => Err(FetchError::Damaged(first.damage(detail))),
        Err(error) => Err(FetchError::Bucket(Arc::new(error))),
    };
    let brought = stored.map(|body| {
        let cut = |frame: &Frame| {
            let at = (frame.key.offset - range.start) as usize;
            (frame.key, body.slice(at..at + frame.stored_len as usize))
        };
        Arc::new(frames.iter().map(cut).collect::<Vec<_>>())
    });
    if let Ok(brought) = &brought {
        let frames: Vec<(FrameKey, Rope)> = brought
            .iter()
            .map(|(key, stored)| (*key, stored.clone().into()))
            .collect();
        let kept = inner.keep_on_disk(frames.clone(), KeptFor::Reading);
        match &brought[..] {
            // It was asked for by itself, and may be again; the others are read once by most.
            [(key, stored)] => inner.ram.put(*key, stored.clone()),
            _ if !kept => inner.keep_copies(&frames),
            _ => {}
        }
    }
    let mut flights = inner.flights();
    frames.iter().for_each(|frame| drop(flights.remove(&frame.key)));
    brought
}

#[cfg(test)]
mod tests;
