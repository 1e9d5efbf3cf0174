//! Keys of volumes, for the calls that Nomad makes without secrets: ControllerUnpublishVolume among them (rule 9).
//!
//! One file per volume, mode 0600, below the state folder. A controller on another node has not seen them: then the
//! plugin's own credentials must do, and where they do not, the store's refusal says so. Callers: `controller.rs`.
//! Absent: the node's copy (`targets/record.rs`).

use std::path::PathBuf;

use volume::volume_id::VolumeId;

use crate::credentials::Credentials;
use crate::error::DriverError;
use crate::state_file;

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

    /// Keeps the keys of a volume.
    ///
    /// # Errors
    /// `File`.
    pub fn keep(&self, volume: &VolumeId, keys: &Credentials) -> Result<(), DriverError> {
        // A damaged file is overwritten: the caller just brought better ones.
        if self.find(volume).is_ok_and(|known| known.as_ref() == Some(keys)) {
            return Ok(());
        }
        let body = serde_json::to_vec(keys).expect("keys are texts");
        state_file::write(&self.path(volume), &body)
    }

    /// The keys that a call brought for the volume last, if any did.
    ///
    /// # Errors
    /// `File`, `Record`.
    pub fn find(&self, volume: &VolumeId) -> Result<Option<Credentials>, DriverError> {
        let path = self.path(volume);
        let Some(body) = state_file::read(&path)? else {
            return Ok(None);
        };
        let keys = serde_json::from_slice(&body);
        keys.map(Some).map_err(|source| DriverError::Record { path, source })
    }

    /// Forgets the keys of a volume; `Ok` if there are none.
    ///
    /// # Errors
    /// `File`.
    pub fn forget(&self, volume: &VolumeId) -> Result<(), DriverError> {
        state_file::remove(&self.path(volume))
    }

    fn path(&self, volume: &VolumeId) -> PathBuf {
        self.dir.join(format!("{volume}.json"))
    }
}
