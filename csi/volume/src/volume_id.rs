//! The names of volumes and nodes, and what they are called in the bucket.
//!
//! A name comes from a person or an orchestrator and may be almost any text; an id is part of keys, paths and logs. The
//! id follows from the name alone, so that creating the same name twice finds the same volume without any index.

use std::fmt;

use serde::{Deserialize, Serialize};

/// 128 characters: what CSI lets a caller send as a name. Longer ones are refused.
pub const NAME_CHARS_MAX: usize = 128;

/// 63 bytes: a plain name up to this long is its own id, as a DNS label would be.
const PLAIN_BYTES_MAX: usize = 63;

/// 40 bytes: how much of another name stays readable in its id, before the 17 bytes that make it unique.
const SLUG_BYTES_MAX: usize = 40;

/// Divides slug and hash. Plain names cannot hold it, so a made id never meets a plain one.
const SLUG_END: char = '~';

/// Why a text cannot be a name or an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// Nothing was given.
    #[error("the name is empty")]
    Empty,
    /// More than `NAME_CHARS_MAX`.
    #[error("the name has {chars} characters, at most {NAME_CHARS_MAX} are allowed")]
    TooLong {
        /// Its length in characters.
        chars: usize,
    },
    /// CSI forbids control characters in names, except tab and line ends.
    #[error("the name holds the control character U+{code:04X}")]
    Control {
        /// Its code point.
        code: u32,
    },
    /// Not what `VolumeId::of_name` ever makes.
    #[error("{text:?} is not an id of a volume or snapshot")]
    NotAnId {
        /// What was given.
        text: String,
    },
}

/// The id of a volume: 1 to 63 bytes of `a-z 0-9 . _ - ~`, beginning with a letter or digit.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct VolumeId(String);

impl VolumeId {
    /// The id of the volume called `name`: the name itself where it is plain, otherwise a readable part of it and a hash.
    ///
    /// # Errors
    /// `NameError` if CSI does not allow such a name.
    pub fn of_name(name: &str) -> Result<Self, NameError> {
        check_name(name)?;
        Ok(Self(key_part(name)))
    }

    /// Reads an id that was given out before.
    ///
    /// # Errors
    /// `NameError::NotAnId` if it cannot be one; then no volume of that id exists.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        if is_key_part(text) {
            return Ok(Self(text.to_owned()));
        }
        Err(NameError::NotAnId { text: text.to_owned() })
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for VolumeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for VolumeId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<VolumeId> for String {
    fn from(id: VolumeId) -> String {
        id.0
    }
}

/// The id of a snapshot, made from its name as that of a volume is. Names of snapshots are apart from those of volumes.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct SnapshotId(String);

impl SnapshotId {
    /// The id of the snapshot called `name`.
    ///
    /// # Errors
    /// `NameError` if CSI does not allow such a name.
    pub fn of_name(name: &str) -> Result<Self, NameError> {
        check_name(name)?;
        Ok(Self(key_part(name)))
    }

