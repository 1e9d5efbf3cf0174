//! A volume as a node has it open: for writing, or for reading only.
//!
//! A node may have both at once: where readers on several nodes stand beside one writer, the readers on the writer's node
//! have a mount of their own. So the writer may come and go, and move to another node, without a reader noticing.
//! Callers: the node's state machine and the engine's mounter, which name mounts, files and folders by it.

use std::fmt;

use serde::{Deserialize, Serialize};
use volume::volume_id::{NameError, VolumeId};

/// Behind the id of a volume that is open for reading only. No id of a volume holds a plus.
const READ_ONLY: &str = "+ro";

/// A volume, open in one way.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Opening {
    /// The volume.
    pub volume: VolumeId,
    /// Without the right to write.
    pub read_only: bool,
}

impl Opening {
    /// For writing.
    pub fn writing(volume: &VolumeId) -> Self {
        Self {
            volume: volume.clone(),
            read_only: false,
        }
    }

    /// For reading only.
    pub fn reading(volume: &VolumeId) -> Self {
        Self {
            volume: volume.clone(),
            read_only: true,
        }
    }

    /// Both ways of a volume: for writing first.
    pub fn both(volume: &VolumeId) -> [Self; 2] {
        [Self::writing(volume), Self::reading(volume)]
    }

    /// Reads what `Display` writes.
    ///
    /// # Errors
    /// `NameError::NotAnId` for anything else.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match text.strip_suffix(READ_ONLY) {
            Some(id) => Ok(Self::reading(&VolumeId::parse(id)?)),
            None => Ok(Self::writing(&VolumeId::parse(text)?)),
        }
    }
}

impl fmt::Display for Opening {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let access = if self.read_only { READ_ONLY } else { "" };
        write!(f, "{}{access}", self.volume)
    }
}

impl TryFrom<String> for Opening {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<Opening> for String {
    fn from(opening: Opening) -> String {
        opening.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_opening_is_named_by_volume_and_access() {
        let volume = VolumeId::parse("v1").unwrap();
        for (opening, name) in Opening::both(&volume).into_iter().zip(["v1", "v1+ro"]) {
            assert_eq!(opening.to_string(), name);
            assert_eq!(Opening::parse(name).unwrap(), opening);
        }
        assert!(Opening::parse("v1+rw").is_err() && Opening::parse("+ro").is_err());
    }
}
