//! One value of every error that a call of the CSI plugin can end with. An error that is added and has no value here does
//! not compile.

use std::io;
use std::time::Duration;

use csi_driver::error::{DriverError, Fault};
use csi_driver::grpc::from_engine;
use csi_driver::mounter::MountError;
use csi_driver::mountinfo::MalformedLine;
use volume::admin::AdminError;
use volume::bucket::BucketError;
use volume::commit::Lost;
use volume::error::FsError;
use volume::head::{AccessMode, HeadError, ParameterError};
use volume::holds::HoldsError;
use volume::ids::{Epoch, Lease};
use volume::open::OpenError;
use volume::probe::ProbeError;
use volume::tail::TailError;
use volume::tree::TreeError;
use volume::volume_id::{NameError, NodeId, SnapshotId, VolumeId};
use volume_mount::engine::{EngineError, status_of};
use volume_mount::mountpoint::MountpointError;
use volume_mount::open::{OpenFailed, Refusal};
use volume_mount::session::SessionError;
use volume_s3::{ConnectError, TrustError};

/// A function that returns one value of each variant: the match has an arm for each pattern of the list and no other.
macro_rules! every {
    ($name:ident: $type:ty { $($pattern:pat => $value:expr),+ $(,)? }) => {
        fn $name() -> Vec<$type> {
            let known = |one: &$type| match one { $($pattern => {}),+ };
            let mut all: Vec<$type> = Vec::new();
            $(
                let one: $type = $value;
                assert!(matches!(&one, $pattern), "{one:?} stands beside another's pattern");
                known(&one);
                all.push(one);
            )+
            all
        }
    };
}

fn volume() -> VolumeId {
    VolumeId::parse("v1").unwrap()
}

fn node_id() -> NodeId {
    NodeId::new("n1").unwrap()
}

fn snapshot() -> SnapshotId {
    SnapshotId::of_name("s1").unwrap()
}

fn detail() -> String {
    "what was seen".to_owned()
}

fn system() -> io::Error {
    io::Error::from_raw_os_error(28)
}

fn not_json() -> serde_json::Error {
    serde_json::from_str::<u8>("{").unwrap_err()
}

fn lost() -> Lost {
    Lost::Fenced { owner: "n2".to_owned() }
}

every!(faults: Fault {
    Fault::FsType { .. } => Fault::FsType { fs_type: "ext4".into() },
    Fault::Block => Fault::Block,
    Fault::Mode { .. } => Fault::Mode { number: 99 },
    Fault::Flag { .. } => Fault::Flag { flag: "sync".into() },
    Fault::Secret => Fault::Secret,
    Fault::HalfKeys => Fault::HalfKeys,
    Fault::Negative => Fault::Negative,
    Fault::SnapshotParameter => Fault::SnapshotParameter,
    Fault::Path => Fault::Path,
});

every!(parameters: ParameterError {
    ParameterError::Unknown { .. } => ParameterError::Unknown { name: "colour".into() },
    ParameterError::OfThePlugin { .. } => ParameterError::OfThePlugin { name: "bucket".into() },
    ParameterError::Fixed { .. } => ParameterError::Fixed { name: "uid".into() },
    ParameterError::Value { .. } => ParameterError::Value { name: "mode", value: "9".into(), known: "octal" },
});

every!(names: NameError {
    NameError::Empty => NameError::Empty,
    NameError::TooLong { .. } => NameError::TooLong { chars: 300 },
    NameError::Control { .. } => NameError::Control { code: 7 },
    NameError::NotAnId { .. } => NameError::NotAnId { text: "?".into() },
});

every!(buckets: BucketError {
    BucketError::NotFound { .. } => BucketError::NotFound { key: "head".into() },
    BucketError::Precondition { .. } => BucketError::Precondition { key: "head".into() },
    BucketError::NoBucket { .. } => BucketError::NoBucket { bucket: "b".into() },
    BucketError::Denied { .. } => BucketError::Denied { key: "head".into(), detail: detail() },
    BucketError::NoCredentials { .. } => BucketError::NoCredentials { key: "head".into(), detail: detail() },
    BucketError::Unsupported { .. } => BucketError::Unsupported { feature: "conditional put", detail: detail() },
    BucketError::Unavailable { .. } => BucketError::Unavailable { key: "head".into(), detail: detail() },
    BucketError::Unexpected { .. } => BucketError::Unexpected { key: "head".into(), detail: detail() },
});

