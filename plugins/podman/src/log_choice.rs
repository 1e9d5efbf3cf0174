//! Where a task's output goes: the `logging { driver, options }` block of the plugin's and of the task's options.
//!
//! Whatever is chosen, the container never waits for a reader. Absent: how the output gets there (logs.rs).

use std::path::Path;

use crate::msgpack::{Block, MsgpackError};
use crate::units::{self, UnitError};

/// Where the output goes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum LogChoice {
    /// To Nomad's log collection.
    #[default]
    Nomad,
    /// To the journal of the host, and to Nomad's log collection as well.
    Journald {
        /// What the entries are tagged with; None: the container's name.
        tag: Option<String>,
    },
    /// To a file of Podman's, and to nobody else.
    File {
        /// Where; None: where Podman puts it.
        path: Option<String>,
        /// Bytes after which it begins anew; None: never.
        bytes_max: Option<i64>,
    },
    /// Nowhere.
    Nowhere,
}

/// Output that is to go where it cannot.
#[derive(Debug, thiserror::Error)]
pub enum LogChoiceError {
    /// A value of the wrong type.
    #[error(transparent)]
    Msgpack(#[from] MsgpackError),
    /// A driver that does not exist.
    #[error(
        "driver = {driver:?} is not known: write \"nomad\" (collected by Nomad), \"journald\" (Nomad and the host's journal), \
         \"k8s-file\" (a file of Podman's) or \"none\""
    )]
    Driver {
        /// What was written.
        driver: String,
    },
    /// An option that the driver does not have.
    #[error("the driver {driver:?} has no option {option:?}: {known}")]
    Option {
        /// The driver.
        driver: &'static str,
        /// What was written.
        option: String,
        /// Which ones it has.
        known: &'static str,
    },
    /// A size that is none.
    #[error("options.max-size: {0}")]
    Size(#[from] UnitError),
    /// A path that is not absolute.
    #[error("options.path: {path:?} is not an absolute path")]
    Path {
        /// What was written.
        path: String,
    },
}

impl LogChoice {
    /// Reads a `logging` block; None when it says nothing.
    ///
    /// # Errors
    /// All variants of [`LogChoiceError`], as they say.
    pub fn read(block: &mut Block) -> Result<Option<Self>, LogChoiceError> {
        let driver = block.string("driver")?.filter(|driver| !driver.is_empty());
        let mut options = block.string_map("options")?;
        if driver.is_none() && options.is_empty() {
            return Ok(None);
        }
        let choice = match driver.as_deref().unwrap_or("nomad") {
            "nomad" => {
                // Jobs have them, and they never had an effect here: rotation is in the task's logs block.
                for option in ["tag", "path", "max-size", "max_size"] {
                    options.remove(option);
                }
                Self::Nomad
            }
            "journald" => Self::Journald {
                tag: options.remove("tag").filter(|tag| !tag.is_empty()),
            },
            "k8s-file" => {
                options.remove("tag");
                let size = options.remove("max-size").or_else(|| options.remove("max_size"));
                Self::File {
                    path: options.remove("path").map(absolute).transpose()?,
                    bytes_max: size.map(|size| units::bytes(&size)).transpose()?,
                }
            }
            "none" => Self::Nowhere,
            driver => {
                let driver = driver.to_owned();
                return Err(LogChoiceError::Driver { driver });
            }
        };
        match options.into_iter().next() {
            None => Ok(Some(choice)),
            Some((option, _)) => Err(choice.refuse(option)),
        }
    }

    fn refuse(&self, option: String) -> LogChoiceError {
        let (driver, known) = match self {
            Self::Nomad => ("nomad", "rotation is in the task's logs block"),
            Self::Journald { .. } => ("journald", "it has tag"),
            Self::File { .. } => ("k8s-file", "it has path and max-size"),
            Self::Nowhere => ("none", "it has none"),
        };
        LogChoiceError::Option { driver, option, known }
    }
}

fn absolute(path: String) -> Result<String, LogChoiceError> {
    if Path::new(&path).is_absolute() {
        Ok(path)
    } else {
        Err(LogChoiceError::Path { path })
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn block(driver: &str, options: &[(&str, &str)]) -> Block {
        let options: BTreeMap<&str, &str> = options.iter().copied().collect();
        let bytes = rmp_serde::to_vec_named(&serde_json::json!({ "driver": driver, "options": options }));
        Block::decode(&bytes.unwrap()).unwrap()
    }

    fn read(driver: &str, options: &[(&str, &str)]) -> Result<Option<LogChoice>, LogChoiceError> {
        LogChoice::read(&mut block(driver, options))
    }

    #[test]
    fn output_goes_where_the_job_says() {
        let tag = |tag: Option<&str>| LogChoice::Journald {
            tag: tag.map(str::to_owned),
        };
        for (driver, options, want) in [
            ("nomad", [].as_slice(), LogChoice::Nomad),
            ("nomad", &[("tag", "x")], LogChoice::Nomad),
            ("journald", &[], tag(None)),
            ("journald", &[("tag", "shop")], tag(Some("shop"))),
            ("none", &[], LogChoice::Nowhere),
            (
                "k8s-file",
                &[("path", "/var/log/x"), ("max-size", "1m")],
                LogChoice::File {
                    path: Some("/var/log/x".into()),
                    bytes_max: Some(1 << 20),
                },
            ),
        ] {
            assert_eq!(read(driver, options).unwrap(), Some(want), "{driver} {options:?}");
        }
        assert_eq!(read("", &[]).unwrap(), None);
    }

    #[test]
    fn what_a_driver_cannot_do_is_refused_by_name() {
        for (driver, options, want) in [
            ("syslog", [].as_slice(), "\"syslog\" is not known"),
            ("journald", &[("labels", "x")], "it has tag"),
            ("none", &[("tag", "x")], "it has none"),
            ("k8s-file", &[("path", "log")], "not an absolute path"),
            ("k8s-file", &[("max-size", "much")], "not a size"),
        ] {
            let error = read(driver, options).unwrap_err().to_string();
            assert!(error.contains(want), "{error}");
        }
    }
}
