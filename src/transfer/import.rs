//! Ordinary objects become files of a volume.
//!
//! Invariant: a name appears only when its file is whole. It is written under another name beside its own, and renamed after
//! its attributes are set; the volume's journal keeps that order through any crash. So what is there under its name, with
//! its size and time, need not be read again.

use std::sync::Arc;

use bytes::Bytes;
use futures::{StreamExt, stream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use volume::attr::{Attr, Place, RenameMode, SetAttr};
use volume::bucket::{Bucket, ETag, ListRequest, ObjectMeta};
use volume::clock::Timestamp;
use volume::error::FsError;
use volume::ids::InodeNo;
use volume::row::FileKind;
use volume::volume::Volume;
use volume_s3::{Metadata, S3Bucket};

use super::attributes::Given;
use super::path::{Meant, meant};
use super::tree::{self, ROOT};
use super::{CHUNK_BYTES, CHUNKS_AT_ONCE, Done, Progress, Refusal, Tell, TransferError, TransferOptions};

/// What is imported from where to where.
#[derive(Debug)]
pub struct Source {
    /// Where the objects lie.
    pub bucket: S3Bucket,
    /// Their prefix, empty or ending in `/`.
    pub prefix: String,
    /// Directories of the volume that they come below; empty for its root.
    pub into: Vec<String>,
    /// What files get for which nothing is written beside their object.
    pub files: Owner,
    /// Permission bits of directories that are made.
    pub directory_mode: u16,
}

/// Owner and permission bits.
#[derive(Debug, Clone, Copy)]
pub struct Owner {
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Permission bits.
    pub mode: u16,
}

struct Import {
    volume: Volume,
    source: Source,
    into: InodeNo,
    options: TransferOptions,
    progress: Arc<Progress>,
    tell: Arc<Tell>,
}

/// Imports all objects of the source. What one object cannot be is told and counted; the others go on.
///
/// # Errors
/// `TransferError` where all others would fail too.
pub async fn import(
    volume: Volume,
    source: Source,
    options: TransferOptions,
    (progress, tell): (Arc<Progress>, Arc<Tell>),
    stop: &CancellationToken,
) -> Result<(), TransferError> {
    let into: Vec<&str> = source.into.iter().map(String::as_str).collect();
    let made = tree::directory(&volume, InodeNo::ROOT, &into, source.directory_mode).await;
    let into = made.map_err(|error| TransferError::Volume {
        path: format!("/{}", source.into.join("/")),
        source: error,
    })?;
    let import = Arc::new(Import {
        volume,
        source,
        into,
        options,
        progress,
        tell,
    });
    let (room, mut running) = (Arc::new(Semaphore::new(options.parallel)), JoinSet::new());
    let mut page = None;
    loop {
        let request = ListRequest {
            prefix: import.source.prefix.clone(),
            page: page.take(),
            ..ListRequest::default()
        };
        let listed = import.source.bucket.list(&request).await.map_err(TransferError::List)?;
        for object in listed.objects {
            let permit = tokio::select! {
                permit = room.clone().acquire_owned() => permit.expect("it is never closed"),
                () = stop.cancelled() => return finish(running).await,
            };
            while let Some(done) = running.try_join_next() {
                done.expect("an import does not panic")?;
            }
            let import = Arc::clone(&import);
            running.spawn(async move {
                let done = import.object(object).await;
                drop(permit);
                done
            });
        }
        page = listed.next;
        if page.is_none() {
            return finish(running).await;
        }
    }
}

/// What has begun is finished: it is not much.
async fn finish(mut running: JoinSet<Result<(), TransferError>>) -> Result<(), TransferError> {
    while let Some(done) = running.join_next().await {
        done.expect("an import does not panic")?;
    }
    Ok(())
}

impl Import {
    async fn object(&self, object: ObjectMeta) -> Result<(), TransferError> {
        let key = object.key.clone();
        match self.take(object).await {
            Ok(Some(done)) => self.progress.count(done),
            Ok(None) => {}
            Err(refusal) => {
                let why = refusal.to_string();
                if refusal.ends_all() {
                    return Err(TransferError::Ended { what: key, why });
                }
                self.progress.failed.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                (self.tell)(&key, &why);
            }
        }
        Ok(())
    }

    async fn take(&self, object: ObjectMeta) -> Result<Option<Done>, Refusal> {
        let key = object.key.clone();
        let below = key.strip_prefix(&self.source.prefix).unwrap_or(&key);
        match meant(below).map_err(|why| Refusal::Not(format!("the key {why}")))? {
            Meant::Nothing => Ok(None),
            Meant::Directory(parts) => self.take_directory(&object, &parts).await.map(Some),
            Meant::File(parts) => {
                let (name, above) = parts.split_last().expect("a path has a name");
                let dir = self.directory(above).await?;
                self.take_file(&object, dir, name).await.map(Some)
            }
        }
    }

    async fn directory(&self, parts: &[&str]) -> Result<InodeNo, Refusal> {
        let mode = self.source.directory_mode;
        match tree::directory(&self.volume, self.into, parts, mode).await {
            Err(FsError::NotDirectory) => Err(Refusal::Not(format!(
                "{} or a part of it is a file in the volume, so nothing can be below it",
                parts.join("/")
            ))),
            made => Ok(made?),
        }
    }

    /// A directory that is there keeps what it has: somebody may have changed it since.
    async fn take_directory(&self, object: &ObjectMeta, parts: &[&str]) -> Result<Done, Refusal> {
        let (name, above) = parts.split_last().expect("a path has a name");
        let dir = self.directory(above).await?;
        if let Some(found) = tree::find(&self.volume, dir, name.as_bytes()).await?
            && found.kind == FileKind::Directory
            && (found.uid, found.gid, found.mode) != (0, 0, self.source.directory_mode)
        {
            return Ok(Done::Skipped);
        }
        let made = self.directory(parts).await?;
        let (_, beside) = self.source.bucket.head_plain(&object.key).await?;
        let given = Given::read(&beside);
        let change = SetAttr {
            // Its time is that of its last entry, which comes after it.
            mtime: None,
            atime: None,
            ..given.or(&Given::default())
        };
        if change != SetAttr::default() {
            self.volume.setattr(made, &change).await?;
        }
        Ok(Done::Transferred)
    }

    async fn take_file(&self, object: &ObjectMeta, dir: InodeNo, name: &str) -> Result<Done, Refusal> {
        let existing = tree::find(&self.volume, dir, name.as_bytes()).await?;
        if let Some(existing) = &existing {
            if existing.kind == FileKind::Directory {
                return Err(Refusal::Not("a directory of this name is in the volume".to_owned()));
            }
            if self.is_there(existing, object).await? {
                return Ok(Done::Skipped);
            }
            if !self.options.overwrite {
                return Err(Refusal::Not(
                    "a file of this name is in the volume, with another size or time (--overwrite replaces it)"
                        .to_owned(),
                ));
            }
        }
        let first = self.first(object).await?;
        let temporary = format!(".pannier-import.{:016x}", of_name(name));
        match self.volume.unlink(dir, temporary.as_bytes()).await {
            Ok(()) | Err(FsError::NotFound) => {}
            Err(error) => return Err(error.into()),
        }
        let made = self.write(object, &first, (dir, &temporary)).await;
        let (from, to) = (place(dir, &temporary), place(dir, name));
        let mode = match existing {
            Some(_) => RenameMode::Replace,
            None => RenameMode::NoReplace,
        };
        let named = match made {
            Ok(()) => self.volume.rename(from, to, mode).await.map_err(Refusal::from),
            Err(refusal) => Err(refusal),
        };
        if named.is_err() {
            // Whoever runs it again removes what cannot be removed now.
            let _ = self.volume.unlink(dir, temporary.as_bytes()).await;
        }
        named.map(|()| Done::Transferred)
    }

    /// The time that is written beside an object is only asked for where the store's own does not fit.
    async fn is_there(&self, existing: &Attr, object: &ObjectMeta) -> Result<bool, Refusal> {
        if existing.size != object.size_bytes {
            return Ok(false);
        }
        if existing.mtime == stored(object) {
            return Ok(true);
        }
        let (_, beside) = self.source.bucket.head_plain(&object.key).await?;
        Ok(Given::read(&beside).mtime == Some(existing.mtime))
    }

    async fn first(&self, object: &ObjectMeta) -> Result<First, Refusal> {
        let bucket = &self.source.bucket;
        if object.size_bytes == 0 {
            let (meta, beside) = bucket.head_plain(&object.key).await?;
            if meta.size_bytes > 0 {
                return Err(changed());
            }
            let version = meta.etag.ok_or_else(changed)?;
            return Ok(First {
                body: Bytes::new(),
                version,
                given: Given::read(&beside),
            });
        }
        let range = (object.size_bytes > CHUNK_BYTES).then_some(0..CHUNK_BYTES);
        let (read, beside): (_, Metadata) = bucket.get_plain(&object.key, range).await?;
        if read.size_bytes != object.size_bytes {
            return Err(changed());
        }
        Ok(First {
            body: read.body,
            version: read.etag,
            given: Given::read(&beside),
        })
    }

    async fn write(&self, object: &ObjectMeta, first: &First, (dir, name): (InodeNo, &str)) -> Result<(), Refusal> {
        let volume = &self.volume;
        let made = if first.given.kind() == Some(FileKind::Symlink) {
            volume.symlink(dir, name.as_bytes(), &first.body, ROOT).await?
        } else {
            let made = volume.create(dir, name.as_bytes(), 0o600, ROOT).await?;
            let written = self.content(object, first, made.ino).await;
            volume.release(made.ino);
            written.inspect_err(|_| volume.forget(made.ino, 1))?;
            made
        };
        let files = self.source.files;
        let else_ = Given {
            mode: Some(u32::from(files.mode)),
            uid: Some(files.uid),
            gid: Some(files.gid),
            mtime: Some(stored(object)),
        };
        let mut change = first.given.or(&else_);
        if made.kind == FileKind::Symlink {
            change.mode = None;
        }
        let set = volume.setattr(made.ino, &change).await;
        volume.forget(made.ino, 1);
        set?;
        self.progress.moved(object.size_bytes);
        Ok(())
    }

    async fn content(&self, object: &ObjectMeta, first: &First, ino: InodeNo) -> Result<(), Refusal> {
        if !first.body.is_empty() {
            self.volume.write(ino, 0, first.body.clone()).await?;
        }
        let (begun, size) = (first.body.len() as u64, object.size_bytes);
        let starts = (begun..size).step_by(CHUNK_BYTES as usize);
        let mut chunks = stream::iter(starts)
            .map(|start| async move {
                let range = start..size.min(start + CHUNK_BYTES);
                let read = self.source.bucket.get(&object.key, Some(range)).await;
                read.map(|read| (start, read))
            })
            .buffered(CHUNKS_AT_ONCE);
        while let Some(chunk) = chunks.next().await {
            let (start, read) = chunk?;
            if read.etag != first.version {
                return Err(changed());
            }
            self.volume.write(ino, start, read.body).await?;
        }
        Ok(())
    }
}

/// The beginning of an object, and what is written beside it.
struct First {
    body: Bytes,
    version: ETag,
    given: Given,
}

fn place(dir: InodeNo, name: &str) -> Place<'_> {
    Place {
        dir,
        name: name.as_bytes(),
    }
}

fn changed() -> Refusal {
    Refusal::Not("the object changed while it was read; run the command again".to_owned())
}

/// When the store says that the object was written.
fn stored(object: &ObjectMeta) -> Timestamp {
    Timestamp {
        seconds: (object.modified_unix_ms / 1_000) as i64,
        nanos: (object.modified_unix_ms % 1_000) as u32 * 1_000_000,
    }
}

/// FNV-1a: names of up to 255 bytes leave no room beside them, and two of one directory must not share a temporary one.
fn of_name(name: &str) -> u64 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3);
    name.bytes().fold(0xcbf2_9ce4_8422_2325, step)
}