every!(connects: ConnectError {
    ConnectError::Endpoint { .. } => ConnectError::Endpoint { endpoint: "ftp://x".into() },
    ConnectError::NoRegion => ConnectError::NoRegion,
    ConnectError::Trust(_) => ConnectError::Trust(TrustError::Read { path: "/ca".into(), source: system() }),
});

every!(trusts: TrustError {
    TrustError::Read { .. } => TrustError::Read { path: "/ca".into(), source: system() },
    TrustError::Invalid { .. } => TrustError::Invalid { path: "/ca".into(), detail: detail() },
});

every!(probes: ProbeError {
    ProbeError::Unfit { .. } => ProbeError::Unfit { verb: "PUT with If-Match", racers: 8, seen: "2 did".into() },
    ProbeError::Bucket(_) => ProbeError::Bucket(BucketError::NoBucket { bucket: "b".into() }),
});

every!(heads: HeadError {
    HeadError::Missing => HeadError::Missing,
    HeadError::Exists => HeadError::Exists,
    HeadError::Format { .. } => HeadError::Format { format: 9 },
    HeadError::Corrupt { .. } => HeadError::Corrupt { source: not_json() },
    HeadError::TooLong { .. } => HeadError::TooLong { volume: volume(), bytes: 99 },
    HeadError::Deleting { .. } => HeadError::Deleting { volume: volume() },
    HeadError::NoLease { .. } => HeadError::NoLease { volume: volume(), node_id: node_id(), lease: Lease(7) },
    HeadError::Published { .. } => HeadError::Published { volume: volume(), node_id: node_id() },
    HeadError::Fenced { .. } => HeadError::Fenced { volume: volume(), epoch: Epoch(3), owner: "n2".into() },
    HeadError::TailElsewhere { .. } => HeadError::TailElsewhere { volume: volume(), node_id: node_id() },
    HeadError::Apart { .. } => HeadError::Apart { volume: volume() },
    HeadError::Contended => HeadError::Contended,
    HeadError::Bucket(_) => HeadError::Bucket(BucketError::NoBucket { bucket: "b".into() }),
});

every!(holds: HoldsError {
    HoldsError::Abandoned => HoldsError::Abandoned,
    HoldsError::TooMany => HoldsError::TooMany,
    HoldsError::Format { .. } => HoldsError::Format { format: 9 },
    HoldsError::Corrupt { .. } => HoldsError::Corrupt { source: not_json() },
    HoldsError::Contended => HoldsError::Contended,
    HoldsError::Bucket(_) => HoldsError::Bucket(BucketError::NoBucket { bucket: "b".into() }),
});

every!(trees: TreeError {
    TreeError::Fenced => TreeError::Fenced,
    TreeError::Unavailable { .. } => TreeError::Unavailable { detail: detail() },
    TreeError::Corrupt { .. } => TreeError::Corrupt { place: "m/1".into(), detail: detail() },
    TreeError::Failed { .. } => TreeError::Failed { detail: detail() },
    TreeError::ReadOnly => TreeError::ReadOnly,
    TreeError::Closed => TreeError::Closed,
});

every!(tails: TailError {
    TailError::Io { .. } => TailError::Io { act: "write", path: "/state/1".into(), source: system() },
    TailError::Busy { .. } => TailError::Busy { dir: "/state".into() },
    TailError::Missing { .. } => TailError::Missing { dir: "/state".into(), epoch: Epoch(3) },
    TailError::NoFolder { .. } => TailError::NoFolder { epoch: Epoch(3) },
    TailError::Damaged { .. } => TailError::Damaged { path: "/state/1".into(), offset: 7, detail: detail() },
});

every!(opens: OpenError {
    OpenError::Head(_) => OpenError::Head(HeadError::Missing),
    OpenError::Bucket(_) => OpenError::Bucket(BucketError::NoBucket { bucket: "b".into() }),
    OpenError::Tree(_) => OpenError::Tree(TreeError::Fenced),
    OpenError::Fenced { .. } => OpenError::Fenced { owner: "n2".into() },
    OpenError::Tail(_) => OpenError::Tail(TailError::Busy { dir: "/state".into() }),
    OpenError::Lost(_) => OpenError::Lost(lost()),
    OpenError::Replay(_) => OpenError::Replay(FsError::Closed),
    OpenError::Damaged { .. } => OpenError::Damaged { key: "j/1/2".into(), detail: detail() },
});

