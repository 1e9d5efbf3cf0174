//! Each kind of damage: a plan tells it and changes nothing, a repair makes the volume sound, and what is lost was accepted.

use std::sync::Arc;

use bytes::Bytes;

use super::super::tests::{change, checked, filled, object_of_large, open, rewrite};
use super::*;
use crate::bucket::memory::MemoryBucket;
use crate::bucket::{Bucket, Prefixed};
use crate::dirent::cookie_of;
use crate::error::FsError;
use crate::head::{NewHead, Parameters};
use crate::ids::{InodeNo, ObjectId};
use crate::row::{Counters, DirentRow, FileKind, ObjectStats};
use crate::snapshot::Family;
use crate::volume::Volume;
use crate::volume_id::VolumeId;

fn options() -> RepairOptions {
    RepairOptions {
        window_rows: 2,
        ..RepairOptions::plan(NodeId::new("rescue").unwrap(), Timestamp::default())
    }
}

fn applied() -> RepairOptions {
    RepairOptions {
        apply: true,
        ..options()
    }
}

fn accepted() -> RepairOptions {
    RepairOptions {
        accept_loss: true,
        ..applied()
    }
}

async fn repaired(memory: &Arc<MemoryBucket>, options: RepairOptions) -> (RepairReport, Vec<Finding>) {
    let mut found = Vec::new();
    let report = repair(memory.clone(), options, &mut |finding| found.push(finding)).await;
    let report = report.unwrap();
    assert_eq!(report.mended + report.given_up + report.left, found.len() as u64);
    (report, found)
}

/// Every object with its content.
async fn everything(memory: &MemoryBucket) -> Vec<(String, Bytes)> {
    let mut all = Vec::new();
    for key in memory.keys() {
        let body = memory.get(&key, None).await.unwrap().body;
        all.push((key, body));
    }
    all
}

/// A plan first, which must change nothing and find the same; then the repair, after which nothing is wrong.
async fn planned_and_repaired(memory: &Arc<MemoryBucket>, options: RepairOptions) -> Vec<Finding> {
    let before = everything(memory).await;
    let plan = RepairOptions {
        apply: false,
        ..options.clone()
    };
    let (_, planned) = repaired(memory, plan).await;
    assert!(everything(memory).await == before, "a plan changes nothing");
    let (_, found) = repaired(memory, options.clone()).await;
    assert_eq!(planned, found);
    let (_, wrong) = checked(memory).await;
    assert_eq!(wrong, [], "after {found:#?}");
    let (again, _) = repaired(memory, options).await;
    assert_eq!(again, RepairReport::default());
    found
}

async fn file(volume: &Volume, name: &[u8]) -> InodeNo {
    let dir = volume.lookup(InodeNo::ROOT, b"dir").await.unwrap().ino;
    volume.lookup(dir, name).await.unwrap().ino
}

