//! A world: a bucket whose requests take their time, a volume on it, and the model of what it must hold.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use tests::model::{Content, Model, NodeId, Refused, text};
use uuid::Uuid;
use volume::attr::{Caller, CopyRange, Fallocate, Place, RenameMode, SetAttr, XattrMode};
use volume::bucket::memory::MemoryBucket;
use volume::bucket::{BucketRef, Prefixed};
use volume::clock::Timestamp;
use volume::error::FsError;
use volume::head::{Durability, Head, HeadFile, HeadWriter, NewHead, Parameters};
use volume::ids::InodeNo;
use volume::volume::Volume;
use volume::volume_id::VolumeId;

pub mod crash_states;
mod log;
mod looking;
mod machine;
mod snapshots;

use crash_states::Record;
use machine::{Dice, Disk, Wire, open};
use snapshots::Taken;

/// Folder of the volume.
const FOLDER: &str = "v";

const CALLER: Caller = Caller {
    uid: 7,
    gid: 7,
    umask: 0,
};

/// Names are few, so that operations meet each other.
const NAMES: [&[u8]; 6] = [
    b"a",
    b"b",
    b"c",
    b"d",
    b"e",
    b"a longer name, with \xff bytes that are no text",
];

/// A volume, and what it must hold.
pub struct World {
    seed: u64,
    step: u32,
    dice: Dice,
    durability: Durability,
    bucket: Arc<MemoryBucket>,
    wire: Arc<Wire>,
    /// The node's disk, where the volume leaves something on it.
    disk: Option<Disk>,
    /// Always there, but while it is replaced.
    volume: Option<Volume>,
    model: Model,
    inos: BTreeMap<NodeId, InodeNo>,
    /// The model at the last moment that must be kept, and after each operation since.
    history: Vec<Model>,
    /// Where in it the last fsync was, which the node's disk keeps.
    synced: usize,
    record: Record,
    done: Vec<String>,
    taken: Vec<Taken>,
    /// Names given to snapshots and clones.
    taken_count: u32,
}

impl World {
    /// A new volume.
    pub async fn new(seed: u64) -> Self {
        let mut dice = Dice::new(seed);
        let durability = match seed % 4 {
            2 => Durability::Local,
            3 => Durability::Relaxed,
            _ => Durability::Remote,
        };
        let bucket = Arc::new(MemoryBucket::new());
        let head = Head::new(NewHead {
            name: "v".to_owned(),
            volume: VolumeId::of_name("v").expect("a plain name"),
            uuid: Uuid::from_u128(u128::from(seed) + 1),
            capacity_bytes: 0,
            parameters: Parameters {
                durability,
                ..Parameters::default()
            },
            now: Timestamp::default(),
        });
        let root: BucketRef = Arc::new(Prefixed::new(bucket.clone(), format!("{FOLDER}/")));
        let file = HeadFile::new(root, HeadWriter::new(Uuid::from_u128(6)));
        file.create(head).await.expect("a new head");
        let record = Record::beginning_with(&bucket);
        let disk = (durability == Durability::Local).then(Disk::new);
        let (wire, volume) = open(&bucket, FOLDER, &mut dice, disk.as_ref()).await;
        let model = Model::new();
        let inos = BTreeMap::from([(NodeId::ROOT, InodeNo::ROOT)]);
        let history = vec![model.clone()];
        Self {
            seed,
            step: 0,
            dice,
            durability,
            bucket,
            wire,
            disk,
            volume: Some(volume),
            model,
            inos,
            history,
            synced: 0,
            record,
            done: Vec::new(),
            taken: Vec::new(),
            taken_count: 0,
        }
    }

