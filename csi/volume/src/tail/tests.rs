//! What a tail keeps, gives up and refuses, on a real disk.

use std::fs;

use bytes::Bytes;

use super::file::{BLOCK_BYTES, Entry, LogFiles, Needs, Refused};
use super::*;
use crate::ids::{Generation, InodeNo};
use crate::row::{Counters, Key, Row};

const NAME: TailName = TailName {
    volume: Uuid::from_u128(7),
    epoch: Epoch(3),
    session: Uuid::from_u128(9),
};

/// A record that can be told from all others.
fn batch(n: u64, content_bytes: usize) -> Batch {
    let counters = Counters {
        next_ino: n,
        used_bytes: 0,
        inodes: 0,
    };
    let piece = Piece {
        ino: InodeNo(n + 1),
        start: 0,
        end: content_bytes as u64,
        content: vec![Bytes::from(vec![n as u8; content_bytes])],
    };
    Batch {
        generation: Generation(n),
        record: Record {
            rows: vec![(Key::Counters, Some(Row::Counters(counters)))],
            pieces: vec![piece],
        },
    }
}

fn append(files: &mut LogFiles, batch: &Batch, durable: u64) -> Result<u64, Refused> {
    let entry = Entry {
        generation: batch.generation,
        prefix: &[],
        record: &batch.record,
    };
    files.append(&entry, Needs::after(Generation(durable)))
}

fn written(state: &Path, sizes: &[usize]) -> TailDir {
    let dir = TailDir::open(state, NAME.volume).unwrap();
    let mut files = dir.begin(NAME).unwrap();
    for (n, size) in sizes.iter().enumerate() {
        append(&mut files, &batch(n as u64 + 1, *size), 0).unwrap();
    }
    dir
}

fn read(dir: &TailDir, durable: u64) -> Result<Vec<u64>, TailError> {
    let mut reader = dir.find(NAME)?;
    let mut found = Vec::new();
    while let Some(logged) = reader.next(Generation(durable))? {
        let record = logged.record;
        let Some((_, Some(Row::Counters(counters)))) = record.rows.first() else {
            panic!("{record:?}");
        };
        let n = counters.next_ino;
        assert_eq!(record, batch(n, record.pieces[0].content[0].len()).record);
        found.push(n);
    }
    Ok(found)
}

fn file_of(dir: &TailDir) -> PathBuf {
    dir.path().join(NAME.folder()).join("log-0000000000000001")
}

/// What was written is read back, but for what the bucket has.
#[test]
fn records_come_back_in_order_from_the_first_that_the_bucket_lacks() {
    let state = tempfile::tempdir().unwrap();
    let dir = written(state.path(), &[1, 5_000, 3_000_000, 4_000, 9_000_000, 10]);
    assert_eq!(read(&dir, 0).unwrap(), [1, 2, 3, 4, 5, 6]);
    assert_eq!(read(&dir, 4).unwrap(), [5, 6]);
    assert!(read(&dir, 6).unwrap().is_empty());
}

/// A crash within the last write leaves less of it than was written: it was never acknowledged, and goes.
#[test]
fn a_torn_last_record_is_dropped_and_all_before_it_stays() {
    let state = tempfile::tempdir().unwrap();
    let dir = written(state.path(), &[100, 100, 20_000]);
    let path = file_of(&dir);
    let whole = fs::read(&path).unwrap();
    let begin = 3 * BLOCK_BYTES as usize;
    for blocks in 0..5 {
        let mut torn = whole.clone();
        torn[begin + blocks * BLOCK_BYTES as usize..].fill(0);
        fs::write(&path, &torn).unwrap();
        assert_eq!(read(&dir, 0).unwrap(), [1, 2], "{blocks} blocks of it are there");
        // The blocks may reach the disk in any order.
        let mut torn = whole.clone();
        torn[begin..begin + (blocks + 1) * BLOCK_BYTES as usize].fill(0);
        fs::write(&path, &torn).unwrap();
        assert_eq!(
            read(&dir, 0).unwrap(),
            [1, 2],
            "the first {blocks} blocks and one are missing"
        );
    }
}

