//! Orphans: inodes without a name that nobody holds any more. Small ones go in the operation that lets them go; the rest
//! is taken apart here, a bounded piece at a time, and so are those that an earlier mount has left.
//!
//! Invariant: an orphan row exists until all of the inode's rows are gone, so a crash at any moment only makes the next
//! mount go on with it.

use std::sync::Arc;

use crate::error::FsError;
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::row::Key;

/// 1,000 orphans of an earlier mount are looked up at a time.
const ORPHAN_ROWS: usize = 1_000;

/// Purges until the mount ends. An orphan that cannot be purged stays for the next mount.
pub(crate) async fn run(mount: Arc<Mount>) {
    if let Err(error) = adopt(&mount).await {
        tracing::warn!(%error, volume = %mount.uuid, "orphans of an earlier mount could not be listed; the next mount tries again");
    }
    loop {
        let next = mount.lock().next_purgeable();
        match next {
            None => mount.purge.notified().await,
            Some(ino) => {
                if let Err(error) = purge(&mount, ino).await {
                    tracing::warn!(%error, %ino, volume = %mount.uuid, "an orphan could not be purged; the next mount tries again");
                }
            }
        }
    }
}

/// Purges what there is now.
#[cfg(test)]
pub(crate) async fn run_once(mount: &Mount) -> Result<(), FsError> {
    adopt(mount).await?;
    loop {
        let next = mount.lock().next_purgeable();
        match next {
            None => return Ok(()),
            Some(ino) => purge(mount, ino).await?,
        }
    }
}

/// Lists what an earlier mount has left.
async fn adopt(mount: &Mount) -> Result<(), FsError> {
    let (mut from, end) = (Key::Orphan(InodeNo(0)), Key::Orphan(InodeNo(u64::MAX)));
    loop {
        let rows = mount.tree.scan(&from, &end, ORPHAN_ROWS).await?;
        let full = rows.len() == ORPHAN_ROWS;
        let mut tables = mount.lock();
        for (key, _) in rows {
            if let Key::Orphan(ino) = key {
                tables.load_orphan(ino);
                from = Key::Orphan(ino.next());
            }
        }
        if !full {
            return Ok(());
        }
    }
}

async fn purge(mount: &Mount, ino: InodeNo) -> Result<(), FsError> {
    while !mount.change(|tables, _| tables.purge_step(ino)).await? {}
    mount.readahead.forget(ino);
    Ok(())
}
