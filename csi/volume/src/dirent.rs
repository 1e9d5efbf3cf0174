//! Names in directories: what is a name, and where it stands in a listing.
//!
//! A listing is in the order of a hash of the names (the cookie), so that a reader may stop and go on after any entry
//! while others come and go: an entry that stays keeps its place. The hash is part of the format: it never changes.
//! Two names of one directory with the same cookie are possible in theory (one chance in 10^7 for a million names); both
//! are found by name, and both are listed unless a page of the listing ends just between them.

use crate::error::FsError;
use crate::ids::DirCookie;
use crate::limits::NAME_BYTES_MAX;

/// Cookies of "." and "..".
pub const DOT: DirCookie = DirCookie(1);
/// See `DOT`.
pub const DOT_DOT: DirCookie = DirCookie(2);

/// The smallest cookie of a name.
pub const FIRST_COOKIE: DirCookie = DirCookie(3);

/// One past the greatest cookie of a name: 63 bits, since directory offsets are signed.
pub const COOKIES_END: u64 = 1 << 63;

/// "pannier " and "dirent 1" in ASCII. Fixed for the life of the format: a listing must resume after a restart. It needs
/// no secret, since a collision costs nothing but order.
const KEY: (u64, u64) = (u64::from_be_bytes(*b"pannier "), u64::from_be_bytes(*b"dirent 1"));

/// The place of a name in a listing: SipHash-1-3, cut to 63 bits, above the places of "." and "..".
pub fn cookie_of(name: &[u8]) -> DirCookie {
    DirCookie((siphash13(name) >> 1).max(FIRST_COOKIE.0))
}

/// Refuses what is no name of an entry.
///
/// # Errors
/// `NameTooLong`; `Invalid` for an empty name, one with `/` or NUL, "." and "..".
pub fn check_new_name(name: &[u8]) -> Result<(), FsError> {
    check_length(name)?;
    if name.is_empty() || name.iter().any(|b| matches!(b, b'/' | 0)) || matches!(name, b"." | b"..") {
        return Err(FsError::Invalid("that is no name of an entry"));
    }
    Ok(())
}

/// Refuses a name that no entry can have because it is too long.
///
/// # Errors
/// `NameTooLong`.
pub fn check_length(name: &[u8]) -> Result<(), FsError> {
    if name.len() > NAME_BYTES_MAX {
        Err(FsError::NameTooLong)
    } else {
        Ok(())
    }
}

fn siphash13(bytes: &[u8]) -> u64 {
    let mut v = [
        KEY.0 ^ 0x736f_6d65_7073_6575,
        KEY.1 ^ 0x646f_7261_6e64_6f6d,
        KEY.0 ^ 0x6c79_6765_6e65_7261,
        KEY.1 ^ 0x7465_6462_7974_6573,
    ];
    let mut chunks = bytes.chunks_exact(8);
    for chunk in &mut chunks {
        let word = u64::from_le_bytes(chunk.try_into().expect("a chunk of eight"));
        v[3] ^= word;
        round(&mut v);
        v[0] ^= word;
    }
    let mut last = [0u8; 8];
    let rest = chunks.remainder();
    last[..rest.len()].copy_from_slice(rest);
    last[7] = (bytes.len() & 0xff) as u8;
    let word = u64::from_le_bytes(last);
    v[3] ^= word;
    round(&mut v);
    v[0] ^= word;
    v[2] ^= 0xff;
    round(&mut v);
    round(&mut v);
    round(&mut v);
    v[0] ^ v[1] ^ v[2] ^ v[3]
}

fn round(v: &mut [u64; 4]) {
    v[0] = v[0].wrapping_add(v[1]);
    v[2] = v[2].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(13) ^ v[0];
    v[3] = v[3].rotate_left(16) ^ v[2];
    v[0] = v[0].rotate_left(32);
    v[2] = v[2].wrapping_add(v[1]);
    v[0] = v[0].wrapping_add(v[3]);
    v[1] = v[1].rotate_left(17) ^ v[2];
    v[3] = v[3].rotate_left(21) ^ v[0];
    v[2] = v[2].rotate_left(32);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cookie_of_a_name_is_the_same_for_ever() {
        // These numbers are in buckets. A failure here means that listings of existing volumes break.
        let told: Vec<u64> = [&b"a"[..], b"lost+found", b"a name of more than eight bytes"]
            .iter()
            .map(|name| cookie_of(name).0)
            .collect();
        assert_eq!(
            told,
            [0x69f7_1cb5_7ba8_78be, 0x6554_1a5a_07c9_f40e, 0x1ecf_18ce_311a_625d]
        );
    }

    #[test]
    fn cookies_leave_room_for_dot_and_dot_dot_and_spread() {
        let mut cookies: Vec<u64> = (0..10_000)
            .map(|i| cookie_of(format!("file-{i}").as_bytes()).0)
            .collect();
        assert!(cookies.iter().all(|c| *c >= FIRST_COOKIE.0 && *c < COOKIES_END));
        cookies.sort_unstable();
        cookies.dedup();
        assert_eq!(cookies.len(), 10_000);
        let upper = cookies.iter().filter(|c| **c >= COOKIES_END / 2).count();
        assert!((4_500..5_500).contains(&upper), "{upper} of 10,000 in the upper half");
    }

    #[test]
    fn what_is_no_name_is_refused() {
        for name in [&b""[..], b".", b"..", b"a/b", b"a\0b"] {
            assert!(matches!(check_new_name(name), Err(FsError::Invalid(_))), "{name:?}");
        }
        assert!(matches!(check_new_name(&[b'x'; 256]), Err(FsError::NameTooLong)));
        assert!(check_new_name(&[b'x'; 255]).is_ok());
        assert!(check_new_name(&[0xff, 0xfe]).is_ok(), "names are bytes, not text");
    }
}
