//! An engine and a mount table in memory, for tests of what is above the port.
//!
//! It behaves: what is mounted is in the table, a bind shares its source's device, an engine that ends leaves its
//! mounts dead, and a new one begins with none. Tests make it fail on purpose by the methods of `FakeMounter` itself.
//! Absent: file content, and leases.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::time::Duration;

use async_trait::async_trait;
use volume::volume_id::VolumeId;

use super::{Answer, MountError, MountSpec, Mounter, Served, Usage};
use crate::capability::{BindFlags, Owner};
use crate::credentials::Credentials;
use crate::mountinfo::{self, Device, MountPoint};
use crate::opening::Opening;

/// What every healthy mount says of itself.
pub const USAGE: Usage = Usage {
    total_bytes: 1 << 30,
    free_bytes: 1 << 29,
    inodes: 1_000,
    free_inodes: 900,
};

/// A node without an engine, until the first mount.
#[derive(Debug, Default)]
pub struct FakeMounter {
    /// Held for the length of one verb, never across an await.
    node: Mutex<Node>,
    /// While a test holds it, every unmount and flush waits.
    gate: tokio::sync::Mutex<()>,
    /// Told by `kill_engine`.
    ended: tokio::sync::Notify,
}

#[derive(Debug, Default)]
struct Node {
    table: Vec<MountPoint>,
    served: BTreeMap<Opening, (MountSpec, Device)>,
    lost: BTreeMap<Opening, String>,
    silent: Vec<PathBuf>,
    devices: u32,
    mounts: Vec<MountSpec>,
    flushes: u32,
    owners: Vec<(PathBuf, Owner)>,
    refuse: Option<String>,
    store_down: bool,
}

impl FakeMounter {
    /// A node where nothing is mounted.
    pub fn new() -> Self {
        Self::default()
    }

    /// Ends the engine as kill -9 would: its mounts stay in the table and are dead.
    pub fn kill_engine(&self) {
        self.node().served.clear();
        self.ended.notify_one();
    }

    /// Says that a volume was taken over by another node.
    pub fn lose(&self, volume: &VolumeId, why: &str) {
        self.node().lost.insert(Opening::writing(volume), why.to_owned());
    }

    /// Makes a path answer no more, as a mount of a stuck engine would.
    pub fn silence(&self, path: &Path) {
        self.node().silent.push(path.to_owned());
    }

    /// Refuses all mounts from now on, as if another node held the volume; `None` accepts them again.
    pub fn refuse_mounts(&self, why: Option<&str>) {
        self.node().refuse = why.map(str::to_owned);
    }

    /// Lets flushes and unmounts fail, as they do while the store is away.
    pub fn store_down(&self, down: bool) {
        self.node().store_down = down;
    }

    /// Mounts something else at a path, as an operator might.
    pub fn mount_foreign(&self, path: &Path, source: &str) {
        let mut node = self.node();
        let device = node.next_device();
        node.table.push(row(path, device, "ext4", source));
    }

    /// Flushes and unmounts wait until the guard is dropped.
    pub async fn hold_flushes(&self) -> tokio::sync::MutexGuard<'_, ()> {
        self.gate.lock().await
    }

    /// Every mount that the engine made, in order.
    pub fn mounts(&self) -> Vec<MountSpec> {
        self.node().mounts.clone()
    }

    /// How many flushes and unmounts have succeeded.
    pub fn flushes(&self) -> u32 {
        self.node().flushes
    }

    /// Who was given which top directory, in order.
    pub fn owners(&self) -> Vec<(PathBuf, Owner)> {
        self.node().owners.clone()
    }

    /// Access key ids that the engine signs with, by what it has mounted.
    pub fn keys(&self) -> Vec<(Opening, Option<String>)> {
        let node = self.node();
        let id = |spec: &MountSpec| spec.credentials.as_ref().map(|keys| keys.access_key_id.clone());
        let all = node.served.iter();
        all.map(|(opening, (spec, _))| (opening.clone(), id(spec))).collect()
    }

    /// Paths of all mounts, in the order of the table.
    pub fn paths(&self) -> Vec<PathBuf> {
        self.node().table.iter().map(|mount| mount.path.clone()).collect()
    }

    fn node(&self) -> std::sync::MutexGuard<'_, Node> {
        self.node.lock().expect("no verb panics while it holds the node")
    }
}

impl Node {
    fn next_device(&mut self) -> Device {
        self.devices += 1;
        Device {
            major: 0,
            minor: self.devices,
        }
    }

    fn detach(&mut self, path: &Path) {
        if let Some(top) = self.table.iter().rposition(|mount| mount.path == path) {
            self.table.remove(top);
        }
    }

