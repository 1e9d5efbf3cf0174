//! Everything that is in a volume, for a comparison, and the inodes that a repair has named.

use std::collections::BTreeMap;

use bytes::Bytes;
use volume::check::repair::Finding;
use volume::error::FsError;
use volume::ids::{DirCookie, InodeNo};
use volume::row::FileKind;
use volume::volume::Volume;

/// What there is of one file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    pub ino: u64,
    pub dir: u64,
    pub kind: FileKind,
    pub mode: u16,
    pub size: u64,
    pub nlink: u32,
    /// Of a file or a link; `None` where reading it failed.
    pub content: Option<Vec<u8>>,
    pub xattrs: Vec<(Bytes, Bytes)>,
}

pub type Listing = BTreeMap<String, Seen>;

pub fn brief(seen: &Seen) -> String {
    let len = seen.content.as_ref().map(Vec::len);
    format!(
        "inode {} in {}: {:?} {:o} {} bytes {} names, read {len:?}, {} attributes",
        seen.ino,
        seen.dir,
        seen.kind,
        seen.mode,
        seen.size,
        seen.nlink,
        seen.xattrs.len()
    )
}

/// The inodes that findings name.
#[derive(Debug, Default)]
pub struct Told {
    all: bool,
    ranges: Vec<(u64, u64)>,
}

impl Told {
    pub fn of(found: &[Finding]) -> Self {
        let mut told = Self::default();
        for finding in found {
            let place = &finding.damage.place;
            told.all |= place.contains("the whole");
            let words: Vec<&str> = place.split([' ', ',']).filter(|word| !word.is_empty()).collect();
            for at in 0..words.len() {
                let number = |at: usize| words.get(at).and_then(|word| word.parse::<u64>().ok());
                match (words[at], words.get(at + 1).copied()) {
                    ("inodes", Some("from")) => told.ranges.push((number(at + 2).unwrap(), u64::MAX)),
                    ("inodes", _) => told.ranges.push((number(at + 1).unwrap(), number(at + 3).unwrap())),
                    ("inode" | "directory", _) => told.ranges.extend(number(at + 1).map(|ino| (ino, ino))),
                    _ => {}
                }
            }
        }
        told
    }

    pub fn has(&self, ino: u64) -> bool {
        self.all || self.ranges.iter().any(|(from, until)| (*from..=*until).contains(&ino))
    }
}

/// Everything in a volume.
pub async fn listing(volume: &Volume) -> Result<Listing, FsError> {
    let mut files = Listing::new();
    let mut folders = vec![(String::new(), InodeNo::ROOT)];
    while let Some((path, dir)) = folders.pop() {
        let mut after = DirCookie(0);
        loop {
            let entries = volume.readdir(dir, after, 100, false).await?;
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            for entry in entries {
                if entry.name == "." || entry.name == ".." {
                    continue;
                }
                let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name));
                let seen = look(volume, dir, &entry.name).await?;
                if seen.kind == FileKind::Directory {
                    folders.push((path.clone(), InodeNo(seen.ino)));
                }
                files.insert(path, seen);
            }
        }
    }
    Ok(files)
}

async fn look(volume: &Volume, dir: InodeNo, name: &[u8]) -> Result<Seen, FsError> {
    let attr = volume.lookup(dir, name).await?;
    let content = match attr.kind {
        FileKind::Regular => volume
            .read(attr.ino, 0, u32::MAX)
            .await
            .ok()
            .map(|parts| parts.concat()),
        FileKind::Symlink => volume.readlink(attr.ino).await.ok().map(|target| target.to_vec()),
        _ => None,
    };
    let mut xattrs = Vec::new();
    for name in volume.listxattr(attr.ino).await? {
        let value = volume.getxattr(attr.ino, &name).await?;
        xattrs.push((name, value));
    }
    Ok(Seen {
        ino: attr.ino.0,
        dir: dir.0,
        kind: attr.kind,
        mode: attr.mode,
        size: attr.size,
        nlink: attr.nlink,
        content,
        xattrs,
    })
}
