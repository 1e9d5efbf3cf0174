//! `check --repair` of a volume whose metadata tree has lost one of its own files, or a bit of one.
//!
//! Goal: after the repair the volume mounts, every file is as it was or was told, and nothing more is wrong; a repair that ends
//! anywhere and is begun again leads to the same. Method: a volume of several mounts, some of whose rows were compacted; a fork of its
//! bucket for each damage; a listing of everything before and after, of which each difference must be named by a finding.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use tests::environment::number;
use tests::faulty_bucket::{Faults, FaultyBucket, flip_bit};
use tests::history::Dice;
use tests::volume_store::{CALLER, VolumeStore, options};
use tokio::time::timeout;
use uuid::Uuid;
use volume::admin::{Admin, CapacityRange, CreateVolume, Led};
use volume::attr::{Place, RenameMode, XattrMode};
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{Bucket, BucketRef};
use volume::check::repair::{Finding, Remedy, RepairError, RepairOptions, RepairReport, repair};
use volume::check::{CheckOptions, check};
use volume::clock::Timestamp;
use volume::head::Parameters;
use volume::ids::InodeNo;
use volume::lineage::Source;
use volume::snapshot::NewClone;
use volume::volume::{OpenOptions, Volume};
use volume::volume_id::{NodeId, VolumeId};

use super::say;
use super::seen::{Listing, Seen, Told, brief, listing};

/// Mounts whose rows are compacted before the next ones come: as many as a compaction waits for.
const COMPACTED_MOUNTS: u64 = 9;

/// Mounts after them.
const LATER_MOUNTS: u64 = 3;

/// Files that each mount makes: together they fill several blocks of the tree.
const FILES: u64 = 40;

/// Bits that each file with rows loses in turn; `PANNIER_FLIPS` asks for more.
const FLIPS: u64 = 3;

/// An hour: whoever waits longer is stuck.
pub(super) const STUCK: Duration = Duration::from_secs(3_600);

/// A volume, and what is in it.
pub(super) struct World {
    seed: u64,
    pub(super) memory: Arc<MemoryBucket>,
    files: Listing,
}

async fn make_files(volume: &Volume, mount: u64, dice: &mut Dice) {
    let name = |mount: u64| format!("dir {mount}");
    let dir = volume.mkdir(InodeNo::ROOT, name(mount).as_bytes(), 0o755, CALLER).await;
    let dir = dir.unwrap().ino;
    for number in 0..FILES {
        let file = format!("file {number}");
        let ino = volume.create(dir, file.as_bytes(), 0o640, CALLER).await.unwrap().ino;
        let len = [10, 400, 5_000, 9_000][dice.below(4) as usize];
        volume.write(ino, 0, dice.bytes(len).into()).await.unwrap();
        if number % 10 == 1 {
            // A hole, and more than one frame behind it.
            let offset = 1_000_000 + dice.below(100_000);
            volume.write(ino, offset, dice.bytes(200_000).into()).await.unwrap();
        }
        if number % 5 == 2 {
            let value = dice.bytes(30).into();
            volume.setxattr(ino, b"user.a", value, XattrMode::Any).await.unwrap();
        }
        if number % 7 == 3 {
            let other = format!("other name of {mount}-{number}");
            volume.link(ino, InodeNo::ROOT, other.as_bytes()).await.unwrap();
        }
        volume.release(ino);
    }
    volume.symlink(dir, b"link", b"file 1", CALLER).await.unwrap();
    volume.mkdir(dir, b"folder", 0o700, CALLER).await.unwrap();
    if mount > 0 {
        // What earlier mounts made is changed, and some of it goes.
        let before = volume.lookup(InodeNo::ROOT, name(mount - 1).as_bytes()).await;
        let before = before.unwrap().ino;
        volume.unlink(before, b"file 4").await.unwrap();
        let changed = volume.lookup(before, b"file 5").await.unwrap().ino;
        volume.write(changed, 100, dice.bytes(6_000).into()).await.unwrap();
    }
    volume.sync_all().await.unwrap();
    // Rows alone: the journal object of such a commit goes once the tree has it, so that they are in the tree and nowhere else.
    for number in 0..FILES / 4 {
        let name = format!("short {number}");
        let ino = volume.create(dir, name.as_bytes(), 0o600, CALLER).await.unwrap().ino;
        volume.write(ino, 0, dice.bytes(20).into()).await.unwrap();
        volume
            .setxattr(ino, b"user.b", dice.bytes(9).into(), XattrMode::Any)
            .await
            .unwrap();
        volume.release(ino);
    }
    let place = |name| Place { dir, name };
    let (from, to) = (place(b"file 6"), place(b"renamed"));
    volume.rename(from, to, RenameMode::Replace).await.unwrap();
    volume.unlink(dir, b"file 7").await.unwrap();
    volume.sync_all().await.unwrap();
}

