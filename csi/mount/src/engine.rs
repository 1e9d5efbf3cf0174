//! The engine: all volumes of a node in one process, each opened once and mounted in one place or several.
//!
//! Invariants: a volume is open at most once for writing; its further mountpoints show the same connection (two connections
//! would each believe their own caches). A mount that cannot be flushed in time stays and serves. When the last
//! mountpoint is gone the volume is closed, whoever unmounted it.
//! Locks: `table` is held for moments only; a volume's own lock (`Table::locks`) is held across a mount or unmount, and is
//! taken before `table`. Callers: `engine/server.rs` (gRPC), `engine/process.rs`. What outlives this process is in `engine/kept.rs`.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::time::{Instant, timeout_at};
use volume::budget::Budget;
use volume::clock::Clock;
use volume::commit::Lost;
use volume::error::FsError;
use volume::head::HeadError;
use volume::ids::Lease;
use volume::outage::Outage;
use volume::volume::{Volume, VolumeInfo};
use volume::volume_id::NodeId;
use volume_s3::{ConnectError, S3Location};

use crate::clock::{SystemClock, unix_ms};
use crate::keeper::KeeperClient;
use crate::mountpoint::{self, AttachOptions, MountpointError};
use crate::open::{Carried, Connection, OpenFailed, OpenSpec, Opened, open};
use crate::session::{Session, SessionError, Succession, blocking, flush, unmount};
use crate::store::{Access, Keys, Stores};

mod ending;
mod kept;
pub(crate) mod leftovers;
mod look;
mod metrics;
pub mod process;
mod server;
mod status;
mod table;

use ending::IfUsed;
use kept::Left;
use leftovers::Ledger;
pub use look::LOOK_EVERY;
pub use status::status_of;
use table::{Served, ServedKey, Shown, Table, infos};

/// What to mount where.
#[derive(Debug, Clone)]
pub struct MountSpec {
    /// The caller's name for the volume.
    pub volume_id: String,
    /// The volume.
    pub open: OpenSpec,
    /// An existing, empty folder.
    pub mountpoint: PathBuf,
    /// Do not allow programs to be run from it.
    pub noexec: bool,
    /// Do not honour set-user-id bits.
    pub nosuid: bool,
}

/// One mount, as it is now.
#[derive(Debug, Clone)]
pub struct MountInfo {
    /// The caller's name for the volume.
    pub volume_id: String,
    /// Where; empty for a volume that lost its last mountpoint while programs still use it.
    pub mountpoint: PathBuf,
    /// True if this mountpoint cannot write.
    pub read_only: bool,
    /// What the volume is.
    pub volume: VolumeInfo,
    /// Bytes that are not in the bucket yet.
    pub dirty_bytes: u64,
    /// Why no write will be acknowledged any more, if so.
    pub lost: Option<Lost>,
    /// What is wrong with the store, if anything is.
    pub outage: Option<Outage>,
    /// Since when, in milliseconds since the Unix epoch.
    pub since_unix_ms: u64,
    /// Where the volume lies.
    pub location: S3Location,
    /// How its store is reached.
    pub access: Access,
    /// In whose name.
    pub node_id: NodeId,
    /// By which lease.
    pub lease: Option<Lease>,
    /// How the kernel reaches this process.
    pub transport: Carried,
}

/// What an unmount did.
#[derive(Debug, Clone, Default)]
pub struct Unmounted {
    /// Mountpoints freed.
    pub count: u32,
    /// Set if a volume had been lost before: what was not acknowledged by then is gone.
    pub lost: Option<Lost>,
}

