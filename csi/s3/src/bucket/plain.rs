//! Ordinary objects, such as other programs keep: with what was written beside them, of any size, put without a condition.
//!
//! A volume uses none of it: its objects are written once, and under a condition. Callers: import and export.

use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

use aws_sdk_s3::primitives::ByteStream;
use aws_sdk_s3::types::{CompletedMultipartUpload, CompletedPart};
use bytes::Bytes;
use volume::bucket::{BucketError, ETag, Object, ObjectMeta};

use super::{S3Bucket, etag, length, unix_ms};
use crate::counters::Operation;
use crate::error::{Asked, failure};
use crate::retry::Failure;

/// What was written beside an object: the part of each `x-amz-meta-` header after that, in lower case, and its value.
pub type Metadata = BTreeMap<String, String>;

/// Most parts of one object (Amazon S3 User Guide, "Multipart upload limits").
pub const PARTS_MAX: u64 = 10_000;

/// An object that is put in parts; it is nothing until `finish_upload`.
#[derive(Debug, Clone)]
pub struct Upload {
    /// Its key.
    pub key: String,
    id: String,
}

/// A part that the store has.
#[derive(Debug, Clone)]
pub struct Part {
    number: u64,
    etag: ETag,
}

impl S3Bucket {
    /// Reads an object, or a range of it as `Bucket::get` does, with what was written beside it.
    ///
    /// # Errors
    /// `BucketError`, as of `Bucket::get`.
    pub async fn get_plain(&self, key: &str, range: Option<Range<u64>>) -> Result<(Object, Metadata), BucketError> {
        let asked = self.asked(Operation::Get, key);
        let send = |attempt| {
            let (asked, range) = (&asked, range.clone());
            async move {
                let _connection = self.connection().await;
                let answer = self.send_get(asked, range.as_ref(), attempt).await?;
                let metadata = metadata(answer.metadata());
                Ok((self.read_body(asked, range, answer).await?, metadata))
            }
        };
        self.run(send).await.map_err(|failed| failed.error)
    }

    /// Size, version and what was written beside an object.
    ///
    /// # Errors
    /// `BucketError`, as of `Bucket::head`.
    pub async fn head_plain(&self, key: &str) -> Result<(ObjectMeta, Metadata), BucketError> {
        let asked = self.asked(Operation::Head, key);
        let send = |attempt| {
            let asked = &asked;
            async move {
                let _connection = self.connection().await;
                let request = self.store.client.head_object().bucket(&self.name).key(asked.key);
                let answer = self
                    .once(asked, attempt, 0, request.send())
                    .await?
                    .map_err(|error| failure(asked, error))?;
                let meta = ObjectMeta {
                    key: asked.key.to_owned(),
                    size_bytes: length(asked, answer.content_length())?,
                    etag: Some(etag(asked, answer.e_tag())?),
                    modified_unix_ms: answer.last_modified().map_or(0, unix_ms),
                };
                Ok((meta, metadata(answer.metadata())))
            }
        };
        self.run(send).await.map_err(|failed| failed.error)
    }

    /// Puts an object, whatever was there.
    ///
    /// # Durability
    /// `Ok` means durable in the store.
    ///
    /// # Errors
    /// `BucketError`, as of the other puts, without `Precondition`.
    pub async fn put_plain(&self, key: &str, body: Bytes, metadata: &Metadata) -> Result<ETag, BucketError> {
        let asked = self.asked(Operation::Put, key);
        let send = |attempt| {
            let (asked, body) = (&asked, body.clone());
            async move {
                let _connection = self.connection().await;
                let length = body.len() as u64;
                let request = self.store.client.put_object().bucket(&self.name).key(asked.key);
                let request = request
                    .body(ByteStream::from(body))
                    .set_metadata(Some(headers(metadata)));
                let request = self.store.put.on(request).customize();
                let request = match self.store.is_encrypted() {
                    true => request.disable_payload_signing(),
                    false => request,
                };
                let answer = self
                    .once(asked, attempt, length, request.send())
                    .await?
                    .map_err(|error| failure(asked, error))?;
                etag(asked, answer.e_tag())
            }
        };
        self.run(send).await.map_err(|failed| failed.error)
    }

