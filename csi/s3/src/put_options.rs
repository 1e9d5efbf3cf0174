//! What a store is told of each object that is put: its storage class and its encryption at rest.
//!
//! Absent: client-side encryption, and lifecycle rules of the bucket.

use aws_sdk_s3::operation::create_multipart_upload::builders::CreateMultipartUploadFluentBuilder;
use aws_sdk_s3::operation::put_object::builders::PutObjectFluentBuilder;
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};

/// What each put says besides its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PutOptions {
    /// Storage class; `None` for the store's own.
    pub storage_class: Option<String>,
    /// Encryption by the store; `None` for what the bucket does by itself.
    pub sse: Option<String>,
    /// Key for `aws:kms`; `None` for the account's own.
    pub sse_kms_key_id: Option<String>,
}

/// An option that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{key} {detail}")]
pub struct PutOptionError {
    /// Name of the option.
    pub key: &'static str,
    /// What is wrong, as the rest of a sentence.
    pub detail: String,
}

/// Classes that answer a GET at once. A volume reads what it wrote, and deletes it soon; what must be restored first, or is
/// billed for months, cannot hold one.
const CLASSES: &[&str] = &[
    "STANDARD",
    "REDUCED_REDUNDANCY",
    "STANDARD_IA",
    "ONEZONE_IA",
    "INTELLIGENT_TIERING",
    "EXPRESS_ONEZONE",
];

/// Ways of encryption by the store.
const ENCRYPTIONS: &[&str] = &["AES256", "aws:kms", "aws:kms:dsse"];

impl PutOptions {
    /// Checks them without asking the store.
    ///
    /// # Errors
    /// `PutOptionError` for a class or encryption that is unknown, and a key without an encryption that takes one.
    pub fn check(&self) -> Result<(), PutOptionError> {
        let known = |key, given: &Option<String>, known: &[&str]| match given {
            Some(given) if !known.contains(&given.as_str()) => Err(PutOptionError {
                key,
                detail: format!("cannot be {given:?}; it can be {}", known.join(", ")),
            }),
            Some(_) | None => Ok(()),
        };
        known("storage_class", &self.storage_class, CLASSES)?;
        known("sse", &self.sse, ENCRYPTIONS)?;
        let takes_key = self.sse.as_deref().is_some_and(|sse| sse.starts_with("aws:kms"));
        if self.sse_kms_key_id.is_some() && !takes_key {
            return Err(PutOptionError {
                key: "sse_kms_key_id",
                detail: "needs sse to be aws:kms or aws:kms:dsse".into(),
            });
        }
        Ok(())
    }

    pub(crate) fn on(&self, request: PutObjectFluentBuilder) -> PutObjectFluentBuilder {
        let (class, sse, key_id) = self.said();
        request
            .set_storage_class(class)
            .set_server_side_encryption(sse)
            .set_ssekms_key_id(key_id)
    }

    fn said(&self) -> (Option<StorageClass>, Option<ServerSideEncryption>, Option<String>) {
        let class = self.storage_class.as_deref().map(StorageClass::from);
        let sse = self.sse.as_deref().map(ServerSideEncryption::from);
        (class, sse, self.sse_kms_key_id.clone())
    }

    /// For an object in parts all is said at its beginning.
    pub(crate) fn on_upload(&self, request: CreateMultipartUploadFluentBuilder) -> CreateMultipartUploadFluentBuilder {
        let (class, sse, key_id) = self.said();
        request
            .set_storage_class(class)
            .set_server_side_encryption(sse)
            .set_ssekms_key_id(key_id)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_hold_a_volume_is_refused_by_its_key() {
        let options = |class: &str, sse: &str, key: &str| {
            let given = |text: &str| (!text.is_empty()).then(|| text.to_owned());
            PutOptions {
                storage_class: given(class),
                sse: given(sse),
                sse_kms_key_id: given(key),
            }
        };
        for (class, sse, key, named) in [
            ("GLACIER", "", "", "storage_class"),
            ("", "aes", "", "sse"),
            ("", "AES256", "k", "sse_kms_key_id"),
            ("", "", "k", "sse_kms_key_id"),
        ] {
            let error = options(class, sse, key).check().unwrap_err();
            assert_eq!(error.key, named, "{error}");
        }
        options("STANDARD_IA", "aws:kms", "k").check().unwrap();
        options("", "", "").check().unwrap();
    }
}
