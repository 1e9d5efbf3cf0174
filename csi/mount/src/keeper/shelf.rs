//! What a keeper keeps: here, and in the service manager's store where there is one.
//!
//! Invariant: what is kept here lies in that store too, and what is let go here is taken out of it. Caller: `keeper.rs`. Absent: who
//! may keep what, and who gets it.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;

use super::secret::Secret;
use super::service_manager::ServiceManager;

/// A connection with what the next engine needs.
#[derive(Debug)]
pub(super) struct Shelved {
    pub connection: OwnedFd,
    /// What an engine must be able to read to take it.
    pub needs: u32,
    pub beside: Secret,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Shelf {
    kept: BTreeMap<Vec<u8>, Shelved>,
    service_manager: ServiceManager,
}

impl Shelf {
    /// With what the keeper before has left with the service manager.
    pub fn of(service_manager: ServiceManager) -> Self {
        Self {
            kept: service_manager.left().into_iter().collect(),
            service_manager,
        }
    }

    /// True if nothing is kept.
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// How much is kept.
    pub fn len(&self) -> usize {
        self.kept.len()
    }

    /// All of it, by key.
    pub fn iter(&self) -> impl Iterator<Item = (&Vec<u8>, &Shelved)> {
        self.kept.iter()
    }

    /// What an engine must be able to read to take all of it.
    pub fn needs(&self) -> Option<u32> {
        self.kept.values().map(|shelved| shelved.needs).max()
    }

    /// Keeps a connection, or the one that is kept by this key already, with other words beside it. False if there is neither.
    pub fn keep(&mut self, key: Vec<u8>, connection: Option<OwnedFd>, (needs, beside): (u32, Secret)) -> bool {
        let before = self.kept.remove(&key);
        let replaces = before.is_some();
        let Some(connection) = connection.or(before.map(|before| before.connection)) else {
            return false;
        };
        let shelved = Shelved {
            connection,
            needs,
            beside,
        };
        self.service_manager.keep(&key, &shelved, replaces);
        self.kept.insert(key, shelved);
        true
    }

    /// Lets a connection go.
    pub fn forget(&mut self, key: &[u8]) {
        self.kept.remove(key);
        self.service_manager.forget(key);
    }

    /// Lets all of them go.
    pub fn clear(&mut self) {
        for key in std::mem::take(&mut self.kept).into_keys() {
            self.service_manager.forget(&key);
        }
    }
}
