//! Every state in which a crash may leave the bucket of a world, and what must be found in it.
//!
//! At any moment the requests that were answered have taken effect; of those under way each has or has not, in any order.
//! Whoever mounts what is left must find the tree of one moment, at or after the last fsync that returned, and no other
//! error than none. Absent: crashes of a mount that is itself a recovery (the worlds of `model.rs` have those).

use std::sync::Arc;
use std::time::Duration;

use tests::model::{Model, digest};
use tests::volume_store::options;
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{BucketRef, Prefixed};
use volume::head::Durability;
use volume::volume::Volume;

use super::log::{Log, Moment, Request};
use super::machine::Dice;
use super::{FOLDER, World};

/// 4 requests under way: all 16 subsets are looked at. Of more, the extremes and as many at random.
const UNDER_WAY_EXHAUSTIVE: usize = 4;

/// What a world was like, moment by moment of its wire.
#[derive(Debug)]
pub struct Record {
    /// The bucket before the first mount.
    born: MemoryBucket,
    /// The tree after each change, and since when.
    states: Vec<(Moment, String)>,
    /// When each fsync returned, and how many states there were when it was called.
    synced: Vec<(Moment, usize)>,
}

impl Record {
    /// An empty tree.
    pub fn beginning_with(bucket: &MemoryBucket) -> Self {
        Self {
            born: bucket.fork(),
            states: vec![(0, digest_of(&Model::new().lines()))],
            synced: Vec::new(),
        }
    }

    /// The tree is another one.
    pub fn changed(&mut self, log: &Log, model: &Model) {
        let digest = digest_of(&model.after_restart().lines());
        self.states.push((log.tick(), digest));
    }

    /// An fsync has returned; nothing has changed since it was called.
    pub fn synced(&mut self, log: &Log) {
        self.synced.push((log.tick(), self.states.len()));
    }

    /// Which states may be found after a crash at this moment: from the last fsync that had returned on.
    fn possible_at(&self, at: Moment, durability: Durability) -> (usize, usize) {
        let synced = self.synced.iter().rev().find(|(returned, _)| *returned < at);
        let first = match (durability, synced) {
            (Durability::Remote, Some((_, states))) => states - 1,
            (Durability::Remote, None) | (Durability::Relaxed | Durability::Local, _) => 0,
        };
        let last = self.states.partition_point(|(since, _)| *since < at);
        (first, last.max(1) - 1)
    }
}

fn digest_of(lines: &[String]) -> String {
    digest(lines.join("\n").as_bytes())
}

/// Runs a world of `steps` and mounts up to `states_max` of the states in which it may crash, chosen by the seed if
/// there are more. Returns how many were looked at.
///
/// # Panics
/// If one of them is not what it must be; the message names the seed, the moment and the requests under way.
pub async fn check(seed: u64, steps: u32, states_max: usize) -> usize {
    let mut world = World::new(seed).await;
    if world.durability == Durability::Local {
        // Its states are those of a disk as well (`tests/engine.rs` kills such mounts).
        return 0;
    }
    for _ in 0..steps {
        world.step_without_crash().await;
    }
    let mut crashes = crashes_of(&world, &mut Dice::new(!seed));
    let mut dice = Dice::new(seed ^ 0x5eed);
    while crashes.len() > states_max {
        let out = dice.below(crashes.len() as u64) as usize;
        crashes.swap_remove(out);
    }
    crashes.sort_by_key(|crash| crash.at);
    let requests = world.wire.log.requests();
    let (bucket, mut ended) = (world.record.born.fork(), ends_of(&requests).into_iter().peekable());
    for crash in &crashes {
        while let Some((_, index)) = ended.next_if(|(end, _)| *end < crash.at) {
            requests[index].take_effect(&bucket).await;
        }
        let left = bucket.fork();
        for index in &crash.also {
            requests[*index].take_effect(&left).await;
        }
        world.must_recover(seed, left, crash, &requests).await;
    }
    crashes.len()
}

