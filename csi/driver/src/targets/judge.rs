//! What is really at a path, compared with what should be: plain functions over the mount table.
//!
//! Invariant: a path that holds something of another volume, or of somebody else, is never touched.
//! Callers: `targets.rs`. Absent: acting on the judgement.

use std::path::Path;

use crate::capability::BindFlags;
use crate::mountinfo::{Device, MountPoint, top_at};

/// How the types of FUSE file systems begin: the kernel puts it in front of a file system's own name.
const FUSE: &str = "fuse";

/// What is at a staging or target path of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetState {
    /// No mount: after a reboot, or before the first publish.
    NotMounted,
    /// The volume as the engine serves it now, with the options asked for.
    Mounted,
    /// The volume as it is served now, with other options.
    OtherOptions,
    /// A FUSE mount which is not the one served now: what an engine that died, or an earlier mount, left behind.
    Stale,
    /// A mount of somebody else.
    Foreign {
        /// Its type.
        fs_type: String,
        /// Its source.
        source: String,
    },
}

/// Judges a path that the volume's record asks for. `served` is the device of the volume's own mount, if it is mounted.
pub fn judge(table: &[MountPoint], path: &Path, served: Option<Device>, flags: BindFlags) -> TargetState {
    let Some(top) = top_at(table, path) else {
        return TargetState::NotMounted;
    };
    if Some(top.device) == served {
        // Of the options only this one is dangerous if it is wrong, and it is the one that the table tells for sure.
        return if top.read_only == flags.read_only {
            TargetState::Mounted
        } else {
            TargetState::OtherOptions
        };
    }
    if top.fs_type.starts_with(FUSE) {
        return TargetState::Stale;
    }
    TargetState::Foreign {
        fs_type: top.fs_type.clone(),
        source: top.source.clone(),
    }
}

/// All FUSE mounts at or below `root`, top ones first: those that may be dead and in the way.
pub fn fuse_below<'a>(table: &'a [MountPoint], root: &'a Path) -> impl Iterator<Item = &'a MountPoint> {
    let below = move |mount: &&MountPoint| mount.fs_type.starts_with(FUSE) && mount.path.starts_with(root);
    table.iter().rev().filter(below)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mount(path: &str, minor: u32, fs_type: &str, read_only: bool) -> MountPoint {
        MountPoint {
            device: Device { major: 0, minor },
            root: "/".into(),
            path: path.into(),
            read_only,
            shared: false,
            fs_type: fs_type.into(),
            source: "source".into(),
        }
    }

    #[test]
    fn each_state_of_a_path_is_told_apart() {
        let table = [
            mount("/ours", 1, "fuse.pannier", false),
            mount("/ro", 1, "fuse.pannier", true),
            mount("/old", 2, "fuse.pannier", false),
            mount("/disk", 3, "ext4", false),
            mount("/twice", 3, "ext4", false),
            mount("/twice", 1, "fuse.pannier", false),
        ];
        let served = Some(Device { major: 0, minor: 1 });
        let at = |path: &str| judge(&table, Path::new(path), served, BindFlags::default());
        assert_eq!(at("/none"), TargetState::NotMounted);
        assert_eq!(at("/ours"), TargetState::Mounted);
        assert_eq!(at("/ro"), TargetState::OtherOptions);
        assert_eq!(at("/old"), TargetState::Stale);
        assert!(matches!(at("/disk"), TargetState::Foreign { fs_type, .. } if fs_type == "ext4"));
        assert_eq!(at("/twice"), TargetState::Mounted);
        // With no engine, nothing of ours is current.
        let stale = judge(&table, Path::new("/ours"), None, BindFlags::default());
        assert_eq!(stale, TargetState::Stale);
    }

    #[test]
    fn only_fuse_mounts_below_the_root_may_be_in_the_way() {
        let table = [
            mount("/r/a", 1, "fuse.pannier", false),
            mount("/r/b", 2, "ext4", false),
            mount("/rest", 3, "fuse.sshfs", false),
        ];
        let found: Vec<_> = fuse_below(&table, Path::new("/r"))
            .map(|mount| mount.path.clone())
            .collect();
        assert_eq!(found, [Path::new("/r/a")]);
    }
}
