//! Rows that an operation misses: which, how they are asked of the tree, and how they enter RAM.

use std::collections::BTreeMap;

use futures::stream::{self, StreamExt, TryStreamExt};

use super::Tables;
use super::dirents::{DirentKey, listing_bounds};
use crate::dirent::{COOKIES_END, FIRST_COOKIE};
use crate::ids::{DirCookie, InodeNo};
use crate::row::{DirentRow, ExtentRow, InodeRow, Key, Row};
use crate::tree::{Tree, TreeError};

/// 4,000 entries of a listing are loaded at a time: some 200 KiB of rows, one GET where it was four.
const LISTING_ROWS: usize = 4_000;

/// 256 extents are loaded at a time: what a random read pays for is small, and a scan of the rest stays cheap.
const EXTENT_ROWS: usize = 256;

/// 32 inode numbers from the one on whose beginning is wanted: who reads a small file often reads those made after it, and a
/// row more costs a scan less than another scan.
const EXTENT_INODES: u64 = 32;

/// 1,000 attributes of one inode are loaded at a time; their names fit into `XATTR_LIST_BYTES_MAX`.
const XATTR_ROWS: usize = 1_000;

/// 16 look-ups or scans are under way at a time when a listing wants attributes.
const INODES_AT_ONCE: usize = 16;

/// 64 rows that nobody wants, some 8 KiB, cost a scan less than a look-up more: so far apart are folders of a source tree.
const CLUSTER_GAP_MAX: u64 = 64;

/// 512 inode numbers a scan, some 70 KiB without content; more go beside each other.
const CLUSTER_SPAN_MAX: u64 = 512;

/// 8 inodes of a folder with neighbouring numbers: those that a tool unpacked, and others of its tree lie around them.
const WIDEN_FROM: usize = 8;

/// 256 inode numbers, aligned: one GET, instead of one for each of the folders that they are in.
const WIDE: u64 = 256;

/// Rows that are not in RAM.
#[derive(Debug, Clone)]
pub(crate) enum Need {
    /// These inodes.
    Inodes(Vec<InodeNo>),
    /// The inode of a directory that a name led to, with the beginning of its listing: whoever goes there asks for it next.
    Folder(InodeNo),
    /// An entry.
    Dirent(DirentKey),
    /// The entries from a cookie on.
    Listing {
        /// The directory.
        dir: InodeNo,
        /// First cookie.
        from: DirCookie,
    },
    /// The extents that cover an offset and follow it.
    Extents {
        /// The file.
        ino: InodeNo,
        /// The offset.
        at: u64,
    },
    /// All attributes.
    Xattrs(InodeNo),
}

/// All entries of a directory from a cookie up to another.
#[derive(Debug)]
pub(crate) struct LoadedListing {
    pub dir: InodeNo,
    pub from: u64,
    pub until: u64,
    pub rows: Vec<(DirentKey, DirentRow)>,
}

/// All extents of a file from an offset up to another.
#[derive(Debug)]
pub(crate) struct LoadedExtents {
    pub ino: InodeNo,
    pub from: u64,
    pub until: u64,
    pub rows: Vec<(u64, ExtentRow)>,
}

/// What the tree answered.
#[derive(Debug)]
pub(crate) enum Loaded {
    Inodes(Vec<(InodeNo, Option<InodeRow>)>),
    Folder((InodeNo, Option<InodeRow>), LoadedListing),
    Dirent(DirentKey, Option<DirentRow>),
    Listing(LoadedListing),
    Extents(Vec<LoadedExtents>),
    Xattrs(InodeNo, BTreeMap<bytes::Bytes, bytes::Bytes>),
}

fn unfit(key: &Key) -> TreeError {
    TreeError::Corrupt {
        place: format!("{key:?}"),
        detail: "the row is of another kind than its key".to_owned(),
    }
}

