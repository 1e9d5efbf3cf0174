//! Marks in a tree: a state of it that is kept for a snapshot or a clone while the tree goes on.
//!
//! A mark is a SlateDB checkpoint without an end, named by the hold that needs it (`holds.rs`). Whoever holds the bucket's
//! keys may put one while another process writes the tree: SlateDB changes its manifest by compare-and-swap only.
//! SlateDB's collector keeps every file that a marked state names. It reads the marks before it deletes, and never deletes
//! a file younger than two hours, so a mark on the newest state cannot come too late.
//!
//! Where a clone begins, SlateDB adds a nameless mark of its own on the same state. It protects nothing that the named one
//! does not, so it goes with the last named one. Invariant: a named mark goes only after its hold has gone.
//! Callers: `snapshot/`, `open.rs`. Absent: what else a snapshot needs.

use std::collections::BTreeSet;
use std::sync::Arc;

use slatedb::CloneSourceSpec;
use slatedb::admin::{Admin, AdminBuilder};
use slatedb::config::CheckpointOptions;
use uuid::Uuid;

use super::TreeError;
use super::object_store::BucketStore;
use super::slate::{FOLDER, outward, read_manifest};
use crate::bucket::BucketRef;
use crate::lineage::{TreeAt, folder_above, folder_of};

/// 3 tries to begin a tree that another process begins at the same moment.
const TRIES_MAX: u32 = 3;

fn admin(bucket: &BucketRef) -> Admin {
    AdminBuilder::new(FOLDER, Arc::new(BucketStore::new(Arc::clone(bucket)))).build()
}

/// True if the tree below `bucket` exists and is complete.
pub(crate) async fn exists(bucket: &BucketRef) -> Result<bool, TreeError> {
    Ok(read_manifest(Arc::clone(bucket))
        .await?
        .is_some_and(|manifest| manifest.initialized()))
}

/// Marks the newest state of the tree below `bucket`, or the one that `like` marks, for the hold `hold`.
///
/// # Durability
/// After `Ok` that state stays until the mark is taken away.
pub(crate) async fn put(bucket: &BucketRef, hold: Uuid, like: Option<Uuid>) -> Result<Uuid, TreeError> {
    let options = CheckpointOptions {
        lifetime: None,
        source: like,
        name: Some(hold.to_string()),
    };
    let made = admin(bucket).create_detached_checkpoint(&options).await;
    Ok(made.map_err(outward)?.id)
}

/// Takes away every mark of the tree below `bucket` that no hold needs. `held` is asked after the marks were read: a mark
/// comes after its hold, so one whose hold is not there then is of no use to anybody any more.
pub(crate) async fn drop_unheld<E: From<TreeError>>(
    bucket: &BucketRef,
    held: impl AsyncFnOnce() -> Result<BTreeSet<Uuid>, E>,
) -> Result<(), E> {
    let Some(manifest) = read_manifest(Arc::clone(bucket)).await? else {
        return Ok(());
    };
    let lasting = || manifest.checkpoints().iter().filter(|mark| mark.expire_time.is_none());
    if lasting().next().is_none() {
        return Ok(());
    }
    let held: BTreeSet<String> = held().await?.iter().map(Uuid::to_string).collect();
    let is_held = |name: &Option<String>| name.as_ref().is_some_and(|name| held.contains(name));
    let states: BTreeSet<u64> = lasting()
        .filter(|mark| is_held(&mark.name))
        .map(|mark| mark.manifest_id)
        .collect();
    for mark in lasting() {
        let needed = match &mark.name {
            Some(_) => is_held(&mark.name),
            None => states.contains(&mark.manifest_id),
        };
        if !needed {
            admin(bucket).delete_checkpoint(mark.id).await.map_err(outward)?;
        }
    }
    Ok(())
}

/// Begins the tree below `bucket` as the state `at` of an ancestor's, unless it has begun.
pub(crate) async fn begin(bucket: &BucketRef, at: TreeAt) -> Result<(), TreeError> {
    let mut tries = 0;
    while !exists(bucket).await? {
        let source = CloneSourceSpec::with_checkpoint(path_of(at), at.checkpoint);
        let begun = admin(bucket).create_clone_builder_from_source(source).build().await;
        tries += 1;
        if let Err(error) = begun
            && tries == TRIES_MAX
        {
            return Err(outward(error));
        }
    }
    Ok(())
}

/// Where the tree of an ancestor is seen.
pub(crate) fn path_of(at: TreeAt) -> String {
    format!("{}{}", folder_above(at.uuid), folder_of(at.made))
}
