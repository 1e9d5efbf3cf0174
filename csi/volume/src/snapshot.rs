//! Snapshots and clones: a state of a volume that stays, and a volume that begins as one.
//!
//! Both cost the same whatever the volume holds, and are made from the bucket alone: a mount that writes the volume on
//! another node neither helps nor waits. The steps of making one:
//! 1. a pending hold on the data (`holds.rs` says why that suffices against the collector), after which the head is read
//!    again: the volume was not deleted in between;
//! 2. a mark on the newest state of the tree, and the end of the journal as a recovery would find it (`moment.rs`): so
//!    everything that was fsynced before the call is in it;
//! 3. the record of the snapshot, or the head of the clone, put where none is: from here on it exists;
//! 4. the hold is completed.
//!
//! Who stops between two steps leaves a pending hold, and at most a record or head that is as good as complete: the same call
//! again, or whoever meets it, completes or removes it (`settle.rs`).
//!
//! Snapshots have one name space for all volumes that lie side by side (a family: those of a cluster), as CSI wants it; the
//! records lie beside the volumes. A snapshot or clone outlives its volume: the volume's data stays, without a head, until
//! the last one that needs it has gone.
//! Callers: `admin.rs`, the command line. Absent: mounting a clone (`open.rs`), reading a snapshot without cloning it.

use bytes::Bytes;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

use crate::admin::AdminError;
use crate::bucket::{BucketError, BucketRef, ETag, ListRequest, Prefixed};
use crate::clock::Timestamp;
use crate::head::{Head, HeadError, HeadFile, HeadWriter, NewHead, Parameters, unix_ms};
use crate::holds::{HeldFor, HeldState, Hold, HoldsError, HoldsFile};
use crate::lineage::{ANCESTORS_MAX, Ancestor, Branch, Source, TreeAt, data_at};
use crate::volume_id::{SnapshotId, VolumeId};

mod branch;
mod listing;
mod moment;
mod release;
mod settle;

pub use branch::NewClone;
pub use listing::SnapshotPage;
pub(crate) use release::{abandon, release};
use settle::settle;
pub(crate) use settle::settle_stale;

/// Folder of the records beside the folders of the volumes. No volume's folder begins with a dot.
const RECORDS: &str = ".snap/";

/// The newest format of a record that this program writes and reads.
const SNAPSHOT_FORMAT: u32 = 1;

/// 4 beginnings: each one lost means that somebody else made, deleted or took away the same thing meanwhile.
const BEGINNINGS_MAX: u32 = 4;

/// A snapshot, as its record says. Written once.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Snapshot {
    format: u32,
    /// Made from its name.
    pub id: SnapshotId,
    /// The name it was made with.
    pub name: String,
    /// The volume it is of. There may be another one of that id by now.
    pub volume: VolumeId,
    /// When, in milliseconds since the Unix epoch.
    pub created_unix_ms: i64,
    /// Quota of the volume at that time; 0 means no limit.
    pub capacity_bytes: u64,
    /// What the volume was created as.
    pub parameters: Parameters,
    /// Folder of the volume.
    pub folder: String,
    /// Identity of the volume's data.
    pub uuid: Uuid,
    /// Its hold on that data.
    pub hold: Uuid,
    /// The state that it is.
    pub state: HeldState,
    /// Its tree; `None` where there was none yet.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tree: Option<TreeAt>,
    /// Those of the volume.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ancestors: Vec<Ancestor>,
}

impl Snapshot {
    /// The head of a volume that begins as this snapshot.
    pub(crate) fn as_head(&self) -> Head {
        let new = NewHead {
            name: self.name.clone(),
            volume: self.volume.clone(),
            uuid: self.hold,
            capacity_bytes: self.capacity_bytes,
            parameters: self.parameters,
            now: Timestamp::default(),
        };
        Head::new(new).branched(Branch {
            source: Source::Snapshot(self.id.clone()),
            ancestors: self.lineage(),
            tree: self.tree,
        })
    }

