//! Snapshots of the world's volume while operations, crashes and take-overs go on, and volumes made of them.
//!
//! A snapshot must be one of the moments between the last fsync before the call and its end, and stay that one: each time a
//! volume is made of it, whatever was written, collected and moved since.

use std::sync::Arc;

use volume::admin::{CapacityRange, CreateVolume, Led, delete_at};
use volume::bucket::{BucketRef, Prefixed};
use volume::check::{CheckOptions, check};
use volume::clock::Timestamp;
use volume::head::{HeadWriter, Parameters};
use volume::ids::InodeNo;
use volume::lineage::Source;
use volume::snapshot::{Family, NewClone};
use volume::volume_id::{SnapshotId, VolumeId};

use super::machine::{open, wire};
use super::*;

/// A snapshot, and the moments that it may be of.
#[derive(Debug)]
pub struct Taken {
    id: SnapshotId,
    moments: Vec<Vec<String>>,
}

impl World {
    fn family(&mut self) -> Family {
        let wire = wire(&self.bucket, &mut self.dice);
        Family::new(wire, HeadWriter::new(Uuid::new_v4()))
    }

    /// Makes a snapshot while other things happen.
    pub(super) async fn snapshot(&mut self) {
        self.taken_count += 1;
        let name = format!("s{}", self.taken_count);
        let family = self.family();
        let mut moments: Vec<Model> = self.history.clone();
        let called = name.clone();
        let making = tokio::spawn(async move { family.snapshot(FOLDER, &called, Timestamp::default()).await });
        for _ in 0..self.dice.below(8) {
            match self.dice.below(10) {
                0..3 => self.make().await,
                3..7 => self.change_content().await,
                7 => self.unlink().await,
                8 => self.sync().await,
                _ => self.crash().await,
            }
            moments.extend(self.history.iter().cloned());
            moments.push(self.model.clone());
        }
        let made = making.await.expect("it does not panic");
        moments.extend(self.history.iter().cloned());
        let made = made.unwrap_or_else(|error| panic!("no snapshot: {error}, {}", self.at()));
        let mut moments: Vec<Vec<String>> = moments.iter().map(|model| model.after_restart().lines()).collect();
        moments.sort();
        moments.dedup();
        self.done.push(format!("snapshot {name} of {:?}", made.state));
        self.taken.push(Taken { id: made.id, moments });
    }

    /// Makes a volume of a snapshot, or of the volume itself, uses it and deletes it.
    pub(super) async fn branch(&mut self) {
        let at = self.dice.below(self.taken.len() as u64 + 1) as usize;
        let source = match self.taken.get(at) {
            Some(taken) => Source::Snapshot(taken.id.clone()),
            None => Source::Volume(VolumeId::parse(FOLDER).expect("a plain name")),
        };
        let moments = match self.taken.get(at) {
            Some(taken) => taken.moments.clone(),
            None => self.history.iter().map(|model| model.after_restart().lines()).collect(),
        };
        self.taken_count += 1;
        let folder = format!("c{}", self.taken_count);
        let new = NewClone {
            volume: CreateVolume {
                name: folder.clone(),
                uuid: Uuid::new_v4(),
                capacity: CapacityRange::default(),
                parameters: Parameters::default(),
                now: Timestamp::default(),
            },
            folder: folder.clone(),
            source,
        };
        let made = self.family().clone_volume(&new).await;
        made.unwrap_or_else(|error| panic!("no clone: {error}, {}", self.at()));
        self.done.push(format!("{folder} begins as {}", new.source));
        let (copy_wire, copy) = open(&self.bucket, &folder, &mut self.dice, None).await;
        let lines = self.lines(&copy).await;
        if !moments.contains(&lines) {
            panic!(
                "{folder} is none of {} moments: {lines:#?}, {}",
                moments.len(),
                self.at()
            );
        }
        if let Some(taken) = self.taken.get_mut(at) {
            taken.moments = vec![lines];
        }
        let own = copy.mkdir(InodeNo::ROOT, b"the clone's own", 0o700, CALLER).await;
        own.unwrap_or_else(|error| panic!("{error}, {}", self.at()));
        if self.dice.below(2) == 0 {
            copy.close().await.expect("nobody has taken the clone");
            self.check(&folder).await;
        }
        // Or its machine dies.
        copy_wire.cut();
        drop(copy);
        let root = self.root(&folder);
        let gone = delete_at(&root, &HeadWriter::new(Uuid::new_v4()), Led::Ignore).await;
        assert!(gone.expect("it can be deleted"), "{}", self.at());
    }

    /// Deletes a snapshot.
    pub(super) async fn drop_snapshot(&mut self) {
        if self.taken.is_empty() {
            return;
        }
        let at = self.dice.below(self.taken.len() as u64) as usize;
        let taken = self.taken.swap_remove(at);
        self.done.push(format!("snapshot {} goes", taken.id));
        let gone = self.family().delete_snapshot(&taken.id).await;
        gone.unwrap_or_else(|error| panic!("{error}, {}", self.at()));
    }

    /// Each snapshot is what it was; then they go, and the volume, and with them everything.
    pub async fn end(mut self) {
        self.restart().await;
        while !self.taken.is_empty() {
            self.branch().await;
            self.drop_snapshot().await;
        }
        self.volume().close().await.expect("nobody has taken the volume");
        self.check(FOLDER).await;
        let gone = delete_at(&self.root(FOLDER), &HeadWriter::new(Uuid::new_v4()), Led::Ignore).await;
        assert!(gone.expect("it can be deleted"), "{}", self.at());
        // The tree of a mount that was taken over may put a last file behind its deletion: garbage that no head names.
        let left: Vec<String> = self
            .bucket
            .keys()
            .into_iter()
            .filter(|key| !key.contains("/m/"))
            .collect();
        assert_eq!(left, Vec::<String>::new(), "{}", self.at());
    }

    fn root(&self, folder: &str) -> BucketRef {
        Arc::new(Prefixed::new(self.bucket.clone(), format!("{folder}/")))
    }

    async fn check(&self, folder: &str) {
        let mut wrong = Vec::new();
        let report = check(self.root(folder), CheckOptions::default(), &mut |damage| {
            wrong.push(damage)
        })
        .await;
        assert!(wrong.is_empty(), "{folder}: {wrong:?}, {}", self.at());
        report.unwrap_or_else(|error| panic!("{folder}: {error}, {}", self.at()));
    }
}
