//! Files of a volume become ordinary objects.
//!
//! The volume is read as it is at each moment: a file that changes while it is read is told. For one moment of a volume
//! that is in use, export a clone of a snapshot. Each directory is an empty object whose key ends in `/`, as s3fs has it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Bytes, BytesMut};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use volume::attr::{Attr, Entry};
use volume::bucket::{Bucket, BucketError, ListRequest};
use volume::error::FsError;
use volume::ids::{DirCookie, InodeNo};
use volume::row::FileKind;
use volume::volume::Volume;
use volume_s3::{Metadata, PARTS_MAX, S3Bucket, Upload};

use super::attributes::{is_of, written};
use super::{CHUNK_BYTES, CHUNKS_AT_ONCE, Done, Progress, Refusal, Tell, TransferError, TransferOptions, tree};

/// Longest key (Amazon S3 User Guide, "Naming Amazon S3 objects").
const KEY_BYTES_MAX: usize = 1_024;

/// Entries of a directory in one listing.
const ENTRIES: usize = 256;

/// Most bytes of files in RAM at once.
const BUFFERS_BYTES_MAX: u64 = 256 << 20;

/// What is exported to where.
#[derive(Debug)]
pub struct Destination {
    /// Where the objects go.
    pub bucket: S3Bucket,
    /// Their prefix, empty or ending in `/`.
    pub prefix: String,
    /// Directory of the volume to export; empty for its root.
    pub from: Vec<String>,
}

struct Export {
    volume: Volume,
    /// The volume's uuid.
    uuid: String,
    to: Destination,
    /// True where nothing was at the destination: then nothing is looked for.
    fresh: bool,
    options: TransferOptions,
    /// One permit for each MiB.
    buffers: Semaphore,
    progress: Arc<Progress>,
    tell: Arc<Tell>,
}

/// A directory that is being listed.
struct Level {
    dir: InodeNo,
    /// Key of its object, without the prefix.
    path: String,
    after: DirCookie,
    entries: VecDeque<Entry>,
}

/// Exports everything. What one file cannot be is told and counted; the others go on.
///
/// # Errors
/// `TransferError` where all others would fail too.
pub async fn export(
    volume: Volume,
    to: Destination,
    options: TransferOptions,
    (progress, tell): (Arc<Progress>, Arc<Tell>),
    stop: &CancellationToken,
) -> Result<(), TransferError> {
    let top = top(&volume, &to.from).await?;
    let looked = ListRequest {
        prefix: to.prefix.clone(),
        rows_max: 1,
        ..ListRequest::default()
    };
    let there = to.bucket.list(&looked).await.map_err(TransferError::List)?;
    let export = Arc::new(Export {
        uuid: volume.info().uuid.to_string(),
        volume,
        to,
        fresh: there.objects.is_empty(),
        options,
        buffers: Semaphore::new((BUFFERS_BYTES_MAX >> 20) as usize),
        progress,
        tell,
    });
    let (room, mut running) = (Arc::new(Semaphore::new(options.parallel)), JoinSet::new());
    let mut levels = vec![Level::new(top, String::new())];
    while let Some((entry, path)) = export.next(&mut levels).await? {
        let permit = tokio::select! {
            permit = room.clone().acquire_owned() => permit.expect("it is never closed"),
            () = stop.cancelled() => break,
        };
        while let Some(done) = running.try_join_next() {
            done.expect("an export does not panic")?;
        }
        let export = Arc::clone(&export);
        running.spawn(async move {
            let done = export.entry(entry, path).await;
            drop(permit);
            done
        });
    }
    while let Some(done) = running.join_next().await {
        done.expect("an export does not panic")?;
    }
    Ok(())
}

async fn top(volume: &Volume, from: &[String]) -> Result<InodeNo, TransferError> {
    let mut at = InodeNo::ROOT;
    for part in from {
        let failed = |source| TransferError::Volume {
            path: format!("/{}", from.join("/")),
            source,
        };
        let found = tree::find(volume, at, part.as_bytes()).await.map_err(failed)?;
        at = found.ok_or_else(|| failed(FsError::NotFound))?.ino;
    }
    Ok(at)
}

