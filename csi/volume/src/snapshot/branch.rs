//! Making a volume that begins as a snapshot, or as another volume is now.

use uuid::Uuid;

use super::{BEGINNINGS_MAX, Family, Snapshot, lineage_of, moment, pending, release};
use crate::admin::{AdminError, CreateVolume, created_alike};
use crate::head::{Head, HeadError, NewHead};
use crate::holds::{HeldFor, Hold, HoldsError};
use crate::lineage::{ANCESTORS_MAX, Branch, Source, TreeAt, data_at, with_tree};
use crate::tree::checkpoint;
use crate::volume_id::VolumeId;

/// A volume to make of something.
#[derive(Debug, Clone)]
pub struct NewClone {
    /// As for an empty volume. Without a capacity it gets that of its source.
    pub volume: CreateVolume,
    /// Its folder.
    pub folder: String,
    /// What it begins as.
    pub source: Source,
}

/// What a clone begins as, found out.
struct Origin {
    folder: String,
    uuid: Uuid,
    capacity_bytes: u64,
    /// `None` for a volume, whose moment is still to be found.
    snapshot: Option<Snapshot>,
    head: Option<Head>,
}

impl Family {
    /// Makes a volume that begins as another one or as a snapshot, or finds the one of that name that was made alike.
    ///
    /// # Durability
    /// After `Ok` the volume is in the bucket. As a clone of a volume it has everything that was fsynced there before the
    /// call. What is written to either later is not seen by the other.
    ///
    /// # Errors
    /// Those of `Admin::create`; `NotFound` or `NoSnapshot` if there is no such source; `Smaller`; `TooDeep`; `Holds`,
    /// `Open`.
    pub async fn clone_volume(&self, new: &NewClone) -> Result<Head, AdminError> {
        let volume = VolumeId::of_name(&new.volume.name)?;
        for _ in 0..BEGINNINGS_MAX {
            match self.head_file(&new.folder).read().await {
                Ok(head) => {
                    let head = created_alike(head, &new.volume, Some(&new.source))?;
                    if self.stands(&head).await? {
                        return Ok(head);
                    }
                    // Made by somebody whose hold was taken away since: he removes it.
                    continue;
                }
                Err(HeadError::Missing) => {}
                Err(error) => return Err(error.into()),
            }
            let origin = self.origin(&new.source).await?;
            let capacity_bytes = match new.volume.capacity.choose() {
                0 => origin.capacity_bytes,
                asked => asked,
            };
            let least = origin.capacity_bytes;
            if capacity_bytes < least {
                return Err(AdminError::Smaller {
                    has_bytes: least,
                    asked_bytes: capacity_bytes,
                });
            }
            let head = Head::new(NewHead {
                name: new.volume.name.clone(),
                volume: volume.clone(),
                uuid: Uuid::new_v4(),
                capacity_bytes,
                parameters: new.volume.parameters,
                now: new.volume.now,
            });
            if let Some(made) = self.begin_clone(new, origin, head).await? {
                return Ok(made);
            }
        }
        Err(HoldsError::Contended.into())
    }

    /// True if the hold of a clone stands.
    async fn stands(&self, head: &Head) -> Result<bool, AdminError> {
        let Some(branch) = &head.branch else { return Ok(true) };
        let (parent, id, state) = (branch.parent(), head.uuid, branch.held());
        let mut holds = self.holds_file(&parent.folder, parent.uuid);
        let held = holds.update(|holds| Ok::<_, HoldsError>(holds.complete(id, state)));
        Ok(held.await?)
    }

    async fn origin(&self, source: &Source) -> Result<Origin, AdminError> {
        match source {
            Source::Volume(volume) => {
                let head = self.existing(volume.as_str()).await?;
                Ok(Origin {
                    folder: volume.to_string(),
                    uuid: head.uuid,
                    capacity_bytes: head.capacity_bytes,
                    snapshot: None,
                    head: Some(head),
                })
            }
            Source::Snapshot(id) => {
                let snapshot = self.find_snapshot(id).await?;
                if snapshot.ancestors.len() >= ANCESTORS_MAX {
                    return Err(AdminError::TooDeep {
                        volume: snapshot.volume,
                    });
                }
                Ok(Origin {
                    folder: snapshot.folder.clone(),
                    uuid: snapshot.uuid,
                    capacity_bytes: snapshot.capacity_bytes,
                    snapshot: Some(snapshot),
                    head: None,
                })
            }
        }
    }

