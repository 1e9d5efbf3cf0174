//! Names: made, linked, moved and taken away.

use super::*;
use crate::attr::{NewNode, RenameMode, SetAttr, SetTime, SetXattr, XattrMode};
use crate::row::FileKind;

#[test]
fn a_new_volume_has_an_empty_root() {
    run(async {
        let rig = Rig::new();
        let attr = rig.attr(ROOT).await;
        assert_eq!((attr.kind, attr.nlink, attr.mode), (FileKind::Directory, 2, 0o755));
        assert_eq!(rig.names(ROOT, 10).await, Vec::<String>::new());
        assert_eq!(rig.volume.lookup(ROOT, b"..").await.unwrap().ino, ROOT);
        assert_eq!(rig.volume.statfs().inodes, 1);
    });
}

#[test]
fn a_name_is_found_after_it_was_made_and_never_twice() {
    run(async {
        let mut rig = Rig::tight();
        let dir = rig.dir(ROOT, "d").await;
        let ino = rig.file(dir, "f").await;
        assert_fails!(rig.volume.create(dir, b"f", 0o600, ALICE).await, FsError::Exists);
        rig.forget_all().await;
        assert_eq!(rig.volume.lookup(dir, b"f").await.unwrap().ino, ino);
        assert_fails!(rig.volume.create(dir, b"f", 0o600, ALICE).await, FsError::Exists);
        assert_fails!(rig.volume.mkdir(dir, b"f", 0o600, ALICE).await, FsError::Exists);
        assert_fails!(rig.volume.lookup(dir, b"g").await, FsError::NotFound);
        assert_fails!(rig.volume.lookup(ino, b"g").await, FsError::NotDirectory);
        assert_fails!(rig.volume.lookup(dir, &[b'x'; 256]).await, FsError::NameTooLong);
        assert_fails!(
            rig.volume.create(dir, &[b'x'; 256], 0o600, ALICE).await,
            FsError::NameTooLong
        );
        assert_fails!(rig.volume.create(dir, b"a/b", 0o600, ALICE).await, FsError::Invalid(_));
    });
}

#[test]
fn what_is_made_belongs_to_who_made_it_or_to_the_group_of_a_setgid_directory() {
    run(async {
        let rig = Rig::new();
        let dir = rig.dir(ROOT, "d").await;
        let change = SetAttr {
            mode: Some(0o2775),
            gid: Some(50),
            ..SetAttr::default()
        };
        rig.volume.setattr(dir, &change).await.unwrap();
        let file = rig.volume.create(dir, b"f", 0o640, ALICE).await.unwrap();
        assert_eq!((file.uid, file.gid, file.mode), (1_000, 50, 0o640));
        let sub = rig.volume.mkdir(dir, b"s", 0o755, ALICE).await.unwrap();
        assert_eq!((sub.gid, sub.mode), (50, 0o2755));
        let node = NewNode {
            kind: FileKind::CharDevice,
            mode: 0o600,
            rdev: 0x103,
        };
        let device = rig.volume.make_node(ROOT, b"null", node, ALICE).await.unwrap();
        assert_eq!(
            (device.kind, device.rdev, device.gid),
            (FileKind::CharDevice, 0x103, 1_000)
        );
        let node = NewNode {
            kind: FileKind::Directory,
            mode: 0,
            rdev: 0,
        };
        assert_fails!(
            rig.volume.make_node(ROOT, b"no", node, ALICE).await,
            FsError::Invalid(_)
        );
    });
}

#[test]
fn hard_links_share_the_inode_until_the_last_is_gone() {
    run(async {
        let mut rig = Rig::tight();
        let ino = rig.file(ROOT, "a").await;
        rig.write(ino, 0, b"shared").await;
        let dir = rig.dir(ROOT, "d").await;
        assert_eq!(rig.volume.link(ino, dir, b"b").await.unwrap().nlink, 2);
        assert_fails!(rig.volume.link(ino, dir, b"b").await, FsError::Exists);
        assert_fails!(rig.volume.link(dir, ROOT, b"dd").await, FsError::NotPermitted);
        rig.volume.forget(ino, 2);
        rig.volume.unlink(ROOT, b"a").await.unwrap();
        rig.forget_all().await;
        assert_eq!(rig.attr(ino).await.nlink, 1);
        assert_eq!(rig.read(ino, 0, 10).await, b"shared");
        rig.volume.unlink(dir, b"b").await.unwrap();
        assert_fails!(rig.volume.getattr(ino).await, FsError::Stale(_));
        rig.forget_all().await;
        assert_fails!(rig.volume.getattr(ino).await, FsError::Stale(_));
        assert_eq!(rig.volume.statfs().inodes, 2);
    });
}

