//! Changing a volume after its creation, while it is mounted or not: its capacity and its parameters.
//!
//! Invariant: a capacity never shrinks here: what a volume once had room for stays welcome. A mount learns of the change
//! when it looks at the head again, or when somebody tells its engine.

use std::collections::BTreeMap;

use super::{Admin, AdminError, CapacityRange, known};
use crate::bucket::BucketRef;
use crate::head::{Head, HeadFile, HeadWriter};
use crate::volume_id::VolumeId;

/// Gives the volume whose head lies at the top of `root` exactly this capacity in bytes, wherever that is; 0 is no limit.
///
/// # Durability
/// `Ok` means that the capacity is in the bucket.
///
/// # Errors
/// `Shrinks` if the volume has room for more; `Deleting`; `Head`, `Bucket`.
pub async fn expand_at(root: &BucketRef, writer: &HeadWriter, capacity_bytes: u64) -> Result<Head, AdminError> {
    let change = |head: &mut Head| {
        let (volume, has_bytes) = (head.volume.clone(), head.capacity_bytes);
        if head.deleting {
            return Err(AdminError::Deleting { volume });
        }
        if capacity_bytes > 0 && (has_bytes == 0 || capacity_bytes < has_bytes) {
            return Err(AdminError::Shrinks { volume, has_bytes });
        }
        head.capacity_bytes = capacity_bytes;
        Ok(())
    };
    let (head, ()) = HeadFile::new(root.clone(), writer.clone()).update(change).await?;
    Ok(head)
}

/// Changes parameters of the volume whose head lies at the top of `root`, wherever that is. The next mount has them.
///
/// # Durability
/// `Ok` means that the change is in the bucket.
///
/// # Errors
/// `Parameter` for one that is unknown or fixed; `Deleting`; `Head`, `Bucket`.
pub async fn modify_at(
    root: &BucketRef,
    writer: &HeadWriter,
    changes: &BTreeMap<String, String>,
) -> Result<Head, AdminError> {
    modify_in(&HeadFile::new(root.clone(), writer.clone()), changes).await
}

async fn modify_in(file: &HeadFile, changes: &BTreeMap<String, String>) -> Result<Head, AdminError> {
    let change = |head: &mut Head| {
        if head.deleting {
            return Err(AdminError::Deleting {
                volume: head.volume.clone(),
            });
        }
        head.parameters = head.parameters.changed(changes)?;
        Ok(())
    };
    let (head, ()) = file.update(change).await?;
    Ok(head)
}

impl Admin {
    /// Makes a volume at least as large as asked. What is large enough already, or has no limit, stays as it is.
    ///
    /// # Durability
    /// `Ok` means that the capacity is in the bucket.
    ///
    /// # Errors
    /// `Capacity` if the range is empty; `TooLarge` if the volume is larger than the range allows; `NotFound`, `Head`,
    /// `Bucket`.
    pub async fn expand(&self, volume: &VolumeId, asked: CapacityRange) -> Result<Head, AdminError> {
        let CapacityRange {
            required_bytes,
            limit_bytes,
        } = asked;
        if limit_bytes > 0 && required_bytes > limit_bytes {
            return Err(AdminError::Capacity {
                required_bytes,
                limit_bytes,
            });
        }
        let change = |head: &mut Head| {
            if head.deleting {
                return Err(AdminError::NotFound {
                    volume: head.volume.clone(),
                });
            }
            let capacity_bytes = head.capacity_bytes;
            if capacity_bytes > 0 && capacity_bytes < required_bytes {
                head.capacity_bytes = required_bytes;
            } else if limit_bytes > 0 && capacity_bytes > limit_bytes {
                return Err(AdminError::TooLarge {
                    volume: head.volume.clone(),
                    capacity_bytes,
                    limit_bytes,
                });
            }
            Ok(())
        };
        match self.head_file(volume).update(change).await {
            Ok((head, ())) => Ok(head),
            Err(error) => Err(known(error, volume)),
        }
    }

    /// Changes parameters of a volume. The next mount has them.
    ///
    /// # Durability
    /// `Ok` means that the change is in the bucket.
    ///
    /// # Errors
    /// `Parameter` for one that is unknown or fixed; `NotFound`, `Head`, `Bucket`.
    pub async fn modify(&self, volume: &VolumeId, changes: &BTreeMap<String, String>) -> Result<Head, AdminError> {
        match modify_in(&self.head_file(volume), changes).await {
            Err(AdminError::Deleting { volume }) => Err(AdminError::NotFound { volume }),
            Err(error) => Err(known(error, volume)),
            modified => modified,
        }
    }
}
