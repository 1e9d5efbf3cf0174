//! Volumes and nodes of a cluster: create, find, publish, delete.
//!
//! Everything is in the bucket, below one prefix of it: `v/<volume id>/` is a volume (see `head.rs`), `n/<node>` a node.
//! There is no index and nothing else to keep, so any number of controllers may run at once. Every verb may be repeated
//! and converges. Invariant: a volume is never published for writing to two nodes, and never deleted under a node.
//! Callers: the CSI controller and the `pannier volume` commands. Absent: the content of volumes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use uuid::Uuid;

use crate::bucket::{BucketError, BucketRef, ListRequest, Prefixed};
use crate::clock::Timestamp;
use crate::head::{Head, HeadError, HeadFile, HeadWriter, NewHead, Parameters};
use crate::lineage::Source;
use crate::probe::{Trial, probe};
use crate::snapshot::Family;
use crate::volume_id::VolumeId;

mod changes;
mod deletion;
mod error;
mod nodes;
mod publications;

pub use changes::{expand_at, modify_at};
pub use deletion::{Led, delete_at};
pub use error::AdminError;
pub use nodes::NodeRecord;
pub use publications::{PublishVolume, release_at};

/// 16 requests at a time where many objects are read or deleted: a thousand a second at 15 ms each, and far from any
/// store's limit.
pub(crate) const REQUESTS_IN_FLIGHT: usize = 16;

/// 100 volumes in a page of `list` when the caller does not say.
const PAGE_VOLUMES: usize = 100;

/// How large a volume must and may be, in bytes; 0 leaves a bound open.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct CapacityRange {
    /// At least this.
    pub required_bytes: u64,
    /// At most this.
    pub limit_bytes: u64,
}

impl CapacityRange {
    /// The capacity of a volume created for this range: the smallest that will do, and no limit where none is asked for.
    pub(crate) fn choose(self) -> u64 {
        if self.required_bytes > 0 {
            self.required_bytes
        } else {
            self.limit_bytes
        }
    }

    fn holds(self, capacity_bytes: u64) -> bool {
        // No quota satisfies every lower bound and no upper one.
        let (low, high) = (self.required_bytes, self.limit_bytes);
        let size = if capacity_bytes == 0 { u64::MAX } else { capacity_bytes };
        size >= low && (high == 0 || size <= high)
    }
}

/// A volume to create.
#[derive(Debug, Clone)]
pub struct CreateVolume {
    /// Its name; the same name is the same volume.
    pub name: String,
    /// Fresh for each call.
    pub uuid: Uuid,
    /// How large.
    pub capacity: CapacityRange,
    /// What as.
    pub parameters: Parameters,
    /// For people to read.
    pub now: Timestamp,
}

/// One row of a list.
#[derive(Debug)]
pub struct ListedVolume {
    /// The volume.
    pub volume: VolumeId,
    /// Its head, or why it cannot be read: one damaged head must not hide all other volumes.
    pub head: Result<Head, HeadError>,
}

/// One page of a list.
#[derive(Debug)]
pub struct VolumePage {
    /// In ascending order of their ids.
    pub volumes: Vec<ListedVolume>,
    /// Give this to the next call; `None` after the last page.
    pub next: Option<String>,
}

/// The folder of a volume below the cluster's prefix, with its final slash.
pub fn volume_prefix(volume: &VolumeId) -> String {
    format!("v/{volume}/")
}

/// The bucket as the volume's own folder. Heads and everything else of the volume lie below.
pub fn volume_root(cluster: &BucketRef, volume: &VolumeId) -> BucketRef {
    Arc::new(Prefixed::new(cluster.clone(), volume_prefix(volume)))
}

/// The verbs, on one cluster's prefix of a bucket.
#[derive(Debug)]
pub struct Admin {
    cluster: BucketRef,
    writer: HeadWriter,
    store_proven: AtomicBool,
}

impl Admin {
    /// `cluster` is the bucket rooted at the cluster's prefix; `session` is fresh for each value of this type.
    pub fn new(cluster: BucketRef, session: Uuid) -> Self {
        Self {
            cluster,
            writer: HeadWriter::new(session),
            store_proven: AtomicBool::new(false),
        }
    }

