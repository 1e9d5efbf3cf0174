//! What a volume may be used as: access mode and type, mount options and file system type of a call, judged.
//!
//! Nomad never compares a job's access mode with what the volume can do (rule 13), so every call that carries a
//! capability comes through here. What is not offered is refused with a text that says what is.
//! Callers: `controller.rs`, `node.rs`. Absent: whether the volume is free for that use (the head says it).

use proto::csi::v1::VolumeCapability;
use proto::csi::v1::volume_capability::{AccessType, access_mode::Mode};
use serde::{Deserialize, Serialize};
use volume::head::{AccessMode, settings};

use crate::error::{DriverError, Fault};

/// The file system type a volume file may name; empty means the same.
const FS_TYPE: &str = "pannier";

/// A capability that Pannier has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Capability {
    /// Who may use the volume.
    pub mode: AccessMode,
    /// How the mount behaves.
    pub flags: BindFlags,
    /// Whose the top directory is to be.
    pub owner: Owner,
}

/// Whose the top directory of a volume is to be while a job uses it; what is not set stays as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Owner {
    /// Its owner.
    pub uid: Option<u32>,
    /// Its group.
    pub gid: Option<u32>,
    /// Its permission bits.
    pub mode: Option<u16>,
    /// Permission bits to have besides.
    pub more_mode: u16,
}

/// rwxrws---: what a group needs that is given to a volume as a whole, as Kubernetes does it: its members may write, and
/// what they make is the group's again.
const GROUP_MODE: u16 = 0o2070;

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
        let (flags, owner) = match &given.access_type {
            Some(AccessType::Mount(mount)) => {
                if !mount.fs_type.is_empty() && mount.fs_type != FS_TYPE {
                    let fs_type = mount.fs_type.clone();
                    return Err(DriverError::invalid("mount_options.fs_type", Fault::FsType { fs_type }));
                }
                let (flags, mut owner) = BindFlags::parse(&mount.mount_flags)?;
                if !mount.volume_mount_group.is_empty() {
                    let group = settings::id("volume_mount_group", &mount.volume_mount_group)?;
                    owner.gid = owner.gid.or(Some(group));
                    owner.more_mode = GROUP_MODE;
                }
                (flags, owner)
            }
            Some(AccessType::Block(_)) => return Err(DriverError::invalid("attachment_mode", Fault::Block)),
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
            owner,
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
    pub fn parse(flags: &[String]) -> Result<(Self, Owner), DriverError> {
        let (mut parsed, mut owner) = (Self::default(), Owner::default());
        for flag in flags.iter().flat_map(|flags| flags.split(',')) {
            let flag = flag.trim();
            match flag.split_once('=') {
                Some(("uid", value)) => owner.uid = Some(settings::id("uid", value)?),
                Some(("gid", value)) => owner.gid = Some(settings::id("gid", value)?),
                Some(("mode", value)) => owner.mode = Some(settings::mode(value)?),
                _ => parsed.set(flag)?,
            }
        }
        Ok((parsed, owner))
    }

    fn set(&mut self, flag: &str) -> Result<(), DriverError> {
        match flag {
            "" | "rw" | "defaults" | "relatime" | "suid" | "exec" | "dev" => {}
            "ro" => self.read_only = true,
            "noexec" => self.noexec = true,
            "nosuid" => self.nosuid = true,
            "nodev" => self.nodev = true,
            "noatime" => self.noatime = true,
            unknown => {
                let flag = unknown.to_owned();
                return Err(DriverError::invalid("mount_options.mount_flags", Fault::Flag { flag }));
            }
        }
        Ok(())
    }
}

fn mode(number: i32) -> Result<AccessMode, DriverError> {
    match Mode::try_from(number) {
        Ok(Mode::SingleNodeWriter) => Ok(AccessMode::SingleNodeWriter),
        Ok(Mode::SingleNodeReaderOnly) => Ok(AccessMode::SingleNodeReaderOnly),
        Ok(Mode::MultiNodeReaderOnly) => Ok(AccessMode::MultiNodeReaderOnly),
        Ok(Mode::MultiNodeSingleWriter) => Ok(AccessMode::MultiNodeSingleWriter),
        Ok(Mode::MultiNodeMultiWriter) => Ok(AccessMode::MultiNodeMultiWriter),
        Ok(Mode::SingleNodeSingleWriter) => Ok(AccessMode::SingleNodeSingleWriter),
        Ok(Mode::SingleNodeMultiWriter) => Ok(AccessMode::SingleNodeMultiWriter),
        Ok(Mode::Unknown) => Err(DriverError::Missing {
            field: "volume_capability.access_mode",
        }),
        Err(_) => Err(DriverError::invalid("access_mode", Fault::Mode { number })),
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
    fn every_mode_is_read_and_another_number_is_refused() {
        let modes = [
            Mode::SingleNodeWriter,
            Mode::SingleNodeReaderOnly,
            Mode::SingleNodeSingleWriter,
            Mode::SingleNodeMultiWriter,
            Mode::MultiNodeReaderOnly,
            Mode::MultiNodeSingleWriter,
            Mode::MultiNodeMultiWriter,
        ];
        for (mode, read) in modes.into_iter().zip(AccessMode::ALL) {
            let checked = Capability::check(Some(&capability(mode, MountVolume::default()))).unwrap();
            assert_eq!(checked.mode, read);
            let word = mode.as_str_name().to_lowercase().replace('_', "-");
            assert_eq!(read.to_string(), word);
        }
        let mut odd = capability(Mode::SingleNodeWriter, MountVolume::default());
        odd.access_mode = Some(proto::csi::v1::volume_capability::AccessMode { mode: 99 });
        assert!(refusal(&odd).contains("99"));
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
        let owned = Capability::check(Some(&with(&["uid=1000,gid=100", "mode=0750"], ""))).unwrap();
        let owner = Owner {
            uid: Some(1000),
            gid: Some(100),
            mode: Some(0o750),
            more_mode: 0,
        };
        assert_eq!((owned.owner, checked.owner), (owner, Owner::default()));
        for (flag, named) in [
            ("uid=me", "uid"),
            ("mode=99999", "mode"),
            ("umask=022", "umask"),
            ("discard", "discard"),
        ] {
            assert!(refusal(&with(&[flag], "")).contains(named), "{flag}");
        }
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