#[tokio::test]
async fn a_sound_volume_is_left_as_it_is() {
    let (memory, volume) = filled().await;
    volume.close().await.unwrap();
    assert_eq!(repaired(&memory, options()).await.0, RepairReport::default());
    assert_eq!(repaired(&memory, accepted()).await.0, RepairReport::default());
    let volume = open(&memory).await;
    let large = file(&volume, b"large").await;
    assert_eq!(volume.read(large, 120_000, 3).await.unwrap().concat(), [8, 8, 8]);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_volume_that_somebody_has_is_not_repaired() {
    let (memory, volume) = filled().await;
    let refused = repair(memory.clone(), applied(), &mut |_| {}).await.unwrap_err();
    assert!(
        matches!(&refused, RepairError::InUse { node_id } if node_id.to_string() == "node"),
        "{refused}"
    );
    drop(volume);
    let refused = repair(memory.clone(), options(), &mut |_| {}).await.unwrap_err();
    assert!(matches!(refused, RepairError::InUse { .. }), "it did not end cleanly");
    let forced = RepairOptions {
        force: true,
        ..applied()
    };
    assert_eq!(repaired(&memory, forced).await.0, RepairReport::default());
}

#[tokio::test]
async fn rows_that_do_not_fit_together_are_made_to_fit() {
    let (memory, volume) = filled().await;
    let dir = volume.lookup(InodeNo::ROOT, b"dir").await.unwrap().ino;
    let (small, inline) = (file(&volume, b"small").await, file(&volume, b"inline").await);
    let (large, object, _) = object_of_large(&memory, &volume).await;
    volume.close().await.unwrap();
    let name = |name: &'static [u8]| Key::Dirent {
        dir,
        cookie: cookie_of(name),
        name: Bytes::from_static(name),
    };
    let second_root = DirentRow {
        ino: InodeNo::ROOT,
        kind: FileKind::Regular,
    };
    let wrong_kind = DirentRow {
        ino: large,
        kind: FileKind::Fifo,
    };
    let changes = vec![
        // An inode that is gone, with its name and content left; names that name the wrong thing; a file without a name;
        // wrong sums and totals.
        (Key::Inode(small), None),
        (name(b"stray"), Some(Row::Dirent(second_root))),
        (name(b"large"), Some(Row::Dirent(wrong_kind))),
        (name(b"inline"), None),
        (Key::Orphan(large), Some(Row::Orphan)),
        (
            Key::ObjectStats(object),
            Some(Row::ObjectStats(ObjectStats {
                live_bytes: -100_000,
                total_bytes: 0,
            })),
        ),
        (
            Key::Counters,
            Some(Row::Counters(Counters {
                next_ino: 2,
                used_bytes: 5,
                inodes: 99,
            })),
        ),
    ];
    rewrite(&memory, changes).await;
    let careful = repaired(&memory, options()).await.1;
    let content = careful
        .iter()
        .find(|finding| finding.remedy == Remedy::NeedsConsent)
        .unwrap();
    assert!(content.damage.detail.contains("9000 bytes of content"), "{content:?}");
    let found = planned_and_repaired(&memory, accepted()).await;
    let told = |part: &str| {
        let text = |finding: &Finding| format!("{} {} {}", finding.damage.place, finding.damage.detail, finding.action);
        assert!(
            found.iter().any(|finding| text(finding).contains(part)),
            "{part:?} in {found:#?}"
        );
    };
    told("\"small\" in directory");
    told("\"stray\"");
    told("the name is corrected");
    told(&format!("inode {inline} nothing names it it is found in lost+found"));
    told("among the orphans that is corrected");
    told("the sum of");
    told("the counters");
    let volume = open(&memory).await;
    let lost = volume.lookup(InodeNo::ROOT, b"lost+found").await.unwrap().ino;
    let found = volume.lookup(lost, format!("inode-{inline}").as_bytes()).await.unwrap();
    assert_eq!(volume.read(found.ino, 0, 100).await.unwrap().concat(), [7; 10]);
    assert_eq!(volume.lookup(dir, b"large").await.unwrap().kind, FileKind::Regular);
    assert!(matches!(volume.lookup(dir, b"small").await, Err(FsError::NotFound)));
    let made = volume
        .make_node(dir, b"new", new_file(), super::super::tests::CALLER)
        .await
        .unwrap();
    assert!(made.ino.0 > lost.0, "no number is given out twice");
    volume.close().await.unwrap();
}

fn new_file() -> crate::attr::NewNode {
    crate::attr::NewNode {
        kind: FileKind::Regular,
        mode: 0o600,
        rdev: 0,
    }
}