    /// The bucket as the folder of a volume.
    pub fn volume_root(&self, volume: &VolumeId) -> BucketRef {
        volume_root(&self.cluster, volume)
    }

    /// Creates a volume, or finds the one of the same name that was created alike.
    ///
    /// # Durability
    /// `Ok` means that the volume is in the bucket.
    ///
    /// # Errors
    /// `Name`, `Capacity`; `AlreadyExists` if it was created otherwise; `Deleting`; `Store` if the store's conditional
    /// puts do not hold; `Head`, `Bucket`.
    pub async fn create(&self, request: &CreateVolume) -> Result<Head, AdminError> {
        let volume = VolumeId::of_name(&request.name)?;
        let CapacityRange {
            required_bytes,
            limit_bytes,
        } = request.capacity;
        if limit_bytes > 0 && required_bytes > limit_bytes {
            return Err(AdminError::Capacity {
                required_bytes,
                limit_bytes,
            });
        }
        let file = self.head_file(&volume);
        match file.read().await {
            Ok(head) => return created_alike(head, request, None),
            Err(HeadError::Missing) => {}
            Err(error) => return Err(error.into()),
        }
        self.prove_store(request.uuid).await?;
        let head = Head::new(NewHead {
            name: request.name.clone(),
            volume,
            uuid: request.uuid,
            capacity_bytes: request.capacity.choose(),
            parameters: request.parameters,
            now: request.now,
        });
        match file.create(head).await {
            Err(HeadError::Exists) => created_alike(file.read().await?, request, None),
            answer => Ok(answer?),
        }
    }

    /// The head of a volume.
    ///
    /// # Errors
    /// `NotFound`, also while it is being deleted; `Head`, `Bucket`.
    pub async fn get(&self, volume: &VolumeId) -> Result<Head, AdminError> {
        match self.head_file(volume).read().await {
            Ok(head) if !head.deleting => Ok(head),
            Ok(_) | Err(HeadError::Missing) => Err(AdminError::NotFound { volume: volume.clone() }),
            Err(error) => Err(error.into()),
        }
    }

    /// Lists volumes in ascending order of their ids, at most `volumes_max` of them (0 leaves it to us), beginning after
    /// the page that returned `token`. Volumes that are being deleted are left out.
    ///
    /// # Errors
    /// `PageToken` if `token` is none; `Bucket`.
    pub async fn list(&self, token: Option<&str>, volumes_max: usize) -> Result<VolumePage, AdminError> {
        let wanted = if volumes_max == 0 { PAGE_VOLUMES } else { volumes_max };
        let mut after = match token {
            Some(token) => Some(VolumeId::parse(token).map_err(|_| AdminError::PageToken {
                token: token.to_owned(),
            })?),
            None => None,
        };
        let mut page = VolumePage {
            volumes: Vec::new(),
            next: None,
        };
        loop {
            // One more than wanted: only then is it known whether another page follows.
            let ids = self.volume_ids(after.as_ref(), wanted - page.volumes.len() + 1).await?;
            if ids.is_empty() {
                return Ok(page);
            }
            let reads = ids.into_iter().map(|volume| async move {
                let head = self.head_file(&volume).read().await;
                ListedVolume { volume, head }
            });
            let mut reads = futures::stream::iter(reads).buffered(REQUESTS_IN_FLIGHT);
            while let Some(listed) = reads.next().await {
                after = Some(listed.volume.clone());
                match &listed.head {
                    Err(HeadError::Missing) => continue,
                    Ok(head) if head.deleting => continue,
                    Ok(_) | Err(_) => {}
                }
                if page.volumes.len() == wanted {
                    page.next = page.volumes.last().map(|last| last.volume.to_string());
                    return Ok(page);
                }
                page.volumes.push(listed);
            }
        }
    }

    /// Deletes a volume and everything in it that no snapshot or clone needs; the rest goes with the last of those. A deletion
    /// that stopped half way goes on at the next call; meanwhile the volume cannot be mounted. `Ok` if there is no such volume.
    ///
    /// # Durability
    /// `Ok` means that the volume's objects are gone. What a fenced writer still had in flight may land afterwards: it is
    /// garbage below a uuid that no head names.
    ///
    /// # Errors
    /// `InUse` while it is published, or led by a mount by hand (see `Led`); `Head`, `Bucket`.
    pub async fn delete(&self, volume: &VolumeId, led: Led) -> Result<(), AdminError> {
        delete_at(&self.volume_root(volume), &self.writer, led).await.map(drop)
    }

