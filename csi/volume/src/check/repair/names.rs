//! Names against inodes: one that names nothing goes, and what lost all its names is found again in `lost+found`.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::super::cursor::Cursor;
use super::super::foreign;
use super::super::inodes::{first_dirent, first_extent, first_inode};
use super::{RepairError, Repairer, Round};
use crate::dirent::cookie_of;
use crate::ids::InodeNo;
use crate::ranges::RangeSet;
use crate::row::{Counters, DirentRow, FileKind, InodeRow, Key, Row};

/// Where files are found that lost their names.
const LOST_AND_FOUND: &[u8] = b"lost+found";

/// What an inode says of itself, and the first name that was found for it.
#[derive(Debug, Clone, Copy)]
struct Named {
    kind: FileKind,
    nlink: u32,
    names: u32,
}

impl Repairer<'_> {
    /// Names of what does not exist, of another kind than they say, and second names of directories.
    pub(super) async fn mend_names(&self, round: &mut Round) -> Result<(), RepairError> {
        self.each_window(round, |round, window, dirent| {
            let (key, row) = dirent;
            let Key::Dirent { dir, name, .. } = key else { return };
            let place = format!("{:?} in directory {dir}", String::from_utf8_lossy(name));
            let Some(named) = window.get_mut(&row.ino) else {
                let detail = format!("it names inode {}, which does not exist", row.ino);
                round.mend((place, detail), "the name is removed", vec![(key.clone(), None)]);
                return;
            };
            let second = named.kind == FileKind::Directory && (named.names > 0 || row.ino == InodeNo::ROOT);
            if second {
                let detail = format!("directory {} has another name", row.ino);
                round.mend((place, detail), "this name is removed", vec![(key.clone(), None)]);
                return;
            }
            named.names += 1;
            if named.kind != row.kind {
                let detail = format!("it says {:?}, inode {} is a {:?}", row.kind, row.ino, named.kind);
                let right = DirentRow {
                    ino: row.ino,
                    kind: named.kind,
                };
                round.mend(
                    (place, detail),
                    "the name is corrected",
                    vec![(key.clone(), Some(Row::Dirent(right)))],
                );
            }
        })
        .await?;
        Ok(())
    }

    /// Inodes that should have a name and have none.
    pub(super) async fn mend_nameless(&self, round: &mut Round) -> Result<(), RepairError> {
        let mut nameless = Vec::new();
        let mut inodes = Cursor::new(self.tree(), first_inode(), first_dirent());
        let mut from = InodeNo(0);
        loop {
            let (window, next) = self.window(&mut inodes).await?;
            let names = self.names_of(from, next).await?;
            let without = window
                .iter()
                .filter(|(ino, named)| named.nlink > 0 && **ino != InodeNo::ROOT && !names.contains_key(ino));
            nameless.extend(without.map(|(ino, named)| (*ino, named.kind)));
            match next {
                Some(next) if nameless.len() < super::CHANGES_PER_ROUND => from = next,
                Some(_) | None => break,
            }
        }
        if nameless.is_empty() {
            return Ok(());
        }
        let folder = self.lost_and_found(round).await?;
        for (ino, kind) in nameless {
            let name = Bytes::from(format!("inode-{ino}"));
            let key = Key::Dirent {
                dir: folder,
                cookie: cookie_of(&name),
                name,
            };
            let place = (format!("inode {ino}"), "nothing names it".to_owned());
            let mut changes = vec![(key, Some(Row::Dirent(DirentRow { ino, kind })))];
            if let (FileKind::Directory, Some(Row::Inode(row))) = (kind, self.tree().get(&Key::Inode(ino)).await?) {
                let row = InodeRow { parent: folder, ..row };
                changes.push((Key::Inode(ino), Some(Row::Inode(row))));
            }
            round.mend(place, "it is found in lost+found", changes);
        }
        Ok(())
    }

    /// The folder of that name in the root, made where there is none; its counts are mended later like any other's.
    async fn lost_and_found(&self, round: &mut Round) -> Result<InodeNo, RepairError> {
        let name = Bytes::from_static(LOST_AND_FOUND);
        let key = Key::Dirent {
            dir: InodeNo::ROOT,
            cookie: cookie_of(&name),
            name,
        };
        if let Some(Row::Dirent(entry)) = self.tree().get(&key).await?
            && entry.kind == FileKind::Directory
        {
            return Ok(entry.ino);
        }
        let ino = self.next_inode().await?;
        let row = InodeRow {
            kind: FileKind::Directory,
            mode: 0o700,
            uid: 0,
            gid: 0,
            rdev: 0,
            nlink: 2,
            size: 0,
            allocated: 0,
            parent: InodeNo::ROOT,
            entries: 0,
            atime: self.options.now,
            mtime: self.options.now,
            ctime: self.options.now,
            btime: self.options.now,
            has_xattrs: false,
            reserved: RangeSet::default(),
            inline: None,
        };
        let entry = DirentRow {
            ino,
            kind: FileKind::Directory,
        };
        let told = match self.tree().get(&Key::Counters).await? {
            Some(Row::Counters(told)) => told,
            Some(_) | None => Counters::default(),
        };
        let counters = Counters {
            next_ino: ino.0 + 1,
            ..told
        };
        round.changes.extend([
            (Key::Inode(ino), Some(Row::Inode(row))),
            (key, Some(Row::Dirent(entry))),
            (Key::Counters, Some(Row::Counters(counters))),
        ]);
        Ok(ino)
    }

    /// An inode number that was never given out, whatever the counters say.
    async fn next_inode(&self) -> Result<InodeNo, RepairError> {
        let told = match self.tree().get(&Key::Counters).await? {
            Some(Row::Counters(told)) => told.next_ino,
            Some(_) | None => 0,
        };
        let mut inodes = Cursor::new(self.tree(), first_inode(), first_dirent());
        let mut last = InodeNo::ROOT;
        while let Some((key, _)) = inodes.next().await? {
            if let Key::Inode(ino) = key {
                last = ino;
            }
        }
        Ok(InodeNo(told.max(last.0 + 1)))
    }

    /// Goes through all names, a window of the inodes that they name at a time.
    async fn each_window(
        &self,
        round: &mut Round,
        mut judge: impl FnMut(&mut Round, &mut BTreeMap<InodeNo, Named>, (&Key, &DirentRow)),
    ) -> Result<(), RepairError> {
        let mut inodes = Cursor::new(self.tree(), first_inode(), first_dirent());
        let mut from = InodeNo(0);
        loop {
            let (mut window, next) = self.window(&mut inodes).await?;
            self.count(&mut window, (from, next), |window, key, row| {
                judge(round, window, (key, row))
            })
            .await?;
            match next {
                Some(next) if !round.is_full() => from = next,
                Some(_) | None => return Ok(()),
            }
        }
    }

    /// The next inodes, as many as a window holds, and the first one after them.
    async fn window(
        &self,
        inodes: &mut Cursor<'_>,
    ) -> Result<(BTreeMap<InodeNo, Named>, Option<InodeNo>), RepairError> {
        let mut window = BTreeMap::new();
        while window.len() < self.options.window_rows
            && let Some((key, row)) = inodes.next().await?
        {
            let (Key::Inode(ino), Row::Inode(row)) = (&key, row) else {
                return Err(foreign(&key).into());
            };
            let named = Named {
                kind: row.kind,
                nlink: row.nlink,
                names: 0,
            };
            window.insert(*ino, named);
        }
        let next = match inodes.peek().await? {
            Some((Key::Inode(ino), _)) => Some(*ino),
            Some(_) | None => None,
        };
        Ok((window, next))
    }

    /// Shows each name of the inodes from `from` on and before `until` to `judge`.
    async fn count(
        &self,
        window: &mut BTreeMap<InodeNo, Named>,
        (from, until): (InodeNo, Option<InodeNo>),
        mut judge: impl FnMut(&mut BTreeMap<InodeNo, Named>, &Key, &DirentRow),
    ) -> Result<(), RepairError> {
        let mut dirents = Cursor::new(self.tree(), first_dirent(), first_extent());
        while let Some((key, row)) = dirents.next().await? {
            let Row::Dirent(row) = row else {
                return Err(foreign(&key).into());
            };
            if row.ino >= from && until.is_none_or(|until| row.ino < until) {
                judge(window, &key, &row);
            }
        }
        Ok(())
    }

    /// How many names the next inodes have, as many as a window holds, and in which directory the last of them is.
    pub(super) async fn names_of(
        &self,
        from: InodeNo,
        until: Option<InodeNo>,
    ) -> Result<BTreeMap<InodeNo, (u32, InodeNo)>, RepairError> {
        let mut names: BTreeMap<InodeNo, (u32, InodeNo)> = BTreeMap::new();
        let mut none = BTreeMap::new();
        self.count(&mut none, (from, until), |_, key, row| {
            if let Key::Dirent { dir, .. } = key {
                let known = names.entry(row.ino).or_insert((0, *dir));
                *known = (known.0 + 1, *dir);
                if names.len() > self.options.window_rows {
                    names.pop_last();
                }
            }
        })
        .await?;
        Ok(names)
    }
}
