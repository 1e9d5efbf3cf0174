//! Garbage collection: objects that nothing refers to any more are deleted from the bucket.
//!
//! An object may go when (a) no extent refers to any of its bytes in a state of the tree that is durable, and (b) the
//! commit that made it is in the durable tree, so that no replay needs it: neither its rows nor the proof that its
//! segments landed; and (c) no snapshot or clone holds it (`gc/held.rs`), nor is it of a volume that this one was cloned
//! from. Seals are never deleted: they are what stops a writer that was taken over.
//!
//! Dead objects are found by their counters in the tree, and journal objects that hold rows alone by their place in the
//! journal. Nothing is listed, except once after a crash, to find what the crashed writer left that no row names.
//! Objects that are mostly dead, and many small ones, are emptied first by moving what lives in them (`gc/repack.rs`).
//! Invariant: an object that could not be judged stays. Caller: `volume.rs`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::stream::{self, StreamExt};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::bucket::{BucketError, ListRequest, ObjectMeta};
use crate::error::FsError;
use crate::format::seal::is_seal;
use crate::ids::{Epoch, Generation, JournalSeq, ObjectId};
use crate::limits::CollectLimits;
use crate::mount::Mount;
use crate::row::{Applied, Key, ObjectStats, Row};

/// 1,000 counters are read at a time, and at most 16 times in a round: a TiB of segments is seen in four rounds.
const STATS_ROWS: usize = 1_000;
/// See `STATS_ROWS`.
const SCANS_PER_ROUND: usize = 16;

/// 500 objects are deleted in a round at most: writing must not starve behind deletes.
const DELETES_PER_ROUND: usize = 500;

/// 8 deletes at a time.
const DELETES_AT_ONCE: usize = 8;

/// 4 KiB: a seal is shorter. A longer object needs no look at its bytes to be told from one.
const SEAL_BYTES_MAX: u64 = 4_096;

mod census;
mod held;
mod repack;

use census::Census;
use held::Held;
pub(crate) use repack::Piece;
use repack::{Filled, Pass};

/// What a collector knows between its rounds.
#[derive(Debug)]
pub(crate) struct Collector {
    mount: Arc<Mount>,
    /// Journal objects of our epoch before it were judged.
    journal_next: JournalSeq,
    /// Where the next scan of the counters begins; `None` when all were seen since `scanned`.
    cursor: Option<Key>,
    /// What the tree contained when the last scan of all counters began.
    scanned: Option<Applied>,
    /// Objects found dead, and a state of the tree in which they were.
    dead: BTreeMap<ObjectId, Applied>,
    /// Objects deleted, and the generation that drops their counters.
    deleted: BTreeMap<ObjectId, Generation>,
    /// Where the search for what a crash left goes on; `None` where there is nothing to search.
    sweep: Option<Sweep>,
    limits: CollectLimits,
    /// What the scan of the counters has shown so far.
    census: Census,
    /// Content is being moved.
    pass: Option<Pass>,
    /// When the last pass ended.
    passed: Option<Instant>,
    /// Segments whose rows the tree may lack: they are no garbage yet, whatever their counters say.
    filled: Vec<Filled>,
    /// Objects with damaged content: they are not moved by this mount again.
    unreadable: BTreeSet<ObjectId>,
    /// Snapshots and clones.
    held: Held,
}

/// An object that is garbage of ours, and a state in which it was seen dead, if one is known.
type Dead = (ObjectId, Option<Applied>);

/// A listing under way.
#[derive(Debug, Default)]
struct Sweep {
    segments: bool,
    page: Option<String>,
    /// Holds that had been released when it began.
    released: u64,
}

impl Collector {
    /// `after_crash`: the mount before did not end cleanly.
    pub fn new(mount: Arc<Mount>, after_crash: bool) -> Self {
        Self {
            limits: mount.collect.clone(),
            held: Held::new(&mount),
            mount,
            journal_next: JournalSeq(1),
            cursor: None,
            scanned: None,
            dead: BTreeMap::new(),
            deleted: BTreeMap::new(),
            sweep: after_crash.then(Sweep::default),
            census: Census::default(),
            pass: None,
            passed: None,
            filled: Vec::new(),
            unreadable: BTreeSet::new(),
        }
    }

