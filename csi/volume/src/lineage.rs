//! Whose objects a volume reads: its own, and those of the volumes that it was cloned from.
//!
//! A clone has a folder of its own and never writes anywhere else. Objects are named by (epoch, number), and the first
//! epoch of a clone follows the last one that it has of its source, so the epoch alone tells in whose folder an object
//! lies: no row had to change when the clone was made, and making it costs the same whatever the volume holds.
//!
//! Invariants: of an ancestor nothing is read behind the commit at which the clone branched off, whatever that ancestor
//! writes later; no object of an ancestor is ever put or deleted through here. Files of the ancestors' trees are seen
//! below `up/`, where the tree of the clone itself puts and drops its marks (see `tree/checkpoint.rs`).
//! Callers: `open.rs`, `snapshot.rs`, `check.rs`. Absent: what keeps the ancestors' objects alive (`holds.rs`).

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::bucket::{Bucket, BucketError, BucketRef, ETag, ListPage, ListRequest, Object, ObjectMeta, Prefixed};
use crate::head::{Head, HeadError};
use crate::holds::HeldState;
use crate::ids::{Epoch, JournalSeq, ObjectId};
use crate::rope::Rope;
use crate::row::Applied;
use crate::tree::slate::NOTHING;
use crate::volume_id::{SnapshotId, VolumeId};

mod tree_folder;

use tree_folder::Regrown;
pub(crate) use tree_folder::{REPAIRED, folder_of, made_by};

/// 12 ancestors: what fits into a head of 4 KiB beside everything else. A clone of such a clone is refused.
pub const ANCESTORS_MAX: usize = 12;

/// Where a volume sees the folders of its ancestors, by their uuids.
const UP: &str = "up/";

/// What a clone was made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// A volume, as it was at that moment.
    Volume(VolumeId),
    /// A snapshot.
    Snapshot(SnapshotId),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Source::Volume(volume) => write!(f, "volume {volume}"),
            Source::Snapshot(snapshot) => write!(f, "snapshot {snapshot}"),
        }
    }
}

/// A volume that this one has its first content from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Ancestor {
    /// Its folder, beside ours.
    pub folder: String,
    /// Identity of its data: a folder in its folder, and in every frame.
    pub uuid: Uuid,
    /// The last commit that is ours as well.
    pub until: Applied,
}

/// A state of a tree that nobody changes any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TreeAt {
    /// Identity of the volume whose tree it is.
    pub uuid: Uuid,
    /// Its mark in that tree.
    pub checkpoint: Uuid,
    /// What it contains.
    pub applied: Applied,
    /// The repair that made that tree; `None` for the first one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub made: Option<Epoch>,
}

/// Where a clone begins.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Branch {
    /// What it was made of.
    pub source: Source,
    /// The oldest first; the last one is the volume that it was made of. Never empty.
    pub ancestors: Vec<Ancestor>,
    /// The tree that ours begins as; `None` where the source had none yet.
    pub tree: Option<TreeAt>,
}

impl Branch {
    /// The last commit that is not the clone's own.
    ///
    /// # Panics
    /// If there is no ancestor, which no head says.
    pub fn until(&self) -> Applied {
        self.parent().until
    }

    /// What is to be held of the volume that it was made of.
    ///
    /// # Panics
    /// As `until`.
    pub fn held(&self) -> HeldState {
        HeldState {
            tree: self.tree.map_or(NOTHING, |tree| tree.applied),
            position: self.until(),
            segments_below: None,
        }
    }

    /// The volume that it was made of.
    ///
    /// # Panics
    /// As `until`.
    pub fn parent(&self) -> &Ancestor {
        self.ancestors.last().expect("a clone has an ancestor")
    }
}

/// The folder of a volume's data in the volume's folder, with its final slash.
pub fn data_folder(uuid: Uuid) -> String {
    format!("{}/", uuid.simple())
}

/// The folder of an ancestor's data, with its final slash, below the data folder of whoever descends from it.
pub(crate) fn folder_above(uuid: Uuid) -> String {
    format!("{UP}{}", data_folder(uuid))
}