async fn get_inode(tree: &dyn Tree, ino: InodeNo) -> Result<(InodeNo, Option<InodeRow>), TreeError> {
    let key = Key::Inode(ino);
    match tree.get(&key).await? {
        None => Ok((ino, None)),
        Some(Row::Inode(row)) => Ok((ino, Some(row))),
        Some(_) => Err(unfit(&key)),
    }
}

/// Wanted inodes, by those that one scan brings.
fn clusters(mut inos: Vec<InodeNo>) -> Vec<Vec<InodeNo>> {
    inos.sort_unstable();
    inos.dedup();
    let mut clusters: Vec<Vec<InodeNo>> = Vec::new();
    for ino in inos {
        match clusters.last_mut() {
            Some(cluster)
                if ino.0 - cluster[cluster.len() - 1].0 <= CLUSTER_GAP_MAX
                    && ino.0 - cluster[0].0 < CLUSTER_SPAN_MAX =>
            {
                cluster.push(ino);
            }
            _ => clusters.push(vec![ino]),
        }
    }
    clusters
}

/// The bounds of the scan that brings these inodes, both inclusive.
fn bounds(inos: &[InodeNo]) -> (InodeNo, InodeNo) {
    let (first, last) = (inos[0], inos[inos.len() - 1]);
    match inos.len() >= WIDEN_FROM {
        true => (InodeNo(first.0 & !(WIDE - 1)), InodeNo(last.0 | (WIDE - 1))),
        false => (first, last),
    }
}

/// The rows of these inodes, and of those around them: they come along, and whoever lists one folder often lists the next.
async fn get_cluster(tree: &dyn Tree, inos: Vec<InodeNo>) -> Result<Vec<(InodeNo, Option<InodeRow>)>, TreeError> {
    let (first, last) = (inos[0], inos[inos.len() - 1]);
    if first == last {
        return Ok(vec![get_inode(tree, first).await?]);
    }
    let (from, to) = bounds(&inos);
    // No more than there can be, so that no more is read ahead.
    let rows_max = usize::try_from(to.next().0 - from.0).unwrap_or(usize::MAX);
    let found = tree.scan(&Key::Inode(from), &Key::Inode(to.next()), rows_max).await?;
    let mut rows: BTreeMap<InodeNo, Option<InodeRow>> = inos.into_iter().map(|ino| (ino, None)).collect();
    for (key, row) in found {
        match (key, row) {
            (Key::Inode(ino), Row::Inode(row)) => rows.insert(ino, Some(row)),
            (key, _) => return Err(unfit(&key)),
        };
    }
    Ok(rows.into_iter().collect())
}

async fn get_inodes(tree: &dyn Tree, inos: Vec<InodeNo>) -> Result<Loaded, TreeError> {
    let rows: Vec<_> = stream::iter(clusters(inos))
        .map(|cluster| get_cluster(tree, cluster))
        .buffered(INODES_AT_ONCE)
        .try_collect()
        .await?;
    Ok(Loaded::Inodes(rows.into_iter().flatten().collect()))
}

async fn get_listing(tree: &dyn Tree, dir: InodeNo, from: DirCookie) -> Result<LoadedListing, TreeError> {
    let (start, end) = listing_bounds(dir, from);
    let found = tree.scan(&start, &end, LISTING_ROWS).await?;
    let full = found.len() == LISTING_ROWS;
    let mut rows = Vec::with_capacity(found.len());
    for (key, row) in found {
        match (key, row) {
            (Key::Dirent { cookie, name, .. }, Row::Dirent(row)) => rows.push((DirentKey { dir, cookie, name }, row)),
            (key, _) => return Err(unfit(&key)),
        }
    }
    // The last cookie of a full page may have more names; all but it are known.
    let until = match rows.last() {
        Some((last, _)) if full => last.cookie.0,
        _ => COOKIES_END,
    };
    Ok(LoadedListing {
        dir,
        from: from.0,
        until,
        rows,
    })
}