#[test]
fn symlinks_keep_their_target() {
    run(async {
        let mut rig = Rig::tight();
        let target = vec![b't'; 4_095];
        let ino = rig.volume.symlink(ROOT, b"s", &target, ALICE).await.unwrap().ino;
        rig.forget_all().await;
        assert_eq!(rig.volume.readlink(ino).await.unwrap(), target);
        assert_eq!(rig.attr(ino).await.size, 4_095);
        assert_fails!(
            rig.volume.symlink(ROOT, b"t", &[b't'; 4_096], ALICE).await,
            FsError::NameTooLong
        );
        assert_fails!(rig.volume.readlink(ROOT).await, FsError::Invalid(_));
    });
}

#[test]
fn directories_count_their_subdirectories_and_go_only_when_empty() {
    run(async {
        let mut rig = Rig::tight();
        let dir = rig.dir(ROOT, "d").await;
        let sub = rig.dir(dir, "s").await;
        assert_eq!((rig.attr(ROOT).await.nlink, rig.attr(dir).await.nlink), (3, 3));
        rig.forget_all().await;
        assert_fails!(rig.volume.rmdir(ROOT, b"d").await, FsError::NotEmpty);
        assert_fails!(rig.volume.unlink(ROOT, b"d").await, FsError::IsDirectory);
        let file = rig.file(dir, "f").await;
        assert_fails!(rig.volume.rmdir(dir, b"f").await, FsError::NotDirectory);
        assert_fails!(rig.volume.rmdir(dir, b".").await, FsError::Invalid(_));
        assert_fails!(rig.volume.rmdir(dir, b"..").await, FsError::NotEmpty);
        rig.volume.unlink(dir, b"f").await.unwrap();
        rig.volume.rmdir(dir, b"s").await.unwrap();
        assert_eq!(rig.attr(dir).await.nlink, 2);
        // Somebody still works in it: it is there, empty, and takes no new entries.
        assert_eq!(rig.attr(sub).await.nlink, 0);
        assert_fails!(rig.volume.create(sub, b"x", 0o600, ALICE).await, FsError::NotFound);
        assert_eq!(rig.names(sub, 10).await, Vec::<String>::new());
        rig.volume.forget(sub, 1);
        assert_fails!(rig.volume.getattr(sub).await, FsError::Stale(_));
        rig.volume.rmdir(ROOT, b"d").await.unwrap();
        assert_eq!(rig.attr(ROOT).await.nlink, 2);
        assert_fails!(rig.volume.rmdir(ROOT, b"d").await, FsError::NotFound);
        let _ = file;
    });
}

#[test]
fn an_unlinked_file_lives_while_it_is_open() {
    run(async {
        let mut rig = Rig::tight();
        let ino = rig.volume.create(ROOT, b"f", 0o600, ALICE).await.unwrap().ino;
        rig.write(ino, 0, &vec![5; 50_000]).await;
        rig.forget_all().await;
        rig.volume.unlink(ROOT, b"f").await.unwrap();
        rig.forget_all().await;
        assert_eq!(rig.attr(ino).await.nlink, 0);
        rig.write(ino, 50_000, b"more").await;
        assert_fails!(rig.volume.link(ino, ROOT, b"again").await, FsError::NotFound);
        rig.forget_all().await;
        assert_eq!(rig.read(ino, 49_998, 10).await, b"\x05\x05more");
        rig.volume.forget(ino, 1);
        assert_eq!(rig.attr(ino).await.nlink, 0, "still open");
        assert!(
            rig.tree.get(&Key::Orphan(ino)).await.unwrap().is_some(),
            "a crash now leaves an orphan to purge"
        );
        rig.volume.release(ino);
        rig.volume.purge_all().await;
        rig.forget_all().await;
        assert_fails!(rig.volume.getattr(ino).await, FsError::Stale(_));
        assert!(rig.tree.get(&Key::Orphan(ino)).await.unwrap().is_none());
        assert_eq!(rig.volume.statfs().inodes, 1);
        let extents = Key::Extent { ino, end: 0 }..Key::Extent {
            ino: ino.next(),
            end: 0,
        };
        assert_eq!(rig.tree.scan(&extents.start, &extents.end, 10).await.unwrap(), []);
    });
}

