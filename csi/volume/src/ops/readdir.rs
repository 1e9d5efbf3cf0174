//! Listings of directories.

use bytes::Bytes;

use crate::attr::Entry;
use crate::dirent::{DOT, DOT_DOT, FIRST_COOKIE};
use crate::error::FsError;
use crate::ids::{DirCookie, InodeNo};
use crate::mount::Mount;
use crate::row::FileKind;
use crate::table::{Need, Stop, Tables};

/// 4,096 entries are listed by one call at most, whatever was asked for: no call holds the tables for long.
const ENTRIES_MAX: usize = 4_096;

/// 1,024 inodes are loaded at a time for a listing: with content in their rows, 4 MiB at most.
const LOOK_AHEAD_MAX: usize = 1_024;

/// See `Volume::readdir`.
pub(crate) async fn readdir(
    mount: &Mount,
    dir: InodeNo,
    after: DirCookie,
    entries_max: usize,
    with_attrs: bool,
) -> Result<Vec<Entry>, FsError> {
    let entries_max = entries_max.min(ENTRIES_MAX);
    let mut entries = mount.look(|tables| names(tables, dir, after, entries_max)).await?;
    if with_attrs {
        mount.look(|tables| attributes(tables, dir, &mut entries)).await?;
    }
    Ok(entries)
}

fn names(tables: &mut Tables, dir: InodeNo, after: DirCookie, entries_max: usize) -> Result<Vec<Entry>, Stop> {
    let parent = tables.directory(dir)?.parent;
    let mut entries = Vec::new();
    for (cookie, ino, name) in [(DOT, dir, &b"."[..]), (DOT_DOT, parent, b"..")] {
        if after < cookie && entries.len() < entries_max {
            let name = Bytes::from_static(name);
            entries.push(Entry {
                ino,
                kind: FileKind::Directory,
                name,
                cookie,
                attr: None,
            });
        }
    }
    let room = entries_max.saturating_sub(entries.len());
    if room == 0 || tables.inode(dir)?.entries == 0 {
        return Ok(entries);
    }
    let from = DirCookie(after.0.saturating_add(1).max(FIRST_COOKIE.0));
    let found = match tables.list(dir, from, room) {
        Ok(found) => found,
        // What is here is enough for a first answer; the next call loads the rest.
        Err(Stop::Need(_)) if !entries.is_empty() && after < DOT => Vec::new(),
        Err(stop) => return Err(stop),
    };
    entries.extend(found.into_iter().map(|(key, row)| Entry {
        ino: row.ino,
        kind: row.kind,
        name: key.name,
        cookie: key.cookie,
        attr: None,
    }));
    Ok(entries)
}

fn attributes(tables: &mut Tables, dir: InodeNo, entries: &mut [Entry]) -> Result<(), Stop> {
    let mut missing = Vec::new();
    for entry in entries.iter_mut().filter(|entry| entry.attr.is_none()) {
        match tables.attr(entry.ino) {
            Ok(attr) => entry.attr = Some(attr),
            Err(Stop::Need(_)) => missing.push(entry.ino),
            // Removed since its name was listed.
            Err(Stop::Failed(FsError::Stale(_))) => {}
            Err(stop) => return Err(stop),
        }
    }
    let Some(last) = entries.last().filter(|_| !missing.is_empty()) else {
        return Ok(());
    };
    // Who asks for these asks for the next ones too: a request for many takes as long as one for few.
    let from = DirCookie(last.cookie.0.saturating_add(1).max(FIRST_COOKIE.0));
    let more = LOOK_AHEAD_MAX.saturating_sub(missing.len());
    if let Ok(following) = tables.list(dir, from, more) {
        let unknown = following.iter().map(|(_, row)| row.ino);
        missing.extend(unknown.filter(|ino| !tables.knows_inode(*ino)));
    }
    Err(Stop::Need(Need::Inodes(missing)))
}