/// Why the engine refused or failed. `engine/status.rs` is the only place that turns it into a gRPC status.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// The folder.
    #[error(transparent)]
    Mountpoint(#[from] MountpointError),
    /// The volume.
    #[error(transparent)]
    Open(#[from] OpenFailed),
    /// The connection to the kernel.
    #[error(transparent)]
    Session(#[from] SessionError),
    /// The options for the store.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The mountpoint shows another volume of this engine.
    #[error("{} is the mountpoint of volume {volume_id}", path.display())]
    OtherVolume {
        /// The mountpoint.
        path: PathBuf,
        /// The volume mounted there.
        volume_id: String,
    },
    /// Nothing of that name or place.
    #[error("nothing is mounted as {what}")]
    NotMounted {
        /// What was asked for.
        what: String,
    },
    /// It has no mountpoint any more, but programs keep it open.
    #[error("volume {volume_id} was unmounted, but programs or other mount namespaces still use it")]
    StillUsed {
        /// The volume.
        volume_id: String,
    },
    /// It was lost to another writer and must be unmounted first.
    #[error("volume {volume_id} is mounted here, but lost: {lost}; unmount it first")]
    IsLost {
        /// The volume.
        volume_id: String,
        /// Why.
        lost: Lost,
    },
    /// The time was up.
    #[error("volume {volume_id} still has {dirty_bytes} bytes that are not in the bucket; it stays mounted")]
    Deadline {
        /// The volume.
        volume_id: String,
        /// What is left.
        dirty_bytes: u64,
    },
    /// The head cannot be read.
    #[error("volume {volume_id}: {source}")]
    Head {
        /// The volume.
        volume_id: String,
        /// Why not.
        source: HeadError,
    },
    /// Flushing failed.
    #[error("volume {volume_id} could not be flushed: {source}")]
    Flush {
        /// The volume.
        volume_id: String,
        /// Why.
        source: FsError,
    },
}

/// The engine. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Engine {
    inner: Arc<Inner>,
}

#[derive(Debug)]
struct Inner {
    table: Mutex<Table>,
    stores: Stores,
    ledger: Ledger,
    look_every: Duration,
    /// Memory for all volumes.
    budget: Budget,
    /// What holds the connections when this process ends.
    keeper: Option<KeeperClient>,
    /// How a new connection is prepared for the next engine.
    succession: Succession,
}

impl Engine {
    /// An engine without mounts; `ledger` is where it notes them for its successor, `budget` what they may have in memory.
    fn new(ledger: Ledger, look_every: Duration, budget: Budget, keeper: Option<(KeeperClient, Succession)>) -> Self {
        let (keeper, succession) = match keeper {
            None => (None, Succession::None),
            Some((keeper, succession)) => (Some(keeper), succession),
        };
        let inner = Inner {
            table: Mutex::default(),
            stores: Stores::default(),
            ledger,
            look_every,
            budget,
            keeper,
            succession,
        };
        Self { inner: Arc::new(inner) }
    }

    /// Mounts a volume; a mount that is there already stays as it is.
    ///
    /// # Errors
    /// `Mountpoint`, `Open`, `Session`, `OtherVolume`, `StillUsed`, `IsLost`.
    pub async fn mount(&self, spec: MountSpec) -> Result<MountInfo, EngineError> {
        let _held = self.lock(&spec.volume_id).await;
        self.forget_vanished();
        if let Some(info) = self.info_at(&spec.mountpoint) {
            if info.volume_id == spec.volume_id && info.read_only == spec.open.read_only {
                return Ok(info);
            }
            return Err(EngineError::OtherVolume {
                path: info.mountpoint,
                volume_id: info.volume_id,
            });
        }
        let path = blocking(&spec.mountpoint, mountpoint::check).await?;
        self.await_endings(&spec.volume_id).await?;
        match self.served_for(&spec) {
            Some((key, served)) => self.show_again(&spec, path.clone(), key, &served).await?,
            None => self.serve(&spec, path.clone()).await?,
        }
        self.note();
        self.info_at(&path).ok_or(EngineError::NotMounted {
            what: path.display().to_string(),
        })
    }

    /// Flushes the mount at `path` and takes it off; the last one of a volume closes the volume.
    ///
    /// # Durability
    /// After `Ok` everything written to it is in the bucket, unless the answer says that it was lost before.
    ///
    /// # Errors
    /// `Deadline` and `Flush`, with the mount still there; `Mountpoint` if it is busy; `StillUsed`.
    pub async fn unmount(&self, path: &Path, until: Instant, detach_busy: bool) -> Result<Unmounted, EngineError> {
        self.forget_vanished();
        let Some((key, _)) = self.find(path) else {
            return remove_dead(path).await;
        };
        let _held = self.lock(&key.volume_id).await;
        let Some((key, served)) = self.find(path) else {
            return Ok(Unmounted::default());
        };
        let lost = flush_until(&key, &served, path, until).await?;
        match timeout_at(until, unmount(path, detach_busy)).await {
            Ok(done) => done?,
            Err(_) => return Err(deadline(&key, &served)),
        }
        let last = self.remove(&key, path);
        self.keep_again(&key);
        self.note();
        if let Some(served) = last {
            self.await_close(&key, &served, until, IfUsed::told(detach_busy))
                .await?;
        }
        Ok(Unmounted { count: 1, lost })
    }

    /// Flushes the mount at `path`.
    ///
    /// # Durability
    /// After `Ok` everything written to it is in the bucket, unless the answer says that it was lost before.
    ///
    /// # Errors
    /// `NotMounted`, `Deadline`, `Flush`.
    pub async fn flush(&self, path: &Path, until: Instant) -> Result<Option<Lost>, EngineError> {
        let Some((key, served)) = self.find(path) else {
            let what = path.display().to_string();
            return Err(EngineError::NotMounted { what });
        };
        flush_until(&key, &served, path, until).await
    }

    /// `unmount` for all mountpoints of a volume, and for what is left of one that has none.
    ///
    /// # Errors
    /// Those of `unmount`, at the first mountpoint that has one.
    pub async fn unmount_volume(
        &self,
        volume_id: &str,
        until: Instant,
        detach_busy: bool,
    ) -> Result<Unmounted, EngineError> {
        let mut all = Unmounted::default();
        for path in self.paths_of(volume_id) {
            let one = self.unmount(&path, until, detach_busy).await?;
            all.count += one.count;
            all.lost = all.lost.or(one.lost);
        }
        for read_only in [false, true] {
            let key = ServedKey {
                volume_id: volume_id.to_owned(),
                read_only,
            };
            let left = self.table().served.get(&key).cloned();
            if let Some(served) = left {
                self.await_close(&key, &served, until, IfUsed::told(detach_busy))
                    .await?;
            }
        }
        Ok(all)
    }

    /// Flushes and unmounts everything, one volume beside the other.
    ///
    /// # Errors
    /// The first failure; what could be unmounted is.
    pub async fn unmount_all(&self, until: Instant) -> Result<(), EngineError> {
        let mut volumes: Vec<String> = self.table().served.keys().map(|key| key.volume_id.clone()).collect();
        volumes.dedup();
        let all = volumes
            .iter()
            .map(|volume_id| self.unmount_volume(volume_id, until, true));
        futures::future::join_all(all)
            .await
            .into_iter()
            .find_map(Result::err)
            .map_or(Ok(()), Err)
    }

    /// All mounts, by mountpoint. Never waits for a store or a mount.
    pub fn mounts(&self) -> Vec<MountInfo> {
        self.forget_vanished();
        let table = self.table();
        let mut mounts: Vec<_> = table
            .served
            .iter()
            .flat_map(|(key, served)| infos(key, served))
            .collect();
        mounts.sort_by(|a, b| a.mountpoint.cmp(&b.mountpoint));
        mounts
    }

    /// The mount at `path`, and its space.
    ///
    /// # Errors
    /// `NotMounted`.
    pub fn stats(&self, path: &Path) -> Result<(MountInfo, volume::attr::StatFs), EngineError> {
        let not_mounted = || EngineError::NotMounted {
            what: path.display().to_string(),
        };
        let info = self.info_at(path).ok_or_else(not_mounted)?;
        let (_, served) = self.find(path).ok_or_else(not_mounted)?;
        Ok((info, served.volume.statfs()))
    }

    /// Changes the capacity that an open volume enforces; `None` for no limit.
    ///
    /// # Errors
    /// `NotMounted`.
    pub fn set_capacity(&self, volume_id: &str, capacity_bytes: Option<u64>) -> Result<(), EngineError> {
        for served in self.all_of(volume_id)? {
            served.volume.set_capacity_bytes(capacity_bytes);
        }
        Ok(())
    }

    /// Signs the requests of an open volume with other keys from now on.
    ///
    /// # Errors
    /// `NotMounted`, `Connect`.
    pub async fn set_credentials(&self, volume_id: &str, keys: Option<Keys>) -> Result<(), EngineError> {
        for served in self.all_of(volume_id)? {
            let access = Access {
                keys: keys.clone(),
                ..served.spec.access
            };
            served.bucket.replace(&self.inner.stores.store(&access).await?);
            self.take_access(volume_id, &access);
        }
        Ok(())
    }
}

/// The parts of a mount.
impl Engine {
    async fn serve(&self, spec: &MountSpec, path: PathBuf) -> Result<(), EngineError> {
        let connection = Connection::begin(self.inner.succession != Succession::None);
        let opened = open(&spec.open, connection, (&self.inner.stores, &self.inner.budget)).await?;
        let Opened {
            volume,
            bucket,
            transport,
        } = opened;
        let options = AttachOptions {
            source: spec.open.location.to_string(),
            read_only: spec.open.read_only,
            noexec: spec.noexec,
            nosuid: spec.nosuid,
            transport: transport.by,
        };
        let since_unix_ms = unix_ms(SystemClock.now());
        let shown = Shown {
            read_only: spec.open.read_only,
            since_unix_ms,
        };
        let mountpoints = BTreeMap::from([(path.clone(), shown)]);
        let started = {
            let (of, engine, runtime) = (volume.clone(), self.clone(), Handle::current());
            let (spec, mountpoints) = (spec.clone(), mountpoints.clone());
            let survives = of.survives();
            let succession = match survives {
                true => self.inner.succession,
                false => Succession::None,
            };
            blocking(&path, move |path| {
                let attached = Session::attach(of, path, &options, succession, &runtime)?;
                let left = Left {
                    spec,
                    mountpoints,
                    connection: connection.id,
                    greeting: attached.greeting.clone(),
                    since_unix_ms,
                };
                engine.keep_new(&left, &attached, survives);
                attached.serve(path)
            })
            .await
        };
        let key = ServedKey {
            volume_id: spec.volume_id.clone(),
            read_only: spec.open.read_only,
        };
        let session = match started {
            Ok(session) => session,
            Err(error) => {
                close(&spec.volume_id, &volume).await;
                self.keep_no_more(&key);
                return Err(error.into());
            }
        };
        let closed = self.close_at_end(key.clone(), session.clone(), volume.clone());
        let served = Served {
            volume,
            bucket,
            session,
            closed,
            device: ending::device_of([&path].into_iter()),
            asked: transport.asked,
            let_go: false,
            spec: spec.open.clone(),
            since_unix_ms,
            mountpoints,
        };
        self.keep_looking(key.clone(), served.closed.clone());
        self.table().served.insert(key, served);
        Ok(())
    }

    /// What the requests of a volume are signed with is what its next engine signs them with.
    fn take_access(&self, volume_id: &str, access: &Access) {
        for read_only in [false, true] {
            let key = ServedKey {
                volume_id: volume_id.to_owned(),
                read_only,
            };
            if let Some(served) = self.table().served.get_mut(&key) {
                served.spec.access = access.clone();
            }
            self.keep_again(&key);
        }
    }

    async fn show_again(
        &self,
        spec: &MountSpec,
        path: PathBuf,
        key: ServedKey,
        served: &Served,
    ) -> Result<(), EngineError> {
        let volume_id = key.volume_id.clone();
        if let Some(lost) = served.volume.lost() {
            return Err(EngineError::IsLost { volume_id, lost });
        }
        let Some(first) = served.mountpoints.keys().next().cloned() else {
            return Err(EngineError::StillUsed { volume_id });
        };
        let read_only = spec.open.read_only;
        blocking(&path, move |path| mountpoint::attach_again(&first, path, read_only)).await?;
        let shown = Shown {
            read_only,
            since_unix_ms: unix_ms(SystemClock.now()),
        };
        if let Some(served) = self.table().served.get_mut(&key) {
            served.mountpoints.insert(path, shown);
        }
        self.keep_again(&key);
        Ok(())
    }

    /// Closes the volume once nobody can reach it any more, and forgets it then.
    fn close_at_end(&self, key: ServedKey, session: Session, volume: Volume) -> watch::Receiver<bool> {
        let (tell, closed) = watch::channel(false);
        let engine = self.clone();
        tokio::spawn(async move {
            session.ended().await;
            close(&key.volume_id, &volume).await;
            engine.table().served.remove(&key);
            engine.keep_no_more(&key);
            engine.note();
            tell.send_replace(true);
        });
        closed
    }
}

/// Flushes, or tells why not. A volume that was lost has nothing left to flush: unmounting it must be possible.
async fn flush_until(
    key: &ServedKey,
    served: &Served,
    path: &Path,
    until: Instant,
) -> Result<Option<Lost>, EngineError> {
    let flushed = match served.volume.lost() {
        Some(lost) => return Ok(Some(lost)),
        None => timeout_at(until, flush(&served.volume, path)).await,
    };
    match flushed {
        Ok(Ok(())) => Ok(None),
        Ok(Err(FsError::Lost(lost))) => Ok(Some(lost)),
        Ok(Err(source)) => Err(EngineError::Flush {
            volume_id: key.volume_id.clone(),
            source,
        }),
        Err(_) => Err(deadline(key, served)),
    }
}

fn deadline(key: &ServedKey, served: &Served) -> EngineError {
    EngineError::Deadline {
        volume_id: key.volume_id.clone(),
        dirty_bytes: served.volume.dirty_bytes(),
    }
}

async fn close(volume_id: &str, volume: &Volume) {
    match volume.close().await {
        Ok(()) => tracing::info!(volume_id, "the volume is closed, everything is in the bucket"),
        Err(error) => tracing::error!(volume_id, %error, "the volume ended without a clean close"),
    }
}

/// Nothing of ours is at `path`; but a mount whose engine died may be.
async fn remove_dead(path: &Path) -> Result<Unmounted, EngineError> {
    let removed = blocking(path, leftovers::remove_if_dead).await?;
    Ok(Unmounted {
        count: u32::from(removed),
        lost: None,
    })
}
