//! A sound volume passes; each kind of damage is told with its object and place, and nothing else is.

use bytes::Bytes;

use std::sync::Arc;

use super::*;
use crate::attr::{Caller, XattrMode};
use crate::bucket::Bucket;
use crate::bucket::Prefixed;
use crate::bucket::memory::MemoryBucket;
use crate::clock::{Clock, Timestamp};
use crate::commit::CommitLimits;
use crate::head::{Head, NewHead, Parameters};
use crate::ids::InodeNo;
use crate::limits::Limits;
use crate::open::open_reader;
use crate::row::{DirentRow, FileKind, Row};
use crate::tree::slate::{SlateTree, seen_writer};
use crate::volume::{CacheConfig, OpenOptions, Volume};
use crate::volume_id::{NodeId, VolumeId};

#[derive(Debug)]
struct StillClock;

impl Clock for StillClock {
    fn now(&self) -> Timestamp {
        Timestamp::default()
    }
}

pub(super) const CALLER: Caller = Caller {
    uid: 0,
    gid: 0,
    umask: 0,
};

const UUID: Uuid = Uuid::from_u128(7);

pub(super) async fn open(memory: &Arc<MemoryBucket>) -> Volume {
    let options = OpenOptions {
        node_id: NodeId::new("node").unwrap(),
        read_only: false,
        claim: None,
        cache: CacheConfig::default(),
        state_dir: None,
        spill: None,
        limits: Limits::default(),
        commits: CommitLimits::default(),
        clock: Arc::new(StillClock),
    };
    Volume::open(memory.clone(), options).await.unwrap()
}

/// A volume with a bit of everything; `inline`, `small` and `large` files, a directory, links, an attribute.
pub(super) async fn filled() -> (Arc<MemoryBucket>, Volume) {
    let memory = Arc::new(MemoryBucket::new());
    let head = Head::new(NewHead {
        name: "test".to_owned(),
        volume: VolumeId::of_name("test").unwrap(),
        uuid: UUID,
        capacity_bytes: 0,
        parameters: Parameters::default(),
        now: Timestamp::default(),
    });
    let bucket: BucketRef = memory.clone();
    HeadFile::new(bucket, HeadWriter::new(Uuid::from_u128(1)))
        .create(head)
        .await
        .unwrap();
    let volume = open(&memory).await;
    let dir = volume.mkdir(InodeNo::ROOT, b"dir", 0o755, CALLER).await.unwrap().ino;
    for (name, len) in [(&b"inline"[..], 10), (b"small", 9_000), (b"large", 300_000)] {
        let ino = volume.create(dir, name, 0o644, CALLER).await.unwrap().ino;
        volume.write(ino, 0, Bytes::from(vec![7; len])).await.unwrap();
        volume.fsync(ino).await.unwrap();
        volume.release(ino);
    }
    let large = volume.lookup(dir, b"large").await.unwrap().ino;
    // Overwritten in the middle: one run becomes three, in two objects.
    volume
        .write(large, 100_000, Bytes::from(vec![8; 50_000]))
        .await
        .unwrap();
    volume.link(large, InodeNo::ROOT, b"second name").await.unwrap();
    volume.symlink(dir, b"link", b"large", CALLER).await.unwrap();
    volume
        .setxattr(large, b"user.a", Bytes::from_static(b"value"), XattrMode::Any)
        .await
        .unwrap();
    volume.sync_all().await.unwrap();
    (memory, volume)
}

pub(super) async fn checked(memory: &Arc<MemoryBucket>) -> (CheckReport, Vec<Damage>) {
    let mut found = Vec::new();
    let options = CheckOptions {
        window_rows: 2,
        ..CheckOptions::default()
    };
    // Without the tree's own folder: a mounted volume tidies it up in the background.
    let ours = || -> Vec<String> { memory.keys().into_iter().filter(|key| !key.contains("/m/")).collect() };
    let before = ours();
    let report = check(memory.clone(), options, &mut |damage| found.push(damage))
        .await
        .unwrap();
    assert_eq!(ours(), before, "a check writes nothing");
    assert_eq!(report.damages, found.len() as u64);
    (report, found)
}

/// Replaces an object's bytes.
pub(super) async fn change(memory: &MemoryBucket, key: &str, change: impl FnOnce(&mut Vec<u8>)) {
    let object = memory.get(key, None).await.unwrap();
    let mut body = object.body.to_vec();
    change(&mut body);
    memory.put_if_match(key, body.into(), &object.etag).await.unwrap();
}

/// Writes rows behind the volume's back.
pub(super) async fn rewrite(memory: &Arc<MemoryBucket>, changes: Vec<(Key, Option<Row>)>) {
    let data: BucketRef = Arc::new(Prefixed::new(memory.clone(), format!("{}/", UUID.simple())));
    let seen = seen_writer(data.clone()).await.unwrap();
    let tree = SlateTree::open(data, seen, &TreeConfig::default()).await.unwrap();
    tree.apply(tree.applied(), changes).await.unwrap();
    tree.close().await.unwrap();
}