impl World {
    pub(super) async fn new(seed: u64, closed: bool) -> Self {
        let mut dice = Dice::new(seed);
        let store = VolumeStore::new().await;
        for mount in 0..COMPACTED_MOUNTS + LATER_MOUNTS {
            let volume = store.open(store.memory.clone(), options()).await;
            if mount == COMPACTED_MOUNTS {
                // The upkeep of this mount finds many files, and makes one of them.
                tokio::time::sleep(Duration::from_secs(60)).await;
            }
            make_files(&volume, mount, &mut dice).await;
            volume.close().await.unwrap();
        }
        let memory = store.memory.clone();
        if !closed {
            let bucket = Arc::new(FaultyBucket::new(memory.clone(), seed, Faults::none()));
            let volume = store.open(bucket.clone(), options()).await;
            make_files(&volume, COMPACTED_MOUNTS + LATER_MOUNTS, &mut dice).await;
            bucket.crash();
            drop(volume);
        }
        let memory = Arc::new(memory.fork());
        let reading = Arc::new(memory.fork());
        let volume = Volume::open(reading, options()).await.unwrap();
        let files = listing(&volume).await.unwrap();
        volume.close().await.unwrap();
        Self { seed, memory, files }
    }

    /// The tree's own files.
    fn tree_files(&self) -> Vec<String> {
        let keys = self.memory.keys().into_iter();
        keys.filter(|key| key.contains("/m/")).collect()
    }

    /// All of them but old manifests and the like, which nobody reads: of those the last two.
    fn telling_files(&self) -> Vec<String> {
        let mut files = self.tree_files();
        for ending in [".manifest", ".compactions"] {
            let mut last: Vec<String> = files.extract_if(.., |key| key.ends_with(ending)).collect();
            files.extend(last.split_off(last.len().saturating_sub(2)));
        }
        files
    }

    fn newest(&self, ending: &str) -> String {
        let keys = self.tree_files().into_iter();
        keys.filter(|key| key.ends_with(ending)).max().unwrap()
    }

    /// A fork whose largest file of the tree has lost a bit.
    pub(super) async fn with_a_flipped_bit(&self) -> Arc<MemoryBucket> {
        let mut sizes = Vec::new();
        for key in self.tree_files().into_iter().filter(|key| key.ends_with(".sst")) {
            sizes.push((self.memory.head(&key).await.unwrap().size_bytes, key));
        }
        let (size_bytes, largest) = sizes.into_iter().max().unwrap();
        let damaged = Arc::new(self.memory.fork());
        let bucket: BucketRef = damaged.clone();
        flip_bit(&bucket, &largest, size_bytes * 8 / 3).await.unwrap();
        damaged
    }

    /// Repairs what was damaged, and compares.
    async fn judge(&self, damaged: Arc<MemoryBucket>, what: &str) -> (Vec<Finding>, Listing) {
        let what = format!("seed {}: {what}", self.seed);
        let (report, found) = timeout(STUCK, mended(&damaged))
            .await
            .unwrap_or_else(|_| panic!("{what}: stuck"));
        let report = report.unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(report.left, 0, "{what}: {found:#?}");
        let after = self.sound(&damaged, &what).await;
        self.compare(&after, &found, &what);
        (found, after)
    }

    /// A volume that a repair has left mounts, and nothing more is found.
    pub(super) async fn sound(&self, memory: &Arc<MemoryBucket>, what: &str) -> Listing {
        let mut wrong = Vec::new();
        let report = check(memory.clone(), CheckOptions::default(), &mut |damage| {
            wrong.push(damage)
        })
        .await;
        assert!(wrong.is_empty(), "{what}: {wrong:#?}");
        report.unwrap();
        let volume = Volume::open(Arc::new(memory.fork()), options()).await.unwrap();
        let files = listing(&volume).await.unwrap_or_else(|error| panic!("{what}: {error}"));
        let new = volume
            .create(InodeNo::ROOT, b"afterwards", 0o600, CALLER)
            .await
            .unwrap();
        assert!(
            files.values().all(|seen| seen.ino != new.ino.0),
            "{what}: a number is given out twice"
        );
        volume.close().await.unwrap();
        files
    }