    /// The ancestors of a volume that begins as this snapshot.
    fn lineage(&self) -> Vec<Ancestor> {
        lineage_of(&self.ancestors, (&self.folder, self.uuid), self.state)
    }
}

/// The ancestors of a volume that begins as a state of another, whose own ancestors are given.
fn lineage_of(ancestors: &[Ancestor], (folder, uuid): (&str, Uuid), state: HeldState) -> Vec<Ancestor> {
    let parent = Ancestor {
        folder: folder.to_owned(),
        uuid,
        until: state.position,
    };
    ancestors.iter().cloned().chain([parent]).collect()
}

/// The volumes of one folder of a bucket, with their snapshots.
#[derive(Debug, Clone)]
pub struct Family {
    folder: BucketRef,
    writer: HeadWriter,
}

impl Family {
    /// `folder` is the bucket rooted where the volumes' folders are.
    pub fn new(folder: BucketRef, writer: HeadWriter) -> Self {
        Self { folder, writer }
    }

    /// The family of the volume at `root`, and the name of its folder in it.
    ///
    /// # Errors
    /// `Alone` if the volume lies at the top of its bucket.
    pub fn of(root: &BucketRef, writer: HeadWriter) -> Result<(Self, String), AdminError> {
        let (folder, name) = root.above().ok_or(AdminError::Alone)?;
        Ok((Self::new(folder, writer), name))
    }

    fn root(&self, folder: &str) -> BucketRef {
        std::sync::Arc::new(Prefixed::new(self.folder.clone(), format!("{folder}/")))
    }

    fn head_file(&self, folder: &str) -> HeadFile {
        HeadFile::new(self.root(folder), self.writer.clone())
    }

    fn holds_file(&self, folder: &str, uuid: Uuid) -> HoldsFile {
        HoldsFile::new(data_at(&self.folder, folder, uuid), self.writer.clone())
    }

    /// Makes a snapshot of the volume in `folder`, mounted or not, or finds the one that was made of it by that name.
    ///
    /// # Durability
    /// After `Ok` the snapshot is in the bucket, with everything that any mount had fsynced before the call.
    ///
    /// # Errors
    /// `Name`; `NotFound` if there is no such volume; `SnapshotExists` if the name is taken by one of another volume;
    /// `TooDeep`; `Holds`, `Open`, `Head`, `Bucket`.
    pub async fn snapshot(&self, folder: &str, name: &str, now: Timestamp) -> Result<Snapshot, AdminError> {
        let id = SnapshotId::of_name(name)?;
        for _ in 0..BEGINNINGS_MAX {
            let head = self.existing(folder).await?;
            if let Some((found, _)) = self.standing(&id).await? {
                return made_alike(found, &head, name);
            }
            if let Some(made) = self.begin_snapshot(folder, &head, (name, now)).await? {
                return Ok(made);
            }
        }
        Err(HoldsError::Contended.into())
    }

    /// One try; `None` if the name was taken meanwhile, or the hold was taken away.
    async fn begin_snapshot(
        &self,
        folder: &str,
        head: &Head,
        (name, now): (&str, Timestamp),
    ) -> Result<Option<Snapshot>, AdminError> {
        let id = SnapshotId::of_name(name)?;
        let hold = Uuid::new_v4();
        let mut holds = self.holds_file(folder, head.uuid);
        self.hold(&mut holds, head, pending(hold, HeldFor::Snapshot(id.clone())))
            .await?;
        let made = async {
            let head = self.still(folder, head).await?;
            let moment = moment::find(&self.root(folder), &head, hold).await?;
            let snapshot = Snapshot {
                format: SNAPSHOT_FORMAT,
                id,
                name: name.to_owned(),
                volume: head.volume.clone(),
                created_unix_ms: unix_ms(now),
                capacity_bytes: head.capacity_bytes,
                parameters: head.parameters,
                folder: folder.to_owned(),
                uuid: head.uuid,
                hold,
                state: moment.state,
                tree: moment.tree,
                ancestors: head.branch.map_or_else(Vec::new, |branch| branch.ancestors),
            };
            let body = Bytes::from(serde_json::to_vec(&snapshot).expect("a record holds only what JSON can say"));
            let put = self.folder.put_if_absent(&record_key(&snapshot.id), body).await;
            Ok::<_, AdminError>((snapshot, put))
        };
        let (snapshot, put) = match made.await {
            Ok(made) => made,
            Err(error) => return self.withdraw((folder, head.uuid, hold), error).await,
        };
        match put {
            Ok(etag) => self.complete_snapshot(snapshot, &etag, &mut holds).await,
            Err(BucketError::Precondition { .. }) => {
                release(&self.folder, &self.writer, (folder.to_owned(), head.uuid), hold).await?;
                Ok(None)
            }
            // The record may have come to be, or may yet: who finds it or the hold completes it.
            Err(error) => Err(error.into()),
        }
    }

