//! Renames: within a directory or across, over an existing entry, or as an exchange of two.
//!
//! POSIX: rename(2). What is replaced loses its name in the same change in which the other gets it: nobody, and no crash,
//! sees neither or both. An open file that is replaced lives on without a name.

use super::make::{add_entry, living_directory};
use super::unlink::{check_empty, lose_name, remove_entry};
use crate::attr::{Place, RenameMode};
use crate::clock::Timestamp;
use crate::dirent::{check_length, check_new_name};
use crate::error::FsError;
use crate::ids::InodeNo;
use crate::limits::LINKS_MAX;
use crate::mount::Mount;
use crate::row::{DirentRow, FileKind};
use crate::table::{Stop, Tables};

/// See `Volume::rename`.
pub(crate) async fn rename(mount: &Mount, from: Place<'_>, to: Place<'_>, mode: RenameMode) -> Result<(), FsError> {
    check_length(from.name)?;
    check_length(to.name)?;
    for name in [from.name, to.name] {
        check_new_name(name).map_err(|_| FsError::Invalid("that is no name that can be moved"))?;
    }
    let purge = mount
        .change_once(
            |tables, now| {
                living_directory(tables, from.dir)?;
                living_directory(tables, to.dir)?;
                let moved = tables.dirent(from.dir, from.name)?.ok_or(FsError::NotFound)?;
                let other = tables.dirent(to.dir, to.name)?;
                tables.inode(moved.ino)?;
                if let Some(other) = other {
                    tables.inode(other.ino)?;
                }
                match (mode, other) {
                    (RenameMode::NoReplace, Some(_)) => Err(FsError::Exists.into()),
                    (RenameMode::Exchange, None) => Err(FsError::NotFound.into()),
                    (RenameMode::Exchange, Some(other)) => {
                        exchange(tables, (from, moved), (to, other), now).map(|()| false)
                    }
                    (RenameMode::Replace | RenameMode::NoReplace, other) => {
                        replace(tables, (from, moved), (to, other), now)
                    }
                }
            },
            |_| InodeNo::NONE,
        )
        .await?;
    if purge {
        mount.purge.notify_one();
    }
    Ok(())
}

/// Refuses to move a directory into itself or below.
fn check_no_cycle(tables: &mut Tables, moved: DirentRow, into: InodeNo) -> Result<(), Stop> {
    if moved.kind != FileKind::Directory {
        return Ok(());
    }
    let mut at = into;
    while at != InodeNo::ROOT {
        if at == moved.ino {
            return Err(FsError::Invalid("a directory cannot be moved into itself").into());
        }
        at = tables.inode(at)?.parent;
    }
    Ok(())
}

fn check_links(tables: &mut Tables, dir: InodeNo, coming: DirentRow, going: Option<DirentRow>) -> Result<(), Stop> {
    let grows = coming.kind == FileKind::Directory && going.is_none_or(|going| going.kind != FileKind::Directory);
    if grows && tables.inode(dir)?.nlink >= LINKS_MAX {
        return Err(FsError::TooManyLinks.into());
    }
    Ok(())
}

fn replace(
    tables: &mut Tables,
    (from, moved): (Place<'_>, DirentRow),
    (to, other): (Place<'_>, Option<DirentRow>),
    now: Timestamp,
) -> Result<bool, Stop> {
    // POSIX: two names of one file: nothing is done.
    if other.is_some_and(|other| other.ino == moved.ino) {
        return Ok(false);
    }
    check_no_cycle(tables, moved, to.dir)?;
    if let Some(other) = other {
        match (moved.kind, other.kind) {
            (FileKind::Directory, FileKind::Directory) => check_empty(tables, other.ino)?,
            (FileKind::Directory, _) => return Err(FsError::NotDirectory.into()),
            (_, FileKind::Directory) => return Err(FsError::IsDirectory.into()),
            _ => {}
        }
    }
    if from.dir != to.dir {
        check_links(tables, to.dir, moved, other)?;
    }
    remove_entry(tables, from.dir, from.name, moved.kind, now);
    let mut purge = false;
    if let Some(other) = other {
        remove_entry(tables, to.dir, to.name, other.kind, now);
        purge = lose_name(tables, other, now);
    }
    add_entry(tables, to.dir, to.name, moved, now);
    arrive(tables, moved, to.dir, now);
    Ok(purge)
}

fn exchange(
    tables: &mut Tables,
    (from, moved): (Place<'_>, DirentRow),
    (to, other): (Place<'_>, DirentRow),
    now: Timestamp,
) -> Result<(), Stop> {
    if moved.ino == other.ino {
        return Ok(());
    }
    check_no_cycle(tables, moved, to.dir)?;
    check_no_cycle(tables, other, from.dir)?;
    if from.dir != to.dir {
        check_links(tables, to.dir, moved, Some(other))?;
        check_links(tables, from.dir, other, Some(moved))?;
    }
    remove_entry(tables, from.dir, from.name, moved.kind, now);
    remove_entry(tables, to.dir, to.name, other.kind, now);
    add_entry(tables, to.dir, to.name, moved, now);
    add_entry(tables, from.dir, from.name, other, now);
    arrive(tables, moved, to.dir, now);
    arrive(tables, other, from.dir, now);
    Ok(())
}

fn arrive(tables: &mut Tables, entry: DirentRow, dir: InodeNo, now: Timestamp) {
    tables.change_inode(entry.ino, |row| {
        row.ctime = now;
        if row.kind == FileKind::Directory {
            row.parent = dir;
        }
    });
}