#[test]
fn orphans_that_a_crash_left_are_purged_by_the_next_mount() {
    run(async {
        let rig = Rig::new();
        let ino = rig.volume.create(ROOT, b"f", 0o600, ALICE).await.unwrap().ino;
        rig.write(ino, 0, &vec![5; 50_000]).await;
        rig.volume
            .setxattr(ino, b"user.a", Bytes::from_static(b"1"), XattrMode::Any)
            .await
            .unwrap();
        rig.volume.unlink(ROOT, b"f").await.unwrap();
        let mut rig = rig.reopened().await;
        assert_eq!(rig.volume.statfs().inodes, 2);
        rig.volume.purge_all().await;
        rig.forget_all().await;
        assert_eq!(rig.volume.statfs().inodes, 1);
        let left = rig
            .tree
            .scan(&Key::Inode(ino), &Key::Orphan(InodeNo(u64::MAX)), 10)
            .await
            .unwrap();
        assert_eq!(left, [], "every row of it is gone");
    });
}

#[test]
fn a_file_that_never_had_a_name_gets_one_or_goes() {
    run(async {
        let mut rig = Rig::tight();
        let nameless = async |volume: &Volume| volume.create_nameless(ROOT, 0o640, ALICE).await.unwrap();
        let kept = nameless(&rig.volume).await;
        assert_eq!((kept.nlink, kept.mode, kept.uid), (0, 0o640, 1_000));
        let (kept, gone) = (kept.ino, nameless(&rig.volume).await.ino);
        for ino in [kept, gone] {
            rig.write(ino, 0, &vec![5; 50_000]).await;
        }
        rig.forget_all().await;
        assert_eq!(rig.names(ROOT, 10).await, Vec::<String>::new());
        assert!(
            rig.tree.get(&Key::Orphan(kept)).await.unwrap().is_some(),
            "a crash now leaves an orphan to purge"
        );
        assert_eq!(rig.volume.link(kept, ROOT, b"named").await.unwrap().nlink, 1);
        rig.forget_all().await;
        assert!(rig.tree.get(&Key::Orphan(kept)).await.unwrap().is_none());
        // From its first name on it is a file like any other.
        rig.volume.link(kept, ROOT, b"again").await.unwrap();
        for name in [&b"named"[..], b"again"] {
            rig.volume.unlink(ROOT, name).await.unwrap();
        }
        assert_fails!(rig.volume.link(kept, ROOT, b"late").await, FsError::NotFound);
        rig.volume.forget(kept, 3);
        for (ino, references) in [(kept, 0), (gone, 1)] {
            rig.volume.release(ino);
            rig.volume.forget(ino, references);
        }
        rig.volume.purge_all().await;
        rig.forget_all().await;
        for ino in [kept, gone] {
            assert_fails!(rig.volume.getattr(ino).await, FsError::Stale(_));
        }
        assert_eq!(rig.volume.statfs().inodes, 1);
    });
}

#[test]
fn a_file_without_a_name_is_gone_after_a_crash_and_one_that_got_a_name_is_not() {
    run(async {
        let rig = Rig::new();
        let nameless = rig.volume.create_nameless(ROOT, 0o600, ALICE).await.unwrap().ino;
        let named = rig.volume.create_nameless(ROOT, 0o600, ALICE).await.unwrap().ino;
        for ino in [nameless, named] {
            rig.write(ino, 0, &vec![5; 50_000]).await;
        }
        rig.volume.link(named, ROOT, b"f").await.unwrap();
        let mut rig = rig.reopened().await;
        assert_eq!(rig.volume.statfs().inodes, 3);
        rig.volume.purge_all().await;
        rig.forget_all().await;
        assert_eq!(rig.volume.statfs().inodes, 2);
        assert_fails!(rig.volume.getattr(nameless).await, FsError::Stale(_));
        assert_eq!(rig.read(named, 49_999, 10).await, b"\x05");
        assert_eq!(rig.attr(named).await.nlink, 1);
    });
}