impl Level {
    fn new(dir: InodeNo, path: String) -> Self {
        Self {
            dir,
            path,
            after: DirCookie(0),
            entries: VecDeque::new(),
        }
    }
}

impl Export {
    /// The next entry of the tree, with its key below the prefix; depth first, so that no more than one listing for each level is kept.
    async fn next(&self, levels: &mut Vec<Level>) -> Result<Option<(Entry, String)>, TransferError> {
        while let Some(level) = levels.last_mut() {
            let Some(entry) = level.entries.pop_front() else {
                let listed = self.volume.readdir(level.dir, level.after, ENTRIES, true).await;
                let listed = listed.map_err(|source| TransferError::Volume {
                    path: format!("/{}", level.path),
                    source,
                })?;
                match listed.last() {
                    Some(last) => {
                        level.after = last.cookie;
                        level.entries = listed.into();
                    }
                    None => drop(levels.pop()),
                }
                continue;
            };
            if matches!(&entry.name[..], b"." | b"..") {
                continue;
            }
            let Ok(name) = std::str::from_utf8(&entry.name) else {
                let path = format!("{}{}", level.path, String::from_utf8_lossy(&entry.name));
                self.refuse(&path, "its name is not UTF-8, and keys are");
                continue;
            };
            let path = format!("{}{name}", level.path);
            if entry.kind == FileKind::Directory {
                let (dir, path) = (entry.ino, format!("{path}/"));
                levels.push(Level::new(dir, path.clone()));
                return Ok(Some((entry, path)));
            }
            return Ok(Some((entry, path)));
        }
        Ok(None)
    }

    fn refuse(&self, path: &str, why: &str) {
        self.progress.failed.fetch_add(1, Ordering::Relaxed);
        (self.tell)(path, why);
    }

    async fn entry(&self, entry: Entry, path: String) -> Result<(), TransferError> {
        match self.put(&entry, &path).await {
            Ok(done) => self.progress.count(done),
            Err(refusal) => {
                let why = refusal.to_string();
                if refusal.ends_all() {
                    return Err(TransferError::Ended { what: path, why });
                }
                self.refuse(&path, &why);
            }
        }
        Ok(())
    }

    async fn put(&self, entry: &Entry, path: &str) -> Result<Done, Refusal> {
        let key = format!("{}{path}", self.to.prefix);
        if key.len() > KEY_BYTES_MAX {
            let detail = format!("its key has {} bytes; a key has at most {KEY_BYTES_MAX}", key.len());
            return Err(Refusal::Not(detail));
        }
        let attr = self.volume.getattr(entry.ino).await?;
        let (metadata, size) = match attr.kind {
            FileKind::Regular | FileKind::Symlink => (written(&attr, &self.uuid), attr.size),
            FileKind::Directory => (written(&attr, &self.uuid), 0),
            _ => {
                return Err(Refusal::Not(
                    "it is a pipe, socket or device, which no object can be".to_owned(),
                ));
            }
        };
        if !self.fresh && self.is_there(&key, size, &metadata).await? {
            return Ok(Done::Skipped);
        }
        match attr.kind {
            FileKind::Directory => drop(self.to.bucket.put_plain(&key, Bytes::new(), &metadata).await?),
            FileKind::Symlink => {
                let target = self.volume.readlink(attr.ino).await?;
                self.to.bucket.put_plain(&key, target, &metadata).await?;
            }
            _ => self.put_file(&key, &attr, &metadata).await?,
        }
        self.progress.moved(size);
        Ok(Done::Transferred)
    }

    /// True if an earlier export of the same state put it.
    async fn is_there(&self, key: &str, size: u64, metadata: &Metadata) -> Result<bool, Refusal> {
        let (object, beside) = match self.to.bucket.head_plain(key).await {
            Ok(found) => found,
            Err(BucketError::NotFound { .. }) => return Ok(false),
            Err(error) => return Err(error.into()),
        };
        let is_same = |key: &str| beside.get(key) == metadata.get(key);
        if object.size_bytes == size && ["mode", "uid", "gid", "mtime"].into_iter().all(is_same) {
            return Ok(true);
        }
        if is_of(&beside, &self.uuid) || self.options.overwrite {
            return Ok(false);
        }
        Err(Refusal::Not(format!(
            "an object is at s3://…/{key} that no export of this volume put there (--overwrite replaces it)"
        )))
    }