async fn get_extents(tree: &dyn Tree, ino: InodeNo, at: u64) -> Result<Loaded, TreeError> {
    let inodes = if at == 0 { EXTENT_INODES } else { 1 };
    let (start, end) = (
        Key::Extent {
            ino,
            end: at.saturating_add(1),
        },
        Key::Extent {
            ino: InodeNo(ino.0.saturating_add(inodes)),
            end: 0,
        },
    );
    let found = tree.scan(&start, &end, EXTENT_ROWS).await?;
    let full = found.len() == EXTENT_ROWS;
    let whole = |ino, from| LoadedExtents {
        ino,
        from,
        until: u64::MAX,
        rows: Vec::new(),
    };
    let mut files = vec![whole(ino, at)];
    for (key, row) in found {
        let (of, end, row) = match (key, row) {
            (Key::Extent { ino, end }, Row::Extent(row)) if row.len <= end => (ino, end, row),
            (key, _) => return Err(unfit(&key)),
        };
        if files[files.len() - 1].ino != of {
            files.push(whole(of, 0));
        }
        let last = files.len() - 1;
        files[last].rows.push((end, row));
    }
    let last = files.len() - 1;
    if let (true, Some((end, _))) = (full, files[last].rows.last()) {
        files[last].until = *end;
    }
    Ok(Loaded::Extents(files))
}

async fn get_xattrs(tree: &dyn Tree, ino: InodeNo) -> Result<Loaded, TreeError> {
    let end = Key::Xattr {
        ino: ino.next(),
        name: bytes::Bytes::new(),
    };
    let mut values = BTreeMap::new();
    let mut start = Key::Xattr {
        ino,
        name: bytes::Bytes::new(),
    };
    loop {
        let found = tree.scan(&start, &end, XATTR_ROWS).await?;
        let full = found.len() == XATTR_ROWS;
        for (key, row) in found {
            match (key, row) {
                (Key::Xattr { name, .. }, Row::Xattr(value)) => values.insert(name, value),
                (key, _) => return Err(unfit(&key)),
            };
        }
        match values.last_key_value() {
            // The smallest name after the last one.
            Some((last, _)) if full => {
                start = Key::Xattr {
                    ino,
                    name: [&last[..], &[0]].concat().into(),
                }
            }
            _ => return Ok(Loaded::Xattrs(ino, values)),
        }
    }
}

impl Need {
    /// Asks the tree.
    ///
    /// # Errors
    /// The tree's; `Corrupt` also for a row that does not fit its key.
    pub async fn ask(self, tree: &dyn Tree) -> Result<Loaded, TreeError> {
        match self {
            Need::Inodes(inos) => get_inodes(tree, inos).await,
            Need::Dirent(key) => {
                let row_key = key.row_key();
                match tree.get(&row_key).await? {
                    None => Ok(Loaded::Dirent(key, None)),
                    Some(Row::Dirent(row)) => Ok(Loaded::Dirent(key, Some(row))),
                    Some(_) => Err(unfit(&row_key)),
                }
            }
            Need::Folder(dir) => {
                let (inode, listing) = tokio::try_join!(get_inode(tree, dir), get_listing(tree, dir, FIRST_COOKIE))?;
                Ok(Loaded::Folder(inode, listing))
            }
            Need::Listing { dir, from } => get_listing(tree, dir, from).await.map(Loaded::Listing),
            Need::Extents { ino, at } => get_extents(tree, ino, at).await,
            Need::Xattrs(ino) => get_xattrs(tree, ino).await,
        }
    }
}