/// A state of the bucket.
#[derive(Debug)]
struct Crash {
    /// Everything that was answered before it took effect.
    at: Moment,
    /// Requests under way that took effect as well.
    also: Vec<usize>,
}

/// Requests by the moment of their answer.
fn ends_of(requests: &[Request]) -> Vec<(Moment, usize)> {
    let mut ends: Vec<_> = requests
        .iter()
        .enumerate()
        .filter_map(|(index, request)| Some((request.ended?, index)))
        .collect();
    ends.sort_unstable();
    ends
}

/// Each state at the latest moment at which it is possible: just before the answer to a request that did not take
/// effect in it. There the most must be found.
fn crashes_of(world: &World, dice: &mut Dice) -> Vec<Crash> {
    let requests = world.wire.log.requests();
    let mut ends = ends_of(&requests);
    ends.push((world.wire.log.tick(), usize::MAX));
    let mut crashes = Vec::new();
    for (at, missing) in ends {
        let under_way: Vec<usize> = requests
            .iter()
            .enumerate()
            .filter(|(index, request)| {
                request.began < at && request.ended.is_none_or(|end| end >= at) && *index != missing
            })
            .map(|(index, _)| index)
            .collect();
        for subset in subsets(under_way.len(), dice) {
            let also = under_way
                .iter()
                .enumerate()
                .filter(|(bit, _)| subset >> bit & 1 == 1)
                .map(|(_, index)| *index)
                .collect();
            crashes.push(Crash { at, also });
        }
    }
    crashes
}

/// Subsets of so many things, as bits.
fn subsets(count: usize, dice: &mut Dice) -> Vec<u64> {
    if count <= UNDER_WAY_EXHAUSTIVE {
        return (0..1 << count).collect();
    }
    let all = 1u64.checked_shl(count as u32).map_or(u64::MAX, |bit| bit - 1);
    let mut chosen = vec![0, all];
    chosen.extend((0..1 << UNDER_WAY_EXHAUSTIVE).map(|_| dice.below(u64::MAX >> 11) & all));
    chosen.sort_unstable();
    chosen.dedup();
    chosen
}

impl World {
    /// Mounts what a crash left, and looks.
    async fn must_recover(&self, seed: u64, left: MemoryBucket, crash: &Crash, requests: &[Request]) {
        let told = || {
            let name = |index: &usize| format!("{:?}", requests[*index].key);
            let also: Vec<String> = crash.also.iter().map(name).collect();
            let missing: Vec<&String> = requests
                .iter()
                .enumerate()
                .filter(|(index, request)| {
                    request.began < crash.at
                        && request.ended.is_none_or(|end| end >= crash.at)
                        && !crash.also.contains(index)
                })
                .map(|(_, request)| &request.key)
                .collect();
            format!(
                "seed {seed}, moment {}, took effect without an answer: {also:?}, did not: {missing:?}",
                crash.at
            )
        };
        let bucket: BucketRef = Arc::new(Prefixed::new(Arc::new(left), format!("{FOLDER}/")));
        let volume = Volume::open(bucket, options())
            .await
            .unwrap_or_else(|error| panic!("the volume does not open: {error}: {}", told()));
        let found = digest_of(&self.lines(&volume).await);
        let (first, last) = self.record.possible_at(crash.at, self.durability);
        assert!(
            self.record.states[first..=last]
                .iter()
                .any(|(_, digest)| *digest == found),
            "the tree is none of states {first} to {last}: {}",
            told()
        );
    }

    /// Something happens, but no crash.
    async fn step_without_crash(&mut self) {
        self.step += 1;
        match self.dice.below(100) {
            0..15 => self.make().await,
            15..45 => self.change_content().await,
            45..53 => self.unlink().await,
            53..64 => self.rename().await,
            64..68 => self.link().await,
            68..76 => self.attributes().await,
            76..82 => self.open_or_close().await,
            82..92 => self.sync().await,
            _ => tokio::time::sleep(Duration::from_millis(self.dice.below(40))).await,
        }
    }
}
