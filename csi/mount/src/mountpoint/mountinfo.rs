//! /proc/self/mountinfo: what is mounted where, without asking any server.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use super::{MountpointError, kernel};

const MOUNTINFO: &str = "/proc/self/mountinfo";

/// One line of mountinfo: see proc(5).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mounted {
    /// Major and minor number of its device: equal for all mounts of one connection.
    pub device: (u32, u32),
    /// Where.
    pub mountpoint: PathBuf,
    /// Type, with the subtype after a dot.
    pub file_system: String,
    /// Source.
    pub source: String,
}

/// Everything mounted in this mount namespace, in the kernel's order: of several at one place, the last is on top.
///
/// # Errors
/// `Kernel` if mountinfo cannot be read.
pub fn mounted() -> Result<Vec<Mounted>, MountpointError> {
    let text = fs::read(MOUNTINFO).map_err(|error| kernel("cannot read", Path::new(MOUNTINFO), error))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse).collect())
}

/// What is mounted on top at exactly this path.
///
/// # Errors
/// As `mounted`.
pub fn mounted_at(path: &Path) -> Result<Option<Mounted>, MountpointError> {
    Ok(mounted()?.into_iter().rfind(|mounted| mounted.mountpoint == path))
}

/// One line, or `None` if it is none.
fn parse(line: &[u8]) -> Option<Mounted> {
    // 36 35 98:0 /mnt1 /mnt2 rw,noatime master:1 - ext3 /dev/root rw,errors=continue
    let mut words = line.split(|byte| *byte == b' ');
    let device = std::str::from_utf8(words.nth(2)?).ok()?;
    let (major, minor) = device.split_once(':')?;
    let mountpoint = unescape(words.nth(1)?);
    let mut words = words.skip_while(|word| *word != b"-").skip(1);
    let file_system = String::from_utf8_lossy(words.next()?).into_owned();
    let source = String::from_utf8_lossy(&unescape(words.next()?)).into_owned();
    Some(Mounted {
        device: (major.parse().ok()?, minor.parse().ok()?),
        mountpoint: PathBuf::from(OsString::from_vec(mountpoint)),
        file_system,
        source,
    })
}

/// The kernel writes space, tab, newline and backslash as three octal digits.
fn unescape(word: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(word.len());
    let mut rest = word;
    while let Some((first, after)) = rest.split_first() {
        let octal = after
            .get(..3)
            .filter(|_| *first == b'\\')
            .and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) => {
                plain.push(byte);
                rest = &after[3..];
            }
            None => {
                plain.push(*first);
                rest = after;
            }
        }
    }
    plain
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_with_its_escapes() {
        let line =
            br"41 23 0:39 / /mnt/a\040b rw,relatime shared:1 master:2 - fuse.pannier s3://bucket/v/x rw,user_id=0";
        let mounted = parse(line).unwrap();
        assert_eq!(mounted.device, (0, 39));
        assert_eq!(mounted.mountpoint, Path::new("/mnt/a b"));
        assert_eq!(mounted.file_system, "fuse.pannier");
        assert_eq!(mounted.source, "s3://bucket/v/x");
    }

    #[test]
    fn a_line_without_optional_fields_is_read_and_a_cut_one_is_not() {
        assert!(parse(b"36 35 98:0 / / rw - ext4 /dev/root rw").is_some());
        assert!(parse(b"36 35 98:0 / / rw").is_none());
        assert!(parse(b"").is_none());
    }

    #[test]
    fn the_root_is_mounted() {
        assert!(mounted_at(Path::new("/")).unwrap().is_some());
    }
}
