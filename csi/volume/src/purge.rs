//! Orphans: inodes without a name that nobody holds any more. Small ones go in the operation that lets them go; the rest
//! is taken apart here, a bounded piece at a time, and so are those that an earlier mount has left.
//!
//! Invariant: an orphan row exists until all of the inode's rows are gone, so a crash at any moment only makes the next
//! mount go on with it.

use std::sync::Arc;
use std::time::Duration;

use crate::error::FsError;
use crate::ids::InodeNo;
use crate::mount::Mount;
use crate::row::Key;

/// 1,000 orphans of an earlier mount are looked up at a time.
const ORPHAN_ROWS: usize = 1_000;

/// 60 s until what could not be purged is tried again: the store may be away, or the tables too small for a while.
const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// 1 s after an opening: what programs read first must not wait behind a scan of the whole tree for orphans.
const BEGIN_AFTER: Duration = Duration::from_secs(1);

/// Purges until the mount ends, or can change nothing any more. What could not be purged is tried again.
pub(crate) async fn run(mount: Arc<Mount>) {
    tokio::time::sleep(BEGIN_AFTER).await;
    let mut adopted = false;
    loop {
        let mut failed = Vec::new();
        if !adopted {
            match adopt(&mount).await {
                Ok(()) => adopted = true,
                Err(error) => {
                    tracing::warn!(%error, volume = %mount.uuid, "orphans of an earlier mount could not be listed; it is tried again");
                }
            }
        }
        loop {
            let Some(ino) = mount.lock().next_purgeable() else {
                break;
            };
            match purge(&mount, ino).await {
                Ok(()) => {}
                Err(FsError::Lost(_) | FsError::Closed) => return,
                Err(error) => {
                    tracing::warn!(%error, %ino, volume = %mount.uuid, "an orphan could not be purged; it is tried again");
                    failed.push(ino);
                }
            }
        }
        if adopted && failed.is_empty() {
            mount.purge.notified().await;
        } else {
            // Whoever is told meanwhile waits as long: the store is away for him too.
            tokio::time::sleep(AGAIN_AFTER).await;
            mount.lock().purge_again(failed);
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

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use async_trait::async_trait;
    use uuid::Uuid;

    use super::*;
    use crate::bucket::memory::MemoryBucket;
    use crate::clock::Timestamp;
    use crate::commit::DirtyState;
    use crate::ids::{Epoch, JournalSeq};
    use crate::ops::make::root_row;
    use crate::row::{Applied, Counters, FileKind, InodeRow, Row};
    use crate::tail::Record;
    use crate::tree::memory::MemoryTree;
    use crate::tree::{Tree, TreeError};
    use crate::volume::Volume;

    /// A tree that can be away.
    #[derive(Debug)]
    struct Away {
        tree: MemoryTree,
        away: AtomicBool,
    }

    impl Away {
        fn there(&self) -> Result<&MemoryTree, TreeError> {
            match self.away.load(Ordering::SeqCst) {
                true => Err(TreeError::Unavailable {
                    detail: "away".to_owned(),
                }),
                false => Ok(&self.tree),
            }
        }
    }

    #[async_trait]
    impl Tree for Away {
        async fn get(&self, key: &Key) -> Result<Option<Row>, TreeError> {
            self.there()?.get(key).await
        }

        async fn scan(&self, from: &Key, until: &Key, rows_max: usize) -> Result<Vec<(Key, Row)>, TreeError> {
            self.there()?.scan(from, until, rows_max).await
        }

        async fn apply(&self, applied: Applied, changes: Vec<(Key, Option<Row>)>) -> Result<(), TreeError> {
            self.there()?.apply(applied, changes).await
        }

        async fn flush(&self) -> Result<Applied, TreeError> {
            self.there()?.flush().await
        }

        fn applied(&self) -> Applied {
            self.tree.applied()
        }

        async fn close(&self) -> Result<(), TreeError> {
            self.tree.close().await
        }
    }

    fn orphan(nlink: u32) -> Vec<(Key, Option<Row>)> {
        let ino = InodeNo(2);
        let file = InodeRow {
            kind: FileKind::Regular,
            nlink,
            ..root_row(Timestamp::default())
        };
        vec![
            (Key::Orphan(ino), Some(Row::Orphan)),
            (Key::Inode(ino), Some(Row::Inode(file))),
        ]
    }

    const APPLIED: Applied = Applied {
        epoch: Epoch(1),
        seq: JournalSeq(1),
    };

    const COUNTERS: Counters = Counters {
        next_ino: 3,
        used_bytes: 0,
        inodes: 2,
    };

    /// An orphan that cannot be purged when it is found goes while the mount lives.
    #[tokio::test(start_paused = true)]
    async fn what_could_not_be_purged_is_tried_again() {
        let tree = Arc::new(Away {
            tree: MemoryTree::new(),
            away: AtomicBool::new(false),
        });
        tree.apply(APPLIED, orphan(0)).await.unwrap();
        tree.away.store(true, Ordering::SeqCst);
        let bucket = Arc::new(MemoryBucket::new());
        let volume = Volume::reopened(tree.clone(), bucket, COUNTERS, Uuid::from_u128(1));
        let purging = tokio::spawn(run(volume.mount()));
        tokio::time::sleep(3 * AGAIN_AFTER).await;
        assert!(volume.state().seal().is_none(), "nothing could be done yet");
        tree.away.store(false, Ordering::SeqCst);
        tokio::time::sleep(2 * AGAIN_AFTER).await;
        let purged = volume.state().seal().expect("something was done");
        assert!(purged.rows.contains(&(Key::Orphan(InodeNo(2)), None)), "{purged:?}");
        assert_eq!(purged.counters.inodes, 1);
        purging.abort();
    }

    /// A file without a name may get one while the rows of an earlier mount are read: it is listed as an orphan then, and is none.
    #[tokio::test]
    async fn a_file_that_has_got_a_name_stays_and_its_orphan_row_goes() {
        let tree = Arc::new(MemoryTree::new());
        tree.apply(APPLIED, orphan(1)).await.unwrap();
        let bucket = Arc::new(MemoryBucket::new());
        let volume = Volume::reopened(tree, bucket, COUNTERS, Uuid::from_u128(1));
        run_once(&volume.mount()).await.unwrap();
        let told = volume.state().seal().expect("the row's end is told");
        assert_eq!(told.rows, [(Key::Orphan(InodeNo(2)), None)]);
        assert_eq!(told.counters.inodes, 2);
    }

    /// An orphan may end while the tree is read for those of an earlier mount: what was read is older then.
    #[tokio::test]
    async fn an_orphan_that_has_ended_since_the_tree_was_read_is_not_purged_again() {
        let tree = Arc::new(MemoryTree::new());
        tree.apply(APPLIED, orphan(0)).await.unwrap();
        let bucket = Arc::new(MemoryBucket::new());
        let volume = Volume::reopened(tree, bucket, COUNTERS, Uuid::from_u128(1));
        run_once(&volume.mount()).await.unwrap();
        let told = volume.state().seal().expect("its end is told");
        assert!(told.rows.contains(&(Key::Orphan(InodeNo(2)), None)), "{told:?}");
        run_once(&volume.mount()).await.unwrap();
        assert_eq!(volume.mount().lock().counters().inodes, 1);
    }

    /// As before, and it has lost its name again: it must be listed, whatever was read.
    #[tokio::test]
    async fn an_inode_that_loses_its_name_again_while_the_tree_is_read_is_listed() {
        let tree = Arc::new(MemoryTree::new());
        tree.apply(APPLIED, orphan(1)).await.unwrap();
        let bucket = Arc::new(MemoryBucket::new());
        let volume = Volume::reopened(tree, bucket, COUNTERS, Uuid::from_u128(1));
        let mount = volume.mount();
        run_once(&mount).await.unwrap();
        let told = volume.state().seal().expect("the row's end is told");
        assert_eq!(told.rows, [(Key::Orphan(InodeNo(2)), None)]);
        mount.lock().load_orphan(InodeNo(2));
        mount.lock().open_inode(InodeNo(2));
        mount.lock().add_orphan(InodeNo(2));
        let told = volume.state().seal().expect("the row is told");
        assert_eq!(told.rows, [(Key::Orphan(InodeNo(2)), Some(Row::Orphan))]);
    }

    /// What a log says of an inode may not have reached the tree: an inode that has got a name there, and has lost it again before the
    /// next commit, must be listed all the same, or nobody would ever take it apart.
    #[tokio::test]
    async fn an_inode_that_loses_its_name_again_after_a_replay_is_listed() {
        let tree = Arc::new(MemoryTree::new());
        tree.apply(APPLIED, orphan(1)[1..].to_vec()).await.unwrap();
        let bucket = Arc::new(MemoryBucket::new());
        let volume = Volume::reopened(tree, bucket, COUNTERS, Uuid::from_u128(1));
        let mount = volume.mount();
        let replayed = |row| Record {
            rows: vec![(Key::Orphan(InodeNo(2)), row)],
            ..Record::default()
        };
        mount.lock().open_inode(InodeNo(2));
        for row in [Some(Row::Orphan), None, Some(Row::Orphan)] {
            mount.lock().replay(replayed(row)).unwrap();
        }
        let told = volume.state().seal().expect("the row is told");
        assert_eq!(told.rows, [(Key::Orphan(InodeNo(2)), Some(Row::Orphan))]);
    }
}