/// Whose an object is.
#[derive(Debug, Clone)]
pub struct Lineage {
    own: Uuid,
    ancestors: Arc<[Ancestor]>,
}

impl From<Uuid> for Lineage {
    fn from(own: Uuid) -> Self {
        Self::new(own, Vec::new())
    }
}

impl Lineage {
    /// `ancestors` are in order, the oldest first.
    pub fn new(own: Uuid, ancestors: Vec<Ancestor>) -> Self {
        Self {
            own,
            ancestors: ancestors.into(),
        }
    }

    /// Identity of the volume itself.
    pub fn own(&self) -> Uuid {
        self.own
    }

    fn owner(&self, epoch: Epoch) -> Option<usize> {
        self.ancestors.iter().position(|ancestor| epoch <= ancestor.until.epoch)
    }

    /// Identity of the volume that made the objects of an epoch.
    pub fn uuid_of(&self, epoch: Epoch) -> Uuid {
        self.owner(epoch).map_or(self.own, |at| self.ancestors[at].uuid)
    }

    /// The volumes that it was cloned from, the oldest first.
    pub(crate) fn ancestors(&self) -> impl Iterator<Item = Uuid> {
        self.ancestors.iter().map(|ancestor| ancestor.uuid)
    }

    /// True if this place in the journal is this volume's to read, in the folder of that ancestor, or in its own.
    pub(crate) fn is_of(&self, ancestor: Option<Uuid>, epoch: Epoch, seq: JournalSeq) -> bool {
        let owner = self.owner(epoch).map(|at| self.ancestors[at].uuid);
        owner == ancestor && self.goes_on_at(epoch, seq).is_none()
    }

    /// True if an ancestor made it: then it is never ours to delete.
    pub fn is_foreign(&self, object: ObjectId) -> bool {
        self.owner(object.epoch()).is_some()
    }

    /// Where the journal goes on for this volume, if at this place it has ended: with the first epoch of the next one in
    /// line. `None` if the place is ours to look at.
    pub fn goes_on_at(&self, epoch: Epoch, seq: JournalSeq) -> Option<(Epoch, JournalSeq)> {
        let until = self.ancestors[self.owner(epoch)?].until;
        (Applied { epoch, seq } > until).then(|| (until.epoch.next(), JournalSeq(1)))
    }
}

/// The bucket as the data folder of the volume whose head this is, where its ancestors' objects are seen as well.
///
/// # Errors
/// `Apart` if `root`, the volume's folder, shows nothing of what is beside it, and the volume is a clone.
pub fn data_of(root: &BucketRef, head: &Head) -> Result<BucketRef, HeadError> {
    let own = with_tree(Arc::new(Prefixed::new(Arc::clone(root), head.data_prefix())), head.tree);
    let Some(branch) = &head.branch else { return Ok(own) };
    let Some((family, _)) = root.above() else {
        return Err(HeadError::Apart {
            volume: head.volume.clone(),
        });
    };
    Ok(Arc::new(Branched {
        own,
        lineage: head.lineage(),
        folders: branch
            .ancestors
            .iter()
            .map(|ancestor| data_in(&family, ancestor))
            .collect(),
    }))
}

/// A data folder of its own with the tree that a repair has made, or the first one, below `m/`.
pub(crate) fn with_tree(data: BucketRef, made: Option<Epoch>) -> BucketRef {
    match made {
        None => data,
        Some(epoch) => Arc::new(Regrown::new(data, epoch)),
    }
}

fn data_in(family: &BucketRef, ancestor: &Ancestor) -> BucketRef {
    data_at(family, &ancestor.folder, ancestor.uuid)
}

/// The bucket as the data folder `uuid` of the volume folder `folder`.
pub(crate) fn data_at(family: &BucketRef, folder: &str, uuid: Uuid) -> BucketRef {
    Arc::new(Prefixed::new(
        Arc::clone(family),
        format!("{folder}/{}", data_folder(uuid)),
    ))
}

/// The data folder of a clone.
#[derive(Debug)]
struct Branched {
    own: BucketRef,
    lineage: Lineage,
    /// Those of the ancestors, in their order.
    folders: Vec<BucketRef>,
}

