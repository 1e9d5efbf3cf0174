//! Content of files: written, read, cut, sparse, in RAM and from the bucket.

use super::*;
use crate::attr::{CopyRange, Fallocate, SeekKind, SetAttr};

fn pattern(len: usize, seed: u8) -> Vec<u8> {
    (0..len)
        .map(|i| {
            (i as u8)
                .wrapping_mul(31)
                .wrapping_add((i >> 8) as u8)
                .wrapping_add(seed)
        })
        .collect()
}

pub(super) async fn truncate(rig: &Rig, ino: InodeNo, size: u64) {
    rig.volume
        .setattr(
            ino,
            &SetAttr {
                size: Some(size),
                ..SetAttr::default()
            },
        )
        .await
        .unwrap();
}

#[test]
fn a_file_is_read_as_it_was_written_at_every_stage_of_its_commit() {
    run(async {
        for len in [1, 4_096, 4_097, 200_000, 3_000_000] {
            let mut rig = Rig::new();
            let ino = rig.file(ROOT, "f").await;
            let content = pattern(len, 1);
            for (i, chunk) in content.chunks(70_001).enumerate() {
                rig.write(ino, i as u64 * 70_001, chunk).await;
            }
            assert!(rig.read(ino, 0, 4_000_000).await == content, "dirty");
            rig.cut().await;
            assert!(rig.read(ino, 0, 4_000_000).await == content, "under way");
            rig.land();
            assert!(rig.read(ino, 0, 4_000_000).await == content, "durable");
            rig.apply().await;
            assert!(rig.read(ino, 0, 4_000_000).await == content, "in the tree");
            rig.forget_all().await;
            assert!(rig.read(ino, 0, 4_000_000).await == content, "loaded");
            let rig = rig.reopened().await;
            assert!(rig.read(ino, 0, 4_000_000).await == content, "reopened");
            assert_eq!(rig.attr(ino).await.size, len as u64);
            assert_eq!(rig.attr(ino).await.blocks_512, (len as u64).div_ceil(512));
        }
    });
}

#[test]
fn reading_ends_at_the_end_of_the_file() {
    run(async {
        let rig = Rig::new();
        let ino = rig.file(ROOT, "f").await;
        rig.write(ino, 0, b"hello").await;
        assert_eq!(rig.read(ino, 3, 100).await, b"lo");
        assert_eq!(rig.read(ino, 5, 100).await, b"");
        assert_eq!(rig.read(ino, u64::MAX, 100).await, b"");
        assert_fails!(rig.volume.read(ROOT, 0, 1).await, FsError::IsDirectory);
        assert_fails!(rig.volume.read(InodeNo(999), 0, 1).await, FsError::Stale(_));
        assert_fails!(
            rig.volume.write(ino, u64::MAX, Bytes::from_static(b"x")).await,
            FsError::TooBig
        );
    });
}

#[test]
fn holes_read_as_zeros_and_take_no_space() {
    run(async {
        let mut rig = Rig::new();
        let ino = rig.file(ROOT, "sparse").await;
        rig.write(ino, 1 << 40, b"far").await;
        rig.write(ino, 0, b"near").await;
        rig.forget_all().await;
        let attr = rig.attr(ino).await;
        assert_eq!((attr.size, attr.blocks_512), ((1 << 40) + 3, 1));
        assert_eq!(rig.read(ino, 0, 8).await, b"near\0\0\0\0");
        assert_eq!(rig.read(ino, (1 << 40) - 2, 10).await, b"\0\0far");
        assert_eq!(rig.read(ino, 1 << 20, 3).await, b"\0\0\0");
    });
}

