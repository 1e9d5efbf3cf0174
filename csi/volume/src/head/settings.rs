//! How nodes mount a volume unless a job says otherwise: whose its top directory is, and how much of it is cached.
//!
//! They are parameters of a volume file like the others; `Parameters::from_map` hands on what it does not know itself.
//! Invariant: what is not acted on is refused by its name, never ignored.

use serde::{Deserialize, Serialize};

use super::{ParameterError, Transport};
use crate::outage::OnOutage;
use crate::readahead::WINDOW_BYTES_MAX;

/// Settings of a volume's mounts. `None` leaves it to the node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Settings {
    /// Owner of the top directory, given at the first mount.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub uid: Option<u32>,
    /// Its group.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gid: Option<u32>,
    /// Its permission bits.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mode: Option<u16>,
    /// Most bytes of content on a node's disk.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_disk_bytes: Option<u64>,
    /// Most bytes of content in a node's memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cache_ram_bytes: Option<u64>,
    /// Most bytes that are read ahead of a program that reads in sequence; 0 for none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub readahead_bytes: Option<u64>,
    /// Permission bits that nothing made in the volume gets, besides those of the program's own umask.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub umask: Option<u16>,
    /// How the kernel reaches the process that serves it.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub transport: Option<Transport>,
    /// What operations do while the store does not answer.
    #[serde(skip_serializing_if = "OnOutage::is_default")]
    pub on_outage: OnOutage,
}

/// Parameters of other drivers that are options of our plugin: all volumes of a plugin lie in one place.
const OF_THE_PLUGIN: &[&str] = &[
    "bucket",
    "prefix",
    "endpoint",
    "s3_endpoint",
    "region",
    "path_style",
    "storage_class",
    "sse",
    "sse_kms_key_id",
];

impl Settings {
    /// True if nothing is set.
    pub fn is_default(&self) -> bool {
        *self == Self::default()
    }

    /// Takes one parameter. False if none has this name.
    ///
    /// # Errors
    /// `ParameterError::Value` for a value that cannot be, `OfThePlugin` for a name that is an option of the plugin.
    pub(super) fn set(&mut self, name: &str, value: &str) -> Result<bool, ParameterError> {
        match name {
            "uid" => self.uid = Some(id("uid", value)?),
            "gid" => self.gid = Some(id("gid", value)?),
            "mode" => self.mode = Some(mode(value)?),
            "cache_disk" => self.cache_disk_bytes = Some(bytes("cache_disk", value)?),
            "readahead" => self.readahead_bytes = Some(readahead(value)?),
            "umask" => self.umask = Some(umask(value)?),
            "transport" => self.transport = Some(value.parse()?),
            "s3_outage" => self.on_outage = value.parse()?,
            "cache_ram" => self.cache_ram_bytes = Some(bytes("cache_ram", value)?),
            of_plugin if OF_THE_PLUGIN.contains(&of_plugin) => {
                return Err(ParameterError::OfThePlugin { name: name.to_owned() });
            }
            _ => return Ok(false),
        }
        Ok(true)
    }
}

/// Reads an owner or group.
///
/// # Errors
/// `ParameterError::Value`.
pub fn id(name: &'static str, value: &str) -> Result<u32, ParameterError> {
    // The last number means "leave it" to chown(2).
    let number = value.parse().ok().filter(|number| *number != u32::MAX);
    number.ok_or_else(|| ParameterError::Value {
        name,
        value: value.to_owned(),
        known: "a number below 4294967295",
    })
}

/// Reads permission bits in octal.
///
/// # Errors
/// `ParameterError::Value`.
pub fn mode(value: &str) -> Result<u16, ParameterError> {
    let bits = u16::from_str_radix(value.strip_prefix("0o").unwrap_or(value), 8).ok();
    bits.filter(|bits| *bits <= 0o7777)
        .ok_or_else(|| ParameterError::Value {
            name: "mode",
            value: value.to_owned(),
            known: "permission bits in octal, for example 0770",
        })
}

