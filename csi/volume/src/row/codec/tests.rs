//! Keys and rows come back as they were, sort as their values do, and foreign bytes are refused without a panic.

use proptest::prelude::*;

use super::*;

pub(crate) fn any_object() -> impl Strategy<Value = ObjectId> {
    (any::<bool>(), any::<u64>(), any::<u64>()).prop_map(|(journal, epoch, number)| match journal {
        true => ObjectId::Journal(Epoch(epoch), JournalSeq(number)),
        false => ObjectId::Segment(Epoch(epoch), number),
    })
}

fn any_name() -> impl Strategy<Value = Bytes> {
    prop::collection::vec(any::<u8>(), 0..20).prop_map(Bytes::from)
}

/// Few distinct numbers, so that neighbours in the order are met.
fn any_number() -> impl Strategy<Value = u64> {
    prop_oneof![0u64..4, Just(255), Just(256), any::<u64>()]
}

pub(crate) fn any_key() -> impl Strategy<Value = Key> {
    prop_oneof![
        Just(Key::Counters),
        Just(Key::Applied),
        any_number().prop_map(|ino| Key::Inode(InodeNo(ino))),
        (any_number(), any_number(), any_name()).prop_map(|(dir, cookie, name)| Key::Dirent {
            dir: InodeNo(dir),
            cookie: DirCookie(cookie),
            name
        }),
        (any_number(), any_number()).prop_map(|(ino, end)| Key::Extent { ino: InodeNo(ino), end }),
        (any_number(), any_name()).prop_map(|(ino, name)| Key::Xattr {
            ino: InodeNo(ino),
            name
        }),
        any_object().prop_map(Key::ObjectStats),
        any_number().prop_map(|ino| Key::Orphan(InodeNo(ino))),
    ]
}

fn any_time() -> impl Strategy<Value = Timestamp> {
    (any::<i64>(), 0u32..1_000_000_000).prop_map(|(seconds, nanos)| Timestamp { seconds, nanos })
}

fn any_inode() -> impl Strategy<Value = Row> {
    let numbers = (any::<[u32; 4]>(), any::<[u64; 4]>(), any::<u16>(), any::<bool>());
    let inline = prop::option::of(prop::collection::vec(any::<u8>(), 0..200));
    let reserved = prop::collection::btree_set(any_number(), 0..20);
    let numbers = (numbers, reserved);
    (numbers, [(); 4].map(|()| any_time()), inline).prop_map(|(numbers, times, inline)| {
        let ((small, large, mode, has_xattrs), edges) = numbers;
        let mut reserved = RangeSet::default();
        for range in edges.into_iter().collect::<Vec<_>>().chunks_exact(2) {
            reserved.insert(range[0], range[1]);
        }
        let inline = inline.filter(|_| reserved.is_empty());
        Row::Inode(InodeRow {
            kind: FileKind::Regular,
            mode,
            uid: small[0],
            gid: small[1],
            rdev: small[2],
            nlink: small[3],
            size: large[0],
            allocated: large[1],
            parent: InodeNo(large[2]),
            entries: large[3],
            atime: times[0],
            mtime: times[1],
            ctime: times[2],
            btime: times[3],
            has_xattrs,
            reserved,
            inline: inline.map(Bytes::from),
        })
    })
}

fn any_extent() -> impl Strategy<Value = Row> {
    let lens = prop::collection::vec(
        prop_oneof![Just(FRAME_BYTES + 64), 65u32..=FRAME_BYTES + 64],
        1..=FRAMES_PER_RUN_MAX,
    );
    (
        any_object(),
        lens,
        0..u64::from(FRAME_BYTES) - 1,
        any::<[u32; 3]>(),
        0.0f64..1.0,
    )
        .prop_map(|(object, frame_stored_lens, skip, numbers, part)| {
            let room = frame_stored_lens.len() as u64 * u64::from(FRAME_BYTES) - skip;
            Row::Extent(ExtentRow {
                len: ((room as f64 * part) as u64).clamp(1, room),
                object,
                object_offset: u64::from(numbers[0]),
                skip,
                frame_stored_lens,
                origin_ino: InodeNo(u64::from(numbers[1])),
                origin_offset: u64::from(numbers[2]),
            })
        })
}