#[test]
fn what_was_cut_off_does_not_come_back_when_the_file_grows() {
    run(async {
        for (first, cut, grown) in [
            (3_000, 10, 2_000),
            (9_000, 10, 8_000),
            (9_000, 5_000, 20_000),
            (3_000, 10, 9_000),
        ] {
            let mut rig = Rig::new();
            let ino = rig.file(ROOT, "f").await;
            rig.write(ino, 0, &vec![7; first]).await;
            rig.forget_all().await;
            truncate(&rig, ino, cut as u64).await;
            truncate(&rig, ino, grown as u64).await;
            let mut expected = vec![7; cut];
            expected.resize(grown, 0);
            assert!(
                rig.read(ino, 0, 100_000).await == expected,
                "in RAM: {first} {cut} {grown}"
            );
            rig.forget_all().await;
            assert!(
                rig.read(ino, 0, 100_000).await == expected,
                "loaded: {first} {cut} {grown}"
            );
        }
    });
}

#[test]
fn overwriting_part_of_a_run_keeps_what_is_around_it() {
    run(async {
        let mut rig = Rig::tight();
        let ino = rig.file(ROOT, "f").await;
        let mut expected = pattern(500_000, 3);
        rig.write(ino, 0, &expected).await;
        rig.forget_all().await;
        for (offset, len) in [
            (100_000usize, 4_096usize),
            (0, 10),
            (499_990, 10),
            (131_072, 131_072),
            (99_999, 4_098),
        ] {
            let new = pattern(len, offset as u8);
            rig.write(ino, offset as u64, &new).await;
            expected[offset..offset + len].copy_from_slice(&new);
            assert!(
                rig.read(ino, 0, 600_000).await == expected,
                "after {offset}+{len} in RAM"
            );
            rig.forget_all().await;
            assert!(
                rig.read(ino, 0, 600_000).await == expected,
                "after {offset}+{len} loaded"
            );
        }
        assert_eq!(rig.attr(ino).await.blocks_512, 500_000u64.div_ceil(512));
    });
}

#[test]
fn punched_and_zeroed_ranges_are_holes() {
    run(async {
        let mut rig = Rig::new();
        let ino = rig.file(ROOT, "f").await;
        rig.write(ino, 0, &vec![1; 300_000]).await;
        rig.forget_all().await;
        rig.volume
            .fallocate(ino, Fallocate::PunchHole, 100_000, 100_000)
            .await
            .unwrap();
        let size = |rig: &Rig| rig.volume.statfs().inodes.min(1) * 300_000;
        assert_eq!(rig.attr(ino).await.size, size(&rig));
        assert_eq!(rig.volume.seek(ino, 0, SeekKind::Hole).await.unwrap(), 100_000);
        assert_eq!(rig.volume.seek(ino, 100_000, SeekKind::Data).await.unwrap(), 200_000);
        rig.forget_all().await;
        assert_eq!(rig.volume.seek(ino, 0, SeekKind::Hole).await.unwrap(), 100_000);
        assert_eq!(rig.volume.seek(ino, 150_000, SeekKind::Data).await.unwrap(), 200_000);
        assert_eq!(rig.volume.seek(ino, 200_000, SeekKind::Hole).await.unwrap(), 300_000);
        rig.volume
            .fallocate(ino, Fallocate::ZeroRange { keep_size: false }, 290_000, 20_000)
            .await
            .unwrap();
        assert_eq!(rig.attr(ino).await.size, 310_000);
        assert_fails!(
            rig.volume.seek(ino, 290_000, SeekKind::Data).await,
            FsError::NoSuchOffset
        );
        assert_fails!(
            rig.volume.seek(ino, 310_000, SeekKind::Hole).await,
            FsError::NoSuchOffset
        );
        rig.volume
            .fallocate(ino, Fallocate::Allocate { keep_size: true }, 0, 900_000)
            .await
            .unwrap();
        assert_eq!(rig.attr(ino).await.size, 310_000);
        rig.volume
            .fallocate(ino, Fallocate::Allocate { keep_size: false }, 0, 900_000)
            .await
            .unwrap();
        assert_eq!(rig.attr(ino).await.size, 900_000);
        assert_fails!(
            rig.volume.fallocate(ino, Fallocate::PunchHole, 0, 0).await,
            FsError::Invalid(_)
        );
        let mut expected = vec![1; 900_000];
        expected[100_000..200_000].fill(0);
        expected[290_000..].fill(0);
        assert!(rig.read(ino, 0, 1_000_000).await == expected);
    });
}

