//! The S3 verbs that Pannier uses, over the shelf. The wire itself is s3s' work.

use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use s3s::dto::{
    self, CommonPrefix, CreateBucketInput, CreateBucketOutput, DeleteObjectInput, DeleteObjectOutput, ETag,
    ETagCondition, GetObjectInput, GetObjectOutput, HeadBucketInput, HeadBucketOutput, HeadObjectInput,
    HeadObjectOutput, ListObjectsV2Input, ListObjectsV2Output, PutObjectInput, PutObjectOutput, StreamingBlob,
};
use s3s::{Body, S3, S3Error, S3ErrorCode, S3Request, S3Response, S3Result};

use super::shelf::{Condition, Record, Shelf, ShelfError, Version};

/// 128 MiB: what one put may hold in RAM. The largest object of a volume is half of it.
const BODY_BYTES_MAX: usize = 128 << 20;

/// Rows of one page of a listing, as on S3.
const PAGE_ROWS_MAX: i32 = 1000;

/// The verbs.
#[derive(Debug)]
pub struct Front {
    shelf: Arc<Shelf>,
}

impl Front {
    /// Over this shelf.
    pub fn new(shelf: Arc<Shelf>) -> Self {
        Self { shelf }
    }

    /// Runs disk work where it may block.
    async fn blocking<T: Send + 'static>(
        &self,
        work: impl FnOnce(&Shelf) -> Result<T, ShelfError> + Send + 'static,
    ) -> S3Result<T> {
        let shelf = Arc::clone(&self.shelf);
        let joined = tokio::task::spawn_blocking(move || work(&shelf)).await;
        joined
            .map_err(|error| refuse(S3ErrorCode::InternalError, error.to_string()))?
            .map_err(translate)
    }
}

#[async_trait::async_trait]
impl S3 for Front {
    async fn create_bucket(&self, req: S3Request<CreateBucketInput>) -> S3Result<S3Response<CreateBucketOutput>> {
        let bucket = req.input.bucket;
        self.blocking(move |shelf| Ok(shelf.make_bucket(&bucket)?)).await?;
        Ok(S3Response::new(CreateBucketOutput::default()))
    }

    async fn head_bucket(&self, req: S3Request<HeadBucketInput>) -> S3Result<S3Response<HeadBucketOutput>> {
        if !self.shelf.has_bucket(&req.input.bucket) {
            return Err(translate(ShelfError::NoBucket));
        }
        Ok(S3Response::new(HeadBucketOutput::default()))
    }

    async fn put_object(&self, req: S3Request<PutObjectInput>) -> S3Result<S3Response<PutObjectOutput>> {
        let input = req.input;
        let condition = condition(input.if_none_match.as_ref(), input.if_match.as_ref())?;
        let body = match input.body {
            Some(body) => collect(body).await?,
            None => Bytes::new(),
        };
        let record = self
            .blocking(move |shelf| shelf.put(&input.bucket, &input.key, &body, condition))
            .await?;
        Ok(S3Response::new(PutObjectOutput {
            e_tag: Some(etag(record.version)),
            ..Default::default()
        }))
    }

    async fn get_object(&self, req: S3Request<GetObjectInput>) -> S3Result<S3Response<GetObjectOutput>> {
        let input = req.input;
        let asked = input.range;
        let (record, range, body) = self
            .blocking(move |shelf| {
                shelf.get(&input.bucket, &input.key, |size| match asked {
                    Some(range) => range.check(size).ok(),
                    None => Some(0..size),
                })
            })
            .await?;
        let content_range = asked.is_some().then(|| {
            format!(
                "bytes {}-{}/{}",
                range.start,
                range.end.saturating_sub(1),
                record.size_bytes
            )
        });
        Ok(S3Response::new(GetObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(body.len() as u64)),
            content_range,
            body: Some(StreamingBlob::from(Body::from(body))),
            e_tag: Some(etag(record.version)),
            last_modified: Some(record.modified.into()),
            ..Default::default()
        }))
    }

    async fn head_object(&self, req: S3Request<HeadObjectInput>) -> S3Result<S3Response<HeadObjectOutput>> {
        let record = self
            .shelf
            .record(&req.input.bucket, &req.input.key)
            .map_err(translate)?;
        Ok(S3Response::new(HeadObjectOutput {
            accept_ranges: Some("bytes".to_owned()),
            content_length: Some(length(record.size_bytes)),
            e_tag: Some(etag(record.version)),
            last_modified: Some(record.modified.into()),
            ..Default::default()
        }))
    }

    async fn delete_object(&self, req: S3Request<DeleteObjectInput>) -> S3Result<S3Response<DeleteObjectOutput>> {
        let input = req.input;
        self.blocking(move |shelf| shelf.delete(&input.bucket, &input.key))
            .await?;
        Ok(S3Response::new(DeleteObjectOutput::default()))
    }

    async fn list_objects_v2(&self, req: S3Request<ListObjectsV2Input>) -> S3Result<S3Response<ListObjectsV2Output>> {
        let input = req.input;
        let page = self.blocking(move |shelf| Page::read(shelf, input)).await?;
        Ok(S3Response::new(page.into_output()))
    }
}

