//! Our `Bucket` as the object store that SlateDB speaks to: one pool of connections, one place to inject faults.
//!
//! Invariants: every put that must win (`Create`, `Update`) carries SlateDB's own put id at its end, so two writers never
//! put equal bytes and a lost answer can be told from a lost race, and a checksum (`stamp.rs`). Objects named by a ULID
//! (`.sst`) are stored bare.
//! Callers: `tree/slate.rs`. Absent: retries (SlateDB's own, above this), copies, and multipart uploads of the store:
//! an SST is gathered in RAM, because it is at most `SST_BYTES_MAX` (see `slate.rs`).

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use object_store::path::Path;
use object_store::{
    Attribute, Attributes, CopyOptions, Error, Extensions, GetOptions, GetRange, GetResult, GetResultPayload,
    ListResult, MultipartUpload, ObjectMeta, ObjectStore, PutMode, PutMultipartOptions, PutOptions, PutPayload,
    PutResult, Result, UploadPart,
};

use crate::bucket::{self, BucketError, BucketRef, ETag, ListRequest};

pub(crate) mod ends;
pub(crate) mod look;
mod parts;
mod stamp;

use look::Look;
use parts::Parts;
pub(super) use stamp::DamagedObject;
use stamp::{stamp, unstamp};

/// SlateDB's name for the id of a put, kept as an attribute where stores have them.
const PUT_ID: Attribute = Attribute::Metadata(Cow::Borrowed("slatedbputid"));

/// 10 deletions at a time, as the library does by default.
const DELETES_MAX: usize = 10;

/// 8 swaps of one object that others change too; above it the put fails and SlateDB decides.
const SWAPS_MAX: u32 = 8;

/// The end of the largest range that every store can parse (a signed 64-bit number).
const OFFSET_MAX: u64 = i64::MAX as u64;

/// A bucket in the words of the `object_store` crate.
#[derive(Debug, Clone)]
pub(super) struct BucketStore {
    bucket: BucketRef,
    /// Gets what is read.
    noting: Option<Look>,
    /// Has what was read.
    seen: Option<Look>,
    parts: Arc<Parts>,
}

impl BucketStore {
    pub fn new(bucket: BucketRef) -> Self {
        Self {
            bucket,
            noting: None,
            seen: None,
            parts: Arc::default(),
        }
    }

    /// One that remembers what was read through it.
    pub fn looking(bucket: BucketRef) -> (Self, Look) {
        let look = Look::default();
        let noting = Some(look.clone());
        (
            Self {
                noting,
                ..Self::new(bucket)
            },
            look,
        )
    }

    /// One that answers with what was seen, once.
    pub fn after(bucket: BucketRef, seen: Look) -> Self {
        Self {
            seen: Some(seen),
            ..Self::new(bucket)
        }
    }

    async fn get_whole(&self, key: &str) -> Result<bucket::Object, BucketError> {
        if let Some(object) = self.seen.as_ref().and_then(|seen| seen.take_object(key)) {
            return Ok(object);
        }
        let object = self.bucket.get(key, None).await?;
        if let Some(noting) = &self.noting {
            noting.note_object(key, &object);
        }
        Ok(object)
    }

    /// Puts whatever is there: `Ok` if it holds `body` afterwards.
    async fn replace(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        let mut swaps = 0;
        loop {
            let lost = match self.bucket.put_if_absent(key, body.clone()).await {
                Err(BucketError::Precondition { .. }) => match self.bucket.head(key).await {
                    Err(BucketError::NotFound { .. }) => None,
                    Err(error) => return Err(error),
                    Ok(meta) => meta.etag,
                },
                answer => return answer,
            };
            if let Some(etag) = lost {
                match self.bucket.put_if_match(key, body.clone(), &etag).await {
                    Err(BucketError::Precondition { .. }) => {}
                    answer => return answer,
                }
            }
            swaps += 1;
            if swaps == SWAPS_MAX {
                return Err(BucketError::Unavailable {
                    key: key.to_owned(),
                    detail: format!("the object changed {SWAPS_MAX} times while it was being replaced"),
                });
            }
        }
    }