    fn check_store(&self) -> Result<(), MountError> {
        if self.store_down {
            return Err(MountError::Unavailable {
                detail: "the store did not answer".into(),
            });
        }
        Ok(())
    }
}

#[async_trait]
impl Mounter for FakeMounter {
    async fn engine_ended(&self) {
        self.ended.notified().await;
    }

    async fn mount(&self, spec: &MountSpec) -> Result<(), MountError> {
        let mut node = self.node();
        node.check_store()?;
        if let Some(why) = &node.refuse {
            return Err(MountError::Held { detail: why.clone() });
        }
        if node.served.get(&spec.opening).is_some_and(|(served, _)| served == spec) {
            return Ok(());
        }
        assert!(spec.path.is_dir(), "{} is no directory", spec.path.display());
        assert!(
            mountinfo::top_at(&node.table, &spec.path).is_none(),
            "{} is a mount already",
            spec.path.display()
        );
        let device = node.next_device();
        let source = format!("pannier:{}", spec.opening);
        node.table.push(row(&spec.path, device, "fuse.pannier", &source));
        node.lost.remove(&spec.opening);
        node.served.insert(spec.opening.clone(), (spec.clone(), device));
        node.mounts.push(spec.clone());
        Ok(())
    }

    async fn unmount(&self, opening: &Opening) -> Result<(), MountError> {
        let _gate = self.gate.lock().await;
        let mut node = self.node();
        if !node.served.contains_key(opening) {
            return Ok(());
        }
        node.check_store()?;
        if let Some(why) = node.lost.get(opening) {
            return Err(MountError::Damaged { detail: why.clone() });
        }
        let (spec, _) = node.served.remove(opening).expect("it was there a line ago");
        node.detach(&spec.path);
        node.flushes += 1;
        Ok(())
    }

    async fn renew(&self, opening: &Opening, credentials: &Credentials) -> Result<(), MountError> {
        if let Some((spec, _)) = self.node().served.get_mut(opening) {
            spec.credentials = Some(credentials.clone());
        }
        Ok(())
    }

    async fn look(&self, _: &Opening) -> Result<Option<u64>, MountError> {
        Ok(None)
    }

    async fn served(&self) -> Result<Vec<Served>, MountError> {
        let node = self.node();
        let all = node.served.iter().map(|(opening, (spec, _))| Served {
            opening: opening.clone(),
            path: spec.path.clone(),
            lost: node.lost.get(opening).cloned(),
            outage: None,
        });
        Ok(all.collect())
    }

    async fn table(&self) -> Result<Vec<MountPoint>, MountError> {
        Ok(self.node().table.clone())
    }

    async fn probe(&self, path: &Path) -> Answer {
        let node = self.node();
        if node.silent.iter().any(|silent| silent == path) {
            return Answer::Silent;
        }
        match mountinfo::top_at(&node.table, path) {
            Some(mount) if mount.fs_type == "ext4" => Answer::Alive(USAGE),
            Some(mount) if node.served.values().any(|(_, device)| *device == mount.device) => Answer::Alive(USAGE),
            Some(_) => Answer::Dead,
            None if path.exists() => Answer::Alive(USAGE),
            None => Answer::Gone,
        }
    }

    async fn flush(&self, _path: &Path, _limit: Duration) -> Result<(), MountError> {
        let _gate = self.gate.lock().await;
        let mut node = self.node();
        node.check_store()?;
        node.flushes += 1;
        Ok(())
    }

    async fn bind(&self, source: &Path, target: &Path, flags: BindFlags) -> Result<(), MountError> {
        let mut node = self.node();
        assert!(target.is_dir(), "{} is no directory", target.display());
        let found = mountinfo::top_at(&node.table, source)
            .expect("only mounts are bound")
            .clone();
        node.table.push(MountPoint {
            path: target.to_owned(),
            read_only: flags.read_only,
            ..found
        });
        Ok(())
    }

    async fn own(&self, path: &Path, owner: Owner) -> Result<(), MountError> {
        self.node().owners.push((path.to_owned(), owner));
        Ok(())
    }

    async fn detach(&self, path: &Path) -> Result<(), MountError> {
        self.node().detach(path);
        Ok(())
    }
}

fn row(path: &Path, device: Device, fs_type: &str, source: &str) -> MountPoint {
    MountPoint {
        device,
        root: "/".into(),
        path: path.to_owned(),
        read_only: false,
        shared: false,
        fs_type: fs_type.to_owned(),
        source: source.to_owned(),
    }
}
