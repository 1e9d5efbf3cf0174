//! From a location in a store to an open volume, with an error that says what is wrong and where.
//!
//! The order is that of the cheapest and clearest answer first: the bucket, the head, whose volume it is, and only then the
//! taking over, which others notice. Callers: `engine.rs`, `foreground.rs`. Absent: mounting.

use std::path::PathBuf;
use std::sync::Arc;

use uuid::Uuid;
use volume::attr::SetAttr;
use volume::bucket::{BucketError, BucketRef};
use volume::budget::Budget;
use volume::clock::Clock;
use volume::commit::CommitLimits;
use volume::error::FsError;
use volume::head::{Head, HeadError, HeadFile, HeadWriter, NewHead, Parameters, Settings, Transport};
use volume::ids::{InodeNo, Lease};
use volume::limits::Limits;
use volume::open::OpenError;
use volume::probe::{ProbeError, Trial, probe};
use volume::volume::{CacheConfig, OpenOptions, SpillOptions, Volume};
use volume::volume_id::{NameError, NodeId, VolumeId};
use volume_s3::{ConnectError, S3Location};

use crate::clock::SystemClock;
use crate::session::uring;
use crate::store::{Access, ReplaceableBucket, Stores};

/// The mode of a new volume's root directory.
const ROOT_MODE: u16 = 0o755;

/// Which volume to open, and how.
#[derive(Debug, Clone)]
pub struct OpenSpec {
    /// Where it lies: the folder of its head.
    pub location: S3Location,
    /// How to reach the store.
    pub access: Access,
    /// This node's name.
    pub node_id: NodeId,
    /// Open for reading only.
    pub read_only: bool,
    /// The lease that entitles this node to write; `None` for a mount by hand.
    pub lease: Option<Lease>,
    /// For a mount by hand: take the volume from whoever has it.
    pub take_over: bool,
    /// Make the volume, as this, if there is none.
    pub create: Option<Parameters>,
    /// Where to keep what was read.
    pub cache: CacheConfig,
    /// Folder on a disk that survives a reboot, for what fsync leaves there in volumes of durability `local`.
    pub state_dir: Option<PathBuf>,
    /// Ownership of the root directory of a volume that nobody has used yet.
    pub root: RootOwner,
    /// How the kernel is to reach this process; `None` leaves it to the volume.
    pub transport: Option<Transport>,
}

/// Ownership of a fresh root directory; `None` leaves root:root and 0755.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RootOwner {
    /// Owner.
    pub uid: Option<u32>,
    /// Group.
    pub gid: Option<u32>,
    /// Permission bits.
    pub mode: Option<u16>,
}

/// A connection with the kernel, across the processes that serve it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connection {
    /// Its identity.
    pub id: Uuid,
    /// An earlier process has served it.
    pub adopted: bool,
    /// A later process may serve it.
    pub outlives: bool,
}

impl Connection {
    /// One that begins; `outlives` this process if somebody keeps it.
    pub fn begin(outlives: bool) -> Self {
        Self {
            id: Uuid::new_v4(),
            adopted: false,
            outlives,
        }
    }
}

/// An open volume, and the bucket below it.
#[derive(Debug, Clone)]
pub struct Opened {
    /// The volume.
    pub volume: Volume,
    /// Its bucket, to replace credentials.
    pub bucket: Arc<ReplaceableBucket>,
    /// How the kernel is to reach this process.
    pub transport: Carried,
}

/// How the kernel is to reach the process that serves a mount, and how it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Carried {
    /// By the mount, or else by the volume.
    pub asked: Transport,
    /// What this machine can.
    pub by: Transport,
}

/// Why a volume could not be opened: where, and what.
#[derive(Debug, thiserror::Error)]
#[error("volume {location}: {refusal}")]
pub struct OpenFailed {
    /// The volume's place.
    pub location: S3Location,
    /// What is wrong.
    #[source]
    pub refusal: Refusal,
}