    async fn get_stamped(&self, location: &Path, options: &GetOptions) -> Result<GetResult> {
        let key = location.as_ref();
        let object = self.get_whole(key).await.map_err(|e| outward(key, e))?;
        let (body, put_id) = unstamp(&object.body).map_err(|detail| damaged(key, detail))?;
        // Its time is not known from a read, and nobody asks: the collector takes times from lists.
        let meta = meta_of(location, body.len() as u64, 0, Some(object.etag));
        options.check_preconditions(&meta)?;
        let range = bounded(options, meta.size)?;
        let part = body.slice(range.start as usize..range.end as usize);
        let mut result = result_of(meta, range, part);
        if let Some(put_id) = put_id {
            result.attributes.insert(PUT_ID, put_id.into());
        }
        Ok(result)
    }

    async fn head_bare(&self, location: &Path) -> Result<ObjectMeta> {
        let key = location.as_ref();
        let meta = self.bucket.head(key).await.map_err(|e| outward(key, e))?;
        Ok(meta_of(location, meta.size_bytes, meta.modified_unix_ms, meta.etag))
    }

    async fn get_bare(&self, location: &Path, options: &GetOptions) -> Result<GetResult> {
        if options.head {
            let meta = self.head_bare(location).await?;
            options.check_preconditions(&meta)?;
            return Ok(result_of(meta, 0..0, Bytes::new()));
        }
        let wanted = match &options.range {
            None => None,
            Some(GetRange::Bounded(range)) => Some(range.clone()),
            Some(GetRange::Offset(start)) => Some(*start..OFFSET_MAX),
            Some(GetRange::Suffix(_)) => {
                let meta = self.head_bare(location).await?;
                Some(bounded(options, meta.size)?)
            }
        };
        if wanted.as_ref().is_some_and(|range| range.start >= range.end) {
            return Err(generic(format!("an empty range of {location} was asked for").into()));
        }
        let key = location.as_ref();
        let object = match &wanted {
            Some(range) if range.end != OFFSET_MAX => self.parts.get(&self.bucket, key, range).await,
            _ => self.bucket.get(key, wanted.clone()).await,
        };
        let object = object.map_err(|e| outward(key, e))?;
        let meta = meta_of(location, object.size_bytes, 0, Some(object.etag));
        options.check_preconditions(&meta)?;
        let start = wanted.map_or(0, |range| range.start);
        let range = start..start + object.body.len() as u64;
        Ok(result_of(meta, range, object.body))
    }

    fn pages(&self, request: ListRequest) -> BoxStream<'static, Result<bucket::ListPage>> {
        let bucket = self.bucket.clone();
        stream::try_unfold(Some(request), move |request| {
            let bucket = bucket.clone();
            async move {
                let Some(mut request) = request else {
                    return Ok(None);
                };
                let mut page = bucket.list(&request).await.map_err(|e| outward(&request.prefix, e))?;
                request.page = page.next.take();
                let next = request.page.is_some().then_some(request);
                Ok(Some((page, next)))
            }
        })
        .boxed()
    }
}

/// Objects that must be won carry a put id; those named by a ULID are nobody else's anyway.
fn is_stamped(location: &Path) -> bool {
    !location.as_ref().ends_with(".sst")
}

/// The range asked for, within an object of `size` bytes.
fn bounded(options: &GetOptions, size: u64) -> Result<Range<u64>> {
    let range = match &options.range {
        None => 0..size,
        Some(GetRange::Bounded(range)) => range.start..range.end.min(size),
        Some(GetRange::Offset(start)) => *start..size,
        Some(GetRange::Suffix(len)) => size.saturating_sub(*len)..size,
    };
    match range.start <= range.end {
        true => Ok(range),
        false => Err(generic(
            format!("a range begins at {}, past the end at {size}", range.start).into(),
        )),
    }
}