#[test]
fn a_range_is_copied_and_an_overlapping_one_refused() {
    run(async {
        let mut rig = Rig::new();
        let (from, to) = (rig.file(ROOT, "from").await, rig.file(ROOT, "to").await);
        rig.write(from, 0, &pattern(100_000, 9)).await;
        rig.forget_all().await;
        let range = CopyRange {
            from,
            from_offset: 50_000,
            to,
            to_offset: 10,
            len_bytes: 100_000,
        };
        assert_eq!(rig.volume.copy_file_range(range).await.unwrap(), 50_000);
        assert!(rig.read(to, 10, 100_000).await == pattern(100_000, 9)[50_000..]);
        let overlapping = CopyRange {
            from,
            from_offset: 0,
            to: from,
            to_offset: 10,
            len_bytes: 11,
        };
        assert_fails!(rig.volume.copy_file_range(overlapping).await, FsError::Invalid(_));
    });
}

#[test]
fn the_capacity_is_a_limit_for_content_and_freeing_gives_it_back() {
    run(async {
        let rig = Rig::new();
        rig.volume.set_capacity_bytes(Some(100_000));
        let ino = rig.file(ROOT, "f").await;
        rig.write(ino, 0, &vec![1; 90_000]).await;
        assert_fails!(
            rig.volume.write(ino, 90_000, vec![1; 10_001].into()).await,
            FsError::NoSpace
        );
        assert_eq!(rig.attr(ino).await.size, 90_000, "a refused write changes nothing");
        rig.write(ino, 0, &vec![2; 90_000]).await;
        rig.write(ino, 90_000, &vec![1; 10_000]).await;
        assert_eq!(rig.volume.statfs().free_bytes, 0);
        let other = rig.file(ROOT, "g").await;
        assert_fails!(
            rig.volume.write(other, 0, Bytes::from_static(b"x")).await,
            FsError::NoSpace
        );
        assert_fails!(
            rig.volume
                .fallocate(other, Fallocate::Allocate { keep_size: false }, 0, 1)
                .await,
            FsError::NoSpace
        );
        truncate(&rig, ino, 50_000).await;
        assert_eq!(rig.volume.statfs().free_bytes, 50_000);
        rig.volume.forget(ino, 1);
        rig.volume.unlink(ROOT, b"f").await.unwrap();
        assert_eq!(rig.volume.statfs().free_bytes, 100_000);
    });
}

#[test]
fn a_damaged_object_is_an_error_that_names_it_and_nothing_else_is_lost() {
    run(async {
        let mut rig = Rig::new();
        let (good, bad) = (rig.file(ROOT, "good").await, rig.file(ROOT, "bad").await);
        rig.write(good, 0, &vec![1; 10_000]).await;
        rig.settle().await;
        rig.write(bad, 0, &vec![2; 300_000]).await;
        rig.forget_all().await;
        let key = ObjectId::Journal(Epoch(1), JournalSeq(2)).key();
        let mut body = rig.bucket.get(&key, None).await.unwrap().body.to_vec();
        body[200_000] ^= 1;
        rig.bucket.delete(&key).await.unwrap();
        rig.bucket.put_if_absent(&key, body.into()).await.unwrap();
        match rig.volume.read(bad, 0, 300_000).await {
            Err(FsError::Damaged { ino, object, .. }) => {
                assert_eq!((ino, object.key()), (bad, key.clone()));
            }
            other => panic!("{other:?}"),
        }
        assert!(
            rig.read(bad, 0, 100_000).await == vec![2; 100_000],
            "the first frame is whole"
        );
        assert!(rig.read(good, 0, 10_000).await == vec![1; 10_000]);
        rig.bucket.delete(&key).await.unwrap();
        assert_fails!(rig.volume.read(bad, 200_000, 1).await, FsError::Damaged { .. });
    });
}
