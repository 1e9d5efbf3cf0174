//! Much of everything: large directories, tables that are too small, too much that is dirty.

use super::*;

#[test]
fn a_huge_directory_is_listed_whole_while_it_is_emptied() {
    run(async {
        const COUNT: usize = 100_000;
        let mut rig = Rig::with(Limits {
            table_bytes_max: 4 << 20,
            ..Limits::default()
        });
        let dir = rig.dir(ROOT, "d").await;
        for i in 0..COUNT {
            let ino = rig.file(dir, &format!("file-{i}")).await;
            rig.volume.forget(ino, 1);
            if i % 20_000 == 0 {
                rig.settle().await;
            }
        }
        rig.forget_all().await;
        let (mut seen, mut after) = (std::collections::BTreeSet::new(), DirCookie(0));
        loop {
            let entries = rig.volume.readdir(dir, after, 1_000, false).await.unwrap();
            let Some(last) = entries.last() else { break };
            after = last.cookie;
            for entry in entries.iter().filter(|entry| !entry.name.starts_with(b".")) {
                assert!(seen.insert(entry.name.clone()), "{:?} was told twice", entry.name);
                rig.volume.unlink(dir, &entry.name).await.unwrap();
            }
            if seen.len() % 7_000 < 1_000 {
                rig.settle().await;
            }
        }
        assert_eq!(seen.len(), COUNT);
        rig.volume.purge_all().await;
        rig.volume.rmdir(ROOT, b"d").await.unwrap();
        rig.forget_all().await;
        assert_eq!(
            rig.volume.statfs().inodes,
            2,
            "the root, and the directory that the kernel still knows"
        );
    });
}

#[test]
fn clean_rows_leave_ram_and_dirty_ones_stay() {
    run(async {
        let mut rig = Rig::with(Limits {
            table_bytes_max: 100_000,
            ..Limits::default()
        });
        for i in 0..2_000 {
            rig.file(ROOT, &format!("{i}")).await;
        }
        let dirty = rig.volume.table_bytes();
        assert!(dirty > 1_000_000, "nothing may be dropped yet: {dirty}");
        rig.settle().await;
        for i in 0..100 {
            rig.volume.lookup(ROOT, format!("{i}").as_bytes()).await.unwrap();
        }
        let kept = rig.volume.table_bytes();
        assert!(kept < 200_000, "{kept} bytes stay");
        assert_eq!(rig.names(ROOT, 100).await.len(), 2_000);
    });
}

#[test]
fn writers_wait_while_too_much_is_dirty_and_go_on_when_it_is_durable() {
    run(async {
        let mut rig = Rig::with(Limits {
            dirty_bytes_max: 1 << 20,
            ..Limits::default()
        });
        let ino = rig.file(ROOT, "f").await;
        rig.write(ino, 0, &vec![1; 2 << 20]).await;
        let volume = rig.volume.clone();
        let writer = tokio::spawn(async move { volume.write(ino, 0, Bytes::from(vec![2; 1_000])).await });
        tokio::task::yield_now().await;
        assert!(!writer.is_finished(), "the writer must wait");
        rig.cut().await;
        tokio::task::yield_now().await;
        assert!(!writer.is_finished(), "what is on its way is not durable");
        assert_eq!(rig.read(ino, 0, 3).await, [1; 3], "reading goes on");
        rig.land();
        writer.await.unwrap().unwrap();
        assert_eq!(rig.read(ino, 0, 1_001).await, [vec![2; 1_000], vec![1]].concat());
    });
}

#[test]
fn after_the_volume_is_lost_writes_are_refused_and_reads_go_on() {
    run(async {
        let rig = Rig::new();
        let ino = rig.file(ROOT, "f").await;
        rig.write(ino, 0, b"before").await;
        let lost = crate::commit::Lost::Fenced {
            owner: "node-2".to_owned(),
        };
        rig.volume.state().lost(&lost);
        assert_fails!(
            rig.volume.write(ino, 0, Bytes::from_static(b"x")).await,
            FsError::Lost(_)
        );
        for _ in 0..2 {
            assert_fails!(rig.volume.fsync(ino).await, FsError::Lost(_));
            assert_fails!(rig.volume.flush(ino).await, FsError::Lost(_));
        }
        assert_eq!(rig.read(ino, 0, 10).await, b"before");
        assert_eq!(rig.volume.lost(), Some(lost));
    });
}

#[test]
fn random_writes_survive_tables_of_no_size_and_commits_at_any_stage() {
    run(async {
        for seed in 0..20u64 {
            println_seed(seed);
            let mut rig = Rig::tight();
            let files = [rig.file(ROOT, "a").await, rig.file(ROOT, "b").await];
            let mut models = [Vec::<u8>::new(), Vec::new()];
            let mut x = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
            let mut next = |bound: u64| {
                x ^= x << 13;
                x ^= x >> 7;
                x ^= x << 17;
                x % bound
            };
            for step in 0..300 {
                let which = next(2) as usize;
                let (ino, model) = (files[which], &mut models[which]);
                let (offset, len) = (next(60_000) as usize, 1 + next(9_000) as usize);
                match next(10) {
                    0..4 => {
                        let data = vec![step as u8; len];
                        rig.write(ino, offset as u64, &data).await;
                        model.resize(model.len().max(offset + len), 0);
                        model[offset..offset + len].copy_from_slice(&data);
                    }
                    4 => {
                        let what = crate::attr::Fallocate::PunchHole;
                        rig.volume
                            .fallocate(ino, what, offset as u64, len as u64)
                            .await
                            .unwrap();
                        let size = model.len();
                        model[offset.min(size)..(offset + len).min(size)].fill(0);
                    }
                    5 => {
                        let change = crate::attr::SetAttr {
                            size: Some(offset as u64),
                            ..Default::default()
                        };
                        rig.volume.setattr(ino, &change).await.unwrap();
                        model.resize(offset, 0);
                    }
                    6 => rig.cut().await,
                    7 => rig.land(),
                    8 => rig.apply().await,
                    _ => rig.volume.drop_clean_rows(),
                }
                let read = rig.read(files[which], 0, 100_000).await;
                assert!(read == models[which], "seed {seed}, step {step}, file {which}");
            }
            let rig = rig.reopened().await;
            for which in 0..2 {
                let read = rig.read(files[which], 0, 100_000).await;
                assert!(read == models[which], "seed {seed}, reopened, file {which}");
            }
        }
    });
}

#[expect(clippy::disallowed_macros, reason = "a failing run must show its seed")]
fn println_seed(seed: u64) {
    println!("seed {seed}");
}