#[test]
fn a_file_is_renamed_over_another() {
    run(async {
        let mut rig = Rig::tight();
        let (a, b) = (rig.file(ROOT, "a").await, rig.file(ROOT, "b").await);
        rig.volume.forget(b, 1);
        let dir = rig.dir(ROOT, "d").await;
        rig.forget_all().await;
        let rename = |from, to, mode| {
            let volume = rig.volume.clone();
            async move { volume.rename(place(ROOT, from), place(ROOT, to), mode).await }
        };
        assert_fails!(rename("a", "b", RenameMode::NoReplace).await, FsError::Exists);
        assert_fails!(rename("x", "b", RenameMode::Replace).await, FsError::NotFound);
        assert_fails!(rename("a", "x", RenameMode::Exchange).await, FsError::NotFound);
        assert_fails!(rename("a", "d", RenameMode::Replace).await, FsError::IsDirectory);
        assert_fails!(rename("d", "a", RenameMode::Replace).await, FsError::NotDirectory);
        rename("a", "b", RenameMode::Replace).await.unwrap();
        assert_fails!(rig.volume.lookup(ROOT, b"a").await, FsError::NotFound);
        assert_eq!(rig.volume.lookup(ROOT, b"b").await.unwrap().ino, a);
        assert_fails!(rig.volume.getattr(b).await, FsError::Stale(_));
        rig.volume.link(a, ROOT, b"c").await.unwrap();
        rename("b", "c", RenameMode::Replace).await.unwrap();
        assert_eq!(rig.attr(a).await.nlink, 2, "two names of one file: nothing is done");
        rename("b", "d", RenameMode::Exchange).await.unwrap();
        assert_eq!(rig.volume.lookup(ROOT, b"b").await.unwrap().ino, dir);
        assert_eq!(rig.volume.lookup(ROOT, b"d").await.unwrap().ino, a);
        assert_eq!(rig.attr(ROOT).await.nlink, 3);
    });
}