fn meta_of(location: &Path, size: u64, modified_unix_ms: u64, etag: Option<ETag>) -> ObjectMeta {
    ObjectMeta {
        location: location.clone(),
        last_modified: (UNIX_EPOCH + Duration::from_millis(modified_unix_ms)).into(),
        size,
        e_tag: etag.map(|etag| etag.0),
        version: None,
    }
}

fn result_of(meta: ObjectMeta, range: Range<u64>, body: Bytes) -> GetResult {
    GetResult {
        payload: GetResultPayload::Stream(stream::once(async move { Ok(body) }).boxed()),
        meta,
        range,
        attributes: Attributes::new(),
        extensions: Extensions::new(),
    }
}

fn listed(mut meta: bucket::ObjectMeta) -> Result<ObjectMeta> {
    let location = Path::parse(&meta.key)?;
    Ok(meta_of(
        &location,
        meta.size_bytes,
        meta.modified_unix_ms,
        meta.etag.take(),
    ))
}

fn generic(source: Box<dyn std::error::Error + Send + Sync>) -> Error {
    Error::Generic {
        store: "bucket",
        source,
    }
}

/// The one kind that SlateDB neither tries again, as no try would help, nor takes for an answer.
fn damaged(key: &str, detail: &'static str) -> Error {
    let key = key.to_owned();
    Error::NotSupported {
        source: Box::new(DamagedObject { key, detail }),
    }
}

/// What SlateDB is told of a failed call: the variant decides whether it tries again.
fn outward(key: &str, error: BucketError) -> Error {
    let path = key.to_owned();
    match error {
        BucketError::NotFound { .. } | BucketError::NoBucket { .. } => Error::NotFound {
            path,
            source: Box::new(error),
        },
        BucketError::Precondition { .. } => Error::Precondition {
            path,
            source: Box::new(error),
        },
        BucketError::Denied { .. } | BucketError::NoCredentials { .. } => Error::PermissionDenied {
            path,
            source: Box::new(error),
        },
        BucketError::Unsupported { .. } => Error::NotSupported {
            source: Box::new(error),
        },
        BucketError::Unavailable { .. } | BucketError::Unexpected { .. } => generic(Box::new(error)),
    }
}

impl std::fmt::Display for BucketStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("bucket")
    }
}

#[async_trait]
impl ObjectStore for BucketStore {
    async fn put_opts(&self, location: &Path, payload: PutPayload, opts: PutOptions) -> Result<PutResult> {
        let key = location.as_ref();
        let body = match is_stamped(location) {
            true => stamp(payload, opts.attributes.get(&PUT_ID).map_or("", |id| id.as_ref())),
            false => payload.into(),
        };
        let answer = match opts.mode {
            PutMode::Overwrite => self.replace(key, body).await.map_err(|e| outward(key, e)),
            PutMode::Create => self.bucket.put_if_absent(key, body).await.map_err(|error| match error {
                BucketError::Precondition { .. } => Error::AlreadyExists {
                    path: key.to_owned(),
                    source: Box::new(error),
                },
                other => outward(key, other),
            }),
            PutMode::Update(version) => {
                let etag = version
                    .e_tag
                    .ok_or_else(|| generic("an update without a version".into()))?;
                let answer = self.bucket.put_if_match(key, body, &ETag(etag)).await;
                answer.map_err(|e| outward(key, e))
            }
        };
        Ok(PutResult {
            e_tag: Some(answer?.0),
            version: None,
            extensions: Extensions::new(),
        })
    }

    async fn put_multipart_opts(&self, location: &Path, _: PutMultipartOptions) -> Result<Box<dyn MultipartUpload>> {
        Ok(Box::new(Gathered {
            store: self.clone(),
            location: location.clone(),
            parts: Vec::new(),
        }))
    }

    async fn get_opts(&self, location: &Path, options: GetOptions) -> Result<GetResult> {
        match is_stamped(location) {
            true => self.get_stamped(location, &options).await,
            false => self.get_bare(location, &options).await,
        }
    }