/// One page of a listing while it is filled.
struct Page {
    input: ListObjectsV2Input,
    rows_max: usize,
    objects: Vec<dto::Object>,
    prefixes: Vec<String>,
    /// The last key or prefix taken, from which the next page goes on.
    last: String,
    truncated: bool,
}

impl Page {
    fn read(shelf: &Shelf, input: ListObjectsV2Input) -> Result<Self, ShelfError> {
        let rows_max = input.max_keys.unwrap_or(PAGE_ROWS_MAX).clamp(0, PAGE_ROWS_MAX);
        let rows_max = usize::try_from(rows_max).expect("clamped to at least 0");
        let after = input
            .continuation_token
            .clone()
            .or_else(|| input.start_after.clone())
            .unwrap_or_default();
        let prefix = input.prefix.clone().unwrap_or_default();
        let bucket = input.bucket.clone();
        let mut page = Self {
            input,
            rows_max,
            objects: Vec::new(),
            prefixes: Vec::new(),
            last: after.clone(),
            truncated: false,
        };
        shelf.walk(&bucket, &prefix, &after, |key, record| page.take(&prefix, key, record))?;
        Ok(page)
    }

    /// Takes one key; false ends the walk.
    fn take(&mut self, prefix: &str, key: &str, record: &Record) -> bool {
        let group = self
            .input
            .delimiter
            .as_deref()
            .filter(|delimiter| !delimiter.is_empty())
            .and_then(|delimiter| {
                let end = prefix.len() + key[prefix.len()..].find(delimiter)? + delimiter.len();
                Some(&key[..end])
            });
        // A group that the page before ended with, or that this page has already, is not said twice.
        if let Some(group) = group
            && (self.last == group || self.prefixes.last().is_some_and(|last| last == group))
        {
            return true;
        }
        if self.objects.len() + self.prefixes.len() >= self.rows_max {
            self.truncated = self.rows_max > 0;
            return false;
        }
        match group {
            Some(group) => {
                self.prefixes.push(group.to_owned());
                group.clone_into(&mut self.last);
            }
            None => {
                self.objects.push(dto::Object {
                    key: Some(key.to_owned()),
                    size: Some(length(record.size_bytes)),
                    e_tag: Some(etag(record.version)),
                    last_modified: Some(record.modified.into()),
                    ..Default::default()
                });
                key.clone_into(&mut self.last);
            }
        }
        true
    }

    fn into_output(self) -> ListObjectsV2Output {
        let rows = self.objects.len() + self.prefixes.len();
        let prefixes = self
            .prefixes
            .into_iter()
            .map(|prefix| CommonPrefix { prefix: Some(prefix) });
        ListObjectsV2Output {
            name: Some(self.input.bucket),
            prefix: self.input.prefix,
            delimiter: self.input.delimiter,
            max_keys: Some(i32::try_from(self.rows_max).unwrap_or(PAGE_ROWS_MAX)),
            key_count: Some(i32::try_from(rows).unwrap_or(PAGE_ROWS_MAX)),
            continuation_token: self.input.continuation_token,
            start_after: self.input.start_after,
            is_truncated: Some(self.truncated),
            next_continuation_token: self.truncated.then_some(self.last),
            contents: Some(self.objects),
            common_prefixes: Some(prefixes.collect()),
            ..Default::default()
        }
    }
}

fn condition(if_none_match: Option<&ETagCondition>, if_match: Option<&ETagCondition>) -> S3Result<Condition> {
    match (if_none_match, if_match) {
        (None, None) => Ok(Condition::Always),
        (Some(ETagCondition::Any), None) => Ok(Condition::Absent),
        (None, Some(ETagCondition::Any)) => Ok(Condition::Present),
        // A version that we never gave out matches nothing.
        (None, Some(ETagCondition::ETag(etag))) => Ok(Condition::Is(
            Version::try_parse(etag.value()).unwrap_or(Version::nil()),
        )),
        _ => Err(refuse(
            S3ErrorCode::NotImplemented,
            "only If-None-Match: * or If-Match is understood".to_owned(),
        )),
    }
}

async fn collect(mut body: StreamingBlob) -> S3Result<Bytes> {
    let mut whole = BytesMut::new();
    while let Some(part) = body.next().await {
        let part = part.map_err(|error| refuse(S3ErrorCode::IncompleteBody, error.to_string()))?;
        if whole.len() + part.len() > BODY_BYTES_MAX {
            return Err(refuse(
                S3ErrorCode::EntityTooLarge,
                format!("more than {BODY_BYTES_MAX} bytes"),
            ));
        }
        whole.extend_from_slice(&part);
    }
    Ok(whole.freeze())
}

fn etag(version: Version) -> ETag {
    ETag::Strong(version.simple().to_string())
}

fn length(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn refuse(code: S3ErrorCode, text: String) -> S3Error {
    S3Error::with_message(code, text)
}

fn translate(error: ShelfError) -> S3Error {
    let code = match error {
        ShelfError::NoBucket => S3ErrorCode::NoSuchBucket,
        ShelfError::NoObject => S3ErrorCode::NoSuchKey,
        ShelfError::Condition => S3ErrorCode::PreconditionFailed,
        ShelfError::KeyTooLong => S3ErrorCode::KeyTooLongError,
        ShelfError::Range => S3ErrorCode::InvalidRange,
        ShelfError::Disk(_) => S3ErrorCode::InternalError,
    };
    refuse(code, error.to_string())
}
