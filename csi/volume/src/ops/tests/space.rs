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
        rig.volume.set_capacity_bytes(Some(1_024_000));
        let (ino, other) = (rig.file(ROOT, "f").await, rig.file(ROOT, "g").await);
        fallocate(&rig, ino, ALLOCATE, 0, 614_400).await;
        assert_eq!(rig.attr(ino).await.size, 614_400);
        assert_eq!(rig.attr(ino).await.blocks_512, 614_400u64.div_ceil(512));
        assert_fails!(
            rig.volume.fallocate(other, ALLOCATE, 0, 409_601).await,
            FsError::NoSpace
        );
        rig.write(other, 0, &vec![1; 409_600]).await;
        assert_fails!(
            rig.volume.write(other, 409_600, Bytes::from_static(b"x")).await,
            FsError::NoSpace
        );
        for offset in [512_000, 0, 102_400, 512_000] {
            rig.write(ino, offset, &vec![2; 102_400]).await;
            rig.forget_all().await;
            assert_eq!(free(&rig), 0);
        }
        // The same range again takes nothing more, beyond it there is nothing.
        fallocate(&rig, ino, ALLOCATE, 0, 614_400).await;
        assert_fails!(rig.volume.fallocate(ino, ALLOCATE, 614_399, 2).await, FsError::NoSpace);
        assert_fails!(
            rig.volume.write(ino, 614_400, Bytes::from_static(b"x")).await,
            FsError::NoSpace
        );
        let mut expected = vec![2; 614_400];
        expected[204_800..512_000].fill(0);
        assert!(rig.read(ino, 0, 716_800).await == expected);
    });
}

#[test]
fn reserved_space_is_given_back_by_holes_truncation_and_the_end_of_the_file() {
    run(async {
        let mut rig = Rig::new();
        rig.volume.set_capacity_bytes(Some(1_024_000));
        let ino = rig.file(ROOT, "f").await;
        rig.write(ino, 0, &vec![1; 1_000]).await;
        fallocate(&rig, ino, BEYOND, 500, 921_100).await;
        assert_eq!((rig.attr(ino).await.size, free(&rig)), (1_000, 102_400));
        rig.forget_all().await;
        fallocate(&rig, ino, Fallocate::PunchHole, 102_400, 102_400).await;
        assert_eq!(free(&rig), 204_800);
        rig.write(ino, 153_600, &vec![3; 10_240]).await;
        assert_eq!(free(&rig), 194_560);
        fallocate(&rig, ino, Fallocate::ZeroRange { keep_size: true }, 143_360, 20_480).await;
        assert_eq!(free(&rig), 184_320, "zeroed is reserved, with content or not");
        assert!(rig.read(ino, 153_600, 10_240).await == vec![0; 10_240]);
        truncate(&rig, ino, 51_200).await;
        assert_eq!(free(&rig), 972_800);
        rig.write(ino, 61_440, &vec![4; 10_240]).await;
        assert_eq!(free(&rig), 962_560);
        rig.volume.forget(ino, 1);
        rig.volume.unlink(ROOT, b"f").await.unwrap();
        rig.volume.purge_all().await;
        assert_eq!(free(&rig), 1_024_000);
        let small = rig.file(ROOT, "small").await;
        rig.write(small, 0, b"within a row").await;
        fallocate(&rig, small, ALLOCATE, 0, 100).await;
        assert_eq!((rig.attr(small).await.size, free(&rig)), (100, 1_023_900));
        fallocate(&rig, small, BEYOND, 50, 4_000).await;
        assert_eq!((rig.attr(small).await.size, free(&rig)), (100, 1_024_000 - 4_096));
        assert!(rig.read(small, 0, 200).await[..12] == b"within a row"[..]);
    });
}

/// The kernel writes whole pages of what programs write: whoever has reserved a part of one can write it into a full volume.
#[test]
fn whole_pages_are_reserved() {
    run(async {
        let rig = Rig::new();
        rig.volume.set_capacity_bytes(Some(12_288));
        let (ino, other) = (rig.file(ROOT, "f").await, rig.file(ROOT, "g").await);
        fallocate(&rig, ino, ALLOCATE, 4_095, 2).await;
        assert_eq!((rig.attr(ino).await.size, free(&rig)), (4_097, 4_096));
        rig.write(other, 0, &[1; 4_096]).await;
        rig.write(ino, 0, &[2; 4_097]).await;
        assert_eq!((rig.attr(ino).await.blocks_512, free(&rig)), (16, 0));
        assert!(rig.read(ino, 0, 8_192).await == vec![2; 4_097]);
    });
}

/// A volume without a limit has what statfs tells, and no more can be reserved.
#[test]
fn a_volume_without_a_limit_reserves_what_it_tells() {
    run(async {
        let rig = Rig::new();
        let ino = rig.file(ROOT, "f").await;
        let all = free(&rig);
        assert_fails!(rig.volume.fallocate(ino, BEYOND, 0, all + 1).await, FsError::NoSpace);
        fallocate(&rig, ino, BEYOND, 0, all).await;
        assert_eq!(free(&rig), 0);
    });
}

#[test]
fn a_file_has_a_bounded_number_of_reserved_ranges() {
    run(async {
        let mut rig = Rig::new();
        rig.volume.set_capacity_bytes(Some(10_000_000));
        let ino = rig.file(ROOT, "f").await;
        for range in 0..RESERVED_RANGES_MAX as u64 {
            fallocate(&rig, ino, ALLOCATE, range * 12_288, 4_096).await;
        }
        let full = 10_000_000 - RESERVED_RANGES_MAX as u64 * 4_096;
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
            (RESERVED_RANGES_MAX as u64 * 4_096).div_ceil(512)
        );
        truncate(&rig, ino, 0).await;
        assert_eq!(rig.attr(ino).await.blocks_512, 0);
    });
}
