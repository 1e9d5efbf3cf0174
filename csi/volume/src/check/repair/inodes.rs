//! Inodes and what belongs to them: rows of inodes that do not exist go, and what an inode counts is counted anew.

use super::super::cursor::Cursor;
use super::super::foreign;
use super::super::inodes::{
    end_of_orphans, first_dirent, first_extent, first_inode, first_orphan, first_stats, first_xattr, owner,
};
use super::{Damage, RepairError, Repairer, Round};
use crate::ids::InodeNo;
use crate::row::{Counters, FileKind, InodeRow, Key, Row};

/// What was found of one inode.
#[derive(Debug, Default)]
struct Found {
    entries: u64,
    subdirs: u32,
    /// Bytes of content outside of what is reserved.
    allocated: u64,
    xattrs: bool,
    orphan: bool,
}

/// What belongs to inodes, each in the order of their numbers.
struct Belongings<'a> {
    dirents: Cursor<'a>,
    extents: Cursor<'a>,
    xattrs: Cursor<'a>,
    orphans: Cursor<'a>,
}

impl<'a> Belongings<'a> {
    fn all(&mut self) -> [&mut Cursor<'a>; 4] {
        [
            &mut self.dirents,
            &mut self.extents,
            &mut self.xattrs,
            &mut self.orphans,
        ]
    }
}

impl Repairer<'_> {
    fn belongings(&self) -> Belongings<'_> {
        let tree = self.tree();
        Belongings {
            dirents: Cursor::new(tree, first_dirent(), first_extent()),
            extents: Cursor::new(tree, first_extent(), first_xattr()),
            xattrs: Cursor::new(tree, first_xattr(), first_stats()),
            orphans: Cursor::new(tree, first_orphan(), end_of_orphans()),
        }
    }

    /// Rows that belong to inodes which do not exist.
    pub(super) async fn mend_strays(&self, round: &mut Round) -> Result<(), RepairError> {
        let mut inodes = Cursor::new(self.tree(), first_inode(), first_dirent());
        let mut belongings = self.belongings();
        while !round.is_full() {
            let next = match inodes.next().await? {
                Some((Key::Inode(ino), _)) => ino,
                Some((key, _)) => return Err(foreign(&key).into()),
                None => InodeNo(u64::MAX),
            };
            for cursor in belongings.all() {
                while let Some((key, row)) = cursor.next_if(|key| owner(key).is_some_and(|of| of < next)).await? {
                    stray(round, key, row);
                }
                while cursor.next_if(|key| owner(key) == Some(next)).await?.is_some() {}
            }
            if next == InodeNo(u64::MAX) {
                break;
            }
        }
        Ok(())
    }

    /// What inodes count of what belongs to them.
    pub(super) async fn mend_inodes(&self, round: &mut Round) -> Result<(), RepairError> {
        let mut inodes = Cursor::new(self.tree(), first_inode(), first_dirent());
        let mut belongings = self.belongings();
        let mut names = std::collections::BTreeMap::new();
        let mut counted = 0;
        while let Some((key, row)) = inodes.next().await? {
            let (Key::Inode(ino), Row::Inode(row)) = (&key, row) else {
                return Err(foreign(&key).into());
            };
            if counted % self.options.window_rows == 0 {
                // Of these inodes all that have a name: as many as a window holds at most.
                names = self.names_of(*ino, None).await?;
            }
            counted += 1;
            let found = gather(&mut belongings, *ino, &row).await?;
            let named = match names.get(ino) {
                Some((count, _)) => *count,
                None => 0,
            };
            mend(round, (*ino, &row), &found, named);
            if let (FileKind::Directory, Some((_, dir))) = (row.kind, names.get(ino))
                && *dir != row.parent
            {
                let detail = format!("it says that it lies in {}, and lies in {dir}", row.parent);
                let right = InodeRow { parent: *dir, ..row };
                // Its counts are mended with it in the next round.
                round.mend(
                    (format!("inode {ino}"), detail),
                    "it is corrected",
                    vec![(key, Some(Row::Inode(right)))],
                );
            }
            if round.is_full() {
                return Ok(());
            }
        }
        Ok(())
    }

    pub(super) async fn mend_counters(&self, round: &mut Round) -> Result<(), RepairError> {
        let mut counted = Counters::default();
        let mut inodes = Cursor::new(self.tree(), first_inode(), first_dirent());
        while let Some((key, row)) = inodes.next().await? {
            let (Key::Inode(ino), Row::Inode(row)) = (&key, row) else {
                return Err(foreign(&key).into());
            };
            counted.inodes += 1;
            counted.used_bytes = counted.used_bytes.saturating_add(row.allocated);
            counted.next_ino = ino.0.saturating_add(1);
        }
        let told = match self.tree().get(&Key::Counters).await? {
            Some(Row::Counters(told)) => told,
            Some(_) | None => Counters::default(),
        };
        // Numbers that were given out and are free again are not given out twice.
        counted.next_ino = counted.next_ino.max(told.next_ino);
        if told != counted {
            let detail = format!("they are {told:?}, counted were {counted:?}");
            let changes = vec![(Key::Counters, Some(Row::Counters(counted)))];
            round.mend(("the counters".to_owned(), detail), "they are corrected", changes);
        }
        Ok(())
    }
}