    /// Every difference is told.
    fn compare(&self, after: &Listing, found: &[Finding], what: &str) {
        let told = Told::of(found);
        for (path, before) in &self.files {
            let same = after.get(path) == Some(before);
            assert!(
                same || told.has(before.ino) || told.has(before.dir),
                "{what}: {path} was {}, and is {:?}; told was {found:#?}",
                brief(before),
                after.get(path).map(brief)
            );
        }
        for (path, now) in after {
            let known = self.files.contains_key(path) || path == "/lost+found";
            assert!(
                known || told.has(now.ino) || told.has(now.dir),
                "{what}: {path} came to be: {}; told was {found:#?}",
                brief(now)
            );
        }
    }
}

pub(super) fn with_loss() -> RepairOptions {
    RepairOptions {
        apply: true,
        accept_loss: true,
        force: true,
        ..RepairOptions::plan(NodeId::new("rescue").unwrap(), Timestamp::default())
    }
}

pub(super) async fn mended(memory: &Arc<MemoryBucket>) -> (Result<RepairReport, RepairError>, Vec<Finding>) {
    repaired(memory.clone(), with_loss()).await
}

pub(super) async fn repaired(
    bucket: BucketRef,
    options: RepairOptions,
) -> (Result<RepairReport, RepairError>, Vec<Finding>) {
    let mut found = Vec::new();
    let report = repair(bucket, options, &mut |finding| found.push(finding)).await;
    (report, found)
}

/// True if the volume cannot be opened, or not all of it be read, or not all that was there is there.
async fn is_harmed(memory: &MemoryBucket, files: &Listing) -> bool {
    let opened = timeout(STUCK, Volume::open(Arc::new(memory.fork()), options())).await;
    let Ok(Ok(volume)) = opened else { return true };
    let listed = timeout(STUCK, listing(&volume)).await;
    !matches!(listed, Ok(Ok(listed)) if listed == *files)
}

pub(super) fn seed() -> u64 {
    let seed = number("PANNIER_SEED").unwrap_or(1);
    say(&format!("seed {seed}"));
    seed
}

/// Each file of the tree, flipped in some places and deleted, in a volume that was closed and in one that was not.
#[tokio::test(start_paused = true)]
async fn a_damaged_file_of_the_tree_is_repaired_and_what_it_takes_is_told() {
    let seed = seed();
    let of_a_file = number("PANNIER_FLIPS").unwrap_or(FLIPS);
    for closed in [true, false] {
        let world = World::new(seed, closed).await;
        let mut dice = Dice::new(seed);
        let (mut damages, mut harmed, mut right) = (0, 0, 0);
        let files = world.telling_files();
        let newest: BTreeSet<String> = [".manifest", ".compactions"].map(|ending| world.newest(ending)).into();
        for key in &files {
            let size = world.memory.head(key).await.unwrap().size_bytes;
            let flips = if key.ends_with(".sst") && closed { of_a_file } else { 1 };
            for flip in 0..=flips {
                let damaged = Arc::new(world.memory.fork());
                let what = if flip == flips {
                    damaged.delete(key).await.unwrap();
                    format!("{key} deleted")
                } else {
                    let bit = match flip {
                        // The end, where the index is and what leads to it.
                        0 if flips > 1 => (size - 1 - dice.below(size.min(40))) * 8,
                        _ => dice.below(size * 8),
                    };
                    let bucket: BucketRef = damaged.clone();
                    flip_bit(&bucket, key, bit).await.unwrap();
                    format!("bit {bit} of {key} of {size} bytes flipped")
                };
                let what = format!("{what}, closed: {closed}");
                let is_harmed = is_harmed(&damaged, &world.files).await;
                harmed += u64::from(is_harmed);
                damages += 1;
                let (found, after) = world.judge(damaged, &what).await;
                assert!(!is_harmed || !found.is_empty(), "{what}: it harms, and nothing is told");
                let is_needed = newest.contains(key) && flip < flips;
                assert!(is_harmed || !is_needed, "{what}: nothing is read past it");
                right += world
                    .files
                    .iter()
                    .filter(|(path, seen)| after.get(*path) == Some(*seen))
                    .count();
            }
        }
        let all = world.files.len() * damages;
        say(&format!(
            "closed {closed}: {harmed} of {damages} damages to {} files of the tree were felt; {right} of {all} names were as before after the repair",
            files.len()
        ));
        assert!(harmed > 0 && right > all / 2, "{right} of {all}");
    }
}