pub(crate) fn any_row() -> impl Strategy<Value = Row> {
    prop_oneof![
        any::<[u64; 3]>().prop_map(|n| Row::Counters(Counters {
            next_ino: n[0],
            used_bytes: n[1],
            inodes: n[2]
        })),
        any::<[u64; 2]>().prop_map(|n| Row::Applied(Applied {
            epoch: Epoch(n[0]),
            seq: JournalSeq(n[1])
        })),
        any_inode(),
        any::<u64>().prop_map(|ino| Row::Dirent(DirentRow {
            ino: InodeNo(ino),
            kind: FileKind::Socket
        })),
        any_extent(),
        prop::collection::vec(any::<u8>(), 0..100).prop_map(|value| Row::Xattr(Bytes::from(value))),
        any::<[i64; 2]>().prop_map(|n| Row::ObjectStats(ObjectStats {
            live_bytes: n[0],
            total_bytes: n[1]
        })),
        Just(Row::Orphan),
    ]
}

proptest! {
    #[test]
    fn keys_come_back_and_sort_as_they_compare(a in any_key(), b in any_key()) {
        let (bytes_a, bytes_b) = (encode_key(&a), encode_key(&b));
        prop_assert_eq!(decode_key(&bytes_a), Ok(a.clone()));
        prop_assert_eq!(bytes_a.cmp(&bytes_b), a.cmp(&b));
        prop_assert!(bytes_a.len() <= KEY_BYTES_MAX);
    }

    #[test]
    fn rows_come_back(row in any_row()) {
        let bytes = encode_row(&row);
        prop_assert_eq!(decode_row(&bytes), Ok(row));
    }

    #[test]
    fn a_cut_or_changed_row_is_refused_or_another_row_but_never_a_panic(
        row in any_row(), cut in any::<prop::sample::Index>(), at in any::<prop::sample::Index>(), with in any::<u8>()
    ) {
        let mut bytes = encode_row(&row);
        let _ = decode_row(&bytes[..cut.index(bytes.len())]);
        let at = at.index(bytes.len());
        bytes[at] = with;
        if let Ok(other) = decode_row(&bytes) {
            prop_assert_eq!(encode_row(&other), bytes, "one value has one encoding");
        }
    }

    #[test]
    fn foreign_bytes_never_panic(mut bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0u8..0x70) {
        let _ = (decode_key(&bytes), decode_row(&bytes));
        bytes.splice(0..0, [ROW_VERSION, kind]);
        let _ = (decode_key(&bytes[1..]), decode_row(&bytes));
        let _ = decode_pair(&bytes[1..], &bytes);
    }
}

#[test]
fn a_row_of_another_version_or_under_a_foreign_key_is_refused() {
    let mut bytes = encode_row(&Row::Orphan);
    assert!(decode_pair(&encode_key(&Key::Orphan(InodeNo(7))), &bytes).is_ok());
    assert!(decode_pair(&encode_key(&Key::Inode(InodeNo(7))), &bytes).is_err());
    bytes[0] = 9;
    assert_eq!(
        decode_row(&bytes),
        Err(WireError::Version {
            what: "row",
            got: 9,
            want: ROW_VERSION
        })
    );
}

#[test]
fn a_full_uncompressed_run_is_a_short_row() {
    let extent = ExtentRow {
        len: RUN_BYTES_MAX,
        object: ObjectId::Segment(Epoch(3), 17),
        object_offset: 64,
        skip: 0,
        frame_stored_lens: vec![FRAME_BYTES + 64; FRAMES_PER_RUN_MAX],
        origin_ino: InodeNo(1000),
        origin_offset: 1 << 40,
    };
    let bytes = encode_row(&Row::Extent(extent));
    assert!(bytes.len() < 40, "{} bytes", bytes.len());
}
