//! What a process leaves to its successor on the same node: every change that a program was told of, and every answer.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use tempfile::TempDir;
use tests::faulty_bucket::{Faults, FaultyBucket};
use tests::history::Dice;
use tests::volume_store::{CALLER, VolumeStore, content_of, make_file, options};
use uuid::Uuid;
use volume::attr::{Place, RenameMode};
use volume::calls::once;
use volume::ids::InodeNo;
use volume::volume::{OpenOptions, SpillOptions, Volume};
use volume::volume_id::NodeId;

use crate::durability::local_store;
use crate::say;

const BOOT: Uuid = Uuid::from_u128(1);
const CONNECTION: Uuid = Uuid::from_u128(2);

fn tempdir() -> TempDir {
    tempfile::tempdir().unwrap()
}

/// A mount that leaves what it did on `disk`.
fn leaving(disk: &Path) -> OpenOptions {
    OpenOptions {
        state_dir: Some(disk.to_path_buf()),
        spill: Some(SpillOptions {
            boot: BOOT,
            connection: CONNECTION,
            adopts: false,
            leaves: true,
        }),
        ..options()
    }
}

/// One that goes on with the connection of the one before.
fn adopting(disk: &Path) -> OpenOptions {
    let mut options = leaving(disk);
    options.spill.as_mut().unwrap().adopts = true;
    options
}

fn failing(store: &VolumeStore) -> Arc<FaultyBucket> {
    Arc::new(FaultyBucket::new(store.memory.clone(), 1, Faults::none()))
}

async fn ino_of(volume: &Volume, name: &str) -> Option<InodeNo> {
    let found = volume.lookup(InodeNo::ROOT, name.as_bytes()).await.ok()?;
    Some(found.ino)
}

/// A process may die without having sent anything: its successor on the node has all of it, another node none of it.
#[tokio::test]
async fn what_programs_were_told_is_there_for_the_successor_and_for_no_other_node() {
    let (store, disk, other) = (VolumeStore::new().await, tempdir(), tempdir());
    let faulty = failing(&store);
    let volume = store.open(faulty.clone(), leaving(disk.path())).await;
    make_file(&volume, "sent", b"before").await;
    volume.drain().await.unwrap();
    faulty.set_available(false);
    let content: Vec<u8> = (0..300_000u32).map(|n| (n % 251) as u8).collect();
    let large = make_file(&volume, "large", &content).await;
    volume.write(large, 100_000, vec![7; 10].into()).await.unwrap();
    make_file(&volume, "moved", b"small").await;
    let place = |name: &'static [u8]| Place {
        dir: InodeNo::ROOT,
        name,
    };
    let moved = volume.rename(place(b"moved"), place(b"here"), RenameMode::Replace);
    moved.await.unwrap();
    volume.unlink(InodeNo::ROOT, b"sent").await.unwrap();
    faulty.crash();
    drop(volume);

    let elsewhere = OpenOptions {
        read_only: true,
        ..leaving(other.path())
    };
    let volume = store.open(store.memory.clone(), elsewhere).await;
    assert!(ino_of(&volume, "sent").await.is_some() && ino_of(&volume, "here").await.is_none());
    drop(volume);

    let volume = store.open(store.memory.clone(), leaving(disk.path())).await;
    let mut expected = content;
    expected[100_000..100_010].fill(7);
    let large = ino_of(&volume, "large").await.unwrap();
    assert!(content_of(&volume, large).await == expected);
    let here = ino_of(&volume, "here").await.unwrap();
    assert_eq!(content_of(&volume, here).await, b"small");
    assert!(ino_of(&volume, "sent").await.is_none() && ino_of(&volume, "moved").await.is_none());
    volume.close().await.unwrap();
    let left = std::fs::read_dir(disk.path().join("tails")).unwrap();
    let left = left.flat_map(|volume| std::fs::read_dir(volume.unwrap().path()).unwrap());
    let left: Vec<_> = left.map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, ["lock"], "a closed volume leaves nothing");
}

async fn crashed_with(store: &VolumeStore, options: OpenOptions, name: &str) {
    let faulty = failing(store);
    let volume = store.open(faulty.clone(), options).await;
    faulty.set_available(false);
    make_file(&volume, name, b"-").await;
    faulty.crash();
    drop(volume);
}