#[tokio::test]
async fn damaged_content_stays_until_its_loss_is_accepted_and_is_a_hole_then() {
    let (memory, volume) = filled().await;
    let (large, object, key) = object_of_large(&memory, &volume).await;
    volume.close().await.unwrap();
    change(&memory, &key, |body| {
        let at = body.len() / 4;
        body[at] ^= 1;
    })
    .await;
    let (report, found) = repaired(&memory, applied()).await;
    assert_eq!((report.left, report.mended, report.given_up), (1, 0, 0), "{found:#?}");
    assert_eq!(found[0].damage.object, object.key());
    assert!(
        found[0]
            .damage
            .place
            .starts_with(&format!("inode {large} at 0..100000")),
        "{found:?}"
    );
    let volume = open(&memory).await;
    assert!(matches!(volume.read(large, 0, 10).await, Err(FsError::Damaged { .. })));
    assert_eq!(volume.read(large, 100_000, 2).await.unwrap().concat(), [8, 8]);
    volume.close().await.unwrap();

    let found = planned_and_repaired(&memory, accepted()).await;
    assert!(
        found.iter().any(|finding| finding.remedy == Remedy::GivenUp),
        "{found:#?}"
    );
    let volume = open(&memory).await;
    assert_eq!(volume.read(large, 0, 10).await.unwrap().concat(), [0; 10]);
    assert_eq!(volume.read(large, 100_000, 2).await.unwrap().concat(), [8, 8]);
    assert_eq!(volume.read(large, 299_999, 9).await.unwrap().concat(), [7]);
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_missing_object_leaves_holes_where_it_was() {
    let (memory, volume) = filled().await;
    let (large, _, key) = object_of_large(&memory, &volume).await;
    volume.close().await.unwrap();
    memory.delete(&key).await.unwrap();
    planned_and_repaired(&memory, accepted()).await;
    let volume = open(&memory).await;
    let content = volume.read(large, 0, 300_000).await.unwrap().concat();
    assert!(
        content[..100_000]
            .iter()
            .chain(&content[150_000..])
            .all(|byte| *byte == 0)
    );
    assert!(content[100_000..150_000].iter().all(|byte| *byte == 8));
    volume.close().await.unwrap();
}

#[tokio::test]
async fn a_damaged_journal_ends_before_the_damage_once_that_is_accepted() {
    let (memory, volume) = filled().await;
    drop(volume);
    let keys = memory.keys();
    let second = keys
        .iter()
        .find(|key| key.ends_with("j/0000000000000001/0000000000000003"))
        .unwrap();
    change(&memory, second, |body| {
        let at = body.len() - 20;
        body[at] ^= 1;
    })
    .await;
    let force = |options| RepairOptions { force: true, ..options };
    let (report, found) = repaired(&memory, force(options())).await;
    assert_eq!((report.left, found[0].remedy), (1, Remedy::NeedsConsent), "{found:#?}");
    let refused = repair(memory.clone(), force(applied()), &mut |_| {}).await.unwrap_err();
    assert!(
        matches!(&refused, RepairError::Journal { key } if key.ends_with("0003")),
        "{refused}"
    );
    assert!(matches!(
        crate::open::open_reader(memory.clone(), TreeConfig::default()).await,
        Err(OpenError::Damaged { .. })
    ));
    let (report, found) = repaired(&memory, force(accepted())).await;
    assert_eq!(report.given_up, 1, "{found:#?}");
    let (_, wrong) = checked(&memory).await;
    assert_eq!(wrong, []);
    let volume = open(&memory).await;
    let dir = volume.lookup(InodeNo::ROOT, b"dir").await.unwrap().ino;
    volume
        .mkdir(dir, b"afterwards", 0o700, super::super::tests::CALLER)
        .await
        .unwrap();
    volume.close().await.unwrap();
    assert_eq!(checked(&memory).await.1, []);
}

/// What no row names is searched for by the next mount, once its tree has what it wrote.
#[tokio::test(start_paused = true)]
async fn an_object_that_nothing_refers_to_goes_after_a_repair() {
    let (memory, volume) = filled().await;
    let (_, _, key) = object_of_large(&memory, &volume).await;
    let folder = key.split("/j/").next().unwrap().to_owned();
    volume.close().await.unwrap();
    let lost = format!("{folder}/{}", ObjectId::Segment(crate::ids::Epoch(1), 77).key());
    memory
        .put_if_absent(&lost, Bytes::from_static(b"of a writer that is gone"))
        .await
        .unwrap();
    repaired(&memory, applied()).await;
    let volume = open(&memory).await;
    volume
        .mkdir(InodeNo::ROOT, b"new", 0o700, super::super::tests::CALLER)
        .await
        .unwrap();
    let begun = tokio::time::Instant::now();
    while memory.keys().contains(&lost) {
        assert!(begun.elapsed() < std::time::Duration::from_secs(3_600), "it stays");
        tokio::time::sleep(std::time::Duration::from_secs(5)).await;
    }
    volume.close().await.unwrap();
}

/// The object that says what snapshots and clones hold is put together again from what they are.
#[tokio::test]
async fn lost_holds_are_put_back() {
    let memory = Arc::new(MemoryBucket::new());
    let root: BucketRef = Arc::new(Prefixed::new(memory.clone(), "v/"));
    let uuid = Uuid::from_u128(3);
    let head = Head::new(NewHead {
        name: "v".to_owned(),
        volume: VolumeId::of_name("v").unwrap(),
        uuid,
        capacity_bytes: 0,
        parameters: Parameters::default(),
        now: Timestamp::default(),
    });
    HeadFile::new(root.clone(), HeadWriter::new(Uuid::from_u128(1)))
        .create(head)
        .await
        .unwrap();
    let family = Family::new(memory.clone(), HeadWriter::new(Uuid::from_u128(2)));
    family.snapshot("v", "s1", Timestamp::default()).await.unwrap();
    let key = format!("v/{}/holds", uuid.simple());
    let before = memory.get(&key, None).await.unwrap().body;
    for damage in [None, Some(&b"{\"format\": 1, \"ho"[..])] {
        memory.delete(&key).await.unwrap();
        if let Some(body) = damage {
            memory.put_if_absent(&key, Bytes::from_static(body)).await.unwrap();
        }
        let mut told = Vec::new();
        repair(root.clone(), options(), &mut |finding| told.push(finding))
            .await
            .unwrap();
        assert!(memory.get(&key, None).await.ok().map(|found| found.body) == damage.map(Bytes::from_static));
        repair(root.clone(), applied(), &mut |finding| told.push(finding))
            .await
            .unwrap();
        assert!(told.len() == 2 && told[0] == told[1], "{told:?}");
        assert!(told[0].damage.place.contains("s1"), "{told:?}");
        let holds = |body: &Bytes| {
            let json: serde_json::Value = serde_json::from_slice(body).unwrap();
            json["holds"].clone()
        };
        let now = memory.get(&key, None).await.unwrap().body;
        assert_eq!(holds(&now), holds(&before));
    }
}