/// Where a key leads.
struct Route<'a> {
    bucket: &'a BucketRef,
    /// Taken off the key.
    prefix: &'a str,
    /// An object of an ancestor, which is only read.
    read_only: bool,
}

impl Branched {
    fn route<'a>(&'a self, key: &'a str) -> Route<'a> {
        if let Some(rest) = key.strip_prefix(UP)
            && let Some((folder, _)) = rest.split_once('/')
            && let Some(at) = self.ancestor(folder)
        {
            return Route {
                bucket: &self.folders[at],
                prefix: &key[..UP.len() + folder.len() + 1],
                read_only: false,
            };
        }
        let owner = epoch_of(key).and_then(|epoch| self.lineage.owner(epoch));
        Route {
            bucket: owner.map_or(&self.own, |at| &self.folders[at]),
            prefix: "",
            read_only: owner.is_some(),
        }
    }

    fn ancestor(&self, folder: &str) -> Option<usize> {
        let named = |ancestor: &Ancestor| ancestor.uuid.simple().to_string() == folder;
        self.lineage.ancestors.iter().position(named)
    }

    fn writable<'a>(&'a self, key: &'a str) -> Result<(&'a BucketRef, &'a str), BucketError> {
        let route = self.route(key);
        if route.read_only {
            return Err(BucketError::Unexpected {
                key: key.to_owned(),
                detail: "it belongs to the volume that this one was cloned from".to_owned(),
            });
        }
        Ok((route.bucket, &key[route.prefix.len()..]))
    }
}

/// The epoch in a key of the journal or of a segment, or in the folder of an epoch's journal.
fn epoch_of(key: &str) -> Option<Epoch> {
    if let Some(object) = ObjectId::parse(key) {
        return Some(object.epoch());
    }
    let digits = key.strip_prefix("j/")?.strip_suffix('/')?;
    u64::from_str_radix(digits, 16).ok().map(Epoch)
}

#[async_trait]
impl Bucket for Branched {
    async fn get(&self, key: &str, range: Option<Range<u64>>) -> Result<Object, BucketError> {
        let route = self.route(key);
        route.bucket.get(&key[route.prefix.len()..], range).await
    }

    async fn head(&self, key: &str) -> Result<ObjectMeta, BucketError> {
        let route = self.route(key);
        let mut meta = route.bucket.head(&key[route.prefix.len()..]).await?;
        meta.key.insert_str(0, route.prefix);
        Ok(meta)
    }

    async fn put_if_absent(&self, key: &str, body: Bytes) -> Result<ETag, BucketError> {
        let (bucket, key) = self.writable(key)?;
        bucket.put_if_absent(key, body).await
    }

    async fn put_rope_if_absent(&self, key: &str, body: Rope) -> Result<ETag, BucketError> {
        let (bucket, key) = self.writable(key)?;
        bucket.put_rope_if_absent(key, body).await
    }

    async fn put_if_match(&self, key: &str, body: Bytes, expected: &ETag) -> Result<ETag, BucketError> {
        let (bucket, key) = self.writable(key)?;
        bucket.put_if_match(key, body, expected).await
    }

    async fn delete(&self, key: &str) -> Result<(), BucketError> {
        let (bucket, key) = self.writable(key)?;
        bucket.delete(key).await
    }

    async fn delete_if_match(&self, key: &str, expected: &ETag) -> Result<(), BucketError> {
        let (bucket, key) = self.writable(key)?;
        bucket.delete_if_match(key, expected).await
    }

    async fn list(&self, request: &ListRequest) -> Result<ListPage, BucketError> {
        let route = self.route(&request.prefix);
        let without = |key: &String| key.strip_prefix(route.prefix).unwrap_or(key).to_owned();
        let inner = ListRequest {
            prefix: without(&request.prefix),
            start_after: request.start_after.as_ref().map(without),
            ..request.clone()
        };
        let mut page = route.bucket.list(&inner).await?;
        page.objects
            .iter_mut()
            .for_each(|object| object.key.insert_str(0, route.prefix));
        page.prefixes
            .iter_mut()
            .for_each(|prefix| prefix.insert_str(0, route.prefix));
        Ok(page)
    }
}
