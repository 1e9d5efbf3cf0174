//! Space that fallocate(2) reserves: told at once, kept whatever others write, and given back.

use bytes::Bytes;

use super::content::truncate;
use super::*;
use crate::attr::Fallocate;
use crate::row::RESERVED_RANGES_MAX;

const ALLOCATE: Fallocate = Fallocate::Allocate { keep_size: false };
const BEYOND: Fallocate = Fallocate::Allocate { keep_size: true };

fn free(rig: &Rig) -> u64 {
    rig.volume.statfs().free_bytes
}

async fn fallocate(rig: &Rig, ino: InodeNo, what: Fallocate, offset: u64, len: u64) {
    rig.volume.fallocate(ino, what, offset, len).await.unwrap();
}

#[test]
fn reserved_space_is_there_when_it_is_written_whatever_others_use() {
    run(async {
        let mut rig = Rig::new();
        rig.volume.set_capacity_bytes(Some(1_000_000));
        let (ino, other) = (rig.file(ROOT, "f").await, rig.file(ROOT, "g").await);
        fallocate(&rig, ino, ALLOCATE, 0, 600_000).await;
        assert_eq!(rig.attr(ino).await.size, 600_000);
        assert_eq!(rig.attr(ino).await.blocks_512, 600_000u64.div_ceil(512));
        assert_fails!(
            rig.volume.fallocate(other, ALLOCATE, 0, 400_001).await,
            FsError::NoSpace
        );
        rig.write(other, 0, &vec![1; 400_000]).await;
        assert_fails!(
            rig.volume.write(other, 400_000, Bytes::from_static(b"x")).await,
            FsError::NoSpace
        );
        for offset in [500_000, 0, 100_000, 500_000] {
            rig.write(ino, offset, &vec![2; 100_000]).await;
            rig.forget_all().await;
            assert_eq!(free(&rig), 0);
        }
        // The same range again takes nothing more, beyond it there is nothing.
        fallocate(&rig, ino, ALLOCATE, 0, 600_000).await;
        assert_fails!(rig.volume.fallocate(ino, ALLOCATE, 599_999, 2).await, FsError::NoSpace);
        assert_fails!(
            rig.volume.write(ino, 600_000, Bytes::from_static(b"x")).await,
            FsError::NoSpace
        );
        let mut expected = vec![2; 600_000];
        expected[200_000..500_000].fill(0);
        assert!(rig.read(ino, 0, 700_000).await == expected);
    });
}

#[test]
fn reserved_space_is_given_back_by_holes_truncation_and_the_end_of_the_file() {
    run(async {
        let mut rig = Rig::new();
        rig.volume.set_capacity_bytes(Some(1_000_000));
        let ino = rig.file(ROOT, "f").await;
        rig.write(ino, 0, &vec![1; 1_000]).await;
        fallocate(&rig, ino, BEYOND, 500, 899_500).await;
        assert_eq!((rig.attr(ino).await.size, free(&rig)), (1_000, 100_000));
        rig.forget_all().await;
        fallocate(&rig, ino, Fallocate::PunchHole, 100_000, 100_000).await;
        assert_eq!(free(&rig), 200_000);
        rig.write(ino, 150_000, &vec![3; 10_000]).await;
        assert_eq!(free(&rig), 190_000);
        fallocate(&rig, ino, Fallocate::ZeroRange { keep_size: true }, 140_000, 20_000).await;
        assert_eq!(free(&rig), 180_000, "zeroed is reserved, with content or not");
        assert!(rig.read(ino, 150_000, 10_000).await == vec![0; 10_000]);
        truncate(&rig, ino, 50_000).await;
        assert_eq!(free(&rig), 950_000);
        rig.write(ino, 60_000, &vec![4; 10_000]).await;
        assert_eq!(free(&rig), 940_000);
        rig.volume.forget(ino, 1);
        rig.volume.unlink(ROOT, b"f").await.unwrap();
        rig.volume.purge_all().await;
        assert_eq!(free(&rig), 1_000_000);
        let small = rig.file(ROOT, "small").await;
        rig.write(small, 0, b"within a row").await;
        fallocate(&rig, small, ALLOCATE, 0, 100).await;
        assert_eq!((rig.attr(small).await.size, free(&rig)), (100, 999_900));
        fallocate(&rig, small, BEYOND, 50, 4_000).await;
        assert_eq!((rig.attr(small).await.size, free(&rig)), (100, 1_000_000 - 4_050));
        assert!(rig.read(small, 0, 200).await[..12] == b"within a row"[..]);
    });
}

#[test]
fn a_file_has_a_bounded_number_of_reserved_ranges() {
    run(async {
        let mut rig = Rig::new();
        rig.volume.set_capacity_bytes(Some(10_000_000));
        let ino = rig.file(ROOT, "f").await;
        for range in 0..RESERVED_RANGES_MAX as u64 {
            fallocate(&rig, ino, ALLOCATE, range * 10_000, 5_000).await;
        }
        let full = 10_000_000 - RESERVED_RANGES_MAX as u64 * 5_000;
        assert_eq!(free(&rig), full);
        assert_fails!(
            rig.volume.fallocate(ino, ALLOCATE, 5_000_000, 1).await,
            FsError::NotSupported(_)
        );
        fallocate(&rig, ino, Fallocate::ZeroRange { keep_size: false }, 5_000_000, 1_000).await;
        assert_eq!(rig.attr(ino).await.size, 5_001_000);
        rig.write(ino, 1_000, &vec![7; 1_000]).await;
        fallocate(&rig, ino, Fallocate::PunchHole, 1_000, 1_000).await;
        assert_eq!(free(&rig), full, "one more piece would be too many: it stays reserved");
        assert!(rig.read(ino, 0, 5_000).await == vec![0; 5_000]);
        rig.forget_all().await;
        assert_eq!(
            rig.attr(ino).await.blocks_512,
            (RESERVED_RANGES_MAX as u64 * 5_000).div_ceil(512)
        );
        truncate(&rig, ino, 0).await;
        assert_eq!(rig.attr(ino).await.blocks_512, 0);
    });
}