/// Whatever bit flips in what came before something that can be read: an error that names the file, never a shorter tail.
#[test]
fn damage_before_a_whole_record_is_an_error_that_names_the_file() {
    let state = tempfile::tempdir().unwrap();
    let dir = written(state.path(), &[100, 6_000, 100]);
    let path = file_of(&dir);
    let whole = fs::read(&path).unwrap();
    let block = BLOCK_BYTES as usize;
    for at in [
        0,
        20,
        70,
        block,
        block + 30,
        block + 63,
        2 * block + 50,
        2 * block + 64,
        2 * block + 6_050,
    ] {
        let mut damaged = whole.clone();
        damaged[at] ^= 0x10;
        fs::write(&path, &damaged).unwrap();
        let error = read(&dir, 0).unwrap_err();
        let told = error.to_string();
        assert!(matches!(error, TailError::Damaged { .. }), "byte {at}: {told}");
        assert!(
            told.contains("log-0000000000000001") && told.contains("drop-tail"),
            "{told}"
        );
    }
    fs::remove_file(&path).unwrap();
    assert!(matches!(read(&dir, 0), Err(TailError::Damaged { .. })));
}

/// Files are used again once the bucket has what they hold; what they held before is not mistaken for what they hold now.
#[test]
fn a_tail_that_the_bucket_follows_stays_small_and_one_that_it_does_not_is_bounded() {
    let state = tempfile::tempdir().unwrap();
    let dir = TailDir::open(state.path(), NAME.volume).unwrap();
    let mut files = dir.begin(NAME).unwrap();
    for n in 1..=200 {
        append(&mut files, &batch(n, 400_000), n.saturating_sub(30)).unwrap();
    }
    assert!(files.count() <= 4, "{} files", files.count());
    assert_eq!(read(&dir, 170).unwrap(), (171..=200).collect::<Vec<_>>());
    let mut n = 200;
    let refused = loop {
        n += 1;
        if let Err(refused) = append(&mut files, &batch(n, 4_000_000), 170) {
            break refused;
        }
        assert!(n < 300, "it grows without end");
    };
    assert!(matches!(refused, super::file::Refused::Full), "{refused:?}");
    assert_eq!(read(&dir, 170).unwrap(), (171..n).collect::<Vec<_>>());
    append(&mut files, &batch(n, 4_000_000), n - 1).unwrap();
    assert_eq!(read(&dir, n - 1).unwrap(), [n]);
    files.reset().unwrap();
    assert_eq!((read(&dir, 0).unwrap(), files.count()), (vec![], 1));
    append(&mut files, &batch(n, 100), 0).unwrap();
    append(&mut files, &batch(n + 1, 9_000_000), 0).unwrap();
    assert_eq!(read(&dir, 0).unwrap(), [n, n + 1]);
    files.clear().unwrap();
    assert_eq!((read(&dir, 0).unwrap(), files.count()), (vec![], 1));
}

/// What the head does not name is kept aside, and what holds nothing goes.
#[test]
fn a_tail_that_the_head_does_not_name_is_put_aside() {
    let state = tempfile::tempdir().unwrap();
    let dir = written(state.path(), &[100]);
    let empty = TailName {
        epoch: Epoch(4),
        ..NAME
    };
    dir.begin(empty).unwrap();
    assert!(matches!(
        TailDir::open(state.path(), NAME.volume),
        Err(TailError::Busy { .. })
    ));
    dir.put_others_aside(Some(NAME)).unwrap();
    assert_eq!(read(&dir, 0).unwrap(), [1]);
    assert!(matches!(dir.find(empty), Err(TailError::Missing { .. })));
    dir.put_others_aside(None).unwrap();
    assert!(matches!(read(&dir, 0), Err(TailError::Missing { .. })));
    let aside = dir.path().join(format!("refused-{}", NAME.folder()));
    assert!(aside.join("log-0000000000000001").exists());
}
