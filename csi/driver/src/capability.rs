//! What a volume may be used as: access mode and type, mount options and file system type of a call, judged.
//!
//! Nomad never compares a job's access mode with what the volume can do (rule 13), so every call that carries a
//! capability comes through here. What is not offered is refused with a text that says what is.
//! Callers: `controller.rs`, `node.rs`. Absent: whether the volume is free for that use (the head says it).

use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::{AccessType, access_mode::Mode};
use serde::{Deserialize, Serialize};
use volume::head::AccessMode;

use crate::error::DriverError;

/// The file system type a volume file may name; empty means the same.
const FS_TYPE: &str = "pannier";

/// A capability that Pannier has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Who may use the volume.
    pub mode: AccessMode,
    /// How the mount behaves.
    pub flags: BindFlags,
}

/// Options of one mount of a volume. They hold for that mount, not for the volume: two publications may differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BindFlags {
    /// Refuse writes.
    pub read_only: bool,
    /// Do not run programs from it.
    pub noexec: bool,
    /// Do not honour set-user-id bits.
    pub nosuid: bool,
    /// Do not honour device files.
    pub nodev: bool,
    /// Do not update access times.
    pub noatime: bool,
}

impl Capability {
    /// Judges the capability of a call.
    ///
    /// # Errors
    /// `Missing` if there is none or it lacks type or mode; `Invalid` for a type, mode, option or file system type
    /// that is not offered.
    pub fn check(given: Option<&VolumeCapability>) -> Result<Self, DriverError> {
        let given = given.ok_or(DriverError::Missing {
            field: "volume_capability",
        })?;
        let flags = match &given.access_type {
            Some(AccessType::Mount(mount)) => {
                if !mount.fs_type.is_empty() && mount.fs_type != FS_TYPE {
                    return Err(DriverError::invalid(
                        "mount_options.fs_type".into(),
                        format!("cannot be {:?}: leave it out, or give {FS_TYPE:?}", mount.fs_type),
                    ));
                }
                if !mount.volume_mount_group.is_empty() {
                    return Err(DriverError::invalid(
                        "volume_mount_group".into(),
                        "is not offered".into(),
                    ));
                }
                BindFlags::parse(&mount.mount_flags)?
            }
            Some(AccessType::Block(_)) => {
                return Err(DriverError::invalid(
                    "attachment_mode".into(),
                    "cannot be block-device: Pannier's volumes are file systems, use file-system".into(),
                ));
            }
            None => {
                return Err(DriverError::Missing {
                    field: "volume_capability.access_type",
                });
            }
        };
        let number = given.access_mode.as_ref().map_or(0, |mode| mode.mode);
        Ok(Self {
            mode: mode(number)?,
            flags,
        })
    }

    /// Judges all capabilities that a volume is to have.
    ///
    /// # Errors
    /// `Missing` if there is none; those of `check` for the first bad one.
    pub fn check_all(given: &[VolumeCapability]) -> Result<Vec<Self>, DriverError> {
        if given.is_empty() {
            return Err(DriverError::Missing {
                field: "volume_capabilities",
            });
        }
        given.iter().map(|one| Self::check(Some(one))).collect()
    }
}

impl BindFlags {
    /// Reads mount flags as mount(8) writes them.
    ///
    /// # Errors
    /// `Invalid` naming the first flag that Pannier does not act on.
    pub fn parse(flags: &[String]) -> Result<Self, DriverError> {
        let mut parsed = Self::default();
        for flag in flags.iter().flat_map(|flags| flags.split(',')) {
            match flag.trim() {
                "" | "rw" | "defaults" | "relatime" | "suid" | "exec" | "dev" => {}
                "ro" => parsed.read_only = true,
                "noexec" => parsed.noexec = true,
                "nosuid" => parsed.nosuid = true,
                "nodev" => parsed.nodev = true,
                "noatime" => parsed.noatime = true,
                unknown => {
                    return Err(DriverError::invalid(
                        "mount_options.mount_flags".into(),
                        format!("cannot hold {unknown:?}; known are ro, rw, noexec, nosuid, nodev, noatime"),
                    ));
                }
            }
        }
        Ok(parsed)
    }
}