    fn delete_stream(&self, locations: BoxStream<'static, Result<Path>>) -> BoxStream<'static, Result<Path>> {
        let bucket = self.bucket.clone();
        locations
            .map_ok(move |location| {
                let bucket = bucket.clone();
                async move {
                    let key = location.as_ref();
                    bucket.delete(key).await.map_err(|e| outward(key, e))?;
                    Ok(location)
                }
            })
            .try_buffered(DELETES_MAX)
            .boxed()
    }

    fn list(&self, prefix: Option<&Path>) -> BoxStream<'static, Result<ObjectMeta>> {
        let prefix = folder(prefix);
        if let Some(objects) = self.seen.as_ref().and_then(|seen| seen.take_list(&prefix)) {
            return stream::iter(objects.into_iter().map(Ok)).boxed();
        }
        let request = ListRequest {
            prefix: prefix.clone(),
            ..ListRequest::default()
        };
        let objects = self
            .pages(request)
            .map_ok(|page| stream::iter(page.objects.into_iter().map(listed)))
            .try_flatten();
        let Some(noting) = self.noting.clone() else {
            return objects.boxed();
        };
        let noted = async move {
            let objects: Vec<ObjectMeta> = objects.try_collect().await?;
            noting.note_list(prefix, objects.clone());
            Ok::<_, Error>(stream::iter(objects.into_iter().map(Ok)))
        };
        stream::once(noted).try_flatten().boxed()
    }

    fn list_with_offset(&self, prefix: Option<&Path>, offset: &Path) -> BoxStream<'static, Result<ObjectMeta>> {
        let request = ListRequest {
            prefix: folder(prefix),
            start_after: Some(offset.as_ref().to_owned()),
            ..ListRequest::default()
        };
        self.pages(request)
            .map_ok(|page| stream::iter(page.objects.into_iter().map(listed)))
            .try_flatten()
            .boxed()
    }

    async fn list_with_delimiter(&self, prefix: Option<&Path>) -> Result<ListResult> {
        let request = ListRequest {
            prefix: folder(prefix),
            delimited: true,
            ..ListRequest::default()
        };
        let pages: Vec<bucket::ListPage> = self.pages(request).try_collect().await?;
        let mut result = ListResult {
            common_prefixes: Vec::new(),
            objects: Vec::new(),
            extensions: Extensions::new(),
        };
        for page in pages {
            for object in page.objects {
                result.objects.push(listed(object)?);
            }
            for prefix in page.prefixes {
                result.common_prefixes.push(Path::parse(&prefix)?);
            }
        }
        Ok(result)
    }

    async fn copy_opts(&self, from: &Path, to: &Path, _: CopyOptions) -> Result<()> {
        Err(Error::NotSupported {
            source: format!("copying {from} to {to}").into(),
        })
    }
}

/// Paths are folders here: `a/b` means everything under `a/b/`.
fn folder(prefix: Option<&Path>) -> String {
    match prefix {
        Some(prefix) if !prefix.as_ref().is_empty() => format!("{prefix}/"),
        Some(_) | None => String::new(),
    }
}

/// An upload in parts, put as one object when it is complete.
#[derive(Debug)]
struct Gathered {
    store: BucketStore,
    location: Path,
    parts: Vec<PutPayload>,
}

#[async_trait]
impl MultipartUpload for Gathered {
    fn put_part(&mut self, data: PutPayload) -> UploadPart {
        self.parts.push(data);
        Box::pin(async { Ok(()) })
    }

    async fn complete(&mut self) -> Result<PutResult> {
        let payload: PutPayload = self.parts.iter().flat_map(|part| part.iter().cloned()).collect();
        // The parts stay until the put has succeeded: a failed completion may be tried again.
        let answer = self
            .store
            .put_opts(&self.location, payload, PutOptions::default())
            .await?;
        self.parts.clear();
        Ok(answer)
    }

