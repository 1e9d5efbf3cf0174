//! Requests as fuse.h lays them out, whole, cut and odd.

use super::*;

fn header(opcode: u32) -> [u8; HEADER_BYTES] {
    let mut header = [0; HEADER_BYTES];
    header[4..8].copy_from_slice(&opcode.to_ne_bytes());
    header[8..16].copy_from_slice(&7u64.to_ne_bytes());
    header[16..24].copy_from_slice(&1u64.to_ne_bytes());
    header[24..28].copy_from_slice(&1000u32.to_ne_bytes());
    header
}

fn fields(at: &[(usize, u64)]) -> [u8; FIELDS_BYTES] {
    let mut fields = [0; FIELDS_BYTES];
    for (at, value) in at {
        let value = value.to_ne_bytes();
        fields[*at..*at + 8].copy_from_slice(&value);
    }
    fields
}

fn told(opcode: u32, fields: &[u8; FIELDS_BYTES], content: &[u8]) -> Result<String, Unserved> {
    let header = header(opcode);
    let asked = Asked::new(&header, fields, content);
    assert_eq!((asked.unique, asked.ino, asked.request.uid), (7, InodeNo(1), 1000));
    asked.operation().map(|operation| format!("{operation:?}"))
}

#[test]
fn names_and_content_are_found_where_linux_puts_them() {
    let none = fields(&[]);
    assert_eq!(told(1, &none, b"a\0").unwrap(), r#"Lookup { name: [97] }"#);
    let renamed = told(45, &fields(&[(0, 9), (8, 2)]), b"a\0b\0").unwrap();
    assert!(renamed.contains("new_dir: InodeNo(9), new_name: [98]"), "{renamed}");
    let written = told(16, &fields(&[(8, 4096), (16, 3)]), b"xyz").unwrap();
    assert!(
        written.contains("offset: 4096, data: [120, 121, 122], clears_suid: false"),
        "{written}"
    );
    let set = told(21, &fields(&[(0, 2 | 1 << 32)]), b"user.a\0hi").unwrap();
    assert!(set.contains("value: [104, 105], flags: 1"), "{set}");
}

#[test]
fn times_before_1970_are_as_the_kernel_meant_them() {
    let asked = fields(&[(0, u64::from(valid::MTIME)), (40, (-2i64).cast_unsigned()), (60, 5)]);
    let change = told(4, &asked, b"").unwrap();
    assert!(change.contains("Timestamp { seconds: -2, nanos: 5 }"), "{change}");
}

#[test]
fn what_is_cut_or_cannot_be_is_refused() {
    let none = fields(&[]);
    // No zero ends the name; a second name is missing; less content than told; a value longer than what is there; more than a
    // second of nanoseconds.
    let long = fields(&[(16, 4)]);
    let value = fields(&[(0, 100)]);
    let nanos = fields(&[(0, u64::from(valid::ATIME)), (56, 1_000_000_000)]);
    for (opcode, fields, content) in [
        (1, &none, &b"name"[..]),
        (1, &none, b""),
        (45, &none, b"one\0"),
        (6, &none, b"one\0two"),
        (16, &long, b"xyz"),
        (21, &value, b"user.a\0v"),
        (4, &nanos, b""),
    ] {
        assert_eq!(
            told(opcode, fields, content),
            Err(Unserved::Malformed(opcode)),
            "{opcode}"
        );
    }
    for opcode in [0, 2, 26, 34, 36, 38, 39, 40, 48, 49, 99, u32::MAX] {
        assert_eq!(told(opcode, &none, b""), Err(Unserved::Unknown(opcode)), "{opcode}");
    }
}

fn flat(opcode: u32, fields: &[u8], content: &[u8]) -> Bytes {
    [&header(opcode)[..], fields, content].concat().into()
}

/// The request says the same in one piece as it says in three places.
#[test]
fn a_request_in_one_piece_is_taken_apart_where_its_fields_end() {
    let written = fields(&[(8, 4096), (16, 3)]);
    let (none, renamed) = (fields(&[]), fields(&[(0, 9), (8, 2)]));
    for (opcode, fields, fields_bytes, content) in [
        (1, &none, 0, &b"a\0"[..]),
        (16, &written, 40, b"xyz"),
        (45, &renamed, 16, b"a\0b\0"),
        (25, &none, 24, b""),
    ] {
        let message = flat(opcode, &fields[..fields_bytes], content);
        let mut room = [0; FIELDS_BYTES];
        let asked = Asked::flat(&message, None, &mut room).unwrap();
        let in_one = asked.operation().map(|operation| format!("{operation:?}"));
        assert_eq!(in_one, told(opcode, fields, content));
        for cut in 0..HEADER_BYTES + fields_bytes {
            assert!(
                Asked::flat(&message[..cut], None, &mut [0; FIELDS_BYTES]).is_none(),
                "{opcode}"
            );
        }
    }
}

/// A kernel says more of an attribute if that was agreed on, and a successor of a program that did not agree is not told.
#[test]
fn an_attribute_is_understood_with_and_without_what_was_agreed_on_later() {
    let content = b"system.posix_acl_access\0hi";
    let asked = fields(&[(0, 2 | 1 << 32), (8, u64::from(SETXATTR_ACL_KILL_SGID))]);
    for (fields_bytes, clears) in [(8, false), (16, true)] {
        let message = flat(21, &asked[..fields_bytes], content);
        let mut room = [0xff; FIELDS_BYTES];
        let told = Asked::flat(&message, None, &mut room).unwrap().operation();
        let Ok(Operation::Setxattr {
            name,
            value,
            flags,
            clears_sgid,
        }) = told
        else {
            panic!("{told:?}");
        };
        assert_eq!((name, value), (&content[..23], &b"hi"[..]));
        assert_eq!((flags, clears_sgid), (1, clears), "{fields_bytes}");
    }
}

#[test]
fn a_write_is_direct_if_it_is_not_from_the_memory_of_the_kernel() {
    let direct = u64::from(libc::O_DIRECT.cast_unsigned());
    for (cached, flags, expected) in [
        (0, direct, true),
        (0, 0, false),
        (u64::from(WRITE_CACHE), direct, false),
    ] {
        let asked = fields(&[(16, 3 | cached << 32), (32, flags)]);
        let written = told(16, &asked, b"xyz").unwrap();
        assert!(written.contains(&format!("direct: {expected}")), "{written}");
    }
    let read = told(15, &fields(&[(32, direct)]), b"").unwrap();
    assert!(read.contains("direct: true"), "{read}");
}

#[test]
fn content_of_a_message_that_may_be_kept_is_not_copied() {
    let message = flat(16, &fields(&[(8, 0), (16, 3)])[..40], b"xyz");
    for whole in [None, Some(&message)] {
        let mut room = [0; FIELDS_BYTES];
        let asked = Asked::flat(&message, whole, &mut room).unwrap();
        let Ok(Operation::Write { data, .. }) = asked.operation() else {
            panic!("it is a write");
        };
        let kept = asked.keep(data);
        assert_eq!(
            (&kept[..], kept.as_ptr() == data.as_ptr()),
            (&b"xyz"[..], whole.is_some())
        );
    }
}

#[test]
fn references_are_taken_back_one_by_one_or_many_at_a_time() {
    let taken = |message: &[u8]| forgets(message).map(|(ino, count)| (ino.0, count)).collect::<Vec<_>>();
    let pairs: Vec<u8> = [5u64, 1, 6, 2].iter().flat_map(|word| word.to_ne_bytes()).collect();
    assert_eq!(taken(&flat(FORGET, &3u64.to_ne_bytes(), b"")), [(1, 3)]);
    assert_eq!(
        taken(&flat(BATCH_FORGET, &2u64.to_ne_bytes(), &pairs)),
        [(5, 1), (6, 2)]
    );
    // Fewer than it says, and more.
    assert_eq!(taken(&flat(BATCH_FORGET, &9u64.to_ne_bytes(), &pairs[..20])), [(5, 1)]);
    assert_eq!(taken(&flat(BATCH_FORGET, &1u64.to_ne_bytes(), &pairs)), [(5, 1)]);
    for len in 0..48 {
        for opcode in [FORGET, BATCH_FORGET] {
            assert_eq!(taken(&flat(opcode, &[], &[0; 8])[..len]).len(), usize::from(len == 48));
        }
    }
}

#[test]
fn nothing_that_the_kernel_could_say_panics() {
    // Every operation with fields of one byte repeated, beside contents of every short length.
    for opcode in 0..64 {
        for byte in [0, 1, 0x7f, 0x80, 0xff] {
            for len in 0..12 {
                let content: Vec<u8> = (0..len).map(|n| if n % 5 == 4 { 0 } else { byte }).collect();
                let _ = told(opcode, &[byte; FIELDS_BYTES], &content);
            }
            for len in 0..HEADER_BYTES + 100 {
                let message = flat(opcode, &[byte; 100], b"");
                let _ = Asked::flat(&message[..len], None, &mut [0; FIELDS_BYTES]).map(|asked| asked.operation());
            }
        }
    }
}
