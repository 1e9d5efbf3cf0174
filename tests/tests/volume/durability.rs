//! What fsync promises in each mode of durability, from the outside.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use tempfile::TempDir;
use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::volume_store::{VolumeStore, content_of, make_file, options};
use tokio::time::{Instant, timeout};
use volume::bucket::BucketRef;
use volume::head::{Durability, Head, HeadError, HeadFile, HeadWriter, Parameters};
use volume::ids::InodeNo;
use volume::open::OpenError;
use volume::tail::TailError;
use volume::volume::{OpenOptions, Volume};
use volume::volume_id::NodeId;

/// In `relaxed` mode fsync returns at once, whatever the bucket does; the bucket follows within 5 seconds, and `drain` waits
/// for it.
#[tokio::test(start_paused = true)]
async fn a_relaxed_fsync_asks_for_nothing_and_the_bucket_follows_within_seconds() {
    let store = VolumeStore::with(Parameters {
        durability: Durability::Relaxed,
        ..Parameters::default()
    })
    .await;
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let volume = store.open(faulty.clone(), options()).await;
    assert_eq!(volume.info().durability, Durability::Relaxed);
    let first = make_file(&volume, "first", b"kept").await;
    volume.drain().await.unwrap();
    faulty.set_available(false);
    let begun = Instant::now();
    make_file(&volume, "second", b"on its way").await;
    volume.fsync(first).await.unwrap();
    volume.sync_all().await.unwrap();
    assert_eq!(begun.elapsed(), Duration::ZERO, "nobody was waited for");
    let drained = timeout(Duration::from_secs(60), volume.drain()).await;
    assert!(drained.is_err(), "the bucket is away, so nothing can be in it");
    faulty.set_available(true);
    volume.drain().await.unwrap();
    let third = make_file(&volume, "third", b"follows").await;
    volume.fsync(third).await.unwrap();
    tokio::time::sleep(Duration::from_secs(5)).await;
    faulty.crash();
    drop(volume);
    let volume = store.open(store.memory.clone(), options()).await;
    for (name, content) in [("first", "kept"), ("second", "on its way"), ("third", "follows")] {
        let ino = volume.lookup(InodeNo::ROOT, name.as_bytes()).await.unwrap().ino;
        assert_eq!(content_of(&volume, ino).await, content.as_bytes());
    }
    volume.close().await.unwrap();
}

pub async fn local_store() -> VolumeStore {
    let parameters = Parameters {
        durability: Durability::Local,
        ..Parameters::default()
    };
    VolumeStore::with(parameters).await
}

/// A mount on this node, with its disk.
fn on(node: &str, disk: &Path) -> OpenOptions {
    OpenOptions {
        node_id: NodeId::new(node).unwrap(),
        state_dir: Some(disk.to_path_buf()),
        spill: None,
        ..options()
    }
}

fn head_of(store: &VolumeStore) -> HeadFile {
    let root: BucketRef = store.memory.clone();
    HeadFile::new(root, HeadWriter::new(uuid::Uuid::new_v4()))
}

async fn read_head(store: &VolumeStore) -> Head {
    head_of(store).read().await.unwrap()
}

async fn has(volume: &Volume, name: &str) -> bool {
    volume.lookup(InodeNo::ROOT, name.as_bytes()).await.is_ok()
}

/// In `local` mode fsync returns with the bucket away. What it returned for is there after a crash, on this node; until the
/// bucket has it no other node mounts the volume, and is told who holds it and what to do.
#[tokio::test]
async fn a_local_fsync_survives_a_crash_and_keeps_other_nodes_out() {
    let (store, disk, other) = (local_store().await, tempdir(), tempdir());
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let volume = store.open(faulty.clone(), on("node-1", disk.path())).await;
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    faulty.set_available(false);
    let small = make_file(&volume, "small", b"on the disk").await;
    let large = make_file(&volume, "large", &content).await;
    volume.fsync(small).await.unwrap();
    volume.write(large, 100_000, vec![7; 10].into()).await.unwrap();
    volume.unlink(InodeNo::ROOT, b"small").await.unwrap();
    volume.fsync(large).await.unwrap();
    make_file(&volume, "not synced", b"-").await;
    let tail = read_head(&store).await.tail.expect("the head names the node");
    assert_eq!(tail.node_id.as_str(), "node-1");
    faulty.crash();
    drop(volume);

    let refused = Volume::open(store.memory.clone(), on("node-2", other.path()))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, OpenError::Head(HeadError::TailElsewhere { node_id, .. }) if node_id.as_str() == "node-1"),
        "{refused}"
    );
    assert!(refused.to_string().contains("--accept-loss"), "{refused}");
    let refused = Volume::open(store.memory.clone(), on("node-1", other.path()))
        .await
        .unwrap_err();
    assert!(
        matches!(&refused, OpenError::Tail(TailError::Missing { .. })),
        "{refused}"
    );
    let refused = Volume::open(
        store.memory.clone(),
        OpenOptions {
            state_dir: None,
            spill: None,
            ..on("node-1", other.path())
        },
    );
    let refused = refused.await.unwrap_err();
    assert!(
        matches!(&refused, OpenError::Tail(TailError::NoFolder { .. })),
        "{refused}"
    );

    let volume = store.open(store.memory.clone(), on("node-1", disk.path())).await;
    let mut expected = content;
    expected[100_000..100_010].fill(7);
    let large = volume.lookup(InodeNo::ROOT, b"large").await.unwrap().ino;
    assert!(content_of(&volume, large).await == expected);
    assert!(!has(&volume, "small").await && !has(&volume, "not synced").await);
    volume.close().await.unwrap();
    assert_eq!(read_head(&store).await.tail, None, "drained");
    let volume = store.open(store.memory.clone(), on("node-2", other.path())).await;
    assert!(content_of(&volume, large).await == expected, "now it is anybody's");
    volume.close().await.unwrap();
    store.check("after a tail was replayed").await;
}

