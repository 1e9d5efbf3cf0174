//! Each fault of `faulty_bucket.rs` alone, against a volume that several programs append to, through crashes, take-overs and
//! closings.
//!
//! Goal: whatever one kind of fault does, an append whose fsync returned is there in every later life, nothing is there that was
//! not written, and nobody is refused anything before the crash or the take-over. Method: one world is one fault and one seed;
//! a life opens the volume through a bucket with that fault, four programs append and fsync at once, then it crashes, is
//! taken over by the next one, or closes. The header of `faulty_bucket.rs` names for each fault a mistake that was made
//! on purpose, and that this found.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use tests::environment::number;
use tests::faulty_bucket::{Faults, FaultyBucket, flip_bit};
use tests::history::Dice;
use tests::volume_store::{VolumeStore, make_file, options};
use tokio::task::JoinSet;
use tokio::time::timeout;
use volume::bucket::{Bucket, BucketRef};
use volume::error::FsError;
use volume::head::HeadError;
use volume::ids::InodeNo;
use volume::open::OpenError;
use volume::tree::TreeError;
use volume::volume::Volume;

use super::say;

/// Worlds of each fault; `PANNIER_FAULT_WORLDS` asks for more.
const WORLDS: u64 = 4;

/// Lives of a world.
const LIVES: u64 = 5;

/// Programs that append, each to a file of its own.
const PROGRAMS: u64 = 4;

/// Bytes of an append: not in the row of the inode, so a frame.
const APPEND_BYTES: u64 = 5_000;

/// An hour: whoever waits longer in a world is stuck.
const STUCK: Duration = Duration::from_secs(3_600);

/// The faults of the model that strike single calls, one at a time, each often.
fn kinds() -> Vec<(&'static str, Faults)> {
    let none = Faults::none;
    vec![
        (
            "latency",
            Faults {
                latency: Duration::from_millis(1)..Duration::from_secs(2),
                ..none()
            },
        ),
        (
            "fail before",
            Faults {
                fail_before: 200,
                ..none()
            },
        ),
        (
            "fail after the effect",
            Faults {
                fail_after: 200,
                ..none()
            },
        ),
        (
            "late effect",
            Faults {
                late_effect: 200,
                late_by: Duration::from_secs(5),
                ..none()
            },
        ),
        (
            "stale 412",
            Faults {
                stale_precondition: 200,
                ..none()
            },
        ),
        (
            "cut body",
            Faults {
                cut_body: 200,
                ..none()
            },
        ),
        ("outage", none()),
        ("crash", none()),
    ]
}

/// What one program wrote: so many appends, and so many of them before the last fsync that returned.
#[derive(Debug, Default)]
struct Appended {
    written: AtomicU64,
    synced: AtomicU64,
}

/// A world.
struct World {
    name: String,
    kind: &'static str,
    faults: Faults,
    store: VolumeStore,
    dice: Dice,
    files: Vec<(InodeNo, Arc<Appended>)>,
}

/// The bytes of one append: told from those of every other one, and not compressible.
fn appended(program: u64, number: u64) -> Bytes {
    Dice::new(program << 32 | number).bytes(APPEND_BYTES).into()
}

/// True where the same opening may succeed later.
fn may_pass(error: &OpenError) -> bool {
    match error {
        OpenError::Head(HeadError::Bucket(error)) | OpenError::Bucket(error) => error.is_transient(),
        OpenError::Head(HeadError::Contended) | OpenError::Tree(TreeError::Unavailable { .. }) => true,
        _ => false,
    }
}