fn stray(round: &mut Round, key: Key, row: Row) {
    let place = format!("{key:?}");
    let detail = "its inode does not exist".to_owned();
    match row {
        // Content without a file may be all that is left of one: nobody gives it up by mistake.
        Row::Extent(extent) => {
            let damage = Damage {
                object: extent.object.key(),
                place,
                detail: format!("{detail}; {} bytes of content", extent.len),
            };
            round.lose(damage, "the row is removed, and the content goes", vec![(key, None)]);
        }
        _ => round.mend((place, detail), "the row is removed", vec![(key, None)]),
    }
}

async fn gather(belongings: &mut Belongings<'_>, ino: InodeNo, of: &InodeRow) -> Result<Found, RepairError> {
    let ours = |key: &Key| owner(key) == Some(ino);
    let mut found = Found::default();
    for cursor in belongings.all() {
        // What was left because its inode does not exist.
        while cursor
            .next_if(|key| owner(key).is_some_and(|of| of < ino))
            .await?
            .is_some()
        {}
    }
    while let Some((key, row)) = belongings.dirents.next_if(ours).await? {
        let Row::Dirent(row) = row else {
            return Err(foreign(&key).into());
        };
        found.entries += 1;
        found.subdirs += u32::from(row.kind == FileKind::Directory);
    }
    while let Some((key, row)) = belongings.extents.next_if(ours).await? {
        let (Key::Extent { end, .. }, Row::Extent(row)) = (&key, row) else {
            return Err(foreign(&key).into());
        };
        let start = end.saturating_sub(row.len);
        found.allocated += row.len.saturating_sub(of.reserved.count_within(start, *end));
    }
    while belongings.xattrs.next_if(ours).await?.is_some() {
        found.xattrs = true;
    }
    found.orphan = belongings.orphans.next_if(ours).await?.is_some();
    Ok(found)
}

fn mend(round: &mut Round, (ino, row): (InodeNo, &InodeRow), found: &Found, named: u32) {
    let inline_bytes = row.inline.as_ref().map_or(0, |inline| inline.len() as u64);
    let reserved: u64 = row.reserved.iter().map(|(start, end)| end - start).sum();
    let is_directory = row.kind == FileKind::Directory;
    let nlink = match (is_directory, row.nlink) {
        // Removed, and still open when the volume was last written.
        (true, 0) if named == 0 => 0,
        (true, _) => found.subdirs + 2,
        (false, _) => named,
    };
    let right = InodeRow {
        nlink,
        entries: if is_directory { found.entries } else { row.entries },
        allocated: found.allocated + inline_bytes + reserved,
        has_xattrs: row.has_xattrs || found.xattrs,
        size: row.size.max(inline_bytes),
        ..row.clone()
    };
    let place = || format!("inode {ino}");
    if right != *row {
        let detail = format!(
            "it counts {} links, {} entries and {} bytes, and has {}, {} and {}",
            row.nlink, row.entries, row.allocated, right.nlink, right.entries, right.allocated
        );
        let changes = vec![(Key::Inode(ino), Some(Row::Inode(right)))];
        round.mend((place(), detail), "they are corrected", changes);
    }
    if found.orphan != (nlink == 0) {
        let (listed, row) = if found.orphan {
            ("is", None)
        } else {
            ("is not", Some(Row::Orphan))
        };
        let detail = format!("it has {nlink} names and {listed} among the orphans");
        round.mend((place(), detail), "that is corrected", vec![(Key::Orphan(ino), row)]);
    }
}