every!(admins: AdminError {
    AdminError::Name(_) => AdminError::Name(NameError::Empty),
    AdminError::Parameter(_) => AdminError::Parameter(ParameterError::Unknown { name: "colour".into() }),
    AdminError::Capacity { .. } => AdminError::Capacity { required_bytes: 2, limit_bytes: 1 },
    AdminError::TooLarge { .. } => AdminError::TooLarge { volume: volume(), capacity_bytes: 2, limit_bytes: 1 },
    AdminError::Shrinks { .. } => AdminError::Shrinks { volume: volume(), has_bytes: 2 },
    AdminError::PageToken { .. } => AdminError::PageToken { token: "t".into() },
    AdminError::NotFound { .. } => AdminError::NotFound { volume: volume() },
    AdminError::AlreadyExists { .. } => AdminError::AlreadyExists {
        volume: volume(), what: "capacity", has: "1".into(), asked: "2".into(),
    },
    AdminError::Deleting { .. } => AdminError::Deleting { volume: volume() },
    AdminError::InUse { .. } => AdminError::InUse { volume: volume(), by: "node n1".into() },
    AdminError::PublishedElsewhere { .. } => AdminError::PublishedElsewhere {
        volume: volume(), node_id: node_id(), mode: AccessMode::SingleNodeWriter,
    },
    AdminError::WrittenElsewhere { .. } => AdminError::WrittenElsewhere { volume: volume(), node_id: node_id() },
    AdminError::NoNode { .. } => AdminError::NoNode { node_id: node_id() },
    AdminError::NodeRecord { .. } => AdminError::NodeRecord { node_id: "n1".into(), source: not_json() },
    AdminError::NoSnapshot { .. } => AdminError::NoSnapshot { snapshot: snapshot() },
    AdminError::SnapshotExists { .. } => AdminError::SnapshotExists { snapshot: snapshot(), volume: volume() },
    AdminError::SnapshotRecord { .. } => AdminError::SnapshotRecord { snapshot: "s1".into(), source: not_json() },
    AdminError::Alone => AdminError::Alone,
    AdminError::TooDeep { .. } => AdminError::TooDeep { volume: volume() },
    AdminError::Smaller { .. } => AdminError::Smaller { has_bytes: 2, asked_bytes: 1 },
    AdminError::Holds(_) => AdminError::Holds(HoldsError::Contended),
    AdminError::Open(_) => AdminError::Open(OpenError::Fenced { owner: "n2".into() }),
    AdminError::Store(_) => AdminError::Store(ProbeError::Bucket(BucketError::NoBucket { bucket: "b".into() })),
    AdminError::Head(_) => AdminError::Head(HeadError::Contended),
    AdminError::Bucket(_) => AdminError::Bucket(BucketError::NoBucket { bucket: "b".into() }),
});

every!(mountpoints: MountpointError {
    MountpointError::Absent { .. } => MountpointError::Absent { path: "/m".into() },
    MountpointError::NotDirectory { .. } => MountpointError::NotDirectory { path: "/m".into() },
    MountpointError::NotEmpty { .. } => MountpointError::NotEmpty { path: "/m".into() },
    MountpointError::Taken { .. } => MountpointError::Taken {
        path: "/m".into(), file_system: "ext4".into(), mounted_source: "/dev/sda".into(),
    },
    MountpointError::Dead { .. } => MountpointError::Dead { path: "/m".into() },
    MountpointError::Busy { .. } => MountpointError::Busy { path: "/m".into() },
    MountpointError::Kernel { .. } => MountpointError::Kernel {
        act: "cannot mount at", path: "/m".into(), source: system(),
    },
    MountpointError::Fusermount { .. } => MountpointError::Fusermount { path: "/m".into(), detail: detail() },
});

every!(sessions: SessionError {
    SessionError::Mountpoint(_) => SessionError::Mountpoint(MountpointError::Absent { path: "/m".into() }),
    SessionError::Greeting { .. } => SessionError::Greeting { source: system() },
    SessionError::Rings { .. } => SessionError::Rings { source: system() },
    SessionError::Thread { .. } => SessionError::Thread { source: system() },
});

every!(refusals: Refusal {
    Refusal::Connect(_) => Refusal::Connect(ConnectError::NoRegion),
    Refusal::Bucket(_) => Refusal::Bucket(BucketError::NoBucket { bucket: "b".into() }),
    Refusal::Store(_) => Refusal::Store(ProbeError::Bucket(BucketError::NoBucket { bucket: "b".into() })),
    Refusal::Missing => Refusal::Missing,
    Refusal::Name(_) => Refusal::Name(NameError::Empty),
    Refusal::Head(_) => Refusal::Head(HeadError::Contended),
    Refusal::Led { .. } => Refusal::Led { node_id: node_id() },
    Refusal::Open(_) => Refusal::Open(OpenError::Fenced { owner: "n2".into() }),
    Refusal::Root(_) => Refusal::Root(FsError::Closed),
});

