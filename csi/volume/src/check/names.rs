//! Each name against the inode that it names: it exists, is of that kind, and has as many names as it says.

use std::collections::BTreeMap;

use super::cursor::Cursor;
use super::inodes::{first_dirent, first_extent, first_inode};
use super::{Checker, foreign};
use crate::ids::InodeNo;
use crate::open::OpenError;
use crate::row::{DirentRow, FileKind, Key, Row};

/// What an inode says of its names, and how many were found.
#[derive(Debug, Clone, Copy)]
struct Named {
    kind: FileKind,
    nlink: u32,
    parent: InodeNo,
    names: u32,
}

impl Checker<'_> {
    pub(super) async fn check_names(&mut self) -> Result<(), OpenError> {
        let mut inodes = Cursor::new(self.tree, first_inode(), first_dirent());
        let mut from = InodeNo(0);
        loop {
            let mut window = BTreeMap::new();
            while window.len() < self.options.window_rows
                && let Some((key, row)) = inodes.next().await?
            {
                let (Key::Inode(ino), Row::Inode(row)) = (&key, row) else {
                    return Err(foreign(&key));
                };
                let named = Named {
                    kind: row.kind,
                    nlink: row.nlink,
                    parent: row.parent,
                    names: 0,
                };
                window.insert(*ino, named);
            }
            let next = match inodes.peek().await? {
                Some((Key::Inode(ino), _)) => Some(*ino),
                Some(_) | None => None,
            };
            self.count_names(&mut window, from, next).await?;
            self.judge_names(&window);
            match next {
                Some(next) => from = next,
                None => return Ok(()),
            }
        }
    }

    /// Counts the names of the inodes from `from` on and before `until`, which `window` holds all of.
    async fn count_names(
        &mut self,
        window: &mut BTreeMap<InodeNo, Named>,
        from: InodeNo,
        until: Option<InodeNo>,
    ) -> Result<(), OpenError> {
        let mut dirents = Cursor::new(self.tree, first_dirent(), first_extent());
        while let Some((key, row)) = dirents.next().await? {
            let (Key::Dirent { dir, name, .. }, Row::Dirent(row)) = (&key, row) else {
                return Err(foreign(&key));
            };
            if row.ino < from || until.is_some_and(|until| row.ino >= until) {
                continue;
            }
            let place = || format!("{:?} in directory {dir}", String::from_utf8_lossy(name));
            match window.get_mut(&row.ino) {
                None => self.damaged_rows(place(), format!("it names inode {}, which does not exist", row.ino)),
                Some(named) => {
                    named.names = named.names.saturating_add(1);
                    if let Some(detail) = mismatch(named, &row, *dir) {
                        self.damaged_rows(place(), detail);
                    }
                }
            }
        }
        Ok(())
    }

    fn judge_names(&mut self, window: &BTreeMap<InodeNo, Named>) {
        for (ino, named) in window {
            let names = match named.kind {
                FileKind::Directory if *ino == InodeNo::ROOT => 0,
                FileKind::Directory => u32::from(named.nlink > 0),
                FileKind::Regular
                | FileKind::Symlink
                | FileKind::Fifo
                | FileKind::Socket
                | FileKind::CharDevice
                | FileKind::BlockDevice => named.nlink,
            };
            if named.names != names {
                let detail = format!("it should have {names} names and has {}", named.names);
                self.damaged_rows(format!("inode {ino}"), detail);
            }
        }
    }
}

fn mismatch(named: &Named, row: &DirentRow, dir: InodeNo) -> Option<String> {
    if named.kind != row.kind {
        return Some(format!(
            "it says {:?}, inode {} is a {:?}",
            row.kind, row.ino, named.kind
        ));
    }
    let moved = named.kind == FileKind::Directory && named.parent != dir;
    moved.then(|| format!("directory {} says that it lies in {}", row.ino, named.parent))
}