impl World {
    async fn new((kind, faults): (&'static str, Faults), seed: u64) -> Self {
        let store = VolumeStore::new().await;
        let volume = store.open(store.memory.clone(), options()).await;
        let mut files = Vec::new();
        for program in 0..PROGRAMS {
            let ino = make_file(&volume, &format!("file {program}"), &[]).await;
            files.push((ino, Arc::default()));
        }
        volume.close().await.unwrap();
        Self {
            name: format!("{kind}, seed {seed}"),
            kind,
            faults,
            store,
            dice: Dice::new(seed),
            files,
        }
    }

    /// Opens the volume under the fault; tried again, as an engine does, while the store alone is to blame.
    async fn open(&mut self) -> (Arc<FaultyBucket>, Volume) {
        // An opening may ask some hundred times, and gives up at the first failure: the engine's own bucket repeats requests.
        let seldom = Faults {
            fail_before: self.faults.fail_before / 40,
            fail_after: self.faults.fail_after / 40,
            late_effect: self.faults.late_effect / 40,
            stale_precondition: self.faults.stale_precondition / 40,
            cut_body: self.faults.cut_body / 40,
            ..self.faults.clone()
        };
        let faulty = FaultyBucket::new(self.store.memory.clone(), self.dice.roll(), seldom);
        let faulty = Arc::new(faulty);
        let mut last = None;
        for _ in 0..200 {
            match Volume::open(faulty.clone(), options()).await {
                Ok(volume) => {
                    faulty.set_faults(self.faults.clone());
                    return (faulty, volume);
                }
                Err(error) if may_pass(&error) => last = Some(error),
                Err(error) => panic!("{}: the volume does not open: {error}", self.name),
            }
        }
        panic!("{}: the volume did not open in 200 tries: {last:?}", self.name);
    }

    /// Every file holds what was synced, and nothing that was not written. What is there has been written for good.
    async fn look(&self, volume: &Volume) {
        for (program, (ino, appends)) in (0..).zip(&self.files) {
            let read = timeout(STUCK, volume.read(*ino, 0, u32::MAX)).await;
            let read = read.unwrap_or_else(|_| panic!("{}: a read is stuck", self.name));
            let content = read.unwrap_or_else(|error| panic!("{}: {error}", self.name)).concat();
            let (found, rest) = (content.len() as u64 / APPEND_BYTES, content.len() as u64 % APPEND_BYTES);
            let (written, synced) = (
                appends.written.load(Ordering::SeqCst),
                appends.synced.load(Ordering::SeqCst),
            );
            assert!(
                rest == 0 && (synced..=written).contains(&found),
                "{}: file {program} has {found} appends and {rest} bytes, {synced} were synced, {written} written",
                self.name
            );
            for (number, piece) in (0..).zip(content.chunks(APPEND_BYTES as usize)) {
                assert!(
                    piece == appended(program, number),
                    "{}: append {number} of file {program}",
                    self.name
                );
            }
            appends.written.store(found, Ordering::SeqCst);
            appends.synced.store(found, Ordering::SeqCst);
        }
    }

    /// Programs that append and fsync until the volume fails; what they were told before is in the lists.
    fn programs(&self, volume: &Volume) -> JoinSet<FsError> {
        let mut programs = JoinSet::new();
        for (program, (ino, appends)) in (0..).zip(&self.files) {
            let (volume, ino, appends) = (volume.clone(), *ino, Arc::clone(appends));
            programs.spawn(async move {
                loop {
                    let number = appends.written.fetch_add(1, Ordering::SeqCst);
                    let (offset, data) = (number * APPEND_BYTES, appended(program, number));
                    if let Err(error) = volume.write(ino, offset, data).await {
                        return error;
                    }
                    if let Err(error) = volume.fsync(ino).await {
                        return error;
                    }
                    appends.synced.store(number + 1, Ordering::SeqCst);
                    // A program does something else, too; where requests take no time this is what lets time pass.
                    tokio::time::sleep(Duration::from_millis(3)).await;
                }
            });
        }
        programs
    }

    /// Waits until the programs have appended so often together.
    async fn progress(&self, programs: &mut JoinSet<FsError>, appends: u64) {
        let synced = || {
            self.files
                .iter()
                .map(|(_, appends)| appends.synced.load(Ordering::SeqCst))
                .sum::<u64>()
        };
        let wanted = synced() + appends;
        let enough = async {
            while synced() < wanted {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::select! {
            done = timeout(STUCK, enough) => assert!(done.is_ok(), "{}: the programs are stuck", self.name),
            Some(error) = programs.join_next() => panic!("{}: a program was refused: {error:?}", self.name),
        }
    }

    /// One life, which ends by a crash, by a take-over or by closing, in turns.
    async fn live(&mut self, life: u64) {
        let (faulty, volume) = self.open().await;
        self.look(&volume).await;
        let mut programs = self.programs(&volume);
        let appends = 10 + self.dice.below(30);
        self.progress(&mut programs, appends).await;
        if self.kind == "outage" {
            faulty.set_available(false);
            tokio::time::sleep(Duration::from_secs(self.dice.below(3_000))).await;
            faulty.set_available(true);
            self.progress(&mut programs, appends).await;
        }
        match life % 3 {
            0 => {
                faulty.crash_at(1 + self.dice.below(6));
                let crashed = async {
                    while !faulty.is_crashed() {
                        tokio::time::sleep(Duration::from_micros(200)).await;
                    }
                };
                let crashed = timeout(STUCK, crashed).await;
                assert!(crashed.is_ok(), "{}: nothing is put any more", self.name);
                programs.shutdown().await;
            }
            1 => {
                // The next one opens while this one still writes; then this one can acknowledge nothing more.
                let (_, next) = self.open().await;
                let fenced = async { while programs.join_next().await.is_some() {} };
                let fenced = timeout(STUCK, fenced).await;
                assert!(fenced.is_ok(), "{}: who lost the volume does not notice", self.name);
                self.look(&next).await;
                close(&self.name, &next).await;
            }
            _ => {
                programs.shutdown().await;
                close(&self.name, &volume).await;
            }
        }
    }
}

impl World {
    /// A volume without faults to which programs have appended, closed.
    async fn written(seed: u64) -> Self {
        let mut world = Self::new(("bit flip", Faults::none()), seed).await;
        let (_, volume) = world.open().await;
        let mut programs = world.programs(&volume);
        world.progress(&mut programs, 20).await;
        programs.shutdown().await;
        close(&world.name, &volume).await;
        world
    }

    /// Reads all that a program has synced, append by append, and returns how many were refused by an error that `may` be.
    async fn read_all(&self, volume: &Volume, program: usize, flip: &str, may: fn(&FsError) -> bool) -> u64 {
        let (ino, appends) = &self.files[program];
        let mut refused = 0;
        for number in 0..appends.synced.load(Ordering::SeqCst) {
            let read = volume.read(*ino, number * APPEND_BYTES, APPEND_BYTES as u32);
            match timeout(STUCK, read).await.expect("damage is told at once") {
                Ok(parts) => assert!(parts.concat() == appended(program as u64, number), "{flip}"),
                Err(error) if may(&error) => refused += 1,
                Err(error) => panic!("{flip}: {error}"),
            }
        }
        refused
    }

    /// Reads everything that is there after a flip. True if the tree tells that it is damaged.
    async fn is_told(&self, left: BucketRef, flip: &str) -> bool {
        let opened = timeout(STUCK, Volume::open(left, options())).await;
        let volume = match opened.unwrap_or_else(|_| panic!("{flip}: opening is stuck")) {
            Ok(volume) => volume,
            Err(OpenError::Tree(_)) => return true,
            Err(error) => panic!("{flip}: {error}"),
        };
        for (program, (ino, appends)) in self.files.iter().enumerate() {
            let name = format!("file {program}");
            let found = timeout(STUCK, volume.lookup(InodeNo::ROOT, name.as_bytes())).await;
            match found.unwrap_or_else(|_| panic!("{flip}: a look-up is stuck")) {
                Ok(attr) => {
                    let len_bytes = appends.synced.load(Ordering::SeqCst) * APPEND_BYTES;
                    assert!(attr.ino == *ino && attr.size >= len_bytes, "{flip}: {attr:?}");
                }
                Err(FsError::Tree(_)) => return true,
                Err(error) => panic!("{flip}: {error}"),
            }
            let told = |error: &FsError| matches!(error, FsError::Tree(_));
            if self.read_all(&volume, program, flip, told).await > 0 {
                return true;
            }
        }
        false
    }
}

/// Closes it, which the store alone may hinder: then it ended without closing.
async fn close(name: &str, volume: &Volume) {
    let closed = timeout(STUCK, volume.close()).await;
    match closed.unwrap_or_else(|_| panic!("{name}: closing is stuck")) {
        Ok(()) | Err(FsError::Bucket(_) | FsError::Head(_) | FsError::Tree(_)) => {}
        Err(error) => panic!("{name}: {error}"),
    }
}

#[tokio::test(start_paused = true)]
async fn no_single_kind_of_fault_loses_what_an_fsync_returned_for() {
    for kind in kinds() {
        for seed in 0..number("PANNIER_FAULT_WORLDS").unwrap_or(WORLDS) {
            let mut world = World::new(kind.clone(), seed).await;
            for life in 0..LIVES {
                world.live(life).await;
            }
            let volume = world.store.open(world.store.memory.clone(), options()).await;
            world.look(&volume).await;
            volume.close().await.unwrap();
            world.store.check(&world.name).await;
        }
    }
}

/// A bit that a store loses never becomes content: what is read is what was written, or an error.
#[tokio::test(start_paused = true)]
async fn a_flipped_bit_is_never_read_as_content() {
    let mut refused = 0;
    for seed in 0..8 * WORLDS {
        let mut world = World::written(seed).await;
        let bucket: BucketRef = world.store.memory.clone();
        let objects = world.store.objects().await;
        let (object, size_bytes) = objects[world.dice.below(objects.len() as u64) as usize];
        let keys = world.store.memory.keys();
        let key = keys
            .iter()
            .find(|key| key.ends_with(&object.key()))
            .expect("it is listed");
        flip_bit(&bucket, key, world.dice.below(size_bytes * 8)).await.unwrap();
        let (_, volume) = world.open().await;
        let flip = format!("{}: {key}", world.name);
        let damaged = |error: &FsError| matches!(error, FsError::Damaged { .. });
        for program in 0..world.files.len() {
            refused += world.read_all(&volume, program, &flip, damaged).await;
        }
    }
    assert!(refused > 0, "no flip has hit content");
    say(&format!("{refused} reads were refused"));
}

/// A bit that a store loses of the tree's own files is told, or is of no consequence. It never makes a file look shorter, other
/// than it was, or absent. Method: one bit of each byte of the newest manifest, and of bytes here and there of the other files.
#[tokio::test(start_paused = true)]
async fn a_flipped_bit_of_the_tree_never_changes_what_is_there() {
    let mut world = World::written(0).await;
    let stored = world.store.memory.clone();
    let keys: Vec<String> = stored.keys().into_iter().filter(|key| key.contains("/m/")).collect();
    let newest = keys
        .iter()
        .filter(|key| key.ends_with(".manifest"))
        .max()
        .expect("a tree has one");
    let (mut flips, mut told) = (0, 0);
    for key in &keys {
        let size_bytes = stored.head(key).await.unwrap().size_bytes;
        let every = if key == newest { 1 } else { 1 + size_bytes / 16 };
        for byte in (0..size_bytes).step_by(every as usize) {
            let left: BucketRef = Arc::new(stored.fork());
            let bit = byte * 8 + world.dice.below(8);
            flip_bit(&left, key, bit).await.unwrap();
            flips += 1;
            told += u64::from(world.is_told(left, &format!("bit {bit} of {key}")).await);
        }
    }
    assert!(told > 0, "no flip has hit rows");
    say(&format!("{told} of {flips} flips were told"));
}