every!(engines: EngineError {
    EngineError::Mountpoint(_) => EngineError::Mountpoint(MountpointError::Absent { path: "/m".into() }),
    EngineError::Open(_) => failed(Refusal::Missing),
    EngineError::Session(_) => EngineError::Session(SessionError::Thread { source: system() }),
    EngineError::Connect(_) => EngineError::Connect(ConnectError::NoRegion),
    EngineError::OtherVolume { .. } => EngineError::OtherVolume { path: "/m".into(), volume_id: "v2".into() },
    EngineError::NotMounted { .. } => EngineError::NotMounted { what: "v1".into() },
    EngineError::StillUsed { .. } => EngineError::StillUsed { volume_id: "v1".into() },
    EngineError::IsLost { .. } => EngineError::IsLost { volume_id: "v1".into(), lost: lost() },
    EngineError::Deadline { .. } => EngineError::Deadline { volume_id: "v1".into(), dirty_bytes: 7 },
    EngineError::Head { .. } => EngineError::Head { volume_id: "v1".into(), source: HeadError::Missing },
    EngineError::Flush { .. } => EngineError::Flush { volume_id: "v1".into(), source: FsError::Closed },
});

every!(mounts: MountError {
    MountError::Held { .. } => MountError::Held { detail: engines_word() },
    MountError::NoVolume { .. } => MountError::NoVolume { detail: "no engine serves volume v1".into() },
    MountError::Denied { .. } => MountError::Denied { detail: denied_word() },
    MountError::Damaged { .. } => MountError::Damaged { detail: damaged_word() },
    MountError::Unavailable { .. } => MountError::Unavailable { detail: contended_word() },
    MountError::Slow { .. } => MountError::Slow { detail: "the engine did not mount the volume within 50 s".into() },
    MountError::Refused { .. } => MountError::Refused { detail: "location is missing".into() },
    MountError::NoEngine { .. } => MountError::NoEngine { socket: "/e.sock".into(), detail: detail() },
    MountError::Kernel { .. } => MountError::Kernel { act: "bind-mount", path: "/m".into(), source: system() },
    MountError::Table(_) => MountError::Table(MalformedLine { line: 3, text: "x".into() }),
});

every!(drivers: DriverError {
    DriverError::Missing { .. } => DriverError::Missing { field: "volume_id" },
    DriverError::Invalid { .. } => DriverError::invalid("attachment_mode", Fault::Block),
    DriverError::Parameter(_) => DriverError::Parameter(ParameterError::Unknown { name: "colour".into() }),
    DriverError::Name { .. } => DriverError::Name { field: "name", source: NameError::Empty },
    DriverError::NoVolume { .. } => DriverError::NoVolume { volume: "v1".into() },
    DriverError::NoSnapshot { .. } => DriverError::NoSnapshot { snapshot: "s1".into() },
    DriverError::NoNode { .. } => DriverError::NoNode { node: "n1".into() },
    DriverError::NoPath { .. } => DriverError::NoPath { volume: "v1".into(), path: "/m".into() },
    DriverError::PublishContext { .. } => DriverError::PublishContext { key: "lease" },
    DriverError::NotStaged { .. } => DriverError::NotStaged { volume: "v1".into() },
    DriverError::PublishedOtherwise { .. } => DriverError::PublishedOtherwise { volume: "v1".into(), path: "/m".into() },
    DriverError::PublishedOnce { .. } => DriverError::PublishedOnce { volume: "v1".into(), path: "/m".into() },
    DriverError::ForeignMount { .. } => DriverError::ForeignMount {
        volume: "v1".into(), path: "/m".into(), fs_type: "ext4".into(), source_name: "/dev/sda".into(),
    },
    DriverError::NotExpanded { .. } => DriverError::NotExpanded { volume: "v1".into(), capacity_bytes: 7 },
    DriverError::Silent { .. } => DriverError::Silent { volume: "v1".into(), path: "/m".into() },
    DriverError::Deadline { .. } => DriverError::Deadline {
        rpc: "NodeStageVolume", limit: Duration::from_secs(60), step: "mounting".into(),
    },
    DriverError::Stopping => DriverError::Stopping,
    DriverError::File { .. } => DriverError::File { act: "write", path: "/state/v1".into(), source: system() },
    DriverError::Record { .. } => DriverError::Record { path: "/state/v1".into(), source: not_json() },
    DriverError::Mount { .. } => of_mount(MountError::NoVolume { detail: "no engine serves volume v1".into() }),
    DriverError::Admin(_) => DriverError::Admin(AdminError::Alone),
    DriverError::Connect(_) => DriverError::Connect(ConnectError::NoRegion),
    DriverError::Bucket(_) => DriverError::Bucket(BucketError::NoBucket { bucket: "b".into() }),
});