    /// Something happens.
    pub async fn step(&mut self) {
        self.step += 1;
        match self.dice.below(100) {
            0..12 => self.make().await,
            12..45 => self.change_content().await,
            45..52 => self.unlink().await,
            52..60 => self.rename().await,
            60..64 => self.link().await,
            64..70 => self.attributes().await,
            70..76 => self.open_or_close().await,
            76..82 => self.compare_one().await,
            82..87 => self.sync().await,
            87..88 => self.snapshot().await,
            88..89 => self.branch().await,
            89..90 => self.drop_snapshot().await,
            90..92 => tokio::time::sleep(Duration::from_millis(self.dice.below(40))).await,
            92..94 => self.compare_now().await,
            94..97 => self.crash().await,
            97..98 => self.take_over().await,
            _ => self.restart().await,
        }
    }

    fn volume(&self) -> &Volume {
        self.volume.as_ref().expect("there is always one but within reopen")
    }

    fn at(&self) -> String {
        let first = self.done.len().saturating_sub(12);
        format!(
            "seed {}, step {}, after {:#?}",
            self.seed,
            self.step,
            &self.done[first..]
        )
    }

    fn ino(&self, id: NodeId) -> InodeNo {
        self.inos[&id]
    }

    /// Both answered: they must agree.
    fn agree<A, B>(&mut self, what: String, volume: Result<A, FsError>, model: Result<B, Refused>) -> Option<(A, B)> {
        self.done.push(what);
        let told = volume.map_err(refused_of);
        match (told, model) {
            (Ok(a), Ok(b)) => {
                self.changed();
                Some((a, b))
            }
            (Err(a), Err(b)) if a == b => None,
            (a, b) => panic!("volume: {:?}, model: {:?}, {}", a.map(drop), b.map(drop), self.at()),
        }
    }

    /// The tree is not what it was.
    fn changed(&mut self) {
        self.history.push(self.model.clone());
        self.record.changed(&self.wire.log, &self.model);
    }

    async fn make(&mut self) {
        let dir = self.dice.pick(&self.model.directories()).expect("the root is there");
        let name = self.dice.pick(&NAMES).expect("names");
        let parent = self.ino(dir);
        let mode = 0o600 + self.dice.below(0o100) as u16;
        let (told, content) = match self.dice.below(5) {
            0 | 1 => {
                let told = self.volume().mkdir(parent, name, mode, CALLER).await;
                (told, Content::Directory(BTreeMap::new()))
            }
            2 => (
                self.volume().symlink(parent, name, b"target", CALLER).await,
                Content::Symlink(b"target".to_vec()),
            ),
            _ => {
                let told = self.volume().create(parent, name, mode, CALLER).await;
                if let Ok(attr) = &told {
                    self.volume().release(attr.ino);
                }
                (told, Content::File(Vec::new()))
            }
        };
        let mode = if matches!(content, Content::Symlink(_)) {
            0o777
        } else {
            mode
        };
        let made = self.model.make(dir, name, content, mode);
        if let Some((attr, id)) = self.agree(format!("make {} in {dir:?}", text(name)), told, made) {
            self.volume().forget(attr.ino, 1);
            self.inos.insert(id, attr.ino);
        }
    }

    async fn change_content(&mut self) {
        let Some(file) = self.dice.pick(&self.model.files()) else {
            return;
        };
        let ino = self.ino(file);
        let (offset, len) = match self.dice.below(4) {
            0 => (self.dice.below(5_000), self.dice.below(3_000)),
            1 => (self.dice.below(300_000), self.dice.below(100)),
            2 => (self.model.bytes(file).len() as u64, self.dice.below(20_000)),
            _ => (self.dice.below(200_000), self.dice.below(150_000)),
        };
        let (at, count) = (offset as usize, len as usize);
        let told = match self.dice.below(10) {
            0..6 => {
                let data: Vec<u8> = (0..count)
                    .map(|i| (i as u64 * 7 + u64::from(self.step)) as u8)
                    .collect();
                self.model.write(file, at, &data);
                self.volume().write(ino, offset, data.into()).await
            }
            6 => {
                self.model.truncate(file, at);
                let change = SetAttr {
                    size: Some(offset),
                    ..SetAttr::default()
                };
                self.volume().setattr(ino, &change).await.map(drop)
            }
            7 => {
                self.model.zero(file, at, count + 1, false);
                self.volume()
                    .fallocate(ino, Fallocate::PunchHole, offset, len + 1)
                    .await
            }
            8 => {
                self.model.zero(file, at, count + 1, true);
                self.volume()
                    .fallocate(ino, Fallocate::ZeroRange { keep_size: false }, offset, len + 1)
                    .await
            }
            _ => return self.copy(file, offset, len).await,
        };
        self.agree(format!("content of {file:?} ({ino}) at {offset}+{len}"), told, Ok(()));
    }

