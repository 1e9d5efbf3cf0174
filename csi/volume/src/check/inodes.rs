//! Each inode with what belongs to it: entries, extents, attributes, and whether it is an orphan. One pass, five streams.

use bytes::Bytes;

use super::cursor::Cursor;
use super::{Checker, foreign};
use crate::dirent::cookie_of;
use crate::ids::{DirCookie, Epoch, InodeNo, JournalSeq, ObjectId};
use crate::open::OpenError;
use crate::row::{Counters, FileKind, INLINE_BYTES_MAX, InodeRow, Key, Row};

/// The streams, each in the order of inode numbers.
struct Streams<'a> {
    inodes: Cursor<'a>,
    dirents: Cursor<'a>,
    extents: Cursor<'a>,
    xattrs: Cursor<'a>,
    orphans: Cursor<'a>,
}

/// What was found of one inode.
#[derive(Debug, Default)]
struct Found {
    entries: u64,
    subdirs: u64,
    extents: u64,
    /// Bytes of content outside of what is reserved.
    allocated: u64,
    xattrs: u64,
    orphan: bool,
}

/// The first key of each kind of rows. A range of a kind goes up to the first key of the next.
pub(super) fn first_inode() -> Key {
    Key::Inode(InodeNo(0))
}

pub(super) fn first_dirent() -> Key {
    Key::Dirent {
        dir: InodeNo(0),
        cookie: DirCookie(0),
        name: Bytes::new(),
    }
}

pub(super) fn first_extent() -> Key {
    Key::Extent {
        ino: InodeNo(0),
        end: 0,
    }
}

pub(super) fn first_xattr() -> Key {
    Key::Xattr {
        ino: InodeNo(0),
        name: Bytes::new(),
    }
}

pub(super) fn first_stats() -> Key {
    Key::ObjectStats(ObjectId::Journal(Epoch(0), JournalSeq(0)))
}

pub(super) fn first_orphan() -> Key {
    Key::Orphan(InodeNo(0))
}

/// A key after all orphans but the last possible one, which no volume reaches.
pub(super) fn end_of_orphans() -> Key {
    Key::Orphan(InodeNo(u64::MAX))
}

/// The inode that a key belongs to.
pub(super) fn owner(key: &Key) -> Option<InodeNo> {
    match key {
        Key::Inode(ino) | Key::Orphan(ino) | Key::Extent { ino, .. } | Key::Xattr { ino, .. } => Some(*ino),
        Key::Dirent { dir, .. } => Some(*dir),
        Key::Counters | Key::Applied | Key::ObjectStats(_) => None,
    }
}