    async fn put_file(&self, key: &str, attr: &Attr, metadata: &Metadata) -> Result<(), Refusal> {
        let put = if attr.size <= CHUNK_BYTES {
            let body = self.read(attr, 0, attr.size).await?;
            self.to
                .bucket
                .put_plain(key, body, metadata)
                .await
                .map(drop)
                .map_err(Refusal::from)
        } else {
            self.put_parts(key, attr, metadata).await
        };
        put?;
        let now = self.volume.getattr(attr.ino).await?;
        if (now.size, now.mtime) != (attr.size, attr.mtime) {
            return Err(Refusal::Not(
                "the file changed while it was read; run the command again".to_owned(),
            ));
        }
        Ok(())
    }

    async fn put_parts(&self, key: &str, attr: &Attr, metadata: &Metadata) -> Result<(), Refusal> {
        let upload = self.to.bucket.begin_upload(key, metadata).await?;
        let put = self.send_parts(&upload, attr).await;
        if put.is_err() {
            // Its parts are billed until somebody gives them up; a store that is away now has a rule for it, or an operator.
            if let Err(error) = self.to.bucket.abort_upload(&upload).await {
                tracing::warn!(key, %error, "an unfinished upload stays in the store");
            }
        }
        put
    }

    async fn send_parts(&self, upload: &Upload, attr: &Attr) -> Result<(), Refusal> {
        let part_bytes = part_bytes(attr.size);
        if part_bytes > BUFFERS_BYTES_MAX {
            return Err(Refusal::Not(format!("{} bytes are too many for an object", attr.size)));
        }
        let numbers = 1..=attr.size.div_ceil(part_bytes);
        let parts: Vec<_> = stream::iter(numbers)
            .map(|number| async move {
                let permits = u32::try_from(part_bytes >> 20).expect("it was compared");
                let _room = self.buffers.acquire_many(permits).await.expect("it is never closed");
                let body = self.read(attr, (number - 1) * part_bytes, part_bytes).await?;
                Ok::<_, Refusal>(self.to.bucket.put_part(upload, number, body).await?)
            })
            .buffered(CHUNKS_AT_ONCE)
            .try_collect()
            .await?;
        Ok(self.to.bucket.finish_upload(upload, &parts).await?)
    }

    /// Fewer bytes only at the end that the file had.
    async fn read(&self, attr: &Attr, offset: u64, bytes: u64) -> Result<Bytes, Refusal> {
        let end = attr.size.min(offset + bytes);
        let mut content = BytesMut::with_capacity((end - offset) as usize);
        while offset + (content.len() as u64) < end {
            let at = offset + content.len() as u64;
            let wanted = u32::try_from((end - at).min(CHUNK_BYTES)).expect("a chunk is small");
            let read = self.volume.read(attr.ino, at, wanted).await?;
            if read.iter().all(Bytes::is_empty) {
                return Err(Refusal::Not(
                    "the file became shorter while it was read; run the command again".to_owned(),
                ));
            }
            read.iter().for_each(|piece| content.extend_from_slice(piece));
        }
        Ok(content.freeze())
    }
}

/// At least a chunk, in whole MiB, and so large that the parts of a file are enough.
fn part_bytes(size: u64) -> u64 {
    let least = size.div_ceil(PARTS_MAX).max(CHUNK_BYTES);
    least.div_ceil(1 << 20) << 20
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_never_more_parts_than_a_store_takes() {
        for size in [CHUNK_BYTES + 1, 1 << 30, (80 << 30) + 1, 1 << 40] {
            let part = part_bytes(size);
            assert!(size.div_ceil(part) <= PARTS_MAX, "{size}");
            assert!(part >= CHUNK_BYTES && part.is_multiple_of(1 << 20), "{size}");
        }
    }
}