/// Reads a umask in octal.
fn umask(value: &str) -> Result<u16, ParameterError> {
    let bits = u16::from_str_radix(value.strip_prefix("0o").unwrap_or(value), 8).ok();
    // The owner's own rights to what it has just made are not to be taken away by a typing mistake.
    bits.filter(|bits| *bits <= 0o077).ok_or_else(|| ParameterError::Value {
        name: "umask",
        value: value.to_owned(),
        known: "permission bits of group and others in octal, for example 0027",
    })
}

/// Reads how much to read ahead.
fn readahead(value: &str) -> Result<u64, ParameterError> {
    let size = if value == "0" { Ok(0) } else { bytes("readahead", value) };
    size.ok()
        .filter(|size| *size <= WINDOW_BYTES_MAX)
        .ok_or_else(|| ParameterError::Value {
            name: "readahead",
            value: value.to_owned(),
            known: "0, or bytes, or a number with KiB or MiB, up to 32MiB",
        })
}

/// Reads a size: bytes, or a number with KiB, MiB, GiB or TiB.
pub fn bytes(name: &'static str, value: &str) -> Result<u64, ParameterError> {
    let units = [("KiB", 10), ("MiB", 20), ("GiB", 30), ("TiB", 40)];
    let split = units
        .iter()
        .find_map(|(unit, shift)| Some((value.strip_suffix(unit)?, 1_u64 << shift)));
    let (number, unit) = split.unwrap_or((value, 1));
    let size = number
        .trim()
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(unit));
    size.filter(|size| *size > 0).ok_or_else(|| ParameterError::Value {
        name,
        value: value.to_owned(),
        known: "a number of bytes, or one with KiB, MiB, GiB or TiB",
    })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::super::Parameters;
    use super::*;

    fn parse(name: &str, value: &str) -> Result<Settings, ParameterError> {
        let map = BTreeMap::from([(name.to_owned(), value.to_owned())]);
        Ok(Parameters::from_map(&map)?.settings)
    }

    #[test]
    fn settings_are_read_as_people_write_them() {
        assert_eq!(parse("uid", "1000").unwrap().uid, Some(1000));
        assert_eq!(parse("mode", "0770").unwrap().mode, Some(0o770));
        assert_eq!(parse("cache_disk", "8GiB").unwrap().cache_disk_bytes, Some(8 << 30));
        assert_eq!(parse("cache_ram", "1048576").unwrap().cache_ram_bytes, Some(1 << 20));
        assert_eq!(parse("umask", "0027").unwrap().umask, Some(0o027));
        assert_eq!(
            parse("transport", "io_uring").unwrap().transport,
            Some(Transport::IoUring)
        );
        assert_eq!(parse("readahead", "0").unwrap().readahead_bytes, Some(0));
        assert_eq!(parse("readahead", "4MiB").unwrap().readahead_bytes, Some(4 << 20));
        assert_eq!(
            parse("s3_outage", "eio:1m").unwrap().on_outage,
            OnOutage::FailAfterS(60)
        );
    }

    #[test]
    fn what_cannot_be_is_refused_by_its_name() {
        for (name, value) in [
            ("uid", "root"),
            ("gid", "4294967295"),
            ("mode", "10000"),
            ("mode", "rwx"),
            ("cache_disk", "8G"),
            ("cache_ram", "0"),
            ("cache_ram", "99999999TiB"),
            ("bucket", "data"),
            ("umask", "0700"),
            ("umask", "rwx"),
            ("readahead", "33MiB"),
            ("readahead", "much"),
            ("s3_outage", "eio"),
            ("transport", "uring"),
        ] {
            let text = parse(name, value).unwrap_err().to_string();
            assert!(text.contains(name), "{name}={value}: {text}");
        }
        let plugin = parse("region", "eu-1").unwrap_err().to_string();
        assert!(plugin.contains("option of the plugin"), "{plugin}");
    }
}