fn mode(number: i32) -> Result<AccessMode, DriverError> {
    let refused = |name: &str| {
        Err(DriverError::invalid(
            "access_mode".into(),
            format!("cannot be {name}: Pannier offers single-node-writer and single-node-reader-only"),
        ))
    };
    match Mode::try_from(number) {
        Ok(Mode::SingleNodeWriter) => Ok(AccessMode::SingleNodeWriter),
        Ok(Mode::SingleNodeReaderOnly) => Ok(AccessMode::SingleNodeReaderOnly),
        Ok(Mode::MultiNodeReaderOnly) => refused("multi-node-reader-only"),
        Ok(Mode::MultiNodeSingleWriter) => refused("multi-node-single-writer"),
        Ok(Mode::MultiNodeMultiWriter) => refused("multi-node-multi-writer"),
        Ok(Mode::SingleNodeSingleWriter) => refused("single-node-single-writer"),
        Ok(Mode::SingleNodeMultiWriter) => refused("single-node-multi-writer"),
        Ok(Mode::Unknown) => Err(DriverError::Missing {
            field: "volume_capability.access_mode",
        }),
        Err(_) => refused(&format!("number {number}")),
    }
}

#[cfg(test)]
mod tests {
    use proto::csi::v1::volume_capability::{BlockVolume, MountVolume};

    use super::*;

    fn capability(mode: Mode, mount: MountVolume) -> VolumeCapability {
        VolumeCapability {
            access_type: Some(AccessType::Mount(mount)),
            access_mode: Some(proto::csi::v1::volume_capability::AccessMode { mode: mode.into() }),
        }
    }

    fn refusal(given: &VolumeCapability) -> String {
        Capability::check(Some(given)).unwrap_err().to_string()
    }

    /// Rule 13: Nomad sends whatever mode a job names, so the driver says what it has.
    #[test]
    fn every_mode_but_the_two_offered_is_refused_by_its_nomad_name() {
        for (mode, word) in [
            (Mode::MultiNodeReaderOnly, "multi-node-reader-only"),
            (Mode::MultiNodeSingleWriter, "multi-node-single-writer"),
            (Mode::MultiNodeMultiWriter, "multi-node-multi-writer"),
            (Mode::SingleNodeSingleWriter, "single-node-single-writer"),
            (Mode::SingleNodeMultiWriter, "single-node-multi-writer"),
        ] {
            let text = refusal(&capability(mode, MountVolume::default()));
            assert!(
                text.contains(word) && text.contains("offers single-node-writer"),
                "{text}"
            );
        }
        for (mode, read) in [
            (Mode::SingleNodeWriter, AccessMode::SingleNodeWriter),
            (Mode::SingleNodeReaderOnly, AccessMode::SingleNodeReaderOnly),
        ] {
            let checked = Capability::check(Some(&capability(mode, MountVolume::default()))).unwrap();
            assert_eq!(checked.mode, read);
        }
    }

    #[test]
    fn a_block_device_is_refused() {
        let block = VolumeCapability {
            access_type: Some(AccessType::Block(BlockVolume {})),
            ..capability(Mode::SingleNodeWriter, MountVolume::default())
        };
        assert!(refusal(&block).contains("block-device"));
    }

    #[test]
    fn mount_flags_are_read_and_an_unknown_one_is_named() {
        let with = |flags: &[&str], fs_type: &str| {
            capability(
                Mode::SingleNodeWriter,
                MountVolume {
                    fs_type: fs_type.into(),
                    mount_flags: flags.iter().map(|flag| flag.to_string()).collect(),
                    ..Default::default()
                },
            )
        };
        let checked = Capability::check(Some(&with(&["noatime,nodev", "ro"], FS_TYPE))).unwrap();
        let expected = BindFlags {
            read_only: true,
            nodev: true,
            noatime: true,
            ..Default::default()
        };
        assert_eq!(checked.flags, expected);
        assert!(refusal(&with(&["discard"], "")).contains("\"discard\""));
        assert!(refusal(&with(&[], "ext4")).contains("\"ext4\""));
    }

    #[test]
    fn what_is_missing_is_named() {
        assert!(Capability::check(None).is_err());
        assert!(
            Capability::check_all(&[])
                .unwrap_err()
                .to_string()
                .contains("volume_capabilities")
        );
        assert!(refusal(&capability(Mode::Unknown, MountVolume::default())).contains("access_mode"));
    }
}