impl Checker<'_> {
    pub(super) async fn check_inodes(&mut self) -> Result<(), OpenError> {
        let tree = self.tree;
        let mut streams = Streams {
            inodes: Cursor::new(tree, first_inode(), first_dirent()),
            dirents: Cursor::new(tree, first_dirent(), first_extent()),
            extents: Cursor::new(tree, first_extent(), first_xattr()),
            xattrs: Cursor::new(tree, first_xattr(), first_stats()),
            orphans: Cursor::new(tree, first_orphan(), end_of_orphans()),
        };
        let mut counted = Counters::default();
        while let Some((key, row)) = streams.inodes.next().await? {
            let (Key::Inode(ino), Row::Inode(row)) = (&key, row) else {
                return Err(foreign(&key));
            };
            self.strays(&mut streams, *ino).await?;
            let found = self.gather(&mut streams, *ino, &row).await?;
            self.check_inode(*ino, &row, &found);
            self.report.inodes += 1;
            counted.inodes += 1;
            counted.used_bytes = counted.used_bytes.saturating_add(row.allocated);
            counted.next_ino = ino.0.saturating_add(1);
        }
        self.strays(&mut streams, InodeNo(u64::MAX)).await?;
        if self.report.inodes > 0 {
            self.check_counters(counted).await?;
        }
        Ok(())
    }

    /// Tells rows of inodes before `ino` that are left over: those inodes do not exist.
    async fn strays(&mut self, streams: &mut Streams<'_>, ino: InodeNo) -> Result<(), OpenError> {
        let cursors = [
            &mut streams.dirents,
            &mut streams.extents,
            &mut streams.xattrs,
            &mut streams.orphans,
        ];
        for cursor in cursors {
            while let Some((key, _)) = cursor.next_if(|key| owner(key).is_some_and(|of| of < ino)).await? {
                self.damaged_rows(format!("{key:?}"), "its inode does not exist".to_owned());
            }
        }
        Ok(())
    }

    /// Reads all that belongs to an inode.
    async fn gather(&mut self, streams: &mut Streams<'_>, ino: InodeNo, of: &InodeRow) -> Result<Found, OpenError> {
        let ours = |key: &Key| owner(key) == Some(ino);
        let mut found = Found::default();
        while let Some((key, row)) = streams.dirents.next_if(ours).await? {
            let (Key::Dirent { cookie, name, .. }, Row::Dirent(row)) = (&key, row) else {
                return Err(foreign(&key));
            };
            if *cookie != cookie_of(name) || name.is_empty() || name.contains(&b'/') || name.contains(&0) {
                let detail = "the name or its cookie is none that a volume holds".to_owned();
                self.damaged_rows(format!("{key:?}"), detail);
            }
            self.report.names += 1;
            found.entries += 1;
            found.subdirs += u64::from(row.kind == FileKind::Directory);
        }
        let mut end_before = 0;
        while let Some((key, row)) = streams.extents.next_if(ours).await? {
            let (Key::Extent { end, .. }, Row::Extent(row)) = (&key, row) else {
                return Err(foreign(&key));
            };
            if end.checked_sub(row.len).is_none_or(|start| start < end_before) {
                let place = format!("inode {ino}, run that ends at {end}");
                let detail = format!(
                    "its {} bytes overlap the run before, which ends at {end_before}",
                    row.len
                );
                self.damaged_rows(place, detail);
            }
            end_before = *end;
            self.report.extents += 1;
            found.extents += 1;
            let start = end.saturating_sub(row.len);
            found.allocated += row.len.saturating_sub(of.reserved.count_within(start, *end));
        }
        while streams.xattrs.next_if(ours).await?.is_some() {
            found.xattrs += 1;
        }
        found.orphan = streams.orphans.next_if(ours).await?.is_some();
        Ok(found)
    }

    fn check_inode(&mut self, ino: InodeNo, row: &InodeRow, found: &Found) {
        let mut wrong = |detail: String| self.damaged_rows(format!("inode {ino}"), detail);
        if row.kind == FileKind::Directory {
            if row.entries != found.entries {
                wrong(format!("it counts {} entries and has {}", row.entries, found.entries));
            }
            let links = if row.nlink == 0 { 0 } else { found.subdirs + 2 };
            if u64::from(row.nlink) != links {
                wrong(format!("it counts {} links and has {links}", row.nlink));
            }
        } else if found.entries > 0 {
            wrong(format!("it is no directory and has {} entries", found.entries));
        }
        if found.extents > 0 && (row.kind != FileKind::Regular || row.inline.is_some()) {
            wrong(format!(
                "it has {} runs, which a {:?} of its kind cannot have",
                found.extents, row.kind
            ));
        }
        let inline_bytes = row.inline.as_ref().map_or(0, |inline| inline.len() as u64);
        if inline_bytes > row.size || inline_bytes > INLINE_BYTES_MAX as u64 {
            wrong(format!("its own row holds {inline_bytes} of {} bytes", row.size));
        }
        let reserved: u64 = row.reserved.iter().map(|(start, end)| end - start).sum();
        let allocated = found.allocated + inline_bytes + reserved;
        if row.allocated != allocated {
            wrong(format!(
                "it counts {} bytes of content and reserved space, and has {allocated}",
                row.allocated
            ));
        }
        if found.xattrs > 0 && !row.has_xattrs {
            wrong(format!("it has {} attributes that it does not know of", found.xattrs));
        }
        if found.orphan != (row.nlink == 0) {
            let listed = if found.orphan { "is" } else { "is not" };
            wrong(format!("it has {} names and {listed} among the orphans", row.nlink));
        }
    }

    async fn check_counters(&mut self, counted: Counters) -> Result<(), OpenError> {
        let told = match self.tree.get(&Key::Counters).await? {
            Some(Row::Counters(told)) => told,
            Some(_) | None => {
                self.damaged_rows("the counters".to_owned(), "they do not exist".to_owned());
                return Ok(());
            }
        };
        if (told.inodes, told.used_bytes) != (counted.inodes, counted.used_bytes) || told.next_ino < counted.next_ino {
            let detail = format!("they are {told:?}, counted were {counted:?}");
            self.damaged_rows("the counters".to_owned(), detail);
        }
        Ok(())
    }
}