    /// Begins an object that is put in parts.
    ///
    /// # Errors
    /// `BucketError`, as of the puts.
    pub async fn begin_upload(&self, key: &str, metadata: &Metadata) -> Result<Upload, BucketError> {
        let asked = self.asked(Operation::Upload, key);
        let send = |attempt| {
            let asked = &asked;
            async move {
                let _connection = self.connection().await;
                let request = self.store.client.create_multipart_upload().bucket(&self.name);
                let request = request.key(asked.key).set_metadata(Some(headers(metadata)));
                let request = self.store.put.on_upload(request);
                let answer = self
                    .once(asked, attempt, 0, request.send())
                    .await?
                    .map_err(|error| failure(asked, error))?;
                let id = answer.upload_id().map(str::to_owned);
                id.ok_or_else(|| Failure::Final(asked.unexpected("an upload without an id")))
            }
        };
        let id = self.run(send).await.map_err(|failed| failed.error)?;
        let key = key.to_owned();
        Ok(Upload { key, id })
    }

    /// Puts part `number`, from 1 to `PARTS_MAX`. All but the last have at least 5 MiB.
    ///
    /// # Errors
    /// `BucketError`, as of the puts.
    pub async fn put_part(&self, upload: &Upload, number: u64, body: Bytes) -> Result<Part, BucketError> {
        let asked = self.asked(Operation::Put, &upload.key);
        let send = |attempt| {
            let (asked, body) = (&asked, body.clone());
            async move {
                let _connection = self.connection().await;
                let length = body.len() as u64;
                let request = self.store.client.upload_part().bucket(&self.name).key(asked.key);
                let request = request
                    .upload_id(&upload.id)
                    .part_number(part_number(asked, number)?)
                    .body(ByteStream::from(body))
                    .customize();
                let request = match self.store.is_encrypted() {
                    true => request.disable_payload_signing(),
                    false => request,
                };
                let answer = self
                    .once(asked, attempt, length, request.send())
                    .await?
                    .map_err(|error| failure(asked, error))?;
                etag(asked, answer.e_tag())
            }
        };
        let etag = self.run(send).await.map_err(|failed| failed.error)?;
        Ok(Part { number, etag })
    }

    /// Makes the object of its parts, which are in order.
    ///
    /// # Durability
    /// `Ok` means durable in the store.
    ///
    /// # Errors
    /// `BucketError`, as of the puts. A lost answer may make a repetition fail with `NotFound`: then look at the object.
    pub async fn finish_upload(&self, upload: &Upload, parts: &[Part]) -> Result<(), BucketError> {
        let asked = self.asked(Operation::Upload, &upload.key);
        let send = |attempt| {
            let asked = &asked;
            async move {
                let mut completed = Vec::with_capacity(parts.len());
                for part in parts {
                    let number = part_number(asked, part.number)?;
                    completed.push(CompletedPart::builder().part_number(number).e_tag(&part.etag.0).build());
                }
                let all = CompletedMultipartUpload::builder().set_parts(Some(completed)).build();
                let _connection = self.connection().await;
                let request = self.store.client.complete_multipart_upload().bucket(&self.name);
                let request = request.key(asked.key).upload_id(&upload.id).multipart_upload(all);
                self.once(asked, attempt, 0, request.send())
                    .await?
                    .map(drop)
                    .map_err(|error| failure(asked, error))
            }
        };
        self.run(send).await.map_err(|failed| failed.error)
    }

    /// Gives an upload up: the store forgets its parts. `Ok` if it is gone already.
    ///
    /// # Errors
    /// `BucketError`, as of `Bucket::delete`.
    pub async fn abort_upload(&self, upload: &Upload) -> Result<(), BucketError> {
        let asked = self.asked(Operation::Upload, &upload.key);
        let send = |attempt| {
            let asked = &asked;
            async move {
                let _connection = self.connection().await;
                let request = self.store.client.abort_multipart_upload().bucket(&self.name);
                let request = request.key(asked.key).upload_id(&upload.id);
                match self.once(asked, attempt, 0, request.send()).await? {
                    Ok(_) => Ok(()),
                    Err(error) if error.as_service_error().is_some_and(|error| error.is_no_such_upload()) => Ok(()),
                    Err(error) => Err(failure(asked, error)),
                }
            }
        };
        self.run(send).await.map_err(|failed| failed.error)
    }
}

fn part_number(asked: &Asked<'_>, number: u64) -> Result<i32, Failure> {
    match i32::try_from(number) {
        Ok(part) if (1..=PARTS_MAX).contains(&number) => Ok(part),
        _ => Err(Failure::Final(
            asked.unexpected(format!("an object has no part {number}")),
        )),
    }
}

fn metadata(headers: Option<&HashMap<String, String>>) -> Metadata {
    let lower = |(key, value): (&String, &String)| (key.to_ascii_lowercase(), value.clone());
    headers.into_iter().flatten().map(lower).collect()
}

fn headers(metadata: &Metadata) -> HashMap<String, String> {
    metadata
        .iter()
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect()
}
