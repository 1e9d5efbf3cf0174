//! What a volume was created as: its parameters, typed, and how they read in a volume file.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::Settings;
pub use crate::format::codec::Compression;

/// When fsync returns. `ops/sync.rs` says what each promises.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Durability {
    /// When the bucket has it.
    #[default]
    Remote,
    /// When this node's disk has it; the bucket follows within seconds, in order.
    Local,
    /// At once; the bucket follows within seconds, in order.
    Relaxed,
}

impl fmt::Display for Durability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Durability::Remote => "remote",
            Durability::Local => "local",
            Durability::Relaxed => "relaxed",
        })
    }
}

impl FromStr for Durability {
    type Err = ParameterError;

    fn from_str(value: &str) -> Result<Self, ParameterError> {
        match value {
            "remote" => Ok(Durability::Remote),
            "local" => Ok(Durability::Local),
            "relaxed" => Ok(Durability::Relaxed),
            _ => Err(ParameterError::Value {
                name: "durability",
                value: value.to_owned(),
                known: "remote, local or relaxed",
            }),
        }
    }
}

/// The parameters of a volume. Whoever mounts it goes by what the head says then.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Parameters {
    /// When fsync returns.
    pub durability: Durability,
    /// How data frames are compressed.
    pub compression: Compression,
    /// How nodes mount it.
    #[serde(default, skip_serializing_if = "Settings::is_default")]
    pub settings: Settings,
}

/// A parameter that this program does not act on. It is refused, never ignored.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ParameterError {
    /// No parameter has this name.
    #[error(
        "volume parameter {name:?} is unknown; known are durability, compression, uid, gid, mode, umask, \
         cache_disk, cache_ram, readahead, transport and s3_outage"
    )]
    Unknown {
        /// As given.
        name: String,
    },
    /// All volumes of a plugin lie in one place of one store.
    #[error("volume parameter {name:?} is an option of the plugin (`pannier csi`), not of a volume")]
    OfThePlugin {
        /// As given.
        name: String,
    },
    /// The parameter can only be given at creation.
    #[error("volume parameter {name:?} cannot be changed after the volume was created")]
    Fixed {
        /// As given.
        name: String,
    },
    /// The parameter exists, the value does not.
    #[error("volume parameter {name} cannot be {value:?}; it can be {known}")]
    Value {
        /// Name of the parameter.
        name: &'static str,
        /// As given.
        value: String,
        /// What it can be.
        known: &'static str,
    },
}

impl Parameters {
    /// Reads the parameters of a volume file; what is not there has its default.
    ///
    /// # Errors
    /// `ParameterError` naming the first parameter that is unknown or has an unknown value.
    pub fn from_map(map: &BTreeMap<String, String>) -> Result<Self, ParameterError> {
        let mut parameters = Self::default();
        for (name, value) in map {
            match name.as_str() {
                "durability" => parameters.durability = value.parse()?,
                "compression" => parameters.compression = compression(value)?,
                _ if parameters.settings.set(name, value)? => {}
                _ => return Err(ParameterError::Unknown { name: name.clone() }),
            }
        }
        Ok(parameters)
    }

    /// These parameters with some of them changed: those that can be after creation. A mount that runs keeps what it was
    /// made with; the next one has the new values.
    ///
    /// # Errors
    /// As `from_map`; `Fixed` for uid, gid and mode, which were given to the top directory once.
    pub fn changed(self, map: &BTreeMap<String, String>) -> Result<Self, ParameterError> {
        let wanted = Self::from_map(map)?;
        let mut changed = self;
        for name in map.keys() {
            match name.as_str() {
                "durability" => changed.durability = wanted.durability,
                "compression" => changed.compression = wanted.compression,
                "cache_disk" => changed.settings.cache_disk_bytes = wanted.settings.cache_disk_bytes,
                "cache_ram" => changed.settings.cache_ram_bytes = wanted.settings.cache_ram_bytes,
                "readahead" => changed.settings.readahead_bytes = wanted.settings.readahead_bytes,
                "umask" => changed.settings.umask = wanted.settings.umask,
                "transport" => changed.settings.transport = wanted.settings.transport,
                "s3_outage" => changed.settings.on_outage = wanted.settings.on_outage,
                _ => return Err(ParameterError::Fixed { name: name.clone() }),
            }
        }
        Ok(changed)
    }
}

fn compression(value: &str) -> Result<Compression, ParameterError> {
    match value {
        "none" => Ok(Compression::None),
        "lz4" => Ok(Compression::Lz4),
        "zstd" => Ok(Compression::Zstd),
        _ => Err(ParameterError::Value {
            name: "compression",
            value: value.to_owned(),
            known: "none, lz4 or zstd",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(pairs: &[(&str, &str)]) -> Result<Parameters, ParameterError> {
        Parameters::from_map(
            &pairs
                .iter()
                .map(|(name, value)| (name.to_string(), value.to_string()))
                .collect(),
        )
    }

    #[test]
    fn no_parameters_are_the_defaults() {
        let written_out = parse(&[("durability", "remote"), ("compression", "lz4")]).unwrap();
        assert_eq!(parse(&[]).unwrap(), written_out);
    }

    #[test]
    fn a_durability_reads_as_it_is_shown() {
        for durability in [Durability::Remote, Durability::Local, Durability::Relaxed] {
            let read = parse(&[("durability", &durability.to_string())]).unwrap();
            assert_eq!(read.durability, durability);
        }
    }

    #[test]
    fn a_parameter_that_is_not_acted_on_is_refused_by_name() {
        let error = parse(&[("durabilty", "remote")]).unwrap_err();
        assert!(error.to_string().contains("durabilty"), "{error}");
        let error = parse(&[("durability", "mirror")]).unwrap_err();
        assert!(error.to_string().contains("durability cannot be \"mirror\""), "{error}");
    }
}