/// After a reboot what was not sent is given up: only what was fsynced was promised.
#[tokio::test]
async fn what_was_left_before_a_reboot_is_given_up() {
    let (store, disk) = (VolumeStore::new().await, tempdir());
    crashed_with(&store, leaving(disk.path()), "before").await;
    let mut rebooted = leaving(disk.path());
    rebooted.spill.as_mut().unwrap().boot = Uuid::from_u128(99);
    let volume = store.open(store.memory.clone(), rebooted).await;
    assert!(ino_of(&volume, "before").await.is_none());
    volume.close().await.unwrap();
}

/// A volume that another node has written since gets nothing of what this one had not sent.
#[tokio::test]
async fn what_was_left_is_not_sent_to_a_volume_that_went_on() {
    let (store, disk) = (VolumeStore::new().await, tempdir());
    crashed_with(&store, leaving(disk.path()), "old").await;
    let elsewhere = OpenOptions {
        node_id: NodeId::new("other").unwrap(),
        ..options()
    };
    let volume = store.open(store.memory.clone(), elsewhere).await;
    make_file(&volume, "new", b"-").await;
    volume.close().await.unwrap();
    let volume = store.open(store.memory.clone(), leaving(disk.path())).await;
    assert!(ino_of(&volume, "old").await.is_none() && ino_of(&volume, "new").await.is_some());
    volume.close().await.unwrap();
}

/// A call that was done and not answered is known to each successor of the connection, by its number, with the inode that it made;
/// nobody else knows it.
#[tokio::test]
async fn a_call_without_an_answer_is_known_to_the_successors_of_its_connection() {
    let (store, disk) = (VolumeStore::new().await, tempdir());
    let volume = store.open(store.memory.clone(), leaving(disk.path())).await;
    let (made, answered) = once(10, volume.mkdir(InodeNo::ROOT, b"answered", 0o755, CALLER)).await;
    made.unwrap();
    drop(answered);
    let (made, unanswered) = once(12, volume.mkdir(InodeNo::ROOT, b"made", 0o755, CALLER)).await;
    let made = made.unwrap();
    // All of it is in the bucket: the answer is wanted all the same.
    volume.drain().await.unwrap();
    std::mem::forget(unanswered);
    drop(volume);
    for life in 0..3 {
        let volume = store.open(store.memory.clone(), adopting(disk.path())).await;
        assert_eq!(
            volume.answer_of(12).map(|answer| answer.ino),
            Some(made.ino),
            "life {life}"
        );
        assert!(volume.answer_of(14).is_none() && volume.answer_of(10).is_none());
        drop(volume);
    }
    let mut another = adopting(disk.path());
    another.spill.as_mut().unwrap().connection = Uuid::from_u128(77);
    let volume = store.open(store.memory.clone(), another).await;
    assert!(volume.answer_of(12).is_none());
    volume.close().await.unwrap();
}

/// A file without a name that a program has open stays for it, also if it loses its name only now, until the kernel forgets it.
#[tokio::test]
async fn what_the_kernel_holds_is_kept_by_a_successor_that_was_never_told_of_it() {
    let (store, disk) = (VolumeStore::new().await, tempdir());
    let volume = store.open(store.memory.clone(), leaving(disk.path())).await;
    let gone = make_file(&volume, "gone", b"first").await;
    let goes = make_file(&volume, "goes", b"second").await;
    for ino in [gone, goes] {
        volume.remember(ino);
        volume.open_file(ino, false).await.unwrap();
    }
    volume.unlink(InodeNo::ROOT, b"gone").await.unwrap();
    drop(volume);
    let volume = store.open(store.memory.clone(), adopting(disk.path())).await;
    volume.unlink(InodeNo::ROOT, b"goes").await.unwrap();
    volume.drain().await.unwrap();
    assert_eq!(content_of(&volume, gone).await, b"first");
    assert_eq!(content_of(&volume, goes).await, b"second");
    for ino in [gone, goes] {
        volume.release(ino);
        volume.forget(ino, 3);
        assert!(volume.getattr(ino).await.is_err(), "nobody holds it any more");
    }
    volume.close().await.unwrap();
}