/// All manifests, all files with rows, and all of the tree.
#[tokio::test(start_paused = true)]
async fn a_tree_that_lost_all_files_of_a_kind_is_made_of_the_others_and_the_journal() {
    let seed = seed();
    for closed in [true, false] {
        let world = World::new(seed, closed).await;
        for (kind, least) in [(".manifest", 9), (".sst", 1), ("", 1)] {
            let damaged = Arc::new(world.memory.fork());
            for key in world.tree_files().iter().filter(|key| key.ends_with(kind)) {
                damaged.delete(key).await.unwrap();
            }
            let what = format!("all files {kind:?}, closed: {closed}");
            let (_, after) = world.judge(damaged, &what).await;
            let right = world
                .files
                .iter()
                .filter(|(path, seen)| after.get(*path) == Some(*seen))
                .count();
            let is_there = |seen: &Seen| {
                after
                    .values()
                    .any(|now| now.ino == seen.ino && now.content == seen.content)
            };
            let found = world.files.values().filter(|seen| is_there(seen)).count();
            say(&format!(
                "{what}: {right} of {} names, {found} contents",
                world.files.len()
            ));
            assert!(least == 1 || 10 * right >= least * world.files.len(), "{what}: {right}");
        }
    }
}

/// Goal: a closed volume whose tree has lost its newest manifests, or all files, is not taken for an older one or a new one. Method: it
/// is opened twice to write, for the second one finds what the first has left of the head, and to read; then it is repaired.
#[tokio::test(start_paused = true)]
async fn a_closed_volume_is_not_opened_as_an_older_one() {
    let world = World::new(seed(), true).await;
    let all = world.tree_files();
    let manifests: Vec<_> = all.iter().filter(|key| key.ends_with(".manifest")).cloned().collect();
    // Closing writes two: with the rows that were left, and to say that the tree is closed.
    let newest = &manifests[manifests.len() - 2..];
    for (what, gone) in [("the newest manifests", newest), ("all of the tree", &all[..])] {
        let damaged = Arc::new(world.memory.fork());
        for key in gone {
            damaged.delete(key).await.unwrap();
        }
        let reads = OpenOptions {
            read_only: true,
            ..options()
        };
        for options in [options(), options(), reads] {
            let opened = Volume::open(damaged.clone(), options).await;
            let error = opened.map(|_| ()).expect_err(what).to_string();
            assert!(error.contains("was closed at"), "{what}: {error}");
        }
        world.judge(damaged, what).await;
    }
}

/// Without consent nothing is lost; a damage that takes no rows needs none.
#[tokio::test(start_paused = true)]
async fn rows_are_given_up_only_where_the_loss_is_accepted() {
    let world = World::new(seed(), true).await;
    let careful = |apply| RepairOptions {
        accept_loss: false,
        apply,
        ..with_loss()
    };
    let damaged = Arc::new(world.memory.fork());
    damaged.delete(&world.newest(".sst")).await.unwrap();
    let (before, plan) = (damaged.keys(), repaired(damaged.clone(), careful(false)).await);
    assert!(
        plan.1.iter().any(|finding| finding.remedy == Remedy::NeedsConsent),
        "{plan:#?}"
    );
    let refused = repaired(damaged.clone(), careful(true)).await.0.unwrap_err();
    assert!(matches!(refused, RepairError::TreeRows), "{refused}");
    assert_eq!(damaged.keys(), before);

    let damaged = Arc::new(world.memory.fork());
    let bucket: BucketRef = damaged.clone();
    flip_bit(&bucket, &world.newest(".compactions"), 100).await.unwrap();
    assert!(Volume::open(Arc::new(damaged.fork()), options()).await.is_err());
    let (report, found) = repaired(damaged.clone(), careful(true)).await;
    let report = report.unwrap();
    assert_eq!((report.given_up, report.left), (0, 0), "{found:#?}");
    let after = world.sound(&damaged, "a file of compactions").await;
    assert!(after == world.files);
}

/// A repair ends at each change of the bucket that it makes, and is begun again.
#[tokio::test(start_paused = true)]
async fn a_repair_that_is_cut_short_anywhere_is_begun_again_and_ends_the_same() {
    let seed = seed();
    for closed in [true, false] {
        let world = World::new(seed, closed).await;
        let damaged = world.with_a_flipped_bit().await;
        let (_, want) = world.judge(Arc::new(damaged.fork()), "the whole repair").await;
        let mut cuts = 0;
        for cut in 1.. {
            let left = Arc::new(damaged.fork());
            let faulty = Arc::new(FaultyBucket::new(left.clone(), seed + cut, Faults::none()));
            faulty.crash_at(cut);
            let first = timeout(Duration::from_secs(30), repaired(faulty.clone(), with_loss())).await;
            if !faulty.is_crashed() {
                assert!(first.unwrap().0.is_ok(), "seed {seed}, cut {cut}");
                break;
            }
            cuts = cut;
            let what = format!("seed {seed}, closed {closed}, cut {cut}");
            let (report, _) = timeout(STUCK, mended(&left)).await.unwrap();
            report.unwrap_or_else(|error| panic!("{what}: {error}"));
            let after = world.sound(&left, &what).await;
            assert!(after == want, "{what}: it ends as another volume");
        }
        say(&format!("closed {closed}: ended at {cuts} changes"));
        assert!(cuts > 5);
    }
}