    /// Reads an id that was given out before.
    ///
    /// # Errors
    /// `NameError::NotAnId` if it cannot be one; then no snapshot of that id exists.
    pub fn parse(text: &str) -> Result<Self, NameError> {
        match is_key_part(text) {
            true => Ok(Self(text.to_owned())),
            false => Err(NameError::NotAnId { text: text.to_owned() }),
        }
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::parse(&text)
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> String {
        id.0
    }
}

/// The id of a node as the orchestrator gives it; for the key of its object see `key_part`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct NodeId(String);

impl NodeId {
    /// Takes a node id as given: any text that could also be a name.
    ///
    /// # Errors
    /// `NameError` if it is empty, too long or holds control characters.
    pub fn new(text: &str) -> Result<Self, NameError> {
        check_name(text)?;
        Ok(Self(text.to_owned()))
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The last part of the key of the node's object.
    pub(crate) fn key_part(&self) -> String {
        key_part(&self.0)
    }
}

impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl TryFrom<String> for NodeId {
    type Error = NameError;

    fn try_from(text: String) -> Result<Self, NameError> {
        Self::new(&text)
    }
}

impl From<NodeId> for String {
    fn from(id: NodeId) -> String {
        id.0
    }
}

fn check_name(name: &str) -> Result<(), NameError> {
    let chars = name.chars().count();
    if chars == 0 {
        return Err(NameError::Empty);
    }
    if chars > NAME_CHARS_MAX {
        return Err(NameError::TooLong { chars });
    }
    match name
        .chars()
        .find(|c| c.is_control() && !matches!(c, '\t' | '\n' | '\r'))
    {
        Some(control) => Err(NameError::Control { code: control.into() }),
        None => Ok(()),
    }
}

fn is_plain(text: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || matches!(b, b'.' | b'_' | b'-');
    let first = text.bytes().next().unwrap_or(b'-');
    (first.is_ascii_lowercase() || first.is_ascii_digit()) && text.len() <= PLAIN_BYTES_MAX && text.bytes().all(allowed)
}

fn is_key_part(text: &str) -> bool {
    match text.split_once(SLUG_END) {
        None => is_plain(text),
        Some((slug, hash)) => {
            let hex = |b: u8| b.is_ascii_digit() || (b'a'..=b'f').contains(&b);
            is_plain(slug) && slug.len() <= SLUG_BYTES_MAX && hash.len() == 16 && hash.bytes().all(hex)
        }
    }
}

fn key_part(name: &str) -> String {
    if is_plain(name) {
        return name.to_owned();
    }
    let mut slug = String::new();
    for c in name.chars().map(|c| c.to_ascii_lowercase()) {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            slug.push(c);
        } else if !slug.is_empty() && !slug.ends_with('-') {
            slug.push('-');
        }
        if slug.len() == SLUG_BYTES_MAX {
            break;
        }
    }
    let slug = match slug.trim_end_matches('-') {
        "" => "x",
        slug => slug,
    };
    format!("{slug}{SLUG_END}{:016x}", fnv1a(name.as_bytes()))
}

/// FNV-1a with 64 bits: the same on every machine and in every version. Two names that meet in it are told apart by the
/// name that the head holds, so it need not resist an attacker.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_plain_name_is_its_own_id() {
        for name in ["a", "pg-data", "v1.2_x", "0", &"x".repeat(63)] {
            assert_eq!(VolumeId::of_name(name).unwrap().as_str(), name);
        }
    }

    #[test]
    fn another_name_gets_a_readable_id_that_no_plain_name_has() {
        let id = |name: &str| VolumeId::of_name(name).unwrap().as_str().to_owned();
        assert!(
            id("Grüße an/alle").starts_with("gr-e-an-alle~"),
            "{}",
            id("Grüße an/alle")
        );
        assert!(id("🦀").starts_with("x~"));
        assert_ne!(id("A"), id("a"));
        assert_ne!(id("../etc"), id("..-etc"));
        assert_ne!(id(&"x".repeat(64)), id(&"x".repeat(65)));
        for name in [
            "Grüße an/alle",
            "🦀",
            "-a",
            &"Ü".repeat(NAME_CHARS_MAX),
            "a~0123456789abcdef",
        ] {
            assert_eq!(id(name), id(name));
            assert_eq!(VolumeId::parse(&id(name)).unwrap().as_str(), id(name));
            assert_ne!(id(name), name);
        }
    }

    #[test]
    fn a_name_that_csi_forbids_is_refused() {
        assert_eq!(VolumeId::of_name(""), Err(NameError::Empty));
        assert_eq!(
            VolumeId::of_name(&"é".repeat(129)),
            Err(NameError::TooLong { chars: 129 })
        );
        assert_eq!(VolumeId::of_name("a\u{7}b"), Err(NameError::Control { code: 7 }));
        assert!(VolumeId::of_name("a\tb").is_ok());
    }

    #[test]
    fn text_that_could_leave_the_prefix_is_no_id() {
        for text in [
            "",
            "..",
            "../x",
            "a/b",
            "A",
            "a~b",
            "~0123456789abcdef",
            "a b",
            &"x".repeat(64),
        ] {
            assert!(VolumeId::parse(text).is_err(), "{text:?}");
        }
    }
}
