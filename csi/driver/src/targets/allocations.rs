//! Nomad's allocations, as its folders tell of them: whose target a path is, and whether that allocation is still there.
//!
//! A target lies at `<root>/per-alloc/<allocation>/<volume>/<usage>`. Nomad makes the folders above it and leaves them for ever,
//! but removes `<data_dir>/alloc/<allocation>` when it collects an allocation that has ended. A target whose allocation was
//! collected is in use by nobody: Nomad forgets to unpublish when the plugin's job is away while an allocation ends.
//!
//! Invariant: an allocation is taken for gone only if its folder was seen when it came. A `data_dir` that is not where
//! the root's path says (`alloc_dir` of the client, a plugin in a container) is so never taken for the end of everything.
//! Callers: `targets.rs`, `watch.rs`.

use std::fs;
use std::path::{Path, PathBuf};

use tracing::warn;

use super::Targets;
use super::record::VolumeRecord;
use crate::deadlines::Progress;
use crate::error::DriverError;

/// Nomad's folder of target paths below `stage_publish_base_dir`: one folder in it for each allocation.
const PER_ALLOC: &str = "per-alloc";

/// Where allocations have their folders, below `data_dir`.
const ALLOC: &str = "alloc";

/// What lies between `data_dir` and `stage_publish_base_dir`: the kind of plugin and its id follow.
const CLIENT_CSI: &str = "client/csi";

/// Where Nomad keeps what belongs to allocations.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Allocations {
    targets: PathBuf,
    /// `None` where the root is not where Nomad has it by itself.
    folders: Option<PathBuf>,
}

impl Allocations {
    /// `root` is `stage_publish_base_dir`.
    pub fn below(root: &Path) -> Self {
        let csi = root
            .parent()
            .and_then(Path::parent)
            .filter(|csi| csi.ends_with(CLIENT_CSI));
        let data_dir = csi.and_then(Path::parent).and_then(Path::parent);
        Self {
            targets: root.join(PER_ALLOC),
            folders: data_dir.map(|data_dir| data_dir.join(ALLOC)),
        }
    }

    /// Whether Nomad has a folder of the allocation that a target path is of.
    pub fn has_folder(&self, target: &Path) -> bool {
        self.folder(target).is_some_and(|folder| folder.exists())
    }

    /// Whether the allocation has been collected, of a target path that `has_folder` was true of.
    pub fn was_collected(&self, target: &Path) -> bool {
        let has_others = self.folders.as_ref().is_some_and(|folders| folders.exists());
        has_others && self.folder(target).is_some_and(|folder| !folder.exists())
    }

    /// Whether somebody has removed the allocation's folder of targets. Only where Nomad's own folder is there, so that a disk
    /// that is mounted late is not taken for the end of everything.
    pub fn was_removed(&self, target: &Path) -> bool {
        let name = self.name(target);
        self.targets.exists() && name.is_some_and(|name| !self.targets.join(name).exists())
    }

    /// Removes the folders that Nomad made for a target that has gone, where they hold nothing.
    pub fn remove_empty(&self, target: &Path) {
        let above = target.ancestors().skip(1);
        let ours = above.take_while(|folder| folder.starts_with(&self.targets) && **folder != self.targets);
        for folder in ours {
            // The allocation has more of them, or Nomad is making one: it makes what is missing.
            if fs::remove_dir(folder).is_err() {
                return;
            }
        }
    }

    fn folder(&self, target: &Path) -> Option<PathBuf> {
        Some(self.folders.as_ref()?.join(self.name(target)?))
    }

    fn name<'a>(&self, target: &'a Path) -> Option<&'a Path> {
        let below = target.strip_prefix(&self.targets).ok()?;
        below.components().next().map(|name| Path::new(name.as_os_str()))
    }
}

impl Targets {
    /// Unpublishes the targets of allocations that Nomad has collected, as Nomad should have, and unstages the volume where
    /// nobody else has it. False if there were none.
    pub(super) async fn end_collected(&self, record: &VolumeRecord, steps: &Progress) -> Result<bool, DriverError> {
        let Some(allocations) = self.allocations() else {
            return Ok(false);
        };
        let ended: Vec<_> = record
            .of_allocations
            .iter()
            .filter(|path| allocations.was_collected(path))
            .collect();
        let volume = &record.opening.volume;
        for path in &ended {
            warn!(volume = %record.opening, path = %path.display(), "Nomad has collected the allocation of a target path: it is unpublished");
            self.unpublish_now(volume, path, steps).await?;
        }
        if ended.is_empty() || ended.len() < record.published.len() {
            return Ok(!ended.is_empty());
        }
        for path in record.staged.keys() {
            self.unstage_now(volume, path, steps).await?;
        }
        Ok(true)
    }

    pub(super) fn allocations(&self) -> Option<Allocations> {
        self.staging_root.as_deref().map(Allocations::below)
    }
}