    async fn copy(&mut self, to: NodeId, to_offset: u64, len_bytes: u64) {
        let from = self.dice.pick(&self.model.files()).expect("there is one");
        let from_offset = self.dice.below(100_000);
        if from == to {
            return;
        }
        let bytes = self.model.bytes(from);
        let start = (from_offset as usize).min(bytes.len());
        let end = (start + len_bytes as usize).min(bytes.len());
        let data = bytes[start..end].to_vec();
        self.model.write(to, to_offset as usize, &data);
        let range = CopyRange {
            from: self.ino(from),
            from_offset,
            to: self.ino(to),
            to_offset,
            len_bytes,
        };
        let told = self.volume().copy_file_range(range).await;
        let what = format!("copy {from:?} at {from_offset} to {to:?} at {to_offset}+{len_bytes}");
        if let Some((copied, ())) = self.agree(what, told, Ok(())) {
            assert_eq!(copied, data.len() as u64, "{}", self.at());
        }
    }

    async fn unlink(&mut self) {
        let dir = self.dice.pick(&self.model.directories()).expect("the root is there");
        let name = self.dice.pick(&NAMES).expect("names");
        let (told, model) = match self.dice.below(2) {
            0 => (
                self.volume().unlink(self.ino(dir), name).await,
                self.model.unlink(dir, name),
            ),
            _ => (
                self.volume().rmdir(self.ino(dir), name).await,
                self.model.rmdir(dir, name),
            ),
        };
        self.agree(format!("unlink {} in {dir:?}", text(name)), told, model);
    }

    async fn rename(&mut self) {
        let directories = self.model.directories();
        let (from, to) = (
            self.dice.pick(&directories).expect("root"),
            self.dice.pick(&directories).expect("root"),
        );
        let (name, new_name) = (
            self.dice.pick(&NAMES).expect("names"),
            self.dice.pick(&NAMES).expect("names"),
        );
        let mode = self.dice.pick(&[
            RenameMode::Replace,
            RenameMode::Replace,
            RenameMode::NoReplace,
            RenameMode::Exchange,
        ]);
        let mode = mode.expect("modes");
        let (source, target) = (
            Place {
                dir: self.ino(from),
                name,
            },
            Place {
                dir: self.ino(to),
                name: new_name,
            },
        );
        let told = self.volume().rename(source, target, mode).await;
        let (replace, exchange) = (mode != RenameMode::NoReplace, mode == RenameMode::Exchange);
        let model = self.model.rename((from, name), (to, new_name), replace, exchange);
        self.agree(
            format!(
                "rename {} in {from:?} to {} in {to:?} {mode:?}",
                text(name),
                text(new_name)
            ),
            told,
            model,
        );
    }

    async fn link(&mut self) {
        let nodes: Vec<NodeId> = self.model.files().into_iter().chain(self.model.directories()).collect();
        let id = self.dice.pick(&nodes).expect("the root is there");
        let dir = self.dice.pick(&self.model.directories()).expect("the root is there");
        let name = self.dice.pick(&NAMES).expect("names");
        let told = self.volume().link(self.ino(id), self.ino(dir), name).await;
        let model = self.model.link(id, dir, name);
        if let Some((attr, ())) = self.agree(format!("link {id:?} as {} in {dir:?}", text(name)), told, model) {
            self.volume().forget(attr.ino, 1);
        }
    }