#[test]
fn a_directory_moves_with_what_is_in_it_and_never_into_itself() {
    run(async {
        let mut rig = Rig::tight();
        let a = rig.dir(ROOT, "a").await;
        let b = rig.dir(a, "b").await;
        let c = rig.dir(b, "c").await;
        let other = rig.dir(ROOT, "other").await;
        rig.forget_all().await;
        let into_itself = rig
            .volume
            .rename(place(ROOT, "a"), place(c, "x"), RenameMode::Replace)
            .await;
        assert_fails!(into_itself, FsError::Invalid(_));
        let exchange = rig
            .volume
            .rename(place(b, "c"), place(ROOT, "a"), RenameMode::Exchange)
            .await;
        assert_fails!(exchange, FsError::Invalid(_));
        rig.volume
            .rename(place(a, "b"), place(other, "moved"), RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(rig.volume.lookup(b, b"..").await.unwrap().ino, other);
        assert_eq!((rig.attr(a).await.nlink, rig.attr(other).await.nlink), (2, 3));
        rig.forget_all().await;
        assert_eq!(rig.volume.lookup(other, b"moved").await.unwrap().ino, b);
        // Over an empty directory it replaces; over a full one it does not.
        let full = rig
            .volume
            .rename(place(ROOT, "a"), place(other, "moved"), RenameMode::Replace)
            .await;
        assert_fails!(full, FsError::NotEmpty);
        rig.volume
            .rename(place(other, "moved"), place(ROOT, "a"), RenameMode::Replace)
            .await
            .unwrap();
        assert_eq!(rig.attr(ROOT).await.nlink, 4);
        assert_eq!(rig.volume.lookup(ROOT, b"a").await.unwrap().ino, b);
        assert_eq!(rig.names(b, 5).await, ["c"]);
    });
}

#[test]
fn attributes_change_as_asked_and_ctime_with_them() {
    run(async {
        let mut rig = Rig::tight();
        let ino = rig.volume.create(ROOT, b"f", 0o4755, ALICE).await.unwrap().ino;
        let before = rig.attr(ino).await;
        let at = Timestamp {
            seconds: -5,
            nanos: 999_999_999,
        };
        let times = SetAttr {
            mtime: Some(SetTime::At(at)),
            atime: Some(SetTime::Now),
            ..SetAttr::default()
        };
        let after = rig.volume.setattr(ino, &times).await.unwrap();
        assert_eq!(after.mtime, at);
        assert!(after.ctime > before.ctime && after.atime > before.atime);
        let owner = SetAttr {
            uid: Some(7),
            ..SetAttr::default()
        };
        assert_eq!(
            rig.volume.setattr(ino, &owner).await.unwrap().mode,
            0o755,
            "a new owner gets no suid program"
        );
        rig.volume
            .setattr(
                ino,
                &SetAttr {
                    mode: Some(0o6711),
                    ..SetAttr::default()
                },
            )
            .await
            .unwrap();
        rig.volume.clear_suid(ino, 0).await.unwrap();
        assert_eq!(rig.attr(ino).await.mode, 0o711);
        rig.forget_all().await;
        let loaded = rig.attr(ino).await;
        assert_eq!((loaded.mtime, loaded.uid, loaded.mode), (at, 7, 0o711));
        assert_eq!(loaded.btime, before.btime);
        let size = SetAttr {
            size: Some(1),
            ..SetAttr::default()
        };
        assert_fails!(rig.volume.setattr(ROOT, &size).await, FsError::IsDirectory);
        let huge = SetAttr {
            size: Some(u64::MAX),
            ..SetAttr::default()
        };
        assert_fails!(rig.volume.setattr(ino, &huge).await, FsError::TooBig);
    });
}

/// The group's bit goes whatever it means, where the caller is of another group; with an access list, where the kernel says so.
#[test]
fn what_others_change_loses_the_bit_of_its_group() {
    run(async {
        let rig = Rig::new();
        let ino = rig.file(ROOT, "f").await;
        let chmod = SetAttr {
            mode: Some(0o6644),
            gid: Some(5),
            ..SetAttr::default()
        };
        for (gid, left) in [(5, 0o2644), (6, 0o644)] {
            rig.volume.setattr(ino, &chmod).await.unwrap();
            assert!(rig.volume.clear_suid(ino, gid).await.unwrap());
            assert_eq!(rig.attr(ino).await.mode, left);
            assert!(!rig.volume.clear_suid(ino, gid).await.unwrap(), "there is none left");
        }
        for clears_sgid in [false, true] {
            rig.volume.setattr(ino, &chmod).await.unwrap();
            let how = SetXattr {
                mode: XattrMode::Any,
                clears_sgid,
            };
            let value = Bytes::from_static(b"1");
            rig.volume.setxattr(ino, b"user.a", value, how).await.unwrap();
            assert_eq!(rig.attr(ino).await.mode, if clears_sgid { 0o4644 } else { 0o6644 });
        }
    });
}

/// The kernel asks so for what it has forgotten and somebody has a handle of (open_by_handle_at(2)).
#[test]
fn an_inode_is_found_by_its_number_while_it_has_a_name() {
    run(async {
        let mut rig = Rig::new();
        let dir = rig.volume.mkdir(ROOT, b"d", 0o755, ALICE).await.unwrap().ino;
        let ino = rig.file(dir, "f").await;
        rig.forget_all().await;
        assert_eq!(rig.volume.lookup(ino, b".").await.unwrap().ino, ino);
        assert_eq!(rig.volume.lookup(dir, b".").await.unwrap().ino, dir);
        assert_eq!(rig.volume.lookup(dir, b"..").await.unwrap().ino, ROOT);
        assert_fails!(rig.volume.lookup(ino, b"..").await, FsError::NotDirectory);
        rig.volume.unlink(dir, b"f").await.unwrap();
        assert_fails!(rig.volume.lookup(ino, b".").await, FsError::Stale(_));
    });
}

#[test]
fn extended_attributes_are_set_listed_and_removed() {
    run(async {
        let mut rig = Rig::tight();
        let ino = rig.file(ROOT, "f").await;
        let set = |name: &'static str, value: Vec<u8>, mode| {
            let volume = rig.volume.clone();
            async move { volume.setxattr(ino, name.as_bytes(), value.into(), mode).await }
        };
        assert_fails!(set("user.a", vec![1], XattrMode::Replace).await, FsError::NoAttribute);
        set("user.a", vec![1], XattrMode::Create).await.unwrap();
        assert_fails!(set("user.a", vec![2], XattrMode::Create).await, FsError::Exists);
        set("user.b", vec![3; 65_536], XattrMode::Any).await.unwrap();
        assert_fails!(
            set("user.c", vec![3; 65_537], XattrMode::Any).await,
            FsError::AttributeTooLarge
        );
        rig.forget_all().await;
        assert_eq!(rig.volume.listxattr(ino).await.unwrap(), ["user.a", "user.b"]);
        assert_eq!(rig.volume.getxattr(ino, b"user.b").await.unwrap(), vec![3; 65_536]);
        assert_fails!(rig.volume.getxattr(ino, b"user.c").await, FsError::NoAttribute);
        rig.volume.removexattr(ino, b"user.b").await.unwrap();
        assert_fails!(rig.volume.removexattr(ino, b"user.b").await, FsError::NoAttribute);
        rig.volume.removexattr(ino, b"user.a").await.unwrap();
        rig.forget_all().await;
        assert_eq!(rig.volume.listxattr(ino).await.unwrap(), Vec::<Bytes>::new());
        assert_fails!(
            rig.volume
                .setxattr(ino, &[b'x'; 256], Bytes::new(), XattrMode::Any)
                .await,
            FsError::NameTooLong
        );
    });
}