    /// One try; `None` if somebody else made the volume meanwhile, or the hold was taken away.
    async fn begin_clone(&self, new: &NewClone, origin: Origin, head: Head) -> Result<Option<Head>, AdminError> {
        let (id, place) = (head.uuid, (origin.folder.as_str(), origin.uuid));
        let mut holds = self.holds_file(place.0, place.1);
        let hold = Hold {
            state: origin.snapshot.as_ref().map(|snapshot| snapshot.state),
            ..pending(id, HeldFor::Clone(new.folder.clone()))
        };
        match &origin.snapshot {
            None => {
                let source = origin.head.as_ref().expect("what is no snapshot is a volume");
                self.hold(&mut holds, source, hold).await?;
            }
            Some(snapshot) => {
                // While the snapshot's hold stands, another one on the same state is as good, also where its volume is gone.
                let put = holds.update(|holds| {
                    if holds.get(snapshot.hold).is_none() {
                        return Err(AdminError::NoSnapshot {
                            snapshot: snapshot.id.clone(),
                        });
                    }
                    Ok(holds.put_beside(hold.clone())?)
                });
                put.await?;
            }
        }
        let branch = match self.branch(&origin, id, &new.source).await {
            Ok(branch) => branch,
            Err(error) => return self.withdraw((place.0, place.1, id), error).await,
        };
        let state = branch.held();
        let file = self.head_file(&new.folder);
        let head = match file.create(head.branched(branch)).await {
            Ok(head) => head,
            Err(HeadError::Exists) => {
                release(&self.folder, &self.writer, (place.0.to_owned(), place.1), id).await?;
                return Ok(None);
            }
            Err(error @ HeadError::TooLong { .. }) => {
                return self.withdraw((place.0, place.1, id), error.into()).await;
            }
            // The head may have come to be, or may yet: who finds it or the hold completes it.
            Err(error) => return Err(error.into()),
        };
        let held = holds.update(|holds| Ok::<_, HoldsError>(holds.complete(id, state)));
        if held.await? {
            return Ok(Some(head));
        }
        file.delete(&head).await?;
        Ok(None)
    }

    async fn branch(&self, origin: &Origin, hold: Uuid, source: &Source) -> Result<Branch, AdminError> {
        let place = (origin.folder.as_str(), origin.uuid);
        let (ancestors, tree) = match (&origin.snapshot, &origin.head) {
            (Some(snapshot), _) => (snapshot.lineage(), self.mark_again(snapshot, hold).await?),
            (None, Some(before)) => {
                let head = self.still(place.0, before).await?;
                let moment = moment::find(&self.root(place.0), &head, hold).await?;
                let ancestors = head.branch.map_or_else(Vec::new, |branch| branch.ancestors);
                (lineage_of(&ancestors, place, moment.state), moment.tree)
            }
            (None, None) => unreachable!("an origin is one of both"),
        };
        Ok(Branch {
            source: source.clone(),
            ancestors,
            tree,
        })
    }

    /// A mark of our own on a snapshot's tree: the snapshot may go before us. A tree of one of its ancestors stays with the
    /// hold that we have.
    async fn mark_again(&self, snapshot: &Snapshot, hold: Uuid) -> Result<Option<TreeAt>, AdminError> {
        let Some(tree) = snapshot.tree.filter(|tree| tree.uuid == snapshot.uuid) else {
            return Ok(snapshot.tree);
        };
        let data = with_tree(data_at(&self.folder, &snapshot.folder, snapshot.uuid), tree.made);
        let checkpoint = match checkpoint::put(&data, hold, Some(tree.checkpoint)).await {
            Ok(checkpoint) => checkpoint,
            Err(error) => {
                // It may have been deleted since: that is the better answer then.
                self.find_snapshot(&snapshot.id).await?;
                return Err(AdminError::Open(error.into()));
            }
        };
        Ok(Some(TreeAt { checkpoint, ..tree }))
    }
}