    async fn attributes(&mut self) {
        let nodes: Vec<NodeId> = self.model.files().into_iter().chain(self.model.directories()).collect();
        let id = self.dice.pick(&nodes).expect("the root is there");
        let ino = self.ino(id);
        let name = self.dice.pick(&[&b"user.a"[..], b"user.b"]).expect("names");
        match self.dice.below(3) {
            0 => {
                let mode = self.dice.below(0o1000) as u16;
                let change = SetAttr {
                    mode: Some(mode),
                    ..SetAttr::default()
                };
                let told = self.volume().setattr(ino, &change).await;
                self.model.chmod(id, mode);
                self.agree(format!("chmod {id:?}"), told, Ok(()));
            }
            1 => {
                let value = vec![self.step as u8; self.dice.below(300) as usize];
                let told = self
                    .volume()
                    .setxattr(ino, name, value.clone().into(), XattrMode::Any)
                    .await;
                self.model.set_xattr(id, name, &value);
                self.agree(format!("setxattr {id:?}"), told, Ok(()));
            }
            _ => {
                let told = self.volume().removexattr(ino, name).await;
                let model = self.model.remove_xattr(id, name);
                self.agree(format!("removexattr {id:?}"), told, model);
            }
        }
    }

    async fn open_or_close(&mut self) {
        if let Some(id) = self.dice.pick(&self.model.open_nodes())
            && self.dice.below(2) == 0
        {
            self.volume().release(self.ino(id));
            self.model.close(id);
            self.done.push(format!("close {id:?}"));
            self.changed();
        } else if let Some(id) = self.dice.pick(&self.model.files())
            && !self.model.is_open(id)
        {
            self.volume().open_file(self.ino(id), false).await.expect("it exists");
            self.model.open(id);
            self.done.push(format!("open {id:?}"));
        } else {
            let made = self.volume().create_nameless(InodeNo::ROOT, 0o600, CALLER).await;
            let ino = made.expect("nothing is in its way").ino;
            self.volume().forget(ino, 1);
            let id = self.model.make_nameless(0o600);
            self.inos.insert(id, ino);
            self.done.push(format!("make {id:?} without a name"));
            self.changed();
        }
    }

    async fn compare_one(&mut self) {
        let Some(file) = self.dice.pick(&self.model.files()) else {
            return;
        };
        let bytes = self.model.bytes(file);
        let (offset, len) = (self.dice.below(320_000) as usize, self.dice.below(200_000) as usize);
        let expected = &bytes[offset.min(bytes.len())..(offset + len).min(bytes.len())];
        let told = self.volume().read(self.ino(file), offset as u64, len as u32).await;
        let told = told
            .unwrap_or_else(|error| panic!("{error}: {file:?} at {offset}+{len}, {}", self.at()))
            .concat();
        assert!(
            told == expected,
            "{file:?} at {offset}+{len} is not what was written, {}",
            self.at()
        );
    }

    async fn sync(&mut self) {
        self.volume()
            .fsync(InodeNo::ROOT)
            .await
            .expect("nobody has taken the volume");
        self.done.push("fsync".to_owned());
        self.record.synced(&self.wire.log);
        match self.durability {
            Durability::Remote => self.history = vec![self.model.clone()],
            Durability::Local => self.synced = self.history.len() - 1,
            Durability::Relaxed => {}
        }
    }

    /// Opens the volume again, on the same node.
    async fn reopen(&mut self) {
        // A machine that is gone holds no folder.
        drop(self.volume.take());
        let (wire, volume) = open(&self.bucket, FOLDER, &mut self.dice, self.disk.as_ref()).await;
        (self.wire, self.volume) = (wire, Some(volume));
    }

    /// Closes and opens again.
    pub async fn restart(&mut self) {
        self.volume().close().await.expect("nobody has taken the volume");
        if let Some(disk) = &self.disk {
            assert_eq!(disk.tails(), 0, "everything is in the bucket, {}", self.at());
        }
        self.reopen().await;
        self.done.push("restart".to_owned());
        self.compare("after a restart", &[self.model.after_restart()]).await;
    }

