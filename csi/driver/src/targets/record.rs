//! What should be mounted of a volume on this node: a small file per volume, so that a plugin that starts anew knows
//! what the one before it promised (rule 4: Nomad does not stage again what is mounted).
//!
//! Invariant: a record is on disk before the first mount that it asks for, and goes only after the last one is gone.
//! Files hold secrets: they and their folder are for the owner alone.
//! Callers: `targets.rs`. Absent: what is really mounted (`mountinfo.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use volume::ids::Lease;

use crate::capability::BindFlags;
use crate::credentials::Credentials;
use crate::error::DriverError;
use crate::opening::Opening;
use crate::state_file;

/// The newest format of a record that this program reads and writes.
const RECORD_FORMAT: u32 = 1;

/// What should be mounted of one volume, and all that is needed to mount it again.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VolumeRecord {
    format: u32,
    /// The volume, and whether for writing.
    pub opening: Opening,
    /// The publication that entitles this node to it.
    pub lease: Lease,
    /// Keys of this volume; `None` for the engine's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub credentials: Option<Credentials>,
    /// Staging paths. There may be several: Nomad's path holds the way of use (rule 11).
    pub staged: BTreeMap<PathBuf, BindFlags>,
    /// Target paths.
    pub published: BTreeMap<PathBuf, BindFlags>,
    /// Those of them whose allocation had a folder of Nomad's when they came.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub of_allocations: BTreeSet<PathBuf>,
    /// Target paths that are gone, while what was written through them may not be in the bucket yet.
    #[serde(default, skip_serializing_if = "BTreeSet::is_empty")]
    pub unflushed: BTreeSet<PathBuf>,
}

impl VolumeRecord {
    /// A volume that nothing uses yet.
    pub fn new(opening: Opening, lease: Lease) -> Self {
        Self {
            format: RECORD_FORMAT,
            opening,
            lease,
            credentials: None,
            staged: BTreeMap::new(),
            published: BTreeMap::new(),
            of_allocations: BTreeSet::new(),
            unflushed: BTreeSet::new(),
        }
    }

    /// True while a path of it is asked for.
    pub fn is_used(&self) -> bool {
        !self.staged.is_empty() || !self.published.is_empty()
    }

    /// Drops a target path.
    pub fn forget(&mut self, path: &Path) {
        self.published.remove(path);
        self.of_allocations.remove(path);
    }

    /// All paths with their options: staging paths first.
    pub fn paths(&self) -> impl Iterator<Item = (&PathBuf, &BindFlags)> {
        self.staged.iter().chain(&self.published)
    }
}

/// The folder of the records.
#[derive(Debug, Clone)]
pub struct Records {
    dir: PathBuf,
}

impl Records {
    /// Opens the folder, and makes it where it does not exist.
    ///
    /// # Errors
    /// `File` if it cannot be made.
    pub fn open(dir: PathBuf) -> Result<Self, DriverError> {
        state_file::make_folder(&dir)?;
        Ok(Self { dir })
    }

    /// What has a record, in ascending order.
    ///
    /// # Errors
    /// `File` if the folder cannot be read.
    pub fn openings(&self) -> Result<Vec<Opening>, DriverError> {
        let listed = fs::read_dir(&self.dir).map_err(DriverError::file("list", &self.dir))?;
        let mut openings = Vec::new();
        for entry in listed {
            let name = entry.map_err(DriverError::file("list", &self.dir))?.file_name();
            let id = name.to_str().and_then(|name| name.strip_suffix(".json"));
            openings.extend(id.and_then(|id| Opening::parse(id).ok()));
        }
        openings.sort();
        Ok(openings)
    }

    /// The record of an opening, if it has one.
    ///
    /// # Errors
    /// `File` if it cannot be read; `Record` if it is damaged or of another format.
    pub fn load(&self, opening: &Opening) -> Result<Option<VolumeRecord>, DriverError> {
        let path = self.path(opening);
        let Some(body) = state_file::read(&path)? else {
            return Ok(None);
        };
        match serde_json::from_slice::<VolumeRecord>(&body) {
            Ok(record) if record.format == RECORD_FORMAT && record.opening == *opening => Ok(Some(record)),
            Ok(record) => {
                let what = format!("it is of volume {} in format {}", record.opening, record.format);
                let source = serde::de::Error::custom(what);
                Err(DriverError::Record { path, source })
            }
            Err(source) => Err(DriverError::Record { path, source }),
        }
    }

    /// Writes a record in place of the one before.
    ///
    /// # Durability
    /// `Ok` means that it survives a crash of the machine.
    ///
    /// # Errors
    /// `File`.
    pub fn save(&self, record: &VolumeRecord) -> Result<(), DriverError> {
        let body = serde_json::to_vec_pretty(record).expect("a record holds only what JSON can say");
        state_file::write(&self.path(&record.opening), &body)
    }

    /// Removes a record; `Ok` if there is none.
    ///
    /// # Errors
    /// `File`.
    pub fn remove(&self, opening: &Opening) -> Result<(), DriverError> {
        state_file::remove(&self.path(opening))
    }

    /// Sets a damaged record aside, so that it is no longer met, and returns its new place.
    ///
    /// # Errors
    /// `File`.
    pub fn set_aside(&self, opening: &Opening) -> Result<PathBuf, DriverError> {
        let (path, aside) = (self.path(opening), self.dir.join(format!("{opening}.damaged")));
        fs::rename(&path, &aside).map_err(DriverError::file("rename", path))?;
        Ok(aside)
    }

    fn path(&self, opening: &Opening) -> PathBuf {
        self.dir.join(format!("{opening}.json"))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    fn record() -> VolumeRecord {
        let mut record = VolumeRecord::new(Opening::parse("v1").unwrap(), Lease(7));
        record.credentials = Some(Credentials {
            access_key_id: "a".into(),
            secret_access_key: "s".into(),
            session_token: None,
        });
        record.staged.insert("/s/v 1".into(), BindFlags::default());
        record
    }

    #[test]
    fn a_record_comes_back_as_it_was_and_only_its_owner_may_read_it() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().join("volumes")).unwrap();
        records.save(&record()).unwrap();
        records.save(&record()).unwrap();
        assert_eq!(records.load(&record().opening).unwrap(), Some(record()));
        assert_eq!(records.openings().unwrap(), [record().opening]);
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode(&dir.path().join("volumes/v1.json")), 0o600);
        assert_eq!(mode(&dir.path().join("volumes")), 0o700);
        records.remove(&record().opening).unwrap();
        records.remove(&record().opening).unwrap();
        assert_eq!(records.load(&record().opening).unwrap(), None);
        assert_eq!(fs::read_dir(dir.path().join("volumes")).unwrap().count(), 0);
    }

    #[test]
    fn a_damaged_record_is_named_and_can_be_set_aside() {
        let dir = tempfile::tempdir().unwrap();
        let records = Records::open(dir.path().to_owned()).unwrap();
        fs::write(dir.path().join("v1.json"), b"{\"format\": 1, \"volu").unwrap();
        let error = records.load(&record().opening).unwrap_err().to_string();
        assert!(error.contains("v1.json"), "{error}");
        records.set_aside(&record().opening).unwrap();
        assert_eq!(records.openings().unwrap(), []);
    }
}