/// A file that never had a name gets one from a successor, whether the bucket knows it or only the spill does, and stays then when the
/// kernel forgets it.
#[tokio::test]
async fn a_file_without_a_name_gets_one_from_a_successor() {
    let (store, disk) = (VolumeStore::new().await, tempdir());
    let mut nameless = Vec::new();
    let mounts = [leaving(disk.path()), adopting(disk.path()), adopting(disk.path())];
    for (options, is_sent) in mounts.into_iter().zip([true, true, false]) {
        let faulty = failing(&store);
        let volume = store.open(faulty.clone(), options).await;
        let made = volume.create_nameless(InodeNo::ROOT, 0o600, CALLER).await.unwrap();
        volume.write(made.ino, 0, vec![7; 100_000].into()).await.unwrap();
        nameless.push(made.ino);
        if is_sent {
            volume.drain().await.unwrap();
        }
        faulty.crash();
    }
    let volume = store.open(store.memory.clone(), adopting(disk.path())).await;
    for ino in &nameless {
        let name = format!("named-{ino}");
        let named = volume.link(*ino, InodeNo::ROOT, name.as_bytes()).await.unwrap();
        assert_eq!(named.nlink, 1);
        volume.release(*ino);
        volume.forget(*ino, 2);
    }
    volume.close().await.unwrap();
    drop(volume);
    let volume = store.open(store.memory.clone(), leaving(disk.path())).await;
    for ino in nameless {
        assert_eq!(ino_of(&volume, &format!("named-{ino}")).await, Some(ino));
        assert_eq!(content_of(&volume, ino).await, vec![7; 100_000]);
    }
    volume.close().await.unwrap();
    store.check("files that got a name").await;
}

/// Of durability `local`: a process leaves everything that was told, though only a part of it was synced; a reboot leaves that part.
#[tokio::test]
async fn a_local_volume_leaves_what_was_told_to_a_successor_and_what_was_synced_to_a_reboot() {
    for is_reboot in [false, true] {
        let (store, disk) = (local_store().await, tempdir());
        let faulty = failing(&store);
        let volume = store.open(faulty.clone(), leaving(disk.path())).await;
        assert!(volume.survives());
        faulty.set_available(false);
        let synced = make_file(&volume, "synced", b"first").await;
        volume.fsync(synced).await.unwrap();
        volume.write(synced, 0, b"later".as_slice().into()).await.unwrap();
        make_file(&volume, "told", b"-").await;
        faulty.crash();
        drop(volume);
        let mut options = adopting(disk.path());
        if is_reboot {
            options.spill.as_mut().unwrap().boot = Uuid::from_u128(99);
        }
        let volume = store.open(store.memory.clone(), options).await;
        let content: &[u8] = if is_reboot { b"first" } else { b"later" };
        assert_eq!(content_of(&volume, synced).await, content);
        assert_eq!(ino_of(&volume, "told").await.is_none(), is_reboot);
        volume.close().await.unwrap();
        store.check("after a local volume was left").await;
    }
}

/// A spill of a local volume that cannot be read to its end is not used at all: what was synced is in the tail, whole.
#[tokio::test]
async fn a_damaged_spill_of_a_local_volume_gives_way_to_its_tail() {
    let (store, disk) = (local_store().await, tempdir());
    let faulty = failing(&store);
    let volume = store.open(faulty.clone(), leaving(disk.path())).await;
    faulty.set_available(false);
    for name in ["first", "second", "third"] {
        let made = make_file(&volume, name, &[9; 100]).await;
        volume.fsync(made).await.unwrap();
    }
    make_file(&volume, "told", b"-").await;
    let tails = disk.path().join("tails").join(volume.info().uuid.simple().to_string());
    faulty.crash();
    drop(volume);
    let spill = |entry: std::io::Result<std::fs::DirEntry>| {
        let path = entry.unwrap().path();
        let is = path.file_name().unwrap().to_string_lossy().starts_with("spill-");
        is.then_some(path)
    };
    let folder = std::fs::read_dir(tails).unwrap().find_map(spill).unwrap();
    let log = std::fs::read_dir(folder).unwrap().next().unwrap().unwrap().path();
    let mut bytes = std::fs::read(&log).unwrap();
    // In the middle: what came before could be replayed, and must not be.
    let at = bytes.windows(6).position(|window| window == b"second").unwrap();
    bytes[at] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    let volume = store.open(store.memory.clone(), adopting(disk.path())).await;
    for name in ["first", "second", "third"] {
        let ino = ino_of(&volume, name).await.expect("it was synced");
        assert_eq!(content_of(&volume, ino).await, [9; 100]);
    }
    assert!(ino_of(&volume, "told").await.is_none());
    volume.close().await.unwrap();
    store.check("after a tail was replayed").await;
}