fn engines_word() -> String {
    EngineError::StillUsed { volume_id: "v1".into() }.to_string()
}

fn denied_word() -> String {
    BucketError::Denied {
        key: "head".into(),
        detail: detail(),
    }
    .to_string()
}

fn damaged_word() -> String {
    OpenError::Damaged {
        key: "j/1/2".into(),
        detail: detail(),
    }
    .to_string()
}

fn contended_word() -> String {
    HeadError::Contended.to_string()
}

fn failed(refusal: Refusal) -> EngineError {
    let location = "s3://bucket/v/v1".parse().unwrap();
    EngineError::Open(OpenFailed { location, refusal })
}

fn of_mount(source: MountError) -> DriverError {
    DriverError::Mount {
        volume: "v1".into(),
        source,
    }
}

/// What of these a call that asks the bucket itself ends with.
fn of_the_bucket() -> Vec<DriverError> {
    let admin = |all: Vec<AdminError>| all.into_iter().map(DriverError::Admin);
    // A controller opens nothing for writing and has no tail: the rest of `OpenError` is of mounts.
    let opened = trees().into_iter().map(OpenError::Tree);
    let opened = opened.chain(opens().into_iter().filter(|open| !of_mounts_alone(open)));
    admin(admins())
        .chain(admin(names().into_iter().map(AdminError::Name).collect()))
        .chain(admin(parameters().into_iter().map(AdminError::Parameter).collect()))
        .chain(admin(heads().into_iter().map(AdminError::from).collect()))
        .chain(admin(holds().into_iter().map(AdminError::Holds).collect()))
        .chain(admin(probes().into_iter().map(AdminError::Store).collect()))
        .chain(admin(opened.map(AdminError::Open).collect()))
        .chain(buckets().into_iter().map(DriverError::Bucket))
        .collect()
}

fn of_mounts_alone(error: &OpenError) -> bool {
    match error {
        OpenError::Tail(_) | OpenError::Lost(_) | OpenError::Replay(_) => true,
        OpenError::Head(_)
        | OpenError::Bucket(_)
        | OpenError::Tree(_)
        | OpenError::Fenced { .. }
        | OpenError::Damaged { .. } => false,
    }
}

/// What of these an engine answers, as it arrives.
fn of_the_engine() -> Vec<DriverError> {
    let opened = trees().into_iter().map(OpenError::Tree);
    let opened = opened.chain(tails().into_iter().map(OpenError::Tail)).chain(opens());
    let refused = opened.map(Refusal::from);
    let refused = refused
        .chain(refusals())
        .chain(heads().into_iter().map(Refusal::from))
        .chain(buckets().into_iter().map(Refusal::Bucket))
        .chain(connects().into_iter().map(Refusal::Connect))
        .chain(trusts().into_iter().map(|error| Refusal::Connect(error.into())))
        .chain(probes().into_iter().map(Refusal::Store));
    let sessions = sessions().into_iter().map(EngineError::Session);
    let all = engines()
        .into_iter()
        .chain(refused.map(failed))
        .chain(mountpoints().into_iter().map(EngineError::Mountpoint))
        .chain(sessions);
    all.map(|error| of_mount(from_engine(&status_of(&error)))).collect()
}

/// What the plugin says itself of a step that took too long.
fn slow() -> Vec<DriverError> {
    let texts = [
        "/m was not flushed within 50 s",
        "/m was not given to its owner within 10 s",
    ];
    let details = texts.map(str::to_owned).into_iter();
    details.map(|detail| of_mount(MountError::Slow { detail })).collect()
}

/// One value of every error that a call can end with.
pub fn every_failure() -> Vec<DriverError> {
    let of_fields = faults().into_iter().map(|fault| DriverError::invalid("field", fault));
    let of_names = names()
        .into_iter()
        .map(|source| DriverError::Name { field: "name", source });
    drivers()
        .into_iter()
        .chain(of_fields)
        .chain(of_names)
        .chain(parameters().into_iter().map(DriverError::Parameter))
        .chain(connects().into_iter().map(DriverError::Connect))
        .chain(trusts().into_iter().map(|error| DriverError::Connect(error.into())))
        .chain(mounts().into_iter().map(of_mount))
        .chain(slow())
        .chain(of_the_bucket())
        .chain(of_the_engine())
        .collect()
}