    /// The record stands: the hold must as well.
    async fn complete_snapshot(
        &self,
        snapshot: Snapshot,
        etag: &ETag,
        holds: &mut HoldsFile,
    ) -> Result<Option<Snapshot>, AdminError> {
        let (hold, state) = (snapshot.hold, snapshot.state);
        let held = holds.update(|holds| Ok::<_, HoldsError>(holds.complete(hold, state)));
        if held.await? {
            return Ok(Some(snapshot));
        }
        self.withdraw_record(&snapshot.id, etag).await?;
        Ok(None)
    }

    /// Puts a hold on the data of a volume.
    async fn hold(&self, holds: &mut HoldsFile, head: &Head, hold: Hold) -> Result<(), AdminError> {
        match holds.update(|holds| holds.put(hold.clone())).await {
            Err(HoldsError::Abandoned) => Err(AdminError::NotFound {
                volume: head.volume.clone(),
            }),
            answer => Ok(answer?),
        }
    }

    /// After a failure: takes the hold back, and tells of the failure.
    async fn withdraw<T>(&self, (folder, uuid, hold): (&str, Uuid, Uuid), error: AdminError) -> Result<T, AdminError> {
        if let Err(second) = release(&self.folder, &self.writer, (folder.to_owned(), uuid), hold).await {
            tracing::warn!(error = %second, folder, %hold, "a pending hold could not be taken back; it is found and settled later");
        }
        Err(error)
    }