/// Names and contents of the files of a world.
type World = BTreeMap<String, Vec<u8>>;

async fn found_in(volume: &Volume) -> World {
    let mut found = World::new();
    for n in 0..8 {
        let name = format!("n{n}");
        if let Some(ino) = ino_of(volume, &name).await {
            found.insert(name, content_of(volume, ino).await);
        }
    }
    found
}

/// Goal: life after life, with a bucket that comes and goes, nothing that was done is ever missing or back. Method: random
/// changes to a few names, each followed in a map, and a crash between any two, of the process or of the machine. After the latter
/// the volume is as it was at some moment at or after the last fsync.
async fn nothing_is_lost(store: VolumeStore, is_local: bool) {
    let seed = Uuid::new_v4().as_u64_pair().0 >> 16;
    say(&format!("seed {seed}"));
    let (disk, mut dice) = (tempdir(), Dice::new(seed));
    let (mut wanted, mut boot, mut is_reboot) = (World::new(), BOOT, false);
    let mut moments = vec![wanted.clone()];
    for life in 0..25 {
        let faulty = failing(&store);
        let mut options = leaving(disk.path());
        options.spill.as_mut().unwrap().boot = boot;
        let volume = store.open(faulty.clone(), options).await;
        let found = found_in(&volume).await;
        let is_well = match is_reboot {
            true => moments.contains(&found),
            false => found == wanted,
        };
        assert!(is_well, "seed {seed}, life {life}");
        wanted = found;
        moments = vec![wanted.clone()];
        for _ in 0..dice.below(40) {
            faulty.set_available(dice.below(3) > 0);
            change(&volume, (&mut wanted, &mut moments), &mut dice).await;
            if is_local && dice.below(5) == 0 {
                volume.sync_all().await.unwrap();
                moments = vec![wanted.clone()];
            }
        }
        is_reboot = dice.below(3) == 0;
        if is_reboot {
            boot = Uuid::from_u128(boot.as_u128() + 1);
        }
        faulty.crash();
        drop(volume);
    }
}

/// Does something to a file, and notes each state that the volume passes.
async fn change(volume: &Volume, (wanted, moments): (&mut World, &mut Vec<World>), dice: &mut Dice) {
    let name = format!("n{}", dice.below(8));
    match wanted.get_mut(&name) {
        None => {
            let len = 1 + dice.below(20_000);
            let content = dice.bytes(len);
            make_file(volume, &name, &content).await;
            wanted.insert(name.clone(), Vec::new());
            moments.push(wanted.clone());
            wanted.insert(name, content);
        }
        Some(_) if dice.below(3) == 0 => {
            volume.unlink(InodeNo::ROOT, name.as_bytes()).await.unwrap();
            wanted.remove(&name);
        }
        Some(content) => {
            let ino = ino_of(volume, &name).await.unwrap();
            let (at, bytes) = (dice.below(content.len() as u64 + 1) as usize, dice.bytes(3_000));
            volume.write(ino, at as u64, bytes.clone().into()).await.unwrap();
            content.resize(content.len().max(at + bytes.len()), 0);
            content[at..at + bytes.len()].copy_from_slice(&bytes);
        }
    }
    moments.push(wanted.clone());
}

#[tokio::test]
async fn nothing_is_lost_over_many_deaths() {
    nothing_is_lost(VolumeStore::new().await, false).await;
}

#[tokio::test]
async fn nothing_is_lost_of_a_local_volume_over_many_deaths() {
    nothing_is_lost(local_store().await, true).await;
}