impl Tables {
    /// Puts what the tree answered where RAM knows nothing newer.
    pub fn load(&mut self, loaded: Loaded) {
        match loaded {
            Loaded::Inodes(rows) => rows.into_iter().for_each(|(ino, row)| self.load_inode(ino, row)),
            Loaded::Dirent(key, row) => self.load_dirent(key, row),
            Loaded::Folder((ino, row), listing) => {
                self.load_inode(ino, row);
                self.load_listing(listing);
            }
            Loaded::Listing(listing) => self.load_listing(listing),
            Loaded::Extents(files) => files.into_iter().for_each(|file| self.load_extents(file)),
            Loaded::Xattrs(ino, values) => self.load_xattrs(ino, values),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::Timestamp;
    use crate::ids::{Epoch, JournalSeq, ObjectId};
    use crate::ops::make::root_row;
    use crate::row::{Applied, FileKind};
    use crate::tree::memory::MemoryTree;

    #[test]
    fn a_folder_of_files_made_together_brings_what_was_made_around_them() {
        let inos = |range: std::ops::Range<u64>| range.map(InodeNo).collect::<Vec<_>>();
        assert_eq!(bounds(&inos(300..320)), (InodeNo(256), InodeNo(511)));
        assert_eq!(bounds(&inos(300..307)), (InodeNo(300), InodeNo(306)));
    }

    /// A tree of a directory with two files that were made together, one of them in two runs, and of a later one.
    async fn filled() -> MemoryTree {
        let tree = MemoryTree::new();
        let extent = |ino, end| {
            let row = ExtentRow {
                len: 10,
                object: ObjectId::Segment(Epoch(1), 1),
                object_offset: 0,
                skip: 0,
                frame_stored_lens: vec![74],
                origin_ino: InodeNo(ino),
                origin_offset: end - 10,
            };
            (Key::Extent { ino: InodeNo(ino), end }, Some(Row::Extent(row)))
        };
        let entry = |ino, name: &'static str| {
            let key = DirentKey::new(InodeNo(9), name.as_bytes()).row_key();
            let kind = FileKind::Regular;
            (
                key,
                Some(Row::Dirent(DirentRow {
                    ino: InodeNo(ino),
                    kind,
                })),
            )
        };
        let inode = (Key::Inode(InodeNo(9)), Some(Row::Inode(root_row(Timestamp::default()))));
        let applied = Applied {
            epoch: Epoch(1),
            seq: JournalSeq(1),
        };
        let rows = vec![
            extent(10, 10),
            extent(12, 10),
            extent(12, 40),
            extent(10 + EXTENT_INODES, 10),
        ];
        let entries = vec![inode, entry(10, "one"), entry(12, "two")];
        tree.apply(applied, [rows, entries].concat()).await.unwrap();
        tree
    }

    #[tokio::test]
    async fn where_the_content_of_files_made_together_lies_comes_together() {
        let tree = filled().await;
        let asked = |at| Need::Extents { ino: InodeNo(10), at }.ask(&tree);
        let Loaded::Extents(files) = asked(0).await.unwrap() else {
            panic!("extents were asked for");
        };
        let found: Vec<_> = files
            .iter()
            .map(|file| (file.ino.0, file.from, file.until, file.rows.len()))
            .collect();
        assert_eq!(found, [(10, 0, u64::MAX, 1), (12, 0, u64::MAX, 2)]);
        let Loaded::Extents(files) = asked(5).await.unwrap() else {
            panic!("extents were asked for");
        };
        assert_eq!(files.len(), 1, "who is within a file stays in it");
    }

    #[tokio::test]
    async fn a_name_that_leads_to_a_directory_brings_its_listing() {
        let tree = filled().await;
        let Loaded::Folder((ino, row), listing) = Need::Folder(InodeNo(9)).ask(&tree).await.unwrap() else {
            panic!("a folder was asked for");
        };
        assert!(ino == InodeNo(9) && row.is_some());
        assert_eq!(
            (listing.dir, listing.rows.len(), listing.until),
            (InodeNo(9), 2, COOKIES_END)
        );
    }

    #[test]
    fn inodes_that_lie_together_are_asked_for_together() {
        let inos = |range: std::ops::Range<u64>| range.map(InodeNo).collect::<Vec<_>>();
        let mut wanted = [inos(5_000..5_300), inos(7..20), inos(190..191), inos(100..101)].concat();
        wanted.extend(inos(10..12));
        wanted.extend(inos(7_000..7_600));
        let found = clusters(wanted);
        assert_eq!(
            found,
            [
                inos(7..20),
                inos(100..101),
                inos(190..191),
                inos(5_000..5_300),
                inos(7_000..7_512),
                inos(7_512..7_600)
            ]
        );
    }
}