/// What snapshots and clones had before a repair they have after it, and new ones are made of the new tree.
#[tokio::test(start_paused = true)]
async fn snapshots_and_clones_of_before_a_repair_are_read_after_it() {
    let mut dice = Dice::new(seed());
    let memory = Arc::new(MemoryBucket::new());
    let admin = Admin::new(memory.clone(), Uuid::from_u128(1));
    let new = |name: &str| CreateVolume {
        name: name.to_owned(),
        uuid: Uuid::new_v4(),
        capacity: CapacityRange::default(),
        parameters: Parameters::default(),
        now: Timestamp::default(),
    };
    let root = |name: &str| admin.volume_root(&VolumeId::parse(name).unwrap());
    let open = async |name: &str| Volume::open(root(name), options()).await.unwrap();
    let clone = async |name: &str, source| {
        let new = NewClone {
            volume: new(name),
            folder: name.to_owned(),
            source,
        };
        admin.family().clone_volume(&new).await.unwrap();
    };
    let snapshot = async |name: &str| {
        let made = admin.family().snapshot("v", name, Timestamp::default()).await;
        Source::Snapshot(made.unwrap().id)
    };
    admin.create(&new("v")).await.unwrap();
    let volume = open("v").await;
    make_files(&volume, 0, &mut dice).await;
    let before = listing(&volume).await.unwrap();
    volume.close().await.unwrap();
    let first = snapshot("first").await;
    clone("mounted", first.clone()).await;
    let mounted = open("mounted").await;
    make_files(&mounted, 1, &mut dice).await;
    let of_clone = listing(&mounted).await.unwrap();
    mounted.close().await.unwrap();
    clone("never-mounted", first.clone()).await;
    let volume = open("v").await;
    make_files(&volume, 1, &mut dice).await;
    let newest = listing(&volume).await.unwrap();
    volume.close().await.unwrap();

    // The newest manifests of the volume and of its clone.
    for name in ["v", "mounted"] {
        let keys = memory.keys().into_iter();
        let key = keys.filter(|key| key.contains(&format!("/{name}/")) || key.starts_with(&format!("{name}/")));
        let key = key.filter(|key| key.ends_with(".manifest")).max().unwrap();
        let bucket: BucketRef = memory.clone();
        flip_bit(&bucket, &key, 77).await.unwrap();
        assert!(Volume::open(root(name), options()).await.is_err(), "{key}");
        let (report, found) = repaired(root(name), with_loss()).await;
        assert_eq!(report.unwrap().left, 0, "{found:#?}");
    }
    let second = snapshot("second").await;
    clone("after", second.clone()).await;
    clone("again", first.clone()).await;
    let wanted = [
        ("v", &newest),
        ("mounted", &of_clone),
        ("never-mounted", &before),
        ("after", &newest),
        ("again", &before),
    ];
    for (name, wanted) in wanted {
        let mut wrong = Vec::new();
        let report = check(root(name), CheckOptions::default(), &mut |damage| wrong.push(damage)).await;
        assert!(wrong.is_empty(), "{name}: {wrong:#?}");
        assert_eq!(report.unwrap().snapshots, if name == "v" { 2 } else { 0 });
        let volume = open(name).await;
        let mut found = listing(&volume).await.unwrap();
        found.remove("/lost+found");
        assert!(found == *wanted, "{name}");
        volume.close().await.unwrap();
    }
    delete_all(&admin, [first, second]).await;
    assert_eq!(memory.keys(), Vec::<String>::new(), "nothing is left of them");
}

/// Deletes these snapshots, and all volumes.
async fn delete_all(admin: &Admin, snapshots: [Source; 2]) {
    for source in snapshots {
        let Source::Snapshot(id) = source else { continue };
        admin.family().delete_snapshot(&id).await.unwrap();
    }
    for name in ["v", "mounted", "never-mounted", "after", "again"] {
        let volume = VolumeId::parse(name).unwrap();
        admin.delete(&volume, Led::Ignore).await.unwrap();
    }
}
