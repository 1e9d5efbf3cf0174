//! `mount` blocks: what Docker's driver calls so, with the same names.

use super::Reader;
use crate::msgpack::{Block, MsgpackError};
use crate::task_config::{MountKind, MountOptions, TaskConfigError};

/// The propagation modes of mount(2), as Podman names them.
const PROPAGATION: [&str; 6] = ["private", "rprivate", "slave", "rslave", "shared", "rshared"];

/// What permission bits there are.
const MODE_MAX: i64 = 0o7777;

/// All `mount` blocks; the mistakes in them are kept by the reader.
pub(super) fn read(reader: &mut Reader) -> Vec<MountOptions> {
    let blocks = reader.keep(|block| block.blocks("mount")).unwrap_or_default();
    let mounts = blocks.into_iter().filter_map(|block| match mount(block) {
        Ok(mount) => Some(mount),
        Err(error) => {
            reader.errors.push(error);
            None
        }
    });
    mounts.collect()
}

fn mount(mut block: Block) -> Result<MountOptions, TaskConfigError> {
    let kind = text(&mut block, "type")?.unwrap_or_else(|| "volume".to_owned());
    let source = text(&mut block, "source")?;
    let target = text(&mut block, "target")?.filter(|target| target.starts_with('/'));
    let target = target.ok_or(TaskConfigError::Block {
        key: "mount.target",
        what: "an absolute path in the container is needed",
    })?;
    let readonly = block.bool("readonly")?.unwrap_or(false);
    let [bind, volume, tmpfs] = ["bind_options", "volume_options", "tmpfs_options"].map(|name| block.block(name));
    let (bind, volume, tmpfs) = (bind?, volume?, tmpfs?);
    let kind = match kind.as_str() {
        "bind" => {
            only(&[("mount.volume_options", &volume), ("mount.tmpfs_options", &tmpfs)])?;
            bound(source, bind.unwrap_or_default())?
        }
        "volume" => {
            only(&[("mount.bind_options", &bind), ("mount.tmpfs_options", &tmpfs)])?;
            named(source, volume.unwrap_or_default())?
        }
        "tmpfs" => {
            only(&[("mount.bind_options", &bind), ("mount.volume_options", &volume)])?;
            memory(source, tmpfs.unwrap_or_default())?
        }
        _ => {
            return Err(TaskConfigError::Malformed {
                key: "mount.type",
                text: kind,
                want: "\"bind\", \"volume\" or \"tmpfs\"",
            });
        }
    };
    Ok(MountOptions { kind, target, readonly })
}

/// Options of another type of mount would be ignored, so they are refused.
fn only(others: &[(&'static str, &Option<Block>)]) -> Result<(), TaskConfigError> {
    match others.iter().find(|(_, block)| block.is_some()) {
        None => Ok(()),
        Some((key, _)) => Err(TaskConfigError::Block {
            key,
            what: "the mount is of another type",
        }),
    }
}

fn bound(source: Option<String>, mut options: Block) -> Result<MountKind, TaskConfigError> {
    let propagation = text(&mut options, "propagation")?;
    if let Some(text) = propagation
        .as_ref()
        .filter(|mode| !PROPAGATION.contains(&mode.as_str()))
    {
        return Err(TaskConfigError::Malformed {
            key: "mount.bind_options.propagation",
            text: text.clone(),
            want: "private, rprivate, slave, rslave, shared or rshared",
        });
    }
    let selinux = text(&mut options, "selinux")?;
    if let Some(text) = selinux.as_ref().filter(|label| !matches!(label.as_str(), "z" | "Z")) {
        return Err(TaskConfigError::Malformed {
            key: "mount.bind_options.selinux",
            text: text.clone(),
            want: "\"z\" (shared) or \"Z\" (private)",
        });
    }
    let source = source.ok_or(TaskConfigError::Block {
        key: "mount.source",
        what: "a bind mount needs a path of the host",
    })?;
    Ok(MountKind::Bind {
        source,
        propagation,
        selinux,
    })
}

fn named(source: Option<String>, mut options: Block) -> Result<MountKind, TaskConfigError> {
    let name = source.ok_or(TaskConfigError::Block {
        key: "mount.source",
        what: "a volume needs a name",
    })?;
    let named = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
    if !name.starts_with(|c: char| c.is_ascii_alphanumeric()) || !name.chars().all(named) {
        return Err(TaskConfigError::Malformed {
            key: "mount.source",
            text: name,
            want: "a volume's name of letters, digits, \"_\", \".\" and \"-\"; for a path use type = \"bind\"",
        });
    }
    let no_copy = options.bool("no_copy")?.unwrap_or(false);
    Ok(MountKind::Volume { name, no_copy })
}

fn memory(source: Option<String>, mut options: Block) -> Result<MountKind, TaskConfigError> {
    if source.is_some() {
        return Err(TaskConfigError::Block {
            key: "mount.source",
            what: "a tmpfs has none",
        });
    }
    let size = options.integer("size")?.filter(|size| *size != 0);
    let mode = options.integer("mode")?;
    for (key, value, max) in [
        ("mount.tmpfs_options.size", size, i64::MAX),
        ("mount.tmpfs_options.mode", mode, MODE_MAX),
    ] {
        if let Some(value) = value.filter(|value| !(0..=max).contains(value)) {
            return Err(TaskConfigError::Range {
                key: key.to_owned(),
                value,
                min: 0,
                max,
            });
        }
    }
    Ok(MountKind::Tmpfs { size, mode })
}

fn text(block: &mut Block, key: &str) -> Result<Option<String>, MsgpackError> {
    Ok(block.string(key)?.filter(|text| !text.is_empty()))
}
