//! What every tree keeps, as a check that any implementation is run through.

use bytes::Bytes;

use super::Tree;
use crate::ids::{DirCookie, Epoch, InodeNo, JournalSeq, ObjectId};
use crate::row::{Applied, Counters, DirentRow, FileKind, Key, ObjectStats, Row};

fn dirent(dir: u64, cookie: u64, name: &'static str) -> Key {
    Key::Dirent {
        dir: InodeNo(dir),
        cookie: DirCookie(cookie),
        name: Bytes::from_static(name.as_bytes()),
    }
}

fn entry(ino: u64) -> Option<Row> {
    Some(Row::Dirent(DirentRow {
        ino: InodeNo(ino),
        kind: FileKind::Regular,
    }))
}

fn stats(live_bytes: i64, total_bytes: i64) -> Row {
    Row::ObjectStats(ObjectStats {
        live_bytes,
        total_bytes,
    })
}

fn at(seq: u64) -> Applied {
    Applied {
        epoch: Epoch(1),
        seq: JournalSeq(seq),
    }
}

const OBJECT: ObjectId = ObjectId::Segment(Epoch(1), 1);

/// Applies two commits: entries of two directories, counters, and a sum of an object.
pub(crate) async fn fill(tree: &dyn Tree) {
    let first = vec![
        (Key::Counters, Some(Row::Counters(Counters::default()))),
        (dirent(2, 5, "b"), entry(12)),
        (dirent(2, 5, "a"), entry(11)),
        (dirent(2, 1 << 40, "c"), entry(13)),
        (dirent(3, 3, "x"), entry(14)),
        (Key::ObjectStats(OBJECT), Some(stats(100, 100))),
    ];
    tree.apply(at(1), first).await.unwrap();
    let second = vec![
        (dirent(2, 1 << 40, "c"), None),
        (Key::ObjectStats(OBJECT), Some(stats(-30, 0))),
        (dirent(2, 1 << 41, "d"), entry(15)),
    ];
    tree.apply(at(2), second).await.unwrap();
}

/// Checks what `fill` has left.
pub(crate) async fn check_filled(tree: &dyn Tree) {
    assert_eq!(tree.applied(), at(2));
    assert_eq!(tree.get(&Key::Applied).await.unwrap(), Some(Row::Applied(at(2))));
    assert_eq!(tree.get(&dirent(2, 5, "a")).await.unwrap(), entry(11));
    assert_eq!(tree.get(&dirent(2, 1 << 40, "c")).await.unwrap(), None);
    assert_eq!(tree.get(&Key::ObjectStats(OBJECT)).await.unwrap(), Some(stats(70, 100)));

    let (from, until) = (dirent(2, 0, ""), dirent(3, 0, ""));
    let rows = tree.scan(&from, &until, 100).await.unwrap();
    let keys: Vec<Key> = rows.into_iter().map(|(key, _)| key).collect();
    let all = [dirent(2, 5, "a"), dirent(2, 5, "b"), dirent(2, 1 << 41, "d")];
    assert_eq!(
        keys, all,
        "a directory is one range, in cookie order, without what was deleted"
    );
    assert_eq!(tree.scan(&from, &until, 2).await.unwrap().len(), 2);
    assert_eq!(tree.scan(&until, &from, 2).await.unwrap(), vec![]);
    let sums = tree
        .scan(
            &Key::ObjectStats(ObjectId::Journal(Epoch(0), JournalSeq(0))),
            &Key::Orphan(InodeNo(0)),
            9,
        )
        .await
        .unwrap();
    assert_eq!(sums, vec![(Key::ObjectStats(OBJECT), stats(70, 100))]);
}

/// Runs an empty tree through the contract; it is closed afterwards.
pub(crate) async fn check(tree: &dyn Tree) {
    assert_eq!(
        tree.applied(),
        Applied {
            epoch: Epoch(0),
            seq: JournalSeq(0)
        }
    );
    assert_eq!(tree.get(&Key::Counters).await.unwrap(), None);
    fill(tree).await;
    check_filled(tree).await;
    assert_eq!(tree.flush().await.unwrap(), at(2));
    check_filled(tree).await;
    let deletion = vec![
        (Key::ObjectStats(OBJECT), None),
        (Key::Orphan(InodeNo(9)), Some(Row::Orphan)),
    ];
    tree.apply(at(3), deletion).await.unwrap();
    assert_eq!(tree.get(&Key::ObjectStats(OBJECT)).await.unwrap(), None);
    let again = vec![(Key::ObjectStats(OBJECT), Some(stats(1, 2)))];
    tree.apply(at(4), again).await.unwrap();
    assert_eq!(
        tree.get(&Key::ObjectStats(OBJECT)).await.unwrap(),
        Some(stats(1, 2)),
        "a sum begins anew after a delete"
    );
    tree.close().await.unwrap();
    assert!(tree.get(&Key::Counters).await.is_err());
    assert!(tree.apply(at(5), vec![]).await.is_err());
}