    async fn abort(&mut self) -> Result<()> {
        self.parts.clear();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use object_store::{ObjectStoreExt, UpdateVersion};

    use super::*;
    use crate::bucket::memory::MemoryBucket;

    fn store() -> BucketStore {
        BucketStore::new(Arc::new(MemoryBucket::new()))
    }

    fn with_id(mode: PutMode, id: &'static str) -> PutOptions {
        let mut options = PutOptions::from(mode);
        options.attributes.insert(PUT_ID, id.into());
        options
    }

    #[tokio::test]
    async fn a_create_is_won_once_and_tells_whose_it_is() {
        let (store, at) = (store(), Path::from("m/manifest/1.manifest"));
        let put = |id| store.put_opts(&at, PutPayload::from_static(b"same"), with_id(PutMode::Create, id));
        let first = put("one").await.unwrap();
        let second = put("two").await;
        assert!(matches!(second, Err(Error::AlreadyExists { .. })), "{second:?}");

        let got = store.get(&at).await.unwrap();
        assert_eq!(
            got.attributes.get(&PUT_ID).map(|id| id.to_string()),
            Some("one".to_owned())
        );
        assert_eq!((got.meta.size, got.meta.e_tag.clone()), (4, first.e_tag.clone()));
        assert_eq!(got.bytes().await.unwrap(), "same");
        assert_eq!(store.head(&at).await.unwrap().size, 4, "the put id is not part of it");

        let version = UpdateVersion::from(first);
        let update =
            |version: UpdateVersion| store.put_opts(&at, "next".into(), with_id(PutMode::Update(version), "u"));
        update(version.clone()).await.unwrap();
        assert!(matches!(update(version).await, Err(Error::Precondition { .. })));
    }

    #[tokio::test]
    async fn ranges_of_all_kinds_are_read_bare_and_stamped() {
        let store = store();
        for name in ["m/compacted/x.sst", "m/x.manifest"] {
            let at = Path::from(name);
            store.put(&at, PutPayload::from_static(b"0123456789")).await.unwrap();
            store.put(&at, PutPayload::from_static(b"abcdefghij")).await.unwrap();
            assert_eq!(store.get_range(&at, 2..5).await.unwrap(), "cde");
            for (range, want) in [
                (GetRange::Offset(7), "hij"),
                (GetRange::Suffix(2), "ij"),
                (GetRange::Bounded(8..99), "ij"),
            ] {
                let options = GetOptions {
                    range: Some(range),
                    ..GetOptions::default()
                };
                let got = store.get_opts(&at, options).await.unwrap();
                assert_eq!((got.meta.size, got.range.end), (10, 10), "{name}");
                assert_eq!(got.bytes().await.unwrap(), want);
            }
            let cached = GetOptions {
                if_none_match: store.head(&at).await.unwrap().e_tag,
                ..GetOptions::default()
            };
            let again = store.get_opts(&at, cached).await;
            assert!(matches!(again, Err(Error::NotModified { .. })));
        }
    }

    #[tokio::test]
    async fn an_upload_in_parts_is_one_object_and_lists_are_of_folders() {
        let store = store();
        let mut upload = store.put_multipart(&Path::from("m/a/1.sst")).await.unwrap();
        upload.put_part("head".into()).await.unwrap();
        upload.put_part("tail".into()).await.unwrap();
        upload.complete().await.unwrap();
        store.put(&Path::from("m/ab/2.sst"), "x".into()).await.unwrap();
        let all: Vec<ObjectMeta> = store.list(Some(&Path::from("m/a"))).try_collect().await.unwrap();
        assert_eq!(
            all.iter().map(|m| (m.location.as_ref(), m.size)).collect::<Vec<_>>(),
            [("m/a/1.sst", 8)]
        );
        let folders = store.list_with_delimiter(Some(&Path::from("m"))).await.unwrap();
        assert_eq!(folders.common_prefixes, [Path::from("m/a"), Path::from("m/ab")]);
        store.delete(&Path::from("m/a/1.sst")).await.unwrap();
        let gone = store.get(&Path::from("m/a/1.sst")).await;
        assert!(matches!(gone, Err(Error::NotFound { .. })));
    }
}