/// A tail that was given up is never replayed: the node that held it puts it aside, and the volume is as others left it.
#[tokio::test]
async fn a_tail_that_was_given_up_is_put_aside_by_its_node() {
    let (store, disk, other) = (local_store().await, tempdir(), tempdir());
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let volume = store.open(faulty.clone(), on("node-1", disk.path())).await;
    make_file(&volume, "kept", b"-").await;
    volume.drain().await.unwrap();
    faulty.set_available(false);
    let lost = make_file(&volume, "given up", b"-").await;
    volume.fsync(lost).await.unwrap();
    faulty.crash();
    drop(volume);
    let before = read_head(&store).await.epoch;
    let dropped = head_of(&store).drop_tail().await.unwrap().expect("there was one");
    assert_eq!(
        (dropped.node_id.as_str(), read_head(&store).await.epoch),
        ("node-1", before.next())
    );
    assert_eq!(head_of(&store).drop_tail().await.unwrap(), None);
    let volume = store.open(store.memory.clone(), on("node-2", other.path())).await;
    assert!(has(&volume, "kept").await && !has(&volume, "given up").await);
    make_file(&volume, "newer", b"-").await;
    volume.close().await.unwrap();

    let volume = store.open(store.memory.clone(), on("node-1", disk.path())).await;
    assert!(has(&volume, "newer").await && !has(&volume, "given up").await);
    volume.close().await.unwrap();
    let tails = disk.path().join("tails").join(volume.info().uuid.simple().to_string());
    let aside = std::fs::read_dir(tails).unwrap().filter_map(Result::ok);
    let aside = aside.filter(|entry| entry.file_name().to_string_lossy().starts_with("refused-"));
    assert_eq!(aside.count(), 1, "it is kept for whoever wants to look");
}

/// A damaged tail refuses the mount and names the file; given up, the volume mounts as the bucket has it.
#[tokio::test]
async fn a_damaged_tail_is_never_silently_shortened() {
    let (store, disk) = (local_store().await, tempdir());
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let volume = store.open(faulty.clone(), on("node-1", disk.path())).await;
    faulty.set_available(false);
    for name in ["first", "second", "third"] {
        let made = make_file(&volume, name, &[9; 100]).await;
        volume.fsync(made).await.unwrap();
    }
    let uuid = volume.info().uuid;
    faulty.crash();
    drop(volume);
    let folder = disk.path().join("tails").join(uuid.simple().to_string());
    let mut entries = std::fs::read_dir(folder).unwrap().filter_map(Result::ok);
    let tail = entries.find(|entry| entry.path().is_dir()).unwrap().path();
    let log = std::fs::read_dir(tail).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[4096 + 80] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let refused = Volume::open(store.memory.clone(), on("node-1", disk.path()))
        .await
        .unwrap_err();
    assert!(refused.to_string().contains(log.to_str().unwrap()), "{refused}");
    head_of(&store).drop_tail().await.unwrap().expect("there was one");
    let volume = store.open(store.memory.clone(), on("node-1", disk.path())).await;
    assert!(!has(&volume, "first").await);
    volume.close().await.unwrap();
}

/// Where the disk has no room for the tail, fsync waits for the bucket: it is slower, and as true.
#[tokio::test]
async fn a_local_fsync_waits_for_the_bucket_where_the_disk_is_full() {
    let (store, disk) = (local_store().await, tempdir());
    let room = "size=12m";
    mount(None::<&str>, disk.path(), Some("tmpfs"), MsFlags::empty(), Some(room)).expect("a small disk");
    let _unmount = Unmount(disk.path().to_path_buf());
    let faulty = Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()));
    let volume = store.open(faulty.clone(), on("node-1", disk.path())).await;
    let mut inos = Vec::new();
    for n in 0..6u8 {
        let ino = make_file(&volume, &format!("f{n}"), &vec![n; 3 << 20]).await;
        volume.fsync(ino).await.unwrap();
        inos.push(ino);
    }
    faulty.set_available(false);
    faulty.crash();
    drop(volume);
    let volume = store.open(store.memory.clone(), on("node-1", disk.path())).await;
    for (n, ino) in inos.into_iter().enumerate() {
        assert!(content_of(&volume, ino).await == vec![n as u8; 3 << 20], "f{n}");
    }
    volume.close().await.unwrap();
}

fn tempdir() -> TempDir {
    TempDir::new().unwrap()
}

struct Unmount(PathBuf);

impl Drop for Unmount {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}