/// An object of the journal that holds frames of `large`, with its key in the bucket.
pub(super) async fn object_of_large(memory: &Arc<MemoryBucket>, volume: &Volume) -> (InodeNo, ObjectId, String) {
    let dir = volume.lookup(InodeNo::ROOT, b"dir").await.unwrap().ino;
    let large = volume.lookup(dir, b"large").await.unwrap().ino;
    let opened = open_reader(memory.clone(), TreeConfig::default()).await.unwrap();
    let end = Key::Extent {
        ino: large,
        end: 100_000,
    };
    let Some(Row::Extent(row)) = opened.tree.get(&end).await.unwrap() else {
        panic!("the first part of the file is one run");
    };
    (large, row.object, format!("{}/{}", UUID.simple(), row.object.key()))
}

#[tokio::test]
async fn a_sound_volume_passes_mounted_and_closed() {
    let (memory, volume) = filled().await;
    let (mounted, found) = checked(&memory).await;
    assert_eq!(found, []);
    volume.close().await.unwrap();
    let (closed, found) = checked(&memory).await;
    assert_eq!(found, []);
    assert_eq!(closed, mounted);
    assert_eq!((closed.inodes, closed.names), (6, 6));
    assert_eq!((closed.extents, closed.frames >= 5), (4, true));
}

#[tokio::test]
async fn a_changed_byte_of_content_is_told_with_its_file_and_object() {
    let (memory, volume) = filled().await;
    let (large, object, key) = object_of_large(&memory, &volume).await;
    volume.close().await.unwrap();
    change(&memory, &key, |body| {
        let at = body.len() / 4;
        body[at] ^= 1;
    })
    .await;
    let (_, found) = checked(&memory).await;
    assert_eq!(found.len(), 1, "{found:#?}");
    assert_eq!(found[0].object, object.key());
    assert_eq!(found[0].place, format!("inode {large} at 0"));
    assert!(found[0].detail.contains("checksum"), "{found:?}");
}

#[tokio::test]
async fn a_missing_or_cut_object_is_told_for_each_run_that_needs_it() {
    let (memory, volume) = filled().await;
    let (_, object, key) = object_of_large(&memory, &volume).await;
    volume.close().await.unwrap();
    change(&memory, &key, |body| body.truncate(body.len() / 2)).await;
    let (_, found) = checked(&memory).await;
    assert!(
        !found.is_empty() && found.iter().all(|damage| damage.object == object.key()),
        "{found:#?}"
    );
    memory.delete(&key).await.unwrap();
    let (_, found) = checked(&memory).await;
    // The object itself, and the two runs on both sides of what was overwritten.
    assert_eq!(found.len(), 3, "{found:#?}");
    assert!(found.iter().all(|damage| damage.object == object.key()), "{found:#?}");
}

#[tokio::test]
async fn a_damaged_tail_of_the_journal_is_told_and_the_tree_is_checked_all_the_same() {
    let (memory, volume) = filled().await;
    drop(volume);
    let keys = memory.keys();
    let second = keys
        .iter()
        .find(|key| key.ends_with("j/0000000000000001/0000000000000002"))
        .unwrap();
    change(&memory, second, |body| {
        let at = body.len() - 20;
        body[at] ^= 1;
    })
    .await;
    let (_, found) = checked(&memory).await;
    assert_eq!(found[0].object, "j/0000000000000001/0000000000000002");
    assert!(found[0].place.starts_with("the journal"), "{found:?}");
    assert_eq!(found.len(), 1, "{found:#?}");
}

#[tokio::test]
async fn rows_that_do_not_fit_together_are_told_by_inode_and_name() {
    let (memory, volume) = filled().await;
    let dir = volume.lookup(InodeNo::ROOT, b"dir").await.unwrap().ino;
    let small = volume.lookup(dir, b"small").await.unwrap().ino;
    volume.close().await.unwrap();
    // The inode goes, its name and content stay; and a name appears that nobody counts.
    let name = Bytes::from_static(b"stray");
    let stray = Key::Dirent {
        dir,
        cookie: crate::dirent::cookie_of(&name),
        name,
    };
    let entry = DirentRow {
        ino: InodeNo::ROOT,
        kind: FileKind::Regular,
    };
    rewrite(
        &memory,
        vec![(Key::Inode(small), None), (stray, Some(Row::Dirent(entry)))],
    )
    .await;
    let (_, found) = checked(&memory).await;
    let told = |part: &str| {
        let text = |damage: &Damage| format!("{} {}", damage.place, damage.detail);
        assert!(
            found.iter().any(|damage| text(damage).contains(part)),
            "{part:?} is not in {found:#?}"
        );
    };
    assert!(found.iter().all(|damage| damage.object == "m/"), "{found:#?}");
    told("its inode does not exist");
    told(&format!(
        "\"small\" in directory {dir} it names inode {small}, which does not exist"
    ));
    told("\"stray\"");
    told(&format!("inode {dir} it counts 4 entries and has 5"));
    told("the counters");
    told("inode 1 it should have 0 names and has 1");
}
