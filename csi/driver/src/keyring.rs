//! Keys of volumes and snapshots, for the calls that Nomad makes without secrets: ControllerUnpublishVolume among them
//! (rule 9), and the deletion of a snapshot, for which it knows only those of its command line.
//!
//! One file for each, mode 0600, below the state folder. A controller on another node has not seen them: then the
//! plugin's own credentials must do, and where they do not, the store's refusal says so. Callers: `controller.rs`.
//! Absent: the node's copy (`targets/record.rs`).

use std::path::PathBuf;

use volume::volume_id::{SnapshotId, VolumeId};

use crate::credentials::Credentials;
use crate::error::DriverError;
use crate::state_file;

/// Whose keys.
#[derive(Debug, Clone, Copy)]
pub enum KeysOf<'a> {
    /// A volume's.
    Volume(&'a VolumeId),
    /// Those that a snapshot was made with.
    Snapshot(&'a SnapshotId),
}

impl<'a> From<&'a VolumeId> for KeysOf<'a> {
    fn from(volume: &'a VolumeId) -> Self {
        KeysOf::Volume(volume)
    }
}

impl<'a> From<&'a SnapshotId> for KeysOf<'a> {
    fn from(snapshot: &'a SnapshotId) -> Self {
        KeysOf::Snapshot(snapshot)
    }
}

/// The folder of the keys.
#[derive(Debug, Clone)]
pub struct Keyring {
    dir: PathBuf,
}

impl Keyring {
    /// Opens the folder, and makes it where it does not exist.
    ///
    /// # Errors
    /// `File`.
    pub fn open(dir: PathBuf) -> Result<Self, DriverError> {
        state_file::make_folder(&dir)?;
        Ok(Self { dir })
    }

    /// Keeps keys.
    ///
    /// # Errors
    /// `File`.
    pub fn keep<'a>(&self, of: impl Into<KeysOf<'a>>, keys: &Credentials) -> Result<(), DriverError> {
        let of = of.into();
        // A damaged file is overwritten: the caller just brought better ones.
        if self.find(of).is_ok_and(|known| known.as_ref() == Some(keys)) {
            return Ok(());
        }
        let body = serde_json::to_vec(keys).expect("keys are texts");
        state_file::write(&self.path(of), &body)
    }

    /// The keys that a call brought last, if any did.
    ///
    /// # Errors
    /// `File`, `Record`.
    pub fn find<'a>(&self, of: impl Into<KeysOf<'a>>) -> Result<Option<Credentials>, DriverError> {
        let path = self.path(of.into());
        let Some(body) = state_file::read(&path)? else {
            return Ok(None);
        };
        let keys = serde_json::from_slice(&body);
        keys.map(Some).map_err(|source| DriverError::Record { path, source })
    }

    /// Forgets keys; `Ok` if there are none.
    ///
    /// # Errors
    /// `File`.
    pub fn forget<'a>(&self, of: impl Into<KeysOf<'a>>) -> Result<(), DriverError> {
        state_file::remove(&self.path(of.into()))
    }

    fn path(&self, of: KeysOf<'_>) -> PathBuf {
        self.dir.join(match of {
            KeysOf::Volume(volume) => format!("{volume}.json"),
            // No id holds a plus, so that a volume may be called like a snapshot.
            KeysOf::Snapshot(snapshot) => format!("{snapshot}+snapshot.json"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_volume_and_a_snapshot_of_one_name_have_keys_of_their_own() {
        let dir = tempfile::tempdir().unwrap();
        let keyring = Keyring::open(dir.path().join("keys")).unwrap();
        let (volume, snapshot) = (VolumeId::parse("a").unwrap(), SnapshotId::parse("a").unwrap());
        let keys = |id: &str| Credentials {
            access_key_id: id.into(),
            secret_access_key: "s".into(),
            session_token: None,
        };
        keyring.keep(&volume, &keys("v")).unwrap();
        keyring.keep(&snapshot, &keys("s")).unwrap();
        assert_eq!(keyring.find(&volume).unwrap(), Some(keys("v")));
        assert_eq!(keyring.find(&snapshot).unwrap(), Some(keys("s")));
        keyring.forget(&snapshot).unwrap();
        keyring.forget(&snapshot).unwrap();
        assert_eq!(keyring.find(&snapshot).unwrap(), None);
        assert_eq!(keyring.find(&volume).unwrap(), Some(keys("v")));
    }
}