    /// Sets the quota of a volume in bytes; 0 means no limit. A mount learns of it when it reads the head again.
    ///
    /// # Errors
    /// `NotFound`, `Head`, `Bucket`.
    pub async fn set_capacity(&self, volume: &VolumeId, capacity_bytes: u64) -> Result<Head, AdminError> {
        let change = |head: &mut Head| {
            if head.deleting {
                return Err(AdminError::NotFound {
                    volume: head.volume.clone(),
                });
            }
            head.capacity_bytes = capacity_bytes;
            Ok(())
        };
        match self.head_file(volume).update(change).await {
            Ok((head, ())) => Ok(head),
            Err(error) => Err(known(error, volume)),
        }
    }

    /// The volumes with their snapshots and clones.
    pub fn family(&self) -> Family {
        let folder = Arc::new(Prefixed::new(self.cluster.clone(), "v/"));
        Family::new(folder, self.writer.clone())
    }

    fn head_file(&self, volume: &VolumeId) -> HeadFile {
        HeadFile::new(self.volume_root(volume), self.writer.clone())
    }

    async fn prove_store(&self, nonce: Uuid) -> Result<(), AdminError> {
        if self.store_proven.load(Ordering::Relaxed) {
            return Ok(());
        }
        probe(&self.cluster, "probe/", nonce, Trial::default()).await?;
        self.store_proven.store(true, Ordering::Relaxed);
        Ok(())
    }

    async fn volume_ids(&self, after: Option<&VolumeId>, ids_max: usize) -> Result<Vec<VolumeId>, BucketError> {
        // '0' follows '/': so this is behind all keys of that volume and before those of the next one. Stores differ in
        // what they make of a start inside a folder that they are to fold, but not in this.
        let start_after = after.map(|id| format!("v/{id}0"));
        let rows_max = u32::try_from(ids_max).unwrap_or(u32::MAX);
        let mut request = ListRequest {
            prefix: "v/".into(),
            start_after,
            delimited: true,
            rows_max,
            page: None,
        };
        let mut ids = Vec::new();
        loop {
            let page = self.cluster.list(&request).await?;
            let names = page
                .prefixes
                .iter()
                .filter_map(|prefix| prefix.strip_prefix("v/")?.strip_suffix('/'));
            // What is no id was not put there by us, and is none of our business.
            ids.extend(names.filter_map(|name| VolumeId::parse(name).ok()));
            request.page = page.next;
            if request.page.is_none() || ids.len() >= ids_max {
                ids.truncate(ids_max);
                return Ok(ids);
            }
        }
    }
}

fn known(error: AdminError, volume: &VolumeId) -> AdminError {
    match error {
        AdminError::Head(HeadError::Missing) => AdminError::NotFound { volume: volume.clone() },
        error => error,
    }
}

pub(crate) fn created_alike(head: Head, request: &CreateVolume, source: Option<&Source>) -> Result<Head, AdminError> {
    if head.deleting {
        return Err(AdminError::Deleting { volume: head.volume });
    }
    let differs = |what, has: String, asked: String| {
        Err(AdminError::AlreadyExists {
            volume: head.volume.clone(),
            what,
            has,
            asked,
        })
    };
    if head.name != request.name {
        return differs("name", head.name.clone(), request.name.clone());
    }
    if head.parameters != request.parameters {
        return differs(
            "set of parameters",
            format!("{:?}", head.parameters),
            format!("{:?}", request.parameters),
        );
    }
    let has = head.branch.as_ref().map(|branch| &branch.source);
    if has != source {
        let told = |source: Option<&Source>| source.map_or_else(|| "none".to_owned(), Source::to_string);
        return differs("source", told(has), told(source));
    }
    if !request.capacity.holds(head.capacity_bytes) {
        let CapacityRange {
            required_bytes,
            limit_bytes,
        } = request.capacity;
        return differs(
            "capacity",
            format!("{} bytes", head.capacity_bytes),
            format!("{required_bytes} to {limit_bytes}"),
        );
    }
    Ok(head)
}

#[cfg(test)]
mod tests;