    /// Collects until it is told to stop, between two rounds.
    pub async fn run(mut self, stop: Arc<Notify>) {
        loop {
            tokio::select! {
                biased;
                () = stop.notified() => return,
                () = tokio::time::sleep(self.limits.every) => {}
            }
            match self.round().await {
                Ok(()) => {}
                Err(FsError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, volume = %self.mount.uuid, "garbage could not be collected; the next round tries again");
                }
            }
        }
    }

    /// One bounded round.
    ///
    /// # Errors
    /// The tree's or the bucket's. What was not deleted is found again.
    pub async fn round(&mut self) -> Result<(), FsError> {
        let Some(durable) = self.mount.commit.as_ref().map(|commit| commit.durable_applied()) else {
            return Ok(());
        };
        let mut room = DELETES_PER_ROUND;
        let dead_held = self.dead.iter().any(|(id, seen)| self.held.needs(*id, Some(*seen)));
        if self.held.is_due(dead_held, self.limits.holds_every) {
            self.look_at_holds().await?;
        }
        let mut going = self.judge_journal(durable, room).await?;
        room -= going.len();
        if self.find_dead().await? {
            self.begin_pass();
        }
        let ready = self.dead.iter().map(|(id, seen)| (*id, Some(*seen)));
        let ready =
            ready.filter(|(id, seen)| seen.is_some_and(|seen| reaches(durable, seen)) && !self.held.needs(*id, *seen));
        going.extend(ready.take(room));
        room = DELETES_PER_ROUND - going.len().min(DELETES_PER_ROUND);
        for object in self.delete(going).await? {
            if self.dead.remove(&object).is_some() {
                let generation = self.drop_counters(object);
                self.deleted.insert(object, generation);
            }
        }
        if durable.epoch == self.mount.epoch && room > 0 {
            self.sweep_page().await?;
        }
        self.move_content().await
    }

    /// Learns of new holds, and of released ones: what they alone held is searched for.
    pub(crate) async fn look_at_holds(&mut self) -> Result<(), FsError> {
        let holds = self.held.refresh(&self.mount).await?;
        if holds.released > holds.swept && self.sweep.is_none() {
            self.sweep = Some(Sweep {
                released: holds.released,
                ..Sweep::default()
            });
        }
        Ok(())
    }

    /// Begins to move content, if that is worth it.
    fn begin_pass(&mut self) {
        let census = std::mem::take(&mut self.census);
        let rested = self
            .passed
            .is_none_or(|passed| passed.elapsed() >= self.limits.repack_every);
        if self.pass.is_some() || !rested {
            return;
        }
        let mut victims = census.victims(&self.limits);
        victims.retain(|object| !self.unreadable.contains(object));
        if !victims.is_empty() {
            tracing::debug!(objects = victims.len(), volume = %self.mount.uuid, "their content is moved together");
            self.pass = Some(Pass::new(victims));
        }
    }

    async fn move_content(&mut self) -> Result<(), FsError> {
        let Some(pass) = &mut self.pass else { return Ok(()) };
        if pass.round(&self.mount, &mut self.filled).await? {
            self.unreadable.append(&mut pass.unreadable);
            self.pass = None;
            self.passed = Some(Instant::now());
        }
        Ok(())
    }

    /// Deletes the journal objects that only the next open's sweep would find, after everything is flushed.
    ///
    /// # Errors
    /// As `round`.
    pub async fn finish(mount: &Arc<Mount>, flushed: Applied) -> Result<(), FsError> {
        let mut collector = Self::new(Arc::clone(mount), false);
        let going = collector.judge_journal(flushed, usize::MAX).await?;
        collector.delete(going).await.map(drop)
    }

    /// Journal objects that the durable tree contains and that have no live content: they may go.
    async fn judge_journal(&mut self, durable: Applied, room: usize) -> Result<Vec<Dead>, FsError> {
        let mut going: Vec<Dead> = self.held.take_free().into_iter().map(|object| (object, None)).collect();
        if durable.epoch != self.mount.epoch {
            return Ok(going);
        }
        while self.journal_next <= durable.seq && going.len() < room {
            let object = ObjectId::Journal(durable.epoch, self.journal_next);
            // One with counters is found by them, when it is dead.
            if self.stats(object).await?.is_none() && !self.deleted.contains_key(&object) {
                going.push((object, None));
            }
            self.journal_next = self.journal_next.next();
        }
        Ok(going)
    }

    async fn stats(&self, object: ObjectId) -> Result<Option<ObjectStats>, FsError> {
        match self.mount.tree.get(&Key::ObjectStats(object)).await? {
            Some(Row::ObjectStats(stats)) => Ok(Some(stats)),
            Some(_) | None => Ok(None),
        }
    }

    /// Reads counters on from where the last round ended, if the tree has changed since they were all read. True where it
    /// has just seen the last of them.
    async fn find_dead(&mut self) -> Result<bool, FsError> {
        let first = Key::ObjectStats(ObjectId::Journal(Epoch(0), JournalSeq(0)));
        let end = Key::ObjectStats(ObjectId::Segment(Epoch(u64::MAX), u64::MAX));
        let applied_generation = self.mount.lock().applied();
        self.deleted.retain(|_, generation| *generation > applied_generation);
        self.filled.retain(|filled| filled.generation > applied_generation);
        if self.cursor.is_none() {
            let applied = self.mount.tree.applied();
            if self.scanned == Some(applied) {
                return Ok(false);
            }
            self.scanned = Some(applied);
            self.census = Census::default();
            self.cursor = Some(first);
        }
        for _ in 0..SCANS_PER_ROUND {
            let Some(from) = self.cursor.take() else {
                return Ok(true);
            };
            let rows = self.mount.tree.scan(&from, &end, STATS_ROWS).await?;
            let seen = self.mount.tree.applied();
            let full = rows.len() == STATS_ROWS;
            for (key, row) in rows {
                let (Key::ObjectStats(object), Row::ObjectStats(stats)) = (&key, row) else {
                    continue;
                };
                if self.filled.iter().any(|filled| filled.object == *object) {
                    // Judged when the tree has all of its rows.
                } else if stats.live_bytes > 0 {
                    // Moving what lives in it frees nothing while it must stay.
                    if !self.mount.lineage.is_foreign(*object) && !self.held.needs(*object, None) {
                        self.census.add(*object, stats);
                    }
                } else if !self.deleted.contains_key(object) {
                    self.dead.entry(*object).or_insert(seen);
                }
                self.cursor = full.then(|| Key::ObjectStats(after(*object)));
            }
        }
        Ok(self.cursor.is_none())
    }

    /// Deletes what nothing holds, and returns what is gone. What is an ancestor's is no concern of ours.
    async fn delete(&mut self, objects: Vec<Dead>) -> Result<Vec<ObjectId>, FsError> {
        if objects.is_empty() {
            return Ok(Vec::new());
        }
        // After the judgement and before the deletion: see `holds.rs`.
        if let Err(error) = self.look_at_holds().await {
            let unjudged = objects.iter().filter(|(_, seen_dead)| seen_dead.is_none());
            self.held.keep(unjudged.map(|(object, _)| *object));
            return Err(error);
        }
        let (mut gone, mut going, mut kept) = (Vec::new(), Vec::new(), Vec::new());
        for (object, seen_dead) in objects {
            if self.mount.lineage.is_foreign(object) {
                gone.push(object);
            } else if !self.held.needs(object, seen_dead) {
                going.push((object, seen_dead));
            } else if seen_dead.is_none() {
                kept.push(object);
            }
        }
        let bucket = &self.mount.bucket;
        let answers: Vec<(Dead, Result<(), BucketError>)> = stream::iter(going)
            .map(|dead| async move { (dead, bucket.delete(&dead.0.key()).await) })
            .buffer_unordered(DELETES_AT_ONCE)
            .collect()
            .await;
        for ((object, seen_dead), answer) in answers {
            match answer {
                Ok(()) => gone.push(object),
                Err(error) => {
                    tracing::warn!(%error, %object, "a dead object could not be deleted; it is tried again");
                    kept.extend(seen_dead.is_none().then_some(object));
                }
            }
        }
        self.held.keep(kept);
        Ok(gone)
    }

    fn drop_counters(&self, object: ObjectId) -> Generation {
        let mut tables = self.mount.lock();
        tables.forget_object(object);
        let (generation, unsealed) = (tables.newest_generation(), tables.unsealed_bytes());
        drop(tables);
        self.mount.dirtied(unsealed);
        generation
    }

    /// Looks at one page of what is in the bucket, for what earlier writers left that no row names. Their commits are all
    /// in the durable tree by now, so what has no counters is referred to by nothing.
    async fn sweep_page(&mut self) -> Result<(), FsError> {
        let Some(sweep) = &self.sweep else { return Ok(()) };
        let prefix = if sweep.segments { "s/" } else { "j/" }.to_owned();
        let request = ListRequest {
            prefix,
            page: sweep.page.clone(),
            ..ListRequest::default()
        };
        let page = self.mount.bucket.list(&request).await?;
        let mut going = Vec::new();
        for found in &page.objects {
            if let Some(object) = self.leftover(found).await? {
                going.push((object, None));
            }
        }
        let (segments, released) = (sweep.segments, sweep.released);
        // What is held or could not be deleted is kept in mind.
        self.delete(going).await?;
        self.sweep = match (page.next, segments) {
            (Some(next), segments) => Some(Sweep {
                segments,
                page: Some(next),
                released,
            }),
            (None, false) => Some(Sweep {
                segments: true,
                page: None,
                released,
            }),
            (None, true) => None,
        };
        if self.sweep.is_none() && released > 0 {
            self.held.swept(released).await?;
        }
        Ok(())
    }

    async fn leftover(&self, found: &ObjectMeta) -> Result<Option<ObjectId>, FsError> {
        let Some(object) = ObjectId::parse(&found.key) else {
            return Ok(None);
        };
        let (ObjectId::Journal(epoch, _) | ObjectId::Segment(epoch, _)) = object;
        if epoch >= self.mount.epoch || self.stats(object).await?.is_some() {
            return Ok(None);
        }
        if found.size_bytes <= SEAL_BYTES_MAX {
            match self.mount.bucket.get(&found.key, None).await {
                Ok(found) if is_seal(&found.body) => return Ok(None),
                Ok(_) => {}
                Err(BucketError::NotFound { .. }) => return Ok(None),
                Err(error) => return Err(error.into()),
            }
        }
        Ok(Some(object))
    }
}

/// True if `state` contains everything that `other` contains.
fn reaches(state: Applied, other: Applied) -> bool {
    (state.epoch, state.seq) >= (other.epoch, other.seq)
}

/// The smallest object after this one.
fn after(object: ObjectId) -> ObjectId {
    match object {
        ObjectId::Journal(epoch, seq) => ObjectId::Journal(epoch, seq.next()),
        ObjectId::Segment(epoch, number) => ObjectId::Segment(epoch, number + 1),
    }
}

#[cfg(test)]
mod tests;