    async fn withdraw_record(&self, id: &SnapshotId, etag: &ETag) -> Result<(), AdminError> {
        match self.folder.delete_if_match(&record_key(id), etag).await {
            Ok(()) | Err(BucketError::Precondition { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// The head of a volume that exists.
    async fn existing(&self, folder: &str) -> Result<Head, AdminError> {
        let missing = || match VolumeId::parse(folder) {
            Ok(volume) => AdminError::NotFound { volume },
            Err(error) => AdminError::Name(error),
        };
        let head = match self.head_file(folder).read().await {
            Ok(head) if !head.deleting => head,
            Ok(_) | Err(HeadError::Missing) => return Err(missing()),
            Err(error) => return Err(error.into()),
        };
        if head
            .branch
            .as_ref()
            .is_some_and(|branch| branch.ancestors.len() >= ANCESTORS_MAX)
        {
            return Err(AdminError::TooDeep { volume: head.volume });
        }
        Ok(head)
    }

    /// The head again, after a hold was put: it must be the same volume's.
    async fn still(&self, folder: &str, before: &Head) -> Result<Head, AdminError> {
        match self.existing(folder).await {
            Ok(head) if head.uuid == before.uuid => Ok(head),
            Ok(_) => Err(AdminError::NotFound {
                volume: before.volume.clone(),
            }),
            Err(error) => Err(error),
        }
    }

    /// A snapshot.
    ///
    /// # Errors
    /// `NoSnapshot`; `SnapshotRecord`, `Holds`, `Bucket`.
    pub async fn find_snapshot(&self, id: &SnapshotId) -> Result<Snapshot, AdminError> {
        let found = self.look_up_snapshot(id).await?;
        found.ok_or_else(|| AdminError::NoSnapshot { snapshot: id.clone() })
    }

    /// What the record of a snapshot says, whether its hold stands or not.
    pub(crate) async fn recorded(&self, id: &SnapshotId) -> Result<Option<Snapshot>, AdminError> {
        Ok(self.record(id).await?.map(|(found, _)| found))
    }

    /// A snapshot, if there is one of that id.
    ///
    /// # Errors
    /// `SnapshotRecord`, `Holds`, `Bucket`.
    pub async fn look_up_snapshot(&self, id: &SnapshotId) -> Result<Option<Snapshot>, AdminError> {
        Ok(self.standing(id).await?.map(|(found, _)| found))
    }

    /// A snapshot whose hold stands. A record without one is of a maker that was too late, or of a deletion that stopped: it
    /// is removed.
    async fn standing(&self, id: &SnapshotId) -> Result<Option<(Snapshot, ETag)>, AdminError> {
        let Some((found, etag)) = self.record(id).await? else {
            return Ok(None);
        };
        let mut holds = self.holds_file(&found.folder, found.uuid);
        let (hold, state) = (found.hold, found.state);
        let held = holds.update(|holds| Ok::<_, HoldsError>(holds.complete(hold, state)));
        if held.await? {
            return Ok(Some((found, etag)));
        }
        self.end_snapshot(&found, &etag).await?;
        Ok(None)
    }

    async fn record(&self, id: &SnapshotId) -> Result<Option<(Snapshot, ETag)>, AdminError> {
        match self.folder.get(&record_key(id), None).await {
            Ok(object) => Ok(Some((decode(id.as_str(), &object.body)?, object.etag))),
            Err(BucketError::NotFound { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// Deletes a snapshot; `Ok` if there is none. Volumes that were made of it stay as they are.
    ///
    /// # Durability
    /// After `Ok` nothing of it is left but what others need; the collector of a mounted volume frees the rest.
    ///
    /// # Errors
    /// `SnapshotRecord`, `Holds`, `Open`, `Bucket`.
    pub async fn delete_snapshot(&self, id: &SnapshotId) -> Result<(), AdminError> {
        match self.record(id).await? {
            Some((found, etag)) => self.end_snapshot(&found, &etag).await,
            None => Ok(()),
        }
    }

    /// The hold first: it decides. The record last: it leads whoever goes on after a crash.
    async fn end_snapshot(&self, found: &Snapshot, etag: &ETag) -> Result<(), AdminError> {
        let place = (found.folder.clone(), found.uuid);
        release(&self.folder, &self.writer, place, found.hold).await?;
        self.withdraw_record(&found.id, etag).await
    }
}

fn pending(id: Uuid, held_for: HeldFor) -> Hold {
    Hold {
        id,
        held_for,
        pending: true,
        state: None,
    }
}

fn record_key(id: &SnapshotId) -> String {
    format!("{RECORDS}{id}")
}

fn decode(id: &str, body: &[u8]) -> Result<Snapshot, AdminError> {
    serde_json::from_slice(body).map_err(|source| AdminError::SnapshotRecord {
        snapshot: id.to_owned(),
        source,
    })
}

fn made_alike(found: Snapshot, head: &Head, name: &str) -> Result<Snapshot, AdminError> {
    if found.uuid == head.uuid && found.name == name {
        return Ok(found);
    }
    Err(AdminError::SnapshotExists {
        snapshot: found.id,
        volume: found.volume,
    })
}

/// All records, by key, from the one after `after` on.
fn records_after(after: Option<&SnapshotId>, rows_max: usize) -> ListRequest {
    ListRequest {
        prefix: RECORDS.to_owned(),
        start_after: after.map(record_key),
        rows_max: u32::try_from(rows_max).unwrap_or(u32::MAX),
        ..ListRequest::default()
    }
}

#[cfg(test)]
mod tests;