/// What is wrong with opening a volume.
#[derive(Debug, thiserror::Error)]
pub enum Refusal {
    /// The options for the store cannot work.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The bucket is not there, not ours, or does not answer.
    #[error(transparent)]
    Bucket(#[from] BucketError),
    /// The store's conditional puts do not hold.
    #[error(transparent)]
    Store(#[from] ProbeError),
    /// Nothing here, and nobody asked to create it.
    #[error("there is no volume here (its head does not exist)")]
    Missing,
    /// The last part of the prefix cannot be the name of a new volume.
    #[error("a volume cannot be created here: {0}")]
    Name(#[from] NameError),
    /// The head is damaged, of another version, or gives the volume to another node.
    #[error(transparent)]
    Head(HeadError),
    /// Another node has it mounted by hand, or died while it had.
    #[error("node {node_id} has it mounted, or ended without unmounting; taking it over makes that node's writes fail")]
    Led {
        /// The other node.
        node_id: NodeId,
    },
    /// Taking it over or reading its tree failed.
    #[error(transparent)]
    Open(OpenError),
    /// The root directory could not be given its owner.
    #[error("the root directory cannot be given its owner: {0}")]
    Root(#[from] FsError),
}

impl From<HeadError> for Refusal {
    fn from(error: HeadError) -> Self {
        match error {
            HeadError::Missing => Refusal::Missing,
            HeadError::Bucket(error) => Refusal::Bucket(error),
            error => Refusal::Head(error),
        }
    }
}

impl From<OpenError> for Refusal {
    fn from(error: OpenError) -> Self {
        match error {
            OpenError::Head(error) => error.into(),
            OpenError::Bucket(error) => Refusal::Bucket(error),
            error => Refusal::Open(error),
        }
    }
}

/// Opens a volume for a connection.
///
/// # Errors
/// `OpenFailed`; then nothing was taken over, or what was taken over is without a writer until the next opening.
pub async fn open(spec: &OpenSpec, of: Connection, shared: (&Stores, &Budget)) -> Result<Opened, OpenFailed> {
    open_in(spec, of, shared).await.map_err(|refusal| OpenFailed {
        location: spec.location.clone(),
        refusal,
    })
}

async fn open_in(spec: &OpenSpec, of: Connection, (stores, budget): (&Stores, &Budget)) -> Result<Opened, Refusal> {
    let store = stores.store(&spec.access).await?;
    let bucket = Arc::new(ReplaceableBucket::new(&store, &spec.location.bucket));
    let root = bucket.root(&spec.location);
    let head = HeadFile::new(root.clone(), HeadWriter::new(Uuid::new_v4()));
    let verify = async {
        let verified = store.bucket(&spec.location.bucket).verify().await;
        verified.map_err(Refusal::from)
    };
    // Beside each other, but a store that is not there is told as soon as that is known.
    let ((), found) = tokio::try_join!(verify, async { Ok(head.read().await) })?;
    let found = match found {
        Err(HeadError::Missing) => match spec.create {
            Some(parameters) => create(spec, parameters, (&root, &head)).await?,
            None => return Err(Refusal::Missing),
        },
        found => found?,
    };
    if !spec.read_only && spec.lease.is_none() {
        clear_the_way(spec, &head, &found).await?;
    }
    let transport = carried(spec.transport.or(found.parameters.settings.transport), (of, spec));
    let options = OpenOptions {
        node_id: spec.node_id.clone(),
        read_only: spec.read_only,
        claim: spec.lease,
        cache: cache_of(spec, &found.parameters.settings),
        state_dir: spec.state_dir.clone(),
        spill: boot_id().map(|boot| SpillOptions {
            boot,
            connection: of.id,
            adopts: of.adopted,
            leaves: of.outlives && transport.by == Transport::Classic,
        }),
        limits: Limits {
            budget: budget.clone(),
            ..Limits::default()
        },
        commits: CommitLimits::default(),
        clock: Arc::new(SystemClock),
    };
    let volume = Volume::open(root, options).await?;
    if !spec.read_only && !of.adopted {
        own_root(&volume, owner_of(spec.root, &found.parameters.settings)).await?;
    }
    Ok(Opened {
        volume,
        bucket,
        transport,
    })
}

/// What this machine can of what is asked. A connection that was kept is a classic one, or it would have ended.
fn carried(asked: Option<Transport>, (of, spec): (Connection, &OpenSpec)) -> Carried {
    let asked = asked.unwrap_or_default();
    let can = match asked {
        Transport::Classic => false,
        Transport::IoUring if of.adopted => false,
        Transport::IoUring => match uring::available() {
            Ok(()) => true,
            Err(why) => {
                why.tell_of(&spec.location);
                false
            }
        },
    };
    let by = if can { Transport::IoUring } else { Transport::Classic };
    Carried { asked, by }
}

/// Which start of this machine it is.
fn boot_id() -> Option<Uuid> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Uuid::parse_str(text.trim()).ok()
}

/// What the volume was created with goes before what this node gives all volumes.
fn cache_of(spec: &OpenSpec, settings: &Settings) -> CacheConfig {
    CacheConfig {
        dir: spec.cache.dir.clone(),
        ram_bytes: settings.cache_ram_bytes.unwrap_or(spec.cache.ram_bytes),
        disk_bytes: settings.cache_disk_bytes.unwrap_or(spec.cache.disk_bytes),
    }
}

/// What this mount asks for goes before what the volume was created with.
fn owner_of(asked: RootOwner, settings: &Settings) -> RootOwner {
    RootOwner {
        uid: asked.uid.or(settings.uid),
        gid: asked.gid.or(settings.gid),
        mode: asked.mode.or(settings.mode),
    }
}

async fn create(
    spec: &OpenSpec,
    parameters: Parameters,
    (root, head): (&BucketRef, &HeadFile),
) -> Result<Head, Refusal> {
    let prefix = spec.location.prefix.trim_end_matches('/');
    let name = match prefix.rsplit('/').next() {
        Some(last) if !last.is_empty() => last,
        _ => &spec.location.bucket,
    };
    let volume = VolumeId::of_name(name)?;
    let uuid = Uuid::new_v4();
    probe(root, "probe/", uuid, Trial::default()).await?;
    let new = NewHead {
        name: name.to_owned(),
        volume,
        uuid,
        capacity_bytes: 0,
        parameters,
        now: SystemClock.now(),
    };
    match head.create(Head::new(new)).await {
        // Somebody else was quicker: theirs is as good.
        Err(HeadError::Exists) => Ok(head.read().await?),
        created => Ok(created?),
    }
}

/// A mount by hand is polite: what another node has it takes only if told to.
async fn clear_the_way(spec: &OpenSpec, head: &HeadFile, found: &Head) -> Result<(), Refusal> {
    if spec.take_over {
        let withdraw = |head: &mut Head| {
            head.publications.clear();
            Ok::<_, HeadError>(())
        };
        head.update(withdraw).await?;
        return Ok(());
    }
    if let Some(publication) = found.publications.first() {
        let (volume, node_id) = (found.volume.clone(), publication.node_id.clone());
        return Err(Refusal::Head(HeadError::Published { volume, node_id }));
    }
    match found.rightful_leader() {
        Some(leader) if leader.node_id != spec.node_id => Err(Refusal::Led {
            node_id: leader.node_id.clone(),
        }),
        Some(_) | None => Ok(()),
    }
}

/// Gives the root directory its owner while it is as it was made: what somebody chose later stays.
async fn own_root(volume: &Volume, owner: RootOwner) -> Result<(), Refusal> {
    if owner == RootOwner::default() {
        return Ok(());
    }
    let root = volume.getattr(InodeNo::ROOT).await?;
    if (root.uid, root.gid, root.mode) != (0, 0, ROOT_MODE) {
        return Ok(());
    }
    let change = SetAttr {
        mode: owner.mode,
        uid: owner.uid,
        gid: owner.gid,
        ..SetAttr::default()
    };
    volume.setattr(InodeNo::ROOT, &change).await?;
    Ok(())
}