    /// The machine dies: a part of the requests in flight takes effect. Sometimes its disk dies with it.
    async fn crash(&mut self) {
        tokio::time::sleep(Duration::from_millis(self.dice.below(8))).await;
        self.wire.cut();
        let disk_lost = self.disk.is_some() && self.dice.below(3) == 0;
        if disk_lost {
            self.disk = Some(Disk::new());
            let root: BucketRef = Arc::new(Prefixed::new(self.bucket.clone(), format!("{FOLDER}/")));
            let head = HeadFile::new(root, HeadWriter::new(Uuid::new_v4()));
            let dropped = head.drop_tail().await.expect("a tail can be given up");
            assert!(dropped.is_some(), "the head names whose it was, {}", self.at());
            self.synced = 0;
        }
        self.reopen().await;
        self.done.push(format!("crash, disk lost: {disk_lost}"));
        self.compare_prefix("after a crash").await;
    }

    /// Another mount takes the volume while this one works on.
    async fn take_over(&mut self) {
        if self.disk.is_some() {
            // The folder on the node's disk belongs to one of them.
            return;
        }
        let (wire, volume) = open(&self.bucket, FOLDER, &mut self.dice, None).await;
        let old = self.volume.replace(volume).expect("it is there");
        self.wire = wire;
        let name = b"written by the one who was taken over";
        if old.mkdir(InodeNo::ROOT, name, 0o700, CALLER).await.is_ok() {
            let told = old.drain().await;
            assert!(
                matches!(told, Err(FsError::Lost(_))),
                "an acknowledgement after the take-over: {told:?}, {}",
                self.at()
            );
        }
        drop(old);
        self.done.push("take-over".to_owned());
        self.compare_prefix("after a take-over").await;
    }

    async fn compare_now(&mut self) {
        let now = self.model.clone();
        self.compare("at rest", std::slice::from_ref(&now)).await;
    }

    async fn compare_prefix(&mut self, when: &str) {
        let kept = &self.history[self.synced..];
        let moments: Vec<Model> = kept.iter().rev().map(Model::after_restart).collect();
        self.compare(when, &moments).await;
    }

    /// The volume must be one of these; from then on it is that one.
    async fn compare(&mut self, when: &str, moments: &[Model]) {
        let lines = self.lines(self.volume()).await;
        let Some(found) = moments.iter().find(|model| model.lines() == lines) else {
            let newest = moments[0].lines();
            let missing: Vec<&String> = newest.iter().filter(|line| !lines.contains(line)).collect();
            let extra: Vec<&String> = lines.iter().filter(|line| !newest.contains(line)).collect();
            panic!(
                "{when} the volume is none of {} moments; against the newest it lacks {missing:#?} and has {extra:#?}, {}",
                moments.len(),
                self.at()
            );
        };
        if when != "at rest" {
            self.model = found.clone();
            self.history = vec![found.clone()];
            self.synced = 0;
            self.inos = BTreeMap::from([(NodeId::ROOT, InodeNo::ROOT)]);
            self.learn_inos().await;
        }
    }

    async fn learn_inos(&mut self) {
        let mut left = vec![NodeId::ROOT];
        while let Some(dir) = left.pop() {
            for (name, id) in self.model.names(dir).clone() {
                let attr = self
                    .volume()
                    .lookup(self.ino(dir), &name)
                    .await
                    .expect("the trees are the same");
                self.volume().forget(attr.ino, 1);
                self.inos.insert(id, attr.ino);
                if matches!(self.model.node(id).content, Content::Directory(_)) {
                    left.push(id);
                }
            }
        }
    }
}

fn refused_of(error: FsError) -> Refused {
    match error {
        FsError::NotFound => Refused::NotFound,
        FsError::Exists => Refused::Exists,
        FsError::NotDirectory => Refused::NotDirectory,
        FsError::IsDirectory => Refused::IsDirectory,
        FsError::NotEmpty => Refused::NotEmpty,
        FsError::Invalid(_) => Refused::Invalid,
        FsError::NotPermitted => Refused::NotPermitted,
        FsError::NoAttribute => Refused::NoAttribute,
        other => panic!("no model refuses with {other:?}"),
    }
}
