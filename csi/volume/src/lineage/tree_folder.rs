//! Where the tree of a volume lies in its data folder: in `m`, or, where a repair has made it anew, in `m-` and the epoch of
//! that repair. Whoever opens a tree finds it below `m/` all the same: the head is asked here, and nowhere else.
//!
//! Invariant: what a volume or an ancestor had before a repair stays in its folder, because marks of snapshots and clones lead
//! there. Caller: `lineage.rs`.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;

use crate::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta};
use crate::ids::Epoch;
use crate::rope::Rope;
use crate::tree::slate::FOLDER;

/// The folder of a tree, without a slash: the first one, or the one that the repair of this epoch made.
pub(crate) fn folder_of(made: Option<Epoch>) -> String {
    match made {
        None => FOLDER.to_owned(),
        Some(epoch) => format!("{REPAIRED}{:016x}", epoch.0),
    }
}

/// How the folders of trees begin that repairs have made.
pub(crate) const REPAIRED: &str = "m-";

/// The repair that made the tree in this folder, if one did.
pub(crate) fn made_by(folder: &str) -> Option<Epoch> {
    let digits = folder.trim_end_matches('/').strip_prefix(REPAIRED)?;
    u64::from_str_radix(digits, 16).ok().map(Epoch)
}

/// A data folder whose tree was made anew, with that tree below `m/`.
#[derive(Debug)]
pub(super) struct Regrown {
    inner: BucketRef,
    /// With its slash.
    folder: String,
    /// As it is seen, with its slash.
    seen: String,
}

impl Regrown {
    pub fn new(inner: BucketRef, epoch: Epoch) -> Self {
        Self {
            inner,
            folder: format!("{}/", folder_of(Some(epoch))),
            seen: format!("{FOLDER}/"),
        }
    }

    fn inward(&self, key: &str) -> String {
        match key.strip_prefix(&self.seen) {
            Some(rest) => format!("{}{rest}", self.folder),
            None => key.to_owned(),
        }
    }

    fn outward(&self, key: String) -> String {
        match key.strip_prefix(&self.folder) {
            Some(rest) => format!("{}{rest}", self.seen),
            None => key,
        }
    }
}

#[async_trait]
impl Bucket for Regrown {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        self.inner.get(&self.inward(key), range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let mut meta = self.inner.head(&self.inward(key)).await?;
        meta.key = self.outward(meta.key);
        Ok(meta)
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        self.inner.put_if_absent(&self.inward(key), body).await
    }

    async fn put_rope_if_absent(&self, key: &str, body: Rope) -> Result<ETag, BucketError> {
        self.inner.put_rope_if_absent(&self.inward(key), body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        self.inner.put_if_match(&self.inward(key), body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        self.inner.delete(&self.inward(key)).await
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        self.inner.delete_if_match(&self.inward(key), expected).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        let inner = ListRequest {
            prefix: self.inward(&request.prefix),
            start_after: request.start_after.as_deref().map(|key| self.inward(key)),
            ..request.clone()
        };
        let mut page = self.inner.list(&inner).await?;
        for object in &mut page.objects {
            object.key = self.outward(std::mem::take(&mut object.key));
        }
        for prefix in &mut page.prefixes {
            *prefix = self.outward(std::mem::take(prefix));
        }
        Ok(page)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::bucket::memory::MemoryBucket;

    #[tokio::test]
    async fn a_tree_made_anew_is_seen_where_the_first_one_was_and_the_rest_as_it_is() {
        let memory = Arc::new(MemoryBucket::new());
        let seen = Regrown::new(memory.clone(), Epoch(5));
        for key in ["m/manifest/1", "m/manifest/2", "j/1"] {
            seen.put_if_absent(key, Bytes::from_static(b"x")).await.unwrap();
        }
        let kept = ["j/1", "m-0000000000000005/manifest/1", "m-0000000000000005/manifest/2"];
        assert_eq!(memory.keys(), kept);
        let request = ListRequest {
            prefix: "m/manifest/".to_owned(),
            start_after: Some("m/manifest/1".to_owned()),
            ..ListRequest::default()
        };
        let page = seen.list(&request).await.unwrap();
        let found: Vec<_> = page.objects.into_iter().map(|object| object.key).collect();
        assert_eq!(found, ["m/manifest/2"]);
        assert_eq!(seen.head("m/manifest/2").await.unwrap().key, "m/manifest/2");
        seen.delete("m/manifest/1").await.unwrap();
        assert!(seen.get("m/manifest/1", None).await.is_err() && seen.get("j/1", None).await.is_ok());
    }
}
